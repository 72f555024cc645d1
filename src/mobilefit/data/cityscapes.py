"""Cityscapes as its web page gives it out: 19 classes of street scenes, 2048x1024 pixels.

``leftImg8bit_trainvaltest.zip`` and ``gtFine_trainvaltest.zip`` unpacked side by side::

    leftImg8bit/{train,val,test}/CITY/*_leftImg8bit.png
    gtFine/{train,val,test}/CITY/*_gtFine_labelIds.png    (or *_labelTrainIds.png, which its scripts make)

The masks of ``test`` are dummies (its truth stays with the benchmark's server), so that ``val`` is the
test set, as in the papers' tables, and the held-out part is taken from ``train``.

Names, numbers and colours are those of ``cityscapesscripts/helpers/labels.py``
(https://github.com/mcordts/cityscapesScripts).
"""

from __future__ import annotations

from pathlib import Path

from mobilefit.data.layout import is_junk
from mobilefit.data.masks import Colour
from mobilefit.errors import InputError

Files = dict[str, Path]
"""Files by what an image and its mask have in common."""

#     labelId, name, colour; the train id is the row's number
ROWS: tuple[tuple[int, str, Colour], ...] = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
LABEL_IDS = 34
"""Label ids are 0 to 33; those that are not in ``ROWS`` are left out in training and evaluation."""

IMAGES, MASKS = "leftImg8bit", "gtFine"
_IMAGE = "_leftImg8bit.png"
_MASK = {"train ids": "_gtFine_labelTrainIds.png", "label ids": "_gtFine_labelIds.png"}


def is_cityscapes(root: Path) -> bool:
    """Whether a folder has Cityscapes' own layout."""
    return (root / IMAGES).is_dir()


def files(root: Path) -> tuple[dict[str, tuple[Files, Files]], bool]:
    """The images and masks of the parts "train" and "test" (which is ``val``), by ``CITY/FRAME``.

    Returns:
        the files, and whether the masks hold train ids: they do where every image, or no fewer than
        have one of label ids, has such a mask.

    Raises:
        InputError: a folder is missing; all that are missing are named.
    """
    places = {"train": "train", "test": "val"}
    folders = [root / kind / part for part in places.values() for kind in (IMAGES, MASKS)]
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise InputError(
            f"Cityscapes in {root} lacks {', '.join(missing)}",
            "unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip there",
        )
    images = {part: _found(root / IMAGES / place, _IMAGE) for part, place in places.items()}
    by_kind = {
        kind: {part: _found(root / MASKS / place, end) for part, place in places.items()}
        for kind, end in _MASK.items()
    }
    kind = max(by_kind, key=lambda kind: sum(map(len, by_kind[kind].values())))  # the first, if equal
    return {part: (images[part], by_kind[kind][part]) for part in places}, kind == "train ids"


def _found(folder: Path, end: str) -> Files:
    paths = sorted(path for path in folder.glob(f"*/*{end}") if not is_junk(path.name) and not is_junk(path.parent.name))
    return {path.relative_to(folder).as_posix().removesuffix(end): path for path in paths}
