"""The folder of a run: its configuration, the results of its stages, its record."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mobilefit.errors import InputError
from mobilefit.runs import read_json, write_json

T = TypeVar("T")
RECORD = "record.json"
PLACE_ONLY = {"out", "resume", "quiet"}
"""Configuration that does not change the result."""


class RunFolder:
    """A run's folder; each stage's result is kept, so that an interrupted run goes on after it.

    ``config.json`` holds the resolved configuration, ``state.json`` the stages' results, and
    ``record.json`` is written at the end: a folder with it holds a finished run.
    """

    def __init__(self, path: Path, verb: str, config: Any) -> None:
        self.path, self.verb = path, verb
        self.config = _plain(config)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot make the output folder {path}: {error.strerror}", "choose another --out"
            ) from error
        self._refuse_other_runs()
        write_json(path / "config.json", {"verb": verb, **self.config})
        state = path / "state.json"
        self.state: dict[str, Any] = read_json(state) if state.exists() else {}

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        return (self.path / RECORD).exists()

    def _refuse_other_runs(self) -> None:
        earlier = self.path / "config.json"
        if not earlier.exists():
            return
        theirs = read_json(earlier)
        mine = {"verb": self.verb, **self.config}
        differing = sorted(k for k in {*theirs, *mine} - PLACE_ONLY if theirs.get(k) != mine.get(k))
        if differing:
            kind = "a finished run" if self.finished else "an unfinished run"
            what = ", ".join(f"{k} {theirs.get(k)!r} there, {mine.get(k)!r} now" for k in differing[:3])
            raise InputError(
                f"{self.path} holds {kind} with other options ({what})",
                "choose another --out, or delete that folder",
            )

    def stage(self, name: str, work: Callable[[], T]) -> T:
        """The stage's result: from an earlier run if it got that far, else by doing the work.

        The result is made of plain JSON values.
        """
        if name not in self.state:
            self.state[name] = work()
            write_json(self.path / "state.json", self.state)
        result: T = self.state[name]
        return result

    def finish(self, record: dict[str, Any]) -> None:
        """Write the record: the run is complete."""
        write_json(self.path / RECORD, {"verb": self.verb, "command": command(), **record})


def command() -> str:
    """The command line of this process, ready to be given again."""
    return shlex.join(["mobilefit", *sys.argv[1:]])


def _plain(config: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value

    return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
