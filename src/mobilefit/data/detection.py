"""Images with boxes: what is in them, and where.

Three layouts are read: Pascal VOC (``mobilefit.data.voc``), COCO (``mobilefit.data.coco``), both of
Roboflow's kind too, and YOLO (``mobilefit.data.yolo``). Their parts divide as in
``mobilefit.data.folder``: of ``val`` and ``test`` the one that is there is the test set, and the held-out part comes from ``train``; with both, ``val`` is the
held-out part; with ``train`` alone, a fifth, chosen by the seed, is the test set.

Boxes are (left, top, right, bottom) in pixels of the upright image, as edges: a box around the whole of a
640x480 image is (0, 0, 640, 480).

**The rule for bad files** is that of ``mobilefit.data.folder``: pictures are decoded to their ends when the
data set is loaded. A picture that is missing or bad, an annotation that cannot be read, and one written
for a picture of another size (nobody can tell which its boxes are for) are named, counted and skipped,
within its limit of 10 %. An annotation without a size takes the picture's.

**The rule for bad boxes.** A box that is no four finite numbers, has no width or height, lies wholly
outside of its picture, or is of an image that the file does not list is dropped; one partly outside is
cut to the picture. All are counted, with examples. Where more than 10 % (and more than three) of the
boxes are dropped, the data set is refused. An image without boxes is kept: it shows what is none.

**Numbers of another kind.** A data set is refused, and told why, where the numbers of a part (more than 10 %
of them) are shares of the picture, 0 to 1; and where a tenth of its boxes do not fit into their pictures, but
all would if the numbers were corners in the place of sides, sides in the place of corners, or a centre.

**Crowds.** COCO's ``iscrowd`` boxes hold many things and VOC's ``difficult`` ones are left out of VOC's own
score, so both are flagged ``crowd``: training does not see them, and the metric neither asks for
nor punishes a detection there.

**Large data sets.** Of more than ``LOOKED_AT`` images only the headers are read, and a picture that turns
out bad when it is used is replaced, with its boxes, by the next good one of its part, within the same limit.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilefit.data import coco, layout, voc, yolo
from mobilefit.data.annotations import PARTS, Annotations, Record, States
from mobilefit.data.classification import SkippedFile
from mobilefit.data.folder import TEST_FRACTION, check_bad, check_depth
from mobilefit.data.images import Indices
from mobilefit.data.lazy import too_many_bad
from mobilefit.data.names import check_class_names
from mobilefit.data.pictures import MEND, Picture, Pictures, looked_at
from mobilefit.data.preset import Preset
from mobilefit.errors import InputError

THIN = 0.1
"""A box with a side under so many pixels has no width or height."""
ROUNDING = 0.5
"""So many pixels outside of the picture are not counted as outside: coordinates are rounded."""
MISREAD = 0.1
"""Share of boxes that do not fit into their pictures from which on another reading is looked for."""
FEWEST_TO_TELL = 4
"""Boxes of a part, of which two do not fit; fewer can fit another reading by chance."""
EXAMPLES = 3
"""Bad boxes of each kind that are named."""
_LAYOUTS = ("give Pascal VOC (Annotations, JPEGImages, ImageSets/Main), COCO (annotations/instances_train.json "
            "and a folder train, the same for val), or YOLO (images/train, labels/train, data.yaml); Datumaro, FiftyOne "
            "and Roboflow convert others to these")  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Boxes:
    """What is in one image."""

    boxes: npt.NDArray[np.float32]
    """[m, 4]: left, top, right, bottom in pixels of the image."""
    labels: Indices
    """[m], from 0."""
    crowd: npt.NDArray[np.bool_]
    """[m]: many things in one box, or hardly to be seen; neither trained on nor asked for."""

    def __len__(self) -> int:
        return len(self.labels)

    def chosen(self, which: Indices | npt.NDArray[np.bool_]) -> Boxes:
        """Those at these positions, or where this mask holds."""
        return Boxes(boxes=self.boxes[which], labels=self.labels[which], crowd=self.crowd[which])

    def scaled(self, across: float, down: float) -> Boxes:
        """The boxes in an image so many times as wide and as high."""
        factors = np.array([across, down, across, down], np.float32)
        return Boxes(boxes=self.boxes * factors, labels=self.labels, crowd=self.crowd)


@dataclass(frozen=True, kw_only=True)
class BoxCount:
    """Boxes that something is wrong with."""

    why: str
    count: int
    examples: tuple[str, ...]
    """The first of them: file and number."""

    def __str__(self) -> str:
        named = [*self.examples, *["..."] * (self.count > len(self.examples))]
        return f"{self.count} {self.why}" + (f" ({', '.join(named)})" if named else "")


class DetectionSet:
    """Images with boxes in a fixed order; subsets share the pixels.

    Args:
        pictures: of the whole data set.
        truths: the boxes of each, in pixels of the whole picture.
        classes: names; a label is an index into them.
        indices: int64 [n], which pictures are in the set; default: all, in order.
    """

    def __init__(
        self, pictures: Pictures, truths: Sequence[Boxes], classes: tuple[str, ...], indices: Indices | None = None,
    ) -> None:  # fmt: skip
        self._pictures, self._truths, self.classes = pictures, truths, classes
        self._indices = np.arange(len(truths)) if indices is None else indices

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def names(self) -> tuple[str, ...]:
        """The paths of the pictures."""
        return tuple(str(self._pictures.pictures[index].path) for index in self._indices)

    @property
    def replaced(self) -> tuple[str, ...]:
        """Paths of the pictures that turned out bad in use, for which others stand (large data sets)."""
        bad = np.intersect1d(self._pictures.replaced, self._indices)
        return tuple(str(self._pictures.pictures[index].path) for index in bad)

    @property
    def digest(self) -> str:
        """12 hex digits of the content (files, boxes, classes) and the order."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for index in self._indices:
            digest.update(_known(self._pictures.pictures[index], self._truths[index]))
        return digest.hexdigest()[:12]

    @property
    def counts(self) -> Indices:
        """How many boxes of each class there are, without crowds: int64 [classes]."""
        labels = [self._truths[index].labels[~self._truths[index].crowd] for index in self._indices]
        joined = np.concatenate([np.empty(0, np.int64), *labels])
        return np.bincount(joined, minlength=len(self.classes))

    def subset(self, indices: Sequence[int] | Indices) -> DetectionSet:
        """The images at these positions, in this order."""
        chosen = self._indices[np.asarray(indices, dtype=np.int64)]
        return DetectionSet(self._pictures, self._truths, self.classes, chosen)

    def truth(self, index: int) -> Boxes:
        """The boxes of an image, without decoding it: of the one that stands for it, if it turned out bad."""
        return self._truths[self._pictures.standing(int(self._indices[index]))]

    def sample(self, index: int) -> tuple[Image.Image, Boxes]:
        """An image as it is in its file, upright and in RGB, and its boxes.

        Raises:
            InputError: the picture cannot be read any more.
        """
        found, image = self._pictures.whole(int(self._indices[index]))
        return image, self._truths[found]

    def working(self, index: int) -> tuple[Image.Image, Boxes]:
        """The same for training: with a short side of at most ``pictures.WORKING_SIDE``.

        Raises:
            InputError: the picture cannot be read any more.
        """
        found, image = self._pictures.working(int(self._indices[index]))
        width, height = self._pictures.pictures[found].size
        return image, self._truths[found].scaled(image.width / width, image.height / height)


@dataclass(frozen=True, kw_only=True)
class DetectionData:
    """A data set with boxes. No image is in two of the three sets."""

    name: str
    classes: tuple[str, ...]
    """A label is an index into it."""
    train: DetectionSet
    holdout: DetectionSet
    """Set apart from training, to choose networks by: never the test set."""
    test: DetectionSet
    skipped: tuple[SkippedFile, ...]
    """Pictures and annotations left out when loading."""
    dropped: tuple[BoxCount, ...]
    """Boxes left out, by reason; empty if there are none."""
    clipped: BoxCount
    """Boxes that were cut to their pictures."""
    fingerprint: str
    """SHA-256 of the content (names, classes, boxes and files; of a large data set the files' sizes),
    whatever the split's seed."""
    notes: tuple[str, ...] = ()
    """What is to be said of how the folder was read."""

    def preset(self, resolution: int, width: int | None = None) -> Preset:
        """The usual preset of detectors: the whole picture, whatever its sides, at this height and width."""
        return Preset(resolution=resolution, width=width, fit="stretch", crop_fraction=1.0)


class _Good(NamedTuple):
    """A record and its picture, both usable."""

    record: Record
    picture: Picture


def load_detection(
    source: str | Path, *, seed: int = 0, holdout: float = 0.1, progress: str | None = None
) -> DetectionData:
    """Load a data set for detection; see the module's text.

    Args:
        source: its folder.
        seed: chooses what is held out, and the test set where the folder does not say.
        holdout: part of the training images set apart to choose networks by, 0 to 0.5.
        progress: label of the progress shown on standard error; ``None``: silent.

    Raises:
        InputError: there is no such folder, or it cannot be used; the message says why.
    """
    if not 0 <= holdout <= 0.5:
        raise InputError(f"holdout is {holdout}, must be from 0 to 0.5")
    found = _annotations(Path(source))
    check_class_names(found.classes, found.root)
    _check_once(found.records)
    good, skipped = _usable(found, progress)
    check_depth([str(one.picture.path) for one in good], found.root)
    truths, dropped, clipped = _cleaned(found, good)
    labels = _rarest(truths, len(found.classes))
    _check_enough(found, [one.record.part for one in good], labels, skipped, holdout)
    division = _divided([one.record.part for one in good], labels, seed, holdout)
    pictures = Pictures([one.picture for one in good], _groups(division))
    whole = DetectionSet(pictures, truths, found.classes)
    _check_boxes(found.root, training=whole.subset(division.train), test=whole.subset(division.test))
    return DetectionData(
        name=found.root.resolve().name,
        classes=found.classes,
        train=whole.subset(division.train),
        holdout=whole.subset(division.holdout),
        test=whole.subset(division.test),
        skipped=skipped,
        notes=found.notes,
        dropped=dropped,
        clipped=clipped,
        fingerprint=_fingerprint(found, good, truths),
    )


def _annotations(root: Path) -> Annotations:
    if not root.is_dir():
        raise InputError(f"{root} is not a folder", _LAYOUTS)
    if found := voc.find(root):
        return voc.read(*found)
    files = coco.find(root)
    if files and not coco.is_other(files):
        return coco.read(root, files)
    if found := voc.find_elsewhere(root):
        return voc.read(*found)
    if labels := yolo.find(root):
        return yolo.read(root, labels)
    if files:
        return coco.read(root, files)  # says what it lacks
    if other := layout.fitting(root, "detect"):
        what, command = other
        raise InputError(f"{root} holds no annotations that are known: {what}", f"{command}, or {_LAYOUTS}")
    raise InputError(f"{root} holds no annotations that are known: it holds {layout.counted(root)}", _LAYOUTS)


def _check_once(records: Sequence[Record]) -> None:
    parts: dict[Path, str] = {}
    twice = []
    for record in records:
        if record.path in parts:
            twice.append(f"{record.path} ({parts[record.path]} and {record.part})")
        parts.setdefault(record.path, record.part)
    if twice:
        raise InputError(
            f"{len(twice)} pictures are listed twice, the first: {twice[0]}",
            "list each in one part: what is trained on cannot test",
        )


def _usable(
    found: Annotations, progress: str | None
) -> tuple[list[_Good], tuple[SkippedFile, ...]]:
    """The images that can be used, and what is left out, which is not too much."""
    good, skipped = [], list(found.skipped)
    seens = looked_at([record.path for record in found.records], progress)
    for record, seen in zip(found.records, seens, strict=True):
        why = seen if isinstance(seen, str) else _differs(record, seen)
        if isinstance(seen, str) or why:
            skipped.append(SkippedFile(path=str(record.path), why=why))
        else:
            good.append(_Good(record, seen))
    check_bad(skipped, len(found.records) + len(found.skipped), found.root, "annotated images")
    return good, tuple(skipped)


def _differs(record: Record, picture: Picture) -> str:
    if record.size in (None, picture.size):
        return ""
    stated, real = ("{}x{}".format(*size) for size in (record.size or (0, 0), picture.size))
    return f"the picture has {real} pixels, its annotation is for {stated}"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Stated:
    """The boxes of all images one after another, as their files have them."""

    records: Sequence[Record]
    owner: Indices
    """[n], which image each is of."""
    place: Indices
    """[n], which of its image's boxes it is."""
    boxes: npt.NDArray[np.float64]
    """[n, 4]"""
    states: States

    def count(self, why: str, which: npt.NDArray[np.bool_]) -> BoxCount:
        """Those where this mask holds."""
        found = np.flatnonzero(which)
        examples = []
        for one in found[:EXAMPLES]:
            record = self.records[self.owner[one]]
            examples.append(f"{record.source} {record.ids[self.place[one]]}")
        return BoxCount(why=why, count=len(found), examples=tuple(examples))


def _stated(found: Annotations, good: Sequence[_Good]) -> _Stated:
    records = [one.record for one in good]
    counts = [len(record.boxes) for record in records]
    return _Stated(
        records=records,
        owner=np.repeat(np.arange(len(good)), counts),
        place=np.concatenate([np.empty(0, np.int64), *map(np.arange, counts)]),
        boxes=np.array([box for record in records for box in record.boxes], np.float64).reshape(-1, 4),
        states=found.states,
    )


def _cleaned(
    found: Annotations, good: Sequence[_Good]
) -> tuple[list[Boxes], tuple[BoxCount, ...], BoxCount]:
    """The boxes of all images that can be kept; what was dropped, which is not too much, and clipped."""
    stated = _stated(found, good)
    sizes = np.array([one.picture.size * 2 for one in good], np.float64).reshape(-1, 4)[stated.owner]
    finite = np.logical_and.reduce(np.isfinite(stated.boxes), axis=1)
    boxes = np.where(finite[:, None], stated.boxes * (sizes if stated.states == "shares" else 1), 0)
    _check_meant(found.root, stated, boxes, sizes, finite)
    cut = np.clip(boxes, 0, sizes)
    thin = finite & _thin(boxes)
    outside = finite & ~thin & _thin(cut)
    kept = finite & ~thin & ~outside
    partly = kept & np.logical_or.reduce(np.abs(cut - boxes) > ROUNDING, axis=1)
    dropped = [
        stated.count("without four finite numbers", ~finite),
        stated.count("without width or height", thin),
        stated.count("outside of the picture", outside),
        BoxCount(why="of images that are not listed", count=len(found.strays), examples=found.strays[:EXAMPLES]),
    ]
    dropped = [one for one in dropped if one.count]
    _check_dropped(found, dropped, len(boxes) + len(found.strays))
    truths = _truths(stated, found.classes, cut.astype(np.float32), kept)
    return truths, tuple(dropped), stated.count("cut to the picture", partly)


def _check_meant(
    root: Path, stated: _Stated, boxes: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64],
    finite: npt.NDArray[np.bool_],
) -> None:  # fmt: skip
    """See that the numbers of each part are what the format has, where they can be told to be others.

    Args:
        boxes, sizes: [n, 4]: corners, and width and height twice.
        finite: [n], which boxes are four numbers.

    Raises:
        InputError: they are not; it names the first box.
    """
    part_of = np.array([record.part for record in stated.records])[stated.owner]
    for part in np.unique(part_of):
        own = finite & (part_of == part)
        if what := _meant(boxes[own], sizes[own], stated.states):
            example = stated.count(what.seen, own).examples[0]
            raise InputError(f"{root}: the boxes of its {part} part {what.seen}; the first is {example}", what.hint)


class _Meant(NamedTuple):
    """What the numbers of boxes are in truth."""

    seen: str
    hint: str


def _meant(boxes: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64], states: States) -> _Meant | None:
    """What the numbers are, if not what the format has; ``None``: they may well be that."""
    if not len(boxes):
        return None
    left_top, right_bottom = boxes[:, :2], boxes[:, 2:]
    sides = right_bottom - left_top
    if states == "shares":
        middle, hint = (left_top + right_bottom) / 2, "YOLO's boxes are centre, width, height, as shares of the picture"
        wrong = ~_fits(boxes, sizes)
        if wrong.mean() > MISREAD and (sides[wrong] > 2 * sizes[wrong, :2]).any(axis=1).mean() > 0.5:
            return _Meant("are no shares of the picture (0 to 1)", hint)
        return _other_reading(boxes, sizes, [
            (np.hstack([middle, sides]), "have corners in the place of centre and sides", hint),
            (np.hstack([middle, middle + sides]), "have left and top in the place of their centre", hint),
        ])  # fmt: skip
    numbers = np.hstack([left_top, sides]) if states == "sides" else boxes
    shares = int(np.logical_and.reduce(np.hstack([numbers <= 1, sides > 0]), axis=1).sum())
    if shares == len(boxes) or too_many_bad(shares, len(boxes)):
        return _Meant("are shares of the picture (0 to 1), not pixels", "multiply them by its width and height")
    if states == "corners":
        others = [(np.hstack([left_top, left_top + right_bottom]), "have width and height in the place of xmax and ymax",
                   "add xmin and ymin to them")]  # fmt: skip
    else:
        others = [
            (np.hstack([left_top, sides]), "have corners (left, top, right, bottom) in the place of sides",
             "COCO's boxes are left, top, width, height"),
            (np.hstack([left_top - sides / 2, left_top + sides / 2]), "have their centre in the place of left and top",
             "COCO's boxes are left, top, width, height"),
        ]  # fmt: skip
    return _other_reading(boxes, sizes, others)


def _other_reading(
    boxes: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64],
    others: Sequence[tuple[npt.NDArray[np.float64], str, str]],
) -> _Meant | None:  # fmt: skip
    """The reading, of boxes with what is seen and what to do, that fits all pictures where the first does not."""
    wrong = ~_fits(boxes, sizes)
    if len(boxes) < FEWEST_TO_TELL or wrong.sum() < 2 or wrong.mean() < MISREAD:
        return None
    return next((_Meant(seen, hint) for other, seen, hint in others if _fits(other, sizes).all()), None)


def _fits(boxes: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which are boxes in their pictures, but for a pixel."""
    inside: npt.NDArray[np.bool_] = np.logical_and.reduce((boxes >= -1) & (boxes <= sizes + 1), axis=1)
    return inside & ~_thin(boxes)


def _truths(
    stated: _Stated, classes: Sequence[str], boxes: npt.NDArray[np.float32], kept: npt.NDArray[np.bool_]
) -> list[Boxes]:
    label_of = {name: label for label, name in enumerate(classes)}
    labels = [label_of[name] for record in stated.records for name in record.names]
    crowd = [flag for record in stated.records for flag in record.crowd]
    everything = Boxes(boxes=boxes, labels=np.array(labels, np.int64), crowd=np.array(crowd, np.bool_))
    positions = np.flatnonzero(kept)
    ends = np.searchsorted(stated.owner[positions], np.arange(1, len(stated.records)))
    return [everything.chosen(one) for one in np.split(positions, ends)]


def _thin(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    thin: npt.NDArray[np.bool_] = np.logical_or.reduce((boxes[:, 2:] - boxes[:, :2]) < THIN, axis=1)
    return thin


def _check_dropped(found: Annotations, dropped: Sequence[BoxCount], count: int) -> None:
    bad = sum(one.count for one in dropped)
    if too_many_bad(bad, count):
        raise InputError(
            f"{bad} of the {count} boxes in {found.root} cannot be used: {'; '.join(map(str, dropped))}", MEND
        )


def _rarest(truths: Sequence[Boxes], classes: int) -> Indices:
    """The class of each image that the fewest images have, by which they are divided; -1: without boxes."""
    own = [np.unique(truth.labels[~truth.crowd]) for truth in truths]
    images = np.bincount(np.concatenate([np.empty(0, np.int64), *own]), minlength=classes)
    return np.array([labels[images[labels].argmin()] if len(labels) else -1 for labels in own], np.int64)


def _check_enough(
    found: Annotations, parts: Sequence[str], labels: Indices, skipped: Sequence[SkippedFile], holdout: float
) -> None:
    """See that every part has as many images as it needs, and that there is something to learn."""
    given, usable = {record.part for record in found.records}, Counter(parts)
    needed = dict.fromkeys(sorted(given | {"train"}), 1)
    needed["train"] = 1 + (given == {"train"}) + (not {"val", "test"} <= given and holdout > 0)
    lacking = [f"its {part} part has {usable[part]} usable images and needs {count}"
               for part, count in needed.items() if usable[part] < count]  # fmt: skip
    if lacking:
        because = f"; the first left out: {skipped[0].path} ({skipped[0].why})" if skipped else ""
        raise InputError(f"{found.root}: {', '.join(lacking)}{because}", "add annotated images")
    if not (labels >= 0).any():
        raise InputError(f"{found.root} has no box to learn from", "annotate what is to be found")


class _Division(NamedTuple):
    """Positions of the images in the three sets."""

    train: Indices
    holdout: Indices
    test: Indices


def _divided(parts: Sequence[str], labels: Indices, seed: int, holdout: float) -> _Division:
    train, held, test = (np.flatnonzero(np.array(parts) == part) for part in PARTS)
    if not len(test):
        test, held = held, test
    if not len(test):
        train, test = _apart(train, labels, TEST_FRACTION, seed)
    if not len(held):
        train, held = _apart(train, labels, holdout, seed + 1)
    return _Division(train, held, test)


def _apart(positions: Indices, labels: Indices, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Divide positions in two so that both parts have about the same share of every label.

    The images are laid out label by label, at random within each, and taken at equal distances: a label
    of one image costs no other its place, as rounding label by label would.
    """
    if fraction == 0:
        return positions, positions[:0]
    count = min(max(1, round(fraction * len(positions))), len(positions) - 1)
    shuffled = np.random.default_rng(seed).permutation(positions)
    in_order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    chosen = in_order[((np.arange(count) + 0.5) * len(positions) / count).astype(np.int64)]
    return np.setdiff1d(positions, chosen), np.sort(chosen)


def _groups(division: _Division) -> Indices:
    groups = np.empty(sum(map(len, division)), np.int64)
    for number, positions in enumerate(division):
        groups[positions] = number
    return groups


def _check_boxes(root: Path, **parts: DetectionSet) -> None:
    for name, part in parts.items():
        if not part.counts.any():
            raise InputError(f"the {name} images of {root} have no box", "annotate some of them")


def _known(picture: Picture, truth: Boxes) -> bytes:
    """What an image and its boxes are known by."""
    arrays: tuple[npt.NDArray[Any], ...] = (truth.boxes.astype("<f4"), truth.labels.astype("<i8"), truth.crowd)
    return picture.digest.encode() + b"".join(array.tobytes() for array in arrays) + b"\n"


def _fingerprint(found: Annotations, good: Sequence[_Good], truths: Sequence[Boxes]) -> str:
    digest = hashlib.sha256("\0".join(found.classes).encode(errors="surrogateescape"))
    for one, truth in zip(good, truths, strict=True):
        name = f"{one.record.part}\0{one.record.path.relative_to(found.root).as_posix()}\0"
        digest.update(name.encode(errors="surrogateescape") + _known(one.picture, truth))
    return digest.hexdigest()

