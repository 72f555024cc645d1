"""Accuracy of a network, or of logits that came from elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from torch import nn

from mobilefit.data import ImageSet, Preset, batches
from mobilefit.train.ranks import gathered


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a classifier got right."""

    top1: float
    """Share of images whose highest logit is the label's."""
    top5: float
    """Share of images whose label is among the five highest logits."""
    loss: float
    """Mean cross-entropy, nats."""
    count: int
    """Images."""
    confusion: npt.NDArray[np.int64]
    """[K, K]: row the label, column the prediction."""
    predictions: npt.NDArray[np.int64]
    """[count]"""
    confidence: npt.NDArray[np.float32]
    """[count]: softmax of the predicted class."""
    losses: npt.NDArray[np.float32]
    """[count]: cross-entropy, nats."""

    def row(self) -> dict[str, float]:
        """What the history of a training keeps of it."""
        return {"val_top1": self.top1, "val_loss": self.loss}


def evaluation_of(
    logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> Evaluation:
    """Evaluate logits ``[n, K]`` against labels ``[n]``."""
    scores = torch.from_numpy(np.asarray(logits, np.float32))
    truth = torch.from_numpy(labels)
    log_probabilities = scores.log_softmax(1)
    predictions = scores.argmax(1)
    top5 = scores.topk(min(5, scores.shape[1])).indices
    losses = -log_probabilities[torch.arange(len(truth)), truth]
    classes = scores.shape[1]
    confusion = torch.bincount(truth * classes + predictions, minlength=classes**2)
    return Evaluation(
        top1=(predictions == truth).double().mean().item(),
        top5=(top5 == truth[:, None]).any(1).double().mean().item(),
        loss=losses.mean().item(),
        count=len(truth),
        confusion=confusion.reshape(classes, classes).numpy(),
        predictions=predictions.numpy(),
        confidence=log_probabilities.amax(1).exp().numpy(),
        losses=losses.numpy(),
    )


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; then each module's own again, of which some may be frozen."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def logits_of(
    network: nn.Module, image_set: ImageSet, preset: Preset, *, batch_size: int = 256,
    fabric: Fabric | None = None,
) -> npt.NDArray[np.float32]:  # fmt: skip
    """Logits ``[n, K]`` for every image, in the set's order; the network's mode is restored.

    Args:
        fabric: its processes divide the batches, and every one gets all logits.
    """
    rank, ranks = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
    device = next(network.parameters()).device
    with evaluating(network):
        parts = [
            network(images.to(device, memory_format=torch.channels_last)).float().cpu().numpy()
            for images, _ in batches(image_set, preset, batch_size, train=False, rank=rank, ranks=ranks)
        ]
    of_all = gathered(fabric, parts)
    # Process 0 had batches 0, ranks, 2 ranks ...: each has as many as the one before it, or one less.
    in_order = [part[turn] for turn in range(len(of_all[0])) for part in of_all if turn < len(part)]
    result: npt.NDArray[np.float32] = np.concatenate(in_order)
    return result


def evaluate(
    network: nn.Module, image_set: ImageSet, preset: Preset, *, batch_size: int = 256,
    fabric: Fabric | None = None,
) -> Evaluation:  # fmt: skip
    """Evaluate a network on a set of images; see :func:`logits_of`."""
    logits = logits_of(network, image_set, preset, batch_size=batch_size, fabric=fabric)
    return evaluation_of(logits, image_set.labels)
