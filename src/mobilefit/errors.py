"""What can go wrong, as the user sees it: one clear line, a hint, and an exit code.

Everything that a user can cause or mend is raised as a :class:`MobilefitError`; the command line
prints it without a traceback. Any other exception is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path

LONGEST = 300
"""Characters of a name that is shown, and that the nearest one is looked for: the search is quadratic."""


class MobilefitError(Exception):
    """A problem that the user can act on.

    Args:
        message: one line that says what is wrong and where.
        hint: what to do about it, one line.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}; {self.hint}"


class InputError(MobilefitError):
    """Bad input: a path, a value, a file, a machine state that the user can change."""

    exit_code = 2


class Terminated(KeyboardInterrupt):
    """SIGTERM: a machine is taken away, a job is ended. What can be kept is kept, as after Ctrl-C."""


class QualityGateError(MobilefitError):
    """The work was done, but its result misses a stated requirement (budget, accuracy)."""

    exit_code = 3


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """``"did you mean 'x'?"`` for the choice nearest to ``name``, or ``""`` when none is near."""
    near = difflib.get_close_matches(name[:LONGEST], list(choices), n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else ""


def unknown(kind: str, name: str, choices: Iterable[str]) -> InputError:
    """The error for a name that is not among ``choices``: suggests the nearest, else lists all."""
    known = list(choices)
    shown = f"'{name}'" if name.isprintable() else ascii(name)
    if len(shown) > LONGEST:
        shown = f"{shown[:LONGEST]}... ({len(name):,} characters)"
    return InputError(
        f"unknown {kind} {shown}", did_you_mean(name, known) or "choose from " + ", ".join(known)
    )


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put a file's name before what is wrong with it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error.message}", error.hint) from error


def one_line(error: BaseException) -> str:
    """An exception as one line: its class and the first line of its message."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}".rstrip(": ")
