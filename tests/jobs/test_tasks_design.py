"""``adapt``, ``search`` and ``design`` for boxes and masks, on a device that always takes the same time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tasks.scenes import BACKBONE, write_masks, write_voc

from mobilefit.arch import NetSpec
from mobilefit.nn import load_network
from mobilefit.runs import read_json, write_json

from .small import make_images, run

Refused = Callable[..., str]
SPACE: dict[str, Any] = {
    "name": "scenes", "base": BACKBONE.to_dict(), "rows": [1, 3],
    "blocks": [
        {"stride": 2, "op": ["mbconv2"], "kernel": [3, 5], "filters": [16], "layers": [1]},
        {"stride": 2, "op": ["mbconv2"], "kernel": [3], "filters": [24, 32], "layers": [1]},
    ],
}  # fmt: skip
pytestmark = pytest.mark.usefixtures("steady")


@pytest.fixture(params=["detect", "segment"])
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def root(task: str, tmp_path: Path) -> Path:
    (write_voc if task == "detect" else write_masks)(tmp_path / "data", train=20)
    (tmp_path / "tiny.json").write_text(BACKBONE.to_json())
    return tmp_path


def designed(task: str, root: Path, **changes: object) -> list[str]:
    options = {
        "task": task, "latency": "88%", "seed_network": root / "tiny.json", "resolution": 64, "epochs": 1,
        "delta": 0.03, "tune_steps": 1, "max_drop": 100, "out": root / "run", **changes,
    }  # fmt: skip
    found = ["design", str(options.pop("data", root / "data"))]
    for name, value in options.items():
        found += [f"--{name.replace('_', '-')}", str(value)]
    return [*found, "--quiet"]


def test_a_trained_network_is_shrunk_to_a_latency(task: str, root: Path) -> None:
    assert run("train", root / "data", "--task", task, "--model", root / "tiny.json", "--resolution", 64,
               "--batch-size", 8, "--steps", 2, "--out", root / "trained", "--quiet") == 0  # fmt: skip
    assert run("adapt", root / "trained" / "model.safetensors", root / "data", "--latency", "88%", "--delta", 0.03,
               "--tune-steps", 1, "--out", root / "adapted", "--quiet") == 0  # fmt: skip
    record = read_json(root / "adapted" / "record.json")
    assert record["latency_ms"] <= record["budget_ms"] and record["task"] == task
    before, after = (NetSpec.from_dict(record[name]) for name in ("seed_spec", "final_spec"))
    assert after.cost().madds < before.cost().madds and after.task == task
    assert after.head.taps == before.head.taps if task == "detect" else after.head.tap == before.head.tap  # type: ignore[union-attr]


def test_the_whole_chain_ends_in_files_within_the_budget(
    task: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A detector of one epoch detects nothing, and of nothing files have no part in common.
    assert run(*designed(task, root, epochs=20)) == 0
    record = read_json(root / "run" / "record.json")
    final = record["final"]
    assert record["task"] == task and final["latency"]["median_ms"] <= record["budget_ms"]
    score = "map50" if task == "detect" else "miou"
    assert 0 <= final[score] == final["accuracy_int8"]
    assert {row["kind"] for row in record["results"]} == {"seed", "adapted", "resolution", "width"}
    assert record["plan"]["taught"]
    compared = {row["kind"]: row for row in record["verdict"]["against"]}
    assert set(compared) == {"resolution", "width"} - {record["verdict"]["kind"]}
    for kind, row in compared.items():
        (other,) = (entry["accuracy_int8"] for entry in record["results"] if entry["kind"] == kind)
        assert row["points"] == pytest.approx(100 * (final["accuracy_int8"] - other)) and row["error"] >= 0
    for name in ("model_int8.tflite", "model_float32.tflite", "model.safetensors", "report.html"):
        assert (root / "run" / name).exists()
    assert load_network(root / "run" / "model.safetensors").spec.task == task
    said = "mAP@0.5" if task == "detect" else "mIoU"
    assert said in capsys.readouterr().out and said in (root / "run" / "report.html").read_text()
    assert run("evaluate", root / "data", root / "run" / "model_int8.tflite") == 0
    assert said in capsys.readouterr().out


def test_a_search_trains_each_network_with_the_tasks_head(task: str, root: Path) -> None:
    write_json(root / "space.json", SPACE)
    assert run("search", root / "data", "--task", task, "--space", root / "space.json", "--evaluator", "proxy",
               "--strategy", "random", "--trials", 2, "--latency", "110%", "--resolution", 64,
               "--proxy-steps", 2, "--out", root / "search", "--quiet") == 0  # fmt: skip
    record = read_json(root / "search" / "record.json")
    assert NetSpec.from_dict(record["final_spec"]).task == task


def test_a_budget_under_the_floor_is_told_with_the_floor(task: str, root: Path, refused: Refused) -> None:
    said = refused(*designed(task, root, latency="1%"))
    assert "the lowest reachable is" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "fast"}, "recipe 'fast' is for --task classify, not for detect"),
        ({"ignore_label": 3}, "--ignore-label is for masks"),
        ({"seed_network": "lraspp_mobilenet_v2"}, "'lraspp_mobilenet_v2' is for --task segment"),
        ({"teacher": "nowhere.safetensors"}, "nowhere.safetensors"),
    ],
)
def test_bad_options_are_one_line(
    changes: dict[str, object], message: str, tmp_path: Path, refused: Refused
) -> None:
    write_voc(tmp_path / "data")
    (tmp_path / "tiny.json").write_text(BACKBONE.to_json())
    assert message in refused(*designed("detect", tmp_path, **changes))


def test_class_folders_have_no_boxes(tmp_path: Path, refused: Refused) -> None:
    make_images(tmp_path / "data", count=4)
    (tmp_path / "tiny.json").write_text(BACKBONE.to_json())
    assert "Pascal VOC" in refused(*designed("detect", tmp_path))


def test_a_classifier_is_square(tmp_path: Path, refused: Refused) -> None:
    make_images(tmp_path / "data", count=4)
    (tmp_path / "tiny.json").write_text(BACKBONE.to_json())
    assert "a classifier sees a square" in refused(*designed("classify", tmp_path, columns=96))


def test_shared_weights_are_for_classification(tmp_path: Path, refused: Refused) -> None:
    write_voc(tmp_path / "data")
    write_json(tmp_path / "space.json", SPACE)
    said = refused("search", tmp_path / "data", "--task", "detect", "--space", tmp_path / "space.json",
                   "--evaluator", "supernet", "--latency", "2ms", "--out", tmp_path / "run")  # fmt: skip
    assert "proxy" in said
