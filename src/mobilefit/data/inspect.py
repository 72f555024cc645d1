"""What is wrong with a folder of images: broken files, the same picture twice, classes that differ.

Every file is decoded to its end, also of folders that :func:`mobilefit.data.load` would refuse. Two
files show the same picture if they have the same bytes, the same pixels (another format, other
metadata), or nearly the same ones: compressed anew, resized, cropped by a per cent (``duplicates``).

A million images take half a gigabyte: two digests and a thumbnail each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from mobilefit.data import folder as folders
from mobilefit.data import layout
from mobilefit.data.classification import SkippedFile
from mobilefit.data.decode import BadImageError, Pixels, decode
from mobilefit.data.duplicates import (
    DECODED_SIDE,
    THUMBNAIL,
    Digests,
    Sets,
    digest_of,
    joined_near,
    thumbnail_of,
)
from mobilefit.data.folder import Listing
from mobilefit.data.images import Indices, worker_count
from mobilefit.data.names import spelling
from mobilefit.errors import InputError
from mobilefit.progress import Progress
from mobilefit.runs import read_bytes

Same = Literal["same bytes", "same pixels", "nearly the same"]

TINY_CLASS = 10
"""A class with fewer images in a part is told."""
IMBALANCE = 5.0
"""A largest class that many times the smallest is told."""
SEED = 0
"""By which a folder without a test part is divided: that of the verbs, unless told otherwise."""
HOLDOUT = 0.1
"""Held out of each class unless there is a part for it, as ``load`` does."""
CHUNK = 512
"""Files in hand at once."""


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
    notes: tuple[str, ...]
    """What is to be said of how the folder was read."""

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
    listing = folders.listed(root, *layout.class_parts(root))
    looks = looked_at(listing.paths, progress)
    good = np.flatnonzero(looks.sides)
    refused = _refusals(listing, good, looks)
    divided = _Division(parts=tuple(listing.parts), part=listing.part, sizes={})
    if not refused:
        divided = _divided(listing, good)
    part = divided.part[good]
    pictures = Pictures([listing.paths[int(place)] for place in good], listing.root, looks.only(good), part)
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
        notes=listing.notes,
    )


def _refusals(listing: Listing, good: Indices, looks: Looks) -> tuple[str, ...]:
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
        said += _refusal(lambda: folders.check_depth([listing.paths[int(place)] for place in usable], listing.root))
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
    there = {
        name: {spelling(one) for one in layout.subfolders(folder)}
        for name, folder in listing.parts.items()
        if not folders.is_flat(folder)
    }
    return {
        name: tuple(one for one in listing.classes if spelling(one) not in own) for name, own in there.items()
    }


def _skipped(listing: Listing, looks: Looks, place: int) -> SkippedFile:
    return SkippedFile(path=_below(listing, place), why=looks.bad[place])


def _below(listing: Listing, place: int) -> str:
    return os.path.relpath(listing.paths[place], listing.root)


# ---- looking at the files


class Looks(NamedTuple):
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

    def only(self, good: Indices) -> Looks:
        """Of these, all of which are good."""
        return Looks({}, self.sides[good], self.content[good], self.pixels[good], self.thumbnails[good])


class _Look(NamedTuple):
    side: int
    content: bytes
    pixels: bytes
    thumbnail: Pixels


def looked_at(paths: Sequence[str], progress: str | None) -> Looks:
    """Decode every file to its end.

    Args:
        progress: label of the progress shown on standard error; ``None``: silent.
    """
    count, bad = len(paths), {}
    sides, thumbnails = np.zeros(count, np.int32), np.zeros((count, *THUMBNAIL[::-1]), np.uint8)
    digests = np.zeros((2, count), np.uint64)
    with ThreadPoolExecutor(worker_count()) as pool, Progress(count, progress) as bar:
        for begin in range(0, count, CHUNK):
            some = paths[begin : begin + CHUNK]
            for place, found in enumerate(pool.map(_look_at, some), begin):
                if isinstance(found, str):
                    bad[place] = found
                    continue
                sides[place], thumbnails[place] = found.side, found.thumbnail
                digests[:, place] = np.frombuffer(found.content + found.pixels, np.uint64)
            bar.update(len(some))
    return Looks(bad, sides, digests[0], digests[1], thumbnails)


def _look_at(path: str) -> _Look | str:
    """What is kept of a file, or why it is bad."""
    try:
        data = read_bytes(Path(path))
        image, size = decode(data, DECODED_SIDE)
    except BadImageError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    pixels = str((image.size, sorted(size))).encode() + image.tobytes()  # JPEGs: at a part of their size
    return _Look(min(size), digest_of(data), digest_of(pixels), thumbnail_of(image.convert("L")))


# ---- finding the same pictures


class Pictures:
    """Good images, and which of them are the same.

    Args:
        paths: of the files.
        root: the data set's folder.
        looks: of these files.
        part: int8 [n], the part of each.
    """

    def __init__(self, paths: Sequence[str], root: Path, looks: Looks, part: npt.NDArray[np.int8]) -> None:
        self._paths, self._root, self._part = paths, root, part
        pixels = Sets(looks.pixels)
        near = joined_near(pixels, looks.thumbnails, lambda one: paths[one])
        self._levels: dict[Same, Indices] = {
            "same bytes": Sets(looks.content).ids(),
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
        names = tuple(os.path.relpath(self._paths[int(one)], self._root) for one in files)
        return Group(same=same, files=names)


def _mixes(ids: Indices, kinds: npt.NDArray[Any]) -> bool:
    """Whether any id is of more than one kind."""
    pairs = set(zip(ids.tolist(), kinds.tolist(), strict=True))
    return len({one for one, _ in pairs}) < len(pairs)


