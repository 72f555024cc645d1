"""What the rows of the design benchmarks are made of."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jobs.small import make_images

from benchmarks import common
from mobilefit.arch import Block, Conv, NetSpec
from mobilefit.arch.heads import ClassifierHead
from mobilefit.data import Preset, load
from mobilefit.jobs.model import export, int8_for_timing
from mobilefit.nn import build

SMALL = NetSpec(
    name="small", input_size=32, stem=Conv(out=16, kernel=3, stride=2), blocks=(Block(expand=32, out=16),),
    head=ClassifierHead(num_classes=3),
)  # fmt: skip


@pytest.mark.parametrize("is_exported", [False, True])
def test_a_files_share_of_the_references_latency(
    is_exported: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that is there is measured, and not another one of the same network."""
    data, preset = load(str(make_images(tmp_path / "shades"))), Preset(resolution=32, crop_fraction=1.0)
    network, other = build(SMALL), build(SMALL)
    reference = SMALL.width(2.0)
    file = tmp_path / "model_int8.tflite"
    if is_exported:
        file.write_bytes(export(other, data, preset, seed=0).int8)
    timed: list[bytes] = []

    def side_by_side(blobs: list[bytes]) -> list[Any]:
        timed.extend(blobs)
        return [SimpleNamespace(median_ms=ms) for ms in (4.0, 1.0)]

    monkeypatch.setattr(common.lab, "side_by_side", side_by_side)
    evaluation, row = common.int8_beside(reference, tmp_path, network, data, preset, seed=0)
    assert row == {"network": "small", "madds": SMALL.cost().madds, "share": 0.25, "reference_ms": 4.0}
    assert timed[0] == int8_for_timing(reference) and len(evaluation.predictions) == len(data.test)
    assert (timed[1] == file.read_bytes()) if is_exported else (timed[1] != timed[0] and not file.exists())
