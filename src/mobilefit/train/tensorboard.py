"""A training's rows for TensorBoard, written as they come (extra ``tensorboard``)."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mobilefit.errors import InputError

EVENTS = "events.out.tfevents.*"


class Board:
    """Writes scalars into a folder that ``tensorboard --logdir`` reads, beside those of earlier runs.

    Args:
        folder: made if it is not there.
        start: steps that were done when this run began; what an interrupted run wrote of later ones
            is hidden, so that no step is there twice.
        recipe: shown as a text and as hyperparameters, once a folder.

    Raises:
        InputError: the package is missing, or the folder cannot be written.
    """

    def __init__(self, folder: Path, start: int, recipe: Mapping[str, Any] | None = None) -> None:
        self._folder = folder
        begun = any(folder.glob(EVENTS))
        while _written_within(folder, int(time.time())):
            time.sleep(0.05)
        with self._writes():
            # Events of this step and later ones are purged; those of the last checkpoint's step stay.
            self._writer = _writer()(str(folder), purge_step=start + 1)
            if recipe is not None and not begun:
                self._tell(recipe)

    def row(self, row: Mapping[str, float]) -> None:
        """Write what a row of the history holds beside its step, and see that it is on the disk.

        A run that is killed goes on from a checkpoint that is no older than its rows: rows that were
        still in memory would be missing for good.
        """
        with self._writes():
            for key, value in row.items():
                if key != "step" and isinstance(value, (int, float)):
                    self._writer.add_scalar(tag(key), value, int(row["step"]))
            self._writer.flush()

    def close(self) -> None:
        """No more rows come."""
        with self._writes():
            self._writer.close()

    def _tell(self, recipe: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import summary

        hparams: Any = summary.hparams
        lines = [f"| {key} | {value} |" for key, value in recipe.items()]
        self._writer.add_text("recipe", "\n".join(["| setting | value |", "|---|---|", *lines]), 0)
        values = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in recipe.items()}
        # Not the writer's add_hparams: that writes into a folder of its own, as another run.
        for part in hparams(values, {tag("val_top1"): math.nan, tag("val_loss"): math.nan}):
            self._writer.file_writer.add_summary(part, 0)
        self._writer.flush()

    @contextlib.contextmanager
    def _writes(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"cannot write {self._folder}: {error.strerror or error}") from error


def _written_within(folder: Path, second: int) -> bool:
    """Whether a file of events was begun in that second of the clock.

    TensorBoard reads the files in the order of their names, which begin with the second and go on with numbers
    that are not padded: of two files of one second the later may come first, and is then purged by the earlier.
    """
    return any(folder.glob(f"{EVENTS.removesuffix('*')}{second:010d}.*"))


def tag(key: str) -> str:
    """Where TensorBoard shows a field of the history: ``val_top1`` as ``val/top1``, ``lr`` as ``train/lr``."""
    return f"val/{key[4:]}" if key.startswith("val_") else f"train/{key}"


def require() -> None:
    """See that TensorBoard is there, before any work is done.

    Raises:
        InputError: it is not.
    """
    _writer()


def _writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            f"this needs the package tensorboard ({error})", "pip install 'mobilefit[tensorboard]'"
        ) from error
    return SummaryWriter
