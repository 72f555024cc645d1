"""The benchmark of designs for boxes and masks: which network is taken, and what the table says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import design_scenes
from mobilefit.runs import read_json, write_json


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(design_scenes, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(design_scenes, "RESULTS", tmp_path / "scenes")


def keep(task: str, method: str, seed: int, score: float, **arrays: np.ndarray) -> None:
    path = design_scenes.path_of(task, method, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {
        "task": task, "method": method, "seed": seed, "network": "v2", "pixels": "96 px", "reference": "v2 160 px",
        "share": 0.48, "score": score, "score_name": "mIoU", "epochs": 10.0, "test_images": 4,
    })  # fmt: skip
    np.savez_compressed(path.with_suffix(".npz"), **arrays)


def pixels(right: int) -> np.ndarray:
    """Four images of a hundred pixels of each of two classes, so many right."""
    return np.array([[[right, right], [100, 100], [100, 100]]] * 4)


def test_the_table_pairs_a_design_with_what_stands_beside_it(tmp_path: Path) -> None:
    for seed in (0, 1):
        keep("segment", "design", seed, 0.6, pixels=pixels(75))
        keep("segment", "taught", seed, 0.5, pixels=pixels(80))
    keep("segment", "width", 0, 1 / 3, pixels=pixels(50))
    design_scenes.main(["summary"])
    lines = (tmp_path / "scenes.md").read_text().splitlines()
    # 75 of 125 against 80 of 120 and 50 of 150; all images are alike, so there is no error.
    assert "| taught | 2 | 50.0% | 0.480 | v2 96 px | -6.7 ± 0.0 (2 seeds) |" in lines
    assert "| width | 1 | 33.3% | 0.480 | v2 96 px | +26.7 ± 0.0 (1 seeds) |" in lines
    assert "| design | 2 | 60.0% | 0.480 | v2 96 px |  |" in lines


def test_the_outcomes_of_a_detector_come_back_from_a_row() -> None:
    keep("detect", "design", 0, 1.0, image=np.array([0, 1]), label=np.array([0, 0]), right=np.array([True, False]),
         truths=np.array([[1], [1]]))  # fmt: skip
    outcomes = design_scenes.outcomes_of(read_json(design_scenes.path_of("detect", "design", 0)))
    assert outcomes.score(np.array([1, 0])) == 1.0 and outcomes.score(np.array([0, 1])) == 0.0


@pytest.mark.parametrize("words", [["detect"], ["detect", "data"], ["detect", "data", "weights.pth"], ["classify", "data", "a=b"]])
def test_what_is_not_a_task_with_data_and_weights(words: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        design_scenes.main(words)
    assert stopped.value.code == 2 and "usage:" in capsys.readouterr().err
