"""The family as data: every network is a :class:`NetSpec`, named in :data:`FAMILY`."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from mobilefit.arch import (
    efficientnet_lite,
    lcnet,
    mnasnet,
    mobilenet_v1,
    mobilenet_v2,
    mobilenet_v3,
    mobilenet_v4,
)
from mobilefit.arch.cost import Cost, Layer
from mobilefit.arch.flavours import detector, dilated, halved, segmenter
from mobilefit.arch.heads import (
    ClassifierHead,
    Head,
    SegmentationHead,
    SegmentationKind,
    SSDLiteHead,
    Task,
)
from mobilefit.arch.rows import BatchNorm, Block, Conv
from mobilefit.arch.scaling import make_divisible, reduced_width
from mobilefit.arch.spec import NetSpec, difference
from mobilefit.arch.table import table
from mobilefit.errors import InputError, unknown

__all__ = [
    "DETECTORS", "FAMILY", "SEGMENTERS", "TORCHVISION", "BatchNorm", "Block", "ClassifierHead", "Conv", "Cost", "Head",
    "Layer", "NetSpec", "SSDLiteHead", "SegmentationHead", "Task", "detector", "difference", "dilated",
    "halved", "make_divisible", "reduced_width", "segmenter", "spec", "table",
]  # fmt: skip

FAMILY: dict[str, NetSpec] = {
    "mobilenet_v1": mobilenet_v1.MOBILENET_V1,
    "mobilenet_v2": mobilenet_v2.MOBILENET_V2,
    "mnasnet_a1": mnasnet.MNASNET_A1,
    "mnasnet_b1": mnasnet.MNASNET_B1,
    "mnasnet_small": mnasnet.MNASNET_SMALL,
    "mobilenet_v3_large": mobilenet_v3.MOBILENET_V3_LARGE,
    "mobilenet_v3_small": mobilenet_v3.MOBILENET_V3_SMALL,
    "mobilenet_v3_large_minimalistic": mobilenet_v3.MOBILENET_V3_LARGE_MINIMALISTIC,
    "mobilenet_v3_small_minimalistic": mobilenet_v3.MOBILENET_V3_SMALL_MINIMALISTIC,
    "mobilenet_v3_edgetpu": mobilenet_v3.MOBILENET_V3_EDGETPU,
    "efficientnet_lite0": efficientnet_lite.EFFICIENTNET_LITE0,
    "efficientnet_lite1": efficientnet_lite.EFFICIENTNET_LITE1,
    "efficientnet_lite2": efficientnet_lite.EFFICIENTNET_LITE2,
    "efficientnet_lite3": efficientnet_lite.EFFICIENTNET_LITE3,
    "efficientnet_lite4": efficientnet_lite.EFFICIENTNET_LITE4,
    "lcnet": lcnet.LCNET,
    "mobilenetv4_conv_small": mobilenet_v4.MOBILENETV4_CONV_SMALL,
    "mobilenetv4_conv_medium": mobilenet_v4.MOBILENETV4_CONV_MEDIUM,
}
"""Classifiers, which are also what the detectors and segmenters are made of."""

DETECTORS: dict[str, NetSpec] = {
    made.name: made
    for backbone in FAMILY.values()
    for made in (detector(backbone), detector(backbone, reduced=True))
}
"""SSDLite, with the last stage whole and halved (``_reduced``)."""

SEGMENTERS: dict[str, NetSpec] = {
    f"{kind}_{name}": segmenter(backbone, kind=kind, filters=128 if kind == "lraspp" else 256,
                                reduced=kind == "lraspp")
    for name, backbone in FAMILY.items() for kind in get_args(SegmentationKind)
}  # fmt: skip
"""LR-ASPP with 128 filters on the halved network, and R-ASPP with 256 on the whole: rows 8 and 5 of the
V3 paper's Table 7; of other backbones likewise."""

_LARGE = FAMILY["mobilenet_v3_large"].padded("torch")
TORCHVISION: dict[str, NetSpec] = {
    name: replace(made, name=name)
    for name, made in {
        # Without weights for the backbone torchvision halves the last stage, with them it does not.
        "ssdlite320_mobilenet_v3_large": detector(_LARGE, anchors="torchvision", reduced=True),
        "ssdlite320_mobilenet_v3_large_whole": detector(_LARGE, anchors="torchvision"),
        "lraspp_mobilenet_v3_large_torchvision": segmenter(
            _LARGE, num_classes=21, reduced=False, like="torchvision"
        ).resolution(520),
    }.items()
}
"""torchvision's detector and segmenter, exactly."""


def spec(name: str, *, head: str | None = None) -> NetSpec:
    """The network of that name.

    Args:
        name: a key of :data:`FAMILY`, :data:`DETECTORS`, :data:`SEGMENTERS` or :data:`TORCHVISION`.
        head: for ``mobilenet_v3_small`` alone, which version of the paper its head follows:
            ``v5`` (the default: 1024 hidden units), ``iccv`` (1280), or ``table2`` (Table 2 to the
            letter, with SE on the last convolution).

    Raises:
        InputError: no such network (the nearest name is suggested), or no such head.
    """
    known = {**FAMILY, **DETECTORS, **SEGMENTERS, **TORCHVISION}
    if name not in known:
        raise unknown("network", name, known)
    if head is None:
        return known[name]
    if name != "mobilenet_v3_small":
        raise InputError(f"'{name}' has one head only", "leave 'head' out")
    if head not in mobilenet_v3.SMALL_HEADS:
        raise unknown("head", head, mobilenet_v3.SMALL_HEADS)
    return mobilenet_v3.SMALL_HEADS[head]
