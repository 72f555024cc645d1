"""How much of the cores others take, from a made-up ``/proc/stat``."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mobilefit import cores
from mobilefit.cores import CoreMeter, CoreUsage, recent_usage, usage

START = {0: "100 0 100 800 0 0 0 0 0 0", 1: "100 0 100 800 0 0 0 0 0 0"}


class Machine:
    """Two cores; the clock stands still but for :meth:`pass_second`."""

    def __init__(self, root: Path) -> None:
        self.root, self.clock, self.own, self.samples = root, 0.0, 0.0, 0
        self.after: tuple[dict[int, str], float] = (START, 0.0)
        self.write(START)

    def write(self, lines: dict[int, str]) -> None:
        (self.root / "proc").mkdir(exist_ok=True)
        total = "cpu  9 9 9 9"
        text = "\n".join([total, *(f"cpu{core} {numbers}" for core, numbers in lines.items()), "intr 5", ""])
        (self.root / "proc/stat").write_text(text)

    def pass_second(self, lines: dict[int, str], own: float = 0.0) -> None:
        """A second passes, in which this process computes for ``own`` seconds."""
        self.write(lines)
        self.clock, self.own = self.clock + 1.0, self.own + own

    def sleep(self, _: float) -> None:
        self.samples += 1
        self.pass_second(*self.after)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    simulated = Machine(tmp_path)
    clock = SimpleNamespace(
        sleep=simulated.sleep, perf_counter=lambda: simulated.clock, process_time=lambda: simulated.own,
        monotonic=lambda: simulated.clock,
    )  # fmt: skip
    monkeypatch.setattr(cores, "ROOT", tmp_path)
    monkeypatch.setattr(cores, "time", clock)
    monkeypatch.setattr(cores, "_samples", [])
    monkeypatch.setattr(cores, "available_cores", lambda: {0, 1})
    return simulated


IDLE = "100 0 100 900 0 0 0 0 0 0"
FULL = "150 0 150 800 0 0 0 0 0 0"


@pytest.mark.parametrize(
    ("lines", "own", "others"),
    [
        ({0: IDLE, 1: IDLE}, 0.0, 0.0),
        ({0: FULL, 1: IDLE}, 0.0, 1.0),
        ({0: FULL, 1: FULL}, 0.0, 2.0),
        ({0: FULL, 1: FULL}, 2.0, 0.0),  # all of it is this process's own
        ({0: FULL, 1: FULL}, 1.25, 0.75),
        ({0: FULL, 1: IDLE}, 1.5, 0.0),  # ticks are counted coarsely: never below 0
        ({0: "100 0 100 850 50 0 0 0 0 0", 1: IDLE}, 0.0, 0.0),  # waiting for a disk
        ({0: "100 0 100 850 0 0 0 50 0 0", 1: IDLE}, 0.0, 0.5),  # stolen by another machine
        ({0: "100 100 100 800 0 0 0 0 0 0", 1: IDLE}, 0.0, 1.0),  # a nice process
    ],
)
def test_others_are_what_this_process_did_not_use(
    machine: Machine, lines: dict[int, str], own: float, others: float
) -> None:
    meter = CoreMeter()
    machine.pass_second(lines, own)
    assert meter.read() == CoreUsage(cores=2, others=others)


def test_each_reading_is_of_the_time_since_the_last(machine: Machine) -> None:
    meter = CoreMeter()
    machine.pass_second({0: FULL, 1: IDLE})
    assert meter.read() == CoreUsage(cores=2, others=1.0)
    machine.pass_second({0: "150 0 150 900 0 0 0 0 0 0", 1: "100 0 100 1000 0 0 0 0 0 0"})
    assert meter.read() == CoreUsage(cores=2, others=0.0)
    assert meter.read() is None  # no tick since


def test_only_the_cores_that_may_be_used_count(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: {1})
    meter = CoreMeter()
    machine.pass_second({0: FULL, 1: "125 0 100 875 0 0 0 0 0 0"})
    assert meter.read() == CoreUsage(cores=1, others=0.25)


def test_a_sample_is_taken_again_when_it_is_old(machine: Machine) -> None:
    machine.after = ({0: FULL, 1: IDLE}, 0.0)
    assert recent_usage() == recent_usage() == CoreUsage(cores=2, others=1.0)
    assert machine.samples == 1
    machine.clock += cores.FRESH_SECONDS + 0.1
    machine.after = ({0: "150 0 150 900 0 0 0 0 0 0", 1: "100 0 100 1000 0 0 0 0 0 0"}, 0.0)
    assert recent_usage() == CoreUsage(cores=2, others=0.0) and machine.samples == 2


def test_elsewhere_the_load_average_stands_in(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "proc/stat").unlink()
    machine.write = lambda lines: None  # type: ignore[method-assign]
    monkeypatch.setattr(os, "getloadavg", lambda: (1.4, 9.0, 9.0))
    assert usage() == CoreUsage(cores=2, others=1.4, source="loadavg")
    monkeypatch.setattr(os, "getloadavg", lambda: (7.0, 9.0, 9.0))
    assert usage() == CoreUsage(cores=2, others=2.0, source="loadavg")
    assert CoreMeter().read() is None
    monkeypatch.delattr(os, "getloadavg")
    assert usage() is None


@pytest.mark.parametrize(
    ("total", "others", "message"),
    [
        (2, 0.0, None),
        (2, 0.49, None),
        (2, 0.5, "1 of 2 cores is busy with other work: training will be slower"),
        (2, 1.3, "1 of 2 cores is busy with other work: training will be slower"),
        (2, 2.0, "2 of 2 cores are busy with other work: training will be slower"),
        (16, 5.2, "5 of 16 cores are busy with other work: training will be slower"),
    ],
)
def test_the_message(total: int, others: float, message: str | None) -> None:
    assert CoreUsage(cores=total, others=others).message == message


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system counts no ticks")
def test_a_process_that_computes_is_seen_and_the_own_one_is_not() -> None:
    with subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        sample = usage(0.4)
        busy.kill()
    assert sample is not None and sample.cores == len(os.sched_getaffinity(0)) and sample.others > 0.2
    meter = CoreMeter()
    own = cores.time.process_time()
    for _ in itertools.count():
        if cores.time.process_time() - own > 0.4:
            break
    reading = meter.read()
    assert reading is not None and reading.others < reading.cores  # what others do at the time is not known
