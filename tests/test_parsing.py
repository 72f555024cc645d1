"""JSON and dataclasses of values that somebody else wrote."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from mobilefit.errors import InputError
from mobilefit.parsing import DEEPEST, MOST_DIGITS, checked, dataclass_from, parse_json, texts

# ---- JSON


GOOD = [
    '{"a": [1, 2.5, "x", null, true, {"b": []}]}', '"[[[[{{{{"', r'"\"[[[\\"', '"' + "[" * 10_000 + '"', " [ ] ",
    "9" * MOST_DIGITS, "0." + "3" * 1000, "[" * DEEPEST + "]" * DEEPEST, '{"a": ' * 50 + "1" + "}" * 50,
    '"' + r"\"" * 10_000 + '"', '{"' + "{" * 300 + '": 1}', "1" + "e5",
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_what_is_within_the_limits_is_read_as_json_reads_it(text: str) -> None:
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)


BAD = {
    "brackets": "[" * 100_000,
    "brackets that are closed": "[" * 100_000 + "]" * 100_000,
    "objects": '{"a":' * 100_000,
    "one too deep": "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1),
    "deep behind a string": '["]]]]]]]]]", ' + "[" * 5000 + "]" * 5001,
    "both in turn": '[{"a":' * 5000 + "1" + "}]" * 5000,
    "digits": "9" * 5000,
    "digits below zero": "[-" + "1" * 5000 + "]",
    "digits and an exponent": "1" * 5000 + "e9",
    "a string without an end": '"' + r"\"" * 50_000,
    "quotes": r"\"" * 50_000,
    "nothing": "",
    "half": '{"a": [1, 2',
    "no UTF-8": b'{"a": "\xff"}',
    "half of UTF-16": b"\xff\xfe{",
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_beyond_them_is_one_kind_of_error_and_soon(name: str) -> None:
    began = time.process_time()
    with pytest.raises(ValueError):
        parse_json(BAD[name])
    assert time.process_time() - began < 1


def test_size_is_looked_at_first() -> None:
    with pytest.raises(ValueError, match="1,000 bytes, more than 999"):
        parse_json(b"[" * 1000, largest=999)
    assert parse_json("[" + "1," * 1000 + "1]", largest=None)


def test_no_text_leads_to_another_error() -> None:
    """Ten thousand mutations of good texts, by a fixed seed."""
    draw = random.Random(0)
    parts = ["[", "]", "{", "}", '"', "\\", ",", ":", "1", "-", "e", ".", "null", "NaN", "\\u", "d800", " ", "\x00", "a"]
    for _ in range(10_000):
        text = draw.choice(GOOD[:5])
        for _ in range(draw.randint(1, 6)):
            at = draw.randint(0, len(text))
            text = text[:at] + draw.choice(parts) * draw.choice((1, 1, 2, 300)) + text[at + draw.randint(0, 3) :]
        try:
            parse_json(text)
        except ValueError:
            continue


# ---- dataclasses


@dataclass(frozen=True, kw_only=True)
class Inner:
    out: int
    kind: Literal["a", "b"] = "a"
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    rows: tuple[Inner, ...] = ()
    mean: tuple[float, float] = (0.0, 0.0)
    on: bool = False
    last: Inner | None = None


def test_a_good_one_is_as_it_was_written() -> None:
    value = {"name": "x", "rows": [{"out": 1}, {"out": 2, "kind": "b", "share": 1}], "mean": [1, 2.5], "last": None}
    assert dataclass_from(Outer, value, "spec") == Outer(
        name="x", rows=(Inner(out=1), Inner(out=2, kind="b", share=1)), mean=(1, 2.5)
    )
    assert dataclass_from(Outer, {"name": "x", "last": {"out": 3}}, "spec").last == Inner(out=3)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"rows": [{"out": 1}, {"out": 16.5}]}, "rows[1].out: 16.5 is not a whole number"),
    ({"rows": [{"out": True}]}, "rows[0].out: True is not a whole number"),
    ({"rows": [{"out": "16"}]}, "rows[0].out: '16' is not a whole number"),
    ({"rows": [{"out": None}]}, "rows[0].out: None is not a whole number"),
    ({"rows": [{"out": 10**18}]}, "rows[0].out: 1000000000000000000 is not within 2,147,483,647"),
    ({"rows": [{"out": 1, "share": float("nan")}]}, "rows[0].share: nan is not a finite number"),
    ({"rows": [{"out": 1, "share": float("inf")}]}, "rows[0].share: inf is not a finite number"),
    ({"rows": [{"out": 1, "share": False}]}, "rows[0].share: False is not a finite number"),
    ({"rows": [{"out": 1, "kind": ["a"]}]}, "rows[0].kind: ['a'] is not text"),
    ({"rows": {"0": {"out": 1}}}, "rows is not a list"),
    ({"rows": [[]]}, "rows[0] is not an object"),
    ({"rows": [{"kind": "a"}]}, "rows[0] lacks the field 'out'"),
    ({"rows": [{"out": 1, "knd": "a"}]}, "unknown field 'knd' in rows[0]; did you mean 'kind'?"),
    ({"mean": [1, 2, 3]}, "mean has 3 entries, not 2"),
    ({"mean": ["1", 2]}, "mean[0]: '1' is not a finite number"),
    ({"mean": 1}, "mean is not a list"),
    ({"on": 1}, "on: 1 is not true or false"),
    ({"last": {"out": "x"}}, "last.out: 'x' is not a whole number"),
    ({"last": "none"}, "last is not an object"),
    ({"name": ["a"]}, "name: ['a'] is not text"),
    ({"name": "a\x1b]0;"}, "name: 'a\\x1b]0;' is not one line of text"),
    ({"name": "a\nb"}, "name: 'a\\nb' is not one line of text"),
    ({"name": "\ud800"}, "name: '\\ud800' is not one line of text"),
    ({"name": "a\0"}, "name: 'a\\x00' is not one line of text"),
    ({"name": "a" * 5000}, "is not at most 1,000 characters long"),
    ({"nmae": 1}, "unknown field 'nmae' in spec; did you mean 'name'?"),
    ({"rows": [{}] * 100_001}, "rows has 100,001 entries, more than 100,000"),
]


@pytest.mark.parametrize(("value", "message"), WRONG)
def test_a_wrong_value_has_its_path(value: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        dataclass_from(Outer, {"name": "x", **value}, "spec")
    assert message in str(caught.value) and len(str(caught.value)) < 200
    str(caught.value).encode()


@pytest.mark.parametrize("value", [None, 3, "text", ["name"], True])
def test_what_is_no_object(value: Any) -> None:
    with pytest.raises(InputError, match="spec is not an object"):
        dataclass_from(Outer, value, "spec")


def test_names_are_texts() -> None:
    assert texts(["a", "Ä b", "猫", "\x1b]0;"], "classes") == ("a", "Ä b", "猫", "\x1b]0;")
    for value, message in (
        ([], "classes has 0 entries"), ("abc", "classes is not a list"), ([1], r"classes\[0\]: 1 is not text"),
        (["a", "b\r"], r"classes\[1\]: 'b\\r' is not one line"), (None, "classes is not a list"),
        (["\u2028"], r"classes\[0\]: '\\u2028' is not one line"), (["a\x00"], r"classes\[0\]"), (["\udc80"], r"classes\[0\]"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            texts(value, "classes")


def test_nothing_but_an_input_error_comes_out() -> None:
    draw = random.Random(1)
    values: list[Any] = [None, True, -1, 10**30, 0.5, float("nan"), "", "\udfff", [], [[]], {}, {"out": 1}, {1: 2}, b"x"]
    for _ in range(5000):
        value = {draw.choice([*Outer.__dataclass_fields__, "x", 3]): draw.choice(values) for _ in range(3)}
        value["rows"] = [draw.choice(values) for _ in range(draw.randint(0, 3))]
        try:
            dataclass_from(Outer, {"name": "x", **value}, "spec")
        except InputError as error:
            str(error).encode()


def test_a_value_alone() -> None:
    assert checked(int, 3, "x", "x") == 3
    with pytest.raises(InputError, match=r"x: 'a' is not a whole number"):
        checked(int, "a", "x", "x")
