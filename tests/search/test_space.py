"""Spaces: how many networks, tokens to networks and back, and what a user's file may say."""

from __future__ import annotations

import copy
import itertools
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mobilefit as mf
from mobilefit.errors import InputError
from mobilefit.search import SPACES, Space, space

from .small import DESCRIPTION, SPACE, UNIVERSAL


def drawn(chosen: Space, count: int, seed: int = 0) -> list[tuple[int, ...]]:
    dice = random.Random(seed)
    return [chosen.random(dice.randrange) for _ in range(count)]


# ---- sizes


def test_mnasnet_is_the_paper_s_space() -> None:
    chosen = space("mnasnet")
    assert [block.forms for block in chosen.blocks] == [432] * 5
    assert chosen.size == 432**5 == 15_045_919_506_432
    assert [block.stride for block in chosen.blocks] == [2, 2, 2, 1, 2]
    assert len(chosen.decisions) == 5 * 6  # the activation is no decision


def test_the_other_spaces_sizes() -> None:
    assert space("mnasnet_a1").size == 432**4 * (432 * 4 // 3)
    # operation, kernel, SE, filters, layers; h-swish or ReLU in four blocks; two stems, two tails
    assert space("mobilenet_v3_small").size == (2 * 2 * 2 * 3 * 3) ** 5 * 2**4 * 2 * 2


def test_names_of_the_decisions() -> None:
    names = [decision.name for decision in space("mobilenet_v3_small").decisions]
    assert names[0] == "stem" and names[-1] == "tail"
    assert names[1:6] == [f"blocks.0.{c}" for c in ("op", "kernel", "se", "filters", "layers")]
    assert names[11] == "blocks.1.act"
    forms = ("op", "kernel", "se", "skip", "filters", "layers")
    assert [d.name for d in space("mnasnet").decisions[6:12]] == [f"blocks.1.{c}" for c in forms]


def test_an_unknown_space_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown space 'mnasnett'; did you mean 'mnasnet'"):
        space("mnasnett")


# ---- tokens and networks


@pytest.mark.parametrize("name", SPACES)
def test_tokens_round_trip(name: str) -> None:
    chosen = space(name)
    for tokens in drawn(chosen, 10_000):
        assert chosen.tokens(chosen.spec(tokens)) == tokens


@pytest.mark.parametrize("name", SPACES)
def test_layers_of_a_block_are_alike_and_only_the_first_has_the_stride(name: str) -> None:
    chosen = space(name)
    for tokens in drawn(chosen, 200):
        spec, taken = chosen.spec(tokens), chosen.chosen(tokens)
        rows: dict[str, list[Any]] = {}
        for (place, _), row, inputs in zip(chosen.places(tokens), spec.blocks, spec.widths):
            rows.setdefault(place, []).append((row, inputs))
        for index, block in enumerate(chosen.blocks):
            mine = rows[f"blocks.{index}"]
            assert len(mine) == taken[f"blocks.{index}.layers"]
            assert [row.stride for row, _ in mine] == [block.stride] + [1] * (len(mine) - 1)
            alike = {
                (row.op, row.kernel, row.se, row.skip, row.out, row.act,
                 None if row.expand is None else row.expand / inputs)
                for row, inputs in mine
            }  # fmt: skip
            assert len(alike) == 1


def test_every_option_changes_the_network() -> None:
    for name in SPACES:
        chosen = space(name)
        (tokens,) = drawn(chosen, 1)
        for place, size in enumerate(chosen.sizes):
            ids = {chosen.spec([*tokens[:place], o, *tokens[place + 1 :]]).id for o in range(size)}
            assert len(ids) == size, chosen.decisions[place].name


def test_mnasnet_a1_is_in_the_space_that_was_widened_for_it() -> None:
    a1 = mf.spec("mnasnet_a1")
    chosen = space("mnasnet_a1")
    assert chosen.spec(chosen.tokens(a1)).id == a1.id
    with pytest.raises(InputError, match="'mnasnet_a1' is not in the space 'mnasnet'"):
        space("mnasnet").tokens(a1)


def test_starting_depthwise_convolutions_are_operations() -> None:
    for tokens in itertools.product(*map(range, UNIVERSAL.sizes)):
        assert UNIVERSAL.tokens(UNIVERSAL.spec(tokens)) == tokens
    named = dict(zip((d.name for d in UNIVERSAL.decisions), range(10)))
    tokens = [0] * len(named)
    tokens[named["blocks.0.kernel"]] = tokens[named["blocks.1.kernel"]] = 1
    extra, *_, convnext = UNIVERSAL.spec(tokens).blocks[4:]
    assert (extra.start_kernel, extra.kernel, extra.stride, extra.expand) == (5, 5, 2, 3 * 64)
    assert (convnext.start_kernel, convnext.kernel, convnext.stride, convnext.expand) == (5, 0, 1, 2 * 128)
    head = UNIVERSAL.spec(tokens).classifier
    assert (head.hidden, head.hidden_norm) == (1280, True)
    with pytest.raises(InputError, match="not in the space"):  # 3x3 and 5x5 in one block
        UNIVERSAL.tokens(mf.spec("mobilenetv4_conv_small"))


def test_a_tail_without_a_hidden_layer_has_none_to_normalise() -> None:
    bare = replace(UNIVERSAL, tails=(replace(UNIVERSAL.tails[0], hidden=None, act="none"),))
    assert bare.spec([0] * len(bare.sizes)).classifier.hidden_norm is False


def test_a_network_from_elsewhere_is_not_in_the_space() -> None:
    for name in ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large"):
        with pytest.raises(InputError, match="not in the space"):
            space("mobilenet_v3_small").tokens(mf.spec(name))
    with pytest.raises(InputError, match="not in the space"):  # other classes
        chosen = space("mnasnet")
        chosen.tokens(chosen.classes(10).spec(drawn(chosen, 1)[0]))


def test_wrong_tokens() -> None:
    with pytest.raises(InputError, match=r"5 tokens, space 'small' has 6 decisions"):
        SPACE.spec((0,) * 5)
    with pytest.raises(InputError, match=r"token 2 of blocks\.0\.kernel is not below 2"):
        SPACE.spec((0, 2, 0, 0, 0, 0))
    with pytest.raises(InputError, match=r"token -1 of blocks\.0\.op"):
        SPACE.spec((-1, 0, 0, 0, 0, 0))


@pytest.mark.parametrize("name", SPACES)
def test_the_smallest_is_smaller_than_any_other(name: str) -> None:
    chosen = space(name)
    least = chosen.spec(chosen.smallest()).cost().madds
    assert least < min(chosen.spec(tokens).cost().madds for tokens in drawn(chosen, 500))


def test_resolution_and_classes_reach_every_network() -> None:
    chosen = space("mobilenet_v3_small").resolution(96).classes(10)
    spec = chosen.spec(drawn(chosen, 1)[0])
    assert spec.input_size == 96 and spec.head.num_classes == 10


# ---- files


@pytest.mark.parametrize("name", SPACES)
def test_a_space_as_a_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "space.json"
    path.write_text(json.dumps(space(name).to_dict()))
    again = space(str(path))
    assert again == space(name)
    assert again.to_dict() == space(name).to_dict()
    assert "start_kernel" not in path.read_text() and "hidden_norm" not in path.read_text()  # as in older logs


def test_a_small_file_over_a_base_network(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(DESCRIPTION))
    mine = space(str(path))
    assert mine == SPACE and mine.size == 64
    base = SPACE.base
    for tokens in drawn(mine, 10):
        spec = mine.spec(tokens)
        assert (spec.stem, spec.last, spec.head) == (base.stem, base.last, base.head)
        assert mine.tokens(spec) == tokens


def test_rows_around_the_searched_ones_stay() -> None:
    base = mf.spec("mobilenet_v3_small")
    described = {"name": "middle", "base": "mobilenet_v3_small", "rows": [3, 8], "blocks": [
        {"stride": 2, "op": ["mbconv3", "mbconv6"], "kernel": [3, 5], "filters": [40, 48], "layers": [2]},
    ]}  # fmt: skip
    chosen = Space.from_dict(described)
    spec = chosen.spec((1, 1, 1))
    assert spec.blocks[:3] == base.blocks[:3]
    after = list(zip(spec.blocks[5:], base.blocks[8:], spec.widths[5:], base.widths[8:], strict=False))
    assert [mine.out for mine, *_ in after] == [row.out for row in base.blocks[8:]]
    for mine, theirs, inputs, base_inputs in after:  # the tail's expansions follow their input
        assert (mine.expand or 0) / inputs == pytest.approx((theirs.expand or 0) / base_inputs, rel=0.2)


def changed(*path: Any, value: Any) -> dict[str, Any]:
    made = copy.deepcopy(DESCRIPTION)
    inner: Any = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return made


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("block",), [], "unknown field 'block' in the space; did you mean 'blocks'"),
        (("blocks", 1, "kernels"), [3], r"unknown field 'kernels' in blocks\[1\]; did you mean 'kernel'"),
        (("blocks",), [], "'blocks' is not a list with at least one entry"),
        (("blocks",), [{"stride": 1}], r"blocks\[0\] lacks the field 'op'"),
        (("blocks", 0), 7, r"blocks\[0\] is not an object"),
        (("rows",), [1], r"rows \[1\] are not \[first, end\] within the base network's 2 rows"),
        (("rows",), [0, 3], r"rows \[0, 3\]"),
        (("base",), "mobilenet_v3_smal", "did you mean 'mobilenet_v3_small'"),
        (("blocks", 0, "op"), ["mbconf3"], r"blocks\[0\]\.op: unknown operation 'mbconf3'; did you mean 'mbconv3'"),
        (("blocks", 0, "kernel"), [3, 4], r"blocks\[0\]\.kernel: 4 is not an odd size"),
        (("blocks", 1, "filters"), [0], r"blocks\[1\]\.filters: 0 is not a positive whole number"),
        (("blocks", 1, "layers"), [True], r"blocks\[1\]\.layers\[0\]: True is not a whole number"),
        (("blocks", 1, "se"), ["v4"], r"blocks\[1\]\.se: unknown se 'v4'"),
        (("blocks", 1, "act"), ["hard_swsh"], "did you mean 'hard_swish'"),
        (("blocks", 1, "skip"), [], r"blocks\[1\]\.skip is not a list with at least one option"),
        (("blocks", 1, "kernel"), 3, r"blocks\[1\]\.kernel is not a list"),
        (("blocks", 1, "kernel"), [3, 3], r"blocks\[1\]\.kernel: 3 is there twice"),
        (("blocks", 1, "stride"), 3, r"blocks\[1\]\.stride 3 is neither 1 nor 2"),
        (("blocks", 1, "stride"), 1, r"blocks\[1\]\.filters: 16 is also a width of blocks\[0\], and with stride 1"),
    ],
)  # fmt: skip
def test_what_a_file_may_not_say(
    path: tuple[Any, ...], value: Any, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(changed(*path, value=value)))
    with pytest.raises(InputError, match=message) as caught:
        space(str(file))
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("field", ["name", "base", "blocks"])
def test_a_field_that_must_be_there(field: str) -> None:
    described = {key: value for key, value in DESCRIPTION.items() if key != field}
    with pytest.raises(InputError, match=f"the space lacks the field '{field}'"):
        Space.from_dict(described)


def test_all_problems_at_once() -> None:
    described = changed("blocks", 0, "kernel", value=[2])
    described["blocks"][1]["layers"] = [0]
    with pytest.raises(InputError, match=r"blocks\[0\]\.kernel.*blocks\[1\]\.layers"):
        Space.from_dict(described)


def test_a_missing_file_and_one_that_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*none\.json: No such file"):
        space(str(tmp_path / "none.json"))
    path = tmp_path / "torn.json"
    path.write_text('{"name": ')
    with pytest.raises(InputError, match=r"torn\.json is not valid JSON"):
        space(str(path))
    path.write_text("[]")
    with pytest.raises(InputError, match=r"torn\.json is not a space"):
        space(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"torn\.json is not valid JSON"):
        space(str(path))


def test_a_row_after_the_blocks_keeps_its_ratio_whatever_they_end_with() -> None:
    """MobileNetV2's last row is 6 x 160; no width of the space is the middle one of its options."""
    made = Space.from_dict({
        "name": "end", "base": "mobilenet_v2", "rows": [1, 16],
        "blocks": [{"stride": 2, "op": ["mbconv6"], "kernel": [3], "filters": [120, 176], "layers": [1]}],
    })  # fmt: skip
    for token, width in enumerate((120, 176)):
        last = made.spec((token,)).blocks[-1]
        assert (last.expand, last.out) == (6 * width, 320)
        assert made.tokens(made.spec((token,))) == (token,)


def test_a_space_of_more_networks_than_a_float_counts() -> None:
    blocks = [{**DESCRIPTION["blocks"][0], "filters": [*range(8 + 8 * i, 8000, 8)], "stride": 1 + (i < 3)} for i in range(150)]
    with pytest.raises(InputError, match=r"it has more than 10\^300 networks"):
        Space.from_dict({**DESCRIPTION, "blocks": blocks})
