"""A training in the report: its curves, what it came to, and how it was done."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mobilefit.report import drawing, measures, plots, units
from mobilefit.report.plots import Marks
from mobilefit.report.tables import Row


def section(record: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """What the template shows of one training.

    Args:
        record: the run's record, empty for one that is not finished.
        rows: its ``metrics.jsonl``.
    """
    marks = marks_of(record, rows)
    drawn = plots.training_figures(rows, marks)
    return {
        "panels": [drawing.inline(figure) for figure in drawn],
        "facts": facts(record, rows, marks),
        "best": marks.best is not None,
        "resumed": bool(marks.resumed),
    }


def marks_of(record: Row, rows: Sequence[Row]) -> Marks:
    """The best validation and the resumes; steps."""
    told = record.get("training") or {}
    best = (told.get("best") or {}).get("step")
    if units.number(best) is None:
        key = measures.validated(rows)
        found = [row for row in rows if units.number(row.get(key or "")) is not None]
        best = max(found, key=lambda row: row[key or ""], default={}).get("step")
    steps = [row.get("resumed") for row in rows] + list(told.get("resumed") or ())
    resumed = {step for value in steps if (step := units.number(value))}
    return Marks(best=units.number(best), resumed=tuple(sorted(resumed)))


def facts(record: Row, rows: Sequence[Row], marks: Marks) -> list[tuple[str, str]]:
    """(What, value) of a training; what is not known is left out."""
    told, last = record.get("training") or {}, rows[-1] if rows else {}
    epochs = units.number(last.get("epoch"))
    found = [
        ("steps", units.count(told.get("steps") or last.get("step"))),
        ("epochs", units.NONE if epochs is None else f"{epochs:.4g}"),
        ("best validation", _best(rows, marks)),
        ("the result", {"last": "the last weights", "best": "the best weights"}.get(
            str(told.get("result")), units.NONE)),
        ("images a second", units.count(rate(record, rows))),
        ("waiting for images", units.share(_mean(rows, "data_wait"))),
        ("started from", _start(record)),
        ("teacher", str(told.get("teacher") or units.NONE)),
        ("trained on", _place(told)),
    ]  # fmt: skip
    return [(what, value) for what, value in found if value != units.NONE]


def _best(rows: Sequence[Row], marks: Marks) -> str:
    row = next((row for row in rows if row.get("step") == marks.best), {})
    key = measures.validated([row])
    if marks.best is None or key is None:
        return units.NONE
    return f"{units.percent(row[key])} at step {units.count(marks.best)}"


def rate(record: Row, rows: Sequence[Row]) -> float | None:
    """Images a second: of the whole training, or else the rows' median."""
    told = units.number((record.get("training") or {}).get("images_per_second"))
    found = [value for row in rows if (value := units.number(row.get("images_per_s"))) is not None]
    return told or (statistics.median(found) if found else None)


def _mean(rows: Sequence[Row], key: str) -> float | None:
    found = [value for row in rows if (value := units.number(row.get(key))) is not None]
    return statistics.fmean(found) if found else None


def _start(record: Row) -> str:
    """What the weights were before the training; ``None`` of a record that does not say."""
    config = record.get("config") or {}
    said = (record.get("training") or {}).get("weights") or config.get("weights")
    if said:
        return str(said)
    fresh = record.get("verb") == "train" and "weights" in config
    return f"fresh weights, seed {record.get('seed', 0)}" if fresh else units.NONE


def _place(told: Row) -> str:
    if not told.get("device"):
        return units.NONE
    several = units.number(told.get("processes")) or 1
    return f"{several:.0f} × {told['device']}" if several > 1 else str(told["device"])


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A field of the recipe, and what the named recipe has where that differs."""

    name: str
    value: str
    named: str | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A recipe as a table.

    Attributes:
        name, source: of the named recipe it was made from; may be empty.
        changed, others: its fields, those that differ from the named recipe apart.
    """

    name: str
    source: str
    changed: list[Setting]
    others: list[Setting]


def settings(record: Row) -> Settings | None:
    """``record["recipe"]`` beside ``record["named_recipe"]``; ``None`` where there is none.

    Without the latter it is told what was given on the command line.
    """
    recipe = record.get("recipe") or {}
    if not recipe:
        return None
    named: Mapping[str, Any] = record.get("named_recipe") or {}
    given = {} if named else {k: v for k, v in (record.get("config") or {}).items() if v is not None}
    changed, others = list[Setting](), list[Setting]()
    for key, value in recipe.items():
        if key in ("name", "source"):
            continue
        differs = key in given or (key in named and named[key] != value)
        old = _value(named[key]) if differs and key in named else None
        row = Setting(name=key.replace("_", " "), value=_value(value), named=old)
        (changed if differs else others).append(row)
    return Settings(name=str(recipe.get("name") or ""), source=str(recipe.get("source") or ""),
                    changed=changed, others=others)  # fmt: skip


def _value(value: Any) -> str:
    if value is None:
        return units.NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
