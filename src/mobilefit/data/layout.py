"""What a folder is, by the names in it: class folders, parts of a data set, or images for another task.

Here is decided which folders are the parts of a data set, whatever they are named (``Training``,
``test_set``, ``seg_val``), and what is no class: folders that stand a level too high, folds, images beside
their masks. What is not read as it stands is refused, with what was seen and what to give instead; what
could be meant in two ways is read, and said.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from mobilefit.data import imagenet
from mobilefit.data.decode import EXTENSIONS, HEIC, HEIC_HINT
from mobilefit.errors import InputError

_NO_PICTURES = (
    ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".rst", ".html", ".htm", ".pdf",
    ".doc", ".docx", ".xls", ".xlsx", ".ini", ".db", ".log", ".py", ".ipynb", ".sh", ".zip", ".tar", ".gz", ".rar",
    ".7z", ".url", ".lnk", ".sha256", ".md5",
)  # fmt: skip
"""Extensions of what lies beside pictures and is none."""
JUNK = frozenset(
    ["__MACOSX", "@eaDir", "@tmp", "@Recycle", "#recycle", "#snapshot", "$RECYCLE.BIN",
     "System Volume Information", "lost+found"]
)  # fmt: skip
"""What macOS, network disks and Windows put beside what is yours."""
PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}
"""The usual names of the parts; one of these is taken before all others."""

_PART_WORDS = {
    "train": "train", "training": "train", "trn": "train", "val": "val", "valid": "val", "validation": "val",
    "validate": "val", "dev": "val", "test": "test", "testing": "test", "tst": "test", "eval": "test",
    "evaluation": "test",
}  # fmt: skip
_FILLERS = frozenset(
    ["set", "sets", "data", "dataset", "images", "image", "imgs", "img", "pictures", "photos", "seg", "split", "folder",
     "new", "final"]
)  # fmt: skip
_JOINED = re.compile(rf"({'|'.join(sorted(_PART_WORDS, key=len, reverse=True))})(?:set|data|dataset|images|imgs|img)?")
_FOLD = re.compile(r"(?:k?-?fold|split|part|batch|subset|partition|chunk|set|cv)[ _-]*\d+|\d+[ _-]*fold", re.IGNORECASE)
_CONTAINERS = frozenset(
    ["dataset", "datasets", "data", "images", "image", "imgs", "img", "pictures", "photos", "archive", "jpegimages"]
)  # fmt: skip
_ASIDE = frozenset(
    ["example", "examples", "sample", "samples", "doc", "docs", "figures", "figure", "demo", "results", "assets", "code",
     "scripts", "src", "models", "weights", "runs", "logs", "notebooks", "misc", "preview", "previews", "annotation",
     "annotations", "metadata"]
)  # fmt: skip
IMAGE_FOLDERS = frozenset(["images", "image", "imgs", "img", "jpegimages", "leftimg8bit", "frames", "pictures", "photos"])
TRUTH_FOLDERS = frozenset(
    ["masks", "mask", "labels", "label", "annotations", "annotation", "segmentationclass", "segmentationobject", "gtfine",
     "groundtruth", "ground_truth", "gt", "labelmaps", "xmls", "xml", "bboxes", "boxes"]
)  # fmt: skip

LOOKED_INTO = 64
"""Folders of a data set that are looked into."""
ENTRIES = 2000
"""Entries of such a folder that are looked at."""

Task = Literal["classify", "detect", "segment"]


class Sight(NamedTuple):
    """What a folder seems to be."""

    task: Task
    what: str


class ClassParts(NamedTuple):
    """The folders of class folders by part."""

    folders: dict[str, Path]
    """"train" first; of a part for validation and one for the test the one that is there is "test"."""
    notes: tuple[str, ...]
    """What is to be said of it."""


def is_junk(name: str) -> bool:
    """Whether a file or folder is hidden, or something that a system puts beside what is yours."""
    return name.startswith(".") or name in JUNK


def may_be_picture(name: str) -> bool:
    """Whether a file that is not read could show something: it is to be counted."""
    end = os.path.splitext(name)[1].lower()
    return end not in _NO_PICTURES and (bool(end) or not name.isupper())  # README and LICENSE are known by their capitals


def passed_over(root: Path, names: Sequence[str]) -> str:
    """What is said of files in a data set that may be pictures and are not read; empty: there are none."""
    if not names:
        return ""
    counts = Counter(os.path.splitext(name)[1].lower() or "without an extension" for name in names)
    kinds = [f"{count} {end}" + f" (to read them: {HEIC_HINT})" * (end in HEIC) for end, count in counts.most_common(5)]
    files = "file is" if len(names) == 1 else "files are"
    return f"{len(names)} {files} passed over in {root}: {', '.join(kinds)}; the first: {names[0]}"


def subfolders(root: Path) -> list[str]:
    """Names of the folders in it that are no junk, sorted.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with os.scandir(root) as entries:
            return sorted(e.name for e in entries if not is_junk(e.name) and e.is_dir())
    except OSError as error:
        raise InputError(f"cannot read {root}: {error.strerror}") from error


def folders_named(root: Path, names: frozenset[str]) -> list[Path]:
    """The folders in it that have one of these names, in capitals or not."""
    return [root / name for name in subfolders(root) if name.lower() in names]


def named_parts(folder: Path, names: Sequence[str] | None = None) -> dict[str, str]:
    """The names of the folders of the parts, as far as there are such.

    Args:
        names: of the folders in it to choose from; default: all.

    Raises:
        InputError: two could be one part, and one is for training.
    """
    words = {name: _words(name) for name in (subfolders(folder) if names is None else names)}
    candidates: dict[str, list[str]] = {}
    for part, usual in PARTS.items():
        exact = [name for name in usual if name in words]
        loose = [name for name, (which, rest) in words.items() if which == part and (not rest or _shared(rest, words))]
        if exact or loose:
            candidates[part] = exact or loose
    for some in candidates.values():
        if len(some) > 1 and "train" in candidates:
            raise InputError(f"{folder} has both {some[0]} and {some[1]}", "keep one of them")
    return {part: some[0] for part, some in candidates.items()}


def _words(name: str) -> tuple[str | None, tuple[str, ...]]:
    """The part that a name tells, and its words that say something else."""
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold())
    parts = [match[1] for word in words if (match := _JOINED.fullmatch(word))]
    rest = tuple(word for word in words if word not in _FILLERS and not _JOINED.fullmatch(word))
    return (_PART_WORDS[parts[0]] if len(parts) == 1 else None), rest


def _shared(rest: tuple[str, ...], words: dict[str, tuple[str | None, tuple[str, ...]]]) -> bool:
    """Whether these words stand in the names of a part for training and of another one: ``cats_train``, ``cats_test``."""
    parts = {part for part, other in words.values() if other == rest and part is not None}
    return "train" in parts and len(parts) > 1


def class_parts(root: Path) -> ClassParts:
    """The parts of a data set of class folders.

    Raises:
        InputError: it is no folder, holds images for another task, stands a level too high, or has parts
            that cannot be told apart.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder", "give a folder of class folders")
    _refuse_scenes(root)
    names = subfolders(root)
    parts = named_parts(root, names)
    if "train" not in parts or _is_class(root, names, parts):
        return ClassParts({"train": root}, (*_class_notes(root, names), *_alike(root)))
    if "test" in parts and imagenet.is_test(root / parts["test"]):
        del parts["test"]  # its classes were never published
    elif "test" in parts and _is_bare(root / parts["test"]):
        del parts["test"]  # a competition's, whose classes are not given out
    if "val" in parts and "test" not in parts:
        parts["test"] = parts.pop("val")
    notes = []
    folders = {}
    for part, name in parts.items():
        folders[part] = _inner(root / name)
        if folders[part] != root / name or name not in ("train", "test", *PARTS["val"]):
            notes.append(f"{folders[part]} is read as the {part} part")
    if aside := [name for name in names if name not in parts.values()]:
        notes.append(f"left aside in {root}: {', '.join(aside[:5])}" + (" ..." if len(aside) > 5 else ""))
    return ClassParts(folders, (*notes, *_alike(folders["train"])))


def _alike(folder: Path) -> Iterator[str]:
    """Classes that differ in capitals alone."""
    spelled: dict[str, str] = {}
    for name in subfolders(folder):
        if (other := spelled.setdefault(name.casefold(), name)) != name:
            yield f"{other} and {name} in {folder}: taken for two classes"


def _is_class(root: Path, names: Sequence[str], parts: dict[str, str]) -> bool:
    """Whether the folder for training is a class among others, which hold images as it does."""
    others = [name for name in names if name not in parts.values()]
    train = root / parts["train"]
    return len(parts) == 1 and bool(others) and not subfolders(train) and _holds_image(train)


def _is_bare(folder: Path) -> bool:
    """Whether it holds images and no class folders; in the only folder in it, where there is one (``test/test``)."""
    inside = subfolders(folder)
    if len(inside) == 1 and not any(_images(folder)) and _words(inside[0])[0] == "test":
        return _is_bare(folder / inside[0])
    return not inside and any(_images(folder)) and not imagenet.is_validation(folder)


def _inner(folder: Path) -> Path:
    """The folder of a part, or the only one in it, where that holds the class folders (``seg_train/seg_train``)."""
    inside = subfolders(folder)
    if len(inside) == 1 and len(subfolders(folder / inside[0])) > 1 and not any(_images(folder)):
        return folder / inside[0]
    return folder


def _class_notes(root: Path, names: Sequence[str]) -> Iterator[str]:
    """What is to be said of class folders; what are none is refused."""
    some = names[:LOOKED_INTO]
    deeper, within = {}, {}
    for name in some:
        within[name], deeper[name] = _branches(root / name)
    parts = {name: {_words(folder)[0] for folder in deeper[name]} for name in some}
    parted = [name for name in some if "train" in parts[name] and parts[name] & {"val", "test"}]
    if parted:
        raise InputError(
            f"{root} is a level too high: {within[parted[0]]} holds the parts {_listed(deeper[parted[0]])}",
            f"give {within[parted[0]]}" if len(parted) == 1 else f"give one of {_listed(parted)}; or, if these are the "
            f"classes, move their images to {root}/train/{parted[0]} and so on",
        )  # fmt: skip
    several = [name for name in some if len(deeper[name]) > 1]
    if folds := [name for name in several if _FOLD.fullmatch(name)]:
        raise InputError(
            f"{_listed(folds)} in {root} each hold folders ({_listed(deeper[folds[0]])}) and are named like parts",
            f"make the folders {root}/train and {root}/test of them",
        )
    candidates = [name for name in some if not _only(name, _ASIDE) and (deeper[name] or _holds_image(root / name))]
    high = [name for name in several if _only(name, _CONTAINERS) or candidates == [name]]
    if high and len(names) <= LOOKED_INTO:
        raise InputError(
            f"{root} is a level too high: {within[high[0]]} holds {len(deeper[high[0]])} folders of images "
            f"({_listed(deeper[high[0]])})", f"give {within[high[0]]}",
        )  # fmt: skip
    lone = [name for name in names if _words(name)[0] and not _words(name)[1]]
    if lone and (len(lone) == len(names) or any(name in several for name in lone)):
        raise InputError(
            f"{root} has {_listed(lone)}, but no folder for training", f"name the folder that is trained on {root}/train"
        )
    if lone:
        yield f"{_listed(lone)} in {root}: taken for a class, not for a part of the data set"
    if several := [name for name in several if len(without_masks(deeper[name])) > 1]:
        yield (f"{_listed(several)} in {root}: taken for classes; the folders in them ({_listed(deeper[several[0]])}) "
               "are not told apart")  # fmt: skip


def _branches(folder: Path) -> tuple[Path, list[str]]:
    """The folder at or below this one where there is more than one folder of images, and their names."""
    names = [name for name in subfolders(folder) if _holds_image(folder / name)]
    if len(names) == 1 and not any(_images(folder)):
        return _branches(folder / names[0])
    return folder, names


def without_masks(folders: Sequence[str]) -> list[str]:
    """The names of a class's folders but those of masks beside one of images, which are no images of the class."""
    pictured = any(name.lower() in IMAGE_FOLDERS for name in folders)
    return [name for name in folders if not (pictured and name.lower() in TRUTH_FOLDERS)]


def _only(name: str, words: frozenset[str]) -> bool:
    """Whether a name says nothing but these words."""
    own = re.findall(r"[^\W\d_]+", name.casefold())
    return bool(own) and all(word in words for word in own)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# ---- images for boxes and masks


def sight(root: Path) -> Sight | None:
    """What a folder seems to hold, of any task; ``None``: nothing that is known."""
    if scenes := _scenes_below(root):
        return scenes
    names = [name for name in subfolders(root)[:LOOKED_INTO] if _holds_image(root / name)]
    return Sight("classify", f"class folders ({_listed(names)})") if len(names) > 1 else None


def _scenes_below(root: Path) -> Sight | None:
    folders = (root, *(root / name for name in subfolders(root) if _words(name)[0]))
    return next(filter(None, map(_scenes, folders)), None)


def _scenes(folder: Path) -> Sight | None:
    """Boxes or masks: in files beside the images, or in a folder beside that of the images."""
    files, names = [name.lower() for name in _files(folder)], subfolders(folder)
    if "_annotations.coco.json" in files:
        return Sight("detect", f"COCO annotations ({folder}/_annotations.coco.json)")
    truths = [name for name in names if _is_truth(name)]
    images = [name for name in names if name.lower() in IMAGE_FOLDERS or (
        truths and name not in truths and _words(name)[0] and not subfolders(folder / name))]  # fmt: skip
    for name in truths if images else ():
        if truth := _truth(folder / name):
            return Sight(truth[0], f"{truth[1]} ({folder / images[0]} beside {folder / name})")
    stems = {stem for stem, end in map(os.path.splitext, files) if end in EXTENSIONS}
    for end, what in ((".xml", "Pascal VOC annotations"), (".txt", "YOLO labels")):
        annotated = {stem for stem, other in map(os.path.splitext, files) if other == end}
        if stems and not names and len(stems & annotated) > len(stems) / 2:
            return Sight("detect", f"{what} beside the images in {folder}")
    return None


def _is_truth(name: str) -> bool:
    """Whether a folder's name is one for masks or annotations, a part's too: ``masks``, ``train_labels``."""
    part, rest = _words(name)
    return name.lower() in TRUTH_FOLDERS or (part is not None and bool(rest) and TRUTH_FOLDERS.issuperset(rest))


def _truth(folder: Path, depth: int = 2) -> tuple[Task, str] | None:
    """What a folder of truth holds, its first folders looked into too."""
    ends = {os.path.splitext(name.lower())[1] for name in _files(folder)}
    for end, what in ((".xml", "Pascal VOC annotations"), (".json", "COCO annotations"), (".txt", "YOLO labels")):
        if end in ends:
            return "detect", what
    if ends.intersection(EXTENSIONS):
        return "segment", "images and masks"
    inside = (_truth(folder / name, depth - 1) for name in (subfolders(folder)[:4] if depth else ()))
    return next(filter(None, inside), None)


def _refuse_scenes(root: Path) -> None:
    if scenes := _scenes_below(root):
        raise InputError(f"{root} holds no class folders but {scenes.what}", _command(scenes.task))


def fitting(root: Path, task: Task) -> tuple[str, str] | None:
    """What a folder holds for another task, or a level below, for an error, and what fits; ``None``: nothing."""
    if _scenes_below(root) is None:
        for name in subfolders(root)[:LOOKED_INTO]:
            if below := _scenes_below(root / name):
                other = f" and say --task {below.task}" * (below.task != task)
                return f"{root / name} holds {below.what}", f"give {root / name}{other}"
    other_task = sight(root)
    if other_task is None or other_task.task == task:
        return None
    return f"it holds {other_task.what}", _command(other_task.task)


def counted(root: Path) -> str:
    """What a folder holds, by its folders and the ends of its files, for an error."""
    names, ends = subfolders(root), Counter(os.path.splitext(name)[1].lower() or "other" for name in _files(root))
    contents = [f"the folder{'s' * (len(names) > 1)} {_listed(names)}"] * bool(names)
    contents += [f"{count} {end} file{'s' * (count > 1)}" for end, count in ends.most_common(4)]
    return " and ".join(contents) or "nothing"


def _command(task: Task) -> str:
    return "leave --task out" if task == "classify" else f"say --task {task}"


def _files(folder: Path) -> list[str]:
    """Names of the first files in it."""
    try:
        with os.scandir(folder) as entries:
            return [e.name for e in islice(entries, ENTRIES) if not is_junk(e.name) and not e.is_dir()]
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}") from error


def _images(folder: Path) -> Iterator[str]:
    return (name for name in _files(folder) if name.lower().endswith(EXTENSIONS))


def _holds_image(folder: Path, depth: int = 2) -> bool:
    """Whether there is an image among the first files in it, or in its first folders."""
    return any(_images(folder)) or (
        depth > 0 and any(_holds_image(folder / name, depth - 1) for name in subfolders(folder)[:8])
    )
