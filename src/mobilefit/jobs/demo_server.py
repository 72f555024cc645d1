"""What ``mobilefit demo`` serves: one page, what is known of the files, and an answer an image.

An upload is the bare body of a request, read piece by piece into memory and refused as soon as it is
too long: no form parser, hence no file. Gradio, which would be the usual choice, writes each upload
to a temporary folder (``GradioMultiPartParser``), and Starlette's own form parser does so from 1 MB.

A page of another site must not reach the server through the visitor's browser: a request with a
foreign ``Origin`` is refused, and so is one whose ``Host`` is a name that is not this machine's (DNS
rebinding: a foreign name that has come to mean this address).
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import ipaddress
import socket
import time
from collections.abc import Sequence
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

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

from mobilefit.arch import Task
from mobilefit.data.decode import BadImageError, decode
from mobilefit.device import Latency
from mobilefit.errors import InputError
from mobilefit.jobs.drawn import jpeg
from mobilefit.jobs.predict import Network
from mobilefit.litert import read_metadata

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Decoded in memory; Pillow would hand EPS to Ghostscript, through a file."""
SHOWN = 5
"""Classes of an image."""
DRAWN = 960
"""Longest side of a picture with boxes or a mask, pixels."""
MEASURES: dict[Task, str] = {"classify": "top1", "detect": "map50", "segment": "miou"}
"""What of a file's own accuracy is shown."""
UPLOAD_SECONDS = 120.0
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
        app, log_level="warning", lifespan="off", ws="none", server_header=False,
        limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=2,
    )  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):  # raised again once everything is closed
        uvicorn.Server(config).run(sockets=[listening])


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
        self._turn = asyncio.Lock()  # one decoded image at a time: that bounds the memory

    async def about(self, request: Request) -> Response:
        pairs = zip(self._networks, self._latencies, strict=True)
        models = [_described(network, latency) for network, latency in pairs]
        return JSONResponse({"models": models, "max_bytes": self._max})

    async def predict(self, request: Request) -> Response:
        try:
            data = await asyncio.wait_for(self._body(request), UPLOAD_SECONDS)
            async with self._turn:
                return JSONResponse(await run_in_threadpool(self._seen, data))
        except _Refused as refused:
            # The rest of a refused upload is not read: the connection cannot be used again.
            return _problem(refused.status, refused.why, {"Connection": "close"})
        except (asyncio.TimeoutError, ClientDisconnect):
            return _problem(408, "the upload did not come to an end", {"Connection": "close"})

    async def _body(self, request: Request) -> bytearray:
        stated = request.headers.get("content-length", "")
        if stated.isdecimal() and int(stated) > self._max:
            raise self._too_large()
        data = bytearray()
        async for piece in request.stream():
            data += piece
            if len(data) > self._max:
                raise self._too_large()
        return data

    def _too_large(self) -> _Refused:
        return _Refused(413, f"the file is larger than {self._max / 1e6:g} MB, the most that is taken")

    def _seen(self, data: bytearray) -> dict[str, Any]:
        start = time.perf_counter()
        picture = _decoded(bytes(data))
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


def _decoded(data: bytes) -> Image.Image:
    """The image, upright and in RGB, by the decoder that training and ``predict`` use."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            width, height = file.size
    except Image.DecompressionBombError as error:
        raise _Refused(413, f"the image has too many pixels: {_most()}") from error
    except Exception as error:  # decoders raise anything at all on damaged bytes
        raise _Refused(415, "this is not an image that can be read") from error
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise _Refused(413, f"the image has {width}x{height} pixels: {_most()}")
    try:
        return decode(data)[0]
    except BadImageError as error:
        raise _Refused(415, f"this is not an image that can be used: {error}") from error


def _most() -> str:
    return f"at most {(Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} million are taken"


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
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app: ASGIApp = self._app
        if scope["type"] == "http" and (why := self._foreign(scope["method"], Headers(scope=scope))):
            app = _problem(403, why)
        await app(scope, receive, with_headers)

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
