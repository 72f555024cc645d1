"""A detector's result in the report: precision against recall, each class, in figures and words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke

from mobilefit.palette import colours, hexadecimal
from mobilefit.report import drawing, units
from mobilefit.report.bench import columns
from mobilefit.report.drawing import COLOURS, LABEL_SIZE, STYLE
from mobilefit.report.measures import Row, task_of

MAX_NAMED = 7
"""Curves that have names and colours; of more classes, the best and the worst ones."""
ENDS = 3
"""How many of the best, and of the worst."""
SHOWN = 12
"""Classes in a terminal's table."""
LONGEST = 22
"""Characters of a name beside a curve."""


@dataclass(frozen=True, kw_only=True)
class Class:
    """One class on the test images; ``None``: not recorded, or nothing to find.

    Attributes:
        index: its place among the classes.
        ap50, ap: average precision at IoU 0.5 and over 0.5 to 0.95.
        truths, found, false: its boxes; those found, and detections of nothing, at the record's score.
        training: its boxes in the training set.
        curve: precision at recalls 0, 0.01 ... 1.
    """

    index: int
    name: str
    ap50: float | None
    ap: float | None
    truths: int
    found: int
    false: int
    training: int | None
    curve: tuple[float, ...] | None

    @property
    def recall(self) -> float | None:
        """Share of its boxes that are found."""
        return self.found / self.truths if self.truths else None

    @property
    def precision(self) -> float | None:
        """Share of its detections that are right."""
        return self.found / (self.found + self.false) if self.found + self.false else None

    @property
    def colour(self) -> str:
        """In which it is drawn."""
        return hexadecimal(colours(self.index + 1)[-1])


def table(record: Row) -> list[Class]:
    """Each class, that with the lowest AP@0.5 first; empty of a record that is no detector's."""
    final = record.get("final") or {}
    rows = (final.get("per_class") or ()) if task_of(record) == "detect" else ()
    curves = final.get("curves") or [None] * len(rows)
    training = ((record.get("data") or {}).get("counts") or {}).get("train") or ()
    many = [int(n) for n in training] if len(training) == len(rows) else [None] * len(rows)
    found = [_class(i, row, many[i], curves[i] if i < len(curves) else None) for i, row in enumerate(rows)]
    return sorted(found, key=lambda row: math.inf if row.ap50 is None else row.ap50)


def _class(index: int, row: Row, training: int | None, curve: Sequence[float] | None) -> Class:
    truths, found, false = (int(units.number(row.get(key)) or 0) for key in ("truths", "found", "false"))
    return Class(
        index=index, name=str(row.get("class") or index), ap50=units.number(row.get("ap50")),
        ap=units.number(row.get("ap")), truths=truths, found=found, false=false, training=training,
        curve=tuple(float(value) for value in curve) if curve else None,
    )  # fmt: skip


def section(record: Row) -> dict[str, Any] | None:
    """What the template shows of a detector; ``None`` of a record that is none's."""
    rows, final = table(record), record.get("final") or {}
    if not rows:
        return None
    drawn, counts = curves_figure(rows), final.get("counts") or {}
    return {
        "rows": rows,
        "facts": facts(final),
        "curves": drawing.inline(drawn) if drawn else None,
        "unnamed": sum(row.curve is not None for row in rows) > MAX_NAMED,
        "score": f"{units.number(counts.get('score')) or 0.5:g}",
        "most_training": max((row.training or 0 for row in rows), default=0),
        "pictures": final.get("pictures") or {},
    }


def facts(final: Row) -> list[tuple[str, str]]:
    """(What, value) of all classes together; what is not known is left out."""
    sizes, counts = final.get("by_size") or {}, final.get("counts") or {}
    boxes, hit = (units.number(counts.get(key)) for key in ("boxes", "found"))
    found = [
        ("mAP@0.5", units.share(final.get("map50"))),
        ("mAP@0.5:0.95", units.share(final.get("map"))),
        ("mAP@0.75", units.share(final.get("map75"))),
        *((f"{size} boxes", units.share(value)) for size, value in sizes.items()),
        ("boxes found", units.NONE if boxes is None or hit is None else f"{hit:,.0f} of {boxes:,.0f}"),
        ("false ones", units.count(counts.get("false"))),
    ]
    return [(what, value) for what, value in found if value != units.NONE]


def class_table(record: Row, most: int = SHOWN) -> str:
    """The classes with the lowest AP, as text for a terminal."""
    rows = table(record)
    if not rows:
        return ""
    head = ("class", "AP@0.5", "AP@0.5:0.95", "recall", "precision", "boxes")
    cells = [(row.name, units.share(row.ap50), units.share(row.ap), units.share(row.recall),
              units.share(row.precision), units.count(row.truths)) for row in rows[:most]]  # fmt: skip
    lines = [columns([head, *cells], left=(0,))]
    if len(rows) > most:
        lines.append(f"and {len(rows) - most} classes with a higher AP")
    return "\n".join(lines)


# ---- the figure


def curves_figure(rows: Sequence[Class]) -> bytes | None:
    """Precision against recall at an IoU of 0.5, each curve named at its end; ``None`` without any.

    A curve ends at the highest recall that is reached. A dot is where the detections of the record's
    score are.
    """
    drawn = [row for row in rows if row.curve is not None]
    if not drawn:
        return None
    named = drawn if len(drawn) <= MAX_NAMED else [*drawn[:ENDS], *drawn[-ENDS:]]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.9, 3.4), layout="constrained")
        axis = figure.subplots()
        axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        for row in drawn:
            if row not in named:
                axis.plot(*zip(*_reached(row)), lw=0.8, color=COLOURS["steps"], alpha=0.45)
        for row in named:
            _draw(axis, row)
        _name_ends(axis, named)
    return drawing.svg(figure, "precision-recall")


def _reached(row: Class) -> list[tuple[float, float]]:
    """The corners (recall, precision) up to the highest recall with any; at least the first point."""
    curve = row.curve or (0.0,)
    last = max((i for i, value in enumerate(curve) if value > 0), default=0)
    kept = [i for i in range(last + 1) if i in (0, last) or not curve[i - 1] == curve[i] == curve[i + 1]]
    return [(i / max(len(curve) - 1, 1), curve[i]) for i in kept]


def _draw(axis: Axes, row: Class) -> None:
    edge = [Stroke(linewidth=2.6, foreground=COLOURS["muted"]), Normal()]  # yellow is seen on white too
    axis.plot(*zip(*_reached(row)), lw=1.8, color=row.colour, path_effects=edge)
    if row.recall is not None and row.precision is not None:
        axis.plot([row.recall], [row.precision], "o", markersize=6, color=row.colour,
                  markeredgecolor=COLOURS["ink"], zorder=3, clip_on=False)  # fmt: skip


def _name_ends(axis: Axes, rows: Sequence[Class]) -> None:
    """Names in the right margin, in the order of the curves' ends, joined to them by thin lines."""
    ends = sorted(((_reached(row)[-1], row) for row in rows), key=lambda pair: (pair[0][1], pair[0][0]))
    heights = spread([y for (_, y), _ in ends], gap=0.066, top=1.0)
    for ((x, y), row), height in zip(ends, heights):
        name = row.name if len(row.name) <= LONGEST else f"{row.name[: LONGEST - 1]}…"
        axis.annotate(
            f"{name}  {units.share(row.ap50)}", (x, y), xytext=(1.04, height), va="center", ha="left",
            fontsize=LABEL_SIZE + 0.5, color=COLOURS["ink"], annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": COLOURS["steps"], "lw": 0.7, "shrinkA": 1, "shrinkB": 0},
        )  # fmt: skip


def spread(heights: Sequence[float], *, gap: float, top: float) -> list[float]:
    """Ascending heights moved apart to ``gap`` at least, none above ``top`` where there is room."""
    found: list[float] = []
    for height in heights:
        found.append(max(height, found[-1] + gap) if found else height)
    limit = top
    for i in reversed(range(len(found))):
        found[i] = min(found[i], limit)
        limit = found[i] - gap
    return found
