"""What a tar shard holds: where each image lies and what its label is.

A shard is a plain tar file in WebDataset's layout: members with the same name up to the first dot of
the last part of their path (the key) are one sample: an image (``KEY.jpg``, ``KEY.png``, ``KEY.webp``
...) and its label, a whole number from 0, as text in ``KEY.cls`` or as ``{"label": 3}`` in
``KEY.json``. Other members are ignored.

A shard without the two empty blocks that end every tar file is cut short, and refused: without them
nobody can tell a shard that was cut between two members from a whole one.
"""

from __future__ import annotations

import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from mobilefit.data.decode import BadImageError, decode
from mobilefit.data.shard_remote import Version
from mobilefit.parsing import parse_json
from mobilefit.runs import atomic_file

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm")
LABELS = ("cls", "json")
LOOKED_AT = 16
"""Images of a shard that are decoded when it is indexed."""
LARGEST_LABEL = 2**31 - 1
LARGEST_HEADER, LARGEST_IMAGE, LARGEST_LABEL_FILE, LONGEST_KEY = 1 << 20, 1 << 30, 1 << 20, 512
"""In bytes."""
FORMAT = 1
"""Of the file that keeps an index; another one is not read."""

_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # WebDataset's own rule
_BLOCK = 512


class BadShardError(Exception):
    """Why a shard cannot be used, in a few words that go after its name."""


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """The n samples of a shard, in the order of its tar file."""

    version: Version
    """Of the shard that was indexed."""
    size: int
    """Of the shard, in bytes."""
    keys: npt.NDArray[np.bytes_]
    """UTF-8 [n]."""
    offsets: npt.NDArray[np.int64]
    """[n], where the image begins in the shard, in bytes."""
    sizes: npt.NDArray[np.int64]
    """[n], bytes of the image."""
    labels: npt.NDArray[np.int64]
    sides: npt.NDArray[np.int64]
    """[m], the short sides in pixels of the images :attr:`looked_at`; 0: it is bad."""

    @property
    def looked_at(self) -> npt.NDArray[np.int64]:
        """Which samples were decoded: m of the n, evenly apart."""
        return _spread(len(self.keys), len(self.sides))

    def write(self, path: Path) -> None:
        """Keep it, as ``.npz``."""
        head = {"format": FORMAT, "tag": self.version.tag, "version_size": self.version.size,
                "size": self.size}  # fmt: skip
        with atomic_file(path) as file:
            np.savez(
                file, allow_pickle=False, head=np.array(json.dumps(head)), keys=self.keys,
                offsets=self.offsets, sizes=self.sizes, labels=self.labels, sides=self.sides,
            )  # fmt: skip


def read_index(path: Path) -> ShardIndex | None:
    """An index that was kept; ``None`` if there is none, or it is damaged or of another format."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            head = parse_json(str(kept["head"]))
            if head["format"] != FORMAT:
                return None
            arrays = {name: kept[name] for name in ("keys", "offsets", "sizes", "labels", "sides")}
            version = Version(size=head["version_size"], tag=head["tag"])
            return ShardIndex(version=version, size=head["size"], **arrays)
    except Exception:  # a torn zip file raises half a dozen kinds
        return None


def scan(file: BinaryIO, version: Version) -> ShardIndex:
    """Index an open shard.

    Raises:
        BadShardError: it is no plain tar file or cut short; it holds no image; a key has no label,
            no image or two of one; a label is no whole number from 0.
        OSError: it cannot be read.
    """
    samples = _grouped(_members(file))
    if not samples:
        raise BadShardError(f"holds no image (KEY.{', KEY.'.join(IMAGES[:4])} ...)")
    found = [_sample(file, key, members) for key, members in samples.items()]
    offsets, sizes, labels = np.array(found, np.int64).T.copy()
    spread = _spread(len(found), min(LOOKED_AT, len(found)))
    return ShardIndex(
        version=version,
        size=file.seek(0, 2),
        keys=np.array([key.encode("utf-8", "surrogateescape") for key in samples]),
        offsets=offsets,
        sizes=sizes,
        labels=labels,
        sides=np.array([_short_side(file, *found[place][:2]) for place in spread], np.int64),
    )


def is_whole(file: BinaryIO) -> bool:
    """Whether an open tar file has everything to its end."""
    try:
        _members(file)
    except BadShardError:
        return False
    return True


def _spread(count: int, chosen: int) -> npt.NDArray[np.int64]:
    return np.linspace(0, count - 1, chosen).astype(np.int64)


def _members(file: BinaryIO) -> list[tarfile.TarInfo]:
    file.seek(0)
    if file.read(2) == b"\x1f\x8b":
        raise BadShardError("is compressed, and images can be read from plain tar files alone: gunzip it")
    members, end = [], 0
    try:
        with tarfile.open(fileobj=_Headers(file), mode="r:") as archive:  # type: ignore[call-overload]
            for member in archive:
                if member.size < 0 or archive.offset <= end:
                    raise BadShardError(f"is no tar file: its header after {end} bytes leads backwards")
                end = archive.offset
                if member.isreg() and not member.issparse():
                    members.append(member)
            end = archive.offset
    except (BadShardError, OSError):
        raise
    except Exception as error:  # tarfile raises half a dozen kinds on damaged headers, RecursionError among them
        raise BadShardError(f"is no tar file, or cut short: {error}") from error
    file.seek(end)  # tarfile takes anything that is no header for the end
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise BadShardError(f"is cut short or damaged after {end} bytes")
    return members


class _Headers:
    """A tar file for a reader of its headers, which may not ask for more than a header can be, nor beyond the end.

    tarfile asks for as many bytes as a header says that a long name has, and goes where sizes lead it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._end = file, file.seek(0, 2)
        self.tell = file.tell
        file.seek(0)

    def seek(self, offset: int) -> int:
        if not 0 <= offset <= self._end:
            raise tarfile.ReadError("unexpected end of data")
        return self._file.seek(offset)

    def read(self, count: int) -> bytes:
        if not 0 <= count <= LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {count} bytes")
        return self._file.read(count)


def _grouped(members: list[tarfile.TarInfo]) -> dict[str, dict[str, tarfile.TarInfo]]:
    """The samples with an image or a ``.cls``, in the order of their first members."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in members:
        found = _NAME.fullmatch(member.name)
        if found is None or (suffix := found[2].lower()) not in (*IMAGES, *LABELS):
            continue
        if (size := len(found[1].encode("utf-8", "surrogateescape"))) > LONGEST_KEY:  # all keys take as much memory
            raise BadShardError(f"has a key of {size:,} bytes, '{found[1][:40]}...'; at most {LONGEST_KEY}")
        sample = samples.setdefault(found[1], {})
        if suffix in sample:
            raise BadShardError(f"holds the key '{found[1]}' twice (two members .{suffix})")
        sample[suffix] = member
    return {key: sample for key, sample in samples.items() if set(sample) != {"json"}}


def _sample(
    file: BinaryIO, key: str, members: dict[str, tarfile.TarInfo]
) -> tuple[int, int, int]:
    """Where a sample's image begins, how many bytes it has, and the label."""
    images = [suffix for suffix in members if suffix in IMAGES]
    if not images:
        raise BadShardError(f"has a label but no image for the key '{key}'")
    if len(images) > 1:
        raise BadShardError(f"has two images for the key '{key}': .{images[0]} and .{images[1]}")
    image = members[images[0]]
    if image.size > LARGEST_IMAGE:
        raise BadShardError(f"has an image of {image.size:,} bytes for the key '{key}'; at most {LARGEST_IMAGE:,}")
    return image.offset_data, image.size, _label(file, key, members)


def _label(file: BinaryIO, key: str, members: dict[str, tarfile.TarInfo]) -> int:
    value: object = None
    if "cls" in members:
        value = _whole_number(_content(file, members["cls"]))
    elif "json" in members:
        value = _field(_content(file, members["json"]))
    if value is None:
        raise BadShardError(f"has no label for the key '{key}' (.cls, or .json with \"label\")")
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadShardError(f"has for the key '{key}' the label {repr(value)[:60]}, not a whole number")
    if not 0 <= value <= LARGEST_LABEL:
        raise BadShardError(f"has for the key '{key}' the label {str(value)[:60]}; labels count from 0")
    return value


def _content(file: BinaryIO, member: tarfile.TarInfo) -> bytes:
    if member.size > LARGEST_LABEL_FILE:
        raise BadShardError(f"has a label of {member.size:,} bytes, {member.name}; at most {LARGEST_LABEL_FILE:,}")
    file.seek(member.offset_data)
    return file.read(member.size)


def _whole_number(content: bytes) -> object:
    text = content[:100].decode("utf-8", "replace").strip()
    try:
        return int(text)
    except ValueError:
        return text


def _field(content: bytes) -> object:
    try:
        value = parse_json(content)
    except ValueError:
        return "(no JSON)"
    return value.get("label") if isinstance(value, dict) else None


def _short_side(file: BinaryIO, offset: int, size: int) -> int:
    file.seek(offset)
    try:
        return min(decode(file.read(size))[1])
    except BadImageError:
        return 0
