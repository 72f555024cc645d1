"""Accuracy of a network, or of logits that came from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mobilefit.data import ImageSet, Preset, batches


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


def evaluation_of(
    logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> Evaluation:
    """Evaluate logits ``[n, K]`` against labels ``[n]``."""
    scores = torch.from_numpy(np.asarray(logits, np.float32))
    truth = torch.from_numpy(labels)
    log_probabilities = scores.log_softmax(1)
    predictions = scores.argmax(1)
    top5 = scores.topk(min(5, scores.shape[1])).indices
    classes = scores.shape[1]
    confusion = torch.bincount(truth * classes + predictions, minlength=classes**2)
    return Evaluation(
        top1=(predictions == truth).double().mean().item(),
        top5=(top5 == truth[:, None]).any(1).double().mean().item(),
        loss=-log_probabilities[torch.arange(len(truth)), truth].mean().item(),
        count=len(truth),
        confusion=confusion.reshape(classes, classes).numpy(),
        predictions=predictions.numpy(),
        confidence=log_probabilities.amax(1).exp().numpy(),
    )


@torch.no_grad()
def logits_of(
    network: nn.Module, image_set: ImageSet, preset: Preset, *, batch_size: int = 256
) -> npt.NDArray[np.float32]:
    """Logits ``[n, K]`` for every image, in the set's order; the network's mode is restored."""
    training = network.training
    device = next(network.parameters()).device
    network.eval()
    try:
        parts = [
            network(images.to(device, memory_format=torch.channels_last)).float().cpu()
            for images, _ in batches(image_set, preset, batch_size, train=False)
        ]
    finally:
        network.train(training)
    result: npt.NDArray[np.float32] = torch.cat(parts).numpy()
    return result


def evaluate(
    network: nn.Module, image_set: ImageSet, preset: Preset, *, batch_size: int = 256
) -> Evaluation:
    """Evaluate a network on a set of images."""
    logits = logits_of(network, image_set, preset, batch_size=batch_size)
    return evaluation_of(logits, image_set.labels)
