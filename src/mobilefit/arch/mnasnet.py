"""MnasNet (Tan et al., arXiv 1807.11626, Figure 7): the networks that platform-aware NAS found.

The rows are those of the released code (TPU repository, ``mnasnet_models.py``). A1 has
squeeze-and-excite and is the seed from which MobileNetV3-Large was made; B1 has none; ``small`` is
the paper's second small model ("search2", 66.0 %).
"""

from typing import Literal

from mobilefit.arch.heads import ClassifierHead
from mobilefit.arch.rows import Block, Conv
from mobilefit.arch.spec import NetSpec

SE: Literal["mnasnet"] = "mnasnet"  # a quarter of the block's input, sigmoid gate

_A1 = (
    # repeat kernel stride ratio out  se
    (1, 3, 1, 1, 16, None),  # 112
    (2, 3, 2, 6, 24, None),  # 112 -> 56
    (3, 5, 2, 3, 40, SE),  # 56 -> 28
    (4, 3, 2, 6, 80, None),  # 28 -> 14
    (2, 3, 1, 6, 112, SE),
    (3, 5, 2, 6, 160, SE),  # 14 -> 7
    (1, 3, 1, 6, 320, None),
)
_B1 = (
    (1, 3, 1, 1, 16, None),
    (3, 3, 2, 3, 24, None),
    (3, 5, 2, 3, 40, None),
    (3, 5, 2, 6, 80, None),
    (2, 3, 1, 6, 96, None),
    (4, 5, 2, 6, 192, None),
    (1, 3, 1, 6, 320, None),
)
_SMALL = (
    (1, 3, 1, 1, 8, None),
    (1, 3, 2, 3, 16, None),
    (2, 3, 2, 6, 16, None),
    (4, 5, 2, 6, 32, SE),
    (3, 3, 1, 6, 32, SE),
    (3, 5, 2, 6, 88, SE),
    (1, 3, 1, 6, 144, None),
)

_Stage = tuple[int, int, int, int, int, Literal["mnasnet"] | None]


def _net(name: str, stem: int, stages: tuple[_Stage, ...], dropout: float) -> NetSpec:
    rows, width = [], stem
    for repeat, kernel, stride, ratio, out, se in stages:
        for i in range(repeat):
            expand = None if ratio == 1 else ratio * width
            rows.append(
                Block(kernel=kernel, stride=stride if i == 0 else 1, expand=expand, out=out, se=se)
            )
            width = out
    return NetSpec(
        name=name,
        stem=Conv(out=stem, kernel=3, stride=2),
        blocks=tuple(rows),
        last=Conv(out=1280, scaling="never"),
        head=ClassifierHead(dropout=dropout),
    )


MNASNET_A1 = _net("mnasnet_a1", 32, _A1, dropout=0.2)
MNASNET_B1 = _net("mnasnet_b1", 32, _B1, dropout=0.2)
MNASNET_SMALL = _net("mnasnet_small", 8, _SMALL, dropout=0.0)
