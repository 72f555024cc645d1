"""What NetAdapt may shrink, and by how much (V3 paper, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

from mobilefit.arch import ClassifierHead, Head, NetSpec, SegmentationHead, Task
from mobilefit.progress import Progress

Kind = Literal["expansion", "bottleneck", "head"]
KINDS: tuple[Kind, ...] = get_args(Kind)
USUAL: dict[Task, tuple[Kind, ...]] = {
    "classify": ("expansion", "bottleneck"), "detect": KINDS, "segment": KINDS
}  # fmt: skip
"""What shrinks where nothing is said. The V3 paper proposes the first two kinds, for ImageNet; for
detection and segmentation it halves the last stage by hand (Tables 6 and 7), last convolution and all:
widths that were found for a thousand classes are too many there."""
STEP = 8
"""Widths shrink in steps of 8 channels, the granularity of the published tables."""

Latency = Callable[[NetSpec], float]
"""Milliseconds of a spec: measured, or from the lookup table."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Widths that can only shrink together."""

    kind: Kind
    name: str
    """The first of them, as a spec difference names it."""
    width: int
    members: tuple[int, ...] = ()
    """Blocks whose ``expand`` or ``out`` it is; -1 is the stem."""

    def shrunk(self, spec: NetSpec, width: int) -> NetSpec:
        """The spec with this group's width changed."""
        if self.name == "last.out":
            assert spec.last is not None
            return replace(spec, last=replace(spec.last, out=width))
        if self.kind == "head":
            return replace(spec, head=_narrower(spec.head, self.name, width))
        blocks = list(spec.blocks)
        stem = spec.stem
        for index in self.members:
            if index < 0:
                stem = replace(stem, out=width)
            elif self.kind == "expansion":
                blocks[index] = replace(blocks[index], expand=width)
            else:
                blocks[index] = replace(blocks[index], out=width)
        return _without_new_residuals(spec, replace(spec, stem=stem, blocks=tuple(blocks)))


def _narrower(head: Head, name: str, width: int) -> Head:
    """The head with one of its own widths changed."""
    if isinstance(head, ClassifierHead):
        return replace(head, hidden=width)
    if isinstance(head, SegmentationHead):
        return replace(head, filters=width)
    extras = list(head.extras)
    extras[int(name.removeprefix("head.extras."))] = width
    return replace(head, extras=tuple(extras))


def _without_new_residuals(old: NetSpec, new: NetSpec) -> NetSpec:
    """Where a width happens to fall to its neighbour's, the weights know of no residual there."""
    blocks = [
        replace(block, skip="none")
        if block.has_residual(inputs) and not before.has_residual(old_inputs)
        else block
        for block, inputs, before, old_inputs in zip(new.blocks, new.widths, old.blocks, old.widths)
    ]
    return replace(new, blocks=tuple(blocks))


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """One way to take a step: a smaller network that is fast enough."""

    spec: NetSpec
    group: str
    """The name of what shrinks."""
    width: int
    """Its new width."""
    what: str
    """Readable: ``blocks.3.expand 120 -> 96``."""
    latency_ms: float

    @classmethod
    def of(cls, spec: NetSpec, group: Group, width: int, latency_ms: float) -> Proposal:
        """``spec`` with one of its groups at ``width``."""
        return cls(
            spec=group.shrunk(spec, width), group=group.name, width=width,
            what=f"{group.name} {group.width} -> {width}", latency_ms=latency_ms,
        )  # fmt: skip


def groups(spec: NetSpec, kinds: tuple[Kind, ...] | None = None) -> list[Group]:
    """Everything that may shrink.

    - ``expansion``: the inner width of any block; a head that takes it (SSDLite's C4) follows;
    - ``bottleneck``: the output width of all consecutive blocks that share it; the stem belongs to
      it where a residual ties it in (V3-Large);
    - ``head``: the last 1x1 convolution and the head's own widths, each alone: the hidden layer, each of
      SSDLite's extra maps (its narrow part with it), R-ASPP's and LR-ASPP's filters.

    Args:
        kinds: of these; ``None``: :data:`USUAL`.
    """
    wanted = USUAL[spec.task] if kinds is None else kinds
    return [group for group in _all_groups(spec) if group.kind in wanted]


def _all_groups(spec: NetSpec) -> Iterator[Group]:
    for index, block in enumerate(spec.blocks):
        if block.expand is not None:
            yield Group(kind="expansion", name=f"blocks.{index}.expand", width=block.expand,
                        members=(index,))  # fmt: skip
    for members in _bottlenecks(spec):
        first = "stem.out" if members[0] < 0 else f"blocks.{members[0]}.out"
        yield Group(kind="bottleneck", name=first, width=spec.blocks[members[-1]].out,
                    members=tuple(members))  # fmt: skip
    if spec.last is not None:
        yield Group(kind="head", name="last.out", width=spec.last.out)
    for name, width in spec.head.widths.items():
        yield Group(kind="head", name=name, width=width)


def _bottlenecks(spec: NetSpec) -> list[list[int]]:
    """Runs of consecutive blocks with one output width; -1, the stem, where a residual needs it."""
    runs: list[list[int]] = []
    for index, block in enumerate(spec.blocks):
        if runs and spec.blocks[runs[-1][-1]].out == block.out:
            runs[-1].append(index)
        else:
            runs.append([index])
    if spec.blocks[0].has_residual(spec.stem.out):
        runs[0].insert(0, -1)
    return runs


def propose(
    spec: NetSpec, ceiling_ms: float, latency: Latency, kinds: tuple[Kind, ...] | None = None, *,
    label: str | None = None,
) -> list[Proposal]:  # fmt: skip
    """For each group, the widest network at or under ``ceiling_ms``; groups that cannot are left out.

    Args:
        label: what progress calls it; ``None``: none is shown.
    """
    found, wanted = [], groups(spec, kinds)
    with Progress(len(wanted), label, unit="group") as progress:
        for group in wanted:
            found.append(_widest(spec, group, ceiling_ms, latency))
            progress.update(1)
    return [proposal for proposal in found if proposal is not None]


def _widest(
    spec: NetSpec, group: Group, ceiling_ms: float, latency: Latency
) -> Proposal | None:
    """In strides that double from the group's width down, then by halves: each width is measured, and a wide
    layer has a hundred. Where latency does not rise with the width, a wider one may be overlooked."""
    widths = range((group.width - 1) // STEP * STEP, 0, -STEP)
    over, under, stride, found = -1, len(widths), 1, None
    while under - over > 1:
        place = min(over + stride, under - 1) if found is None else (over + under) // 2
        latency_ms = latency(group.shrunk(spec, widths[place]))
        if latency_ms <= ceiling_ms:
            under, found = place, Proposal.of(spec, group, widths[place], latency_ms)
        else:
            over, stride = place, 2 * stride
    return found
