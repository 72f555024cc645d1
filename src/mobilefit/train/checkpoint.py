"""Training state on disk: written whole or not at all, and read with suspicion."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from mobilefit.errors import InputError
from mobilefit.runs import write_atomic

Identity = dict[str, Any]
"""What two runs must share to take the same steps."""


def save_checkpoint(path: Path, identity: Identity, state: dict[str, Any]) -> None:
    """Write a checkpoint; on failure (a full disk) the one that was there stays.

    Raises:
        InputError: it could not be written.
    """
    buffer = io.BytesIO()  # torch.save to a file hides a full disk behind a RuntimeError
    torch.save({"identity": identity, "state": state}, buffer)
    write_atomic(path, buffer.getvalue())


def load_checkpoint(path: Path, identity: Identity) -> dict[str, Any]:
    """Read a checkpoint of this very training.

    Raises:
        InputError: it is damaged, or belongs to another training (says what differs).
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        theirs, state = dict(saved["identity"]), dict(saved["state"])
    except Exception as error:  # a damaged file raises half a dozen kinds
        raise InputError(
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
