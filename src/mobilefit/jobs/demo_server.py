"""What ``mobilefit demo`` serves: one page, what is known of the files, and an answer an image.

An upload is the bare body of a request, read piece by piece into memory and refused as soon as it is
too long: no form parser, hence no file. Gradio, which would be the usual choice, writes each upload
to a temporary folder (``GradioMultiPartParser``), and Starlette's own form parser does so from 1 MB.

A page of another site must not reach the server through the visitor's browser: a request with a
foreign ``Origin`` is refused, and so is one whose ``Host`` is a name that is not this machine's (DNS
rebinding: a foreign name that has come to mean this address).

Whoever sends slowly, or nothing, keeps nobody out: of more connections than ``CONNECTIONS`` the one goes
whose client has sent the least in its time. One picture is decoded at a time, the smallest of those that wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import io
import ipaddress
import itertools
import socket
import time
from collections.abc import AsyncIterator, Sequence
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import h11
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from mobilefit.arch import Task
from mobilefit.data.decode import BadImageError, decode
from mobilefit.device import Latency
from mobilefit.errors import InputError
from mobilefit.jobs.drawn import jpeg
from mobilefit.jobs.predict import Network
from mobilefit.litert import read_metadata
from mobilefit.train.malloc import return_freed_memory

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Decoded in memory; Pillow would hand EPS to Ghostscript, through a file."""
SHOWN = 5
"""Classes of an image."""
DRAWN = 960
"""Longest side of a picture with boxes or a mask, pixels."""
MEASURES: dict[Task, str] = {"classify": "top1", "detect": "map50", "segment": "miou"}
"""What of a file's own accuracy is shown."""
MOST_PIXELS = 25_000_000
"""Of a picture that has to be decoded whole, which takes 20 bytes a pixel for a moment. JPEGs are decoded at a part of
their size instead: up to Pillow's own limit they may be larger."""
REDUCED_SIDE = 2048
"""Shortest side of a JPEG that is decoded at a part of its size."""
UPLOAD_SECONDS = 120.0
HEAD_SECONDS = 10.0
"""For the head of a request."""
DRAIN_SECONDS, DRAIN_BYTES = 30.0, 128_000_000
"""How long, and how much, is read of an upload that is refused. Who is still sending when a connection ends does not
get to read why."""
CONNECTIONS = 32
"""At once; each may hold an upload."""

PAGE = {"/": ("demo.html", "text/html"), "/demo.css": ("demo.css", "text/css"),
        "/demo.js": ("demo.js", "text/javascript")}  # fmt: skip
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self)", "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
}  # fmt: skip


def application(
    networks: Sequence[Network], latencies: Sequence[Latency], *, max_bytes: int, score: float, host: str
) -> Starlette:
    """The page for one or more files of a task, with their measured latencies.

    Args:
        max_bytes: of an upload.
        score: the least one of a box that is shown.
        host: what is served at; a ``Host`` header may name it.
    """
    answers = _Answers(networks, latencies, max_bytes, score)
    return Starlette(
        routes=[
            *(Route(path, _page(name, kind)) for path, (name, kind) in PAGE.items()),
            Route("/about", answers.about),
            Route("/predict", answers.predict, methods=["POST"]),
        ],
        middleware=[Middleware(_Guard, host=host)],
    )


def serve(app: Starlette, listening: socket.socket) -> None:
    """Serve at an open socket until Ctrl-C."""
    config = uvicorn.Config(
        app, http=_Connection, log_level="warning", lifespan="off", ws="none", server_header=False,
        # Above what _Connection keeps to: tasks of connections that gave way last a moment longer, and count.
        limit_concurrency=2 * CONNECTIONS + 1, timeout_graceful_shutdown=2,
    )  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):  # raised again once everything is closed
        uvicorn.Server(config).run(sockets=[listening])


class _Connection(H11Protocol):
    """A connection that gives way to a new one when its client takes its time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for it."""
        super().connection_made(transport)
        self._begin()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._check_head)
        if len(self.connections) > CONNECTIONS:
            others = [other for other in self.connections if isinstance(other, _Connection) and other.waits]
            if slow := min((other for other in others if other is not self), key=_Connection.rate, default=None):
                slow.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End what belongs to it."""
        self._head_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes."""
        self._received += len(data)
        super().data_received(data)

    def on_response_complete(self) -> None:
        """Begin to count for the next request."""
        self._begin()
        super().on_response_complete()

    def _begin(self) -> None:
        self._since, self._received = self.loop.time(), 0

    @property
    def waits(self) -> bool:
        """Whether it is the client's turn: the request is not whole, the response not read, or the next one is there."""
        if self.transport.is_closing():
            return False
        is_upload = self.scope is not None and self.scope["path"] == "/predict"
        begun = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        return begun or not is_upload or self.transport.get_write_buffer_size() > 0

    def rate(self) -> float:
        """Bytes a second since the request's beginning. In the first second all have a chance."""
        return self._received / max(1.0, self.loop.time() - self._since)

    def _check_head(self) -> None:
        if self.conn.their_state is h11.IDLE and self.loop.time() - self._since >= HEAD_SECONDS:
            self.transport.abort()
        else:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._check_head)


class _Turns:
    """One picture at a time, which bounds the memory; of those that wait the one with the fewest pixels is next."""

    def __init__(self) -> None:
        self._busy = False
        self._numbers = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    @contextlib.asynccontextmanager
    async def turn(self, pixels: int) -> AsyncIterator[None]:
        """Wait for a turn and keep it within the block."""
        if self._busy:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (pixels, next(self._numbers), future))
            try:
                await future
            except asyncio.CancelledError:
                if future.done() and not future.cancelled():
                    self._next()
                raise
        self._busy = True
        try:
            yield
        finally:
            self._next()

    def _next(self) -> None:
        while self._waiting:
            *_, future = heapq.heappop(self._waiting)
            if not future.done():
                future.set_result(None)
                return
        self._busy = False


class _Refused(Exception):
    """An upload that cannot be answered: an HTTP status, and a line for the page."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class _Answers:
    def __init__(
        self, networks: Sequence[Network], latencies: Sequence[Latency], max_bytes: int, score: float
    ) -> None:
        self._networks, self._latencies, self._max, self._score = networks, latencies, max_bytes, score
        self._turns = _Turns()

    async def about(self, request: Request) -> Response:
        pairs = zip(self._networks, self._latencies, strict=True)
        models = [_described(network, latency) for network, latency in pairs]
        return JSONResponse({"models": models, "max_bytes": self._max})

    async def predict(self, request: Request) -> Response:
        try:
            data = bytes(await asyncio.wait_for(self._body(request), UPLOAD_SECONDS))
            pixels = await run_in_threadpool(_pixels, data)
            async with self._turns.turn(pixels):
                return JSONResponse(await run_in_threadpool(self._seen, data, pixels))
        except _Refused as refused:
            return _problem(refused.status, refused.why, {"Connection": "close"})
        except (asyncio.TimeoutError, ClientDisconnect):
            return _problem(408, "the upload did not come to an end", {"Connection": "close"})

    async def _body(self, request: Request) -> bytearray:
        stated = request.headers.get("content-length", "")
        if stated.isdecimal() and int(stated[:20]) > self._max:
            raise self._too_large()
        data = bytearray()
        async for piece in request.stream():
            data += piece
            if len(data) > self._max:
                raise self._too_large()
        return data

    def _too_large(self) -> _Refused:
        return _Refused(413, f"the file is larger than {self._max / 1e6:g} MB, the most that is taken")

    def _seen(self, data: bytes, pixels: int) -> dict[str, Any]:
        try:
            return self._answer(data, pixels)
        finally:
            if pixels > MOST_PIXELS // 4:
                return_freed_memory()

    def _answer(self, data: bytes, pixels: int) -> dict[str, Any]:
        start = time.perf_counter()
        try:
            picture = decode(data, REDUCED_SIDE if pixels > MOST_PIXELS else None)[0]
        except BadImageError as error:
            raise _Refused(415, f"this is not an image that can be used: {error}") from error
        decode_ms = 1e3 * (time.perf_counter() - start)
        small = picture.copy()
        small.thumbnail((DRAWN, DRAWN))
        models = [self._asked(network, picture, small) for network in self._networks]
        return {"decode_ms": decode_ms, "models": models}

    def _asked(self, network: Network, picture: Image.Image, small: Image.Image) -> dict[str, Any]:
        try:
            prepared = network.prepare(picture)
            start = time.perf_counter()
            outputs = network.run(prepared)
            run_ms = 1e3 * (time.perf_counter() - start)
            seen = network.seen(outputs, small, top=SHOWN, score=self._score)
        except InputError as error:
            raise _Refused(500, str(error)) from error
        boxes = [{"class": box["class"], "share": box["score"]} for box in seen.row.get("boxes", ())]
        answer = {"classes": seen.row.get("classes", boxes), "run_ms": run_ms}
        if network.info.spec.task != "classify":
            answer["drawn"] = "data:image/jpeg;base64," + jpeg(seen.drawn())
        return answer


def _pixels(data: bytes) -> int:
    """How many pixels an image has by its header.

    Raises:
        _Refused: it is none, or has too many.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            width, height = file.size
            reducible = file.format in ("JPEG", "MPO")
    except Image.DecompressionBombError as error:
        raise _Refused(413, f"the image has too many pixels: at most {MOST_PIXELS / 1e6:.0f} million") from error
    except Exception as error:  # decoders raise anything at all on damaged bytes
        raise _Refused(415, "this is not an image that can be read") from error
    most = max(MOST_PIXELS, Image.MAX_IMAGE_PIXELS or 0) if reducible else MOST_PIXELS
    if width * height > most:
        raise _Refused(413, f"the image has {width}x{height} pixels: at most {most / 1e6:.0f} million")
    return width * height


def _described(network: Network, latency: Latency) -> dict[str, Any]:
    info, cost = network.info, network.info.spec.cost()
    height, width = info.preset.shape
    return {
        "file": network.path.name, "bytes": len(network.file.blob),
        "numbers": network.file.numbers, "name": info.spec.name, "task": info.spec.task,
        "input": {"width": width, "height": height}, "fit": info.preset.fit,
        "crop_fraction": info.preset.crop_fraction,
        "classes": info.classes, "params": cost.params, "madds": cost.madds,
        "latency": latency.to_dict(), "accuracy": _accuracy(network),
    }  # fmt: skip


def _accuracy(network: Network) -> dict[str, Any] | None:
    """What the file says of its own accuracy, if it does: ``{"value", "images"}``."""
    known = (read_metadata(network.file.blob) or {}).get("accuracy")
    mine = known.get(network.file.numbers) if isinstance(known, dict) else None
    key = MEASURES[network.info.spec.task]
    if not isinstance(mine, dict) or not {key, "images"} <= mine.keys():
        return None
    return {"value": mine[key], "images": mine["images"]}


def _page(name: str, kind: str) -> Any:
    content = files("mobilefit.jobs").joinpath(name).read_bytes()

    async def endpoint(request: Request) -> Response:
        return Response(content, media_type=kind)

    return endpoint


def _problem(status: int, why: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"problem": why}, status, headers)


class _Guard:
    """Refuses what a foreign page sent, and adds the headers that keep the page to itself."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        own = socket.gethostname().lower()
        self._names = {"localhost", host.lower(), own, f"{own}.local"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        unread = scope["type"] == "http"

        async def reading() -> Message:
            nonlocal unread
            message = await receive()
            unread = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def drain() -> None:
            count = 0
            while unread and count <= DRAIN_BYTES:
                count += len((await reading()).get("body", b""))

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            ends = message["type"] == "http.response.body" and not message.get("more_body", False)
            if ends and unread and b"100-continue" not in dict(scope["headers"]).get(b"expect", b"").lower():
                await send({**message, "more_body": True})
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(drain(), DRAIN_SECONDS)
                message = {"type": "http.response.body"}
            await send(message)

        app: ASGIApp = self._app
        if scope["type"] == "http" and (why := self._foreign(scope["method"], Headers(scope=scope))):
            app = _problem(403, why)
        await app(scope, reading, sending)

    def _foreign(self, method: str, headers: Headers) -> str | None:
        host = headers.get("host", "").lower()
        name = _name(host)
        if name not in self._names and not _is_address(name):
            return f"'{host}' is not a name of this machine: use its address"
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            return f"a page of {origin} must not use this server"
        if method == "POST" and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "a page of another site must not use this server"
        return None


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    """A literal address cannot be rebound, as a name can."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
