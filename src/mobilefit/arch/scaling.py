"""Channel rounding and the two width rules that are in use.

The rules differ in where the multiplier meets the expansion (shown here for V3-Large block 8,
80 -> 200 -> 80 channels, at multiplier 0.75):

``tf``
    The expansion ratio stays exact and is applied to the *scaled input*: the input goes from 80 to
    64 channels and the expansion is ``make_divisible(64 * 200/80) = 160``. This is the rule of the
    TensorFlow code that the paper's tables were made with; it reproduces Table 9.
``torchvision``
    The expansion itself is scaled: ``make_divisible(200 * 0.75) = 152``. torchvision's MobileNetV3
    and PaddleClas do this; their networks below 1.0 are not the paper's. (torchvision writes V2 and
    MnasNet by whole ratios, as the papers do, so for those both rules give the same network.)

At 1.0 they agree. At 0.75 they differ in 12 of V3-Large's 15 blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, get_args

from mobilefit.errors import InputError, unknown

if TYPE_CHECKING:
    from mobilefit.arch.rows import Block, Conv
    from mobilefit.arch.spec import NetSpec

WidthRules = Literal["tf", "torchvision"]
Scaling = Literal["always", "above_one", "never"]
"""When the width multiplier reaches a layer near the output (as in the released
networks: V3's last 1x1 conv always, V3's hidden layer and V2's last conv only above 1.0, MnasNet's never)."""


Excite = Literal["v3", "mnasnet"]
"""The two squeeze-and-excite modules of the family: see :func:`reduced_width`."""


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
    """
    return make_divisible(expanded / 4) if se == "v3" else max(1, inputs // 4)


def scale_width(
    spec: NetSpec, multiplier: float, rules: WidthRules = "tf", head: Scaling | None = None
) -> NetSpec:
    """Scale every channel count of ``spec``.

    Args:
        spec: the network to scale; its own widths count as multiplier 1.
        multiplier: the width multiplier, above 0; the papers use 0.35 to 1.4.
        rules: ``"tf"`` or ``"torchvision"``, see this module's docstring.
        head: overrides when the head's hidden layer scales. The paper is of two minds above 1.0:
            Table 9's Small 1.25 (3.6 M) has a scaled one, its Large 1.25 (7.5 M) a fixed one.

    Raises:
        InputError: the multiplier is not positive, or a name is unknown.
    """
    if not 0 < multiplier < math.inf:
        raise InputError(f"width multiplier {multiplier} is not a positive number")
    if rules not in get_args(WidthRules):
        raise unknown("width rule", rules, get_args(WidthRules))
    if head is not None and head not in get_args(Scaling):
        raise unknown("head scaling", head, get_args(Scaling))
    factor = Fraction(str(multiplier))  # the number as written: 0.35 is 7/20, not its float
    blocks = tuple(_scaled_blocks(spec, factor, rules))
    return replace(
        spec,
        name=f"{spec.name}_{multiplier:g}" + ("" if rules == "tf" else f"_{rules}"),
        stem=replace(spec.stem, out=make_divisible(spec.stem.out * factor)),
        blocks=blocks,
        last=_scaled_last(spec, factor, rules, blocks[-1].out),
        head=spec.head.scaled(factor, rules, head),
    )


def _scaled_blocks(spec: NetSpec, factor: Fraction, rules: WidthRules) -> Iterator[Block]:
    scale_expansion = rules == "torchvision" and not written_as_ratios(spec)
    old, new = spec.stem.out, make_divisible(spec.stem.out * factor)
    for block in spec.blocks:
        expand = block.expand
        if expand is not None:
            expand = make_divisible(
                expand * factor if scale_expansion else new * Fraction(expand, old)
            )
        scaled = replace(block, expand=expand, out=make_divisible(block.out * factor))
        yield scaled
        old, new = block.out, scaled.out


def written_as_ratios(spec: NetSpec) -> bool:
    """Whether every expansion is a whole multiple of its input, as in V2's and MnasNet's tables."""
    widths = [spec.stem.out, *(block.out for block in spec.blocks)]
    return all(b.expand is None or b.expand % i == 0 for b, i in zip(spec.blocks, widths))


def _scaled_last(
    spec: NetSpec, factor: Fraction, rules: WidthRules, before: int
) -> Conv | None:
    last = spec.last
    if last is None:
        return None
    if rules == "torchvision" and last.scaling == "always":
        return replace(last, out=last.out // spec.blocks[-1].out * before)  # 6 x the last block
    return replace(last, out=near_output(last.out, factor, last.scaling))


def near_output(width: int, factor: Fraction, scaling: Scaling) -> int:
    """The width of a layer near the output after a multiplier, by its own rule."""
    if scaling == "never" or (scaling == "above_one" and factor < 1):
        return width
    return make_divisible(width * factor)
