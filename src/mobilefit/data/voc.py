"""Pascal VOC's layout (Everingham et al., 2010; the development kit of VOC2012).

``Annotations/ID.xml`` beside ``JPEGImages/ID.jpg`` (any image format), divided by the lists ``train.txt``,
``val.txt``, ``trainval.txt`` and ``test.txt`` in ``ImageSets/Main``, an id a line. ``VOCdevkit/VOC2012`` below
the folder given is found. Without lists, or with one alone, the images are divided by the seed; of
``trainval`` the rest is taken that the list given beside it lacks. A test list without any annotation, as
VOC publishes its own, is left aside. Images are found by their id, whatever ``<filename>`` says.

The same files are read in folders of other names (``images`` beside ``annotations``, divided into parts or not)
and beside the images (``train/*.xml``, as Roboflow exports them); which, is said.

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
from mobilefit.data.layout import (
    IMAGE_FOLDERS,
    TRUTH_FOLDERS,
    folders_named,
    is_junk,
    named_parts,
    passed_over,
)
from mobilefit.data.names import picture_in, spelling
from mobilefit.errors import InputError
from mobilefit.runs import read_bytes

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


class Place(NamedTuple):
    """Where annotations and pictures are."""

    part: str | None
    """``None``: lists divide them, or the seed."""
    annotations: Path
    pictures: Path


def find(root: Path) -> tuple[Path, list[Place]] | None:
    """The data set's folder, this one or one named ``VOC...`` below, and where its files are.

    Raises:
        InputError: there are several.
    """
    tops = [root, *sorted(root.glob("VOC*")), *sorted(root.glob("VOCdevkit/VOC*"))]
    # A folder of COCO's has the same name where capitals make no difference: look for XML.
    found = [top for top in tops if not is_junk(top.name) and _xml(top / "Annotations")]
    if len(found) > 1:
        raise InputError(f"{root} holds {', '.join(top.name for top in found)}", "give one of these folders")
    if found:
        pictures = found[0] / "JPEGImages"
        if not pictures.is_dir() and (others := folders_named(found[0], IMAGE_FOLDERS)):
            pictures = others[0]
        return found[0], [Place(None, found[0] / "Annotations", pictures)]
    return None


def find_elsewhere(root: Path) -> tuple[Path, list[Place]] | None:
    """The same for folders of other names, and annotations beside the pictures.

    Raises:
        InputError: two folders could be one part.
    """
    parts = [Place(part, *own) for part, name in named_parts(root).items() if (own := _beside(root / name))]
    own = _beside(root)
    places = parts or ([Place(None, *own)] if own else _places_in_both(root))
    return (root, places) if places else None


def _beside(folder: Path) -> tuple[Path, Path] | None:
    """The folders of annotations and of pictures in a folder, which may be itself; ``None``: there are none."""
    pictures = folders_named(folder, IMAGE_FOLDERS) or [folder]
    annotations = next((one for one in (*folders_named(folder, TRUTH_FOLDERS), folder) if _xml(one)), None)
    return None if annotations is None else (annotations, pictures[0])


def _places_in_both(root: Path) -> list[Place]:
    """``images/train`` beside ``annotations/train``."""
    for truth in folders_named(root, TRUTH_FOLDERS):
        for pictures in folders_named(root, IMAGE_FOLDERS):
            places = [Place(part, truth / name, pictures / name) for part, name in named_parts(truth).items()]
            if places and all(_xml(place.annotations) and place.pictures.is_dir() for place in places):
                return places
    return []


def _xml(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.xml") if not is_junk(path.name))


def read(root: Path, places: list[Place]) -> Annotations:
    """Read all annotations that the lists name, or that the folders of parts hold.

    Raises:
        InputError: there is no folder of pictures, a list cannot be read, or none has images to train on.
    """
    found: list[Record | SkippedFile] = []
    others: list[str] = []
    for place in places:
        if not place.pictures.is_dir():
            raise InputError(f"there is no {place.pictures}", "put the pictures there, named as their annotations")
        pictures = _pictures(place.pictures, others)
        parts = _parts(root, place.annotations) if place.part is None else {place.part: _ids_in(place.annotations)}
        found += [_record(root, place, part, one, pictures) for part, ids in parts.items() for one in ids]
    if all(place.part not in (None, "train") for place in places):
        raise InputError(f"{root} has annotations for {' and '.join(str(place.part) for place in places)} alone",
                         "name the folder that is trained on train")  # fmt: skip
    records = tuple(one for one in found if isinstance(one, Record))
    usual = [Place(None, root / "Annotations", root / "JPEGImages")]
    seen = ", ".join(f"{place.annotations.relative_to(root)} with {place.pictures.relative_to(root)}" for place in places)
    return Annotations(
        root=root,
        classes=tuple(sorted({name for record in records for name in record.names})),
        records=records,
        skipped=tuple(one for one in found if isinstance(one, SkippedFile)),
        notes=(
            *([] if places == usual else [f"{root} is read as Pascal VOC: {seen}"]),
            *filter(None, [passed_over(root, others)]),
        ),
    )


def _ids_in(folder: Path) -> list[str]:
    return [path.stem for path in _xml(folder)]


def _pictures(folder: Path, others: list[str]) -> dict[str, Path]:
    """The pictures by their ids; what may be a picture and is not read goes to ``others``."""
    found: dict[str, Path] = {}
    for path in image_files(folder, others):
        name = spelling(path.relative_to(folder).with_suffix("").as_posix())
        if name in found:
            raise InputError(f"{found[name]} and {path} have one id, '{name}'", "rename or remove one of them")
        found[name] = path
    return found


def _parts(root: Path, annotations: Path) -> dict[str, list[str]]:
    """The ids of each part."""
    folder = root / "ImageSets" / "Main"
    lists = {name: _ids(folder / f"{name}.txt") for name in LISTS if (folder / f"{name}.txt").is_file()}
    if "test" in lists and not _annotated(annotations, lists["test"]):
        del lists["test"]  # as published by VOC, whose truth is not given out
    if not lists:
        return {"train": _ids_in(annotations)}
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
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    return list(dict.fromkeys(_unquoted(line.strip()) for line in lines if line.strip()))


def _unquoted(one: str) -> str:
    """An id as it is: Datumaro quotes those with blanks."""
    return one[1:-1] if len(one) > 2 and one[0] == one[-1] == '"' else one


def _without(ids: Iterable[str], others: Iterable[str]) -> list[str]:
    left_out = set(others)
    return [one for one in ids if one not in left_out]


def _annotated(annotations: Path, ids: Iterable[str]) -> bool:
    return any(picture_in(annotations, f"{one}.xml").is_file() for one in ids)


def _record(root: Path, place: Place, part: str, one: str, pictures: dict[str, Path]) -> Record | SkippedFile:
    path = picture_in(place.annotations, f"{one}.xml")
    try:
        annotation = parse(read_bytes(path))
    except FileNotFoundError:
        return SkippedFile(path=str(path), why="listed, but there is no such annotation")
    except OSError as error:
        return SkippedFile(path=str(path), why=f"cannot be read: {error.strerror}")
    except _BadAnnotationError as error:
        return SkippedFile(path=str(path), why=str(error))
    if spelling(one) not in pictures:
        return SkippedFile(path=str(path), why=f"there is no picture {place.pictures.name}/{one}.jpg")
    return Record(
        part=part,
        path=pictures[spelling(one)],
        source=f"{(place.annotations / one).relative_to(root).as_posix()}.xml object",
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
    name, box = spelling((node.findtext("name") or "").strip()), node.find("bndbox")
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
