"""The main job: images and a latency budget in, a trained, quantized, measured network out.

The network and the size of its input are found, unless they are named. Every network that is within the
budget at some size is a candidate; so are what the shrinking of a larger one and, with ``--search``, a
block-wise search make (MobileNetV3 paper, sections 4.1 and 4.2). They race (:mod:`..pipeline.race`): the
best on held-out images is trained in full, begun from and taught by a larger network that never ships.
Beside it stand what a user could do by hand in its place, trained alike: the width multiplier, and the
same network at a lower resolution. What is best on the held-out images is exported; the test images are
looked at once, at the end.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobilefit import device, report
from mobilefit.adapt import AdaptSettings
from mobilefit.cluster import RayPool
from mobilefit.data.shard_remote import shown
from mobilefit.errors import InputError, QualityGateError
from mobilefit.jobs import checks, kinds, lab, searching
from mobilefit.jobs.folder import RECORD, RunFolder
from mobilefit.jobs.kinds import KINDS, source_of
from mobilefit.jobs.options import Budget, parse_budget
from mobilefit.pipeline.budget_run import BudgetRun
from mobilefit.pipeline.design_config import DesignConfig, task_of
from mobilefit.pipeline.design_run import TEACHER, DesignRun
from mobilefit.pipeline.initial_weights import AUTO
from mobilefit.progress import Voice
from mobilefit.runs import read_json


def design(config: DesignConfig) -> dict[str, Any]:
    """Run the chain, or what is left of it, and return the run's record.

    Raises:
        InputError: bad data or options, a budget that cannot be met (says the lowest that can).
        QualityGateError: everything is done and written, but the network is over the budget, or int8
            loses too much.
    """
    budgets = parse_budgets(config.latency)
    _check(config)
    run = RunFolder(config.out or default_out(config), "design", config)
    log = Voice(quiet=config.quiet)
    if run.finished:
        log(f"{run.path} holds this run, finished; delete the folder to run it again")
    else:
        with ray_pool(config) as pool, device.opened(config.device, tool=config.benchmark_model, say=log) as phone:
            lab.check_table(config.table, run.path, phone)
            task = task_of(config)
            data = task.load(source_of(config, log))
            lab.check_held_out(data)
            shared = DesignRun(config, task, budgets, run, data, log, phone, pool)
            shared.prepare()
            names: list[str] = []
            for budget, budget_ms in reversed(list(zip(budgets, shared.budgets_ms, strict=True))):
                names.append(BudgetRun(shared, budget, budget_ms, share=1 / (len(budgets) - len(names))).run_all())
            if len(names) > 1:
                shared.finish_several(names[::-1])
    return _closing(run, config)


@contextlib.contextmanager
def ray_pool(config: DesignConfig) -> Iterator[RayPool | None]:
    """The workers that the race's candidates are trained by; ``None``: this process trains them.

    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """
    if config.workers is None and config.cluster is None:
        yield None
        return
    with RayPool(workers=config.workers or 1, address=config.cluster) as pool:
        if config.cluster is not None:
            pool.open()
        yield pool


def parse_budgets(text: str) -> list[Budget]:
    """Read one budget, or several divided by commas.

    Raises:
        InputError: one of them is no latency, they are of two kinds, or out of order or doubled.
    """
    budgets = [parse_budget(part) for part in text.split(",")]
    values = [(budget.milliseconds, budget.fraction) for budget in budgets]
    numbers = [milliseconds or fraction or 0.0 for milliseconds, fraction in values]
    if len({milliseconds is None for milliseconds, _ in values}) > 1:
        raise InputError(f"--latency {text} mixes times and shares", "write 1ms,2ms or 50%,70%")
    if any(second <= first for first, second in itertools.pairwise(numbers)):
        raise InputError(
            f"--latency {text} is out of order, or names a budget twice", "write each once, rising"
        )
    return budgets


def default_out(config: DesignConfig) -> Path:
    """A folder that the same command finds again."""
    share = config.latency.replace("%", "pct").replace("/", "_").replace(",", "-")
    network = config.space if config.searches else config.named or "family"
    size = [] if config.resolution is None else [
        f"{config.resolution}" + (f"x{config.columns}" if config.columns else "")
    ]
    words = [Path(shown(config.data)).name, Path(network).stem, *size, share]
    words[1:1] = [config.task] if config.task not in (None, "classify") else []
    words += [config.device.replace(":", "-")] if config.device != "host" else []
    return Path("runs") / ("design-" + "-".join(words))


def _check(config: DesignConfig) -> None:
    lab.check_positive(
        resolution=config.resolution, columns=config.columns, minutes=config.minutes, seeds=config.seeds,
        delta=config.delta, epochs=config.epochs, trials=config.trials, top=config.top, workers=config.workers,
    )  # fmt: skip
    AdaptSettings(target_ms=1.0, delta=config.delta or 0.01, rule=config.rule)  # late is too late
    if config.shrink == "knapsack" and (config.delta is not None or config.rule != "ratio"):
        raise InputError("--delta and --rule are NetAdapt's, and this is --shrink knapsack", "leave them out")
    task = task_of(config).task
    kinds.check_options(
        task, recipe=config.recipe, height=config.resolution, width=config.columns,
        ignore=config.ignore_label,
    )  # fmt: skip
    if config.searches and config.weights not in ((), (AUTO,), ("none",)):
        raise InputError(
            f"{config.weights[0]} are one network's weights, and a search tries many",
            "leave --search out, and name the network with --seed-network",
        )
    if config.workers is not None and config.cluster is not None:
        raise InputError(
            "--workers counts trainings on this machine, a --cluster takes what it has room for", "give one of them"
        )
    searching.check_names(config.space, config.strategy, config.reward)
    device.check_target(config.device, config.benchmark_model)


def _closing(run: RunFolder, config: DesignConfig) -> dict[str, Any]:
    """What is left after the record: write the page, remove the teacher's answers, print, pass the gates."""
    if run.lacks_page:
        report.write_report(run.path)
    shutil.rmtree(run.path / TEACHER, ignore_errors=True)
    record = run.record()
    several = record.get("designs")
    for folder in [run.path / name for name in several] if several else [run.path]:
        own = read_json(folder / RECORD) if several else record
        print(report.summary_table(own))
        for name in (*own["final"]["files"].values(), "report.html"):
            print(folder / name)
        _gates(own, folder, config)
    return record


def _gates(record: dict[str, Any], folder: Path, config: DesignConfig) -> None:
    final = record["final"]
    checks.gate(final["parity"], folder)
    if report.over_budget(record):
        latency_ms, budget_ms = final["judged_ms"], record["budget_ms"]
        raise QualityGateError(
            f"the final network is {latency_ms - budget_ms:.3g} ms over the budget of {budget_ms:.4g} ms",
            "give a lower --latency, or run it again on a quiet machine",
        )
    drop = 100 * (final["accuracy_float"] - final["accuracy_int8"])
    if drop > config.max_drop:
        score = "" if record["task"] == "classify" else f" of {KINDS[record['task']].score}"
        raise QualityGateError(
            f"int8 loses {drop:.2f} points{score}, more than --max-drop {config.max_drop:g}",
            f"mobilefit quantize {folder / final['files']['float32']} {config.data} --method qat trains "
            "it with the rounding in place",
        )
