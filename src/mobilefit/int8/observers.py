"""Ranges of activations from calibration images, by one of several rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from mobilefit.errors import InputError, unknown
from mobilefit.int8.limits import Range, span
from mobilefit.int8.simulation import Simulation
from mobilefit.litert.graph import Op

Observer = Literal["minmax", "percentile", "mse", "histogram"]
"""``minmax``: the extremes seen. ``percentile``: all but the outermost 1 in 20,000 at either end.
``mse``: the extremes, both shrunk by one factor, with the least squared error of rounding and clipping.
``histogram``: the same with a factor for each end (what torch's HistogramObserver aims at)."""

BINS = 2048
_TAIL = 5e-5
_FACTORS = np.linspace(0.2, 1.0, 81)
"""What ``mse`` and ``histogram`` shrink the extremes by."""

Floats = npt.NDArray[np.float64]


def observe(
    simulation: Simulation, batches: Sequence[torch.Tensor], observer: Observer = "percentile"
) -> dict[str, Range]:
    """The range of each activation of a graph over images.

    Args:
        simulation: of the graph; run in float.
        batches: ``[n, C, H, W]`` each, run twice by all observers but ``minmax``.

    Raises:
        InputError: an unknown observer, or a value that is not finite; it names the tensor.
    """
    if observer not in get_args(Observer):
        raise unknown("observer", observer, get_args(Observer))
    extremes = _extremes(simulation, batches)
    if observer == "minmax":
        return {name: span(low, high) for name, (low, high) in extremes.items()}
    rule = _RULES[observer]
    counts = _histograms(simulation, batches, extremes)
    return {name: span(*rule(counts[name], *extremes[name])) for name in extremes}


def _name(simulation: Simulation, op: Op | None) -> str:
    return simulation.graph.inputs[0].name if op is None else op.output.name


def _extremes(simulation: Simulation, batches: Iterable[torch.Tensor]) -> dict[str, tuple[float, float]]:
    found: dict[str, torch.Tensor] = {}

    def visit(op: Op | None, value: torch.Tensor) -> None:
        name, (low, high) = _name(simulation, op), torch.aminmax(value)
        now = torch.stack([-low, high])
        found[name] = torch.maximum(found[name], now) if name in found else now

    with torch.no_grad():
        for batch in batches:
            simulation.run(batch, "float", visit)
    extremes = {name: (-float(row[0]), float(row[1])) for name, row in found.items()}
    for name, (low, high) in extremes.items():
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError(
                f"'{name}' reaches {low} to {high} on the calibration images",
                "the weights or the images hold values that are not finite",
            )
    return extremes


def _histograms(
    simulation: Simulation, batches: Iterable[torch.Tensor], extremes: dict[str, tuple[float, float]]
) -> dict[str, Floats]:
    counts: dict[str, Floats] = {name: np.zeros(BINS) for name in extremes}

    def visit(op: Op | None, value: torch.Tensor) -> None:
        name = _name(simulation, op)
        low, high = extremes[name]
        if high > low:
            counts[name] += torch.histc(value, BINS, low, high).double().numpy()

    with torch.no_grad():
        for batch in batches:
            simulation.run(batch, "float", visit)
    return counts


# ---- rules: a histogram between two extremes to a range


def _percentile(counts: Floats, low: float, high: float) -> tuple[float, float]:
    total = counts.sum()
    if not total:
        return low, high
    seen = np.cumsum(counts) / total
    width = (high - low) / BINS
    first = int(np.searchsorted(seen, _TAIL, side="right"))
    last = int(np.searchsorted(seen, 1 - _TAIL, side="left"))
    return low + first * width, low + (last + 1) * width


def _mse(counts: Floats, low: float, high: float) -> tuple[float, float]:
    errors, lows, highs = _errors(counts, low, high)
    best = int(np.diagonal(errors).argmin())
    return float(lows[best]), float(highs[best])


def _histogram(counts: Floats, low: float, high: float) -> tuple[float, float]:
    errors, lows, highs = _errors(counts, low, high)
    first, second = np.unravel_index(int(errors.argmin()), errors.shape)
    return float(lows[first]), float(highs[second])


def _errors(counts: Floats, low: float, high: float) -> tuple[Floats, Floats, Floats]:
    """Squared error of each pair of ends ``[lows, highs]``, and the ends.

    Beyond the ends it is that of clipping; between them rounding is uniform: a twelfth of a step's square.
    """
    width = (high - low) / BINS
    centres: Floats = np.linspace(low + width / 2, high - width / 2, BINS)
    lows, highs = min(low, 0.0) * _FACTORS, max(high, 0.0) * _FACTORS
    below = (np.clip(lows[:, None] - centres, 0, None) ** 2 * counts).sum(1)
    above = (np.clip(centres - highs[:, None], 0, None) ** 2 * counts).sum(1)
    steps = (highs - lows[:, None]) / 255
    return below[:, None] + above + counts.sum() * steps**2 / 12, lows, highs


_RULES: dict[str, Callable[[Floats, float, float], tuple[float, float]]] = {
    "percentile": _percentile,
    "mse": _mse,
    "histogram": _histogram,
}
