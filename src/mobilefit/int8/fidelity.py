"""Does the simulation compute what the file computes?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mobilefit.int8.simulation import Simulation, channels_last

LEAST_TOP1, LEAST_WITHIN_ONE_STEP = 0.995, 0.99


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """A simulation against its int8 file."""

    images: int
    top1: float
    """Share of images with the same top-1; of anchors or pixels where each has logits of its own."""
    equal: float
    """Share of output values that are equal."""
    within_one_step: float
    """Share of output values that are at most one step of the output's scale apart."""

    @property
    def ok(self) -> bool:
        """Whether the file computes what was simulated, but for single roundings."""
        return self.top1 >= LEAST_TOP1 and self.within_one_step >= LEAST_WITHIN_ONE_STEP

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "ok": self.ok}


def fidelity_of(
    simulation: Simulation,
    run: Callable[[np.ndarray], np.ndarray | Sequence[np.ndarray]],
    batches: Sequence[torch.Tensor],
) -> Fidelity:
    """Compare the two over images.

    Args:
        simulation: that the file was written from.
        run: the file: ``[n, H, W, C]`` to its outputs, float32, channels last: logits ``[n, k]`` or
            ``[n, H, W, k]``, or encodings and logits of a detector.
        batches: ``[n, C, H, W]`` each.
    """
    simulation.eval()
    same, near, top, count, places = 0, 0, 0, 0, 0
    for batch in batches:
        with torch.no_grad():
            mine = channels_last(simulation.run(batch, "int8"))
        theirs = run(np.ascontiguousarray(batch.permute(0, 2, 3, 1).numpy()))
        theirs = (theirs,) if isinstance(theirs, np.ndarray) else theirs
        for ours, found, step in zip(mine, theirs, simulation.output_steps, strict=True):
            steps = np.abs(ours - found) / step
            same, near = same + int((steps < 0.01).sum()), near + int((steps < 1.01).sum())
            count += steps.size
        agree = mine[-1].argmax(-1) == theirs[-1].argmax(-1)  # the logits come last
        top, places = top + int(agree.sum()), places + agree.size
    return Fidelity(
        images=sum(map(len, batches)), top1=top / places, equal=same / count, within_one_step=near / count
    )
