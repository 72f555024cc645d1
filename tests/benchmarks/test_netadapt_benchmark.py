"""The benchmark of NetAdapt's estimates, on a few dozen images of noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import netadapt
from mobilefit.data import ClassificationData, ImageSet
from mobilefit.data.images import ArraySource
from mobilefit.runs import read_jsonl

SIDE = 16


def noise(count: int) -> ImageSet:
    pixels = np.random.default_rng(count).integers(0, 256, (count, SIDE, SIDE), np.uint8)
    return ImageSet(ArraySource(pixels, ["noise"] * count), np.arange(count) % 3)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    data = ClassificationData(
        name="noise", classes=("a", "b", "c"), train=noise(32), holdout=noise(12), test=noise(9), skipped=(),
        fingerprint="", short_side=SIDE,
    )  # fmt: skip
    monkeypatch.setattr(netadapt, "load", lambda name, **options: data)
    monkeypatch.setattr(netadapt, "RESOLUTION", SIDE)
    monkeypatch.setattr(netadapt, "DRAWS", 2)
    monkeypatch.setattr(netadapt, "SEEDED", ("blocks.8.out", "blocks.10.expand"))
    monkeypatch.setattr(netadapt, "HALVED", ("blocks.1.expand", "head.hidden"))


@pytest.mark.parametrize(
    ("part", "options", "rows"),
    [("channels", [], 2 * 5), ("proposals", ["--seeds", "2"], 2 * 2 * 2 * 2), ("ranking", ["--count", "3", "--long-steps", "1"], 6)],
)
def test_a_part_is_measured_once(
    part: str, options: list[str], rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [part, "--base-steps", "1", "--steps", "1", "--out", str(tmp_path), "--runs", str(tmp_path / "runs"), *options]
    netadapt.main(words)
    log = tmp_path / f"{part}.jsonl"
    measured = read_jsonl(log)
    assert len(measured) == rows and all(0 <= row["accuracy"] <= 1 for row in measured)
    text = (tmp_path / f"{part}.md").read_text()
    assert f"`python -m benchmarks.netadapt {part} --base-steps 1" in text and str(tmp_path) not in text
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-2]))  # as if it had been cut off
    again: list[Any] = []
    write = netadapt.append_jsonl
    monkeypatch.setattr(netadapt, "append_jsonl", lambda path, row: (again.append(row), write(path, row)))
    netadapt.main(words)
    assert len(again) == 2
    for row, before in zip(again, measured[-2:], strict=True):
        assert {**row, "seconds": 0} == {**before, "seconds": 0}
    lines = [line for line in text.splitlines() if line.startswith(("|", "-"))]
    assert lines == [line for line in (tmp_path / f"{part}.md").read_text().splitlines() if line.startswith(("|", "-"))]


def test_rank_correlation_by_hand() -> None:
    assert netadapt.spearman([1, 2, 3, 4], [10, 20, 30, 99]) == pytest.approx(1.0)
    assert netadapt.spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert netadapt.spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert netadapt.spearman([1, 1, 2], [1, 1, 2]) == pytest.approx(1.0)  # ties share a rank


def test_the_spread_is_judged_against_the_target() -> None:
    """What moves all proposals of a step alike does not count."""
    steps = np.array([[0.0], [0.05]])
    same = {"before": np.array([[0.8, 0.7], [0.8, 0.6]]), "after": np.array([[0.8, 0.7], [0.8, 0.7]]) + steps}
    text = "\n".join(netadapt.spread_table(same, ["a", "b"]))
    assert "- before: spread 5.00 points, among the others 3.54" in text
    assert "- after: spread 3.54 points, among the others 0.00" in text and text.endswith(": met")
    text = "\n".join(netadapt.spread_table({"before": same["after"], "after": same["before"]}, ["a", "b"]))
    assert text.endswith(": **missed**")
