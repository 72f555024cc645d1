"""How ``design`` spends the time that it is given."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from mobilefit import adapt, train
from mobilefit.arch import NetSpec
from mobilefit.data import Preset
from mobilefit.device import units
from mobilefit.jobs import lab
from mobilefit.search import Space
from mobilefit.search.search import BATCH
from mobilefit.search.supernet import SCORE_IMAGES
from mobilefit.train import Recipe
from mobilefit.train.classify import Classify
from mobilefit.train.task import Task

DELTAS = (0.01, 0.015, 0.02, 0.03, 0.04, 0.05)
"""The V3 paper's step, and larger ones for when time is short."""
LEAST_TUNE_STEPS = 15
MOST_TUNE_STEPS = 10_000
"""The V3 paper's T."""
MOST_EPOCHS = 200
ADAPT_SHARE = 0.35
"""Of the time that is left for training, for NetAdapt's."""
NARROWER = 0.85
"""About what a training step of a shrunk network takes of the seed network's."""
CUT = 1.3
"""About how much more than the least a NetAdapt step cuts, since widths go in steps of eight."""
HELD_IMAGES = 2000
ROW_SECONDS = 0.2
SCENE_ROW_SECONDS = 0.5
"""Of a detector or segmenter: its maps are larger, and its head is cut out of the whole network."""
SEARCHED_ROW_SECONDS = 0.13
SEARCH_SHARE = 0.35
"""Of the whole time, for a search in front of the rest."""
ABOVE = 1.2
"""A search aims at this times the budget: NetAdapt then has something to trim, as in the paper, where
the seeds took about 80 ms and the finished network 66."""
PROXY_STEPS = (20, 100)
"""Least and most of a trial's own training where the plan chooses: below, networks are told apart by luck."""
MOST_TRIALS = 8000
"""About as many as MnasNet's search sampled."""
FOCUS = 0.7
"""About what part of the rows of random networks a search's networks have: it stops wandering."""
FIXED_SECONDS = 20.0
PROBE_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What this machine does with a network, images a second."""

    training: float
    evaluation: float


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """How long a search is."""

    trials: int
    warmup_steps: int = 0
    """Of the shared weights along random paths, before the first trial."""
    proxy_steps: int = 0
    """Of each trial's own training, without shared weights."""
    top: int = 1
    """Networks that are fully trained at the end."""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user said of the time; ``None`` is left to the plan."""

    minutes: float
    seed_networks: int = 1
    """Trained in full before NetAdapt begins with the best of them."""
    seeds: int
    delta: float | None
    tune_steps: int | None
    epochs: float | None
    recipe: Recipe


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be done, and about how long each part takes in seconds."""

    training: dict[str, Any]
    """The resolved recipe of every training of the run."""
    train_steps: int
    epochs: float
    seeds: int
    shrink: bool
    """Whether the seed network is over the budget."""
    delta: float
    adapt_steps: int
    proposals: int
    tune_steps: int
    held_images: int
    seconds: dict[str, float]
    search: dict[str, Any] | None = None
    """The search before all that: see :class:`SearchPlan`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def recipe(self) -> Recipe:
        """How every network of the run is trained."""
        return Recipe(**self.training)

    def told(self, out: Path, *, pretrained: bool = False) -> str:
        """The plan in words."""
        what = {
            "table": "build the latency table of this machine",
            "search": self._search_told(),
            "seed": f"{self._seeds_told()}: {self.train_steps} steps of "
                    f"{self.training['batch_size']}, {self.epochs:.1f} epochs",
            "netadapt": f"NetAdapt: about {self.adapt_steps} steps that cut {self.delta:.1%} or more, each of "
                        f"up to {self.proposals} proposals, tuned for {self.tune_steps} steps",
            "final": f"train the adapted network {'further' if pretrained else 'from scratch'}{self._times()}",
            "width": f"train the {'seed' if self.search is None else 'hand-made'} network scaled to the "
                     f"same latency alike{self._times()}",
            "export": "quantize, evaluate on the test images, measure, report",
        }  # fmt: skip
        lines = [f"{n}. {what[key]} ({_duration(s)})"
                 for n, (key, s) in enumerate(self.seconds.items(), 1)]  # fmt: skip
        lines.append(f"in all about {_duration(sum(self.seconds.values()))}, in {out}; "
                     "Ctrl-C any time: the same command goes on")  # fmt: skip
        return "\n".join(lines)

    def for_search(self) -> SearchPlan:
        """The search's part."""
        assert self.search is not None
        return SearchPlan(**self.search)

    def with_search(self, found: SearchPlan) -> Plan:
        """The plan with a search after the table, and with its best networks as seed networks."""
        before = {"table": self.seconds["table"], "search": found.seconds}
        rest = {key: value for key, value in self.seconds.items() if key != "table"}
        return replace(self, search=dataclasses.asdict(found), seconds=before | rest)

    def _search_told(self) -> str:
        if self.search is None:
            return ""
        found = self.for_search()
        first = f"warm up shared weights for {found.warmup_steps} steps, then " * bool(found.warmup_steps)
        each = f" of {found.proxy_steps} training steps" * bool(found.proxy_steps)
        return f"search for a seed network: {first}{found.trials} trials{each}"

    def _seeds_told(self) -> str:
        if self.search is None:
            return "train the seed network"
        return f"train the best {top} of them" if (top := self.for_search().top) > 1 else "train the best"

    def _times(self) -> str:
        return f", {self.seeds} seeds" if self.seeds > 1 else ""


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def speed(
    network: nn.Module, data: Any, preset: Preset, recipe: Recipe, task: Task | None = None
) -> Speed:
    """Time a few training steps of a network, which is spoilt, and a few evaluations.

    Args:
        task: whose kind the data are; ``None``: classification.
    """
    task = task or Classify()
    batch = batch_size(recipe, len(data.train))
    short = replace(recipe, batch_size=batch, ema_decay=None)
    steps, seconds = 3, 0.0
    while seconds < PROBE_SECONDS:  # the first ones choose kernels and fill caches
        found = train.fit(network, data.train, preset=preset, recipe=short, task=task, steps=steps)
        steps, seconds = 3 * steps, found.seconds
    images = lab.held_out(data, 4 * batch, 0)
    task.evaluate(network, images, preset)
    began = time.perf_counter()
    task.evaluate(network, images, preset)
    return Speed(
        training=found.images_per_second, evaluation=len(images) / (time.perf_counter() - began)
    )


def batch_size(recipe: Recipe, images: int) -> int:
    """The recipe's, or less where an epoch would have fewer than eight steps."""
    return max(2, min(recipe.batch_size, images // 8))


def make(
    request: Request, data: Any, found: Speed, spec: NetSpec, seed_ms: float,
    budget_ms: float,
) -> Plan:  # fmt: skip
    """Divide the time between the trainings, which get two thirds, and NetAdapt."""
    batch = batch_size(request.recipe, len(data.train))
    shrink = seed_ms > budget_ms
    step_seconds = batch / found.training
    runs = request.seed_networks + 2 * NARROWER * request.seeds * shrink
    export = (1 + 2 * request.seeds * shrink) * (5 + 4e-3 * seed_ms * len(data.test))
    groups = len(adapt.groups(spec))
    over = max(0.0, seed_ms - budget_ms) / seed_ms

    def adapt_steps(delta: float) -> int:
        return math.ceil(over / (CUT * delta))

    row = ROW_SECONDS if spec.task == "classify" else SCENE_ROW_SECONDS
    table = FIXED_SECONDS + shrink * row * groups * (5 + adapt_steps(0.03))
    left = max(0.0, 60 * request.minutes - table - export)
    train_share = 1 - ADAPT_SHARE * shrink
    per_epoch = max(1, len(data.train) // batch)
    most = MOST_EPOCHS * per_epoch
    steps = max(20, min(most, int(train_share * left / (runs * step_seconds))))
    if request.epochs is not None:
        steps = max(1, round(request.epochs * per_epoch))
    held = min(HELD_IMAGES, len(data.holdout))
    left_for_adapt = max(ADAPT_SHARE * left, left - runs * steps * step_seconds)
    fixed = 0.1 + held / found.evaluation

    def affordable(delta: float) -> int:
        one = left_for_adapt / max(1, adapt_steps(delta) * groups)
        return int((one - fixed) / (NARROWER * step_seconds))

    delta = request.delta or next((d for d in DELTAS if affordable(d) >= LEAST_TUNE_STEPS), DELTAS[-1])
    tune = request.tune_steps or max(
        LEAST_TUNE_STEPS // 3, min(affordable(delta), MOST_TUNE_STEPS, 2 * per_epoch)
    )
    one = steps * step_seconds
    adapting = adapt_steps(delta) * groups * (fixed + tune * NARROWER * step_seconds)
    shrinking = {
        "netadapt": adapting, "final": NARROWER * one * request.seeds,
        "width": NARROWER * one * request.seeds,
    }  # fmt: skip
    return Plan(
        training=replace(request.recipe, batch_size=batch).to_dict(), train_steps=steps,
        epochs=steps / per_epoch, seeds=request.seeds, shrink=shrink, delta=delta,
        adapt_steps=adapt_steps(delta), proposals=groups, tune_steps=tune, held_images=held,
        seconds={"table": table, "seed": request.seed_networks * one, **(shrinking if shrink else {}), "export": export},
    )  # fmt: skip


def search_with_shared_weights(
    seconds: float, space: Space, found: Speed, batch: int, trials: int | None, top: int
) -> SearchPlan:
    """As many trials as fit, and as many steps along random paths before them.

    Args:
        found: the supernet's speed.
        batch: images of a training step.
        trials: as many and no more, whatever the time.
    """
    step = batch / found.training
    score = SCORE_IMAGES / found.evaluation
    return _most_trials(seconds, space, 2 * step + score, trials, lambda n, taken: SearchPlan(
        trials=n, warmup_steps=n, top=top, seconds=taken,
    ))  # fmt: skip


def search_by_proxy(
    seconds: float, space: Space, found: Speed, batch: int, trials: int | None, top: int,
    proxy_steps: int, held_images: int, workers: int,
) -> SearchPlan:  # fmt: skip
    """As many trials of that many training steps each as fit.

    Args:
        held_images: that each is scored on.
        workers: trials at a time.
    """
    one = (proxy_steps * batch / found.training + held_images / found.evaluation) / workers
    return _most_trials(seconds, space, one, trials, lambda n, taken: SearchPlan(
        trials=n, proxy_steps=proxy_steps, top=top, seconds=taken,
    ))  # fmt: skip


def proxy_steps(
    seconds: float, found: Speed, batch: int, trials: int | None, held_images: int
) -> int:
    """How long a trial may train, within :data:`PROXY_STEPS`, so that two batches of them fit the time.

    Args:
        trials: as many, in the place of two batches.
    """
    one = seconds / (trials or 2 * BATCH) - held_images / found.evaluation
    least, most = PROXY_STEPS
    return max(least, min(most, int(one * found.training / batch)))


def _most_trials(
    seconds: float, space: Space, one: float, trials: int | None,
    plan: Callable[[int, float], SearchPlan],
) -> SearchPlan:  # fmt: skip
    """The largest whole number of batches whose trials and latency rows fit the time, two at least."""
    draw, rows, taken = random.Random(0), set[str](), 0.0
    most = MOST_TRIALS if trials is None else trials
    count = 0
    while count < most:
        if count < 1000:  # beyond, a random network's rows are all known
            for _ in range(min(BATCH, most - count)):
                rows |= {unit.key for unit in units(space.spec(space.random(draw.randrange)))}
        more = min(count + BATCH, most)
        needed = more * one + FOCUS * SEARCHED_ROW_SECONDS * len(rows)
        if trials is None and needed > seconds and count >= 2 * BATCH:
            break
        count, taken = more, needed
    return plan(count, taken)
