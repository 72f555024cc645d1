"""What the benchmarks share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobilefit.device import device_id
from mobilefit.runs import machine, write_json

ROOT = Path(__file__).parents[1]


def header(protocol: str) -> dict[str, Any]:
    """What every result begins with: where, how and when it was measured."""
    return {"device": device_id(), "protocol": protocol, "machine": machine()}


def write_row(results: Path, name: str, row: dict[str, Any]) -> None:
    """Keep what was measured under a name, in the folder ``rows`` of the results."""
    rows = results / "rows"
    rows.mkdir(parents=True, exist_ok=True)
    write_json(rows / f"{name}.json", row)
