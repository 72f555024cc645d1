"""The training loop, on Lightning Fabric."""

from __future__ import annotations

import contextlib
import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from mobilefit.arch import NetSpec
from mobilefit.data import AUGMENTS, ImageSet, Preset, batch_count, batches
from mobilefit.errors import InputError, MobilefitError
from mobilefit.progress import Progress
from mobilefit.runs import append_jsonl, read_jsonl, sha256, write_atomic
from mobilefit.train import batchnorm
from mobilefit.train.checkpoint import Identity, load_checkpoint, save_checkpoint
from mobilefit.train.ema import EMA
from mobilefit.train.evaluate import evaluate
from mobilefit.train.optim import learning_rate, make_optimizer
from mobilefit.train.recipe import Recipe

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"

ROWS = 40
"""About how many rows of metrics a run has, and at least one for every ``MOST_STEPS_A_ROW``."""
MOST_STEPS_A_ROW = 100


Teacher = Callable[[Tensor], Tensor]


class TrainingDiverged(MobilefitError):
    """The loss or the weights are no longer finite. The last checkpoint is from before that."""

    exit_code = 2


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
    """The rows of ``metrics.jsonl``: step, epoch, loss, lr, images_per_s; val_top1, val_loss."""


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
    resume: bool = False,
    accelerator: str = "auto",
    progress: str | None = None,
    teacher: Teacher | None = None,
) -> FitResult:
    """Train a network in place.

    Everything random comes from ``seed`` and the step's number, so that a run which was stopped
    and resumed takes the same steps as one that was not: on a CPU, with the same number of
    threads, bit for bit. The caller's random state is left alone.

    Args:
        net: float [N, 3, H, W] to logits [N, k]. At the end it holds the averaged weights if the
            recipe averages, and is in the mode and on the device that it came in and on.
        train_set: at least two images.
        preset: how an image becomes the network's input.
        recipe: how to train.
        validation: evaluated after each epoch and at the end, with the averaged weights if any.
        seed: for the order of the images, augmentation and dropout.
        steps: optimizer steps, in place of the recipe's epochs.
        out: folder for ``checkpoint.pt`` and ``metrics.jsonl``; ``None``: nothing is written.
        checkpoint_every: steps between two checkpoints; ``None``: one an epoch. One is also
            written at the end and on Ctrl-C.
        resume: go on from the checkpoint in ``out`` if there is one.
        accelerator: Fabric's: ``auto``, ``cpu``, ``cuda``, ``mps``.
        progress: label of the progress shown on standard error; ``None``: silent.
        teacher: images to logits, for a recipe with distillation.

    Raises:
        InputError: a recipe with distillation and no teacher, labels that the network has no output
            for, a folder that cannot be written or holds a training that was not asked to be
            resumed, a damaged or foreign checkpoint.
        TrainingDiverged: the loss is not finite; raised before the optimizer moves.
        KeyboardInterrupt: after the step in hand is done and a checkpoint written.
    """
    plan = _plan(train_set, recipe, steps, checkpoint_every)
    _require_outputs(net, [train_set] if validation is None else [train_set, validation])
    folder = _open_folder(out, resume)
    fabric = _fabric(accelerator, recipe)
    with _borrowed(net, recipe, fabric.device):
        trainer = Trainer(fabric, net, recipe, plan, seed, teacher)
        run = Run(
            trainer=trainer,
            train_set=train_set,
            validation=validation,
            preset=preset,
            folder=folder,
            identity=_identity(net, train_set, preset, recipe, plan, seed),
        )
        if resume:
            run.resume()
        result = run.finish(progress)
        trainer.settle()
    return result


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How many steps, and when something else than a step happens."""

    steps: int
    steps_per_epoch: int
    row_every: int
    checkpoint_every: int

    def is_row(self, step: int) -> bool:
        """Whether the history gets a row after ``step`` steps."""
        every = (self.row_every, self.steps_per_epoch, self.checkpoint_every)
        return step == self.steps or any(step % number == 0 for number in every)

    def is_checkpoint(self, step: int) -> bool:
        """Whether a checkpoint is written after ``step`` steps."""
        return step == self.steps or step % self.checkpoint_every == 0

    def is_validation(self, step: int) -> bool:
        """Whether the validation images are evaluated after ``step`` steps."""
        return step == self.steps or step % self.steps_per_epoch == 0


def _plan(
    train_set: ImageSet, recipe: Recipe, steps: int | None, checkpoint_every: int | None
) -> Plan:
    for name, value in (("steps", steps), ("checkpoint_every", checkpoint_every)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}, must be 1 or more")
    if len(train_set) < 2:
        raise InputError(f"{len(train_set)} training images: batch norm needs at least 2")
    per_epoch = batch_count(len(train_set), recipe.batch_size, train=True)
    total = recipe.epochs * per_epoch if steps is None else steps
    return Plan(
        steps=total,
        steps_per_epoch=per_epoch,
        row_every=min(MOST_STEPS_A_ROW, max(1, total // ROWS)),
        checkpoint_every=checkpoint_every or per_epoch,
    )


def _require_outputs(net: nn.Module, sets: list[ImageSet]) -> None:
    spec = getattr(net, "spec", None)
    highest = max(int(images.labels.max(initial=0)) for images in sets)
    if isinstance(spec, NetSpec) and highest >= spec.head.num_classes:
        raise InputError(
            f"label {highest} among the images, but the network has {spec.head.num_classes} outputs",
            "build it with as many outputs as there are classes",
        )


def _open_folder(out: Path | None, resume: bool) -> Path | None:
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


def _fabric(accelerator: str, recipe: Recipe) -> Fabric:
    try:
        return Fabric(accelerator=accelerator, devices=1, precision=recipe.precision)
    except (ValueError, RuntimeError, ImportError) as error:
        known = "choose from auto, cpu, cuda, mps as this machine has them"
        raise InputError(f"no accelerator '{accelerator}' here", known) from error


@contextlib.contextmanager
def _borrowed(net: nn.Module, recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Training mode, memory format, momentum and random state for a training; all undone after."""
    home = next(net.parameters()).device
    modes = [(module, module.training) for module in net.modules()]
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda), batchnorm.momentum(net, recipe.bn_momentum):
        net.train()
        if recipe.channels_last:
            net.to(memory_format=torch.channels_last)
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            net.zero_grad(set_to_none=True)
            net.to(home)
            if recipe.channels_last:
                net.to(memory_format=torch.contiguous_format)


def _identity(
    net: nn.Module, train_set: ImageSet, preset: Preset, recipe: Recipe, plan: Plan, seed: int
) -> Identity:
    """Everything that two runs must share to take the same steps; ``epochs`` is in ``steps``."""
    settings = {key: value for key, value in recipe.to_dict().items() if key != "epochs"}
    return {
        "network": _network_id(net),
        "images": f"{len(train_set)} ({sha256(train_set.labels.tobytes())[:12]})",
        "preset": str(preset.to_dict()),
        "steps": plan.steps,
        "seed": seed,
        **settings,
    }


def _network_id(net: nn.Module) -> str:
    spec = getattr(net, "spec", None)
    digest = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
    return f"{getattr(spec, 'name', type(net).__name__)} {digest.hexdigest()[:12]}"


class Trainer:
    """A network, its optimizer and its moving average, one step at a time.

    Args:
        fabric: where and in which precision.
        net: moved to Fabric's device.
        recipe: how to train.
        plan: how long.
        seed: for dropout.
        teacher: see :func:`fit`.
    """

    def __init__(
        self, fabric: Fabric, net: nn.Module, recipe: Recipe, plan: Plan, seed: int,
        teacher: Teacher | None = None,
    ) -> None:  # fmt: skip
        if recipe.distillation and teacher is None:
            raise InputError("the recipe distils from a teacher, and there is none", "give fit a teacher")
        self.fabric, self.net, self.recipe, self.plan, self.seed = fabric, net, recipe, plan, seed
        self._teacher = teacher
        self.done = 0
        net.to(fabric.device)  # before the optimizer sees the weights
        self._optimizer = make_optimizer(net, recipe)
        self._model, self._fabric_optimizer = fabric.setup(net, self._optimizer)
        decay = recipe.ema_decay_for(plan.steps)
        self._ema = None if decay is None else EMA(net, decay)

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return learning_rate(self.recipe, self.done, self.plan.steps, self.plan.steps_per_epoch)

    def step(self, images: Tensor, labels: Tensor) -> float:
        """Take one step and return the loss before it.

        Raises:
            TrainingDiverged: the loss is not finite; the weights have not moved.
        """
        torch.manual_seed(_mix(self.seed, self.done))  # dropout, wherever the run was resumed
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss(self._placed(images), labels.to(self.fabric.device))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value}")
        self.fabric.backward(loss)
        self._fabric_optimizer.step()
        if self._ema is not None:
            self._ema.update()
        self.done += 1
        return value

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        logits, share = self._model(images), self.recipe.distillation
        loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        if share and self._teacher is not None:
            with torch.no_grad():
                wanted = self._teacher(images).softmax(1)
            loss = (1 - share) * loss + share * F.cross_entropy(logits, wanted)
        return loss

    def _placed(self, images: Tensor) -> Tensor:
        kind = torch.channels_last if self.recipe.channels_last else torch.contiguous_format
        return images.to(self.fabric.device, memory_format=kind, non_blocking=True)

    def _diverged(self, what: str) -> TrainingDiverged:
        epoch, batch = divmod(self.done, self.plan.steps_per_epoch)
        return TrainingDiverged(
            f"{what} at step {self.done + 1} of {self.plan.steps} "
            f"(epoch {epoch + 1}, batch {batch + 1}, learning rate {self.lr:.3g})",
            f"lower the learning rate, e.g. --lr {self.recipe.lr / 3:.2g}",
        )

    def require_finite(self) -> None:
        """See that the weights may be kept: a finite loss can still have had infinite gradients.

        Raises:
            TrainingDiverged: they may not.
        """
        norms = torch._foreach_norm([weight.detach() for weight in self.net.parameters()])
        if not bool(torch.stack(norms).isfinite().all()):
            raise self._diverged("the weights are not finite")

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the network has the weights that it will end with."""
        with contextlib.nullcontext() if self._ema is None else self._ema.applied():
            yield

    def settle(self) -> None:
        """Leave the averaged weights in the network, if there is an average."""
        if self._ema is not None:
            self._ema.copy_to_network()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {
            "step": self.done,
            "net": self.net.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "ema": None if self._ema is None else self._ema.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict` of an equal trainer."""
        self.net.load_state_dict(state["net"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._ema is not None:
            self._ema.load_state_dict(state["ema"])
        self.done = int(state["step"])


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
        self._set, self._preset = train_set, preset
        plan = _plan(train_set, recipe, steps, None)
        if recipe.channels_last:
            net.to(memory_format=torch.channels_last)
        self._trainer = Trainer(_fabric(accelerator, recipe), net.train(), recipe, plan, seed)
        self._batches: Iterator[tuple[Tensor, Tensor]] = iter(())

    def step(self) -> float:
        """Take the next step and return the loss before it.

        Raises:
            TrainingDiverged: the loss is not finite; the weights have not moved.
        """
        batch = next(self._batches, None)
        if batch is None:
            self._batches = self._from_here()
            batch = next(self._batches)
        with torch.random.fork_rng(devices=[]):
            return self._trainer.step(*batch)

    def _from_here(self) -> Iterator[tuple[Tensor, Tensor]]:
        trainer = self._trainer
        epoch, start = divmod(trainer.done, trainer.plan.steps_per_epoch)
        return batches(
            self._set, self._preset, trainer.recipe.batch_size, train=True, seed=trainer.seed,
            epoch=epoch, start=start, augment=AUGMENTS[trainer.recipe.augment],
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer and the number of steps."""
        return self._trainer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict` of an equal training."""
        self._trainer.load_state_dict(state)
        self._batches = iter(())


def _mix(seed: int, step: int) -> int:
    """One 63-bit seed from two numbers, far apart for neighbours."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9) % 2**63


@dataclass(kw_only=True)
class Run:
    """A trainer going through its images, and what is recorded on the way."""

    trainer: Trainer
    train_set: ImageSet
    validation: ImageSet | None
    preset: Preset
    folder: Path | None
    identity: Identity
    history: list[dict[str, float]] = field(default_factory=list)
    _window: Window = field(default_factory=lambda: Window())
    _images: int = 0
    _seconds: float = 0.0

    def resume(self) -> None:
        """Take up the checkpoint in the folder, and drop the rows that came after it."""
        assert self.folder is not None
        if not (self.folder / CHECKPOINT).exists():
            write_atomic(self.folder / METRICS, "")  # stopped before its first checkpoint
            return
        state = load_checkpoint(self.folder / CHECKPOINT, self.identity)
        self.trainer.load_state_dict(state)
        self._window.losses, self._window.steps = state["window"]
        rows = read_jsonl(self.folder / METRICS)
        self.history = [row for row in rows if row["step"] <= self.trainer.done]
        write_atomic(self.folder / METRICS, "")
        for row in self.history:
            append_jsonl(self.folder / METRICS, row)

    def finish(self, label: str | None) -> FitResult:
        """Take the steps that are left."""
        started = time.perf_counter()
        size = min(self.trainer.recipe.batch_size, len(self.train_set))
        total, before = self.trainer.plan.steps * size, self.trainer.done * size
        with Interrupts(on=self.folder is not None) as interrupts:
            try:
                with Progress(total, label, done=before) as bar:
                    while self.trainer.done < self.trainer.plan.steps:
                        self._epoch(interrupts, bar)
            except KeyboardInterrupt:
                if interrupts.between_steps:
                    self._save()
                raise
        return FitResult(
            steps=self.trainer.done,
            seconds=time.perf_counter() - started,
            images_per_second=self._images / self._seconds if self._seconds else 0.0,
            loss=self.history[-1]["loss"] if self.history else math.nan,
            history=tuple(self.history),
        )

    def _epoch(self, interrupts: Interrupts, bar: Progress) -> None:
        trainer, recipe = self.trainer, self.trainer.recipe
        epoch, start = divmod(trainer.done, trainer.plan.steps_per_epoch)
        marked = time.perf_counter()
        for images, labels in batches(
            self.train_set, self.preset, recipe.batch_size, train=True,
            seed=trainer.seed, epoch=epoch, start=start, augment=AUGMENTS[recipe.augment],
        ):  # fmt: skip
            lr = trainer.lr
            with interrupts.held():
                loss = trainer.step(images, labels)
                taken = time.perf_counter() - marked
                self._window.add(loss, len(labels), taken)
                self._images, self._seconds = self._images + len(labels), self._seconds + taken
                bar.update(len(labels))
                self._record(lr, bar)
            marked = time.perf_counter()
            if trainer.done == trainer.plan.steps:
                break

    def _record(self, lr: float, bar: Progress) -> None:
        plan, done = self.trainer.plan, self.trainer.done
        if plan.is_row(done):
            row = self._row(lr)
            self.history.append(row)
            if self.folder is not None:
                append_jsonl(self.folder / METRICS, row)
            bar.update(0, _note(row))
        if plan.is_checkpoint(done):
            self._save()

    def _row(self, lr: float) -> dict[str, float]:
        plan, done = self.trainer.plan, self.trainer.done
        row = {
            "step": done,
            "epoch": round(done / plan.steps_per_epoch, 4),
            "loss": self._window.loss,
            "lr": lr,
            "images_per_s": round(self._window.rate, 1),
        }
        self._window = Window()
        if self.validation is not None and plan.is_validation(done):
            self.trainer.require_finite()
            with self.trainer.averaged():
                found = evaluate(self.trainer.net, self.validation, self.preset)
            row |= {"val_top1": found.top1, "val_loss": found.loss}
        return row

    def _save(self) -> None:
        self.trainer.require_finite()
        if self.folder is not None:
            window = (self._window.losses, self._window.steps)
            state = {**self.trainer.state_dict(), "window": window}
            save_checkpoint(self.folder / CHECKPOINT, self.identity, state)


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

    def add(self, loss: float, images: int, seconds: float) -> None:
        """Count one step."""
        self.losses, self.steps = self.losses + loss, self.steps + 1
        self.images, self.seconds = self.images + images, self.seconds + seconds

    @property
    def loss(self) -> float:
        """Mean loss of a step."""
        return self.losses / max(1, self.steps)

    @property
    def rate(self) -> float:
        """Images in a second."""
        return self.images / self.seconds if self.seconds else 0.0


class Interrupts:
    """Lets Ctrl-C through between steps only, so that what is saved is a whole step and its row.

    A second Ctrl-C is let through at once. Outside of the main thread Python delivers none.

    Args:
        on: whether to do so at all; without anything to save Ctrl-C acts as always.
    """

    def __init__(self, *, on: bool) -> None:
        self._on = on and threading.current_thread() is threading.main_thread()
        self.between_steps = True
        self._wanted = False
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        if self._on:
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        if self._on:
            signal.signal(signal.SIGINT, self._before)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.between_steps or self._wanted:
            raise KeyboardInterrupt
        self._wanted = True

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Ctrl-C within the block is acted on after it."""
        self.between_steps = False
        yield
        self.between_steps = True
        if self._wanted:
            raise KeyboardInterrupt
