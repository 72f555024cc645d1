"""A web page on this machine where one drops an image and sees what a file sees in it: classes, boxes, masks."""

from __future__ import annotations

import errno
import math
import socket
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from mobilefit.device import measure_many
from mobilefit.errors import InputError
from mobilefit.jobs.lab import check_positive, check_share
from mobilefit.jobs.options import option
from mobilefit.jobs.predict import Network, opened
from mobilefit.progress import Voice

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PORTS_TRIED = 100
KINDS = ("int8", "float32")
"""As :func:`mobilefit.jobs.lab.write_files` names a network's two files."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Options of ``mobilefit demo``."""

    files: tuple[Path, ...] = option(
        help="one or two .tflite files that mobilefit wrote; beside model_int8.tflite, "
        "model_float32.tflite is shown too", argument=True,
    )  # fmt: skip
    host: str = option("127.0.0.1", help="address to serve at; this machine alone unless changed")
    port: int = option(7860, help="port; the next free one if it is taken, any if 0")
    max_mb: float = option(10.0, help="largest upload in megabytes (1e6 bytes)")
    score: float = option(0.5, help="of a detector: least score of the boxes that are shown, 0 to 1")


def demo(config: DemoConfig) -> None:
    """Measure the files, then serve the page until Ctrl-C.

    Raises:
        InputError: a bad file, an address that cannot be served at, or a missing package.
    """
    check_positive(max_mb=config.max_mb)
    if not 0 <= config.port < 65536:
        raise InputError(f"--port is {config.port}, must be 0 to 65535")
    check_share(score=config.score)
    if not 1 <= len(config.files) <= 2:
        raise InputError(f"{len(config.files)} files", "name one or two")
    server = _server()
    voice = Voice()
    networks = _networks(config.files, voice)
    with _listen(config.host, config.port, voice) as listening:
        latencies = measure_many([network.file.blob for network in networks])
        for network, latency in zip(networks, latencies, strict=True):
            print(f"{network.path}: {latency}")
        if config.host not in LOOPBACK:
            voice("other machines can reach the page, and over http browsers lend them no camera")
        app = server.application(
            networks, latencies, max_bytes=math.ceil(config.max_mb * 1e6), score=config.score, host=config.host
        )
        print(f"serving at {_address(listening)} (Ctrl-C ends it)", flush=True)
        server.serve(app, listening)


def _server() -> ModuleType:
    try:
        from mobilefit.jobs import demo_server
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("mobilefit"):
            raise
        raise InputError(
            f"the demo needs {error.name}", "pip install 'mobilefit[demo]'"
        ) from error
    return demo_server


def _networks(files: tuple[Path, ...], voice: Voice) -> list[Network]:
    found = [opened(path) for path in files]
    beside = _beside(files[0]) if len(files) == 1 else None
    if beside is not None:
        try:
            found.append(opened(beside))
        except InputError as error:
            voice(f"left out: {error.message}")
    tasks = [network.info.spec.task for network in found]
    if len(set(tasks)) > 1:
        said = ", ".join(f"{network.path} is for --task {task}" for network, task in zip(found, tasks, strict=True))
        raise InputError(said, "name files of one task")
    return found


def _beside(path: Path) -> Path | None:
    """The same network's other file, if it is there."""
    for mine, other in (KINDS, KINDS[::-1]):
        if path.stem.endswith(mine):
            candidate = path.with_name(path.stem.removesuffix(mine) + other + path.suffix)
            return candidate if candidate.is_file() else None
    return None


def _listen(host: str, port: int, voice: Voice) -> socket.socket:
    """A socket at the port, or at the next free one."""
    try:
        family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise InputError(f"--host {host} is no address: {error.strerror or error}") from error
    last = min(port + PORTS_TRIED, 65535) if port else 0
    for tried in range(port, last + 1):
        try:
            listening = socket.create_server((host, tried), family=family)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                why = error.strerror or str(error)
                raise InputError(f"cannot serve at {host} port {tried}: {why}") from error
            continue
        if tried != port:
            voice(f"port {port} is taken")
        return listening
    raise InputError(f"ports {port} to {last} are all taken", "choose another --port, or 0")


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
