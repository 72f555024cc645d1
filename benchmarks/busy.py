"""Training beside other work: all threads against as many as are fastest, on a quiet and on a busy machine.

    python -m benchmarks.busy

V3-Small at 96 px, batches of 32, alone and beside one and three processes that do nothing but compute. Needs a
machine that does nothing else; under eight minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mobilefit as mf
from benchmarks.common import ROOT, header
from mobilefit.cores import usage
from mobilefit.data import ImageSet, Preset
from mobilefit.data.images import ArraySource
from mobilefit.runs import write_atomic, write_json
from mobilefit.train import Stepper, recipe
from mobilefit.train.threads import USER_SETTINGS

FIXED, ADAPTIVE = "fixed", "adaptive"
RESOLUTION, BATCH = 96, 32
WARM_UP_SECONDS = 3.0
RECOVERY_SECONDS = 20.0
"""How long the training is watched for a change of threads when the load comes or goes."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """Processes beside the training."""

    name: str
    processes: int
    target: float
    """Adaptive images a second by what the quiet machine does with fixed threads, at least."""
    share: float
    """Of the pairs of pieces: a step with fixed threads takes ten seconds beside three processes."""


LOADS = (
    Load(name="quiet", processes=0, target=0.98, share=1.0),
    Load(name="one busy process", processes=1, target=0.45, share=0.3),
    Load(name="three busy processes", processes=3, target=0.2, share=0.15),
)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Steps in a row."""

    images: int
    seconds: float

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Within the block so many processes compute."""
    command = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def stepper(threads: int | None) -> Stepper:
    """A training on noise."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 255, (32 * BATCH, RESOLUTION, RESOLUTION)).astype(np.uint8)
    labels = np.arange(len(pixels)) % 10
    images = ImageSet(ArraySource(pixels, [str(number) for number in range(len(pixels))]), labels)
    torch.manual_seed(0)
    network = mf.build(mf.spec("mobilenet_v3_small").resolution(RESOLUTION).classes(10))
    return Stepper(
        network, images, preset=Preset(resolution=RESOLUTION, crop_fraction=1.0), accelerator="cpu",
        recipe=replace(recipe("fast"), batch_size=BATCH), steps=1_000_000, threads=threads,
    )  # fmt: skip


def train(training: Stepper, seconds: float) -> Piece:
    """Train for so long, one step at least."""
    began, steps = time.perf_counter(), 0
    while steps == 0 or time.perf_counter() - began < seconds:
        training.step()
        steps += 1
    return Piece(images=steps * BATCH, seconds=time.perf_counter() - began)


def seconds_until(training: Stepper, fewer: bool, most: int) -> float | None:
    """Train until the number of threads has changed; ``None``: it has not."""
    began = time.perf_counter()
    while time.perf_counter() - began < RECOVERY_SECONDS:
        training.step()
        if (training.threads < most) == fewer:
            return time.perf_counter() - began
    return None


def measure(load: Load, trainings: dict[str, Stepper], pairs: int, seconds: float) -> dict[str, Any]:
    """Both trainings in turns beside a load, and how fast the number of threads follows it."""
    adaptive, most = trainings[ADAPTIVE], torch.get_num_threads()
    train(adaptive, WARM_UP_SECONDS)
    pieces: dict[str, list[Piece]] = {name: [] for name in trainings}
    with busy_processes(load.processes):
        reaction = seconds_until(adaptive, fewer=True, most=most) if load.processes else None
        train(adaptive, 1.0)  # to the end of the trial
        for number in range(pairs):
            for name, training in list(trainings.items())[:: 1 if number % 2 else -1]:
                pieces[name].append(train(training, seconds))
    recovery = seconds_until(adaptive, fewer=False, most=most) if load.processes else None
    rates = {name: sum(p.images for p in each) / sum(p.seconds for p in each) for name, each in pieces.items()}
    ratios = [a.rate / f.rate for a, f in zip(pieces[ADAPTIVE], pieces[FIXED], strict=True)]
    return {
        "load": load.name, "processes": load.processes, "target": load.target, "rates": rates,
        "adaptive_by_fixed": statistics.median(ratios), "pairs": pairs, "reaction_s": reaction, "recovery_s": recovery,
    }  # fmt: skip


def judge(rows: list[dict[str, Any]]) -> None:
    """Add to each row its share of the quiet machine's fixed speed, and whether that is enough."""
    quiet = rows[0]["rates"][FIXED]
    for row in rows:
        row["of_quiet"] = {name: rate / quiet for name, rate in row["rates"].items()}
        reached = row["of_quiet"][ADAPTIVE] if row["processes"] else row["adaptive_by_fixed"]
        row["met"] = reached >= row["target"]


def table(rows: list[dict[str, Any]], head: dict[str, Any], warning: str | None) -> str:
    """The page."""
    def seconds(value: float | None) -> str:
        return "" if value is None else f"{value:.1f}"

    machine = head["machine"]
    lines = [
        "# Training beside other work", "", f"{head['protocol']}.", "",
        f"{machine['cpu']}, {machine['cores']} cores, torch {machine['packages']['torch']}, {machine['date']}.", "",
        *([f"**Not a quiet machine at the start: {warning}.**", ""] if warning else []),
        "| load | fixed, images/s | adaptive, images/s | fixed / quiet | adaptive / quiet | adaptive / fixed | target | met | reaction, s | recovery, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        rates, shares = row["rates"], row["of_quiet"]
        target = f"{'adaptive / quiet' if row['processes'] else 'adaptive / fixed'} at least {row['target']}"
        lines.append(
            f"| {row['load']} | {rates[FIXED]:.0f} | {rates[ADAPTIVE]:.0f} | {shares[FIXED]:.2f} | {shares[ADAPTIVE]:.2f} "
            f"| {row['adaptive_by_fixed']:.2f} | {target} | {'yes' if row['met'] else '**no**'} "
            f"| {seconds(row['reaction_s'])} | {seconds(row['recovery_s'])} |"
        )
    return "\n".join([*lines, ""])


def main(arguments: list[str] | None = None) -> None:
    """Measure under each load and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=30, help="of pieces on the quiet machine; fewer beside others")
    parser.add_argument("--seconds", type=float, default=2.5, help="of a piece, one step at least")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks")
    options = parser.parse_args(arguments)
    if set_by_user := [name for name in USER_SETTINGS if name in os.environ]:
        parser.error(f"{set_by_user[0]} is set, and so nothing adapts; unset it")
    if torch.get_num_threads() == 1:
        parser.error("torch has one thread here, so there is nothing to adapt")
    sample = usage(1.0)
    warning = None if sample is None else sample.message
    trainings = {FIXED: stepper(torch.get_num_threads()), ADAPTIVE: stepper(None)}
    for training in trainings.values():
        train(training, WARM_UP_SECONDS)
    rows = [measure(load, trainings, max(1, round(load.share * options.pairs)), options.seconds) for load in LOADS]
    judge(rows)
    protocol = (
        f"MobileNetV3-Small at {RESOLUTION} px, batch {BATCH}, recipe fast on noise, {torch.get_num_threads()} threads: "
        f"always (fixed), or as the training chooses (adaptive); in turns, {options.seconds} s and one step at least "
        "each, in one process; images a second over all pieces, adaptive / fixed the median of the pairs; a busy process "
        "is an endless loop in Python; reaction and recovery: until the number of threads first changes when the load "
        "comes, and is back when it has gone, which the rates leave out"
    )
    head = header(protocol)
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "busy.json", {**head, "warning": warning, "rows": rows})
    text = table(rows, head, warning)
    write_atomic(options.out / "busy.md", text)
    print(text)


if __name__ == "__main__":
    main()
