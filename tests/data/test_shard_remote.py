from __future__ import annotations

import io
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from mobilefit.data import shard_remote
from mobilefit.data.shard_index import is_whole
from mobilefit.data.shard_remote import MissingError, Version, fetch, look, read
from mobilefit.errors import InputError

from .shard_server import Server, samples, serve, write_tar


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    write_tar(tmp_path / "0.tar", samples(0, 20))
    with serve(tmp_path) as running:
        yield running


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which take no time."""
    made: list[float] = []
    monkeypatch.setattr(shard_remote, "say", print)
    pause_by(monkeypatch, made.append)
    return made


def pause_by(monkeypatch: pytest.MonkeyPatch, call: Callable[[float], None]) -> None:
    """What is fetched pauses by ``call``; the server's own threads go on sleeping."""
    monkeypatch.setattr(shard_remote, "time", SimpleNamespace(sleep=call))


def fetched(server: Server, name: str = "0.tar") -> bytes:
    file = io.BytesIO(b"longer than nothing" * 10_000)
    version = fetch(f"{server.url}/{name}", file, whole=is_whole)
    assert version.size in (None, len(file.getvalue()))
    return file.getvalue()


def content(server: Server) -> bytes:
    return (server.folder / "0.tar").read_bytes()


@pytest.mark.parametrize("ranges", [True, False])
def test_size_and_tag_are_seen_without_fetching(server: Server, ranges: bool) -> None:
    server.ranges = ranges
    size = len(content(server))
    assert look(f"{server.url}/0.tar") == Version(size=size, tag='"1"')
    assert len(server.requests) == 1 and (not ranges or server.requests[0][2] == 1)


def test_an_empty_file_and_one_of_unknown_size_are_seen(server: Server) -> None:
    (server.folder / "empty.tar").touch()
    assert look(f"{server.url}/empty.tar").size == 0 and fetched(server, "empty.tar") == b""
    server.ranges = server.lengths = False
    assert look(f"{server.url}/0.tar").size is None and fetched(server) == content(server)


def test_a_dropped_transfer_goes_on_where_it_stopped(server: Server, pauses: list[float]) -> None:
    server.drop_every = 1  # what is left is halved every time: 16 kB, 8 kB ... 1 byte
    file = io.BytesIO()
    fetch(f"{server.url}/0.tar", file, tries=40)
    assert file.getvalue() == content(server)
    assert sum(sent for _, _, sent in server.requests) == len(content(server))
    assert pauses[:8] == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_a_server_that_cannot_begin_in_the_middle_sends_all_again(server: Server) -> None:
    server.ranges, server.drop_every, server.bodies = False, 2, 1
    assert fetched(server) == content(server)
    assert sum(sent for _, _, sent in server.requests) == len(content(server)) * 3 // 2


def test_a_short_body_of_unknown_length_is_fetched_again(server: Server) -> None:
    server.ranges = server.lengths = False
    server.drop_every, server.bodies = 2, 1
    assert fetched(server) == content(server) and server.sent("0.tar") == 2


def test_a_file_that_changes_in_between_is_fetched_from_its_begin(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.drop_every, server.bodies = 100, 99

    def change(seconds: float) -> None:
        server.tag = '"2"'
        write_tar(server.folder / "0.tar", samples(50, 20))

    pause_by(monkeypatch, change)
    assert fetched(server) == content(server)


def test_progress_makes_patience_new(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_remote, "WORTHWHILE", 1000)
    server.drop_every = 1
    file = io.BytesIO()
    with pytest.raises(InputError, match=r"after \d+ of \d+ bytes \(3 tries"):
        fetch(f"{server.url}/0.tar", file, tries=3)
    assert len(server.requests) == 8  # six brought a kilobyte: 35, 17, 9, 4.5, 2.2 and 1.1


@pytest.mark.parametrize("status", [403, 404, 410])
def test_what_is_not_there_is_told_at_once(server: Server, status: int) -> None:
    server.refuse_every, server.refusal = 1, status
    for call in (look, read):
        with pytest.raises(MissingError, match=rf"cannot read http.*/0\.tar: the server says {status}"):
            call(f"{server.url}/0.tar?signature=secret")
    assert len(server.requests) == 2


def test_a_server_that_stays_ill_is_given_up_and_named(
    server: Server, pauses: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    server.refuse_every = 1
    message = r"cannot read http://.*/0\.tar: 503 .* \(10 tries in a row failed\); see whether its server"
    with pytest.raises(InputError, match=message):
        fetch(f"{server.url}/0.tar", io.BytesIO())
    assert len(server.requests) == 10 and len(pauses) == 9 and sum(pauses) > 100
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7 and lines[0].endswith("0.tar: 503 Service Unavailable; next try in 2 s")


def test_a_pause_is_as_long_as_the_server_asks(server: Server, pauses: list[float]) -> None:
    server.refuse_every, server.refusal, server.retry_after = 2, 429, 7
    fetched(server), fetched(server)
    assert pauses == [7.0]


def test_a_server_that_does_not_answer_is_named(pauses: list[float]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # nobody listens there
        with pytest.raises(InputError, match=rf"127\.0\.0\.1:{port}/0\.tar: .*refused \(5 tries"):
            look(f"http://127.0.0.1:{port}/0.tar")


def test_an_unknown_host_is_told_at_once(monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise urllib.error.URLError(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", unknown)
    with pytest.raises(InputError, match=r"cannot read http://nohost/0\.tar: .*Name or service not known"):
        look("http://nohost/0.tar")
    assert not pauses


@pytest.mark.parametrize("url", ["nonsense://host/0.tar", "http:///0.tar", "http://host:port/0.tar"])
def test_an_address_that_is_none_is_told_at_once(url: str, pauses: list[float]) -> None:
    with pytest.raises(InputError, match=r"cannot read .*0\.tar: .*check the address"):
        look(url)
    assert not pauses


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.core

    def missing(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(InputError, match=r"Install s3fs .*pip install 'mobilefit\[shards\]'"):
        look("s3://bucket/0.tar")


def test_a_local_file_that_is_missing_is_told(tmp_path: Path) -> None:
    for call in (look, read):
        with pytest.raises(MissingError, match=r"cannot read .*absent\.tar: No such file"):
            call(str(tmp_path / "absent.tar"))
