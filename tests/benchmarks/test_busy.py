"""The benchmark of training beside other work, without the training."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import busy
from mobilefit.cores import usage


class Training:
    """In the place of a training; adapts at its second step."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.threads, self.steps = seconds, 2, 0

    def step(self) -> None:
        time.sleep(self.seconds)
        self.steps += 1
        self.threads = 1 if self.steps % 10 else 2


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "WARM_UP_SECONDS", 0.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("processes", [0, 1])
def test_both_are_measured_in_turns(processes: int) -> None:
    trainings = {busy.FIXED: Training(0.08), busy.ADAPTIVE: Training(0.02)}
    load = replace(busy.LOADS[0], processes=processes)
    row = busy.measure(load, trainings, 3, 0.15)  # type: ignore[arg-type]
    assert row["adaptive_by_fixed"] > 1.5
    assert row["rates"][busy.ADAPTIVE] > row["rates"][busy.FIXED] > 0
    if processes:
        assert row["reaction_s"] > 0 and row["recovery_s"] > 0
    else:
        assert row["reaction_s"] is None and row["recovery_s"] is None


def test_one_step_is_taken_however_long() -> None:
    piece = busy.train(Training(0.05), 0.0)  # type: ignore[arg-type]
    assert piece.images == busy.BATCH and piece.seconds >= 0.05 and piece.rate == busy.BATCH / piece.seconds


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system counts no ticks")
def test_the_processes_take_cores_and_end() -> None:
    with busy.busy_processes(2):
        sample = usage(0.4)
        assert sample is not None and sample.others > 0.3


def test_the_page_says_what_is_reached() -> None:
    rows = [
        {"load": load.name, "processes": load.processes, "target": load.target, "adaptive_by_fixed": ratio,
         "rates": {busy.FIXED: fixed, busy.ADAPTIVE: adaptive}, "reaction_s": reaction, "recovery_s": None}
        for load, fixed, adaptive, ratio, reaction in zip(
            busy.LOADS, (400.0, 110.0, 3.0), (396.0, 170.0, 92.0), (0.99, 1.6, 30.0), (None, 1.25, 11.0), strict=True
        )
    ]  # fmt: skip
    busy.judge(rows)
    assert [row["met"] for row in rows] == [True, False, True]
    machine = {"cpu": "CPU", "cores": 2, "date": "now", "packages": {"torch": "9"}}
    text = busy.table(rows, {"protocol": "turns", "machine": machine}, "1 of 2 cores is busy")
    assert "| quiet | 400 | 396 | 1.00 | 0.99 | 0.99 | adaptive / fixed at least 0.98 | yes |  |  |" in text
    assert "| one busy process | 110 | 170 | 0.28 | 0.42 | 1.60 | adaptive / quiet at least 0.45 | **no** | 1.2 |  |" in text
    assert "| three busy processes | 3 | 92 | 0.01 | 0.23 | 30.00 | adaptive / quiet at least 0.2 | yes | 11.0 |  |" in text
    assert "Not a quiet machine at the start: 1 of 2 cores is busy" in text


def test_a_number_of_threads_that_is_set_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(SystemExit) as stopped:
        busy.main([])
    assert stopped.value.code == 2 and "OMP_NUM_THREADS is set" in capsys.readouterr().err
