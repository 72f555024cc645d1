"""The verbs that measure, with ``--device android``: everything that is timed is timed on the phone."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from device.adb_standin import StandIn

from jobs.small import World, milliseconds, record, run
from mobilefit.device import Phone, android, device_id
from mobilefit.device import target as target_module
from mobilefit.device.android import RoundSamples
from mobilefit.device.benchmark_model import Report
from mobilefit.errors import InputError
from mobilefit.jobs import doctor as doctor_job
from mobilefit.runtime import StopRule, Worker

T = TypeVar("T")
ID = "a telephone, benchmark_model 12345678"


class SteadyPhone(Phone):
    """A phone without adb that is three times as slow as the steady machine of ``jobs.small``."""

    made: ClassVar[list[SteadyPhone]] = []

    def __init__(self, serial: str | None = None, **options: Any) -> None:
        self.serial, self.options, self.closed = serial, options, False
        self.device_id, self.runtime, self.core = ID, "benchmark_model 12345678", 7
        self.frequencies = {7: 2802000}
        self.made.append(self)

    def _measured(
        self, blobs: Sequence[bytes], threads: int, core: int | None, rule: StopRule
    ) -> list[RoundSamples]:
        assert not self.closed and core == 7
        return [RoundSamples([_report(3 * milliseconds(blob))] * 3, stable=True) for blob in blobs]

    def _persistently(self, work: Callable[[], T]) -> T:
        return work()

    def _governor(self, core: int | None) -> str | None:
        return None

    def close(self) -> None:
        self.closed = True


def _report(ms: float) -> Report:
    return Report(
        runs=50, average_ms=ms, least_ms=ms, most_ms=ms, p5_ms=None, median_ms=None, p95_ms=None,
        init_ms=None, first_ms=None, memory_mib=None, partitions=None, ops=(),
    )  # fmt: skip


@pytest.fixture
def phones(monkeypatch: pytest.MonkeyPatch, steady: None) -> list[SteadyPhone]:
    """Those that were opened; nothing may be timed here."""

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("timed on this machine")

    monkeypatch.setattr(Worker, "time_many", refuse)
    monkeypatch.setattr(target_module, "Phone", SteadyPhone)
    monkeypatch.setattr(SteadyPhone, "made", [])
    return SteadyPhone.made


def test_design_and_adapt_on_a_phone(
    world: World, tmp_path: Path, phones: list[SteadyPhone], refused: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "designed"
    words = ["design", world.images, "--latency", "70%", "--seed-network", world.spec,
             "--resolution", 32, "--epochs", 1, "--delta", 0.05, "--tune-steps", 2]  # fmt: skip
    there = ["--device", "android:P6", "--out", out, "--quiet"]
    assert run(*words, *there) == 0
    (phone,) = phones
    assert phone.serial == "P6" and phone.closed
    made = record(out)
    for row in (*made["results"], {"latency": made["final"]["latency_float"]}):
        latency = row["latency"]
        assert (latency["device"], latency["core"], latency["rounds"]) == (ID, 7, 3)
        assert latency["runs"] == 150
    assert made["final"]["latency"]["median_ms"] <= made["budget_ms"]
    table = out / "latency_table.json"
    assert json.loads(table.read_text())["device"] == ID
    assert "--device android:P6" in made["command"]
    # a finished run needs no phone; another device is another run; its table is not this machine's
    assert run(*words, *there) == 0 and len(phones) == 1
    assert "device 'android:P6' there, 'host' now" in refused(*words, "--out", out)
    said = refused(*words, "--table", table, "--out", tmp_path / "here")
    assert f"'{ID}'" in said and f"'{device_id()}'" in said
    capsys.readouterr()
    adapted = tmp_path / "adapted"
    assert run("adapt", world.weights, world.images, "--latency", "80%", "--delta", 0.05,
               "--tune-steps", 2, "--device", "android", "--table", table, "--out", adapted) == 0  # fmt: skip
    assert phones[1].serial is None and phones[1].closed
    assert json.loads((adapted / "latency_table.json").read_text())["device"] == ID


@pytest.mark.parametrize("measure", [[], ["--measure"]])
def test_search_on_a_phone(
    world: World, tmp_path: Path, phones: list[SteadyPhone], measure: list[str]
) -> None:
    out = tmp_path / "found"
    assert run("search", world.images, "--latency", "90%", "--space", world.space, "--resolution", 32,
               "--trials", 3, "--top", 1, "--epochs", 1, "--device", "android", *measure,
               "--out", out, "--quiet") == 0  # fmt: skip
    assert phones[0].closed
    assert json.loads((out / "latency_table.json").read_text())["device"] == ID


def test_a_run_is_not_gone_on_with_on_another_phone(
    world: World, tmp_path: Path, phones: list[SteadyPhone], refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "run"
    words = ["adapt", world.weights, world.images, "--latency", "80%", "--delta", 0.05,
             "--tune-steps", 2, "--device", "android", "--out", out]  # fmt: skip

    def cut(*args: Any, **options: Any) -> None:
        raise InputError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr("mobilefit.adapt.adapt", cut)
        assert refused(*words) == "cut off"
    assert phones[0].closed
    monkeypatch.setattr("jobs.test_on_a_phone.ID", "another telephone")
    said = refused(*words)
    assert "was measured on 'a telephone" in said and "this is 'another telephone'" in said


@pytest.mark.parametrize("verb", ["design", "search", "adapt", "bench"])
def test_a_device_that_is_none_is_told_at_once(
    verb: str, world: World, tmp_path: Path, refused: Callable[..., str]
) -> None:
    words: dict[str, list[Any]] = {
        "design": [world.images, "--latency", "2ms"], "search": [world.images, "--latency", "2ms"],
        "adapt": [world.weights, world.images, "--latency", "2ms"], "bench": [world.int8],
    }  # fmt: skip
    out = [] if verb == "bench" else ["--out", tmp_path / "out"]
    call = [verb, *words[verb], *out]
    assert "did you mean 'android'?" in refused(*call, "--device", "androd")
    assert "--device android" in refused(*call, "--benchmark-model", world.int8)
    assert not (tmp_path / "out").exists()


def test_a_table_of_known_latencies_has_its_device(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    said = refused("search", "tabular", "--space", "mnasnet", "--latency", "75ms", "--device",
                   "android", "--out", tmp_path / "out")  # fmt: skip
    assert "leave --device out" in said


# ---- with the stand-in of adb


@pytest.fixture
def adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    standin = StandIn(tmp_path / "adb")
    monkeypatch.setenv("PATH", str(standin.bin), prepend=":")
    monkeypatch.setenv(android.VARIABLE, str(standin.tool(tmp_path / "benchmark_model")))
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    monkeypatch.setattr(android, "MIN_ROUNDS", 2)
    return standin


def test_bench_on_a_phone(
    adb: StandIn, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("bench", world.int8, world.float32, "--device", "android", "--max-secs", 1,
               "--csv", tmp_path / "b.csv", "--enable-op-profiling") == 0  # fmt: skip
    small, large = csv.DictReader((tmp_path / "b.csv").open())
    sizes = [path.stat().st_size for path in (world.int8, world.float32)]
    assert float(small["median_ms"]) == pytest.approx(sizes[0] / 1e3, rel=1e-3)
    assert float(large["ratio"]) == pytest.approx(sizes[1] / sizes[0], rel=1e-3)
    assert small["device"].startswith("Google Pixel 6 (gs101), Android 14, benchmark_model ")
    assert (small["core"], small["partitions"], small["runs"]) == ("7", "1", "100")
    assert (small["load_ms"], small["first_ms"], small["memory_mib"]) == ("92.32", "235.158", "73.41")
    out = capsys.readouterr().out
    assert "as benchmark_model on the phone tells it" in out
    assert "Convolution (NHWC, QC8) IGEMM" in out and "0.4070" in out
    assert adb.left() == []
    assert "--num_runs=50" in adb.calls("--graph")[0][-1]


@pytest.mark.parametrize(
    ("more", "part"),
    [(["--strict"], "of this machine"), (["--runtimes", "openvino"], "of this machine"),
     (["--core", "9"], "core 9 is not among"), (["--num-threads", "2", "--core", "1"], "pinned")],
)  # fmt: skip
def test_bench_options_that_do_not_fit_a_phone(
    adb: StandIn, world: World, refused: Callable[..., str], more: list[str], part: str
) -> None:
    assert part in refused("bench", world.int8, "--device", "android", *more)
    assert adb.left() == []


def test_bench_of_a_file_that_no_phone_runs(
    adb: StandIn, world: World, tmp_path: Path, refused: Callable[..., str]
) -> None:
    other = tmp_path / "net.onnx"
    other.write_bytes(b"onnx")
    assert str(other) in refused("bench", other, "--device", "android")
    adb.set(fail=["ERROR: Failed to allocate tensors!"])
    odd = tmp_path / "odd.tflite"
    content = world.int8.read_bytes()
    odd.write_bytes(content + b"\0" * (1 + len(content) % 2))
    said = refused("bench", odd, "--device", "android:P6SERIAL")
    assert str(odd) in said and "Failed to allocate tensors!" in said
    assert adb.left() == []


@pytest.mark.parametrize(
    ("devices", "said"),
    [({"P6SERIAL": "device", "X1": "unauthorized"}, "android:P6SERIAL (Pixel 6), android:X1 (unauthorized)"),
     ({}, "none plugged in")],
)  # fmt: skip
def test_doctor_lists_the_phones(
    adb: StandIn, devices: dict[str, str], said: str, steady: None,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(doctor_job, "_chain", lambda: "left out")
    adb.set(devices=devices)
    assert run("doctor") == 0
    assert f"ok   phones: {said}\n" in capsys.readouterr().out
