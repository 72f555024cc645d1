"""The benchmark of designs from scratch, without its trainings."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import design_scratch
from benchmarks.design_scratch import Setting, compare, summary, within
from mobilefit.runs import read_json

SETTING = Setting(
    data="fashion-mnist", shares=(50, 30), epochs=30.0, recipe="fast", taught=True, inherit=False, delta=0.03,
    tune_steps=20, search_minutes=1.0, design_minutes=1.0, design_search=False, runs=Path("runs"), results=Path("results"),
)  # fmt: skip


def row(method: str, right: str, *, budget: int = 50, seed: int = 0) -> dict[str, Any]:
    return {
        "method": method, "budget": budget, "seed": seed, "network": "small", "pixels": 48, "share": 0.49,
        "top1": right.count("1") / len(right), "right": right,
    }  # fmt: skip


def test_differences_are_paired_by_image_and_seed() -> None:
    """By hand: 2 seeds, 4 images; by image 0.5, 0.5, 0, 0, by seed 0.5 and 0."""
    ahead = compare(np.array([[1, 1, 0, 1], [1, 1, 0, 1]], float), np.array([[0, 0, 0, 1], [1, 1, 0, 1]], float))
    assert (ahead.points, ahead.seeds) == (25.0, 2)
    assert ahead.image_error == pytest.approx(100 * math.sqrt(4 * 0.25**2 / 3) / 2)
    assert ahead.seed_error == pytest.approx(25.0)
    one = compare(np.array([[1.0, 0.0]]), np.array([[0.0, 0.0]]))
    assert math.isnan(one.seed_error) and "seeds" not in str(one)


def test_seeds_that_one_lacks_are_left_out() -> None:
    rows = {"a": {0: row("a", "10"), 1: row("a", "11")}, "b": {1: row("b", "01", seed=1)}}
    both = design_scratch.right(rows, ("a", "b"))
    assert both["a"].tolist() == [[1.0, 1.0]] and both["b"].tolist() == [[0.0, 1.0]]
    assert design_scratch.right(rows, ("a", "c")) == {}


def test_the_largest_that_is_hardly_over_the_budget() -> None:
    assert within(50, [0.2, 0.376, 0.508, 0.52, 0.6]) == 2
    assert within(30, [0.2, 0.29, 0.31]) == 1
    with pytest.raises(ValueError):
        within(30, [0.5])


def test_the_summary_tells_search_and_shrinking_apart() -> None:
    rows = [
        row("width", "1000000000"), row("adapted", "1100000000"), row("searched", "1110000000"),
        row("searched-adapted", "1111100000"), row("resolution", "1111000000"), row("design", "1111100000"),
    ]  # fmt: skip
    text = summary(rows, SETTING.name)
    assert "| mobilenet_v3_small | 10.00% | 20.00% |" in text and "| searched | 30.00% | 50.00% |" in text
    search, adapt = (next(line for line in text.splitlines() if line.startswith(f"- {what},")) for what in ("search", "NetAdapt"))
    assert "scaled: +20.00" in search and "adapted: +30.00" in search and "mean: +25.00" in search
    assert "by hand: +10.00" in adapt and "searched: +20.00" in adapt and "mean: +15.00" in adapt
    assert "ahead of the width multiplier by 0.5 points: met, +40.00" in text
    assert "ahead of the better of both (resolution) by 0.3 points: met, +10.00" in text


def test_a_missed_target_and_missing_rows() -> None:
    rows = [row(method, "1100", budget=30) for method in ("width", "resolution", "design")]
    text = summary(rows, SETTING.name)
    assert "ahead of the width multiplier by 1.0 points: **missed**, +0.00" in text and "scaled in width |" not in text
    assert "points:" not in summary([row("design", "11"), row("width", "11")], SETTING.name)


def test_settings_do_not_share_a_folder() -> None:
    changed = [
        SETTING, replace(SETTING, epochs=60.0), replace(SETTING, taught=False), replace(SETTING, inherit=True),
        replace(SETTING, recipe="scratch"), replace(SETTING, data="a/folder"),
    ]  # fmt: skip
    assert len({setting.rows for setting in changed}) == len({setting.folder for setting in changed}) == len(changed)


def test_rows_are_kept_one_by_one_and_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int, int]] = []

    def measured(method: str, budget: int, folder: Path, setting: Setting, seed: int) -> dict[str, Any]:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append((method, budget, seed))
        return row(method, "10", budget=budget, seed=seed)

    monkeypatch.setattr(design_scratch, "row", measured)
    monkeypatch.setattr(design_scratch, "METHODS", dict.fromkeys(("width", "design"), lambda *_: Path("network")))
    words = ["--seeds", "0", "--shares", "50", "30", "--runs", str(tmp_path), "--results", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        design_scratch.main(words)
    folder = tmp_path / SETTING.name
    assert len(list((folder / "rows").glob("*.json"))) == 3 and "## 50 %" in (folder / "summary.md").read_text()
    monkeypatch.setattr(design_scratch, "row", lambda method, budget, _, __, seed: row(method, "11", budget=budget, seed=seed))
    design_scratch.main(words)
    assert [read_json(path)["right"] for path in sorted((folder / "rows").glob("*.json"))] == ["11", "10", "10", "10"]
