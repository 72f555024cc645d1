"""MobileNetV1 (Howard et al., arXiv 1704.04861, Table 1): depthwise-separable convolutions."""

from mobilefit.arch.heads import ClassifierHead
from mobilefit.arch.rows import Block, Conv
from mobilefit.arch.spec import NetSpec


def _row(out: int, stride: int) -> Block:
    return Block(op="separable", out=out, stride=stride, act="relu6", skip="none")


MOBILENET_V1 = NetSpec(
    name="mobilenet_v1",
    stem=Conv(out=32, kernel=3, stride=2, act="relu6"),  # 224 -> 112
    blocks=(
        # out  stride
        _row(64, 1),
        _row(128, 2),  # 112 -> 56
        _row(128, 1),
        _row(256, 2),  # 56 -> 28
        _row(256, 1),
        _row(512, 2),  # 28 -> 14
        _row(512, 1),
        _row(512, 1),
        _row(512, 1),
        _row(512, 1),
        _row(512, 1),
        _row(1024, 2),  # 14 -> 7
        _row(1024, 1),
    ),
    head=ClassifierHead(dropout=0.0),
)
