"""The process that owns the runtimes, for :class:`mobilefit.runtime.worker.Worker`.

Runtimes abort the whole process on some files, so none lives in the user's own. Started as ``python
-m mobilefit.runtime._child FD``; a runtime is imported when first asked for. One request at a time
comes over the socket FD as ``(command, keys, {key: file}, threads, arguments)``, a key being the
file's hash and the name of its runtime; the answer is ``("ok", result)``, ``("send", keys)`` (these
files are not here: send them along) or ``("input", (message, hint))``, and while the work lasts now
and then ``("alive", None)``. A closed socket ends the process, also in the middle of a timing.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import signal
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from mobilefit.errors import InputError
from mobilefit.runtime._port import Loaded
from mobilefit.runtime.engines import engine, runtime_version

NETWORKS_KEPT = 8
ALIVE_SECONDS = 0.25
"""Between two signs of life."""
Key = tuple[str, str]


class _Child:
    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.networks: OrderedDict[tuple[Key, int], Loaded] = OrderedDict()
        self.cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        self.spoke = 0.0

    def serve(self) -> None:
        while True:
            try:
                request = self.connection.recv()
                self.connection.send(self.answer(*request))
            except InputError as error:
                self.connection.send(("input", (error.message, error.hint)))
            except (EOFError, BrokenPipeError, ConnectionResetError):
                return

    def answer(
        self,
        command: str,
        keys: list[Key],
        files: dict[Key, bytes],
        threads: int,
        arguments: dict[str, Any],
    ) -> tuple[str, Any]:
        if command == "cost":
            with _in_words("run", keys):
                return "ok", self.cost(*files.popitem(), threads, **arguments)
        for key, blob in files.items():
            self.networks[key, threads] = _load(key, blob, threads)
            self.alive()
        missing = [key for key in keys if (key, threads) not in self.networks]
        if missing:
            return "send", missing
        for key in keys:
            self.networks.move_to_end((key, threads))
        while len(self.networks) > max(NETWORKS_KEPT, len(set(keys))):
            self.networks.popitem(last=False)
        with _in_words("run", keys):
            return "ok", getattr(self, command)(
                [self.networks[k, threads] for k in keys], **arguments
            )

    def alive(self) -> None:
        """Tell the parent that the work goes on."""
        if time.monotonic() - self.spoke > ALIVE_SECONDS:
            self.spoke = time.monotonic()
            self.connection.send(("alive", None))

    # ---- commands

    def run(self, networks: list[Loaded], array: np.ndarray) -> np.ndarray:
        return networks[0].run(array, self.alive)[0]

    def outputs(self, networks: list[Loaded], array: np.ndarray) -> list[np.ndarray]:
        return networks[0].run(array, self.alive)

    def time(
        self, networks: list[Loaded], core: int | None, rule: dict[str, Any]
    ) -> list[tuple[list[float], bool]]:
        self.pin(core)
        try:
            return self.rounds([network.ready() for network in networks], rule)
        finally:
            self.pin(None)

    def rounds(
        self, runs: list[Callable[[], object]], rule: dict[str, Any]
    ) -> list[tuple[list[float], bool]]:
        """Bursts of runs, each network in turn, until every median is stable or time is up."""
        samples: list[list[float]] = [[] for _ in runs]
        bursts = [_Burst(run, rule, self.alive) for run in runs]
        end = time.perf_counter() + rule["max_seconds"] * len(runs)
        gc.collect()
        gc.disable()
        try:
            while True:
                for burst, mine in zip(bursts, samples, strict=True):
                    mine.extend(burst())
                    self.alive()
                    if self.connection.poll():  # a request here is a closed socket: stop
                        raise SystemExit
                stable = [_stable(mine, rule) for mine in samples]
                if all(stable) or time.perf_counter() > end:
                    return list(zip(samples, stable, strict=True))
        finally:
            gc.enable()

    def inspect(self, networks: list[Loaded]) -> dict[str, Any]:
        network = networks[0]
        ports = {side: tuple(map(str, getattr(network, side))) for side in ("inputs", "outputs")}
        return {**network.inspect(), **ports}

    def cost(
        self, key: Key, blob: bytes, threads: int, core: int | None, runs: int
    ) -> dict[str, float]:
        """Time and memory of the first load and run; only of use in a fresh process."""
        home = _home(key)
        home.check(blob)
        self.pin(core)
        _forget_peak()
        idle = _peak_mib()
        start = time.perf_counter_ns()
        network: Loaded = home.load(blob, threads)
        load = time.perf_counter_ns() - start
        loaded = _peak_mib()
        run = network.ready()
        start = time.perf_counter_ns()
        run()
        first = time.perf_counter_ns() - start
        for _ in range(runs - 1):
            self.alive()
            run()
        return {
            "load_ms": load / 1e6, "first_ms": first / 1e6, "idle_mib": idle,
            "loaded_mib": loaded, "peak_mib": _peak_mib(),
        }  # fmt: skip

    def pin(self, core: int | None) -> None:
        """Every thread: a runtime may compute in one of its own."""
        if self.cores:
            tasks = Path("/proc/self/task")
            threads = [int(t.name) for t in tasks.iterdir()] if tasks.is_dir() else [0]
            for thread in threads:
                os.sched_setaffinity(thread, self.cores if core is None else {core})


def _home(key: Key) -> Any:
    name = key[1]
    try:
        return importlib.import_module(f"mobilefit.runtime.{engine(name).home}")
    except ImportError as error:
        runtime_version(name)  # says which extra is missing
        raise InputError(f"{engine(name).label} cannot be loaded: {error}") from error


def _load(key: Key, blob: bytes, threads: int) -> Loaded:
    home = _home(key)
    home.check(blob)
    with _in_words("load", [key]):
        network: Loaded = home.load(blob, threads)
    return network


@contextlib.contextmanager
def _in_words(what: str, keys: Iterable[Key]) -> Iterator[None]:
    """What these files' runtimes raise, as one line."""
    names = sorted({name for _, name in keys})
    kinds = tuple(kind for name in names for kind in _home(("", name)).ERRORS)
    try:
        yield
    except kinds as error:
        # OpenVINO's first lines say where in its own sources it was.
        lines = [x for x in str(error).splitlines() if x.strip() and not x.startswith("Exception ")]
        labels = " or ".join(engine(name).label for name in names)
        raise InputError(
            f"{labels} cannot {what} the model: {lines[0] if lines else type(error).__name__}"
        ) from error


class _Burst:
    """Times a handful of consecutive runs; the first of each burst only refills the caches."""

    SECONDS = 0.02
    MAX_RUNS = 500

    def __init__(
        self, run: Callable[[], object], rule: dict[str, Any], alive: Callable[[], None]
    ) -> None:
        self.run = run
        self.runs = 1
        spent, count = 0.0, 0
        while spent < rule["warmup_seconds"] or count < max(1, rule["warmup_runs"]):
            last = self.once()
            spent, count = spent + last / 1e9, count + 1
            alive()
        self.runs = max(2, min(self.MAX_RUNS, round(self.SECONDS * 1e9 / last)))

    def once(self) -> int:
        start = time.perf_counter_ns()
        self.run()
        return time.perf_counter_ns() - start

    def __call__(self) -> list[float]:
        self.once()
        return [self.once() / 1e6 for _ in range(self.runs)]


def _stable(samples: list[float], rule: dict[str, Any]) -> bool:
    """Is the 95 % confidence interval of the median (by order statistics) narrow enough?

    With n samples, the interval is between the order statistics n/2 -+ 0.98 sqrt(n) (the normal
    approximation of the binomial distribution).
    """
    n = len(samples)
    if n < rule["min_runs"] or sum(samples) < rule["min_seconds"] * 1e3:
        return False
    if n >= rule["max_runs"]:
        return True
    ordered = sorted(samples)
    half = 0.98 * n**0.5
    low, high = ordered[max(0, int(n / 2 - half))], ordered[min(n - 1, int(n / 2 + half) + 1)]
    return bool(high - low <= rule["spread"] * ordered[n // 2])


# ---- memory


def _forget_peak() -> None:
    """Give back what is free, and have the system count the peak from here (Linux, proc(5))."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):  # no glibc, no Linux: the peak stays what it was
        pass


def _peak_mib() -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    found = [line for line in lines if line.startswith("VmHWM:")]
    return int(found[0].split()[1]) / 1024 if found else float("nan")


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _Child(connection).serve()


if __name__ == "__main__":
    main()
