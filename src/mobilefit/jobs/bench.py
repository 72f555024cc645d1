"""Latency of files, side by side."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from mobilefit import device
from mobilefit.device import Latency, Protocol
from mobilefit.jobs.lab import check_positive
from mobilefit.jobs.model import naming, read_file
from mobilefit.jobs.options import option
from mobilefit.runs import write_atomic


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Options of ``mobilefit bench``."""

    files: tuple[Path, ...] = option(help=".tflite files", argument=True)
    threads: int = option(1, help="of the interpreter; one is pinned to a core")
    core: int | None = option(None, help="which core (default: the last one)")
    csv: Path | None = option(None, help="write the figures to this file")


def bench(config: BenchConfig) -> list[Latency]:
    """Measure LiteRT files in turns, so that their ratios can be trusted, and print a table.

    Raises:
        InputError: a file that is missing, damaged or does not load.
    """
    check_positive(threads=config.threads)
    blobs = [read_file(path) for path in config.files]
    partitions = []
    for path, blob in zip(config.files, blobs, strict=True):
        with naming(path):
            partitions.append(device.shared_worker().inspect(blob).partitions)
    found = device.measure_many(blobs, Protocol(threads=config.threads, core=config.core))
    rows = [
        {
            "file": str(path), "median_ms": round(latency.median_ms, 5),
            "p10_ms": round(latency.p10_ms, 5), "p90_ms": round(latency.p90_ms, 5),
            "ratio": round(latency.median_ms / found[0].median_ms, 4), "runs": latency.runs,
            "stable": latency.stable, "partitions": count, "bytes": len(blob),
            "threads": latency.threads, "core": latency.core, "device": latency.device,
            "date": latency.date,
        }
        for path, blob, latency, count in zip(config.files, blobs, found, partitions, strict=True)
    ]  # fmt: skip
    shown = ("file", "median_ms", "p10_ms", "p90_ms", "ratio", "runs", "stable", "partitions")
    print(_table([shown, *(tuple(str(row[key]) for key in shown) for row in rows)]))
    if config.csv is not None:
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(config.csv, text.getvalue())
    return found


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        for row in rows
    )
