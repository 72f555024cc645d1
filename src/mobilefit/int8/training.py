"""Quantization-aware training: the weights adapt to the rounding of the device."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from mobilefit.data import ImageSet, Preset
from mobilefit.int8.simulation import Simulation
from mobilefit.train import FitResult, Recipe, fit

DELAY = 0.05
"""Share of the steps that run in float first, while the ranges settle on training batches."""
FREEZE = 0.7
"""Share of the steps after which the ranges stay: the weights settle on the steps they will have."""


def fit_int8(
    simulation: Simulation,
    train_set: ImageSet,
    *,
    preset: Preset,
    recipe: Recipe,
    steps: int,
    validation: ImageSet | None = None,
    seed: int = 0,
    out: Path | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    progress: str | None = None,
) -> FitResult:
    """Train a simulation's weights and ranges in place (Jacob et al., 2018, section 3).

    Batch norm is folded already, so there are no statistics beside the ranges: these follow a moving
    average of the batches' extremes, and stay from :data:`FREEZE` of the steps on. With a recipe that
    distils, the teacher is the network as it came in, in float.

    Args:
        simulation: calibrated; what :func:`mobilefit.int8.written` then makes a file of.
        steps: optimizer steps.

    The other arguments and the errors are those of :func:`mobilefit.train.fit`.
    """
    simulation.delay, simulation.freeze = round(DELAY * steps), round(FREEZE * steps)
    teacher = copy.deepcopy(simulation).eval() if recipe.distillation else None

    def taught(images: torch.Tensor) -> torch.Tensor:
        assert teacher is not None
        logits = teacher.to(images.device).run(images, "float")
        assert isinstance(logits, torch.Tensor)  # of a classifier: fit distils no other
        return logits

    return fit(
        simulation, train_set, preset=preset, recipe=recipe, validation=validation, seed=seed,
        steps=steps, out=out, resume=resume, checkpoint_every=checkpoint_every, progress=progress,
        teacher=taught if teacher is not None else None,
    )  # fmt: skip
