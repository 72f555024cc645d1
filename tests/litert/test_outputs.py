"""Detectors and segmenters as files: what is behind the network's outputs, against the module itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from mobilefit.arch import detector, spec
from mobilefit.errors import InputError
from mobilefit.int8 import quantize, with_random_ranges
from mobilefit.litert import compile, read_metadata
from mobilefit.litert.graph import parse
from mobilefit.litert.metadata import BOXES, DETECTIONS
from mobilefit.litert.outputs import (
    POST_PROCESS,
    DetectionOutputs,
    SegmentationOutputs,
    join,
    split,
    with_outputs,
)
from mobilefit.nn import boxes, build

DETECTORS = {
    "v3 large": lambda: spec("ssdlite_mobilenet_v3_large_reduced").resolution(96).classes(7),
    "v3 small": lambda: spec("ssdlite_mobilenet_v3_small_reduced").resolution(64, 128).classes(20),
    "v2": lambda: spec("ssdlite_mobilenet_v2").width(0.35).resolution(96).classes(1),
    "torchvision": lambda: detector(
        spec("mobilenet_v3_large").width(0.5), num_classes=9, anchors="torchvision", reduced=True
    ).resolution(96),
}
SEGMENTERS = {
    "lraspp, v3 large": lambda: spec("lraspp_mobilenet_v3_large").resolution(96, 128).classes(5),
    "lraspp, v3 small": lambda: spec("lraspp_mobilenet_v3_small").resolution(64).classes(19),
    "raspp, v2": lambda: spec("raspp_mobilenet_v2").width(0.35).resolution(64, 96).classes(3),
}
every_detector = pytest.mark.parametrize("name", DETECTORS)
every_segmenter = pytest.mark.parametrize("name", SEGMENTERS)


@pytest.fixture(scope="module")
def made(randomized, images):
    """A network of a table, its float32 and int8 files, and an image: made once each."""
    kept = {}

    def make(name):
        if name not in kept:
            chosen = (DETECTORS | SEGMENTERS)[name]()
            torch.manual_seed(0)
            network = randomized(build(chosen))
            with torch.no_grad():  # fresh logits hardly differ from place to place
                for layer in network.head.modules():
                    if isinstance(layer, nn.Conv2d):
                        layer.weight *= 4
            array = images((4, 3, *chosen.image_shape))
            blob = compile(network, (1, 3, *chosen.image_shape), metadata={"a": 1})
            kept[name] = network, blob, quantize(blob, [array]), array[:1]
        return kept[name]

    return make


def run(network, array):
    with torch.no_grad():
        return network(torch.from_numpy(array).permute(0, 3, 1, 2))


# ---- the network's own outputs


@every_detector
def test_a_detector_gives_what_the_module_gives_in_one_partition(name, made, worker):
    network, blob, small, array = made(name)
    wanted = run(network, array)
    for found, exact in zip(worker.outputs(blob, array), wanted, strict=True):
        assert np.abs(found - exact.numpy()).max() < 1e-5 * float(exact.abs().max())
    for file in (blob, small):
        seen = worker.inspect(file)
        assert (seen.partitions, seen.outside) == (1, ())


@every_segmenter
def test_a_segmenter_gives_what_the_module_gives(name, made, worker):
    network, blob, _, array = made(name)
    wanted = run(network, array).permute(0, 2, 3, 1).numpy()
    assert np.abs(worker.run(blob, array) - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert worker.inspect(blob).partitions == 1


@every_segmenter
def test_an_int8_segmenter_is_one_partition_but_for_a_pool_of_parts_of_the_map(name, made, worker):
    seen = worker.inspect(made(name)[2])
    assert (seen.partitions, seen.outside) == (1, ())
    whole = spec("lraspp_mobilenet_v3_small").resolution(512, 1024)  # a map of 32 x 64, a pool of 32 x 49
    seen = worker.inspect(with_random_ranges(compile(build(whole), (1, 3, 512, 1024))))
    assert (seen.partitions, seen.outside) == (2, ("AVERAGE_POOL_2D",))


# ---- detection


@every_detector
@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_boxes_and_scores_of_every_anchor(name, kind, made, worker):
    network, blob, small, array = made(name)
    file = with_outputs(blob if kind == "float32" else small, network.spec, DetectionOutputs(nms="outside"))
    encodings, logits = run(network, array)
    wanted = boxes.decode(encodings, boxes.spec_anchors(network.spec)).numpy()
    likely = boxes.scores(logits, network.spec.head.scoring).numpy()
    found, scores = worker.outputs(file, array)
    assert found.shape == wanted.shape and scores.shape == likely.shape
    assert worker.inspect(file).partitions == 1 and worker.inspect(file).outside == ()
    assert tuple(parse(file).output_names) == BOXES
    if kind == "float32":
        assert np.abs(found - wanted).max() < 1e-4 and np.abs(scores - likely).max() < 1e-5
    else:
        assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.99
        assert np.abs(scores - likely).mean() < 0.05


@every_detector
@pytest.mark.parametrize("class_wise", [True, False])
def test_detections_are_those_of_the_module(name, class_wise, made, worker):
    network, blob, _, array = made(name)
    scoring = network.spec.head.scoring
    encodings, logits = run(network, array)
    likely = boxes.scores(logits, scoring).flatten().sort(descending=True).values
    chosen = {"score_threshold": float(likely[60] + likely[61]) / 2, "iou_threshold": 0.6, "max_detections": 30}
    file = with_outputs(blob, network.spec, DetectionOutputs(class_wise=class_wise, **chosen))
    location, category, score, number = worker.outputs(file, array)
    count = int(number[0])
    anchors = boxes.spec_anchors(network.spec)
    # clipped after the suppression, as the operator cannot help doing
    unclipped = boxes.Rule(candidates=None, clip=False, class_wise=class_wise, **chosen)
    wanted = boxes.select(boxes.decode(encodings, anchors)[0], boxes.scores(logits, scoring)[0], unclipped)
    assert 5 <= count <= 30 and location.shape == (1, 30, 4)
    y0, x0, y1, x1 = location[0, :count].T
    visible = (y1 > y0) & (x1 > x0)  # the module leaves out what is outside of the image
    assert visible.sum() == len(wanted.boxes) or count == 30
    matched = matches(np.stack([x0, y0, x1, y1], 1), category[0, :count], score[0, :count], wanted)
    assert matched[visible].all() and visible.sum() >= 5
    assert tuple(parse(file).output_names) == DETECTIONS
    assert worker.inspect(file).outside[0] == POST_PROCESS


def matches(found, labels, scores, wanted):
    """Which of the boxes the module has, too: the same class, IoU 0.99, the same score but for 1e-3."""
    iou = torchvision.ops.box_iou(torch.from_numpy(found), wanted.boxes).numpy()
    same = labels[:, None] == wanted.labels.numpy()
    near = np.abs(scores[:, None] - wanted.scores.numpy()) < 1e-3
    return ((iou > 0.99) & same & near).any(1)


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_several_threads_find_the_same(threads, made, worker):
    """Class by class they do not: the operator passes over the class whose number is that of the threads."""
    network, blob, _, array = made("v3 small")
    file = with_outputs(blob, network.spec, DetectionOutputs(score_threshold=0.0, max_detections=200))
    alone, together = (worker.outputs(file, array, threads=count) for count in (1, threads))
    assert int(alone[3][0]) > 100
    count = int(alone[3][0])  # what is behind it means nothing
    assert int(together[3][0]) == count
    for one, other in zip(alone[:3], together[:3], strict=True):
        np.testing.assert_allclose(one[:, :count], other[:, :count], atol=1e-5)


def test_suppression_over_all_classes_leaves_each_anchor_its_best_class(made, worker):
    network, blob, _, array = made("v3 small")
    found = {}
    for class_wise in (True, False):
        chosen = DetectionOutputs(class_wise=class_wise, score_threshold=0.0, max_detections=200)
        location, _, score, _ = worker.outputs(with_outputs(blob, network.spec, chosen), array)
        inside = (score[0] > 0) & (location[0] > 0).all(1) & (location[0] < 1).all(1)  # not clipped
        found[class_wise] = len(np.unique(location[0][inside], axis=0)), int(inside.sum())
    assert found[False][1] > 5
    assert found[False][0] == found[False][1] and found[True][0] < found[True][1]


def test_what_is_not_chosen_is_as_published(made):
    network, blob, _, _ = made("v3 small")
    options = custom_options(with_outputs(blob, network.spec, DetectionOutputs(iou_threshold=0.45)))
    rule = boxes.RULES["sigmoid"]
    assert options["nms_iou_threshold"] == pytest.approx(0.45)
    assert options["nms_score_threshold"] == pytest.approx(rule.score_threshold)
    assert options["max_detections"] == options["detections_per_class"] == rule.max_detections
    assert [options[f"{side}_scale"] for side in "xywh"] == list(boxes.WEIGHTS)
    assert options["num_classes"] == 20 and options["use_regular_nms"] is False


def custom_options(blob):
    from flatbuffers import flexbuffers

    return flexbuffers.Loads(next(op for op in parse(blob).ops if op.custom).custom_options)


# ---- segmentation


@every_segmenter
@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_a_label_map_is_the_best_class_of_each_pixel(name, kind, made, worker):
    network, blob, small, array = made(name)
    source = blob if kind == "float32" else small
    labels = worker.run(with_outputs(source, network.spec, SegmentationOutputs(form="labels")), array)
    wanted = run(network, array).argmax(1).numpy()
    assert labels.dtype == np.uint8 and labels.shape == wanted.shape
    assert (labels == worker.run(source, array).argmax(-1)).all()
    assert (labels == wanted).mean() > (0.999 if kind == "float32" else 0.9)


@every_segmenter
def test_coarse_logits_are_those_that_the_head_computes(name, made, worker):
    network, blob, small, array = made(name)
    with torch.no_grad():
        x = torch.from_numpy(array).permute(0, 3, 1, 2)
        coarse = network.head.logits(network.backbone.maps(x, network.head.taps))
    wanted = coarse.permute(0, 2, 3, 1).numpy()
    file = with_outputs(blob, network.spec, SegmentationOutputs(form="coarse"))
    found = worker.run(file, array)
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
    rounded = with_outputs(small, network.spec, SegmentationOutputs(form="coarse"))
    assert parse(rounded).outputs[0].dtype == np.float32
    assert np.corrcoef(worker.run(rounded, array).ravel(), wanted.ravel())[0, 1] > 0.99


# ---- off and on again


TAILS = [
    ("v3 small", DetectionOutputs(score_threshold=0.1)), ("torchvision", DetectionOutputs(nms="outside")),
    ("lraspp, v3 small", SegmentationOutputs(form="labels")),
]  # fmt: skip


@pytest.mark.parametrize("name, outputs", TAILS)
def test_what_was_put_behind_the_outputs_comes_off_and_goes_on_again(name, outputs, made, worker):
    network, blob, _, array = made(name)
    file = with_outputs(blob, network.spec, outputs)
    alone, tail = split(file)
    for found, wanted in zip(worker.outputs(alone, array), worker.outputs(blob, array), strict=True):
        assert np.array_equal(found, wanted)
    assert join(alone, tail) == file
    assert split(blob) == (blob, None) and join(blob, None) is blob


@pytest.mark.parametrize("name, outputs", TAILS)
def test_quantizing_leaves_it_as_it_is(name, outputs, made, worker, images):
    network, blob, small, _ = made(name)
    shape = (4, 3, *network.spec.image_shape)
    once = quantize(with_outputs(blob, network.spec, outputs), [images(shape)])
    assert read_metadata(once) == read_metadata(with_outputs(small, network.spec, outputs))
    array = images(shape)[:1]
    wanted = worker.outputs(with_outputs(small, network.spec, outputs), array)
    count = int(wanted[3][0]) if len(wanted) == 4 else None  # what is behind it means nothing
    for found, exact in zip(worker.outputs(once, array), wanted, strict=True):
        assert np.array_equal(found[:, :count] if found.ndim > 1 else found, exact[:, :count] if exact.ndim > 1 else exact)
    quick = with_random_ranges(with_outputs(blob, network.spec, outputs))
    assert [op.name for op in parse(quick).ops] == [op.name for op in parse(once).ops]


def test_int8_outputs_are_brought_back_to_real_numbers_first(made, worker, images):
    network, blob, _, _ = made("v3 small")
    calibration = images((4, 3, *network.spec.image_shape))
    edged = quantize(blob, [calibration], edges="int8")
    assert {t.dtype for t in parse(edged).outputs} == {np.dtype(np.int8)}
    found = parse(with_outputs(edged, network.spec, DetectionOutputs(nms="outside")))
    assert {t.dtype for t in found.outputs} == {np.dtype(np.float32)}


def test_the_file_tells_what_its_outputs_are(made):
    network, blob, _, _ = made("v3 small")
    said = read_metadata(with_outputs(blob, network.spec, DetectionOutputs(score_threshold=0.2)))
    assert said["a"] == 1 and said["outputs"] == {
        "nms": "file", "score_threshold": 0.2, "iou_threshold": None, "max_detections": None,
        "class_wise": False,
    }  # fmt: skip


# ---- refusals


def test_a_typo_is_named():
    with pytest.raises(InputError, match="did you mean 'outside'"):
        DetectionOutputs(nms="outsides")
    with pytest.raises(InputError, match="did you mean 'labels'"):
        SegmentationOutputs(form="label")


def test_outputs_of_another_task_are_refused(made):
    network, blob, _, _ = made("v3 small")
    with pytest.raises(InputError, match="is no segmenter"):
        with_outputs(blob, network.spec, SegmentationOutputs())
    network, blob, _, _ = made("lraspp, v3 small")
    with pytest.raises(InputError, match="is no detector"):
        with_outputs(blob, network.spec, DetectionOutputs())


def test_a_file_of_another_spec_is_refused(made):
    network, blob, _, _ = made("v3 small")
    with pytest.raises(InputError, match="compile the network of this spec"):
        with_outputs(blob, network.spec.resolution(96), DetectionOutputs())
    several = compile(network, (2, 3, *network.spec.image_shape))
    with pytest.raises(InputError, match="one image at a time"):
        with_outputs(several, network.spec, DetectionOutputs())


def test_outputs_are_put_behind_once(made):
    network, blob, _, _ = made("v3 small")
    once = with_outputs(blob, network.spec, DetectionOutputs(nms="outside"))
    with pytest.raises(InputError, match="the file gives"):
        with_outputs(once, network.spec, DetectionOutputs(nms="outside"))
    network, blob, _, _ = made("lraspp, v3 small")
    labels = with_outputs(blob, network.spec, SegmentationOutputs(form="labels"))
    with pytest.raises(InputError, match="where logits are"):
        with_outputs(labels, network.spec, SegmentationOutputs(form="labels"))
    coarse = with_outputs(blob, network.spec, SegmentationOutputs(form="coarse"))
    with pytest.raises(InputError, match="not resized"):
        with_outputs(coarse, network.spec, SegmentationOutputs(form="coarse"))


def test_a_threshold_out_of_range_is_refused(made):
    network, blob, _, _ = made("v3 small")
    with pytest.raises(InputError, match="score_threshold is 2"):
        with_outputs(blob, network.spec, DetectionOutputs(score_threshold=2.0))


def test_a_tail_fits_its_own_network_alone(made):
    network, blob, _, _ = made("v3 small")
    _, tail = split(with_outputs(blob, network.spec, DetectionOutputs()))
    with pytest.raises(InputError, match="comes behind its outputs"):
        join(made("v3 large")[1], tail)
