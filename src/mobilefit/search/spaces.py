"""The ready-made search spaces."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mobilefit.arch import Block, Conv, spec
from mobilefit.arch.rows import Activation
from mobilefit.errors import unknown
from mobilefit.search.space import BlockChoices, Space, Stem, Tail

FILTERS = (0.75, 1.0, 1.25)
"""MnasNet's output filters, as parts of MobileNetV2's."""


def _filters(width: int) -> tuple[int, ...]:
    """MnasNet's three widths, each the nearest multiple of 8: the usual rounding, which never goes
    more than a tenth under, would make 24 of both 18 and 24."""
    return tuple(round(width * factor / 8) * 8 for factor in FILTERS)


def _block(stride: int, filters: tuple[int, ...], layers: int) -> BlockChoices:
    """A block of the paper's 432 forms."""
    return BlockChoices(
        stride=stride, op=("conv", "depthwise", "mbconv3", "mbconv6"), kernel=(3, 5),
        se=("none", "mnasnet"), skip=("pool", "identity", "none"), filters=filters,
        layers=(layers - 1, layers, layers + 1),
    )  # fmt: skip


def _mnasnet(name: str, extra_width: int | None = None) -> Space:
    """MobileNetV2's five middle stages searched, in MnasNet's frame (its stem, first and last row)."""
    frame = spec("mnasnet_a1")
    middle = []
    #                          V2's stage: stride, filters, layers
    for stride, width, layers in ((2, 24, 2), (2, 32, 3), (2, 64, 4), (1, 96, 3), (2, 160, 3)):
        widths = _filters(width)
        if extra_width is not None and width == 96:
            widths = tuple(sorted((*widths, extra_width)))
        middle.append(_block(stride, widths, layers))
    return Space(
        name=name, base=frame, blocks=tuple(middle),
        stems=(Stem(conv=frame.stem, rows=frame.blocks[:1]),),
        tails=(Tail(rows=frame.blocks[-1:], inputs=frame.blocks[-2].out, last=frame.last),),
    )  # fmt: skip


def _v3_small() -> Space:
    """V3-Small's five stages with h-swish, its stem and its redesigned last stage as choices.

    Inverted bottlenecks alone: no released network has MnasNet's full convolutions or pooling skips,
    and shared weights learn many times faster where all forms of a layer are parts of one. The widths
    are about 0.75, 1 and 1.25 of V3-Small's, moved apart where 40 and 48 would overlap.
    """
    base = spec("mobilenet_v3_small")
    both: tuple[Activation, ...] = ("relu", "hard_swish")
    blocks = tuple(
        BlockChoices(
            stride=stride, op=("mbconv3", "mbconv6"), kernel=(3, 5), se=("none", "v3"),
            filters=filters, layers=(layers - 1, layers, layers + 1), act=act,
        )
        for stride, filters, layers, act in (
            (2, (8, 16, 24), 2, ("relu",)),  # h-swish pays in the deeper layers only (section 5.2)
            (2, (16, 24, 32), 2, both),
            (2, (24, 32, 40), 3, both),
            (1, (48, 56, 64), 2, both),
            (2, (72, 96, 120), 3, both),
        )
    )
    head = base.head
    return Space(
        name="mobilenet_v3_small", base=base, blocks=blocks,
        stems=(
            Stem(conv=base.stem),  # 16 filters, h-swish: the paper's small stem
            Stem(conv=replace(base.stem, out=32, act="relu")),
        ),
        tails=(
            # redesigned: expand, pool, hidden layer (paper, Figure 5)
            Tail(last=base.last, hidden=head.hidden, act=head.act),
            # as it was before: a whole bottleneck and 1280 channels in front of the pooling
            Tail(
                rows=(Block(kernel=3, expand=6 * 96, out=144, act="relu"),), inputs=96,
                last=Conv(out=1280, act="relu", scaling="never"),
            ),
        ),
    )  # fmt: skip


SPACES = {
    "mnasnet": _mnasnet("mnasnet"),
    # Wide enough to hold MnasNet-A1 itself, whose 112 is none of 96's three widths.
    "mnasnet_a1": _mnasnet("mnasnet_a1", extra_width=112),
    "mobilenet_v3_small": _v3_small(),
}


def space(name: str) -> Space:
    """The space of that name, or of a ``.json`` file: see :meth:`Space.from_dict`.

    Raises:
        InputError: there is none (the nearest is suggested), or the file is not a legal space.
    """
    if name.endswith(".json"):
        return Space.load(Path(name))
    if name not in SPACES:
        raise unknown("space", name, SPACES)
    return SPACES[name]
