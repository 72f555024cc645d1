"""EfficientNet-Lite (TPU repository, ``models/official/efficientnet/lite``): EfficientNet for int8.

EfficientNet-B0's rows (Tan and Le, arXiv 1905.11946, Table 1) without squeeze-and-excite and with
ReLU6 in the place of swish. Width and depth are scaled together; the stem and the last convolution keep
their widths, the first and the last stage their depths.
"""

from fractions import Fraction
from math import ceil

from mobilefit.arch.heads import ClassifierHead
from mobilefit.arch.rows import Block, Conv
from mobilefit.arch.scaling import make_divisible
from mobilefit.arch.spec import NetSpec

_STEM = 32
_STAGES = (
    # repeat kernel stride ratio out
    (1, 3, 1, 1, 16),  # 112
    (2, 3, 2, 6, 24),  # 112 -> 56
    (2, 5, 2, 6, 40),  # 56 -> 28
    (3, 3, 2, 6, 80),  # 28 -> 14
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),  # 14 -> 7
    (1, 3, 1, 6, 320),
)


def _net(number: int, width: str, depth: str, resolution: int, dropout: float) -> NetSpec:
    rows, inputs = [], _STEM
    for repeat, kernel, stride, ratio, out in _STAGES:
        repeats = repeat if repeat == 1 else ceil(repeat * Fraction(depth))  # 1: the first and last stage
        out = make_divisible(out * Fraction(width))
        for i in range(repeats):
            expand = None if ratio == 1 else ratio * inputs
            rows.append(
                Block(kernel=kernel, stride=stride if i == 0 else 1, expand=expand, out=out, act="relu6")
            )
            inputs = out
    return NetSpec(
        name=f"efficientnet_lite{number}",
        input_size=resolution,
        stem=Conv(out=_STEM, kernel=3, stride=2, act="relu6"),
        blocks=tuple(rows),
        last=Conv(out=1280, act="relu6", scaling="never"),
        head=ClassifierHead(dropout=dropout),
    )


# number, width, depth, resolution, dropout
EFFICIENTNET_LITE0 = _net(0, "1.0", "1.0", 224, 0.2)
EFFICIENTNET_LITE1 = _net(1, "1.0", "1.1", 240, 0.2)
EFFICIENTNET_LITE2 = _net(2, "1.1", "1.2", 260, 0.3)
EFFICIENTNET_LITE3 = _net(3, "1.2", "1.4", 280, 0.3)
EFFICIENTNET_LITE4 = _net(4, "1.4", "1.8", 300, 0.3)
