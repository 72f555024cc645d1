"""The family as data: every network is a :class:`NetSpec`, named in :data:`FAMILY`."""

from __future__ import annotations

from mobilefit.arch import mnasnet, mobilenet_v1, mobilenet_v2, mobilenet_v3
from mobilefit.arch.cost import Cost, Layer
from mobilefit.arch.scaling import make_divisible, reduced_width
from mobilefit.arch.spec import BatchNorm, Block, ClassifierHead, Conv, NetSpec, difference
from mobilefit.arch.table import table
from mobilefit.errors import InputError, unknown

__all__ = [
    "FAMILY", "BatchNorm", "Block", "ClassifierHead", "Conv", "Cost", "Layer", "NetSpec",
    "difference", "make_divisible", "reduced_width", "spec", "table",
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
}


def spec(name: str, *, head: str | None = None) -> NetSpec:
    """The network of that name.

    Args:
        name: a key of :data:`FAMILY`.
        head: for ``mobilenet_v3_small`` alone, which version of the paper its head follows:
            ``v5`` (the default: 1024 hidden units), ``iccv`` (1280), or ``table2`` (Table 2 to the
            letter, with SE on the last convolution).

    Raises:
        InputError: no such network (the nearest name is suggested), or no such head.
    """
    if name not in FAMILY:
        raise unknown("network", name, FAMILY)
    if head is None:
        return FAMILY[name]
    if name != "mobilenet_v3_small":
        raise InputError(f"'{name}' has one head only", "leave 'head' out")
    if head not in mobilenet_v3.SMALL_HEADS:
        raise unknown("head", head, mobilenet_v3.SMALL_HEADS)
    return mobilenet_v3.SMALL_HEADS[head]
