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
``mse``: the range with the least squared error of rounding and clipping. ``histogram``: the range whose
256 steps keep most of the distribution's information (least Kullback-Leibler divergence: Migacz, "8-bit
inference with TensorRT", 2017)."""

BINS = 2048
_TAIL = 5e-5
_TRIALS = [part / 100 for part in range(30, 101)]
"""Parts of the extremes that ``mse`` and ``histogram`` choose from."""

Floats = npt.NDArray[np.float64]


def observe(
    simulation: Simulation, batches: Sequence[torch.Tensor], observer: Observer = "minmax"
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


def _shrunk(score: Callable[[Floats, Floats, float, float], float]) -> Callable[..., tuple[float, float]]:
    """The rule that takes the part of the extremes with the least score."""

    def rule(counts: Floats, low: float, high: float) -> tuple[float, float]:
        if not counts.sum():
            return low, high
        width = (high - low) / BINS
        centres: Floats = np.linspace(low + width / 2, high - width / 2, BINS)
        choices = [(low * part, high * part) for part in _TRIALS]
        return min(choices, key=lambda ends: score(counts, centres, min(ends[0], 0.0), max(ends[1], 0.0)))

    return rule


def _squared_error(counts: Floats, centres: Floats, low: float, high: float) -> float:
    step = (high - low) / 255
    clipped = np.clip(centres, low, high)
    # inside, the error of rounding is uniform: step^2 / 12
    return float((counts * ((centres - clipped) ** 2 + step**2 / 12)).sum())


def _divergence(counts: Floats, centres: Floats, low: float, high: float) -> float:
    """Of the distribution with its tails clipped from the one that 256 steps can tell apart."""
    inside = (centres >= low) & (centres <= high)
    kept = np.flatnonzero(inside)
    if len(kept) < 2:
        return np.inf
    real = counts[inside].copy()
    real[0] += counts[: kept[0]].sum()
    real[-1] += counts[kept[-1] + 1 :].sum()
    cells = np.minimum(((centres[inside] - low) / max(high - low, 1e-30) * 256).astype(int), 255)
    occupied = counts[inside] > 0
    sums = np.bincount(cells, counts[inside], 256)
    filled = np.bincount(cells, occupied, 256)
    coarse = np.where(occupied, sums[cells] / np.maximum(filled[cells], 1), 0.0)
    p, q = real / real.sum(), coarse / max(coarse.sum(), 1e-30)
    shown = p > 0
    return float((p[shown] * np.log(p[shown] / np.maximum(q[shown], 1e-9))).sum())


_RULES: dict[str, Callable[..., tuple[float, float]]] = {
    "percentile": _percentile,
    "mse": _shrunk(_squared_error),
    "histogram": _shrunk(_divergence),
}
