"""From a trained network to files, and from files to predictions: what several verbs share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mobilefit import arch, int8, litert
from mobilefit.arch import NetSpec
from mobilefit.data import ClassificationData, ImageSet, Preset, batches
from mobilefit.data.scenes import scene_batches
from mobilefit.errors import InputError, naming
from mobilefit.jobs import pretrained
from mobilefit.jobs.ends import (
    Ends,
    evaluated_boxes,
    evaluated_masks,
    outputs_of,
    seen,
    usual_outputs,
)
from mobilefit.jobs.running import Runner, outline
from mobilefit.litert.graph import Graph, parse
from mobilefit.litert.metadata import packaged
from mobilefit.litert.outputs import DetectionOutputs, Outputs, with_outputs
from mobilefit.litert.shapes import check_shapes
from mobilefit.nn import Network, build
from mobilefit.parsing import checked, texts
from mobilefit.runs import read_bytes
from mobilefit.tasks.detect import DetectionEvaluation
from mobilefit.tasks.segment import SegmentationEvaluation
from mobilefit.train import Evaluation, evaluation_of

CALIBRATION_IMAGES = 200
"""Spread evenly over the classes, or over the set; a min-max range does not move much after a hundred."""


def input_shape(spec: NetSpec) -> tuple[int, int, int, int]:
    """One image, NCHW."""
    return (1, spec.in_channels, *spec.image_shape)


def int8_for_timing(spec: NetSpec) -> bytes:
    """An int8 file of the spec with made-up weights and ranges: its latency is the real one's, of a detector the most."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build(spec).eval()
    return int8.with_random_ranges(compiled(network, outputs=_finding_everything(spec)))


def _finding_everything(spec: NetSpec) -> Outputs | None:
    """The usual outputs, all default boxes being detections: a trained detector on any picture is no slower.

    What is found costs time: SSDLite on MobileNetV2 0.45 at 176 px takes 0.94 ms if it finds nothing, 1.11 ms as trained
    on BCCD and 1.15 ms if every default box is above the threshold.
    """
    usual = usual_outputs(spec)
    return replace(usual, score_threshold=0.0) if isinstance(usual, DetectionOutputs) else usual


def compiled(
    network: Network, metadata: dict[str, Any] | None = None, outputs: Outputs | None = None
) -> bytes:
    """The float32 LiteRT file of a network, for one image at a time.

    Args:
        network: it is left in evaluation mode.
        metadata: see :func:`mobilefit.litert.compile`.
        outputs: what it ends with; ``None``: as usual, see :func:`.ends.usual_outputs`.
    """
    blob = litert.compile(network.eval(), input_shape(network.spec), metadata=metadata)
    chosen = outputs or usual_outputs(network.spec)
    return blob if chosen is None else with_outputs(blob, network.spec, chosen)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A network's two files as they are written, and what they make of the test images."""

    float32: bytes
    int8: bytes
    found: dict[str, Any]
    """The task's evaluation, by the file's name here."""


def export(
    network: Network, data: Any, preset: Preset, *, seed: int = 0, outputs: Outputs | None = None
) -> Exported:
    """Compile to LiteRT, quantize with training images as calibration, evaluate, and package.

    Args:
        network: of any task.
        data: of its task.
        preset: how an image becomes its input.
        seed: of the choice of calibration images.
        outputs: as of :func:`compiled`.
    """
    blob = compiled(network, description(network, data, preset), outputs)
    files = {"float32": blob, "int8": int8.quantize(blob, calibration(data, preset, seed))}
    found = {kind: evaluate_file(file, data.test, preset) for kind, file in files.items()}
    known = {kind: accuracy_entry(evaluation, data) for kind, evaluation in found.items()}
    return Exported(
        float32=packaged(files["float32"], known), int8=packaged(files["int8"], known), found=found
    )


def description(network: Network, data: Any, preset: Preset) -> dict[str, Any]:
    """What a file says of itself."""
    return {
        "preset": preset.to_dict(), "classes": list(data.classes), "spec": network.spec.to_dict(),
    }  # fmt: skip


def accuracy_entry(found: Any, data: Any) -> dict[str, Any]:
    """A file's quality as its metadata keep it (see ``litert.metadata.packaged``)."""
    return {**numbers_of(found), "images": f"{len(data.test)} test images of {data.name}"}


def numbers_of(found: Any) -> dict[str, float]:
    """The task's numbers of an evaluation, 0 to 1, the one that counts first; 0 where nothing is to be found."""
    if isinstance(found, DetectionEvaluation):
        known = {"map50": found.score.map50, "map": found.score.map}
    elif isinstance(found, SegmentationEvaluation):
        known = {"miou": found.score.miou, "pixel_accuracy": found.score.pixel_accuracy}
    else:
        assert isinstance(found, Evaluation)
        known = {"top1": found.top1}
    return {name: 0.0 if math.isnan(value) else value for name, value in known.items()}


def value_of(found: Any) -> float:
    """The number that tells how good a network is, 0 to 1."""
    return next(iter(numbers_of(found).values()))


def calibration(
    data: Any, preset: Preset, seed: int, images: int = CALIBRATION_IMAGES
) -> Iterator[npt.NDArray[np.float32]]:
    """Training images as the file takes them, ``[1, H, W, 3]`` each."""
    for batch in prepared(some(data, data.train, images, seed), preset, 1):
        yield np.ascontiguousarray(batch.permute(0, 2, 3, 1).numpy())


def some(data: Any, images: Any, most: int, seed: int) -> Any:
    """Some images of a set: of a classifier's as many of each class, else spread evenly over the set."""
    if isinstance(data, ClassificationData):
        return images.balanced(max(1, most // len(data.classes)), seed)
    places = np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(np.int64)
    return images.subset(places)


def prepared(images: Any, preset: Preset, batch_size: int = 32) -> Iterator[torch.Tensor]:
    """The images of a set of any task as evaluation sees them, ``[n, 3, H, W]`` each."""
    if isinstance(images, ImageSet):
        yield from (batch for batch, _ in batches(images, preset, batch_size, train=False))
    else:
        yield from (
            batch for _, batch, _ in scene_batches(images, partial(seen, preset=preset), preset, batch_size)
        )


def evaluate_file(blob: bytes, images: Any, preset: Preset) -> Any:
    """How good a LiteRT file is, run image by image as on the device: the task's evaluation.

    Args:
        blob: the file; what it says of itself tells the task, else it is a classifier.
        images: a set of its task.
        preset: how an image becomes its input.
    """
    ends = ends_of(litert.read_metadata(blob))
    if ends is not None and ends.spec.task == "detect":
        return evaluated_boxes(blob, ends, images, preset)
    if ends is not None and ends.spec.task == "segment":
        return evaluated_masks(blob, ends, images, preset)
    runner = Runner(blob)
    logits = [
        runner(np.ascontiguousarray(batch.permute(0, 2, 3, 1).numpy()), threads=2)
        for batch in prepared(images, preset, 200)
    ]
    return evaluation_of(np.concatenate(logits), images.labels)


def ends_of(metadata: Any) -> Ends | None:
    """The network that a file is of, and what it ends with; ``None`` where it does not say."""
    if not isinstance(metadata, dict) or "spec" not in metadata:
        return None
    spec = NetSpec.from_dict(metadata["spec"])
    return Ends(spec=spec, outputs=outputs_of(metadata.get("outputs"), spec))


def network_for(spec: NetSpec, weights: None = None, *, seed: int = 0) -> Network:
    """A network with fresh weights by the seed; with pretrained ones: :func:`.pretrained.start`."""
    return pretrained.fresh(spec, seed)


def spec_of(model: str) -> NetSpec:
    """The spec of a family name or of a ``.json`` file."""
    if not model.endswith(".json"):
        return arch.spec(model)
    path = Path(model)
    if not path.is_file():
        raise InputError(f"no such spec file: {path}")
    with naming(path):
        return NetSpec.from_json(read_file(path))


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """What a LiteRT file of ours says of itself."""

    preset: Preset
    classes: tuple[str, ...]
    spec: NetSpec
    outputs: Outputs | None = None
    """What a detector's or segmenter's file ends with; ``None``: the network's own outputs."""

    @property
    def ends(self) -> Ends:
        """How its outputs are read."""
        return Ends(spec=self.spec, outputs=self.outputs)


def file_info(blob: bytes, path: Path) -> FileInfo:
    """Read the description that :func:`export` put into a file.

    Raises:
        InputError: the file is damaged or not one of ours.
    """
    with naming(path):
        metadata: Any = litert.read_metadata(blob)
        if not isinstance(metadata, dict) or not {"preset", "classes", "spec"} <= metadata.keys():
            raise InputError(
                f"{outline(blob)}, but does not say how its input is prepared",
                "use a file that mobilefit exported",
            )
        spec = NetSpec.from_dict(metadata["spec"])
        info = FileInfo(
            preset=Preset.from_dict(metadata["preset"]), classes=texts(metadata["classes"], "classes"), spec=spec,
            outputs=outputs_of(metadata.get("outputs"), spec),
        )  # fmt: skip
        _check_accuracy(metadata.get("accuracy") or {})
        graph = parse(blob)
        check_shapes(graph)
        _check_ends(graph, info)
        return info


def _check_accuracy(accuracy: Any) -> None:
    """Check what a file says of its quality: by format, numbers and the images that they are of."""
    for form, entry in checked(dict, accuracy, "accuracy", "accuracy").items():
        for name, value in checked(dict, entry, "accuracy", f"accuracy.{form}").items():
            if name != "images" or not isinstance(value, str):
                checked(float, value, "accuracy", f"accuracy.{form}.{name}")


def _check_ends(graph: Graph, info: FileInfo) -> None:
    """Check that a file takes and gives what it says of itself.

    Raises:
        InputError: it does not.
    """
    inputs, given = [tensor.shape for tensor in graph.inputs], [tensor.shape for tensor in graph.outputs]
    height, width = info.preset.shape
    is_row = info.spec.task == "classify" and len(given) == 1 and len(given[0]) == 2
    classes = given[0][1] if is_row else info.spec.head.num_classes
    if classes != len(info.classes):
        raise InputError(f"names {len(info.classes)} classes, but has {classes} outputs", "export it again")
    if inputs != [(1, height, width, 3)]:
        taken = list(inputs[0]) if len(inputs) == 1 else inputs
        raise InputError(
            f"takes {taken}, but says that images are brought to {height}x{width}", "export it again"
        )
    wanted = info.ends.shapes
    if len(given) != len(wanted) or any(w and shape != w for shape, w in zip(given, wanted)):
        raise InputError(
            f"gives {', '.join(map(str, map(list, given)))}, which is not what it says that it ends with",
            "export it again",
        )


def read_file(path: Path) -> bytes:
    """A model file's bytes.

    Raises:
        InputError: it is missing or unreadable.
    """
    try:
        return read_bytes(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
