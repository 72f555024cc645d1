"""What is wrong with a folder of images: broken files, the same picture twice, classes that differ.

Every file is decoded to its end, also of folders that :func:`mobilefit.data.load` would refuse. Two
files show the same picture if they have the same bytes, the same pixels (another format, other
metadata), or nearly the same ones: compressed anew, resized, cropped by a per cent.

**Nearly the same** is found in three steps. A difference hash (of the kind of Neal Krawetz's dHash,
here with a margin, since neighbouring cells of a plain background differ by noise) of 64 bits is made
of a grey thumbnail; pictures with at most ``NEAR_BITS`` different bits have one of ``NEAR_BITS + 1``
bands of bits in common, so that only such are compared; what is left is compared by grey thumbnails,
and then decoded in full and compared by coloured ones. Of 853 photos of clothes, all copies at
quality 50, at half the size, and without a pixel on each side are found, 98.6 % of those that lack a
hundredth of their width, and nothing else; two different garments that are near in grey (3.3 levels)
are 17 levels apart in colour, and the next nearest 6.2 in grey. Mirrored or rotated copies are not found.

A million images take half a gigabyte: two digests and a thumbnail each.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilefit.data import folder as folders
from mobilefit.data.classification import SkippedFile
from mobilefit.data.decode import BadImageError, Pixels, decode, read_image
from mobilefit.data.folder import Listing
from mobilefit.data.images import Indices, worker_count
from mobilefit.errors import InputError
from mobilefit.progress import Progress

Same = Literal["same bytes", "same pixels", "nearly the same"]
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

TINY_CLASS = 10
"""A class with fewer images in a part is told."""
IMBALANCE = 5.0
"""A largest class that many times the smallest is told."""
SEED = 0
"""By which a folder without a test part is divided: that of the verbs, unless told otherwise."""
HOLDOUT = 0.1
"""Held out of each class unless there is a part for it, as ``load`` does."""
CHUNK = 512
"""Files, or pairs, in hand at once."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Files that show the same picture."""

    same: Same
    files: tuple[str, ...]
    """Below the data set's folder."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found, by part: "train", "val" (held out) and "test" as far as there are such."""

    root: str
    refused: tuple[str, ...]
    """Why the folder cannot be loaded; empty: it can."""
    sizes: dict[str, int]
    """Images for training, held out and for the test, as loading divides them; empty: it cannot."""
    divided: bool
    """There is no folder for the test: "test" is what loading sets apart by seed ``SEED``."""
    counts: dict[str, dict[str, int]]
    """Good images by part and class folder."""
    short_side: int
    """Median, in pixels; 0: no good image."""
    broken: dict[str, tuple[SkippedFile, ...]]
    leaks: tuple[Group, ...]
    """Pictures that are in more than one part; how they are the same across parts."""
    conflicts: tuple[Group, ...]
    """Pictures that are in more than one class; how they are the same across classes."""
    duplicates: dict[str, tuple[Group, ...]]
    """Pictures that are in one part more than once; how all their files are the same."""
    lacking: dict[str, tuple[str, ...]]
    """Classes that another part has."""
    small: dict[str, tuple[str, ...]]
    """Images with a side under the resolution."""
    resolution: int

    @property
    def images(self) -> int:
        """Good images in all parts."""
        return sum(sum(classes.values()) for classes in self.counts.values())

    @property
    def tiny(self) -> dict[str, dict[str, int]]:
        """Classes with fewer images than ``TINY_CLASS``, but for none, by part."""
        return {
            part: {name: count for name, count in classes.items() if 0 < count < TINY_CLASS}
            for part, classes in self.counts.items()
        }

    @property
    def imbalance(self) -> dict[str, float]:
        """How many times the smallest class the largest is, by part; classes without images aside."""
        found = {part: list(filter(None, classes.values())) for part, classes in self.counts.items()}
        return {part: max(counts) / min(counts) for part, counts in found.items() if counts}

    @property
    def falsified(self) -> tuple[str, ...]:
        """What would make a result wrong, or impossible: empty if nothing would."""
        said = [f"pictures in more than one part: {len(self.leaks)}"] * bool(self.leaks)
        said += [f"pictures in more than one class: {len(self.conflicts)}"] * bool(self.conflicts)
        return (*said, *self.refused)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = {name: getattr(self, name) for name in ("images", "tiny", "imbalance", "falsified")}
        return {**asdict(self), **found}


def inspect_folder(root: Path, *, resolution: int, progress: str | None = None) -> Inspection:
    """Look at every image of a folder of class folders; see the module's text.

    Args:
        resolution: of the network, in pixels.
        progress: label of the progress shown on standard error; ``None``: silent.

    Raises:
        InputError: it is no folder, cannot be read, or its parts cannot be told apart.
    """
    listing = folders.listed(root, folders.find_parts(root))
    looks = _looked_at(listing, progress)
    good = np.flatnonzero(looks.sides)
    refused = _refusals(listing, good, looks)
    divided = _Division(parts=tuple(listing.parts), part=listing.part, sizes={})
    if not refused:
        divided = _divided(listing, good)
    part = divided.part[good]
    pictures = _Pictures(listing, good, looks, part)
    return Inspection(
        root=str(root),
        refused=refused,
        sizes=divided.sizes,
        divided=len(divided.parts) > len(listing.parts),
        counts={
            name: _class_counts(listing, good[part == number])
            for number, name in enumerate(divided.parts)
        },
        short_side=int(np.median(looks.sides[good])) if len(good) else 0,
        broken={
            name: tuple(_skipped(listing, looks, place) for place in places)
            for name, places in divided.by_part(np.flatnonzero(looks.sides == 0))
        },
        leaks=pictures.across(part),
        conflicts=pictures.across(listing.labels[good]),
        duplicates={name: pictures.within(number) for number, name in enumerate(divided.parts)},
        lacking=_lacking(listing),
        small={
            name: tuple(_below(listing, place) for place in places)
            for name, places in divided.by_part(good[looks.sides[good] < resolution])
        },
        resolution=resolution,
    )


def _refusals(listing: Listing, good: Indices, looks: _Looks) -> tuple[str, ...]:
    """Why the folder cannot be loaded, in loading's own words."""
    bad = [_skipped(listing, looks, place) for place in looks.bad]
    said = [
        *_refusal(lambda: folders.check_classes(listing.parts)),
        *_refusal(lambda: folders.check_found(listing)),
        *_refusal(lambda: folders.check_bad(bad, len(listing), listing.root)),
    ]
    if not said:
        usable = _usable(listing, good)
        said = _refusal(lambda: folders.check_enough(listing, usable, bad, HOLDOUT))
    return tuple(said)


def _refusal(check: Callable[[], None]) -> list[str]:
    try:
        check()
    except InputError as error:
        return [str(error)]
    return []


def _usable(listing: Listing, good: Indices) -> Indices:
    """What loading divides: of a large data set it does not know what is good."""
    return good if len(listing) <= folders.LOOKED_AT else folders.not_empty(listing)[0]


@dataclass(frozen=True, kw_only=True)
class _Division:
    parts: tuple[str, ...]
    part: npt.NDArray[np.int8]
    """[n], an index into ``parts``."""
    sizes: dict[str, int]

    def by_part(self, places: Indices) -> Iterator[tuple[str, list[int]]]:
        for number, name in enumerate(self.parts):
            yield name, places[self.part[places] == number].tolist()


def _divided(listing: Listing, good: Indices) -> _Division:
    """The parts on the disk, and "test" apart from "train" where loading sets it apart."""
    usable, parts, part = _usable(listing, good), tuple(listing.parts), listing.part
    division = folders.divided(listing, usable, seed=SEED, holdout=HOLDOUT)
    if "test" not in parts:
        parts, part = (*parts, "test"), part.copy()
        part[usable[division[2]]] = len(parts) - 1
    sizes = {name: len(places) for name, places in zip(("train", "holdout", "test"), division, strict=True)}
    return _Division(parts=parts, part=part, sizes=sizes)


def _class_counts(listing: Listing, chosen: Indices) -> dict[str, int]:
    counts = np.bincount(listing.labels[chosen], minlength=len(listing.classes))
    return dict(zip(listing.classes, counts.tolist(), strict=True))


def _lacking(listing: Listing) -> dict[str, tuple[str, ...]]:
    """Classes without a folder, by part on the disk."""
    return {
        name: tuple(one for one in listing.classes if not (folder / one).is_dir())
        for name, folder in listing.parts.items()
        if not folders.is_flat(folder)
    }


def _skipped(listing: Listing, looks: _Looks, place: int) -> SkippedFile:
    return SkippedFile(path=_below(listing, place), why=looks.bad[place])


def _below(listing: Listing, place: int) -> str:
    return os.path.relpath(listing.paths[place], listing.root)


# ---- looking at the files


class _Looks(NamedTuple):
    """What is kept of the files."""

    bad: dict[int, str]
    """Why, by place."""
    sides: npt.NDArray[np.int32]
    """[n], the short side in pixels; 0: a bad file."""
    content: Digests
    """[n], of the bytes. Of a million files two have the same 64 bits by chance once in 30 million."""
    pixels: Digests
    """[n], of the pixels as they were decoded."""
    thumbnails: Pixels
    """[n, 16, 18]"""


class _Look(NamedTuple):
    side: int
    content: bytes
    pixels: bytes
    thumbnail: Pixels


def _looked_at(listing: Listing, progress: str | None) -> _Looks:
    count, bad = len(listing), {}
    sides, thumbnails = np.zeros(count, np.int32), np.zeros((count, *THUMBNAIL[::-1]), np.uint8)
    digests = np.zeros((2, count), np.uint64)
    with ThreadPoolExecutor(worker_count()) as pool, Progress(count, progress) as bar:
        for begin in range(0, count, CHUNK):
            paths = listing.paths[begin : begin + CHUNK]
            for place, found in enumerate(pool.map(_look_at, paths), begin):
                if isinstance(found, str):
                    bad[place] = found
                    continue
                sides[place], thumbnails[place] = found.side, found.thumbnail
                digests[:, place] = np.frombuffer(found.content + found.pixels, np.uint64)
            bar.update(len(paths))
    return _Looks(bad, sides, digests[0], digests[1], thumbnails)


def _look_at(path: str) -> _Look | str:
    """What is kept of a file, or why it is bad."""
    try:
        data = Path(path).read_bytes()
        image, size = decode(data, DECODED_SIDE)
    except BadImageError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    pixels = str((image.size, sorted(size))).encode() + image.tobytes()  # JPEGs: at a part of their size
    return _Look(min(size), _digest(data), _digest(pixels), _thumbnail(image.convert("L")))


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest()


def _thumbnail(image: Image.Image) -> Pixels:
    return np.asarray(image.resize(THUMBNAIL, Image.Resampling.BILINEAR))


# ---- finding the same pictures


class _Sets:
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


class _Pictures:
    """The good images, and which of them are the same.

    Args:
        good: int64 [m], their places in the listing.
        part: int8 [m].
    """

    def __init__(self, listing: Listing, good: Indices, looks: _Looks, part: npt.NDArray[np.int8]) -> None:
        self._listing, self._good, self._part = listing, good, part
        pixels = _Sets(looks.pixels[good])
        near = _joined_near(pixels, looks.thumbnails[good], lambda one: listing.paths[int(good[one])])
        self._levels: dict[Same, Indices] = {
            "same bytes": _Sets(looks.content[good]).ids(),
            "same pixels": pixels.ids(),
            "nearly the same": near.ids(),
        }

    def _groups(self) -> Iterator[Indices]:
        ids = self._levels["nearly the same"]
        several = np.flatnonzero(np.bincount(ids, minlength=len(ids))[ids] > 1)
        order = several[np.argsort(ids[several], kind="stable")]
        if len(order):
            yield from np.split(order, np.flatnonzero(np.diff(ids[order])) + 1)

    def across(self, kinds: npt.NDArray[Any]) -> tuple[Group, ...]:
        """Pictures that are of more than one kind, and how they are the same across kinds."""
        found = []
        for group in self._groups():
            if len(np.unique(kinds[group])) > 1:
                mixing = (same for same, ids in self._levels.items() if _mixes(ids[group], kinds[group]))
                found.append(self._group(next(mixing), group))
        return tuple(found)

    def within(self, part: int) -> tuple[Group, ...]:
        """Pictures that a part has more than once, and how all of their files are the same."""
        found = []
        for group in self._groups():
            files = group[self._part[group] == part]
            if len(files) > 1:
                one = (same for same, ids in self._levels.items() if len(np.unique(ids[files])) == 1)
                found.append(self._group(next(one), files))
        return tuple(found)

    def _group(self, same: Same, files: Indices) -> Group:
        names = tuple(_below(self._listing, int(self._good[one])) for one in files)
        return Group(same=same, files=names)


def _mixes(ids: Indices, kinds: npt.NDArray[Any]) -> bool:
    """Whether any id is of more than one kind."""
    pairs = set(zip(ids.tolist(), kinds.tolist(), strict=True))
    return len({one for one, _ in pairs}) < len(pairs)


class _Full(NamedTuple):
    """Of an image decoded in full."""

    digest: bytes
    thumbnail: npt.NDArray[np.int16]
    """[16, 18, 3]"""


def _joined_near(pixels: _Sets, thumbnails: Pixels, path_of: Callable[[int], str]) -> _Sets:
    """Sets of images that are nearly the same; those with the same pixels after all are joined in ``pixels``."""
    near = _Sets(pixels.ids())
    first = np.unique(pixels.ids())
    seen: dict[int, _Full] = {}

    def full(one: int) -> _Full:
        if one not in seen:
            image = read_image(Path(path_of(one)))
            digest = _digest(str(image.size).encode() + image.tobytes())
            seen[one] = _Full(digest, _thumbnail(image).astype(np.int16))
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
