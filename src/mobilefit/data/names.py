"""Names of classes and files, which systems and programs spell in more than one way."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from mobilefit.errors import InputError


def spelling(name: str) -> str:
    """One spelling of a name for all (Unicode's NFC): macOS takes accents apart in the names of files."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def check_class_names(names: Sequence[str], root: object) -> None:
    """See that class names can be written wherever they will be: into files, a terminal, a page.

    Raises:
        InputError: one is empty, is no Unicode, holds control characters such as line breaks, or two are
            one name in two spellings; it names it.
    """
    spelled: dict[str, str] = {}
    for name in names:
        why = ""
        if not name.strip():
            why = "is empty"
        elif any("\ud800" <= char <= "\udfff" for char in name):
            why = "is no Unicode text"
        elif any(unicodedata.category(char) in ("Cc", "Zl", "Zp") for char in name):
            why = "holds a line break or another control character"
        elif spelling(name) in spelled:
            why = f"is the name {spelled[spelling(name)]!a} in another spelling"
        if why:
            raise InputError(f"{root}: the class name {name!a} {why}", "rename the class")
        spelled[spelling(name)] = name


def picture_in(folder: Path, name: str) -> Path:
    """Where the picture of a stated name is: as it stands, by Windows' separators, or in another spelling."""
    path = folder / name
    if (name.isascii() and "\\" not in name) or path.is_file():
        return path
    slashed = name.replace("\\", "/")
    others = (folder / unicodedata.normalize(form, path) for path in (name, slashed) for form in ("NFC", "NFD"))
    return next((other for other in others if other.is_file()), path)


def last_part(name: str) -> str:
    """The file's own name in a path of any system."""
    return name.replace("\\", "/").rsplit("/", 1)[-1]


def is_path_below(name: str) -> bool:
    """Whether a stated name of a file leads to a place below its folder, and can be one at all."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    slashed = name.replace("\\", "/")
    return not (slashed.startswith("/") or slashed[1:2] == ":" or ".." in slashed.split("/") or "\0" in name)
