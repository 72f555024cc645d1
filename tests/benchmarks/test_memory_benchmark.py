from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import memory
from mobilefit.cli.main import LazyCommand
from mobilefit.data import load
from mobilefit.data.segmentation import load_segmentation

PART = 0.01


@pytest.mark.parametrize(
    ("data", "reader", "count"), [("photos", load, 200), ("scenes", load_segmentation, 50), ("shard", load, 200)]
)
def test_the_data_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, reader: Callable[[Path], Any], count: int
) -> None:
    monkeypatch.setattr(memory, "PHOTO_SIZE", (40, 30))
    monkeypatch.setattr(memory, "SCENE_SIZE", (40, 20))
    folder = memory.made(data, tmp_path, PART)
    loaded = reader(folder)
    assert len(loaded.train) + len(loaded.holdout) + len(loaded.test) == count
    assert sorted(p.name for p in tmp_path.iterdir()) == [data]


def test_a_number_changes_the_file_and_not_the_picture() -> None:
    (jpeg, *_) = memory.jpegs((40, 30), np.random.default_rng(0))
    first, second = memory.numbered(jpeg, 1), memory.numbered(jpeg, 2)
    assert first != second
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(first))), np.asarray(Image.open(io.BytesIO(second))))


def test_the_peak_counts_children_and_keeps_the_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verb that holds little beside a child that holds 300 MiB for a second, and fails."""
    child = "b = bytearray(300 << 20); import time; time.sleep(1)"
    (tmp_path / "mobilefit.py").write_text(
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); print('done'); sys.exit(3)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    row = memory.peak(("train",), tmp_path / "log")
    assert row["status"] == 3 and (tmp_path / "log").read_text() == "done\n"
    assert 300 <= row["mib"] < 420


@pytest.mark.parametrize("data", memory.MAKERS)
def test_the_command_lines_are_the_ones_that_the_verbs_take(data: str, tmp_path: Path) -> None:
    for command in memory.commands(data, tmp_path / "data", tmp_path).values():
        LazyCommand(command[0]).make_context(command[0], list(command[1:]))
