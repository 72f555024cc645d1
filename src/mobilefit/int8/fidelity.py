"""Does the simulation compute what the file computes?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mobilefit.int8.simulation import Simulation

LEAST_TOP1, LEAST_WITHIN_ONE_STEP = 0.995, 0.99


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """A simulation against its int8 file."""

    images: int
    top1: float
    """Share of images with the same top-1."""
    equal: float
    """Share of logits that are equal."""
    within_one_step: float
    """Share of logits that are at most one step of the output's scale apart."""

    @property
    def ok(self) -> bool:
        """Whether the file computes what was simulated, but for single roundings."""
        return self.top1 >= LEAST_TOP1 and self.within_one_step >= LEAST_WITHIN_ONE_STEP

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "ok": self.ok}


def fidelity_of(
    simulation: Simulation, run: Callable[[np.ndarray], np.ndarray], batches: Sequence[torch.Tensor]
) -> Fidelity:
    """Compare the two over images.

    Args:
        simulation: that the file was written from.
        run: the file: ``[n, H, W, C]`` to logits ``[n, k]``, float32.
        batches: ``[n, C, H, W]`` each.
    """
    simulation.eval()
    with torch.no_grad():
        mine = torch.cat([simulation.run(batch, "int8") for batch in batches]).numpy()
    theirs = np.concatenate(
        [run(np.ascontiguousarray(batch.permute(0, 2, 3, 1).numpy())) for batch in batches]
    )
    steps = np.abs(mine - theirs) / simulation.output_step
    return Fidelity(
        images=len(mine), top1=float((mine.argmax(1) == theirs.argmax(1)).mean()),
        equal=float((steps < 0.01).mean()), within_one_step=float((steps < 1.01).mean()),
    )  # fmt: skip
