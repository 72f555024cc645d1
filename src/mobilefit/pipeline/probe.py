"""How far pretrained features carry: a linear classifier on frozen features, in seconds a network.

Transfer accuracy of a fine-tuned network and of a linear classifier on its frozen features rank networks
alike for most data (Kornblith et al., 2019, arXiv:1805.08974, section 4), and the latter needs one
forward pass over the images.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mobilefit.data import ImageSet, Preset
from mobilefit.nn import Network
from mobilefit.train import logits_of

L2 = 1e-3
"""Of the weights on standardised features, beside the mean loss of an image."""
ITERATIONS = 60
"""Of L-BFGS, at most."""


def probe(
    network: Network, preset: Preset, train_set: ImageSet, held_out: ImageSet
) -> tuple[npt.NDArray[np.float32], float]:
    """Cross-entropy [n], nats, of each held-out image by a linear classifier on frozen features, and its top-1.

    The features are what the classifier's last layer is given, of images cropped as in evaluation.

    Args:
        network: a classifier with pretrained weights; not changed.
        preset: how an image becomes its input.
        train_set: images that the linear classifier is fitted to.
        held_out: images that it is judged on.
    """
    with _headless(network):
        features = torch.from_numpy(logits_of(network, train_set, preset))
        held_features = torch.from_numpy(logits_of(network, held_out, preset))
    mean, std = features.mean(0), features.std(0) + 1e-6
    labels = torch.from_numpy(held_out.labels)
    train_labels = torch.from_numpy(train_set.labels)
    classes = int(torch.cat([train_labels, labels]).max()) + 1  # one may have held-out images alone
    weights = _fitted((features - mean) / std, train_labels, classes)
    scores = _with_bias((held_features - mean) / std) @ weights
    losses: npt.NDArray[np.float32] = nn.functional.cross_entropy(scores, labels, reduction="none").numpy()
    return losses, float((scores.argmax(1) == labels).float().mean())


@contextmanager
def _headless(network: Network) -> Iterator[None]:
    """Without the layer that gives the logits inside the block."""
    logits = network.head.logits
    network.head.logits = nn.Identity()  # type: ignore[method-assign]
    try:
        yield
    finally:
        network.head.logits = logits  # type: ignore[method-assign]


def _with_bias(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones(len(features), 1)], 1)


def _fitted(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Weights [features + 1, classes] of multinomial logistic regression; the bias is not decayed."""
    inputs = _with_bias(features)
    weights = torch.zeros(inputs.shape[1], classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value: Tensor = nn.functional.cross_entropy(inputs @ weights, labels)
        value = value + L2 / 2 * weights[:-1].square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach()
