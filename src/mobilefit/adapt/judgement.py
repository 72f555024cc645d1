"""Networks judged on the same held-out images, and what tells two of them apart."""

from __future__ import annotations

import contextlib
import io
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilefit.data import Preset
from mobilefit.errors import InputError
from mobilefit.nn import Network
from mobilefit.runs import atomic_file, read_bytes
from mobilefit.train.statistics import Difference, paired
from mobilefit.train.task import Task

Losses = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A network on the held-out images."""

    score: float
    """Top-1, or the score of another task: 0 to 1, and high for a good network."""
    losses: Losses
    """[n]: of each image, low for a good network: cross-entropy in nats. A task without losses of single images
    has one number, 1 - score."""


def judge(task: Task, network: Network, held_out: Any, preset: Preset) -> Judgement:
    """Evaluate a network on held-out images of its task.

    Raises:
        InputError: nothing among the images can be judged: no box, no labelled pixel.
    """
    evaluation = task.evaluate(network, held_out, preset)
    score = evaluation.row()[task.score]
    if not math.isfinite(score):
        raise InputError(
            f"the {len(held_out)} held-out images have nothing that {task.score} could be told by",
            "hold out more images",
        )
    losses = getattr(evaluation, "losses", None)
    return Judgement(score=score, losses=np.array([1 - score], np.float32) if losses is None else losses)


def as_fields(difference: Difference) -> dict[str, Any]:
    """A change of the mean loss, and its standard error, ``None`` where there is none, as fields of a log row."""
    error = None if math.isnan(difference.error) else difference.error
    return {"loss_change": difference.mean, "loss_error": error}


def undecided(best: Losses, others: Sequence[Losses], errors: float) -> int | None:
    """Number of ``others`` whose mean loss is within some standard errors of that of ``best``.

    The standard error is that of the paired difference: the same images in the same order.

    Returns:
        ``None`` where there are no losses of single images to tell by.
    """
    if len(best) < 2:
        return None
    differences = [paired(other, best) for other in others]
    return sum(abs(d.mean) <= errors * d.error for d in differences)


def load_losses(path: Path) -> Losses:
    """Losses of single images, from a file that may be damaged or another's.

    Raises:
        OSError: it is missing or no regular file.
        ValueError: it does not hold them.
    """
    data = read_bytes(path)
    try:
        losses = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # a damaged file raises half a dozen kinds
        raise ValueError(f"{path} cannot be read") from error
    if not isinstance(losses, np.ndarray) or losses.dtype.kind != "f" or losses.ndim != 1 or not losses.size:
        raise ValueError(f"{path} holds no losses")
    return losses


class LossStore:
    """Losses of the networks that were judged in a step: a file each, until the step is over."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, step: int, spec_id: str) -> Path:
        """Where the losses of a network are."""
        return self._folder / f"step_{step:03d}" / f"{spec_id}.npy"

    def save(self, step: int, spec_id: str, losses: Losses) -> None:
        """Write them, whole or not at all."""
        path = self.path(step, spec_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            np.save(file, losses)

    def load(self, step: int, spec_id: str) -> Losses:
        """float32 [n]"""
        return load_losses(self.path(step, spec_id))

    def has(self, step: int, spec_id: str, count: int) -> bool:
        """Whether those of ``count`` images are there and can be read."""
        with contextlib.suppress(OSError, ValueError):
            return len(self.load(step, spec_id)) == count
        return False

    def remove(self, step: int) -> None:
        """Those of a whole step."""
        shutil.rmtree(self._folder / f"step_{step:03d}", ignore_errors=True)
