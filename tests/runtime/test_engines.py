"""The runtimes beside LiteRT: results, timing side by side, what is missing or damaged."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import nn

from mobilefit import litert
from mobilefit.errors import InputError
from mobilefit.litert.graph import CODE, Graph, Op, Tensor, serialize
from mobilefit.runtime import ENGINES, StopRule, Worker, available_cores, cost, runtime_version

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

QUICK = StopRule(warmup_seconds=0.0, min_runs=5, min_seconds=0.0, max_seconds=0.2)
ONNX = [name for name, engine in ENGINES.items() if engine.suffix == ".onnx"]


@pytest.fixture(scope="module")
def conv() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(3, 4, 3).eval()


def onnx_of(conv: nn.Conv2d, batch: int | str, inputs: int = 1) -> bytes:
    """A convolution, and the sum of its outputs for several inputs."""
    values = [
        onnx.numpy_helper.from_array(p.detach().numpy(), name) for name, p in conv.named_parameters()
    ]
    outputs = ["z"] if inputs == 1 else [f"y{i}" for i in range(inputs)]
    nodes = [
        onnx.helper.make_node("Conv", [f"x{i}", "weight", "bias"], [y]) for i, y in enumerate(outputs)
    ]
    if inputs > 1:
        nodes.append(onnx.helper.make_node("Sum", outputs, ["z"]))
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes, "net",
        [onnx.helper.make_tensor_value_info(f"x{i}", kind, [batch, 3, 8, 8]) for i in range(inputs)],
        [onnx.helper.make_tensor_value_info("z", kind, [batch, 4, 6, 6])], values,
    )  # fmt: skip
    opset = [onnx.helper.make_opsetid("", 18)]
    blob: bytes = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()
    return blob


@pytest.mark.parametrize("runtime", ONNX)
def test_every_output_is_given(runtime: str, worker: Worker) -> None:
    kind, helper = onnx.TensorProto.FLOAT, onnx.helper
    nodes = [helper.make_node("Neg", ["x"], ["minus"]), helper.make_node("Abs", ["x"], ["size"])]
    ports = [helper.make_tensor_value_info(name, kind, [1, 3]) for name in ("x", "minus", "size")]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    array = np.asarray([[1, -2, 3], [-4, 5, 6]], np.float32)
    minus, size = worker.outputs(model.SerializeToString(), array, runtime=runtime)
    assert np.array_equal(minus, -array) and np.array_equal(size, abs(array))


@pytest.mark.parametrize("runtime", ONNX)
@pytest.mark.parametrize("batch", [1, 2, "n"])
def test_any_number_of_images_runs(
    runtime: str, batch: int | str, conv: nn.Conv2d, worker: Worker
) -> None:
    array = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    blob = onnx_of(conv, batch)
    result = worker.run(blob, array, runtime=runtime)
    with torch.no_grad():
        assert abs(result - conv(torch.from_numpy(array)).numpy()).max() < 1e-5
    assert worker.run(blob, array[:0], runtime=runtime).shape == (0, 4, 6, 6)


@pytest.mark.parametrize("runtime", ONNX)
def test_what_a_file_takes_is_told(runtime: str, conv: nn.Conv2d, worker: Worker) -> None:
    found = worker.inspect(onnx_of(conv, "n"), runtime=runtime)
    assert found.inputs == ("x0 float32 [?, 3, 8, 8]",)
    assert found.outputs == ("z float32 [?, 4, 6, 6]",)
    assert found.runtime == runtime_version(runtime)
    with pytest.raises(InputError, match=r"takes float32 arrays of shape \[1, 3, 8, 8\]"):
        worker.run(onnx_of(conv, 1), np.zeros((1, 8, 8, 3), np.float32), runtime=runtime)
    with pytest.raises(InputError, match=r"takes 2 inputs \(x0 float32 \[1, 3, 8, 8\], x1 float32"):
        worker.run(onnx_of(conv, 1, 2), np.zeros((1, 3, 8, 8), np.float32), runtime=runtime)


def test_all_runtimes_are_timed_side_by_side(conv: nn.Conv2d, worker: Worker) -> None:
    wide = nn.Conv2d(3, 1024, 3)
    files = {
        "litert": [litert.compile(net, (1, 3, 8, 8)) for net in (conv, wide)],
        **{name: [onnx_of(net, "n") for net in (conv, wide)] for name in ONNX},
    }
    blobs = [blob for pair in files.values() for blob in pair]
    runtimes = [name for name in files for _ in range(2)]
    timed = worker.time_many(blobs, runtimes=runtimes, core=max(available_cores()), rule=QUICK)
    medians = [samples.median for samples in timed]
    assert all(len(samples) >= QUICK.min_runs for samples in timed)
    assert all(narrow < wide for narrow, wide in zip(medians[::2], medians[1::2])), medians


@pytest.mark.parametrize("runtime", ONNX)
def test_one_thread_is_one_thread(runtime: str, conv: nn.Conv2d) -> None:
    """The processor's time of a second of runs is not more than that second, unpinned."""
    net = nn.Conv2d(3, 256, 3)
    rule = StopRule(min_seconds=9.0, max_runs=10**9, max_seconds=1.0)
    with Worker() as worker:
        worker.inspect(onnx_of(net, 1), runtime=runtime)
        before = processor_seconds(worker)
        samples = worker.time(onnx_of(net, 1), runtime=runtime, rule=rule)
        spent = processor_seconds(worker) - before
    assert sum(samples) / 1e3 > 0.05
    assert spent < 1.4


def processor_seconds(worker: Worker) -> float:
    assert worker._child is not None
    fields = Path(f"/proc/{worker._child.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("runtime", ONNX)
@pytest.mark.parametrize("damage", ["cut", "empty", "text", "litert"])
def test_a_damaged_file_is_refused(
    runtime: str, damage: str, conv: nn.Conv2d, worker: Worker
) -> None:
    good = onnx_of(conv, 1)
    bad = {"cut": good[: len(good) // 2], "empty": b"", "text": b"no network " * 9,
           "litert": litert.compile(conv, (1, 3, 8, 8))}[damage]  # fmt: skip
    with pytest.raises(InputError, match=f"{ENGINES[runtime].label} cannot load the model"):
        worker.inspect(bad, runtime=runtime)


def test_an_unknown_runtime_names_the_nearest(worker: Worker) -> None:
    with pytest.raises(InputError, match="unknown runtime 'openvno'; did you mean 'openvino'"):
        worker.inspect(b"", runtime="openvno")


@pytest.mark.parametrize("runtime", ONNX)
def test_a_missing_runtime_names_its_extra(
    runtime: str, conv: nn.Conv2d, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module of the runtime's name that fails as an absent one does, in this process and the child."""
    (tmp_path / f"{runtime}.py").write_text(f"raise ModuleNotFoundError('No module {runtime}')")
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.metadata as m\nknown = m.version\n"
        "def version(name):\n"
        f"    if name == {runtime!r}: raise m.PackageNotFoundError(name)\n"
        "    return known(name)\n"
        "m.version = version\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    extra = ENGINES[runtime].extra
    with Worker() as worker, pytest.raises(InputError) as caught:
        worker.inspect(onnx_of(conv, 1), runtime=runtime)
    assert caught.value.message == f"{ENGINES[runtime].label} is not installed"
    assert caught.value.hint == f"pip install 'mobilefit[{extra}]'"


def test_versions() -> None:
    for name, engine in ENGINES.items():
        version = importlib.metadata.version(engine.package)
        assert runtime_version(name) == f"{engine.package} {version}"


def test_litert_alone_is_loaded_for_litert_files() -> None:
    code = (
        "import sys; from mobilefit.runtime import _child; "
        "_child._home(('', 'litert')); print({'onnxruntime', 'openvino', 'torch'} & {*sys.modules})"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert out.stdout.strip() == "set()", out.stderr


# ---- LiteRT files that are no image networks


def sum_of(shapes: list[tuple[int, ...]], open_side: bool = False) -> bytes:
    """Inputs added up; ``open_side``: their first length is left open."""
    inputs = [Tensor(f"in{i}", shape) for i, shape in enumerate(shapes)]
    total = Tensor("sum", shapes[0])
    graph = Graph(inputs, [total], [Op(CODE.ADD, [*inputs], [total])],
                  input_names=[t.name for t in inputs])  # fmt: skip
    graph.ops[0].options = schema.AddOptionsT()
    return serialize(graph) if not open_side else with_open_side(serialize(graph))


def with_open_side(blob: bytes) -> bytes:
    model = schema.ModelT.InitFromPackedBuf(blob, 0)
    for tensor in model.subgraphs[0].tensors:
        tensor.shapeSignature = [-1, *tensor.shape[1:]]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def test_several_inputs_are_timed_and_told_but_not_run(worker: Worker) -> None:
    blob = sum_of([(1, 3), (1, 3)])
    assert len(worker.time(blob, rule=QUICK)) >= 5
    with pytest.raises(InputError, match=r"takes 2 inputs \(.*in0.* float32 \[1, 3\], .*in1"):
        worker.run(blob, np.zeros((1, 3), np.float32))


def test_an_open_length_is_told(worker: Worker) -> None:
    blob = sum_of([(1, 5), (1, 5)], open_side=True)
    assert all("float32 [?, 5]" in port for port in worker.inspect(blob).inputs)
    assert len(worker.time(blob, rule=QUICK)) >= 5


# ---- cost


def test_a_larger_network_costs_more() -> None:
    small, large = (
        litert.compile(nn.Sequential(nn.Conv2d(8, n, 3), nn.Conv2d(n, n, 3)).eval(), (1, 8, 32, 32))
        for n in (8, 512)
    )
    little, much = (cost(blob, core=max(available_cores())) for blob in (small, large))
    weights = 512 * 512 * 9 * 4 / 2**20
    assert much.memory_mib > weights and much.memory_mib > little.memory_mib + weights / 2
    assert much.first_ms > little.first_ms and much.load_ms > 0
    assert much.idle_mib <= much.loaded_mib <= much.peak_mib


@pytest.mark.parametrize("runtime", ONNX)
def test_other_runtimes_cost_something(runtime: str, conv: nn.Conv2d) -> None:
    found = cost(onnx_of(conv, 1), runtime=runtime)
    assert found.load_ms > 0 and found.first_ms > 0 and found.memory_mib > 0


def test_the_cost_of_a_damaged_file_is_an_error(conv: nn.Conv2d) -> None:
    blob = litert.compile(conv, (1, 3, 8, 8))
    with pytest.raises(InputError, match="truncated or corrupt"):
        cost(blob[: len(blob) // 2])
    with pytest.raises(InputError, match="cannot be pinned"):
        cost(blob, threads=2, core=0)
