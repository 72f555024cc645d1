"""MobileNetV3 (Howard et al., arXiv 1905.02244 v5, Tables 1 and 2) and its released variants.

The tables are those of version 5 of the paper, which equal the released TensorFlow code. Version 1
misprints Large's block 13, and the versions disagree on Small's head: see :data:`SMALL_HEADS`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from mobilefit.arch.heads import ClassifierHead
from mobilefit.arch.rows import Activation, Block, Conv
from mobilefit.arch.spec import NetSpec

RE: Activation = "relu"
HS: Activation = "hard_swish"
SE: Literal["v3"] = "v3"


def _row(
    kernel: int, expand: int | None, out: int, se: Literal["v3"] | None, act: Activation, stride: int
) -> Block:
    return Block(kernel=kernel, expand=expand, out=out, se=se, act=act, stride=stride)


def _net(name: str, rows: tuple[Block, ...], last: int, hidden: int) -> NetSpec:
    return NetSpec(
        name=name,
        stem=Conv(out=16, kernel=3, stride=2, act=HS),
        blocks=rows,
        last=Conv(out=last, act=HS),
        head=ClassifierHead(hidden=hidden, act=HS, dropout=0.2),
    )


# Table 1
_LARGE = (
    #  k  exp   out  SE    NL  s
    _row(3, None, 16, None, RE, 1),  # 112
    _row(3, 64, 24, None, RE, 2),  # 112 -> 56
    _row(3, 72, 24, None, RE, 1),
    _row(5, 72, 40, SE, RE, 2),  # 56 -> 28
    _row(5, 120, 40, SE, RE, 1),
    _row(5, 120, 40, SE, RE, 1),
    _row(3, 240, 80, None, HS, 2),  # 28 -> 14
    _row(3, 200, 80, None, HS, 1),
    _row(3, 184, 80, None, HS, 1),
    _row(3, 184, 80, None, HS, 1),
    _row(3, 480, 112, SE, HS, 1),
    _row(3, 672, 112, SE, HS, 1),
    _row(5, 672, 160, SE, HS, 2),  # 14 -> 7
    _row(5, 960, 160, SE, HS, 1),
    _row(5, 960, 160, SE, HS, 1),
)
# Table 2
_SMALL = (
    #  k  exp   out  SE    NL  s
    _row(3, None, 16, SE, RE, 2),  # 112 -> 56
    _row(3, 72, 24, None, RE, 2),  # 56 -> 28
    _row(3, 88, 24, None, RE, 1),
    _row(5, 96, 40, SE, HS, 2),  # 28 -> 14
    _row(5, 240, 40, SE, HS, 1),
    _row(5, 240, 40, SE, HS, 1),
    _row(5, 120, 48, SE, HS, 1),
    _row(5, 144, 48, SE, HS, 1),
    _row(5, 288, 96, SE, HS, 2),  # 14 -> 7
    _row(5, 576, 96, SE, HS, 1),
    _row(5, 576, 96, SE, HS, 1),
)

MOBILENET_V3_LARGE = _net("mobilenet_v3_large", _LARGE, last=960, hidden=1280)
MOBILENET_V3_SMALL = _net("mobilenet_v3_small", _SMALL, last=576, hidden=1024)


def _small(suffix: str, hidden: int, last_se: Literal["v3"] | None = None) -> NetSpec:
    small = MOBILENET_V3_SMALL
    assert small.last is not None
    return replace(
        small,
        name=f"{small.name}_{suffix}",
        last=replace(small.last, se=last_se),
        head=replace(small.classifier, hidden=hidden),
    )


SMALL_HEADS = {
    # Version 5 and the released weights: 2.5 M parameters, 57 M multiply-adds.
    "v5": MOBILENET_V3_SMALL,
    # The conference text and version 1: 2.9 M parameters; also PaddleClas.
    "iccv": _small("iccv", hidden=1280),
    # Table 2 read to the letter, with SE on the 1x1 convolution to 576: no released network has it.
    "table2": _small("table2", hidden=1024, last_se=SE),
}


def _minimalistic(spec: NetSpec) -> NetSpec:
    """No squeeze-and-excite, ReLU for h-swish, 3x3 for 5x5: for hardware without fast versions."""
    assert spec.last is not None
    return replace(
        spec,
        name=f"{spec.name}_minimalistic",
        stem=replace(spec.stem, act=RE),
        blocks=tuple(replace(b, se=None, act=RE, kernel=3) for b in spec.blocks),
        last=replace(spec.last, act=RE),
        head=replace(spec.classifier, act=RE),
    )


MOBILENET_V3_LARGE_MINIMALISTIC = _minimalistic(MOBILENET_V3_LARGE)
MOBILENET_V3_SMALL_MINIMALISTIC = _minimalistic(MOBILENET_V3_SMALL)



def _fused(ratio: int, width: int, out: int, stride: int = 1) -> Block:
    return Block(op="fused", expand=ratio * width, out=out, stride=stride)


def _ibn(ratio: int, width: int, out: int, stride: int = 1, kernel: int = 3) -> Block:
    return Block(kernel=kernel, expand=ratio * width, out=out, stride=stride)


# TF-slim's V3_EDGETPU: ReLU, no SE, full convolutions where they are cheap on that device.
_EDGETPU = (
    #    ratio in  out stride
    # slim writes the first row as a fused bottleneck of ratio 1, whose k x k expansion its code
    # leaves out: a 1x1 projection stays (990.7 M multiply-adds in all, published 990 M).
    Block(op="conv", kernel=1, out=16, act="none"),  # 112
    _fused(8, 16, 32, 2),  # 112 -> 56
    *[_fused(4, 32, 32)] * 3,
    _fused(8, 32, 48, 2),  # 56 -> 28
    *[_fused(4, 48, 48)] * 3,
    _ibn(8, 48, 96, 2),  # 28 -> 14
    *[_ibn(4, 96, 96)] * 3,
    replace(_ibn(8, 96, 96), skip="none"),
    *[_ibn(4, 96, 96)] * 3,
    _ibn(8, 96, 160, 2, kernel=5),  # 14 -> 7
    *[_ibn(4, 160, 160, kernel=5)] * 3,
    _ibn(8, 160, 192),
)

MOBILENET_V3_EDGETPU = NetSpec(
    name="mobilenet_v3_edgetpu",
    stem=Conv(out=32, kernel=3, stride=2),
    blocks=_EDGETPU,
    last=Conv(out=1280, scaling="above_one"),
    head=ClassifierHead(dropout=0.2),
)
