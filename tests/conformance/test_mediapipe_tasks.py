"""MediaPipe's ObjectDetector and ImageSegmenter on our files, as they are: the module's boxes and masks.

Untrained networks: what counts is that MediaPipe prepares the image, reads the
outputs and names the classes as we mean them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from mobilefit.arch import spec
from mobilefit.data import Preset
from mobilefit.int8 import quantize
from mobilefit.litert import compile
from mobilefit.litert.metadata import packaged
from mobilefit.litert.outputs import DetectionOutputs, Outputs, SegmentationOutputs, with_outputs
from mobilefit.nn import Network, boxes, build

_Y, _X = np.mgrid[:160, :240]
PIXELS = np.stack([_X, _Y * 1.5, 128 + 100 * np.sin(_X / 20) * np.cos(_Y / 15)], 2).astype(np.uint8)
"""Of the networks' own size, so that nobody has to resize."""
PRESET = Preset(resolution=160, width=240, fit="stretch")
INPUT = ((PIXELS / 255 - 0.5) / 0.5).astype(np.float32)[None]
MOST, SURE = 25, 0.3
both_kinds = pytest.mark.parametrize("kind", ["float32", "int8"])


def classes_of(network: Network) -> list[str]:
    return [f"class {i}" for i in range(network.spec.head.num_classes)]


def made(name: str) -> tuple[Network, dict[str, bytes]]:
    """A network, and its files of either kind."""
    torch.manual_seed(0)
    network = build(spec(name).resolution(160, 240).classes(12)).eval()
    with torch.no_grad():  # fresh logits hardly differ from place to place
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.3)
                layer.bias.normal_(0, 0.3)
        for layer in network.head.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight *= 6
    said = {"preset": PRESET.to_dict(), "classes": classes_of(network), "spec": network.spec.to_dict()}
    blob = compile(network, (1, 3, 160, 240), metadata=said)
    return network, {"float32": blob, "int8": quantize(blob, [INPUT])}


@pytest.fixture(scope="module")
def detector() -> tuple[Network, dict[str, bytes]]:
    return made("ssdlite_mobilenet_v3_small_reduced")


@pytest.fixture(scope="module")
def segmenter() -> tuple[Network, dict[str, bytes]]:
    return made("lraspp_mobilenet_v3_small")


def image() -> Any:
    mediapipe = pytest.importorskip("mediapipe")
    return mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=PIXELS)


def detected(blob: bytes) -> list[tuple[str, float, list[int]]]:
    """Class, score and box in pixels of everything that MediaPipe finds; boxes alike come as one."""
    seen = image()
    from mediapipe.tasks.python import BaseOptions, vision

    options = vision.ObjectDetectorOptions(BaseOptions(model_asset_buffer=blob))
    with vision.ObjectDetector.create_from_options(options) as detector:
        found = detector.detect(seen).detections
    rows = []
    for one in found:
        box = one.bounding_box
        corners = [box.origin_x, box.origin_y, box.origin_x + box.width, box.origin_y + box.height]
        rows += [(c.category_name, c.score, corners) for c in one.categories]
    return rows


def segmented(blob: bytes) -> Any:
    seen = image()
    from mediapipe.tasks.python import BaseOptions, vision

    options = vision.ImageSegmenterOptions(
        BaseOptions(model_asset_buffer=blob), output_category_mask=True, output_confidence_masks=True
    )
    with vision.ImageSegmenter.create_from_options(options) as segmenter:
        found = segmenter.segment(seen)
        shares = np.stack([mask.numpy_view().squeeze() for mask in found.confidence_masks])
        return segmenter.labels, found.category_mask.numpy_view().squeeze().copy(), shares.copy()


def run(network: Network) -> Any:
    with torch.no_grad():
        return network(torch.from_numpy(INPUT).permute(0, 3, 1, 2))


def file(made: tuple[Network, dict[str, bytes]], kind: str, outputs: Outputs) -> bytes:
    network, files = made
    return packaged(with_outputs(files[kind], network.spec, outputs))


@both_kinds
def test_the_detector_finds_the_modules_boxes(detector: Any, kind: str) -> None:
    chosen = DetectionOutputs(score_threshold=SURE, max_detections=MOST)
    rows = detected(file(detector, kind, chosen))
    network, _ = detector
    encodings, logits = run(network)
    (wanted,) = boxes.detections(
        encodings, logits, boxes.spec_anchors(network.spec), "sigmoid",
        score_threshold=SURE, max_detections=MOST, class_wise=False,
    )  # fmt: skip
    assert len(wanted.boxes) == MOST >= len(rows) >= MOST - 2  # what is outside takes one's place
    exact = wanted.boxes * torch.tensor([240, 160, 240, 160])
    names = [f"class {int(label)}" for label in wanted.labels]
    near = 0
    for name, score, corners in rows:
        iou = torchvision.ops.box_iou(torch.tensor([corners]).float(), exact)[0].numpy()
        apart = np.abs(exact.numpy() - corners).max(1)
        same = np.array(names) == name
        if kind == "float32":  # MediaPipe cuts corner and sides down to whole pixels
            assert (same & (apart <= 2.01) & (np.abs(wanted.scores.numpy() - score) < 1e-3)).any()
        near += bool((same & (iou > 0.9) & (np.abs(wanted.scores.numpy() - score) < 0.05)).any())
    assert near >= 0.8 * len(rows)


@both_kinds
@pytest.mark.parametrize("form", ["logits", "coarse"])
def test_the_segmenter_gives_the_modules_mask(segmenter: Any, kind: str, form: Any) -> None:
    labels, mask, shares = segmented(file(segmenter, kind, SegmentationOutputs(form=form)))
    network, _ = segmenter
    logits = run(network)
    assert labels == classes_of(network)
    assert mask.shape == (160, 240) and len(np.unique(mask)) >= 2
    agree = (mask == logits.argmax(1)[0].numpy()).mean()
    assert agree >= (0.999 if kind == "float32" else 0.95)
    if (kind, form) == ("float32", "logits"):
        assert np.abs(shares - logits.softmax(1)[0].numpy()).max() < 1e-4
    assert shares.sum(0) == pytest.approx(1, abs=1e-4)


def test_mediapipe_reads_no_decoded_boxes(detector: Any) -> None:
    # if this fails, MediaPipe has learnt it: say so in docs/files.md
    with pytest.raises(ValueError, match="TensorsDecodingOptions is not found"):
        detected(file(detector, "float32", DetectionOutputs(nms="outside")))
