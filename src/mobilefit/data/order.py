"""Which image comes when in a pass over a training set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mobilefit.data.images import ImageSet
from mobilefit.data.shard_order import sharded_order
from mobilefit.errors import InputError

Indices = npt.NDArray[np.int64]


def batch_count(count: int, batch_size: int, *, train: bool) -> int:
    """How many batches a pass over ``count`` images has.

    In training the last batch is left out unless it is whole (batch norm wants batches of one
    size), except that a set smaller than a batch is one batch.
    """
    if train and count >= batch_size:
        return count // batch_size
    return -(-count // batch_size)


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Which places of which pass each step of a training takes."""

    count: int
    """Images in a pass."""
    batch_size: int
    """Images of a step in all processes."""
    rank: int = 0
    """Which part of each batch is taken, of ``ranks``."""
    ranks: int = 1

    @property
    def per_epoch(self) -> int:
        """Steps in a pass."""
        return batch_count(self.count, self.batch_size, train=True)

    def places(self, step: int) -> tuple[int, Indices]:
        """The pass that a step belongs to, and this process's places in it."""
        epoch, number = divmod(step, self.per_epoch)
        whole = np.arange(number * self.batch_size, min((number + 1) * self.batch_size, self.count))
        return epoch, np.array_split(whole, self.ranks)[self.rank]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a pass draws its images; it always has as many as the set."""

    repeats: int = 1
    """Repeated augmentation (Hoffer et al., 2019, arXiv:1901.09335; as torchvision's ``RASampler``
    has it): that many differently augmented copies of each image in a row, and so fewer images."""
    balanced: bool = False
    """Draw with replacement, every class as often as every other."""


def epoch_order(
    image_set: ImageSet, sampling: Sampling, random: np.random.Generator, *, ranks: int, batch_size: int
) -> Indices:
    """Positions in the set in the order of one pass, int64 [n].

    Args:
        random: of this pass.
        ranks: processes that share each batch; matters to sets in shards alone, whose passes let
            each process read its own shards.

    Raises:
        InputError: balanced drawing from shards, which are read in a row.
    """
    count = len(image_set)
    if image_set.groups is not None:
        if sampling.balanced:
            raise InputError(
                "images in shards are read in a row and cannot be drawn by class",
                "use --balance loss instead",
            )
        distinct = max(1, batch_size // sampling.repeats)
        order: Indices = sharded_order(image_set.groups, random, ranks=ranks, batch_size=distinct)
    elif sampling.balanced:
        weights = class_weights(image_set.labels)[image_set.labels]
        order = random.choice(count, count, p=weights / count)
    else:
        order = random.permutation(count)
    if sampling.repeats == 1:
        return order
    return np.repeat(order[: -(-count // sampling.repeats)], sampling.repeats)[:count]


def class_weights(labels: Indices, classes: int = 0) -> npt.NDArray[np.float64]:
    """Each class's weight, float64 [K]: the same in all for each that occurs, 1 on average over the images.

    Args:
        labels: int64 [n].
        classes: at least so many weights; that of a class without images is 1.
    """
    counts = np.bincount(labels, minlength=classes)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return np.where(counts > 0, weights, 1.0)
