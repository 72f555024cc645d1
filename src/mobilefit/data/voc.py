"""Pascal VOC's layout (Everingham et al., 2010; the development kit of VOC2012).

``Annotations/ID.xml`` beside ``JPEGImages/ID.jpg`` (any image format), divided by the lists ``train.txt``,
``val.txt``, ``trainval.txt`` and ``test.txt`` in ``ImageSets/Main``, an id a line. ``VOCdevkit/VOC2012`` below
the folder given is found. Without lists, or with one alone, the images are divided by the seed; of
``trainval`` the rest is taken that the list given beside it lacks. A test list without any annotation, as
VOC publishes its own, is left aside. Images are found by their id, whatever ``<filename>`` says.

The classes are all names that occur in the annotations, sorted.

Coordinates are taken as edges in pixels, counted from 0, as LabelImg, CVAT and Roboflow write them and
as TensorFlow's and torchvision's scripts read them. (VOC's own files count pixels from 1, both ends
included: their left and upper edges come out one pixel too far in.)

The files are read by expat. A document type is refused, so that no entity is ever defined, let alone
expanded; so is a file over ``MOST_BYTES``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

from mobilefit.data.annotations import Annotations, Corners, Record
from mobilefit.data.classification import SkippedFile
from mobilefit.data.folder import image_files
from mobilefit.errors import InputError

MOST_BYTES = 16 << 20
"""Of one annotation file: 50,000 boxes."""
LISTS = ("train", "val", "trainval", "test")
CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _BadAnnotationError(Exception):
    """Why an annotation cannot be used, in a few words."""


class _Object(NamedTuple):
    name: str
    box: Corners
    difficult: bool


class _Annotation(NamedTuple):
    size: tuple[int, int] | None
    objects: list[_Object]


def find(root: Path) -> Path | None:
    """The folder with ``Annotations`` in it: this one, or one named ``VOC...`` below.

    Raises:
        InputError: there are several.
    """
    places = [root, *sorted(root.glob("VOC*")), *sorted(root.glob("VOCdevkit/VOC*"))]
    # A folder of COCO's has the same name where capitals make no difference: look for XML.
    found = [place for place in places if next((place / "Annotations").glob("*.xml"), None)]
    if len(found) > 1:
        raise InputError(f"{root} holds {', '.join(place.name for place in found)}", "give one of these folders")
    return found[0] if found else None


def read(root: Path) -> Annotations:
    """Read all annotations that the lists name.

    Raises:
        InputError: there is no ``JPEGImages``, a list cannot be read, or none has images to train on.
    """
    if not (root / "JPEGImages").is_dir():
        raise InputError(f"there is no {root / 'JPEGImages'}", "put the pictures there, named as their annotations")
    pictures = _pictures(root / "JPEGImages")
    found = [_record(root, part, one, pictures) for part, ids in _parts(root).items() for one in ids]
    records = tuple(one for one in found if isinstance(one, Record))
    return Annotations(
        root=root,
        classes=tuple(sorted({name for record in records for name in record.names})),
        records=records,
        skipped=tuple(one for one in found if isinstance(one, SkippedFile)),
    )


def _pictures(folder: Path) -> dict[str, Path]:
    """The pictures by their ids."""
    found: dict[str, Path] = {}
    for path in image_files(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise InputError(f"{found[name]} and {path} have one id, '{name}'", "rename or remove one of them")
        found[name] = path
    return found


def _parts(root: Path) -> dict[str, list[str]]:
    """The ids of each part."""
    folder = root / "ImageSets" / "Main"
    lists = {name: _ids(folder / f"{name}.txt") for name in LISTS if (folder / f"{name}.txt").is_file()}
    if "test" in lists and not _annotated(root, lists["test"]):
        del lists["test"]  # as published by VOC, whose truth is not given out
    if not lists:
        return {"train": [path.stem for path in sorted((root / "Annotations").glob("*.xml"))]}
    if len(lists) == 1:
        return {"train": next(iter(lists.values()))}
    both = lists.pop("trainval", [])
    lists.setdefault("train", _without(both, lists.get("val", [])))
    if "val" not in lists:
        lists["val"] = _without(both, lists["train"])
    parts = {part: ids for part, ids in lists.items() if ids}
    if "train" not in parts:
        raise InputError(f"{folder} lists no images to train on", "add train.txt, an id a line")
    return parts


def _ids(path: Path) -> list[str]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def _without(ids: Iterable[str], others: Iterable[str]) -> list[str]:
    left_out = set(others)
    return [one for one in ids if one not in left_out]


def _annotated(root: Path, ids: Iterable[str]) -> bool:
    return any((root / "Annotations" / f"{one}.xml").is_file() for one in ids)


def _record(root: Path, part: str, one: str, pictures: dict[str, Path]) -> Record | SkippedFile:
    path = root / "Annotations" / f"{one}.xml"
    try:
        annotation = parse(path.read_bytes())
    except FileNotFoundError:
        return SkippedFile(path=str(path), why="listed, but there is no such annotation")
    except OSError as error:
        return SkippedFile(path=str(path), why=f"cannot be read: {error.strerror}")
    except _BadAnnotationError as error:
        return SkippedFile(path=str(path), why=str(error))
    if one not in pictures:
        return SkippedFile(path=str(path), why=f"there is no picture JPEGImages/{one}.jpg")
    return Record(
        part=part,
        path=pictures[one],
        source=f"Annotations/{one}.xml object",
        size=annotation.size,
        boxes=[thing.box for thing in annotation.objects],
        names=[thing.name for thing in annotation.objects],
        crowd=[thing.difficult for thing in annotation.objects],
        ids=range(1, len(annotation.objects) + 1),
    )


def parse(data: bytes) -> _Annotation:
    """What an annotation file holds.

    Raises:
        _BadAnnotationError: it cannot be used.
    """
    tree = _tree(data)
    if tree.tag != "annotation":
        raise _BadAnnotationError(f"not a Pascal VOC annotation: it begins with <{tree.tag}>")
    objects = [_object(node, number) for number, node in enumerate(tree.findall("object"), 1)]
    return _Annotation(_size(tree), objects)


def _tree(data: bytes) -> ElementTree.Element:
    if len(data) > MOST_BYTES:
        raise _BadAnnotationError(f"{len(data) >> 20} MB, at most {MOST_BYTES >> 20} are read")
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError, ValueError) as error:  # the latter two: an encoding's
        raise _BadAnnotationError(f"broken XML: {error}") from error
    return builder.close()


def _refuse(*_: object) -> None:
    # Entities are defined in a document type alone: without one, none can grow.
    raise _BadAnnotationError("it has a document type, which no annotation needs")


def _object(node: ElementTree.Element, number: int) -> _Object:
    name, box = (node.findtext("name") or "").strip(), node.find("bndbox")
    if not name:
        raise _BadAnnotationError(f"object {number} has no <name>")
    if box is None:
        raise _BadAnnotationError(f"object {number} has no <bndbox>")
    left, top, right, bottom = (_number(box, corner, number) for corner in CORNERS)
    difficult = (node.findtext("difficult") or "").strip() == "1"
    return _Object(name, (left, top, right, bottom), difficult)


def _number(box: ElementTree.Element, corner: str, number: int) -> float:
    text = box.findtext(corner)
    try:
        return float(text or "")
    except ValueError as error:
        why = "has no" if text is None else f"has '{text.strip()[:20]}' for"
        raise _BadAnnotationError(f"object {number} {why} <{corner}>") from error


def _size(tree: ElementTree.Element) -> tuple[int, int] | None:
    try:
        width, height = (int(float(tree.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None
