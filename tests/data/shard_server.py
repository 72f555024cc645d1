"""Small shards, and a server for them that behaves as badly as it is told to."""

from __future__ import annotations

import io
import re
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from .conftest import photo

Member = tuple[str, bytes]


def image_bytes(seed: int, size: tuple[int, int] = (24, 20), ext: str = "png") -> bytes:
    content = io.BytesIO()
    photo(seed, size).save(content, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[ext])
    return content.getvalue()


def write_tar(path: Path, members: Iterable[Member]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


def samples(first: int, count: int, classes: int = 2) -> list[Member]:
    """Members of ``count`` samples with keys and images from ``first`` on, classes alternating."""
    members: list[Member] = []
    for number in range(first, first + count):
        members.append((f"{number:05d}.png", image_bytes(number)))
        members.append((f"{number:05d}.cls", str(number % classes).encode()))
    return members


def write_shards(folder: Path, shards: int, each: int, name: str = "shard", classes: int = 2) -> None:
    for number in range(shards):
        path = folder / f"{name}-{number:03d}.tar"
        write_tar(path, samples(number * each, each, classes))


@dataclass
class Server:
    """Files of a folder over HTTP on 127.0.0.1. Its fields may be changed while it serves."""

    folder: Path
    url: str = ""
    drop_every: int = 0
    """Of answers with a body: every so many-th ends in its middle."""
    refuse_every: int = 0
    """Of requests: every so many-th is answered by ``refusal``."""
    refusal: int = 503
    faults: int = sys.maxsize
    """Dropped and refused answers for one file, after which it is served well. Below the tries in a
    row that a client allows itself, no order in which clients come together can exhaust them."""
    ranges: bool = True
    lengths: bool = True
    """Say Content-Length, without which nobody can tell that a body is short."""
    tag: str = '"1"'
    retry_after: int = 0
    delay: float = 0.0
    """Seconds before a body."""
    requests: list[tuple[str, int, int]] = field(default_factory=list)
    """Path, status and bytes sent of every request."""
    bodies: int = 0
    faulty: Counter[str] = field(default_factory=Counter)
    """Dropped and refused answers of each path."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def sent(self, name: str) -> int:
        """How many times more than one byte of a file was sent."""
        return sum(path.endswith(name) and count > 1 for path, _, count in self.requests)

    def fails(self, path: str, number: int, every: int) -> bool:
        """Whether the ``number``-th of something, where ``every`` so many-th fails, is to fail here."""
        if not every or number % every or self.faulty[path] >= self.faults:
            return False
        self.faulty[path] += 1
        return True


@contextmanager
def serve(folder: Path, **behaviour: object) -> Iterator[Server]:
    server = Server(folder=folder)
    vars(server).update(behaviour)

    class Handler(_Handler):
        state = server

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    server.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    thread = threading.Thread(target=httpd.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Server

    def do_GET(self) -> None:
        state = self.state
        path = state.folder / self.path.partition("?")[0].lstrip("/")
        with state.lock:
            number = len(state.requests) + 1
            state.requests.append((self.path, 0, 0))
            refused = state.fails(self.path, number, state.refuse_every)
        if refused:
            return self._answer(number, state.refusal)
        if not path.is_file():
            return self._answer(number, 404)
        content, start, end = path.read_bytes(), 0, None
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and state.ranges:
            start, end = int(asked[1]), int(asked[2]) + 1 if asked[2] else None
            if start >= len(content):
                return self._answer(number, 416)
        self._answer(number, 206 if asked and state.ranges else 200, content, start, end)

    def _answer(
        self, number: int, status: int, content: bytes = b"", start: int = 0, end: int | None = None
    ) -> None:
        state, body = self.state, content[start:end]
        sent = self._cut(body)
        state.requests[number - 1] = (self.path, status, len(sent))
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(content)}")
        if state.lengths:
            self.send_header("Content-Length", str(len(body)))
        if state.tag:
            self.send_header("ETag", state.tag)
        if state.retry_after:
            self.send_header("Retry-After", str(state.retry_after))
        self.end_headers()
        if len(body) > 1:
            time.sleep(state.delay)
        try:
            self.wfile.write(sent)
        except OSError:  # who asks how large a file is goes away
            self.close_connection = True

    def _cut(self, body: bytes) -> bytes:
        """What is sent of a body."""
        if len(body) <= 1:
            return body
        with self.state.lock:
            self.state.bodies += 1
            dropped = self.state.fails(self.path, self.state.bodies, self.state.drop_every)
        return body[: len(body) // 2] if dropped else body

    def log_message(self, *_: object) -> None:
        pass
