"""Default boxes of SSD: where they are, which truth each one answers for, the loss, and the detections.

Two published ways stand beside each other. ``tf`` anchors with ``sigmoid`` scores are TensorFlow's object
detection API as the V3 paper used it (``ssdlite_mobilenet_v3_large_320x320_coco.config``); ``torchvision``
anchors with ``softmax`` scores are torchvision's ``ssdlite320_mobilenet_v3_large``.

Coordinates are parts of the image's sides, 0 to 1. Anchors are (centre x, centre y, width, height), boxes
are (x0, y0, x1, y1), encodings are (dx, dy, dw, dh).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilefit.arch.heads import Scoring, SSDLiteHead
from mobilefit.arch.spec import NetSpec
from mobilefit.errors import InputError, unknown

Map = tuple[int, int]
"""Height and width of a feature map."""

SCALES = (0.2, 0.95)
"""Sides of the default boxes on the first and on the last map; the maps between lie between."""
ASPECTS = (1.0, 2.0, 0.5, 3.0, 0.3333)
"""Widths by heights of TensorFlow's default boxes, as its configuration writes them, in its order."""
LOWEST = 0.1
"""Side of TensorFlow's square box on the first map."""
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Factors of (dx, dy, dw, dh)."""
LARGEST = math.log(1000 / 16)
"""A decoded side is at most this power of e times the anchor's (torchvision; TensorFlow sets no limit)."""
MOST_ANCHORS = 2**20
"""Default boxes of a detector; at 1,280 px those of SSDLite are some 30,000."""
MATCHED = 0.5
"""Intersection over union from which an anchor answers for a box."""
ALPHA, GAMMA = 0.75, 2.0
"""Of the focal loss: the weight of what is there, and how fast what is known already stops counting."""
NEGATIVES = 3
"""torchvision: anchors without a box that count, for each one with a box: the hardest of an image."""

NOTHING, CROWD = -1, -2
"""Labels that are no class: padding, and a box around a crowd (COCO's ``iscrowd``)."""


# ---- where they are


def map_sizes(spec: NetSpec) -> tuple[Map, ...]:
    """Height and width of each map that a detector predicts on.

    Raises:
        InputError: it is no detector.
    """
    head = detector_head(spec)
    layers = {layer.name: layer for layer in spec.cost().layers}
    at = [layers[f"head.classes.{index}.depthwise"] for index in range(len(head.per_map))]
    return tuple((layer.size, layer.columns) for layer in at)


def detector_head(spec: NetSpec) -> SSDLiteHead:
    """The head of a detector.

    Raises:
        InputError: it is another kind of network.
    """
    if not isinstance(spec.head, SSDLiteHead):
        raise InputError(f"'{spec.name}' is no detector: its head is for '{spec.task}'")
    return spec.head


def spec_anchors(spec: NetSpec) -> Tensor:
    """The default boxes of a detector for its own image shape, ``[A, 4]``: see :func:`anchors`."""
    return anchors(detector_head(spec), map_sizes(spec), spec.image_shape)


def anchors(
    head: SSDLiteHead, map_sizes: Sequence[Map], image_shape: Map | None = None
) -> Tensor:
    """Default boxes (cx, cy, w, h), float32 ``[A, 4]``: map by map, row by row, the boxes of a place together.

    They may reach over the image's edge. TensorFlow's boxes are squares of the image also where it is
    longer than high; torchvision's are stretched with it, and no wider or higher than the image.

    Args:
        head: says which boxes a place has.
        map_sizes: height and width of each map.
        image_shape: height and width of the image in pixels; ``None``: square.

    Raises:
        InputError: another number of maps than the head predicts on, or more boxes than :data:`MOST_ANCHORS`.
    """
    if len(map_sizes) != len(head.per_map):
        raise InputError(f"{len(map_sizes)} maps, but the head predicts on {len(head.per_map)}")
    total = sum(h * w * count for (h, w), count in zip(map_sizes, head.per_map))
    if total > MOST_ANCHORS:  # before memory is asked for them
        raise InputError(
            f"{total:,} default boxes, more than {MOST_ANCHORS:,}", "predict on smaller maps: later layers or images"
        )
    sides = _tf_sides if head.anchors == "tf" else _torchvision_sides
    height, width = image_shape or (1, 1)
    shrink = torch.tensor([min(height, width) / width, min(height, width) / height])
    found = []
    for at, here in zip(map_sizes, sides(len(map_sizes))):
        size = torch.tensor(here)
        size = size * shrink if head.anchors == "tf" else size.clamp(max=1)
        centres = _centres(at)
        count = (len(centres), len(size), 2)
        found.append(torch.cat([centres[:, None].expand(count), size.expand(count)], 2).flatten(0, 1))
    return torch.cat(found)


def _centres(at: Map) -> Tensor:
    """The middles of a map's places, ``[h * w, 2]`` as (x, y), row by row."""
    y, x = ((torch.arange(side) + 0.5) / side for side in at)
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns, rows], 2).flatten(0, 1)


def _scales(maps: int) -> list[float]:
    """The scale of each map, and 1 after them."""
    low, high = SCALES
    return [low + (high - low) * index / max(maps - 1, 1) for index in range(maps)] + [1.0]


def _shaped(scale: float, aspect: float) -> tuple[float, float]:
    return scale * math.sqrt(aspect), scale / math.sqrt(aspect)


def _tf_sides(maps: int) -> list[list[tuple[float, float]]]:
    """``create_ssd_anchors`` with ``reduce_boxes_in_lowest_layer``: widths and heights, for each map."""
    scales = _scales(maps)
    found = [[_shaped(LOWEST, 1.0), _shaped(scales[0], 2.0), _shaped(scales[0], 0.5)]]
    for scale, following in pairwise(scales[1:]):
        between = _shaped(math.sqrt(scale * following), 1.0)
        found.append([*(_shaped(scale, aspect) for aspect in ASPECTS), between])
    return found


def _torchvision_sides(maps: int) -> list[list[tuple[float, float]]]:
    """``DefaultBoxGenerator([[2, 3]] * maps, 0.2, 0.95)``: widths and heights, for each map."""
    scales, found = _scales(maps), []
    for scale, following in pairwise(scales):
        here = [_shaped(scale, 1.0), _shaped(math.sqrt(scale * following), 1.0)]
        for aspect in (2.0, 3.0):
            wide, narrow = _shaped(scale, aspect)
            here += [(wide, narrow), (narrow, wide)]
        found.append(here)
    return found


def corners(anchors: Tensor) -> Tensor:
    """(cx, cy, w, h) as (x0, y0, x1, y1), ``[..., 4]``."""
    centre, half = anchors[..., :2], anchors[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def nearest_anchors(spec: NetSpec, other: NetSpec) -> Tensor:
    """The place, among another detector's default boxes, of the one that is nearest to each of a detector's own.

    Both predict on as many maps with the same boxes at each place: the nearest is that of the same map and the same
    shape at the place of that map which the own one's centre is in. Its size in parts of the image is the same, where
    the two inputs have the same form.

    Returns:
        int64 ``[A]``.
    """
    per_map, first, indices = detector_head(spec).per_map, 0, []
    for own_map, other_map, count in zip(map_sizes(spec), map_sizes(other), per_map, strict=True):
        # The centre (i + 1/2) / a is in the place floor((i + 1/2) / a * b).
        y, x = ((2 * torch.arange(a) + 1) * b // (2 * a) for a, b in zip(own_map, other_map, strict=True))
        cells = (y[:, None] * other_map[1] + x).flatten()
        indices.append((first + cells[:, None] * count + torch.arange(count)).flatten())
        first += other_map[0] * other_map[1] * count
    return torch.cat(indices)


# ---- what stands for a box


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Boxes as seen from anchors: ``[..., 4]`` and ``[..., 4]`` to (dx, dy, dw, dh), ``[..., 4]``."""
    sides = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + sides / 2
    moved = (centre - anchors[..., :2]) / anchors[..., 2:]
    return torch.cat([moved, (sides / anchors[..., 2:]).log()], -1) * boxes.new_tensor(WEIGHTS)


def decode(encodings: Tensor, anchors: Tensor) -> Tensor:
    """The inverse of :func:`encode`: ``[..., A, 4]`` and ``[A, 4]`` to boxes ``[..., A, 4]``, not clipped."""
    scaled = encodings / encodings.new_tensor(WEIGHTS)
    centre = scaled[..., :2] * anchors[..., 2:] + anchors[..., :2]
    half = scaled[..., 2:].clamp(max=LARGEST).exp() * anchors[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


# ---- which box an anchor answers for


def match(boxes: Tensor, labels: Tensor, anchors: Tensor) -> Tensor:
    """The box that each anchor answers for.

    The one that it overlaps most, if intersection over union is :data:`MATCHED` or more; and every box
    has the anchor that overlaps it most, whatever the overlap. Both references do so. They differ where
    two boxes have one best anchor: here it goes to the first of them, as in TensorFlow (torchvision: the
    last). A box without an area has no anchor. Anchors without a box of which half or more lies in a crowd
    are left out, as COCO's evaluation leaves out detections there.

    Args:
        boxes: ``[n, M, 4]``, padded to one number.
        labels: int64 ``[n, M]``: classes from 0, :data:`NOTHING`, or :data:`CROWD`.
        anchors: ``[A, 4]``.

    Returns:
        int64 ``[n, A]``: a box's place in its image, :data:`NOTHING`, or :data:`CROWD`: left out.
    """
    index = torch.full((len(boxes), len(anchors)), NOTHING, device=boxes.device)
    if not boxes.shape[1]:
        return index
    real = ((boxes[..., 2:] > boxes[..., :2]).all(2) & (labels >= 0))[..., None]
    common, area, own = _overlaps(boxes, corners(anchors))
    iou = torch.where(real, common / (area + own - common), -1.0)
    overlap, best = iou.max(1)
    index = torch.where(overlap >= MATCHED, best, index)
    index = _forced(index, iou, real[..., 0])
    inside = torch.where((labels == CROWD)[..., None], common / own, 0.0).amax(1)
    return torch.where((index == NOTHING) & (inside >= MATCHED), CROWD, index)


def _overlaps(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Common areas ``[n, M, A]`` of boxes ``[n, M, 4]`` and ``[A, 4]``, and the areas of each to go with them."""
    left, top, right, bottom = boxes[..., None].unbind(2)
    x0, y0, x1, y1 = others.T
    width = (torch.minimum(right, x1) - torch.maximum(left, x0)).clamp_(min=0)
    height = (torch.minimum(bottom, y1) - torch.maximum(top, y0)).clamp_(min=0)
    return width * height, (right - left) * (bottom - top), (x1 - x0) * (y1 - y0)


def _forced(index: Tensor, iou: Tensor, real: Tensor) -> Tensor:
    """``index`` [n, A], with the best anchor of each box given to it, or to the first that wants it."""
    none = iou.shape[1]
    wanted = torch.where(real, torch.arange(none, device=index.device), none)
    first = torch.full_like(index, none).scatter_reduce_(1, iou.argmax(2), wanted, "amin")
    return torch.where(first < none, first, index)


def reencode(encodings: Tensor, anchors: Tensor, others: Tensor) -> Tensor:
    """The same boxes as seen from other anchors: ``[..., A, 4]``, ``[A, 4]`` and ``[A, 4]`` to ``[..., A, 4]``."""
    weights = encodings.new_tensor(WEIGHTS)
    scale = anchors[:, 2:] / others[:, 2:]
    shift = (anchors[:, :2] - others[:, :2]) / others[:, 2:] * weights[:2]
    return torch.cat([encodings[..., :2] * scale + shift, encodings[..., 2:] + scale.log() * weights[2:]], -1)


# ---- the loss


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Sums over a batch. Divided by the matches of the whole batch they are what the references minimise;
    of batches in several parts, or on several processes, sums and matches are added up first."""

    classes: Tensor
    boxes: Tensor
    matches: int
    """Anchors that answer for a box."""

    @property
    def total(self) -> Tensor:
        """Classes and boxes together."""
        return self.classes + self.boxes

    @property
    def mean(self) -> Tensor:
        """Classes and boxes together, a match."""
        return self.total / max(self.matches, 1)


def ssd_loss(
    encodings: Tensor, logits: Tensor, boxes: Tensor, labels: Tensor, anchors: Tensor,
    scoring: Scoring, *, matched: Tensor | None = None,
) -> Losses:  # fmt: skip
    """The loss of a detector.

    ``sigmoid`` (TensorFlow): focal loss over all logits, where the background's is to be 0 like that of any
    class that is not there (``encode_background_as_zeros``), and a quarter of smooth L1, as its code divides
    it by the four numbers. ``softmax`` (torchvision): cross-entropy of the anchors with a box and of the
    :data:`NEGATIVES` times as many of the same image that it is worst for, and smooth L1. In float32.

    Args:
        encodings: ``[n, A, 4]``, the network's.
        logits: ``[n, A, num_classes + 1]``, background first.
        boxes: ``[n, M, 4]``, the truth, padded to one number.
        labels: int64 ``[n, M]``: classes from 0, :data:`NOTHING`, or :data:`CROWD`.
        anchors: ``[A, 4]``.
        scoring: of the head.
        matched: what :func:`match` gave, if it is known already.
    """
    with torch.no_grad():
        index = match(boxes, labels, anchors) if matched is None else matched
        targets = _targets(index, labels)
    images, places = (index >= 0).nonzero(as_tuple=True)
    truth = encode(boxes[images, index[images, places]].float(), anchors[places])
    regression = F.smooth_l1_loss(encodings[images, places].float(), truth, reduction="sum")
    if scoring == "sigmoid":
        classes, regression = _focal(logits.float(), targets), regression / 4
    else:
        classes = _hard_negatives(logits.float(), targets)
    return Losses(classes=classes, boxes=regression, matches=len(images))


def _targets(index: Tensor, labels: Tensor) -> Tensor:
    """The logit that is to win for each anchor, int64 ``[n, A]``: 0 for background, -2 where left out."""
    if not labels.shape[1]:
        return torch.zeros_like(index)
    found = labels.gather(1, index.clamp(min=0)) + 1
    return torch.where(index >= 0, found, torch.where(index == CROWD, CROWD, 0))


def _focal(logits: Tensor, targets: Tensor) -> Tensor:
    """Lin et al. (arXiv:1708.02002), equation 5, summed over anchors and logits."""
    from torchvision.ops import sigmoid_focal_loss

    wanted = torch.zeros_like(logits).scatter_(2, targets.clamp(min=0)[..., None], 1.0)
    wanted[..., 0] = 0
    found: Tensor = sigmoid_focal_loss(logits, wanted, ALPHA, GAMMA) * (targets != CROWD)[..., None]
    return found.sum()


def _hard_negatives(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the anchors with a box and of the hardest others of their image."""
    surprise = F.cross_entropy(logits.transpose(1, 2), targets.clamp(min=0), reduction="none")
    positive, negative = targets > 0, targets == 0
    hardness = torch.where(negative, surprise.detach(), -torch.inf)
    place = hardness.argsort(1, descending=True).argsort(1)
    hard = negative & (place < NEGATIVES * positive.sum(1, keepdim=True))
    return (surprise * (positive | hard)).sum()


def soft_ssd_loss(
    encodings: Tensor, logits: Tensor, teacher_encodings: Tensor, teacher_logits: Tensor, scoring: Scoring,
    *, temperature: float = 1.0,
) -> Tensor:  # fmt: skip
    """How far a detector is from what a teacher says at the same anchors, summed over them.

    Classes and boxes are both learned, as in Chen et al., 2017 ("Learning efficient object detection models with
    knowledge distillation", sections 3.2 and 3.3). Classes: cross-entropy with the teacher's probabilities, times their
    distance to the power of :data:`GAMMA`. That is the focal loss for soft labels (Li et al., 2020, arXiv:2006.04388,
    equation 2): the thousands of anchors of the background on which both agree count for nothing. The distance is
    that of each class under ``sigmoid``, and half the sum over the classes under ``softmax``. Boxes: smooth L1, as far
    as the teacher is sure: times its highest score, as that paper weights its boxes. Classes and boxes are weighted
    against each other as in :func:`ssd_loss`.

    Args:
        encodings, teacher_encodings: ``[n, A, 4]``.
        logits, teacher_logits: ``[n, A, num_classes + 1]``, background first.
        scoring: of both heads.
        temperature: of the classes' probabilities.
    """
    student, teacher = logits.float() / temperature, teacher_logits.float() / temperature
    if scoring == "sigmoid":
        student, teacher = student[..., 1:], teacher[..., 1:].sigmoid()  # the background's logit scores nothing
        surprise = F.binary_cross_entropy_with_logits(student, teacher, reduction="none")
        distance = (student.sigmoid() - teacher).abs()
    else:
        teacher = teacher.softmax(-1)
        surprise = -(teacher * student.log_softmax(-1)).sum(-1)
        distance = (student.softmax(-1) - teacher).abs().sum(-1) / 2
    classes = (surprise * distance**GAMMA).sum()
    sure = scores(teacher_logits.float(), scoring).amax(-1, keepdim=True)
    boxes = (sure * F.smooth_l1_loss(encodings.float(), teacher_encodings, reduction="none")).sum()
    # A gradient of probabilities falls with the temperature's square.
    return temperature**2 * classes + (boxes / 4 if scoring == "sigmoid" else boxes)


# ---- the detections


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What was found in an image, the surest first."""

    boxes: Tensor
    """[k, 4], x0 y0 x1 y1 in 0 to 1."""
    scores: Tensor
    """[k], 0 to 1."""
    labels: Tensor
    """int64 [k], classes from 0."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Which of an image's boxes are detections.

    Raises:
        InputError: a value is out of range.
    """

    score_threshold: float
    """A detection's score is above."""
    iou_threshold: float
    """Of two boxes of one class that overlap more the less sure one is dropped."""
    max_detections: int
    """Of an image."""
    candidates: int | None
    """Boxes of a class that are looked at, the surest; ``None``: all."""
    clip: bool
    """Boxes are clipped to the image before they are compared; otherwise after, and those that are
    outside of it are dropped."""
    class_wise: bool = True
    """Boxes of one class alone suppress each other; otherwise each anchor has its best class, and all
    boxes suppress each other."""

    def __post_init__(self) -> None:
        problems = [f"{name} is {value}, must be from 0 to 1" for name, value in vars(self).items()
                    if name.endswith("threshold") and not 0 <= value <= 1]  # fmt: skip
        if self.max_detections < 1:
            problems.append(f"max_detections is {self.max_detections}, must be 1 or more")
        if problems:
            raise InputError("; ".join(problems))


RULES: dict[Scoring, Rule] = {
    "sigmoid": Rule(score_threshold=1e-8, iou_threshold=0.6, max_detections=100, candidates=None, clip=False),
    "softmax": Rule(score_threshold=1e-3, iou_threshold=0.55, max_detections=300, candidates=300, clip=True),
}
"""As published: TensorFlow's configuration, and torchvision's."""


def rule(
    scoring: Scoring, *, score_threshold: float | None = None, iou_threshold: float | None = None,
    max_detections: int | None = None, class_wise: bool | None = None,
) -> Rule:  # fmt: skip
    """The published rule of a scoring, with what is given in the place of its values.

    Raises:
        InputError: no such scoring, or a value is out of range.
    """
    if scoring not in RULES:
        raise unknown("scoring", scoring, RULES)
    given: dict[str, Any] = {"score_threshold": score_threshold, "iou_threshold": iou_threshold,
                             "max_detections": max_detections, "class_wise": class_wise}  # fmt: skip
    return replace(RULES[scoring], **{name: value for name, value in given.items() if value is not None})


def scores(logits: Tensor, scoring: Scoring) -> Tensor:
    """Logits ``[..., num_classes + 1]`` as scores of the classes, ``[..., num_classes]``."""
    found = logits.sigmoid() if scoring == "sigmoid" else logits.softmax(-1)
    return found[..., 1:]


def detections(
    encodings: Tensor, logits: Tensor, anchors: Tensor, scoring: Scoring, *,
    score_threshold: float | None = None, iou_threshold: float | None = None,
    max_detections: int | None = None, class_wise: bool | None = None,
) -> list[Detections]:  # fmt: skip
    """The detections of each image, from what the network gives.

    Args:
        encodings: ``[n, A, 4]``.
        logits: ``[n, A, num_classes + 1]``, background first.
        anchors: ``[A, 4]``.
        scoring: of the head; says how, see :data:`RULES`.
        score_threshold, iou_threshold, max_detections, class_wise: in the place of the published ones.

    Raises:
        InputError: a value is out of range.
    """
    chosen = rule(
        scoring, score_threshold=score_threshold, iou_threshold=iou_threshold,
        max_detections=max_detections, class_wise=class_wise,
    )  # fmt: skip
    found = decode(encodings.float(), anchors), scores(logits.float(), scoring)
    return [select(boxes, likely, chosen) for boxes, likely in zip(*found)]


def select(boxes: Tensor, likely: Tensor, chosen: Rule) -> Detections:
    """The detections among an image's boxes.

    Args:
        boxes: ``[A, 4]``, decoded, not clipped.
        likely: scores, ``[A, num_classes]``.
        chosen: which are taken.
    """
    from torchvision.ops import batched_nms

    clipped = boxes.clamp(0, 1)
    if chosen.clip:
        boxes, visible = clipped, boxes.new_ones(len(boxes), dtype=torch.bool)
    else:
        visible = (clipped[:, 2:] > clipped[:, :2]).all(1)
    if chosen.candidates is not None and chosen.candidates < len(likely):
        least = likely.topk(chosen.candidates, dim=0).values[-1]
        likely = torch.where(likely >= least, likely, -1.0)
    if not chosen.class_wise:
        best = likely.max(1, keepdim=True)
        likely = torch.full_like(likely, -1.0).scatter(1, best.indices, best.values)
    flat = likely.flatten()
    count, classes = 8 * chosen.max_detections, likely.shape[1]
    while True:  # what is less sure changes nothing about what is surer: mostly a few are enough
        score, order = flat.topk(min(count, len(flat)))
        order = order[score > chosen.score_threshold]
        place, label = order // classes, order % classes
        group = label if chosen.class_wise else torch.zeros_like(label)
        kept = batched_nms(boxes[place], flat[order], group, chosen.iou_threshold)
        kept = kept[visible[place[kept]]][: chosen.max_detections]
        if len(kept) == chosen.max_detections or len(order) < count:
            break
        count *= 4
    return Detections(boxes=clipped[place[kept]], scores=flat[order[kept]], labels=label[kept])
