"""A network whose logits spread, and what the module says to a few images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graphs import images, worker
from torch import nn

from mobilefit.arch import NetSpec, spec
from mobilefit.nn import Network, build

__all__ = ["images", "worker"]

METADATA = {
    "preset": {"resolution": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "crop_fraction": 0.875},
    "classes": [f"class {i}" for i in range(10)],
}


def lively(given: NetSpec, side: int = 32) -> Network:
    """A network for 10 classes with batch statistics of its own, so that its logits reach about 5 and differ by image."""
    torch.manual_seed(0)
    network = build(given.resolution(side).classes(10))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(128, 3, side, side))
        scale = 5 / network.eval()(torch.randn(32, 3, side, side)).abs().max()
        last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        last.weight.mul_(scale)
        last.bias.mul_(scale)
    return network


@pytest.fixture(scope="session")
def network() -> Network:
    return lively(spec("mobilenet_v3_small"))


def planes(count: int, side: int = 32) -> np.ndarray:
    """Images ``[n, 3, side, side]``."""
    return np.random.default_rng(count).normal(size=(count, 3, side, side)).astype(np.float32)


def said(network: nn.Module, array: np.ndarray) -> np.ndarray:
    """The module's logits."""
    with torch.no_grad():
        found: np.ndarray = network(torch.from_numpy(array)).numpy()
    return found
