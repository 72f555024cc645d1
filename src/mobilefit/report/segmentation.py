"""A segmenter's result in the report: the intersection over union of each class."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from mobilefit.palette import colours, hexadecimal
from mobilefit.report import units
from mobilefit.report.bench import columns
from mobilefit.report.measures import Row, task_of

SHOWN = 12
"""Classes in a terminal's table."""
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(frozen=True, kw_only=True)
class Class:
    """One class on the test images; ``None``: not recorded, or no pixel.

    Attributes:
        iou: intersection over union; accuracy: share of its pixels that are right.
        part: its share of the labelled pixels; training: the same in the training set.
        colour: in which it is drawn.
    """

    name: str
    iou: float | None
    accuracy: float | None
    part: float | None
    training: float | None
    colour: str


def table(record: Row) -> list[Class]:
    """Each class, that with the lowest IoU first; empty of a record that is no segmenter's."""
    rows = _rows(record)
    pixels = [units.number(row.get("pixels")) or 0.0 for row in rows]
    trained = ((record.get("data") or {}).get("pixels") or {}).get("train") or ()
    training = [float(n) for n in trained[: len(rows)]]  # ignored ones come last
    shares = _parts(training) if len(training) == len(rows) else [None] * len(rows)
    found = [
        Class(name=str(row.get("class") or i), iou=units.number(row.get("iou")),
              accuracy=units.number(row.get("accuracy")), part=part, training=shares[i], colour=colour)
        for i, (row, part, colour) in enumerate(zip(rows, _parts(pixels), class_colours(record)))
    ]  # fmt: skip
    return sorted(found, key=lambda row: math.inf if row.iou is None else row.iou)


def _rows(record: Row) -> list[Row]:
    final = record.get("final") or {}
    return list(final.get("per_class") or ()) if task_of(record) == "segment" else []


def _parts(numbers: list[float]) -> list[float | None]:
    whole = sum(numbers)
    return [number / whole if whole else None for number in numbers]


def class_colours(record: Row) -> list[str]:
    """What the classes are drawn in, ``#rrggbb``: the record's, or the fixed ones."""
    usual = [hexadecimal(colour) for colour in colours(len(_rows(record)))]
    said = [str(colour) for colour in (record.get("final") or {}).get("colours") or ()]
    good = len(said) == len(usual) and all(_COLOUR.fullmatch(colour) for colour in said)
    return said if good else usual


def section(record: Row) -> dict[str, Any] | None:
    """What the template shows of a segmenter; ``None`` of a record that is none's."""
    rows, final = table(record), record.get("final") or {}
    if not rows:
        return None
    legend = [(str(row.get("class") or i), colour) for i, (row, colour) in
              enumerate(zip(_rows(record), class_colours(record)))]  # fmt: skip
    return {
        "rows": rows,
        "facts": facts(final),
        "legend": legend,
        "trained": any(row.training is not None for row in rows),
        "pictures": final.get("pictures") or {},
    }


def facts(final: Row) -> list[tuple[str, str]]:
    """(What, value) of all classes together; what is not known is left out."""
    counts = final.get("counts") or {}
    found = [
        ("mIoU", units.share(final.get("miou"))),
        ("pixels right", units.share(final.get("pixel_accuracy"))),
        ("mean over the classes", units.share(final.get("class_accuracy"))),
        ("labelled pixels", units.count(counts.get("pixels"))),
    ]
    return [(what, value) for what, value in found if value != units.NONE]


def class_table(record: Row, most: int = SHOWN) -> str:
    """The classes with the lowest IoU, as text for a terminal."""
    rows = table(record)
    if not rows:
        return ""
    head = ("class", "IoU", "right", "of all pixels")
    cells = [(row.name, units.share(row.iou), units.share(row.accuracy), units.share(row.part))
             for row in rows[:most]]  # fmt: skip
    lines = [columns([head, *cells], left=(0,))]
    if len(rows) > most:
        lines.append(f"and {len(rows) - most} classes with a higher IoU")
    return "\n".join(lines)
