"""Text that may be shown and kept: without secrets, and without characters that a terminal obeys."""

from __future__ import annotations

import os
import re
from typing import Any

HIDDEN = "***"
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/[^\s'\"]+", re.IGNORECASE)  # a Path has one slash of two
_PROGRESS = re.compile(r"(\A\r|\r\Z|\x1b\[A|\x1b\[[0-9;]*m)")
_REFERENCE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
_BIDIRECTIONAL = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_ESCAPES = {
    **{code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"},
    **{code: f"\\u{code:04x}" for code in _BIDIRECTIONAL},
}


def printable(text: str) -> str:
    """Text with escapes in the place of control characters (``\\x1b``) and of those that turn the direction of writing.

    Line breaks and tabs stay.
    """
    return text.translate(_ESCAPES)


def without_secrets(text: str) -> str:
    """Text with ``***`` in the place of users, passwords and query values in the addresses that it holds.

    ``http://user:password@host/x.tar?token=abc`` becomes ``http://***@host/x.tar?token=***``. References to variables of
    the environment (``?token=$TOKEN``) are no secrets, and stay.
    """
    return _URL.sub(lambda match: _hidden(match[0]), text)


def address_without_secrets(address: str) -> str:
    """As :func:`without_secrets`, for a text that is one address from its first to its last character."""
    return _hidden(address) if _URL.match(address) else without_secrets(address)


def _hidden(address: str) -> str:
    return "::".join(map(_hidden_link, links(address)))


def links(address: str) -> list[str]:
    """The addresses of a chain as fsspec has them, ``simplecache::s3://bucket/x.tar``: they lie between ``::``."""
    return re.split(r"::(?=[A-Za-z][A-Za-z0-9+.-]*:)", address)


def _hidden_link(address: str) -> str:
    if "://" not in address:
        return _hidden_link(address.replace(":/", "://", 1)).replace("://", ":/", 1) if ":/" in address else address
    scheme, user, location, query = split_address(address)
    items = [] if query is None else re.split(r"([&;])", query)
    hidden = "".join(item if index % 2 else _hidden_item(item) for index, item in enumerate(items))
    return join_address(scheme, user and (user if _is_reference(user) else HIDDEN), location, query and hidden)


def _hidden_item(item: str) -> str:
    key, equals, value = item.partition("=")
    if _is_reference(value or key):
        return item
    return f"{key}={HIDDEN}" if equals else HIDDEN


def _is_reference(text: str) -> bool:
    return all(_REFERENCE.fullmatch(part) for part in text.split(":"))


def split_address(address: str) -> tuple[str, str | None, str, str | None]:
    """An address as scheme, user and password, host and path, query; what is not there is ``None``.

    A password may hold ``/``, ``?`` and ``@``, as keys of S3 do. ``abfs://container@account`` and
    ``http://host:8080/path@2x`` have no user.
    """
    scheme, _, rest = address.partition("://")
    location, mark, query = rest.partition("?")
    if mark and "@" in query and ":" in location and "/" not in location:  # the question mark belongs to a password
        user, _, rest = rest.rpartition("@")
        location, mark, query = rest.partition("?")
        return scheme, user, location, query if mark else None
    user, at, host = location.rpartition("@")
    first = user.partition("/")[0]
    container = scheme.lower().startswith("abfs") and ":" not in user
    with_port = scheme.lower().startswith("http") and re.search(r":\d*$", first)
    has_user = at and not container and (first == user or (":" in first and not with_port))
    return scheme, user if has_user else None, host if has_user else location, query if mark else None


def join_address(scheme: str, user: str | None, location: str, query: str | None) -> str:
    """The address of :func:`split_address`."""
    return f"{scheme}://" + ("" if user is None else f"{user}@") + location + ("" if query is None else f"?{query}")


def from_environment(text: str) -> str:
    """Text with the values of the variables that it refers to, as ``$NAME`` or ``${NAME}``.

    Raises:
        KeyError: there is no such variable.
    """
    return _REFERENCE.sub(lambda match: os.environ[match[1] or match[2]], text)


class EscapedStream:
    """A text stream to which control characters go as escapes, and addresses without their secrets.

    Args:
        stream: where the text goes.
        progress: carriage returns at the ends of a text, and the sequences that move the cursor up or set a colour,
            stay: progress bars and the logs of libraries are made of them.
    """

    def __init__(self, stream: Any, *, progress: bool = False) -> None:
        self._stream, self._progress = stream, progress

    def write(self, text: str) -> int:
        """Write a text; the result is its own length."""
        parts = _PROGRESS.split(text) if self._progress else [text]
        self._stream.write("".join(part if index % 2 else printable(without_secrets(part))
                                   for index, part in enumerate(parts)))  # fmt: skip
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
