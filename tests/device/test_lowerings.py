"""Every lowering is measured, and the default gives way only to what is clearly faster."""

from __future__ import annotations

import pytest

from mobilefit.arch import Block, ClassifierHead, Conv, NetSpec
from mobilefit.device.lowerings import Timed, alternatives, compare, fastest
from mobilefit.device.protocol import Latency, Protocol
from mobilefit.errors import InputError
from mobilefit.litert.graph import parse
from mobilefit.litert.lowerings import FLOAT, INT8
from mobilefit.runtime import StopRule, Worker

# Every layer that has alternatives.
SPEC = NetSpec(
    name="small",
    input_size=32,
    stem=Conv(out=8, kernel=3, stride=2, act="hard_swish"),
    blocks=(Block(out=8, se="v3", act="relu"), Block(expand=200, out=33)),
    head=ClassifierHead(num_classes=2),
)
RULE = StopRule(warmup_seconds=0, min_runs=3, min_seconds=0, max_seconds=60, spread=1e9)
QUICK = Protocol(rule=RULE)


def timed(name, ms):
    latency = Latency(
        p10_ms=ms, median_ms=ms, p90_ms=ms, runs=3, stable=True, threads=1, core=0, device="d",
        runtime="r", date="now",
    )  # fmt: skip
    return Timed(name=name, latency=latency, partitions=1)


@pytest.mark.parametrize(("arithmetic", "names"), [("int8", INT8), ("float", FLOAT)])
def test_every_lowering_is_measured_and_whole(arithmetic, names):
    with Worker() as worker:
        found = compare(SPEC, arithmetic, QUICK, worker=worker)
    assert [t.name for t in found] == list(names)
    assert {t.partitions for t in found} == {1}
    assert all(t.latency.runs >= 3 for t in found)


@pytest.mark.parametrize("arithmetic", ["int8", "float"])
def test_each_alternative_is_another_graph(arithmetic):
    forms = {
        tuple((op.name, tuple(t.shape for t in op.inputs if t)) for op in parse(blob).ops)
        for blob in alternatives(SPEC, arithmetic).values()
    }
    assert len(forms) == len(INT8 if arithmetic == "int8" else FLOAT)


@pytest.mark.parametrize(
    ("ms", "winner"), [(0.90, "stem pixels"), (0.995, "default"), (1.2, "default")]
)
def test_the_default_stays_unless_another_is_clearly_faster(ms, winner):
    assert fastest([timed("default", 1.0), timed("stem pixels", ms)]).name == winner


def test_an_unknown_arithmetic_is_refused():
    with pytest.raises(InputError, match="unknown arithmetic 'int16'"):
        alternatives(SPEC, "int16")  # type: ignore[arg-type]
