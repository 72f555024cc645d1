"""What the benchmarks share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobilefit.device import device_id
from mobilefit.runs import machine

ROOT = Path(__file__).parents[1]


def header(protocol: str) -> dict[str, Any]:
    """What every result begins with: where, how and when it was measured."""
    return {"device": device_id(), "protocol": protocol, "machine": machine()}
