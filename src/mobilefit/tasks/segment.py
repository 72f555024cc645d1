"""Segmentation: R-ASPP and LR-ASPP on images with masks, judged by the mean intersection over union."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from mobilefit.arch import SegmentationHead
from mobilefit.data import Preset
from mobilefit.data.masks import IGNORED
from mobilefit.data.scenes import SceneFeed, prepared, scene_batches
from mobilefit.data.segmentation import SegmentationSet
from mobilefit.data.segmentation_augment import (
    collate,
    eval_sample,
    segmentation_augment,
    train_sample,
)
from mobilefit.errors import InputError
from mobilefit.nn import Network
from mobilefit.tasks.detect import checked_teacher, labels_alone
from mobilefit.tasks.metrics import (
    SegmentationMetric,
    SegmentationOutcomes,
    SegmentationScore,
    labels_of,
)
from mobilefit.train.evaluate import evaluating
from mobilefit.train.loss import Teacher, soft_cross_entropy
from mobilefit.train.ranks import gathered
from mobilefit.train.recipe import Recipe

BATCH = 16
"""Images of an evaluation's forward pass."""

Segmenter = Callable[[Tensor], Tensor]
"""Images float32 [n, 3, h, w] to logits [n, k, h', w']: a network, or its file."""


@dataclass(frozen=True, kw_only=True)
class SegmentationEvaluation:
    """How good a segmenter is."""

    score: SegmentationScore
    labels: Callable[[int], npt.NDArray[np.int64]]
    """What it found in the image at a place, [h, w] of the image's own size: computed anew, while the
    network has the weights that were evaluated."""

    def row(self) -> dict[str, float]:
        """What the history of a training keeps of it."""
        return self.score.row()

    def outcomes(self, images: SegmentationSet) -> SegmentationOutcomes:
        """Right and wrong pixels of the set that was evaluated, by image."""
        return SegmentationOutcomes(pixels=self.score.image_pixels)


@dataclass(frozen=True, kw_only=True)
class _Objective:
    smoothing: float

    def prepared(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return images, targets

    def counts(self, targets: Tensor) -> tuple[int]:
        return (int((targets != IGNORED).sum()),)  # crops without any labelled pixel count for nothing

    def __call__(self, outputs: Tensor, targets: Tensor, images: Tensor) -> Tensor:
        return F.cross_entropy(
            outputs.float(), targets, ignore_index=IGNORED, label_smoothing=self.smoothing, reduction="sum"
        )


@dataclass(frozen=True, kw_only=True)
class _SoftObjective:
    temperature: float

    def answers(self, outputs: tuple[Tensor, ...], images: Tensor) -> tuple[Tensor, ...]:
        """The teacher's logits at the size of the network's images, which is that of its logits."""
        (logits,) = outputs
        size = images.shape[2:]
        if logits.shape[2:] != size:
            logits = F.interpolate(logits, size, mode="bilinear", antialias=True)
        return (logits,)

    def count(self, answers: tuple[Tensor, ...], labelled: int) -> int:
        return answers[0][:, 0].numel()  # pixels without a label too: the teacher has an answer for them

    def __call__(self, outputs: Tensor, answers: tuple[Tensor, ...]) -> Tensor:
        return soft_cross_entropy(outputs, answers[0], self.temperature)


class Segment:
    """A class for every pixel. See :class:`mobilefit.train.task.Task`."""

    score = "val_miou"

    def require(self, net: nn.Module, sets: list[SegmentationSet]) -> None:
        assert isinstance(net, Network)
        most = max(len(scenes.classes) for scenes in sets)
        if not isinstance(net.spec.head, SegmentationHead) or most != net.spec.head.num_classes:
            raise InputError(
                f"the images have {most} classes, and the network tells {net.spec.head.num_classes} apart",
                "build it for as many classes as there are",
            )

    def identity(self, train_set: SegmentationSet) -> str:
        return f"{len(train_set)} ({train_set.digest})"

    def feed(
        self, train_set: SegmentationSet, preset: Preset, recipe: Recipe, *, seed: int, rank: int = 0,
        ranks: int = 1,
    ) -> SceneFeed:  # fmt: skip
        vary = partial(train_sample, preset=preset, augment=segmentation_augment(recipe.augment))
        return SceneFeed(
            len(train_set), train_set.sample, vary, collate, preset, recipe.batch_size, seed=seed,
            rank=rank, ranks=ranks,
        )  # fmt: skip

    def objective(
        self, net: nn.Module, train_set: SegmentationSet, recipe: Recipe, teacher: Teacher | None,
        device: torch.device,
    ) -> _Objective:  # fmt: skip
        labels_alone("segmentation", recipe, teacher)
        return _Objective(smoothing=recipe.label_smoothing)

    def soft_objective(
        self, net: nn.Module, teacher: nn.Module, recipe: Recipe, device: torch.device
    ) -> _SoftObjective:
        """The teacher's probabilities of every pixel (Liu et al., 2019, arXiv:1903.04197, equation 1).

        Scaled crops begin at whole pixels of each one's images, so teacher and network see the same part but for a
        pixel of the network's.

        Raises:
            InputError: the teacher is no segmenter, or of other classes.
        """
        assert isinstance(net, Network)
        checked_teacher(net.spec, teacher)
        return _SoftObjective(temperature=recipe.temperature)

    def evaluate(
        self, net: nn.Module, images: SegmentationSet, preset: Preset, *, fabric: Fabric | None = None
    ) -> SegmentationEvaluation:
        """mIoU of a network on some images, counted on their own pixels; its mode is restored."""

        def run(batch: Tensor) -> Tensor:
            device = next(net.parameters()).device
            with evaluating(net), torch.no_grad():
                found: Tensor = net(batch.to(device, memory_format=torch.channels_last))
            return found.float().cpu()

        return segmented(run, images, preset, fabric)


def segmented(
    run: Segmenter, images: SegmentationSet, preset: Preset, fabric: Fabric | None = None
) -> SegmentationEvaluation:
    """How good a segmenter is on a set.

    Args:
        run: the network on a batch, or a file made from it.
        fabric: its processes divide the batches, and every one gets everything.
    """
    rank, ranks = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
    metric = SegmentationMetric(images.classes)
    for places, batch, truths in scene_batches(
        images, partial(eval_sample, preset=preset), preset, BATCH, rank=rank, ranks=ranks
    ):
        for place, logits, truth in zip(places, run(batch), truths, strict=True):
            metric.add(logits.numpy(), truth, place)

    def labels(place: int) -> npt.NDArray[np.int64]:
        pixels, truth = eval_sample(*images.sample(place), preset)
        return labels_of(run(prepared([pixels], preset))[0].numpy(), truth.shape)

    score = SegmentationMetric.joined(gathered(fabric, metric)).result()
    return SegmentationEvaluation(score=score, labels=labels)
