"""A network small enough to compute on paper."""

from __future__ import annotations

from dataclasses import replace

from mobilefit.arch import Block, ClassifierHead, Conv, NetSpec

# Multiply-adds at 8 px, and with them "latency" at one microsecond each:
#   stem       3x3, stride 2, 3 -> 8 on 4x4          9*3*8*16                   =  3456
#   blocks.0   8 -> 16 -> 8 on 4x4, residual         16*(8*16 + 9*16 + 16*8)    =  6400
#   blocks.1   8 -> 24 -> 16, stride 2, 4x4 -> 2x2   8*24*16 + 4*(9*24 + 24*16) =  5472
#   blocks.2   16 -> 32 -> 16 on 2x2, residual, SE of 8:
#                                                    4*(16*32 + 9*32 + 32*16) + 2*32*8 = 5760
#   head       16 -> 2                                                          =    32
TOY = NetSpec(
    name="toy",
    input_size=8,
    stem=Conv(out=8, kernel=3, stride=2),
    blocks=(
        Block(expand=16, out=8),
        Block(expand=24, out=16, stride=2),
        Block(expand=32, out=16, se="v3", act="hard_swish"),
    ),
    head=ClassifierHead(num_classes=2, dropout=0.0),
)
TOY_MADDS = 3456 + 6400 + 5472 + 5760 + 32

# Every row pools its input before it is added, or is a convolution with squeeze-and-excite.
POOLED = replace(
    TOY,
    name="pooled",
    stem=replace(TOY.stem, out=16),
    blocks=(
        Block(expand=24, out=16, stride=2, skip="pool"),
        Block(op="conv", out=16, se="v3"),
        Block(op="conv", out=40, se="mnasnet", skip="pool"),
        Block(expand=48, out=40, se="mnasnet", skip="pool"),
        Block(op="separable", out=40, skip="pool"),
        Block(expand=48, out=24, stride=2, skip="pool"),
    ),
)


def milliseconds(spec: NetSpec) -> float:
    return spec.cost().madds / 1000
