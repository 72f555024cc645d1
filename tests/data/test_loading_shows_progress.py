"""A large data set takes minutes to be looked at: loading one says how far it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobilefit import progress
from mobilefit.data import load
from mobilefit.data.detection import load_detection
from mobilefit.data.segmentation import load_segmentation
from mobilefit.jobs.kinds import KINDS, source_of
from mobilefit.jobs.train import TrainConfig
from mobilefit.progress import Voice

from .conftest import MakeFolder
from .shard_server import write_shards
from .test_segmentation import write
from .test_voc import make_voc

Loading = tuple[str, Callable[..., Any], Path]


@pytest.fixture(params=["classify", "detect", "segment"])
def loading(request: pytest.FixtureRequest, tmp_path: Path, make_folder: MakeFolder) -> Loading:
    """A task, what loads its images, and 12 of them."""
    root = tmp_path / "set"
    if request.param == "classify":
        return "classify", load, make_folder({"a": 6, "b": 6})
    if request.param == "detect":
        make_voc(root, train=8, val=4)
        return "detect", load_detection, root
    write(root / "train/images", root / "train/labels", count=8)
    write(root / "val/images", root / "val/labels", count=4, first=100)
    return "segment", load_segmentation, root


@pytest.fixture(autouse=True)
def a_line_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", -1.0)


def test_images_are_counted_as_they_are_looked_at(
    loading: Loading, capsys: pytest.CaptureFixture[str]
) -> None:
    _, load_it, root = loading
    load_it(root, progress="looking")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"looking: {n}/12 img" for n in range(1, 13)]
    load_it(root)
    assert capsys.readouterr().err == ""


def test_a_verb_shows_it_unless_it_is_to_be_quiet(
    loading: Loading, capsys: pytest.CaptureFixture[str]
) -> None:
    task, _, root = loading
    asked = TrainConfig(data=str(root))
    for quiet in (False, True):
        KINDS[task].load(source_of(asked, Voice(quiet=quiet)))
        assert ("reading images: 12/12 img" in capsys.readouterr().err) == (not quiet)


def test_shards_are_counted_as_they_are_indexed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOBILEFIT_CACHE", str(tmp_path / "cache"))
    write_shards(tmp_path / "set", 3, 10)
    load(f"{tmp_path}/set")
    assert capsys.readouterr().err == ""
    write_shards(tmp_path / "other", 3, 10)
    load(f"{tmp_path}/other", progress="looking")
    assert "looking: 3/3 shard" in capsys.readouterr().err
