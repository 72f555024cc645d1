"""Values that come from outside: JSON within limits, and dataclasses made of it with the type of every value checked.

Everything that is read from a file that somebody else may have made goes through :func:`parse_json`, and what is
a dataclass here through :func:`dataclass_from`, so that a deep, huge or mistyped value is one clear error where it
is read, and never an exception of Python's somewhere behind. Standard library alone.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, Literal

from mobilefit.errors import InputError, did_you_mean

DEEPEST = 100
"""Objects and lists within each other. Ours have 6; Python's own limit depends on who calls."""
MOST_DIGITS = 100
"""Of a whole number: one of them still fits into a float."""
LARGEST = 2**28
"""Bytes of a JSON text, unless the reader says otherwise; Python takes ten times as many for its values."""
LARGEST_NUMBER = 2**31 - 1
"""Of a whole number in a dataclass: sizes and counts in LiteRT's and torch's files are int32."""
LONGEST_TEXT = 1_000
"""Characters of a name."""
LONGEST_LIST = 100_000
"""Entries of a list."""
MOST_NAMES = 1_000_000
"""Of classes; ImageNet-21k has 21,841."""

_STRINGS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*\\?(?:"|\Z)', re.DOTALL)
_NO_BRACKETS = re.compile(r"[^][{}]+")
_STEPS = {"[": 1, "{": 1, "]": -1, "}": -1}
_BUT_BREAKS = re.compile("[\x01-\x09\x0e-\x1b\x1f\x7f-\x84\x86-\x9f]")
"""Control characters that begin no line."""
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_json(text: str | bytes, *, largest: int | None = LARGEST, digits: int = MOST_DIGITS) -> Any:
    """The value of a JSON text.

    Args:
        text: bytes are UTF-8, UTF-16 or UTF-32.
        largest: bytes or characters; ``None``: as many as there are.
        digits: of a whole number; Python itself takes 4,300.

    Raises:
        ValueError: it is not JSON, or beyond the limits of size, depth (:data:`DEEPEST`) and digits.
    """
    if largest is not None and len(text) > largest:
        raise ValueError(f"{len(text):,} bytes, more than {largest:,}")
    if not isinstance(text, str):
        text = bytes(text)
        text = text.decode(json.detect_encoding(text))
    bare = _STRINGS.sub("", text)
    if re.search(rf"(?<![.\d])\d{{{digits + 1}}}", bare):
        raise ValueError(f"a number of more than {digits:,} digits")
    brackets = _NO_BRACKETS.sub("", bare)
    if max(itertools.accumulate(map(_STEPS.__getitem__, brackets)), default=0) > DEEPEST:
        raise ValueError(f"nested deeper than {DEEPEST} levels")
    return json.loads(text)


def dataclass_from(kind: Any, value: Any, what: str, path: str = "") -> Any:
    """A dataclass made of a mapping, as JSON gives it, each value of the type that its field is declared with.

    Numbers are as they stand (1 stays 1 where a float is meant), lists become tuples, mappings the dataclasses
    of their fields. Which of a Literal's values is there is left to the dataclass, which knows the nearest.

    Args:
        kind: the dataclass.
        value: what there is; an instance of ``kind`` is taken as it is.
        what: the whole, for messages.
        path: where in it ``value`` is; empty: it is the whole.

    Raises:
        InputError: it is no mapping, a field is unknown (with the nearest name) or missing, or a value is of
            another type; the message has its path: ``blocks[2].out: 16.5 is not a whole number``.
    """
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise InputError(f"{path or what} is not an object")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in value:
        if name not in fields:
            raise InputError(f"unknown field {shown(name)} in {path or what}", did_you_mean(str(name), fields))
    missing = [n for n, f in fields.items() if n not in value and _required(f)]
    if missing:
        raise InputError(f"{path or what} lacks the field '{missing[0]}'")
    hints = _hints(kind)
    return kind(**{
        name: checked(hints[name], inner, what, f"{path}.{name}" if path else name) for name, inner in value.items()
    })  # fmt: skip


def checked(hint: Any, value: Any, what: str, path: str) -> Any:
    """A value of the type that an annotation says: see :func:`dataclass_from`."""
    has_fields: bool = dataclasses.is_dataclass(hint)
    if hint is Any or (has_fields and isinstance(value, hint)):
        return value
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict:
        hint = dict
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in parts:
            return None
        kinds = [part for part in parts if part is not type(None)]
        instances = [part for part in kinds if hasattr(part, "__dataclass_fields__") and isinstance(value, part)]
        return checked((instances or kinds)[0], value, what, path)
    if has_fields:
        return dataclass_from(hint, value, what, path)
    if origin is tuple:
        return _tuple(parts, value, what, path)
    problem = _problem(str if origin is Literal else hint, value)
    if problem:
        raise InputError(f"{path}: {shown(value)} is not {problem}")
    return value


def check_fields(value: Any, hints: Mapping[str, Any], what: str) -> dict[str, Any]:
    """An object with values of these types, whatever else is in it: a row of a log, or a part of a run's state.

    Raises:
        InputError: it is no object, or one of ``hints`` is missing or of another type.
    """
    if not isinstance(value, dict):
        raise InputError(f"{what} is not an object")
    for name, hint in hints.items():
        if name not in value:
            raise InputError(f"{what} lacks the field '{name}'")
        checked(hint, value[name], what, f"{what}: {name}")
    return value


def texts(value: Any, what: str) -> tuple[str, ...]:
    """A list of names, of classes say, which are whatever folders are called: control characters may be in them.

    Raises:
        InputError: it is no list, is empty, or an entry is no text of one line.
    """
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{what} is not a list")
    if not 1 <= len(value) <= MOST_NAMES:
        raise InputError(f"{what} has {len(value):,} entries, not 1 to {MOST_NAMES:,}")
    for index, name in enumerate(value):
        problem = _problem(str, _BUT_BREAKS.sub("", name) if isinstance(name, str) else name)
        if problem:
            raise InputError(f"{what}[{index}]: {shown(name)} is not {problem}")
    return tuple(value)


def _tuple(parts: tuple[Any, ...], value: Any, what: str, path: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{path} is not a list")
    if len(value) > LONGEST_LIST:
        raise InputError(f"{path} has {len(value):,} entries, more than {LONGEST_LIST:,}")
    if parts[-1] is not Ellipsis and len(value) != len(parts):
        raise InputError(f"{path} has {len(value)} entries, not {len(parts)}")
    hints: Iterable[Any] = itertools.repeat(parts[0]) if parts[-1] is Ellipsis else parts
    return tuple(checked(hint, inner, what, f"{path}[{i}]") for i, (hint, inner) in enumerate(zip(hints, value)))


def _problem(kind: Any, value: Any) -> str:
    """What a plain value should be and is not; empty: it is."""
    if kind is bool:
        return "" if isinstance(value, bool) else "true or false"
    if kind is int:
        if type(value) is not int:
            return "a whole number"
        return "" if abs(value) <= LARGEST_NUMBER else f"within {LARGEST_NUMBER:,}"
    if kind is float:
        good = type(value) in (int, float) and math.isfinite(value)
        return "" if good else "a finite number"
    if kind is Real:  # NaN and infinity are numbers that a run measures
        return "" if type(value) in (int, float) else "a number"
    if kind is str:
        if not isinstance(value, str):
            return "text"
        if len(value) > LONGEST_TEXT:
            return f"at most {LONGEST_TEXT:,} characters long"
        return "" if not (_CONTROL.search(value) or _SURROGATE.search(value)) else "one line of text"
    return "" if isinstance(value, kind) else "an object"


def shown(value: Any) -> str:
    """A value on a line, in ASCII where it is not text that can be shown, and cut."""
    text = f"'{value}'" if isinstance(value, str) and not _problem(str, value) else ascii(value)
    return text if len(text) <= 60 else f"{text[:50]}... ({len(text):,} characters)"


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
