"""How well the latency lookup table predicts: against end-to-end measurements of random networks.

    python -m benchmarks.table
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

import mobilefit as mf
from benchmarks.common import ROOT, header
from mobilefit.adapt import groups
from mobilefit.arch import NetSpec
from mobilefit.device import LatencyTable, TableCheck
from mobilefit.device.table import PASSES
from mobilefit.runs import write_json

TARGET_ERROR = 0.05
TARGET_TAU = 0.9


def random_pattern(spec: NetSpec, dice: random.Random) -> NetSpec:
    """A network with every width group drawn in steps of 8, up to its own width.

    Expansions and bottlenecks shrink as NetAdapt lets them (:func:`mobilefit.adapt.groups`). To
    cover small and large networks alike, each network draws a floor first.
    """
    floor = dice.uniform(0.1, 0.9)
    for group in groups(spec):
        low = max(8, round(floor * group.width / 8) * 8)
        spec = group.shrunk(spec, dice.choice([*range(low, group.width, 8), group.width]))
    return spec


def evaluate(name: str, resolution: int, patterns: int, seed: int) -> dict[str, Any]:
    """Build a table and check it on random patterns that it has not seen."""
    spec = mf.spec(name).resolution(resolution)
    dice = random.Random(seed)
    specs = [random_pattern(spec, dice) for _ in range(patterns)]
    start = time.perf_counter()
    table = LatencyTable.build(spec)
    built = time.perf_counter()
    entries = len(table.rows)
    table.ensure(specs, f"{name} at {resolution}, rows")
    ensured = time.perf_counter()
    check = table.check(specs, f"{name} at {resolution}, networks")
    return {
        "network": name, "resolution": resolution, "seed": seed, "device": table.device,
        "build_seconds": round(built - start, 1),
        "seconds_per_entry": round((ensured - built) / max(1, len(table.rows) - entries), 3),
        "entries": len(table.rows), "offset_ms": table.offset, "scale": table.scale,
        "median_error": check.median_error, "kendall_tau": check.kendall_tau,
        "largest_error": max(abs(p - m) / m for p, m in check.pairs),
        "met": _met(check),
        "networks": [
            {"predicted_ms": p, "measured_ms": m, "spec": s.id}
            for (p, m), s in zip(check.pairs, specs)
        ],
    }  # fmt: skip


def _met(check: TableCheck) -> bool:
    return check.median_error <= TARGET_ERROR and check.kendall_tau >= TARGET_TAU


def main(arguments: list[str] | None = None) -> None:
    """Check the table at each resolution, print one line each, and write the data."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="mobilenet_v3_small")
    parser.add_argument("--resolution", type=int, nargs="+", default=[96, 224])
    parser.add_argument("--patterns", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "latency_table")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for resolution in options.resolution:
        result = evaluate(options.network, resolution, options.patterns, options.seed)
        write_json(options.out / f"{options.network}_{resolution}.json", header(PROTOCOL) | result)
        print(
            f"{options.network} at {resolution}: median error {result['median_error']:.1%}, "
            f"Kendall tau {result['kendall_tau']:.3f}, largest error {result['largest_error']:.1%}; "
            f"{result['entries']} entries, {result['seconds_per_entry']:.2f} s each"
        )


PROTOCOL = (
    "int8 LiteRT files, one thread on one pinned core, batch 1; medians; everything in turns with a "
    "fixed reference network and divided by how much slower than at first that was; networks end to "
    f"end in {PASSES} passes over all of them, the fastest pass counts; the table has not seen them"
)

if __name__ == "__main__":
    main()
