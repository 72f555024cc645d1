"""Decoded images beside the process's memory: in a file of the system's, which costs no more than a copy.

The file has no name, so it is gone with the last process that has it open, however that ends. What is
read often stays in the system's cache while there is memory to spare, and forked processes share it.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from mobilefit.data.decode import Pixels
from mobilefit.runs import temporary_file

ROOM = 2 << 30
"""Bytes for a data set's decoded images (8,000 of 256x341 px); those beyond are decoded when they are used."""


@dataclass(frozen=True)
class Kept:
    """An image in a :class:`Store`."""

    store: Store
    offset: int
    shape: tuple[int, ...]

    def pixels(self) -> Pixels:
        """Uint8, of :attr:`shape`, read-only."""
        return np.frombuffer(self.store.read(self.offset, math.prod(self.shape)), np.uint8).reshape(self.shape)


class Store:
    """A temporary file of pixels, in Python's folder for such (``TMPDIR``); without one nothing is kept.

    Pickled, it takes its pixels along: it is a file of its own in the other process.

    Args:
        room: bytes at most; no more than half of what is free there are taken.
    """

    def __init__(self, room: int) -> None:
        try:
            self._room = min(room, shutil.disk_usage(tempfile.gettempdir()).free // 2)
        except OSError:  # there is no such folder, or none that can be written
            self._room = 0
        self._open()

    def keep(self, pixels: Pixels) -> Kept | None:
        """Put an image in; ``None``: there is no room."""
        offset = self._taken
        if offset + pixels.nbytes > self._room:
            return None
        try:
            self._file.seek(offset)
            self._file.write(np.ascontiguousarray(pixels).data)
            self._file.flush()
        except OSError:  # someone else has filled the disk
            self._room = offset
            return None
        self._taken += pixels.nbytes
        return Kept(self, offset, pixels.shape)

    def read(self, offset: int, count: int) -> bytes:
        """Bytes of the file; any number of threads and forked processes at once."""
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), count, offset)
        with self._lock:  # Windows, where no other process has the file
            self._file.seek(offset)
            return self._file.read(count)

    def _open(self) -> None:
        self._file = temporary_file()
        self._taken = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"room": self._room, "pixels": self.read(0, self._taken)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._open()
        self._room = state["room"]
        self.keep(np.frombuffer(state["pixels"], np.uint8))
