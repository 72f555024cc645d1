"""Fashion-MNIST: 60,000 + 10,000 grey images of clothes, 28x28, ten classes (MIT licence).

Taken from the first of these that has it:

1. the folder ``fashion-mnist`` in the cache (``$MOBILEFIT_CACHE``, else
   ``$XDG_CACHE_HOME/mobilefit``, else ``~/.cache/mobilefit``): the decoded arrays as kept from an
   earlier time, or the four files of the data set if somebody put them there;
2. the installed Debian package ``dataset-fashion-mnist``;
3. torchvision's download;
4. the same Debian package by ``apt-get download``, which needs no root.

Whatever it came from, the decoded arrays are checked by their hash: the files' own hashes differ
between the origins, since gzip headers hold a name and a date.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mobilefit.data.classification import ClassificationData
from mobilefit.data.images import ArraySource, ImageSet
from mobilefit.data.splits import stratified
from mobilefit.errors import InputError
from mobilefit.runs import atomic_file

Bytes = npt.NDArray[np.uint8]
Arrays = dict[str, Bytes]

# In the files' own numbering, not sorted, so that a label means here what it means elsewhere.
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker",
           "Bag", "Ankle boot")  # fmt: skip

FILES = {
    "train_images": "train-images-idx3-ubyte.gz",
    "train_labels": "train-labels-idx1-ubyte.gz",
    "test_images": "t10k-images-idx3-ubyte.gz",
    "test_labels": "t10k-labels-idx1-ubyte.gz",
}
SHAPES = {
    "train_images": (60000, 28, 28),
    "train_labels": (60000,),
    "test_images": (10000, 28, 28),
    "test_labels": (10000,),
}
CONTENT_SHA256 = "ca3ab2a37f845e1b8ae23cab1b51749a3011ba3bf1d9016176d75cbaabac376f"
"""Of the four decoded arrays in the order of ``FILES``."""

PACKAGE = "dataset-fashion-mnist"
PACKAGE_FOLDER = Path("usr/share/datasets/fashion-mnist")
SYSTEM_ROOT = Path("/")

CONNECT_SECONDS = 8.0
"""How long a mirror may take to answer before the next origin is tried."""
STALL_SECONDS = 20.0
"""How long a download may stand still."""
APT_SECONDS = 300.0
"""How long one call of apt-get may take."""


class _NotAvailableError(Exception):
    """Why an origin does not have the data, in a few words."""


def load_fashion_mnist(*, seed: int, holdout: float) -> ClassificationData:
    """Fashion-MNIST from wherever it can be had; see the module's text.

    Raises:
        InputError: none of the origins has it; the message says what was tried and what to do.
    """
    arrays = _arrays()
    train = _image_set(arrays, "train")
    stay, apart = stratified(train.labels, holdout, seed)
    return ClassificationData(
        name="fashion-mnist",
        classes=CLASSES,
        train=train.subset(stay),
        holdout=train.subset(apart),
        test=_image_set(arrays, "test"),
        skipped=(),
        fingerprint=CONTENT_SHA256,
        short_side=28,
    )


def cache_folder() -> Path:
    """Where downloaded data sets are kept; where there is no home, a place that nothing can be kept at."""
    chosen = os.environ.get("MOBILEFIT_CACHE")
    base = chosen or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "mobilefit")
    folder = os.path.expanduser(base)
    return Path(os.devnull) / "set-MOBILEFIT_CACHE" if folder.startswith("~") else Path(folder)


def _image_set(arrays: Arrays, part: str) -> ImageSet:
    images = arrays[f"{part}_images"]
    names = [f"{part}/{number:05d}" for number in range(len(images))]
    return ImageSet(ArraySource(images, names), arrays[f"{part}_labels"].astype(np.int64))


def _arrays() -> Arrays:
    cached = cache_folder() / "fashion-mnist" / "arrays.npz"
    with contextlib.suppress(_NotAvailableError):
        return _checked(_read_cache(cached))
    arrays = _from_first_origin()
    with contextlib.suppress(InputError, OSError):  # without a cache the next start is slower
        cached.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(cached) as file:
            np.savez(file, allow_pickle=False, **arrays)
    return arrays


def _from_first_origin() -> Arrays:
    problems = []
    origins: dict[str, Callable[[Path], Path]] = {
        "files in the cache": _in_cache,
        f"installed package {PACKAGE}": _installed,
        "torchvision's download": _download_by_torchvision,
        f"apt-get download {PACKAGE}": _download_by_apt,
    }
    for name, origin in origins.items():
        try:
            with tempfile.TemporaryDirectory(prefix="mobilefit-") as scratch:
                return _checked(_read_folder(origin(Path(scratch))))
        except (_NotAvailableError, OSError) as error:
            problems.append(f"{name}: {error}")
    raise InputError(
        f"Fashion-MNIST is not to be had ({'; '.join(problems)})",
        f"install the Debian package {PACKAGE}, connect to the internet once, or put its four "
        f"files ({', '.join(FILES.values())}) into {cache_folder() / 'fashion-mnist'}",
    )


def _read_cache(path: Path) -> Arrays:
    try:
        with np.load(path) as stored:
            return {name: stored[name] for name in FILES}
    except Exception as error:  # a torn zip file raises half a dozen kinds
        raise _NotAvailableError(str(error)) from error


def _read_folder(folder: Path) -> Arrays:
    return {name: _read_idx(folder / file) for name, file in FILES.items()}


def _read_idx(path: Path) -> Bytes:
    """An IDX file of bytes: two zeros, type 8, the rank, the sizes (big-endian), the values."""
    try:
        data = gzip.decompress(path.read_bytes())
        rank = data[3]
        shape = struct.unpack_from(f">{rank}I", data, 4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except OSError as error:
        raise _NotAvailableError(f"cannot read {path}: {error.strerror or error}") from error
    except (EOFError, zlib.error, IndexError, struct.error, ValueError) as error:
        raise _NotAvailableError(f"{path} is damaged: {error}") from error


def _checked(arrays: Arrays) -> Arrays:
    for name, shape in SHAPES.items():
        if arrays[name].shape != shape or arrays[name].dtype != np.uint8:
            raise _NotAvailableError(f"{name} has the shape {arrays[name].shape}, not {shape}")
    if _content_sha256(arrays) != CONTENT_SHA256:
        raise _NotAvailableError("the content is not that of Fashion-MNIST")
    return arrays


def _content_sha256(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in FILES:
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def _in_cache(scratch: Path) -> Path:
    folder = cache_folder() / "fashion-mnist"
    if not any(folder.glob("*.gz")):
        raise _NotAvailableError(f"none in {folder}")
    return folder


def _installed(scratch: Path) -> Path:
    folder = SYSTEM_ROOT / PACKAGE_FOLDER
    if not folder.is_dir():
        raise _NotAvailableError("not installed")
    return folder


def _download_by_torchvision(scratch: Path) -> Path:
    from torchvision.datasets import FashionMNIST  # only here: it takes a second to import

    mirror = FashionMNIST.mirrors[0]
    if not _answers(mirror + FashionMNIST.resources[0][0]):
        raise _NotAvailableError(f"{mirror} does not answer")
    try:
        with _socket_timeout(STALL_SECONDS):
            FashionMNIST(str(scratch), download=True)
    except (RuntimeError, OSError) as error:
        raise _NotAvailableError(" ".join(str(error).split())) from error
    return scratch / "FashionMNIST" / "raw"


def _answers(url: str) -> bool:
    """Whether a server answers within ``CONNECT_SECONDS``, the look-up of its name included.

    In a thread, since no time limit can be set on looking up a name.
    """
    answered = threading.Event()

    def ask() -> None:
        with (
            contextlib.suppress(OSError, http.client.HTTPException),
            urllib.request.urlopen(url, timeout=CONNECT_SECONDS),
        ):
            answered.set()
        finished.set()

    finished = threading.Event()
    threading.Thread(target=ask, daemon=True).start()
    finished.wait(CONNECT_SECONDS)
    return answered.is_set()


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """torchvision opens its connections without a time limit: they get this one."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _download_by_apt(scratch: Path) -> Path:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise _NotAvailableError("apt-get and dpkg-deb are not on this machine")
    try:
        _run(["apt-get", "download", PACKAGE], scratch)
    except _NotAvailableError:
        # A fresh machine or container has no package lists: fetch them into the scratch folder,
        # which needs no root either.
        own = ["-o", f"Dir::State::lists={scratch}/lists", "-o", f"Dir::Cache={scratch}/cache"]
        (scratch / "lists" / "partial").mkdir(parents=True)
        (scratch / "cache" / "archives" / "partial").mkdir(parents=True)
        _run(["apt-get", *own, "update"], scratch)
        _run(["apt-get", *own, "download", PACKAGE], scratch)
    for archive in scratch.glob("*.deb"):
        _run(["dpkg-deb", "--extract", str(archive), str(scratch / "root")], scratch)
    return scratch / "root" / PACKAGE_FOLDER


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=APT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise _NotAvailableError(f"{command[0]} took over {APT_SECONDS:.0f} s") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise _NotAvailableError(f"{command[0]} failed: {last}")
