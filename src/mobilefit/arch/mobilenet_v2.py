"""MobileNetV2 (Sandler et al., arXiv 1801.04381, Table 2): inverted residuals, linear bottlenecks."""

from mobilefit.arch.heads import ClassifierHead
from mobilefit.arch.rows import Block, Conv
from mobilefit.arch.spec import NetSpec

_STEM = 32
_STAGES = (
    # t  c    n  s
    (1, 16, 1, 1),  # 112
    (6, 24, 2, 2),  # 112 -> 56
    (6, 32, 3, 2),  # 56 -> 28
    (6, 64, 4, 2),  # 28 -> 14
    (6, 96, 3, 1),
    (6, 160, 3, 2),  # 14 -> 7
    (6, 320, 1, 1),
)


def _blocks() -> tuple[Block, ...]:
    rows, width = [], _STEM
    for t, c, n, s in _STAGES:
        for i in range(n):
            expand = None if t == 1 else t * width
            rows.append(Block(out=c, stride=s if i == 0 else 1, expand=expand, act="relu6"))
            width = c
    return tuple(rows)


MOBILENET_V2 = NetSpec(
    name="mobilenet_v2",
    stem=Conv(out=_STEM, kernel=3, stride=2, act="relu6"),
    blocks=_blocks(),
    last=Conv(out=1280, act="relu6", scaling="above_one"),
    head=ClassifierHead(dropout=0.2),
)
