"""Which lowering of a network is the fastest here: the alternatives, measured side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from mobilefit import int8, litert
from mobilefit.arch import NetSpec
from mobilefit.device.host import measure_many, shared_worker
from mobilefit.device.protocol import Latency, Protocol
from mobilefit.errors import unknown
from mobilefit.litert.lowerings import DEFAULT, FLOAT, INT8
from mobilefit.nn import build
from mobilefit.runtime import Worker

Arithmetic = Literal["int8", "float"]


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One lowering of a network, measured."""

    name: str
    """A key of ``litert.lowerings.INT8`` or ``FLOAT``."""
    latency: Latency
    partitions: int
    """Of the XNNPACK delegate: 1 when the whole file runs in one."""


def alternatives(spec: NetSpec, arithmetic: Arithmetic = "int8") -> dict[str, bytes]:
    """A LiteRT file of each lowering of a network, with random weights: for latency only.

    Raises:
        InputError: an unknown arithmetic.
    """
    if arithmetic not in get_args(Arithmetic):
        raise unknown("arithmetic", arithmetic, get_args(Arithmetic))
    shape = (1, spec.in_channels, *spec.image_shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build(spec).eval()
    if arithmetic == "float":
        return {name: litert.compile(network, shape, lowering=name) for name in FLOAT}
    blob = litert.compile(network, shape)
    return {name: int8.with_random_ranges(blob, lowering=name) for name in INT8}


def compare(
    spec: NetSpec,
    arithmetic: Arithmetic = "int8",
    protocol: Protocol | None = None,
    *,
    worker: Worker | None = None,
) -> list[Timed]:
    """Measure every lowering of a network side by side; the default comes first.

    Raises:
        InputError: an unknown arithmetic.
    """
    files = alternatives(spec, arithmetic)
    worker = worker or shared_worker()
    latencies = measure_many(list(files.values()), protocol, worker=worker)
    return [
        Timed(name=name, latency=latency, partitions=worker.inspect(blob).partitions)
        for (name, blob), latency in zip(files.items(), latencies, strict=True)
    ]


def fastest(timed: Sequence[Timed], least_gain: float = 0.01) -> Timed:
    """The lowering to use: the fastest, unless the default is within ``least_gain`` of it.

    Args:
        timed: what :func:`compare` found.
        least_gain: share of the default's latency that another must save.
    """
    default = next(t for t in timed if t.name == DEFAULT)
    best = min(timed, key=lambda t: t.latency.median_ms)
    enough = best.latency.median_ms < default.latency.median_ms * (1 - least_gain)
    return best if enough else default
