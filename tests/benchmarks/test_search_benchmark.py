"""The benchmark of the search strategies, on a space of a few hundred networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import search
from mobilefit.search.strategies import STRATEGIES

SMALL = {
    "name": "small",
    "base": "mobilenet_v3_small",
    "rows": [3, 8],
    "blocks": [
        {"stride": 2, "op": ["mbconv3", "conv"], "kernel": [3, 5], "filters": [24, 40], "layers": [1, 2]},
        {"stride": 1, "op": ["mbconv3", "mbconv6"], "kernel": [3, 5], "filters": [48, 64], "layers": [2]},
    ],
}  # fmt: skip


def test_a_small_run_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space, out = tmp_path / "small.json", tmp_path / "out"
    space.write_text(json.dumps(SMALL))
    search.main(
        ["--space", str(space), "--samples", "50", "--seeds", "2", "--sweep-seeds", "1",
         "--processes", "1", "--out", str(out)]
    )  # fmt: skip
    found = json.loads((out / "curves.json").read_text())
    compared = [row for row in found["runs"] if row["changed"] is None]
    assert len(compared) == 2 * 3 * len(STRATEGIES) * 2
    assert len(found["runs"]) - len(compared) == sum(map(len, search.SWEEP.values()))
    for row in found["runs"]:
        assert len(row["curve"]) == 3 and row["curve"] == sorted(row["curve"])
        assert 0.5 < row["optimal_share"] <= 1
    text = (out / "summary.md").read_text()
    assert capsys.readouterr().out.strip() in text
    for expected in (
        *search.NAMES.values(),
        "| **clip 0.2** |",
        "Reward `soft_small`, an unseen table",
    ):
        assert expected in text
    assert "<svg" in (out / "curves.svg").read_text()


def test_refuses_a_mistyped_option() -> None:
    with pytest.raises(SystemExit) as stopped:
        search.main(["--sampels", "3"])
    assert stopped.value.code == 2


def test_samples_to_enough() -> None:
    assert search._samples_to([0.9, 0.97, 0.98], 50) == 50
    assert search._samples_to([0.99], 50) == 20
    assert search._samples_to([0.9, 0.97], 40) == float("inf")
