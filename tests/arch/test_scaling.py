"""Rounding of channels, and the two width rules."""

from __future__ import annotations

from fractions import Fraction

import pytest
from torchvision.models._utils import _make_divisible

from mobilefit.arch import make_divisible, reduced_width, spec
from mobilefit.errors import InputError

LARGE = spec("mobilenet_v3_large")


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (1, 8), (8, 8), (8.8, 8),
        (11, 16),  # 8 would be under nine tenths
        (12, 16), (17, 16),
        (18, 24),  # 16 would be under nine tenths
        (26, 24), (27, 32), (59, 56), (60, 64),
        (Fraction(28, 5), 8), (64 * Fraction(200, 80), 160),
    ],
)  # fmt: skip
def test_make_divisible(value: float | Fraction, rounded: int) -> None:
    assert make_divisible(value) == rounded


def test_make_divisible_with_other_steps() -> None:
    assert make_divisible(10, 4, 4) == 12
    assert make_divisible(3, minimum=16) == 16
    assert make_divisible(200, 32) == 192


def test_make_divisible_is_torchvisions() -> None:
    values = [n / 4 for n in range(1, 8000)]
    assert [make_divisible(v) for v in values] == [_make_divisible(v, 8) for v in values]


@pytest.mark.parametrize(
    ("expanded", "reduced"),
    [(16, 8), (72, 24), (96, 24), (120, 32), (144, 40), (240, 64), (480, 120), (672, 168),
     (960, 240), (288, 72), (576, 144)],
)  # fmt: skip
def test_v3_squeezes_to_a_quarter_of_the_expansion(expanded: int, reduced: int) -> None:
    assert reduced_width("v3", expanded, inputs=1) == reduced


@pytest.mark.parametrize(("inputs", "reduced"), [(3, 1), (16, 4), (24, 6), (40, 10), (43, 10)])
def test_mnasnet_squeezes_to_a_quarter_of_the_input(inputs: int, reduced: int) -> None:
    assert reduced_width("mnasnet", 960, inputs) == reduced


@pytest.mark.parametrize(("expanded", "reduced"), [(512, 128), (176, 44), (88, 22), (24, 6), (3, 1)])
def test_lcnet_squeezes_to_an_exact_quarter(expanded: int, reduced: int) -> None:
    assert reduced_width("lcnet", expanded, inputs=1) == reduced


def test_the_rules_differ_in_12_of_15_blocks_at_three_quarters() -> None:
    tf, torchvision = LARGE.width(0.75), LARGE.width(0.75, rules="torchvision")
    pairs = [(a.expand, b.expand) for a, b in zip(tf.blocks, torchvision.blocks)]
    assert sum(a != b for a, b in pairs) == 12
    assert pairs[7] == (160, 152)  # the example of the module's docstring
    assert [b.out for b in tf.blocks] == [b.out for b in torchvision.blocks]


def test_only_the_tf_rule_gives_the_papers_cost() -> None:
    assert round(LARGE.width(0.75).cost().madds / 1e6, 1) == 154.6  # Table 9: 155 M
    assert round(LARGE.width(0.75, rules="torchvision").cost().madds / 1e6, 1) == 140.0


def test_the_rules_agree_at_one() -> None:
    small = spec("mobilenet_v3_small")
    assert small.width(1.0).id == small.width(1.0, rules="torchvision").id == small.id


@pytest.mark.parametrize("name", ["mobilenet_v2", "mnasnet_a1", "mnasnet_b1"])
@pytest.mark.parametrize("multiplier", [0.35, 0.75, 1.3])
def test_the_rules_agree_where_expansions_are_whole_ratios(name: str, multiplier: float) -> None:
    tf = spec(name).width(multiplier)
    assert tf.blocks == spec(name).width(multiplier, rules="torchvision").blocks


def test_names_say_the_width_and_the_rule() -> None:
    assert LARGE.width(0.5).name == "mobilenet_v3_large_0.5"
    assert LARGE.width(0.5, rules="torchvision").name == "mobilenet_v3_large_0.5_torchvision"


@pytest.mark.parametrize(
    ("name", "multiplier", "last", "hidden"),
    [
        ("mobilenet_v3_large", 0.75, 720, 1280),  # the hidden layer keeps its width under 1
        ("mobilenet_v3_large", 1.25, 1200, 1600),
        ("mobilenet_v3_small", 0.75, 432, 1024),
        ("mobilenet_v2", 0.5, 1280, None),  # V2's last convolution scales above 1 alone
        ("mobilenet_v2", 1.4, 1792, None),
        ("mnasnet_a1", 1.4, 1280, None),  # MnasNet's never
    ],
)
def test_layers_near_the_output(
    name: str, multiplier: float, last: int, hidden: int | None
) -> None:
    scaled = spec(name).width(multiplier)
    assert (scaled.last.out, scaled.head.hidden) == (last, hidden)


def test_torchvision_scales_the_hidden_layer_and_takes_six_times_the_last_block() -> None:
    scaled = LARGE.width(0.75, rules="torchvision")
    assert (scaled.head.hidden, scaled.last.out) == (960, 6 * 120)
    assert LARGE.width(0.35, rules="torchvision").last.out == 6 * 56  # tf: 336


def test_the_head_can_be_told() -> None:
    assert LARGE.width(1.25, head="never").head.hidden == 1280
    assert LARGE.width(0.5, head="always").head.hidden == 640
    assert LARGE.width(0.5, rules="torchvision", head="above_one").head.hidden == 1280


def test_a_multiplier_is_the_number_as_written() -> None:
    assert 200 * 0.58 < 116  # as floats; 116 rounds up to 120, anything below to 112
    assert LARGE.width(0.58, rules="torchvision").blocks[7].expand == 120


@pytest.mark.parametrize("multiplier", [0, -0.5, float("nan"), float("inf")])
def test_a_multiplier_that_is_none(multiplier: float) -> None:
    with pytest.raises(InputError, match=f"width multiplier {multiplier} is not a positive"):
        LARGE.width(multiplier)


def test_unknown_rules_are_named() -> None:
    with pytest.raises(InputError, match="unknown width rule 'torch'; did you mean 'torchvision'"):
        LARGE.width(0.5, rules="torch")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown head scaling 'alway'; did you mean 'always'"):
        LARGE.width(0.5, head="alway")  # type: ignore[arg-type]


def test_a_scaled_network_scales_again() -> None:
    assert LARGE.width(0.5).width(2.0).stem.out == 16
    assert LARGE.resolution(96).width(0.5).input_size == 96
