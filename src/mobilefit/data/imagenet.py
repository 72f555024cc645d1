"""ImageNet's (ILSVRC2012) own layout: folders named by WordNet ids, and validation images in one folder.

``train/n01440764/*.JPEG`` is read like any folder of class folders; only the names of the classes are
made readable. ``val`` may have the same class folders, or be as it was published: 50,000 images
``ILSVRC2012_val_00000001.JPEG`` in one folder, whose classes stand in a file of their own. Two such are
read, from the data set's folder, from ``val``, or from up to three folders above, as Kaggle has it:

- ``LOC_val_solution.csv`` of Kaggle's copy;
- ``meta.bin``, which ``torchvision.datasets.ImageNet`` makes of the development kit.

Labels are the places of the sorted ids, as torchvision's and timm's checkpoints have them. With fewer
class folders than a thousand, validation images of other classes are left out.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mobilefit.errors import InputError
from mobilefit.runs import read_bytes

_ID = re.compile(r"n\d{8}")
_VALIDATION = re.compile(r"ILSVRC2012_val_\d{8}\.JPEG")
_TEST = re.compile(r"ILSVRC2012_test_\d{8}\.JPEG")

SOLUTION = "LOC_val_solution.csv"
META = "meta.bin"


def has_ids(folders: Sequence[str]) -> bool:
    """Whether all class folders are named by WordNet ids."""
    return bool(folders) and all(_ID.fullmatch(name) for name in folders)


def readable(ids: Sequence[str]) -> tuple[str, ...]:
    """The first name that WordNet has for each id; where two share one, with the id appended.

    From timm's tables, which hold ImageNet-21k's. An id that is not among them stays as it is.
    """
    from timm.data.imagenet_info import ImageNetInfo  # takes seconds to import

    names = {}
    for subset in ("imagenet-22k", "imagenet-1k"):  # the larger lacks one of the smaller, the teddy
        info: Any = ImageNetInfo(subset)
        for one in set(info.label_names()).intersection(ids):
            names[one] = info.label_name_to_description(one, detailed=False).split(",")[0]
    found = [names.get(one, one) for one in ids]
    count = Counter(found)
    return tuple(
        f"{name} ({one})" if count[name] > 1 else name for name, one in zip(found, ids, strict=True)
    )


def is_validation(folder: Path) -> bool:
    """Whether a folder holds ILSVRC2012's validation images as they were published."""
    return _first_matches(folder, _VALIDATION)


def is_test(folder: Path) -> bool:
    """Whether a folder holds ILSVRC2012's test images, whose classes were never published."""
    return _first_matches(folder, _TEST)


def _first_matches(folder: Path, pattern: re.Pattern[str]) -> bool:
    with os.scandir(folder) as entries:
        names = (entry.name for entry in entries if not entry.name.startswith("."))
        return any(pattern.fullmatch(name) for name in names)


def validation_labels(
    root: Path, folder: Path, classes: Sequence[str]
) -> Callable[[str], int | None]:
    """From the name of a validation image to its label; ``None`` for one of none of these classes.

    Args:
        root: the data set's folder.
        folder: with the validation images.
        classes: WordNet ids; a label is an index into them.

    Raises:
        InputError: no file tells the classes, or it cannot be used; on the call, it lacks an image.
    """
    path, ids = _validation_ids(root, folder)
    labels = {one: label for label, one in enumerate(classes)}

    def label_of(name: str) -> int | None:
        if not _VALIDATION.fullmatch(name):
            return None
        if name[:-5] not in ids:
            raise InputError(f"{path} does not tell the class of {folder / name}", "get the whole file")
        return labels.get(ids[name[:-5]])

    return label_of


def _validation_ids(root: Path, folder: Path) -> tuple[Path, dict[str, str]]:
    """The file that tells the WordNet ids of the validation images, and these by ``ILSVRC2012_val_NUMBER``."""
    for place in (root, folder, *root.resolve().parents[:3]):
        for name, read in ((SOLUTION, _from_solution), (META, _from_meta)):
            if (place / name).is_file():
                return place / name, read(place / name)
    raise InputError(
        f"{folder} holds images of ILSVRC2012 without class folders, and nothing tells their classes",
        f"put Kaggle's {SOLUTION}, or the {META} that torchvision.datasets.ImageNet makes of the "
        f"development kit, into {root}, or move the images into class folders",
    )


def _from_solution(path: Path) -> dict[str, str]:
    """Rows such as ``ILSVRC2012_val_00048981,n03995372 85 1 499 272``: boxes follow the id."""
    try:
        rows = csv.DictReader(io.StringIO(read_bytes(path).decode(), newline=""))
        ids = {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
    except (OSError, ValueError, KeyError, IndexError, AttributeError, TypeError, csv.Error) as error:
        raise InputError(f"cannot use {path}: {error!r}", "it has the columns ImageId,PredictionString") from error
    return _checked(ids, path)


def _from_meta(path: Path) -> dict[str, str]:
    """torchvision's file: names by id, and the ids of the validation images in their order."""
    import torch

    try:
        _, in_order = torch.load(path, weights_only=True)
        ids = {f"ILSVRC2012_val_{number:08d}": one for number, one in enumerate(in_order, 1)}
    except Exception as error:  # unpickling raises anything at all on damaged bytes
        raise InputError(
            f"cannot use {path}: {' '.join(str(error).split())[:200]}",
            "delete it and let torchvision.datasets.ImageNet make it anew",
        ) from error
    return _checked(ids, path)


def _checked(ids: dict[str, str], path: Path) -> dict[str, str]:
    wrong = next((one for one in ids.values() if not isinstance(one, str) or not _ID.fullmatch(one)), None)
    if wrong is not None or not ids:
        raise InputError(f"cannot use {path}: {wrong!r} is no WordNet id" if ids else f"{path} is empty")
    return ids
