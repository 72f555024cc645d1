"""How glibc keeps memory while a network trains on the processor.

A step frees all that it has allocated. By itself glibc gives large blocks back to the system, which has
to clear them, page by page, when the next step asks for them again: a tenth to a fifth of the time of
a step at 224 px.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections.abc import Iterator

# malloc.h; values from mallopt(3)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
KEEP = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 1 << 20}
"""No block is the system's own, none goes back, and a MiB more than is needed is asked for."""
USUAL = {M_MMAP_MAX: 65536, M_TRIM_THRESHOLD: 128 << 10, M_TOP_PAD: 128 << 10}


@contextlib.contextmanager
def freed_memory_kept(wanted: bool = True) -> Iterator[None]:
    """Within the block the process keeps what it frees, for itself; with another C library nothing changes."""
    libc = ctypes.CDLL(None) if wanted and platform.libc_ver()[0] == "glibc" else None
    if libc is None:
        yield
        return
    _set(libc, KEEP)
    try:
        yield
    finally:
        _set(libc, USUAL)
        libc.malloc_trim(0)


def return_freed_memory() -> None:
    """Give what the process has freed back to the system; with another C library nothing happens."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _set(libc: ctypes.CDLL, options: dict[int, int]) -> None:
    for name, value in options.items():
        libc.mallopt(name, value)
