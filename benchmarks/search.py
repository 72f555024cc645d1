"""The search strategies on a table whose optimum is known, and what the controller's settings do.

    python -m benchmarks.search
    python -m benchmarks.search --short

Every strategy searches the made-up table of :mod:`mobilefit.search.tabular` for each form of reward
and several seeds; then the controller does so with one setting changed at a time. The defaults were chosen
on the table without a salt (and two more), not on ``unseen``.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import math
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.common import ROOT
from mobilefit.runs import machine, write_atomic
from mobilefit.search.controller import Controller, ControllerSettings
from mobilefit.search.reward import Reward
from mobilefit.search.spaces import space
from mobilefit.search.strategies import STRATEGIES, strategy
from mobilefit.search.strategy import Strategy
from mobilefit.search.tabular import Tabular

FORMS = ("absolute", "soft", "soft_small")
SALTS = {"tuned": "", "unseen": "unseen"}
TARGET_MS, BATCH = 75.0, 20
ENOUGH, NEAR = 0.98, 0.05
"""Of the optimal reward; of the target latency."""
SWEEP: dict[str, tuple[float, ...]] = {
    "entropy": (0.0, 0.03, 0.06, 0.12, 0.25),
    "learning_rate": (0.0005, 0.002, 0.006, 0.02),
    "clip": (0.1, 0.2, 0.4),
    "epochs": (1, 3, 6, 12),
    "baseline": (0.5, 0.8, 0.95),
    "hidden": (32, 64, 128),
}
COLOURS = {"rnn": "#7c4fd6", "evolution": "#0a7d74", "reinforce": "#c9650a", "random": "#667084"}
NAMES = {
    "rnn": "recurrent controller, PPO", "evolution": "regularized evolution",
    "reinforce": "independent logits, REINFORCE", "random": "random search",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One search."""

    strategy: str
    form: str
    seed: int
    samples: int
    space: str = "mnasnet"
    table: str = "tuned"
    changed: tuple[str, float] | None = None
    """A setting of the controller and its value."""

    def fresh(self, sizes: tuple[int, ...]) -> Strategy:
        """The strategy before its first sample."""
        if self.changed is None:
            return strategy(self.strategy, sizes, self.seed)
        name, value = self.changed
        settings = dataclasses.replace(ControllerSettings(), **{name: value})
        return Controller(sizes, self.seed, settings)


@functools.cache
def table(name: str, which: str) -> Tabular:
    """The table of a space."""
    return Tabular(space(name), SALTS[which])


@functools.cache
def optimum(name: str, which: str, form: str) -> tuple[float, float]:
    """The optimal reward, and the latency of its network."""
    tokens, reward = table(name, which).optimum(Reward(form=form, target_ms=TARGET_MS))
    return reward, table(name, which).evaluate(tokens)[1]


def run(job: Job) -> dict[str, Any]:
    """Search; the curve is the best reward after each batch, as a part of the optimal one."""
    import torch

    torch.set_num_threads(1)
    known, reward = table(job.space, job.table), Reward(form=job.form, target_ms=TARGET_MS)
    optimal, _ = optimum(job.space, job.table, job.form)
    searcher = job.fresh(known.space.sizes)
    best, curve, seconds = (-1.0, 0.0), [], 0.0
    for start in range(0, job.samples, BATCH):
        began = time.perf_counter()
        asked = searcher.ask(min(BATCH, job.samples - start))
        seconds += time.perf_counter() - began
        found = [known.evaluate(tokens) for tokens in asked]
        rewards = [reward(*one) for one in found]
        best = max(best, *((r, latency) for r, (_, latency) in zip(rewards, found)))
        curve.append(round(best[0] / optimal, 5))
        began = time.perf_counter()
        searcher.tell(asked, rewards)
        seconds += time.perf_counter() - began
    return {
        **dataclasses.asdict(job), "optimal_share": curve[-1], "latency_ms": best[1], "curve": curve,
        "ms_per_sample": round(seconds / job.samples * 1e3, 3),
    }  # fmt: skip


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Everything to run: the comparison on both tables, then the sweep."""
    common = {"samples": options.samples, "space": options.space}
    for which, form, name in itertools.product(SALTS, FORMS, STRATEGIES):
        for seed in range(options.seeds):
            yield Job(strategy=name, form=form, seed=seed, table=which, **common)
    for name, values in SWEEP.items():
        for value, seed in itertools.product(values, range(options.sweep_seeds)):
            yield Job(strategy="rnn", form="absolute", seed=seed, changed=(name, value), **common)


def chosen(rows: Sequence[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """The rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def summary(rows: Sequence[dict[str, Any]], name: str) -> Iterator[str]:
    """The lines of the Markdown summary."""
    for which, form in itertools.product(SALTS, FORMS):
        found = chosen(rows, table=which, form=form, changed=None)
        if not found:
            continue
        reward, latency = optimum(name, which, form)
        yield f"## Reward `{form}`, {'the' if which == 'tuned' else 'an unseen'} table"
        yield ""
        yield f"Optimal: reward {reward:.4f} at {latency:.1f} ms (target {TARGET_MS:g} ms)."
        yield ""
        yield f"| strategy | {HEADING} |"
        yield "|---|---|---|---|---|---|---|"
        for strategy_name in STRATEGIES:
            yield f"| {NAMES[strategy_name]} | {_cells(chosen(found, strategy=strategy_name))} |"
        yield ""
    swept = [row for row in rows if row["changed"] is not None]
    if swept:
        yield from _sweep(swept)


HEADING = (
    f"share of the optimum: median (lowest) | reached {ENOUGH:.0%} | samples to there, median | "
    f"latency of the best, ms: median (range) | within {NEAR:.0%} of the target | ms a sample"
)


def _cells(rows: Sequence[dict[str, Any]]) -> str:
    shares = [row["optimal_share"] for row in rows]
    milliseconds = [row["latency_ms"] for row in rows]
    reached = sorted(_samples_to(row["curve"], row["samples"]) for row in rows)
    middle = reached[len(reached) // 2]
    near = sum(abs(ms / TARGET_MS - 1) <= NEAR for ms in milliseconds)
    return " | ".join(
        (
            f"{statistics.median(shares):.4f} ({min(shares):.4f})",
            f"{sum(share >= ENOUGH for share in shares)} of {len(rows)}",
            f"{middle:.0f}" if middle < float("inf") else "-",
            f"{statistics.median(milliseconds):.1f} ({min(milliseconds):.1f} to {max(milliseconds):.1f})",
            f"{near} of {len(rows)}",
            f"{statistics.median(row['ms_per_sample'] for row in rows):.2f}",
        )
    )


def _samples_to(curve: Sequence[float], samples: int) -> float:
    """How many samples it took to reach enough."""
    batches = next((i for i, share in enumerate(curve, 1) if share >= ENOUGH), None)
    return float("inf") if batches is None else min(batches * BATCH, samples)


def _sweep(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    usual = ControllerSettings()
    yield "## The controller's settings"
    yield ""
    yield "One changed at a time, reward `absolute`; the value in use is bold."
    yield ""
    yield f"| setting | {HEADING} |"
    yield "|---|---|---|---|---|---|---|"
    for name, values in SWEEP.items():
        for value in values:
            label = f"{name} {value:g}"
            label = f"**{label}**" if getattr(usual, name) == value else label
            yield f"| {label} | {_cells(chosen(rows, changed=(name, value)))} |"
    yield ""


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The best reward so far over samples: median of the seeds, and their whole range."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, form in zip(figure.subplots(1, len(FORMS), sharey=True), FORMS):
        for name, colour in COLOURS.items():
            found = chosen(rows, table="tuned", form=form, strategy=name, changed=None)
            steps = list(zip(*(row["curve"] for row in found)))
            samples = [(i + 1) * BATCH for i in range(len(steps))]
            lowest, middle, highest = zip(*((min(s), statistics.median(s), max(s)) for s in steps))
            axes.fill_between(samples, lowest, highest, color=colour, alpha=0.15, linewidth=0)
            axes.plot(samples, middle, color=colour, label=NAMES[name])
        axes.axhline(ENOUGH, color="#c8324a", linewidth=0.8, linestyle="--")
        axes.set(title=form, xlabel="samples", ylim=(0.85, 1.002), xlim=(0, samples[-1]))
        axes.grid(color="#dfe3e9", linewidth=0.6)
    figure.axes[0].set_ylabel("best reward so far / optimal reward")
    figure.axes[-1].legend(frameon=False, fontsize=8.5, loc="lower right")
    with matplotlib.rc_context({"svg.hashsalt": "search", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None, "Creator": None})


SHORT = (50, 100, 200, 300, 500)
"""Trials that some minutes afford."""
NOISE = (0.0, 0.01)
"""Standard deviation of what is added to the accuracy that the strategies are given."""


def short_summary(name: str, seeds: int) -> str:
    """The true reward of the network that looks best after so many trials, as a part of the optimum."""
    import torch

    torch.set_num_threads(1)
    batch, reward = 10, Reward(form="absolute", target_ms=TARGET_MS)
    lines = [
        "# Strategies after few trials", "",
        f"`python -m benchmarks.search --short`: space `{name}`, reward `absolute`, batches of {batch}, "
        f"{seeds} seeds on each of two tables. Means of the true reward of the network that looks best, "
        "as a part of the optimum, and their standard errors. Noise: the standard deviation of what is "
        "added to the accuracy that the strategy is given.", "",
        "| noise | strategy | " + " | ".join(f"{count} trials" for count in SHORT) + " |",
        "|---|---|" + "---|" * len(SHORT),
    ]  # fmt: skip
    for noise, strategy_name in itertools.product(NOISE, STRATEGIES):
        shares: list[list[float]] = []
        for which, seed in itertools.product(SALTS, range(200, 200 + seeds)):
            known, optimal = table(name, which), optimum(name, which, "absolute")[0]
            searcher, draw_noise = strategy(strategy_name, known.space.sizes, seed), random.Random(seed)
            best, true, curve = -math.inf, 0.0, []
            for trial in range(0, SHORT[-1], batch):
                asked = searcher.ask(batch)
                values = [known.evaluate(tokens) for tokens in asked]
                rewards = [reward(a + draw_noise.gauss(0, noise), ms) for a, ms in values]
                searcher.tell(asked, rewards)
                for looks, value in zip(rewards, values):
                    if looks > best:
                        best, true = looks, reward(*value)
                if trial + batch in SHORT:
                    curve.append(true / optimal)
            shares.append(curve)
        cells = [
            f"{statistics.mean(column):.4f} ± {statistics.stdev(column) / len(column) ** 0.5:.4f}"
            for column in zip(*shares)
        ]
        lines.append(f"| {noise:g} | {NAMES[strategy_name]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def as_json(top: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """JSON with a line for each run."""
    runs = ",\n".join(json.dumps(row) for row in rows)
    return f'{json.dumps(top, indent=1)[:-2]},\n "runs": [\n{runs}\n]}}\n'


def every(todo: Sequence[Job], processes: int) -> list[dict[str, Any]]:
    """Run all, ``processes`` at a time."""
    if processes == 1:
        return [run(job) for job in todo]
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        return list(pool.map(run, todo, chunksize=5))


def main(arguments: list[str] | None = None) -> None:
    """Run everything, print the summary, and write it with the data and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="mnasnet")
    parser.add_argument("--samples", type=int, default=2000, help="of each search")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--sweep-seeds", type=int, default=5, help="0: no sweep")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "search" / "tabular")
    parser.add_argument("--short", action="store_true", help="the strategies after 50 to 500 trials alone")
    options = parser.parse_args(arguments)
    if options.short:
        text = short_summary(options.space, max(20, options.seeds))
        write_atomic(ROOT / "results" / "search" / "short.md", text)
        print(text)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    rows = every(list(jobs(options)), options.processes)
    top = {
        "protocol": PROTOCOL, "machine": machine(), "target_ms": TARGET_MS, "batch": BATCH,
        "settings": dataclasses.asdict(ControllerSettings()),
    }  # fmt: skip
    write_atomic(options.out / "curves.json", as_json(top, rows))
    text = "\n".join(summary(rows, options.space))
    facts = (
        f"Space `{options.space}`, {options.samples} samples in batches of {BATCH}, "
        f"{options.seeds} seeds ({options.sweep_seeds} for the settings). {PROTOCOL}."
    )
    write_atomic(options.out / "summary.md", f"# Strategies on the table\n\n{facts}\n\n{text}")
    draw(rows, options.out / "curves.svg")
    print(text)


PROTOCOL = (
    "Each seed is one search; a share is the best reward seen divided by the exact optimum of the "
    "table; ms a sample is what asking and telling cost, one thread; the defaults were chosen with "
    "other seeds, on the first table and on two more that are not the unseen one"
)

if __name__ == "__main__":
    main()
