"""A detector's or segmenter's training with its int8 simulation in the place of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from mobilefit.arch import NetSpec, SegmentationHead
from mobilefit.data import Preset
from mobilefit.errors import InputError
from mobilefit.jobs.kinds import Kind
from mobilefit.jobs.pretrained import fresh
from mobilefit.tasks.detect import detected, judged
from mobilefit.tasks.segment import segmented
from mobilefit.train import Recipe
from mobilefit.train.evaluate import evaluating
from mobilefit.train.loss import Teacher
from mobilefit.train.task import Feed, Found, Objective, SoftObjective


class OfSimulation:
    """A task for a network that does not know its own spec. See :class:`mobilefit.train.task.Task`.

    Args:
        kind: detection or segmentation.
        spec: of the network that is simulated.
    """

    def __init__(self, kind: Kind, spec: NetSpec) -> None:
        self._port, self._spec = kind.port, spec
        self._like = fresh(spec)  # whose spec the task asks for
        self.score = kind.port.score

    def require(self, net: nn.Module, sets: list[Any]) -> None:
        self._port.require(self._like, sets)

    def identity(self, train_set: Any) -> str:
        return self._port.identity(train_set)

    def feed(
        self, train_set: Any, preset: Preset, recipe: Recipe, *, seed: int, rank: int = 0, ranks: int = 1
    ) -> Feed:
        return self._port.feed(train_set, preset, recipe, seed=seed, rank=rank, ranks=ranks)

    def objective(
        self, net: nn.Module, train_set: Any, recipe: Recipe, teacher: Teacher | None, device: torch.device
    ) -> Objective:
        found = self._port.objective(self._like, train_set, recipe, teacher, device)
        return _Resized(objective=found, spec=self._spec)

    def soft_objective(
        self, net: nn.Module, teacher: nn.Module, recipe: Recipe, device: torch.device
    ) -> SoftObjective:
        raise InputError("the int8 simulation of a detector or segmenter takes no teacher", "leave it out")

    def evaluate(
        self, net: nn.Module, images: Any, preset: Preset, *, fabric: Fabric | None = None
    ) -> Found:
        device = next(net.parameters()).device

        def run(batch: Tensor) -> Any:
            found = resized(net(batch.to(device)), self._spec)
            return tuple(x.float().cpu() for x in found) if isinstance(found, tuple) else found.float().cpu()

        with evaluating(net), torch.no_grad():
            if self._spec.task == "segment":
                return segmented(run, images, preset, fabric)
            return judged(detected(run, self._spec, images, preset, fabric), images)


@dataclass(frozen=True, kw_only=True)
class _Resized:
    objective: Objective
    spec: NetSpec

    def prepared(self, images: Tensor, targets: Any) -> tuple[Tensor, Any]:
        return self.objective.prepared(images, targets)

    def counts(self, targets: Any) -> tuple[int, ...]:
        return self.objective.counts(targets)

    def __call__(self, outputs: Any, targets: Any, images: Tensor) -> Tensor:
        return self.objective(resized(outputs, self.spec), targets, images)


def resized(outputs: Any, spec: NetSpec) -> Any:
    """Logits of the head's own size, where a file ends with these, as large as the input."""
    head = spec.head
    if not isinstance(head, SegmentationHead) or tuple(outputs.shape[2:]) == spec.image_shape:
        return outputs
    return F.interpolate(
        outputs, spec.image_shape, mode="bilinear", align_corners=head.align_corners
    )
