"""Running and timing LiteRT files, in a process of their own that may die without harm."""

from __future__ import annotations

import hashlib
import importlib.metadata
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from mobilefit.errors import InputError


class RuntimeCrash(InputError):
    """LiteRT took its process down with a file; the next call starts a new process."""


@dataclass(frozen=True, kw_only=True)
class StopRule:
    """When a timing has enough runs.

    A network is timed until the 95 % confidence interval of its median is narrower than ``spread``
    (relative to the median), within these limits.
    """

    warmup_seconds: float = 0.05  # untimed runs first, at least three
    min_runs: int = 20
    max_runs: int = 2000
    min_seconds: float = 0.1  # sum of the timed runs
    max_seconds: float = 5.0  # wall clock per file, stable or not
    spread: float = 0.01


class TimingSamples(list[float]):
    """Milliseconds of each timed run, in order; ``stable``: was the rule met in time?"""

    def __init__(self, samples: Sequence[float], *, stable: bool) -> None:
        super().__init__(samples)
        self.stable = stable

    @property
    def median(self) -> float:
        return statistics.median(self)


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """How LiteRT runs a file."""

    ops: tuple[str, ...]  # operators in execution order, as the file has them
    partitions: int  # XNNPACK delegate partitions; 1 when the whole file runs in one
    outside: tuple[str, ...]  # operators that no partition runs
    runtime: str  # "ai-edge-litert 2.3.0"


class Worker:
    """A persistent child process that runs and times LiteRT files.

    Usable as a context manager; without one, the child ends with this object or this process. Safe
    to use from several threads, which then take turns.

    Every method raises ``InputError`` for a file that is damaged or does not load, and
    ``RuntimeCrash`` when the child dies.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: _ChildProcess | None = None

    def run(self, blob: bytes, array: np.ndarray, *, threads: int = 1) -> np.ndarray:
        """The outputs ``[n, ...]`` for an NHWC array ``[n, height, width, channels]``.

        The array has the input's type (float32); n is a multiple of the file's batch size.
        """
        result = self._call("run", [blob], threads, {"array": np.ascontiguousarray(array)})
        assert isinstance(result, np.ndarray)
        return result

    def time(
        self,
        blob: bytes,
        *,
        threads: int = 1,
        core: int | None = None,
        rule: StopRule | None = None,
    ) -> TimingSamples:
        """Milliseconds of each of many runs at the file's own input shape, after a warm-up.

        Args:
            threads: of the interpreter.
            core: pin the run to this core; only with one thread.
            rule: when to stop; default ``StopRule()``.
        """
        return self.time_many([blob], threads=threads, core=core, rule=rule)[0]

    def time_many(
        self,
        blobs: Sequence[bytes],
        *,
        threads: int = 1,
        core: int | None = None,
        rule: StopRule | None = None,
    ) -> list[TimingSamples]:
        """Time several files side by side: short bursts of each in turn, so that a change in the
        machine's speed meets them alike, until every median is stable. For ratios."""
        if core is not None and threads != 1:
            raise InputError(f"{threads} threads cannot be pinned to one core", "use threads=1")
        if core is not None and core not in available_cores():
            raise InputError(f"core {core} is not among {sorted(available_cores())}")
        arguments = {"core": core, "rule": asdict(rule or StopRule())}
        timed = self._call("time", blobs, threads, arguments)
        return [TimingSamples(samples, stable=stable) for samples, stable in timed]

    def inspect(self, blob: bytes) -> Inspection:
        """Operators, delegate partitions and the runtime's version."""
        return Inspection(runtime=runtime_version(), **self._call("inspect", [blob], 1, {}))

    def close(self) -> None:
        """End the child process; the next call would start another."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _call(
        self, command: str, blobs: Sequence[bytes], threads: int, arguments: dict[str, Any]
    ) -> Any:
        keys = [hashlib.sha256(blob).hexdigest() for blob in blobs]
        with self._lock:
            status, result = self._ask((command, keys, {}, threads, arguments))
            if status == "send":
                files = {k: b for k, b in zip(keys, blobs, strict=True) if k in result}
                status, result = self._ask((command, keys, files, threads, arguments))
        if status == "input":
            raise InputError(*result)
        return result

    def _ask(self, request: tuple[Any, ...]) -> tuple[str, Any]:
        if self._child is None:
            self._child = _ChildProcess()
        try:
            self._child.connection.send(request)
            answer: tuple[str, Any] = self._child.connection.recv()
            return answer
        except (EOFError, OSError) as error:
            last_words = self._child.last_words()
            self.close()
            raise RuntimeCrash(
                f"LiteRT crashed on the model ({last_words})",
                "the file is damaged or holds values that LiteRT cannot take; make it again",
            ) from error
        except BaseException:  # interrupted while the child works: its answer would come too late
            self.close()
            raise


class _ChildProcess:
    def __init__(self) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by _end)
        source = str(Path(__file__).parents[2])
        inherited = os.environ.get("PYTHONPATH")
        path = source if not inherited else os.pathsep.join([source, inherited])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mobilefit.runtime._child", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": path},
        )
        theirs.close()
        self.end = weakref.finalize(self, _end, self.process, self.connection, self.log)

    def last_words(self) -> str:
        code = self.process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self.log.seek(0)
        text = self.log.read().decode(errors="replace")
        lines = [line for line in text.splitlines() if line and not line.startswith("INFO")]
        return f"{how}: {lines[-1]}" if lines else how


def _end(process: subprocess.Popen[bytes], connection: Connection, log: IO[bytes]) -> None:
    connection.close()
    process.kill()
    process.wait()
    log.close()


def available_cores() -> set[int]:
    """The cores that this process may run on; empty where the system cannot pin."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def runtime_version() -> str:
    return f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')}"
