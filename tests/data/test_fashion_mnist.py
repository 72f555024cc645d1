"""Each origin with a small stand-in for the data set; torchvision's own code runs for real."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import socket
import struct
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mobilefit.data import batches, load
from mobilefit.data import fashion_mnist as module
from mobilefit.errors import InputError

Arrays = dict[str, np.ndarray]


@pytest.fixture
def arrays() -> Arrays:
    random = np.random.default_rng(0)
    made = {}
    for part, count in (("train", 40), ("test", 20)):
        made[f"{part}_images"] = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        made[f"{part}_labels"] = (np.arange(count) % 10).astype(np.uint8)
    return made


@pytest.fixture(autouse=True)
def stand_in(arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small arrays count as Fashion-MNIST; no origin has them, and no network is asked."""
    from torchvision.datasets import FashionMNIST

    monkeypatch.setattr(module, "SHAPES", {name: array.shape for name, array in arrays.items()})
    monkeypatch.setattr(module, "CONTENT_SHA256", module._content_sha256(arrays))
    monkeypatch.setattr(module, "SYSTEM_ROOT", tmp_path / "system")
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setenv("MOBILEFIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def write_files(arrays: Arrays, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, file in module.FILES.items():
        array = arrays[name]
        header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        (folder / file).write_bytes(gzip.compress(header + array.tobytes()))
    return folder


def check_loaded(arrays: Arrays) -> None:
    data = load("fashion-mnist", holdout=0.25)
    assert data.classes[0] == "T-shirt/top" and data.classes[9] == "Ankle boot"
    assert (len(data.train), len(data.holdout), len(data.test)) == (30, 10, 20)
    assert data.test.labels.tolist() == list(range(10)) * 2
    assert np.bincount(data.holdout.labels).tolist() == [1] * 10
    assert not set(data.train.names) & set(data.holdout.names)
    assert data.short_side == 28 and data.preset(48).crop_fraction == 1.0
    shown = data.test.images([3], 28)[0]
    assert all(np.array_equal(plane, arrays["test_images"][3]) for plane in shown.numpy())
    preset = data.preset(48)
    values, _ = next(iter(batches(data.test, preset, 4, train=False)))
    from PIL import Image

    expected = preset.apply(Image.fromarray(arrays["test_images"][3]))
    assert np.array_equal(values[3].numpy().transpose(1, 2, 0), expected)


def test_installed_package_then_cache(arrays: Arrays, tmp_path: Path) -> None:
    folder = write_files(arrays, tmp_path / "system" / module.PACKAGE_FOLDER)
    check_loaded(arrays)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    check_loaded(arrays)  # from the cache: nothing else has it
    assert [path.name for path in (tmp_path / "cache" / "fashion-mnist").iterdir()] == [
        "arrays.npz"
    ]


def test_files_put_into_the_cache(arrays: Arrays, tmp_path: Path) -> None:
    write_files(arrays, tmp_path / "cache" / "fashion-mnist")
    check_loaded(arrays)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 torn", None])
def test_a_damaged_cache_is_replaced(arrays: Arrays, tmp_path: Path, damage: bytes | None) -> None:
    write_files(arrays, tmp_path / "system" / module.PACKAGE_FOLDER)
    check_loaded(arrays)
    cached = tmp_path / "cache" / "fashion-mnist" / "arrays.npz"
    whole = cached.read_bytes()
    cached.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    check_loaded(arrays)
    assert len(cached.read_bytes()) == len(whole)


def test_an_unwritable_cache_is_no_obstacle(
    arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MOBILEFIT_CACHE", str(tmp_path / "file" / "below"))
    write_files(arrays, tmp_path / "system" / module.PACKAGE_FOLDER)
    check_loaded(arrays)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"MOBILEFIT_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/mobilefit"),
        ({"HOME": "/c"}, "/c/.cache/mobilefit"),
    ],
)
def test_where_the_cache_is(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name in ("MOBILEFIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert module.cache_folder() == Path(expected)


@pytest.fixture
def mirror(arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A web server with the four files, which torchvision takes for its mirror."""
    from torchvision.datasets import FashionMNIST

    folder = write_files(arrays, tmp_path / "mirror")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=str(folder))
    )
    resources = [
        (file, hashlib.md5((folder / file).read_bytes()).hexdigest())
        for file in module.FILES.values()
    ]
    monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("mirror")
def test_torchvision_downloads(arrays: Arrays, tmp_path: Path) -> None:
    check_loaded(arrays)
    assert (tmp_path / "cache" / "fashion-mnist" / "arrays.npz").exists()
    assert socket.getdefaulttimeout() is None


def test_a_torn_download_is_not_taken(mirror: Path) -> None:
    (mirror / module.FILES["test_images"]).write_bytes(b"torn")
    with pytest.raises(InputError, match=r"torchvision's download: .*corrupted"):
        load("fashion-mnist")


@pytest.mark.parametrize("says", [b"", b"HTTP/1.0 200 OK\r\nContent-Length: 9999\r\n\r\nab"])
def test_a_silent_mirror_does_not_hold_up(monkeypatch: pytest.MonkeyPatch, says: bytes) -> None:
    from torchvision.datasets import FashionMNIST

    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(module, "STALL_SECONDS", 0.5)
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connections.append(connection)
                connection.sendall(says)

        threading.Thread(target=accept, daemon=True).start()
        port = server.getsockname()[1]
        monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{port}/"])
        started = time.monotonic()
        with pytest.raises(InputError, match=r"torchvision's download: .*(not answer|timed out)"):
            load("fashion-mnist")
        assert time.monotonic() - started < 5
    for connection in connections:
        connection.close()


def fake_apt(arrays: Arrays, tmp_path: Path, script: str) -> None:
    """``apt-get`` runs ``script``; ``dpkg-deb`` unpacks the small files."""
    folder = write_files(arrays, tmp_path / "package")
    unpack = (
        f'/bin/mkdir -p "$3/usr/share/datasets"\n/bin/cp -r {folder} "$3/{module.PACKAGE_FOLDER}"'
    )
    for name, body in (("apt-get", script), ("dpkg-deb", unpack)):
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\necho {name} $@ >> {tmp_path}/log\n{body}\n")
        program.chmod(0o755)


def test_apt_downloads(arrays: Arrays, tmp_path: Path) -> None:
    fake_apt(arrays, tmp_path, "/usr/bin/touch dataset.deb || /bin/touch dataset.deb")
    check_loaded(arrays)
    calls = (tmp_path / "log").read_text().splitlines()
    assert calls[0] == "apt-get download dataset-fashion-mnist" and len(calls) == 2


def test_apt_gets_its_lists_first_where_there_are_none(arrays: Arrays, tmp_path: Path) -> None:
    fake_apt(
        arrays,
        tmp_path,
        'case "$*" in *update) : > lists/got;; *)\n'
        '[ -e lists/got ] || { echo "E: Unable to locate package" >&2; exit 100; }\n'
        ": > dataset.deb;; esac",
    )
    check_loaded(arrays)
    calls = (tmp_path / "log").read_text().splitlines()
    assert [call.split()[-1] for call in calls[:3]] == [module.PACKAGE, "update", module.PACKAGE]
    assert all("Dir::State::lists=" in call for call in calls[1:3])


def test_other_content_is_not_taken(
    arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {**arrays, "test_labels": arrays["test_labels"][::-1].copy()}
    write_files(changed, tmp_path / "system" / module.PACKAGE_FOLDER)
    with pytest.raises(InputError, match=r"installed .*: the content is not that of Fashion-MNIST"):
        load("fashion-mnist")
    monkeypatch.setitem(module.SHAPES, "test_labels", (30,))
    with pytest.raises(InputError, match=r"test_labels has the shape \(20,\), not \(30,\)"):
        load("fashion-mnist")


def test_where_nothing_works_it_says_what_to_do(arrays: Arrays, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load("fashion-mnist")
    message = str(caught.value)
    assert "not installed" in message
    assert "does not answer" in message
    assert "apt-get and dpkg-deb are not on this machine" in message
    assert "install the Debian package" in message
    assert str(tmp_path / "cache" / "fashion-mnist") in message
    assert "\n" not in message
    fake_apt(arrays, tmp_path, 'echo "E: no network" >&2; exit 100')
    with pytest.raises(InputError, match="apt-get failed: E: no network"):
        load("fashion-mnist")


def test_apt_that_hangs_is_given_up(
    arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "APT_SECONDS", 0.3)
    fake_apt(arrays, tmp_path, "exec /bin/sleep 30")
    with pytest.raises(InputError, match="apt-get took over 0 s"):
        load("fashion-mnist")
