"""Weights of detectors and segmenters in torchvision's layouts, and heads of other classes and widths.

torchvision's two networks keep a classifier's layers under other names. :func:`flattened` gives the backbone
the names of torchvision's classifiers, which :mod:`mobilefit.nn.weights` knows, and the head ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from mobilefit.arch import NetSpec
from mobilefit.arch.heads import ClassifierHead, Head, SegmentationHead, SSDLiteHead
from mobilefit.nn.layers import Conv2d

if TYPE_CHECKING:
    from mobilefit.nn.network import Network


# ---- torchvision's layouts


def flattened(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of torchvision's ``ssdlite320_*`` or ``lraspp_*`` with the backbone under the names of
    torchvision's classifiers, ``features.0.0.weight``, and the head under ours; any other as it is."""
    if "backbone.features.0.0.0.weight" in state:
        tapped = max(int(key.split(".")[3]) for key in state if key.startswith("backbone.features.0."))
        return {_ssdlite(key, tapped): value for key, value in state.items()}
    if "backbone.0.0.weight" in state:
        return {_lraspp(key): value for key, value in state.items()}
    return dict(state)


_EXTRA = ("reduce", "depthwise", "project")
_PREDICTORS = {"classification": "classes", "regression": "boxes"}
_PART = {"0": "conv", "1": "norm"}


def _ssdlite(key: str, tapped: int) -> str:
    """Their backbone is cut after the expansion of ``features.{tapped}``, which is tapped."""
    if found := re.fullmatch(r"backbone\.features\.([01])\.(\d+)\.(.+)", key):
        half, index, rest = found[1], int(found[2]), found[3]
        if half == "0":
            return f"features.{index}.{'block.0.' if index == tapped else ''}{rest}"
        if index:
            return f"features.{tapped + index}.{rest}"
        return f"features.{tapped}.block.{rest}"
    if found := re.fullmatch(r"backbone\.extra\.(\d+)\.([012])\.([01])\.(\w+)", key):
        return f"head.extras.{found[1]}.{_EXTRA[int(found[2])]}.{_PART[found[3]]}.{found[4]}"
    if found := re.fullmatch(
        r"head\.(classification|regression)_head\.module_list\.(\d+)\.(\d.*)", key
    ):
        name = f"head.{_PREDICTORS[found[1]]}.{found[2]}"
        layer, _, rest = found[3].partition(".")
        if layer == "1":
            return f"{name}.predict.{rest}"
        part, _, rest = rest.partition(".")
        return f"{name}.depthwise.{_PART.get(part, part)}.{rest}"
    return key


_LRASPP = {"classifier.cbr.0": "head.project.conv", "classifier.cbr.1": "head.project.norm",
           "classifier.scale.1": "head.gate", "classifier.low_classifier": "head.low",
           "classifier.high_classifier": "head.high"}  # fmt: skip


def _lraspp(key: str) -> str:
    if found := re.fullmatch(r"backbone\.(\d+\..+)", key):
        return f"features.{found[1]}"
    layer, _, rest = key.rpartition(".")
    return f"{_LRASPP[layer]}.{rest}" if layer in _LRASPP else key


# ---- what the tensors tell of a head


def fitted(head: Head, state: Mapping[str, Tensor]) -> Head:
    """The head with the widths and the number of classes that tensors under our names have; its own where
    there is no such tensor."""

    def width(layer: str, own: int) -> int:
        tensor = state.get(f"{layer}.weight")
        return own if tensor is None or tensor.ndim == 0 else int(tensor.shape[0])

    if isinstance(head, SSDLiteHead):
        extras = (width(f"head.extras.{i}.project.conv", own) for i, own in enumerate(head.extras))
        last, anchors = len(head.per_map) - 1, head.per_map[-1]
        logits = width(f"head.classes.{last}.predict", anchors * (head.num_classes + 1))
        return replace(head, extras=tuple(extras), num_classes=max(logits // anchors - 1, 1))
    if isinstance(head, SegmentationHead):
        filters = width("head.project.conv", head.filters)
        return replace(head, filters=filters, num_classes=width("head.high", head.num_classes))
    layer = "head.hidden.conv" if head.hidden_norm else "head.hidden"
    hidden = None if head.hidden is None else width(layer, head.hidden)
    return replace(head, hidden=hidden, num_classes=width("head.logits", head.num_classes))


def class_tensors(head: Head) -> tuple[str, ...]:
    """The tensors whose shape follows the number of classes, by their names in the network's state."""
    if isinstance(head, SSDLiteHead):
        layers = [f"classes.{index}.predict" for index in range(len(head.per_map))]
    elif isinstance(head, SegmentationHead):
        layers = ["high"] if head.skip is None else ["high", "low"]
    else:
        layers = ["logits"]
    return tuple(f"head.{layer}.{part}" for layer in layers for part in ("weight", "bias"))


def adopt(network: Network, trained: NetSpec) -> None:
    """Switch a network to the padding that its weights were trained with, and its backbone to their
    epsilon; the norms of a detector's or segmenter's head have their own."""
    for module in network.modules():
        if isinstance(module, Conv2d):
            module.same = trained.padding == "same"
    body = network if isinstance(network.spec.head, ClassifierHead) else network.backbone
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = trained.norm.eps
    norm = replace(network.spec.norm, eps=trained.norm.eps)
    network.spec = replace(network.spec, padding=trained.padding, norm=norm)
