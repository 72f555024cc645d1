"""What else the machine does, read from a made-up /proc and /sys."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mobilefit.device import busy

Machine = Callable[..., None]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine whose ``/proc/stat`` changes while one waits."""
    monkeypatch.setattr(busy, "ROOT", tmp_path)
    monkeypatch.setattr(busy, "_looks", {})
    monkeypatch.setattr(busy, "available_cores", lambda: {0, 1})

    def make(after: dict[int, str], siblings: str = "", governor: str = "") -> None:
        write(tmp_path / "proc/stat", dict.fromkeys(after, "100 0 100 800 0 0 0 0 0 0"))
        write_text(tmp_path / "proc/loadavg", "1.25 0.50 0.25 1/100 4242\n")
        for core in after:
            folder = tmp_path / f"sys/devices/system/cpu/cpu{core}"
            if siblings:
                write_text(folder / "topology/thread_siblings_list", siblings + "\n")
            if governor:
                write_text(folder / "cpufreq/scaling_governor", governor + "\n")
        # A module of its own: other threads of this process may sleep too.
        waiting = SimpleNamespace(sleep=lambda _: write(tmp_path / "proc/stat", after), monotonic=time.monotonic)
        monkeypatch.setattr(busy, "time", waiting)

    return make


def write(path: Path, cores: dict[int, str]) -> None:
    lines = ["cpu  9 9 9 9", *(f"cpu{n} {numbers}" for n, numbers in cores.items()), "intr 5"]
    write_text(path, "\n".join(lines))


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


IDLE = "100 0 100 900 0 0 0 0 0 0"


@pytest.mark.parametrize(
    "after, share",
    [
        ("100 0 100 900 0 0 0 0 0 0", 0.0),
        ("100 0 100 800 100 0 0 0 0 0", 0.0),  # waiting for a disk
        ("130 0 110 860 0 0 0 0 0 0", 0.4),
        ("100 0 100 850 0 0 0 50 0 0", 0.5),  # stolen by another machine
        ("150 0 100 850 0 0 0 0 50 0", 0.5),  # a guest's time is counted in the first number
    ],
)
def test_the_share_by_hand(machine: Machine, after: str, share: float) -> None:
    machine({0: IDLE, 1: after})
    load = busy.look(1)
    assert load == busy.Load(others=share, loadavg=1.25, governor=None)
    assert load.busy == (share > busy.BUSY)
    assert busy.look(0).others == 0


@pytest.mark.parametrize("siblings", ["0,2", "0-2", "2,0"])
def test_a_busy_sibling_counts(machine: Machine, siblings: str) -> None:
    machine({0: IDLE, 1: IDLE, 2: "180 0 100 820 0 0 0 0 0 0"}, siblings=siblings)
    assert busy.look(0).others == 0.8
    machine({0: IDLE, 1: IDLE, 2: "180 0 100 820 0 0 0 0 0 0"}, siblings="0")
    assert busy.look(0).others == 0


def test_several_threads_look_at_all_cores_that_they_may_use(machine: Machine) -> None:
    machine({0: IDLE, 1: "150 0 100 850 0 0 0 0 0 0", 2: "200 0 100 800 0 0 0 0 0 0"})
    assert busy.look(None).others == 0.25


def test_the_governor_is_told(machine: Machine) -> None:
    machine({0: IDLE, 1: IDLE}, governor="powersave")
    assert busy.look(1).governor == busy.look(None).governor == "powersave"


def test_a_system_that_tells_nothing_is_not_called_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(busy, "ROOT", tmp_path)
    load = busy.look(0, seconds=0)
    assert load == busy.Load(others=None, loadavg=None, governor=None) and not load.busy


def test_a_look_is_taken_again_when_it_is_old(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(busy.time, "monotonic", lambda: now[0])
    machine({0: IDLE, 1: "150 0 100 850 0 0 0 0 0 0"})
    assert busy.recent(1).others == 0.5
    machine({0: IDLE, 1: IDLE})
    now[0] += busy.FRESH_SECONDS - 0.1
    assert busy.recent(1).others == 0.5 and busy.recent(0).others == 0
    now[0] += 0.2
    assert busy.recent(1).others == 0
