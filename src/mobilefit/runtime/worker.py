"""Running and timing model files, in a process of their own that may die without harm."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

import numpy as np

from mobilefit.cores import available_cores
from mobilefit.errors import InputError
from mobilefit.runs import temporary_file
from mobilefit.runtime.engines import LITERT, engine, runtime_version
from mobilefit.runtime.results import Cost, Inspection, RuntimeCrash, StopRule, TimingSamples

PATIENCE = 60.0
"""Seconds without a sign of life after which a file is given up. A sign comes after each run."""


class Worker:
    """A persistent child process that runs and times model files.

    Usable as a context manager; without one, the child ends with this object or this process. Safe
    to use from several threads, which then take turns. ``runtime`` is a name of
    :data:`~mobilefit.runtime.ENGINES`.

    Args:
        patience: seconds without a sign of life after which the child is given up.

    Every method raises ``InputError`` for a file that is damaged or does not load or a runtime that
    is not installed, and ``RuntimeCrash`` when the child dies or hangs.
    """

    def __init__(self, *, patience: float = PATIENCE) -> None:
        self.patience = patience
        self._lock = threading.Lock()
        self._child: _ChildProcess | None = None

    def run(
        self, blob: bytes, array: np.ndarray, *, threads: int = 1, runtime: str = LITERT
    ) -> np.ndarray:
        """The first output ``[n, ...]`` for an array ``[n, height, width, channels]`` (.onnx: as it is made).

        The array has the input's type (float32); n is a multiple of the file's batch size.
        """
        arguments = {"array": np.ascontiguousarray(array)}
        result = self._call("run", [blob], [runtime], threads, arguments)
        assert isinstance(result, np.ndarray)
        return result

    def outputs(
        self, blob: bytes, array: np.ndarray, *, threads: int = 1, runtime: str = LITERT
    ) -> list[np.ndarray]:
        """Every output ``[n, ...]``, in the file's order; the rest is as of :meth:`run`."""
        arguments = {"array": np.ascontiguousarray(array)}
        found: list[np.ndarray] = self._call("outputs", [blob], [runtime], threads, arguments)
        return found

    def time(
        self,
        blob: bytes,
        *,
        threads: int = 1,
        core: int | None = None,
        rule: StopRule | None = None,
        runtime: str = LITERT,
    ) -> TimingSamples:
        """Milliseconds of each of many runs at the file's own input shape, after a warm-up.

        Args:
            threads: of the interpreter.
            core: pin the run to this core; only with one thread.
            rule: when to stop; default ``StopRule()``.
        """
        return self.time_many([blob], threads=threads, core=core, rule=rule, runtimes=[runtime])[0]

    def time_many(
        self,
        blobs: Sequence[bytes],
        *,
        threads: int = 1,
        core: int | None = None,
        rule: StopRule | None = None,
        runtimes: Sequence[str] | None = None,
    ) -> list[TimingSamples]:
        """Time several files side by side: short bursts of each in turn, so that a change in the
        machine's speed meets them alike, until every median is stable. For ratios.

        Args:
            runtimes: of each file; all by LiteRT when left out.
        """
        check_pin(threads, core)
        arguments = {"core": core, "rule": asdict(rule or StopRule())}
        timed = self._call("time", blobs, runtimes or [LITERT] * len(blobs), threads, arguments)
        return [TimingSamples(samples, stable=stable) for samples, stable in timed]

    def inspect(self, blob: bytes, *, runtime: str = LITERT) -> Inspection:
        """Operators, delegate partitions, inputs, outputs and the runtime's version."""
        found = self._call("inspect", [blob], [runtime], 1, {})
        return Inspection(runtime=runtime_version(runtime), **found)

    def close(self) -> None:
        """End the child process; the next call would start another."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(
        self,
        command: str,
        blobs: Sequence[bytes],
        runtimes: Sequence[str],
        threads: int,
        arguments: dict[str, Any],
        *,
        send: bool = False,
    ) -> Any:
        for name in runtimes:
            engine(name)
        keys = [(hashlib.sha256(b).hexdigest(), r) for b, r in zip(blobs, runtimes, strict=True)]
        files = dict(zip(keys, blobs, strict=True))
        with self._lock:
            status, result = self._ask((command, keys, files if send else {}, threads, arguments))
            if status == "send":
                missing = {key: files[key] for key in result}
                status, result = self._ask((command, keys, missing, threads, arguments))
        if status == "input":
            raise InputError(*result)
        return result

    def _ask(self, request: tuple[Any, ...]) -> tuple[str, Any]:
        if self._child is None:
            self._child = _ChildProcess()
        labels = " or ".join(sorted({engine(runtime).label for _, runtime in request[1]}))
        try:
            self._child.connection.send(request)
            while self._child.connection.poll(self.patience):
                answer: tuple[str, Any] = self._child.connection.recv()
                if answer[0] != "alive":
                    return answer
        except (EOFError, OSError) as error:
            last_words = self._child.last_words()
            self.close()
            raise RuntimeCrash(
                f"{labels} crashed on the model ({last_words})",
                f"the file is damaged or holds values that {labels} cannot take; make it again",
            ) from error
        except BaseException:  # interrupted while the child works: its answer would come too late
            self.close()
            raise
        self.close()
        raise RuntimeCrash(
            f"{labels} gave no sign of life for {self.patience:g} s on the model",
            "the file is damaged, or the network is too slow for this machine",
        )


def cost(
    blob: bytes,
    *,
    runtime: str = LITERT,
    threads: int = 1,
    core: int | None = None,
    runs: int = 10,
    patience: float = PATIENCE,
) -> Cost:
    """What loading a file and its first runs cost, in a process started for it.

    Raises:
        InputError: the file is damaged or does not load, or the runtime is not installed.
        RuntimeCrash: the process died or hung.
    """
    check_pin(threads, core)
    arguments = {"core": core, "runs": runs}
    with Worker(patience=patience) as fresh:
        return Cost(**fresh._call("cost", [blob], [runtime], threads, arguments, send=True))


class _ChildProcess:
    def __init__(self) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self.log = temporary_file()
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


def check_pin(threads: int, core: int | None) -> None:
    """Refuse a core that is not there, or one core for several threads.

    Raises:
        InputError: it names both.
    """
    if core is not None and threads != 1:
        raise InputError(f"{threads} threads cannot be pinned to one core", "use threads=1")
    if core is not None and core not in available_cores():
        raise InputError(f"core {core} is not among {sorted(available_cores())}")
