"""Images, a network and a device small enough for a test; also for processes of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mobilefit.arch import Block, ClassifierHead, Conv, NetSpec
from mobilefit.cli import main
from mobilefit.jobs import plan
from mobilefit.litert.graph import CODE, parse
from mobilefit.runs import read_jsonl
from mobilefit.runtime import TimingSamples, Worker

SPEC = NetSpec(
    name="tiny",
    input_size=32,
    stem=Conv(out=16, kernel=3, stride=2, act="hard_swish"),
    blocks=(
        Block(expand=64, out=16),
        Block(expand=72, out=24, stride=2),
        Block(expand=96, out=24, se="v3", act="hard_swish"),
    ),
    head=ClassifierHead(num_classes=3),
)
SPACE: dict[str, Any] = {
    "name": "small",
    "base": SPEC.to_dict(),
    "rows": [1, 3],
    "blocks": [
        {"stride": 2, "op": ["mbconv2", "mbconv4"], "kernel": [3, 5], "filters": [16, 24], "layers": [1, 2]},
        {"stride": 2, "op": ["mbconv3"], "kernel": [3], "se": ["none", "v3"], "filters": [32, 40],
         "layers": [1, 2], "act": ["relu", "hard_swish"]},
    ],
}  # fmt: skip
"""2^8 networks around the tiny one's first row."""
CLASSES = ("blue", "green", "red")


def picture(label: int, seed: int, size: tuple[int, int] = (40, 36)) -> Image.Image:
    """Noise with one bright channel: classes that a tiny network soon tells apart."""
    pixels = np.random.default_rng(seed).integers(0, 140, (size[1], size[0], 3))
    pixels[..., 2 - label % 3] += 90
    return Image.fromarray(pixels.astype(np.uint8))


def make_images(
    root: Path, classes: Sequence[str] = CLASSES, count: int = 40, size: tuple[int, int] = (40, 36)
) -> Path:
    """A folder of class folders."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(count):
            file = root / name / f"{number:03d}.png"
            picture(label, 1000 * label + number, size).save(file)
    return root


def run(*words: object) -> int:
    """A command line within this process."""
    return main([str(word) for word in words])


# ---- a device that always takes the same time


def milliseconds(blob: bytes) -> float:
    """What a file takes on the steady device: by its multiply-adds; float32 takes three times int8."""
    graph, total = parse(blob), 0.0
    for op in graph.ops:
        weights = op.inputs[1] if len(op.inputs) > 1 else None
        if op.code in _WEIGHTED and weights is not None and weights.data is not None:
            places = np.prod(op.output.shape[1:3]) if len(op.output.shape) == 4 else 1
            total += float(places * weights.data.size * (3 if weights.dtype == np.float32 else 1))
    return 0.002 + total / 2e7


_WEIGHTED = {CODE.CONV_2D, CODE.DEPTHWISE_CONV_2D, CODE.FULLY_CONNECTED}


def time_many(
    worker: Worker, blobs: Sequence[bytes], *, threads: int = 1, core: int | None = None,
    rule: Any = None,
) -> list[TimingSamples]:  # fmt: skip
    """In the place of :meth:`Worker.time_many`."""
    return [TimingSamples([milliseconds(blob)] * 3, stable=True) for blob in blobs]


def hold_steady(patch: Callable[[Any, str, Any], None]) -> None:
    """Measure on the steady device, and do not time training."""
    patch(Worker, "time_many", time_many)
    patch(plan, "PROBE_SECONDS", 0.01)


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """This test's latencies are those of the steady device."""
    hold_steady(monkeypatch.setattr)


# ---- what most tests begin with


@dataclass(frozen=True, kw_only=True)
class World:
    """Images, a network, and what training and export made of them."""

    images: Path
    spec: Path
    space: Path
    weights: Path
    float32: Path
    int8: Path


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    images = make_images(root / "shades")
    spec = root / "tiny.json"
    spec.write_text(SPEC.to_json())
    space = root / "space.json"
    space.write_text(json.dumps(SPACE))
    with pytest.MonkeyPatch.context() as patch:
        hold_steady(patch.setattr)
        trained, exported = root / "trained", root / "exported"
        assert run("train", images, "--model", spec, "--resolution", 32, "--batch-size", 16,
                   "--epochs", 4, "--out", trained, "--quiet") == 0  # fmt: skip
        assert run("export", trained / "model.safetensors", images, "--out", exported) == 0
    return World(
        images=images, spec=spec, space=space, weights=trained / "model.safetensors",
        float32=exported / "model_float32.tflite", int8=exported / "model_int8.tflite",
    )  # fmt: skip


Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command line that must end with that exit code (2) and one line; gives that line."""

    def check(*words: object, code: int = 2) -> str:
        capsys.readouterr()
        found = run(*words)
        lines = capsys.readouterr().err.splitlines()
        assert found == code, lines
        assert [line for line in lines if line.startswith("mobilefit: ")] == lines[-1:], lines
        assert "Traceback" not in "\n".join(lines)
        return lines[-1].removeprefix("mobilefit: ")

    return check


def accepted(folder: Path) -> list[tuple[int, str, str]]:
    """NetAdapt's accepted steps in a run folder."""
    rows = read_jsonl(folder / "netadapt" / "netadapt.jsonl")
    return [(r["step"], r["what"], r["spec_id"]) for r in rows if r["event"] == "accepted"]


def record(folder: Path) -> dict[str, Any]:
    """A run's record."""
    value: dict[str, Any] = json.loads((folder / "record.json").read_text())
    return value

