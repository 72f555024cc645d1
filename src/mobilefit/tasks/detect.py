"""Detection: SSDLite on images with boxes, judged by mean average precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from mobilefit.arch import NetSpec
from mobilefit.data import Preset
from mobilefit.data.detection import Boxes, DetectionSet
from mobilefit.data.detection_augment import collate, detection_augment, eval_sample, train_sample
from mobilefit.data.scenes import SceneFeed, scene_batches
from mobilefit.errors import InputError
from mobilefit.nn import Network
from mobilefit.nn.boxes import (
    Detections,
    detections,
    detector_head,
    match,
    nearest_anchors,
    reencode,
    soft_ssd_loss,
    spec_anchors,
    ssd_loss,
)
from mobilefit.tasks.metrics import DetectionMetric, DetectionOutcomes, DetectionScore
from mobilefit.train.evaluate import evaluating
from mobilefit.train.loss import Teacher
from mobilefit.train.ranks import gathered
from mobilefit.train.recipe import Recipe

BATCH = 32
"""Images of an evaluation's forward pass."""

Detector = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images float32 [n, 3, h, w] to encodings and logits: a network, or its file."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """One image's detections, in its own pixels, the surest first."""

    boxes: npt.NDArray[np.float32]
    """[k, 4]: left, top, right, bottom."""
    scores: npt.NDArray[np.float32]
    """[k]"""
    labels: npt.NDArray[np.int64]
    """[k]"""
    size: tuple[int, int]
    """Height and width of the image."""

    @classmethod
    def of(cls, found: Detections, size: tuple[int, int]) -> Found:
        """Of boxes in 0 to 1, in an image of this width and height."""
        scale = np.array([*size, *size], np.float32)
        return cls(
            boxes=found.boxes.numpy() * scale, scores=found.scores.numpy(), labels=found.labels.numpy(),
            size=size[::-1],
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DetectionEvaluation:
    """How good a detector is, and what it found."""

    score: DetectionScore
    found: tuple[Found, ...]
    """By image, in the set's order."""

    def row(self) -> dict[str, float]:
        """What the history of a training keeps of it."""
        return self.score.row()

    def outcomes(self, images: DetectionSet) -> DetectionOutcomes:
        """The detections beside the boxes of the set that was evaluated, by image."""
        return _metric(dict(enumerate(self.found)), images).outcomes()


@dataclass(frozen=True, kw_only=True)
class _Objective:
    anchors: Tensor
    scoring: Any

    def prepared(self, images: Tensor, targets: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        return images, (*targets, match(*targets, self.anchors))

    def counts(self, targets: tuple[Tensor, ...]) -> tuple[int]:
        *_, matched = targets
        return (int((matched >= 0).sum()),)  # the references divide by the matches of a batch, not of each image

    def __call__(self, outputs: tuple[Tensor, Tensor], targets: tuple[Tensor, ...], images: Tensor) -> Tensor:
        boxes, labels, matched = targets
        return ssd_loss(*outputs, boxes, labels, self.anchors, self.scoring, matched=matched).total


@dataclass(frozen=True, kw_only=True)
class _SoftObjective:
    anchors: Tensor
    """[A, 4], the network's."""
    nearest: Tensor
    """int64 [A]: of the teacher's anchors."""
    teacher_anchors: Tensor
    scoring: Any
    temperature: float

    def answers(self, outputs: tuple[Tensor, ...], images: Tensor) -> tuple[Tensor, ...]:
        """What the teacher says at the anchors nearest to the network's, its boxes as seen from these."""
        encodings, logits = outputs
        if encodings.shape[1] != len(self.teacher_anchors):
            raise InputError(
                f"the teacher has {encodings.shape[1]} anchors in its images, and {len(self.teacher_anchors)} at "
                "the size of its spec", "show it images of that size",
            )  # fmt: skip
        near = reencode(encodings[:, self.nearest], self.teacher_anchors[self.nearest], self.anchors)
        return near, logits[:, self.nearest]

    def count(self, answers: tuple[Tensor, ...], labelled: int) -> int:
        return labelled

    def __call__(self, outputs: tuple[Tensor, Tensor], answers: tuple[Tensor, ...]) -> Tensor:
        encodings, logits = answers
        return soft_ssd_loss(*outputs, encodings, logits, self.scoring, temperature=self.temperature)


class Detect:
    """Boxes and their classes. See :class:`mobilefit.train.task.Task`."""

    score = "val_map50"

    def require(self, net: nn.Module, sets: list[DetectionSet]) -> None:
        assert isinstance(net, Network)
        head = detector_head(net.spec)
        most = max(len(scenes.classes) for scenes in sets)
        if most != head.num_classes:
            raise InputError(
                f"the images have {most} classes, and the network tells {head.num_classes} apart",
                "build it for as many classes as there are",
            )

    def identity(self, train_set: DetectionSet) -> str:
        return f"{len(train_set)} ({train_set.digest})"

    def feed(
        self, train_set: DetectionSet, preset: Preset, recipe: Recipe, *, seed: int, rank: int = 0,
        ranks: int = 1,
    ) -> SceneFeed:  # fmt: skip
        vary = partial(train_sample, preset=preset, augment=detection_augment(recipe.augment))
        return SceneFeed(
            len(train_set), train_set.working, vary, partial(collate, shape=preset.shape), preset,
            recipe.batch_size, seed=seed, rank=rank, ranks=ranks,
        )  # fmt: skip

    def objective(
        self, net: nn.Module, train_set: DetectionSet, recipe: Recipe, teacher: Teacher | None,
        device: torch.device,
    ) -> _Objective:  # fmt: skip
        labels_alone("detection", recipe, teacher)
        assert isinstance(net, Network)
        return _Objective(
            anchors=spec_anchors(net.spec).to(device), scoring=detector_head(net.spec).scoring
        )

    def soft_objective(
        self, net: nn.Module, teacher: nn.Module, recipe: Recipe, device: torch.device
    ) -> _SoftObjective:
        """Classes and boxes of a teacher with the same anchors at each place: see :func:`.boxes.soft_ssd_loss`.

        Raises:
            InputError: it is no detector, or of other classes or another layout.
        """
        assert isinstance(net, Network)
        larger = checked_teacher(net.spec, teacher)
        scoring, layout, teacher_layout = detector_head(net.spec).scoring, _layout(net.spec), _layout(larger)
        if layout != teacher_layout:
            raise InputError(
                f"the teacher has {teacher_layout}, and the network has {layout}",
                "give a teacher that was made as the network is",
            )
        return _SoftObjective(
            anchors=spec_anchors(net.spec).to(device), nearest=nearest_anchors(net.spec, larger).to(device),
            teacher_anchors=spec_anchors(larger).to(device), scoring=scoring,
            temperature=recipe.temperature,
        )  # fmt: skip

    def evaluate(
        self, net: nn.Module, images: DetectionSet, preset: Preset, *, fabric: Fabric | None = None
    ) -> DetectionEvaluation:
        """mAP of a network on some images; its mode is restored."""
        assert isinstance(net, Network)
        device = next(net.parameters()).device

        def run(batch: Tensor) -> tuple[Tensor, Tensor]:
            found: Any = net(batch.to(device, memory_format=torch.channels_last))
            return found[0].float().cpu(), found[1].float().cpu()

        with evaluating(net), torch.no_grad():
            return judged(detected(run, net.spec, images, preset, fabric), images)


def detected(
    run: Detector, spec: NetSpec, images: DetectionSet, preset: Preset, fabric: Fabric | None = None
) -> dict[int, Found]:
    """What a detector finds in each image of a set, by the image's place.

    Args:
        run: the network on a batch, or a file made from it.
        spec: whose anchors and rule they are.
        fabric: its processes divide the batches, and every one gets everything.
    """
    head, anchors = detector_head(spec), spec_anchors(spec)
    rank, ranks = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
    part: dict[int, Found] = {}
    for places, batch, sizes in scene_batches(
        images, partial(_with_size, preset=preset), preset, BATCH, rank=rank, ranks=ranks
    ):
        found = detections(*run(batch), anchors, head.scoring)
        part |= {place: Found.of(one, size) for place, one, size in zip(places, found, sizes, strict=True)}
    of_all = {place: one for each in gathered(fabric, part) for place, one in each.items()}
    return dict(sorted(of_all.items()))


def _with_size(image: Any, truth: Boxes, preset: Preset) -> tuple[Any, tuple[int, int]]:
    return eval_sample(image, truth, preset)[0], image.size


def judged(found: Mapping[int, Found], images: DetectionSet) -> DetectionEvaluation:
    """Detections against the boxes of a set."""
    return DetectionEvaluation(score=_metric(found, images).result(), found=tuple(found.values()))


def _metric(found: Mapping[int, Found], images: DetectionSet) -> DetectionMetric:
    metric = DetectionMetric(images.classes)
    for place, one in found.items():
        truth = images.truth(place)
        metric.add(one.boxes, one.scores, one.labels, truth.boxes, truth.labels, truth.crowd, one.size)
    return metric


def _layout(spec: NetSpec) -> str:
    """How a detector's outputs are arranged, in words."""
    head = detector_head(spec)
    return f"{len(head.per_map)} maps, {head.anchors} anchors and {head.scoring} scores"


def checked_teacher(spec: NetSpec, teacher: nn.Module) -> NetSpec:
    """The spec of a teacher of boxes or masks that answers what a network does.

    Raises:
        InputError: it is none of our networks, or one of another task or for other classes.
    """
    if not isinstance(teacher, Network):
        raise InputError(f"a network for --task {spec.task} is taught by one of mobilefit's own", "give its file")
    if teacher.spec.task != spec.task:
        raise InputError(
            f"the teacher '{teacher.spec.name}' is for --task {teacher.spec.task}, the network for {spec.task}",
            "give a teacher of the same task",
        )
    if teacher.spec.head.num_classes != spec.head.num_classes:
        raise InputError(
            f"the teacher tells {teacher.spec.head.num_classes} classes apart, the network {spec.head.num_classes}",
            "train the teacher on the same classes",
        )
    return teacher.spec


def labels_alone(task: str, recipe: Recipe, teacher: Teacher | None) -> None:
    """See that a recipe wants nothing that is for classes of whole images alone, and that nobody is to teach.

    Raises:
        InputError: it does, or the teacher answers the network's own images: boxes and masks are learned from
            :class:`mobilefit.train.SoftTargets`.
    """
    for name in ("mixup", "cutmix"):
        if getattr(recipe, name):
            raise InputError(f"{name} is for classification, not for {task}", f"leave --{name} out")
    if recipe.distillation or teacher is not None:
        raise InputError("the recipe distils from a teacher, and there is none", "give fit SoftTargets")
    if recipe.balance != "none":
        raise InputError(f"balance is for classification, not for {task}", "leave --balance out")
