"""Data sets whose text files are changed at random are read or refused in a line, never more."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobilefit.data.detection import load_detection
from mobilefit.data.segmentation import load_segmentation
from mobilefit.errors import InputError

from .test_coco import content, write
from .test_exports import LABELMAP, annotation, fill, label, scenes

ROUNDS = 40
VALUES = [
    None, True, 1, -1, 1.0, 1.5, float("nan"), float("inf"), 10**400, "", "1", "a", "\ud800", "a\0b", "9" * 5000, [], [1], {},
    {"a": 1}, "../x", "C:\\x", "²", "1.0", [[1]], 1e308,
]  # fmt: skip
PIECES = [*"0123456789.,:;-[]{}<>'\"\n \t#é\0²\u2028", "9" * 5000, "nan", "inf", "1e999", "names:", "nc: 3\n"]


def changed_json(value: Any, rng: random.Random) -> Any:
    if rng.random() < 0.03:
        return rng.choice(VALUES)
    if isinstance(value, dict):
        return {key: changed_json(item, rng) for key, item in value.items() if rng.random() > 0.01}
    if isinstance(value, list):
        return [changed_json(item, rng) for item in value if rng.random() > 0.01]
    return value


def changed_text(text: str, rng: random.Random) -> str:
    letters = list(text)
    for _ in range(rng.randint(1, 6)):
        index = rng.randrange(len(letters))
        letters[index : index + rng.randint(0, 2)] = rng.choice(([], [rng.choice(PIECES)]))
        letters = letters or ["a"]
    return "".join(letters)


def coco(root: Path, rng: random.Random) -> None:
    (root / "train.json").write_text(json.dumps(changed_json(content("t", 8), rng)))


def yolo(root: Path, rng: random.Random) -> None:
    (root / "data.yaml").write_text(changed_text("nc: 2\nnames:\n  0: cat\n  1: 'dog'\n", rng))
    (root / "labels/3.txt").write_text(changed_text(label(1), rng))


def voc(root: Path, rng: random.Random) -> None:
    (root / "train/2.xml").write_text(changed_text(annotation(), rng))


def masks(root: Path, rng: random.Random) -> None:
    (root / "labelmap.txt").write_text(changed_text(LABELMAP, rng))
    (root / "ImageSets/Segmentation/train.txt").write_text(changed_text("0\n1\n2\n3\n4\n5\n", rng))
    (root / "classes.txt").unlink(missing_ok=True)
    if rng.random() < 0.5:
        (root / "classes.txt").write_text(changed_text("ground 0 0 0\n1 cat\ndog 9 9 9\n", rng))


@pytest.mark.parametrize("change", [coco, yolo, voc, masks], ids=lambda change: change.__name__)
def test_a_changed_file_is_read_or_refused(tmp_path: Path, change: Callable[[Path, random.Random], None]) -> None:
    if change is coco:
        write(tmp_path / "train.json", tmp_path / "train", content("t", 8))
    elif change is yolo:
        fill(tmp_path, "images", "labels", "txt", label(1), 8)
    elif change is voc:
        fill(tmp_path, "train", "train", "xml", annotation(), 8)
    else:
        scenes(tmp_path, "JPEGImages", "SegmentationClass")
        (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    refused = 0
    rng = random.Random(change.__name__)
    for _ in range(ROUNDS):
        change(tmp_path, rng)
        refused += 1
        with contextlib.suppress(InputError):
            (load_segmentation if change is masks else load_detection)(tmp_path)
            refused -= 1
    assert 0 <= refused < ROUNDS
