"""A demo served by a process of its own, which can write to no file."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .small import World


@dataclass(frozen=True, kw_only=True)
class Served:
    """Where it is, and the folders that it could leave something in."""

    host: str
    pid: int
    temporary: Path
    home: Path

    @property
    def url(self) -> str:
        return f"http://{self.host}/"

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None,
        *, chunked: bool = False,
    ) -> tuple[HTTPResponse, bytes]:  # fmt: skip
        connection = HTTPConnection(self.host, timeout=60)
        try:
            connection.request(method, path, body, headers or {}, encode_chunked=chunked)
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()

    def predict(self, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
        """An upload's status and answer; ``sec_fetch_site`` stands for ``sec-fetch-site``."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        response, answer = self.ask("POST", "/predict", body, named)
        return response.status, json.loads(answer)


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def forbid_files(pid: int) -> None:
    """From here on a process and its children fail when they write to a file, whatever file it is."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for each in (pid, *map(int, children)):
        resource.prlimit(each, resource.RLIMIT_FSIZE, (0, 0))


@pytest.fixture(scope="session")
def served(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    for package in ("starlette", "uvicorn"):
        pytest.importorskip(package)
    temporary, home = tmp_path_factory.mktemp("temporary"), tmp_path_factory.mktemp("home")
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(temporary),
        "HOME": str(home), "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "mobilefit", "demo", str(world.int8), "--port", "0"],
        env=environment, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("serving at "):
                break
        assert said and said[-1].startswith("serving at http://127.0.0.1:"), said
        if sys.platform == "linux":
            forbid_files(process.pid)
        yield Served(host=said[-1].split("/")[2], pid=process.pid, temporary=temporary, home=home)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, process.stdout.read()
    finally:
        process.kill()
        process.wait()
