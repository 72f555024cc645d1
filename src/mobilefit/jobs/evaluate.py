"""Accuracy of what was trained or exported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mobilefit import train
from mobilefit.data import load
from mobilefit.jobs import pretrained
from mobilefit.jobs.model import evaluate_file, file_info, naming, read_file
from mobilefit.jobs.options import option
from mobilefit.train import Evaluation


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Options of ``mobilefit evaluate``."""

    data: str = option(help="folder of class folders, or fashion-mnist", argument=True)
    model: Path = option(help=".safetensors or .tflite that mobilefit wrote", argument=True)
    part: Literal["test", "holdout", "train"] = option("test", help="which images")
    seed: int = option(0, help="of the data's division, where the folder does not say")


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Print the accuracy, in all and by class.

    Raises:
        InputError: bad data or file, or classes that differ.
    """
    is_file = config.model.suffix == ".tflite"
    blob = read_file(config.model) if is_file else b""
    described = file_info(blob, config.model) if is_file else None
    opened = None if is_file else pretrained.opened(config.model)
    data = load(config.data, seed=config.seed)
    images = getattr(data, config.part)
    if described is not None:
        pretrained.check_classes(
            config.model, described.spec.head.num_classes, described.classes, data
        )
        with naming(config.model):
            found = evaluate_file(blob, images, described.preset)
    else:
        assert opened is not None
        found = train.evaluate(opened.network, images, opened.preset(data))
    counts = found.confusion.sum(1)
    for name, row, count in zip(data.classes, range(len(counts)), counts, strict=True):
        share = f"{found.confusion[row, row] / count:8.2%}" if count else "       -"
        print(f"  {name:<24} {share}  of {count}")
    print(f"top-1 {found.top1:.2%}, top-5 {found.top5:.2%}, loss {found.loss:.4f} "
          f"on {found.count} {config.part} images")  # fmt: skip
    return found
