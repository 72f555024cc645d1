"""What a task's quality is called, and where records keep it.

A record's rows keep the number of every task as ``accuracy_float`` and ``accuracy_int8``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mobilefit.report import units

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A task's number."""

    name: str
    """In a sentence."""
    title: str
    """At the beginning of one."""
    key: str
    """Of a row of ``metrics.jsonl``."""
    validation: str
    """Over its curve."""


MEASURES = {
    "classify": Measure(name="accuracy", title="Accuracy", key="val_top1", validation="validation top-1"),
    "detect": Measure(name="mAP@0.5", title="mAP@0.5", key="val_map50", validation="validation mAP@0.5"),
    "segment": Measure(name="mIoU", title="mIoU", key="val_miou", validation="validation mIoU"),
}


def task_of(record: Row) -> str:
    """A key of :data:`MEASURES`: what the record says, or its network's head."""
    head = (record.get("final_spec") or {}).get("head") or {}
    said = (record.get("task"), (record.get("final") or {}).get("task"), head.get("task"))
    return next((str(task) for task in said if task in MEASURES), "classify")


def measure(record: Row) -> Measure:
    """That of the record's task."""
    return MEASURES[task_of(record)]


def validated(rows: Sequence[Row]) -> str | None:
    """The key that rows of ``metrics.jsonl`` have of a validation; ``None`` of none."""
    keys = [found.key for found in MEASURES.values()]
    return next((key for row in rows for key in keys if units.number(row.get(key)) is not None), None)
