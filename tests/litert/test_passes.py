"""Lowering h-swish and folding constant factors change no number and leave no needless operator."""

from __future__ import annotations

import operator

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from mobilefit.litert import compile
from mobilefit.litert.graph import CODE, parse, serialize
from mobilefit.litert.lowerings import Lowering, lower
from mobilefit.nn.layers import MaxPool2d


class Join(nn.Module):
    """``join(left(x), right(x))``"""

    def __init__(self, left, right, join=operator.add):
        super().__init__()
        self.left, self.right, self.join = left, right, join

    def forward(self, x):
        return self.join(self.left(x), self.right(x))


class Repeat(nn.Module):
    """``f(x) + g(f(x))``"""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x):
        x = self.first(x)
        return x + self.second(x)


def conv():
    return nn.Conv2d(6, 6, 1)


def swish():
    return nn.Sequential(conv(), nn.Hardswish())


def lowered(blob):
    graph = parse(blob)
    lower(graph, Lowering())
    return serialize(graph)


def factors(blob):
    """How many multiplications by a constant are left."""
    constants = [op.inputs[1].data for op in parse(blob).ops if op.code == CODE.MUL]
    return sum(data is not None and data.size == 1 for data in constants)


# module, multiplications by a constant that must remain
CASES = {
    "into a conv": (lambda: nn.Sequential(swish(), conv()), 0),
    "into a depthwise conv": (lambda: nn.Sequential(swish(), nn.Conv2d(6, 6, 3, groups=6)), 0),
    "into a linear layer through the pool": (
        lambda: nn.Sequential(swish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)), 0,
    ),
    "through relu and padding": (
        lambda: nn.Sequential(swish(), nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1)), 0,
    ),
    "at the output": (swish, 1),
    "before another h-swish": (lambda: nn.Sequential(swish(), nn.Hardswish(), conv()), 1),
    "before relu6": (lambda: nn.Sequential(swish(), nn.ReLU6(), conv()), 1),
    "product of two": (
        lambda: nn.Sequential(Join(swish(), swish(), operator.mul), conv()), 0,
    ),
    "sum of two": (lambda: nn.Sequential(Join(swish(), swish()), conv()), 0),
    "residual whose other branch is linear (V3-Large's block 1)": (
        lambda: nn.Sequential(Repeat(swish(), conv()), conv()), 0,
    ),
    "the same with the branches exchanged": (
        lambda: nn.Sequential(Join(conv(), swish()), conv()), 0,
    ),
    "residual whose other branch ends in relu": (
        lambda: nn.Sequential(Join(swish(), nn.Sequential(conv(), nn.ReLU())), conv()), 0,
    ),
    "residual whose other branch ends in relu6": (
        lambda: nn.Sequential(Join(swish(), nn.Sequential(conv(), nn.ReLU6())), conv()), 1,
    ),
    "residual whose other branch is read twice": (
        lambda: nn.Sequential(Join(swish(), nn.Sequential(conv(), Repeat(conv(), nn.ReLU()))),
                              conv()), 1,
    ),
    "residual into relu6": (
        lambda: nn.Sequential(Join(swish(), conv()), nn.ReLU6(), conv()), 1,
    ),
    "sum of a sum": (
        lambda: nn.Sequential(Repeat(Repeat(swish(), conv()), conv()), conv()), 0,
    ),
    "pooled residual (V3's row with a pool)": (
        lambda: nn.Sequential(swish(), Join(MaxPool2d(2), nn.Conv2d(6, 6, 3, 2, 1)), conv()), 0,
    ),
    "gated": (
        lambda: nn.Sequential(swish(), Join(nn.Identity(), nn.Sequential(
            nn.AdaptiveAvgPool2d(1), conv(), nn.ReLU(), conv(), nn.Hardsigmoid()), operator.mul),
            conv()), 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_folding_is_exact_and_complete(name, worker, images, reference):
    torch.manual_seed(0)
    make, remaining = CASES[name]
    net, array = make(), images((1, 6, 8, 8)) * 3
    blob = lowered(compile(net, (1, 6, 8, 8)))
    assert abs(worker.run(blob, array) - reference(net, array)).max() < 1e-5
    assert factors(blob) == remaining
    assert CODE.HARD_SWISH not in {op.code for op in parse(blob).ops}


def test_a_factor_at_the_output_can_be_dropped(worker, images, reference):
    torch.manual_seed(0)
    net, array = swish(), images((1, 6, 8, 8))
    graph = parse(compile(net, (1, 6, 8, 8)))
    lower(graph, Lowering(), drop_at_outputs=True)
    assert [op.name for op in graph.ops] == ["CONV_2D", "ADD", "MUL"]
    result = worker.run(serialize(graph), array)
    assert np.allclose(result, 6 * reference(net, array), atol=1e-5)


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "mobilenet_v3_small"])
def test_whole_networks_keep_no_factor(name, worker, randomized, images):
    torch.manual_seed(0)
    net = randomized(getattr(torchvision.models, name)(weights=None))
    blob, array = compile(net, (1, 3, 96, 96)), images((1, 3, 96, 96))
    rewritten = lowered(blob)
    assert factors(blob) == factors(rewritten) == 0
    assert abs(worker.run(blob, array) - worker.run(rewritten, array)).max() < 1e-5
