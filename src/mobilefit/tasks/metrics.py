"""How good a detector or a segmenter is, measured on the images' own pixels.

**Detection** is scored as COCO does (Lin et al. 2014; ``pycocotools``, computed by ``faster-coco-eval``):
precision at 101 recalls from 0 to 1, made monotonic, its mean the average precision (AP) of a class at an
intersection over union (IoU); mAP is the mean over the classes with a box in the truth, mAP@0.5 that at
an IoU of 0.5, mAP that over 0.5, 0.55 ... 0.95. At most 100 detections of each class and image count. A box
flagged ``crowd`` is neither asked for nor punished: detections that lie in it are left out. Small, medium and
large are boxes of under 32² pixels, of under 96² and above; COCO's own table takes areas from its masks.

**Segmentation** is scored as Cityscapes does: all pixels of all images go into one confusion matrix, and
the IoU of a class is TP / (TP + FP + FN). Pixels whose truth is ``IGNORED`` count nowhere. The mean (mIoU) is
over the classes that are in the truth or predicted: one in neither is left out, one that is predicted
without being there counts as 0 (``torchmetrics.JaccardIndex`` and Cityscapes' script do the same).

Numbers that do not exist (the AP of a class without a box) are NaN, and ``None`` in records.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from mobilefit.data.masks import IGNORED

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

MOST_DETECTIONS = 100
"""Of a class in an image: COCO's."""
SHOWN_SCORE = 0.5
"""Detections of at least this score are drawn, and counted as found or false."""
SHOWN_IOU = 0.5
"""From here on a detection has found a box, where single boxes are counted."""
RECALLS = 101
SIZES = ("small", "medium", "large")


# ---- detection


@dataclass(frozen=True, kw_only=True, eq=False)
class _Image:
    """Truth and detections of one image; boxes are left, top, width, height."""

    index: int
    size: tuple[int, int]
    truth: Floats
    truth_labels: Counts
    crowd: Mask
    boxes: Floats
    scores: Floats
    labels: Counts


@dataclass(frozen=True, kw_only=True)
class ImageCounts:
    """Boxes of one image at a score of ``SHOWN_SCORE`` and an IoU of ``SHOWN_IOU``."""

    index: int
    """Its place in the set."""
    found: int
    missed: int
    false: int
    """Detections of nothing, of the wrong class, or of what was found already."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionScore:
    """What a detector found; shares in 0..1, NaN where there is nothing to find."""

    classes: tuple[str, ...]
    map50: float
    """Mean AP at IoU 0.5: mAP@0.5."""
    map: float
    """Mean AP over IoU 0.5, 0.55 ... 0.95: COCO's."""
    map75: float
    by_size: dict[str, float]
    """``map`` of the boxes of each of ``SIZES``."""
    ap50: Floats
    """[K]: of each class, at IoU 0.5."""
    ap: Floats
    """[K]: of each class, over IoU 0.5 ... 0.95."""
    precision: Floats
    """[K, 101]: at IoU 0.5, at recalls 0, 0.01 ... 1; 0 beyond the highest recall reached."""
    truths: Counts
    """[K]: boxes of the truth, crowds not counted."""
    found: Counts
    """[K]: of them, those found at ``SHOWN_SCORE`` and ``SHOWN_IOU``."""
    false: Counts
    """[K]: detections of that score and class that found none."""
    crowds: int
    """Boxes of crowds."""
    images: tuple[ImageCounts, ...]
    """In the set's order."""

    def row(self) -> dict[str, float]:
        """What the history of a training keeps of it."""
        return {"val_map50": self.map50, "val_map": self.map}

    def worst(self, most: int) -> list[int]:
        """Places of the images with most missed and false boxes, the worst first; none without any."""
        wrong = [image for image in self.images if image.missed + image.false]
        wrong.sort(key=lambda image: -(image.missed + image.false))
        return [image.index for image in wrong[:most]]


class DetectionMetric:
    """Collects an evaluation's detections, image by image.

    Args:
        classes: their names; labels are indices into them.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._images: list[_Image] = []

    def add(
        self, boxes: npt.ArrayLike, scores: npt.ArrayLike, labels: npt.ArrayLike,
        truth_boxes: npt.ArrayLike, truth_labels: npt.ArrayLike, crowd: npt.ArrayLike,
        size: tuple[int, int], index: int | None = None,
    ) -> None:  # fmt: skip
        """One image: ``d`` detections and ``m`` boxes of truth, both in pixels of the image.

        Args:
            boxes, scores, labels: [d, 4] left, top, right, bottom; [d] from 0 to 1; [d] from 0 on.
            truth_boxes, truth_labels, crowd: [m, 4], [m], [m]: many things in one box.
            size: height and width of the image.
            index: its place in the set, where images do not come in order; by default the next.

        Raises:
            ValueError: lengths differ, a label is no class, or a number is not finite.
        """
        place = len(self._images) if index is None else index
        image = _image(place, size, boxes, scores, labels, truth_boxes, truth_labels, crowd)
        _check_labels(image, len(self.classes))
        self._images.append(image)

    @classmethod
    def joined(cls, parts: Iterable[DetectionMetric]) -> DetectionMetric:
        """One metric of those of several processes, each of which has had images of its own."""
        parts = list(parts)
        whole = cls(parts[0].classes)
        whole._images = [image for part in parts for image in part._images]
        return whole

    def outcomes(self) -> DetectionOutcomes:
        """What was added, by image."""
        return DetectionOutcomes.of(sorted(self._images, key=lambda image: image.index), len(self.classes))

    def result(self) -> DetectionScore:
        """Score what was added, the detections with equal scores in the order of the images."""
        images = sorted(self._images, key=lambda image: image.index)
        matched = [_matched(image) for image in images]
        count = len(self.classes)
        precision = _precision(images, count)
        ap = _mean(precision[:, :, :, 0], axis=(0, 1))
        truth, found, false = (
            sum((np.bincount(labels, minlength=count) for labels in each), np.zeros(count, np.int64))
            for each in (
                [image.truth_labels[~image.crowd] for image in images],
                [image.truth_labels[m.found] for image, m in zip(images, matched, strict=True)],
                [image.labels[m.false] for image, m in zip(images, matched, strict=True)],
            )
        )
        return DetectionScore(
            classes=self.classes, map50=_mean_of(precision[0, :, :, 0]), map=_mean_of(precision[..., 0]),
            map75=_mean_of(precision[5, :, :, 0]),
            by_size={size: _mean_of(precision[..., 1 + i]) for i, size in enumerate(SIZES)},
            ap50=_mean(precision[0, :, :, 0], axis=0), ap=ap, precision=precision[0, :, :, 0].T.copy(),
            truths=truth, found=found, false=false, crowds=sum(int(image.crowd.sum()) for image in images),
            images=tuple(
                ImageCounts(index=image.index, found=int(m.found.sum()), false=int(m.false.sum()),
                            missed=int((~image.crowd & ~m.found).sum()))
                for image, m in zip(images, matched, strict=True)
            ),
        )  # fmt: skip


def _image(
    index: int, size: tuple[int, int], boxes: npt.ArrayLike, scores: npt.ArrayLike, labels: npt.ArrayLike,
    truth_boxes: npt.ArrayLike, truth_labels: npt.ArrayLike, crowd: npt.ArrayLike,
) -> _Image:  # fmt: skip
    made = _Image(
        index=index, size=size,
        truth=_sized(truth_boxes), truth_labels=np.asarray(truth_labels, np.int64).reshape(-1),
        crowd=np.asarray(crowd, np.bool_).reshape(-1), boxes=_sized(boxes),
        scores=np.asarray(scores, np.float64).reshape(-1), labels=np.asarray(labels, np.int64).reshape(-1),
    )  # fmt: skip
    if not len(made.boxes) == len(made.scores) == len(made.labels):
        raise ValueError(f"{len(made.boxes)} boxes, {len(made.scores)} scores, {len(made.labels)} labels")
    if not len(made.truth) == len(made.truth_labels) == len(made.crowd):
        raise ValueError(f"{len(made.truth)} boxes, {len(made.truth_labels)} labels, {len(made.crowd)} flags")
    if not all(np.isfinite(numbers).all() for numbers in (made.boxes, made.scores, made.truth)):
        raise ValueError(f"a box or a score of image {index} is not a finite number")
    return made


def _sized(boxes: npt.ArrayLike) -> Floats:
    """Left, top, right, bottom to left, top, width, height."""
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)


def _check_labels(image: _Image, classes: int) -> None:
    labels = np.concatenate([image.labels, image.truth_labels])
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels from {labels.min()} to {labels.max()}, and {classes} classes")


def _precision(images: Sequence[_Image], classes: int) -> Floats:
    """Precision [10 IoUs, 101 recalls, K, all sizes and each of ``SIZES``]; NaN where there is no truth."""
    from faster_coco_eval import COCO, COCOeval_faster  # type: ignore[import-untyped]

    truth, found = COCO(_truth(images, classes)), COCO()
    found.dataset = {**_truth(images, classes), "annotations": _found(images)}
    found.createIndex()
    evaluation = COCOeval_faster(truth, found, "bbox")
    evaluation.params.maxDets = [MOST_DETECTIONS]
    if not images:
        return np.full((10, RECALLS, classes, 1 + len(SIZES)), math.nan)
    evaluation.evaluate()
    evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"], np.float64)[..., 0]
    return np.where(precision < 0, math.nan, precision)


def _truth(images: Sequence[_Image], classes: int) -> dict[str, Any]:
    """A COCO data set; ids begin at 1, since 0 stands for "none" in places."""
    return {
        "images": [{"id": number, "height": image.size[0], "width": image.size[1]}
                   for number, image in enumerate(images, 1)],
        "categories": [{"id": label + 1, "name": str(label)} for label in range(classes)],
        "annotations": _annotations([(i.truth, i.truth_labels, "iscrowd", i.crowd.astype(int)) for i in images]),
    }  # fmt: skip


def _found(images: Sequence[_Image]) -> list[dict[str, Any]]:
    return _annotations([(image.boxes, image.labels, "score", image.scores) for image in images])


def _annotations(images: Iterable[tuple[Floats, Counts, str, npt.NDArray[Any]]]) -> list[dict[str, Any]]:
    """COCO's rows, of (boxes, labels, the name and the values of what else is known) of each image."""
    rows: list[dict[str, Any]] = []
    for number, (boxes, labels, name, values) in enumerate(images, 1):
        for box, label, value in zip(boxes.tolist(), labels.tolist(), values.tolist(), strict=True):
            rows.append({"id": len(rows) + 1, "image_id": number, "category_id": label + 1, "bbox": box,
                         "area": box[2] * box[3], "iscrowd": 0, name: value})  # fmt: skip
    return rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Matching:
    """Which boxes of one image were found, at ``SHOWN_SCORE`` and ``SHOWN_IOU``.

    A detection of a lower score, or in a crowd, is neither right nor false.
    """

    found: Mask
    """[m], of the truth; crowds never are."""
    right: Mask
    """[d], of the detections."""
    false: Mask
    """[d]"""


def matching(
    boxes: npt.ArrayLike, scores: npt.ArrayLike, labels: npt.ArrayLike,
    truth_boxes: npt.ArrayLike, truth_labels: npt.ArrayLike, crowd: npt.ArrayLike,
) -> Matching:  # fmt: skip
    """One image's detections beside its truth, as in :meth:`DetectionMetric.add`."""
    return _matched(_image(0, (0, 0), boxes, scores, labels, truth_boxes, truth_labels, crowd))


def _matched(image: _Image, least: float = SHOWN_SCORE) -> Matching:
    """Class by class, the surest detections first (COCO's rule), those of a score of at least ``least``."""
    found, (right, false) = np.zeros(len(image.truth), bool), np.zeros((2, len(image.boxes)), bool)
    shown = image.scores >= least
    for label in np.unique(image.labels[shown]):
        own = np.flatnonzero(image.truth_labels == label)
        sure = np.flatnonzero((image.labels == label) & shown)
        sure = sure[np.argsort(-image.scores[sure], kind="stable")][:MOST_DETECTIONS]
        pairs = _pairs(image.boxes[sure], image.truth[own], image.crowd[own])
        found[own[pairs[pairs >= 0]]] = True
        right[sure], false[sure] = pairs >= 0, pairs == _NONE
    return Matching(found=found, right=right, false=false)


_NONE, _IN_A_CROWD = -1, -2


def _pairs(boxes: Floats, truth: Floats, crowd: Mask) -> Counts:
    """[d]: the truth that each box finds, every one but once, or ``_NONE`` or ``_IN_A_CROWD``."""
    from faster_coco_eval.core import mask  # type: ignore[import-untyped]

    pairs = np.full(len(boxes), _NONE, np.int64)
    if not len(boxes) or not len(truth):
        return pairs
    free = ~crowd
    for i, row in enumerate(np.asarray(mask.iou(boxes, truth, crowd.astype(np.uint8).tolist()))):
        best = int(np.argmax(np.where(free, row, -1.0)))
        if free[best] and row[best] >= SHOWN_IOU:
            pairs[i], free[best] = best, False
        elif (row[crowd] >= SHOWN_IOU).any():
            pairs[i] = _IN_A_CROWD
    return pairs


def _mean(values: Floats, axis: int | tuple[int, ...]) -> Floats:
    """The mean along an axis; NaN of a class without truth, of which all is NaN."""
    found: Floats = values.mean(axis=axis)
    return found


def _mean_of(values: Floats) -> float:
    """The mean of all that is there."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else math.nan


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionOutcomes:
    """What mAP@0.5 is computed of, by image: for images that count several times, or not at all."""

    image: Counts
    """[d]: the place of each detection's image, the surest detections first."""
    label: Counts
    """[d]"""
    right: Mask
    """[d]: whether it found a box that no surer one has found. Detections in crowds are left out."""
    truths: Counts
    """[n, K]: boxes in each image."""

    @classmethod
    def of(cls, images: Sequence[_Image], classes: int) -> DetectionOutcomes:
        """Of the images of a metric, in the set's order."""
        matched = [_matched(image, least=0.0) for image in images]
        counted = [m.right | m.false for m in matched]
        order = np.argsort(
            -np.concatenate([i.scores[c] for i, c in zip(images, counted, strict=True)]), kind="stable"
        )
        return cls(
            image=np.repeat(np.arange(len(images)), [c.sum() for c in counted])[order],
            label=np.concatenate([i.labels[c] for i, c in zip(images, counted, strict=True)])[order],
            right=np.concatenate([m.right[c] for m, c in zip(matched, counted, strict=True)])[order],
            truths=np.stack([np.bincount(i.truth_labels[~i.crowd], minlength=classes) for i in images]),
        )

    def score(self, weights: Counts) -> float:
        """mAP@0.5, image ``i`` of ``n`` counted ``weights[i]`` times; NaN without any box."""
        return _mean_of(np.array([self._ap(label, weights) for label in range(self.truths.shape[1])]))

    def _ap(self, label: int, weights: Counts) -> float:
        truths = int(weights @ self.truths[:, label])
        if not truths:
            return math.nan
        own = self.label == label
        count = weights[self.image[own]]
        right = np.cumsum(count * self.right[own])
        precision = right / np.maximum(np.cumsum(count), 1)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(right / truths, np.linspace(0, 1, RECALLS))
        return float(np.append(precision, 0.0)[places].mean())


# ---- segmentation


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentationScore:
    """What a segmenter got right; shares in 0..1, NaN where there is nothing to see."""

    classes: tuple[str, ...]
    miou: float
    """Mean of ``iou`` over the classes that are in the truth or predicted."""
    iou: Floats
    """[K]: TP / (TP + FP + FN) over the pixels of all images."""
    pixel_accuracy: float
    """Share of the pixels that are right."""
    class_accuracy: float
    """Mean over the classes in the truth of the share of their pixels that are right."""
    confusion: Counts
    """[K, K], pixels: row the truth, column the prediction."""
    images: tuple[int, ...]
    """Places in the set, in its order."""
    image_pixels: Counts
    """[n, 3, K]: pixels of each class in each image: those that are right, of the truth, and of the prediction."""
    image_iou: Floats
    """[n]: of each image alone, the mean over its classes."""

    def row(self) -> dict[str, float]:
        """What the history of a training keeps of it."""
        return {"val_miou": self.miou, "val_pixel_accuracy": self.pixel_accuracy}

    def worst(self, most: int) -> list[int]:
        """Places of the images with the lowest IoU, the worst first."""
        order = np.argsort(self.image_iou, kind="stable")  # NaN comes last
        return [self.images[i] for i in order[:most] if not math.isnan(self.image_iou[i])]


class SegmentationMetric:
    """Collects an evaluation's label maps, image by image.

    Args:
        classes: their names; labels are indices into them.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._confusion = np.zeros((len(classes), len(classes)), np.int64)
        self._images: dict[int, Counts] = {}

    def add(
        self, found: npt.NDArray[Any], truth: npt.NDArray[np.uint8], index: int | None = None
    ) -> None:
        """One image.

        Args:
            found: the label of each pixel [h, w], or logits [K, h', w'] of any size, which are resized
                to the truth's (bilinear, as torchvision's and DeepLab's evaluations do).
            truth: [h, w]: labels, and ``IGNORED``.
            index: its place in the set, where images do not come in order; by default the next.

        Raises:
            ValueError: the sizes differ, or a label is no class.
        """
        labels = labels_of(found, truth.shape[:2]) if found.ndim == 3 else found
        confusion = confusion_of(labels, truth, len(self.classes))
        self._confusion += confusion
        self._images[len(self._images) if index is None else index] = pixels_of(confusion)

    @classmethod
    def joined(cls, parts: Iterable[SegmentationMetric]) -> SegmentationMetric:
        """One metric of those of several processes, each of which has had images of its own."""
        parts = list(parts)
        whole = cls(parts[0].classes)
        for part in parts:
            whole._confusion += part._confusion
            whole._images |= part._images
        return whole

    def result(self) -> SegmentationScore:
        """Score what was added."""
        images, confusion = sorted(self._images), self._confusion.copy()
        iou, right = iou_of(confusion), confusion.diagonal()
        return SegmentationScore(
            classes=self.classes, miou=_mean_of(iou), iou=iou,
            pixel_accuracy=float(_share(right.sum(), confusion.sum())),
            class_accuracy=_mean_of(_share(right, confusion.sum(1))), confusion=confusion,
            images=tuple(images),
            image_pixels=np.stack([self._images[i] for i in images])
            if images else np.zeros((0, 3, len(self.classes)), np.int64),
            image_iou=np.array([_mean_of(_iou(self._images[i])) for i in images], np.float64),
        )  # fmt: skip


def labels_of(logits: npt.NDArray[Any], size: tuple[int, int]) -> Counts:
    """The likeliest class of each pixel, int64 [h, w], of logits [K, h', w'] brought to that size."""
    scores = torch.from_numpy(np.ascontiguousarray(logits)).float()[None]
    if tuple(scores.shape[2:]) != tuple(size):
        scores = F.interpolate(scores, size=tuple(size), mode="bilinear", align_corners=False)
    labels: Counts = scores[0].argmax(0).numpy()
    return labels


def confusion_of(labels: npt.NDArray[Any], truth: npt.NDArray[Any], classes: int) -> Counts:
    """Pixels [K, K], row the truth, column the prediction; those of ``IGNORED`` truth are left out.

    Raises:
        ValueError: the sizes differ, or a label is no class.
    """
    if labels.shape != truth.shape:
        raise ValueError(f"labels of {labels.shape}, truth of {truth.shape}")
    known = truth != IGNORED
    rows, columns = truth[known].astype(np.int64), labels[known].astype(np.int64)
    highest = max(rows.max(initial=0), columns.max(initial=0))
    if highest >= classes or columns.min(initial=0) < 0:
        raise ValueError(f"labels up to {highest}, and {classes} classes")
    return np.bincount(rows * classes + columns, minlength=classes**2).reshape(classes, classes)


def iou_of(confusion: Counts) -> Floats:
    """Intersection over union of each class, [K]; NaN of one that is neither there nor predicted."""
    return _iou(pixels_of(confusion))


def pixels_of(confusion: Counts) -> Counts:
    """Pixels of each class, [3, K]: those that are right, of the truth, and of the prediction."""
    return np.stack([confusion.diagonal(), confusion.sum(1), confusion.sum(0)])


def _iou(pixels: Counts) -> Floats:
    right, truth, predicted = pixels
    return _share(right, truth + predicted - right)


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentationOutcomes:
    """What mIoU is computed of, by image: for images that count several times, or not at all."""

    pixels: Counts
    """[n, 3, K]: see :attr:`SegmentationScore.image_pixels`."""

    def score(self, weights: Counts) -> float:
        """mIoU, image ``i`` of ``n`` counted ``weights[i]`` times; NaN without any labelled pixel."""
        return _mean_of(_iou(np.tensordot(weights, self.pixels, 1)))


def _share(part: Any, whole: Any) -> Floats:
    """A quotient; NaN where there is nothing."""
    whole = np.asarray(whole, np.float64)
    found: Floats = np.divide(part, whole, out=np.full(whole.shape, math.nan), where=whole > 0)
    return found


# ---- the record


def record_of(score: DetectionScore | SegmentationScore) -> dict[str, Any]:
    """A score as plain values for ``record["final"]``, as the report reads them; ``None`` for NaN.

    Detection: ``task``, ``map50``, ``map``, ``map75``, ``by_size``; ``per_class`` (class, ap50, ap, truths,
    found, false); ``curves`` (101 precisions of each class, or ``None``); ``counts`` in all. Segmentation:
    ``task``, ``miou``, ``pixel_accuracy``, ``class_accuracy``; ``per_class`` (class, iou, accuracy, pixels);
    ``confusion``; ``counts``.
    """
    return _detection(score) if isinstance(score, DetectionScore) else _segmentation(score)


def _detection(score: DetectionScore) -> dict[str, Any]:
    rows = zip(score.classes, score.ap50, score.ap, score.truths, score.found, score.false, strict=True)
    return {
        "task": "detect", "map50": _plain(score.map50), "map": _plain(score.map),
        "map75": _plain(score.map75),
        "by_size": {size: _plain(value) for size, value in score.by_size.items()},
        "per_class": [
            {"class": name, "ap50": _plain(ap50), "ap": _plain(ap), "truths": int(truths),
             "found": int(found), "false": int(false)}
            for name, ap50, ap, truths, found, false in rows
        ],
        "curves": [None if np.isnan(curve).any() else curve.round(4).tolist() for curve in score.precision],
        "counts": {
            "images": len(score.images), "boxes": int(score.truths.sum()), "crowds": score.crowds,
            "found": int(score.found.sum()), "false": int(score.false.sum()),
            "score": SHOWN_SCORE, "iou": SHOWN_IOU,
        },
    }  # fmt: skip


def _segmentation(score: SegmentationScore) -> dict[str, Any]:
    confusion = score.confusion
    accuracy = _share(confusion.diagonal(), confusion.sum(1))
    rows = zip(score.classes, score.iou, accuracy, confusion.sum(1), strict=True)
    return {
        "task": "segment", "miou": _plain(score.miou), "pixel_accuracy": _plain(score.pixel_accuracy),
        "class_accuracy": _plain(score.class_accuracy),
        "per_class": [
            {"class": name, "iou": _plain(iou), "accuracy": _plain(share), "pixels": int(pixels)}
            for name, iou, share, pixels in rows
        ],
        "confusion": confusion.tolist(),
        "counts": {"images": len(score.images), "pixels": int(confusion.sum())},
    }  # fmt: skip


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
