"""Images in tar shards, read where they lie when they are used."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilefit.data.decode import BadImageError, decode
from mobilefit.data.images import Indices
from mobilefit.data.lazy import LazySource
from mobilefit.data.shard_cache import Ahead, Held, Shard, ShardCache
from mobilefit.data.shard_order import WINDOW
from mobilefit.data.shard_remote import shown
from mobilefit.errors import InputError

OPEN_SHARDS = WINDOW + 2
"""Shards that a process keeps open."""


class ShardReader:
    """Bytes out of shards. Processes and threads may share one, forked or sent.

    Args:
        shards: as they were when they were indexed.
        cache: where the remote ones go.
    """

    def __init__(self, shards: Sequence[Shard], cache: ShardCache) -> None:
        self.shards = tuple(shards)
        self._cache = cache
        self.remote = any(shard.remote for shard in shards)
        self._own: _Opened | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_own": None}

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of a shard, which is fetched first if it is not at hand.

        Raises:
            InputError: it cannot be fetched, or is not what it was.
        """
        held = self._opened.get(shard)
        if held is None:
            # Outside of any lock, so that threads fetch different shards at the same time.
            held = self._opened.keep(shard, self._cache.hold(self.shards[shard]))
        data = held.read(offset, size)
        if len(data) < size:
            name = shown(self.shards[shard].url)
            raise InputError(f"{name} is shorter than when it was indexed", "bring it back, whole")
        return data

    def ahead(self, shards: Sequence[int]) -> None:
        """Fetch these shards in the background, the first one first; returns at once."""
        self._opened.ahead(self._cache).want([self.shards[shard] for shard in shards])

    @property
    def _opened(self) -> _Opened:
        if self._own is None or self._own.process != os.getpid():
            self._own = _Opened()  # a forked process leaves its parent's files, locks, threads alone
        return self._own


class _Opened:
    """What one process has open."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._lock = threading.Lock()
        self._held: OrderedDict[int, Held] = OrderedDict()
        self._ahead: Ahead | None = None

    def get(self, shard: int) -> Held | None:
        with self._lock:
            if shard in self._held:
                self._held.move_to_end(shard)
            return self._held.get(shard)

    def keep(self, shard: int, held: Held) -> Held:
        """Keep a shard open, in place of that used longest ago, which closes when it is read out."""
        with self._lock:
            self._held[shard] = held
            while len(self._held) > OPEN_SHARDS:
                self._held.popitem(last=False)
        return held

    def ahead(self, cache: ShardCache) -> Ahead:
        with self._lock:
            self._ahead = self._ahead or Ahead(cache)
            return self._ahead


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Where n images lie, and their labels."""

    groups: Indices
    """[n], the number of the shard."""
    offsets: Indices
    """[n], in the shard, in bytes."""
    sizes: Indices
    """[n], in bytes."""
    labels: Indices
    rows: Indices
    """[n], which sample of its shard."""

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, chosen: Indices) -> Samples:
        """Those at these positions, in this order."""
        return Samples(
            groups=self.groups[chosen], offsets=self.offsets[chosen], sizes=self.sizes[chosen],
            labels=self.labels[chosen], rows=self.rows[chosen],
        )  # fmt: skip


class ShardSource(LazySource):
    """One part of the data: training, held-out or test images, in RGB.

    **Bad images.** Whether an image can be decoded is seen when it is used. One that cannot is
    replaced by the next good one of its class in its shard, else in the shards after it, the same
    one always and never one of another part; it is named on standard error once, whichever process
    meets it. More bad ones than 10 % of the part (three are always allowed) are an error.

    Args:
        reader: gives the shards' bytes.
        samples: the images of this part.
        keys: one array for each shard of the reader: UTF-8, the names of its samples.
    """

    mend = "mend the shards"

    def __init__(
        self, reader: ShardReader, samples: Samples, keys: Sequence[npt.NDArray[np.bytes_]]
    ) -> None:
        super().__init__(Names(reader.shards, samples, keys))
        self._reader, self._samples = reader, samples
        self.groups = samples.groups
        self.ahead_count = _two_shards(self.groups) if reader.remote else 0
        """How many images :meth:`ahead` should know of."""

    def ahead(self, indices: Indices) -> None:
        """Fetch the shards of images that are used next, in their order; returns at once."""
        groups = self.groups[indices]
        first = np.sort(np.unique(groups, return_index=True)[1])
        self._reader.ahead(groups[first].tolist())

    def decoded(self, index: int, at_least: int | None) -> Image.Image:
        """See :class:`mobilefit.data.lazy.LazySource`."""
        samples = self._samples
        place = int(samples.groups[index]), int(samples.offsets[index]), int(samples.sizes[index])
        try:
            return decode(self._reader.read(*place), at_least)[0]
        except BadImageError as error:
            raise BadImageError(f"{self.names[index]} is a bad image ({error})") from error

    def stand_ins(self, index: int) -> Iterator[int]:
        """Those of its class after it and before it in its shard, then all others of its class."""
        same_class = self._samples.labels == self._samples.labels[index]
        same_shard = self.groups == self.groups[index]
        for places in (same_class & same_shard, same_class & ~same_shard):
            found = np.flatnonzero(places)
            yield from np.roll(found, -int(np.searchsorted(found, index, "right"))).tolist()


def _two_shards(groups: Indices) -> int:
    """About the images of two shards."""
    return 2 * len(groups) // max(1, len(np.unique(groups)))


class Names(Sequence[str]):
    """``SHARD#KEY`` for each image, made when it is asked for."""

    def __init__(
        self, shards: Sequence[Shard], samples: Samples, keys: Sequence[npt.NDArray[np.bytes_]]
    ) -> None:
        self._shards, self._samples, self._keys = shards, samples, keys

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        shard = int(self._samples.groups[index])
        key = bytes(self._keys[shard][self._samples.rows[index]]).decode("utf-8", "replace")
        return f"{shown(self._shards[shard].url)}#{key}"
