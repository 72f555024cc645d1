"""Files of a run: atomic writes, content hashes, JSON lines, and what machine this is.

Standard library only, so that reading a run's record needs nothing installed.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import stat
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mobilefit.errors import InputError
from mobilefit.parsing import check_fields, parse_json

PACKAGES = ("mobilefit", "torch", "torchvision", "lightning-fabric", "numpy", "ai-edge-litert",
            "litert-quantizer")  # fmt: skip


LOCK = ".lock"


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path`` only when the block ends well.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and take the name
    by ``os.replace``. Whatever was at ``path`` before stays whole if anything fails. Temporary files for
    ``path`` that killed processes left are removed.

    Raises:
        InputError: the disk is full, or the folder is missing or not writable.
    """
    try:
        handle, temporary = _temporary_for(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}", _WRITE_HINT) from error
    locked = None if os.name == "nt" else os.dup(handle)  # until the file has its name
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise InputError(f"cannot write {path}: {error.strerror}", _WRITE_HINT) from error
        raise
    finally:
        if locked is not None:
            os.close(locked)


def _temporary_for(path: Path) -> tuple[int, str]:
    """An open temporary file, locked for as long as it is open, and its path."""
    prefix = f".{path.name[:40]}."
    pattern = re.compile(rf"{re.escape(prefix)}[a-z0-9_]{{8}}\.tmp")
    for left in path.parent.iterdir():
        if pattern.fullmatch(left.name):
            _remove_abandoned(left)
    while True:
        handle, temporary = tempfile.mkstemp(prefix=prefix, suffix=".tmp", dir=path.parent)
        _lock(handle, wait=True)
        if os.fstat(handle).st_nlink:
            return handle, temporary
        os.close(handle)  # another process took it for abandoned before it was locked


def _remove_abandoned(temporary: Path) -> None:
    """Remove a temporary file unless a process still writes it: the lock ends with the process."""
    with contextlib.suppress(OSError):
        handle = os.open(temporary, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            if _lock(handle, wait=False):
                temporary.unlink()
        finally:
            os.close(handle)


def _lock(handle: int, *, wait: bool) -> bool:
    """Take the lock of an open file; False: another process has it, or there are no locks here."""
    try:
        import fcntl  # not on Windows

        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):
        return False
    return True


_WRITE_HINT = "free some space or choose another folder; what was there before is unchanged"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_held: weakref.WeakValueDictionary[Path, Any] = weakref.WeakValueDictionary()


def hold(folder: Path) -> object:
    """Keep other processes out of a folder for as long as the result lives, or this process does.

    Within a process it may be held several times over.

    Raises:
        InputError: another process holds it.
    """
    import filelock

    lock = _held.get(folder.resolve())
    if lock is None:
        lock = filelock.FileLock(folder / LOCK, timeout=0, thread_local=False)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise InputError(
                f"another process is at work in {folder}", "wait for it, stop it, or choose another --out"
            ) from None
        except OSError as error:
            raise InputError(f"cannot write {folder / LOCK}: {error.strerror}", _WRITE_HINT) from error
        _held[folder.resolve()] = lock
    return lock


def _leave_locks() -> None:
    """Close a forked process's copies of the locks: they would keep others out for longer than its parent lives."""
    for lock in list(_held.values()):
        with contextlib.suppress(AttributeError, TypeError, OSError):
            os.close(lock._context.lock_file_fd)
            lock._context.lock_file_fd = None  # so that nobody unlocks what is the parent's
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write ``data`` to ``path``, whole or not at all. See :func:`atomic_file`.

    What is no Unicode in text (names of files may be anything) is escaped.
    """
    with atomic_file(path) as file:
        file.write(data.encode(errors="backslashreplace") if isinstance(data, str) else data)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as readable JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2) + "\n")


LARGEST_FILE = 8 << 30
"""Bytes that are read into memory at once."""


def open_file(path: Path) -> BinaryIO:
    """Open a file to read, but nothing that could have no end or keep the reader waiting: a pipe, a device, a socket.

    Raises:
        OSError: it is missing, unreadable, or not a regular file; its ``strerror`` says which.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags), "rb")


def read_bytes(path: Path, most: int = LARGEST_FILE) -> bytes:
    """A file's content; see :func:`open_file`.

    Raises:
        OSError: as there, or it has more than ``most`` bytes.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, and {most:,} are read at most", str(path))
        return file.read()


def temporary_file() -> BinaryIO:
    """A file without a name, which is gone with the last process that has it open.

    It lies in the folder for temporary files (``TMPDIR``), and in memory where there is none that can be written.

    Raises:
        InputError: neither can be had.
    """
    try:
        return tempfile.TemporaryFile(prefix="mobilefit-")
    except OSError as error:
        if hasattr(os, "memfd_create"):
            return os.fdopen(os.memfd_create("mobilefit"), "w+b")
        raise InputError(f"no temporary file can be made: {error.strerror}", "set TMPDIR to a writable folder") from error


def read_json(path: Path, *, hint: str | None = "delete it to start anew") -> Any:
    """Read a JSON file.

    Args:
        hint: what to do about one that is not JSON: the usual one is for files of a run.

    Raises:
        InputError: the file is missing, unreadable or not JSON.
    """
    try:
        return parse_json(read_bytes(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}", hint) from error


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Append one JSON line; a crash can tear only the line being written."""
    line = json.dumps(row) + "\n"
    try:
        with path.open("ab+") as file:
            if file.tell() and not _ends_line(file):
                line = "\n" + line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())  # a row may say that an older file is needed no more
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}", _WRITE_HINT) from error


def _ends_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a JSON-lines file, in order; torn lines are left out, no file is no row.

    Raises:
        InputError: it is there and cannot be read.
    """
    try:
        lines = read_bytes(path).splitlines() if path.exists() else []
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError):
            rows.append(parse_json(line))
    return rows


def read_log(path: Path, fields: Callable[[dict[str, Any]], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a log that a run continues from, each checked; see :func:`read_jsonl`.

    Args:
        fields: of a row, the types of the fields that it must have, as :func:`mobilefit.parsing.checked` takes them.
            May raise an ``InputError`` itself.

    Raises:
        InputError: a row is no object, or a field is missing or of another type; the message has its number.
    """
    rows = read_jsonl(path)
    for number, row in enumerate(rows, 1):
        try:
            check_fields(row, {}, "it")
            check_fields(row, fields(row), "it")
        except InputError as error:
            raise InputError(f"{path}, row {number}: {error.message}", ROW_HINT) from error
    return rows


ROW_HINT = "choose another --out, or delete that file to start anew"


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def now() -> str:
    """The time, ISO 8601 in UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def machine() -> dict[str, Any]:
    """What a measurement depends on: processor, cores, memory, system, versions, date."""
    return {
        "cpu": cpu_model(),
        "cpu_flags": sorted(_cpu_flags() & _RELEVANT_FLAGS),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": package_versions(),
        "date": now(),
    }


# The vector extensions by which XNNPACK chooses its kernels: they name the device in practice.
_RELEVANT_FLAGS = {"avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
                   "avx512_bf16", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm"}  # fmt: skip


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that a result depends on."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _cpuinfo(*keys: str) -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in keys:
                return value.strip()
    return ""


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    return _cpuinfo("model name", "Hardware") or platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    return set(_cpuinfo("flags", "Features").split())
