"""What the tests of the rooms that make and run model files share: networks and fixtures."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn

from mobilefit.arch import Block, ClassifierHead, Conv, NetSpec
from mobilefit.runtime import Worker


def pooled_network(side: int, act: str = "relu") -> NetSpec:
    """Rows whose input is pooled before it is added, and convolutions with squeeze-and-excite."""
    return NetSpec(
        name="pooled",
        input_size=side,
        stem=Conv(out=8, kernel=3, stride=2, act=act),
        blocks=(
            Block(expand=24, out=8, se="mnasnet", act=act, skip="pool"),
            Block(op="separable", kernel=5, out=8, act=act, skip="pool"),
            Block(op="conv", out=8, se="v3", act=act),
            Block(op="fused", expand=16, out=8, stride=2, act=act, skip="pool"),
            Block(op="conv", out=8, stride=2, se="mnasnet", act=act, skip="pool"),
        ),
        last=Conv(out=32, act=act),
        head=ClassifierHead(num_classes=5),
    )


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    with Worker() as started:
        yield started


@pytest.fixture(scope="session")
def randomized() -> Callable[[nn.Module], nn.Module]:
    """Gives every batch norm random parameters and statistics, so that folding shows."""

    def randomize(net: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(0)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                if module.affine:
                    module.weight.data.uniform_(0.5, 1.5, generator=generator)
                    module.bias.data.normal_(0, 0.3, generator=generator)
        return net.eval()

    return randomize


@pytest.fixture(scope="session")
def images() -> Callable[..., np.ndarray]:
    """Random NHWC arrays of a torch shape (n, c, h, w)."""

    def make(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
        random = np.random.default_rng(seed)
        n, *rest = shape
        nhwc = (n, *rest[1:], rest[0]) if len(rest) == 3 else shape
        return random.normal(size=nhwc).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def reference() -> Callable[[nn.Module, np.ndarray], np.ndarray]:
    """What torch computes, channels last as LiteRT returns it."""

    def run(net: nn.Module, array: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(array)
        with torch.no_grad():
            y = net.eval()(x.permute(0, 3, 1, 2) if x.ndim == 4 else x)
        return (y.permute(0, 2, 3, 1) if y.ndim == 4 else y).numpy()

    return run
