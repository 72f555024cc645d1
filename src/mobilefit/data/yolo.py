"""YOLO's layouts (Ultralytics, Roboflow, darknet): a text file of labels for each image.

``images/train`` beside ``labels/train``, ``train/images`` beside ``train/labels``, ``images`` beside
``labels``, or the text files beside the images, in the folder or its parts. A line is ``class x y width
height``: a number from 0, and the box's centre and sides as shares of the picture, 0 to 1; of a polygon
(``class x1 y1 x2 y2 ...``) the box around it is taken. The classes stand in a ``.yaml`` file's ``names``, or
in ``classes.txt``, ``*.names`` or ``_darknet.labels``, one a line. CVAT's ``obj_train_data`` and ``obj_valid_data``
are parts too. Where the ``.yaml`` file has a ``kpt_shape``, the lines are of poses: a box, and points that are left out.

An image without a file of labels shows nothing, and such are counted; a part for validation or the test without
any is left aside, and said.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

from mobilefit.data.annotations import Annotations, Corners, Record
from mobilefit.data.classification import SkippedFile
from mobilefit.data.folder import image_files
from mobilefit.data.layout import PARTS, is_junk, named_parts
from mobilefit.data.names import spelling
from mobilefit.errors import InputError
from mobilefit.runs import read_bytes

NOT_LABELS = ("classes", "readme", "train", "val", "valid", "test", "notes", "labels", "obj", "predefined_classes")
"""Names of text files that are no labels."""
_NAMES_HINT = "write classes.txt into it, a name a line, in the order of the numbers"


class LabelFolders(NamedTuple):
    """Where the images and the labels of a part are."""

    part: str
    images: Path
    labels: Path


def find(root: Path) -> list[LabelFolders]:
    """The folders by part; empty if it is not this layout.

    Raises:
        InputError: two folders could be one part.
    """
    cvat = [(part, root / f"obj_{name}_data") for part, names in PARTS.items() for name in names]
    if own := [LabelFolders(part, folder, folder) for part, folder in cvat if folder.is_dir()]:
        return own
    images, labels = _beside(root)
    if images != root and (names := named_parts(images)):
        parts = [LabelFolders(part, images / name, labels / name) for part, name in names.items()]
    elif images == root and (names := named_parts(root)):
        parts = [LabelFolders(part, *_beside(root / name, lone=True)) for part, name in names.items()]
    else:
        parts = [LabelFolders("train", images, labels)]
    return parts if any(_images(folders).keys() & _labels(folders) for folders in parts) else []


def _beside(folder: Path, lone: bool = False) -> tuple[Path, Path]:
    """The folders of images and labels in a folder: itself, where it has none (``lone``: no images)."""
    own = folder / "images", folder / "labels"
    return own if own[0].is_dir() and (lone or own[1].is_dir()) else (folder, folder)


def _images(folders: LabelFolders) -> dict[str, Path]:
    """The images by their paths in their folder, without extensions; directly in it where the labels are beside them."""
    folder, flat = folders.images, folders.images == folders.labels
    paths = image_files(folder) if folder.is_dir() else []
    return {
        spelling(path.relative_to(folder).with_suffix("").as_posix()): path
        for path in paths
        if not flat or path.parent == folder
    }


def _labels(folders: LabelFolders) -> dict[str, Path]:
    """The files of labels by their paths in their folder."""
    folder, pattern = folders.labels, "*.txt" if folders.images == folders.labels else "**/*.txt"
    return {
        spelling(path.relative_to(folder).with_suffix("").as_posix()): path
        for path in sorted(folder.glob(pattern))
        if path.stem.lower() not in NOT_LABELS and not any(map(is_junk, path.relative_to(folder).parts))
    }


def read(root: Path, parts: list[LabelFolders]) -> Annotations:
    """Read the labels of all parts.

    Raises:
        InputError: nothing names the classes, a label is of none of them, or no part is for training.
    """
    if "train" not in {folders.part for folders in parts}:
        raise InputError(f"{root} has no images with labels to train on", "name their folder train")
    file, classes, poses = _classes(root, parts)
    records: list[Record] = []
    skipped: list[SkippedFile] = []
    notes = [f"{root} is read as YOLO labels, their classes as {file} names them"]
    bare = 0
    for folders in parts:
        labels, images = _labels(folders), _images(folders)
        if not labels and folders.part != "train":
            if images:
                notes.append(f"{folders.images} is left aside: its {len(images)} pictures have no labels")
            continue
        for name, path in images.items():
            own = labels.pop(name, None)
            bare += own is None
            record = _record(root, folders.part, path, own, classes, file, poses)
            (records if isinstance(record, Record) else skipped).append(record)  # type: ignore[arg-type]
        skipped += [SkippedFile(path=str(path), why="there is no picture of its name") for path in labels.values()]
    if bare:
        notes.append(f"{bare} of {len(records) + len(skipped)} pictures have no file of labels: taken to show nothing")
    return Annotations(
        root=root, classes=classes, records=tuple(records), skipped=tuple(skipped), states="shares", notes=tuple(notes)
    )


def _record(
    root: Path, part: str, path: Path, labels: Path | None, classes: tuple[str, ...], file: Path, poses: bool
) -> Record | SkippedFile:
    lines: list[tuple[int, Corners]] = []
    numbers: list[int] = []
    try:
        text = "" if labels is None else read_bytes(labels).decode("utf-8-sig")
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                lines.append(_line(line, number, poses))
                numbers.append(number)
    except (OSError, UnicodeDecodeError) as error:
        return SkippedFile(path=str(labels), why=f"cannot be read: {error}")
    except _BadLineError as error:
        return SkippedFile(path=str(labels), why=str(error))
    source = "" if labels is None else f"{labels.relative_to(root).as_posix()} line"
    for number, (label, _) in zip(numbers, lines, strict=True):
        if label >= len(classes):
            raise InputError(
                f"{source} {number} has the class {label}, and {file} names {len(classes)}, from 0", "add its name"
            )
    return Record(
        part=part, path=path, source=source, size=None, boxes=[box for _, box in lines],
        names=[classes[label] for label, _ in lines], crowd=[False] * len(lines), ids=numbers,
    )  # fmt: skip


class _BadLineError(Exception):
    """Why a line is no label."""


def _line(line: str, number: int, pose: bool) -> tuple[int, Corners]:
    """The class and the corners, as shares, of a box, of a pose's box or of the one around a polygon."""
    try:
        label, *values = map(float, line.split())
    except ValueError as error:
        raise _BadLineError(f"line {number} is no label: '{line.strip()[:40]}'") from error
    if pose:
        values = values[:4]
    if len(values) < 4 or (len(values) > 4 and len(values) % 2) or not label.is_integer() or label < 0:
        raise _BadLineError(f"line {number} is no class with a box or a polygon: '{line.strip()[:40]}'")
    if len(values) == 4:
        x, y, width, height = values
        return int(label), (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    across, down = values[::2], values[1::2]
    finite = all(map(math.isfinite, values))
    return int(label), (min(across), min(down), max(across), max(down)) if finite else (math.nan,) * 4


# ---- names of classes


def _classes(root: Path, parts: list[LabelFolders]) -> tuple[Path, tuple[str, ...], bool]:
    """What names the classes, their names, and whether it says that labels are of poses."""
    folders = dict.fromkeys([root, *(folders.labels for folders in parts), root / "labels"])
    for pattern in ("data.yaml", "dataset.yaml", "*.yaml", "*.yml"):
        for path in sorted(root.glob(pattern)):
            text = "" if is_junk(path.name) else _text(path)
            if names := _yaml_names(text):
                count = re.search(r"^nc[ \t]*:[ \t]*(\d{1,6})[ \t]*(?:#.*)?$", text, re.MULTILINE)
                if count and int(count[1]) != len(names):
                    raise InputError(f"{path} names {len(names)} classes, and its nc is {count[1]}", "make them agree")
                return path, names, bool(re.search(r"^kpt_shape[ \t]*:", text, re.MULTILINE))
    for pattern in ("classes.txt", "obj.names", "*.names", "_darknet.labels"):
        for path in (path for folder in folders for path in sorted(folder.glob(pattern))):
            names = tuple(line.strip() for line in _text(path).splitlines() if line.strip())
            if names and not is_junk(path.name):
                return path, names, False
    raise InputError(f"{root} holds YOLO labels, and nothing names their classes", _NAMES_HINT)


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error


_FLOW = re.compile(
    r"""\s*(?:(\d{1,6})\s*:\s\s*)?(?:("[^"\\]*"|'(?:[^']|'')*'|[^,"'\[\]{}&*!|>\s](?:[^,\[\]{}\n]{0,200}[^,\[\]{}\s])?)\s*)?([,\]}])"""
)
_BLOCK = re.compile(r"""\s*(?:-|(\d{1,6})\s*:)\s+("[^"\\]*"|'(?:[^']|'')*'|[^"'\[{&*!|>\s].*)""")


def _yaml_names(text: str) -> tuple[str, ...]:
    """``names`` of a data set's YAML file: a list or numbered names, in brackets or a line each; else empty.

    Read by itself: a YAML parser would let a file grow without bounds, for one list.
    """
    begin = re.search(r"^names[ \t]*:[ \t]*(?=[\[{]|(?:#.*)?$)", text, re.MULTILINE)
    if begin is None:
        return ()
    rest = text[begin.end() :]
    items = _in_brackets(rest[1:]) if rest[:1] in ("[", "{") else _in_lines(rest.splitlines()[1:])
    names: dict[int, str] = {}
    for number, word in items or ():
        name = word.strip()
        if name[0] in "'\"":
            name = name[1:-1].replace("''", "'")
        names[len(names) if number is None else int(number)] = name
    return tuple(names[key] for key in sorted(names)) if sorted(names) == list(range(len(items or ()))) else ()


Items = list[tuple[str | None, str]]
"""The number before each name, where there is one."""


def _in_brackets(text: str) -> Items | None:
    """``None``: it is something else."""
    items: Items = []
    end = 0
    while match := _FLOW.match(text, end):
        if match[2]:
            items.append((match[1], match[2]))
        if match[3] != ",":
            return items
        end = match.end()
    return None


def _in_lines(lines: list[str]) -> Items | None:
    """``None``: a line is something else."""
    items: Items = []
    for line in lines:
        bare = re.sub(r"(^|\s)#.*", "", line).rstrip()
        if not bare:
            continue
        if bare[0] not in " \t-":
            break
        match = _BLOCK.fullmatch(bare)
        if match is None:
            return None
        items.append((match[1], match[2]))
    return items
