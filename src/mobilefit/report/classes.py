"""What a network makes of each class: the confusion matrix as tables, words and a picture."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mobilefit.report import detection, segmentation, units
from mobilefit.report.bench import columns
from mobilefit.report.measures import task_of
from mobilefit.report.tables import Row

Counts = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float64]

MAX_NUMBERS = 24
"""Classes up to which the matrix is a table of numbers; above, it is a picture."""
MAX_MATRIX = 100
"""Classes in the picture: of more, those with the most mistakes."""
WORST = 12
"""Confusions that are told in words, and classes that are shown unfolded."""
CELLS = 860
"""Side of the picture's cells together."""
LONGEST = 26
"""Characters of a name in the picture."""


@dataclass(frozen=True, kw_only=True)
class Class:
    """One class on the test images.

    Attributes:
        images: of the test set; training: of the training set; ``None``: not recorded.
        recall: share of its images that are right; precision: share right of those taken for it.
        taken_for: the class that most of its other images were taken for, and their share of all of them.
    """

    name: str
    images: int | None = None
    training: int | None = None
    recall: float | None = None
    precision: float | None = None
    taken_for: tuple[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A class taken for another one: so many images, and their share of the true class."""

    true: str
    predicted: str
    images: int
    share: float

    def __str__(self) -> str:
        return f"{self.true} taken for {self.predicted} {units.share(self.share)}"


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Rows are the true classes, columns the predicted ones; both in an order of likeness.

    Attributes:
        names, counts, shares: the classes shown, images, and images by those of the row.
        left_out: classes that are not shown.
        worst: the most frequent mistakes of all classes.
    """

    names: list[str]
    counts: Counts
    shares: Shares
    left_out: int
    worst: list[Mistake]

    @property
    def rows(self) -> list[tuple[str, float | None, list[tuple[int, float]]]]:
        """(class, its share right or ``None``, cells of (images, share of the row))."""
        return [
            (name, float(shares[i]) if counts.sum() else None, list(zip(counts.tolist(), shares.tolist())))
            for i, (name, counts, shares) in enumerate(zip(self.names, self.counts, self.shares))
        ]


def matrix(record: Row) -> tuple[list[str], Counts] | None:
    """Class names and the K x K counts of ``record["final"]``; ``None`` where there are none."""
    rows = (record.get("final") or {}).get("confusion")
    if not rows:
        return None
    counts = np.asarray(rows)
    if counts.dtype.kind not in "iu" or counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError("the confusion matrix is no square of whole numbers")
    names = (record.get("data") or {}).get("classes") or ()
    found = list(map(str, names)) if len(names) == len(counts) else list(map(str, range(len(counts))))
    return found, counts.astype(np.int64)


def confusion(
    names: Sequence[str], counts: Counts, most: int = MAX_MATRIX, *, by_share: bool = False
) -> Confusion:
    """The matrix of the ``most`` classes with the most mistakes, those confused with each other together.

    Args:
        by_share: as of :func:`mistakes`.
    """
    wrong = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
    shown = np.sort(np.argsort(-wrong, kind="stable")[:most])
    shares = _shares(counts)
    part = shares[np.ix_(shown, shown)]
    shown = shown[order(part + part.T)]
    return Confusion(
        names=[names[i] for i in shown], counts=counts[np.ix_(shown, shown)],
        shares=shares[np.ix_(shown, shown)], left_out=len(names) - len(shown),
        worst=mistakes(names, counts, by_share=by_share),
    )  # fmt: skip


def _shares(counts: Counts) -> Shares:
    """Counts by the images of their row; 0 where it has none."""
    found: Shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return found


def order(likeness: Shares) -> list[int]:
    """Places of [K, K] so that what is alike stands together: average linkage, the likest ends joined."""
    groups = [[place] for place in range(len(likeness))]
    near = likeness.astype(np.float64)
    np.fill_diagonal(near, -1)
    while len(groups) > 1:
        a, b = sorted(divmod(int(near.argmax()), len(groups)))
        merged = np.average(near[[a, b]], axis=0, weights=[len(groups[a]), len(groups[b])])
        near[a] = near[:, a] = merged
        near[a, a] = -1
        near = np.delete(np.delete(near, b, 0), b, 1)
        groups[a] = _joined(groups[a], groups.pop(b), likeness)
    return groups[0]


def _joined(one: list[int], other: list[int], likeness: Shares) -> list[int]:
    ways = [(a, b) for a in (one, one[::-1]) for b in (other, other[::-1])]
    a, b = max(ways, key=lambda way: likeness[way[0][-1], way[1][0]])
    return [*a, *b]


def mistakes(
    names: Sequence[str], counts: Counts, most: int = WORST, *, by_share: bool = False
) -> list[Mistake]:
    """The most frequent confusions.

    Args:
        by_share: of the true class, and not by how many they are: of pixels, large classes have all.
    """
    shares, wrong = _shares(counts), counts.copy()
    np.fill_diagonal(wrong, 0)
    np.fill_diagonal(shares, 0)
    found = []
    for place in np.argsort(-(shares if by_share else wrong), axis=None, kind="stable")[:most]:
        i, j = divmod(int(place), len(names))
        if wrong[i, j]:
            found.append(Mistake(true=names[i], predicted=names[j], images=int(wrong[i, j]),
                                 share=float(shares[i, j])))  # fmt: skip
    return found


def table(record: Row) -> list[Class]:
    """Each class as far as it is recorded, that with the smallest share right first."""
    found = matrix(record)
    data = record.get("data") or {}
    training = (data.get("counts") or {}).get("train") or ()
    names = found[0] if found else [str(name) for name in data.get("classes") or ()]
    many = [int(n) for n in training] if len(training) == len(names) else [None] * len(names)
    if found is None:
        rows = [Class(name=name, training=n) for name, n in zip(names, many) if n is not None]
        return sorted(rows, key=lambda row: row.training or 0)
    rows = [_class(names, found[1], i, many[i]) for i in range(len(names))]
    return sorted(rows, key=lambda row: math.inf if row.recall is None else row.recall)


def _class(names: Sequence[str], counts: Counts, i: int, training: int | None) -> Class:
    images, taken = int(counts[i].sum()), int(counts[:, i].sum())
    right = int(counts[i, i])
    others = counts[i].copy()
    others[i] = 0
    most = int(others.argmax())
    return Class(
        name=names[i], images=images, training=training, recall=right / images if images else None,
        precision=right / taken if taken else None,
        taken_for=(names[most], int(others[most]) / images) if others[most] else None,
    )  # fmt: skip


def balance(rows: Sequence[Class]) -> str | None:
    """How evenly the training images, or else those of the test set, are spread over the classes."""
    known = [(row.training, row.name) for row in rows if row.training is not None]
    what = "training images"
    if not known:
        known, what = [(row.images, row.name) for row in rows if row.images is not None], "test images"
    if not known:
        return None
    (least, small), (most, large) = min(known), max(known)
    if least == most:
        return f"{units.count(least)} {what} in every class."
    times = f", {most / least:.1f} times as many" if least else ""
    return f"From {units.count(least)} {what} ({small}) to {units.count(most)} ({large}){times}."


def class_table(record: Row, most: int = WORST) -> str:
    """The weakest classes, and the largest confusions, as text for a terminal."""
    of_task = {"detect": detection.class_table, "segment": segmentation.class_table}.get(task_of(record))
    if of_task is not None:
        return of_task(record, most)
    found = matrix(record)
    if found is None:
        return ""
    rows = table(record)
    head = ("class", "right", "precision", "images", "most of the rest taken for")
    cells = [(row.name, units.share(row.recall), units.share(row.precision), units.count(row.images),
              f"{row.taken_for[0]} {units.share(row.taken_for[1])}" if row.taken_for else "")
             for row in rows[:most]]  # fmt: skip
    lines = [columns([head, *cells], left=(0, 4))]
    if len(rows) > most:
        lines.append(f"and {len(rows) - most} classes with more right")
    return "\n".join(lines)


# ---- the picture


def strength(share: float, right: bool) -> float:
    """Opacity of a cell: in proportion for what is right, by the root for mistakes, of which few count."""
    return 0.06 + 0.5 * share if right else min(0.6, 0.04 + 0.8 * math.sqrt(share))


LEGEND = {
    "right": [(share, strength(share, True)) for share in (0.25, 0.5, 0.75, 1.0)],
    "wrong": [(share, strength(share, False)) for share in (0.01, 0.05, 0.1, 0.25, 0.5)],
}
"""Shares and opacities that explain the shades."""


def figure(found: Confusion) -> str:
    """The matrix as an SVG element of the page: a square a cell, with its numbers when pointed at."""
    side = CELLS / len(found.names)
    size = min(11.0, side)
    names = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in found.names]
    room = round(0.6 * size * max(map(len, names))) + 10
    root = ET.Element("svg", {
        "xmlns": "http://www.w3.org/2000/svg", "viewBox": f"{-room} {-room} {room + CELLS} {room + CELLS}",
        "class": "heat", "role": "img", "aria-label": "confusion matrix", "style": f"font-size: {size:.1f}px",
    })  # fmt: skip
    ET.SubElement(root, "rect", {"width": str(CELLS), "height": str(CELLS), "class": "frame"})
    for place, name in enumerate(names):
        middle = f"{(place + 0.5) * side:.1f}"
        _name(root, name, {"x": "-5", "y": middle, "class": "end"})
        _name(root, name, {"transform": f"translate({middle} -5) rotate(-90)"})
    for i, j in zip(*np.nonzero(found.counts)):
        _cell(root, found, int(i), int(j), side)
    return ET.tostring(root, encoding="unicode")


def _name(root: ET.Element, name: str, place: dict[str, str]) -> None:
    ET.SubElement(root, "text", place | {"dominant-baseline": "central"}).text = name


def _cell(root: ET.Element, found: Confusion, i: int, j: int, side: float) -> None:
    share, right = float(found.shares[i, j]), i == j
    cell = ET.SubElement(root, "rect", {
        "x": f"{j * side:.1f}", "y": f"{i * side:.1f}", "width": f"{side - 0.5:.1f}",
        "height": f"{side - 0.5:.1f}",
        "style": f"fill: rgb(var(--{'heat' if right else 'miss'}) / {strength(share, right):.2f})",
    })  # fmt: skip
    what = "right" if right else f"taken for {found.names[j]}"
    ET.SubElement(cell, "title").text = (
        f"{found.names[i]} {what}: {units.share(share)} ({units.count(int(found.counts[i, j]))})"
    )
