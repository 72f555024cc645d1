"""The folder that remote shards are fetched to, and the indices of all shards.

``$MOBILEFIT_CACHE/shards`` (see ``mobilefit.data.fashion_mnist`` for the default) holds

- ``index/HASH.npz``: the index of a shard, by its address;
- ``HASH-NAME.tar``: a remote shard, by its address, size and tag, so that a shard which was changed
  is another file;
- ``HASH-NAME.tar.part``: one that is being fetched, as large as it will be; ``*.lock``: locks.

Shards take ``MOBILEFIT_SHARD_CACHE_GB`` at most (50 unless set); those used longest ago go first. Any
number of processes may share the folder: a shard is fetched by one of them while the others wait,
and whoever reads a shard holds a lock on it, so that it stays. If all that is there is being read, the
limit is passed rather than the training stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mobilefit.data.fashion_mnist import cache_folder
from mobilefit.data.lazy import say
from mobilefit.data.shard_index import BadShardError, ShardIndex, is_whole, read_index, scan
from mobilefit.data.shard_remote import Version, fetch, is_remote, look, shown
from mobilefit.errors import InputError

LIMIT = "MOBILEFIT_SHARD_CACHE_GB"
DEFAULT_GB = 50.0
GB = 10**9
AHEAD_THREADS = 2
"""Shards that a process fetches at once in the background."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A tar file in one state of it."""

    url: str
    """Or a local path."""
    version: Version

    @property
    def remote(self) -> bool:
        return is_remote(self.url)


class Held:
    """An open shard.

    Args:
        keep: nobody removes it from the cache until this is gone.
    """

    def __init__(self, path: Path, *, keep: bool) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        keeper = os.getpid() if keep else None
        weakref.finalize(self, _close, self.descriptor, keeper).atexit = False
        if keep:
            _flock(self.descriptor, "LOCK_SH")

    @property
    def linked(self) -> bool:
        """Whether the file was still there when it was locked."""
        return os.fstat(self.descriptor).st_nlink > 0

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the shard; fewer at its end. Threads may read at the same time."""
        return os.pread(self.descriptor, size, offset)


class ShardCache:
    """Shards at hand, and their indices.

    Args:
        folder: made if it is not there.
        limit: bytes for remote shards.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        with contextlib.suppress(OSError):  # local shards can do without, more slowly
            (folder / "index").mkdir(parents=True, exist_ok=True)
        self._writable = os.access(folder / "index", os.W_OK)

    @classmethod
    def usual(cls) -> ShardCache:
        """In the cache's folder, with the limit that the environment says.

        Raises:
            InputError: the limit is no number above 0.
        """
        said = os.environ.get(LIMIT) or str(DEFAULT_GB)
        try:
            limit = float(said)
        except ValueError:
            limit = math.nan
        if not 0 < limit < math.inf:
            raise InputError(f"{LIMIT} is '{said}'", f"give gigabytes above 0, such as {LIMIT}=200")
        return cls(cache_folder() / "shards", int(limit * GB))

    def kept_index(self, shard: Shard) -> ShardIndex | None:
        """The index of a shard in this state, if it was made before."""
        kept = read_index(self._index_path(shard))
        return kept if kept is not None and kept.version == shard.version else None

    def index(self, shard: Shard) -> ShardIndex:
        """The index of a shard: the kept one, or a new one of a new or changed shard.

        Raises:
            BadShardError: it cannot be used.
            InputError: it cannot be read or fetched.
        """
        path = self._index_path(shard)
        with self._locked(path):
            if (kept := self.kept_index(shard)) is not None:
                return kept
            if read_index(path) is not None:
                say(f"{shown(shard.url)} was changed since it was indexed: indexing it anew")
            found = self._scanned(shard)
            if self._writable:
                found.write(path)
        return found

    def _index_path(self, shard: Shard) -> Path:
        return self._folder / "index" / f"{_hash(shard.url)}.npz"

    def _scanned(self, shard: Shard) -> ShardIndex:
        held = self.hold(shard)
        try:
            with open(held.descriptor, "rb", closefd=False) as file:
                return scan(file, shard.version)
        except BadShardError as error:
            raise BadShardError(f"{shown(shard.url)} {error}") from error
        except OSError as error:
            raise InputError(f"cannot read {shown(shard.url)}: {error.strerror}") from error

    def hold(self, shard: Shard) -> Held:
        """Open a shard, which is fetched first if it is not at hand.

        Raises:
            InputError: it cannot be read or fetched, or is not what it was.
        """
        if not shard.remote:
            _require_same(shard, look(shard.url))
            return _held(Path(shard.url))
        while True:
            self._fetched(shard, wait=True)
            # Somebody may be removing it: then it is gone, locked, or gone and still open here.
            with contextlib.suppress(FileNotFoundError, BlockingIOError):
                held = Held(self._path(shard), keep=True)
                if held.linked:
                    os.utime(held.descriptor)
                    return held

    def at_hand(self, shard: Shard) -> bool:
        """Whether it can be read without being fetched."""
        return not shard.remote or self._path(shard).exists()

    def prepare(self, shard: Shard) -> None:
        """Fetch a shard unless it is at hand or somebody else is fetching it."""
        if not self.at_hand(shard):
            self._fetched(shard, wait=False)

    def require_room(self, sizes: Iterable[int], at_once: int) -> None:
        """See that so many remote shards, the largest of these sizes, fit under the limit together.

        Raises:
            InputError: they do not.
        """
        needed = sum(sorted(sizes, reverse=True)[:at_once])
        if needed > self._limit:
            raise InputError(
                f"{at_once} shards are read at a time, which takes up to {needed / GB:.3g} GB, and the "
                f"cache in {self._folder} may hold {self._limit / GB:.3g} GB",
                f"set {LIMIT} to {math.ceil(needed / GB)} or more, or make smaller shards",
            )

    def _path(self, shard: Shard) -> Path:
        state = f"{shard.url}\0{shard.version.size}\0{shard.version.tag}"
        return self._folder / f"{_hash(state)}-{PurePosixPath(shown(shard.url)).stem}.tar"

    def _fetched(self, shard: Shard, *, wait: bool) -> None:
        path = self._path(shard)
        with self._locked(path, wait=wait) as mine:
            if mine and not path.exists():
                self._fetch(shard, path)

    def _fetch(self, shard: Shard, path: Path) -> None:
        part = path.with_name(f"{path.name}.part")
        try:
            self._reserve(part, shard.version.size or 0)
            with part.open("r+b") as file:
                version = fetch(shard.url, file, whole=is_whole)
                os.fsync(file.fileno())
            _require_same(shard, version)
            os.replace(part, path)
        except OSError as error:
            hint = f"free some space, set {LIMIT} lower, or choose another MOBILEFIT_CACHE"
            raise InputError(f"cannot write {part}: {error.strerror}", hint) from error
        finally:
            part.unlink(missing_ok=True)

    def _reserve(self, part: Path, size: int) -> None:
        """Make room for a shard and take it, so that others who count see it as taken."""
        with self._locked(self._folder / "room"):
            self._remove_until(self._limit - size)
            with part.open("wb") as file:
                file.truncate(size)

    def _remove_until(self, limit: int) -> None:
        """Remove what was used longest ago and is not being read, until the rest is small enough."""
        self._remove_abandoned()
        found = sorted(_stats(self._folder), key=lambda item: item[1].st_mtime_ns)
        used = sum(stat.st_size for _, stat in found)
        for path, stat in found:
            if used <= limit:
                return
            if path.suffix != ".part" and _removed_if_free(path):
                used -= stat.st_size

    def _remove_abandoned(self) -> None:
        """What processes left that ended while they fetched: nobody holds the lock of it."""
        for part in self._folder.glob("*.part"):
            with self._locked(part.with_suffix(""), wait=False) as mine:
                if mine:
                    part.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self, path: Path, *, wait: bool = True) -> Iterator[bool]:
        """Hold the lock that belongs to a file of the folder; gives False if it is another's.

        Raises:
            InputError: remote shards need a folder that can be written.
        """
        from filelock import FileLock, Timeout  # torch brings it

        if not self._writable:
            if path.parent == self._folder:
                raise InputError(f"cannot write {self._folder}", "choose another MOBILEFIT_CACHE")
            yield True
            return
        lock = FileLock(f"{path}.lock")
        try:
            lock.acquire(blocking=wait)
        except Timeout:
            yield False
            return
        with contextlib.ExitStack() as stack:
            stack.callback(lock.release)
            yield True


class Ahead:
    """Fetches shards in the background, the first of those wanted first."""

    def __init__(self, cache: ShardCache) -> None:
        self._cache = cache
        self._wanted: deque[Shard] = deque()
        self._threads: list[threading.Thread] = []

    def want(self, shards: Iterable[Shard]) -> None:
        """Say which shards are read next, in their order, in place of what was said before."""
        self._wanted = deque(shard for shard in shards if not self._cache.at_hand(shard))
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        while self._wanted and len(self._threads) < AHEAD_THREADS:
            # A daemon: a process that ends does not wait for a gigabyte that nobody will read.
            thread = threading.Thread(target=self._work, name="mobilefit-shards", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        while True:
            try:
                shard = self._wanted.popleft()
            except IndexError:
                return
            with contextlib.suppress(InputError):  # whoever reads the shard meets it and tells
                self._cache.prepare(shard)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _held(path: Path) -> Held:
    try:
        return Held(path, keep=False)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _require_same(shard: Shard, now: Version) -> None:
    if now != shard.version:
        raise InputError(
            f"{shown(shard.url)} was changed after it was indexed",
            "run the same command again: the shard is indexed anew then",
        )


def _stats(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.iterdir():
        if path.suffix in (".tar", ".part"):
            with contextlib.suppress(FileNotFoundError):
                yield path, path.stat()


def _removed_if_free(path: Path) -> bool:
    """Remove a shard unless somebody reads it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            _flock(descriptor, "LOCK_EX")
            path.unlink()
            return True
        finally:
            os.close(descriptor)
    return False


def _close(descriptor: int, keeper: int | None) -> None:
    # A forked process has a copy of the descriptor and no say over its parent's lock.
    if os.getpid() == keeper:
        _flock(descriptor, "LOCK_UN")
    os.close(descriptor)


def _flock(descriptor: int, operation: str) -> None:
    import fcntl  # only here: Windows has none, and the rest of the room runs there

    fcntl.flock(descriptor, getattr(fcntl, operation) | fcntl.LOCK_NB)
