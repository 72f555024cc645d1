"""What a training asks of a task: batches, a loss, a measure of how good the network is."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from mobilefit.data import Preset
from mobilefit.data.order import Indices
from mobilefit.train.loss import Teacher
from mobilefit.train.recipe import Recipe

Targets = Tensor | tuple[Tensor, ...]
"""What the images of a batch should give, the first dimension of each tensor an image."""


class Feed(Protocol):
    """Every batch of a training, by the number of its step: see :class:`mobilefit.data.Feed`."""

    def __call__(self, step: int) -> tuple[Tensor, Any]:
        """Images float32 [n, 3, h, w] and their targets."""

    def chosen(self, step: int) -> Indices:
        """Which images of the set those are."""


class Objective(Protocol):
    """What is minimised."""

    def prepared(self, images: Tensor, targets: Any) -> tuple[Tensor, Any]:
        """A batch as the loss wants it: images mixed, where the recipe mixes (drawn from torch's global
        generator), boxes matched with anchors."""

    def counts(self, targets: Any) -> tuple[int, ...]:
        """How many there are, in prepared targets, of what each term of the loss is a mean over: images, anchors
        that answer for a box, labelled pixels. A term is divided by their number in the whole batch, however
        many parts or processes share that."""

    def __call__(self, outputs: Any, targets: Any, images: Tensor) -> Tensor:
        """The sum of the losses of each term, [terms], or a number where there is one."""


class SoftObjective(Protocol):
    """How far a network's outputs are from those of a teacher, which saw the same crops at its own resolution."""

    def answers(self, outputs: tuple[Tensor, ...], images: Tensor) -> tuple[Tensor, ...]:
        """A teacher's outputs as the network is to give them, the first dimension of each an image.

        Args:
            outputs: what the teacher gave, a single tensor as a tuple too.
            images: the network's, [n, 3, h, w].
        """

    def count(self, answers: tuple[Tensor, ...], labelled: int) -> int:
        """How many there are of what the loss is a mean over.

        Args:
            labelled: the same of the labels' loss.
        """

    def __call__(self, outputs: Any, answers: tuple[Tensor, ...]) -> Tensor:
        """The sum of the losses, by the recipe's temperature."""


class Found(Protocol):
    """What an evaluation found."""

    def row(self) -> dict[str, float]:
        """What the history keeps of it, the task's score among it."""


class Task(Protocol):
    """A kind of data, of output and of quality. ``train_set`` and ``images`` are sets of its own kind,
    with a length, ``names`` and ``subset``."""

    score: str
    """Key of the number in :meth:`Found.row` that is to be high."""

    def require(self, net: nn.Module, sets: list[Any]) -> None:
        """See that the network has an output for everything in the sets.

        Raises:
            InputError: it has not.
        """

    def identity(self, train_set: Any) -> str:
        """What tells this set from others, in a line."""

    def feed(
        self, train_set: Any, preset: Preset, recipe: Recipe, *, seed: int, rank: int = 0, ranks: int = 1
    ) -> Feed:
        """The batches of a training; of each the part of process ``rank``."""

    def objective(
        self, net: nn.Module, train_set: Any, recipe: Recipe, teacher: Teacher | None, device: torch.device
    ) -> Objective:
        """The loss of a recipe.

        Raises:
            InputError: the recipe wants what the task has not.
        """

    def soft_objective(
        self, net: nn.Module, teacher: nn.Module, recipe: Recipe, device: torch.device
    ) -> SoftObjective:
        """The loss of a recipe's distillation.

        Raises:
            InputError: the teacher answers something else than the network.
        """

    def evaluate(
        self, net: nn.Module, images: Any, preset: Preset, *, fabric: Fabric | None = None
    ) -> Found:
        """How good the network is on some images; its processes share the work."""
