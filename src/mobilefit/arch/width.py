"""The width multiplier, by the two rules that are in use.

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
from typing import get_args

from mobilefit.arch.rows import Block, Conv
from mobilefit.arch.scaling import Scaling, WidthRules, make_divisible, near_output
from mobilefit.errors import InputError, unknown

Rows = tuple[Conv, tuple[Block, ...], Conv | None]
"""Stem, blocks, and the last convolution if there is one."""


def checked(multiplier: float, rules: WidthRules, head: Scaling | None) -> Fraction:
    """The multiplier as the number that was written: 0.35 is 7/20, not its float.

    Raises:
        InputError: it is not positive, or a name is unknown.
    """
    if not 0 < multiplier < math.inf:
        raise InputError(f"width multiplier {multiplier} is not a positive number")
    if rules not in get_args(WidthRules):
        raise unknown("width rule", rules, get_args(WidthRules))
    if head is not None and head not in get_args(Scaling):
        raise unknown("head scaling", head, get_args(Scaling))
    return Fraction(str(multiplier))


def scaled(rows: Rows, factor: Fraction, rules: WidthRules) -> Rows:
    """A backbone with every channel count scaled."""
    stem, blocks, last = rows
    narrow = replace(stem, out=near_output(stem.out, factor, stem.scaling))
    made = tuple(_blocks(stem, blocks, narrow.out, factor, rules))
    if last is not None:
        last = _last(last, blocks[-1].out, made[-1].out, factor, rules)
    return narrow, made, last


def _blocks(
    stem: Conv, blocks: tuple[Block, ...], new: int, factor: Fraction, rules: WidthRules
) -> Iterator[Block]:
    """The rows after a stem of ``new`` channels."""
    scale_expansion = rules == "torchvision" and not written_as_ratios(stem, blocks)
    old = stem.out
    for block in blocks:
        expand = block.expand
        if expand is not None:
            expand = make_divisible(
                expand * factor if scale_expansion else new * Fraction(expand, old)
            )
        made = replace(block, expand=expand, out=make_divisible(block.out * factor))
        yield made
        old, new = block.out, made.out


def written_as_ratios(stem: Conv, blocks: tuple[Block, ...]) -> bool:
    """Whether every expansion is a whole multiple of its input, as in V2's and MnasNet's tables."""
    widths = [stem.out, *(block.out for block in blocks)]
    return all(b.expand is None or b.expand % i == 0 for b, i in zip(blocks, widths))


def _last(last: Conv, old: int, new: int, factor: Fraction, rules: WidthRules) -> Conv:
    if rules == "torchvision" and last.scaling == "always":
        return replace(last, out=last.out // old * new)  # 6 x the last block
    return replace(last, out=near_output(last.out, factor, last.scaling))
