"""The training loop, on Lightning Fabric."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from mobilefit.cores import recent_usage
from mobilefit.data import Preset, by_workers
from mobilefit.data.images import worker_count
from mobilefit.errors import InputError
from mobilefit.progress import Voice
from mobilefit.runs import write_atomic
from mobilefit.train.checkpoint import CHECKPOINT, Identity
from mobilefit.train.classify import Classify
from mobilefit.train.distillation import DistillationTask, SoftTargets, distillation_task
from mobilefit.train.loss import Teacher
from mobilefit.train.malloc import freed_memory_kept
from mobilefit.train.plan import Plan, plan_for
from mobilefit.train.ranks import open_fabric
from mobilefit.train.recipe import Recipe
from mobilefit.train.run import METRICS, Board, FitResult, Run
from mobilefit.train.task import Task
from mobilefit.train.threads import AdaptiveThreads
from mobilefit.train.trainer import Trainer, borrowed, prepare

MOST_WORKERS = 16
CLASSIFY = Classify()


def fit(
    net: nn.Module,
    train_set: Any,
    *,
    preset: Preset,
    recipe: Recipe,
    task: Task = CLASSIFY,
    validation: Any | None = None,
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
    teacher: Teacher | SoftTargets | None = None,
    board: Callable[[int], Board] | None = None,
    threads: int | None = None,
) -> FitResult:
    """Train a network in place.

    Everything random comes from ``seed`` and the step's number, so that a run which was stopped
    and resumed takes the same steps as one that was not: on a CPU, with the same number of
    processes and of threads at every step (``threads``, ``FitResult.thread_counts``), bit for bit. The caller's random state is left alone.

    Args:
        net: float [N, 3, H, W] to what the task wants, logits [N, k] say. At the end it holds the averaged weights if the
            recipe averages, and is in the mode and on the device that it came in and on.
        train_set: at least two images, an ``ImageSet`` or what else the task has. With fewer than a batch, each step takes them all.
        preset: how an image becomes the network's input.
        recipe: how to train.
        task: what the images' truth is, how it is learnt and how the network is judged.
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
        teacher: for a recipe with distillation: a :class:`SoftTargets`, which sees the same crops at its own
            resolution; or a callable, from the student's batch, mixed if the recipe mixes, to logits [n, K].
        board: from the step that is done to something that is told every row after it.
        threads: CPU threads of torch; ``None``: as many as torch has, and fewer while other processes take the cores
            and fewer are faster (:class:`AdaptiveThreads`), in one process on a CPU, without ``recipe.compile``.

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
    _require_memory(net, recipe, fabric)
    task.require(net, [train_set] if validation is None else [train_set, validation])
    if isinstance(teacher, SoftTargets):
        task, teacher = distillation_task(task, teacher, train_set, preset, recipe, seed, fabric), None
    folder = _open_folder(out, resume, keep) if fabric.is_global_zero or resume else out
    log = Voice(quiet=progress is None or not fabric.is_global_zero)
    _warn_of_busy_cores(log, fabric)
    adaptive = AdaptiveThreads(threads, adapt=_may_adapt(recipe, fabric), report=log)
    with borrowed(net, recipe, fabric), freed_memory_kept(fabric.device.type == "cpu"), adaptive:
        objective = task.objective(net, train_set, recipe, teacher, fabric.device)
        trainer = Trainer(fabric, net, recipe, plan, seed, objective)
        run = Run(
            trainer=trainer,
            task=task,
            train_set=train_set,
            validation=validation,
            preset=preset,
            folder=folder,
            keep=keep,
            workers=_workers(workers, fabric),
            identity=_identity(net, train_set, preset, recipe, plan, seed, fabric, task),
            threads=adaptive,
        )
        if resume:
            run.resume()
        if board is not None:
            run.board = board(trainer.done)
        try:
            result = run.finish(progress if fabric.is_global_zero else None)
        finally:
            if isinstance(task, DistillationTask):
                task.close()
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


def _require_memory(net: nn.Module, recipe: Recipe, fabric: Fabric) -> None:
    """Check that a step can be taken at all: what its layers give has to be kept for the way back.

    Half of what a step takes, or less; on a CPU alone, where the system ends a process that asks for too much.
    """
    spec = getattr(net, "spec", None)
    if spec is None or fabric.device.type != "cpu":
        return
    maps = [layer.out * layer.out_size * layer.out_columns for layer in spec.cost().layers]
    images = recipe.batch_size // (fabric.world_size * recipe.accumulate)
    needed = images * sum(maps) * (2 if "16" in recipe.precision else 4)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        height, width = spec.image_shape
        raise InputError(
            f"a step of {images} images of {width}x{height} px needs {needed / 2**30:,.0f} GiB of memory or more, "
            f"and this machine has {memory / 2**30:,.0f}",
            "choose a smaller --batch-size or --resolution",
        )


_last_warning: str | None = None


def _warn_of_busy_cores(log: Voice, fabric: Fabric) -> None:
    """Log a line where other work takes cores; the same one once, not for each of many short trainings."""
    global _last_warning
    if log.quiet or fabric.device.type != "cpu" or fabric.world_size > 1:  # the other processes are no other work
        return
    usage = recent_usage()
    message = None if usage is None else usage.message
    if message is not None and message != _last_warning:
        log(message)
    _last_warning = message


def _may_adapt(recipe: Recipe, fabric: Fabric) -> bool:
    """Whether the number of threads may change: compiled kernels are made for one number."""
    return fabric.device.type == "cpu" and fabric.world_size == 1 and not recipe.compile


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
    net: nn.Module, train_set: Any, preset: Preset, recipe: Recipe, plan: Plan, seed: int,
    fabric: Fabric, task: Task,
) -> Identity:  # fmt: skip
    """Everything that two runs must share to take the same steps; ``epochs`` is in ``steps``."""
    aside = ("epochs", "name", "source")
    settings = {key: value for key, value in recipe.to_dict().items() if key not in aside}
    in_shards = {} if getattr(train_set, "groups", None) is None else {"processes": fabric.world_size}
    return {
        "network": _network_id(net),
        "images": task.identity(train_set),
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


class Stepper:
    """A training whose caller takes the steps, and may do other things in between.

    Args:
        net, train_set, preset, recipe, steps, seed, accelerator, task, threads: as of :func:`fit`; the network stays in
            training mode on the accelerator's device.
    """

    def __init__(
        self, net: nn.Module, train_set: Any, *, preset: Preset, recipe: Recipe, steps: int,
        seed: int = 0, accelerator: str = "auto", task: Task = CLASSIFY, threads: int | None = None,
    ) -> None:  # fmt: skip
        recipe = _batch_within(recipe, len(train_set))
        plan = plan_for(train_set, recipe, steps, None)
        fabric = open_fabric(accelerator, recipe.precision)
        prepare(net, recipe)
        objective = task.objective(net, train_set, recipe, None, fabric.device)
        self._trainer = Trainer(fabric, net, recipe, plan, seed, objective)
        self._feed = task.feed(train_set, preset, recipe, seed=seed)
        self._threads = AdaptiveThreads(threads, adapt=_may_adapt(recipe, fabric))
        self._batches: Iterator[tuple[Tensor, Any]] | None = None

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
        images, targets = next(self._batches)
        with torch.random.fork_rng(devices=[]), self._threads:
            began = time.perf_counter()
            loss = self._trainer.step(images, targets, lr=lr)
            self._threads.after_step(self._trainer.recipe.batch_size, time.perf_counter() - began)
        return loss

    @property
    def threads(self) -> int:
        """CPU threads of the next step."""
        return self._threads.count

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer and the number of steps."""
        return self._trainer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict` of an equal training."""
        self._trainer.load_state_dict(state)
        self._batches = None
