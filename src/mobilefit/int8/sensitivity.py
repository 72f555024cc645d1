"""What each layer's int8 arithmetic costs alone: which layers to keep in float."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mobilefit.int8.policy import Arithmetic, layers
from mobilefit.int8.simulation import Simulation
from mobilefit.progress import Progress


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """A network whose one layer is int8 and the rest float, against float altogether."""

    layer: str
    snr_db: float
    """Of the logits: 10 log10 of their variance over the mean squared error; of the worst output where
    there are several."""
    accuracy_drop: float | None
    """Top-1, 0 to 1; below 0 where rounding happened to help. ``None``: no labels were given."""
    agreement: float
    """Share of images with the same top-1; of anchors or pixels where each has logits of its own."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def sensitivity_of(
    simulation: Simulation,
    batches: Sequence[torch.Tensor],
    labels: np.ndarray | None = None,
    *,
    progress: str | None = None,
) -> list[LayerSensitivity]:
    """Run a graph once for each layer with that layer alone in int8; the worst comes first.

    Args:
        simulation: with ranges.
        batches: ``[n, C, H, W]`` each; a few hundred images tell the layers apart.
        labels: of all images, ``[N]``; ``None`` for what is no classifier.
        progress: label of the progress on standard error; None: silent.
    """
    simulation.eval()
    wanted = None if labels is None else torch.from_numpy(np.asarray(labels)).long()
    exact = _outputs(simulation, batches, "float")
    best = _best(exact)
    found = []
    names = layers(simulation.graph)
    with Progress(len(names), progress, unit="layer") as bar:
        for name in names:
            with simulation.only(name):
                rounded = _outputs(simulation, batches, "int8")
            top = _best(rounded)
            found.append(LayerSensitivity(
                layer=name,
                snr_db=round(min(map(signal_to_noise, exact, rounded)), 2),
                accuracy_drop=None if wanted is None else _share(best == wanted) - _share(top == wanted),
                agreement=_share(top == best),
            ))  # fmt: skip
            bar.update(1)
    return sorted(found, key=lambda row: row.snr_db)


def signal_to_noise(exact: torch.Tensor, rounded: torch.Tensor) -> float:
    """Decibels; infinite where both are equal."""
    noise = float((exact - rounded).double().square().mean())
    return 10 * math.log10(float(exact.double().var()) / noise) if noise else math.inf


def _share(hits: torch.Tensor) -> float:
    return float(hits.float().mean())


def _best(outputs: list[torch.Tensor]) -> torch.Tensor:
    """The largest of the logits, which come last, at each place that has some."""
    return outputs[-1].argmax(1 if outputs[-1].dim() == 4 else -1)


def _outputs(
    simulation: Simulation, batches: Sequence[torch.Tensor], arithmetic: Arithmetic
) -> list[torch.Tensor]:
    """Each output for all images."""
    with torch.no_grad():
        runs = [simulation.run(batch, arithmetic) for batch in batches]
    several = [run if isinstance(run, tuple) else (run,) for run in runs]
    return [torch.cat(parts) for parts in zip(*several, strict=True)]
