"""Latency of files, side by side."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mobilefit import device
from mobilefit.device import Latency, Phone, Protocol, android, busy
from mobilefit.device.host import chosen_core
from mobilefit.device.profile import OpTime, profile
from mobilefit.device.target import HOST
from mobilefit.errors import InputError, naming
from mobilefit.jobs.lab import check_positive
from mobilefit.jobs.model import read_file
from mobilefit.jobs.options import device_option, option, tool_option
from mobilefit.progress import Voice
from mobilefit.report import bench as report
from mobilefit.runs import machine, write_atomic, write_json
from mobilefit.runtime import ENGINES, LITERT, Cost, Inspection, StopRule, check_pin, cost, engine

LONGEST_SECONDS = 150.0
"""Of a file whose number of runs is given: benchmark_model's default of --max_secs."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Options of ``mobilefit bench``; the five named as TFLite's ``benchmark_model`` mean the same."""

    files: tuple[Path, ...] = option(help=".tflite and .onnx files", argument=True)
    runtimes: str | None = option(
        None, help="which of litert,onnxruntime,openvino run the files, each what it reads "
        "(default: litert and onnxruntime)",
    )  # fmt: skip
    num_threads: int = option(1, help="of the runtime; one is pinned to a core")
    warmup_runs: int | None = option(None, help="untimed runs first, at least (default: 3)")
    num_runs: int | None = option(
        None, help="timed runs, at least (default: 20); more are made until the median is settled"
    )
    max_secs: float | None = option(
        None, help="time limit of each file (default: 5, or 150 with --num-runs)"
    )
    enable_op_profiling: bool = option(False, help="also the time of each operator of .tflite files")
    core: int | None = option(None, help="which core (default: the last one; a phone's fastest)")
    device: str = device_option()
    benchmark_model: Path | None = tool_option()
    strict: bool = option(False, help="refuse to measure while others use the core")
    compare: Path | None = option(None, help="an earlier --csv to compare with")
    csv: Path | None = option(None, help="write the figures to this file")
    json: Path | None = option(None, help="write figures, protocol and machine to this file")
    plot: Path | None = option(None, help="draw the figures into this .svg or .png")

    @property
    def protocol(self) -> Protocol:
        """Threads, core and stop rule."""
        rule = StopRule() if self.device == HOST else android.PAPER
        given: dict[str, Any] = {
            "warmup_runs": self.warmup_runs, "min_runs": self.num_runs,
            "max_runs": self.num_runs and max(self.num_runs, rule.max_runs),
            "max_seconds": self.max_secs or (self.num_runs and LONGEST_SECONDS),
        }  # fmt: skip
        changed = {name: value for name, value in given.items() if value is not None}
        return Protocol(threads=self.num_threads, core=self.core, rule=replace(rule, **changed))


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """A file in the hands of one runtime."""

    path: Path
    blob: bytes
    runtime: str
    inspection: Inspection
    cost: Cost


def bench(config: BenchConfig) -> list[Latency]:
    """Measure files in turns, so that their ratios can be trusted, and print a table.

    The result has a latency for each row of the table: a file by each runtime that reads it.

    Raises:
        InputError: a file that is missing, damaged or does not load; a runtime that is not installed;
            a busy machine with ``strict``.
    """
    _check(config)
    voice = Voice()
    earlier = None if config.compare is None else report.read_csv(config.compare)
    with device.opened(config.device, tool=config.benchmark_model, say=voice) as phone:
        subjects = _subjects(config) if phone is None else _on_phone(config, phone)
        for note in dict.fromkeys(note for subject in subjects for note in _notes(subject)):
            voice(note)
        blobs = [s.blob for s in subjects]
        if phone is None:
            _watch(config, voice)
            runtimes = [s.runtime for s in subjects]
            found = device.measure_many(blobs, config.protocol, runtimes=runtimes)
        else:
            found = phone.measure_many(blobs, config.protocol)
        rows = [_row(s, latency, found[0]) for s, latency in zip(subjects, found, strict=True)]
        print(report.table(rows))
        if earlier is not None and config.compare is not None:
            print("", *report.change_lines(report.changes(rows, earlier), config.compare), sep="\n")
        _write(config, rows, {})
        if config.enable_op_profiling:
            _write(config, rows, _profiles(config, subjects, phone))
    return found


def _check(config: BenchConfig) -> None:
    check_positive(
        num_threads=config.num_threads, num_runs=config.num_runs, max_secs=config.max_secs
    )
    if config.warmup_runs is not None and config.warmup_runs < 0:
        raise InputError(f"--warmup-runs is {config.warmup_runs}, must be 0 or more")
    device.check_target(config.device, config.benchmark_model)
    if config.device == HOST:
        check_pin(config.num_threads, config.core)
    elif config.strict or config.runtimes not in (None, LITERT):
        raise InputError("--strict and --runtimes are of this machine", f"leave out --device {config.device}")
    if config.plot is not None and config.plot.suffix not in report.FIGURES:
        raise InputError(f"--plot {config.plot} is no picture", "name it .svg or .png")


def _subjects(config: BenchConfig) -> list[_Subject]:
    """Every file with every runtime that is to run it; each is tried in a process of its own."""
    chosen = [LITERT, "onnxruntime"]
    if config.runtimes is not None:
        chosen = list(dict.fromkeys(name.strip() for name in config.runtimes.split(",")))
    readers = {name: engine(name).suffix for name in chosen}
    subjects, core = [], chosen_core(config.protocol)
    for path in config.files:
        blob, kind = read_file(path), ".onnx" if path.suffix == ".onnx" else ".tflite"
        names = [name for name, suffix in readers.items() if suffix == kind]
        if not names:
            others = " or ".join(name for name, e in ENGINES.items() if e.suffix == kind)
            raise InputError(f"{path}: --runtimes {config.runtimes} do not read it", f"add {others}")
        for name in names:
            with naming(path):
                inspection = device.shared_worker().inspect(blob, runtime=name)
                costs = cost(blob, runtime=name, threads=config.num_threads, core=core)
            subjects.append(_Subject(path=path, blob=blob, runtime=name, inspection=inspection, cost=costs))
    return subjects


def _on_phone(config: BenchConfig, phone: Phone) -> list[_Subject]:
    """Every file, with what it costs there besides its runs."""
    subjects = []
    for path in config.files:
        if path.suffix == ".onnx":
            raise InputError(f"{path}: a phone runs .tflite files alone", "leave it out")
        blob = read_file(path)
        with naming(path):
            inspection = device.shared_worker().inspect(blob)
            told = phone.report(blob, config.protocol)
        costs = Cost(
            load_ms=_known(told.init_ms), first_ms=_known(told.first_ms), idle_mib=0.0,
            loaded_mib=math.nan, peak_mib=_known(told.memory_mib),
        )  # fmt: skip
        if told.partitions is not None:
            inspection = replace(inspection, partitions=told.partitions)
        subjects.append(
            _Subject(path=path, blob=blob, runtime=LITERT, inspection=inspection, cost=costs)
        )
    return subjects


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def _notes(subject: _Subject) -> list[str]:
    """What is unlike a network that takes one image."""
    ports, notes = subject.inspection.inputs, []
    if len(ports) != 1:
        notes.append(f"{subject.path}: takes {len(ports)} inputs ({', '.join(ports)}); each is given "
                     "fixed values")  # fmt: skip
    if any("?" in port for port in ports):
        notes.append(f"{subject.path}: leaves lengths open ({', '.join(p for p in ports if '?' in p)}); "
                     "timed with 1 there")  # fmt: skip
    return notes


def _watch(config: BenchConfig, voice: Voice) -> None:
    """See whether others use the core.

    Raises:
        InputError: they do, and the measurement is to be strict.
    """
    core = chosen_core(config.protocol)
    load = busy.recent(core)
    if not load.busy:
        return
    where = "the cores" if core is None else f"core {core}"
    said = f"the machine is busy: others take {load.others:.0%} of {where}"
    if config.strict:
        raise InputError(said, "end them or measure without --strict")
    voice(f"warning: {said}, the figures may be too high")


def _row(subject: _Subject, latency: Latency, first: Latency) -> dict[str, Any]:
    costs = subject.cost
    return {
        "file": str(subject.path), "runtime": subject.runtime,
        "median_ms": round(latency.median_ms, 5), "p10_ms": round(latency.p10_ms, 5),
        "p90_ms": round(latency.p90_ms, 5), "ratio": round(latency.median_ms / first.median_ms, 4),
        "runs": latency.runs, "stable": latency.stable,
        "partitions": subject.inspection.partitions if subject.runtime == LITERT else None,
        "load_ms": _rounded(costs.load_ms, 2), "first_ms": _rounded(costs.first_ms, 3),
        "memory_mib": _rounded(costs.memory_mib, 2), "bytes": len(subject.blob), "threads": latency.threads,
        "core": latency.core, "device": latency.device, "version": latency.runtime,
        "busy": latency.busy, "others": latency.others, "governor": latency.governor,
        "date": latency.date,
    }  # fmt: skip


def _rounded(value: float, digits: int) -> float | None:
    return None if math.isnan(value) else round(value, digits)


def _profiles(
    config: BenchConfig, subjects: Sequence[_Subject], phone: Phone | None
) -> dict[str, list[OpTime]]:
    """Profile the LiteRT files, and print each."""
    found = {}
    for subject in subjects:
        if subject.runtime != LITERT:
            continue
        with naming(subject.path):
            if phone is None:
                label = f"profile of {subject.path.name}"
                times = profile(subject.blob, config.protocol, label=label)
            else:
                times = _profile_there(subject.blob, config.protocol, phone)
        if not times:
            raise InputError(f"{subject.path}: benchmark_model told no times of operators")
        found[str(subject.path)] = times
        print(f"\n{subject.path}: {_PROFILE if phone is None else _PROFILE_THERE}")
        print(report.profile_table([dataclasses.asdict(t) for t in times]))
    if not found:
        Voice()("no profile: operators are timed in .tflite files alone")
    return found


def _profile_there(blob: bytes, protocol: Protocol, phone: Phone) -> list[OpTime]:
    rounds = [phone.report(blob, protocol, ops=True).ops for _ in range(android.MIN_ROUNDS)]
    return [OpTime.of(same[0].kind, same[0].name, [op.ms for op in same]) for same in zip(*rounds)]


_PROFILE_THERE = "as benchmark_model on the phone tells it; median, least and most of the rounds"
_PROFILE = ("what each operator adds in its place, by differences of files cut behind it; "
            "median, least and most of the rounds; the first holds the empty call")  # fmt: skip


def _write(
    config: BenchConfig, rows: Sequence[dict[str, Any]], profiles: dict[str, list[OpTime]]
) -> None:
    if config.csv is not None:
        write_atomic(config.csv, report.csv_text(rows))
    if config.plot is not None:
        write_atomic(config.plot, report.figure(rows, config.plot.suffix))
    if config.json is not None:
        told = {file: [dataclasses.asdict(t) for t in times] for file, times in profiles.items()}
        write_json(config.json, {
            "verb": "bench", "machine": machine(), "protocol": dataclasses.asdict(config.protocol),
            "rows": list(rows), "profiles": told,
        })  # fmt: skip
