"""Times of operators by differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mobilefit import litert
from mobilefit.device import Protocol
from mobilefit.device.profile import WINDOW, profile
from mobilefit.errors import InputError
from mobilefit.int8 import with_random_ranges
from mobilefit.litert.graph import parse
from mobilefit.runtime import TimingSamples, Worker


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(9))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


@pytest.fixture(scope="module")
def blob() -> bytes:
    torch.manual_seed(0)
    return litert.compile(Residual().eval(), (1, 8, 6, 6))


class CountingWorker(Worker):
    """A file takes one millisecond an operator, in a machine that gets slower with every call."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Any, ...]] = []

    def time_many(  # type: ignore[override]
        self, blobs: Sequence[bytes], *, threads: int, core: int | None, rule: Any
    ) -> list[TimingSamples]:
        self.asked.append((threads, core))
        graphs = [parse(blob) for blob in blobs]
        assert all(len(b.ops) - len(a.ops) == 1 for a, b in pairwise(graphs))
        slow = 100.0 * len(self.asked)
        return [TimingSamples([slow + len(g.ops)] * 3, stable=True) for g in graphs]


def test_differences_by_hand(blob: bytes) -> None:
    worker = CountingWorker()
    found = profile(blob, Protocol(core=0), rounds=3, worker=worker)
    assert [t.op for t in found] == ["CONV_2D", "ADD"] * 9
    assert len({t.name for t in found}) == 18
    assert all((t.ms, t.least_ms, t.most_ms) == (1, 1, 1) for t in found[1:])  # the drift is out
    assert (found[0].ms, found[0].least_ms, found[0].most_ms) == (201, 101, 301)
    assert set(worker.asked) == {(1, 0)} and len(worker.asked) == 3 * -(-18 // WINDOW)


@pytest.mark.parametrize("make", [bytes, with_random_ranges])
def test_every_cut_computes_what_the_whole_file_computes(
    make: Callable[[bytes], bytes], blob: bytes, worker: Worker
) -> None:
    """The last cut is the file itself; each one before it runs, whatever its ends are."""
    whole, image = make(blob), np.random.default_rng(0).normal(size=(1, 6, 6, 8)).astype(np.float32)
    cuts: dict[int, bytes] = {}

    class Keeper(CountingWorker):
        def time_many(self, blobs: Sequence[bytes], **more: Any) -> list[TimingSamples]:  # type: ignore[override]
            cuts.update({len(parse(cut).ops): cut for cut in blobs})
            return super().time_many(blobs, **more)

    profile(whole, rounds=1, worker=Keeper())
    operators = len(parse(whole).ops)
    assert sorted(cuts) == list(range(1, operators + 1))
    for cut in cuts.values():
        assert worker.run(cut, image).size
    assert np.array_equal(worker.run(cuts[operators], image), worker.run(whole, image))


def test_the_heavy_operator_has_most_of_the_time(worker: Worker) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 64, 5), nn.Conv2d(64, 8, 1))
    found = profile(litert.compile(net.eval(), (1, 4, 48, 48)), rounds=3, worker=worker)
    assert [t.op for t in found] == ["CONV_2D"] * 3
    assert found[1].ms > 0.5 * sum(t.ms for t in found)
    assert all(t.least_ms <= t.ms <= t.most_ms for t in found)


def test_a_damaged_file_is_refused(blob: bytes, worker: Worker) -> None:
    with pytest.raises(InputError, match="truncated or corrupt"):
        profile(blob[: len(blob) // 2], worker=worker)
