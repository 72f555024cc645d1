"""Batch norm's running statistics in trainings that are shorter than ImageNet's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


def batch_norms(net: nn.Module) -> list[nn.BatchNorm2d]:
    """All batch norms of a network, in order."""
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


@contextlib.contextmanager
def momentum(net: nn.Module, value: float | None) -> Iterator[None]:
    """Within the block, the running statistics of ``net`` follow with this momentum.

    ``None`` leaves each layer its own.
    """
    norms = batch_norms(net)
    own = [norm.momentum for norm in norms]
    if value is not None:
        for norm in norms:
            norm.momentum = value
    try:
        yield
    finally:
        for norm, before in zip(norms, own, strict=True):
            norm.momentum = before


@torch.no_grad()
def recalibrate_bn(net: nn.Module, batches: Iterable[Tensor]) -> int:
    """Set the running statistics to the plain mean over ``batches`` ("precise BN", 2105.07576).

    For weights that did not come out of a training run, such as a network whose channels were cut.

    Args:
        net: its statistics are replaced; its training mode is kept.
        batches: float [N, 3, H, W] on the network's device.

    Returns:
        the number of batches seen; with none, the statistics stay as they are.
    """
    norms = batch_norms(net)
    training, count = net.training, 0
    own = [norm.momentum for norm in norms]
    try:
        for images in batches:
            if count == 0:
                _start_cumulative(net, norms)
            net(images)
            count += 1
    finally:
        net.train(training)
        for norm, before in zip(norms, own, strict=True):
            norm.momentum = before
    return count


def _start_cumulative(net: nn.Module, norms: list[nn.BatchNorm2d]) -> None:
    net.eval()  # dropout stays off: the statistics are those of the network in use
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # torch: a cumulative mean
