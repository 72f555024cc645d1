"""The main job, on a device that always takes the same time."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mobilefit import device
from mobilefit.arch import NetSpec
from mobilefit.device import LatencyTable
from mobilefit.jobs import lab
from mobilefit.jobs.model import int8_for_timing
from mobilefit.pipeline import design_run
from mobilefit.runs import read_json, read_jsonl, write_json

from .small import (
    SPEC,
    World,
    accepted,
    hold_steady,
    make_images,
    milliseconds,
    picture,
    record,
    run,
)

SEED_MS = milliseconds(int8_for_timing(SPEC))
REFUSED = Callable[..., str]


def words(world: World, out: Path, latency: str = "40%", **changes: object) -> list[str]:
    """A design that takes a second or two."""
    options = {
        "latency": latency, "seed_network": world.spec, "resolution": 32, "epochs": 1, "delta": 0.05,
        "tune_steps": 2, "max_drop": 50, "out": out, **changes,
    }  # fmt: skip
    found = ["design", str(options.pop("data", world.images))]
    for name, value in options.items():
        found += [f"--{name.replace('_', '-')}", str(value)]
    return found


@pytest.fixture(scope="module")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("design") / "run"
    with pytest.MonkeyPatch.context() as patch:
        hold_steady(patch.setattr)
        assert run(*words(world, out)) == 0
    return out


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*") if path.is_file()
    }  # fmt: skip


# ---- a whole run


def test_the_folder_holds_what_it_should(finished: Path) -> None:
    assert set(contents(finished)) == {
        ".lock", "config.json", "state.json", "record.json", "report.html", "latency_table.json",
        "model.safetensors", "parity.json", "model_int8.tflite", "model_float32.tflite", "netadapt/netadapt.jsonl",
        f"netadapt/step_{len(accepted(finished)):03d}.safetensors",
        *(f"train/{kind}-0/{name}" for kind in ("seed", "adapted", "width")
          for name in ("model.safetensors", "metrics.jsonl")),
    }  # fmt: skip


def test_the_record_says_what_was_done(finished: Path) -> None:
    made = record(finished)
    assert made["budget_ms"] == pytest.approx(0.4 * SEED_MS) and made["budget"] == "40%"
    assert made["command"].startswith("mobilefit design ") and "--latency 40%" in made["command"]
    assert made["data"]["sizes"] == {"train": 87, "holdout": 9, "test": 24}
    assert made["data"]["skipped"] == [] and len(made["data"]["fingerprint"]) == 64
    assert (made["plan"]["train_steps"], made["plan"]["netadapt"]["tune_steps"]) == (8, 2)
    assert {"start", "speed", "table", "training seed", "netadapt", "width at 32 px", "training adapted",
            "training width", "export and measure"} <= set(made["seconds"])  # fmt: skip
    labels = [(row["kind"], row["seed"]) for row in made["results"]]
    assert labels == [("seed", 0), ("adapted", 0), ("width", 0)]
    for row in made["results"]:
        assert 0 <= row["accuracy_int8"] <= 1 and 0 <= row["accuracy_float"] <= 1
    final = made["final"]
    assert final["kind"] == "adapted" and final["files"] == {
        "int8": "model_int8.tflite", "float32": "model_float32.tflite"
    }  # fmt: skip
    wrong = round((1 - final["accuracy_int8"]) * 24)
    assert len(final["misclassified"]) == min(12, wrong)
    assert sum(map(sum, final["confusion"])) == 24
    assert {row["name"] for row in made["layers"]["after"]} == {
        "stem", "blocks.0", "blocks.1", "blocks.2", "head"
    }  # fmt: skip


def test_what_is_measured_is_what_is_shipped(finished: Path) -> None:
    made = record(finished)
    shipped = milliseconds((finished / "model_int8.tflite").read_bytes())
    assert made["final"]["latency"]["median_ms"] == shipped <= made["budget_ms"]
    slow = milliseconds((finished / "model_float32.tflite").read_bytes())
    assert made["final"]["latency_float"]["median_ms"] == slow


def test_netadapt_goes_down_to_the_budget(finished: Path) -> None:
    rows = read_jsonl(finished / "netadapt" / "netadapt.jsonl")
    kept = [row for row in rows if row["event"] in ("seed", "accepted")]
    assert len(kept) >= 4  # three steps and the seed
    cut = 0.05 * kept[0]["latency_ms"]
    for before, after in itertools.pairwise(kept):
        assert after["latency_ms"] <= before["latency_ms"] - cut + 1e-12
    assert kept[-1]["measured_ms"] <= record(finished)["budget_ms"] < kept[-2]["measured_ms"]


def test_the_width_multiplier_takes_all_of_the_budget(finished: Path) -> None:
    (width,) = (row["latency"]["median_ms"] for row in record(finished)["results"] if row["kind"] == "width")
    options = {s.id: s for s in (SPEC.width(w / 100) for w in range(5, 101))}.values()
    latencies = [milliseconds(int8_for_timing(s)) for s in options]
    aim_ms = 0.4 * SEED_MS * (1 - lab.MARGIN)
    assert width == pytest.approx(max(ms for ms in latencies if ms <= aim_ms))


def test_the_knapsack_in_netadapts_place(world: World, tmp_path: Path, steady: None) -> None:
    line = words(world, tmp_path / "run", "70%", shrink="knapsack", epochs=0.2)
    del line[line.index("--delta") : line.index("--delta") + 2]
    assert run(*line, "--quiet") == 0
    made = record(tmp_path / "run")
    rows = read_jsonl(tmp_path / "run" / "knapsack" / "knapsack.jsonl")
    rounds = [row for row in rows if row["event"] == "accepted"]
    assert made["plan"]["knapsack"]["tune_steps"] == 2 and made["plan"]["knapsack"]["steps"] >= len(rounds) >= 1
    assert NetSpec.from_dict(made["final_spec"]).id == rounds[-1]["spec_id"]
    assert made["final"]["kind"] == "adapted" and made["final"]["latency"]["median_ms"] <= made["budget_ms"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Knapsack, step by step" in page and "NetAdapt" not in page
    assert not (tmp_path / "run" / "netadapt").exists()


# ---- the same folder again


def test_a_finished_run_is_left_alone(
    world: World, finished: Path, capsys: pytest.CaptureFixture[str], steady: None
) -> None:
    before = contents(finished)
    (finished / "report.html").unlink()  # as after a kill between the record and what comes after it
    (finished / design_run.TEACHER / "answers").mkdir(parents=True)
    assert run(*words(world, finished)) == 0
    out, err = capsys.readouterr()
    assert "finished; delete the folder to run it again" in err
    assert not (finished / design_run.TEACHER).exists() and "<html" in (finished / "report.html").read_text().lower()
    assert str(finished / "model_int8.tflite") in out
    changed = {name: contents(finished)[name] for name in ("config.json", "report.html")}
    assert contents(finished) == {**before, **changed}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"latency": "55%"}, "latency '40%' there, '55%' now"),
        ({"delta": 0.1}, "delta 0.05 there, 0.1 now"),
        ({"seed": 1}, "seed 0 there, 1 now"),
        ({"rule": "accuracy"}, "rule 'ratio' there, 'accuracy' now"),
    ],
)
def test_other_options_are_named(
    changes: dict[str, Any], said: str, world: World, finished: Path, refused: REFUSED
) -> None:
    before = contents(finished)
    message = refused(*words(world, finished, **changes))
    assert "a finished run with other options" in message and said in message
    assert contents(finished) == before


def test_a_quality_gate(
    world: World, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A machine that is slower at the end: exit code 3, with everything written."""
    hold_steady(monkeypatch.setattr)
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    for name in ("record.json", "report.html", "model_int8.tflite", "model_float32.tflite"):
        (out / name).unlink()
    measure = device.measure_many

    def slow(blobs: Any, protocol: Any = None) -> Any:
        first, *rest = measure(blobs, protocol)  # the seed network, which the budget is a share of
        return [first, *(replace(found, median_ms=2 * found.median_ms) for found in rest)]

    monkeypatch.setattr(device, "measure_many", slow)
    assert run(*words(world, out)) == 3
    lines = capsys.readouterr().err.splitlines()
    before = record(finished)
    over = 2 * before["final"]["latency"]["median_ms"] - before["budget_ms"]
    assert lines[-1].startswith(f"mobilefit: the final network is {over:.3g} ms over the budget")
    assert {"record.json", "report.html", "model_int8.tflite"} <= set(contents(out))
    assert run(*words(world, out)) == 3  # said again, not done again


def test_a_gate_on_what_int8_loses(
    world: World, finished: Path, tmp_path: Path, refused: REFUSED
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    found = record(out)
    found["final"] |= {"accuracy_float": 0.9, "accuracy_int8": 0.375}
    write_json(out / "record.json", found)
    said = refused(*words(world, out), code=3)
    assert said.startswith("int8 loses 52.50 points, more than --max-drop 50; mobilefit quantize")
    assert f"{out / 'model_float32.tflite'} {world.images} --method qat" in said


def test_a_gate_on_parity(world: World, finished: Path, tmp_path: Path, refused: REFUSED) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    assert read_json(out / "parity.json") == record(out)["final"]["parity"]
    found = record(out)
    found["final"]["parity"]["int8"]["ok"] = False
    write_json(out / "record.json", found)
    said = refused(*words(world, out), code=3)
    assert said.startswith("the files do not say what the network says: int8: top-1 agrees on")
    assert "float32" not in said.partition(";")[0] and str(out / "parity.json") in said


# ---- budgets that ask for nothing, or too much


@pytest.mark.parametrize("latency", ["100%", "5ms"])
def test_a_budget_that_the_seed_meets(
    latency: str, world: World, tmp_path: Path, steady: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words(world, tmp_path / "run", latency)) == 0
    err = capsys.readouterr().err
    assert "the seed network meets the budget already" in err and "NetAdapt is not needed" in err
    made = record(tmp_path / "run")
    assert [row["kind"] for row in made["results"]] == ["seed"] and made["final"]["kind"] == "seed"
    assert made["final_spec"] == made["seed_spec"] and not (tmp_path / "run/netadapt").exists()
    assert (tmp_path / "run/report.html").exists() and (tmp_path / "run/model_int8.tflite").exists()


def test_a_budget_out_of_reach_says_what_is_in_reach(
    world: World, tmp_path: Path, steady: None, refused: REFUSED
) -> None:
    lowest = milliseconds(int8_for_timing(lab.narrowest(SPEC)))
    said = refused(*words(world, tmp_path / "run", "1us"), "--quiet")
    assert f"the lowest reachable is {lowest:.4g} ms" in said and "in the whole family" in said
    assert "mobilenet" in said or "mnasnet" in said
    assert said.endswith("raise --latency or lower --resolution")
    assert run(*words(world, tmp_path / "run", "90%"), "--quiet") == 0  # in the same folder


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"latency": "2"}, ["--latency 2 has no unit", "2ms"]),
        ({"latency": "2 parsecs"}, ["unknown unit 'parsecs'"]),
        ({"latency": "0ms"}, ["'0ms' is not a latency"]),
        ({"seed_network": "mobilenet_v3_smal"}, ["did you mean 'mobilenet_v3_small'?"]),
        ({"seed_network": "nowhere.json"}, ["no such spec file: nowhere.json"]),
        ({"recipe": "fsat"}, ["unknown recipe 'fsat'; did you mean 'fast'?"]),
        ({"minutes": 0}, ["--minutes is 0.0, must be a number above 0"]),
        ({"delta": -1, "epochs": 0}, ["--delta is -1.0", "--epochs is 0.0"]),
        ({"minutes": "nan"}, ["--minutes is nan"]),
        ({"delta": 1.5}, ["delta is 1.5"]),
        ({"minutes": "inf"}, ["--minutes is inf"]),
        ({"shrink": "knapsack"}, ["--delta and --rule are NetAdapt's", "--shrink knapsack"]),
        ({"data": "nowhere"}, ["no such folder or data set: 'nowhere'"]),
        ({"weights": "nowhere.safetensors"}, ["no such weights file: nowhere.safetensors"]),
        ({"table": "nowhere.json"}, ["cannot read nowhere.json"]),
    ],
)
def test_bad_options(
    changes: dict[str, Any], parts: list[str], world: World, tmp_path: Path, steady: None,
    refused: REFUSED,
) -> None:  # fmt: skip
    said = refused(*words(world, tmp_path / "run", **changes), "--quiet")
    for part in parts:
        assert part in said


def test_a_negative_budget(world: World, tmp_path: Path, refused: REFUSED) -> None:
    for form in (["--latency=-1ms"], ["--latency", "-1ms"]):
        said = refused("design", world.images, *form, "--out", tmp_path / "run")
        assert "-1ms" in said and "not a latency" in said


# ---- latency tables


def test_a_table_of_an_earlier_run_is_used(
    world: World, finished: Path, tmp_path: Path, steady: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("a row was measured")

    table = finished / "latency_table.json"
    monkeypatch.setattr(LatencyTable, "_time", never)
    assert run(*words(world, tmp_path / "run", table=table), "--quiet") == 0
    assert accepted(tmp_path / "run") == accepted(finished)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"device": "another phone"}, "was measured on 'another phone', this is '"),
        ({"format": 99}, "unknown format 99"),
        ({"rows": 3}, "is not a latency table"),
        (None, "is not valid JSON"),
    ],
)
def test_a_table_that_does_not_serve(
    content: dict[str, Any] | None, part: str, world: World, finished: Path, tmp_path: Path,
    steady: None, refused: REFUSED,
) -> None:  # fmt: skip
    path = tmp_path / "table.json"
    if content is None:
        path.write_text("{")
    else:
        write_json(path, {**read_json(finished / "latency_table.json"), **content})
    said = refused(*words(world, tmp_path / "run", table=path), "--quiet")
    assert str(path) in said and part in said
    if content and "device" in content:
        assert device.device_id() in said


# ---- images


def test_bad_images_among_good_ones_are_left_out_and_named(
    world: World, tmp_path: Path, steady: None, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_images(tmp_path / "set", count=30)
    picture(0, 1, (64, 64)).save(tmp_path / "whole.jpg")
    (images / "blue" / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:1500])
    (images / "green" / "text.jpg").write_text("not an image at all")
    Image.new("RGB", (1, 1)).save(images / "red" / "dot.png")
    assert run(*words(world, tmp_path / "run", "100%", data=images)) == 0
    err = capsys.readouterr().err
    assert f"3 bad image files are left out; the first: {images / 'blue' / 'cut.jpg'}" in err
    skipped = {Path(f["path"]).name: f["why"] for f in record(tmp_path / "run")["data"]["skipped"]}
    assert set(skipped) == {"cut.jpg", "text.jpg", "dot.png"} and all(skipped.values())


def test_images_that_changed_are_noticed(
    world: World, tmp_path: Path, steady: None, refused: REFUSED, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(tmp_path / "set", count=12)

    def stop(chain: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(design_run.DesignRun, "measure_speed", stop)
        assert run(*words(world, tmp_path / "run", data=images)) == 130
    picture(0, 5).save(images / "blue" / "new.png")
    said = refused(*words(world, tmp_path / "run", data=images), "--quiet")
    assert said.startswith("the images of set changed since ")


def test_pretrained_weights_are_taken_along(world: World, tmp_path: Path, steady: None) -> None:
    assert run(*words(world, tmp_path / "run", weights=world.weights), "--quiet") == 0
    made = record(tmp_path / "run")
    assert made["plan"]["training"]["optimizer"] == "adamw"  # the recipe for pretrained weights
    accuracy = {row["kind"]: row["accuracy_float"] for row in made["results"]}
    assert accuracy["seed"] > 0.5


def test_seeds_train_each_compared_network_again(world: World, tmp_path: Path, steady: None) -> None:
    assert run(*words(world, tmp_path / "run", seeds=2, seed=5), "--quiet") == 0
    rows = [(row["kind"], row["seed"]) for row in record(tmp_path / "run")["results"]]
    assert rows == [("seed", 5), ("adapted", 5), ("width", 5), ("adapted", 6), ("width", 6)]


# ---- killed and interrupted


def process(world: World, out: Path, table: Path | None, stop: str = "") -> subprocess.Popen[str]:
    """The design in a process of its own; ``stop`` as in ``steady.py``."""
    given = {} if table is None else {"table": table}
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("steady.py")), *words(world, out, **given)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "STOP": stop,
             "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def interrupt_at(line: str, started: subprocess.Popen[str]) -> tuple[int, str]:
    """Ctrl-C, to the whole group as a terminal does, when a line is said."""
    assert started.stderr is not None
    said = ""
    for text in started.stderr:
        said += text
        if line in text:
            os.killpg(started.pid, signal.SIGINT)
            break
    rest = started.communicate(timeout=600)[1]
    return started.returncode, said + rest


def test_a_run_that_is_stopped_again_and_again_ends_as_an_undisturbed_one(
    world: World, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    undisturbed = process(world, whole, None)
    assert undisturbed.communicate(timeout=600) and undisturbed.returncode == 0
    steps = accepted(whole)
    assert len(steps) >= 3
    table = tmp_path / "table.json"
    shutil.copy(whole / "latency_table.json", table)

    def interrupted(line: str) -> None:
        code, said = interrupt_at(line, process(world, out, table))
        assert code == 130, said
        go_on = f"go on with: mobilefit design {world.images} --latency 40% "
        assert said.splitlines()[-1].startswith(f"mobilefit: interrupted; {go_on}"), said

    def killed(stop: str) -> None:
        started = process(world, out, table, stop)
        said = started.communicate(timeout=600)[1]
        assert started.returncode == -signal.SIGKILL, said
        assert not (out / "record.json").exists()

    killed("mobilefit.train.run:save_checkpoint:3")  # in seed training
    interrupted("training seed")
    killed("mobilefit.adapt.netadapt:_Run._try:8")  # in the middle of a NetAdapt step
    assert accepted(out)
    interrupted("NetAdapt step ")
    assert accepted(out) == steps[: len(accepted(out))]
    killed("mobilefit.train.run:save_checkpoint:3")  # in final training
    assert accepted(out) == steps and list(out.rglob("checkpoint.pt"))
    killed("mobilefit.jobs.lab:write_atomic:2")  # between the two exported files
    assert (out / "model_int8.tflite").exists() and not list(out.rglob("checkpoint.pt"))
    last = process(world, out, table)
    said = last.communicate(timeout=600)[1]
    assert last.returncode == 0, said
    assert "training seed" not in said and "training adapted" not in said
    mine, theirs = record(out), record(whole)
    assert mine["final_spec"] == theirs["final_spec"]
    assert set(mine) == set(theirs)
    same = ("kind", "seed", "spec_id", "accuracy_int8", "accuracy_float")
    assert [[row[key] for key in same] for row in mine["results"]] == [
        [row[key] for key in same] for row in theirs["results"]
    ]
    assert set(contents(out)) == set(contents(whole))
    assert NetSpec.from_dict(mine["final_spec"]).id == steps[-1][2]
