"""Default boxes, matching, losses and suppression: against torchvision's own, and numbers by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import _utils as theirs
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou, nms

from mobilefit.arch import SSDLiteHead, detector, spec
from mobilefit.errors import InputError
from mobilefit.nn import boxes
from mobilefit.nn.boxes import CROWD, NOTHING, Losses

MAPS = ((20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1))
TF = SSDLiteHead(taps=("blocks.12.expand", "last"))
TORCHVISION = replace(TF, anchors="torchvision", scoring="softmax")


@pytest.fixture(scope="module")
def anchors() -> Tensor:
    return boxes.anchors(TORCHVISION, MAPS)


@pytest.fixture(scope="module")
def peer() -> SSD:
    torch.manual_seed(0)
    made: SSD = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=8)
    return made


def random_boxes(count: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 2, generator=random)
    half = torch.rand(count, 2, generator=random) * 0.25 + 0.02
    return torch.cat([centre - half, centre + half], 1).clamp(0, 1)


# ---- anchors


@pytest.mark.parametrize("maps", [MAPS, ((20, 30), (10, 15), (5, 8), (3, 4), (2, 2), (1, 1))])
def test_torchvisions_anchors_are_theirs(maps: tuple[tuple[int, int], ...]) -> None:
    generator = DefaultBoxGenerator([[2, 3]] * 6, min_ratio=0.2, max_ratio=0.95)
    features = [torch.zeros(1, 1, *at) for at in maps]
    height, width = maps[0][0] * 16, maps[0][1] * 16
    image = ImageList(torch.zeros(1, 3, height, width), [(height, width)])
    (expected,) = generator(image, features)
    found = boxes.corners(boxes.anchors(TORCHVISION, maps)) * torch.tensor([width, height] * 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)  # pixels


def tensorflows(maps: tuple[tuple[int, int], ...], height: int = 1, width: int = 1) -> Tensor:
    """As ``create_ssd_anchors`` and ``tile_anchors`` are written: one box after the other."""
    scales = [0.2 + 0.75 * layer / 5 for layer in range(6)] + [1.0]
    found = []
    for layer, (rows, columns) in enumerate(maps):
        if layer == 0:
            here = [(0.1, 1.0), (scales[0], 2.0), (scales[0], 0.5)]
        else:
            here = [(scales[layer], aspect) for aspect in (1.0, 2.0, 0.5, 3.0, 0.3333)]
            here += [(math.sqrt(scales[layer] * scales[layer + 1]), 1.0)]
        for row in range(rows):
            for column in range(columns):
                for scale, aspect in here:
                    w = scale * math.sqrt(aspect) * min(height, width) / width
                    h = scale / math.sqrt(aspect) * min(height, width) / height
                    found.append([(column + 0.5) / columns, (row + 0.5) / rows, w, h])
    return torch.tensor(found)


def test_tensorflows_anchors_are_tiled_as_its_code_does() -> None:
    found = boxes.anchors(TF, MAPS)
    assert found.shape == (2034, 4)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, tensorflows(MAPS), rtol=0, atol=1e-6)
    # By hand: the wide box of the first place, and the last box of all, sqrt(0.95) on the whole image.
    torch.testing.assert_close(found[1], torch.tensor([0.025, 0.025, 0.2 * 2**0.5, 0.2 / 2**0.5]))
    torch.testing.assert_close(found[-1], torch.tensor([0.5, 0.5, 0.95**0.5, 0.95**0.5]))


def test_tensorflows_anchors_are_squares_of_a_long_image_too() -> None:
    maps = ((20, 40), (10, 20), (5, 10), (3, 5), (2, 3), (1, 2))
    found = boxes.anchors(TF, maps, (320, 640))
    torch.testing.assert_close(found, tensorflows(maps, 320, 640), rtol=0, atol=1e-6)
    square = found[0, 2:] * torch.tensor([640, 320])
    torch.testing.assert_close(square, torch.tensor([32.0, 32.0]))


@pytest.mark.parametrize("name", ["ssdlite_mobilenet_v3_large", "ssdlite_mobilenet_v2_reduced"])
def test_a_spec_knows_its_maps_and_anchors(name: str) -> None:
    assert boxes.map_sizes(spec(name)) == MAPS
    assert torch.equal(boxes.spec_anchors(spec(name)), boxes.anchors(TF, MAPS, (320, 320)))
    longer = spec(name).resolution(160, 320)
    assert boxes.map_sizes(longer) == ((10, 20), (5, 10), (3, 5), (2, 3), (1, 2), (1, 1))
    assert boxes.spec_anchors(longer).shape == (600 + 300 + 90 + 36 + 12 + 6, 4)


def test_a_detector_with_one_map_has_anchors() -> None:
    for head, count in ((TF, 3), (TORCHVISION, 6)):
        assert len(boxes.anchors(replace(head, taps=("last",), extras=()), ((4, 4),))) == 16 * count


def test_another_number_of_maps_is_an_error() -> None:
    with pytest.raises(InputError, match="5 maps, but the head predicts on 6"):
        boxes.anchors(TF, MAPS[:5])


def test_a_classifier_has_no_anchors() -> None:
    with pytest.raises(InputError, match="'mobilenet_v2' is no detector"):
        boxes.spec_anchors(spec("mobilenet_v2"))


# ---- encodings


def test_encodings_are_torchvisions(anchors: Tensor) -> None:
    coder = theirs.BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    truth = random_boxes(len(anchors))
    expected = coder.encode_single(truth, boxes.corners(anchors))
    torch.testing.assert_close(boxes.encode(truth, anchors), expected, rtol=1e-5, atol=1e-4)
    encodings = torch.randn(len(anchors), 4, generator=torch.Generator().manual_seed(1)) * 20
    decoded = coder.decode_single(encodings, boxes.corners(anchors))
    torch.testing.assert_close(boxes.decode(encodings, anchors), decoded, rtol=1e-4, atol=1e-5)


def test_a_box_comes_back_from_its_encoding(anchors: Tensor) -> None:
    truth = random_boxes(len(anchors))
    again = boxes.decode(boxes.encode(truth, anchors).expand(2, -1, 4), anchors)
    torch.testing.assert_close(again, truth.expand(2, -1, 4), rtol=0, atol=1e-6)


def test_a_decoded_side_has_a_limit(anchors: Tensor) -> None:
    found = boxes.decode(torch.full((len(anchors), 4), 1e6), anchors)
    assert found.isfinite().all()


# ---- matching


@pytest.mark.parametrize("seed", range(5))
def test_matches_are_torchvisions(anchors: Tensor, seed: int) -> None:
    truth = random_boxes(12, seed)
    overlap = box_iou(truth, boxes.corners(anchors))
    best = overlap.argmax(1)
    apart = torch.tensor([int(best.tolist().index(b)) == i for i, b in enumerate(best.tolist())])
    truth, overlap = truth[apart], overlap[apart]  # two boxes with one best anchor: see below
    expected = theirs.SSDMatcher(0.5)(overlap)
    found = boxes.match(truth[None], torch.zeros(1, len(truth), dtype=torch.long), anchors)
    assert torch.equal(found[0], expected)


def test_every_box_has_its_best_anchor_whatever_the_overlap(anchors: Tensor) -> None:
    tiny = torch.tensor([[[0.50, 0.50, 0.51, 0.51], [0.1, 0.8, 0.12, 0.81]]])
    found = boxes.match(tiny, torch.tensor([[3, 4]]), anchors)
    best = box_iou(tiny[0], boxes.corners(anchors))
    assert best.max() < 0.5
    assert sorted(found[found >= 0].tolist()) == [0, 1]
    assert found[0, best.argmax(1)].tolist() == [0, 1]


def test_of_two_boxes_with_one_best_anchor_the_first_has_it(anchors: Tensor) -> None:
    box = boxes.corners(anchors[100])
    twice = torch.stack([box, box])[None]
    found = boxes.match(twice, torch.tensor([[0, 1]]), anchors)
    assert found[0, 100] == 0
    assert 1 not in found


def test_padding_and_boxes_without_an_area_match_nothing(anchors: Tensor) -> None:
    real = random_boxes(3)
    flat = torch.tensor([[0.3, 0.3, 0.3, 0.6], [0.2, 0.5, 0.1, 0.9]])
    padded = torch.cat([real, flat, torch.zeros(2, 4)])[None]
    labels = torch.tensor([[5, 6, 7, 1, 1, NOTHING, NOTHING]])
    alone = boxes.match(real[None], torch.tensor([[5, 6, 7]]), anchors)
    assert torch.equal(boxes.match(padded, labels, anchors), alone)


@pytest.mark.parametrize("count", [0, 1])
def test_an_image_without_boxes_matches_nothing(anchors: Tensor, count: int) -> None:
    labels = torch.full((2, count), NOTHING)
    assert (boxes.match(torch.zeros(2, count, 4), labels, anchors) == NOTHING).all()


def test_a_crowd_leaves_out_what_lies_in_it(anchors: Tensor) -> None:
    crowd, person = torch.tensor([0.0, 0.0, 0.6, 1.0]), torch.tensor([0.2, 0.2, 0.4, 0.4])
    truth, labels = torch.stack([crowd, person])[None], torch.tensor([[CROWD, 2]])
    found = boxes.match(truth, labels, anchors)[0]
    alone = boxes.match(person[None, None], torch.tensor([[2]]), anchors)[0]
    assert torch.equal(found == 1, alone == 0)  # who stands in the crowd is still to be found
    assert 0 not in found
    corners = boxes.corners(anchors)
    width = (corners[:, 2].clamp(max=0.6) - corners[:, 0].clamp(min=0)).clamp(min=0)
    height = (corners[:, 3].clamp(max=1) - corners[:, 1].clamp(min=0)).clamp(min=0)
    inside = width * height / (anchors[:, 2] * anchors[:, 3]) >= 0.5
    assert torch.equal(found == CROWD, inside & (alone != 0))


# ---- losses


def batch(anchors: Tensor, classes: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(3)
    truth = torch.stack([random_boxes(6, 1), random_boxes(6, 2), random_boxes(6, 4)])
    labels = torch.randint(classes, (3, 6), generator=random)
    labels[1, 3:], labels[2] = NOTHING, NOTHING
    encodings = torch.randn(3, len(anchors), 4, generator=random)
    logits = torch.randn(3, len(anchors), classes + 1, generator=random)
    return encodings, logits, truth, labels


def test_the_softmax_loss_is_torchvisions(anchors: Tensor, peer: SSD) -> None:
    encodings, logits, truth, labels = batch(anchors)
    targets, matched = [], []
    for some, known in zip(truth, labels):
        kept = known >= 0
        targets.append({"boxes": some[kept], "labels": known[kept] + 1})
        overlap = box_iou(some[kept], boxes.corners(anchors))
        none = torch.full((len(anchors),), -1)
        matched.append(peer.proposal_matcher(overlap) if kept.any() else none)
    outputs = {"bbox_regression": encodings, "cls_logits": logits}
    expected = peer.compute_loss(targets, outputs, [boxes.corners(anchors)] * 3, matched)
    found = boxes.ssd_loss(encodings, logits, truth, labels, anchors, "softmax")
    assert found.matches == sum(int((index >= 0).sum()) for index in matched)
    torch.testing.assert_close(found.classes / found.matches, expected["classification"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.boxes / found.matches, expected["bbox_regression"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.mean, expected["classification"] + expected["bbox_regression"])


def test_the_sigmoid_loss_is_the_focal_loss_written_out(anchors: Tensor) -> None:
    encodings, logits, truth, labels = batch(anchors)
    found = boxes.ssd_loss(encodings, logits, truth, labels, anchors, "sigmoid")
    index = boxes.match(truth, labels, anchors)
    p, classes, regression = logits.double().sigmoid(), 0.0, 0.0
    for image in range(3):
        there = torch.zeros_like(p[image])
        for anchor in (index[image] >= 0).nonzero().flatten().tolist():
            own = int(index[image, anchor])
            there[anchor, labels[image, own] + 1] = 1
            wanted = boxes.encode(truth[image, own], anchors[anchor])
            off = (encodings[image, anchor] - wanted).abs()
            regression += float(torch.where(off < 1, off**2 / 2, off - 0.5).mean())
        likely = torch.where(there > 0, p[image], 1 - p[image])
        weight = torch.where(there > 0, 0.75, 0.25)
        classes += float((-weight * (1 - likely) ** 2 * likely.log()).sum())
    assert float(found.classes) == pytest.approx(classes, rel=1e-5)
    assert float(found.boxes) == pytest.approx(regression, rel=1e-5)
    assert found.matches == int((index >= 0).sum())


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
def test_the_loss_is_a_sum_over_images(anchors: Tensor, scoring: boxes.Scoring) -> None:
    encodings, logits, truth, labels = batch(anchors)
    whole = boxes.ssd_loss(encodings, logits, truth, labels, anchors, scoring)
    parts = [boxes.ssd_loss(encodings[i : i + 1], logits[i : i + 1], truth[i : i + 1], labels[i : i + 1],
                            anchors, scoring) for i in range(3)]  # fmt: skip
    assert sum(part.matches for part in parts) == whole.matches
    assert float(whole.classes) == pytest.approx(sum(float(part.classes) for part in parts), rel=1e-5)
    assert float(whole.boxes) == pytest.approx(sum(float(part.boxes) for part in parts), rel=1e-5)


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
def test_what_lies_in_a_crowd_has_no_gradient(anchors: Tensor, scoring: boxes.Scoring) -> None:
    encodings, logits, truth, labels = (part[:1] for part in batch(anchors))
    truth[0, 0], labels[0, 0] = torch.tensor([0.0, 0.0, 1.0, 0.7]), CROWD
    logits, encodings = logits.requires_grad_(), encodings.requires_grad_()
    boxes.ssd_loss(encodings, logits, truth, labels, anchors, scoring).mean.backward()
    index = boxes.match(truth, labels, anchors)
    assert logits.grad is not None and encodings.grad is not None
    assert (index == CROWD).sum() > 1000
    assert (logits.grad[index == CROWD] == 0).all()
    assert (logits.grad[index >= 0] != 0).any(1).all()
    assert ((encodings.grad != 0).any(2) == (index >= 0)).all()


@pytest.mark.parametrize("count", [0, 2])
def test_a_batch_without_boxes_has_a_finite_loss(anchors: Tensor, count: int) -> None:
    encodings, logits, *_ = batch(anchors)
    truth, labels = torch.zeros(3, count, 4), torch.full((3, count), NOTHING)
    for scoring in boxes.RULES:
        found = boxes.ssd_loss(encodings, logits, truth, labels, anchors, scoring)
        assert found.matches == 0
        assert found.boxes == 0
        assert found.mean.isfinite()
        assert (found.classes > 0) == (scoring == "sigmoid")  # torchvision: negatives only beside matches


def test_matches_known_before_are_used(anchors: Tensor) -> None:
    encodings, logits, truth, labels = batch(anchors)
    none = torch.full((3, len(anchors)), NOTHING)
    found = boxes.ssd_loss(encodings, logits, truth, labels, anchors, "softmax", matched=none)
    assert (found.matches, float(found.classes), float(found.boxes)) == (0, 0, 0)


def test_a_loss_of_half_precision_is_summed_in_full(anchors: Tensor) -> None:
    encodings, logits, truth, labels = batch(anchors)
    found: Losses = boxes.ssd_loss(encodings.bfloat16(), logits.bfloat16(), truth, labels, anchors, "sigmoid")
    assert found.mean.dtype == torch.float32
    whole = boxes.ssd_loss(encodings, logits, truth, labels, anchors, "sigmoid")
    assert float(found.mean) == pytest.approx(float(whole.mean), rel=1e-2)


# ---- a teacher's anchors


@pytest.mark.parametrize("kind", ["tf", "torchvision"])
@pytest.mark.parametrize(("own", "theirs"), [((128, 128), (192, 192)), ((96, 160), (160, 224)), ((96, 96), (96, 96))])
def test_the_nearest_anchor_of_the_same_map_and_shape(kind: Any, own: tuple[int, int], theirs: tuple[int, int]) -> None:
    made = detector(spec("mobilenet_v3_small"), num_classes=2, anchors=kind)
    small, large = made.resolution(*own), made.resolution(*theirs)
    nearest = boxes.nearest_anchors(small, large)
    ours, others = boxes.spec_anchors(small), boxes.spec_anchors(large)
    first, second = 0, 0
    for own_map, their_map, count in zip(
        boxes.map_sizes(small), boxes.map_sizes(large), boxes.detector_head(small).per_map, strict=True
    ):
        ends = first + math.prod(own_map) * count, second + math.prod(their_map) * count
        for place in range(count):
            mine, its = torch.arange(first + place, ends[0], count), torch.arange(second + place, ends[1], count)
            assert set(nearest[mine].tolist()) <= set(its.tolist())
            distances = torch.linalg.norm(ours[mine, None, :2] - others[its, :2], dim=2)
            chosen = torch.linalg.norm(ours[mine, :2] - others[nearest[mine], :2], dim=1)
            torch.testing.assert_close(chosen, distances.min(1).values)
        first, second = ends
    assert (first, second) == (len(ours), len(others)) and len(nearest) == len(ours)
    if own == theirs:
        assert nearest.equal(torch.arange(len(ours)))


def test_boxes_seen_from_other_anchors_are_the_same_boxes() -> None:
    random = torch.Generator().manual_seed(1)
    anchors, others = (torch.rand(50, 4, generator=random) + 0.1 for _ in range(2))
    encodings = torch.randn(3, 50, 4, generator=random)
    moved = boxes.reencode(encodings, anchors, others)
    torch.testing.assert_close(boxes.decode(moved, others), boxes.decode(encodings, anchors))
    anchor, other = torch.tensor([[0.5, 0.5, 0.2, 0.4]]), torch.tensor([[0.4, 0.5, 0.4, 0.4]])
    # A quarter of the other's width to the right of it, and half as wide: 10 / 4, 5 * log(1 / 2).
    expected = torch.tensor([[[2.5, 0.0, 5 * math.log(0.5), 0.0]]])
    torch.testing.assert_close(boxes.reencode(torch.zeros(1, 1, 4), anchor, other), expected)


BOX = torch.tensor([[[1.0, 0.5, 0.0, 0.0]]])
"""Smooth L1 from 0: 0.5 + 0.125."""


def soft_loss(own: list[float], theirs: list[float], scoring: Any, **options: float) -> float:
    logits, teacher = torch.tensor([[own]]), torch.tensor([[theirs]])
    return float(boxes.soft_ssd_loss(torch.zeros(1, 1, 4), logits, BOX, teacher, scoring, **options))


def test_the_loss_of_a_teachers_answer_by_hand() -> None:
    # Sigmoid: 0.5 where the teacher says 0.75. Cross-entropy log 2, distance 0.25; the teacher's box counts 0.75.
    classes, box = math.log(2) * 0.25**2, 0.75 * 0.625
    assert soft_loss([9.0, 0.0], [-9.0, math.log(3)], "sigmoid") == pytest.approx(classes + box / 4)
    # At twice the logits and a temperature of 2 the same, times 2²; the teacher is as sure as it is: 0.9.
    twice = soft_loss([9.0, 0.0], [-9.0, 2 * math.log(3)], "sigmoid", temperature=2.0)
    assert twice == pytest.approx(4 * classes + 0.9 * 0.625 / 4)
    # Softmax: thirds where the teacher says 1/4, 1/2, 1/4. Cross-entropy log 3, distance (1/12 + 1/6 + 1/12) / 2.
    three = soft_loss([0.0, 0.0, 0.0], [0.0, math.log(2), 0.0], "softmax")
    assert three == pytest.approx(math.log(3) / 36 + 0.5 * 0.625)


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
def test_an_anchor_that_agrees_with_the_teacher_has_nothing_to_learn(scoring: Any) -> None:
    random = torch.Generator().manual_seed(2)
    encodings, theirs = torch.randn(1, 2, 4, generator=random), torch.randn(1, 2, 4, generator=random)
    own = theirs.clone()
    own[0, 1] += torch.tensor([0.0, 2.0, -1.0, 0.0])
    own.requires_grad_()
    boxes.soft_ssd_loss(encodings, own, encodings, theirs, scoring).backward()
    assert own.grad is not None
    agrees, disagrees = own.grad[0].abs().amax(1).tolist()
    assert agrees < 1e-6 and disagrees > 0.01


# ---- detections


def test_softmax_detections_are_torchvisions(anchors: Tensor, peer: SSD) -> None:
    encodings, logits, *_ = batch(anchors)
    outputs = {"bbox_regression": encodings, "cls_logits": logits}
    pixels = boxes.corners(anchors) * 320
    expected = peer.postprocess_detections(outputs, [pixels] * 3, [(320, 320)] * 3)
    found = boxes.detections(encodings, logits, anchors, "softmax")
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine.labels, other["labels"] - 1)
        torch.testing.assert_close(mine.scores, other["scores"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mine.boxes * 320, other["boxes"], rtol=0, atol=2e-3)


def test_sigmoid_detections_are_tensorflows(anchors: Tensor) -> None:
    encodings, logits, *_ = batch(anchors, classes=3)
    (found, *_) = boxes.detections(encodings, logits, anchors, "sigmoid")
    decoded, likely = boxes.decode(encodings[0], anchors), logits[0].sigmoid()[:, 1:]
    expected = []
    for label in range(3):  # each class alone, then the surest of all: multiclass_non_max_suppression
        kept = nms(decoded, likely[:, label], 0.6)
        expected += [(float(likely[i, label]), label, decoded[i].clamp(0, 1)) for i in kept.tolist()]
    expected = [(s, c, box) for s, c, box in expected if (box[2:] > box[:2]).all()]
    expected = sorted(expected, key=lambda item: -item[0])[:100]
    assert len(found.scores) == 100
    torch.testing.assert_close(found.scores, torch.tensor([s for s, _, _ in expected]))
    assert found.labels.tolist() == [c for _, c, _ in expected]
    torch.testing.assert_close(found.boxes, torch.stack([box for *_, box in expected]))


def test_a_box_drops_those_of_its_class_that_overlap_it() -> None:
    head = replace(TF, taps=("last",), extras=(), num_classes=2)
    anchors = boxes.anchors(head, ((1, 1),))
    wanted = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.52], [0.1, 0.1, 0.5, 0.3]])
    encodings = boxes.encode(wanted, anchors)[None]
    logits = torch.tensor([[[9.0, 2.0, -9.0], [9.0, 3.0, 1.0], [9.0, 0.0, -9.0]]])
    (found,) = boxes.detections(encodings, logits, anchors, "sigmoid", score_threshold=0.1)
    assert found.labels.tolist() == [0, 1, 0]  # the background's logit is nobody's score
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 1.0, 0.0]).sigmoid())
    torch.testing.assert_close(found.boxes, wanted[[1, 1, 2]], rtol=0, atol=1e-6)
    (fewer,) = boxes.detections(encodings, logits, anchors, "sigmoid", iou_threshold=0.3, max_detections=1)
    assert fewer.labels.tolist() == [0]
    (apart,) = boxes.detections(encodings, logits, anchors, "sigmoid", score_threshold=0.1, iou_threshold=0.3)
    assert apart.labels.tolist() == [0, 1]


def test_sigmoid_detections_outside_of_the_image_are_dropped() -> None:
    head = replace(TF, taps=("last",), extras=(), num_classes=1)
    anchors = boxes.anchors(head, ((1, 1),))
    wanted = torch.tensor([[1.1, 0.1, 1.5, 0.5], [-0.2, 0.1, 0.3, 0.5], [0.4, 0.4, 0.8, 1.4]])
    logits = torch.tensor([[[0.0, 3.0], [0.0, 2.0], [0.0, 1.0]]])
    (found,) = boxes.detections(boxes.encode(wanted, anchors)[None], logits, anchors, "sigmoid")
    expected = torch.tensor([[0.0, 0.1, 0.3, 0.5], [0.4, 0.4, 0.8, 1.0]])
    torch.testing.assert_close(found.boxes, expected, rtol=0, atol=1e-6)


def test_many_overlapping_boxes_leave_as_many_as_asked_for() -> None:
    """More candidates than are looked at first, and nearly all of them the same box."""
    anchors = torch.tensor([0.5, 0.5, 0.4, 0.4]).repeat(3000, 1)
    anchors[-5:, 0] = torch.tensor([0.1, 0.2, 0.3, 0.7, 0.9])
    logits = torch.linspace(5, -5, 3000)[None, :, None] * torch.tensor([0.0, 1.0])
    (found,) = boxes.detections(torch.zeros(1, 3000, 4), logits, anchors, "sigmoid", max_detections=4)
    assert len(found.scores) == 4
    assert found.scores[0] == logits.sigmoid().max()
    torch.testing.assert_close(found.boxes[1], torch.tensor([0.0, 0.3, 0.3, 0.7]))


def test_nothing_above_the_threshold_is_no_detection(anchors: Tensor) -> None:
    encodings, logits, *_ = batch(anchors)
    for scoring in boxes.RULES:
        found = boxes.detections(encodings, logits, anchors, scoring, score_threshold=1.0)
        assert [part.boxes.shape for part in found] == [(0, 4)] * 3
        assert all(part.labels.dtype == torch.int64 for part in found)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"score_threshold": -0.1}, "score_threshold is -0.1, must be from 0 to 1"),
        ({"iou_threshold": 55.0}, "iou_threshold is 55.0, must be from 0 to 1"),
        ({"max_detections": 0}, "max_detections is 0, must be 1 or more"),
    ],
)
def test_a_value_out_of_range_is_an_error(values: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        boxes.rule("sigmoid", **values)  # type: ignore[arg-type]


def test_an_unknown_scoring_is_an_error() -> None:
    with pytest.raises(InputError, match=r"unknown scoring 'softmaxx'; did you mean 'softmax'\?"):
        boxes.rule("softmaxx")  # type: ignore[arg-type]


def test_more_default_boxes_than_memory_holds_are_refused_before_they_are_made() -> None:
    """A map of every pixel of 8192x8192, which 12 GB of boxes would stand on."""
    base = spec("mobilenet_v3_small")
    fine = replace(base, stem=replace(base.stem, stride=1), blocks=tuple(replace(b, stride=1) for b in base.blocks))
    head = SSDLiteHead(taps=("blocks.0", "blocks.1"), extras=())
    with pytest.raises(InputError, match=r"603,979,776 default boxes, more than 1,048,576"):
        boxes.spec_anchors(replace(fine, head=head).resolution(8192))
    assert len(boxes.spec_anchors(replace(fine, head=head).resolution(64))) == 64 * 64 * 9
