"""Batches for training and evaluation, prepared ahead of the network by one background thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from mobilefit.data import augment as augmentation
from mobilefit.data.augment import Augment, Draws
from mobilefit.data.images import ImageSet
from mobilefit.data.preset import Preset, planar

Batch = tuple[torch.Tensor, torch.Tensor]


def batch_count(count: int, batch_size: int, *, train: bool) -> int:
    """How many batches :func:`batches` makes of ``count`` images.

    In training the last batch is left out unless it is whole (batch norm wants batches of one
    size), except that a set smaller than a batch is one batch.
    """
    if train and count >= batch_size:
        return count // batch_size
    return -(-count // batch_size)


def batches(
    image_set: ImageSet,
    preset: Preset,
    batch_size: int,
    *,
    train: bool,
    seed: int = 0,
    epoch: int = 0,
    start: int = 0,
    augment: Augment | None = None,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """One pass over the images, as the network takes them.

    In training the order and the augmentation are drawn from (seed, epoch) alone: the same batch
    comes whenever it is asked for, whatever ``start`` was. In evaluation the order is that of the
    set, and every image equals what ``preset.apply`` makes of it.

    Args:
        batch_size: images in a batch; see :func:`batch_count` about the last one.
        train: shuffle, and augment if ``augment`` is given.
        start: the first batch to give; those before are skipped without touching an image.
        augment: ``None``: images are cropped as in evaluation.
        prefetch: batches prepared ahead in a background thread, which ends with the iterator;
            0: none and no thread.

    Yields:
        float32 [n, 3, resolution, resolution], contiguous, and int64 labels [n].
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(image_set)) if train else np.arange(len(image_set))
    draws = augmentation.draw(augment, len(image_set), random) if train and augment else None

    def prepare(number: int) -> Batch:
        positions = np.arange(number * batch_size, min((number + 1) * batch_size, len(image_set)))
        chosen = order[positions]
        if draws is None:
            values = planar(image_set.squares(chosen, preset.resolution, preset.crop_fraction))
        else:
            values = _augmented(image_set, chosen, positions, draws, preset.resolution)
        planes = torch.from_numpy(preset.normalise(values))
        return planes, torch.from_numpy(image_set.labels[chosen])

    numbers = range(start, batch_count(len(image_set), batch_size, train=train))
    return _in_background(prepare, numbers, prefetch) if prefetch else map(prepare, numbers)


def _augmented(
    image_set: ImageSet,
    chosen: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64],
    draws: Draws,
    resolution: int,
) -> npt.NDArray[np.float32]:
    first = int(positions[0])
    pixels = image_set.crops(
        chosen, resolution, lambda position, size: draws.box(first + position, size)
    )
    values = planar(augmentation.mirrored(pixels, draws.flip[positions]))
    if not draws.recolours:
        return values
    return augmentation.recoloured(values, draws.brightness[positions], draws.saturation[positions])


def _in_background(prepare: Callable[[int], Batch], numbers: range, ahead: int) -> Iterator[Batch]:
    pool = ThreadPoolExecutor(1, thread_name_prefix="mobilefit-batches")
    pending: deque[Future[Batch]] = deque()
    try:
        for number in numbers:
            pending.append(pool.submit(prepare, number))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # also when the caller stops early, or a batch could not be prepared
        pool.shutdown(wait=True, cancel_futures=True)
