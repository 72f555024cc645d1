"""COCO's layout (Lin et al., 2014, arXiv:1405.0312; the data format of cocodataset.org).

A JSON file for each part, found by its name:

- ``annotations/instances_train2017.json`` and ``instances_val2017.json``;
- ``train.json`` and ``val.json``, in the folder itself or in ``annotations``;
- ``train/_annotations.coco.json``, ``valid/...`` and ``test/...``, as Roboflow exports them;
- ``annotations_train.json``, ``coco_val.json`` and the like, where no file has a name of the above;
- one file alone, whatever its name: it is divided by the seed.

Pictures lie in a folder named like the file or like the part (``train2017``, ``train``), there or below
``images``, in ``images`` itself, in the folder itself, or beside the file.

The classes are the categories in the order of their ids; files are brought together by the categories'
names. A category that no box has and that is another's ``supercategory`` is left out: Roboflow writes
one such, at times of a real class's name. Ids may be numbers or text, 1, 1.0 and "1" being one; paths may have
Windows' separators; of paths that lead nowhere here the last part is tried.

A box of a category that the file lacks is an error, since then no label can be trusted.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from mobilefit.data.annotations import Annotations, Corners, Record
from mobilefit.data.classification import SkippedFile
from mobilefit.data.layout import is_junk
from mobilefit.data.names import is_path_below, last_part, picture_in, spelling
from mobilefit.errors import InputError
from mobilefit.parsing import parse_json
from mobilefit.runs import read_bytes

ROBOFLOW = "_annotations.coco.json"
LARGEST_FILE = 2**33
"""Bytes; the largest public ones have 4 GB."""
PROBED = 20
"""Pictures that are looked for in a folder, to see whether it is the one."""

_PART = re.compile(r"(train|val|test)(id|idation|ing)?(?![a-z])")
_NAN = (math.nan,) * 4

Row = dict[str, Any]


class File(NamedTuple):
    """An annotation file."""

    path: Path
    word: str
    """Its name, but for what all have in common: "train2017"."""


def find(root: Path) -> dict[str, File]:
    """The annotation files by part; empty if there are none.

    Raises:
        InputError: there are two for one part.
    """
    paths = chain(root.glob("*.json"), root.glob("annotations/*.json"), root.glob(f"*/{ROBOFLOW}"))
    mine = (path for path in paths if not any(map(is_junk, path.relative_to(root).parts)))
    files = [File(path, _word(path)) for path in sorted(mine)]
    parts: dict[str, File] = {}
    for file in files:
        part = part_of(file.word)
        if part in parts:
            raise InputError(f"{parts[part].path} and {file.path} are both for {part}", "keep one of them")
        if part:
            parts[part] = file
    if not parts and len(files) == 1:
        return {"train": files[0]}
    return parts or _by_any_word(files)


def is_other(files: dict[str, File]) -> bool:
    """Whether there is one file alone whose name tells no part and which lists no images with annotations: notes."""
    path = next(iter(files.values())).path
    if len(files) > 1 or _PART.search(path.stem.lower()) or path.name == ROBOFLOW:
        return False
    try:
        data = read_bytes(path)
    except OSError:
        return False
    return not (b'"images"' in data and b'"annotations"' in data) and b"\0" not in data[:4]  # UTF-16 has zeros


def _by_any_word(files: Sequence[File]) -> dict[str, File]:
    """Files whose names tell the part elsewhere than at their beginning: ``annotations_train.json``."""
    parts: dict[str, File] = {}
    for file in files:
        words = [part for word in re.split(r"[^a-z0-9]+", file.word.lower()) if (part := part_of(word))]
        if len(words) == 1:
            if words[0] in parts:
                raise InputError(f"{parts[words[0]].path} and {file.path} are both for {words[0]}", "keep one of them")
            parts[words[0]] = file
    return parts


def _word(path: Path) -> str:
    return path.parent.name if path.name == ROBOFLOW else path.stem.removeprefix("instances_")


def part_of(name: str) -> str | None:
    """The part that a file or folder is named for: "train", "val" or "test"."""
    match = _PART.match(name.lower())
    return match[1] if match else None


def read(root: Path, files: dict[str, File]) -> Annotations:
    """Read the annotation files that :func:`find` found.

    Raises:
        InputError: a file is broken or lacks something, its boxes have categories that it lacks, files
            differ in their categories, or no picture is found; it names the file.
    """
    if "train" not in files:
        raise InputError(f"{root} has annotations for {' and '.join(files)} alone", "add a file for train")
    found = {part: _read(root, part, file) for part, file in files.items()}
    supers = {name for one in found.values() for name in one.supers}
    used = {name for one in found.values() for record in one.records for name in record.names}
    classes = tuple(name for name in found["train"].classes if name in used or name not in supers)
    for part, one in found.items():
        extra = sorted(used.intersection(one.classes).difference(classes))
        if extra:
            raise InputError(
                f"{files[part].path} has the category '{extra[0]}', which {files['train'].path} lacks",
                "both must have the same categories",
            )
    return Annotations(
        root=root,
        classes=classes,
        records=tuple(record for one in found.values() for record in one.records),
        skipped=tuple(skip for one in found.values() for skip in one.skipped),
        strays=tuple(stray for one in found.values() for stray in one.strays),
        states="sides",
    )


class _Found(NamedTuple):
    """What one file holds."""

    classes: tuple[str, ...]
    supers: frozenset[str]
    records: list[Record]
    skipped: list[SkippedFile]
    strays: list[str]


def _read(root: Path, part: str, file: File) -> _Found:
    content = load(file.path)
    categories = _categories(content, file.path)
    images = _images(content, file.path)
    notes, strays = _by_image(content, file.path, categories, images)
    folder, flat = _folder(root, part, file, [image["file_name"] for image in images.values()])
    source = f"{file.path.relative_to(root).as_posix()} annotation"
    records, skipped = [], []
    for key, image in images.items():
        name = last_part(image["file_name"]) if flat else image["file_name"]
        if not is_path_below(name):
            skipped.append(SkippedFile(path=name, why=f"{file.path.name} names a file outside of the folder"))
            continue
        own = notes.get(key, [])
        records.append(Record(
            part=part,
            path=picture_in(folder, name),
            source=source,
            size=_size(image),
            boxes=[_corners(note.get("bbox")) for _, note in own],
            names=[categories[_key(note["category_id"])] for _, note in own],
            crowd=[bool(note.get("iscrowd", 0)) for _, note in own],
            ids=[mark for mark, _ in own],
        ))  # fmt: skip
    above = {_name(row): str(row.get("supercategory")).strip() for row in content["categories"]}
    supers = frozenset(above.values()).difference(name for name, other in above.items() if name == other)
    return _Found(tuple(categories.values()), supers, records, skipped, [f"{source} {one}" for one in strays])


def load(path: Path) -> dict[str, list[Row]]:
    """The lists of a COCO file.

    Raises:
        InputError: it cannot be read, is broken (with the line), or lacks a list.
    """
    try:
        content = parse_json(read_bytes(path), largest=LARGEST_FILE, digits=4000)  # a box with one is dropped
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} is broken JSON, line {error.lineno}, column {error.colno}: {error.msg}", "export it anew"
        ) from error
    except ValueError as error:  # not text, or beyond the limits
        raise InputError(f"{path} is no JSON: {error}", "export it anew") from error
    lists = ("images", "annotations", "categories")
    lacking = [name for name in lists if not isinstance(content, dict) or not _is_rows(content.get(name))]
    if lacking:
        raise InputError(f"{path} lacks the list {' and '.join(lacking)}", "it is no COCO file of boxes")
    return {name: content[name] for name in lists}


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def _key(value: object) -> object:
    """An id, whichever of 1, 1.0 and "1" a program writes for it; ``None`` for what is none."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19 and str(int(value)) == value:
        return int(value)
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None


def _name(row: Row) -> str:
    return spelling(str(row.get("name")).strip())


def _categories(content: dict[str, list[Row]], path: Path) -> dict[object, str]:
    """Names by id, in the order of the ids; without the placeholder that Roboflow writes for all of them."""
    names: dict[object, str] = {}
    used = {_key(row.get("category_id")) for row in content["annotations"]}
    written = Counter(map(_name, content["categories"]))
    for row in content["categories"]:
        key, name = _key(row.get("id")), _name(row)
        if key is None or not isinstance(row.get("name"), str) or not name:
            raise InputError(f"{path}: a category lacks its id or name: {json.dumps(row)[:80]}")
        if written[name] > 1 and key not in used and row.get("supercategory") in (None, "", "none"):
            continue  # the placeholder, of a real class's name
        if key in names or name in names.values():
            raise InputError(f"{path}: two categories have the id {key} or the name '{name}'", "rename one of them")
        names[key] = name
    if not names:
        raise InputError(f"{path} lists no categories")
    words = [key for key in names if isinstance(key, str)]
    if words and len(words) < len(names):
        raise InputError(f"{path}: some category ids are numbers, others words such as '{words[0]}'", "number them all")
    return dict(sorted(names.items(), key=lambda item: item[0]))  # type: ignore[arg-type,return-value]


def _images(content: dict[str, list[Row]], path: Path) -> dict[object, Row]:
    """The images by id."""
    images: dict[object, Row] = {}
    for number, row in enumerate(content["images"], 1):
        key = _key(row.get("id"))
        if key is None or not isinstance(row.get("file_name"), str):
            raise InputError(f"{path}: image number {number} lacks its id or file_name")
        if key in images:
            raise InputError(f"{path}: two images have the id {key}")
        images[key] = row
    if not images:
        raise InputError(f"{path} lists no images")
    return images


Marked = tuple[object, Row]
"""An annotation, and what to name it by."""


def _by_image(
    content: dict[str, list[Row]], path: Path, categories: dict[object, str], images: dict[object, Row]
) -> tuple[dict[object, list[Marked]], list[object]]:
    """The annotations of each image, and those of images that are not listed."""
    notes: dict[object, list[Marked]] = {}
    strays: list[object] = []
    wrong = []
    for number, row in enumerate(content["annotations"], 1):
        mark = row.get("id", f"number {number}")
        category, image = row.get("category_id"), _key(row.get("image_id"))
        if _key(category) not in categories:
            lacks = "no category_id" if category is None else f"the category_id {category}, which is not listed"
            wrong.append(f"annotation {mark} has {lacks}")
        elif image in images:
            notes.setdefault(image, []).append((mark, row))
        else:
            strays.append(mark)
    if wrong:
        more = f" (and {len(wrong) - 1} others like it)" if len(wrong) > 1 else ""
        raise InputError(f"{path}: {wrong[0]}{more}", "give every annotation one of the file's categories")
    return notes, strays


def _folder(root: Path, part: str, file: File, names: Sequence[str]) -> tuple[Path, bool]:
    """Where the pictures are, and whether by the last part of their names alone: paths of another machine.

    Raises:
        InputError: none of the first ones is anywhere; it says where was looked.
    """
    below = [folder for place in (root, root / "images") if place.is_dir() for folder in sorted(place.iterdir())]
    named = [folder for folder in below if folder.is_dir() and folder.name == file.word]
    alike = [folder for folder in below if folder.is_dir() and part_of(folder.name) == part]
    places = dict.fromkeys([*named, *alike, root / "images", root, file.path.parent])
    some = [name for name in names if is_path_below(name)][:PROBED]
    for flat, probed in ((False, some), (True, [last_part(name) for name in names[:PROBED]])):
        for place in places:
            if any(picture_in(place, name).is_file() for name in probed):
                return place, flat
    looked = ", ".join(str(place) for place in places if place.is_dir())
    raise InputError(
        f"no picture that {file.path} lists is there, such as {names[0]}: looked in {looked}",
        f"put the pictures into {root / file.word}",
    )


def _size(image: Row) -> tuple[int, int] | None:
    width, height = image.get("width"), image.get("height")
    known = all(isinstance(side, int) and side > 0 for side in (width, height))
    return (int(width), int(height)) if known else None  # type: ignore[arg-type]


def _corners(box: object) -> Corners:
    """From left, top, width, height; NaN for anything else."""
    try:
        left, top, width, height = (float(value) for value in box) if isinstance(box, list) else _NAN
    except (TypeError, ValueError, OverflowError):
        left, top, width, height = _NAN
    return left, top, left + width, top + height
