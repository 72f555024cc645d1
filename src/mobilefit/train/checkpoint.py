"""Training state on disk: written whole or not at all, and read with suspicion."""

from __future__ import annotations

import io
import itertools
import os
import sys
from pathlib import Path
from typing import Any

import torch

from mobilefit.errors import InputError
from mobilefit.runs import write_atomic

CHECKPOINT = "checkpoint.pt"
EARLIER = "checkpoint-{}.pt"
"""The one before the last is 1, the one before that 2."""

Identity = dict[str, Any]
"""What two runs must share to take the same steps."""


class _DamagedError(InputError):
    """A checkpoint that cannot be read."""


def save_tensors(path: Path, value: Any) -> None:
    """Write tensors and plain values; on failure (a full disk) what was there stays.

    Raises:
        InputError: it could not be written.
    """
    buffer = io.BytesIO()  # torch.save to a file hides a full disk behind a RuntimeError
    torch.save(value, buffer)
    write_atomic(path, buffer.getvalue())


def save_checkpoint(path: Path, identity: Identity, state: dict[str, Any]) -> None:
    """Write a checkpoint; see :func:`save_tensors`."""
    save_tensors(path, {"identity": identity, "state": state})


def keep_earlier(folder: Path, keep: int) -> None:
    """Make place for a new checkpoint: the last ``keep - 1`` stay, under the names of ``EARLIER``.

    Raises:
        InputError: the folder cannot be written.
    """
    names = [folder / CHECKPOINT, *(folder / EARLIER.format(age) for age in range(1, keep))]
    for younger, older in reversed(list(itertools.pairwise(names))):
        if not younger.exists():
            continue
        if younger == names[0]:  # the newest also keeps its name until the next one takes it
            _link(younger, older)
            continue
        try:
            os.replace(younger, older)
        except OSError as error:
            raise InputError(f"cannot write {older}: {error.strerror}") from error


def _link(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.link")
    try:
        temporary.unlink(missing_ok=True)
        os.link(source, temporary)
        os.replace(temporary, target)
    except OSError:  # a file system without hard links
        write_atomic(target, source.read_bytes())


def load_latest(folder: Path, identity: Identity) -> dict[str, Any] | None:
    """The newest checkpoint in a folder that can be read; ``None``: there is none at all.

    Raises:
        InputError: all are damaged, or the newest belongs to another training.
    """
    found = [path for path in (folder / CHECKPOINT, *sorted(folder.glob(EARLIER.format("*")))) if path.exists()]
    for path in found:
        try:
            return load_checkpoint(path, identity)
        except _DamagedError as error:
            if path == found[-1]:
                raise
            print(f"mobilefit: {error.message}; going on from the one before it", file=sys.stderr)
    return None


def load_checkpoint(path: Path, identity: Identity) -> dict[str, Any]:
    """Read a checkpoint of this very training.

    Raises:
        InputError: it is damaged, or belongs to another training (says what differs).
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        theirs, state = dict(saved["identity"]), dict(saved["state"])
    except Exception as error:  # a damaged file raises half a dozen kinds
        raise _DamagedError(
            f"{path} is not a readable checkpoint: damaged or cut short",
            "delete it to train from the start",
        ) from error
    differing = [
        f"{key} {theirs.get(key)!r} there, {identity[key]!r} now"
        for key in identity
        if theirs.get(key) != identity[key]
    ]
    if differing:
        raise InputError(
            f"{path} belongs to another training: " + "; ".join(differing[:3]),
            "use another output folder, or the same options as before",
        )
    return state
