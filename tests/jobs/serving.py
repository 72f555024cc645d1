"""A demo served by a process of its own, which can write to no file, and a browser to see it with."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .small import World

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")


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


@contextmanager
def serving(file: Path, temporary: Path, home: Path) -> Iterator[Served]:
    """``mobilefit demo FILE``, with these folders for what it might leave."""
    for package in ("starlette", "uvicorn"):
        pytest.importorskip(package)
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(temporary),
        "HOME": str(home), "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "mobilefit", "demo", str(file), "--port", "0"],
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


@pytest.fixture(scope="session")
def served(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The classifiers of ``world``."""
    with serving(world.int8, tmp_path_factory.mktemp("temporary"), tmp_path_factory.mktemp("home")) as found:
        yield found


# ---- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium with a camera of its own."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = next((path for name in CHROMIUMS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs a chromium")
    arguments = [
        "--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
    ]  # fmt: skip
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@contextmanager
def visiting(browser: Any, served: Served) -> Iterator[Callable[..., Any]]:
    """Opens the page; at the end, nothing outside was asked for and no script has failed."""
    contexts, asked, errors = [], [], []

    def open_page(script: str = "", **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        if script:
            page.add_init_script(script)
        page.goto(served.url)
        page.wait_for_selector(".model")
        return page

    yield open_page
    for context in contexts:
        context.close()
    own = (served.url, f"blob:{served.url}", "data:")
    assert asked and [url for url in asked if not url.startswith(own)] == []
    assert errors == []


def choose(page: Any, name: str, content: bytes) -> None:
    """Choose a file on the page."""
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})
