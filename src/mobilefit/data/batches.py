"""Batches for training and evaluation, prepared ahead of the network."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from mobilefit.data import augment as augmentation
from mobilefit.data.augment import Augment, Draws
from mobilefit.data.images import ImageSet
from mobilefit.data.order import Indices, Sampling, Steps, batch_count, epoch_order
from mobilefit.data.policy import policy
from mobilefit.data.preset import Preset, to_floats
from mobilefit.errors import MobilefitError

Batch = tuple[torch.Tensor, torch.Tensor]


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
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[Batch]:
    """One pass over the images, as the network takes them.

    In training the batches are those of :class:`Feed`. In evaluation the order is that of the set,
    and every image equals what ``preset.apply`` makes of it.

    Args:
        batch_size: images in a batch; see :func:`batch_count` about the last one.
        train: shuffle, and augment if ``augment`` is given.
        start: the first batch to give; those before are skipped without touching an image.
        augment: ``None``: images are cropped as in evaluation.
        prefetch: batches prepared ahead in a background thread, which ends with the iterator;
            0: none and no thread.
        rank, ranks: in evaluation, every ``ranks``-th batch from ``rank`` on: whole batches, so that
            several processes compute exactly what one does.

    Yields:
        float32 [n, 3, resolution, resolution], channels last in memory, and int64 labels [n].
    """
    count = batch_count(len(image_set), batch_size, train=train)
    if train:
        feed = Feed(image_set, preset, batch_size, seed=seed, augment=augment)
        first = epoch * count
        return ahead(feed, range(first + start, first + count), prefetch)

    def plain(number: int) -> Batch:
        last = min((number + 1) * batch_size, len(image_set))
        return _plain_batch(image_set, preset, np.arange(number * batch_size, last))

    return ahead(plain, range(start + rank, count, ranks), prefetch)


def _plain_batch(image_set: ImageSet, preset: Preset, chosen: Indices) -> Batch:
    values = to_floats(image_set.squares(chosen, preset.resolution, preset.crop_fraction))
    return torch.from_numpy(preset.normalise(values)), torch.from_numpy(image_set.labels[chosen])


class Feed:
    """Every batch of a training, by the number of its step.

    The order and the augmentation are drawn from (seed, epoch) alone: a step's batch is the same
    whenever, and by whichever process, it is asked for.

    Args:
        batch_size: images of a step in all processes.
        seed: of the order and the augmentation.
        augment: ``None``: images are cropped as in evaluation.
        sampling: how a pass draws its images.
        rank, ranks: which part of each batch is given, and of how many.
    """

    def __init__(
        self, image_set: ImageSet, preset: Preset, batch_size: int, *, seed: int = 0,
        augment: Augment | None = None, sampling: Sampling | None = None, rank: int = 0, ranks: int = 1,
    ) -> None:  # fmt: skip
        self._set, self._preset = image_set, preset
        self._steps = Steps(count=len(image_set), batch_size=batch_size, rank=rank, ranks=ranks)
        self._seed, self._augment = seed, augment
        self._sampling = sampling or Sampling()
        self._policy = None if augment is None else policy(augment.policy)
        self._drawn: tuple[int, Indices, Draws | None] | None = None

    def chosen(self, step: int) -> Indices:
        """Which images of the set a step's batch holds, int64 [n]."""
        epoch, places = self._steps.places(step)
        return self._epoch(epoch)[0][places]

    def _look_ahead(self, step: int) -> None:
        """Let images at a distance be fetched before their step comes."""
        a_pass = self._steps.per_epoch
        steps = -(-self._set.ahead_count * self._steps.ranks // self._steps.batch_size)
        end = min(step + 1 + steps, (step // a_pass + 1) * a_pass)
        if coming := [self.chosen(number) for number in range(step + 1, end)]:
            self._set.ahead(np.concatenate(coming))

    def __call__(self, step: int) -> Batch:
        """Float32 [n, 3, resolution, resolution], channels last in memory, and int64 labels [n]."""
        self._look_ahead(step)
        epoch, places = self._steps.places(step)
        order, draws = self._epoch(epoch)
        chosen = order[places]
        if draws is None:
            return _plain_batch(self._set, self._preset, chosen)
        values = self._augmented(chosen, int(places[0]), draws, epoch)
        return torch.from_numpy(values), torch.from_numpy(self._set.labels[chosen])

    def _epoch(self, epoch: int) -> tuple[Indices, Draws | None]:
        """The order of a pass and its random numbers, kept until another pass is asked for."""
        if self._drawn is None or self._drawn[0] != epoch:
            random = np.random.default_rng([self._seed, epoch])
            order = epoch_order(
                self._set, self._sampling, random, ranks=self._steps.ranks,
                batch_size=self._steps.batch_size,
            )  # fmt: skip
            draws = augmentation.draw(self._augment, len(order), random) if self._augment else None
            self._drawn = epoch, order, draws
        return self._drawn[1:]

    def _augmented(self, chosen: Indices, first: int, draws: Draws, epoch: int) -> npt.NDArray[np.float32]:
        part = slice(first, first + len(chosen))
        pixels = self._set.crops(
            chosen, self._preset.resolution, lambda position, size: draws.box(first + position, size)
        )
        pixels = augmentation.mirrored(pixels, draws.flip[part])
        if self._policy is not None:
            for place, image in enumerate(pixels):
                # A last number of 0 would give the stream that the order is drawn from.
                random = np.random.default_rng([self._seed, epoch, 1 + first + place])
                image[...] = self._policy.apply(image, random)
        values = to_floats(pixels)
        if draws.recolours:
            values = augmentation.recoloured(values, draws.brightness[part], draws.saturation[part])
        values = self._preset.normalise(values)
        if draws.erased is not None:
            draws.erased.apply(values, first)
        return values


def ahead(prepare: Callable[[int], Batch], numbers: Sequence[int], count: int) -> Iterator[Batch]:
    """Batches in order, ``count`` of them prepared ahead in a background thread; 0: none and no thread."""
    return _in_background(prepare, numbers, count) if count else map(prepare, numbers)


def _in_background(
    prepare: Callable[[int], Batch], numbers: Sequence[int], count: int
) -> Iterator[Batch]:
    pool = ThreadPoolExecutor(1, thread_name_prefix="mobilefit-batches")
    pending: deque[Future[Batch]] = deque()
    try:
        for number in numbers:
            pending.append(pool.submit(prepare, number))
            if len(pending) > count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # also when the caller stops early, or a batch could not be prepared
        pool.shutdown(wait=True, cancel_futures=True)


def by_workers(
    prepare: Callable[[int], Batch], numbers: Sequence[int], workers: int, *, pin: bool = False,
    start_method: str | None = None,
) -> Iterator[Batch]:  # fmt: skip
    """Batches in order, prepared by that many processes (torch's ``DataLoader``), of the types that ``prepare`` gives.

    Args:
        prepare: can be pickled, unless workers are forked.
        workers: 0: by a thread of this process, which is as good on few cores.
        pin: into memory from which a GPU copies by itself.
        start_method: of the processes: ``fork``, ``spawn``, ``forkserver``. ``None``: forked on Linux, where they
            share the decoded pixels; spawned elsewhere, where each gets a copy.
    """
    if not workers:
        return ahead(prepare, numbers, 2)
    loader = DataLoader(
        _Prepared(prepare), batch_size=None, sampler=numbers, num_workers=workers, pin_memory=pin,
        prefetch_factor=2, collate_fn=_as_prepared,
        multiprocessing_context=start_method or ("fork" if sys.platform == "linux" else "spawn"),
    )  # fmt: skip
    return map(_raise_error, loader)


class _Prepared(Dataset["Batch | MobilefitError"]):
    """Batches by number, as torch wants to ask for them."""

    def __init__(self, prepare: Callable[[int], Batch]) -> None:
        self._prepare = prepare

    def __getitem__(self, number: int) -> Batch | MobilefitError:
        try:
            return self._prepare(number)
        except MobilefitError as error:
            return error  # raised here, its message would become the worker's traceback


def _as_prepared(batch: Any) -> Any:
    """Without this, ``DataLoader`` turns every tuple in a batch into a list."""
    return batch


def _raise_error(batch: Batch | MobilefitError) -> Batch:
    if isinstance(batch, MobilefitError):
        raise batch
    return batch
