"""How fast this machine trains, and how long a search may be."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from mobilefit import train
from mobilefit.data import Preset
from mobilefit.device import units
from mobilefit.jobs import lab
from mobilefit.search import Space
from mobilefit.search.search import BATCH
from mobilefit.search.supernet import SCORE_IMAGES
from mobilefit.train import Recipe
from mobilefit.train.classify import Classify
from mobilefit.train.task import Task

MOST_EPOCHS = 200
"""Of a full training from scratch."""
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
PROBE_SECONDS = 3.0
"""A training that speed is measured by takes as long, or longer."""


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


def speed(
    network: nn.Module, data: Any, preset: Preset, recipe: Recipe, task: Task | None = None,
    threads: int | None = None,
) -> Speed:  # fmt: skip
    """Time a few training steps of a network, which is spoilt, and a few evaluations.

    Args:
        task: whose kind the data are; ``None``: classification.
        threads: of the training steps; ``None``: as a training in this process uses them.
    """
    task = task or Classify()
    batch = batch_size(recipe, len(data.train))
    short = replace(recipe, batch_size=batch, ema_decay=None)
    steps, seconds = 3, 0.0
    while seconds < PROBE_SECONDS:  # the first ones choose kernels and fill caches
        found = train.fit(network, data.train, preset=preset, recipe=short, task=task, steps=steps, threads=threads)
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
