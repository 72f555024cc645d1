"""The folder of a run: its configuration, the results of its stages, its record."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mobilefit.cores import thread_change_count
from mobilefit.errors import InputError, naming
from mobilefit.parsing import check_fields, checked
from mobilefit.runs import hold, machine, now, read_json, write_json
from mobilefit.text import address_without_secrets

T = TypeVar("T")
RECORD = "record.json"
PAGE = "report.html"
STARTED_IN = "started_in"
"""Key of ``config.json``: the folder that relative paths begin from."""
PLACE_ONLY = {"out", "resume", "quiet", "workers", "cluster"}
"""Configuration that does not change the result."""


class RunFolder:
    """A run's folder; each stage's result is kept, so that an interrupted run goes on after it.

    ``config.json`` holds the resolved configuration, ``state.json`` the stages' results, and
    ``record.json`` is written at the end: a folder with it holds a finished run.

    Args:
        path: made if it is not there.
        verb: whose run it is.
        config: a dataclass.
        resume: go on with an unfinished run that is there.
        writes: whether it is this process that writes, of several at one run.

    Raises:
        InputError: the folder cannot be written, or another process writes to it, or it holds a run
            with other options, or an unfinished one that was not asked to be resumed.
    """

    def __init__(
        self, path: Path, verb: str, config: Any, *, resume: bool = True, writes: bool = True
    ) -> None:
        self.path, self.verb = path, verb
        self.config = _plain(config)
        aside = {name: False for name in ("resume", "quiet") if hasattr(config, name)}
        self.command = command(verb, dataclasses.replace(config, **aside))
        self._writes, self._began, self._thread_changes = writes, time.monotonic(), thread_change_count()
        self.state: dict[str, Any] = {"started": now(), "seconds": {}}
        self._earlier = 0.0
        if writes:
            self._open(resume)

    def _open(self, resume: bool) -> None:
        path = self.path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot make the output folder {path}: {error.strerror}", "choose another --out"
            ) from error
        self._lock = hold(path)
        self._refuse_other_runs(resume)
        write_json(path / "config.json", {"verb": self.verb, **self.config, STARTED_IN: _working_folder()})
        state = path / "state.json"
        if state.exists():
            with _hinting(), naming(state):
                self.state |= _object(state)
                check_fields(self.state, {"started": str, "seconds": dict}, "it")
                check_fields(self.state["seconds"], dict.fromkeys(self.state["seconds"], float), "seconds")
                self._earlier = checked(float, self.state.get("elapsed", 0.0), "it", "elapsed")

    def _keep_state(self) -> None:
        self.state["elapsed"] = round(self.elapsed, 2)
        write_json(self.path / "state.json", self.state)

    @property
    def elapsed(self) -> float:
        """Seconds that the run took so far, in this call and in those that were interrupted."""
        return self._earlier + time.monotonic() - self._began

    @property
    def finished(self) -> bool:
        """Whether the run is complete, but perhaps for its page."""
        return (self.path / RECORD).exists()

    @property
    def lacks_page(self) -> bool:
        """Whether the process ended after it wrote the record and before it wrote the page."""
        record, page = self.path / RECORD, self.path / PAGE
        return record.exists() and not (page.exists() and page.stat().st_mtime_ns >= record.stat().st_mtime_ns)

    def _refuse_other_runs(self, resume: bool) -> None:
        earlier = self.path / "config.json"
        if not earlier.exists() or not self._begun():
            return
        theirs = _object(earlier)
        mine = {"verb": self.verb, **self.config}
        started_in = str(theirs.pop(STARTED_IN, ""))
        differing = [
            key for key in sorted({*theirs, *mine} - PLACE_ONLY - {"verb"})
            if not _means_the_same(theirs.get(key), mine.get(key), started_in)
        ]  # fmt: skip
        if theirs.get("verb") != self.verb:
            differing.insert(0, "verb")
        kind = "a finished run" if self.finished else "an unfinished run"
        if differing:
            what = ", ".join(f"{k} {theirs.get(k)!r} there, {mine.get(k)!r} now" for k in differing[:3])
            raise InputError(
                f"{self.path} holds {kind} with other options ({what})",
                "choose another --out, or delete that folder",
            )
        if not resume and not self.lacks_page:
            go_on = "" if self.finished else "add --resume to go on with it, "
            raise InputError(
                f"{self.path} holds {kind}", f"{go_on}choose another --out, or delete that folder"
            )

    def _begun(self) -> bool:
        """Whether there is anything to lose: a file, or the result of a stage."""
        files = {path.name for path in self.path.iterdir() if not path.name.startswith(".")}
        files -= {"config.json", "state.json"}
        state = self.path / "state.json"
        stages = set(_object(state)) - {"started", "seconds", "elapsed"} if state.exists() else set()
        return bool(files or stages)

    def stage(self, name: str, work: Callable[[], T], shape: Any = Any) -> T:
        """The stage's result: from an earlier run if it got that far, else by doing the work.

        Args:
            work: its result is made of plain JSON values.
            shape: of the result, which is checked when it is read again: a type as :func:`mobilefit.parsing.checked`
                takes it (a dataclass: an object with its fields), or the types of an object's fields by name.

        Raises:
            InputError: what is kept of the stage has another shape.
        """
        if name in self.state:
            with _hinting(), naming(self.path / "state.json"):
                if isinstance(shape, Mapping):
                    check_fields(self.state[name], shape, name)
                else:
                    checked(shape, self.state[name], name, name)
        else:
            with self.timed(name):
                self.state[name] = work()
            self._keep_state()
        result: T = self.state[name]
        return result

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the block's seconds to the record, also when it is interrupted."""
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = self.state["seconds"]
            seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - began, 2)
            if self._writes:
                with contextlib.suppress(InputError):  # a full disk is told by what failed on it
                    self._keep_state()

    def finish(self, record: dict[str, Any]) -> dict[str, Any]:
        """Write the record, completed by what every run has: the run is complete."""
        return self.finish_part(self.path, record)

    def finish_part(self, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
        """Write the record of a part of the run, which has a folder within the run's."""
        whole = {
            "verb": self.verb, "command": self.command, "config": self.config,
            "started": self.state["started"], "finished": now(), "seconds": self.state["seconds"],
            "machine": machine(), "thread_changes": thread_change_count() - self._thread_changes, **record,
        }  # fmt: skip
        write_json(folder / RECORD, whole)
        return whole

    def record(self) -> dict[str, Any]:
        """The record of a finished run."""
        value: dict[str, Any] = read_json(self.path / RECORD)
        return value


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a run's", "choose another --out, or delete that folder")
    return value


@contextlib.contextmanager
def _hinting() -> Iterator[None]:
    """Say what to do about a run's file that is not as it was written."""
    try:
        yield
    except InputError as error:
        raise InputError(error.message, "choose another --out, or delete that folder") from error


def _working_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""


def _means_the_same(earlier: Any, current: Any, started_in: str) -> bool:
    """Whether two values of an option are equal, or name the same file or folder.

    Args:
        started_in: the folder that their relative paths begin from.
    """
    if isinstance(earlier, list) and isinstance(current, list):
        return len(earlier) == len(current) and all(
            _means_the_same(first, second, started_in) for first, second in zip(earlier, current, strict=True)
        )
    if isinstance(earlier, str) and isinstance(current, str):
        with contextlib.suppress(OSError, ValueError):
            return os.path.samefile(os.path.join(started_in, earlier), current)
        earlier = address_without_secrets(earlier)  # it may be from before secrets were left out
    return bool(earlier == current)


def command(verb: str, config: Any) -> str:
    """The command line that a configuration is the same as, without the secrets of its addresses."""
    words = ["mobilefit", verb]
    for field in sorted(dataclasses.fields(config), key=lambda field: bool(field.metadata.get("detail"))):
        value = getattr(config, field.name)
        name = f"--{field.name.replace('_', '-')}"
        if field.metadata.get("argument"):
            words += map(str, value) if isinstance(value, tuple) else [str(value)]
        elif value is True:
            words.append(name)
        elif value != field.default:
            words += [word for each in (value if isinstance(value, tuple) else (value,)) for word in (name, str(each))]
    return shlex.join(map(address_without_secrets, words))


def _plain(config: Any) -> dict[str, Any]:
    """A configuration for JSON, without the secrets of its addresses."""

    def plain(value: Any) -> Any:
        if isinstance(value, (str, Path)):
            return address_without_secrets(str(value))
        return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value

    return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def made_empty(folder: Path, option: str) -> Path:
    """A new or an empty folder, which is made if it is not there.

    Args:
        option: which named it.

    Raises:
        InputError: it holds something, or cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error
    if taken:  # it could be the very folder that the images are in
        raise InputError(f"the folder {folder} is not empty", f"choose another {option}")
    return folder
