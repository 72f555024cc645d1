"""Rows of a measurement as text, as a figure, and against an earlier CSV."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mobilefit.errors import InputError
from mobilefit.report import bench


def row(file: str = "a/net.tflite", median: float = 2.0, **more: Any) -> dict[str, Any]:
    return {
        "file": file, "runtime": "litert", "median_ms": median, "p10_ms": median * 0.9,
        "p90_ms": median * 1.1, "ratio": 1.0, "runs": 100, "stable": True, "partitions": 1,
        "load_ms": 3.0, "first_ms": 2.5, "memory_mib": None, "bytes": 1000, "threads": 1, "core": 1,
        "device": "a processor [123456]", "version": "ai-edge-litert 2.3.0", "busy": False,
        "others": 0.0, "governor": None, "date": "2026-01-02T03:04:05+00:00", **more,
    }  # fmt: skip


def old(*rows: dict[str, Any]) -> list[dict[str, str]]:
    """As a CSV file holds them."""
    return list(csv.DictReader(io.StringIO(bench.csv_text(rows))))


def test_the_table_aligns_and_leaves_out_what_is_not_known() -> None:
    lines = bench.table([row(), row("b.onnx", 10.5, runtime="onnxruntime", partitions=None)]).splitlines()
    assert lines[0].split()[:3] == ["file", "runtime", "median_ms"]
    assert lines[1].index(" litert ") == lines[2].index(" onnxruntime ")
    assert lines[1].index("2.0 ") == lines[2].index("10.5 ") + 1
    assert "None" not in "".join(lines)


# ---- comparing


def test_the_interval_by_hand() -> None:
    """p10 and p90 of 1.8 and 2.2 are a deviation of 0.156; the median of 100 has 0.0196, or 0.98 %."""
    (change,) = bench.changes([row(median=2.0)], old(row(median=2.0)))
    one = 1.96 * (0.4 / 2.563) * math.sqrt(math.pi / 200) / 2.0
    assert one == pytest.approx(0.0192, abs=1e-4)
    assert change.noise == pytest.approx(one * math.sqrt(2))
    assert change.ratio == 1 and change.verdict == "within the noise" and change.differs == ()


@pytest.mark.parametrize(
    "new, verdict", [(1.0, "within the noise"), (0.99, "within the noise"), (1.02, "within the noise"),
                     (0.95, "faster"), (1.05, "slower"), (3.0, "slower")]
)  # fmt: skip
def test_the_verdict_needs_more_than_the_noise(new: float, verdict: str) -> None:
    (change,) = bench.changes([row(median=new)], old(row(median=1.0)))
    assert change.verdict == verdict and change.ratio == new


def test_more_runs_tell_smaller_differences() -> None:
    found = [
        bench.changes([row(median=1.02, runs=n)], old(row(median=1.0, runs=n)))[0].verdict
        for n in (10, 10_000)
    ]
    assert found == ["within the noise", "slower"]


@pytest.mark.parametrize(
    "then, said",
    [({"device": "a telephone"}, "another device (a telephone, now a processor"),
     ({"version": "ai-edge-litert 1.0"}, "another runtime version (ai-edge-litert 1.0, now"),
     ({"threads": 4}, "other threads (4, now 1)"), ({"core": None}, "another core (, now 1)"),
     ({"busy": True}, "the machine was busy then")],
)  # fmt: skip
def test_other_conditions_are_said(then: dict[str, Any], said: str) -> None:
    found = bench.changes([row()], old(row(**then)))
    assert said in found[0].differs[0] and len(found[0].differs) == 1
    lines = bench.change_lines(found, Path("old.csv"))
    assert f"NOT ALIKE: {found[0].differs[0]}" in lines
    assert len(bench.change_lines(found * 3, Path("old.csv"))) == 2  # said once


def test_files_are_found_by_path_then_by_name() -> None:
    earlier = old(row("a/net.tflite", 1.0), row("b/net.tflite", 2.0), row("c/other.tflite", 4.0))
    new = [row("b/net.tflite"), row("d/other.tflite"), row("d/net.tflite"), row("e/none.tflite")]
    assert [c.old_ms for c in bench.changes(new, earlier)] == [2.0, 4.0]
    assert bench.change_lines([], Path("old.csv")) == ["old.csv has none of these files"]


def test_a_runtime_is_compared_with_itself() -> None:
    earlier = old(row("n.onnx", 1.0, runtime="onnxruntime"), row("n.onnx", 3.0, runtime="openvino"))
    (change,) = bench.changes([row("n.onnx", runtime="openvino")], earlier)
    assert change.old_ms == 3.0 and change.name == "n.onnx, openvino"


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", "file,median_ms,p10_ms,p90_ms,runs\nx,fast,1,1,1\n",
             "file,median_ms,p10_ms,p90_ms,runs\nx,0,1,1,1\n", "file,median_ms,p10_ms,p90_ms,runs\nx,nan,1,1,1\n",
             "file,median_ms\nx\n", "\x00"]
)  # fmt: skip
def test_what_is_no_such_csv_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text(text)
    with pytest.raises(InputError, match=r"old.csv is not a CSV of mobilefit bench; make one with"):
        bench.read_csv(tmp_path / "old.csv")


def test_a_csv_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*none.csv: No such file"):
        bench.read_csv(tmp_path / "none.csv")
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff")
    with pytest.raises(InputError, match=r"cannot read .*picture.csv: not text"):
        bench.read_csv(tmp_path / "picture.csv")


# ---- profile and figure


def test_the_profile_adds_up() -> None:
    times = [("CONV_2D", 3.0, "a"), ("ADD", -1.0, "b"), ("CONV_2D", 2.0, "c")]
    rows = [{"op": op, "name": name, "ms": ms, "least_ms": ms - 1, "most_ms": ms + 1} for op, ms, name in times]
    lines = bench.profile_table(rows).splitlines()
    assert lines[1].split() == ["CONV_2D", "3.0000", "2.0000", "4.0000", "75.0%", "a"]
    assert lines[2].split() == ["ADD", "-1.0000", "-2.0000", "0.0000", "-25.0%", "b"]
    assert lines[5].split() == ["2", "CONV_2D", "5.0000", "125.0%"]
    assert lines[6].split() == ["1", "ADD", "-1.0000", "-25.0%"]
    assert lines[7].split() == ["all", "4.0000", "100.0%"]
    assert lines[8].startswith("1 of 3 come out below zero")
    assert "below" not in bench.profile_table([rows[0]])


def test_the_figure_is_a_picture_of_every_row(tmp_path: Path) -> None:
    rows = [row(), row("b$5.onnx", 4.0, runtime="openvino"), row("c.tflite", 0.125)]
    text = bench.figure(rows, ".svg").decode()
    for part in ("net.tflite", "b$5.onnx, openvino", "0.125 ms", "4 ms", "a processor, 1 thread"):
        assert part in text, part
    assert "BUSY" not in text and "BUSY" in bench.figure([row(busy=True)], ".svg").decode()
    assert bench.figure(rows, ".svg") == bench.figure(rows, ".svg")
    picture = Image.open(io.BytesIO(bench.figure(rows, ".png")))
    taller = Image.open(io.BytesIO(bench.figure(rows * 2, ".png")))
    assert picture.format == "PNG" and taller.height > picture.height
