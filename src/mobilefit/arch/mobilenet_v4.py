"""MobileNetV4-Conv-S and -M (Qin et al., arXiv 2404.10518, section 3 and the tables of its appendix).

The universal inverted bottleneck has two optional depthwise convolutions, before the expansion (without an
activation) and after it. The head's hidden layer has batch norm. timm's networks have the same rows; as
there, a narrow network keeps its stem.
"""

from mobilefit.arch.heads import ClassifierHead
from mobilefit.arch.rows import Block, Conv
from mobilefit.arch.spec import NetSpec

_STEM = Conv(out=32, kernel=3, stride=2, scaling="above_one")

_Bottleneck = tuple[int, int, int, int, int]
"""Kernels before and after the expansion (0: none), stride, ratio of the expansion to the input, out."""


def _conv(kernel: int, stride: int, out: int) -> Block:
    return Block(op="conv", kernel=kernel, stride=stride, out=out, skip="none")


def _bottlenecks(inputs: int, *table: _Bottleneck) -> list[Block]:
    blocks = []
    for start, kernel, stride, ratio, out in table:
        blocks.append(
            Block(start_kernel=start, kernel=kernel, stride=stride, expand=ratio * inputs, out=out)
        )
        inputs = out
    return blocks


def _net(name: str, side: int, blocks: list[Block], dropout: float) -> NetSpec:
    return NetSpec(
        name=name,
        input_size=side,
        stem=_STEM,
        blocks=tuple(blocks),
        last=Conv(out=960),
        head=ClassifierHead(
            hidden=1280, hidden_norm=True, act="relu", dropout=dropout, scaling="never"
        ),
    )


MOBILENETV4_CONV_SMALL = _net(
    "mobilenetv4_conv_small", 224, [
        _conv(3, 2, 32),  # 112 -> 56
        _conv(1, 1, 32),
        _conv(3, 2, 96),  # 56 -> 28
        _conv(1, 1, 64),
        *_bottlenecks(
            64,
            # start kernel stride ratio out
            (5, 5, 2, 3, 96),  # 28 -> 14
            *[(0, 3, 1, 2, 96)] * 4,
            (3, 0, 1, 4, 96),
            (3, 3, 2, 6, 128),  # 14 -> 7
            (5, 5, 1, 4, 128),
            (0, 5, 1, 4, 128),
            (0, 5, 1, 3, 128),
            *[(0, 3, 1, 4, 128)] * 2,
        ),
    ], dropout=0.3,
)  # fmt: skip

MOBILENETV4_CONV_MEDIUM = _net(
    "mobilenetv4_conv_medium", 256, [
        Block(op="fused", stride=2, expand=4 * 32, out=48),  # 128 -> 64
        *_bottlenecks(
            48,
            # start kernel stride ratio out
            (3, 5, 2, 4, 80),  # 64 -> 32
            (3, 3, 1, 2, 80),
            (3, 5, 2, 6, 160),  # 32 -> 16
            *[(3, 3, 1, 4, 160)] * 2,
            (3, 5, 1, 4, 160),
            (3, 3, 1, 4, 160),
            (3, 0, 1, 4, 160),
            (0, 0, 1, 2, 160),
            (3, 0, 1, 4, 160),
            (5, 5, 2, 6, 256),  # 16 -> 8
            (5, 5, 1, 4, 256),
            *[(3, 5, 1, 4, 256)] * 2,
            (0, 0, 1, 4, 256),
            (3, 0, 1, 4, 256),
            (3, 5, 1, 2, 256),
            (5, 5, 1, 4, 256),
            *[(0, 0, 1, 4, 256)] * 2,
            (5, 0, 1, 2, 256),
        ),
    ], dropout=0.2,
)  # fmt: skip
