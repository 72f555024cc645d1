"""What a second worker is worth: the same search by the proxy task, or the same race, with one and with two.

    python -m benchmarks.workers [--race]
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ROOT, header
from mobilefit import arch
from mobilefit.cluster import RayPool
from mobilefit.data import Preset, load
from mobilefit.jobs.kinds import KINDS
from mobilefit.pipeline.candidates import SCRATCH_FAMILY, Candidate, scratch_networks
from mobilefit.pipeline.initial_weights import InitialWeights
from mobilefit.pipeline.race import Race, Rung
from mobilefit.pipeline.race_task import ShortTraining
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
TARGET = 0.6
"""Most of one worker's time that two may take."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """A search that is the same every time."""

    space: Space
    task: ProxyTask
    trials: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One search or race."""

    workers: int
    start_seconds: float
    """Until every worker has trained once."""
    seconds: float
    """The search or race itself."""
    rows: list[tuple[Any, float]]
    """Of every trial, in order, its tokens and accuracy; of every candidate, the best first, its name and
    mean loss."""


def search_load(options: argparse.Namespace) -> Load:
    """The images, and the space at their size."""
    data = load("fashion-mnist", seed=options.seed)
    networks = space(options.space).resolution(options.resolution).classes(len(data.classes))
    task = ProxyTask(
        train_set=data.train, held_out=data.holdout.balanced(50, options.seed),
        preset=Preset(resolution=options.resolution, crop_fraction=1.0),
        recipe=replace(recipe("fast"), batch_size=32), steps=options.steps, seed=options.seed,
    )  # fmt: skip
    return Load(space=networks, task=task, trials=options.trials, seed=options.seed)


def timed_search(load: Load, workers: int) -> Timing:
    """One search on a Ray of its own."""
    evaluator = ProxyOnRay(load.task, workers=workers)
    smallest = load.space.smallest()
    warm = [Trial(number=n, tokens=smallest, spec=load.space.spec(smallest)) for n in range(2 * workers)]
    began = time.perf_counter()
    list(evaluator.evaluate(warm))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = search(
            load.space, strategy("random", load.space.sizes, load.seed), evaluator,
            lambda specs: [1.0] * len(specs), Reward(form="soft", target_ms=1.0),
            SearchSettings(strategy="random", trials=load.trials, batch=load.trials, seed=load.seed),
            Path(folder),
        )  # fmt: skip
    ended = time.perf_counter()
    evaluator.close()
    rows = [
        (tuple(row["tokens"]), math.nan if row["accuracy"] is None else row["accuracy"])
        for row in result.log.in_order()
    ]  # fmt: skip
    return Timing(workers=workers, start_seconds=started - began, seconds=ended - started, rows=rows)


@dataclass(frozen=True, kw_only=True)
class RaceLoad:
    """A race that is the same every time."""

    training: ShortTraining
    candidates: list[Candidate]


def race_load(options: argparse.Namespace) -> RaceLoad:
    """From scratch the first networks and widths of the family, as ``mobilefit design`` takes them."""
    kind = KINDS["classify"]
    data = load("fashion-mnist", seed=options.seed)
    weights = InitialWeights(task=kind, data=data)
    networks = list(scratch_networks(arch.FAMILY, SCRATCH_FAMILY).values())[: options.candidates]
    specs = [spec.resolution(options.resolution).classes(len(data.classes)) for spec in networks]
    candidates = [Candidate(spec=spec, latency_ms=spec.cost().madds / 1e7) for spec in specs]
    training = ShortTraining(
        task=kind, data=data, held_out=data.holdout.balanced(50, options.seed),
        initial={c.slug: partial(weights.network, c.spec, None) for c in candidates},
        recipe=replace(kind.recipe("fast", None, data), batch_size=32, distillation=0.0), teacher=None,
        steps=options.steps, seed=options.seed, folder=Path(), quiet=True,
    )  # fmt: skip
    return RaceLoad(training=training, candidates=candidates)


def timed_race(load: RaceLoad, workers: int) -> Timing:
    """One rung of a race on a Ray of its own."""
    with RayPool(workers=workers) as pool, tempfile.TemporaryDirectory() as folder:
        warm_up = replace(load.training, steps=1, folder=Path(folder) / "warm_up")
        began = time.perf_counter()
        list(pool.map(warm_up, load.candidates[: 2 * workers]))
        started = time.perf_counter()
        standings = Race(Path(folder), lambda line: None).rung(
            Rung(name="rung", survivors=1), load.candidates,
            replace(load.training, folder=Path(folder) / "rung"), run=pool.map,
        )  # fmt: skip
        ended = time.perf_counter()
    rows = [(s.candidate.name, float(s.judged.losses.mean())) for s in standings]
    return Timing(workers=workers, start_seconds=started - began, seconds=ended - started, rows=rows)


def report(timings: list[Timing], protocol: str, job: str) -> str:
    """The table.

    Args:
        job: what was timed, a word.
    """
    head = header(protocol)
    lines = [f"# Workers of a {job}", "", f"{protocol}.", ""]
    machine = head["machine"]
    lines += [f"Device: {head['device']}, {machine['cores']} cores. Date: {machine['date']}.", ""]
    lines += [f"| round | workers | start, s | {job}, s |", "|---|---|---|---|"]
    for number, timing in enumerate(timings):
        lines.append(
            f"| {number // len(WORKERS) + 1} | {timing.workers} | {timing.start_seconds:.1f} "
            f"| {timing.seconds:.1f} |"
        )
    one, two = (
        statistics.median(t.seconds for t in timings if t.workers == workers) for workers in WORKERS
    )
    verdict = "are the same in all runs" if _agree(timings) else "**differ between the runs**"
    winner = f" Winner: {timings[0].rows[0][0]}." if job == "race" else ""
    return "\n".join([
        *lines, "", f"Two workers take **{two / one:.2f}** of one worker's time (medians; target: at most "
        f"{TARGET:.2f}); the results {verdict}.{winner}", "",
    ])  # fmt: skip


def _agree(timings: list[Timing]) -> bool:
    """Whether all runs have the same networks in the same order, with the same accuracies or losses."""
    names = {tuple(name for name, _ in timing.rows) for timing in timings}
    values = np.array([[value for _, value in timing.rows] for timing in timings])
    return len(names) == 1 and bool(np.all(np.ptp(values, axis=0) < 1e-6))


def main(arguments: list[str] | None = None) -> None:
    """Time the searches in turns and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="mobilenet_v3_small")
    parser.add_argument("--resolution", type=int, default=48)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--race", action="store_true", help="a rung of design's race instead of a search")
    parser.add_argument("--candidates", type=int, default=8, help="of the race")
    parser.add_argument("--out", type=Path, help="default: results/search/workers.md or results/design/workers.md")
    options = parser.parse_args(arguments)
    rounds = [workers for _ in range(options.rounds) for workers in WORKERS]
    shared = (
        "one CPU and one thread a worker, local Ray, its start (until each worker has trained once) apart; "
        "one and two workers in turns"
    )
    if options.race:
        race = race_load(options)
        timings = [timed_race(race, workers) for workers in rounds]
        job, protocol = "race", (
            f"Fashion-MNIST at {options.resolution} px, {len(race.candidates)} candidates from scratch, "
            f"{options.steps} steps of 32 images each, judged on 500 held-out images; {shared}"
        )
    else:
        work = search_load(options)
        timings = [timed_search(work, workers) for workers in rounds]
        job, protocol = "search", (
            f"Fashion-MNIST at {options.resolution} px, space {options.space}, random networks; "
            f"{options.trials} trials of {options.steps} steps of 32 images, each scored on 500 held-out "
            f"images; {shared}"
        )
    out = options.out or ROOT / "results" / ("design" if options.race else "search") / "workers.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    text = report(timings, protocol, job)
    write_atomic(out, text)
    print(text)


if __name__ == "__main__":
    main()
