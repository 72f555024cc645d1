"""Which networks enter at which size, on a device whose latency does not follow the multiply-adds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import pytest

from mobilefit.arch import FAMILY, Block, ClassifierHead, Conv, NetSpec, detector
from mobilefit.pipeline import candidates
from mobilefit.pipeline.candidates import (
    SIZES,
    WIDTHS,
    Candidate,
    Sizes,
    above,
    measure_sizes,
    reduced_head,
    reduced_heads,
    scratch_networks,
    sizes_for,
    spread,
    within,
)

SMALL = FAMILY["mobilenet_v3_small"].classes(5)
LARGE = FAMILY["mobilenet_v3_large"].classes(5)
V2 = FAMILY["mobilenet_v2"].classes(5)
MS_PER_MADD = 1e-8


@dataclass
class Device:
    """Milliseconds by whole tiles: at each stride of 2 an odd map costs what the next even one does.

    So 72 px (maps of 36, 18, 9, 5, 3) take nearly what 80 px (40, 20, 10, 5, 3) do.
    """

    measured: list[tuple[str, tuple[int, int]]] = field(default_factory=list)
    calls: int = 0

    def __call__(self, specs: Sequence[NetSpec]) -> list[float]:
        self.calls += 1
        self.measured += [(spec.name, spec.image_shape) for spec in specs]
        return [self.latency(spec) for spec in specs]

    @staticmethod
    def latency(spec: NetSpec) -> float:
        height, width = spec.image_shape
        tiles = math.ceil(height / 16) * math.ceil(width / 16)
        madds = spec.resolution(32, 32).cost().madds / 4  # of a tile of 16 by 16
        return 0.05 + MS_PER_MADD * madds * tiles + 1e-4 * height  # a little more for each line


def networks(*specs: NetSpec, sizes: tuple[int, ...] = SIZES) -> list[Sizes]:
    return [Sizes(spec=spec, weights=None, sizes=sizes) for spec in specs]


def largest(spec: NetSpec, sizes: Sequence[int], budget_ms: float) -> int | None:
    """By trying every size."""
    network = Sizes(spec=spec, weights=None, sizes=tuple(sizes))
    return max((s for s in sizes if Device.latency(network.at(s)) <= budget_ms), default=None)


# ---- sizes


@pytest.mark.parametrize(
    ("short_side", "expected"),
    [(100, 96), (96, 96), (95, 80), (64, 64), (500, 448), (4000, 512)],
)
def test_sizes_end_at_the_images(short_side: int, expected: int) -> None:
    sizes = sizes_for(short_side, None)
    assert sizes[0] == 32 and sizes[-1] == expected
    assert sizes == SIZES[: len(sizes)]


@pytest.mark.parametrize("short_side", [8, 28, 63])
def test_tiny_images_are_enlarged_to_64_at_most(short_side: int) -> None:
    assert sizes_for(short_side, None) == (32, 40, 48, 56, 64)


@pytest.mark.parametrize("resolution", [33, 100, 1024])
def test_a_fixed_resolution_is_the_one_size(resolution: int) -> None:
    assert sizes_for(28, resolution) == sizes_for(4000, resolution) == (resolution,)


def test_a_square_input_stays_square() -> None:
    (network,) = networks(SMALL)
    assert [network.at(size).image_shape for size in (40, 72)] == [(40, 40), (72, 72)]


def test_another_input_keeps_its_form() -> None:
    (network,) = networks(SMALL.resolution(240, 320))
    assert network.at(240).image_shape == (240, 320)
    assert network.at(96).image_shape == (96, 128)
    assert network.at(112).image_shape == (112, 160)  # 149 is nearest to 5 times 32
    (wide,) = networks(SMALL.resolution(32, 512))
    assert wide.at(64).image_shape == (64, 1024)
    (tall,) = networks(SMALL.resolution(512, 32))
    assert tall.at(64).image_shape == (64, 32)  # never less than one map


def test_names_tell_sizes_apart() -> None:
    square = Candidate(spec=SMALL.resolution(64), latency_ms=1.0)
    oblong = Candidate(spec=SMALL.resolution(64, 96), latency_ms=1.0)
    assert (square.name, square.slug) == ("mobilenet_v3_small 64 px", "mobilenet_v3_small_64")
    assert (oblong.name, oblong.slug) == ("mobilenet_v3_small 64x96 px", "mobilenet_v3_small_64x96")
    odd = Candidate(spec=replace(SMALL, name="a/b c").resolution(64), latency_ms=1.0)
    assert odd.slug == "a_b_c_64"  # of a file


# ---- measuring them


def test_the_device_is_not_proportional() -> None:
    """What the search below is about: 72 px cost nearly what 80 px do, and 64 px far less."""
    (network,) = networks(V2)
    at_64, at_72, at_80 = (Device.latency(network.at(size)) for size in (64, 72, 80))
    assert at_72 / at_80 > 0.98 > 0.95 > network.at(72).cost().madds / network.at(80).cost().madds
    assert at_64 / at_80 < 0.7


@pytest.mark.parametrize("factor", [1, 3, 10, 1 / 3, 1 / 10])
def test_the_largest_size_within_each_budget(factor: float) -> None:
    """However far off the first guess, a few rounds give what trying all 23 sizes gives."""
    specs, budgets = (SMALL, V2, LARGE), (0.3, 0.8, 2.0)
    sizes, device = networks(*specs), Device()
    measure_sizes(sizes, budgets, device, ms_per_madd=factor * MS_PER_MADD)
    for budget_ms in budgets:
        expected = {spec.name: largest(spec, SIZES, budget_ms) for spec in specs}
        reached = {c.spec.name: c.spec.image_shape[0] for c in within(sizes, budget_ms)}
        assert reached == {name: size for name, size in expected.items() if size is not None}
    assert device.calls <= 4 and len(device.measured) == len(set(device.measured))
    assert len(device.measured) <= 4 * len(specs) * len(budgets)


def test_one_budget_takes_few_measurements() -> None:
    sizes, device = networks(V2), Device()
    measure_sizes(sizes, [0.8], device, ms_per_madd=MS_PER_MADD)
    assert 2 <= len(device.measured) <= 5
    (candidate,) = within(sizes, 0.8)
    assert candidate.spec.image_shape[0] == largest(V2, SIZES, 0.8)
    (over,) = above(sizes, 0.8)
    assert SIZES.index(over.spec.image_shape[0]) == SIZES.index(candidate.spec.image_shape[0]) + 1


def test_several_networks_are_measured_in_one_go() -> None:
    together, device = networks(SMALL, V2, LARGE), Device()
    measure_sizes(together, [0.8], device, ms_per_madd=MS_PER_MADD)
    alone = 0
    for spec in (SMALL, V2, LARGE):
        one = Device()
        measure_sizes(networks(spec), [0.8], one, ms_per_madd=MS_PER_MADD)
        alone += one.calls
    assert device.calls < alone


def test_nothing_is_measured_twice() -> None:
    sizes, device = networks(SMALL, V2), Device()
    measure_sizes(sizes, [0.5], device, ms_per_madd=MS_PER_MADD)
    before = len(device.measured)
    measure_sizes(sizes, [0.5], device, ms_per_madd=MS_PER_MADD)
    assert len(device.measured) == before


def test_a_fixed_size_is_measured_once() -> None:
    sizes, device = networks(SMALL, V2, sizes=(96,)), Device()
    measure_sizes(sizes, [0.1, 100.0], device, ms_per_madd=MS_PER_MADD)
    assert device.measured == [(SMALL.name, (96, 96)), (V2.name, (96, 96))]


def test_oblong_inputs_are_measured_as_such() -> None:
    sizes, device = networks(V2.resolution(96, 192)), Device()
    measure_sizes(sizes, [1.5], device, ms_per_madd=MS_PER_MADD)
    assert all(width == max(32, round(2 * height / 32) * 32) for _, (height, width) in device.measured)
    (candidate,) = within(sizes, 1.5)
    assert candidate.spec.image_shape[1] == 2 * candidate.spec.image_shape[0]


def test_a_budget_below_and_above_everything() -> None:
    sizes, device = networks(V2), Device()
    measure_sizes(sizes, [1e-3], device, ms_per_madd=MS_PER_MADD)
    assert within(sizes, 1e-3) == [] and above(sizes, 1e-3)[0].spec.image_shape == (32, 32)
    sizes, device = networks(V2), Device()
    measure_sizes(sizes, [1e3], device, ms_per_madd=MS_PER_MADD)
    assert above(sizes, 1e3) == [] and within(sizes, 1e3)[0].spec.image_shape == (512, 512)


# ---- who enters


def measured(spec: NetSpec, by_size: dict[int, float], weights: str | None = None) -> Sizes:
    return Sizes(spec=spec, weights=weights, sizes=SIZES, measured=by_size)


def test_within_and_above_of_what_was_measured() -> None:
    sizes = [
        measured(LARGE, {48: 1.0, 56: 1.4, 64: 2.1}, "timm"), measured(SMALL, {80: 0.7, 96: 1.1}),
        measured(V2, {64: 9.0}),
    ]  # fmt: skip
    inside = [(c.name, c.latency_ms, c.weights) for c in within(sizes, 1.4)]  # at the budget is within
    assert inside == [("mobilenet_v3_large 56 px", 1.4, "timm"), ("mobilenet_v3_small 96 px", 1.1, None)]
    over = [(c.name, c.latency_ms) for c in above(sizes, 1.0)]  # the nearest above it first
    assert over == [
        ("mobilenet_v3_small 96 px", 1.1), ("mobilenet_v3_large 56 px", 1.4), ("mobilenet_v2 64 px", 9.0)
    ]  # fmt: skip


def test_an_odd_size_that_is_as_dear_as_the_next_is_passed_over() -> None:
    """The largest that is within, though a smaller one is over by noise."""
    sizes = [measured(V2, {72: 1.02, 80: 0.99, 96: 1.5})]
    assert within(sizes, 1.0)[0].spec.image_shape == (80, 80)


def test_every_width_from_scratch() -> None:
    named = scratch_networks(FAMILY, ["mobilenet_v2", "nobody", "mobilenet_v3_small"])
    assert len(named) == 2 * len(WIDTHS)
    assert named["mobilenet_v2"] == FAMILY["mobilenet_v2"]
    assert FAMILY["mobilenet_v2"].width(0.5) in named.values()
    assert [spec.name for spec in named.values()] == list(named)


def candidate(spec: NetSpec, size: int = 64) -> Candidate:
    return Candidate(spec=spec.resolution(size), latency_ms=1.0)


def test_spread_takes_families_in_turn_the_largest_first() -> None:
    v2 = [candidate(V2.width(w), s) for w, s in ((0.35, 128), (1.0, 64), (0.5, 96))]
    small = [candidate(SMALL.width(w), s) for w, s in ((0.5, 112), (1.0, 80))]
    entrants = spread([*v2, *small], most=4)
    widths = [c.spec for c in entrants]
    assert widths == [v2[1].spec, small[1].spec, v2[2].spec, small[0].spec]
    assert spread([*v2, *small], most=99)[-1] == v2[0]
    assert spread([], most=3) == []
    assert len(spread([candidate(V2.width(w / 100)) for w in range(35, 100, 5)])) == candidates.MOST_SCRATCH


def test_families_are_told_by_their_blocks() -> None:
    """A network of another name with the same blocks is no family of its own."""
    renamed = replace(V2.width(0.5), name="other")
    entrants = spread([candidate(V2), candidate(renamed), candidate(SMALL)], most=2)
    assert [c.spec.name for c in entrants] == [V2.name, SMALL.name]


def test_other_heads_have_sizes_too() -> None:
    spec = NetSpec(
        name="tiny", input_size=64, stem=Conv(out=8, kernel=3, stride=2, act="relu"),
        blocks=(Block(expand=16, out=8),), head=ClassifierHead(num_classes=2),
    )  # fmt: skip
    (network,) = networks(spec, sizes=(32, 40))
    assert network.guess(40, 1e-6) == pytest.approx(1e-6 * spec.resolution(40).cost().madds)
    network.measured[32] = 2.0
    ratio = spec.resolution(40).cost().madds / spec.resolution(32).cost().madds
    assert network.guess(40, 1e-6) == pytest.approx(2.0 * ratio)  # from what was measured, from now on
    assert network.guess(32, 1e-6) == 2.0


# ---- heads with fewer features


def test_a_reduced_head_has_a_part_of_the_features_in_multiples_of_8() -> None:
    spec = FAMILY["mobilenet_v2"].classes(5).resolution(96)
    reduced = reduced_head(spec, Fraction(1, 2))
    assert reduced is not None and reduced.last is not None and spec.last is not None
    assert (spec.last.out, reduced.last.out) == (1280, 640)
    assert reduced.blocks == spec.blocks and reduced.image_shape == spec.image_shape
    assert reduced.name != spec.name and reduced.cost().madds < spec.cost().madds
    large = reduced_head(LARGE, Fraction(1, 4))
    assert large is not None and large.last is not None and isinstance(large.head, ClassifierHead)
    assert (large.last.out, large.head.hidden) == (240, 320)  # of 960 and 1280


@pytest.mark.parametrize(
    ("spec", "share"),
    [
        (FAMILY["mobilenet_v2"].classes(1000), Fraction(1, 2)),  # 640 features for 1,000 classes
        (FAMILY["mobilenet_v2"].classes(81), Fraction(1, 2)),
        (detector(FAMILY["mobilenet_v2"]), Fraction(1, 2)),
    ],
)
def test_too_few_features_for_the_classes_and_no_classifier(spec: NetSpec, share: Fraction) -> None:
    assert reduced_head(spec, share) is None


def test_heads_are_tried_at_sizes_a_little_over_the_budget() -> None:
    """Here the head is nothing that the device notices: a variant is kept if it meets the budget."""
    budget_ms = 1.0
    network = measured(V2, {64: 0.8, 72: budget_ms * 1.2, 80: budget_ms * 1.5})
    device = Device()
    kept = reduced_heads([network], [budget_ms], lambda specs: [0.9 for _ in device(specs)])
    assert {size for _, size in device.measured} == {(72, 72)} and len(device.measured) == 2  # two shares
    assert [variant.measured for variant in kept] == [{72: 0.9}, {72: 0.9}]
    assert all(variant.origin == "head" and variant.whole == V2 for variant in kept)
    whole, reduced = within([network, *kept], budget_ms)  # of two heads at one size the wider
    assert whole.spec.image_shape == (64, 64) and whole.whole is None
    assert reduced.spec.image_shape == (72, 72) and reduced.whole == V2
    assert reduced.spec.last is not None and reduced.spec.last.out == 640
    assert reduced_heads([network], [budget_ms], lambda specs: [1.1 for _ in specs]) == []


@pytest.mark.parametrize("by_size", [{64: 0.8, 72: 2.0}, {64: 0.8}, {72: 0.9, 80: 1.0}])
def test_no_head_is_tried_where_none_can_save_enough(by_size: dict[int, float]) -> None:
    def never(specs: Sequence[NetSpec]) -> list[float]:
        raise AssertionError(specs)

    assert reduced_heads([measured(V2, by_size)], [1.0], never) == []
