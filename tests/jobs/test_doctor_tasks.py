"""``mobilefit doctor DATA --task``: what it says of boxes and masks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilefit.jobs import doctor as doctor_job

from .small import run

CELLS = """<annotation><size><width>64</width><height>48</height></size>{}</annotation>"""
CELL = """<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>5</ymin><xmax>{}</xmax><ymax>30</ymax></bndbox></object>"""


@pytest.fixture(autouse=True)
def ready(monkeypatch: pytest.MonkeyPatch) -> None:
    for check in ("_chain", "_steadiness", "_phones"):
        monkeypatch.setattr(doctor_job, check, lambda: "left out")


def picture(seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8)).resize((64, 48))


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Boxes of two classes."""
    root = tmp_path / "cells"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for part, count in (("train", 10), ("val", 4)):
        for number in range(count):
            name = f"{part}{number}"
            picture(number + 100 * (part == "val")).save(root / f"JPEGImages/{name}.jpg")
            boxes = CELL.format("red", 3, 40) + CELL.format("white", 20, 60) * (number % 2)
            (root / f"Annotations/{name}.xml").write_text(CELLS.format(boxes))
        names = "".join(f"{part}{number}\n" for number in range(count))
        (root / f"ImageSets/Main/{part}.txt").write_text(names)
    return root


@pytest.fixture
def streets(tmp_path: Path) -> Path:
    """Masks of three classes."""
    root = tmp_path / "streets"
    for part, count in (("train", 10), ("val", 3)):
        for folder in ("images", "labels"):
            (root / part / folder).mkdir(parents=True)
        for number in range(count):
            picture(number + 100 * (part == "val")).save(root / part / f"images/{number}.png")
            mask = np.zeros((48, 64), np.uint8)
            mask[:24], mask[40:, :10] = 1, 2
            Image.fromarray(mask).save(root / part / f"labels/{number}.png")
    return root


def found(folder: Path) -> dict[str, object]:
    images: dict[str, object] = json.loads((folder / "doctor.json").read_text())["images"]
    return images


def test_good_boxes(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", cells, "--task", "detect", "--out", tmp_path, "--resolution", 32) == 0
    said = capsys.readouterr().out
    assert "ok   images: 2 classes; 9 train, 1 holdout, 4 test; white has " in said
    assert "boxes, red 9; 0 bad files; no picture of the test in training" in said
    images = found(tmp_path)
    assert images["counts"]["test"] == {"red": 4, "white": 2}  # type: ignore[index]
    assert images["falsified"] == [] and images["leaks"] == []


def test_a_picture_of_the_test_in_training(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(cells / "JPEGImages/train3.jpg", cells / "JPEGImages/val1.jpg")
    assert run("doctor", cells, "--task", "detect", "--out", tmp_path, "--resolution", 32) == 3
    said = capsys.readouterr().out
    assert "     pictures of the test in training too: 1\n" in said
    assert "JPEGImages/train3.jpg = JPEGImages/val1.jpg (same bytes)" in said
    assert "FAIL images: pictures of the test in training too: 1" in said


def test_what_was_left_out_is_told(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cells / "JPEGImages/train2.jpg").write_bytes(b"no picture")
    flat = CELLS.format(CELL.format("red", 3, 40) + CELL.format("red", 7, 7))
    (cells / "Annotations/val0.xml").write_text(flat)
    assert run("doctor", cells, "--task", "detect", "--out", tmp_path, "--resolution", 60) == 0
    said = capsys.readouterr().out
    assert "     files left out: 1\n" in said and "train2.jpg: not an image" in said
    assert "     boxes: 1 without width or height (Annotations/val0.xml object 2)\n" in said
    assert "     test: images with a side under 60 px: 4\n" in said


def test_good_masks(streets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", streets, "--task", "segment", "--out", tmp_path, "--resolution", 32) == 0
    said = capsys.readouterr().out
    assert "ok   images: 3 classes; 9 train, 1 holdout, 3 test; class 2 has 720 pixels, class 1 13824; 0 bad files; no picture" in said
    assert found(tmp_path)["counts"]["test"] == {
        "class 0": 3 * 1456, "class 1": 3 * 1536, "class 2": 3 * 80
    }  # type: ignore[index]


def test_a_class_that_nothing_is_trained_of(streets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = np.full((48, 64), 3, np.uint8)
    Image.fromarray(mask).save(streets / "val/labels/1.png")
    (streets / "classes.txt").write_text("road\nsky\ntree\nbus\n")
    assert run("doctor", streets, "--task", "segment", "--out", tmp_path, "--resolution", 32) == 3
    said = capsys.readouterr().out
    assert "     train: classes that it lacks: 1\n       bus\n" in said
    assert "FAIL images: train: nothing of bus" in said
    (streets / "classes.txt").write_text("road\nsky\ntree\n")
    (tmp_path / "doctor.json").unlink()
    assert run("doctor", streets, "--task", "segment", "--ignore-label", 3, "--out", tmp_path, "--resolution", 32) == 0


def test_wrong_options_and_data(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", cells, "--ignore-label", 3, "--out", tmp_path) == 2
    assert "--ignore-label is for masks" in capsys.readouterr().err
    assert run("doctor", cells, "--task", "segment", "--out", tmp_path) == 3
    assert "FAIL images: " in capsys.readouterr().out
