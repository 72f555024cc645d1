"""How much each channel of a trained network matters: what transfer keeps channels by.

Channels that residuals add, or that LR-ASPP multiplies with their gates, are the same channel in several layers:
they are ranked jointly and keep one set. Ranking each layer alone, as NetAdapt's code does, would add unrelated
channels to each other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from mobilefit.arch import SegmentationHead, SSDLiteHead
from mobilefit.nn import Network
from mobilefit.nn.layers import ConvNormAct
from mobilefit.nn.ssdlite import SSDLite
from mobilefit.train.task import Objective

Importance = Literal["gates", "norm", "bn-scale"]


class ChannelImportance(Protocol):
    """Importance of channels by the names of their layers."""

    def __call__(self, *layers: str) -> Tensor:
        """float32 [channels], of the layers jointly where there are several; large for channels that matter.

        Args:
            layers: names of :meth:`NetSpec.cost` without ``.conv``: ``stem``, ``blocks.3.expand`` (the block's whole
                wide part), ``blocks.3.se.reduce``, ``blocks.3.project``, ``last``, ``head.hidden``.
        """


def filter_norms(network: Network) -> ChannelImportance:
    """The squared L2 norm of each filter (NetAdapt, arXiv 1804.03230, section 3.3).

    Batch norm takes a filter's scale out again, so it says little of what the channel does.
    """

    def importance(*layers: str) -> Tensor:
        return torch.stack([_filter_norm(network.layer(name)) for name in layers]).sum(0)

    return importance


def _filter_norm(layer: nn.Module) -> Tensor:
    convolution = layer.conv if isinstance(layer, ConvNormAct) else layer
    assert isinstance(convolution, (nn.Conv2d, nn.Linear))
    return convolution.weight.detach().square().flatten(1).sum(1)


def bn_scales(network: Network) -> ChannelImportance:
    """The absolute scale of each channel's batch norm (network slimming, arXiv 1708.06519).

    Of a block's wide part it is the depthwise convolution's. Layers without batch norm go by their filters.
    """

    def of_layer(name: str) -> Tensor:
        layer = network.layer(name)
        if name.endswith(".expand"):
            layer = getattr(network.layer(name.removesuffix(".expand")), "depthwise", layer)
        if isinstance(layer, ConvNormAct):
            return layer.norm.weight.detach().abs()
        return _filter_norm(layer).sqrt()

    def importance(*layers: str) -> Tensor:
        return torch.stack([of_layer(name) for name in layers]).sum(0)

    return importance


class Gates:
    """The Fisher information of a gate on each channel (Theis et al., arXiv 1801.05787; Molchanov et al., 1906.10771).

    A gate multiplies a channel by one. The derivative of an image's loss by it is the sum over positions of
    activation times gradient, and to first order what the loss would change by without the channel; its square is
    averaged over the images. Of layers that share their channels the derivatives are added first: they go together.
    """

    def __init__(self, per_image: Mapping[str, Tensor]) -> None:
        self._per_image = per_image

    def derivatives(self, *layers: str) -> Tensor:
        """float32 [images, channels]: of each image's loss by a gate on each channel of the layers jointly.

        A gate on what a residual block adds to its input multiplies all channels of the block's last layer, so the
        derivative by it is the sum of that layer's over the channels.
        """
        return torch.stack([self._per_image[name] for name in layers if name in self._per_image]).sum(0)

    def __call__(self, *layers: str) -> Tensor:
        """float32 [channels]: see :class:`ChannelImportance`."""
        return self.derivatives(*layers).square().mean(0)


def gates(network: Network, batches: Iterable[tuple[Tensor, Any]], objective: Objective) -> Gates:
    """Gates on every channel of a network, from one pass over some images.

    Args:
        network: with statistics that fit its weights; not changed.
        batches: training images and their targets.
        objective: whose loss it is; a sum over images.
    """
    gated = copy.deepcopy(network).eval().requires_grad_(False)
    sites = dict(_gate_sites(gated))
    current: dict[str, Tensor] = {}
    for name, module in sites.items():
        module.register_forward_hook(_gate(name, current))
    device = next(gated.parameters()).device
    derivatives: dict[str, list[Tensor]] = {name: [] for name in sites}
    for images, targets in batches:
        images, targets = objective.prepared(images.to(device), _moved(targets, device))
        with torch.enable_grad():
            loss = objective(gated(images), targets, images)
            by_gate = torch.autograd.grad(loss, list(current.values()))
        for name, derivative in zip(current, by_gate, strict=True):
            derivatives[name].append(derivative.flatten(1).cpu())
    return Gates({name: torch.cat(parts) for name, parts in derivatives.items()})


def _moved(targets: Any, device: torch.device) -> Any:
    if isinstance(targets, Tensor):
        return targets.to(device)
    return tuple(target.to(device) for target in targets)


def _gate(name: str, current: dict[str, Tensor]) -> Callable[..., Tensor]:
    """A forward hook that multiplies a module's output by gates, and leaves them in ``current``."""

    def multiply(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        ones = (1,) * (output.ndim - 2)
        gate = current[name] = output.new_ones(*output.shape[:2], *ones).requires_grad_()
        return output * gate

    return multiply


def _gate_sites(network: Network) -> Iterator[tuple[str, nn.Module]]:
    """The modules whose outputs are gated, by the names of the layers whose channels these are.

    LR-ASPP's gate has none of its own: it is multiplied with the projection, whose gate answers for both.
    """
    head = network.spec.head
    taps = head.taps if isinstance(head, SSDLiteHead) else ()
    if isinstance(head, SegmentationHead):
        taps = (head.tap, head.skip or head.tap)
    yield "stem", network.backbone.stem
    for index, row in enumerate(network.backbone.blocks):
        layers = dict(row.named_children())
        if "conv" in layers:
            yield f"blocks.{index}.conv", layers.get("se", layers["conv"])
        else:
            yield f"blocks.{index}.project", layers["project"]
        if "expand" in layers:
            # After the depthwise convolution, where nothing is left of the channel once it is cut; but a head that
            # takes the map before that sees the channel there.
            tapped = f"blocks.{index}.expand" in taps
            yield f"blocks.{index}.expand", layers["expand"] if tapped else layers.get("depthwise", layers["expand"])
    if isinstance(network.backbone.last, ConvNormAct):
        yield "last", network.backbone.last
    for name, module in network.named_modules():
        if name.endswith(".se"):
            yield f"{name.removeprefix('backbone.')}.reduce", module.act
    yield from _head_gate_sites(network)


def _head_gate_sites(network: Network) -> Iterator[tuple[str, nn.Module]]:
    children = dict(network.head.named_children())
    if isinstance(children.get("hidden"), nn.Linear):
        yield "head.hidden", children["act"]
    elif isinstance(children.get("hidden"), ConvNormAct):
        yield "head.hidden", children["hidden"]
    for name in ("project", "image", "merge"):
        if name in children:
            yield f"head.{name}", children[name]
    if isinstance(network.head, SSDLite):
        for index, extra in enumerate(network.head.extras):
            layers = dict(extra.named_children())
            yield f"head.extras.{index}.reduce", layers["depthwise"]
            yield f"head.extras.{index}.project", layers["project"]
