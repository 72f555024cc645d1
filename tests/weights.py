"""Weights for tests that compare networks."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Net = TypeVar("Net", bound=nn.Module)


def randomized(net: Net, seed: int = 0) -> Net:
    """Random weights, batch norm statistics included, such that every layer shows in the output.

    Weights keep the signal's size from layer to layer; fresh ones would let it fade to the bias.
    """
    random = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.data.normal_(0, (2 / module.weight[0].numel()) ** 0.5, generator=random)
            if module.bias is not None:
                module.bias.data.normal_(0, 0.3, generator=random)
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.7, 1.5, generator=random)
            module.bias.data.normal_(0, 0.3, generator=random)
            module.running_mean.normal_(0, 0.3, generator=random)
            module.running_var.uniform_(0.5, 1.5, generator=random)
    return net.eval()
