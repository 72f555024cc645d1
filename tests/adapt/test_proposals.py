"""What may shrink, and by how much."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mobilefit.adapt import Group, Proposal, groups, propose, removable
from mobilefit.arch import DETECTORS, FAMILY, SEGMENTERS, NetSpec, difference, spec

from .toy import POOLED, TOY, TOY_MADDS, milliseconds

WIDTHS = ("expansion", "bottleneck")
ALL = ("expansion", "bottleneck", "head")


def expansions(name: str) -> list[tuple[str, int]]:
    return [(g.name, g.width) for g in groups(spec(name), ("expansion",))]


def bottlenecks(name: str) -> list[tuple[str, int, tuple[int, ...]]]:
    return [(g.name, g.width, g.members) for g in groups(spec(name), ("bottleneck",))]


def test_groups_of_v3_large() -> None:
    assert expansions("mobilenet_v3_large") == [
        ("blocks.1.expand", 64), ("blocks.2.expand", 72), ("blocks.3.expand", 72),
        ("blocks.4.expand", 120), ("blocks.5.expand", 120), ("blocks.6.expand", 240),
        ("blocks.7.expand", 200), ("blocks.8.expand", 184), ("blocks.9.expand", 184),
        ("blocks.10.expand", 480), ("blocks.11.expand", 672), ("blocks.12.expand", 672),
        ("blocks.13.expand", 960), ("blocks.14.expand", 960),
    ]  # fmt: skip
    assert bottlenecks("mobilenet_v3_large") == [
        ("stem.out", 16, (-1, 0)),  # the first block adds the stem's output to its own
        ("blocks.1.out", 24, (1, 2)),
        ("blocks.3.out", 40, (3, 4, 5)),
        ("blocks.6.out", 80, (6, 7, 8, 9)),
        ("blocks.10.out", 112, (10, 11)),
        ("blocks.12.out", 160, (12, 13, 14)),
    ]


def test_groups_of_v3_small() -> None:
    assert expansions("mobilenet_v3_small") == [
        ("blocks.1.expand", 72), ("blocks.2.expand", 88), ("blocks.3.expand", 96),
        ("blocks.4.expand", 240), ("blocks.5.expand", 240), ("blocks.6.expand", 120),
        ("blocks.7.expand", 144), ("blocks.8.expand", 288), ("blocks.9.expand", 576),
        ("blocks.10.expand", 576),
    ]  # fmt: skip
    assert bottlenecks("mobilenet_v3_small") == [
        ("blocks.0.out", 16, (0,)),  # at stride 2 nothing ties the stem to it
        ("blocks.1.out", 24, (1, 2)),
        ("blocks.3.out", 40, (3, 4, 5)),
        ("blocks.6.out", 48, (6, 7)),
        ("blocks.8.out", 96, (8, 9, 10)),
    ]


def test_the_head_shrinks_only_when_asked() -> None:
    large = spec("mobilenet_v3_large")
    assert {group.kind for group in groups(large)} == {"expansion", "bottleneck"}
    head = groups(large, ("head",))
    assert [(g.name, g.width) for g in head] == [("last.out", 960), ("head.hidden", 1280)]
    assert difference(large, head[0].shrunk(large, 800)) == ["last.out 960 -> 800"]
    assert difference(large, head[1].shrunk(large, 640)) == ["head.hidden 1280 -> 640"]
    assert groups(spec("mobilenet_v1"), ("head", "expansion")) == []


def names(name: str, *kinds: str) -> list[tuple[str, int]]:
    return [(g.name, g.width) for g in groups(spec(name), kinds or None)]  # type: ignore[arg-type]


def test_the_head_of_a_detector_shrinks_unless_it_is_left_out() -> None:
    net = "ssdlite_mobilenet_v3_large"
    assert names(net, "head") == [
        ("last.out", 960), ("head.extras.0", 512), ("head.extras.1", 256), ("head.extras.2", 256),
        ("head.extras.3", 128),
    ]  # fmt: skip
    assert names(net) == names(net, "expansion", "bottleneck", "head")
    assert names(net, "expansion", "bottleneck") == names("mobilenet_v3_large")
    assert names("ssdlite_mobilenet_v1", "head")[0] == ("head.extras.0", 512)  # it has no last convolution


def test_the_head_of_a_segmenter_shrinks_unless_it_is_left_out() -> None:
    assert names("lraspp_mobilenet_v3_large", "head") == [("last.out", 480), ("head.filters", 128)]
    assert names("raspp_mobilenet_v2", "head") == [("head.filters", 256)]
    # Its tap is the last block's output: that shrinks as any other.
    assert names("raspp_mobilenet_v2", "bottleneck")[-1] == ("blocks.16.out", 320)
    assert names("raspp_mobilenet_v2")[-1] == ("head.filters", 256)


@pytest.mark.parametrize("name", [*DETECTORS, *SEGMENTERS])
def test_every_group_shrinks_alone_and_no_layer_is_renamed(name: str) -> None:
    net = spec(name)
    for group in groups(net):
        smaller = group.shrunk(net, group.width - 3)
        changed = difference(net, smaller)
        assert len(changed) == max(1, len(group.members)), group
        assert all(line.endswith(f" {group.width} -> {group.width - 3}") for line in changed)
        assert [layer.name for layer in smaller.cost().layers] == [layer.name for layer in net.cost().layers]
        assert smaller.cost().params < net.cost().params


def test_a_head_follows_the_expansion_that_it_takes() -> None:
    net = spec("ssdlite_mobilenet_v3_large")
    (group,) = [g for g in groups(net) if g.name == net.head.taps[0]]  # type: ignore[union-attr]
    cost = group.shrunk(net, 336).cost()
    assert [cost.of(f"head.{part}.0.predict").layers[0].inputs for part in ("classes", "boxes")] == [336, 336]
    net = spec("lraspp_mobilenet_v3_large")
    (group,) = [g for g in groups(net) if g.members == (5,) and g.kind == "expansion"]
    assert group.shrunk(net, 64).cost().of("head.low").layers[0].inputs == 64  # blocks.5.depthwise


def test_a_bottleneck_shrinks_in_all_its_blocks() -> None:
    large = spec("mobilenet_v3_large")
    (stem, *_, last) = groups(large, ("bottleneck",))
    assert difference(large, stem.shrunk(large, 8)) == [
        "stem.out 16 -> 8", "blocks.0.out 16 -> 8"
    ]  # fmt: skip
    assert difference(large, last.shrunk(large, 152)) == [
        f"blocks.{i}.out 160 -> 152" for i in (12, 13, 14)
    ]


def test_a_pool_ties_widths_at_any_stride() -> None:
    assert [(g.name, g.width, g.members) for g in groups(POOLED, ("bottleneck",))] == [
        ("stem.out", 16, (-1, 0, 1)),  # the first row pools the stem's output at stride 2
        ("blocks.2.out", 40, (2, 3, 4)),  # another width: nothing is added there
        ("blocks.5.out", 24, (5,)),
    ]


@pytest.mark.parametrize("name", [*FAMILY, "pooled"])
def test_shrinking_keeps_every_residual_and_makes_none(name: str) -> None:
    net = POOLED if name == "pooled" else spec(name)

    def residuals(net) -> list[bool]:  # type: ignore[no-untyped-def]
        return [b.has_residual(inputs) for b, inputs in zip(net.blocks, net.widths)]

    for group in groups(net, ALL):
        for width in range(8, group.width, 8):
            assert residuals(group.shrunk(net, width)) == residuals(net), (group, width)


def test_a_width_that_falls_to_its_neighbours_adds_no_residual() -> None:
    small = spec("mobilenet_v3_small")
    group = Group(kind="bottleneck", name="blocks.6.out", width=48, members=(6, 7))
    assert difference(small, group.shrunk(small, 40)) == [
        "blocks.6.out 48 -> 40", "blocks.6.skip identity -> none", "blocks.7.out 48 -> 40"
    ]  # fmt: skip
    assert difference(small, group.shrunk(small, 32)) == [
        "blocks.6.out 48 -> 32", "blocks.7.out 48 -> 32"
    ]  # fmt: skip


def test_a_width_that_falls_to_its_neighbours_adds_no_pool() -> None:
    group = groups(POOLED, ("bottleneck",))[1]
    assert difference(POOLED, group.shrunk(POOLED, 24)) == [
        "blocks.2.out 40 -> 24", "blocks.3.out 40 -> 24", "blocks.4.out 40 -> 24",
        "blocks.5.skip pool -> none",
    ]  # fmt: skip
    assert "blocks.2.skip pool -> none" in difference(POOLED, group.shrunk(POOLED, 16))


# ---- on paper


def test_the_toys_cost() -> None:
    assert TOY.cost().madds == TOY_MADDS == 21120


def test_groups_of_the_toy() -> None:
    assert groups(TOY) == [
        Group(kind="expansion", name="blocks.0.expand", width=16, members=(0,)),
        Group(kind="expansion", name="blocks.1.expand", width=24, members=(1,)),
        Group(kind="expansion", name="blocks.2.expand", width=32, members=(2,)),
        Group(kind="bottleneck", name="stem.out", width=8, members=(-1, 0)),
        Group(kind="bottleneck", name="blocks.1.out", width=16, members=(1, 2)),
    ]


def test_proposals_by_hand() -> None:
    # Eight channels of each group save (multiply-adds): half of blocks.0, a third of blocks.1; in
    # blocks.2 4*8*(16 + 9 + 16) and 2*8*8 of the SE, whose own width stays 8; of the bottleneck
    # 4*24*8 + 4*2*8*32 + 8*2. The stem's group is at 8 already.
    assert [(p.what, p.latency_ms) for p in propose(TOY, 20.12, milliseconds, WIDTHS)] == [
        ("blocks.0.expand 16 -> 8", (21120 - 3200) / 1000),
        ("blocks.1.expand 24 -> 16", (21120 - 1824) / 1000),
        ("blocks.2.expand 32 -> 24", (21120 - 1440) / 1000),
        ("blocks.1.out 16 -> 8", (21120 - 768 - 2048 - 16) / 1000),
    ]
    # Two milliseconds less take another step of two groups.
    assert [(p.group, p.width, p.latency_ms) for p in propose(TOY, 19.12, milliseconds, WIDTHS)] == [
        ("blocks.0.expand", 8, 17.92),
        ("blocks.1.expand", 8, (21120 - 2 * 1824) / 1000),
        ("blocks.2.expand", 16, (21120 - 2 * 1440) / 1000),
        ("blocks.1.out", 8, 18.288),
    ]


def test_a_cut_that_is_met_exactly_counts() -> None:
    assert propose(TOY, 17.92, milliseconds)[0].latency_ms == 17.92


def test_groups_that_cannot_save_enough_are_left_out() -> None:
    assert [p.what for p in propose(TOY, 17.0, milliseconds, WIDTHS)] == ["blocks.2.expand 32 -> 8"]
    assert propose(TOY, 16.0, milliseconds, WIDTHS) == []
    assert [p.group for p in propose(TOY, 20.12, milliseconds, ("bottleneck",))] == ["blocks.1.out"]


@pytest.mark.parametrize("widest", [*range(0, 960, 104), 952])
def test_few_widths_of_a_wide_layer_are_measured(widest: int) -> None:
    """The widest of 119 that is fast enough, or that none is, from 14 of them at most."""
    wide = replace(TOY, blocks=(*TOY.blocks[:2], replace(TOY.blocks[2], expand=960)))
    measured = []

    def latency(spec: NetSpec) -> float:
        width = spec.blocks[2].expand
        assert width is not None
        if width < 960:  # the other groups' proposals
            measured.append(width)
        return float(width)

    found = propose(wide, float(widest), latency, ("expansion",))
    assert [p.width for p in found] == ([widest // 8 * 8] if widest >= 8 else [])
    assert len(measured) <= 14 and len(set(measured)) == len(measured)


def test_the_squeeze_is_computed_anew() -> None:
    wide = replace(TOY, blocks=(*TOY.blocks[:2], replace(TOY.blocks[2], expand=96)))
    narrow = Group(kind="expansion", name="blocks.2.expand", width=96, members=(2,)).shrunk(wide, 64)
    reduced = [s.cost().of("blocks.2.se").layers[0].reduced for s in (wide, narrow)]
    assert reduced == [24, 16]


def test_widths_fall_to_the_next_multiple_of_eight() -> None:
    odd = replace(TOY, blocks=(replace(TOY.blocks[0], expand=19), *TOY.blocks[1:]))
    widths = []

    def latency(net) -> float:  # type: ignore[no-untyped-def]
        widths.append(net.blocks[0].expand)
        return 1.0 if net.blocks[0].expand == 8 else 9.0

    assert propose(odd, 1.0, latency, ("expansion",))[0].width == 8
    assert widths[:2] == [16, 8]


# ---- blocks, and the head


def test_blocks_with_a_residual_can_be_left_out() -> None:
    small = spec("mobilenet_v3_small")
    assert [group.name for group in removable(small)] == [f"blocks.{i}" for i in (2, 4, 5, 7, 9, 10)]
    assert removable(small, ("expansion",)) == []
    for group in removable(small):
        (index,) = group.members
        without = group.shrunk(small, 0)
        assert without.blocks == small.blocks[:index] + small.blocks[index + 1 :] and group.shrunk(small, 1) is small
    assert removable(replace(TOY, blocks=TOY.blocks[:1])) == []  # one must be left
    assert [group.name for group in removable(POOLED)] == ["blocks.1"]  # the others add what they pooled


@pytest.mark.parametrize("name", [*DETECTORS, *SEGMENTERS])
def test_a_head_keeps_its_layers_when_a_block_is_left_out(name: str) -> None:
    net = spec(name)
    heads = removable(net)
    for group in heads:
        (index,) = group.members
        without = group.shrunk(net, 0)
        before, after = (
            getattr(s.head, "taps", None) or (s.head.tap, s.head.skip) for s in (net, without)  # type: ignore[union-attr]
        )
        for old, new in zip(before, after, strict=True):
            if old is not None and old.startswith("blocks."):
                was, now = (int(tap.split(".")[1]) for tap in (old, new))
                assert was != index and now == was - (index < was)
                assert net.blocks[was] == without.blocks[now]
            else:
                assert old == new


def test_a_block_is_proposed_where_that_is_fast_enough() -> None:
    everything = propose(TOY, 20.12, milliseconds, ("expansion", "block"))
    assert [p.what for p in everything if p.width == 0] == ["blocks.0 left out", "blocks.2 left out"]
    block = everything[-2]
    assert block.latency_ms == (21120 - 6400) / 1000 and block.spec.blocks == TOY.blocks[1:]
    assert (block.narrowed, block.left_out, block.group) == (TOY, (0,), "blocks.0")
    assert [p.group for p in propose(TOY, 15.0, milliseconds, ("block",))] == ["blocks.0"]


def test_what_two_proposals_shrink_together() -> None:
    by_name = {p.group: p for p in propose(TOY, 20.12, milliseconds)}
    first, second = by_name["blocks.0"], by_name["blocks.2.expand"]
    for both in (first.with_also(second, milliseconds), second.with_also(first, milliseconds)):
        assert both is not None
        assert both.spec.blocks == (TOY.blocks[1], replace(TOY.blocks[2], expand=24))
        assert both.latency_ms == milliseconds(both.spec)
    assert first.with_also(by_name["blocks.0.expand"], milliseconds) is None  # it is gone
    assert first.with_also(first, milliseconds) is None
    all_gone = first.with_also(by_name["blocks.2"], milliseconds)
    assert all_gone is not None and all_gone.spec.blocks == TOY.blocks[1:2]


def test_the_head_shrinks_where_there_are_few_classes() -> None:
    small = spec("mobilenet_v3_small")
    for classes, kinds in ((10, {"expansion", "bottleneck", "head"}), (249, {"expansion", "bottleneck", "head"}),
                           (250, {"expansion", "bottleneck"})):  # fmt: skip
        assert {group.kind for group in groups(small.classes(classes))} == kinds
    assert [g.name for g in groups(small.classes(10))][-2:] == ["last.out", "head.hidden"]


def test_changes_together_are_of_the_groups_as_they_were() -> None:
    """Also where a bottleneck falls to the width that its neighbour had, and would be one with it."""
    net_spec = spec("mobilenet_v2")
    by_name = {group.name: group for group in (*groups(net_spec, ALL), *removable(net_spec))}
    changes = [("blocks.1.out", 16), ("blocks.0.out", 8), ("blocks.4", 0), ("blocks.5.expand", 96), ("blocks.2", 0)]
    joint = Proposal.together(net_spec, [(by_name[name], width) for name, width in changes], milliseconds)
    assert joint.left_out == (2, 4) and joint.latency_ms == milliseconds(joint.spec)
    assert [block.out for block in joint.narrowed.blocks[:4]] == [8, 16, 16, 32]
    assert joint.narrowed.blocks[5].expand == 96 and len(joint.spec.blocks) == len(net_spec.blocks) - 2
    assert joint.what.startswith("blocks.1.out 24 -> 16, blocks.0.out 16 -> 8, blocks.4 left out")
    assert not joint.narrowed.blocks[1].has_residual(8)
