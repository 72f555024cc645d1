"""What is minimised: cross-entropy with smoothed, mixed or weighted labels, and a teacher's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilefit.train.recipe import Recipe

Teacher = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """The loss of a recipe."""

    recipe: Recipe
    teacher: Teacher | None
    """Images [n, 3, h, w] to logits [n, K]; there is one if the recipe distils."""
    class_weights: Tensor | None
    """[K], 1 on average over the images; ``None``: all alike."""

    def __call__(self, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        """The sum of the images' losses, in nats.

        Args:
            logits: [n, K].
            labels: int64 [n], or shares [n, K] where images are mixed.
            images: [n, 3, h, w], for the teacher.
        """
        share, recipe = self.recipe.distillation, self.recipe
        loss = F.cross_entropy(
            logits, labels, weight=self.class_weights, label_smoothing=recipe.label_smoothing,
            reduction="sum",
        )  # fmt: skip
        if not share or self.teacher is None:
            return loss
        with torch.no_grad():
            teacher_logits = self.teacher(images)
        return distilled(loss, logits, teacher_logits, recipe)


def distilled(loss: Tensor, logits: Tensor, teacher_logits: Tensor, recipe: Recipe) -> Tensor:
    """A loss of labels, and the recipe's share of the cross-entropy with a teacher's probabilities.

    Args:
        loss: the sum over the images.
        logits, teacher_logits: [n, K].
    """
    soft = soft_cross_entropy(logits, teacher_logits, recipe.temperature)
    return (1 - recipe.distillation) * loss + recipe.distillation * soft


def soft_cross_entropy(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The sum of the cross-entropies with a teacher's probabilities: their Kullback-Leibler divergence, and a constant.

    Args:
        logits, teacher_logits: [n, K], or [n, K, h, w].
    """
    soft_labels = (teacher_logits.float() / temperature).softmax(1)
    # Its gradient falls with the temperature's square (Hinton et al., section 2).
    return temperature**2 * F.cross_entropy(logits.float() / temperature, soft_labels, reduction="sum")


def mixing(recipe: Recipe, outputs: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """From images and labels to mixed ones and shares [n, K]; ``None``: the recipe mixes nothing.

    Draws from torch's global generator.
    """
    if not recipe.mixup and not recipe.cutmix:
        return None
    from torchvision.transforms import v2

    ways = [v2.MixUp(alpha=recipe.mixup, num_classes=outputs)] if recipe.mixup else []
    ways += [v2.CutMix(alpha=recipe.cutmix, num_classes=outputs)] if recipe.cutmix else []

    def mixed(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        way = ways[int(torch.randint(len(ways), ()))] if len(ways) > 1 else ways[0]
        found: tuple[Tensor, Tensor] = way(images, labels)
        return found

    return mixed
