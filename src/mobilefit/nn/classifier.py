"""The classification head, and :func:`build`, which turns a spec into a network."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mobilefit.arch.spec import NetSpec
from mobilefit.errors import unknown
from mobilefit.nn.backbone import Backbone
from mobilefit.nn.layers import activation

Init = Literal["kaiming", "slim"]


class ClassifierHead(nn.Module):
    """Global average pool, hidden layer (V3), dropout, logits: ``[N, C, H, W]`` to ``[N, k]``."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        head = spec.classifier
        width = spec.widths[-1] if spec.last is None else spec.last.out
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.hidden: nn.Module = nn.Identity()
        if head.hidden is not None:
            self.hidden = nn.Linear(width, head.hidden)
            width = head.hidden
        self.act = activation(head.act)
        self.dropout = nn.Dropout(head.dropout)
        self.logits = nn.Linear(width, head.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, ``[N, num_classes]``."""
        x = self.act(self.hidden(self.flatten(self.pool(x))))
        logits: Tensor = self.logits(self.dropout(x))
        return logits


class Network(nn.Module):
    """A built spec: ``[N, 3, H, W]`` float to logits ``[N, k]``.

    Attributes:
        spec: the value that it was built from.
    """

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = Backbone(spec)
        self.head = ClassifierHead(spec)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, ``[N, num_classes]``."""
        logits: Tensor = self.head(self.backbone(x))
        return logits

    def layer(self, name: str) -> nn.Module:
        """The module of a layer of :meth:`NetSpec.cost`, such as ``blocks.3.expand``."""
        return self.get_submodule(name if name.startswith("head.") else f"backbone.{name}")


def build(spec: NetSpec, num_classes: int | None = None, *, init: Init = "kaiming") -> Network:
    """Build the network of a spec with fresh weights.

    Args:
        spec: the architecture.
        num_classes: outputs; the spec's own number when left out.
        init: ``kaiming`` (torchvision: normal, fan-out, for convolutions; N(0, 0.01) for linear
            layers) or ``slim`` (TF-slim: normal cut at two standard deviations of 0.09, everywhere).
    """
    if init not in get_args(Init):
        raise unknown("initialisation", init, get_args(Init))
    network = Network(spec if num_classes is None else spec.classes(num_classes))
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            _initialise(module, init)
    return network


def _initialise(module: nn.Conv2d | nn.Linear, init: Init) -> None:
    with torch.no_grad():
        if init == "slim":
            nn.init.trunc_normal_(module.weight, std=0.09, a=-0.18, b=0.18)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        else:
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
