"""The worker: results, timing, inspection, and a child that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from litert_quantizer import quantizer as stock
from litert_quantizer import recipe
from torch import nn

from mobilefit.errors import InputError
from mobilefit.int8 import with_random_ranges
from mobilefit.litert import compile
from mobilefit.litert.graph import Quantization, parse, serialize
from mobilefit.runtime import RuntimeCrash, StopRule, Worker, available_cores

QUICK = StopRule(warmup_seconds=0.0, min_runs=5, min_seconds=0.0, max_seconds=0.2)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.Conv2d(8, 4, 1)).eval()


@pytest.fixture(scope="module")
def blob(net):
    return compile(net, (1, 3, 16, 16))


@pytest.fixture(scope="module")
def fatal(blob):
    """A file whose enormous scale makes LiteRT abort."""
    return with_scale(blob, 3e38)


def with_scale(blob, value):
    graph = parse(with_random_ranges(blob))
    for op in graph.ops[2:4]:  # the parts of the h-swish
        op.output.quantization = Quantization(np.asarray([value], np.float32), np.asarray([0]))
    return serialize(graph)


# ---- running


@pytest.mark.parametrize("threads", [1, 2])
def test_any_number_of_images_runs(net, blob, threads, worker, images, reference):
    array = images((5, 3, 16, 16))
    result = worker.run(blob, array, threads=threads)
    assert abs(result - reference(net, array)).max() < 1e-5
    assert worker.run(blob, array[:0]).shape == (0, 14, 14, 4)


class Both(nn.Module):
    def forward(self, x):
        return x + x, x.mean([2, 3])


def test_every_output_is_given_for_any_number_of_images(worker, images):
    blob, array = compile(Both(), (1, 3, 4, 5)), images((3, 3, 4, 5))
    twice, mean = worker.outputs(blob, array)
    assert np.allclose(twice, 2 * array) and np.allclose(mean, array.mean((1, 2)), atol=1e-6)
    assert np.array_equal(worker.run(blob, array), twice)
    assert [x.shape for x in worker.outputs(blob, array[:0])] == [(0, 4, 5, 3), (0, 3)]


@pytest.mark.parametrize("shape, dtype", [((1, 3, 16, 16), "f4"), ((1, 16, 16, 3), "f8")])
def test_an_array_that_does_not_fit_is_refused(blob, shape, dtype, worker):
    with pytest.raises(InputError, match=r"takes float32 arrays of shape \[1, 16, 16, 3\]"):
        worker.run(blob, np.zeros(shape, dtype))


def test_more_files_than_the_child_keeps(worker, images):
    array = images((1, 3, 8, 8))
    nets = [nn.Conv2d(3, 1, 1) for _ in range(12)]
    blobs = [compile(net, (1, 3, 8, 8)) for net in nets]
    first = [worker.run(blob, array) for blob in blobs]
    again = [worker.run(blob, array) for blob in blobs]
    assert np.array_equal(first, again) and not np.array_equal(first[0], first[1])


# ---- timing


def test_timing_gives_milliseconds(blob, worker):
    samples = worker.time(blob, core=min(available_cores()), rule=QUICK)
    assert len(samples) >= QUICK.min_runs
    assert 0 < min(samples) <= samples.median <= max(samples) < 1000


def test_timing_tells_whether_the_median_was_stable(blob, worker):
    quick = worker.time(blob, rule=StopRule(min_runs=5, min_seconds=0.0, spread=10.0))
    endless = worker.time(blob, rule=StopRule(min_seconds=9.0, max_seconds=0.1))
    assert quick.stable and not endless.stable


def test_a_larger_network_takes_longer(worker):
    small, large = (compile(nn.Conv2d(8, 8 * n, 3), (1, 8, 64, 64)) for n in (1, 16))
    a, b = worker.time_many([small, large], rule=QUICK)
    assert a.median * 2 < b.median


def test_many_files_and_the_same_file_twice_are_timed(blob, worker):
    blobs = [compile(nn.Conv2d(3, n, 1), (1, 3, 8, 8)) for n in range(1, 12)]
    timed = worker.time_many([*blobs, blob, blob], rule=QUICK)
    assert len(timed) == 13 and all(timed)


def test_a_pin_that_cannot_be_is_refused(blob, worker):
    with pytest.raises(InputError, match="one core"):
        worker.time(blob, threads=2, core=0)
    with pytest.raises(InputError, match="core 4096"):
        worker.time(blob, core=4096)


# ---- inspecting


def test_operators_outside_of_the_delegate_are_found(blob, worker, images):
    whole = worker.inspect(blob)
    assert whole.ops == ("CONV_2D", "HARD_SWISH", "CONV_2D")
    assert (whole.partitions, whole.outside) == (1, ())
    assert whole.runtime.startswith("ai-edge-litert 2")
    assert whole.inputs == ("input float32 [1, 16, 16, 3]",)
    tool = stock.Quantizer(blob, recipe.static_wi8_ai8())  # leaves int8 HARD_SWISH in the graph
    ranges = tool.calibrate({"serving_default": [{"input": images((1, 3, 16, 16))}]})
    split = worker.inspect(bytes(tool.quantize(ranges).quantized_model))
    assert (split.partitions, split.outside) == (2, ("HARD_SWISH",))


# ---- dying


def test_a_file_that_aborts_the_runtime_costs_only_the_child(blob, fatal, images):
    with Worker() as worker:
        array = images((1, 3, 16, 16))
        before = worker.run(blob, array)
        with pytest.raises(RuntimeCrash, match="SIGABRT") as caught:
            worker.run(fatal, array)
        assert "\n" not in str(caught.value) and caught.value.exit_code == 2
        assert np.array_equal(worker.run(blob, array), before)


def test_a_killed_child_is_told_and_replaced(blob, images):
    with Worker() as worker:
        worker.inspect(blob)
        os.kill(worker._child.process.pid, signal.SIGKILL)
        with pytest.raises(RuntimeCrash, match="SIGKILL"):
            worker.inspect(blob)
        assert worker.inspect(blob).partitions == 1


@pytest.mark.parametrize("scale", [np.inf, np.nan, -1.0])
def test_a_scale_that_is_no_number_does_not_reach_the_runtime(blob, scale, worker):
    worker.inspect(blob)
    child = worker._child.process.pid
    with pytest.raises(InputError, match=f"the scale of .*tensor '1/.*' is {scale:g}") as caught:
        worker.inspect(with_scale(blob, scale))
    assert not isinstance(caught.value, RuntimeCrash)
    assert worker._child.process.pid == child


def test_a_child_that_hangs_is_given_up(blob):
    with Worker(patience=1.0) as worker:
        worker.inspect(blob)
        process = worker._child.process
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(RuntimeCrash, match="LiteRT gave no sign of life for 1 s"):
            worker.inspect(blob)
        assert process.returncode is not None
        assert worker.inspect(blob).partitions == 1


def test_long_work_gives_signs_of_life(blob):
    endless = StopRule(max_runs=10**9, min_seconds=9.0, max_seconds=1.2)
    with Worker() as worker:
        worker.inspect(blob)  # the child starts
        worker.patience = 0.6
        assert not worker.time(blob, rule=endless).stable


@pytest.mark.parametrize("share", [0.1, 0.6, 0.99])
def test_a_truncated_file_leaves_the_child_alive(blob, share, worker):
    worker.inspect(blob)
    child = worker._child.process.pid
    with pytest.raises(InputError, match="truncated or corrupt"):
        worker.inspect(blob[: int(len(blob) * share)])
    assert worker._child.process.pid == child


def test_closing_ends_the_child(blob):
    worker = Worker()
    worker.inspect(blob)
    process = worker._child.process
    worker.close()
    assert process.returncode is not None


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_parent_leaves_no_child(kill, blob, tmp_path):
    """Ctrl-C reaches the whole group of processes, SIGKILL the parent alone."""
    (tmp_path / "net.tflite").write_bytes(blob)
    script = textwrap.dedent("""
        import sys
        from mobilefit.runtime.worker import StopRule, Worker
        blob, worker = open(sys.argv[1], "rb").read(), Worker()
        worker.inspect(blob)
        print(worker._child.process.pid, flush=True)
        worker.time(blob, rule=StopRule(max_runs=10**9, max_seconds=60.0, spread=0.0))
    """)
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "net.tflite")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.3)
    (os.killpg if kill == signal.SIGINT else os.kill)(parent.pid, kill)
    parent.communicate(timeout=10)
    assert _gone(child)


def _gone(pid: int) -> bool:
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def test_importing_the_room_loads_neither_torch_nor_litert():
    code = "import sys, mobilefit.runtime; print({'torch', 'ai_edge_litert'} & set(sys.modules))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert out.stdout.strip() == "set()"
