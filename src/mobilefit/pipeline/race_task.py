"""What the race does with a candidate, as values that can travel to a worker process."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilefit import adapt
from mobilefit.arch import NetSpec
from mobilefit.data import Preset
from mobilefit.jobs import kinds, lab, pretrained
from mobilefit.jobs.kinds import KINDS, Kind
from mobilefit.jobs.model import network_for
from mobilefit.nn import Network
from mobilefit.pipeline.candidates import Candidate
from mobilefit.pipeline.probe import probe
from mobilefit.pipeline.race import Judged
from mobilefit.progress import Voice
from mobilefit.train import Recipe, SoftTargets

Initial = Callable[[int], tuple[Network, Preset]]
"""From the seed to a network with its first weights, and how images become its input. Picklable."""


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A network that may be trained in full, and with what it begins."""

    kind: str
    candidate: Candidate
    initial: Initial


@dataclass(frozen=True, kw_only=True)
class TeacherFile:
    """A teacher by the name that the user gave it: a program of torch.export cannot be pickled, its name can."""

    source: str
    """See :func:`mobilefit.jobs.pretrained.teacher`, also for the next three."""
    preset: Preset
    classes: tuple[str, ...]
    quiet: bool
    cache: Path
    """See :class:`mobilefit.train.SoftTargets`; of a classifier alone."""
    spec: NetSpec
    """A network that it is to teach."""

    def opened(self) -> SoftTargets:
        """The teacher, loaded once in a process.

        Raises:
            InputError: it cannot be read, or its classes are others.
        """
        return _opened(self)


@functools.lru_cache(maxsize=1)
def _opened(file: TeacherFile) -> SoftTargets:
    if file.spec.task != "classify":
        return kinds.scene_teacher(KINDS[file.spec.task], file.source, file.spec, file.classes)
    teacher = pretrained.teacher(file.source, file.preset, file.classes, quiet=file.quiet)
    return teacher.soft_targets(file.cache)


@dataclass(frozen=True, kw_only=True)
class ShrunkWeights:
    """First weights of a shrunk network: the inherited ones, or fresh ones by the seed. An :data:`Initial`."""

    spec: NetSpec
    preset: Preset
    inherited: Network | None
    """With the short-term weights of its shrinking; ``None``: fresh ones."""

    def __call__(self, seed: int) -> tuple[Network, Preset]:
        if self.inherited is None:
            return network_for(self.spec, None, seed=seed), self.preset
        return copy.deepcopy(self.inherited), self.preset


@dataclass(frozen=True, kw_only=True)
class ShortTraining:
    """Trains a candidate briefly and judges it on the held-out images; what was interrupted continues.

    The result depends on the candidate, the seed and, in its last bits, on the number of threads.
    """

    task: Kind
    data: Any
    """Of the task, with ``train`` and ``holdout``."""
    held_out: Any
    """The images that candidates are judged on."""
    initial: Mapping[str, Initial]
    """Each candidate's first weights, by its slug."""
    recipe: Recipe
    """Its distillation is 0 without a teacher."""
    teacher: SoftTargets | TeacherFile | None
    steps: int
    seed: int
    folder: Path
    """Of the rung; each candidate trains in a folder of its slug, which holds the checkpoints."""
    quiet: bool
    """Show no progress."""

    def __call__(self, candidate: Candidate) -> Judged:
        """Train and judge.

        Raises:
            InputError: the candidate's weights or the teacher cannot be had, or the folder cannot be
                written.
        """
        began = time.monotonic()
        network, preset = self.initial[candidate.slug](self.seed)
        teacher = self.teacher.opened() if isinstance(self.teacher, TeacherFile) else self.teacher
        folder = self.folder / candidate.slug
        recipe = adapt.for_shrunk(self.recipe) if candidate.origin == "shrunk" else self.recipe
        result = lab.train(
            network, self.data, preset, recipe, task=self.task.port, steps=self.steps,
            seed=self.seed, folder=folder, teacher=teacher, validate=False,
            label=Voice(quiet=self.quiet).label(f"{candidate.name}, {self.steps} steps"),
        )  # fmt: skip
        judgement = adapt.judge(self.task.port, network, self.held_out, preset)
        lab.drop_checkpoints(folder)
        return Judged(
            losses=judgement.losses, score=judgement.score, seconds=round(time.monotonic() - began, 3),
            images_per_second=result.images_per_second,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FeatureProbe:
    """Judges a candidate by a linear classifier on its frozen pretrained features."""

    data: Any
    held_out: Any
    initial: Mapping[str, Initial]
    """See :class:`ShortTraining`."""
    seed: int

    def __call__(self, candidate: Candidate) -> Judged:
        """See :func:`.probe.probe`."""
        began = time.monotonic()
        network, preset = self.initial[candidate.slug](self.seed)
        losses, score = probe(network, preset, self.data.train, self.held_out)
        return Judged(losses=losses, score=score, seconds=round(time.monotonic() - began, 3))
