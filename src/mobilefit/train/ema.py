"""An exponential moving average of a network's weights and statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class EMA:
    """Averages parameters and batch norm buffers.

    Buffers count too: weights averaged over many steps want the statistics of those steps. The
    decay warms up as ``min(decay, (1 + t) / (10 + t))``: with 0.9999 from the start the average
    would be of the initialisation for thousands of steps.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay, self.steps = network, decay, 0
        self.values = {k: v.detach().clone() for k, v in network.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the network's present values into the average."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for key, value in self.network.state_dict().items():
            if value.is_floating_point():
                averages.append(self.values[key])
                values.append(value.detach())
            else:
                self.values[key].copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the network has the averaged values."""
        own = {key: value.clone() for key, value in self.network.state_dict().items()}
        self.copy_to_network()
        try:
            yield
        finally:
            self.network.load_state_dict(own)

    def copy_to_network(self) -> None:
        """Give the network the averaged values."""
        self.network.load_state_dict(self.values)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"steps": self.steps, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.steps = int(state["steps"])
        for key, value in state["values"].items():
            self.values[key].copy_(value)
