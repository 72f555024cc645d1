"""An order of training for images in shards: near to a shuffle, and near to reading one after another."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

WINDOW = 8
"""Shards that a process reads at a time."""


def sharded_order(
    groups: Indices,
    random: np.random.Generator,
    *,
    batch_size: int,
    ranks: int = 1,
    window: int = WINDOW,
) -> Indices:
    """An order of training that reads few shards at a time, for any number of processes.

    The shards are shuffled and dealt to the ranks, each a run of as many images as it reads (a shard
    on the border is divided). A rank reads ``window`` shards of its run at any time: an image comes at
    a random moment of the time in which its shard is open, and shards open one by one, each when
    another is read out. So the next shard can be fetched while others are read, and an epoch fetches
    each shard once.

    How good a shuffle that is: with ``window`` shards a rank or fewer it is a plain random
    permutation. With more, each batch is drawn from ``ranks * window`` shards, others in every epoch.
    If the shards were written in random order, as they should be, every shard is a random sample of
    the data and so is every batch; what remains of the order on disk is that two images of one shard
    are never further apart than what ``window`` shards hold. If each shard holds one class, a batch
    sees ``ranks * window`` classes alone: write such data anew.

    Args:
        groups: int64 [n], the shard of each image, any numbers.
        random: from the seed and the epoch alone; then so is the order, and a run can be resumed
            at any batch.
        batch_size: images of a batch over all ranks.
        window: shards that a rank reads at a time.

    Returns:
        int64 [n], each position once. Batch b is ``order[b * batch_size :][:batch_size]``, and part r
        of its ``np.array_split`` by ``ranks`` is rank r's.
    """
    shard = np.unique(groups, return_inverse=True)[1]
    place = random.permutation(len(np.unique(groups)))[shard]  # of each image's shard
    shuffled = random.permutation(len(groups))
    dealt = shuffled[np.argsort(place[shuffled], kind="stable")]
    reader = _readers(len(groups), batch_size, ranks)
    ends = np.cumsum(np.bincount(reader, minlength=ranks))
    order = np.empty_like(dealt)
    for rank, run in enumerate(np.split(dealt, ends[:-1])):
        order[reader == rank] = run[_windowed(place[run], random, window)]
    return order


def _readers(count: int, batch_size: int, ranks: int) -> Indices:
    """The rank that reads each position of an order."""

    def of_batch(size: int) -> Indices:
        parts = np.array_split(np.arange(size), ranks)
        return np.repeat(np.arange(ranks), [len(part) for part in parts])

    whole, rest = divmod(count, batch_size)
    return np.concatenate([np.tile(of_batch(batch_size), whole), of_batch(rest)])


def _windowed(places: Indices, random: np.random.Generator, window: int) -> Indices:
    """An order of one run's images.

    Each image gets a moment. Shard k is open from k - window + 1 to k + 1, cut at both ends of the
    run, so that exactly ``window`` shards are open at any moment.
    """
    if not len(places):
        return places
    shard = np.unique(places, return_inverse=True)[1]
    count = int(shard.max()) + 1
    opens = np.maximum(shard - min(window, count) + 1, 0)
    closes = np.minimum(shard + 1, count - min(window, count) + 1)
    return np.argsort(random.uniform(opens, closes), kind="stable")
