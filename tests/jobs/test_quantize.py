"""The verb ``quantize``: calibration, training with the rounding in place, the gate."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mobilefit.data import load
from mobilefit.int8 import Policy
from mobilefit.jobs.model import evaluate_file, file_info
from mobilefit.jobs.running import Runner
from mobilefit.litert.graph import parse, read_metadata
from mobilefit.litert.metadata import labels_of
from mobilefit.runs import read_jsonl
from mobilefit.runtime import TimingSamples, Worker
from mobilefit.train import loop

from .small import CLASSES, World, record, run

REFUSED = Callable[..., str]
PAGE = Path(__file__).parents[2] / "docs" / "int8.md"
pytestmark = pytest.mark.usefixtures("steady")


def quantize(world: World, out: Path, *words: object) -> int:
    return run("quantize", world.float32, world.images, "--images", 12, "--quiet", "--out", out, *words)


def file_of(folder: Path) -> bytes:
    return (folder / "model_int8.tflite").read_bytes()


def test_calibration_alone(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize(world, tmp_path / "q", "--max-drop", 100) == 0
    final, out = record(tmp_path / "q")["final"], capsys.readouterr().out
    blob = file_of(tmp_path / "q")
    data = load(str(world.images), seed=0)
    found = evaluate_file(blob, data.test, file_info(blob, Path("q")).preset)
    assert final["accuracy_int8"] == found.top1 and f"{found.top1:.2%} on the test images" in out
    assert final["drop"] == pytest.approx(final["accuracy_float"] - found.top1)
    assert record(tmp_path / "q")["fidelity"]["top1"] == 1.0
    assert labels_of(blob) == list(CLASSES)
    assert read_metadata(blob)["accuracy"]["int8"]["top1"] == found.top1


def test_training_goes_on_from_the_float_network(world: World, tmp_path: Path) -> None:
    assert quantize(world, tmp_path / "q", "--method", "qat", "--steps", 6, "--max-drop", 100) == 0
    found = record(tmp_path / "q")
    assert found["method"] == "qat" and found["fidelity"]["within_one_step"] == 1.0
    assert read_jsonl(tmp_path / "q" / "train" / "metrics.jsonl")[-1]["step"] == 6
    assert quantize(world, tmp_path / "p", "--max-drop", 100) == 0
    assert file_of(tmp_path / "p") != file_of(tmp_path / "q")


def test_an_interrupted_training_ends_as_one_that_was_not(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--method", "qat", "--steps", 6, "--max-drop", 100)
    assert quantize(world, tmp_path / "whole", *words) == 0
    with monkeypatch.context() as patch:
        step = loop.Trainer.step

        def interrupted(self: loop.Trainer, *batch: object) -> float:
            if self.done == 3:
                raise KeyboardInterrupt
            return step(self, *batch)  # type: ignore[arg-type]

        patch.setattr(loop.Trainer, "step", interrupted)
        assert quantize(world, tmp_path / "parts", *words) == 130
    assert "go on with: mobilefit quantize" in capsys.readouterr().err
    assert quantize(world, tmp_path / "parts", *words) == 0
    one, other = (parse(file_of(tmp_path / name)).tensors() for name in ("whole", "parts"))
    assert all(np.array_equal(a.data, b.data) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("lost", "method"), [(0.0, "ptq"), (0.2, "qat")])
def test_auto_trains_where_calibration_loses_too_much(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: float, method: str
) -> None:
    monkeypatch.setattr("mobilefit.jobs.quantize.AUTO_DROP", 0.1 - lost)
    words = ("--method", "auto", "--steps", 2, "--max-drop", 100)
    assert quantize(world, tmp_path / "q", *words) == 0
    assert record(tmp_path / "q")["method"] == method


def test_the_gate_keeps_the_file_and_names_the_layers(
    world: World, tmp_path: Path, refused: REFUSED
) -> None:
    said = refused(
        "quantize", world.float32, world.images, "--images", 6, "--max-drop", -101, "--quiet",
        "--out", tmp_path / "q", code=3,
    )  # fmt: skip
    assert "more than --max-drop -101" in said and "--keep-float" in said
    rows = record(tmp_path / "q")["sensitivity"]
    assert all(row["layer"] in said for row in rows[:3]) and len(rows) > 8
    assert [r["snr_db"] for r in rows] == sorted(r["snr_db"] for r in rows)
    assert parse(file_of(tmp_path / "q")).ops


def test_a_file_that_computes_something_else_fails(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: REFUSED
) -> None:
    run_file = Runner.__call__
    monkeypatch.setattr(Runner, "__call__", lambda self, *a, **k: run_file(self, *a, **k)[:, ::-1])
    words = ("--images", 6, "--max-drop", 200, "--quiet", "--out", tmp_path / "q")
    said = refused("quantize", world.float32, world.images, *words, code=3)
    assert "does not compute what was simulated" in said
    assert not json.loads((tmp_path / "q" / "parity.json").read_text())["int8"]["ok"]
    assert parse(file_of(tmp_path / "q")).ops


def test_a_policy_from_a_file_and_from_the_command_line(world: World, tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"rules": [{"pattern": "stem", "arithmetic": "float"}]}))
    words = ("--policy", policy, "--keep-float", "head.logits, blocks.0.*", "--max-drop", 100)
    assert quantize(world, tmp_path / "q", *words) == 0
    rules = record(tmp_path / "q")["policy"]["rules"]
    assert [rule["pattern"] for rule in rules] == ["stem", "head.logits", "blocks.0.*"]
    dtypes = {op.output.name: op.output.dtype for op in parse(file_of(tmp_path / "q")).ops}
    assert dtypes["head.logits"] == np.float32
    assert dtypes["backbone.blocks.1.expand.conv"] == np.int8


def test_int8_at_the_ends(world: World, tmp_path: Path) -> None:
    assert quantize(world, tmp_path / "q", "--edges", "int8", "--max-drop", 100) == 0
    graph = parse(file_of(tmp_path / "q"))
    assert graph.inputs[0].dtype == graph.outputs[0].dtype == np.int8
    assert record(tmp_path / "q")["fidelity"]["within_one_step"] == 1.0


def test_the_lowering_that_is_fastest_here_is_taken(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(worker: Worker, blobs: list[bytes], **_: object) -> list[TimingSamples]:
        sums = [any(op.output.name.endswith("/before") for op in parse(blob).ops) for blob in blobs]
        return [TimingSamples([0.5 if found else 1.0] * 3, stable=True) for found in sums]

    monkeypatch.setattr(Worker, "time_many", timed)
    assert quantize(world, tmp_path / "q", "--lowering", "measure", "--max-drop", 100) == 0
    assert record(tmp_path / "q")["lowering"] == "hard-sigmoid sum"
    assert any("three" in t.name and "se" in t.name for t in parse(file_of(tmp_path / "q")).tensors())


def test_every_layer_is_told_when_asked(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize(world, tmp_path / "q", "--sensitivity", "--max-drop", 100) == 0
    out = capsys.readouterr().out
    rows = record(tmp_path / "q")["sensitivity"]
    assert "SNR dB" in out and all(row["layer"] in out for row in rows)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--keep-float", "blok.*"), "no layer is named 'blok.*'; the layers: stem"),
        (("--policy", "nowhere.json"), "nowhere.json"),
        (("--lowering", "h-swish hole"), "unknown lowering 'h-swish hole'; did you mean 'h-swish whole'"),
        (("--observer", "median"), "'median' is not one of 'minmax'"),
        (("--images", 0), "--images is 0, must be a number above 0"),
        (("--method", "qat", "--distillation", 2), "distillation is 2.0, must be from 0 to 1"),
    ],
)
def test_bad_options(
    world: World, tmp_path: Path, refused: REFUSED, words: tuple[object, ...], said: str
) -> None:
    assert said in refused("quantize", world.float32, world.images, "--out", tmp_path / "q", *words)


def test_a_finished_run_stays(world: World, tmp_path: Path, refused: REFUSED) -> None:
    assert quantize(world, tmp_path / "q", "--max-drop", 100) == 0
    words = ("--images", 12, "--quiet", "--max-drop", 100, "--out", tmp_path / "q")
    assert "holds a finished run" in refused("quantize", world.float32, world.images, *words)


def test_an_empty_calibration_folder(world: World, tmp_path: Path, refused: REFUSED) -> None:
    (tmp_path / "none").mkdir()
    said = refused("quantize", world.float32, tmp_path / "none", "--out", tmp_path / "q")
    assert str(tmp_path / "none") in said


# ---- the page of the documentation


def test_the_commands_and_snippets_of_the_page_run(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PAGE.read_text()
    commands = re.findall(r"^mobilefit (.+)$", text, re.MULTILINE)
    assert len(commands) == 3
    shutil.copytree(world.images, tmp_path / "photos")
    shutil.copy(world.float32, tmp_path / "model_float32.tflite")
    monkeypatch.chdir(tmp_path)
    for line in commands:
        assert run(*shlex.split(line), "--quiet") == 0, line
    policy, snippet = (re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
                       for kind in ("json", "python"))  # fmt: skip
    assert Policy.from_dict(json.loads(policy[0])).rules
    names: dict[str, bytes] = {}
    exec(compile(snippet[0], str(PAGE), "exec"), names)
    assert len(names["small"]) < len(names["blob"])
