"""What the benchmarks share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobilefit.arch import NetSpec
from mobilefit.data import Preset
from mobilefit.device import device_id
from mobilefit.jobs import lab
from mobilefit.jobs.kinds import Data
from mobilefit.jobs.model import evaluate_file, export, int8_for_timing
from mobilefit.nn import Network
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


def int8_beside(
    reference: NetSpec, folder: Path, network: Network, data: Data, preset: Preset, *, seed: int
) -> tuple[Any, dict[str, Any]]:
    """How good a trained network's int8 file is, and how fast beside a reference's, timed in turns.

    Args:
        folder: with ``model_int8.tflite``, or the file is made of the network.

    Returns:
        The evaluation on the test images; and what every row of a design benchmark has: the network's name and
        multiply-adds, its share of the reference's latency, and that in milliseconds.
    """
    file = folder / "model_int8.tflite"
    blob = file.read_bytes() if file.exists() else export(network, data, preset, seed=seed).int8
    evaluation = evaluate_file(blob, data.test, preset)
    beside, own = lab.side_by_side([int8_for_timing(reference), blob])
    return evaluation, {
        "network": network.spec.name, "madds": network.spec.cost().madds,
        "share": own.median_ms / beside.median_ms, "reference_ms": beside.median_ms,
    }  # fmt: skip
