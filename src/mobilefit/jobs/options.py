"""Configuration of the verbs: frozen dataclasses whose fields are also the command line's options."""

from __future__ import annotations

import dataclasses
import re
import typing
from dataclasses import dataclass
from typing import Any

from mobilefit.errors import InputError


def option(
    default: Any = dataclasses.MISSING, *, help: str, argument: bool = False, detail: bool = False
) -> Any:
    """A configuration field.

    Args:
        default: a field without one is required.
        help: one line for ``--help``.
        argument: given by position on the command line, not by ``--name``.
        detail: listed after the others.
    """
    metadata = {"help": help, "argument": argument, "detail": detail}
    return dataclasses.field(default=default, metadata=metadata)


def device_option() -> Any:
    """Where latency is measured: see :func:`mobilefit.device.opened`."""
    return option("host", help="measured here (host), on a phone (android), or on one of several (android:SERIAL)")


def tool_option() -> Any:
    """What measures on a phone: see :class:`mobilefit.device.Phone`."""
    return option(None, help="for a phone: the file of TFLite's benchmark_model for Android (docs/android.md)")


def overrides(name: str, kind: type) -> type:
    """A frozen dataclass with the fields of ``kind`` that have a help line, each of which may be left out.

    Args:
        name: of the class; a configuration inherits it.
        kind: a dataclass whose fields' metadata hold ``help``.
    """
    hints = typing.get_type_hints(kind)
    fields = [
        (field.name, hints[field.name] | None, option(None, help=f"recipe: {help}", detail=True))
        for field in dataclasses.fields(kind) if (help := field.metadata["help"])
    ]  # fmt: skip
    return dataclasses.make_dataclass(name, fields, frozen=True, kw_only=True)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A latency budget: milliseconds, or a part of the seed network's latency."""

    milliseconds: float | None = None
    fraction: float | None = None

    def of(self, seed_ms: float) -> float:
        """The budget in milliseconds, for a seed network of that latency."""
        if self.milliseconds is not None:
            return self.milliseconds
        assert self.fraction is not None
        return self.fraction * seed_ms


_UNITS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}


def parse_budget(text: str) -> Budget:
    """Read ``2ms``, ``850us``, ``0.01s`` or ``70%`` (of the seed network's latency).

    Raises:
        InputError: no unit, or not a positive number.
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(\S*)\s*", text)
    if found is None or float(found[1]) <= 0:
        raise InputError(f"--latency '{text}' is not a latency", "write for instance 2ms or 70%")
    number, unit = float(found[1]), found[2]
    if unit == "%":
        return Budget(fraction=number / 100)
    if unit in _UNITS:
        return Budget(milliseconds=number * _UNITS[unit])
    what = f"has the unknown unit '{unit}'" if unit else "has no unit"
    raise InputError(
        f"--latency {text} {what}",
        f"write {found[1]}ms (milliseconds), {found[1]}us, or a share of the seed network's such as 70%",
    )
