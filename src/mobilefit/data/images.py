"""Sets of labelled images, held as decoded 8-bit pixels as far as there is room.

An :class:`ImageSet` is a view (indices and labels) on a source that holds the pixels, so that
splits and subsets share them. There are two sources here: one array for tiny images of one size, and
files on disk, decoded once and kept with their short side at most ``KEPT_SIDE`` pixels. Of data sets
too large for that, see ``lazy``.

Evaluation never sees the reduced copies: an image that was reduced is decoded from its file again,
and its final pixels are remembered (``REMEMBERED_BYTES`` at most), so that the batches of an
evaluation equal what ``Preset.apply`` makes of the file.

Sources may be used by forked worker processes: what a worker learns stays in it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import get_worker_info

from mobilefit.data.decode import (
    Box,
    Pixels,
    centre_box,
    decode,
    read_image,
    resample,
    shrink,
)
from mobilefit.data.splits import interleaved_by_class
from mobilefit.data.store import Kept
from mobilefit.runs import read_bytes, sha256

Indices = npt.NDArray[np.int64]

KEPT_SIDE = 256
"""Short side in pixels of the decoded photos kept for training: enough for 224 px networks."""

REMEMBERED_BYTES = 1 << 30
"""Memory for the evaluation pixels of photos larger than ``KEPT_SIDE``, in the process that loaded
them: worker processes, each of which would need as much again, remember none."""


class Source(Protocol):
    """Where the pixels of a set come from. Images are 8-bit L or RGB."""

    channels: int
    names: Sequence[str]
    threads: int
    """How many images are worth preparing at once."""

    def working(self, index: int) -> Image.Image:
        """The image as training sees it, possibly reduced."""

    def square(self, index: int, resolution: int, crop_fraction: float) -> Pixels:
        """The image as evaluation sees it: uint8 [resolution, resolution, channels]."""


class ArraySource:
    """Tiny grey images of one size in one array.

    Args:
        array: uint8 [n, height, width].
        names: one for each image.
    """

    channels = 1
    threads = 1

    def __init__(self, array: Pixels, names: Sequence[str]) -> None:
        self._array = array
        self.names: Sequence[str] = names

    def digest(self, index: int) -> str:
        """SHA-256 of an image's pixels."""
        return sha256(self._array[index].tobytes())

    def working(self, index: int) -> Image.Image:
        return Image.fromarray(self._array[index])

    def square(self, index: int, resolution: int, crop_fraction: float) -> Pixels:
        image = self.working(index)
        return resample(image, centre_box(image.size, crop_fraction), resolution)


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A file that was looked at and found good."""

    path: Path
    sha256: str
    kept: Kept | None
    """Uint8 [height, width, 3]; ``None``: there was no room."""
    exact: bool
    """The file is no larger than what is kept."""
    size: tuple[int, int]
    """Width and height in the file, in pixels."""


class FileSource:
    """Photos on disk.

    Args:
        photos: as :func:`look_at` returned them.
    """

    channels = 3

    def __init__(self, photos: Sequence[Photo]) -> None:
        self._photos = photos
        self._remembered: dict[tuple[int, int, float], Pixels] = {}
        self._remembered_bytes = 0
        self._process = os.getpid()
        self.names: Sequence[str] = [str(photo.path) for photo in photos]
        at_hand = all(photo.exact and photo.kept is not None for photo in photos)
        self.threads = 1 if at_hand else worker_count()

    def digest(self, index: int) -> str:
        """SHA-256 of an image's file."""
        return self._photos[index].sha256

    def working(self, index: int) -> Image.Image:
        photo = self._photos[index]
        if photo.kept is not None:
            return Image.fromarray(photo.kept.pixels())
        return shrink(read_image(photo.path, KEPT_SIDE), KEPT_SIDE)

    def square(self, index: int, resolution: int, crop_fraction: float) -> Pixels:
        key = (index, resolution, crop_fraction)
        if key in self._remembered:
            return self._remembered[key]
        photo = self._photos[index]
        known = photo.exact and photo.kept is not None
        image = self.working(index) if known else read_image(photo.path)
        pixels = resample(image, centre_box(image.size, crop_fraction), resolution)
        if not known:
            self._remember(key, pixels)
        return pixels

    def _remember(self, key: tuple[int, int, float], pixels: Pixels) -> None:
        fits = self._remembered_bytes + pixels.nbytes <= REMEMBERED_BYTES
        if fits and os.getpid() == self._process:
            self._remembered[key] = pixels
            self._remembered_bytes += pixels.nbytes


def look_at(path: Path) -> tuple[Photo, Pixels]:
    """Read and decode a file to the end.

    Returns:
        what is known of it, and its pixels, of which nothing is kept yet.

    Raises:
        BadImageError: it cannot be used; see :func:`mobilefit.data.decode.decode`.
        OSError: it cannot be read.
    """
    data = read_bytes(path)
    image, full_size = decode(data, KEPT_SIDE)
    small = shrink(image, KEPT_SIDE)
    photo = Photo(
        path=path,
        sha256=sha256(data),
        kept=None,
        exact=small.size in (full_size, full_size[::-1]),  # EXIF may have turned it
        size=full_size,
    )
    return photo, np.asarray(small)


class ImageSet:
    """Labelled images in a fixed order.

    Args:
        source: holds the pixels.
        labels: int64 [n], the class index of each image.
        indices: int64 [n], where each image is in the source; default: all, in order.
    """

    def __init__(self, source: Source, labels: Indices, indices: Indices | None = None) -> None:
        self._source = source
        self._indices = np.arange(len(labels)) if indices is None else indices
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for colour: the channels of the pixels that the set holds."""
        return self._source.channels

    @property
    def groups(self) -> Indices | None:
        """int64 [n], which images lie together and are read in a row (shards); ``None``: none do."""
        groups: Indices | None = getattr(self._source, "groups", None)
        return None if groups is None else groups[self._indices]

    @property
    def ahead_count(self) -> int:
        """How many of the next images :meth:`ahead` should know of; 0: none have to be fetched."""
        return getattr(self._source, "ahead_count", 0)

    def ahead(self, indices: Indices) -> None:
        """Say which images are used next: what lies at a distance is fetched in the background."""
        fetch: Callable[[Indices], None] = getattr(self._source, "ahead", lambda _: None)
        fetch(self._indices[indices])

    @property
    def names(self) -> tuple[str, ...]:
        """One name for each image: its path, or its place in the data set."""
        return tuple(self._source.names[index] for index in self._indices)

    @property
    def digest(self) -> str:
        """16 hex digits of the images' content, labels and order.

        Of images that are read when they are used (``lazy``, shards), the names stand for the content.
        """
        content: Callable[[int], str] = getattr(self._source, "digest", lambda index: self._source.names[index])
        digest = hashlib.sha256(self.labels.tobytes())
        for index in self._indices:
            digest.update(f"{content(int(index))}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    @property
    def replaced(self) -> tuple[str, ...]:
        """Names of the images that turned out bad while in use, for which others of their class stand.

        Only large data sets have such: the others were looked at when they were loaded.
        """
        bad: Indices = getattr(self._source, "replaced", np.empty(0, np.int64))
        return tuple(self._source.names[index] for index in np.intersect1d(bad, self._indices))

    def subset(self, indices: Sequence[int] | Indices) -> ImageSet:
        """The images at these positions, in this order; the pixels are shared."""
        chosen = np.asarray(indices, dtype=np.int64)
        return ImageSet(self._source, self.labels[chosen], self._indices[chosen])

    def balanced(self, per_class: int, seed: int = 0) -> ImageSet:
        """A subset with the same number of images of each class, chosen by ``seed``.

        ``per_class``, or as many as the smallest class has. The classes alternate, so that every
        beginning of the subset is balanced too.
        """
        return self.subset(interleaved_by_class(self.labels, per_class, seed))

    def images(self, indices: Sequence[int] | Indices, size: int) -> torch.Tensor:
        """The central squares of these images for showing: uint8 [n, 3, size, size]."""
        pixels = self.squares(indices, size, 1.0)
        rgb = np.broadcast_to(pixels, (*pixels.shape[:3], 3))
        return torch.from_numpy(rgb.transpose(0, 3, 1, 2).copy())

    def squares(
        self, indices: Sequence[int] | Indices, resolution: int, crop_fraction: float
    ) -> Pixels:
        """What evaluation sees of these images: uint8 [n, resolution, resolution, channels]."""

        def one(index: int) -> Pixels:
            return self._source.square(index, resolution, crop_fraction)

        shape = (len(indices), resolution, resolution, self.channels)
        return _stacked(self._map(one, indices), shape)

    def crops(
        self,
        indices: Sequence[int] | Indices,
        resolution: int,
        box: Callable[[int, tuple[int, int]], Box],
    ) -> Pixels:
        """Parts of these images, brought to uint8 [n, resolution, resolution, channels].

        Args:
            box: from the position in ``indices`` and the image's width and height to the part.
        """
        order = np.asarray(indices)

        def one(position: int) -> Pixels:
            image = self._source.working(int(self._indices[order[position]]))
            return resample(image, box(position, image.size), resolution)

        shape = (len(order), resolution, resolution, self.channels)
        return _stacked(_map_in_threads(one, range(len(order)), self._threads), shape)

    def _map(self, function: Callable[[int], Pixels], indices: Iterable[int]) -> Iterable[Pixels]:
        found = [int(self._indices[index]) for index in indices]
        return _map_in_threads(function, found, self._threads)

    @property
    def _threads(self) -> int:
        return 1 if get_worker_info() else self._source.threads  # workers are many already


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def _map_in_threads(
    function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int
) -> Iterable[_Result]:
    if threads == 1:
        return map(function, items)
    with ThreadPoolExecutor(threads) as pool:  # Pillow works outside the GIL
        return list(pool.map(function, items))


def _stacked(pixels: Iterable[Pixels], shape: tuple[int, ...]) -> Pixels:
    batch = np.empty(shape, np.uint8)
    for place, image in zip(batch, pixels, strict=True):
        place[...] = image
    return batch


def worker_count() -> int:
    """Threads for decoding: one for each processor that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
