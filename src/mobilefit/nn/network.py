"""A spec as a network: :func:`build`."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mobilefit.arch.heads import Task
from mobilefit.arch.rows import MOST_PARAMS
from mobilefit.arch.spec import NetSpec
from mobilefit.errors import InputError, unknown
from mobilefit.nn.backbone import Backbone
from mobilefit.nn.classifier import ClassifierHead
from mobilefit.nn.segmentation import Segmentation
from mobilefit.nn.ssdlite import SSDLite

Init = Literal["kaiming", "slim"]
Outputs = Tensor | tuple[Tensor, Tensor]


class Network(nn.Module):
    """A built spec: ``[N, 3, H, W]`` float to what its head gives.

    Attributes:
        spec: the value that it was built from.
    """

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = Backbone(spec)
        self.head = _HEADS[spec.task](spec)

    def forward(self, x: Tensor) -> Outputs:
        """Of a classifier logits ``[N, k]``; of a segmenter logits ``[N, k, H, W]``; of a detector
        encodings of boxes ``[N, A, 4]`` and logits ``[N, A, k + 1]``, background first."""
        found: Outputs
        if isinstance(self.head, ClassifierHead):
            found = self.head(self.backbone(x))
        elif isinstance(self.head, SSDLite):
            found = self.head(self.backbone.maps(x, self.head.taps))
        else:
            found = self.head(self.backbone.maps(x, self.head.taps), x)
        return found

    def layer(self, name: str) -> nn.Module:
        """The module of a layer of :meth:`NetSpec.cost`, such as ``blocks.3.expand``."""
        return self.get_submodule(name if name.startswith("head.") else f"backbone.{name}")


_HEADS: dict[Task, type[ClassifierHead | SSDLite | Segmentation]] = {
    "classify": ClassifierHead, "detect": SSDLite, "segment": Segmentation
}  # fmt: skip


def build(spec: NetSpec, num_classes: int | None = None, *, init: Init = "kaiming") -> Network:
    """Build the network of a spec with fresh weights.

    Args:
        spec: the architecture.
        num_classes: outputs; the spec's own number when left out.
        init: ``kaiming`` (torchvision: normal, fan-out, for convolutions; N(0, 0.01) for linear
            layers) or ``slim`` (TF-slim: normal cut at two standard deviations of 0.09, everywhere).

    Raises:
        InputError: no such initialisation, or a network beyond :data:`MOST_PARAMS`.
    """
    if init not in get_args(Init):
        raise unknown("initialisation", init, get_args(Init))
    spec = spec if num_classes is None else spec.classes(num_classes)
    params = spec.cost().params
    if params > MOST_PARAMS:  # before memory is asked for them
        raise InputError(f"'{spec.name}' has {params:,} parameters, more than {MOST_PARAMS:,}", "make it narrower")
    network = Network(spec)
    classifier = isinstance(network.head, ClassifierHead)
    for module in (network if classifier else network.backbone).modules():  # other heads begin their own way
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
