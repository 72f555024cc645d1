"""Latency of the family's networks side by side, in float32 and int8.

    python -m benchmarks.family
    python -m benchmarks.family --network lcnet mobilenet_v3_small --resolution 96 --rounds 3
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import mobilefit as mf
from benchmarks.common import ROOT, header
from benchmarks.latency import ROUND
from mobilefit import int8
from mobilefit.runs import write_atomic, write_json
from mobilefit.runtime import Worker, available_cores

TOP1 = {
    "lcnet": 71.32, "mobilenet_v3_small": 67.4, "mobilenetv4_conv_small": 73.8, "mobilenet_v3_large": 75.2,
    "efficientnet_lite0": 75.1, "mobilenetv4_conv_medium": 79.9,
}  # fmt: skip
"""Published ImageNet top-1 in per cent, at 224 px and V4-Medium at 256: arXiv 2109.15099 (Table 3), 1905.02244
(Table 3), 2404.10518 (Table 5), and the TPU repository's README of EfficientNet-Lite."""
REFERENCE = "mobilenet_v3_large"
PROTOCOL = (
    "one thread on one pinned core, batch 1; rounds, each in a new process, in which all files are timed in "
    "turns; of each round's medians the fastest counts, since other processes only slow a network down; random "
    "weights and ranges"
)


def files(spec: mf.NetSpec) -> dict[str, bytes]:
    """The float32 and the int8 file of a network."""
    torch.manual_seed(0)
    blob = mf.compile(mf.build(spec).eval(), (1, 3, *spec.image_shape))
    return {"float32": blob, "int8": int8.with_random_ranges(blob)}


def compare(names: list[str], resolution: int, rounds: int, core: int) -> dict[str, Any]:
    """Milliseconds, partitions, parameters and multiply-adds of each network."""
    specs = {name: mf.spec(name).resolution(resolution) for name in names}
    blobs = {(name, kind): blob for name, spec in specs.items() for kind, blob in files(spec).items()}
    medians: dict[tuple[str, str], list[float]] = {key: [] for key in blobs}
    for _ in range(rounds):
        with Worker() as worker:
            for key, samples in zip(blobs, worker.time_many(list(blobs.values()), core=core, rule=ROUND), strict=True):
                medians[key].append(samples.median)
    with Worker() as worker:
        partitions = {key: worker.inspect(blob).partitions for key, blob in blobs.items()}
    fastest = {key: min(times) for key, times in medians.items()}
    networks = [
        {
            "network": name, "params": spec.cost().params, "madds": spec.cost().madds, "top1": TOP1.get(name),
            "float32_ms": fastest[name, "float32"], "int8_ms": fastest[name, "int8"],
            "partitions": [partitions[name, "float32"], partitions[name, "int8"]],
            "rounds_ms": {kind: medians[name, kind] for kind in ("float32", "int8")},
        }
        for name, spec in specs.items()
    ]  # fmt: skip
    return {**header(PROTOCOL), "resolution": resolution, "rounds": rounds, "networks": networks}


def page(result: dict[str, Any]) -> Iterator[str]:
    """The lines of the page, the fastest int8 file first."""
    yield from (f"# The family at {result['resolution']} px", "")
    yield f"{result['device']}, {result['machine']['date']}. {result['protocol']}; {result['rounds']} rounds."
    rows = sorted(result["networks"], key=lambda row: float(row["int8_ms"]))
    reference = next((row for row in rows if row["network"] == REFERENCE), rows[0])
    yield from ("", "| network | parameters, M | multiply-adds, M | float32 ms | int8 ms | int8 / float32 | int8 / "
                f"{reference['network']} | partitions | published top-1, % |", "|" + "---|" * 9)  # fmt: skip
    for row in rows:
        top1 = "" if row["top1"] is None else f"{row['top1']:.1f}"
        yield (
            f"| {row['network']} | {row['params'] / 1e6:.2f} | {row['madds'] / 1e6:.0f} | {row['float32_ms']:.3f} | "
            f"{row['int8_ms']:.3f} | {row['int8_ms'] / row['float32_ms']:.3f} | "
            f"{row['int8_ms'] / reference['int8_ms']:.3f} | "
            f"{', '.join(map(str, row['partitions']))} | {top1} |"
        )
    yield from ("", "Published accuracies are of float32 at 224 px, of mobilenetv4_conv_medium at 256 px; sources are in "
                "`benchmarks/family.py`.", "")  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, and write it with the data."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", nargs="+", default=list(TOP1))
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks")
    options = parser.parse_args(arguments)
    result = compare(options.network, options.resolution, options.rounds, max(available_cores()))
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "family.json", result)
    text = "\n".join(page(result))
    write_atomic(options.out / "family.md", text)
    print(text)


if __name__ == "__main__":
    main()
