"""What NetAdapt may shrink, and by how much (V3 paper, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from mobilefit.arch import ClassifierHead, Head, NetSpec, SegmentationHead, SSDLiteHead
from mobilefit.progress import Progress

Kind = Literal["expansion", "bottleneck", "head", "block"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FEW_CLASSES = 250
"""With fewer the head of a classifier shrinks as well."""
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
    """1 of a whole block, which is there or not."""
    members: tuple[int, ...] = ()
    """Blocks whose ``expand`` or ``out`` it is; -1 is the stem."""

    def shrunk(self, spec: NetSpec, width: int) -> NetSpec:
        """The spec with this group's width changed; at 0 without the block that it is."""
        if self.kind == "block":
            return spec if width else without_blocks(spec, self.members)
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


def without_blocks(spec: NetSpec, indices: Collection[int]) -> NetSpec:
    """The spec without some of its blocks; what its head takes keeps its layer, under its new name."""
    blocks = tuple(block for index, block in enumerate(spec.blocks) if index not in indices)
    head = spec.head
    if isinstance(head, SSDLiteHead):
        head = replace(head, taps=tuple(renumbered(tap, indices) for tap in head.taps))
    elif isinstance(head, SegmentationHead):
        skip = None if head.skip is None else renumbered(head.skip, indices)
        head = replace(head, tap=renumbered(head.tap, indices), skip=skip)
    return replace(spec, blocks=blocks, head=head)


def renumbered(layer: str, removed: Collection[int]) -> str:
    """The name of a layer of the backbone once some blocks are gone: ``blocks.5.expand`` becomes ``blocks.4.expand``."""
    first, *rest = layer.split(".")
    if first != "blocks":
        return layer
    index = int(rest[0])
    return ".".join([first, str(index - sum(other < index for other in removed)), *rest[1:]])


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
    narrowed: NetSpec
    """The same network before blocks are left out."""
    left_out: tuple[int, ...] = ()
    """Blocks of ``narrowed`` that :attr:`spec` is without."""

    @classmethod
    def of(cls, spec: NetSpec, group: Group, width: int, latency_ms: float) -> Proposal:
        """``spec`` with one of its groups at ``width``."""
        smaller, block = group.shrunk(spec, width), group.kind == "block"
        return cls(
            spec=smaller, group=group.name, width=width, latency_ms=latency_ms,
            what=f"{group.name} left out" if block else f"{group.name} {group.width} -> {width}",
            narrowed=spec if block else smaller, left_out=group.members if block else (),
        )  # fmt: skip

    @classmethod
    def together(cls, spec: NetSpec, changes: Sequence[tuple[Group, int]], latency: Latency) -> Proposal:
        """``spec`` with several of its groups at new widths, and without some of its blocks.

        Args:
            changes: groups of ``spec``, each once, with their widths; 0 of a block that is left out.
        """
        parts = [cls.of(spec, group, width, 0.0) for group, width in changes]
        gone = tuple(sorted(index for part in parts for index in part.left_out))
        narrowed = spec
        for group, width in changes:
            narrowed = narrowed if group.kind == "block" else group.shrunk(narrowed, width)
        smaller = without_blocks(narrowed, gone)
        return replace(
            parts[0], spec=smaller, narrowed=narrowed, left_out=gone, what=", ".join(part.what for part in parts),
            latency_ms=latency(smaller),
        )  # fmt: skip

    def with_also(self, other: Proposal, latency: Latency) -> Proposal | None:
        """The network that both shrink; ``None`` where nothing of the other is left to shrink."""
        if other.left_out:
            index = other.left_out[0]
            gone = {*self.left_out, index}
            if index in self.left_out or len(gone) == len(self.narrowed.blocks):
                return None
            narrowed = self.narrowed
        else:
            by_name = {group.name: group for group in groups(self.narrowed, KINDS)}
            group, gone = by_name.get(other.group), set(self.left_out)
            absent = group is not None and group.kind == "expansion" and gone.issuperset(group.members)
            if group is None or absent or other.width >= group.width:
                return None
            narrowed = group.shrunk(self.narrowed, other.width)
        spec = without_blocks(narrowed, gone)
        return replace(
            self, spec=spec, narrowed=narrowed, left_out=tuple(sorted(gone)), what=f"{self.what}, {other.what}",
            latency_ms=latency(spec),
        )  # fmt: skip


def groups(spec: NetSpec, kinds: tuple[Kind, ...] | None = None) -> list[Group]:
    """Every width that may shrink.

    - ``expansion``: the inner width of any block; a head that takes it (SSDLite's C4) follows;
    - ``bottleneck``: the output width of all consecutive blocks that share it; the stem belongs to
      it where a residual ties it in (V3-Large);
    - ``head``: the last 1x1 convolution and the head's own widths, each alone: the hidden layer, each of
      SSDLite's extra maps (its narrow part with it), R-ASPP's and LR-ASPP's filters.

    Args:
        kinds: of these; ``None``: :func:`usual_kinds`.
    """
    allowed = usual_kinds(spec) if kinds is None else kinds
    return [group for group in _all_groups(spec) if group.kind in allowed]


def usual_kinds(spec: NetSpec) -> tuple[Kind, ...]:
    """What shrinks where nothing is said.

    The V3 paper proposes expansions and bottlenecks, for ImageNet. Blocks that residuals can do without are proposed
    as well (LayerPrune, arXiv 2007.05667: whole layers give more latency for the accuracy than filters). The head shrinks
    too for detection and segmentation, where the paper halves the last stage by hand (Tables 6 and 7), and
    with fewer than :data:`FEW_CLASSES` classes: its widths are for a thousand.
    """
    if isinstance(spec.head, ClassifierHead) and spec.head.num_classes >= FEW_CLASSES:
        return ("expansion", "bottleneck", "block")
    return KINDS


def removable(spec: NetSpec, kinds: tuple[Kind, ...] | None = None) -> list[Group]:
    """Blocks that can be left out, as groups of kind ``block``: identity residuals that no head takes anything from."""
    if "block" not in (usual_kinds(spec) if kinds is None else kinds) or len(spec.blocks) < 2:
        return []
    head = spec.head
    taps: tuple[str | None, ...] = head.taps if isinstance(head, SSDLiteHead) else ()
    if isinstance(head, SegmentationHead):
        taps = (head.tap, head.skip)
    tapped = {tap.split(".")[1] for tap in taps if tap is not None and tap.startswith("blocks.")}
    return [
        Group(kind="block", name=f"blocks.{index}", width=1, members=(index,))
        for index, (block, inputs) in enumerate(zip(spec.blocks, spec.widths))
        if block.skip == "identity" and block.has_residual(inputs) and str(index) not in tapped
    ]


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
    """For each group, the widest network at or under ``ceiling_ms``; groups that cannot are left out. After them, the
    network without each block that is removable, where that is fast enough.

    Args:
        label: what progress calls it; ``None``: none is shown.
    """
    candidates = [*groups(spec, kinds), *removable(spec, kinds)]
    proposals = []
    with Progress(len(candidates), label, unit="group") as progress:
        for group in candidates:
            proposals.append(_widest(spec, group, ceiling_ms, latency))
            progress.update(1)
    return [proposal for proposal in proposals if proposal is not None]


def _widest(
    spec: NetSpec, group: Group, ceiling_ms: float, latency: Latency
) -> Proposal | None:
    """In strides that double from the group's width down, then by halves: each width is measured, and a wide
    layer has a hundred. Where latency does not rise with the width, a wider one may be overlooked."""
    widths = range(1) if group.kind == "block" else range((group.width - 1) // STEP * STEP, 0, -STEP)
    over, under, stride, found = -1, len(widths), 1, None
    while under - over > 1:
        place = min(over + stride, under - 1) if found is None else (over + under) // 2
        latency_ms = latency(group.shrunk(spec, widths[place]))
        if latency_ms <= ceiling_ms:
            under, found = place, Proposal.of(spec, group, widths[place], latency_ms)
        else:
            over, stride = place, 2 * stride
    return found
