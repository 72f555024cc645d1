"""How long a training is, and when something else than a step happens."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass

from mobilefit.data import batch_count
from mobilefit.errors import InputError
from mobilefit.train.recipe import Recipe

ROWS = 40
"""About how many rows of metrics a run has, and at least one for every ``MOST_STEPS_A_ROW``."""
MOST_STEPS_A_ROW = 100


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Steps are counted from 1 here: "after so many steps"."""

    steps: int
    steps_per_epoch: int
    row_every: int
    checkpoint_every: int

    def is_row(self, step: int) -> bool:
        """Whether the history gets a row after ``step`` steps."""
        every = (self.row_every, self.steps_per_epoch, self.checkpoint_every)
        return step == self.steps or any(step % number == 0 for number in every)

    def is_checkpoint(self, step: int) -> bool:
        """Whether a checkpoint is written after ``step`` steps."""
        return step == self.steps or step % self.checkpoint_every == 0

    def is_validation(self, step: int) -> bool:
        """Whether the validation images are evaluated after ``step`` steps."""
        return step == self.steps or step % self.steps_per_epoch == 0


def plan_for(
    train_set: Sized, recipe: Recipe, steps: int | None, checkpoint_every: int | None
) -> Plan:
    """The plan of a training.

    Args:
        steps: ``None``: the recipe's epochs.
        checkpoint_every: steps; ``None``: an epoch.

    Raises:
        InputError: a number under one, or fewer than two images.
    """
    for name, value in (("steps", steps), ("checkpoint_every", checkpoint_every)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}, must be 1 or more")
    if len(train_set) < 2:
        raise InputError(f"{len(train_set)} training images: batch norm needs at least 2")
    per_epoch = batch_count(len(train_set), recipe.batch_size, train=True)
    total = recipe.epochs * per_epoch if steps is None else steps
    return Plan(
        steps=total,
        steps_per_epoch=per_epoch,
        row_every=min(MOST_STEPS_A_ROW, max(1, total // ROWS)),
        checkpoint_every=checkpoint_every or per_epoch,
    )
