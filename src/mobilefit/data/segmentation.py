"""Images with a mask each: a class for every pixel.

Layouts, all found by their folders:

- Cityscapes as it is given out: see ``mobilefit.data.cityscapes``.
- ``train/images`` and ``train/labels``, the same in ``val`` and ``test``. (CamVid as SegNet's tutorial
  has it, once its masks are in ``labels``; its value 11 is to be ignored.)
- ``images/train`` and ``labels/train``, the same with ``val`` and ``test``.
- ``images`` and ``labels`` without parts: a fifth, chosen by the seed, is the test set.
- Pascal VOC's ``JPEGImages`` and ``SegmentationClass``, divided by the lists in ``ImageSets/Segmentation``, as
  CVAT and Datumaro export them too, with the classes in ``labelmap.txt`` (``name:r,g,b:parts:actions``).

The masks' folder may be named ``labels``, ``masks`` or ``annotations``, or else ``label``, ``mask``, ``gt`` and
the like, the images' ``image``, ``imgs`` and the like. Parts may have the names of
``mobilefit.data.layout``. They divide as in ``mobilefit.data.folder``: of ``val`` and ``test``
the one that is there is the test set, and the held-out part comes from ``train``; with both, ``val`` is
the held-out part. A ``test`` without masks is left aside. A mask has its image's name, but for the
extension.

**What the values mean.** Grey masks hold values (16 bits are read as well). Palette masks hold colours
where the file of classes lists all of them, and values, their indices, where not; without such a file, an index
that has two colours is an error. ``classes.txt`` beside the folders says what they are, one line each::

    road                    the value after that of the line before, from 0 on
    11 void                 this value
    tree 0 128 0            this colour, in masks that are colour pictures
    # and nothing           comments and empty lines are passed over

A name of ``IGNORED_NAMES`` and every value of ``ignore`` stand for pixels that neither loss nor metric
sees, and so does 255 unless a line names it. Without ``classes.txt`` the classes are 0 to the largest
value in the training masks, named ``class 0`` and on; where more than half of them had no pixel in any
mask (0, 127, 255), or most values stand on edges alone (as smooth edges make them), it has to be written.

**The rule for bad files** is that of ``mobilefit.data.folder``: all images and masks are decoded when
the data set is loaded; what is unreadable, lacks its mask or its image, or has a mask of another size
is named, counted and skipped, within its limit. (There is no larger number from which on images are
not looked at: the masks have to be read in any case.) A value or colour that no line explains is an error,
since nothing else in the data set can be trusted then.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mobilefit.data import cityscapes, layout
from mobilefit.data.cityscapes import Files
from mobilefit.data.classification import SkippedFile
from mobilefit.data.decode import BadImageError, Pixels, decode
from mobilefit.data.folder import TEST_FRACTION, check_bad, check_depth, image_files
from mobilefit.data.images import Indices, worker_count
from mobilefit.data.layout import PARTS, named_parts
from mobilefit.data.masks import (
    CLASSES_FILE,
    IGNORED,
    LABELMAP_FILE,
    LARGEST,
    MOST_CLASSES,
    Colour,
    Labels,
    Mask,
    RawMask,
    Row,
    code_of,
    colour_of,
    decode_mask,
    labelled,
    read_classes,
    read_labelmap,
)
from mobilefit.data.names import check_class_names, spelling
from mobilefit.data.splits import stratified
from mobilefit.data.store import ROOM, Kept, Store
from mobilefit.errors import InputError
from mobilefit.progress import Progress
from mobilefit.runs import read_bytes

VOC_MASKS = "SegmentationClass"
MASK_FOLDERS = ("labels", "masks", "annotations")

SMOOTHED_PROBED = 16
"""Masks that are looked at for smooth edges: those with most values."""
SMOOTHED_FEWEST = 5
"""Values of a mask up to which its edges are taken for sharp."""
SMOOTHED_HINT = f"save masks with sharp edges (nearest neighbour), or list every value in {CLASSES_FILE}"

_LAYOUTS = ("give train/images and train/labels, or images/train and labels/train, with val beside train, "
            "or Cityscapes' leftImg8bit and gtFine")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image and its mask."""

    part: str
    """"train", "val" or "test"."""
    name: str
    """What their paths have in common."""
    image: Path
    mask: Path


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files of a data set, before any is read."""

    root: Path
    parts: tuple[str, ...]
    """"train" and, where there are such, "val" and "test"."""
    pairs: tuple[Pair, ...]
    lone: tuple[SkippedFile, ...]
    """Images without a mask and masks without an image."""
    rows: tuple[Row, ...] | None
    """What the masks hold; ``None``: nothing says it."""
    notes: tuple[str, ...] = ()
    """What is to be said of how the folder was read."""


class _Read(NamedTuple):
    """A pair that was read and is good."""

    image: Image.Image
    mask: RawMask
    digest: str
    """SHA-256 of both files' content."""


class _Seen(NamedTuple):
    """What is known of a good pair."""

    pair: Pair
    size: tuple[int, int]
    """Width and height."""
    counts: dict[int, int]
    """Pixels of each code in the mask."""
    coloured: bool
    palette: Mapping[int, int]
    """The colours of its values, where it has a palette and is read by its values."""
    digest: str
    kept: tuple[Kept, RawMask] | None
    """``None``: there was no room."""


class SegmentationSet:
    """Images with their masks in a fixed order; subsets share the pixels.

    Args:
        source: holds the pixels.
        indices: int64 [n], where each image is in the source.
    """

    def __init__(self, source: _Source, indices: Indices) -> None:
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names; a label is an index into them."""
        return self._source.labels.names

    @property
    def names(self) -> tuple[str, ...]:
        """The paths of the images."""
        return tuple(str(self._source.pairs[index].image) for index in self._indices)

    @property
    def pixels(self) -> Indices:
        """Int64 [classes + 1], how many pixels each class has in all masks; the last: none (ignored)."""
        return np.asarray(self._source.pixels[self._indices].sum(0))

    @property
    def digest(self) -> str:
        """12 hex digits of the images' and masks' content, the classes and the order."""
        known = [self._source.labels.told, *(self._source.digests[index] for index in self._indices)]
        return hashlib.sha256("\n".join(known).encode(errors="surrogateescape")).hexdigest()[:12]

    def subset(self, indices: Sequence[int] | Indices) -> SegmentationSet:
        """The images at these positions, in this order."""
        return SegmentationSet(self._source, self._indices[np.asarray(indices, np.int64)])

    def sample(self, index: int) -> tuple[Image.Image, Mask]:
        """An image in RGB and its mask, uint8 [h, w], both of the image's own size.

        Raises:
            InputError: its file is not what it was when the data set was loaded.
        """
        return self._source.sample(int(self._indices[index]))


@dataclass(frozen=True, kw_only=True)
class SegmentationData:
    """A data set with masks. No image is in two of the three sets."""

    name: str
    classes: tuple[str, ...]
    """A label is an index into it."""
    palette: tuple[Colour, ...] | None
    """A colour for each class (red, green, blue), where the data set has such."""
    train: SegmentationSet
    holdout: SegmentationSet
    """Set apart from training, to choose networks by: never the test set."""
    test: SegmentationSet
    skipped: tuple[SkippedFile, ...]
    """Left out when loading."""
    ignored: float
    """Share of the pixels, 0 to 1, that loss and metric do not see."""
    size: tuple[int, int]
    """Median width and height of the images in pixels."""
    fingerprint: str
    """SHA-256 of the content (names, classes and files), whatever the split's seed."""
    notes: tuple[str, ...] = ()
    """What is to be said of how the folder was read."""


def load_segmentation(
    source: str | Path, *, seed: int = 0, holdout: float = 0.1, ignore: Iterable[int] = (),
    progress: str | None = None,
) -> SegmentationData:  # fmt: skip
    """Load a data set for segmentation; see the module's text.

    Args:
        source: its folder.
        seed: chooses what is held out, and the test set where the folder does not say.
        holdout: part of the training images set apart to choose networks by, 0 to 0.5.
        ignore: values in the masks that are of no class; the classes after them move up.
        progress: label of the progress shown on standard error; ``None``: silent.

    Raises:
        InputError: there is no such folder, or it cannot be used; the message says why.
    """
    if not 0 <= holdout <= 0.5:
        raise InputError(f"holdout is {holdout}, must be from 0 to 0.5")
    ignored = tuple(ignore)
    listing = listed(Path(source))
    check_class_names([row.name for row in listing.rows or () if not row.ignored], listing.root)
    seen, skipped = _look_at_all(listing, progress)
    check_bad(skipped, len(listing.pairs) + len(listing.lone), listing.root, "images and masks")
    _check_enough(listing, seen, skipped, holdout)
    check_depth([str(one.pair.image) for one in seen], listing.root)
    labels = _labels(listing, seen, ignored)
    _check_labels(listing.root, seen, labels)
    pixels = np.stack([_pixels(one, labels) for one in seen])
    images = _Source(seen, labels, pixels)
    train, held, test = _divided([one.pair.part for one in seen], seed, holdout)
    return SegmentationData(
        name=listing.root.resolve().name,
        classes=labels.names,
        palette=labels.palette,
        train=SegmentationSet(images, train),
        holdout=SegmentationSet(images, held),
        test=SegmentationSet(images, test),
        skipped=tuple(skipped),
        notes=listing.notes,
        ignored=float(pixels[:, -1].sum() / pixels.sum()),
        size=_median_size(seen),
        fingerprint=_fingerprint(seen, labels),
    )


def listed(root: Path) -> Listing:
    """Find the images and masks of a data set.

    Raises:
        InputError: the folder has no layout that is known, or ``classes.txt`` is wrong.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder", _LAYOUTS)
    if cityscapes.is_cityscapes(root):
        parts, train_ids = cityscapes.files(root)
        return _paired(root, parts, _cityscapes_rows(train_ids))
    others: list[str] = []
    file, labelmap = root / CLASSES_FILE, root / LABELMAP_FILE
    if (root / VOC_MASKS).is_dir():
        parts, notes = _voc(root, others), [f"{root} is read as Pascal VOC's {VOC_MASKS}"]
    else:
        folders, notes = _folders(root), []
        parts = {part: (_by_name(images, others), _by_name(masks, others)) for part, (images, masks) in folders.items()}
    rows = read_classes(file) if file.exists() else read_labelmap(labelmap) if labelmap.exists() else None
    notes += filter(None, [layout.passed_over(root, others)])
    return replace(_paired(root, parts, rows), notes=tuple(notes))


def _voc(root: Path, others: list[str]) -> dict[str, tuple[Files, Files]]:
    """Images and masks of Pascal VOC's layout: those of the lists, or all that have masks."""
    folders = layout.folders_named(root, layout.IMAGE_FOLDERS)
    if not folders:
        raise InputError(f"{root} has {VOC_MASKS} and no JPEGImages beside it", "put the images there")
    images, masks = _by_name(folders[0], others), _by_name(root / VOC_MASKS, others)
    lists = root / "ImageSets" / "Segmentation"
    found = {part: lists / f"{part}.txt" for part in ("train", "val", "test") if (lists / f"{part}.txt").is_file()}
    ids = {part: _listed_ids(file) for part, file in found.items()}
    if "test" in ids and not masks.keys() & ids["test"]:
        del ids["test"]  # a benchmark's, whose truth is not given out
    if "train" not in ids:
        ids = {"train": set(masks)}
    return {
        part: ({name: images[name] for name in images if name in own}, {name: masks[name] for name in masks if name in own})
        for part, own in ids.items()
    }


def _listed_ids(path: Path) -> set[str]:
    try:
        return {spelling(line.strip().strip('"')) for line in read_bytes(path).decode("utf-8-sig").splitlines() if line.strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def _cityscapes_rows(train_ids: bool) -> tuple[Row, ...]:
    if train_ids:
        return tuple(Row(number, *row[1:]) for number, row in enumerate(cityscapes.ROWS))
    rows = tuple(Row(*row) for row in cityscapes.ROWS)
    others = set(range(cityscapes.LABEL_IDS)) - {row.value for row in rows}
    return rows + tuple(Row(value, "void", ignored=True) for value in sorted(others))


def _folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """The folders of images and of masks by part, "train" first."""
    if images := _image_folder(root):
        masks = _mask_folder(root)
        found = named_parts(images)
        if not found:
            return {"train": (images, masks)}
        pairs = {part: (images / name, masks / name) for part, name in found.items()}
    else:
        pairs = {
            part: (_image_folder(root / name) or root / name / "images", _mask_folder(root / name, part == "test"))
            for part, name in named_parts(root).items()
        }
    if "train" not in pairs:
        message = f"{root} holds no images with masks that could be found"
        if other := layout.fitting(root, "segment"):
            what, command = other
            raise InputError(f"{message}: {what}", f"{command}, or {_LAYOUTS}")
        raise InputError(message, _LAYOUTS)
    if "test" in pairs and not pairs["test"][1].is_dir():
        del pairs["test"]  # a benchmark's, whose truth is not given out
    missing = [str(folder) for pair in pairs.values() for folder in pair if not folder.is_dir()]
    if missing:
        raise InputError(f"there is no {', no '.join(missing)}", _LAYOUTS)
    return pairs


def _image_folder(folder: Path) -> Path | None:
    if (folder / "images").is_dir():
        return folder / "images"
    truth = layout.folders_named(folder, layout.TRUTH_FOLDERS)
    return next(iter(layout.folders_named(folder, layout.IMAGE_FOLDERS)), None) if truth else None


def _mask_folder(folder: Path, optional: bool = False) -> Path:
    found = [folder / name for name in MASK_FOLDERS if (folder / name).is_dir()]
    found = found or layout.folders_named(folder, layout.TRUTH_FOLDERS) if folder.is_dir() else []
    if len(found) > 1:
        raise InputError(f"{folder} has both {found[0].name} and {found[1].name}", "keep one of them")
    if not found and not optional:
        raise InputError(
            f"{folder} has no folder of masks", f"name it {' or '.join(MASK_FOLDERS)}, beside images"
        )
    return found[0] if found else folder / MASK_FOLDERS[0]


def _by_name(folder: Path, others: list[str]) -> Files:
    """The image files under a folder by their paths in it, without extensions; other pictures go to ``others``."""
    files: Files = {}
    for path in image_files(folder, others):
        name = spelling(path.relative_to(folder).with_suffix("").as_posix())
        if name in files:
            raise InputError(f"{files[name]} and {path} have one name", "rename or remove one of them")
        files[name] = path
    return files


def _paired(root: Path, parts: dict[str, tuple[Files, Files]], rows: tuple[Row, ...] | None) -> Listing:
    pairs, lone = [], []
    for part, (images, masks) in parts.items():
        for name in sorted(images.keys() | masks.keys()):
            if name not in masks:
                lone.append(SkippedFile(path=str(images[name]), why="it has no mask of its name"))
            elif name not in images:
                lone.append(SkippedFile(path=str(masks[name]), why="a mask without an image of its name"))
            else:
                pairs.append(Pair(part=part, name=name, image=images[name], mask=masks[name]))
    return Listing(root=root, parts=tuple(parts), pairs=tuple(pairs), lone=tuple(lone), rows=rows)


class _Source:
    """The pixels of a data set, decoded as far as there is room."""

    def __init__(self, seen: list[_Seen], labels: Labels, pixels: Indices) -> None:
        self.labels = labels
        self.pairs = [one.pair for one in seen]
        self.digests = [one.digest for one in seen]
        self.pixels = pixels
        """Int64 [n, classes + 1], of each class and ignored."""
        self._kept = [_classed(one.kept, labels) for one in seen]

    def sample(self, index: int) -> tuple[Image.Image, Mask]:
        """See :meth:`SegmentationSet.sample`."""
        if (kept := self._kept[index]) is not None:
            return Image.fromarray(kept[0].pixels()), kept[1]
        read = _read(self.pairs[index], self.labels.colours)
        if isinstance(read, SkippedFile):
            raise InputError(f"{read.path}, which was good when the data set was loaded: {read.why}")
        if read.digest != self.digests[index]:
            changed = f"{self.pairs[index].image} or its mask"
            raise InputError(f"{changed} has changed since the data set was loaded", "start again")
        return read.image, self.labels.classes(read.mask)


def _classed(kept: tuple[Kept, RawMask] | None, labels: Labels) -> tuple[Kept, Mask] | None:
    if kept is None:
        return None
    mask = labels.classes(kept[1])
    mask.flags.writeable = False  # it is handed out as it is
    return kept[0], mask


def _look_at_all(
    listing: Listing, progress: str | None
) -> tuple[list[_Seen], list[SkippedFile]]:
    """Every pair that is good, and all bad files. Decoding runs outside the GIL."""
    seen, skipped, store = [], list(listing.lone), Store(ROOM)
    look = partial(_look_at, colours={code_of(*row.colour) for row in listing.rows or () if row.colour})
    bar = Progress(len(listing.pairs), progress)
    with ThreadPoolExecutor(worker_count()) as pool, bar:
        for found in pool.map(look, listing.pairs):
            bar.update(1)
            if isinstance(found, SkippedFile):
                skipped.append(found)
                continue
            one, image, mask = found
            kept = store.keep(image)
            seen.append(one._replace(kept=(kept, mask) if kept else None))
    return seen, skipped


def _look_at(pair: Pair, colours: Collection[int]) -> tuple[_Seen, Pixels, RawMask] | SkippedFile:
    read = _read(pair, colours)
    if isinstance(read, SkippedFile):
        return read
    image, mask, digest = read
    seen = _Seen(pair, image.size, _counts(mask), mask.coloured, {} if mask.coloured else mask.palette, digest, None)
    return seen, np.asarray(image), mask


def _read(pair: Pair, colours: Collection[int]) -> _Read | SkippedFile:
    """Read a pair to the end, or say which of its files is bad and why.

    A mask with a palette holds colours where all of them are known, and values where not.

    Args:
        colours: those that are known, as in ``Codes``.
    """
    path = pair.image
    try:
        data = read_bytes(path)
        image, _ = decode(data)
        digest = hashlib.sha256(data)
        path = pair.mask
        data = read_bytes(path)
        mask = decode_mask(data, coloured=bool(colours))
        if mask.coloured and any(colour not in colours for colour in mask.palette.values()):
            mask = decode_mask(data)
        digest.update(data)
    except OSError as error:
        return SkippedFile(path=str(path), why=f"cannot be read: {error.strerror}")
    except BadImageError as error:
        return SkippedFile(path=str(path), why=str(error))
    height, width = mask.codes.shape
    if (width, height) != image.size:
        why = f"its image, {pair.image}, has {image.width}x{image.height} pixels and it {width}x{height}"
        return SkippedFile(path=str(pair.mask), why=why)
    return _Read(image, mask, digest.hexdigest())


def _counts(mask: RawMask) -> dict[int, int]:
    codes = mask.codes.ravel()
    if mask.coloured:
        found, counts = np.unique(codes, return_counts=True)
    else:
        counts = np.bincount(codes)
        found = np.flatnonzero(counts)
        counts = counts[found]
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _check_enough(
    listing: Listing, seen: list[_Seen], skipped: list[SkippedFile], holdout: float
) -> None:
    """See that every part has as many good images as are needed."""
    needed = dict.fromkeys(listing.parts, 1)
    needed["train"] += (len(needed) == 1) + (len(needed) < 3 and holdout > 0)
    for part, enough in needed.items():
        count = sum(one.pair.part == part for one in seen)
        if count < enough:
            because = f"; bad: {skipped[0].path} ({skipped[0].why})" if skipped else ""
            raise InputError(
                f"{listing.root} has {count} usable images with masks in its {part} part, and needs {enough}{because}",
                "a mask has its image's name, but for the extension",
            )


def _labels(listing: Listing, seen: list[_Seen], ignore: tuple[int, ...]) -> Labels:
    """What the masks hold, by ``classes.txt`` or as they are.

    Raises:
        InputError: they hold colours that nothing explains, one class alone, or too many.
    """
    for value in ignore:
        if not 0 <= value <= LARGEST:
            raise InputError(f"the value to ignore is {value}, must be 0 to {LARGEST}")
    coloured = [one.pair.mask for one in seen if one.coloured]
    if coloured and not any(row.colour for row in listing.rows or ()):
        raise InputError(
            f"{coloured[0]}{_more(coloured)} is a colour picture, and nothing says which class a colour is",
            f"write {listing.root / CLASSES_FILE} with a line 'name red green blue' for each class, "
            "or save masks of class indices",
        )
    labels = labelled(listing.rows or _numbered(listing.root, seen, ignore), ignore)
    _check_palettes(listing, seen, labels)
    if len(labels.names) < 2:
        raise InputError(
            f"{listing.root} has one class alone, '{''.join(labels.names)}'; 255 stands for pixels left out",
            "two or more are needed to tell apart; for an object and its ground saved as 255 and 0, "
            "write classes.txt with the lines '0 ground' and '255 object'",
        )
    if len(labels.names) > MOST_CLASSES:
        raise InputError(f"{listing.root} has {len(labels.names)} classes, and {MOST_CLASSES} are the most")
    return labels


def _check_palettes(listing: Listing, seen: list[_Seen], labels: Labels) -> None:
    """See that the palettes of masks that are read by their values mean the same by them.

    Programs that save few colours number them file by file: the values alone mean nothing then.

    Raises:
        InputError: a value has another class's colour, or, where nothing lists the classes, two colours.
    """
    means: dict[int, tuple[int, _Seen]] = {}
    for one in seen:
        for value, colour in one.palette.items():
            if value == IGNORED:
                continue
            label = labels.colours.get(colour)
            if label is not None and label != labels.values.get(value):
                raise InputError(
                    f"the palette of {one.pair.mask} gives value {value} the colour {colour_of(colour)}, which is that of "
                    "another class, and not all colours in it are listed", f"list them all in {CLASSES_FILE}, or none",
                )  # fmt: skip
            first, where = means.setdefault(value, (colour, one))
            if first != colour and listing.rows is None:
                raise InputError(
                    f"value {value} is {colour_of(first)} by the palette of {where.pair.mask}, and {colour_of(colour)} by "
                    f"that of {one.pair.mask}: the values of these masks do not mean the same",
                    f"write {listing.root / CLASSES_FILE} with a line 'name red green blue' for each class to go by the "
                    "colours, or 'value name' to go by the values",
                )  # fmt: skip


def _numbered(root: Path, seen: list[_Seen], ignore: tuple[int, ...]) -> tuple[Row, ...]:
    """The classes of masks that nothing explains: 0 to the largest value in training."""
    passed_over = {IGNORED, *ignore}
    largest = [
        (max(one.counts.keys() - passed_over, default=-1), one) for one in seen if one.pair.part == "train"
    ]
    value, one = max(largest, key=lambda found: found[0])
    if value < 0:
        raise InputError("no pixel of the training masks has a label that is not ignored")
    if smoothed := _smoothed(seen):
        raise InputError(smoothed, SMOOTHED_HINT)
    if value >= MOST_CLASSES:
        raise InputError(
            f"{one.pair.mask} holds {value} at {_place(one, value)}, and nothing lists the classes, "
            f"which are 0 to {MOST_CLASSES - 1} then",
            f"list them in {CLASSES_FILE}, or leave these pixels out by --ignore-label {value}",
        )
    used = sorted({code for one in seen for code in one.counts} - passed_over)
    if len(set(range(value + 1)) - passed_over) > 2 * len(used):
        also = ", 255 too if it is a class" if any(IGNORED in one.counts for one in seen) else ""
        raise InputError(
            f"{one.pair.mask} holds {value} at {_place(one, value)}, and nothing lists the classes; 0 to {value} would "
            f"be too many: the masks hold {_few_values(used)} alone",
            f"write {root / CLASSES_FILE} with a line 'value name' for each value{also}, "
            f"or leave these pixels out by --ignore-label {value}",
        )
    return tuple(Row(number, f"class {number}") for number in range(value + 1))


def _few_values(values: list[int]) -> str:
    return ", ".join(map(str, values[:6])) + (f" and {len(values) - 6} more values" if len(values) > 6 else "")


def _smoothed(seen: list[_Seen]) -> str:
    """Why masks seem to have been resized, or drawn with smooth edges; empty: they do not.

    Most of their values stand on edges alone then, with no pixel among four neighbours of its value, while
    most pixels have such neighbours.
    """
    rich = [one for one in sorted(seen, key=lambda one: -len(one.counts)) if len(one.counts) > SMOOTHED_FEWEST]
    inside: set[int] = set()
    everywhere: Counter[int] = Counter()
    for one in rich[:SMOOTHED_PROBED]:
        codes = decode_mask(read_bytes(one.pair.mask), coloured=one.coloured).codes
        middle = codes[1:-1, 1:-1]
        same = (middle == codes[:-2, 1:-1]) & (middle == codes[2:, 1:-1])
        same &= (middle == codes[1:-1, :-2]) & (middle == codes[1:-1, 2:])
        inside.update(np.unique(middle[same]).tolist())
        everywhere.update(one.counts)
    edges = sorted(everywhere.keys() - inside)
    pixels = sum(everywhere[code] for code in edges)
    if len(edges) <= max(SMOOTHED_FEWEST, len(everywhere) / 2) or pixels > everywhere.total() / 2:
        return ""
    one = next(one for one in rich if edges[0] in one.counts)
    what = f"the colour {colour_of(edges[0])}" if one.coloured else str(edges[0])
    return (f"{one.pair.mask} holds {what} at {_place(one, edges[0])}, and {len(edges)} of the {len(everywhere)} values "
            "in such masks stand on edges alone: they were resized, or drawn with smooth edges")  # fmt: skip


def _check_labels(root: Path, seen: list[_Seen], labels: Labels) -> None:
    """See that every mask holds what is known.

    Raises:
        InputError: it names the first mask with the value or colour and its place.
    """
    unknown = [(one, min(one.counts.keys() - labels.of(one.coloured).keys(), default=None)) for one in seen]
    wrong = [(one, code) for one, code in unknown if code is not None]
    if not wrong:
        return
    if smoothed := _smoothed([one for one, _ in wrong]):
        raise InputError(smoothed, SMOOTHED_HINT)
    one, code = wrong[0]
    found = f"{one.pair.mask}{_more(wrong)} holds"
    place = f"at {_place(one, code)}"
    if one.coloured:
        raise InputError(f"{found} the colour {colour_of(code)} {place}, which {CLASSES_FILE} does not name",
                         f"add a line 'name red green blue' to {root / CLASSES_FILE}")  # fmt: skip
    named = [value for value, label in labels.values.items() if label != IGNORED]
    raise InputError(
        f"{found} {code} {place}, but the {len(labels.names)} classes are labelled "
        f"{min(named)} to {max(named)}",
        f"name it in {CLASSES_FILE}, or leave its pixels out by --ignore-label {code}",
    )


def _more(items: Sequence[object]) -> str:
    rest = len(items) - 1
    return f" (and {rest} more mask{'s' * (rest > 1)})" if rest else ""


def _place(one: _Seen, code: int) -> str:
    """Where a mask first holds a value or a colour."""
    mask = decode_mask(read_bytes(one.pair.mask), coloured=one.coloured)
    y, x = np.argwhere(mask.codes == code)[0]
    return f"x {x}, y {y}"


def _pixels(one: _Seen, labels: Labels) -> Indices:
    """Int64 [classes + 1], the pixels of each class in a mask; the last: ignored."""
    pixels, known = np.zeros(len(labels.names) + 1, np.int64), labels.of(one.coloured)
    for code, count in one.counts.items():
        pixels[-1 if known[code] == IGNORED else known[code]] += count
    return pixels


def _divided(parts: list[str], seed: int, holdout: float) -> tuple[Indices, Indices, Indices]:
    """Positions for training, held out and for the test, as ``folder.divided`` has them."""
    train, val, test = (np.flatnonzero([part == name for part in parts]) for name in PARTS)
    if not len(test):
        val, test = test, val
    if not len(test):
        train, test = _apart(train, TEST_FRACTION, seed)
    if not len(val):
        train, val = _apart(train, holdout, seed + 1)
    return train, val, test


def _apart(positions: Indices, fraction: float, seed: int) -> tuple[Indices, Indices]:
    stay, apart = stratified(np.zeros(len(positions), np.int64), fraction, seed)
    return positions[stay], positions[apart]


def _median_size(seen: list[_Seen]) -> tuple[int, int]:
    width, height = np.median([one.size for one in seen], axis=0)
    return int(width), int(height)


def _fingerprint(seen: list[_Seen], labels: Labels) -> str:
    known = [labels.told, *(f"{one.pair.part}\0{one.pair.name}\0{one.digest}" for one in seen)]
    return hashlib.sha256("\n".join(known).encode(errors="surrogateescape")).hexdigest()
