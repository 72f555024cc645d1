"""How a proposal is tuned and judged: by the loss and the score of its task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mobilefit.adapt.importance import (
    ChannelImportance,
    Gates,
    Importance,
    bn_scales,
    filter_norms,
    gates,
)
from mobilefit.adapt.judgement import Judgement, judge
from mobilefit.adapt.proposals import Latency
from mobilefit.adapt.steps import Tools
from mobilefit.data import Preset
from mobilefit.errors import unknown
from mobilefit.nn import Network
from mobilefit.train import Recipe, calibration_batches, fit, recalibrated
from mobilefit.train.classify import Classify
from mobilefit.train.recalibration import STATISTICS_IMAGES
from mobilefit.train.task import Task

KNAPSACK_IMAGES = 2048
"""Training images that the knapsack foretells losses by, at most one pass."""
LEAST_TUNE_STEPS = 15
"""Fewer teach a proposal nothing that new batch norm statistics do not: alone they beat five steps in ten proposals
of ten."""


def short_term(recipe: Recipe) -> Recipe:
    """The recipe of fine-tuning, from that of training: a quarter of its rate, falling from the first
    step, without an average of weights, and with one rate for all rows: see :func:`for_shrunk`."""
    return replace(
        for_shrunk(recipe), lr=recipe.lr / 4, warmup_epochs=0.0, ema_decay=None, bn_momentum=0.1,
        schedule="cosine",
    )  # fmt: skip


def for_shrunk(recipe: Recipe) -> Recipe:
    """The recipe of training a network that was shrunk: one rate for all rows.

    Layer decay keeps what pretrained rows have; but rows that lost channels have to learn, and the ones near the image
    would at a fraction of the rate (the same final network after 120 steps: 71.8 % with a decay of 0.9, 75.3 without).
    """
    return replace(recipe, layer_decay=1.0)


def gates_on(
    network: Network, train_set: Any, preset: Preset, recipe: Recipe, task: Task | None = None, *,
    images: int = STATISTICS_IMAGES,
) -> Gates:  # fmt: skip
    """:func:`.importance.gates` by the loss of some training images.

    Args:
        network: trained for the images' classes.
        recipe: its batch size and augmentation are used.
        task: ``None``: classification.
        images: about how many; no more than one pass.
    """
    plain, chosen = replace(recipe, distillation=0.0, mixup=0.0, cutmix=0.0), task or Classify()
    objective = chosen.objective(network, train_set, plain, None, next(network.parameters()).device)
    return gates(network, calibration_batches(train_set, preset, plain, chosen, images=images), objective)


def tools_for(
    train_set: Any, held_out: Any, *, preset: Preset, recipe: Recipe, steps: int, latency: Latency,
    confirm: Callable[[Network], float], task: Task | None = None, importance: Importance = "gates",
) -> Tools:  # fmt: skip
    """The tools of NetAdapt and of the knapsack for images of a task.

    A network is judged with batch norm statistics of its own, the seed network like every proposal: those that it
    inherits are of other channels, and those that a few steps leave are of other weights. Else early layers and
    bottlenecks are charged for what is not their fault.

    Args:
        train_set, held_out: sets of the task's kind.
        preset: how an image becomes the network's input.
        recipe: that the seed network was trained by; see :func:`short_term`.
        steps: of a proposal's fine-tuning; 0: none, proposals are judged with new batch norm statistics alone.
        latency, confirm: as of :class:`.steps.Tools`.
        task: ``None``: classification.
        importance: which channels stay: ``gates`` (by the loss of :data:`~.recalibration.STATISTICS_IMAGES` training
            images), ``norm`` or ``bn-scale``; see :mod:`.importance`. The knapsack goes by gates.

    Raises:
        InputError: from the tools: the recipe or the images are of another task; nothing among the held-out images
            can be judged. At once: no importance has that name.
    """
    chosen, short = task or Classify(), short_term(recipe)

    def tune(network: Network, seed: int) -> None:
        if steps:
            fit(network, train_set, preset=preset, recipe=short, task=chosen, steps=steps, seed=seed)

    def judge_recalibrated(network: Network) -> Judgement:
        return judge(chosen, recalibrated(network, train_set, preset, short, chosen), held_out, preset)

    def by_gates(network: Network) -> ChannelImportance:
        return gates_on(network, train_set, preset, short, chosen)

    def many_gates(network: Network) -> Gates:
        return gates_on(network, train_set, preset, short, chosen, images=KNAPSACK_IMAGES)

    ways: dict[Importance, Callable[[Network], ChannelImportance]] = {
        "gates": by_gates, "norm": filter_norms, "bn-scale": bn_scales
    }  # fmt: skip
    if importance not in ways:
        raise unknown("importance", importance, ways)
    return Tools(
        latency=latency, confirm=confirm, tune=tune, judge=judge_recalibrated, images=len(held_out),
        quality=chosen.score, importance=ways[importance], gates=many_gates,
    )  # fmt: skip
