"""The proxy task: each network trained briefly from scratch, scored on held-out images.

MnasNet trains each sample for 5 of ImageNet's epochs (section 5); here a number of steps.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from mobilefit.arch import NetSpec
from mobilefit.data import ImageSet, Preset, batches
from mobilefit.nn import Network, build
from mobilefit.search.evaluate import Evaluator, Outcome, Trial, outcome
from mobilefit.train import Recipe, evaluate, fit, recalibrate_bn

STATISTICS_BATCHES = 8
"""Batches that a network's batch norms are set to after its short training."""


@dataclass(frozen=True, kw_only=True)
class ProxyTask:
    """The training that stands for the full one."""

    train_set: ImageSet
    held_out: ImageSet
    """Set apart from training; never the test images."""
    preset: Preset
    recipe: Recipe
    steps: int
    seed: int

    def accuracy(self, spec: NetSpec) -> float:
        """Top-1 on the held-out images after the short training; the same for the same network."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = build(spec)
        fit(
            network, self.train_set, preset=self.preset, recipe=self.recipe, steps=self.steps,
            seed=self.seed,
        )  # fmt: skip
        recalibrated(network, self.train_set, self.preset, self.recipe)
        return evaluate(network, self.held_out, self.preset).top1


def recalibrated(
    network: Network, train_set: ImageSet, preset: Preset, recipe: Recipe
) -> Network:
    """A network with the statistics of a few training batches in the place of its running ones.

    These follow a short training only from afar: after 25 steps most networks were at chance by them.
    """
    found = batches(
        train_set, preset, recipe.batch_size, train=True, augment=recipe.augmentation
    )
    recalibrate_bn(network, (images for images, _ in itertools.islice(found, STATISTICS_BATCHES)))
    return network


class Proxy(Evaluator):
    """Trains every network on its own, here, one after the other."""

    name = "proxy"

    def __init__(self, task: ProxyTask) -> None:
        self._task = task

    def evaluate(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        """One short training each."""
        for trial in trials:
            yield outcome(trial.number, functools.partial(self._task.accuracy, trial.spec))
