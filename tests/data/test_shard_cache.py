from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mobilefit.data import shard_cache
from mobilefit.data.shard_cache import Ahead, Held, Shard, ShardCache
from mobilefit.data.shard_index import BadShardError
from mobilefit.data.shard_remote import look
from mobilefit.errors import InputError

from .shard_server import Server, samples, serve, write_shards, write_tar

MANY = 10**9
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    write_shards(tmp_path / "served", 6, 4)
    with serve(tmp_path / "served") as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def shard(server: Server, number: int) -> Shard:
    url = f"{server.url}/shard-{number:03d}.tar"
    return Shard(url=url, version=look(url))


def size(server: Server) -> int:
    return (server.folder / "shard-000.tar").stat().st_size


def names(folder: Path) -> list[str]:
    """Of the shards in the cache, without the hash."""
    return sorted(path.name.partition("-")[2] for path in folder.glob("*.tar"))


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.tar*") if path.suffix != ".lock")


def test_a_shard_is_fetched_once_and_read_at_any_place(server: Server, folder: Path) -> None:
    cache, first = ShardCache(folder, MANY), shard(server, 0)
    content = (server.folder / "shard-000.tar").read_bytes()
    assert not cache.at_hand(first)
    for _ in range(3):
        held = cache.hold(first)
        assert held.read(512, 100) == content[512:612] and held.read(0, MANY) == content
    assert cache.at_hand(first) and server.sent("shard-000.tar") == 1


def test_what_was_used_longest_ago_goes_when_the_limit_is_reached(server: Server, folder: Path) -> None:
    cache = ShardCache(folder, 3 * size(server))
    for number in (0, 1, 2, 0, 3):
        cache.hold(shard(server, number))
        time.sleep(0.01)  # times of files have their grain
        assert used(folder) <= 3 * size(server)
    assert names(folder) == ["shard-000.tar", "shard-002.tar", "shard-003.tar"]
    cache.hold(shard(server, 1))
    assert names(folder) == ["shard-000.tar", "shard-001.tar", "shard-003.tar"]


def test_a_shard_that_another_process_reads_stays(server: Server, folder: Path) -> None:
    cache = ShardCache(folder, 2 * size(server))
    reading, enough = FORK.Event(), FORK.Event()

    def read() -> None:
        held = ShardCache(folder, MANY).hold(first)
        reading.set()
        enough.wait(60)
        assert len(held.read(0, 9)) == 9

    first = shard(server, 0)
    other = FORK.Process(target=read)
    other.start()
    assert reading.wait(60)
    for number in (1, 2, 3):
        cache.hold(shard(server, number))
    assert names(folder) == ["shard-000.tar", "shard-003.tar"]
    enough.set()
    other.join(60)
    assert other.exitcode == 0
    cache.hold(shard(server, 4))
    assert names(folder) == ["shard-003.tar", "shard-004.tar"]


def test_the_limit_is_passed_where_everything_is_read(server: Server, folder: Path) -> None:
    cache = ShardCache(folder, 2 * size(server))
    held = [cache.hold(shard(server, number)) for number in range(4)]
    assert len(names(folder)) == 4 and all(len(item.read(0, 9)) == 9 for item in held)
    held.clear()
    cache.hold(shard(server, 5))
    assert len(names(folder)) == 2


def test_a_forked_process_leaves_its_parents_hold_alone(server: Server, folder: Path) -> None:
    cache = ShardCache(folder, size(server))
    held = [cache.hold(shard(server, 0))]
    child = os.fork()
    if not child:
        held.clear()
        os._exit(0)
    os.waitpid(child, 0)
    cache.hold(shard(server, 1))
    assert "shard-000.tar" in names(folder) and held[0].linked


def in_processes(count: int, work: Callable[[], object]) -> None:
    processes = [FORK.Process(target=work) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0


def test_processes_that_want_the_same_shard_fetch_it_once(server: Server, folder: Path) -> None:
    server.delay = 0.3  # all are waiting by then
    content = (server.folder / "shard-000.tar").read_bytes()
    wanted = [shard(server, 0), shard(server, 1)]

    def work() -> None:
        for item in wanted:
            assert len(ShardCache(folder, MANY).hold(item).read(0, MANY)) == len(content)
            ShardCache(folder, MANY).index(item)

    in_processes(4, work)
    assert server.sent("shard-000.tar") == server.sent("shard-001.tar") == 1


def test_what_is_being_fetched_counts_and_what_was_abandoned_goes(server: Server, folder: Path) -> None:
    cache = ShardCache(folder, 2 * size(server))
    cache.hold(shard(server, 0))
    abandoned = folder / "0123-shard-009.tar.part"
    abandoned.write_bytes(bytes(10 * size(server)))
    first, second = shard(server, 1), shard(server, 2)
    with server.lock:  # it answers nothing for a while
        Ahead(cache).want([first])
        part = "*shard-001.tar.part"  # there before it is as large as it will be
        until(lambda: [path.stat().st_size for path in folder.glob(part)] == [size(server)])
        assert not abandoned.exists() and used(folder) == 2 * size(server)  # taken before it has come
    cache.hold(second)
    until(lambda: names(folder) == ["shard-001.tar", "shard-002.tar"])


def test_shards_are_fetched_ahead_in_the_background(server: Server, folder: Path) -> None:
    cache = ShardCache(folder, MANY)
    shards = [shard(server, number) for number in range(4)]
    ahead = Ahead(cache)
    (server.folder / "shard-001.tar").unlink()  # who reads it meets that, the others come
    with server.lock:  # it answers nothing before this is over
        ahead.want(shards)
    until(lambda: len(names(folder)) == 3)
    ahead.want(shards[2:])
    assert server.sent("shard-002.tar") == 1
    with pytest.raises(InputError, match=r"shard-001\.tar: the server says 404"):
        cache.hold(shards[1])


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_index_is_made_once_and_anew_when_the_shard_changes(
    server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, first = ShardCache(folder, MANY), shard(server, 0)
    assert cache.kept_index(first) is None
    index = cache.index(first)
    for path in folder.glob("*.tar"):
        path.unlink()
    again = ShardCache(folder, MANY)
    kept = again.kept_index(first)
    assert kept is not None and kept.keys.tolist() == index.keys.tolist()
    assert again.index(first).size == index.size and server.sent("shard-000.tar") == 1
    assert capsys.readouterr().err == ""
    write_tar(server.folder / "shard-000.tar", samples(70, 4))
    server.tag = '"2"'
    changed = shard(server, 0)
    assert again.kept_index(changed) is None
    assert again.index(changed).keys.tolist() == [b"00070", b"00071", b"00072", b"00073"]
    assert capsys.readouterr().err.count("shard-000.tar was changed since it was indexed") == 1


def test_a_shard_that_changes_after_it_was_indexed_is_refused(server: Server, folder: Path) -> None:
    cache, first = ShardCache(folder, MANY), shard(server, 0)
    server.tag = '"2"'
    with pytest.raises(InputError, match=r"shard-000\.tar was changed after it was indexed; run the same"):
        cache.hold(first)
    path = server.folder / "shard-001.tar"
    local = Shard(url=str(path), version=look(str(path)))
    cache.hold(local)
    write_tar(path, samples(0, 5))
    with pytest.raises(InputError, match=r"shard-001\.tar was changed after it was indexed"):
        cache.hold(local)


def test_a_bad_shard_is_named(server: Server, folder: Path) -> None:
    write_tar(server.folder / "shard-000.tar", [("1.png", b"x")])
    with pytest.raises(BadShardError, match=r"/shard-000\.tar has no label for the key '1'"):
        ShardCache(folder, MANY).index(shard(server, 0))


def test_a_full_disk_is_told_and_leaves_nothing(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shard_cache, "fetch", full)
    with pytest.raises(InputError, match=r"shard-000\.tar.*No space left .* set MOBILEFIT_SHARD_CACHE_GB"):
        ShardCache(folder, MANY).hold(shard(server, 0))
    assert used(folder) == 0


def test_local_shards_do_without_a_cache_and_remote_ones_do_not(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write_text("a file where the folder should be")
    cache, path = ShardCache(folder, MANY), server.folder / "shard-000.tar"
    assert cache.index(Shard(url=str(path), version=look(str(path)))).labels.tolist() == [0, 1, 0, 1]
    with pytest.raises(InputError, match=r"cannot write .*cache; choose another MOBILEFIT_CACHE"):
        cache.index(shard(server, 0))


def test_the_limit_comes_from_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILEFIT_CACHE", str(folder))
    monkeypatch.setenv("MOBILEFIT_SHARD_CACHE_GB", "0.5")
    message = r"4 shards .* up to 0\.7 GB, .*/shards may hold 0\.5 GB; set MOBILEFIT_SHARD_CACHE_GB to 1 or"
    with pytest.raises(InputError, match=message):
        ShardCache.usual().require_room([10**8] * 3 + [2 * 10**8] * 3, 4)
    monkeypatch.delenv("MOBILEFIT_SHARD_CACHE_GB")
    ShardCache.usual().require_room([10**9] * 100, 50)
    for bad in ("many", "0", "-1", "nan", "inf"):
        monkeypatch.setenv("MOBILEFIT_SHARD_CACHE_GB", bad)
        with pytest.raises(InputError, match=f"MOBILEFIT_SHARD_CACHE_GB is '{bad}'; give gigabytes"):
            ShardCache.usual()


def test_a_descriptor_is_closed_with_its_hold(server: Server, folder: Path) -> None:
    held = Held(server.folder / "shard-000.tar", keep=False)
    descriptor = held.descriptor
    del held
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


KEEP = """
import sys
from pathlib import Path
from mobilefit.data.shard_cache import Held
sys.modules["kept to the end"] = Held(Path(sys.argv[1]), keep=True)
"""


def test_a_process_that_ends_with_open_shards_says_nothing(server: Server) -> None:
    command = [sys.executable, "-c", KEEP, str(server.folder / "shard-000.tar")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
