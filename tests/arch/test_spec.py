"""A spec as a value: identity, JSON, differences, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import replace
from typing import Any

import pytest

from mobilefit.arch import BatchNorm, Block, ClassifierHead, Conv, NetSpec, difference, spec
from mobilefit.arch.rows import Activation
from mobilefit.arch.table import table
from mobilefit.errors import InputError

SMALL = spec("mobilenet_v3_small")


# ---- identity


def test_ids_stay_what_they_are() -> None:
    # Latency tables, records and file names hold ids: a change of these two breaks them all.
    assert spec("mobilenet_v3_large").id == "3832d3bd14d5"
    assert spec("mobilenet_v2").id == "290afe9cd22f"
    assert spec("efficientnet_lite0").id == "901483924218"


def test_the_name_is_no_part_of_the_id() -> None:
    assert replace(SMALL, name="mine").id == SMALL.id
    assert replace(SMALL, name="mine") != SMALL


@pytest.mark.parametrize(
    "other",
    [
        SMALL.resolution(192),
        SMALL.classes(10),
        SMALL.padded("torch"),
        SMALL.width(0.75),
        replace(SMALL, in_channels=1),
        replace(SMALL, norm=BatchNorm(eps=1e-5)),
        replace(SMALL, head=replace(SMALL.head, dropout=0.1)),
        replace(SMALL, blocks=SMALL.blocks[:-1]),
        spec("mobilenet_v3_small", head="iccv"),
        spec("mobilenet_v3_small", head="table2"),
    ],
    ids=lambda other: "; ".join(difference(SMALL, other))[:40],
)
def test_any_other_change_is(other: NetSpec) -> None:
    assert other.id != SMALL.id
    assert difference(SMALL, other)


def test_a_spec_is_frozen_and_a_key() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMALL.input_size = 96  # type: ignore[misc]
    assert {SMALL: 1}[NetSpec.from_json(SMALL.to_json())] == 1


def test_changes_make_new_values() -> None:
    changed = SMALL.resolution(96).classes(7).padded("torch")
    assert (changed.input_size, changed.head.num_classes, changed.padding) == (96, 7, "torch")
    assert (SMALL.input_size, SMALL.head.num_classes, SMALL.padding) == (224, 1000, "same")


@pytest.mark.parametrize("act", ["swish", "relu"])
def test_activations_are_exchanged_wherever_they_stand(act: Activation) -> None:
    changed = SMALL.activations({"hard_swish": act})
    assert changed.last is not None and SMALL.last is not None
    assert (changed.stem.act, changed.last.act, changed.head.act) == (act, act, act)
    for old, new in zip(SMALL.blocks, changed.blocks, strict=True):
        assert new == replace(old, act=act if old.act == "hard_swish" else "relu")
    assert changed.cost().madds == SMALL.cost().madds
    assert changed.activations({act: "hard_swish"}) == SMALL or act == "relu"  # relu was there before


def test_swish_is_an_activation_like_the_others() -> None:
    changed = SMALL.activations({"hard_swish": "swish"})
    assert NetSpec.from_json(changed.to_json()) == changed != SMALL
    assert changed.id != SMALL.id
    assert changed.width(0.75).widths == SMALL.width(0.75).widths
    assert table(changed) == table(SMALL).replace("HS", "SW").replace(SMALL.id, changed.id)


def test_two_activations_can_change_places() -> None:
    changed = SMALL.activations({"hard_swish": "relu", "relu": "hard_swish"})
    assert [b.act for b in changed.blocks[2:4]] == ["hard_swish", "relu"]


def test_an_unknown_activation_gives_the_nearest_name() -> None:
    with pytest.raises(InputError, match="unknown activation 'swich'; did you mean 'swish'"):
        SMALL.activations({"hard_swish": "swich"})  # type: ignore[dict-item]


# ---- JSON


def test_json_holds_a_searched_network_exactly() -> None:
    made = NetSpec(
        name="é",
        input_size=33,
        in_channels=1,
        stem=Conv(out=7, kernel=5, stride=2, act="none", scaling="never"),
        blocks=(
            Block(op="fused", expand=9, out=11, se="mnasnet"),
            Block(op="conv", out=5),
            Block(start_kernel=5, kernel=0, expand=9, out=5, stride=2, dilation=1),
            Block(op="conv", out=5, stride=2, se="mnasnet", skip="pool"),
        ),
        last=None,
        head=ClassifierHead(hidden=3, act="relu6", dropout=0.1 + 0.2, num_classes=2),
        norm=BatchNorm(eps=1e-5, momentum=1 / 3),
    )
    again = NetSpec.from_json(made.to_json())
    assert (again, again.id) == (made, made.id)


def test_fields_that_have_a_default_may_be_left_out() -> None:
    value = {"name": "x", "stem": {"out": 8}, "blocks": [{"out": 8}]}
    assert NetSpec.from_dict(value) == NetSpec(name="x", stem=Conv(out=8), blocks=(Block(out=8),))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a spec: not valid JSON"),
        ('{"name": "x"', "not a spec: not valid JSON"),
        ("[1]", "the JSON is not an object"),
        ("null", "the JSON is not an object"),
        ("{}", "spec lacks the field 'name'"),
    ],
)
def test_text_that_is_no_spec(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        NetSpec.from_json(text)


def changed(path: str, value: Any) -> dict[str, Any]:
    """V3-Small's JSON value with one field set."""
    content = copy.deepcopy(SMALL.to_dict())
    *way, last = path.split(".")
    inner: Any = content
    for key in way:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    inner[int(last) if isinstance(inner, list) else last] = value
    return content


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("paddding", "unknown field 'paddding' in spec; did you mean 'padding'"),
        ("stem.kernal", "unknown field 'kernal' in stem; did you mean 'kernel'"),
        ("blocks.3.expnd", r"unknown field 'expnd' in blocks\[3\]; did you mean 'expand'"),
        ("head.drop_out", "unknown field 'drop_out' in head; did you mean 'dropout'"),
        ("norm.epsilon", "unknown field 'epsilon' in norm; did you mean 'eps'"),
    ],
)
def test_an_unknown_field_gives_the_nearest_name(path: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        NetSpec.from_dict(changed(path, 1))


def test_a_missing_field_is_named() -> None:
    content = copy.deepcopy(SMALL.to_dict())
    del content["blocks"][2]["out"]
    with pytest.raises(InputError, match=r"blocks\[2\] lacks the field 'out'"):
        NetSpec.from_dict(content)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("stem", None, "stem is not an object"),
        ("head", None, "head is not an object"),
        ("norm", 3, "norm is not an object"),
        ("blocks", None, "blocks is not a list"),
        ("blocks", {"0": {}}, "blocks is not a list"),
        ("blocks.0", None, r"blocks\[0\] is not an object"),
        ("blocks", [], "it has no blocks"),
        ("input_size", "96", "input_size: '96' is not a whole number"),
        ("in_channels", 0, "in_channels 0 is not a positive"),
        ("stem.kernel", "3", r"stem\.kernel: '3' is not a whole number"),
        ("stem.kernel", 2, r"stem\.kernel 2 is not an odd size"),
        ("stem.stride", 3, r"stem\.stride 3 is neither 1 nor 2"),
        ("last.scaling", "sometimes", r"last\.scaling: unknown value 'sometimes'"),
        ("head.scaling", "sometimes", r"head\.scaling: unknown value 'sometimes'"),
        ("head.dropout", 1, r"head\.dropout 1 is not in \[0, 1\)"),
        ("head.dropout", "some", r"head\.dropout: 'some' is not a finite number"),
        ("head.hidden", 0, r"head\.hidden 0 is not a positive"),
        ("head", {"hidden_norm": True}, r"head\.hidden_norm is set, and there is no hidden layer"),
        ("head.num_classes", 2.5, r"head\.num_classes: 2\.5 is not a whole number"),
        ("norm.eps", 0, r"norm\.eps 0 is not above 0"),
        ("norm.momentum", None, r"norm\.momentum: None is not a finite number"),
        ("blocks.1.op", "invrted", r"blocks\[1\]\.op: unknown value 'invrted'; did you mean 'inverted'"),
        ("blocks.1.act", None, r"blocks\[1\]\.act: None is not text"),
        ("blocks.1.act", "hardswish", "did you mean 'hard_swish'"),
        ("blocks.1.se", "v2", r"blocks\[1\]\.se: unknown value 'v2'"),
        ("blocks.1.skip", "concat", r"blocks\[1\]\.skip: unknown value 'concat'"),
        ("blocks.1.skip", "pooling", "unknown value 'pooling'; did you mean 'pool'"),
        ("padding", "valid", "padding: unknown value 'valid'"),
    ],
)  # fmt: skip
def test_an_illegal_value_is_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        NetSpec.from_dict(changed(path, value))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (Block(op="fused", out=8), r"blocks\[0\] is fused and needs 'expand'"),
        (Block(op="conv", out=8, expand=8), r"blocks\[0\] is conv and takes no 'expand'"),
        (Block(op="separable", out=8, expand=8), r"blocks\[0\] is separable and takes no 'expand'"),
        (Block(op="fused", out=8, expand=8, start_kernel=3), r"blocks\[0\] is fused and takes no 'start_kernel'"),
        (Block(op="separable", out=8, kernel=0), r"blocks\[0\].kernel 0 is not an odd size"),
        (Block(out=8, expand=8, start_kernel=4), r"blocks\[0\].start_kernel 4 is not an odd size"),
        (Block(out=8, start_kernel=3), r"blocks\[0\] needs 'expand'"),
        (Block(out=8, kernel=0), r"blocks\[0\] needs 'expand'"),
        (Block(out=8, expand=8, kernel=0, stride=2), r"blocks\[0\] has a stride and no depthwise convolution"),
    ],
)
def test_rows_that_contradict_themselves(block: Block, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SMALL, blocks=(block,))


def test_all_problems_come_at_once() -> None:
    with pytest.raises(InputError) as caught:
        NetSpec(
            name="bad",
            input_size=0,
            stem=Conv(out=-8, kernel=4, stride=5),
            blocks=(Block(out=8), Block(out=0, kernel=6)),
            head=ClassifierHead(dropout=-1),
        )
    for problem in (
        "'bad'", "input_size 0", "stem.out -8", "stem.kernel 4", "stem.stride 5", "blocks[1].out 0",
        "blocks[1].kernel 6", "head.dropout -1",
    ):  # fmt: skip
        assert problem in str(caught.value)


# ---- difference


def test_a_difference_reads_like_a_list_of_edits() -> None:
    blocks = list(SMALL.blocks)
    blocks[1] = replace(blocks[1], expand=64, se="v3")
    blocks[10] = replace(blocks[10], kernel=3)
    assert difference(SMALL, replace(SMALL, name="x", blocks=tuple(blocks), last=None)) == [
        "blocks.1.expand 72 -> 64",
        "blocks.1.se - -> v3",
        "blocks.10.kernel 5 -> 3",
        "last.out 576 -> -",
        "last.kernel 1 -> -",
        "last.stride 1 -> -",
        "last.act hard_swish -> -",
        "last.scaling always -> -",
    ]


def test_equal_networks_have_no_difference() -> None:
    assert difference(SMALL, replace(SMALL, name="other")) == []


def test_a_row_more_and_a_row_less() -> None:
    shorter = replace(SMALL, blocks=SMALL.blocks[:-1])
    assert "blocks.10.out 96 -> -" in difference(SMALL, shorter)
    assert "blocks.10.out - -> 96" in difference(shorter, SMALL)


# ---- rows


def test_residuals_of_large() -> None:
    large = spec("mobilenet_v3_large")
    residual = [b.has_residual(width) for b, width in zip(large.blocks, large.widths)]
    assert [i for i, kept in enumerate(residual) if kept] == [0, 2, 4, 5, 7, 8, 9, 11, 13, 14]


def test_a_row_can_go_without_its_residual() -> None:
    assert Block(out=8).has_residual(8)
    assert not Block(out=8, skip="none").has_residual(8)
    assert not Block(out=8, stride=2).has_residual(8)
    assert not Block(out=8).has_residual(16)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_pool_brings_the_input_to_the_outputs_side(stride: int) -> None:
    pooled = Block(out=8, stride=stride, skip="pool")
    assert pooled.has_residual(8)
    assert not pooled.has_residual(16)


def test_the_wide_part_of_a_row() -> None:
    assert Block(out=8).width(16) == 16
    assert Block(expand=48, out=8).width(16) == 48
    assert Block(op="conv", out=8).width(16) == 8
