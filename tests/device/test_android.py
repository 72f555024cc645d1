"""A phone over adb, against a stand-in of adb (``adb_standin``); and what the tool's versions print."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from device.adb_standin import FORMATS, PROFILE, StandIn
from mobilefit.arch import Block, ClassifierHead, Conv, NetSpec
from mobilefit.device import Latency, LatencyTable, Phone, Protocol, check_target, opened
from mobilefit.device import android as android_module
from mobilefit.device import table as table_module
from mobilefit.device.adb import Seen, choose, seen
from mobilefit.device.benchmark_model import Op, failure, parse
from mobilefit.errors import InputError
from mobilefit.runtime import StopRule

QUICK = StopRule(warmup_seconds=0.0, min_runs=5, min_seconds=0.0, max_seconds=0.01)


@pytest.fixture
def adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A phone that is plugged in, without a tool."""
    standin = StandIn(tmp_path / "adb")
    monkeypatch.setenv("PATH", str(standin.bin), prepend=":")
    monkeypatch.setattr(android_module, "MIN_ROUNDS", 2)  # each is three processes here
    for name in ("ANDROID_SERIAL", "MOBILEFIT_BENCHMARK_MODEL"):
        monkeypatch.delenv(name, raising=False)
    return standin


@pytest.fixture
def tool(adb: StandIn, tmp_path: Path) -> Path:
    return adb.tool(tmp_path / "android_aarch64_benchmark_model")


@pytest.fixture
def rounds(adb: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many rounds as there are in earnest, at least."""
    monkeypatch.setattr(android_module, "MIN_ROUNDS", 3)


@pytest.fixture
def phone(adb: StandIn, tool: Path) -> Iterator[Phone]:
    with Phone(tool=tool) as opened_phone:
        yield opened_phone


def refusal(call: Any) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


# ---- which phone


def test_devices_are_seen_in_every_state(adb: StandIn) -> None:
    states = {"P6SERIAL": "device", "emulator-5554": "offline", "X1": "unauthorized",
              "0123": "no permissions", "192.168.1.5:5555": "recovery"}  # fmt: skip
    adb.set(devices=states)
    found = seen()
    assert {device.serial: device.state for device in found} == states
    assert found[0] == Seen(serial="P6SERIAL", state="device", model="Pixel 6")
    assert [str(device) for device in found[:2]] == [
        "android:P6SERIAL (Pixel 6)", "android:emulator-5554 (offline)"
    ]  # fmt: skip


def test_the_only_device_is_chosen(adb: StandIn) -> None:
    assert choose().serial == choose("P6SERIAL").serial == "P6SERIAL"


def test_the_environment_chooses_as_it_does_for_adb(
    adb: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    adb.set(devices={"A1": "device", "B2": "device"})
    monkeypatch.setenv("ANDROID_SERIAL", "B2")
    assert choose().serial == "B2"
    assert choose("A1").serial == "A1"


@pytest.mark.parametrize(
    ("devices", "serial", "parts"),
    [
        ({}, None, ["no Android device", "USB debugging"]),
        ({}, "P6SERIAL", ["no Android device", "USB debugging"]),
        ({"A1": "device", "B2": "device"}, None,
         ["2 devices", "--device android:A1 (Pixel 6), android:B2"]),
        ({"A1": "device", "B2": "unauthorized"}, None, ["2 devices", "android:B2 (unauthorized)"]),
        ({"P6SERIAL": "device"}, "P6SERIA", ["'P6SERIA'", "did you mean 'P6SERIAL'?"]),
        ({"P6SERIAL": "device"}, "zzz", ["'zzz'", "android:P6SERIAL (Pixel 6)"]),
        ({"A1": "unauthorized"}, None, ["A1", "accept the prompt on the phone"]),
        ({"A1": "offline"}, None, ["A1 is offline", "adb kill-server"]),
        ({"A1": "no permissions"}, None, ["A1", "udev"]),
        ({"A1": "recovery"}, "A1", ["A1 is in the state 'recovery'"]),
    ],
)  # fmt: skip
def test_a_phone_that_cannot_be_used(
    adb: StandIn, tool: Path, devices: dict[str, str], serial: str | None, parts: list[str]
) -> None:
    adb.set(devices=devices)
    said = refusal(lambda: Phone(serial, tool=tool))
    assert all(part in said for part in parts), said
    assert not adb.calls("-s")


def test_adb_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = refusal(seen)
    assert "no adb" in said and "apt install adb" in said


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("androit", ["unknown device 'androit'", "did you mean 'android'?"]),
        ("android:", ["'android:' is not a device", "android:SERIAL"]),
        ("host:1", ["'host:1' is not a device"]),
    ],
)
def test_a_target_that_is_none(name: str, parts: list[str]) -> None:
    said = refusal(lambda: check_target(name))
    assert all(part in said for part in parts), said


def test_targets(adb: StandIn, tool: Path) -> None:
    with opened("host") as here:
        assert here is None
    with opened("android:P6SERIAL", tool=tool) as phone:
        assert phone is not None and phone.serial == "P6SERIAL"
        phone.time_many([b"1234"], rule=QUICK)
    assert adb.left() == []
    assert "--device android" in refusal(lambda: check_target("host", tool))


# ---- what it is


def test_a_phone_is_named_by_all_that_its_figures_depend_on(
    adb: StandIn, phone: Phone, tmp_path: Path
) -> None:
    start = "Google Pixel 6 (gs101), Android 14, benchmark_model "
    assert phone.device_id.startswith(start)
    assert phone.device_id.endswith(phone.runtime) and len(phone.runtime.split()[1]) == 8
    other = tmp_path / "other"
    other.write_bytes(b"\x7fELF another version")
    assert Phone(tool=other).device_id != phone.device_id
    (adb.folder / "properties/ro.board.platform").unlink()
    assert "Pixel 6 (unknown chip)" in Phone(tool=other).device_id


@pytest.mark.parametrize(
    ("frequencies", "core", "mask"),
    [
        ([1803000] * 4 + [2253000] * 2 + [2802000] * 2, 7, "80"),
        ([2400000, 1800000], 0, "1"),
        ([1800000, 2400000, None], 1, "2"),
        ([None] * 6, 5, "20"),
    ],
)
def test_the_fastest_core_is_pinned(
    adb: StandIn, tool: Path, frequencies: list[int | None], core: int, mask: str
) -> None:
    adb.cores(frequencies)
    with Phone(tool=tool) as phone:
        assert phone.core == core
        assert phone.measure_many([b"1234"], Protocol(rule=QUICK))[0].core == core
        assert set(adb.masks()) == {mask}
        assert phone.measure_many([b"1234"], Protocol(rule=QUICK, core=0))[0].core == 0
        assert adb.masks()[-1] == "1"
        pinned = len(adb.masks())
        assert phone.measure_many([b"1234"], Protocol(rule=QUICK, threads=4))[0].core is None
        assert len(adb.masks()) == pinned and adb.calls("--num_threads=4")


def test_a_core_that_is_not_there(phone: Phone) -> None:
    said = refusal(lambda: phone.time_many([b"1234"], core=8))
    assert "core 8 is not among [0, 1, 2, 3, 4, 5, 6, 7]" in said
    assert "cannot be pinned" in refusal(lambda: phone.time_many([b"12"], core=1, threads=2))
    assert "LiteRT" in refusal(lambda: phone.time_many([b"12"], runtimes=["onnxruntime"]))


# ---- the tool


def test_the_papers_flags_are_the_default(adb: StandIn, phone: Phone) -> None:
    phone.measure_many([b"1234"])
    line = adb.calls("--graph")[0][-1]
    flags = ("--num_threads=1", "--warmup_runs=1", "--num_runs=50", "--min_secs=1.0",
             "--use_xnnpack=true", "--enable_op_profiling=false")  # fmt: skip
    assert all(flag in line for flag in flags), line
    assert "taskset 80 /data/local/tmp/mobilefit-" in line


def test_the_tool_is_the_given_one_or_the_environments_or_the_phones(
    adb: StandIn, tool: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = adb.tool()
    with Phone() as phone:
        phone.time_many([b"1234"], rule=QUICK)
        assert not adb.calls(f"push {tool}") and "taskset" not in adb.calls("sha256sum")[0][-1]
        assert adb.calls("/data/local/tmp/benchmark_model --graph=")
    assert adb.left() == [there.name]  # the user's own stays
    other = tmp_path / "other"
    other.write_bytes(tool.read_bytes() + b"2")
    monkeypatch.setenv("MOBILEFIT_BENCHMARK_MODEL", str(other))
    for given, used in ((None, other), (tool, tool)):
        with Phone(tool=given) as phone:
            phone.time_many([b"1234"], rule=QUICK)
            assert adb.calls("push")[-2][3] == str(used)


def test_no_tool_anywhere(adb: StandIn) -> None:
    said = refusal(Phone)
    for part in ("no benchmark_model", "--benchmark-model", "MOBILEFIT_BENCHMARK_MODEL", "https://"):
        assert part in said


@pytest.mark.parametrize(
    ("content", "part"), [(None, "No such file"), (b"PK\x03\x04 an app", "not the app (.apk)")]
)
def test_a_tool_that_is_none(
    adb: StandIn, tmp_path: Path, content: bytes | None, part: str
) -> None:
    path = tmp_path / "tool"
    if content is not None:
        path.write_bytes(content)
    said = refusal(lambda: Phone(tool=path))
    assert str(path) in said and part in said
    assert not adb.calls("push")


def test_a_tool_for_another_processor(adb: StandIn, phone: Phone) -> None:
    adb.set(runs_here=False)
    said = refusal(lambda: phone.time_many([b"1234"], rule=QUICK))
    assert "arm64-v8a" in said and "not executable: 64-bit ELF file" in said
    assert adb.left() == []


def test_a_tool_that_may_not_be_started(adb: StandIn) -> None:
    adb.tool().chmod(0o644)
    with Phone() as phone:
        said = refusal(lambda: phone.time_many([b"1234"], rule=QUICK))
    assert "chmod +x /data/local/tmp/benchmark_model" in said


# ---- measuring


def test_files_take_turns_and_the_median_of_the_rounds_counts(
    adb: StandIn, phone: Phone, rounds: None
) -> None:
    adb.set(wobble=[1.0, 1.0, 3.0, 2.0, 1.1, 1.1])  # the rounds of two files, in turns
    times = phone.time_many([b"1234", b"123456"], rule=QUICK)
    assert [list(map(float, mine)) for mine in times] == [
        pytest.approx([0.004, 0.012, 0.0044]), pytest.approx([0.006, 0.012, 0.0066])
    ]  # fmt: skip
    assert [mine.median for mine in times] == pytest.approx([0.0044, 0.0066])
    assert not any(mine.stable for mine in times)
    graphs = [call[-1].split("--graph=")[1].split()[0] for call in adb.calls("--graph")]
    assert graphs == [graphs[0], graphs[1]] * 3 and graphs[0] != graphs[1]


def test_rounds_go_on_until_they_agree(
    adb: StandIn, phone: Phone, rounds: None
) -> None:
    patient = replace(QUICK, max_seconds=60.0, spread=0.05)
    adb.set(wobble=[1.0])
    assert len(phone.time_many([b"1234"], rule=patient)[0]) == 3
    # a disturbed round is left out once there are more than half a dozen to judge by
    adb.set(wobble=[1.0, 1.01, 2.0, *[1.0] * 20], rounds=0)
    found = phone.time_many([b"1234"], rule=patient)[0]
    assert found.stable and 3 < len(found) < 20 and found.median == pytest.approx(0.004)


def test_a_latency_says_what_it_was_measured_under(
    adb: StandIn, phone: Phone, rounds: None
) -> None:
    found, other = phone.measure_many([b"1" * 2000, b"1" * 4000], Protocol(rule=QUICK))
    assert isinstance(found, Latency) and found.median_ms == pytest.approx(2.0)
    assert other.median_ms == pytest.approx(4.0)
    assert (found.device, found.runtime, found.threads, found.core) == (
        phone.device_id, phone.runtime, 1, 7
    )  # fmt: skip
    assert (found.runs, found.rounds) == (3 * 5, 3) and found.stable
    assert found.governor == "schedutil" and not found.busy


@pytest.mark.parametrize(
    ("version", "median", "p95", "memory", "partitions"),
    [("2018", None, None, None, None), ("2020", None, None, 138.809, 22),
     ("2025", 2.0, 2.4, 73.4102, 1), ("same", None, None, None, None)],
)  # fmt: skip
def test_every_version_of_the_tool_is_read(
    adb: StandIn, phone: Phone, version: str, median: float | None, p95: float | None,
    memory: float | None, partitions: int | None,
) -> None:  # fmt: skip
    adb.set(format=version)
    found = phone.report(b"1" * 2000, Protocol(rule=replace(QUICK, min_runs=50)), ops=True)
    assert (found.runs, found.average_ms) == (50, pytest.approx(2.0))
    assert (found.median_ms, found.p95_ms) == (median, p95)
    assert (found.memory_mib, found.partitions) == (memory, partitions)
    assert found.first_ms == {"2020": 3512.391, "2025": 235.158, "same": 0.02}.get(version)
    assert found.init_ms == {"2018": 9.89, "2020": 17.187, "2025": 92.318}.get(version)
    assert phone.report(b"1" * 2000, Protocol(rule=QUICK)).ops == ()
    assert found.ops == (
        Op(kind="QUANTIZE", name="[tfl.quantize]:0", ms=0.203),
        Op(kind="Convolution (NHWC, QC8) IGEMM",
           name="Delegate/Convolution (NHWC, QC8) IGEMM:0", ms=0.407),
    )  # fmt: skip


def test_an_older_profile_has_a_column_more() -> None:
    head = "\t             [node type]\t          [start]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]"
    row = "\t                 CONV_2D\t            0.066\t   87.754\t   60.957\t  2.066%\t  2.066%\t     0.000\t        1\t[Relu6]:0"
    text = f"count=2 curr=9(all same)\nOperator-wise Profiling Info for Regular Benchmark Runs:\n==== Run Order ====\n{head}\n{row}\n"
    assert parse(text).ops == (Op(kind="CONV_2D", name="[Relu6]:0", ms=60.957),)


def test_large_times_in_logcats_columns() -> None:
    found = parse(
        "07-14 13:14:56.520 2838 2838 I tflite  : count=25 first=1249964 curr=1240143 min=1238588 "
        "max=1252566 avg=1.24027e+06 std=2565 p5=1238753 median=1239807 p95=1247415\r\n"
    )
    assert (found.runs, found.average_ms, found.least_ms) == (25, 1240.27, 1238.588)
    assert found.median_ms == 1239.807 and found.ops == ()


@pytest.mark.parametrize("text", ["", "STARTING!", "count=0", PROFILE, FORMATS["silent"]])
def test_no_timings(text: str) -> None:
    with pytest.raises(ValueError, match="no timings"):
        parse(text)


def test_the_line_that_says_why() -> None:
    assert failure("INFO: STARTING!\nERROR: Failed to allocate tensors!\nERROR: Benchmarking failed.\n\n") == (
        "Failed to allocate tensors!"
    )  # fmt: skip
    assert failure("ERROR: Could not open 'x'.\nLoaded nothing\nBenchmarking failed.") == "Could not open 'x'."
    assert failure("Segmentation fault \n") == "Segmentation fault"
    assert failure("Benchmarking failed.") == ""


# ---- what goes wrong


def test_a_file_that_the_tool_refuses(adb: StandIn, phone: Phone) -> None:
    adb.set(fail=["ERROR: Failed to allocate tensors!", "ERROR: Benchmarking failed."])
    said = refusal(lambda: phone.time_many([b"1234", b"12345"], rule=QUICK))
    assert "failed on file 2 of 2" in said and "P6SERIAL" in said
    assert "Failed to allocate tensors!" in said and "Benchmarking failed" not in said
    assert adb.left() == []
    assert phone.time_many([b"1234"], rule=QUICK)[0].median == pytest.approx(0.004)


def test_a_tool_that_says_nothing(adb: StandIn, phone: Phone) -> None:
    adb.set(format="silent")
    said = refusal(lambda: phone.time_many([b"1234"], rule=QUICK))
    assert "no timings of the file" in said and "and nothing else" in said


def test_no_space_left(adb: StandIn, phone: Phone) -> None:
    adb.set(full=True)
    said = refusal(lambda: phone.time_many([b"1234"], rule=QUICK))
    assert "no space left on the phone P6SERIAL" in said and "free some" in said
    assert adb.left() == []


def test_a_core_that_is_switched_off(adb: StandIn, phone: Phone) -> None:
    phone.frequencies[11] = 1
    said = refusal(lambda: phone.time_many([b"1234"], core=11, rule=QUICK))
    assert "affinity: Invalid argument" in said


def test_only_what_is_used_stays_on_the_phone(
    adb: StandIn, phone: Phone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(android_module, "FILES_KEPT", 2)
    folder = adb.root / "data/local/tmp"

    def files() -> list[int]:
        return sorted(p.stat().st_size for p in folder.glob("mobilefit-*/*.tflite"))

    phone.time_many([b"1", b"22", b"333"], rule=QUICK)
    assert files() == [1, 2, 3]
    phone.time_many([b"22"], rule=QUICK)
    assert files() == [2, 3]
    pushed = len(adb.calls("push"))
    phone.time_many([b"22", b"333"], rule=QUICK)
    assert len(adb.calls("push")) == pushed  # they were there
    phone.time_many([b"22", b"4444"], rule=QUICK)
    assert files() == [2, 4]
    phone.close()
    assert adb.left() == []
    assert phone.time_many([b"22"], rule=QUICK)[0].median == pytest.approx(0.002)


def test_the_lookup_table_is_built_on_the_phone(
    adb: StandIn, phone: Phone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(table_module, "FIT_WIDTHS", (0.5, 1.0))
    monkeypatch.setattr(table_module, "PASSES", 1)
    small = NetSpec(
        name="small", input_size=32, stem=Conv(out=16, kernel=3, stride=2),
        blocks=(Block(expand=32, out=16, stride=2),), last=None, head=ClassifierHead(num_classes=4),
    )  # fmt: skip
    made = LatencyTable.build(small, worker=phone)
    assert made.device == phone.device_id
    assert made.predict(small) > made.predict(small.width(0.5)) > 0
    assert set(adb.masks()) == {"80"}
    made.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json", worker=phone).rows == made.rows
    with pytest.raises(InputError, match="Pixel 6"):
        LatencyTable.load(tmp_path / "table.json")


# ---- phones that go away


@pytest.mark.parametrize("after", [1, 2, 4, 5, 7])
def test_a_phone_that_comes_back_is_measured_anew(
    adb: StandIn, tool: Path, rounds: None, after: int
) -> None:
    """In the middle of making the folder, of copying the tool, a file, of the first or third round."""
    heard: list[str] = []
    with Phone(tool=tool, say=heard.append) as phone:
        adb.set(vanish=[after], wobble=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
        (found,) = phone.time_many([b"1234"], rule=QUICK)
        assert list(found) == pytest.approx([0.004] * 3)
        assert len(heard) == 1 and "P6SERIAL went away" in heard[0] and "waiting" in heard[0]
        assert adb.calls("wait-for-device")
    assert adb.left() == []


def test_a_phone_that_does_not_come_back(
    adb: StandIn, phone: Phone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(android_module, "WAIT_SECONDS", 0.5)
    adb.set(vanish=[5], comes_back=False)
    said = refusal(lambda: phone.time_many([b"1234"], rule=QUICK))
    assert "P6SERIAL went away while it measured" in said and "did not come back" in said
    assert "the same command" in said
    adb.set(gone=False)
    phone.close()
    assert adb.left() == []


def test_a_phone_that_goes_away_again_and_again(
    adb: StandIn, phone: Phone, rounds: None
) -> None:
    adb.set(vanish=[5, 6, 7])
    said = refusal(lambda: phone.time_many([b"1234"], rule=QUICK))
    assert "went away 3 times" in said and "cable" in said
    assert adb.left() == []


def test_a_phone_that_hangs(
    adb: StandIn, phone: Phone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(android_module, "ROUND_SECONDS", 0.3)
    adb.set(hang="--graph")
    said = refusal(lambda: phone.time_many([b"1234"], rule=QUICK))
    assert "did not answer within" in said
    assert adb.left() == []


def test_ctrl_c_leaves_nothing_behind(adb: StandIn, tool: Path) -> None:
    script = (
        "from pathlib import Path\nfrom mobilefit.device.android import Phone\n"
        f"phone = Phone(tool=Path({str(tool)!r}))\n"
        "phone.time_many([b'1234'])\n"
    )
    adb.set(hang="--graph")
    process = subprocess.Popen(
        [sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    limit = time.monotonic() + 60
    while not adb.calls("--graph") and time.monotonic() < limit:
        time.sleep(0.05)
    assert len(adb.left()) == 1
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=30)[1]
    assert adb.left() == []


def test_a_process_that_ends_without_closing_leaves_nothing_behind(
    adb: StandIn, tool: Path
) -> None:
    phone = Phone(tool=tool)
    phone.time_many([b"1234"], rule=QUICK)
    assert len(adb.left()) == 1
    del phone
    assert adb.left() == []
