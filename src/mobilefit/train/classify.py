"""Classification as a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from mobilefit.arch import NetSpec
from mobilefit.data import Feed, ImageSet, Preset, Sampling, class_weights
from mobilefit.errors import InputError
from mobilefit.runs import sha256
from mobilefit.train.evaluate import Evaluation, evaluate
from mobilefit.train.loss import Criterion, Teacher, mixing, soft_cross_entropy
from mobilefit.train.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class _Objective:
    criterion: Criterion
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None

    def prepared(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return (images, targets) if self.mix is None else self.mix(images, targets)

    def counts(self, targets: Tensor) -> tuple[int]:
        return (len(targets),)

    def __call__(self, outputs: Tensor, targets: Tensor, images: Tensor) -> Tensor:
        return self.criterion(outputs, targets, images)


@dataclass(frozen=True, kw_only=True)
class _SoftObjective:
    temperature: float

    def answers(self, outputs: tuple[Tensor, ...], images: Tensor) -> tuple[Tensor, ...]:
        return outputs

    def count(self, answers: tuple[Tensor, ...], labelled: int) -> int:
        return labelled

    def __call__(self, outputs: Tensor, answers: tuple[Tensor, ...]) -> Tensor:
        (teacher_logits,) = answers
        if teacher_logits.shape != outputs.shape:
            raise InputError(
                f"the teacher has {teacher_logits.shape[1]} outputs, the network has {outputs.shape[1]}",
                "train the teacher on the same classes",
            )
        return soft_cross_entropy(outputs, teacher_logits, self.temperature)


class Classify:
    """One class for each image; sets are :class:`mobilefit.data.ImageSet`. See :class:`.task.Task`."""

    score = "val_top1"

    def require(self, net: nn.Module, sets: list[ImageSet]) -> None:
        spec = getattr(net, "spec", None)
        highest = max(int(images.labels.max(initial=0)) for images in sets)
        if isinstance(spec, NetSpec) and highest >= spec.head.num_classes:
            raise InputError(
                f"label {highest} among the images, but the network has {spec.head.num_classes} outputs",
                "build it with as many outputs as there are classes",
            )

    def identity(self, train_set: ImageSet) -> str:
        return f"{len(train_set)} ({sha256(train_set.labels.tobytes())[:12]})"

    def feed(
        self, train_set: ImageSet, preset: Preset, recipe: Recipe, *, seed: int, rank: int = 0,
        ranks: int = 1,
    ) -> Feed:  # fmt: skip
        return Feed(
            train_set, replace(preset, resolution=recipe.train_size(preset.resolution)), recipe.batch_size, seed=seed,
            augment=recipe.augmentation, rank=rank, ranks=ranks,
            sampling=Sampling(repeats=recipe.repeats, balanced=recipe.balance == "sampling"),
        )  # fmt: skip

    def objective(
        self, net: nn.Module, train_set: ImageSet, recipe: Recipe, teacher: Teacher | None,
        device: torch.device,
    ) -> _Objective:  # fmt: skip
        if recipe.distillation and teacher is None:
            raise InputError("the recipe distils from a teacher, and there is none", "give fit a teacher")
        outputs, weights = _outputs(net, train_set.labels), None
        if recipe.balance == "loss":
            weights = torch.from_numpy(class_weights(train_set.labels, outputs)).float().to(device)
        criterion = Criterion(recipe=recipe, teacher=teacher, class_weights=weights)
        return _Objective(criterion=criterion, mix=mixing(recipe, outputs))

    def soft_objective(
        self, net: nn.Module, teacher: nn.Module, recipe: Recipe, device: torch.device
    ) -> _SoftObjective:
        """Cross-entropy with the teacher's probabilities (Hinton et al., 2015, arXiv:1503.02531)."""
        return _SoftObjective(temperature=recipe.temperature)

    def evaluate(
        self, net: nn.Module, images: ImageSet, preset: Preset, *, fabric: Fabric | None = None
    ) -> Evaluation:
        return evaluate(net, images, preset, fabric=fabric)


def _outputs(net: nn.Module, labels: np.ndarray) -> int:
    """How many classes a network tells apart; of one without a spec, how many there are."""
    spec = getattr(net, "spec", None)
    return spec.head.num_classes if isinstance(spec, NetSpec) else int(labels.max(initial=0)) + 1
