"""A folder of class folders.

Two layouts are read:

- ``train/CLASS/*.jpg`` with ``val``, ``valid``, ``validation`` or ``test`` beside it, holding the
  same classes: the second is the test set, and the held-out part is taken from ``train``. With both
  a validation folder and ``test``, the validation folder is the held-out part and ``train`` stays
  whole. With ``train`` alone, it is divided like the second layout.
- ``CLASS/*.jpg``: a fifth of each class, chosen by the seed, is the test set.

Parts may have other names; what is no folder of class folders is refused: see ``mobilefit.data.layout``.

Images may lie deeper inside a class folder; a folder of masks beside one of images there is not read, and counted.
A ``test`` of images without class folders, as competitions give it out, is left aside. Hidden files, what systems
put beside files (``layout.JUNK``) and files without an image's extension (``EXTENSIONS``) are ignored; of the latter
those that may be pictures are counted. Classes and files are taken in sorted order. Folders named by WordNet
ids get readable class names, and ImageNet's flat ``val`` is read too: see ``mobilefit.data.imagenet``.

**The rule for bad files.** Every image file is read and decoded to its end when the data set is
loaded. A file is bad if it is empty, unreadable, truncated, not an image or with a short side under
4 pixels. Bad files are named, counted and skipped, as long as they are at most 10 % of all image
files (three are always allowed) and every class keeps enough good images; otherwise the data set is
refused, with the first bad files named. Grey, CMYK, palette, 16-bit, transparent and rotated images
are good: they are converted. So are images smaller than the network's input: they are enlarged.

**Large data sets.** Of more than ``LOOKED_AT`` image files only names and sizes are read, and a
sample is decoded; the others are decoded when they are used, and a bad one is then replaced by
another of its class (:class:`mobilefit.data.lazy.LazyFileSource`), within the same limit of 10 %.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from mobilefit.data import imagenet
from mobilefit.data.classification import ClassificationData, SkippedFile
from mobilefit.data.decode import (
    DEEP_EXTENSIONS,
    EXTENSIONS,
    BadImageError,
    Pixels,
    peak_of_16_bits,
)
from mobilefit.data.images import (
    FileSource,
    ImageSet,
    Indices,
    Photo,
    look_at,
    worker_count,
)
from mobilefit.data.layout import (
    class_parts,
    is_junk,
    may_be_picture,
    passed_over,
    subfolders,
    without_masks,
)
from mobilefit.data.lazy import BAD_FRACTION, LazyFileSource, too_many_bad
from mobilefit.data.names import check_class_names, spelling
from mobilefit.data.splits import stratified
from mobilefit.data.store import ROOM, Store
from mobilefit.errors import InputError
from mobilefit.progress import Progress

LOOKED_AT = 20_000
"""Most image files that are decoded when the data set is loaded: a minute or two."""
SAMPLE = 500
"""Image files that are decoded of a larger one, to see what its images are like."""
LISTING_THREADS = 8
"""Folders listed at once: on a network's disk the time goes into waiting."""
PROBED_16_BIT = 64
"""Files that may have 16 bits a channel and are looked at for values that are far too small."""
DARK_16_BIT = 1 << 14
"""A quarter of white: what cameras of 10, 12 and 14 bits do not reach."""
TEST_FRACTION = 0.2
"""Part of each class set apart for the test where the folder does not say."""

LabelOf = Callable[[str], int | None]
"""From a file's name to its label; ``None``: it is left out."""
Division = tuple[Indices, Indices, Indices]
"""Positions for training, held out and for the test."""


class Paths(Sequence[str]):
    """The paths of many files in three arrays: 40 bytes a file, where strings would take 150.

    Also, worker processes share arrays, and would come to copy strings by counting references.

    Args:
        folders: of the files.
        folder: int32 [n], which of them each file is in.
        names: of all files below their folders, one after another.
        ends: int64 [n], where each name ends.
    """

    def __init__(
        self, folders: Sequence[str], folder: npt.NDArray[np.int32], names: bytes, ends: Indices
    ) -> None:
        self._folders, self._folder, self._names, self._ends = folders, folder, names, ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        end = self._ends[index]
        begin = self._ends[index - 1] if index % len(self) else 0
        return os.path.join(self._folders[self._folder[index]], os.fsdecode(self._names[begin:end]))

    def digest(self) -> bytes:
        """SHA-256 of the names below their folders, and of which lie together."""
        ends, folder = self._ends.astype("<i8"), self._folder.astype("<i4")
        return hashlib.sha256(ends.tobytes() + folder.tobytes() + self._names).digest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """The image files of a data set by part and class, each class's in the order of their paths."""

    root: Path
    parts: dict[str, Path]
    """Folders by part: "train", and "val" and "test" where there are such."""
    classes: tuple[str, ...]
    """Names of the class folders, sorted; a label is an index into it."""
    part: npt.NDArray[np.int8]
    """[n], an index into ``parts``."""
    labels: Indices
    """[n]."""
    sizes: Indices
    """[n], in bytes; -1: it cannot be told."""
    paths: Paths
    notes: tuple[str, ...]
    """What is to be said of the folder's layout."""

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self, chosen: Indices | slice = slice(None)) -> Indices:
        """How many files there are, or are of the chosen ones: int64 [parts, classes]."""
        shape = len(self.parts), len(self.classes)
        places = self.part[chosen].astype(np.int64) * shape[1] + self.labels[chosen]
        return np.bincount(places, minlength=shape[0] * shape[1]).reshape(shape)


def load_folder(
    root: Path, *, seed: int, holdout: float, progress: str | None = None
) -> ClassificationData:
    """Read a folder of class folders; see the module's text.

    Raises:
        InputError: no class folders, fewer than two classes, parts with different classes, a class
            with too few images, too many bad files.
    """
    parts, notes = class_parts(root)
    check_classes(parts)
    listing = listed(root, parts, notes)
    check_found(listing)
    if len(listing) > LOOKED_AT:
        return _load_unseen(listing, seed, holdout)
    return _load_seen(listing, seed, holdout, progress)


def check_classes(parts: dict[str, Path]) -> None:
    """See that there are two classes or more, the same ones in all parts.

    Raises:
        InputError: it says of every part how it differs.
    """
    train = parts["train"]
    classes = subfolders(train)
    if not classes:
        raise InputError(
            f"{train} holds no class folders",
            f"put the images into one folder a class: {train}/CLASS/*.jpg",
        )
    if len(classes) < 2:
        raise InputError(
            f"{train} holds one class alone, '{classes[0]}'", "two or more are needed to tell apart"
        )
    for folder in parts.values():
        check_class_names(subfolders(folder), folder)
    differing = list(filter(None, (_difference(classes, folder) for folder in parts.values())))
    if differing:
        raise InputError("; ".join(differing), "both must hold the same class folders")


def _difference(classes: list[str], folder: Path) -> str:
    known, found = ({spelling(name): name for name in some} for some in (classes, subfolders(folder)))
    lacking = sorted(known[one] for one in known.keys() - found.keys())
    extra = sorted(found[one] for one in found.keys() - known.keys())
    if not (lacking or extra) or is_flat(folder):
        return ""
    said = [f"lacks {_first_few(lacking)}"] * bool(lacking)
    said += [f"has {_first_few(extra)}, which train lacks"] * bool(extra)
    return f"{folder} {' and '.join(said)}"


def is_flat(folder: Path) -> bool:
    """Whether it is ImageNet's validation folder as published, without class folders."""
    return not subfolders(folder) and imagenet.is_validation(folder)


def image_files(folder: Path, others: list[str] | None = None) -> list[Path]:
    """All image files under a folder, in the order of their paths.

    Args:
        others: gets the paths of files that may be pictures, and that are not read.
    """
    return [Path(entry.path) for entry in _walked(str(folder), others)]


def _walked(
    folder: str, others: list[str] | None = None, above: tuple[str, ...] = (), masks: bool = True
) -> Iterator[os.DirEntry[str]]:
    """Image files under a folder in the order of their paths; links are followed, but for circles.

    Args:
        masks: whether a folder of masks beside one of images is read; else its files go to ``others``.
    """
    here = os.path.realpath(folder)
    if here in above:
        return
    try:
        with os.scandir(folder) as entries:
            found = sorted((e for e in entries if not is_junk(e.name)), key=lambda e: e.name)
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}") from error
    folders = [entry.name for entry in found if entry.is_dir()]
    read = set(folders if masks else without_masks(folders))
    for entry in found:
        if entry.name in read:
            yield from _walked(entry.path, others, (*above, here), masks)
        elif entry.is_dir():
            if others is not None:
                others += [one.path for one in _walked(entry.path)]
        elif entry.name.lower().endswith(EXTENSIONS):
            if entry.is_file() or entry.is_symlink():
                yield entry
        elif others is not None and entry.is_file() and may_be_picture(entry.name):
            others.append(entry.path)


def listed(root: Path, parts: dict[str, Path], notes: tuple[str, ...] = ()) -> Listing:
    """List the image files of all parts. Every class counts that is one in any part.

    Raises:
        InputError: a folder cannot be read, or nothing tells the classes of a flat ``val``.
    """
    spelled: dict[str, str] = {}
    for folder in parts.values():
        for name in subfolders(folder):
            spelled.setdefault(spelling(name), name)  # as it is spelled in training
    classes = tuple(sorted(spelled.values()))
    places = list(_places(root, parts, classes))
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        found = list(pool.map(_found, [(folder, label_of) for _, folder, label_of in places]))
    counts = [len(files.labels) for files in found]
    return Listing(
        root=root,
        parts=parts,
        classes=classes,
        part=np.repeat(np.array([part for part, _, _ in places], np.int8), counts),
        labels=_joined([files.labels for files in found]),
        sizes=_joined([files.sizes for files in found]),
        notes=(*notes, *filter(None, [passed_over(root, [path for files in found for path in files.others])])),
        paths=Paths(
            [str(folder) for _, folder, _ in places],
            np.repeat(np.arange(len(places), dtype=np.int32), counts),
            b"".join(files.names for files in found),
            np.cumsum(_joined([files.lengths for files in found])),
        ),
    )


def _places(
    root: Path, parts: dict[str, Path], classes: tuple[str, ...]
) -> Iterator[tuple[int, Path, LabelOf]]:
    """The folders to list, each with its part's number."""
    for number, folder in enumerate(parts.values()):
        if is_flat(folder):
            yield number, folder, imagenet.validation_labels(root, folder, classes)
            continue
        own = {spelling(name): name for name in subfolders(folder)}
        for label, name in enumerate(classes):
            if (one := spelling(name)) in own:
                yield number, folder / own[one], partial(_always, label)


def _always(label: int, name: str) -> int:
    return label


class _Files(NamedTuple):
    """Image files of one folder, packed so that a million of them are little."""

    labels: Indices
    sizes: Indices
    lengths: Indices
    names: bytes
    others: list[str]
    """Paths of files that may be pictures, and that are not read."""


def _found(place: tuple[Path, LabelOf]) -> _Files:
    folder, label_of = place
    labels, sizes, names, skip = [], [], [], len(str(folder)) + 1
    others: list[str] = []
    for entry in _walked(str(folder), others, masks=False):
        label = label_of(entry.name)
        if label is not None:
            labels.append(label)
            sizes.append(_size(entry))
            names.append(os.fsencode(entry.path[skip:]))
    return _Files(
        labels=np.array(labels, np.int64),
        sizes=np.array(sizes, np.int64),
        lengths=np.array([len(name) for name in names], np.int64),
        names=b"".join(names),
        others=others,
    )


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return -1


def _joined(arrays: list[Indices]) -> Indices:
    return np.concatenate([np.empty(0, np.int64), *arrays])


def check_found(listing: Listing) -> None:
    """See that every class has a file in every part.

    Raises:
        InputError: it names the empty class folders.
    """
    folders = list(listing.parts.values())
    empty = [str(folders[part] / listing.classes[label])
             for part, label in np.argwhere(listing.counts() == 0)]  # fmt: skip
    if empty:
        raise InputError(
            f"no image in {_first_few(empty)}",
            f"add images ({' '.join(EXTENSIONS[:3])} ...) or remove the class folder",
        )


def _load_seen(
    listing: Listing, seed: int, holdout: float, progress: str | None
) -> ClassificationData:
    photos, skipped = _look_at_all(listing, progress)
    check_bad(skipped, len(listing), listing.root)
    good = np.array(list(photos), np.int64)
    check_enough(listing, good, skipped, holdout)
    check_depth([listing.paths[place] for place in photos], listing.root)
    return _assembled(
        listing,
        ImageSet(FileSource(list(photos.values())), listing.labels[good]),
        divided(listing, good, seed=seed, holdout=holdout),
        skipped=skipped,
        fingerprint=_fingerprint(listing, photos),
        short_side=int(np.median([min(photo.size) for photo in photos.values()])),
    )


def _load_unseen(listing: Listing, seed: int, holdout: float) -> ClassificationData:
    good, skipped = not_empty(listing)
    check_bad(skipped, len(listing), listing.root)
    check_enough(listing, good, skipped, holdout)
    check_depth(listing.paths, listing.root)
    division = divided(listing, good, seed=seed, holdout=holdout)
    groups = np.full(len(listing), -1, np.int32)
    for number, positions in enumerate(division):  # an image never stands for one of another part
        groups[good[positions]] = number * len(listing.classes) + listing.labels[good[positions]]
    return _assembled(
        listing,
        ImageSet(LazyFileSource(listing.paths, groups), listing.labels[good], good),
        division,
        skipped=skipped,
        fingerprint=_fingerprint_of_names(listing),
        short_side=_sampled_short_side(listing, good),
    )


def not_empty(listing: Listing) -> tuple[Indices, list[SkippedFile]]:
    """Of files that nobody looked at: those that may be good, int64 [n], and those that cannot."""
    empty = np.flatnonzero(listing.sizes == 0)
    skipped = [SkippedFile(path=listing.paths[int(place)], why="empty file") for place in empty]
    return np.flatnonzero(listing.sizes), skipped


def _look_at_all(
    listing: Listing, progress: str | None
) -> tuple[dict[int, Photo], list[SkippedFile]]:
    """The good photos by their places in the listing, and the bad files."""
    photos: dict[int, Photo] = {}
    skipped, store = [], Store(ROOM)
    with Progress(len(listing), progress) as bar:
        for place, found in enumerate(_looked_at(listing.paths)):
            bar.update(1)
            if isinstance(found, str):
                skipped.append(SkippedFile(path=listing.paths[place], why=found))
                continue
            photo, pixels = found
            photos[place] = dataclasses.replace(photo, kept=store.keep(pixels))
    return photos, skipped


def _looked_at(paths: Iterable[str]) -> Iterator[tuple[Photo, Pixels] | str]:
    """Each file's photo and its pixels, or why it is bad. Decoding runs outside the GIL."""

    def one(path: str) -> tuple[Photo, Pixels] | str:
        try:
            return look_at(Path(path))
        except BadImageError as error:
            return str(error)
        except OSError as error:
            return f"cannot be read: {error.strerror}"

    with ThreadPoolExecutor(worker_count()) as pool:
        yield from pool.map(one, paths)


def _sampled_short_side(listing: Listing, good: Indices) -> int:
    """Median short side of a sample, which must not have too many bad files either."""
    places = good[np.linspace(0, len(good) - 1, min(SAMPLE, len(good))).astype(np.int64)]
    paths, sides, bad = [listing.paths[int(place)] for place in places], [], []
    for path, found in zip(paths, _looked_at(paths), strict=True):
        if isinstance(found, str):
            bad.append(SkippedFile(path=path, why=found))
        else:
            sides.append(min(found[0].size))
    check_bad(bad, len(paths), listing.root, "sampled image files")
    return int(np.median(sides))


def check_bad(skipped: list[SkippedFile], count: int, root: Path, of: str = "image files") -> None:
    """See that there are no more bad files than are skipped.

    Raises:
        InputError: there are; it names the first.
    """
    if too_many_bad(len(skipped), count):
        raise InputError(
            f"{len(skipped)} of the {count} {of} in {root} are bad: {_described(skipped)}",
            f"mend or remove them; at most {BAD_FRACTION:.0%} are skipped",
        )


def check_depth(paths: Sequence[str], root: Path) -> None:
    """See that files of 16 bits a channel use them: values of 10, 12 or 14 bits would be nearly black.

    Up to ``PROBED_16_BIT`` such files are looked at, evenly spread.

    Raises:
        InputError: not one of them has a value of ``DARK_16_BIT`` or more, and some are not all black.
    """
    deep = [path for path in paths if path.lower().endswith(DEEP_EXTENSIONS)]
    places = np.linspace(0, len(deep) - 1, min(PROBED_16_BIT, len(deep))).astype(np.int64)
    with ThreadPoolExecutor(worker_count()) as pool:
        found = list(pool.map(peak_of_16_bits, [deep[place] for place in places]))
    peaks = {deep[place]: peak for place, peak in zip(places, found, strict=True) if peak}
    if not peaks or max(peaks.values()) >= DARK_16_BIT:
        return
    path, peak = max(peaks.items(), key=lambda item: item[1])
    bits = max(8, (peak.bit_length() + 1) // 2 * 2)
    raise InputError(
        f"{root}: {len(peaks)} pictures of 16 bits were looked at, and their largest value is {peak} of 65535 "
        f"(in {path}): nearly black, as {bits}-bit values in 16-bit files are",
        f"multiply the values by {65535 // (2**bits - 1)}, or save 8-bit files",
    )


def _described(skipped: Iterable[SkippedFile]) -> str:
    return _first_few([f"{file.path} ({file.why})" for file in skipped])


def _first_few(items: list[str], count: int = 3) -> str:
    rest = len(items) - count
    return ", ".join(items[:count]) + (f" and {rest} more" if rest > 0 else "")


def check_enough(
    listing: Listing, good: Indices, skipped: list[SkippedFile], holdout: float
) -> None:
    """See that every class has as many good images as its parts need.

    Raises:
        InputError: it names the first class that lacks some.
    """
    needed = dict.fromkeys(listing.parts, 1)
    needed["train"] = 1 + ("test" not in needed) + ("val" not in needed and holdout > 0)
    counts = listing.counts(good)
    lacking = np.argwhere(counts < np.array(list(needed.values()))[:, None])
    if not len(lacking):
        return
    number, label = lacking[0]
    part = list(needed)[number]
    others = f" ({len(lacking) - 1} more classes lack some too)" if len(lacking) > 1 else ""
    because = f"; bad files: {_described(skipped)}" if skipped else ""
    raise InputError(
        f"class '{listing.classes[label]}' has {counts[number, label]} usable images in its {part} "
        f"part, and needs {needed[part]}{others}{because}",
        "add images or remove the class folder",
    )


def divided(listing: Listing, good: Indices, *, seed: int, holdout: float) -> Division:
    """Divide the good images, for which ``check_enough`` holds: positions in ``good``."""
    labels, names = listing.labels[good], list(listing.parts)
    train, held, test = (
        np.flatnonzero(listing.part[good] == names.index(part)) if part in names else np.empty(0, np.int64)
        for part in ("train", "val", "test")
    )
    if not len(test):
        stay, apart = stratified(labels[train], TEST_FRACTION, seed)
        train, test = train[stay], train[apart]
    if not len(held):
        stay, apart = stratified(labels[train], holdout, seed + 1)
        train, held = train[stay], train[apart]
    return train, held, test


def _assembled(
    listing: Listing, images: ImageSet, division: Division, *, skipped: list[SkippedFile],
    fingerprint: str, short_side: int,
) -> ClassificationData:  # fmt: skip
    names = listing.classes
    train, held, test = division
    return ClassificationData(
        name=listing.root.resolve().name,
        classes=imagenet.readable(names) if imagenet.has_ids(names) else names,
        train=images.subset(train),
        holdout=images.subset(held),
        test=images.subset(test),
        skipped=tuple(skipped),
        fingerprint=fingerprint,
        short_side=short_side,
        notes=listing.notes,
    )


def _fingerprint(listing: Listing, photos: dict[int, Photo]) -> str:
    digest, parts = hashlib.sha256(), list(listing.parts)
    for place, photo in photos.items():
        part, name = parts[listing.part[place]], photo.path.relative_to(listing.root).as_posix()
        known = f"{part}\0{listing.classes[listing.labels[place]]}\0{name}\0{photo.sha256}\n"
        digest.update(known.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _fingerprint_of_names(listing: Listing) -> str:
    """Of a data set that is too large to be read for it: names and sizes stand for the content."""
    names = "\0".join([*listing.parts, "", *listing.classes])
    digest = hashlib.sha256(names.encode(errors="surrogateescape") + listing.paths.digest())
    for array in (listing.part, listing.labels, listing.sizes):
        digest.update(array.astype("<i8").tobytes())
    return digest.hexdigest()
