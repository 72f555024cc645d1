"""Does a file say what the module says? On real images: by logits, by boxes and scores, by labels of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mobilefit.errors import unknown

Doubles = npt.NDArray[np.float64]


# ---- logits


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """What a format may differ by."""

    logits: float
    """Largest difference of a logit, as a part of the module's largest absolute logit."""
    share: float
    """Least share of the logits within that difference."""
    agreement: float
    """Least share of the images with the same top-1."""


_EXACT = Tolerance(logits=1e-4, share=1.0, agreement=0.99)
_INT8 = Tolerance(logits=0.25, share=0.95, agreement=0.8)
TOLERANCES = {
    "float32": _EXACT,
    "onnx": _EXACT,
    "pt2": _EXACT,
    "executorch": _EXACT,
    "float16": Tolerance(logits=1e-2, share=1.0, agreement=0.98),
    "dynamic": Tolerance(logits=0.15, share=0.98, agreement=0.9),
    "int8": _INT8,
    "int8_io": _INT8,
}
"""By format. float32 rounds differently; float16 keeps 11 bits of a weight; int8 keeps 8, and is
told from a broken file by its top-1."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """A file's logits against the module's."""

    kind: str
    """The format, a key of :data:`TOLERANCES`."""
    images: int
    agreement: float
    """Share of the images with the same top-1, 0 to 1."""
    largest: float
    """Largest absolute difference of a logit; infinite where one is not finite."""
    scale: float
    """The module's largest absolute logit."""
    within: float
    """Share of the logits within the tolerance, 0 to 1."""

    @property
    def tolerance(self) -> Tolerance:
        """What is allowed."""
        return TOLERANCES[self.kind]

    @property
    def ok(self) -> bool:
        """Whether the file is within the tolerance of its format."""
        return self.within >= self.tolerance.share and self.agreement >= self.tolerance.agreement

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an infinite difference is None."""
        return _plain(self)

    def __str__(self) -> str:
        return (
            f"top-1 agrees on {self.agreement:.1%} of {self.images} images, "
            f"logits differ by at most {self.largest:.3g} (of {self.scale:.3g})"
        )


def _plain(found: Parity | BoxParity) -> dict[str, Any]:
    largest = found.largest if np.isfinite(found.largest) else None
    return {**asdict(found), "largest": largest, "tolerance": asdict(found.tolerance), "ok": found.ok}


def parity(kind: str, module: npt.ArrayLike, file: npt.ArrayLike) -> Parity:
    """Compare logits ``[n, classes]`` of the same images, the module's and the file's.

    Raises:
        InputError: an unknown format.
    """
    if kind not in TOLERANCES:
        raise unknown("format", kind, TOLERANCES)
    expected, found = np.asarray(module, np.float64), np.asarray(file, np.float64)
    if expected.shape != found.shape or expected.ndim != 2 or not expected.size:
        raise ValueError(f"logits of shape {expected.shape} and {found.shape}")
    difference = np.where(np.isfinite(found), np.abs(found - expected), np.inf)
    scale = float(np.abs(expected).max())
    return Parity(
        kind=kind, images=len(expected), largest=float(difference.max()), scale=scale,
        agreement=float((expected.argmax(1) == found.argmax(1)).mean()),
        within=float((difference <= TOLERANCES[kind].logits * scale).mean()),
    )  # fmt: skip


# ---- boxes


@dataclass(frozen=True, kw_only=True)
class BoxTolerance:
    """What a detector's file may differ by."""

    iou: float
    """Least intersection over union of a box with the module's."""
    score: float
    """Largest difference of a score."""
    share: float
    """Least share of the anchors, of all images, for which both hold."""
    agreement: float
    """Least share of the detections that both have: of one class, within ``iou`` and ``score``."""


_EXACT_BOXES = BoxTolerance(iou=0.99, score=1e-3, share=1.0, agreement=0.99)
_INT8_BOXES = BoxTolerance(iou=0.5, score=0.25, share=0.9, agreement=0.5)
BOX_TOLERANCES = {
    "float32": _EXACT_BOXES,
    "onnx": _EXACT_BOXES,
    "pt2": _EXACT_BOXES,
    "executorch": _EXACT_BOXES,
    "float16": BoxTolerance(iou=0.95, score=1e-2, share=0.99, agreement=0.95),
    "dynamic": BoxTolerance(iou=0.7, score=0.15, share=0.95, agreement=0.7),
    "int8": _INT8_BOXES,
    "int8_io": _INT8_BOXES,
}
"""By format. Which of two boxes that lie on each other is suppressed is decided by the last digits of
their scores, so detections agree less than anchors do."""


class Detected(NamedTuple):
    """Detections of one image, the surest first."""

    boxes: Doubles
    """[k, 4]: x0, y0, x1, y1."""
    scores: Doubles
    """[k]"""
    labels: npt.NDArray[np.int64]
    """[k]"""


@dataclass(frozen=True, kw_only=True)
class BoxParity:
    """A detector's file against the module."""

    kind: str
    """The format, a key of :data:`BOX_TOLERANCES`."""
    images: int
    within: float
    """Share of the anchors whose box and scores are within the tolerance, 0 to 1."""
    lowest: float
    """Lowest intersection over union of an anchor's box with the module's; 0 where one is not finite."""
    largest: float
    """Largest difference of a score; infinite where one is not finite."""
    detections: int
    """Of the module, on all images."""
    agreement: float
    """Share of the detections of both that both have; 1 where there is none."""

    @property
    def tolerance(self) -> BoxTolerance:
        """What is allowed."""
        return BOX_TOLERANCES[self.kind]

    @property
    def ok(self) -> bool:
        """Whether the file is within the tolerance of its format."""
        return self.within >= self.tolerance.share and self.agreement >= self.tolerance.agreement

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an infinite difference is None."""
        return _plain(self)

    def __str__(self) -> str:
        return (
            f"{self.within:.1%} of the anchors are within the tolerance, "
            f"{self.agreement:.1%} of the detections are in both"
        )


def box_parity(
    kind: str, module: tuple[npt.ArrayLike, npt.ArrayLike], file: tuple[npt.ArrayLike, npt.ArrayLike],
    detections: tuple[Sequence[Detected], Sequence[Detected]],
) -> BoxParity:  # fmt: skip
    """Compare a detector's file with the module on the same images.

    Args:
        kind: a key of :data:`BOX_TOLERANCES`.
        module, file: boxes ``[n, A, 4]`` (x0, y0, x1, y1) and scores ``[n, A, k]`` of every anchor.
        detections: of each image, the module's and the file's.

    Raises:
        InputError: an unknown format.
    """
    if kind not in BOX_TOLERANCES:
        raise unknown("format", kind, BOX_TOLERANCES)
    (boxes, scores), (found, likely) = (
        tuple(np.asarray(part, np.float64) for part in pair) for pair in (module, file)
    )
    if boxes.shape != found.shape or scores.shape != likely.shape or not boxes.size:
        raise ValueError(f"boxes and scores of {boxes.shape}, {scores.shape} and {found.shape}, {likely.shape}")
    limits = BOX_TOLERANCES[kind]
    iou = _finite_iou(boxes, found)
    off = np.where(np.isfinite(likely), np.abs(likely - scores), np.inf).max(-1)
    pairs = list(zip(*detections, strict=True))
    count = sum(len(ours.scores) + len(theirs.scores) for ours, theirs in pairs)
    same = sum(_both(ours, theirs, limits) for ours, theirs in pairs)
    return BoxParity(
        kind=kind, images=len(boxes), lowest=float(iou.min()), largest=float(off.max()),
        within=float(((iou >= limits.iou) & (off <= limits.score)).mean()),
        detections=sum(len(ours.scores) for ours, _ in pairs),
        agreement=2 * same / count if count else 1.0,
    )  # fmt: skip


def _finite_iou(boxes: Doubles, others: Doubles) -> Doubles:
    """Of boxes in pairs, ``[..., 4]`` each."""
    low, high = np.maximum(boxes[..., :2], others[..., :2]), np.minimum(boxes[..., 2:], others[..., 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    whole = sum((b[..., 2:] - b[..., :2]).prod(-1) for b in (boxes, others)) - shared
    # A box without any area is its own equal.
    equal = (boxes == others).all(-1)
    iou = np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)
    return np.where(equal, 1.0, np.nan_to_num(iou, nan=0.0))


def _both(ours: Detected, theirs: Detected, limits: BoxTolerance) -> int:
    """How many detections of an image have their equal on the other side, each but one."""
    free, count = np.ones(len(theirs.scores), bool), 0
    for box, score, label in zip(*ours, strict=True):
        iou = _finite_iou(np.broadcast_to(box, theirs.boxes.shape), theirs.boxes)
        fits = free & (theirs.labels == label) & (np.abs(theirs.scores - score) <= limits.score)
        iou = np.where(fits, iou, -1.0)
        if len(iou) and iou.max() >= limits.iou:
            free[iou.argmax()], count = False, count + 1
    return count


# ---- labels of pixels

_EXACT_LABELS = 0.999
LABEL_TOLERANCES = {
    "float32": _EXACT_LABELS, "onnx": _EXACT_LABELS, "pt2": _EXACT_LABELS, "executorch": _EXACT_LABELS,
    "float16": 0.99, "dynamic": 0.9, "int8": 0.8, "int8_io": 0.8,
}  # fmt: skip
"""By format: least share of the pixels, of all images, with the module's label."""


@dataclass(frozen=True, kw_only=True)
class LabelParity:
    """A segmenter's file against the module."""

    kind: str
    """The format, a key of :data:`LABEL_TOLERANCES`."""
    images: int
    agreement: float
    """Share of the pixels with the same label, 0 to 1."""
    lowest: float
    """That of the image where it is lowest."""

    @property
    def ok(self) -> bool:
        """Whether the file is within the tolerance of its format."""
        return self.agreement >= LABEL_TOLERANCES[self.kind]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        limits = {"agreement": LABEL_TOLERANCES[self.kind]}
        return {**asdict(self), "tolerance": limits, "ok": self.ok}

    def __str__(self) -> str:
        return f"{self.agreement:.2%} of the pixels have the same label"


def label_parity(
    kind: str, module: Sequence[npt.NDArray[Any]], file: Sequence[npt.NDArray[Any]]
) -> LabelParity:
    """Compare label maps ``[h, w]`` of the same images, the module's and the file's.

    Raises:
        InputError: an unknown format.
    """
    if kind not in LABEL_TOLERANCES:
        raise unknown("format", kind, LABEL_TOLERANCES)
    if [one.shape for one in module] != [one.shape for one in file] or not len(module):
        raise ValueError("label maps of different sizes, or none")
    same = [ours == theirs for ours, theirs in zip(module, file, strict=True)]
    return LabelParity(
        kind=kind, images=len(same), lowest=float(min(one.mean() for one in same)),
        agreement=float(sum(one.sum() for one in same) / sum(one.size for one in same)),
    )  # fmt: skip
