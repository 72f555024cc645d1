"""What a measurement holds, and the real one."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict

import pytest
import torch
from torch import nn

from mobilefit.device import Latency, Protocol, device_id, measure, measure_many
from mobilefit.errors import InputError
from mobilefit.litert import compile
from mobilefit.runs import cpu_model
from mobilefit.runtime import StopRule, TimingSamples, Worker, available_cores, runtime_version

QUICK = StopRule(warmup_seconds=0.0, min_runs=5, min_seconds=0.0, max_seconds=0.1)
CONDITIONS = {"threads": 1, "core": 0, "device": "d", "runtime": "r", "date": "now"}


def latency(samples: list[float], stable: bool = True) -> Latency:
    return Latency.of(TimingSamples(samples, stable=stable), **CONDITIONS)


def test_deciles_by_hand() -> None:
    found = latency([float(ms) for ms in (10, 1, 9, 2, 8, 3, 7, 4, 6, 5, 11)])  # 1 to 11
    assert (found.p10_ms, found.median_ms, found.p90_ms, found.runs) == (2.0, 6.0, 10.0, 11)
    assert str(found) == "6.000 ms (p10 2.000, p90 10.000)"


@pytest.mark.parametrize(
    "samples", [[1.0, 1.0], [1.0, 2.0], [3.0] * 50 + [400.0], [0.1 * i**2 for i in range(1, 30)]]
)
def test_deciles_enclose_the_median(samples: list[float]) -> None:
    found = latency(samples)
    assert min(samples) <= found.p10_ms <= found.median_ms <= found.p90_ms <= max(samples)
    assert found.median_ms == statistics.median(samples)


def test_everything_goes_to_json() -> None:
    value = latency([1.0, 2.0, 3.0], stable=False).to_dict()
    assert json.loads(json.dumps(value)) == value
    assert value == {
        "p10_ms": 1.2, "median_ms": 2.0, "p90_ms": 2.8, "runs": 3, "stable": False,
        "threads": 1, "core": 0, "device": "d", "runtime": "r", "date": "now",
        "others": None, "governor": None, "rounds": None,
    }  # fmt: skip
    assert Latency(**value) == latency([1.0, 2.0, 3.0], stable=False)


def test_the_papers_protocol_is_the_default() -> None:
    assert asdict(Protocol()) == {"threads": 1, "core": None, "rule": asdict(StopRule())}


class FakeWorker(Worker):
    """Every file takes as many milliseconds as it has bytes."""

    def time_many(self, blobs, *, threads=1, core=None, rule=None):  # type: ignore[no-untyped-def]
        self.asked = (threads, core, rule)
        return [TimingSamples([float(len(blob))] * 3, stable=True) for blob in blobs]


def test_several_files_are_measured_in_one_call_and_in_order() -> None:
    worker = FakeWorker()
    found = measure_many([b"abc", b"a"], worker=worker)
    assert [x.median_ms for x in found] == [3.0, 1.0]
    assert worker.asked == (1, max(available_cores()), StopRule())
    assert {(x.threads, x.core, x.device) for x in found} == {
        (1, max(available_cores()), device_id())
    }


def test_only_one_thread_is_pinned() -> None:
    worker = FakeWorker()
    assert measure(b"a", Protocol(threads=2, rule=QUICK), worker=worker).core is None
    assert worker.asked == (2, None, QUICK)
    assert measure(b"a", Protocol(core=0), worker=worker).core == 0


def test_the_device_names_processor_and_runtime() -> None:
    assert cpu_model() in device_id() and device_id().endswith(runtime_version())


def test_a_real_network_is_measured() -> None:
    torch.manual_seed(0)
    blob = compile(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval(), (1, 3, 16, 16))
    with Worker() as worker:
        found = measure(blob, Protocol(rule=QUICK), worker=worker)
        assert 0 < found.p10_ms <= found.median_ms <= found.p90_ms
        assert found.runs >= 5 and found.threads == 1 and found.core in available_cores()
        assert (found.device, found.runtime) == (device_id(), runtime_version())
        with pytest.raises(InputError, match="corrupt"):
            measure(blob[:100], worker=worker)
