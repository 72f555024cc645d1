"""One suite over every verb of the command line."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jobs.small import SPEC, World, record, run
from PIL import Image

from mobilefit.arch import NetSpec
from mobilefit.cli.main import VERBS
from mobilefit.commands.design import DesignConfig
from mobilefit.jobs import demo_server, plan
from mobilefit.jobs import doctor as doctor_job
from mobilefit.jobs.adapt import AdaptConfig
from mobilefit.jobs.bench import BenchConfig
from mobilefit.jobs.demo import DemoConfig
from mobilefit.jobs.doctor import DoctorConfig
from mobilefit.jobs.evaluate import EvaluateConfig
from mobilefit.jobs.export import ExportConfig
from mobilefit.jobs.info import InfoConfig
from mobilefit.jobs.predict import PredictConfig
from mobilefit.jobs.quantize import QuantizeConfig
from mobilefit.jobs.report import ReportConfig
from mobilefit.jobs.search import SearchConfig
from mobilefit.jobs.train import TrainConfig

every_verb = pytest.mark.parametrize("verb", VERBS)


def home(verb: str) -> tuple[Any, type[Any]]:
    module = importlib.import_module(f"mobilefit.{VERBS[verb].home}")
    return module, getattr(module, VERBS[verb].config)


def options(verb: str, *, arguments: bool) -> list[dataclasses.Field[Any]]:
    fields = dataclasses.fields(home(verb)[1])
    return [field for field in fields if field.metadata["argument"] is arguments]


def flag(field: dataclasses.Field[Any]) -> str:
    return f"--{field.name.replace('_', '-')}"


# ---- what a verb says of itself


@every_verb
def test_help_names_every_option(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb, "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert VERBS[verb].help in shown
    for field in options(verb, arguments=False):
        assert re.search(rf"{flag(field)}\b", shown), field.name
    for field in options(verb, arguments=True):
        assert field.name.upper() in shown
    for field in dataclasses.fields(home(verb)[1]):
        assert " ".join(field.metadata["help"].split()) in shown, field.name


@every_verb
def test_an_unknown_option_names_the_nearest(verb: str, refused: Callable[..., str]) -> None:
    name = max(["--help", *map(flag, options(verb, arguments=False))], key=len)
    said = refused(verb, f"{name}x", "1")
    assert f"{name}x" in said and re.search(rf"{name}\b(?!x)", said), said
    assert said.endswith(f"see mobilefit {verb} --help")


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "doctor"])
def test_a_missing_argument_is_named(verb: str, refused: Callable[..., str]) -> None:
    needed = options(verb, arguments=True)
    said = refused(verb)
    assert "Missing argument" in said and f"'{needed[0].name.upper()}" in said


# ---- from the command line and from a script

Config = Callable[[World, Path, Path], Any]

# How a script calls each verb; the third argument is a finished design.
CONFIGS: dict[str, Config] = {
    "design": lambda w, out, done: DesignConfig(
        data=str(w.images), latency="75%", seed_network=str(w.spec), resolution=32, epochs=1.0,
        delta=0.02, tune_steps=2, out=done,
    ),
    "search": lambda w, out, done: SearchConfig(
        data=str(w.images), latency="90%", space=str(w.space), resolution=32, trials=4, top=2,
        epochs=1.0, out=out,
    ),
    "info": lambda w, out, done: InfoConfig(model=str(w.spec), width=0.5),
    "train": lambda w, out, done: TrainConfig(
        data=str(w.images), model=str(w.spec), resolution=32, steps=3, batch_size=16, seed=3, out=out
    ),
    "evaluate": lambda w, out, done: EvaluateConfig(
        data=str(w.images), model=w.weights, part="holdout"
    ),
    "predict": lambda w, out, done: PredictConfig(
        file=w.int8, images=(w.images / "red" / "000.png", w.images / "blue"), top=2
    ),
    "demo": lambda w, out, done: DemoConfig(files=(w.int8, w.float32), port=0, max_mb=2.5),
    "adapt": lambda w, out, done: AdaptConfig(
        weights=w.weights, data=str(w.images), latency="90%", delta=0.05, tune_steps=2,
        table=done / "latency_table.json", out=out,
    ),
    "quantize": lambda w, out, done: QuantizeConfig(
        file=w.float32, data=str(w.images), images=12, max_drop=100.0, out=out
    ),
    "export": lambda w, out, done: ExportConfig(weights=w.weights, data=str(w.images), out=out),
    "bench": lambda w, out, done: BenchConfig(files=(w.int8, w.float32), csv=out / "bench.csv"),
    "report": lambda w, out, done: ReportConfig(run=done),
    "doctor": lambda w, out, done: DoctorConfig(data=str(w.images), out=out),
}  # fmt: skip

WRITES: dict[str, set[str]] = {
    "train": {"config.json", "record.json", "metrics.jsonl", "model.safetensors", "report.html"},
    "search": {"config.json", "record.json", "seed.json", "model.safetensors", "report.html",
               "search/trials.jsonl", "latency_table.json"},
    "adapt": {"record.json", "adapted.json", "model.safetensors", "latency_table.json",
              "netadapt/netadapt.jsonl"},
    "quantize": {"config.json", "record.json", "model_int8.tflite"},
    "export": {"record.json", "model_float32.tflite", "model_int8.tflite"},
    "bench": {"bench.csv"},
}  # fmt: skip


def words_of(verb: str, config: Any) -> list[str]:
    """The command line that gives a configuration, made by hand from its fields."""
    words = [verb]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata["argument"]:
            words += map(str, value if isinstance(value, tuple) else [value])
        elif value is True:
            words.append(flag(field))
        elif value is not False and value is not None:
            for each in value if isinstance(value, tuple) else [value]:
                words += [flag(field), str(each)]
    return words


@pytest.fixture(scope="module")
def designed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole design, measured for real."""
    done = tmp_path_factory.mktemp("runs") / "design"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "PROBE_SECONDS", 0.01)
        code = run(*words_of("design", CONFIGS["design"](world, done, done)))
    assert code in (0, 3)  # 3: the machine was slower at the end than at the start
    return done


def test_the_suite_has_every_verb() -> None:
    assert set(CONFIGS) == set(VERBS)


@every_verb
def test_the_command_line_gives_the_same_configuration(
    verb: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, seen = CONFIGS[verb](world, tmp_path, tmp_path), []
    monkeypatch.setattr(home(verb)[0], verb, seen.append)
    assert run(*words_of(verb, config)) == 0
    assert seen == [config]


@every_verb
def test_it_runs_and_writes_what_it_says(
    verb: str, world: World, designed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(doctor_job, "DRIFT", 10.0)
    monkeypatch.setattr(demo_server, "serve", lambda app, listening: None)
    config = CONFIGS[verb](world, tmp_path, designed)
    code = run(*words_of(verb, config))
    out = capsys.readouterr().out
    assert code == 0 or (verb == "design" and code == 3)
    assert out.strip()
    for name in WRITES.get(verb, ()):
        assert (tmp_path / name).stat().st_size > 0, name
    for line in out.splitlines():  # a path that is printed is there
        path = line.rpartition(" ")[2]
        if path.startswith("/") and Path(path).suffix in (".tflite", ".html", ".safetensors"):
            assert Path(path).exists(), path
    if "record.json" in WRITES.get(verb, ()):
        made = record(tmp_path)
        assert made["verb"] == verb and made["command"].startswith(f"mobilefit {verb} ")
        assert made["data"]["classes"] == ["blue", "green", "red"]
        assert made["machine"]["packages"] and made["started"] <= made["finished"]


@pytest.mark.parametrize("verb", ["info", "evaluate", "predict", "report", "export", "train"])
def test_a_script_gets_the_result(
    verb: str, world: World, designed: Path, tmp_path: Path, steady: None
) -> None:
    module, _ = home(verb)
    result = getattr(module, verb)(CONFIGS[verb](world, tmp_path, designed))
    checks: dict[str, Callable[[], bool]] = {
        "info": lambda: result == SPEC.width(0.5),
        "evaluate": lambda: result.count == 9,
        "predict": lambda: len(result) == 41 and len(result[0]["classes"]) == 2,
        "report": lambda: result == designed / "report.html",
        "export": lambda: result == record(tmp_path),
        "train": lambda: result == record(tmp_path),
    }
    assert checks[verb]()


# ---- design, measured for real


def test_a_design_takes_several_steps_and_keeps_its_promise(designed: Path) -> None:
    made = record(designed)
    rows = [json.loads(line) for line in (designed / "netadapt/netadapt.jsonl").open()]
    steps = [row for row in rows if row["event"] == "accepted"]
    assert len(steps) >= 2
    final, seed = NetSpec.from_dict(made["final_spec"]), NetSpec.from_dict(made["seed_spec"])
    assert seed.id == SPEC.id and final.cost().madds < 0.9 * seed.cost().madds
    assert final.id == steps[-1]["spec_id"]
    kinds = [row["kind"] for row in made["results"]]
    assert kinds == ["seed", "adapted", "width"]
    medians = {row["kind"]: row["latency"]["median_ms"] for row in made["results"]}
    assert made["budget_ms"] == pytest.approx(0.75 * made["reference_ms"])
    assert medians["adapted"] < medians["seed"]
    assert made["final"]["latency_float"]["median_ms"] > 0


def test_the_page_of_a_design_stands_alone(designed: Path) -> None:
    page = (designed / "report.html").read_text()
    assert "<svg" in page or "data:image" in page
    assert not re.search(r'(src|href)="(https?:|[^"#d])', page)
    for name in ("blue", "green", "red"):
        assert name in page


# ---- verbs that print


def test_bench_writes_a_row_a_file(world: World, tmp_path: Path, steady: None) -> None:
    assert run("bench", world.int8, world.float32, "--csv", tmp_path / "b.csv") == 0
    rows = list(csv.DictReader((tmp_path / "b.csv").open()))
    assert list(rows[0]) == [
        "file", "runtime", "median_ms", "p10_ms", "p90_ms", "ratio", "runs", "stable", "partitions",
        "load_ms", "first_ms", "memory_mib", "bytes", "threads", "core", "device", "version", "busy",
        "others", "governor", "date",
    ]  # fmt: skip
    assert [row["file"] for row in rows] == [str(world.int8), str(world.float32)]
    assert rows[0]["ratio"] == "1.0" and float(rows[1]["ratio"]) > 2
    assert rows[0]["partitions"] == "1" and int(rows[0]["bytes"]) == world.int8.stat().st_size


def test_info_goes_round_as_json(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("info", "mobilenet_v3_small", "--width", "0.5", "--resolution", "96", "--json") == 0
    text = capsys.readouterr().out
    (tmp_path / "half.json").write_text(text)
    assert run("info", tmp_path / "half.json", "--json") == 0
    assert capsys.readouterr().out == text
    assert run("info", tmp_path / "half.json", "--against", "mobilenet_v3_small") == 0
    said = capsys.readouterr().out
    assert "input_size 224 -> 96" in said and "blocks.0.out 16 -> 8" in said
    assert run("info", world.spec, "--against", world.spec) == 0
    assert capsys.readouterr().out == "nothing differs\n"


@pytest.mark.parametrize("kind", ["weights", "float32", "int8"])
def test_evaluate_agrees_with_the_export(
    kind: str, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate", world.images, getattr(world, kind)) == 0
    lines = capsys.readouterr().out.splitlines()
    made = record(world.int8.parent)["final"]
    top1 = made["accuracy_int8" if kind == "int8" else "accuracy_float"]
    assert lines[-1].startswith(f"top-1 {top1:.2%}, ") and lines[-1].endswith("on 24 test images")
    assert [line.split()[0] for line in lines[:-1]] == ["blue", "green", "red"]
    assert top1 > 0.5


def test_predict_goes_on_after_a_bad_image(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "c"):
        Image.open(world.images / "red" / "001.png").save(tmp_path / f"{name}.png")
    (tmp_path / "b.jpg").write_text("no image")
    assert run("predict", world.int8, tmp_path, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    by_name = {Path(row["image"]).name: row for row in rows}
    assert set(by_name) == {"a.png", "b.jpg", "c.png"}
    assert "b.jpg" in by_name["b.jpg"]["problem"] and "classes" not in by_name["b.jpg"]
    assert by_name["a.png"]["classes"] == by_name["c.png"]["classes"]
    assert sum(row["share"] for row in by_name["a.png"]["classes"]) == pytest.approx(1)
    assert run("predict", world.int8, tmp_path) == 0
    out, err = capsys.readouterr()
    shown = out.splitlines()
    assert len(shown) == 2 and shown[0].startswith(f"{tmp_path}/a.png  ")
    assert "left out: " in err and "b.jpg" in err


def test_doctor_looks_at_the_images_and_at_the_clock(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    steady: None,
) -> None:  # fmt: skip
    assert run("doctor", world.images, "--out", tmp_path) == 0
    out = capsys.readouterr().out
    for check in ("compile and run", "latency", "space", "images"):
        assert f"ok   {check}: " in out
    assert "3 classes; 87 train, 9 holdout, 24 test" in out
    monkeypatch.setattr(doctor_job, "DRIFT", -1.0)
    assert run("doctor", world.images / "nowhere") == 3
    out, err = capsys.readouterr()
    assert "FAIL latency: five medians" in out and "FAIL images: no such folder" in out
    assert err.startswith("mobilefit: not ready: latency, images; ")
