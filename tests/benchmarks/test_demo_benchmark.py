"""The benchmark of the demo, with another command in its place."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import demo
from benchmarks.common import ROOT
from mobilefit.cli import main as mobilefit
from mobilefit.runs import read_jsonl

RECORD: dict[str, Any] = {
    "budget_ms": 0.06, "plan": {"epochs": 3.5},
    "final": {"label": "small 40 px", "accuracy_int8": 0.9, "latency": {"median_ms": 0.07}, "judged_ms": 0.058},
    "verdict": {
        "kind": "resolution", "label": "small 40 px", "left_out": [],
        "against": [{"kind": "width", "label": "small_0.7", "points": 0.5, "error": 0.2, "seeds": 1}],
    },
}  # fmt: skip
MACHINE = {"protocol": "as is", "machine": {"cpu": "CPU", "cores": 2, "date": "now"}}


def test_the_command_is_the_makefiles(capsys: pytest.CaptureFixture[str]) -> None:
    words = demo.demo_command((ROOT / "Makefile").read_text(), Path("a folder/run"), minutes=0.5)
    assert words[:2] == ["design", "fashion-mnist"] and words[-2:] == ["--out", "a folder/run"]
    assert words[words.index("--minutes") + 1] == "0.5"
    assert mobilefit([*words, "--latency", "2 parsecs"]) == 2  # every word but the last is understood
    assert "parsecs" in capsys.readouterr().err


def script(tmp_path: Path, record: dict[str, Any] | None, status: int) -> list[str]:
    """Leaves a record where the demo does, and ends with a status."""
    lines = ["import json, pathlib, sys", f"out = pathlib.Path({str(tmp_path / 'run')!r})", "out.mkdir()"]
    lines += [] if record is None else [f"(out / 'record.json').write_text({json.dumps(record)!r})"]
    return ["-c", "\n".join([*lines, "print('mobilefit: the reason', file=sys.stderr)", f"sys.exit({status})"])]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What is run in the place of ``python -m mobilefit``, and with which words."""
    given: list[list[str]] = []
    run = demo.subprocess.run

    def instead(command: list[str], **options: Any) -> Any:
        given.append(command)
        return run([sys.executable, *command[3:-2]], **options)

    monkeypatch.setattr(demo.subprocess, "run", instead)
    return given


@pytest.mark.parametrize(("record", "status"), [(RECORD, 0), (RECORD, 3), (None, 2)])
def test_a_run_and_what_came_of_it(
    record: dict[str, Any] | None, status: int, tmp_path: Path, commands: list[list[str]]
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "stale").touch()  # of a run that was interrupted
    row = demo.run_once([*script(tmp_path, record, status), "--minutes", "12"], out, 0)
    assert commands[0][1:3] == ["-m", "mobilefit"]
    assert (row["status"], row["promised"]) == (status, 12.0) and 0 <= row["minutes"] < 1
    assert row["error"] == ("mobilefit: the reason" if status else None)
    assert not (out / "stale").exists()
    if record is None:
        assert "network" not in row
    else:
        assert (row["network"], row["judged_ms"], row["budget_ms"]) == ("small 40 px", 0.058, 0.06)


def row(**changes: Any) -> dict[str, Any]:
    return {
        "busy": 0, "run": 1, "status": 0, "minutes": 12.0, "promised": 12.0, "error": None, **demo.outcome(RECORD), **changes
    }  # fmt: skip


@pytest.mark.parametrize(("minutes", "kept"), [(9.5, False), (9.7, True), (14.3, True), (14.5, False), (15.1, False)])
def test_a_promise_is_kept_within_a_fifth(minutes: float, kept: bool) -> None:
    assert demo.kept_time(row(minutes=minutes)) is kept


def test_the_clock_has_the_last_word() -> None:
    assert not demo.kept_time(row(minutes=15.1, promised=15.0))


def test_behind_is_by_more_than_the_error() -> None:
    def against(points: float) -> dict[str, Any]:
        return row(against=[{"kind": "width", "points": points, "error": 0.2}])

    assert demo.behind(against(-0.3)) == ["width"]
    assert demo.behind(against(-0.1)) == demo.behind(against(0.3)) == []


def test_the_page_counts_what_is_as_it_should_be() -> None:
    failed = {"busy": 0, "run": 2, "status": 2, "minutes": 0.1, "promised": 12.0, "error": "no disk"}
    text = demo.table([row(), failed, row(busy=1, left_out=["width"], against=[], is_by_hand="candidate")], MACHINE)
    assert "| 1 | 0 | 12.0 | small 40 px | 3.5 | 90.00% | 0.0580 / 0.0600 | exported | +0.50 ± 0.20 |" in text
    assert "| 2 | 2 | 0.1 | no disk |" in text
    assert "- status 0: 1 of 2" in text and "- behind neither by more than the error: 1 of 2" in text
    assert text.count("no time") == 1 and "## Beside 1 busy processes" in text


def test_runs_that_have_a_row_are_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, int]] = []

    def run_once(words: list[str], out: Path, busy: int) -> dict[str, Any]:
        done.append((out.name, busy))
        if len(done) == 3:
            raise KeyboardInterrupt
        return {key: value for key, value in row().items() if key not in ("busy", "run")}

    monkeypatch.setattr(demo, "run_once", run_once)
    words = ["--count", "2", "--out", str(tmp_path), "--runs", str(tmp_path / "runs")]
    demo.main(words)
    with pytest.raises(KeyboardInterrupt):
        demo.main([*words, "--busy", "1"])
    demo.main([*words, "--busy", "1"])
    assert done == [("busy-0-1", 0), ("busy-0-2", 0), ("busy-1-1", 1), ("busy-1-1", 1), ("busy-1-2", 1)]
    assert [(r["busy"], r["run"]) for r in read_jsonl(tmp_path / "demo.jsonl")] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert (tmp_path / "demo.md").read_text().count("| 12.0 |") == 4
