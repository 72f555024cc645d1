"""Which learning rate? A sweep of some hundred steps tells (Smith 2015, arXiv:1506.01186, section 3.3).

The rate grows exponentially from step to step; the loss falls once steps are large enough to matter,
and rises once they are too large. As fastai and Lightning do it: 100 steps, stopped when the smoothed
loss is four times its best.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mobilefit.data import Preset
from mobilefit.errors import InputError
from mobilefit.progress import Progress
from mobilefit.train import Stepper
from mobilefit.train.loop import CLASSIFY
from mobilefit.train.optim import peak_lr
from mobilefit.train.recipe import Recipe
from mobilefit.train.task import Task
from mobilefit.train.trainer import TrainingDiverged, regularised

LOW, HIGH = 1e-6, 10.0
DIVERGED = 4.0
"""The sweep ends where the smoothed loss is so many times its best."""
FELL = 0.02
"""A fall of the smoothed loss by less than this part of it tells nothing."""
WIDTH = 1 / 40
"""Deviation of the smoothing's Gaussian, a part of the sweep."""


@dataclass(frozen=True, kw_only=True)
class LrCurve:
    """A sweep, and what it suggests. Rates are in the recipe's unit: for a batch of 256."""

    rates: tuple[float, ...]
    """Ascending; ends where the loss diverged."""
    losses: tuple[float, ...]
    """Of each step's batch, before the step."""
    smoothed: tuple[float, ...]
    """By a Gaussian over the logarithm of the rate, which moves no point to the right as a running mean does."""

    @property
    def suggestion(self) -> float:
        """The rate at which the loss falls most steeply, before its minimum."""
        lowest = int(np.argmin(self.smoothed))
        slopes = np.gradient(np.asarray(self.smoothed))[: lowest + 1]
        return self.rates[int(np.argmin(slopes))]

    @property
    def tenth_of_minimum(self) -> float:
        """A tenth of the rate where the loss is lowest: the older rule, more cautious."""
        return self.rates[int(np.argmin(self.smoothed))] / 10

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "rates": list(self.rates), "losses": list(self.losses), "smoothed": list(self.smoothed),
            "suggestion": self.suggestion, "tenth_of_minimum": self.tenth_of_minimum,
        }  # fmt: skip


def find_lr(
    net: nn.Module,
    train_set: Any,
    *,
    preset: Preset,
    recipe: Recipe,
    task: Task = CLASSIFY,
    seed: int = 0,
    low: float = LOW,
    high: float = HIGH,
    steps: int = 100,
    accelerator: str = "auto",
    progress: str | None = None,
    threads: int | None = None,
) -> LrCurve:
    """Sweep the learning rate on a copy of the network, with the recipe's optimizer, augmentation and dropout.

    The network, its statistics and the caller's random state stay as they are. A recipe with
    distillation is swept on the labels alone.

    Args:
        net, train_set, preset, recipe, task, seed, accelerator, progress, threads: as of :func:`fit`.
        low, high: where the sweep begins and ends, learning rates for a batch of 256.
        steps: of the whole sweep, evenly over the logarithm of the rate.

    Raises:
        InputError: a range that is none, fewer than 10 steps, or a loss that does not fall or is not
            finite at any rate.
    """
    _check(low, high, steps)
    plain = replace(recipe, ema_decay=None, distillation=0.0, compile=False)
    rates, swept = np.geomspace(low, high, steps).tolist(), copy.deepcopy(net)
    every = range(torch.cuda.device_count())  # a step keeps the CPU's random state alone
    with torch.random.fork_rng(every), regularised(swept, plain):
        stepper = Stepper(swept, train_set, preset=preset, recipe=plain, steps=steps,
                          seed=seed, accelerator=accelerator, task=task, threads=threads)  # fmt: skip
        losses = _swept(stepper, plain, rates, progress)
    smoothed = _smooth(losses, WIDTH * steps) if len(losses) > 1 else losses
    if len(losses) < 2 or min(smoothed) > (1 - FELL) * smoothed[0]:
        raise InputError(
            f"the loss does not fall at any learning rate from {low:g} to {high:g} ({len(losses)} of "
            f"{steps} steps were taken)", "widen the range, take more steps, or name a rate with --lr"
        )  # fmt: skip
    return LrCurve(rates=tuple(rates[: len(losses)]), losses=tuple(losses), smoothed=tuple(smoothed))


def _check(low: float, high: float, steps: int) -> None:
    problems = []
    if not 0 < low < high < math.inf:
        problems.append(f"learning rates from {low:g} to {high:g} are no range above 0")
    if steps < 10:
        problems.append(f"steps is {steps}, must be 10 or more")
    if problems:
        raise InputError("; ".join(problems))


def _swept(
    stepper: Stepper, recipe: Recipe, rates: Sequence[float], label: str | None
) -> list[float]:
    """The losses up to where they diverge."""
    losses: list[float] = []
    best = math.inf
    with Progress(len(rates), label, unit="step") as bar:
        for rate in rates:
            try:
                losses.append(stepper.step(lr=peak_lr(replace(recipe, lr=rate))))
            except TrainingDiverged:
                break
            bar.update(1, f"learning rate {rate:.1e}, loss {losses[-1]:.3f}")
            latest = _smooth(losses, WIDTH * len(rates))[-1]
            best = min(best, latest)
            if latest > DIVERGED * best:
                break
    return losses


def _smooth(losses: Sequence[float], deviation: float) -> list[float]:
    """A Gaussian's mean around each loss; at the ends of those that there are."""
    reach = math.ceil(3 * deviation)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)

    def around(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.convolve(values, kernel)[reach : reach + len(values)]

    found: list[float] = (around(np.asarray(losses)) / around(np.ones(len(losses)))).tolist()
    return found
