"""Which of many images show the same picture, or nearly the same one.

**Nearly the same** is found in three steps. A difference hash (of the kind of Neal Krawetz's dHash,
here with a margin, since neighbouring cells of a plain background differ by noise) of 64 bits is made
of a grey thumbnail; pictures with at most ``NEAR_BITS`` different bits have one of ``NEAR_BITS + 1``
bands of bits in common, so that only such are compared; what is left is compared by grey thumbnails,
and then decoded in full and compared by coloured ones. Of 853 photos of clothes, all copies at
quality 50, at half the size, and without a pixel on each side are found, 98.6 % of those that lack a
hundredth of their width, and nothing else; two different garments that are near in grey (3.3 levels)
are 17 levels apart in colour, and the next nearest 6.2 in grey. Mirrored or rotated copies are not found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilefit.data.decode import Pixels, read_image
from mobilefit.data.images import Indices

Digests = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]

THUMBNAIL = (18, 16)
"""Width and height in pixels: 9 by 8 cells of four, for 8 differences in each of 8 rows."""
DECODED_SIDE = 64
"""Least short side in pixels that a JPEG is decoded at for its thumbnail; at 16, the same picture from
a JPEG and from a PNG may be 15 levels apart."""
MARGIN = 2
"""Levels by which a cell must be brighter than its neighbour."""
NEAR_BITS = 5
NEAR_LEVELS = 4.0
"""Most mean absolute difference of two thumbnails, of 255 levels."""
NEAR_PART = 0.1
"""The same as a part of the thumbnail's standard deviation: in flat pictures a few levels are much."""
CHUNK = 512
"""Pairs, or thumbnails, in hand at once."""


def digest_of(data: bytes) -> bytes:
    """64 bits that tell contents apart."""
    return hashlib.blake2b(data, digest_size=8).digest()


def thumbnail_of(image: Image.Image) -> Pixels:
    """uint8 [16, 18], or [16, 18, 3] of a coloured image."""
    return np.asarray(image.resize(THUMBNAIL, Image.Resampling.BILINEAR))


class Sets:
    """Things that belong together: disjoint sets, at first of those with the same digest."""

    def __init__(self, digests: npt.NDArray[Any]) -> None:
        _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
        self._above = first[inverse]

    def find(self, one: int) -> int:
        """The one that stands for the set."""
        while (above := int(self._above[one])) != one:
            self._above[one] = self._above[above]
            one = above
        return one

    def join(self, one: int, other: int) -> None:
        """Make two sets one."""
        self._above[self.find(one)] = self.find(other)

    def ids(self) -> Indices:
        """For each thing the one that stands for its set, int64 [n]."""
        while (self._above != self._above[self._above]).any():
            self._above = self._above[self._above]
        return self._above.astype(np.int64)


class _Full(NamedTuple):
    """Of an image decoded in full."""

    digest: bytes
    thumbnail: npt.NDArray[np.int16]
    """[16, 18, 3]"""


def joined_near(pixels: Sets, thumbnails: Pixels, path_of: Callable[[int], str]) -> Sets:
    """Sets of images that are nearly the same; those with the same pixels after all are joined in ``pixels``."""
    near = Sets(pixels.ids())
    first = np.unique(pixels.ids())
    seen: dict[int, _Full] = {}

    def full(one: int) -> _Full:
        if one not in seen:
            image = read_image(Path(path_of(one)))
            digest = digest_of(str(image.size).encode() + image.tobytes())
            seen[one] = _Full(digest, thumbnail_of(image).astype(np.int16))
        return seen[one]

    for ones, others in near_pairs(thumbnails[first]):
        for one, other in zip(first[ones].tolist(), first[others].tolist()):
            if near.find(one) != near.find(other) and _alike(full(one), full(other)):
                near.join(one, other)
    known: dict[bytes, int] = {}
    for one, image in seen.items():
        pixels.join(one, known.setdefault(image.digest, one))
    return near


def _alike(one: _Full, other: _Full) -> bool:
    difference = float(np.abs(one.thumbnail - other.thumbnail).mean())
    least_contrast = min(float(image.thumbnail.std()) for image in (one, other))
    return one.digest == other.digest or difference <= min(NEAR_LEVELS, NEAR_PART * least_contrast)


def near_pairs(thumbnails: Pixels) -> Iterator[tuple[Indices, Indices]]:
    """Pairs of grey thumbnails that are nearly the same; some come more than once.

    Args:
        thumbnails: uint8 [n, 16, 18].

    Yields:
        the positions of the ones and of the others.
    """
    hashes, mean, most = _summaries(thumbnails)
    for bits in np.array_split(np.arange(64, dtype=np.uint64), NEAR_BITS + 1):
        band = hashes & np.bitwise_or.reduce(np.uint64(1) << bits)
        for ones, others in _neighbours(band, mean):
            few = np.bitwise_count(hashes[ones] ^ hashes[others]) <= NEAR_BITS
            ones, others = ones[few], others[few]
            for begin in range(0, len(ones), CHUNK):
                a, b = ones[begin : begin + CHUNK], others[begin : begin + CHUNK]
                difference = np.abs(thumbnails[a].astype(np.int16) - thumbnails[b]).mean((1, 2))
                close = difference <= np.minimum(most[a], most[b])
                yield a[close], b[close]


def _summaries(thumbnails: Pixels) -> tuple[Digests, Floats, Floats]:
    """Difference hash, mean, and most difference from a thumbnail that is nearly the same, each [n]."""
    count = len(thumbnails)
    hashes, mean, most = np.empty(count, np.uint64), np.empty(count, np.float32), np.empty(count, np.float32)
    for begin in range(0, count, CHUNK):
        part = slice(begin, begin + CHUNK)
        some = thumbnails[part]
        sums = some.reshape(-1, 8, 2, 9, 2).sum((2, 4), dtype=np.int32)  # of four pixels
        brighter = np.diff(sums, axis=2) > 4 * MARGIN
        hashes[part] = np.packbits(brighter.reshape(-1, 64), axis=1).view(np.uint64)[:, 0]
        mean[part] = some.mean((1, 2))
        most[part] = np.minimum(NEAR_LEVELS, NEAR_PART * some.std((1, 2)))
    return hashes, mean, most


def _neighbours(band: Digests, mean: Floats) -> Iterator[tuple[Indices, Indices]]:
    """Pairs with the same bits in a band and means that let them be nearly the same.

    Sorted by both, they lie near each other: each is paired with the next one, then with the next
    but one, and so on as long as that still is such a pair.
    """
    order = np.lexsort((mean, band))
    band, mean = band[order], mean[order]
    first, step = np.arange(len(order)), 1
    while len(first):
        first = first[first + step < len(order)]
        second = first + step
        fits = (band[first] == band[second]) & (mean[second] - mean[first] <= NEAR_LEVELS)
        first, second = first[fits], second[fits]
        yield order[first], order[second]
        step += 1
