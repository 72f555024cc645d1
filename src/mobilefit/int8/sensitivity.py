"""What each layer's int8 arithmetic costs alone: which layers to keep in float."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mobilefit.int8.policy import layers
from mobilefit.int8.simulation import Simulation
from mobilefit.progress import Progress


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """A network whose one layer is int8 and the rest float, against float altogether."""

    layer: str
    snr_db: float
    """Of the logits: 10 log10 of their variance over the mean squared error."""
    accuracy_drop: float
    """Top-1, 0 to 1; below 0 where rounding happened to help."""
    agreement: float
    """Share of images with the same top-1."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def sensitivity_of(
    simulation: Simulation,
    batches: Sequence[torch.Tensor],
    labels: np.ndarray,
    *,
    progress: str | None = None,
) -> list[LayerSensitivity]:
    """Run a graph once for each layer with that layer alone in int8; the worst comes first.

    Args:
        simulation: with ranges.
        batches: ``[n, C, H, W]`` each; a few hundred images tell the layers apart.
        labels: of all images, ``[N]``.
        progress: label of the progress on standard error; None: silent.
    """
    simulation.eval()
    wanted = torch.from_numpy(np.asarray(labels)).long()
    exact = _logits(simulation, batches, "float")
    right = (exact.argmax(1) == wanted).float().mean()
    found = []
    names = layers(simulation.graph)
    with Progress(len(names), progress, unit="layer") as bar:
        for name in names:
            with simulation.only(name):
                logits = _logits(simulation, batches, "int8")
            top = logits.argmax(1)
            found.append(LayerSensitivity(
                layer=name, snr_db=round(signal_to_noise(exact, logits), 2),
                accuracy_drop=float(right - (top == wanted).float().mean()),
                agreement=float((top == exact.argmax(1)).float().mean()),
            ))  # fmt: skip
            bar.update(1)
    return sorted(found, key=lambda row: row.snr_db)


def signal_to_noise(exact: torch.Tensor, rounded: torch.Tensor) -> float:
    """Decibels; infinite where both are equal."""
    noise = float((exact - rounded).double().square().mean())
    return 10 * math.log10(float(exact.double().var()) / noise) if noise else math.inf


def _logits(simulation: Simulation, batches: Sequence[torch.Tensor], arithmetic: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([simulation.run(batch, arithmetic) for batch in batches])
