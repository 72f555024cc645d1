"""Secrets in addresses are in nothing that is written or printed, and a run goes on without them."""

from __future__ import annotations

import base64
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from data import shard_server
from data.shard_server import Server, serve, write_shards

from mobilefit.commands.design import default_out as default_design_out
from mobilefit.data import shard_remote
from mobilefit.data.shard_remote import look
from mobilefit.errors import InputError
from mobilefit.jobs.search import SearchConfig, default_out
from mobilefit.pipeline.design_config import DesignConfig
from mobilefit.train.trainer import Trainer

from .small import World, run


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("MOBILEFIT_CACHE", str(tmp_path / "cache"))
    write_shards(tmp_path / "shards", shards=2, each=20)
    with serve(tmp_path / "shards") as server:
        yield server


def words(address: str, world: World, out: Path, *more: object) -> list[Any]:
    return ["train", address, "--model", world.spec, "--resolution", 32, "--batch-size", 8, "--steps", 3,
            "--out", out, "--tensorboard", *more]  # fmt: skip


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original = Trainer.step

    def stopping(self: Trainer, *batch: Any, **options: Any) -> float:
        if self.done == step:
            signal.raise_signal(signal.SIGINT)
        return original(self, *batch, **options)

    monkeypatch.setattr(Trainer, "step", stopping)


def assert_nowhere(secret: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = capsys.readouterr()
    assert secret not in printed.out and secret not in printed.err
    for path in folder.rglob("*"):
        assert secret not in str(path)
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("form", ["token", "user", "environment"])
def test_a_training_from_an_address_with_a_secret(
    form: str, server: Server, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """It is interrupted, and goes on with a newer secret."""
    out, place = tmp_path / "run", f"{server.url.removeprefix('http://')}/shard-{{000..001}}.tar"
    address = {"token": f"http://{place}?token=HUNTER21&part=HUNTER21", "user": f"http://me:HUNTER21@{place}",
               "environment": f"http://me:$PASSWORD@{place}?token=$TOKEN"}[form]  # fmt: skip
    monkeypatch.setenv("TOKEN", "HUNTER21")
    monkeypatch.setenv("PASSWORD", "HUNTER21")
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert run(*words(address, world, out)) == 130
    assert "go on with: mobilefit train" in capsys.readouterr().err
    monkeypatch.setenv("TOKEN", "HUNTER22")
    monkeypatch.setenv("PASSWORD", "HUNTER22")
    assert run(*words(address.replace("HUNTER21", "HUNTER22"), world, out, "--resume")) == 0
    if form != "user":
        assert any("HUNTER21" in path for path, *_ in server.requests)
    for secret in ("HUNTER21", "HUNTER22"):
        assert_nowhere(secret, out, capsys)
    config = (out / "config.json").read_text()
    assert "shard-{000..001}.tar" in config and ("$TOKEN" in config) == (form == "environment")


def test_a_password_is_sent_to_the_server_that_it_is_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []
    original = shard_server._Handler.do_GET

    def asking(self: Any) -> None:
        asked.append((self.path, self.headers.get("Authorization")))
        if self.path == "/elsewhere.tar":
            self.send_response(302)
            self.send_header("Location", f"{server.url}/shard-000.tar")
            self.end_headers()
        else:
            original(self)

    monkeypatch.setattr(shard_server._Handler, "do_GET", asking)
    place = server.url.removeprefix("http://")
    for name in ("shard-000", "elsewhere"):
        look(f"http://me:pass%2Fword@{place}/{name}.tar")
    sent = "Basic " + base64.b64encode(b"me:pass/word").decode()
    assert asked == [("/shard-000.tar", sent), ("/elsewhere.tar", sent), ("/shard-000.tar", None)]


@pytest.mark.parametrize(
    "address",
    ["http://me:HUNTER2@127.0.0.1:1x/x.tar", "http://127.0.0.1/x y.tar?token=HUNTER2", "http://[::1/x.tar?token=HUNTER2",
     "s3://KEY:HUNTER2@bucket/x.tar", "s3://KEY:SEC/HUNTER2@bucket/x.tar", "ftp://me:HUNTER2@host/x.tar",
     "memory://me:HUNTER2@x.tar", "gs://bucket/x.tar::http://me:HUNTER2@host/", "http://127.0.0.1:9/x?key=HUNTER2",
     "http://host/{x.tar?key=HUNTER2", "http://host/x.tar?key=HUNTER2&other=$NO_SUCH_VARIABLE"],
)  # fmt: skip
def test_an_address_that_cannot_be_read_is_told_without_its_secret(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shard_remote, "LOOK_TRIES", 1)
    assert run("train", address, "--out", tmp_path / "run") == 2
    assert_nowhere("HUNTER2", tmp_path, capsys)


def test_doctor_tells_no_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", "s3://KEY:HUNTER2@bucket/x.tar?token=HUNTER2", "--out", tmp_path) == 3
    printed = capsys.readouterr()
    assert "FAIL" in printed.out
    assert "HUNTER2" not in printed.out + printed.err
    assert_nowhere("HUNTER2", tmp_path, capsys)


def test_a_mistyped_command_is_told_without_its_secret(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "a", "http://host/x.tar?token=HUNTER2") == 2
    assert run("train", "a", "--weights", "http://me:HUNTER2@host/x.pth", "--stesp", 3) == 2
    assert run("predict", "http://me:HUNTER2@host/x.tflite", "rtsp://me:HUNTER2@camera/1") == 2
    printed = capsys.readouterr()
    assert "HUNTER2" not in printed.err + printed.out


def test_a_folder_that_is_named_for_its_images_has_no_secret_in_its_name() -> None:
    for address in ("http://me:HUNTER2@host/set.json?token=HUNTER2", "s3://KEY:HUNTER2@bucket"):
        assert "HUNTER2" not in str(default_out(SearchConfig(data=address, latency="1ms")))
        assert "HUNTER2" not in str(default_design_out(DesignConfig(data=address, latency="1ms")))


def test_a_variable_in_a_manifest_is_no_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest of somebody else's cannot have the environment sent to its server."""
    monkeypatch.setenv("MOBILEFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "HUNTER2")
    with serve(tmp_path) as server:
        (tmp_path / "set.json").write_text(f'{{"train": ["{server.url}/x.tar?key=$AWS_SECRET_ACCESS_KEY"]}}')
        assert run("train", f"{server.url}/set.json", "--out", tmp_path / "run") == 2
        assert len(server.requests) > 1 and not any("HUNTER2&" in p or p.endswith("HUNTER2") for p, *_ in server.requests)


SCHEMES = ["reference://x.tar", "local:///etc/passwd", "file:/etc/passwd://x.tar", "simplecache::file:///etc/x.tar",
           "filecache::s3://bucket/x.tar", "ftp://host/x.tar", "sftp://host/x.tar", "zip://x.tar::http://host/x.zip",
           "s3://bucket/x.tar::file:///etc/passwd", "github://a:b@/x.tar", "data://x.tar", "memory://x.tar", "git://x.tar",
           "S3::LOCAL://x.tar", "://x.tar", "dask://x.tar", "jupyter://x.tar", "arrow_hdfs://x.tar"]  # fmt: skip


@pytest.mark.parametrize("address", SCHEMES)
def test_a_manifest_reads_no_scheme_that_is_not_meant(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    fsspec = pytest.importorskip("fsspec.core")

    def opened(*_: Any) -> None:
        raise AssertionError("fsspec was asked")

    monkeypatch.setattr(fsspec, "url_to_fs", opened)
    monkeypatch.setenv("MOBILEFIT_CACHE", str(tmp_path / "cache"))
    manifest = tmp_path / "set.json"
    manifest.write_text(f'{{"train": ["{address}"]}}')
    assert "cannot read" in refused("train", manifest, "--out", tmp_path / "run")


@pytest.mark.parametrize("target", ["ftp://127.0.0.1:9/x.tar", "file:///etc/passwd", "data:,x"])
def test_a_server_does_not_lead_to_another_scheme(target: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def redirecting(self: Any) -> None:
        self.send_response(302)
        self.send_header("Location", target)
        self.end_headers()

    monkeypatch.setattr(shard_server._Handler, "do_GET", redirecting)
    with pytest.raises(InputError, match="302"):
        look(f"{server.url}/shard-000.tar")
