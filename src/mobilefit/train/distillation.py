"""Distillation at the teacher's own resolution: soft targets as a function of the step.

A batch is a function of (seed, epoch, position) and not of the resolution, so a second feed with the
student's seed and augmentation gives the same crops, flips and colours at the teacher's size ("same crop
for both": Beyer et al., 2022, arXiv:2106.05237, section 3.1), from the decoded photo and not from the
student's small copy of it. What a teacher's outputs are for a student, and how they are compared with its own, is
the task's: see :class:`.task.SoftObjective`. A classifier's logits for a step are a function of (teacher, images,
seed, batch size, augmentation, step), and can be kept on disk for the next student. Those of a detector or segmenter
are computed at each step: a picture of 160x224 px in 11 classes is 1.6 MB of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from mobilefit.data import Preset
from mobilefit.data.order import Indices
from mobilefit.data.policy import policy
from mobilefit.errors import InputError
from mobilefit.runs import atomic_file, open_file, write_json
from mobilefit.train.classify import Classify
from mobilefit.train.loss import Teacher
from mobilefit.train.recipe import Recipe
from mobilefit.train.task import Feed, Found, Objective, SoftObjective, Task

CHUNK_STEPS = 32
"""Steps in one file of the cache."""
FORWARD_BATCH = 64
"""Images in one forward pass of the teacher: a fixed number, as the rounding of a convolution may depend
on how many images it is given."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SoftTargets:
    """A trained network whose outputs are learned from, and how it is shown the student's images.

    Its forward pass is in float32 and evaluation mode whatever the student's precision, 64 images at a
    time. The outputs do not depend on ``accumulate``; between processes, devices and numbers of threads
    they agree but for rounding (so do trainings).

    Attributes:
        network: float32 [n, 3, h, w] to logits [n, K], or to what another task's networks give; it is moved to the training's device, in
            channels-last format, where it answers.
        preset: size and normalisation of the images that it was trained on. How an image is cropped is
            the student's.
        cache: folder for a classifier's logits, made if missing and shared by all trainings that are given it: a
            student of another size, or another network, with the same seed, batch size, images and
            augmentation costs no forward pass of the teacher. It takes 4 bytes for each image, epoch
            and class (10 classes, 3,000 images, 15 epochs: 1.8 MB; ImageNet: 5 GB an epoch).
            ``None``: nothing is kept.
    """

    network: nn.Module
    preset: Preset
    cache: Path | None = None

    @torch.no_grad()
    def outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        """Float32 outputs, one or more [n, ...], for images [n, 3, h, w] normalised by :attr:`preset`."""
        network = self.network.to(images.device).to(memory_format=torch.channels_last)
        parts = torch.split(images.contiguous(memory_format=torch.channels_last), FORWARD_BATCH)
        with _evaluation_mode(network), torch.autocast(images.device.type, enabled=False):
            outputs = [network(part) for part in parts]
        several = [part if isinstance(part, tuple) else (part,) for part in outputs]
        return tuple(torch.cat(each).float() for each in zip(*several, strict=True))

    def digest(self) -> str:
        """SHA-256 of the network's weights and structure."""
        structure = re.sub(r"0x[0-9a-f]+", "", f"{self.network} {getattr(self.network, 'spec', '')}")
        digest = hashlib.sha256(structure.encode())
        for name, value in self.network.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


@contextlib.contextmanager
def _evaluation_mode(network: nn.Module) -> Iterator[None]:
    """As ``evaluating``, by the attribute: programs of ``torch.export`` refuse ``eval()``."""
    modes = [(module, module.training) for module in network.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def problem_with(recipe: Recipe) -> str | None:
    """Why a teacher cannot be shown a recipe's images at its own resolution; ``None``: it can be.

    Mixtures are made of the student's batch, and what moves by pixels moves another part of a larger
    image.
    """
    if recipe.mixup or recipe.cutmix:
        return "mixup and cutmix mix the student's own small images"
    transforms = policy(recipe.policy)
    if transforms is not None and not transforms.relative:
        return f"the policy {recipe.policy} moves images by pixels, which are not alike at two resolutions"
    return None


def distillation_task(
    task: Task, teacher: SoftTargets, train_set: Any, preset: Preset, recipe: Recipe, seed: int, fabric: Fabric
) -> DistillationTask:
    """The task of a training whose loss compares with a teacher, with ``recipe.distillation``.

    Raises:
        InputError: a recipe that distils nothing or whose images the teacher cannot be shown (see
            :func:`problem_with`), a cache that cannot be made, or one for another task than classification.
    """
    if not recipe.distillation:
        raise InputError("there is a teacher, and the recipe's distillation is 0", "set it, e.g. to 0.5")
    if problem := problem_with(recipe):
        raise InputError(
            f"the teacher cannot see the same images at its own resolution: {problem}",
            "leave that out of the recipe, or give fit a teacher that answers the student's batch (a callable)",
        )
    teacher_preset = replace(
        preset, resolution=teacher.preset.resolution, width=teacher.preset.width,
        mean=teacher.preset.mean, std=teacher.preset.std,
    )  # fmt: skip
    digest = teacher.digest()
    cache = None
    if teacher.cache is not None:
        if not isinstance(task, Classify):
            raise InputError("only a classifier's answers can be kept in a cache", "give the teacher none")
        key_fields = {
            "teacher": digest, "preset": teacher_preset.to_dict(), "images": train_set.digest, "seed": seed,
            "batch_size": recipe.batch_size, "repeats": recipe.repeats,
            "balanced": recipe.balance == "sampling",
            "augmentation": recipe.augmentation and dataclasses.asdict(recipe.augmentation),
            "device": fabric.device.type, "processes": fabric.world_size,
        }  # fmt: skip
        cache = LogitsCache.open(teacher.cache, key_fields, fabric.global_rank)
    return DistillationTask(
        score=task.score, task=task, teacher=teacher, digest=digest, preset=teacher_preset, cache=cache
    )


@dataclass(kw_only=True)
class DistillationTask:
    """A task with soft targets. See :class:`.task.Task` and :func:`distillation_task`."""

    score: str
    task: Task
    teacher: SoftTargets
    digest: str
    preset: Preset
    """How the teacher is shown the images."""
    cache: LogitsCache | None

    def require(self, net: nn.Module, sets: list[Any]) -> None:
        self.task.require(net, sets)

    def identity(self, train_set: Any) -> str:
        return f"{self.task.identity(train_set)}, taught by {self.digest[:12]} at {self.preset.resolution} px"

    def feed(
        self, train_set: Any, preset: Preset, recipe: Recipe, *, seed: int, rank: int = 0,
        ranks: int = 1,
    ) -> Feed:  # fmt: skip
        full_scale = replace(recipe, train_scale=1.0)
        return _Feed(
            student=self.task.feed(train_set, preset, recipe, seed=seed, rank=rank, ranks=ranks),
            teacher=self.task.feed(train_set, self.preset, full_scale, seed=seed, rank=rank, ranks=ranks),
            cache=self.cache,
        )

    def objective(
        self, net: nn.Module, train_set: Any, recipe: Recipe, teacher: Teacher | None,
        device: torch.device,
    ) -> Objective:  # fmt: skip
        labels_alone = replace(recipe, distillation=0.0)
        return _Objective(
            of_labels=self.task.objective(net, train_set, labels_alone, None, device),
            soft=self.soft_objective(net, self.teacher.network, recipe, device),
            share=recipe.distillation, teacher=self.teacher, cache=self.cache,
        )  # fmt: skip

    def soft_objective(
        self, net: nn.Module, teacher: nn.Module, recipe: Recipe, device: torch.device
    ) -> SoftObjective:
        return self.task.soft_objective(net, teacher, recipe, device)

    def evaluate(
        self, net: nn.Module, images: Any, preset: Preset, *, fabric: Fabric | None = None
    ) -> Found:
        return self.task.evaluate(net, images, preset, fabric=fabric)

    def close(self) -> None:
        """Write what the cache holds in memory."""
        if self.cache is not None:
            self.cache.flush()


@dataclass(frozen=True, kw_only=True)
class _Feed:
    """The student's images; and what the labels are, the step, and the teacher's logits or its images."""

    student: Feed
    teacher: Feed
    cache: LogitsCache | None

    def __call__(self, step: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        images, labels = self.student(step)
        logits = None if self.cache is None else self.cache.read(step)
        teacher_input = self.teacher(step)[0] if logits is None else logits
        several = labels if isinstance(labels, tuple) else (labels,)
        return images, (*several, torch.full((len(images),), step), teacher_input)

    def chosen(self, step: int) -> Indices:
        return self.student.chosen(step)


@dataclass(frozen=True, kw_only=True)
class _Objective:
    """Two terms: the labels' loss and the teacher's, each a mean over what it counts."""

    of_labels: Objective
    soft: SoftObjective
    share: float
    teacher: SoftTargets
    cache: LogitsCache | None

    def prepared(self, images: Tensor, targets: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Any, tuple[Tensor, ...]]]:
        """Here, and not in the feed, the teacher answers: workers have no GPU, and no threads of torch."""
        *several, steps, teacher_input = targets
        labels: Any = tuple(several) if len(several) > 1 else several[0]
        outputs: tuple[Tensor, ...] = (teacher_input,)
        if teacher_input.ndim == 4:  # images, not logits
            outputs = self.teacher.outputs(teacher_input)
            if self.cache is not None:
                self.cache.write(int(steps[0]), outputs[0].cpu().numpy())
        images, labels = self.of_labels.prepared(images, labels)
        return images, (labels, self.soft.answers(outputs, images))

    def counts(self, targets: tuple[Any, tuple[Tensor, ...]]) -> tuple[int, int]:
        labels, answers = targets
        (labelled,) = self.of_labels.counts(labels)
        return labelled, self.soft.count(answers, labelled)

    def __call__(self, outputs: Any, targets: tuple[Any, tuple[Tensor, ...]], images: Tensor) -> Tensor:
        labels, answers = targets
        of_labels = self.of_labels(outputs, labels, images)
        return torch.stack([(1 - self.share) * of_labels, self.share * self.soft(outputs, answers)])


class LogitsCache:
    """A teacher's logits on disk, by the step.

    A file holds the logits of 32 steps, float32 [32, n, K], NaN where a step was not computed. Files
    are replaced whole, so that a process that is killed leaves good ones, and several processes may fill
    the same cache at once: they write the same numbers, and at worst one computes again what another
    had. A damaged file counts as missing. Where nothing can be written (a full disk) the training goes
    on and says so once.

    Args:
        folder: exists.
        rank: this process's, which has its own files.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder, self._rank = folder, rank
        self._first: int | None = None
        self._chunk: npt.NDArray[np.float32] | None = None
        self._changed = self._disabled = False

    @classmethod
    def open(cls, folder: Path, key_fields: dict[str, Any], rank: int = 0) -> LogitsCache:
        """The part of a shared cache that is of one teacher, one set of images and one way through them.

        Args:
            folder: the shared one.
            key_fields: everything that the logits depend on; ``teacher.json`` there tells it.

        Raises:
            InputError: it cannot be made.
        """
        key = hashlib.sha256(json.dumps(key_fields, sort_keys=True).encode()).hexdigest()[:16]
        part = folder / key
        try:
            part.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot make the teacher's cache {part}: {error.strerror}", "choose another folder"
            ) from error
        if not (part / "teacher.json").exists():
            write_json(part / "teacher.json", key_fields)
        return cls(part, rank)

    def read(self, step: int) -> Tensor | None:
        """Float32 [n, K]; ``None``: not computed yet."""
        chunk = self._load(step // CHUNK_STEPS * CHUNK_STEPS)
        if chunk is None or np.isnan(row := chunk[step % CHUNK_STEPS]).any():
            return None
        return torch.from_numpy(np.array(row))

    def write(self, step: int, logits: npt.NDArray[np.float32]) -> None:
        """Keep the logits [n, K] of a step; they are on disk when another chunk begins, or after :meth:`flush`."""
        first = step // CHUNK_STEPS * CHUNK_STEPS
        if first != self._first:
            self.flush()
            self._first, self._chunk = first, np.full((CHUNK_STEPS, *logits.shape), np.nan, np.float32)
        assert self._chunk is not None
        self._chunk[step - first] = logits
        self._changed = True

    def flush(self) -> None:
        """Write what is in memory, beside what another process may have written meanwhile."""
        if not self._changed or self._disabled:
            return
        assert self._first is not None and self._chunk is not None
        on_disk = self._load(self._first)
        if on_disk is not None and on_disk.shape == self._chunk.shape:
            self._chunk = np.where(np.isnan(self._chunk), on_disk, self._chunk)
        try:
            with atomic_file(self._path(self._first)) as file:
                np.save(file, self._chunk)
        except InputError as error:
            self._disabled = True
            print(
                f"mobilefit: {error.message}; the training goes on and keeps no more of the teacher's "
                f"answers: free some space, or choose another folder for the cache than {self.folder.parent}",
                file=sys.stderr,
            )
        self._changed = False

    def _path(self, first: int) -> Path:
        return self.folder / f"{first:08d}-{self._rank}.npy"

    def _load(self, first: int) -> npt.NDArray[np.float32] | None:
        try:
            open_file(self._path(first)).close()  # not a pipe, which would keep us waiting
            chunk = np.load(self._path(first), mmap_mode="r", allow_pickle=False)
        except Exception:  # missing, cut short, not of numpy: half a dozen kinds
            return None
        whole = isinstance(chunk, np.memmap) and chunk.dtype == np.float32 and chunk.ndim == 3
        return chunk if whole and len(chunk) == CHUNK_STEPS else None
