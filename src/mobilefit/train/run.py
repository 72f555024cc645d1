"""A training's way through its images: steps, rows of the history, checkpoints, interruptions."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from mobilefit.data import Preset, by_workers
from mobilefit.errors import InputError, one_line
from mobilefit.nn import Network, save_weights
from mobilefit.progress import Progress
from mobilefit.runs import append_jsonl, read_log, write_atomic
from mobilefit.train.checkpoint import (
    CHECKPOINT,
    Identity,
    keep_earlier,
    load_latest,
    save_checkpoint,
    save_tensors,
)
from mobilefit.train.interrupts import Interrupts
from mobilefit.train.ranks import total
from mobilefit.train.task import Feed, Targets, Task
from mobilefit.train.threads import AdaptiveThreads
from mobilefit.train.trainer import Trainer, TrainingDiverged

METRICS = "metrics.jsonl"
BEST = "best.safetensors"
DIVERGED = "diverged.pt"
_ROW_FIELDS = {"step": int, "loss": Real}
"""What every row of ``METRICS`` has; whatever else it has are numbers as well."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a training did."""

    steps: int
    """Optimizer steps of the whole run, those before a resume included."""
    seconds: float
    """Spent in this call, validation included."""
    total_seconds: float
    """The same of the whole run: of calls that were interrupted, up to the checkpoint gone on from."""
    images_per_second: float
    """In the training steps of this call; 0 when it had none to do."""
    loss: float
    """Mean training loss since the last but one row of the history; NaN without any row."""
    history: tuple[dict[str, float], ...]
    """The rows of ``metrics.jsonl``: step, epoch, loss, lr, images_per_s, data_wait (share of the time
    that the network waited for images), on a CPU threads (at the row's end); with validation what the task
    tells: val_top1, val_loss."""
    thread_counts: tuple[tuple[int, int], ...] = ()
    """(steps done, CPU threads from there on), the beginning and every change of the whole run. Only a run with the
    same ones has the same bits."""
    score: str = "val_top1"
    """The number of a row that tells how good the network is."""

    @property
    def best(self) -> dict[str, float] | None:
        """The row with the best validation, the first of equals; ``None`` without validation."""
        return best_row(self.history, self.score)


@dataclass(kw_only=True)
class Run:
    """A trainer going through its images, and what is recorded on the way."""

    trainer: Trainer
    task: Task
    train_set: Any
    validation: Any | None
    preset: Preset
    folder: Path | None
    keep: int
    workers: int
    identity: Identity
    threads: AdaptiveThreads
    board: Board | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    _window: Window = field(default_factory=lambda: Window())
    _images: int = 0
    _seconds: float = 0.0
    _earlier: float = 0.0
    _thread_counts: list[tuple[int, int]] = field(default_factory=list)
    _began: float = field(default_factory=time.perf_counter)

    def resume(self) -> None:
        """Take up the latest checkpoint in the folder, and drop the rows that came after it."""
        assert self.folder is not None
        state = load_latest(self.folder, self.identity)
        if state is not None:
            try:
                self._take_up(state)
            except Exception as error:  # of another shape: half a dozen kinds
                raise InputError(
                    f"the checkpoint in {self.folder} does not hold the state of this training: {one_line(error)}",
                    "delete it to train from the start",
                ) from error
        rows = read_log(self.folder / METRICS, lambda row: _ROW_FIELDS | dict.fromkeys({*row} - {*_ROW_FIELDS}, Real))
        self.history = list({row["step"]: row for row in rows if row["step"] <= self.trainer.done}.values())
        if self.trainer.fabric.is_global_zero:
            write_atomic(self.folder / METRICS, "".join(f"{json.dumps(row)}\n" for row in self.history))

    def _take_up(self, state: dict[str, Any]) -> None:
        self.trainer.load_state_dict(state)
        losses, steps = state["window"]
        self._window.losses, self._window.steps = float(losses), int(steps)
        self._earlier = float(state["seconds"])
        self._thread_counts = [(int(done), int(threads)) for done, threads in state.get("thread_counts", [])]

    def finish(self, label: str | None) -> FitResult:
        """Take the steps that are left."""
        trainer = self.trainer
        self._note_threads()
        size = trainer.recipe.batch_size
        several = trainer.fabric.world_size > 1
        agree = (lambda wanted: total(trainer.fabric, wanted)[0] > 0) if several else None
        with Interrupts(on=self.folder is not None, agree=agree) as interrupts:
            try:
                with Progress(trainer.plan.steps * size, label, done=trainer.done * size) as bar:
                    self._steps(interrupts, bar)
            except KeyboardInterrupt:
                if interrupts.between_steps:
                    self._save()
                raise
            finally:
                if self.board is not None:
                    self.board.close()
        return FitResult(
            steps=trainer.done,
            seconds=time.perf_counter() - self._began,
            total_seconds=self._total_seconds,
            images_per_second=self._images / self._seconds if self._seconds else 0.0,
            loss=self.history[-1]["loss"] if self.history else math.nan,
            history=tuple(self.history),
            score=self.task.score,
            thread_counts=tuple(self._thread_counts),
        )

    def _steps(self, interrupts: Interrupts, bar: Progress) -> None:
        trainer = self.trainer
        feed = self.task.feed(
            self.train_set, self.preset, trainer.recipe, seed=trainer.seed,
            rank=trainer.fabric.global_rank, ranks=trainer.fabric.world_size,
        )  # fmt: skip
        pin = trainer.fabric.device.type == "cuda"
        marked = time.perf_counter()
        for images, targets in by_workers(
            feed, range(trainer.done, trainer.plan.steps), self.workers, pin=pin
        ):
            waited = time.perf_counter() - marked
            lr = trainer.lr
            with interrupts.held():
                loss = self._step(images, targets, feed)
                taken, count = time.perf_counter() - marked, trainer.recipe.batch_size
                self._window.add(loss, count, taken, waited)
                self._images, self._seconds = self._images + count, self._seconds + taken
                self.threads.after_step(count, taken - waited)
                self._note_threads()
                bar.update(count)
                self._record(lr, bar)
            marked = time.perf_counter()

    def _note_threads(self) -> None:
        if not self._thread_counts or self._thread_counts[-1][1] != self.threads.count:
            self._thread_counts.append((self.trainer.done, self.threads.count))

    def _step(self, images: Tensor, targets: Targets, feed: Feed) -> float:
        try:
            return self.trainer.step(images, targets)
        except TrainingDiverged as error:
            raise self._kept(error, images, targets, feed) from None

    def _kept(
        self, error: TrainingDiverged, images: Tensor, targets: Targets, feed: Feed
    ) -> TrainingDiverged:
        """The error, with the batch written beside the checkpoint for whoever looks into it."""
        if self.folder is None:
            return error
        trainer, rank = self.trainer, self.trainer.fabric.global_rank
        path = self.folder / (DIVERGED if rank == 0 else f"{Path(DIVERGED).stem}-{rank}.pt")
        names = list(self.train_set.subset(feed.chosen(trainer.done)).names)
        save_tensors(path, {"step": trainer.done + 1, "lr": trainer.lr, "images": images,
                            "labels": targets, "names": names})  # fmt: skip
        return TrainingDiverged(f"{error.message}; its batch is in {path}", error.hint)

    def _record(self, lr: float, bar: Progress) -> None:
        plan, done = self.trainer.plan, self.trainer.done
        if plan.is_row(done):
            row = self._row(lr)
            self.history.append(row)
            if self._writes:
                append_jsonl(self.folder / METRICS, row)  # type: ignore[operator]
            if self.board is not None:
                self.board.row(row)
            bar.update(0, _note(row, self.task.score))
        if plan.is_checkpoint(done):
            self._save()

    @property
    def _writes(self) -> bool:
        return self.folder is not None and self.trainer.fabric.is_global_zero

    def _row(self, lr: float) -> dict[str, float]:
        plan, done = self.trainer.plan, self.trainer.done
        row = {
            "step": done,
            "epoch": round(done / plan.steps_per_epoch, 4),
            "loss": self._window.loss,
            "lr": lr,
            "images_per_s": round(self._window.rate, 1),
            "data_wait": round(self._window.waiting, 4),
        }
        if self.trainer.fabric.device.type == "cpu":
            row["threads"] = self.threads.count
        self._window = Window()
        if self.validation is not None and plan.is_validation(done):
            self.trainer.require_finite()
            with self.trainer.averaged():
                found = self.task.evaluate(
                    self.trainer.net, self.validation, self.preset, fabric=self.trainer.fabric
                )
                row |= found.row()
                self._keep_if_best(row)
        return row

    def _keep_if_best(self, row: dict[str, float]) -> None:
        score = self.task.score
        best = best_row(self.history, score)
        better = best is None or row[score] > best[score]
        if better and self.folder is not None and self._writes and isinstance(self.trainer.net, Network):
            save_weights(self.trainer.net, self.folder / BEST, preset=self.preset.to_dict())

    def _save(self) -> None:
        self.trainer.require_finite()
        if self.folder is not None and self._writes:
            window = (self._window.losses, self._window.steps)
            keep_earlier(self.folder, self.keep)
            save_checkpoint(
                self.folder / CHECKPOINT, self.identity,
                {**self.trainer.state_dict(), "window": window, "seconds": self._total_seconds,
                 "thread_counts": self._thread_counts},
            )  # fmt: skip

    @property
    def _total_seconds(self) -> float:
        return self._earlier + time.perf_counter() - self._began


class Board(Protocol):
    """Something that shows the rows of a history, such as :class:`mobilefit.train.tensorboard.Board`."""

    def row(self, row: Mapping[str, float]) -> None:
        """Show one more row."""

    def close(self) -> None:
        """No more rows come."""


def best_row(history: Sequence[Mapping[str, float]], score: str) -> dict[str, float] | None:
    """The row with the highest ``score``, the first of equals; ``None`` without any."""
    validated = [row for row in history if score in row]
    return dict(max(validated, key=lambda row: row[score])) if validated else None


_SAID = {"val_top1": "top-1", "val_map50": "mAP@0.5", "val_miou": "mIoU"}


def _note(row: dict[str, float], score: str) -> str:
    note = f"loss {row['loss']:.3f}"
    return f"{note}, {_SAID.get(score, score)} {100 * row[score]:.1f} %" if score in row else note


@dataclass
class Window:
    """The steps since the last row."""

    losses: float = 0.0
    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def add(self, loss: float, images: int, seconds: float, waited: float) -> None:
        """Count one step, and how much of its seconds the network waited for images."""
        self.losses, self.steps = self.losses + loss, self.steps + 1
        self.images, self.seconds = self.images + images, self.seconds + seconds
        self.waited += waited

    @property
    def loss(self) -> float:
        """Mean loss of a step."""
        return self.losses / max(1, self.steps)

    @property
    def rate(self) -> float:
        """Images in a second."""
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def waiting(self) -> float:
        """Share of the time, 0 to 1, that the network waited for images."""
        return self.waited / self.seconds if self.seconds else 0.0
