"""The proxy task: each network trained briefly from scratch, scored on held-out images.

MnasNet trains each sample for 5 of ImageNet's epochs (section 5); here a number of steps. Detectors and
segmenters are trained with their heads, and scored by mAP and mIoU.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mobilefit.arch import NetSpec
from mobilefit.data import Preset
from mobilefit.nn import build
from mobilefit.search.evaluate import Evaluator, Outcome, Trial, outcome
from mobilefit.train import Recipe, fit, recalibrated
from mobilefit.train.classify import Classify
from mobilefit.train.task import Task


@dataclass(frozen=True, kw_only=True)
class ProxyTask:
    """The training that stands for the full one."""

    train_set: Any
    """Of the task's kind, an ``ImageSet`` say."""
    held_out: Any
    """Set apart from training; never the test images."""
    preset: Preset
    recipe: Recipe
    steps: int
    seed: int
    task: Task = field(default_factory=Classify)

    def accuracy(self, spec: NetSpec) -> float:
        """The task's score on the held-out images after the short training; the same for the same network."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = build(spec)
        fit(
            network, self.train_set, preset=self.preset, recipe=self.recipe, task=self.task,
            steps=self.steps, seed=self.seed,
        )  # fmt: skip
        recalibrated(network, self.train_set, self.preset, self.recipe, self.task)
        return self.task.evaluate(network, self.held_out, self.preset).row()[self.task.score]


class Proxy(Evaluator):
    """Trains every network on its own, here, one after the other."""

    name = "proxy"

    def __init__(self, task: ProxyTask) -> None:
        self._task = task

    def evaluate(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        """One short training each."""
        for trial in trials:
            yield outcome(trial.number, functools.partial(self._task.accuracy, trial.spec))
