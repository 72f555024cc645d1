"""Channel rounding, and which layers a width multiplier reaches."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

WidthRules = Literal["tf", "torchvision"]
"""See :mod:`~.width`."""
Scaling = Literal["always", "above_one", "never"]
"""When the width multiplier reaches a layer near the output (as in the released
networks: V3's last 1x1 conv always, V3's hidden layer and V2's last conv only above 1.0, MnasNet's never)."""

Excite = Literal["v3", "mnasnet", "lcnet"]
"""The squeeze-and-excite modules of the family: see :func:`reduced_width`. MnasNet's gate is a sigmoid, the
others' a hard-sigmoid."""


def make_divisible(value: float | Fraction, divisor: int = 8, minimum: int = 8) -> int:
    """Round a channel count to a multiple of ``divisor`` that is at least 0.9 of ``value``.

    Source: ``_make_divisible`` of TF-slim's MobileNet, used alike by torchvision and timm.
    """
    rounded = max(minimum, int(value + Fraction(divisor, 2)) // divisor * divisor)
    return rounded + divisor if rounded < Fraction(9, 10) * value else rounded


def reduced_width(se: Excite, expanded: int, inputs: int) -> int:
    """Width of the squeeze-and-excite bottleneck.

    ``v3``: a quarter of the expansion, made divisible by 8 (V3 paper 5.3; TF-slim, torchvision).
    ``mnasnet``: a quarter of the *block's input*, rounded down (TPU repository's MnasNet).
    ``lcnet``: a quarter of the expansion, rounded down (PaddleClas, timm).
    """
    if se == "v3":
        return make_divisible(expanded / 4)
    return max(1, (inputs if se == "mnasnet" else expanded) // 4)


def near_output(width: int, factor: Fraction, scaling: Scaling) -> int:
    """The width of a layer near the output after a multiplier, by its own rule."""
    if scaling == "never" or (scaling == "above_one" and factor < 1):
        return width
    return make_divisible(width * factor)
