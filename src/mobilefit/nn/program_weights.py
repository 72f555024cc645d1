"""The weights in a torch.export program (.pt2), and what it says of itself, without the program.

``torch.export.load`` runs what a hostile file tells it to: pickles of example inputs, weights and constants that it
loads in full, compiled libraries, guards and shapes that it evaluates as Python. So it never sees a file from
outside. A ``.pt2`` is a zip archive with a JSON table of its tensors and their
bytes beside the program: these and our description are read, and the network is built anew from its spec.
"""

from __future__ import annotations

import io
import math
import zipfile
from typing import Any

import torch
from torch import Tensor

from mobilefit.errors import InputError
from mobilefit.parsing import LARGEST_NUMBER, parse_json

DESCRIPTION = "mobilefit.json"
"""The extra file with what a program says of itself."""
_WEIGHTS = "data/weights/"
_TABLE = f"{_WEIGHTS}model_weights_config.json"
# By torch's _export/serde/schema.py (ScalarType); a file of ours has float32, and int64 for counters.
_TYPES = {1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16,
          7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16}  # fmt: skip


def read_program(blob: bytes) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors of a .pt2 file by their names, and the description that an export put into it.

    No pickle is read, no code is looked at, and no more memory is taken than the file has bytes.

    Returns:
        The state dict, and a mapping; ``None``: it has no description.

    Raises:
        InputError: it is no such file, is damaged, or has weights as pickles.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            members = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
            read = _Reader(archive, members)
            table = parse_json(read(_TABLE))["config"]
            described = parse_json(read(f"extra/{DESCRIPTION}")) if f"extra/{DESCRIPTION}" in members else None
            state = {str(name): _tensor(str(name), entry, read) for name, entry in table.items()}
    except InputError:
        raise
    except Exception as error:  # zipfile's, and what wrong values in the table lead to
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(f"not a torch.export program, or damaged: {reason}", "export it again") from error
    return state, described if isinstance(described, dict) else None


class _Reader:
    """Members of an archive by their names without the folder that is around all of them."""

    def __init__(self, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> None:
        self.archive, self.members = archive, members

    def __call__(self, name: str) -> bytes:
        if name not in self.members:
            raise ValueError(f"it lacks {name}")
        entry = self.members[name]
        if entry.compress_type != zipfile.ZIP_STORED:  # torch compresses nothing; a bomb is
            raise ValueError(f"{name} is compressed")
        return self.archive.read(entry)


def _tensor(name: str, entry: Any, read: _Reader) -> Tensor:
    """One tensor of the table; its bytes may be shared with others."""
    if entry["use_pickle"]:
        raise InputError(f"the program keeps '{name}' as a pickle, which may run code", "export it again")
    meta = entry["tensor_meta"]
    shape = [_whole(side["as_int"]) for side in meta["sizes"]]
    strides = [_whole(step["as_int"]) for step in meta["strides"]]
    kind, offset = _TYPES[meta["dtype"]], _whole(meta["storage_offset"]["as_int"])
    if not math.prod(shape):
        return torch.zeros(shape, dtype=kind)
    data = torch.frombuffer(bytearray(read(_WEIGHTS + str(entry["path_name"]))), dtype=kind)
    reach = offset + sum((side - 1) * step for side, step in zip(shape, strides, strict=True))
    if reach >= len(data) or math.prod(shape) > len(data):  # strides of 0 would make much of little
        raise ValueError(f"'{name}' is longer than its bytes")
    return torch.as_strided(data, shape, strides, offset).clone()


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= LARGEST_NUMBER:
        raise ValueError(f"{value!r:.40} is no size")
    return int(value)
