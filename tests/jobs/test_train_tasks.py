"""``mobilefit train`` for boxes and masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tasks.scenes import BACKBONE, detector_network, segmenter_network, write_masks, write_voc

from mobilefit.arch import detector
from mobilefit.data import Preset
from mobilefit.nn import build, copy_weights, load_network, save_weights
from mobilefit.runs import read_json, read_jsonl
from mobilefit.train import SoftTargets

from .small import run

Refused = Callable[..., str]
FLAVOURS = ["detect", "segment"]


@pytest.fixture(params=FLAVOURS)
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def written(task: str, root: Path) -> Path:
    return write_voc(root / "data") if task == "detect" else write_masks(root / "data")


def backbone(root: Path) -> Path:
    path = root / "tiny.json"
    path.write_text(BACKBONE.to_json())
    return path


def words(task: str, root: Path, out: Path, *more: object) -> list[str]:
    return [str(word) for word in (
        "train", root / "data", "--task", task, "--model", backbone(root), "--resolution", 64,
        "--batch-size", 8, "--steps", 4, "--holdout", 0.2, "--out", out, "--quiet", *more,
    )]  # fmt: skip


def test_a_run_has_its_network_its_score_and_its_page(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(task, tmp_path)
    assert run(*words(task, tmp_path, tmp_path / "run")) == 0
    said = capsys.readouterr().out
    record = read_json(tmp_path / "run" / "record.json")
    score = "map50" if task == "detect" else "miou"
    assert record["task"] == task and record["final"][score] == record["final"]["accuracy_float"]
    assert ("mAP@0.5" if task == "detect" else "mIoU") in said
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1][f"val_{score}"] >= 0
    network = load_network(tmp_path / "run" / "model.safetensors")
    assert network.spec.task == task and network.spec.image_shape == (64, 64)
    pictures = record["final"]["pictures"]
    assert pictures["others"] and all(one["truth_jpeg"] and one["found_jpeg"] for one in pictures["others"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "truth" in page.lower() and pictures["others"][0]["found_jpeg"][:60] in page
    assert ("mAP@0.5" if task == "detect" else "mIoU") in page and "top-1" not in page


def test_a_stopped_run_goes_on(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(task, tmp_path)
    assert run(*words(task, tmp_path, tmp_path / "whole")) == 0
    from mobilefit.train.trainer import Trainer

    original, calls = Trainer.step, iter(range(1, 100))

    def step(self: Trainer, *batch: Any, **options: Any) -> float:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *batch, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        assert run(*words(task, tmp_path, tmp_path / "run", "--checkpoint-every", 1)) == 130
    assert run(*words(task, tmp_path, tmp_path / "run", "--checkpoint-every", 1, "--resume")) == 0
    one, other = (load_network(tmp_path / name / "model.safetensors").state_dict() for name in ("whole", "run"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_backbone_of_a_classifier_is_taken_over(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(task, tmp_path)
    classifier = build(BACKBONE)
    save_weights(classifier, tmp_path / "classifier.safetensors")
    more = ("--weights", tmp_path / "classifier.safetensors", "--lr", 1e-12)
    assert run(*[w for w in words(task, tmp_path, tmp_path / "run", *more) if w != "--quiet"]) == 0
    assert "classifier.safetensors" in capsys.readouterr().err
    found = load_network(tmp_path / "run" / "model.safetensors").backbone.stem.conv.weight
    assert torch.allclose(found, classifier.backbone.stem.conv.weight, atol=1e-5)


def test_a_network_that_is_named_says_the_task(tmp_path: Path) -> None:
    write_voc(tmp_path / "data")
    (tmp_path / "ssd.json").write_text(detector(BACKBONE).to_json())
    assert run("train", tmp_path / "data", "--model", tmp_path / "ssd.json", "--steps", "2", "--resolution", "64",
               "--columns", "96", "--out", tmp_path / "run", "--quiet") == 0  # fmt: skip
    assert load_network(tmp_path / "run" / "model.safetensors").spec.image_shape == (64, 96)


def teacher_file(task: str, path: Path, classes: tuple[str, ...] | None = None, **options: Any) -> Path:
    """Another network for 96 pixels, not trained, in a file as a training writes it."""
    net = (detector_network if task == "detect" else segmenter_network)(seed=7, **options)
    preset = Preset(resolution=96, fit="stretch").to_dict()
    save_weights(copy_weights(net, net.spec.resolution(96)), path, preset=preset, classes=classes)
    return path


def test_a_network_is_taught_at_the_teachers_resolution(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(task, tmp_path)
    shapes, outputs = [], SoftTargets.outputs

    def watched(self: SoftTargets, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shapes.append(tuple(images.shape))
        return outputs(self, images)

    monkeypatch.setattr(SoftTargets, "outputs", watched)
    teacher = teacher_file(task, tmp_path / "teacher.safetensors")
    assert run(*words(task, tmp_path, tmp_path / "run", "--teacher", teacher, "--temperature", 2)) == 0
    assert shapes == [(8, 3, 96, 96)] * 4
    record = read_json(tmp_path / "run" / "record.json")
    assert record["recipe"]["distillation"] == 0.5 and record["training"]["teacher"] == str(teacher)


def test_a_teacher_that_cannot_teach_is_one_line(task: str, tmp_path: Path, refused: Refused) -> None:
    written(task, tmp_path)
    other = "segment" if task == "detect" else "detect"

    def said(teacher: object) -> str:
        return refused(*words(task, tmp_path, tmp_path / "run", "--teacher", teacher))

    path = tmp_path / "teacher.safetensors"
    assert f"is for --task {other}, the network for {task}" in said(teacher_file(other, path))
    assert "the teacher tells 5 classes apart" in said(teacher_file(task, path, num_classes=5))
    others = ("cat", "dog", "cow")[: 2 if task == "detect" else 3]
    assert "was trained on other classes (cat, dog" in said(teacher_file(task, path, classes=others))
    assert "nowhere.safetensors" in said("nowhere.safetensors")
    for foreign in ("timm:mobilenetv3_small_100", "teacher.pt2"):
        assert f"{foreign} cannot teach for --task {task}; give a file that mobilefit train wrote" in said(foreign)
    if task == "detect":
        assert "torchvision anchors" in said(teacher_file(task, path, anchors="torchvision"))


@pytest.mark.parametrize(
    ("task", "more", "message"),
    [
        ("detect", ("--recipe", "segment"), "recipe 'segment' is for --task segment, not for detect"),
        ("detect", ("--recipe", "finetune"), "recipe 'finetune' is for --task classify"),
        ("detect", ("--ignore-label", "3"), "--ignore-label is for masks"),
        ("detect", ("--model", "lraspp_mobilenet_v2"), "'lraspp_mobilenet_v2' is for --task segment, not for detect"),
        ("detect", ("--mixup", "0.2"), "mixup is for classification, not for detection"),
        ("segment", ("--augment", "ssd"), "unknown augment 'ssd'"),
        ("segment", ("--ignore-label", "-1"), "-1"),
    ],
)
def test_bad_options_are_one_line(
    task: str, more: tuple[str, ...], message: str, tmp_path: Path, refused: Refused
) -> None:
    written(task, tmp_path)
    assert message in refused(*words(task, tmp_path, tmp_path / "run"), *more)


def test_the_command_in_the_record_has_each_ignored_label(tmp_path: Path) -> None:
    write_masks(tmp_path / "data")
    assert run(*words("segment", tmp_path, tmp_path / "run", "--ignore-label", 2, "--ignore-label", 9)) == 0
    record = read_json(tmp_path / "run" / "record.json")
    assert "--ignore-label 2 --ignore-label 9" in record["command"]
    assert record["data"]["classes"] == ["ground", "red"]


def test_data_of_another_kind_is_one_line(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "data" / "cat").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "data" / "cat" / "a.png")
    assert "Pascal VOC" in refused(*words("detect", tmp_path, tmp_path / "run"))
    assert "images" in refused(*words("segment", tmp_path, tmp_path / "run"))
