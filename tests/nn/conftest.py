"""What the tests of modules and weights share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import nn

Net = TypeVar("Net", bound=nn.Module)
Randomize = Callable[[Net], Net]


@pytest.fixture(scope="session")
def randomized() -> Randomize[nn.Module]:
    """Random weights, batch norm statistics included, such that every layer shows in the output.

    Weights keep the signal's size from layer to layer; fresh ones would let it fade to the bias.
    """

    def randomize(net: Net) -> Net:
        random = torch.Generator().manual_seed(0)
        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                deviation = (2 / module.weight[0].numel()) ** 0.5
                module.weight.data.normal_(0, deviation, generator=random)
                if module.bias is not None:
                    module.bias.data.normal_(0, 0.3, generator=random)
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.data.uniform_(0.7, 1.5, generator=random)
                module.bias.data.normal_(0, 0.3, generator=random)
                module.running_mean.normal_(0, 0.3, generator=random)
                module.running_var.uniform_(0.5, 1.5, generator=random)
        return net.eval()

    return randomize
