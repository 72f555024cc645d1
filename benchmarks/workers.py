"""What a second worker is worth to a search by the proxy task: the same search with one and with two.

    python -m benchmarks.workers
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, header
from mobilefit.data import Preset, load
from mobilefit.runs import write_atomic
from mobilefit.search import (
    ProxyTask,
    Reward,
    SearchSettings,
    Space,
    Trial,
    search,
    space,
    strategy,
)
from mobilefit.search.cluster import ProxyOnRay
from mobilefit.train import recipe

WORKERS = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Load:
    """A search that is the same every time."""

    space: Space
    task: ProxyTask
    trials: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One search."""

    workers: int
    start_seconds: float
    """Until every worker has trained once."""
    seconds: float
    """The search itself."""
    rows: list[tuple[Any, ...]]
    """What it found: tokens and accuracy of every trial."""


def prepared(options: argparse.Namespace) -> Load:
    """The images, and the space at their size."""
    data = load("fashion-mnist", seed=options.seed)
    chosen = space(options.space).resolution(options.resolution).classes(len(data.classes))
    task = ProxyTask(
        train_set=data.train, held_out=data.holdout.balanced(50, options.seed),
        preset=Preset(resolution=options.resolution, crop_fraction=1.0),
        recipe=replace(recipe("fast"), batch_size=32), steps=options.steps, seed=options.seed,
    )  # fmt: skip
    return Load(space=chosen, task=task, trials=options.trials, seed=options.seed)


def timed(load: Load, workers: int) -> Timing:
    """One search on a Ray of its own."""
    evaluator = ProxyOnRay(load.task, workers=workers)
    smallest = load.space.smallest()
    warm = [Trial(number=n, tokens=smallest, spec=load.space.spec(smallest)) for n in range(2 * workers)]
    began = time.perf_counter()
    list(evaluator.evaluate(warm))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = search(
            load.space, strategy("random", load.space.sizes, load.seed), evaluator,
            lambda specs: [1.0] * len(specs), Reward(form="soft", target_ms=1.0),
            SearchSettings(strategy="random", trials=load.trials, batch=load.trials, seed=load.seed),
            Path(folder),
        )  # fmt: skip
    ended = time.perf_counter()
    evaluator.close()
    rows = [(tuple(row["tokens"]), row["accuracy"]) for row in found.log.in_order()]
    return Timing(workers=workers, start_seconds=started - began, seconds=ended - started, rows=rows)


def report(timings: list[Timing], protocol: str) -> str:
    """The table."""
    head = header(protocol)
    lines = ["# Workers of a search by the proxy task", "", f"{protocol}.", ""]
    machine = head["machine"]
    lines += [f"Device: {head['device']}, {machine['cores']} cores. Date: {machine['date']}.", ""]
    lines += ["| round | workers | start, s | search, s |", "|---|---|---|---|"]
    for number, timing in enumerate(timings):
        lines.append(
            f"| {number // len(WORKERS) + 1} | {timing.workers} | {timing.start_seconds:.1f} "
            f"| {timing.seconds:.1f} |"
        )
    one, two = (
        statistics.median(t.seconds for t in timings if t.workers == workers) for workers in WORKERS
    )
    same = all(timing.rows == timings[0].rows for timing in timings)
    return "\n".join([
        *lines, "", f"Two workers take **{two / one:.2f}** of one worker's time (medians); the trials and "
        f"their accuracies {'are the same in all runs' if same else '**differ between the runs**'}.", "",
    ])  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Time the searches in turns and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="mobilenet_v3_small")
    parser.add_argument("--resolution", type=int, default=48)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "search" / "workers.md")
    options = parser.parse_args(arguments)
    work = prepared(options)
    timings = [timed(work, workers) for _ in range(options.rounds) for workers in WORKERS]
    protocol = (
        f"Fashion-MNIST at {options.resolution} px, space {options.space}, random networks; "
        f"{options.trials} trials of {options.steps} steps of 32 images, each scored on 500 held-out "
        "images; one CPU and one thread a worker, local Ray, its start (until each worker has trained "
        "once) apart; one and two workers in turns"
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = report(timings, protocol)
    write_atomic(options.out, text)
    print(text)


if __name__ == "__main__":
    main()
