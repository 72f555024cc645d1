"""A folder of class folders.

Two layouts are read:

- ``train/CLASS/*.jpg`` with ``val``, ``valid``, ``validation`` or ``test`` beside it, holding the
  same classes: the second is the test set, and the held-out part is taken from ``train``. With both
  a validation folder and ``test``, the validation folder is the held-out part and ``train`` stays
  whole. With ``train`` alone, it is divided like the second layout.
- ``CLASS/*.jpg``: a fifth of each class, chosen by the seed, is the test set.

Images may lie deeper inside a class folder. Hidden files and files without an image's extension
(``EXTENSIONS``) are ignored. Classes and files are taken in sorted order.

**The rule for bad files.** Every image file is read and decoded to its end when the data set is
loaded. A file is bad if it is empty, unreadable, truncated, not an image or with a short side under
4 pixels. Bad files are named, counted and skipped, as long as they are at most 10 % of all image
files (three are always allowed) and every class keeps enough good images; otherwise the data set is
refused, with the first bad files named. Grey, CMYK, palette, 16-bit, transparent and rotated images
are good: they are converted. So are images smaller than the network's input: they are enlarged.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mobilefit.data.classification import ClassificationData, SkippedFile
from mobilefit.data.decode import BadImageError
from mobilefit.data.images import (
    KEPT_BYTES,
    FileSource,
    ImageSet,
    Photo,
    look_at,
    worker_count,
)
from mobilefit.data.splits import stratified
from mobilefit.errors import InputError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
VALIDATION_NAMES = ("val", "valid", "validation")

BAD_FRACTION = 0.1
"""A data set with a larger part of bad files is refused."""
BAD_ALWAYS_ALLOWED = 3
"""Bad files that even a small data set may have."""
TEST_FRACTION = 0.2
"""Part of each class set apart for the test where the folder does not say."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Entry:
    """One image file that was found."""

    part: str  # "train", "val", "test"
    label: int
    path: Path


def load_folder(root: Path, *, seed: int, holdout: float) -> ClassificationData:
    """Read a folder of class folders; see the module's text.

    Raises:
        InputError: no class folders, fewer than two classes, parts with different classes, a class
            with too few images, too many bad files.
    """
    parts = _find_parts(root)
    classes = _common_classes(parts)
    entries = [
        _Entry(part=part, label=label, path=path)
        for part, folder in parts.items()
        for label, name in enumerate(classes)
        for path in image_files(folder / name)
    ]
    _check_found(entries, parts, classes)
    good, skipped = _look_at_all(entries)
    _check_bad(skipped, len(entries), root)
    return _assemble(root, classes, good, skipped, seed=seed, holdout=holdout)


def _find_parts(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise InputError(f"{root} is not a folder", "give a folder of class folders")
    folders = _folders(root)
    if "train" not in folders:
        return {"train": root}
    validation = [name for name in VALIDATION_NAMES if name in folders]
    if len(validation) > 1:
        raise InputError(f"{root} has both {validation[0]} and {validation[1]}", "keep one of them")
    parts = {"train": root / "train"}
    if validation:
        parts["val" if "test" in folders else "test"] = root / validation[0]
    if "test" in folders:
        parts["test"] = root / "test"
    return parts


def _common_classes(parts: dict[str, Path]) -> tuple[str, ...]:
    train = parts["train"]
    classes = _folders(train)
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
        lacking = sorted(set(classes) - set(_folders(folder)))
        extra = sorted(set(_folders(folder)) - set(classes))
        if lacking or extra:
            differences = [f"lacks {', '.join(lacking)}"] * bool(lacking)
            differences += [f"has {', '.join(extra)}, which train lacks"] * bool(extra)
            raise InputError(
                f"{folder} {' and '.join(differences)}", "both must hold the same class folders"
            )
    return tuple(classes)


def _folders(root: Path) -> list[str]:
    try:
        found = [path for path in root.iterdir() if not path.name.startswith(".")]
        return sorted(path.name for path in found if path.is_dir())
    except OSError as error:
        raise InputError(f"cannot read {root}: {error.strerror}") from error


def image_files(folder: Path) -> list[Path]:
    found = []
    for directory, inner, names in os.walk(folder, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".")]
        found += [Path(directory, name) for name in names if _is_image_name(name)]
    return sorted(found)


def _is_image_name(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(EXTENSIONS)


def _check_found(entries: list[_Entry], parts: dict[str, Path], classes: tuple[str, ...]) -> None:
    found = {(entry.part, entry.label) for entry in entries}
    empty = [
        str(folder / name)
        for part, folder in parts.items()
        for label, name in enumerate(classes)
        if (part, label) not in found
    ]
    if empty:
        raise InputError(
            f"no image in {_first_few(empty)}",
            f"add images ({' '.join(EXTENSIONS[:3])} ...) or remove the class folder",
        )


def _look_at_all(entries: list[_Entry]) -> tuple[list[tuple[_Entry, Photo]], list[SkippedFile]]:
    good, skipped, memory = [], [], KEPT_BYTES
    for entry, found in _looked_at(entries):
        if isinstance(found, str):
            skipped.append(SkippedFile(path=str(entry.path), why=found))
            continue
        assert found.kept is not None
        memory -= found.kept.nbytes
        good.append((entry, found if memory >= 0 else dataclasses.replace(found, kept=None)))
    return good, skipped


def _looked_at(entries: list[_Entry]) -> Iterator[tuple[_Entry, Photo | str]]:
    """Each entry with its photo, or with why it is bad. Decoding runs outside the GIL."""

    def one(entry: _Entry) -> Photo | str:
        try:
            return look_at(entry.path)
        except BadImageError as error:
            return str(error)
        except OSError as error:
            return f"cannot be read: {error.strerror}"

    with ThreadPoolExecutor(worker_count()) as pool:
        yield from zip(entries, pool.map(one, entries), strict=True)


def _check_bad(skipped: list[SkippedFile], count: int, root: Path) -> None:
    if len(skipped) > max(BAD_ALWAYS_ALLOWED, BAD_FRACTION * count):
        raise InputError(
            f"{len(skipped)} of the {count} image files in {root} are bad: {_described(skipped)}",
            f"mend or remove them; at most {BAD_FRACTION:.0%} are skipped",
        )


def _described(skipped: Iterable[SkippedFile]) -> str:
    return _first_few([f"{file.path} ({file.why})" for file in skipped])


def _first_few(items: list[str], count: int = 3) -> str:
    rest = len(items) - count
    return ", ".join(items[:count]) + (f" and {rest} more" if rest > 0 else "")


def _assemble(
    root: Path,
    classes: tuple[str, ...],
    good: list[tuple[_Entry, Photo]],
    skipped: list[SkippedFile],
    *,
    seed: int,
    holdout: float,
) -> ClassificationData:
    labels = np.array([entry.label for entry, _ in good], dtype=np.int64)
    part_of = np.array([entry.part for entry, _ in good], dtype="<U5")
    _check_enough(labels, part_of, classes, skipped, holdout)
    everything = ImageSet(FileSource([photo for _, photo in good]), labels)
    train, held, test = _divided(labels, part_of, seed=seed, holdout=holdout)
    return ClassificationData(
        name=root.resolve().name,
        classes=classes,
        train=everything.subset(train),
        holdout=everything.subset(held),
        test=everything.subset(test),
        skipped=tuple(skipped),
        fingerprint=_fingerprint(root, classes, good),
        short_side=int(np.median([min(photo.size) for _, photo in good])),
    )


def _divided(
    labels: npt.NDArray[np.int64], part_of: npt.NDArray[np.str_], *, seed: int, holdout: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    train, held, test = (np.flatnonzero(part_of == part) for part in ("train", "val", "test"))
    if not len(test):
        stay, apart = stratified(labels[train], TEST_FRACTION, seed)
        train, test = train[stay], train[apart]
    if not len(held):
        stay, apart = stratified(labels[train], holdout, seed + 1)
        train, held = train[stay], train[apart]
    return train, held, test


def _check_enough(
    labels: npt.NDArray[np.int64],
    part_of: npt.NDArray[np.str_],
    classes: tuple[str, ...],
    skipped: list[SkippedFile],
    holdout: float,
) -> None:
    present = set(part_of)
    needed = {"val": 1, "test": 1}
    needed["train"] = 1 + ("test" not in present) + ("val" not in present and holdout > 0)
    because = f"; bad files: {_described(skipped)}" if skipped else ""
    for part in sorted(present):
        for label, name in enumerate(classes):
            count = int(np.sum((part_of == part) & (labels == label)))
            if count < needed[part]:
                raise InputError(
                    f"class '{name}' has {count} usable images in its {part} part, and needs "
                    f"{needed[part]}{because}",
                    "add images or remove the class folder",
                )


def _fingerprint(root: Path, classes: tuple[str, ...], good: list[tuple[_Entry, Photo]]) -> str:
    digest = hashlib.sha256()
    for entry, photo in good:
        name = entry.path.relative_to(root).as_posix()
        digest.update(f"{entry.part}\0{classes[entry.label]}\0{name}\0{photo.sha256}\n".encode())
    return digest.hexdigest()
