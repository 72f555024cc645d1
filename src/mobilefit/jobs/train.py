"""Training alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning_fabric import Fabric

from mobilefit import report
from mobilefit.arch import NetSpec
from mobilefit.data import ClassificationData
from mobilefit.errors import InputError
from mobilefit.jobs import kinds, lab, pretrained
from mobilefit.jobs.folder import RunFolder
from mobilefit.jobs.kinds import Kind, source_of
from mobilefit.jobs.model import spec_of
from mobilefit.jobs.options import option, overrides
from mobilefit.nn import load_network, save_weights
from mobilefit.progress import Voice
from mobilefit.runs import write_atomic, write_json
from mobilefit.train import (
    BEST,
    FitResult,
    Recipe,
    distillation,
    fit,
    open_fabric,
    recipe,
    tensorboard,
)
from mobilefit.train.lr_finder import find_lr
from mobilefit.train.run import Board

MOST_WORKERS = 256
"""Processes that prepare images: more is a mistyped number."""

if TYPE_CHECKING:

    class Overrides:
        """A field of :class:`Recipe` each, or ``None``."""
else:
    Overrides = overrides("Overrides", Recipe)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Overrides):
    """Options of ``mobilefit train``: these, and every field of a recipe."""

    data: str = option(help="images: docs/data.md; with boxes: docs/detection.md; with masks: docs/segmentation.md", argument=True)
    task: Literal["classify", "detect", "segment"] | None = option(
        None, help="what the network is for (default: what --model is for)"
    )
    model: str = option("mobilenet_v3_small", help="a network's name, or a spec's .json; a classifier's becomes the backbone of --task")
    width: float = option(1.0, help="width multiplier, by the paper's rule")
    weights: str | None = option(None, help="weights to start from: a file, torchvision, timm or timm:NAME")
    resolution: int | None = option(
        None, help="side of the network's input, or its height, pixels (default: 96; detect: 320; segment: by the images)"
    )
    columns: int | None = option(None, help="width of the network's input, where it is not square, pixels")
    ignore_label: tuple[int, ...] = option((), help="segment: a label in the masks that is no class; may be repeated")
    crop_fraction: float | None = option(
        None, help="side of the central square that is looked at, part of the short side (default: 0.875; 1 for tiny images)"
    )
    recipe: str | None = option(
        None, help="a named recipe, docs/recipes.md (default: finetune with --weights, else fast)"
    )
    steps: int | None = option(None, help="optimizer steps, in place of --epochs")
    teacher: str | None = option(None, help="learn from a network too: its file, torchvision:NAME, timm:NAME[=FILE]")
    teacher_resolution: int | None = option(
        None, help="side of the images that the teacher sees, pixels (default: what it was made for)"
    )
    teacher_cache: Path | None = option(
        None, help="folder for the teacher's answers, shared by trainings with the same images, seed and augmentation"
    )
    holdout: float = option(0.1, help="part of the training images set apart to watch the training by")
    final: Literal["last", "best"] = option("last", help="which weights are the result: best by the held-out images")
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = option("auto", help="where to train")
    devices: int = option(1, help="processes on this machine, one a device; torchrun brings its own number")
    nodes: int = option(1, help="machines")
    workers: int | None = option(None, help="processes that prepare images (default: with a GPU, one a core)")
    threads: int | None = option(None, help="CPU threads (default: all cores, fewer while other work takes them)")
    checkpoint_every: int | None = option(None, help="steps between checkpoints (default: an epoch)")
    keep: int = option(1, help="how many checkpoints are kept, the last ones")
    find_lr: bool = option(False, help="only look for a learning rate: 100 steps, nothing is kept")
    tensorboard: bool = option(False, help="also write events for TensorBoard into --out")
    seed: int = option(0, help="of everything random")
    out: Path = option(Path("runs/train"), help="run folder")
    resume: bool = option(False, help="go on with the interrupted run in --out")
    quiet: bool = option(False, help="show no progress")


def train(config: TrainConfig) -> dict[str, Any]:
    """Train a network; writes ``model.safetensors``, ``metrics.jsonl``, record and report.

    Started by ``torchrun``, or with several devices, each process calls this; the first one writes.

    Raises:
        InputError: bad data, options, weights or folder.
        TrainingDiverged: the loss is not finite.
    """
    _check(config)
    named = _named(config, kind_of(config))
    fabric = open_fabric(
        config.accelerator, _overridden(named, config).precision, devices=config.devices,
        nodes=config.nodes,
    )  # fmt: skip
    job = _Job(config, fabric)
    return job.look_for_lr() if config.find_lr else job.run()


class _Job:
    """A training from its images to its record."""

    def __init__(self, config: TrainConfig, fabric: Fabric) -> None:
        self.config, self.fabric = config, fabric
        self.kind = kind_of(config)
        self.voice = Voice(quiet=config.quiet or not fabric.is_global_zero)
        self.data = self.kind.load(source_of(config, self.voice, holdout=config.holdout))
        kinds.tell_left_out(self.data, self.voice)
        self.recipe = self._recipe()
        self.start = self._start()
        self.network, self.preset = self.start.network, self.start.preset
        if config.crop_fraction is not None:
            self.preset = replace(self.preset, crop_fraction=config.crop_fraction)
        if self.start.note:
            self.voice(self.start.note)

    def _start(self) -> pretrained.Start:
        config, data = self.config, self.data
        spec = self.kind.network(_spec(config), data, config.resolution, config.columns)
        if isinstance(data, ClassificationData):
            return pretrained.start(
                spec, config.weights, data=data, resolution=spec.input_size, seed=config.seed,
                quiet=self.voice.quiet,
            )  # fmt: skip
        usual = self.kind.preset(data, spec)
        return pretrained.start_task(
            spec, config.weights, usual, data.classes, seed=config.seed, quiet=self.voice.quiet
        )

    def _recipe(self) -> Recipe:
        config, count = self.config, len(self.data.train)
        found = _overridden(self.kind.recipe(config.recipe, config.weights, self.data), config)
        if config.teacher is not None and not found.distillation:
            found = replace(found, distillation=0.5)
        if found.distillation and config.teacher is None:
            raise InputError("--distillation needs a teacher", "name one with --teacher")
        if count < found.batch_size:
            if _changes(config).get("batch_size"):
                raise InputError(
                    f"--batch-size {found.batch_size} is more than the {count} training images of "
                    f"{self.data.name}", f"give {count} or less"
                )  # fmt: skip
            self.voice(f"each step takes all {count} training images: the recipe's batch is {found.batch_size}")
        return found

    def look_for_lr(self) -> dict[str, Any]:
        """The learning-rate finder in the place of a training."""
        config = self.config
        config.out.mkdir(parents=True, exist_ok=True)  # before the search: it may not be possible
        curve = find_lr(
            self.network, self.data.train, preset=self.preset, recipe=self.recipe, seed=config.seed,
            task=self.kind.port, accelerator=config.accelerator, progress=self.voice.label("looking for a learning rate"),
            threads=config.threads,
        )  # fmt: skip
        write_json(config.out / "lr_finder.json", curve.to_dict())
        write_atomic(config.out / "lr_finder.svg", report.lr_curve(curve.to_dict()))
        print(f"--lr {curve.suggestion:.2g} (the recipe has {self.recipe.lr:.2g}; {config.out / 'lr_finder.svg'})")
        return curve.to_dict()

    def run(self) -> dict[str, Any]:
        """The training, and what is written about it."""
        config = self.config
        resume = config.resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        run = RunFolder(
            config.out, "train", config, resume=resume, writes=self.fabric.is_global_zero
        )
        finished, lacks_page = run.finished, run.lacks_page
        self.fabric.barrier()
        if lacks_page:
            return self._closing(run) if self.fabric.is_global_zero else {}
        if finished:
            raise InputError(f"{run.path} holds a finished run", "choose another --out")
        fitted = self._fit(run, resume)
        run.state["seconds"]["training"] = round(fitted.total_seconds, 2)  # killed processes' too
        self.fabric.barrier()
        if config.final == "best":
            self.network.load_state_dict(load_network(run.path / BEST).state_dict())
        found = self.kind.port.evaluate(
            self.network.to(self.fabric.device), self.data.test, self.preset, fabric=self.fabric
        )
        self.network.cpu()
        if not self.fabric.is_global_zero:
            return {}
        save_weights(
            self.network, run.path / "model.safetensors", preset=self.preset.to_dict(),
            classes=self.data.classes,
        )  # fmt: skip
        run.finish(self._record(fitted, found))
        return self._closing(run)

    def _closing(self, run: RunFolder) -> dict[str, Any]:
        """Write the page of a finished run and print its result."""
        record = run.record()
        report.write_report(run.path)
        print(report.class_table(record))
        print(f"{record['final']['label']}: {self.kind.score} {record['final']['accuracy_float']:.2%} "
              f"on {len(self.data.test)} test images")  # fmt: skip
        print(run.path / "model.safetensors")
        return record

    def _fit(self, run: RunFolder, resume: bool) -> FitResult:
        config = self.config
        return fit(
            self.network, self.data.train, preset=self.preset, recipe=self.recipe, task=self.kind.port,
            validation=self.data.holdout if len(self.data.holdout) else None, seed=config.seed,
            steps=config.steps, out=run.path, resume=resume, keep=config.keep,
            checkpoint_every=config.checkpoint_every, fabric=self.fabric, workers=config.workers,
            progress=self.voice.label(f"training {self.network.spec.name}"),
            teacher=self._teacher(), board=_board(config, self.recipe, self.fabric), threads=config.threads,
        )  # fmt: skip

    def _teacher(self) -> Any:
        config = self.config
        if config.teacher is None:
            return None
        if self.kind.task != "classify":
            return kinds.scene_teacher(self.kind, config.teacher, self.network.spec, self.data.classes)
        teacher = pretrained.teacher(
            config.teacher, self.preset, self.data.classes, side=config.teacher_resolution,
            quiet=self.voice.quiet,
        )  # fmt: skip
        if problem := distillation.problem_with(self.recipe):
            if config.teacher_cache is not None:
                raise InputError(f"--teacher-cache: {problem}, so the teacher's answers cannot be kept", "leave it out")
            self.voice(f"the teacher sees the student's images, resized from {self.preset.resolution} "
                       f"to {teacher.side} px: {problem}")  # fmt: skip
            return teacher
        return teacher.soft_targets(config.teacher_cache)

    def _record(self, fitted: FitResult, found: Any) -> dict[str, Any]:
        config, spec = self.config, self.network.spec
        (_, first), *changes = fitted.thread_counts
        cost = spec.cost()
        row = {"label": spec.name, "kind": "seed", "seed": config.seed,
               "accuracy_float": self.kind.value(found), "params": cost.params, "madds": cost.madds}  # fmt: skip
        return {
            "seed": config.seed, "task": self.kind.task, "data": kinds.described(self.data), "recipe": self.recipe.to_dict(),
            "named_recipe": recipe(self.recipe.name).to_dict(),
            "training": {
                "steps": fitted.steps,
                "images_per_second": fitted.images_per_second, "best": fitted.best,
                "replaced": list(getattr(self.data.train, "replaced", ())), "weights": self.start.note,
                "teacher": config.teacher, "result": config.final,
                "threads": first, "thread_changes": [{"step": step, "threads": count} for step, count in changes],
                "device": str(self.fabric.device), "processes": self.fabric.world_size,
            },
            "final_spec": spec.to_dict(), "results": [row],
            "final": {**row, **self.kind.record(found, self.data)},
        }  # fmt: skip


def _board(config: TrainConfig, chosen: Recipe, fabric: Fabric) -> Callable[[int], Board] | None:
    if not config.tensorboard or not fabric.is_global_zero:
        return None
    return lambda step: tensorboard.Board(config.out / "tensorboard", step, chosen.to_dict())


def _spec(config: TrainConfig) -> NetSpec:
    spec = spec_of(config.model)
    return spec if config.width == 1.0 else spec.width(config.width)


def kind_of(config: TrainConfig) -> Kind:
    """The task of a training.

    Raises:
        InputError: the network that is named is for another.
    """
    return kinds.kind_for(config.task, spec_of(config.model))


def _check(config: TrainConfig) -> None:
    """What can be told before the images are read."""
    changes = _changes(config)
    lab.check_positive(
        width=config.width, resolution=config.resolution, columns=config.columns, steps=config.steps,
        teacher_resolution=config.teacher_resolution, epochs=changes.get("epochs"), devices=config.devices,
        nodes=config.nodes, keep=config.keep, threads=config.threads,
    )  # fmt: skip
    if config.workers is not None and not 0 <= config.workers <= MOST_WORKERS:
        raise InputError(f"--workers is {config.workers}, must be 0 to {MOST_WORKERS}")
    if config.teacher_resolution is not None and config.teacher is None:
        raise InputError("--teacher-resolution is for a teacher", "name one with --teacher")
    if config.teacher_cache is not None and config.teacher is None:
        raise InputError("--teacher-cache is for a teacher", "name one with --teacher")
    if config.steps is not None and "epochs" in changes:
        raise InputError("--steps and --epochs both say how long to train", "give one of them")
    if config.final == "best" and not config.holdout:
        raise InputError("--final best chooses by held-out images, and --holdout is 0", "hold some out")
    if config.tensorboard:
        tensorboard.require()
    kind = kind_of(config)
    for name, value in (("--teacher-resolution", config.teacher_resolution), ("--teacher-cache", config.teacher_cache)):
        if value is not None and kind.task != "classify":
            raise InputError(f"{name} is for classification, not for --task {kind.task}", f"leave {name} out")
    if config.ignore_label and kind.task != "segment":
        raise InputError("--ignore-label is for masks", "leave it out, or say --task segment")
    _overridden(_named(config, kind), config)


def _named(config: TrainConfig, kind: Kind) -> Recipe:
    """The recipe before the images are known."""
    if kind.task == "classify":
        return recipe(config.recipe or lab.usual_recipe(config.weights))
    return kind.recipe(config.recipe, config.weights, None)


def _changes(config: TrainConfig) -> dict[str, Any]:
    """The fields of the recipe that are given."""
    found = {field.name: getattr(config, field.name, None) for field in fields(Recipe)}
    return {name: value for name, value in found.items() if value is not None}


def _overridden(base: Recipe, config: TrainConfig) -> Recipe:
    return replace(base, **_changes(config))
