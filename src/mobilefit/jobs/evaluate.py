"""How good is what was trained or exported?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mobilefit.arch import Task
from mobilefit.errors import naming
from mobilefit.jobs import pretrained
from mobilefit.jobs.kinds import KINDS, Kind, loaded, source_of, trained_preset
from mobilefit.jobs.model import evaluate_file, file_info, read_file
from mobilefit.jobs.options import option
from mobilefit.progress import Voice
from mobilefit.tasks.detect import DetectionEvaluation
from mobilefit.tasks.segment import SegmentationEvaluation
from mobilefit.train import Evaluation


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Options of ``mobilefit evaluate``."""

    data: str = option(help="images of the network's task: docs/data.md, docs/detection.md, docs/segmentation.md; or fashion-mnist", argument=True)
    model: Path = option(help=".safetensors or .tflite that mobilefit wrote", argument=True)
    part: Literal["test", "holdout", "train"] = option("test", help="which images")
    ignore_label: tuple[int, ...] = option((), help="segment: a label in the masks that is no class; may be repeated")
    seed: int = option(0, help="of the data's division, where the folder does not say")


def evaluate(config: EvaluateConfig) -> Any:
    """Print how good a network is, in all and by class: accuracy, average precision, or intersection over union.

    Returns:
        The task's evaluation.

    Raises:
        InputError: bad data or file, data of another task, or classes that differ.
    """
    found, data, kind = _found(config)
    print("\n".join(_TOLD[kind.task](found, data.classes)))
    print(f"{_summary(found)} on {len(getattr(data, config.part))} {config.part} images")
    return found


def _found(config: EvaluateConfig) -> tuple[Any, Any, Kind]:
    if config.model.suffix == ".tflite":
        blob = read_file(config.model)
        info = file_info(blob, config.model)
        kind = KINDS[info.spec.task]
        data = loaded(kind, source_of(config, Voice()))
        pretrained.check_classes(config.model, info.spec.head.num_classes, info.classes, data)
        with naming(config.model):
            return evaluate_file(blob, getattr(data, config.part), info.preset), data, kind
    opened = pretrained.opened(config.model)
    kind = KINDS[opened.network.spec.task]
    data = loaded(kind, source_of(config, Voice()))
    preset = trained_preset(opened, data, kind)
    return kind.port.evaluate(opened.network, getattr(data, config.part), preset), data, kind


# ---- what is said


def _summary(found: Any) -> str:
    if isinstance(found, DetectionEvaluation):
        return f"mAP@0.5 {found.score.map50:.2%}, mAP {found.score.map:.2%}"
    if isinstance(found, SegmentationEvaluation):
        return f"mIoU {found.score.miou:.2%}, pixel accuracy {found.score.pixel_accuracy:.2%}"
    return f"top-1 {found.top1:.2%}, top-5 {found.top5:.2%}, loss {found.loss:.4f}"


def _shares(found: Evaluation, classes: Sequence[str]) -> list[str]:
    counts = found.confusion.sum(1)
    return [_line(name, f"{_percent(right / count if count else np.nan)}  of {count}")
            for name, right, count in zip(classes, found.confusion.diagonal(), counts, strict=True)]  # fmt: skip


def _precisions(found: DetectionEvaluation, classes: Sequence[str]) -> list[str]:
    score = found.score
    rows = zip(classes, score.ap50, score.ap, score.truths, strict=True)
    lines = [_line(name, f"{_percent(ap50)}  {_percent(ap)}  {boxes:>6}") for name, ap50, ap, boxes in rows]
    return [_line("", "  AP@0.5        AP   boxes"), *lines]


def _unions(found: SegmentationEvaluation, classes: Sequence[str]) -> list[str]:
    pixels = found.score.confusion.sum(1)
    rows = zip(classes, found.score.iou, pixels / max(1, pixels.sum()), strict=True)
    lines = [_line(name, f"{_percent(iou)}  {_percent(share)}") for name, iou, share in rows]
    return [_line("", "     IoU    pixels"), *lines]


_TOLD: dict[Task, Any] = {"classify": _shares, "detect": _precisions, "segment": _unions}


def _line(name: str, values: str) -> str:
    return f"  {name:<24} {values}"


def _percent(share: float) -> str:
    """Eight characters wide."""
    return "       -" if np.isnan(share) else f"{share:8.2%}"
