"""The training loop, on Lightning Fabric."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from mobilefit.data import Feed, ImageSet, Preset, Sampling, by_workers
from mobilefit.data.images import worker_count
from mobilefit.errors import InputError
from mobilefit.nn import Network, save_weights
from mobilefit.progress import Progress
from mobilefit.runs import append_jsonl, read_jsonl, sha256, write_atomic
from mobilefit.train.checkpoint import (
    CHECKPOINT,
    Identity,
    keep_earlier,
    load_latest,
    save_checkpoint,
    save_tensors,
)
from mobilefit.train.evaluate import evaluate
from mobilefit.train.interrupts import Interrupts
from mobilefit.train.loss import Teacher
from mobilefit.train.plan import Plan, plan_for
from mobilefit.train.ranks import open_fabric, total
from mobilefit.train.recipe import Recipe
from mobilefit.train.trainer import Trainer, TrainingDiverged, borrowed, prepare, require_outputs

METRICS = "metrics.jsonl"
BEST = "best.safetensors"
DIVERGED = "diverged.pt"
MOST_WORKERS = 16


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a training did."""

    steps: int
    """Optimizer steps of the whole run, those before a resume included."""
    seconds: float
    """Spent in this call, validation included."""
    images_per_second: float
    """In the training steps of this call; 0 when it had none to do."""
    loss: float
    """Mean training loss since the last but one row of the history; NaN without any row."""
    history: tuple[dict[str, float], ...]
    """The rows of ``metrics.jsonl``: step, epoch, loss, lr, images_per_s, data_wait (share of the time
    that the network waited for images); val_top1, val_loss."""

    @property
    def best(self) -> dict[str, float] | None:
        """The row with the best validation, the first of equals; ``None`` without validation."""
        return best_row(self.history)


def fit(
    net: nn.Module,
    train_set: ImageSet,
    *,
    preset: Preset,
    recipe: Recipe,
    validation: ImageSet | None = None,
    seed: int = 0,
    steps: int | None = None,
    out: Path | None = None,
    checkpoint_every: int | None = None,
    keep: int = 1,
    resume: bool = False,
    accelerator: str = "auto",
    fabric: Fabric | None = None,
    workers: int | None = None,
    progress: str | None = None,
    teacher: Teacher | None = None,
    board: Callable[[int], Board] | None = None,
) -> FitResult:
    """Train a network in place.

    Everything random comes from ``seed`` and the step's number, so that a run which was stopped
    and resumed takes the same steps as one that was not: on a CPU, with the same number of
    threads and processes, bit for bit. The caller's random state is left alone.

    Args:
        net: float [N, 3, H, W] to logits [N, k]. At the end it holds the averaged weights if the
            recipe averages, and is in the mode and on the device that it came in and on.
        train_set: at least two images. With fewer than a batch, each step takes them all.
        preset: how an image becomes the network's input.
        recipe: how to train.
        validation: evaluated after each epoch and at the end, with the averaged weights if any.
        seed: for the order of the images, augmentation, mixing and dropout.
        steps: optimizer steps, in place of the recipe's epochs.
        out: folder for ``checkpoint.pt``, ``metrics.jsonl`` and, with validation, ``best.safetensors``;
            ``None``: nothing is written.
        checkpoint_every: steps between two checkpoints; ``None``: one an epoch. One is also
            written at the end, on Ctrl-C and on SIGTERM.
        keep: how many checkpoints are kept, the last ones.
        resume: go on from the checkpoint in ``out`` if there is one.
        accelerator: Fabric's: ``auto``, ``cpu``, ``cuda``, ``mps``.
        fabric: launched, in the place of ``accelerator`` (see :func:`mobilefit.train.open_fabric`). Its
            processes share each batch, and the first one writes.
        workers: processes that prepare images; 0: a thread does. ``None``: as many as there are
            processors with a GPU, none without.
        progress: label of the progress shown on standard error; ``None``: silent.
        teacher: images to logits, for a recipe with distillation.
        board: from the step that is done to something that is told every row after it.

    Raises:
        InputError: a recipe with distillation and no teacher, labels that the network has no output
            for, a batch that cannot be divided, a folder that cannot be written or holds a training
            that was not asked to be resumed, a damaged or foreign checkpoint.
        TrainingDiverged: the loss is not finite; raised before the optimizer moves. What the step was
            given is in ``diverged.pt``.
        KeyboardInterrupt: after the step in hand is done and a checkpoint written.
        Terminated: the same for SIGTERM.
    """
    fabric = fabric or open_fabric(accelerator, recipe.precision)
    recipe = _batch_within(recipe, len(train_set))
    plan = plan_for(train_set, recipe, steps, checkpoint_every)
    _require_parts(recipe, fabric)
    require_outputs(net, [train_set] if validation is None else [train_set, validation])
    folder = _open_folder(out, resume, keep) if fabric.is_global_zero or resume else out
    with borrowed(net, recipe, fabric):
        trainer = Trainer(fabric, net, recipe, plan, seed, train_set.labels, teacher)
        run = Run(
            trainer=trainer,
            train_set=train_set,
            validation=validation,
            preset=preset,
            folder=folder,
            keep=keep,
            workers=_workers(workers, fabric),
            identity=_identity(net, train_set, preset, recipe, plan, seed, fabric),
        )
        if resume:
            run.resume()
        if board is not None:
            run.board = board(trainer.done)
        result = run.finish(progress if fabric.is_global_zero else None)
        trainer.settle()
    return result


def _batch_within(recipe: Recipe, count: int) -> Recipe:
    """The recipe with a batch of all images where there are fewer than it asks for."""
    if count >= recipe.batch_size:
        return recipe
    size = max(1, count // recipe.accumulate) * recipe.accumulate
    return replace(recipe, batch_size=size)


def _require_parts(recipe: Recipe, fabric: Fabric) -> None:
    parts = fabric.world_size * recipe.accumulate
    if recipe.batch_size % parts or recipe.batch_size < 2 * parts:
        raise InputError(
            f"a batch of {recipe.batch_size} images cannot be divided into {fabric.world_size} processes "
            f"x {recipe.accumulate} parts of two images or more",
            f"choose a --batch-size that {parts} divides, {2 * parts} or more",
        )


def _workers(wanted: int | None, fabric: Fabric) -> int:
    if wanted is not None:
        return wanted
    return min(MOST_WORKERS, max(1, worker_count() // fabric.world_size)) if fabric.device.type == "cuda" else 0


def _open_folder(out: Path | None, resume: bool, keep: int) -> Path | None:
    if keep < 1:
        raise InputError(f"keep is {keep}, must be 1 or more")
    if out is None:
        if resume:
            raise InputError("there is nothing to resume from without a folder", "name it")
        return None
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {out}: {error.strerror}") from error
    if not resume:
        if (out / CHECKPOINT).exists():
            raise InputError(
                f"{out} holds a training already", "resume it, or choose another folder"
            )
        write_atomic(out / METRICS, "")
    return out


def _identity(
    net: nn.Module, train_set: ImageSet, preset: Preset, recipe: Recipe, plan: Plan, seed: int,
    fabric: Fabric,
) -> Identity:  # fmt: skip
    """Everything that two runs must share to take the same steps; ``epochs`` is in ``steps``."""
    aside = ("epochs", "name", "source")
    settings = {key: value for key, value in recipe.to_dict().items() if key not in aside}
    in_shards = {} if train_set.groups is None else {"processes": fabric.world_size}
    return {
        "network": _network_id(net),
        "images": f"{len(train_set)} ({sha256(train_set.labels.tobytes())[:12]})",
        "preset": str(preset.to_dict()),
        "steps": plan.steps,
        "seed": seed,
        **in_shards,
        **settings,
    }


def _network_id(net: nn.Module) -> str:
    spec = getattr(net, "spec", None)
    digest = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
    return f"{getattr(spec, 'name', type(net).__name__)} {digest.hexdigest()[:12]}"


def feed_for(
    train_set: ImageSet, preset: Preset, recipe: Recipe, seed: int, fabric: Fabric
) -> Feed:
    """The batches of a training, this process's part of them."""
    size = max(8, round(preset.resolution * recipe.train_scale))
    return Feed(
        train_set, replace(preset, resolution=size), recipe.batch_size, seed=seed,
        augment=recipe.augmentation, rank=fabric.global_rank, ranks=fabric.world_size,
        sampling=Sampling(repeats=recipe.repeats, balanced=recipe.balance == "sampling"),
    )  # fmt: skip


class Stepper:
    """A training whose caller takes the steps, and may do other things in between.

    Args:
        net, train_set, preset, recipe, steps, seed, accelerator: as of :func:`fit`; the network stays in
            training mode on the accelerator's device.
    """

    def __init__(
        self, net: nn.Module, train_set: ImageSet, *, preset: Preset, recipe: Recipe, steps: int,
        seed: int = 0, accelerator: str = "auto",
    ) -> None:  # fmt: skip
        recipe = _batch_within(recipe, len(train_set))
        plan = plan_for(train_set, recipe, steps, None)
        fabric = open_fabric(accelerator, recipe.precision)
        prepare(net, recipe)
        self._trainer = Trainer(fabric, net, recipe, plan, seed, train_set.labels)
        self._feed = feed_for(train_set, preset, recipe, seed, fabric)
        self._batches: Iterator[tuple[Tensor, Tensor]] | None = None

    def step(self, lr: float | None = None) -> float:
        """Take the next step and return the loss before it.

        Args:
            lr: in place of the schedule's.

        Raises:
            TrainingDiverged: the loss is not finite; the weights have not moved.
        """
        if self._batches is None:
            done = self._trainer.done
            self._batches = by_workers(self._feed, range(done, max(done + 1, self._trainer.plan.steps)), 0)
        with torch.random.fork_rng(devices=[]):
            return self._trainer.step(*next(self._batches), lr=lr)

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer and the number of steps."""
        return self._trainer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict` of an equal training."""
        self._trainer.load_state_dict(state)
        self._batches = None


@dataclass(kw_only=True)
class Run:
    """A trainer going through its images, and what is recorded on the way."""

    trainer: Trainer
    train_set: ImageSet
    validation: ImageSet | None
    preset: Preset
    folder: Path | None
    keep: int
    workers: int
    identity: Identity
    board: Board | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    _window: Window = field(default_factory=lambda: Window())
    _images: int = 0
    _seconds: float = 0.0

    def resume(self) -> None:
        """Take up the latest checkpoint in the folder, and drop the rows that came after it."""
        assert self.folder is not None
        state = load_latest(self.folder, self.identity)
        if state is not None:
            self.trainer.load_state_dict(state)
            self._window.losses, self._window.steps = state["window"]
        rows = read_jsonl(self.folder / METRICS)
        self.history = [row for row in rows if row["step"] <= self.trainer.done]
        if self.trainer.fabric.is_global_zero:
            write_atomic(self.folder / METRICS, "".join(f"{json.dumps(row)}\n" for row in self.history))

    def finish(self, label: str | None) -> FitResult:
        """Take the steps that are left."""
        started = time.perf_counter()
        trainer = self.trainer
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
            seconds=time.perf_counter() - started,
            images_per_second=self._images / self._seconds if self._seconds else 0.0,
            loss=self.history[-1]["loss"] if self.history else math.nan,
            history=tuple(self.history),
        )

    def _steps(self, interrupts: Interrupts, bar: Progress) -> None:
        trainer = self.trainer
        feed = feed_for(self.train_set, self.preset, trainer.recipe, trainer.seed, trainer.fabric)
        pin = trainer.fabric.device.type == "cuda"
        marked = time.perf_counter()
        for images, labels in by_workers(
            feed, range(trainer.done, trainer.plan.steps), self.workers, pin=pin
        ):
            waited = time.perf_counter() - marked
            lr = trainer.lr
            with interrupts.held():
                loss = self._step(images, labels, feed)
                taken, count = time.perf_counter() - marked, trainer.recipe.batch_size
                self._window.add(loss, count, taken, waited)
                self._images, self._seconds = self._images + count, self._seconds + taken
                bar.update(count)
                self._record(lr, bar)
            marked = time.perf_counter()

    def _step(self, images: Tensor, labels: Tensor, feed: Feed) -> float:
        try:
            return self.trainer.step(images, labels)
        except TrainingDiverged as error:
            raise self._kept(error, images, labels, feed) from None

    def _kept(
        self, error: TrainingDiverged, images: Tensor, labels: Tensor, feed: Feed
    ) -> TrainingDiverged:
        """The error, with the batch written beside the checkpoint for whoever looks into it."""
        if self.folder is None:
            return error
        trainer, rank = self.trainer, self.trainer.fabric.global_rank
        path = self.folder / (DIVERGED if rank == 0 else f"{Path(DIVERGED).stem}-{rank}.pt")
        names = list(self.train_set.subset(feed.chosen(trainer.done)).names)
        save_tensors(path, {"step": trainer.done + 1, "lr": trainer.lr, "images": images,
                            "labels": labels, "names": names})  # fmt: skip
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
            bar.update(0, _note(row))
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
        self._window = Window()
        if self.validation is not None and plan.is_validation(done):
            self.trainer.require_finite()
            with self.trainer.averaged():
                found = evaluate(self.trainer.net, self.validation, self.preset, fabric=self.trainer.fabric)
                row |= {"val_top1": found.top1, "val_loss": found.loss}
                self._keep_if_best(row)
        return row

    def _keep_if_best(self, row: dict[str, float]) -> None:
        best = best_row(self.history)
        better = best is None or row["val_top1"] > best["val_top1"]
        if better and self.folder is not None and self._writes and isinstance(self.trainer.net, Network):
            save_weights(self.trainer.net, self.folder / BEST, preset=self.preset.to_dict())

    def _save(self) -> None:
        self.trainer.require_finite()
        if self.folder is not None and self._writes:
            window = (self._window.losses, self._window.steps)
            keep_earlier(self.folder, self.keep)
            save_checkpoint(
                self.folder / CHECKPOINT, self.identity, {**self.trainer.state_dict(), "window": window}
            )


class Board(Protocol):
    """Something that shows the rows of a history, such as :class:`mobilefit.train.tensorboard.Board`."""

    def row(self, row: Mapping[str, float]) -> None:
        """Show one more row."""

    def close(self) -> None:
        """No more rows come."""


def best_row(history: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    """The row with the best validation, the first of equals; ``None`` without any."""
    validated = [row for row in history if "val_top1" in row]
    return dict(max(validated, key=lambda row: row["val_top1"])) if validated else None


def _note(row: dict[str, float]) -> str:
    note = f"loss {row['loss']:.3f}"
    return f"{note}, top-1 {100 * row['val_top1']:.1f} %" if "val_top1" in row else note


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
