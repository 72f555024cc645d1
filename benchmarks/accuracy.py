"""What the recipes reach: from scratch, from pretrained weights, with a teacher.

    python -m benchmarks.accuracy scratch                        # V3-Small on Fashion-MNIST, an hour
    python -m benchmarks.accuracy finetune PHOTOS WEIGHTS        # MobileNetV2's ImageNet weights, minutes
    python -m benchmarks.accuracy distillation                   # three seeds with and without, an hour
    python -m benchmarks.accuracy summary

Each training is a ``mobilefit train`` in ``runs/accuracy``: what is finished there is taken up, and an
interrupted one goes on. ``results/training`` gets a row for each, and ``accuracy.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, header, write_row
from mobilefit.data import load
from mobilefit.jobs import pretrained
from mobilefit.jobs.folder import RECORD, command
from mobilefit.jobs.model import export
from mobilefit.jobs.train import TrainConfig, train
from mobilefit.runs import read_json, write_atomic

RUNS, RESULTS = ROOT / "runs" / "accuracy", ROOT / "results" / "training"
PROTOCOL = (
    "mobilefit train; accuracy of the result on all test images, float32 in torch and the int8 .tflite "
    "file made of it by calibration alone; seconds of training as it was, with what else the machine did"
)
SEEDS = (1, 2, 3)
TEACHER = "scratch-fashion-mnist"
PUPIL: dict[str, Any] = {"data": "fashion-mnist", "resolution": 32, "recipe": "scratch",
                         "epochs": 6, "augment": "light", "holdout": 0.0}  # fmt: skip


def scratch() -> Iterator[tuple[str, TrainConfig]]:
    """V3-Small on Fashion-MNIST."""
    yield TEACHER, TrainConfig(
        data="fashion-mnist", resolution=64, recipe="scratch", epochs=60, augment="light", holdout=0.0,
    )  # type: ignore[call-arg]  # fmt: skip


def finetune(photos: str, weights: str) -> Iterator[tuple[str, TrainConfig]]:
    """MobileNetV2 on photos, from ImageNet."""
    yield f"finetune-{Path(photos).name}", TrainConfig(
        data=photos, model="mobilenet_v2", weights=weights, resolution=224, recipe="finetune", holdout=0.0
    )


def distillation() -> Iterator[tuple[str, TrainConfig]]:
    """V3-Small taught by the better V3-Small of :func:`scratch`, and by the labels alone."""
    yield from scratch()
    teacher = str(RUNS / TEACHER / "model.safetensors")
    for seed in SEEDS:
        yield f"alone-{seed}", TrainConfig(**PUPIL, seed=seed)
    for seed in SEEDS:
        yield f"taught-{seed}", TrainConfig(**PUPIL, seed=seed, teacher=teacher, temperature=2.0)


def row(name: str, config: TrainConfig) -> dict[str, Any]:
    """Train, unless it is done, and say what came out."""
    config = replace(config, out=RUNS / name, resume=True)
    finished = config.out / RECORD
    record = read_json(finished) if finished.exists() else train(config)
    data = load(config.data, seed=config.seed, holdout=config.holdout)
    opened = pretrained.opened(config.out / "model.safetensors")
    files = export(opened.network, data, opened.preset(data), seed=config.seed)
    portable = replace(config, out=Path("runs"), resume=False, weights=_name(config.weights),
                       teacher=_name(config.teacher), data=_name(config.data) or "")  # fmt: skip
    return {
        "name": name, "command": command("train", portable), "float32": record["final"]["accuracy_float"],
        "int8": files.found["int8"].top1, "test_images": files.found["int8"].count,
        "seconds": record["seconds"]["training"], "steps": record["training"]["steps"],
        "images_per_second": record["training"]["images_per_second"], "recipe": record["recipe"],
    }  # fmt: skip


def _name(path: str | None) -> str | None:
    return None if path is None else Path(path).name if "/" in path else path


def summary() -> str:
    """A table of all rows, and the teacher's gain."""
    rows = {row["name"]: row for row in (json.loads(path.read_text()) for path in sorted(RESULTS.glob("rows/*.json")))}
    lines = ["# What the recipes reach", "", PROTOCOL + ".", "",
             "| run | float32 | int8 | minutes | images/s | command |", "|---|---|---|---|---|---|"]  # fmt: skip
    for name, found in rows.items():
        lines.append(
            f"| {name} | {found['float32']:.2%} | {found['int8']:.2%} | {found['seconds'] / 60:.1f} "
            f"| {found['images_per_second']:.0f} | `{found['command']}` |"
        )
    return "\n".join([*lines, *_gain(rows)]) + "\n"


def _gain(rows: dict[str, dict[str, Any]]) -> list[str]:
    seeds = [seed for seed in SEEDS if f"alone-{seed}" in rows and f"taught-{seed}" in rows]
    if len(seeds) < 2:
        return []
    said = ["", "## What a teacher adds", ""]
    for kind in ("float32", "int8"):
        alone, taught = ([rows[f"{how}-{seed}"][kind] for seed in seeds] for how in ("alone", "taught"))
        gains = [100 * (b - a) for a, b in zip(alone, taught, strict=True)]
        said.append(
            f"{kind}: {statistics.mean(alone):.2%} alone, {statistics.mean(taught):.2%} taught; "
            f"{statistics.mean(gains):+.2f} ± {statistics.stdev(gains):.2f} points over {len(seeds)} seeds "
            f"({', '.join(f'{gain:+.2f}' for gain in gains)}); the teacher {rows[TEACHER][kind]:.2%}."
        )
    return said


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("scratch", "finetune", "distillation", "summary"))
    parser.add_argument("files", nargs="*", help="finetune: a folder of photos, and weights")
    options = parser.parse_args(arguments)
    made = {"scratch": scratch, "finetune": finetune, "distillation": distillation}
    for name, config in made[options.what](*options.files) if options.what in made else ():
        write_row(RESULTS, name, {**header(PROTOCOL), **row(name, config)})
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_atomic(RESULTS / "accuracy.md", summary())
    print(summary())


if __name__ == "__main__":
    main()
