"""Measuring on an Android phone, over adb, with TFLite's ``benchmark_model``.

The protocol of the MobileNetV3 paper (section 6.1.2): one thread on one big core, batch 1. One run of
the tool is a *round*: it times a file in a process of its own and prints statistics, not each run. So
several files take turns in rounds, a round gives one sample, its average (which every version prints,
and finer than the microsecond of the median that newer ones print too), and a latency is the median of
the rounds.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import statistics
import tempfile
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from mobilefit.device import adb, benchmark_model
from mobilefit.device.adb import Adb, Gone
from mobilefit.device.benchmark_model import Report
from mobilefit.device.protocol import Latency, Protocol
from mobilefit.errors import InputError, MobilefitError
from mobilefit.runs import now
from mobilefit.runtime import LITERT, StopRule, TimingSamples

T = TypeVar("T")
TOOL = "benchmark_model"
VARIABLE = "MOBILEFIT_BENCHMARK_MODEL"
THERE = "/data/local/tmp"
"""The phone's folder from which programs may be started."""
DOWNLOAD = (
    "https://storage.googleapis.com/tensorflow-nightly-public/prod/tensorflow/release/lite/tools/"
    "nightly/latest/android_aarch64_benchmark_model"
)
PAPER = StopRule(
    warmup_runs=1, warmup_seconds=0.5, min_runs=50, min_seconds=1.0, max_seconds=10.0, spread=0.02
)
"""The tool's own defaults in a round (50 runs and at least 1 s), but for its limit of 150 s."""
LEAST_WARMUP = 0.2
"""Seconds: each round is a new process, on a core that may have clocked down meanwhile."""
MIN_ROUNDS = 3
FILES_KEPT = 16
RETRIES = 2
WAIT_SECONDS = 60.0
ROUND_SECONDS = 60.0
"""For a round, beyond what its rule allows."""
CPUS = "/sys/devices/system/cpu"
CANNOT_RUN = re.compile(r"not executable|Exec format error|inaccessible or not found")


class RoundSamples(TimingSamples):
    """Milliseconds of each round: the average of its runs.

    Attributes:
        runs: timed runs of all rounds.
        reports: what the tool told of each round.
    """

    def __init__(self, reports: Sequence[Report], *, stable: bool) -> None:
        super().__init__([report.average_ms for report in reports], stable=stable)
        self.reports = tuple(reports)
        self.runs = sum(report.runs for report in reports)


class Phone:
    """A phone that times LiteRT files, in the place of a :class:`mobilefit.runtime.Worker`.

    What it needs there lies in a folder of its own, ``/data/local/tmp/mobilefit-...``, which is removed
    by :meth:`close`, after any error, on Ctrl-C, and when this process ends. A phone that goes away is
    waited for, and what was being measured begins anew. Safe to use from several threads, which then
    take turns.

    Args:
        serial: as ``adb devices`` lists it; ``None``: the only one, or ``ANDROID_SERIAL``'s.
        tool: the ``benchmark_model`` program for Android; ``None``: the one that the environment's
            ``MOBILEFIT_BENCHMARK_MODEL`` names, or else ``/data/local/tmp/benchmark_model`` there.
        say: is told, a line each, what one has to wait for.

    Attributes:
        device_id: what a latency depends on: the phone, its system and the tool.
        runtime: the tool, by its content.
        core: of the fastest, the last.

    Raises:
        InputError: no adb, no such phone, one that cannot be used, or no tool.
    """

    def __init__(
        self, serial: str | None = None, *, tool: Path | None = None,
        say: Callable[[str], object] = lambda line: None,
    ) -> None:  # fmt: skip
        self._say, self._lock = say, threading.RLock()
        self.serial = adb.choose(serial).serial
        self._adb = Adb(self.serial)
        self._folder = f"{THERE}/mobilefit-{secrets.token_hex(4)}"
        self._made: set[str] = set()
        self._files: OrderedDict[str, None] = OrderedDict()
        weakref.finalize(self, _sweep, self._adb, self._made)
        self._tool = _given(tool)
        self._tool_there = f"{self._folder}/{TOOL}" if self._tool else f"{THERE}/{TOOL}"
        name, self.abi = self._description()
        self.frequencies = self._frequencies()
        self.core = max(self.frequencies, key=lambda cpu: (self.frequencies[cpu], cpu))
        self.runtime = f"{TOOL} {self._tool_hash()[:8]}"
        self.device_id = f"{name}, {self.runtime}"

    # ---- timing

    def time_many(
        self, blobs: Sequence[bytes], *, threads: int = 1, core: int | None = None,
        rule: StopRule | None = None, runtimes: Sequence[str] | None = None,
    ) -> list[TimingSamples]:  # fmt: skip
        """Time several files side by side, in rounds, until every median is stable or time is up.

        Args:
            threads: of the interpreter.
            core: pin the runs to this core; only with one thread.
            rule: of each round, but for ``max_seconds``, which also bounds all rounds of a file (three
                at least), and ``spread``, which is that of the rounds; default: the paper's.
            runtimes: of each file; LiteRT alone.

        Raises:
            InputError: a file that the phone cannot run, a tool that is not for it, no space, or a
                phone that went away and did not come back. Nothing is left there, and no part of a
                measurement is returned.
        """
        if any(name != LITERT for name in runtimes or ()):
            raise InputError("a phone runs LiteRT files alone", "choose .tflite files")
        return [*self._measured(blobs, threads, core, rule or PAPER)]

    def measure_many(
        self, blobs: Sequence[bytes], protocol: Protocol | None = None
    ) -> list[Latency]:
        """Measure several files side by side.

        Args:
            protocol: default: the paper's, with one thread on the fastest core.

        Returns:
            p10, median and p90 are those of the rounds' averages; ``runs`` counts the runs of all rounds.
        """
        protocol, core = self._resolved(protocol)
        governor = self._persistently(lambda: self._governor(core))
        measured = self._measured(blobs, protocol.threads, core, protocol.rule)
        conditions: dict[str, Any] = {
            "threads": protocol.threads, "core": core, "device": self.device_id,
            "runtime": self.runtime, "date": now(), "governor": governor,
        }  # fmt: skip
        return [
            replace(Latency.of(found, **conditions), runs=found.runs, rounds=len(found))
            for found in measured
        ]

    def report(
        self, blob: bytes, protocol: Protocol | None = None, *, ops: bool = False
    ) -> Report:
        """All that the tool tells of one round of a file.

        Args:
            protocol: as of :meth:`measure_many`.
            ops: also the time of each operator, which slows the round down a little.
        """
        protocol, core = self._resolved(protocol)
        return self._persistently(
            lambda: self._round(
                self._put([blob])[0], "the file", protocol.threads, core, protocol.rule, ops=ops
            )
        )

    def close(self) -> None:
        """Remove what was copied to the phone; the next call would copy it again."""
        with self._lock:
            self._files.clear()
            _sweep(self._adb, self._made)

    def __enter__(self) -> Phone:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _persistently(self, work: Callable[[], T]) -> T:
        """The work's result; from its beginning again when the phone went away and came back."""
        with self._lock:
            for left in reversed(range(RETRIES + 1)):
                try:
                    return work()
                except Gone as error:
                    self._files.clear()  # a copy may be cut off
                    self._say(f"{error.message}: waiting up to {WAIT_SECONDS:.0f} s for it")
                    if not self._adb.wait(WAIT_SECONDS):
                        raise InputError(
                            f"the phone {self.serial} went away while it measured, and did not come "
                            f"back within {WAIT_SECONDS:.0f} s",
                            "plug it in again and give the same command: a run goes on where it stopped",
                        ) from error
                    if not left:
                        self.close()
                        raise InputError(
                            f"the phone {self.serial} went away {RETRIES + 1} times while it measured "
                            f"({error.message})",
                            "try another cable or port, and keep it awake and charged",
                        ) from error
                except BaseException:
                    self.close()
                    raise
        raise AssertionError("the loop returns or raises")

    def _resolved(self, protocol: Protocol | None) -> tuple[Protocol, int | None]:
        """The protocol, and the core that it means; several threads are not pinned."""
        protocol = protocol or Protocol(rule=PAPER)
        core = protocol.core
        if core is None and protocol.threads == 1:
            core = self.core
        self._check_pin(protocol.threads, core)
        return protocol, core

    def _check_pin(self, threads: int, core: int | None) -> None:
        if core is not None and threads != 1:
            raise InputError(f"{threads} threads cannot be pinned to one core", "use threads=1")
        if core is not None and core not in self.frequencies:
            raise InputError(f"core {core} is not among {sorted(self.frequencies)}")

    def _measured(
        self, blobs: Sequence[bytes], threads: int, core: int | None, rule: StopRule
    ) -> list[RoundSamples]:
        self._check_pin(threads, core)
        return self._persistently(lambda: self._rounds(blobs, threads, core, rule))

    def _rounds(
        self, blobs: Sequence[bytes], threads: int, core: int | None, rule: StopRule
    ) -> list[RoundSamples]:
        files = self._put(blobs)
        reports: list[list[Report]] = [[] for _ in files]
        end = time.monotonic() + rule.max_seconds * len(files)
        while True:
            for number, (file, mine) in enumerate(zip(files, reports, strict=True), 1):
                what = "the file" if len(files) == 1 else f"file {number} of {len(files)}"
                mine.append(self._round(file, what, threads, core, rule))
            stable = [_stable([r.average_ms for r in mine], rule.spread) for mine in reports]
            enough = all(stable) or time.monotonic() > end
            if enough and len(reports[0]) >= MIN_ROUNDS:
                return [RoundSamples(r, stable=s) for r, s in zip(reports, stable, strict=True)]

    def _round(
        self, file: str, what: str, threads: int, core: int | None, rule: StopRule, *,
        ops: bool = False,
    ) -> Report:  # fmt: skip
        pin = "" if core is None else f"taskset {1 << core:x} "
        warmup = max(rule.warmup_seconds, LEAST_WARMUP)
        most = max(rule.max_seconds, warmup)
        flags = {
            "graph": file, "num_threads": threads, "warmup_runs": max(1, rule.warmup_runs),
            "warmup_min_secs": warmup, "num_runs": rule.min_runs, "min_secs": rule.min_seconds,
            "max_secs": most, "use_xnnpack": "true", "enable_op_profiling": str(ops).lower(),
        }  # fmt: skip
        words = " ".join(f"--{name}={value}" for name, value in flags.items())
        # the tool bounds the warm-up and the runs by max_secs each, and ends a run that it began
        answer = self._adb.shell(f"{pin}{self._tool_there} {words}", timeout=ROUND_SECONDS + 3 * most)
        said = benchmark_model.failure(answer.text) or answer.last_line
        if answer.code == 126 and "Permission denied" in answer.text:
            raise InputError(
                f"the phone {self.serial} may not start {self._tool_there}",
                f"adb shell chmod +x {self._tool_there}",
            )
        if CANNOT_RUN.search(answer.text) or answer.code in (126, 127):
            raise InputError(
                f"the phone {self.serial} ({self.abi}) cannot start this {TOOL}: {said}",
                f"get the one for {self.abi}: {DOWNLOAD} is for arm64-v8a",
            )
        if answer.code:
            raise InputError(f"{TOOL} failed on {what} on the phone {self.serial}: {said}")
        try:
            return benchmark_model.parse(answer.text)
        except ValueError as error:
            raise InputError(
                f"{TOOL} printed no timings of {what} on the phone {self.serial}; its last line: {said}",
                "is it TFLite's benchmark_model?",
            ) from error

    # ---- the phone

    def _put(self, blobs: Sequence[bytes]) -> list[str]:
        """The files' paths on the phone; the tool and those that are missing are copied."""
        if not self._files:
            self._made.add(self._folder)
            self._ask(f"mkdir -p {self._folder}")
        if self._tool is not None and TOOL not in self._files:
            self._adb.push(self._tool, self._tool_there, str(self._tool))
            self._ask(f"chmod 755 {self._tool_there}")
            self._files[TOOL] = None
        names = [f"{hashlib.sha256(blob).hexdigest()[:16]}.tflite" for blob in blobs]
        for name, blob in zip(names, blobs, strict=True):
            if name not in self._files:
                self._push_bytes(blob, f"{self._folder}/{name}")
            self._files[name] = None
            self._files.move_to_end(name)
        old = [name for name in self._files if name != TOOL][: -max(FILES_KEPT, len(names))]
        if old:
            self._ask("rm -f " + " ".join(f"{self._folder}/{name}" for name in old))
            for name in old:
                del self._files[name]
        return [f"{self._folder}/{name}" for name in names]

    def _push_bytes(self, blob: bytes, there: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(there).name
            file.write_bytes(blob)
            self._adb.push(file, there, "the model file")

    def _ask(self, command: str) -> str:
        answer = self._adb.shell(command)
        if answer.code:
            raise InputError(f"'{command}' failed on the phone {self.serial}: {answer.last_line}")
        return answer.text

    def _description(self) -> tuple[str, str]:
        """Maker, model, chip and version in a line, and the binary interface."""
        names = ("ro.product.manufacturer", "ro.product.model", "ro.board.platform",
                 "ro.build.version.release", "ro.product.cpu.abi")  # fmt: skip
        lines = self._ask("; ".join(f"getprop {name}" for name in names)).splitlines()
        maker, model, chip, version, abi = (*map(str.strip, lines), *[""] * 5)[:5]
        return f"{maker} {model} ({chip or 'unknown chip'}), Android {version}", abi

    def _frequencies(self) -> dict[int, int]:
        """The highest frequency of each core in kHz; 0 where the phone does not tell it."""
        files = f"{CPUS}/cpu[0-9]*/cpufreq/cpuinfo_max_freq"
        text = self._adb.shell(f'for f in {files}; do echo "$f $(cat $f)"; done').text
        found = re.findall(r"/cpu(\d+)/cpufreq/cpuinfo_max_freq (\d+)", text)
        if found:
            return {int(cpu): int(khz) for cpu, khz in found}
        last = re.search(r"(\d+)\s*$", self._ask(f"cat {CPUS}/present"))  # "0-7"
        return dict.fromkeys(range(int(last[1]) + 1), 0) if last else {0: 0}

    def _governor(self, core: int | None) -> str | None:
        """Of a core's frequency; ``None`` where the phone does not tell it."""
        answer = self._adb.shell(f"cat {CPUS}/cpu{core or 0}/cpufreq/scaling_governor")
        return answer.last_line if answer.code == 0 else None

    def _tool_hash(self) -> str:
        if self._tool is not None:
            return hashlib.sha256(self._tool.read_bytes()).hexdigest()
        answer = self._adb.shell(f"sha256sum {self._tool_there}")
        found = re.match(r"[0-9a-f]{64}\b", answer.text.strip())
        if answer.code or found is None:
            raise InputError(
                f"there is no {TOOL} for the phone {self.serial}: none was given, and "
                f"{self._tool_there} cannot be read there ({answer.last_line})",
                f"download {DOWNLOAD} and name it with --benchmark-model or {VARIABLE}",
            )
        return found[0]


def _given(tool: Path | None) -> Path | None:
    """The user's tool; ``None`` where none is named."""
    named = tool or os.environ.get(VARIABLE)
    if not named:
        return None
    file = Path(named)
    try:
        with file.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}", f"download {DOWNLOAD}") from error
    if magic != b"\x7fELF":
        raise InputError(
            f"{file} is not a program for Android",
            f"download the command-line program, not the app (.apk): {DOWNLOAD}",
        )
    return file


def _stable(averages: Sequence[float], spread: float) -> bool:
    """Is the 95 % confidence interval of the rounds' median (by order statistics) narrow enough?

    For fewer than six rounds it is all of them.
    """
    n, ordered = len(averages), sorted(averages)
    half = 0.98 * n**0.5
    low, high = ordered[max(0, int(n / 2 - half))], ordered[min(n - 1, int(n / 2 + half))]
    return high - low <= spread * statistics.median(ordered)


def _sweep(phone: Adb, made: set[str]) -> None:
    """Remove our folders; those of a phone that is away stay."""
    for folder in tuple(made):
        with contextlib.suppress(MobilefitError):
            phone.shell(f"rm -rf {folder}", timeout=10)
            made.discard(folder)
