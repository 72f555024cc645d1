"""Where latency is measured: this machine, or a phone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from mobilefit.device.android import Phone
from mobilefit.errors import InputError, unknown

HOST, ANDROID = "host", "android"


def check_target(name: str, tool: Path | None = None) -> None:
    """See that a name means a target; whether a phone is there is not asked.

    Raises:
        InputError: it does not.
    """
    kind, colon, serial = name.partition(":")
    if kind not in (HOST, ANDROID):
        raise unknown("device", name, [HOST, ANDROID, f"{ANDROID}:SERIAL"])
    if (kind == HOST and colon) or (colon and not serial):
        raise InputError(f"--device '{name}' is not a device", f"{HOST}, {ANDROID}, {ANDROID}:SERIAL")
    if kind == HOST and tool is not None:
        raise InputError("--benchmark-model is for a phone", f"add --device {ANDROID}")


@contextlib.contextmanager
def opened(
    name: str, *, tool: Path | None = None, say: Callable[[str], object] = lambda line: None
) -> Iterator[Phone | None]:
    """What measures there, for ``worker=`` of whatever measures: a phone, or ``None`` for this machine.

    At the block's end nothing is left on the phone.

    Args:
        name: ``host``, ``android`` (the only phone), or ``android:SERIAL``.
        tool: ``benchmark_model`` for the phone: see :class:`Phone`.
        say: is told, a line each, what one has to wait for.

    Raises:
        InputError: an unknown name, or a phone that cannot be used.
    """
    check_target(name, tool)
    kind, _, serial = name.partition(":")
    if kind == HOST:
        yield None
        return
    with Phone(serial or None, tool=tool, say=say) as phone:
        yield phone
