"""The demo's server: what it answers, what it refuses, and that it keeps nothing."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import re
import resource
import socket
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mobilefit.jobs.predict import PredictConfig, predict

from .serving import Served, png
from .small import CLASSES, World, picture, run

demo_server = pytest.importorskip("mobilefit.jobs.demo_server")

Refused = Callable[..., str]


# ---- what it answers


def test_it_says_what_it_serves(served: Served, world: World) -> None:
    response, body = served.ask("GET", "/about")
    about = json.loads(body)
    assert response.status == 200 and about["max_bytes"] == 10_000_000
    assert [model["numbers"] for model in about["models"]] == ["int8", "float32"]  # found beside
    for model, path in zip(about["models"], (world.int8, world.float32)):
        assert model["file"] == path.name and model["bytes"] == path.stat().st_size
        assert model["name"] == "tiny" and model["input"] == {"width": 32, "height": 32}
        assert model["task"] == "classify" and model["fit"] == "crop"
        assert model["classes"] == list(CLASSES)
        accuracy, latency = model["accuracy"], model["latency"]
        assert accuracy["value"] > 0.5 and accuracy["images"] == "24 test images of shades"
        assert 0 < latency["p10_ms"] <= latency["median_ms"] <= latency["p90_ms"]


def test_it_sees_what_predict_sees(served: Served, world: World, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    photo = tmp_path / "photo.jpg"
    picture(1, 7, (64, 48)).save(photo, exif=exif)
    status, answer = served.predict(photo.read_bytes())
    assert status == 200 and answer["decode_ms"] > 0
    for path, model in zip((world.int8, world.float32), answer["models"]):
        expected = predict(PredictConfig(file=path, images=(photo,), top=5))[0]["classes"]
        assert model["classes"] == expected and model["run_ms"] > 0


def test_requests_at_once_get_each_its_own_answer(served: Served) -> None:
    uploads = [png(picture(label % 3, label)) for label in range(12)]

    def classes(upload: bytes) -> Any:
        return served.predict(upload)[1]["models"][0]["classes"]

    alone = [classes(upload) for upload in uploads]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(classes, uploads)) == alone
    assert [found[0]["class"] for found in alone] == [CLASSES[i % 3] for i in range(12)]


# ---- what it refuses


def claimed(width: int, height: int) -> bytes:
    """The beginning of a PNG file of that size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100))


# Ghostscript would be run on this by Pillow, through a temporary file.
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("body", "status", "line"), [
    (b"", 415, "not an image that can be read"),
    (b"only words", 415, "not an image that can be read"),
    (EPS, 415, "not an image that can be read"),
    (png(picture(0, 0))[:700], 415, "truncated"),
    (png(picture(0, 0, (3, 40))), 415, "only 3x40 pixels"),
    (claimed(10_000, 10_000), 413, "10000x10000 pixels: at most 25 million"),
    (claimed(5_001, 5_000), 413, "5001x5000 pixels: at most 25 million"),
    (claimed(60_000, 60_000), 413, "too many pixels: at most 25 million"),
], ids=["empty", "text", "eps", "cut", "narrow", "large", "just too large", "bomb"])  # fmt: skip
def test_what_is_no_usable_image(body: bytes, status: int, line: str, served: Served) -> None:
    found, answer = served.predict(body)
    assert found == status and line in answer["problem"]
    assert served.predict(png(picture(2, 1)))[0] == 200  # and it goes on


def test_an_upload_that_says_it_is_too_large(served: Served) -> None:
    connection = HTTPConnection(served.host, timeout=60)
    connection.putrequest("POST", "/predict")
    connection.putheader("Content-Length", "10000001")
    connection.endheaders()  # and not one byte of it
    response = connection.getresponse()
    assert response.status == 413
    assert "larger than 10 MB" in json.loads(response.read())["problem"]


def test_an_upload_that_turns_out_too_large(served: Served) -> None:
    """It is cut off: the server does not read what a sender never stops sending."""
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 200_000_000:
            sent += 100_000
            yield b"\0" * 100_000

    with pytest.raises(OSError):  # the pipe breaks while sending
        response, answer = served.ask("POST", "/predict", endless(), chunked=True)
        assert response.status == 413 and "larger than 10 MB" in json.loads(answer)["problem"]
        raise OSError("refused before the pipe broke")
    assert sent < 180_000_000
    assert served.predict(png(picture(2, 1)))[0] == 200


@pytest.mark.parametrize("path", ["/predict", "/nowhere", "/about"])
@pytest.mark.parametrize("chunked", [False, True])
def test_who_sends_60_megabytes_reads_why_they_are_refused(path: str, chunked: bool, served: Served) -> None:
    """The connection does not end before the whole of it is sent: the sender would only see it reset."""
    body: Any = (b"\0" * 100_000 for _ in range(600))
    headers = {} if chunked else {"content-length": "60000000"}
    response, answer = served.ask("POST", path, body, headers, chunked=chunked)
    assert response.status == {"/predict": 413, "/nowhere": 404, "/about": 405}[path] and answer
    response, _ = served.ask("POST", "/predict", (b"\0" * 100_000 for _ in range(600)), {**headers, "host": "evil.example"},
                             chunked=chunked)  # fmt: skip
    assert response.status == 403


# ---- who takes long


def half_a_head(served: Served) -> socket.socket:
    return sending(served, b"POST /predict HTTP/1.1\r\nHost: ")


def slow_body(served: Served) -> socket.socket:
    host = served.host.encode()
    return sending(served, b"POST /predict HTTP/1.1\r\nHost: " + host + b"\r\nContent-Length: 1000\r\n\r\nx")


def nothing(served: Served) -> socket.socket:
    return sending(served, b"")


def unread_answers(served: Served) -> socket.socket:
    return sending(served, (b"GET /demo.js HTTP/1.1\r\nHost: " + served.host.encode() + b"\r\n\r\n") * 2000)


def sending(served: Served, data: bytes) -> socket.socket:
    host, _, port = served.host.partition(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.setblocking(False)
    with contextlib.suppress(BlockingIOError, ConnectionError):
        connection.send(data)
    return connection


@pytest.mark.parametrize(
    ("hold", "count"),
    [*itertools.product([half_a_head, slow_body, nothing], [31, 32, 80]), (unread_answers, 31), (unread_answers, 32)],
)
def test_clients_that_stay_keep_nobody_out(
    hold: Callable[[Served], socket.socket], count: int, served: Served
) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(hold(served))
        for seed in range(5):
            assert served.predict(png(picture(2, seed)))[0] == 200
        assert served.ask("GET", "/")[0].status == 200


def test_half_a_head_is_given_up(served: Served) -> None:
    with half_a_head(served) as connection:
        connection.settimeout(60)
        with contextlib.suppress(ConnectionError):
            assert connection.recv(100) == b""  # it ended


def test_a_large_jpeg_is_seen_reduced_and_memory_goes_back(served: Served) -> None:
    """48 million pixels, as phones take them."""
    file = io.BytesIO()
    picture(1, 0, (8000, 6000)).save(file, "JPEG", quality=30)
    before = memory(served.pid)
    status, answer = served.predict(file.getvalue())
    assert status == 200 and answer["models"][0]["classes"][0]["class"] == CLASSES[1]
    assert memory(served.pid) - before < 100 << 20


def memory(pid: int) -> int:
    """Resident bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def test_the_smallest_picture_is_next() -> None:
    order: list[int] = []

    async def one(turns: Any, pixels: int, seconds: float) -> None:
        async with turns.turn(pixels):
            order.append(pixels)
            await asyncio.sleep(seconds)

    async def all_at_once() -> None:
        turns = demo_server._Turns()
        tasks = [asyncio.create_task(one(turns, pixels, 0.01)) for pixels in (50, 40, 10, 30, 20)]
        await asyncio.sleep(0.005)
        tasks[3].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.wait_for(one(turns, 60, 0), 1)  # it is free again

    asyncio.run(all_at_once())
    assert order == [50, 10, 20, 40, 60]


@pytest.mark.parametrize("headers", [
    {"host": "evil.example"},
    {"host": "evil.example:80"},
    {"host": "[::1"},
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:1"},
    {"sec_fetch_site": "cross-site"},
    {"sec_fetch_site": "same-site"},
])  # fmt: skip
def test_a_foreign_page_is_refused(headers: dict[str, str], served: Served) -> None:
    status, answer = served.predict(png(picture(0, 0)), **headers)
    assert status == 403 and answer["problem"]
    if "host" in headers:  # a rebound name must not read the page either
        assert served.ask("GET", "/about", headers=headers)[0].status == 403


def test_the_page_itself_is_not_refused(served: Served) -> None:
    upload = png(picture(0, 0))
    own = {"origin": f"http://{served.host}", "sec_fetch_site": "same-origin"}
    assert served.predict(upload, **own)[0] == 200
    port = served.host.partition(":")[2]
    assert served.predict(upload, host=f"localhost:{port}")[0] == 200
    assert served.ask("GET", "/", headers={"sec-fetch-site": "cross-site"})[0].status == 200  # a link


def test_other_paths_and_methods(served: Served) -> None:
    assert served.ask("GET", "/predict")[0].status == 405
    assert served.ask("OPTIONS", "/predict")[0].status == 405  # no other site gets leave
    for path in ("/demo.py", "/../demo.py", "/docs"):
        assert served.ask("GET", path)[0].status == 404


# ---- what it keeps


@pytest.mark.skipif(sys.platform != "linux", reason="sets a limit of another process")
def test_no_upload_is_written_to_a_file(served: Served) -> None:
    """The process may write to no file at all (see ``serving``), and still answers megabytes."""
    assert resource.prlimit(served.pid, resource.RLIMIT_FSIZE) == (0, 0)
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), np.uint8)
    upload = png(Image.fromarray(noise))
    assert len(upload) > 4_000_000
    tiff = io.BytesIO()
    Image.fromarray(noise).save(tiff, "TIFF", compression="tiff_lzw")
    for body in (upload, upload[: len(upload) // 2], tiff.getvalue()):
        assert served.predict(body)[0] == (415 if len(body) < 3_000_000 else 200)
    left = [*served.temporary.rglob("*"), *served.home.rglob("*")]
    assert [path for path in left if path.is_file()] == []


def test_the_page_asks_nothing_of_the_outside(served: Served) -> None:
    for path in ("/", "/demo.css", "/demo.js"):
        response, body = served.ask("GET", path)
        assert response.status == 200
        assert not re.search(rb"(https?:)?//[a-z]|@import|@font-face", body.replace(b"// ", b""))
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'") and "http" not in policy
        assert response.headers["Cache-Control"] == "no-store"
    assert {name for name, _ in demo_server.PAGE.values()} == {
        file.name for file in files("mobilefit.jobs").iterdir() if file.name.startswith("demo.")
    } - {"demo.py"}


# ---- how it starts


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, steady: None) -> list[int]:
    """The ports that were served at; serving ends at once."""
    ports: list[int] = []
    monkeypatch.setattr(
        demo_server, "serve", lambda app, listening: ports.append(listening.getsockname()[1])
    )
    return ports


def test_a_taken_port_gives_way_to_the_next(
    world: World, started: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run("demo", world.int8, "--port", port) == 0
    assert port < started[0] <= port + 100
    out, err = capsys.readouterr()
    assert err == f"port {port} is taken\n"
    assert out.splitlines()[-1] == f"serving at http://127.0.0.1:{started[0]}/ (Ctrl-C ends it)"
    assert [line.partition(":")[0] for line in out.splitlines()[:2]] == [
        str(world.int8), str(world.float32)
    ]  # fmt: skip


def test_a_bad_file_beside_is_left_out(
    world: World, tmp_path: Path, started: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net_float32.tflite").write_bytes(world.float32.read_bytes())
    (tmp_path / "net_int8.tflite").write_bytes(b"no network")
    assert run("demo", tmp_path / "net_float32.tflite", "--port", 0) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 and err.startswith(f"left out: {tmp_path}/net_int8.tflite: ")


def test_what_the_demo_refuses(
    world: World, started: list[int], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused("demo", *[world.int8] * 3).startswith("3 files; name one or two")
    assert refused("demo", world.int8, "--port", 70000).startswith("--port is 70000")
    assert refused("demo", world.int8, "--max-mb", 0).startswith("--max-mb is 0")
    assert refused("demo", world.int8, "--score", 2).startswith("--score is 2")
    assert "is no address" in refused("demo", world.int8, "--host", "no.such.host.invalid")
    assert "cannot serve at 192.0.2.1 port 7860" in refused(
        "demo", world.int8, "--host", "192.0.2.1"
    )
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "mobilefit.jobs.demo_server")
    monkeypatch.delattr("mobilefit.jobs.demo_server")
    said = refused("demo", world.int8)
    assert said == "the demo needs uvicorn; pip install 'mobilefit[demo]'"
    assert started == []


def test_another_address_is_said(
    world: World, started: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("demo", world.int8, "--host", "0.0.0.0", "--port", 0) == 0
    assert "other machines can reach the page" in capsys.readouterr().err
