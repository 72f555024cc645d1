"""Bias correction: rounded weights shift a layer's mean output, its bias takes that back."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mobilefit.int8.simulation import Simulation
from mobilefit.litert.graph import Op
from mobilefit.litert.passes import LINEAR

_MOST_VALUES = 64 * 3 * 224 * 224
"""Of the images that are looked at: all of them run at once, which takes a hundred times the memory."""


def correct_biases(simulation: Simulation, batches: Sequence[torch.Tensor]) -> None:
    """Shift the bias of every linear layer by the mean error of its outputs, in place.

    Layer by layer in the order of execution, each with the corrections before it in effect: the
    empirical form of Nagel et al. (2019, arXiv:1906.04721, appendix D). What is compared is the
    value before a fused activation.
    """
    images = torch.cat(list(batches))
    images = images[: max(1, _MOST_VALUES // images[0].numel())]
    reference: dict[Op, torch.Tensor] = {}

    def note(op: Op | None, value: torch.Tensor) -> None:
        if op is not None and op.code in LINEAR:
            reference[op] = _means(value)

    def shift(op: Op | None, value: torch.Tensor) -> torch.Tensor | None:
        if op not in reference:
            return None
        assert op is not None
        error = reference[op] - _means(value)
        simulation.bias(op).data += error
        return value + (error if value.dim() == 2 else error[:, None, None])

    with torch.no_grad():
        simulation.run(images, "float", before_activation=note)
        simulation.run(images, "int8", before_activation=shift)


def _means(value: torch.Tensor) -> torch.Tensor:
    return value.mean((0, 2, 3)) if value.dim() == 4 else value.mean(0)
