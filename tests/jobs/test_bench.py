"""``mobilefit bench``: what it measures, writes, warns of and refuses."""

from __future__ import annotations

import csv
import functools
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import flatbuffers
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from PIL import Image
from torch import nn

from mobilefit import litert
from mobilefit.device import busy
from mobilefit.device.profile import profile
from mobilefit.jobs import bench as bench_job
from mobilefit.jobs.bench import LONGEST_SECONDS, BenchConfig, bench
from mobilefit.litert.graph import CODE, Graph, Op, Tensor, serialize
from mobilefit.runtime import ENGINES, StopRule, runtime_version

from .small import World, run

REFUSED = Callable[..., str]
PAGE = Path(__file__).parents[2] / "docs" / "bench.md"


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolution with a dynamic batch."""
    onnx = pytest.importorskip("onnx")
    weight = onnx.numpy_helper.from_array(torch.zeros(4, 3, 3, 3).numpy(), "w")
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", *shape])
             for name, shape in (("x", (3, 8, 8)), ("y", (4, 6, 6)))]  # fmt: skip
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w"], ["y"])], "net", ports[:1], ports[1:], [weight]
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def quiet(monkeypatch: pytest.MonkeyPatch, others: float = 0.0) -> None:
    """A machine that is as busy as that."""
    load = busy.Load(others=others, loadavg=0.5, governor="performance")
    monkeypatch.setattr(busy, "look", lambda core, seconds=0.0: load)
    monkeypatch.setattr(busy, "_looks", {})


# ---- files and runtimes


def test_each_runtime_runs_what_it_reads(world: World, onnx_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    out = tmp_path / "b.csv"
    assert run("bench", onnx_file, world.int8, "--runtimes", "openvino,litert,onnxruntime",
               "--max-secs", 0.2, "--csv", out) == 0  # fmt: skip
    rows = rows_of(out)
    assert [(Path(r["file"]).name, r["runtime"]) for r in rows] == [
        ("net.onnx", "openvino"), ("net.onnx", "onnxruntime"), ("model_int8.tflite", "litert")
    ]  # fmt: skip
    for row in rows:
        assert row["version"] == runtime_version(row["runtime"]) and row["version"] in row["device"]
        assert float(row["p10_ms"]) <= float(row["median_ms"]) <= float(row["p90_ms"])
        assert float(row["load_ms"]) > 0 and float(row["first_ms"]) > 0 and float(row["memory_mib"]) >= 0
    assert [row["partitions"] for row in rows] == ["", "", "1"]
    assert run("bench", onnx_file, "--max-secs", 0.1, "--csv", out) == 0
    assert [row["runtime"] for row in rows_of(out)] == ["onnxruntime"]


def test_runtimes_that_cannot_be(
    world: World, onnx_file: Path, tmp_path: Path, refused: REFUSED, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "unknown runtime 'onnx'; did you mean 'onnxruntime'" in refused(
        "bench", world.int8, "--runtimes", "litert,onnx"
    )
    said = refused("bench", onnx_file, "--runtimes", "litert")
    assert said == f"{onnx_file}: --runtimes litert do not read it; add onnxruntime or openvino"
    said = refused("bench", world.int8, "--runtimes", "openvino")
    assert said == f"{world.int8}: --runtimes openvino do not read it; add litert"
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(onnx_file.read_bytes()[:60])
    assert str(bad) in refused("bench", bad) and "ONNX Runtime cannot load" in refused("bench", bad)


def test_networks_that_take_no_image_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(monkeypatch)
    pair = [Tensor("left", (1, 5)), Tensor("right", (1, 5))]
    total = Tensor("sum", (1, 5))
    graph = Graph(pair, [total], [Op(CODE.ADD, [*pair], [total], schema.AddOptionsT())],
                  input_names=["left", "right"])  # fmt: skip
    model = schema.ModelT.InitFromPackedBuf(serialize(graph), 0)
    for tensor in model.subgraphs[0].tensors:
        tensor.shapeSignature = [-1, 5]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path = tmp_path / "sum.tflite"
    path.write_bytes(bytes(builder.Output()))
    assert run("bench", path, "--max-secs", 0.1) == 0
    err = capsys.readouterr().err.splitlines()
    ports = "left float32 [?, 5], right float32 [?, 5]"
    assert err[-2:] == [
        f"{path}: takes 2 inputs ({ports}); each is given fixed values",
        f"{path}: leaves lengths open ({ports}); timed with 1 there",
    ]


# ---- the protocol


def test_options_are_those_of_benchmark_model() -> None:
    def rule(**options: float) -> StopRule:
        return BenchConfig(files=(), **options).protocol.rule  # type: ignore[arg-type]

    assert rule() == StopRule()
    assert rule(warmup_runs=9) == StopRule(warmup_runs=9)
    assert rule(num_runs=50) == StopRule(min_runs=50, max_seconds=LONGEST_SECONDS)
    assert rule(num_runs=9000, max_secs=3.0) == StopRule(min_runs=9000, max_runs=9000, max_seconds=3)
    assert rule(max_secs=0.5) == StopRule(max_seconds=0.5)


@pytest.mark.parametrize("option", ["--num-threads", "--num-runs", "--max-secs"])
def test_numbers_must_be_above_zero(option: str, world: World, refused: REFUSED) -> None:
    assert f"{option} is " in refused("bench", world.int8, option, 0)
    assert "--warmup-runs is -1" in refused("bench", world.int8, "--warmup-runs", -1)


def test_so_many_runs_are_made(world: World) -> None:
    (found,) = bench(BenchConfig(files=(world.int8,), num_runs=300, warmup_runs=0))
    assert found.runs >= 300 and found.threads == 1
    (found,) = bench(BenchConfig(files=(world.int8,), num_threads=2, max_secs=0.1))
    assert found.threads == 2 and found.core is None


# ---- a busy machine


def test_a_busy_machine_is_said_or_refused(
    world: World, tmp_path: Path, steady: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], refused: REFUSED,
) -> None:  # fmt: skip
    out = tmp_path / "b.csv"
    quiet(monkeypatch, 0.63)
    said = refused("bench", world.int8, "--core", 0, "--strict", "--csv", out)
    assert said == ("the machine is busy: others take 63% of core 0; end them or measure without "
                    "--strict")  # fmt: skip
    assert not out.exists()
    assert run("bench", world.int8, "--core", 0, "--csv", out) == 0
    assert capsys.readouterr().err.splitlines() == [
        "warning: the machine is busy: others take 63% of core 0, the figures may be too high"
    ]
    (row,) = rows_of(out)
    assert (row["busy"], row["others"], row["governor"]) == ("True", "0.63", "performance")
    quiet(monkeypatch)
    assert run("bench", world.int8, "--strict", "--csv", out) == 0
    assert "busy" not in capsys.readouterr().err and rows_of(out)[0]["busy"] == "False"


# ---- what it writes


def test_everything_is_written(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet(monkeypatch)
    monkeypatch.setattr(bench_job, "profile", functools.partial(profile, rounds=1))
    config = BenchConfig(
        files=(world.int8, world.float32), max_secs=0.2, csv=tmp_path / "b.csv",
        json=tmp_path / "b.json", plot=tmp_path / "b.png", enable_op_profiling=True,
    )  # fmt: skip
    found = bench(config)
    out = capsys.readouterr().out
    made = json.loads((tmp_path / "b.json").read_text())
    assert [r["median_ms"] for r in made["rows"]] == [round(x.median_ms, 5) for x in found]
    assert made["protocol"] == asdict(config.protocol) and made["machine"]["cpu"]
    assert set(made["profiles"]) == {str(world.int8), str(world.float32)}
    times = made["profiles"][str(world.int8)]
    assert times[0]["op"] == "QUANTIZE" and times[-1]["op"] == "DEQUANTIZE"
    assert sum(t["ms"] for t in times) > 0 and f"{world.int8}: what each operator adds" in out
    assert Image.open(tmp_path / "b.png").width > 500
    assert [row["file"] for row in rows_of(tmp_path / "b.csv")] == [str(world.int8), str(world.float32)]


def test_an_earlier_csv_is_compared_with(
    world: World, tmp_path: Path, steady: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], refused: REFUSED,
) -> None:  # fmt: skip
    quiet(monkeypatch)
    old = tmp_path / "old.csv"
    assert run("bench", world.int8, world.float32, "--csv", old) == 0
    rows = rows_of(old)
    rows[1] |= {"median_ms": str(2 * float(rows[1]["median_ms"])), "version": "ai-edge-litert 1.0"}
    with old.open("w") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    before = old.read_text()
    capsys.readouterr()
    assert run("bench", world.int8, world.float32, "--compare", old) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4].startswith("against old.csv")
    assert re.search(r"model_int8.tflite .* 1\.000 .* within the noise$", lines[-3])
    assert re.search(r"model_float32.tflite .* 0\.500 .* faster$", lines[-2])
    assert lines[-1].startswith("NOT ALIKE: another runtime version (ai-edge-litert 1.0, now")
    assert old.read_text() == before
    (tmp_path / "no.csv").write_text("nothing")
    assert "no.csv is not a CSV of mobilefit bench" in refused(
        "bench", world.int8, "--compare", tmp_path / "no.csv"
    )


def test_a_picture_has_a_known_ending(world: World, tmp_path: Path, refused: REFUSED) -> None:
    said = refused("bench", world.int8, "--plot", tmp_path / "b.jpeg")
    assert "b.jpeg is no picture" in said and ".svg or .png" in said


def test_a_file_that_the_runtime_refuses_is_named(
    world: World, tmp_path: Path, refused: REFUSED
) -> None:
    net = litert.compile(nn.Conv2d(3, 4, 3).eval(), (1, 3, 8, 8))
    model = schema.ModelT.InitFromPackedBuf(net, 0)
    model.operatorCodes[0].builtinCode = model.operatorCodes[0].deprecatedBuiltinCode = 0  # ADD
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path = tmp_path / "odd.tflite"
    path.write_bytes(bytes(builder.Output()))
    said = refused("bench", world.int8, path)
    assert said.startswith(f"{path}: LiteRT c")


# ---- the page


def test_the_page_names_every_option_and_runtime() -> None:
    text = PAGE.read_text()
    for name in BenchConfig.__dataclass_fields__:
        if name not in ("files", "device", "benchmark_model"):
            assert f"`--{name.replace('_', '-')}" in text, name
    for name in ENGINES:
        assert f"`{name}`" in text, name


def test_the_pages_commands_run(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steady: None
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("int8", "float32"):
        (tmp_path / f"model_{name}.tflite").write_bytes(getattr(world, name).read_bytes())
    commands = re.findall(r"^    mobilefit (bench .*)$", PAGE.read_text(), re.MULTILINE)
    mine = [shlex.split(command) for command in commands if ".onnx" not in command]
    assert len(mine) >= 3
    for words in mine:
        assert run(*words) == 0, words
    assert {path.suffix for path in tmp_path.iterdir()} == {".tflite", ".csv", ".svg", ".json"}
