"""Which shards a user means, which part of the data each belongs to, and what the classes are called.

- A folder: ``train/*.tar`` with ``val``, ``valid``, ``validation`` or ``test`` beside it, or
  ``*.tar`` directly.
- An address or a path, with braces for more than one:
  ``http://host/imagenet-train-{0000..0146}.tar``, ``s3://bucket/{train,val}/{00..15}.tar``.
- A manifest, a JSON file here or at a distance: ``{"train": [...], "val": [...], "classes": [...]}``.
  Its entries are addresses or paths, with braces or without, relative to the manifest.

Where neither a folder nor a manifest says the part, the shard's own name or its folder's does:
``imagenet-validation-03.tar``, ``test/03.tar``. The parts mean what they mean in
``mobilefit.data.folder``. Class names are the manifest's or the lines of a ``classes.txt`` beside the
shards or one folder above; without either the labels are the names.
"""

from __future__ import annotations

import os
import posixpath
import re
import urllib.parse
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilefit.data.shard_remote import MissingError, is_remote, read, shown
from mobilefit.errors import InputError, unknown
from mobilefit.parsing import parse_json
from mobilefit.text import from_environment, join_address, split_address

PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
CLASSES = "classes.txt"
MOST_SHARDS = 1_000_000
LONGEST_PATTERN, MOST_BRACES = 8000, 100

Parts = dict[str, list[str]]


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The shards that a user named."""

    name: str
    parts: Parts
    """Addresses or paths of ``train`` and, where there are any, ``val`` and ``test``: as in a folder,
    the held-out part and the test set."""
    classes: tuple[str, ...] | None
    """As the manifest names them."""
    beside: tuple[str, ...]
    """Where a ``classes.txt`` may be."""

    def class_names(self) -> tuple[str, ...] | None:
        """What the classes are called; ``None``: nobody says.

        Raises:
            InputError: a name comes twice, or the file cannot be used.
        """
        names = self.classes
        for path in self.beside:
            names = _lines(path) if names is None else names
        twice = [name for name, count in Counter(names or ()).items() if count > 1]
        if twice:
            raise InputError(
                f"{self.name}: the class name '{twice[0]}' comes twice", "give each class its own"
            )
        return names


def is_shards(source: str) -> bool:
    """Whether this names shards: an address, ``*.tar``, ``*.json``, or a folder with shards in it.

    A folder of class folders that also holds a tar file is none.
    """
    root = Path(source)
    if is_remote(source) or (source.endswith((".tar", ".json")) and not root.is_dir()):
        return True
    folder = root / "train" if (root / "train").is_dir() else root
    return bool(_tars(folder)) and not any(
        path.is_dir() and not path.name.startswith(".") for path in folder.iterdir()
    )


def list_shards(source: str) -> Listing:
    """The shards that ``source`` names; see the module's text. Looks at no shard.

    Raises:
        InputError: there is none, one comes twice, the parts cannot be told, the manifest cannot be
            used.
    """
    source = _with_environment(_plain(source))
    if shown(source).endswith(".json") and not os.path.isdir(source):
        listing = _of_manifest(source)
    elif not is_remote(source) and os.path.isdir(source):
        listing = _of_folder(Path(source))
    else:
        listing = _of_pattern(source)
    _require_once(listing.parts)
    return listing


def expand_braces(pattern: str) -> list[str]:
    """A shell's braces: ``{a,b}``, ``{0..9}``, ``{000..146}``, also one in another.

    Raises:
        InputError: a brace is not closed, or they make more than ``MOST_SHARDS`` names.
    """
    if len(pattern) > LONGEST_PATTERN or pattern.count("{") > MOST_BRACES:
        said = f"{shown(pattern)[:60]}... has {len(pattern):,} characters and {pattern.count('{'):,} braces"
        raise InputError(said, f"at most {LONGEST_PATTERN:,} and {MOST_BRACES}")
    start = pattern.find("{")
    if start < 0:
        return [pattern]
    inner, rest = _closed(pattern, start)
    tails = expand_braces(rest)
    middles = _alternatives(inner)
    if len(tails) * len(middles) > MOST_SHARDS:
        raise InputError(f"{shown(pattern)} names over {MOST_SHARDS:,} shards", "check its braces")
    return [pattern[:start] + middle + tail for middle in middles for tail in tails]


def _closed(pattern: str, start: int) -> tuple[str, str]:
    """What is between the brace at ``start`` and the one that closes it, and what follows."""
    depth = 0
    for place in range(start, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[place], 0)
        if depth == 0:
            return pattern[start + 1 : place], pattern[place + 1 :]
    raise InputError(f"a brace is not closed in '{shown(pattern)}'", "write {0000..0146}.tar")


def _alternatives(inner: str) -> list[str]:
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", inner):
        first, last = (int(end) if len(end) < 20 else MOST_SHARDS**2 for end in span.groups())
        if abs(last - first) >= MOST_SHARDS:
            raise InputError(f"{{{inner}}} names over {MOST_SHARDS:,} shards", "check its braces")
        padded = any(end.startswith("0") and len(end) > 1 for end in span.groups())
        width = max(map(len, span.groups())) if padded else 0
        step = 1 if first <= last else -1
        return [f"{number:0{width}d}" for number in range(first, last + step, step)]
    pieces = _between_commas(inner)
    if len(pieces) == 1:
        return [f"{{{inner}}}"]  # as a shell leaves it
    return [whole for piece in pieces for whole in expand_braces(piece)]


def _between_commas(inner: str) -> list[str]:
    pieces, depth = [""], 0
    for letter in inner:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += letter
    return pieces


def _plain(source: str) -> str:
    """``file:`` addresses as paths."""
    if source.startswith("file://"):
        return urllib.parse.unquote(urllib.parse.urlsplit(source).path)
    return source


def _with_environment(source: str) -> str:
    """An address with the environment's variables that its user, password and query refer to: ``?token=$TOKEN``."""
    if not is_remote(source):
        return source
    scheme, user, location, query = split_address(source)
    try:
        user, query = (text and from_environment(text) for text in (user, query))
    except KeyError as error:
        name = error.args[0]
        raise InputError(f"{shown(source)} refers to ${name}, which is not set", f"export {name}=...") from error
    return join_address(scheme, user, location, query)


def _beside(address: str, name: str) -> str:
    """Another file in a file's folder, with the same user: a query may be a signature of the one file."""
    if not is_remote(address):
        return posixpath.join(posixpath.dirname(address), name)
    scheme, user, location, _ = split_address(address)
    return join_address(scheme, user, f"{posixpath.dirname(location)}/{name}", None)


def _tars(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.glob("*.tar") if not path.name.startswith("."))


def _of_folder(root: Path) -> Listing:
    root = root.resolve()
    if (root / "train").is_dir():
        parts: Parts = {}
        for name, part in PARTS.items():
            if (root / name).is_dir():
                _require_first(part, parts, root)
                parts[part] = _tars_of(root / name)
    else:
        parts = _parted(_tars_of(root))
    return _listing(root.name, parts, [f"{root}/"])


def _listing(
    name: str, parts: Parts, neighbours: Iterable[str], classes: tuple[str, ...] | None = None
) -> Listing:
    if "val" in parts and "test" not in parts:  # as in a folder: then it is the test set
        parts = {"test" if part == "val" else part: shards for part, shards in parts.items()}
    beside = tuple(dict.fromkeys(_beside(address, CLASSES) for address in neighbours))
    return Listing(name=name, parts=parts, classes=classes, beside=beside)


def _tars_of(folder: Path) -> list[str]:
    if not (found := _tars(folder)):
        raise InputError(f"{folder} holds no shard (*.tar)", "see docs/shards.md for the layouts")
    return found


def _of_pattern(pattern: str) -> Listing:
    if not shown(pattern).endswith(".tar") and "?" not in pattern:
        raise InputError(
            f"'{shown(pattern)}' names no shard: it does not end in .tar",
            "name shards with braces, ...-{0000..0146}.tar, or a manifest, ....json",
        )
    if not is_remote(pattern):
        pattern = os.path.abspath(pattern)
    parts = _parted(expand_braces(pattern))
    fixed = shown(pattern).partition("{")[0]
    name = posixpath.basename(fixed).removesuffix(".tar").strip("-_.")
    base = posixpath.dirname(fixed)
    neighbours = [parts["train"][0], pattern.partition("{")[0]]
    return _listing(name or posixpath.basename(base) or "shards", parts, neighbours)


def _of_manifest(source: str) -> Listing:
    content = _manifest(source)
    wrong = sorted(set(content) - {*PARTS, "classes"})
    if wrong:
        raise unknown(f"field in {shown(source)}:", wrong[0], [*PARTS, "classes"])
    parts: Parts = {}
    for name, part in PARTS.items():
        if name in content:
            _require_first(part, parts, source)
            parts[part] = _entries(source, name, content[name])
    if not parts.get("train"):
        raise InputError(f"{shown(source)} names no shards to train on", 'give "train": [...]')
    named = "classes" in content
    classes = tuple(_texts(source, "classes", content["classes"])) if named else None
    name = posixpath.basename(shown(source)).removesuffix(".json")
    return _listing(name, parts, [source], classes)


def _manifest(source: str) -> dict[str, Any]:
    try:
        content = parse_json(read(source))
    except ValueError as error:
        raise InputError(f"{shown(source)} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{shown(source)} is no manifest", 'it holds {"train": [...], "val": [...]}')
    return content


def _entries(source: str, name: str, value: object) -> list[str]:
    entries = [value] if isinstance(value, str) else _texts(source, name, value)
    shards: list[str] = []
    for entry in entries:
        shards += expand_braces(_resolved(_plain(entry), source))
        if len(shards) > MOST_SHARDS:
            raise InputError(f'{shown(source)}: "{name}" names over {MOST_SHARDS:,} shards', "check its braces")
    return shards


def _resolved(entry: str, manifest: str) -> str:
    if is_remote(entry):
        return entry
    if not is_remote(manifest):
        return os.path.join(os.path.dirname(os.path.abspath(manifest)), entry)
    scheme, user, location, _ = split_address(manifest)
    folder = location.partition("/")[0] if entry.startswith("/") else f"{posixpath.dirname(location)}/"
    return join_address(scheme, user, folder + entry, None)


def _texts(source: str, name: str, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f'{shown(source)}: "{name}" is no list of texts', f'write "{name}": ["..."]')
    return value


def _lines(path: str) -> tuple[str, ...] | None:
    try:
        text = read(path).decode("utf-8-sig")
    except MissingError:
        return None
    except UnicodeDecodeError as error:
        raise InputError(f"{shown(path)} is not UTF-8 text: {error}") from error
    return tuple(line.strip() for line in text.strip().splitlines())


def _parted(shards: Iterable[str]) -> Parts:
    """Shards by the parts that they say; all are ``train`` where none says that."""
    parts: dict[str | None, list[str]] = {}
    for shard in shards:
        parts.setdefault(_part(shard), []).append(shard)
    if "train" not in parts:
        return {"train": [shard for group in parts.values() for shard in group]}
    if None in parts:
        raise InputError(
            f"the name of {shown(parts['train'][0])} says which part of the data it is, and that of "
            f"{shown(parts[None][0])} does not",
            "name them alike, or write a manifest",
        )
    return {part: group for part, group in parts.items() if part is not None}


def _part(shard: str) -> str | None:
    folder, _, name = shown(shard).rpartition("/")
    said = {PARTS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in PARTS}
    if not said:
        said = {PARTS[word] for word in [posixpath.basename(folder).lower()] if word in PARTS}
    return said.pop() if len(said) == 1 else None


def _require_first(part: str, parts: Parts, where: object) -> None:
    if part in parts:
        names = [name for name, meant in PARTS.items() if meant == part]
        raise InputError(f"{where} has more than one of {', '.join(names)}", "keep one of them")


def _require_once(parts: Parts) -> None:
    seen: set[str] = set()
    for shard in (shard for group in parts.values() for shard in group):
        if shard in seen:
            raise InputError(f"{shown(shard)} is named twice", "name each shard once")
        seen.add(shard)
