"""Budgets, and the folder of a run."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mobilefit.commands.design import DesignConfig
from mobilefit.errors import InputError
from mobilefit.jobs.folder import RunFolder, command
from mobilefit.jobs.info import InfoConfig
from mobilefit.jobs.options import Budget, option, parse_budget
from mobilefit.jobs.predict import PredictConfig
from mobilefit.jobs.train import TrainConfig

# ---- budgets


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2ms", Budget(milliseconds=2.0)),
        ("2 ms", Budget(milliseconds=2.0)),
        (" .5ms ", Budget(milliseconds=0.5)),
        ("2.ms", Budget(milliseconds=2.0)),
        ("850us", Budget(milliseconds=0.85)),
        ("850µs", Budget(milliseconds=0.85)),
        ("0.01s", Budget(milliseconds=10.0)),
        ("70%", Budget(fraction=0.7)),
        ("12.5 %", Budget(fraction=0.125)),
        ("100%", Budget(fraction=1.0)),
    ],
)
def test_a_budget(text: str, expected: Budget) -> None:
    found = parse_budget(text)
    assert found.milliseconds == pytest.approx(expected.milliseconds)
    assert found.fraction == pytest.approx(expected.fraction)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("2", "has no unit"), ("2 parsecs", "unknown unit 'parsecs'"), ("2MS", "unit 'MS'"),
        ("-1ms", "not a latency"), ("0ms", "not a latency"), ("0%", "not a latency"),
        ("0.0s", "not a latency"), ("", "not a latency"), ("ms", "not a latency"),
        ("nan ms", "not a latency"), ("infms", "not a latency"), ("1e3ms", "unit 'e3ms'"),
        ("2 m s", "not a latency"), ("2ms70%", "unit 'ms70%'"), ("1,5ms", "unit ',5ms'"),
    ],
)  # fmt: skip
def test_no_budget(text: str, part: str) -> None:
    with pytest.raises(InputError, match="--latency") as caught:
        parse_budget(text)
    assert part in caught.value.message and caught.value.hint


def test_a_budget_of_a_seed() -> None:
    assert Budget(milliseconds=2.0).of(9.0) == 2.0
    assert Budget(fraction=0.5).of(9.0) == 4.5


# ---- the command that a configuration is


@pytest.mark.parametrize(
    ("config", "verb", "expected"),
    [
        (InfoConfig(model="mobilenet_v2"), "info", "mobilefit info mobilenet_v2"),
        (InfoConfig(model="a b.json", width=0.5, json=True), "info",
         "mobilefit info 'a b.json' --width 0.5 --json"),
        (PredictConfig(file=Path("m.tflite"), images=(Path("a b.png"), Path("c"))), "predict",
         "mobilefit predict m.tflite 'a b.png' c"),
        (DesignConfig(data="d", latency="70%", seed_network="x.json", out=Path("o")), "design",
         "mobilefit design d --latency 70% --seed-network x.json --out o"),
        (TrainConfig(data="d", steps=5, checkpoint_every=2, seed=0), "train",
         "mobilefit train d --steps 5 --checkpoint-every 2"),
    ],
)  # fmt: skip
def test_a_command(config: object, verb: str, expected: str) -> None:
    assert command(verb, config) == expected
    assert shlex.split(expected)[:2] == ["mobilefit", verb]


# ---- the folder


@dataclass(frozen=True, kw_only=True)
class Config:
    data: str = option(help="images", argument=True)
    rate: float = option(0.1, help="rate")
    out: Path = option(Path("x"), help="folder")
    resume: bool = option(False, help="go on")
    quiet: bool = option(False, help="say nothing")


def test_a_stage_is_done_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def work() -> list[int]:
        calls.append(1)
        return [3]

    for _ in range(2):
        folder = RunFolder(tmp_path / "a" / "run", "demo", Config(data="d"))
        assert folder.stage("one", work) == [3]
        assert not folder.finished
    assert calls == [1]
    assert json.loads((folder.path / "state.json").read_text())["one"] == [3]


def test_a_stage_that_fails_is_done_again(tmp_path: Path) -> None:
    def fail() -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RunFolder(tmp_path, "demo", Config(data="d")).stage("one", fail)
    again = RunFolder(tmp_path, "demo", Config(data="d"))
    assert "one" in again.state["seconds"]  # the time that it took counts
    assert again.stage("one", lambda: 7) == 7


def test_seconds_add_up_over_interruptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mobilefit.jobs import folder as room

    now = [0.0]
    monkeypatch.setattr(room.time, "monotonic", lambda: now[0])
    for started, seconds in ((0.0, 2.0), (100.0, 3.5)):
        now[0] = started
        folder = RunFolder(tmp_path, "demo", Config(data="d"))
        with folder.timed("training"):
            now[0] += seconds
    now[0] = 500.0
    last = RunFolder(tmp_path, "demo", Config(data="d"))
    assert last.state["seconds"] == {"training": 5.5}
    now[0] += 1.0
    assert last.elapsed == 6.5


def test_a_record_is_complete(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "demo", Config(data="d", rate=0.2, out=tmp_path))
    made = folder.finish({"answer": 42})
    again = RunFolder(tmp_path, "demo", Config(data="d", rate=0.2, out=tmp_path))
    assert again.finished and again.record() == made
    assert made["answer"] == 42 and made["verb"] == "demo"
    assert made["command"] == f"mobilefit demo d --rate 0.2 --out {tmp_path}"
    assert made["config"] == {
        "data": "d", "rate": 0.2, "out": str(tmp_path), "resume": False, "quiet": False
    }  # fmt: skip
    assert made["started"] <= made["finished"] and made["machine"]["cpu"]


def test_other_options_are_refused(tmp_path: Path) -> None:
    RunFolder(tmp_path, "demo", Config(data="d")).stage("one", lambda: 1)
    with pytest.raises(InputError, match=r"an unfinished run with other options \(rate 0.1 there, 0.3 now\)"):
        RunFolder(tmp_path, "demo", Config(data="d", rate=0.3))
    with pytest.raises(InputError, match=r"verb 'demo' there, 'other' now"):
        RunFolder(tmp_path, "other", Config(data="d"))
    RunFolder(tmp_path, "demo", Config(data="d")).finish({})
    with pytest.raises(InputError, match=r"a finished run with other options \(data 'd' there, 'e' now\)"):
        RunFolder(tmp_path, "demo", Config(data="e"))


def test_where_and_how_loudly_are_no_other_options(tmp_path: Path) -> None:
    RunFolder(tmp_path, "demo", Config(data="d", out=Path("a"))).stage("one", lambda: 1)
    RunFolder(tmp_path, "demo", Config(data="d", out=Path("b"), quiet=True, resume=True))


@pytest.mark.parametrize("other", ["images/", "./images", "../work/images", "images/../images", "{}", "link", "{}/link/."])
def test_the_same_folder_by_another_spelling_is_the_same_run(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    (work / "images").mkdir(parents=True)
    (work / "link").symlink_to(work / "images")
    monkeypatch.chdir(work)
    RunFolder(tmp_path / "run", "demo", Config(data="images")).stage("one", lambda: 1)
    spelling = other.format(work if "link" in other else work / "images")
    RunFolder(tmp_path / "run", "demo", Config(data=spelling))
    monkeypatch.chdir(tmp_path)
    RunFolder(tmp_path / "run", "demo", Config(data="work/images"))
    RunFolder(tmp_path / "run", "demo", Config(data=str(work / "images")))


def test_another_folder_of_the_same_name_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "images").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")
    RunFolder(tmp_path / "run", "demo", Config(data="images")).stage("one", lambda: 1)
    RunFolder(tmp_path / "run", "demo", Config(data="images"))
    for other in ("../b/images", "b", "images2", "no/images", "\0"):
        with pytest.raises(InputError, match="other options"):
            RunFolder(tmp_path / "run", "demo", Config(data=other))
    monkeypatch.chdir(tmp_path / "b")
    for other in ("../b/images", "images"):
        with pytest.raises(InputError, match="other options"):
            RunFolder(tmp_path / "run", "demo", Config(data=other))


def test_without_resume_an_earlier_run_is_refused(tmp_path: Path) -> None:
    RunFolder(tmp_path, "demo", Config(data="d"), resume=False).stage("one", lambda: 1)
    with pytest.raises(InputError, match="holds an unfinished run") as caught:
        RunFolder(tmp_path, "demo", Config(data="d"), resume=False)
    assert "--resume" in str(caught.value.hint)
    RunFolder(tmp_path, "demo", Config(data="d")).finish({})
    assert RunFolder(tmp_path, "demo", Config(data="d"), resume=False).lacks_page
    (tmp_path / "report.html").write_text("")
    with pytest.raises(InputError, match="holds a finished run") as caught:
        RunFolder(tmp_path, "demo", Config(data="d"), resume=False)
    assert "--resume" not in str(caught.value.hint)


def test_a_run_that_did_nothing_may_be_given_other_options(tmp_path: Path) -> None:
    def refuse() -> None:
        raise InputError("out of reach", "raise --rate")

    with pytest.raises(InputError, match="out of reach"):
        RunFolder(tmp_path, "demo", Config(data="d")).stage("one", refuse)
    RunFolder(tmp_path, "demo", Config(data="d", rate=0.3), resume=False)
    assert json.loads((tmp_path / "config.json").read_text())["rate"] == 0.3


@pytest.mark.parametrize("inside", ["", "deeper", "deeper/still"])
def test_a_folder_that_cannot_be_made(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the output folder") as caught:
        RunFolder(tmp_path / "file" / inside, "demo", Config(data="d"))
    assert str(tmp_path / "file") in caught.value.message


@pytest.mark.parametrize("content", ["", "{", "[]", "7"])
@pytest.mark.parametrize("name", ["config.json", "state.json"])
def test_a_damaged_folder_is_named(tmp_path: Path, name: str, content: str) -> None:
    RunFolder(tmp_path, "demo", Config(data="d")).stage("one", lambda: 1)
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=name):
        RunFolder(tmp_path, "demo", Config(data="d"))


@pytest.mark.parametrize(
    "change", [{"seconds": ""}, {"seconds": {"one": None}}, {"elapsed": "x"}, {"elapsed": float("nan")}, {"started": 5},
               {"one": None}, {"one": [1, 2]}, {"two": {}}, {"two": {"ms": "x"}}]
)  # fmt: skip
def test_a_state_of_another_shape_is_named(change: dict[str, Any], tmp_path: Path) -> None:
    def stages() -> None:
        folder = RunFolder(tmp_path, "demo", Config(data="d"))
        folder.stage("one", lambda: 1.0, float)
        folder.stage("two", lambda: {"ms": 2.0}, {"ms": float})

    stages()
    state = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps(state | change))
    with pytest.raises(InputError, match=r"state\.json: .*; choose another --out, or delete that folder"):
        stages()
