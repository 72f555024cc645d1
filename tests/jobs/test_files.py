"""LiteRT files that are damaged, of somebody else, or not what a verb needs."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mobilefit import litert
from mobilefit.arch import NetSpec
from mobilefit.formats import onnx, torch_export
from mobilefit.formats.parity import TOLERANCES
from mobilefit.jobs import export as export_job
from mobilefit.jobs.adapt import tuning_plan
from mobilefit.litert.graph import METADATA_NAME, parse, serialize
from mobilefit.litert.metadata import labels_of, packaged
from mobilefit.nn import load_network
from mobilefit.runs import read_jsonl

from .small import CLASSES, World, hold_steady, make_images, record, run

REFUSED = Callable[..., str]


def verbs_on(file: Path, world: World, out: Path) -> dict[str, Sequence[object]]:
    """Every verb that takes a LiteRT file."""
    return {
        "evaluate": ["evaluate", world.images, file],
        "predict": ["predict", file, world.images / "red" / "000.png"],
        "quantize": ["quantize", file, world.images, "--images", 6, "--out", out / "q"],
        "bench": ["bench", world.int8, file, "--csv", out / "b.csv"],
    }


every_verb = pytest.mark.parametrize("verb", ["evaluate", "predict", "quantize", "bench"])


@every_verb
@pytest.mark.parametrize("damage", ["cut", "empty", "text", "zeros", "flip"])
def test_a_damaged_file(
    verb: str, damage: str, world: World, tmp_path: Path, steady: None, refused: REFUSED
) -> None:
    data = world.float32.read_bytes()
    bad = {"cut": data[: len(data) // 2], "empty": b"", "text": b"this is no network at all",
           "zeros": bytes(4000), "flip": data[:8] + bytes(b ^ 0x55 for b in data[8:200]) + data[200:],
           }  # fmt: skip
    file = tmp_path / "bad.tflite"
    file.write_bytes(bad[damage])
    said = refused(*verbs_on(file, world, tmp_path)[verb])
    assert str(file) in said
    assert {path.name for path in tmp_path.iterdir()} == {"bad.tflite"}


@every_verb
def test_a_file_that_is_not_there(
    verb: str, world: World, tmp_path: Path, refused: REFUSED
) -> None:
    said = refused(*verbs_on(tmp_path / "none.tflite", world, tmp_path)[verb])
    assert f"cannot read {tmp_path / 'none.tflite'}: No such file" in said
    assert f"cannot read {tmp_path}: Is a directory" in refused("bench", tmp_path)


def foreign(kind: str, world: World) -> bytes:
    """A good network that does not say how its input is prepared."""
    if kind == "no metadata":
        torch.manual_seed(0)
        return litert.compile(nn.Sequential(nn.Conv2d(3, 8, 3)).eval(), (1, 3, 32, 32))
    graph = parse(world.float32.read_bytes())
    assert METADATA_NAME in graph.metadata
    graph.metadata[METADATA_NAME] = {
        "no JSON": b"\xff{", "a list": b"[1]", "half of it": b'{"preset": {}}'
    }[kind]  # fmt: skip
    return serialize(graph)


@pytest.mark.parametrize("verb", ["evaluate", "predict", "quantize"])
@pytest.mark.parametrize("kind", ["no metadata", "no JSON", "a list", "half of it"])
def test_a_file_of_somebody_else(
    verb: str, kind: str, world: World, tmp_path: Path, steady: None, refused: REFUSED
) -> None:
    file = tmp_path / "foreign.tflite"
    file.write_bytes(foreign(kind, world))
    said = refused(*verbs_on(file, world, tmp_path)[verb])
    assert str(file) in said
    assert ("corrupt" if kind == "no JSON" else "use a file that mobilefit exported") in said


def test_bench_takes_a_file_of_somebody_else(world: World, tmp_path: Path, steady: None) -> None:
    (tmp_path / "foreign.tflite").write_bytes(foreign("no metadata", world))
    assert run("bench", tmp_path / "foreign.tflite") == 0


def test_an_int8_file_is_not_quantized_again(
    world: World, tmp_path: Path, refused: REFUSED
) -> None:
    said = refused("quantize", world.int8, world.images, "--out", tmp_path / "q")
    assert "already quantized" in said and "give the float32 file" in said
    assert str(world.int8) in said
    assert not (tmp_path / "q.tflite").exists()


def test_images_that_cannot_be_predicted(
    world: World, tmp_path: Path, refused: REFUSED
) -> None:
    assert f"no such image or folder: {tmp_path}/x.png" in refused(
        "predict", world.int8, tmp_path / "x.png"
    )
    assert f"no image in the folder {tmp_path}" in refused("predict", world.int8, tmp_path)
    (tmp_path / "bad.png").write_text("no image")
    said = refused("predict", world.int8, tmp_path / "bad.png")
    assert str(tmp_path / "bad.png") in said and "not an image" in said
    said = refused("predict", world.int8, tmp_path / "bad.png", "--top", 0)
    assert said.startswith("--top is 0")


def test_predict_shows_no_more_classes_than_there_are(world: World) -> None:
    from mobilefit.jobs.predict import PredictConfig, predict

    image = world.images / "red" / "000.png"
    found = predict(PredictConfig(file=world.int8, images=(image,), top=99))
    shares = [row["share"] for row in found[0]["classes"]]
    assert len(shares) == 3 and shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("model", ["weights", "float32", "int8"])
def test_images_of_other_classes(
    model: str, world: World, tmp_path: Path, refused: REFUSED
) -> None:
    file = getattr(world, model)
    four = make_images(tmp_path / "four", ("a", "b", "c", "d"), count=4)
    said = refused("evaluate", four, file)
    assert f"{file} tells 3 classes apart" in said and "four has 4 (a, b, c, d" in said
    if model != "weights":  # the names are in the file
        other = make_images(tmp_path / "other", ("a", "b", "c"), count=4)
        assert "(blue, green, red" in refused("evaluate", other, file)


@pytest.mark.parametrize("verb", ["export", "adapt"])
def test_weights_for_other_classes(
    verb: str, world: World, tmp_path: Path, refused: REFUSED
) -> None:
    four = make_images(tmp_path / "four", ("a", "b", "c", "d"), count=4)
    more = ["--latency", "70%"] if verb == "adapt" else []
    said = refused(verb, world.weights, four, "--out", tmp_path / "run", *more)
    assert "tells 3 classes apart" in said and "has 4" in said


@pytest.mark.parametrize("verb", ["export", "adapt"])
def test_a_finished_run_is_not_overwritten(
    verb: str, world: World, tmp_path: Path, steady: None, refused: REFUSED
) -> None:
    more = ["--latency", "90%", "--tune-steps", 1, "--quiet"] if verb == "adapt" else []
    words = [verb, world.weights, world.images, "--out", tmp_path / "run", *more]
    assert run(*words) == 0
    before = record(tmp_path / "run")
    assert "holds a finished run" in refused(*words)
    assert record(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("steps", "words"),
    [(0, "new batch norm statistics alone"), (1, "1 step: fewer than 15"), (15, "tuned for 15 steps")],
)
def test_adapt_says_how_proposals_are_tuned(steps: int, words: str) -> None:
    line = tuning_plan(steps)
    assert words in line and ("fewer" in line) == (steps == 1)


def test_what_may_shrink_is_named(world: World, tmp_path: Path, steady: None, refused: REFUSED) -> None:
    words = ["adapt", world.weights, world.images, "--latency", "90%", "--tune-steps", 0, "--out", tmp_path / "run"]
    said = refused(*words, "--shrink", "expansion,botleneck")
    assert "did you mean 'bottleneck'" in said and not (tmp_path / "run").exists()
    assert run(*words, "--shrink", "head,bottleneck", "--quiet") == 0
    rows = read_jsonl(tmp_path / "run" / "netadapt" / "netadapt.jsonl")
    groups = {part["group"] for row in rows if row["event"] == "plan" for part in row["proposals"]}
    assert groups and all(name.endswith(".out") or name.startswith("head.") for name in groups)


def test_adapt_tunes_no_negative_number_of_steps(world: World, tmp_path: Path, refused: REFUSED) -> None:
    said = refused("adapt", world.weights, world.images, "--latency", "70%", "--tune-steps", -1, "--out", tmp_path / "run")
    assert "--tune-steps is -1" in said and not (tmp_path / "run").exists()


def test_what_is_adapted_can_be_trained(world: World, tmp_path: Path, steady: None) -> None:
    out = tmp_path / "adapted"
    assert run("adapt", world.weights, world.images, "--latency", "70%", "--delta", 0.1,
               "--tune-steps", 0, "--out", out, "--quiet") == 0  # fmt: skip
    assert record(out)["latency_ms"] <= record(out)["budget_ms"]
    assert run("train", world.images, "--model", out / "adapted.json", "--resolution", 32,
               "--batch-size", 16, "--steps", 1, "--out", tmp_path / "t", "--quiet") == 0  # fmt: skip
    trained, adapted = record(tmp_path / "t")["final_spec"], record(out)["final_spec"]
    assert trained["blocks"] == adapted["blocks"] and trained["stem"] == adapted["stem"]


def test_adapt_by_the_knapsack(world: World, tmp_path: Path, steady: None) -> None:
    out = tmp_path / "adapted"
    assert run("adapt", world.weights, world.images, "--method", "knapsack", "--latency", "60%", "--cut", 0.25,
               "--tune-steps", 1, "--out", out, "--quiet") == 0  # fmt: skip
    made, rows = record(out), read_jsonl(out / "knapsack" / "knapsack.jsonl")
    assert made["method"] == "knapsack" and made["latency_ms"] <= made["budget_ms"]
    assert made["steps"] == len([row for row in rows if row["event"] == "accepted"]) >= 1
    opened = load_network(out / "model.safetensors")
    assert opened.spec.blocks == NetSpec.from_dict(made["final_spec"]).blocks
    assert run("train", world.images, "--model", out / "adapted.json", "--resolution", 32,
               "--batch-size", 16, "--steps", 1, "--out", tmp_path / "t", "--quiet") == 0  # fmt: skip


@pytest.mark.parametrize(
    ("method", "option", "value"), [("knapsack", "--delta", 0.1), ("knapsack", "--importance", "norm"), ("netadapt", "--cut", 0.1)]
)
def test_options_of_another_method_are_refused(
    method: str, option: str, value: object, world: World, tmp_path: Path, refused: REFUSED
) -> None:
    words = ["adapt", world.weights, world.images, "--latency", "70%", "--out", tmp_path / "run"]
    said = refused(*words, "--method", method, option, value)
    assert option in said and "--method" in said and not (tmp_path / "run").exists()


def test_a_budget_that_the_knapsack_cannot_reach(world: World, tmp_path: Path, steady: None, refused: REFUSED) -> None:
    said = refused("adapt", world.weights, world.images, "--method", "knapsack", "--latency", "1%", "--out", tmp_path / "run", "--quiet")
    assert "the lowest reachable is" in said


def test_bench_refuses_cores_and_threads_that_are_not_there(
    world: World, refused: REFUSED
) -> None:
    assert "core 9999 is not among" in refused("bench", world.int8, "--core", 9999)
    assert "--num-threads is 0" in refused("bench", world.int8, "--num-threads", 0)
    said = refused("bench", world.int8, "--num-threads", 2, "--core", 0)
    assert "cannot be pinned" in said


def test_a_report_needs_a_run(tmp_path: Path, refused: REFUSED) -> None:
    assert f"no such run folder: {tmp_path}/none" in refused("report", tmp_path / "none")
    said = refused("report", tmp_path)
    assert str(tmp_path) in said


# ---- files for other programs

EVERY = ("float32", "int8", "float16", "dynamic", "int8_io", "onnx", "pt2")
FILES = Path(__file__).parents[2] / "docs" / "files.md"


@pytest.fixture(scope="module")
def exported(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network in every format whose packages the development environment has."""
    pytest.importorskip("onnxruntime")
    out = tmp_path_factory.mktemp("formats") / "run"
    with pytest.MonkeyPatch.context() as patch:
        hold_steady(patch.setattr)
        code = run("export", world.weights, world.images, "--formats", ",".join(EVERY), "--out", out)
    assert code == 0
    return out


def test_export_writes_what_it_is_asked_for(exported: Path, world: World) -> None:
    final = record(exported)["final"]
    assert list(final["files"]) == list(EVERY)
    for kind, name in final["files"].items():
        assert (exported / name).stat().st_size == final["bytes"][kind] > 0
    assert (exported / "model_float32.tflite").read_bytes() == world.float32.read_bytes()
    assert (exported / "model_int8.tflite").read_bytes() == world.int8.read_bytes()
    assert not (exported / "model.pte").exists()


def test_parity_is_written_for_each_file(exported: Path) -> None:
    found = json.loads((exported / "parity.json").read_text())
    assert list(found) == list(EVERY)
    for kind, check in found.items():
        assert check["ok"] and check["kind"] == kind and check["images"] == 24
        assert check["tolerance"]["logits"] == TOLERANCES[kind].logits
    assert found["float32"]["largest"] < found["float16"]["largest"] < found["int8"]["largest"]


def test_each_file_says_whose_it_is_and_how_good(exported: Path) -> None:
    final = record(exported)["final"]
    for kind in EVERY[:5]:
        blob = (exported / final["files"][kind]).read_bytes()
        said = litert.read_metadata(blob)
        assert said is not None and said["accuracy"][kind]["images"] == "24 test images of shades"
        assert labels_of(blob) == list(CLASSES) and packaged(blob) == blob
        if kind in ("float32", "int8"):
            known = final["accuracy_float" if kind == "float32" else "accuracy_int8"]
            assert said["accuracy"][kind]["top1"] == known
    other = onnx.read_metadata((exported / "model.onnx").read_bytes())
    assert other == torch_export.read_metadata((exported / "model.pt2").read_bytes())
    assert other is not None and tuple(other["classes"]) == CLASSES


@pytest.mark.parametrize("kind", EVERY[2:5])
def test_every_litert_file_can_be_evaluated_and_predicted(
    kind: str, exported: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    file = exported / f"model_{kind}.tflite"
    assert run("evaluate", world.images, file) == 0
    said = litert.read_metadata(file.read_bytes())
    assert said is not None
    assert f"top-1 {said['accuracy'][kind]['top1']:.2%}, " in capsys.readouterr().out
    assert run("predict", file, world.images / "red" / "000.png") == 0
    assert "red" in capsys.readouterr().out


def test_a_file_out_of_tolerance_ends_with_3_and_loses_nothing(
    world: World, tmp_path: Path, steady: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    wrong = export_job.FORMATS["float16"]._replace(run=lambda blob, images: np.eye(3)[np.zeros(len(images), int)])
    monkeypatch.setitem(export_job.FORMATS, "float16", wrong)
    out = tmp_path / "run"
    assert run("export", world.weights, world.images, "--formats", "float16,int8", "--out", out) == 3
    said = capsys.readouterr().err.splitlines()[-1]
    assert "do not say what the network says: float16: " in said and "int8" not in said
    assert str(out / "parity.json") in said
    found = json.loads((out / "parity.json").read_text())
    assert (found["float16"]["ok"], found["int8"]["ok"]) == (False, True)
    assert sorted(record(out)["final"]["files"].values()) == ["model_float16.tflite", "model_int8.tflite"]
    assert {"model_float16.tflite", "model_int8.tflite"} <= {path.name for path in out.iterdir()}


def test_formats_that_are_not_there(
    world: World, tmp_path: Path, refused: REFUSED, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["export", world.weights, world.images, "--out", tmp_path / "run", "--formats"]
    assert "unknown format 'onxx'; did you mean 'onnx'?" in refused(*words, "int8,onxx")
    assert "--formats names none; choose from float32, int8, " in refused(*words, " , ")

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(Exception, match="needs the package executorch") as caught:
        export_job._kinds("int8,executorch")
    assert "pip install 'mobilefit[executorch]'" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_every_snippet_of_the_page_runs(
    exported: Path, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mediapipe")
    snippets = re.findall(r"^```python\n(.*?)^```$", FILES.read_text(), re.MULTILINE | re.DOTALL)
    assert len(snippets) == 4
    (exported / "photo.png").write_bytes((world.images / "green" / "001.png").read_bytes())
    monkeypatch.chdir(exported)
    for snippet in snippets[:3]:
        exec(compile(snippet, str(FILES), "exec"), {})
        assert capsys.readouterr().out.startswith("green")
    names: dict[str, Any] = {}
    exec(compile(snippets[3], str(FILES), "exec"), names)
    assert names["logits"].shape == (5, 3)


def test_the_page_knows_the_formats_and_their_tolerances() -> None:
    page = FILES.read_text()
    for kind, form in export_job.FORMATS.items():
        assert re.search(rf"^\| `{kind}` \| `{re.escape(form.file)}` \|", page, re.MULTILINE), kind
        limits = TOLERANCES[kind]
        row = next(line for line in page.splitlines() if f"`{kind}`" in line and " % " in line)
        assert f"| {limits.logits:g}".replace("0.0001", "0.0001") in row
        assert f"| {limits.agreement:.0%}".replace("%", " %") in row
