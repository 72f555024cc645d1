"""Files at a distance: which state of it a URL has now, and its bytes, however often a connection drops.

``http`` and ``https`` go through the standard library, so that nothing more needs to be installed and
a transfer goes on where it broke off; the others of ``SCHEMES`` (``s3``, ``gs`` ...) go through fsspec,
which wants a package of its own for most of them. fsspec knows schemes that read local files, run other
ones through each other or hold their own data: addresses in a manifest of somebody else's must not.

What may pass is tried again after a pause: dropped connections, bodies that end early, no answer,
408, 429 and 5xx. What cannot (404, 403, an unknown scheme) is an error at once.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import os
import socket
import ssl
import stat
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from mobilefit.data.lazy import say
from mobilefit.errors import InputError
from mobilefit.runs import read_bytes
from mobilefit.text import join_address, links, split_address

STALL_SECONDS = 30.0
"""How long a server may say nothing."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds after the first failure, doubled after each further one; and the longest pause."""
LOOK_TRIES, FETCH_TRIES = 5, 10
"""Failures in a row, 8 and 120 seconds of pauses: a wrong address is known soon, and a training
outlives a server that starts anew."""
SILENT_TRIES = 2
"""Failures in a row of which nothing is said."""
WORTHWHILE = 1 << 20
"""Bytes by which a try that failed still counts as progress."""
CHUNK = 4 << 20

SCHEMES = ("http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "hf", "hdfs", "webhdfs")
"""Those that are read."""
LARGEST_TEXT = 64 << 20
"""Bytes of a manifest or of a list of classes."""

_MAY_PASS = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True, kw_only=True)
class Version:
    """What tells one state of a file from another."""

    size: int | None
    """Bytes; ``None``: the server does not say."""
    tag: str
    """Its ETag, else when it was changed; empty: unknown."""


class MissingError(InputError):
    """The server has no such file, or shows it to others only."""


class TransferError(Exception):
    """A transfer failed in a way that may pass.

    Args:
        wait: seconds that the server asks to wait.
    """

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


class _Body(Protocol):
    """An open file at a distance."""

    start: int
    """Where in the file the bytes begin: 0 where the server cannot begin in the middle."""
    version: Version

    def read(self, count: int) -> bytes:
        """Up to so many bytes; none at the end."""

    def close(self) -> None: ...


def is_remote(url: str) -> bool:
    """Whether this names something at a distance, not a local path."""
    return "://" in url


def shown(url: str) -> str:
    """A URL as it may stand in a message: without user, password and query, which may hold a signature."""
    return "::".join(map(_shown_link, links(url))) if is_remote(url) else url


def _shown_link(url: str) -> str:
    if not is_remote(url):
        return url
    scheme, _, location, _ = split_address(url)
    return join_address(scheme, None, location, None)


def look(url: str) -> Version:
    """Which state of the file is there now: size and tag, without reading it.

    Raises:
        MissingError: it is not there, or is shown to others only.
        InputError: the server cannot be reached, or the scheme is unknown.
    """
    if not is_remote(url):
        return _look_here(url)
    patience = _Patience(url, LOOK_TRIES)
    while True:
        try:
            with contextlib.closing(_open(url, 0, look=True)) as body:
                return body.version
        except TransferError as error:
            patience.failed(error, 0)


def _look_here(path: str) -> Version:
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte
        raise MissingError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error
    if not stat.S_ISREG(found.st_mode):
        raise MissingError(f"cannot read {path}: it is not a regular file")
    return Version(size=found.st_size, tag=str(found.st_mtime_ns))


def read(url: str) -> bytes:
    """A small file, here or at a distance, whole.

    Raises:
        MissingError, InputError: as :func:`look` does; and it is larger than ``LARGEST_TEXT``.
    """
    if is_remote(url):
        content = _Text(url)
        fetch(url, content, tries=LOOK_TRIES)
        return content.getvalue()
    try:
        return read_bytes(Path(url), LARGEST_TEXT)
    except (OSError, ValueError) as error:
        raise MissingError(f"cannot read {url}: {getattr(error, 'strerror', error)}") from error


class _Text(io.BytesIO):
    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > LARGEST_TEXT:
            raise InputError(f"{shown(self._url)} is larger than {LARGEST_TEXT >> 20} MiB", "check the address")
        return super().write(data)


def fetch(
    url: str,
    file: BinaryIO,
    *,
    whole: Callable[[BinaryIO], bool] | None = None,
    tries: int = FETCH_TRIES,
) -> Version:
    """Write a remote file into an open one, from its beginning, and cut that off behind it.

    A broken transfer goes on where it stopped if the server can and the file is still the same one.

    Args:
        whole: tells whether what came is everything, for servers that do not say how much it is.
        tries: failures in a row, without a mebibyte gained, after which it gives up.

    Returns:
        the state of the file that was written.

    Raises:
        MissingError, InputError: as :func:`look`; and so many tries in a row failed.
        OSError: ``file`` cannot be written.
    """
    patience = _Patience(url, tries)
    version = Version(size=None, tag="")
    file.seek(0)
    while True:
        try:
            with contextlib.closing(_open(url, file.tell())) as body:
                if file.tell() and (body.start != file.tell() or body.version != version):
                    _begin_anew(file, body)
                version = body.version
                _copy(body, file)
            _require_all(file, version, whole)
            return version
        except TransferError as error:
            patience.failed(error, file.tell())


def _begin_anew(file: BinaryIO, body: _Body) -> None:
    file.seek(0)
    if body.start:
        raise TransferError("it changed while it was read")


def _copy(body: _Body, file: BinaryIO) -> None:
    while chunk := body.read(CHUNK):
        file.write(chunk)


def _require_all(
    file: BinaryIO, version: Version, whole: Callable[[BinaryIO], bool] | None
) -> None:
    got = file.tell()
    if version.size is not None and got != version.size:
        if got > version.size:
            file.seek(0)
        raise TransferError(f"the connection ended after {got} of {version.size} bytes")
    file.truncate()
    if version.size is None and whole is not None:
        complete = whole(file)
        file.seek(got if complete else 0)
        if not complete:
            raise TransferError("the connection ended early")


class _Patience:
    """Pauses after a failure, and gives up after too many in a row."""

    def __init__(self, url: str, tries: int) -> None:
        self._url, self._tries = url, tries
        self._failures = self._reached = 0

    def failed(self, error: TransferError, reached: int) -> None:
        """Wait for the next try.

        Args:
            reached: bytes at hand.
        """
        progressed = reached - self._reached >= WORTHWHILE
        self._failures = 1 if progressed else self._failures + 1
        self._reached = reached
        if self._failures >= self._tries:
            raise InputError(
                f"cannot read {shown(self._url)}: {error} ({self._tries} tries in a row failed)",
                "see whether its server answers, then run the same command again",
            ) from error
        pause = max(error.wait, min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self._failures - 1)))
        if self._failures > SILENT_TRIES:
            say(f"{shown(self._url)}: {error}; next try in {pause:.0f} s")
        time.sleep(pause)


def _open(url: str, start: int, *, look: bool = False) -> _Body:
    scheme, user, _, _ = split_address(url)
    if scheme.lower() not in SCHEMES:
        said = f"its scheme '{scheme}' is none of {', '.join(SCHEMES)}"
        raise InputError(f"cannot read {shown(url)}: {said}", "check the address")
    if scheme.lower() not in ("http", "https"):
        if user is not None:
            hint = "give them as its tools take them, for S3 in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            raise InputError(f"cannot read {shown(url)}: keys are not read from an address of {scheme}", hint)
        if "::" in url:
            raise InputError(f"cannot read {shown(url)}: it is a chain of addresses", "name one file")
        return _Other(url, start)
    try:
        return _Http(url, start, 0 if look else None)
    except _RangeError:  # nothing lies there: the file is empty, or shorter than it was
        return _Http(url, 0, None)


class _RangeError(Exception):
    """A server has no bytes in the range that was asked for."""


class _Http:
    """A file behind HTTP.

    Asking for the first byte by GET tells size and tag like HEAD does, and is answered also where
    HEAD is not: by addresses that are signed for GET.

    Args:
        last: the last byte wanted; ``None``: all.
    """

    def __init__(self, url: str, start: int, last: int | None) -> None:
        headers = {"User-Agent": "mobilefit", "Accept-Encoding": "identity"}
        if start or last is not None:
            headers["Range"] = f"bytes={start}-{'' if last is None else last}"
        scheme, user, location, query = split_address(url)
        with _http_failures(url):
            request = urllib.request.Request(join_address(scheme, None, location, query), headers=headers)
            if user is not None:  # a server that is redirected to does not get it
                encoded = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
                request.add_unredirected_header("Authorization", f"Basic {encoded}")
            self._answer = urllib.request.build_opener(_Redirects).open(request, timeout=STALL_SECONDS)
        self._url = url
        self.start, size = _place(self._answer.status, self._answer.headers)
        tag = self._answer.headers.get("ETag") or self._answer.headers.get("Last-Modified") or ""
        self.version = Version(size=size, tag=tag)

    def read(self, count: int) -> bytes:
        with _http_failures(self._url):
            data: bytes = self._answer.read(count)
            return data

    def close(self) -> None:
        self._answer.close()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """To HTTP alone: the standard library would follow to ftp as well."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """The request to the new address, if it is one of HTTP."""
        if not newurl.lower().startswith(("http://", "https://")):
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _place(status: int, headers: http.client.HTTPMessage) -> tuple[int, int | None]:
    """Where an answer's bytes begin in the file, and the file's size if it is told."""
    if status == 206:  # Content-Range: bytes 100-199/1000, or /* where the size is unknown
        span, _, total = headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        first = span.partition("-")[0]
        return int(first) if first.isdigit() else 0, int(total) if total.isdigit() else None
    length = headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


@contextlib.contextmanager
def _http_failures(url: str) -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        raise _refused(url, error) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)  # urllib wraps what the socket raised
        if isinstance(reason, (ValueError, http.client.InvalidURL)):  # their messages hold parts of the address
            raise InputError(f"cannot read {shown(url)}: this is no address", "check the address") from error
        if _cannot_pass(reason):
            raise InputError(f"cannot read {shown(url)}: {reason}", "check the address") from error
        raise TransferError(str(reason) or type(reason).__name__) from error


def _refused(url: str, error: urllib.error.HTTPError) -> Exception:
    said = f"{error.code} {error.reason}"
    if error.code == 416:
        return _RangeError()
    if error.code in _MAY_PASS:
        asked = error.headers.get("Retry-After", "")
        return TransferError(said, min(float(asked), 60.0) if asked.isdigit() else 0.0)
    return MissingError(f"cannot read {shown(url)}: the server says {said}", "check the address")


def _cannot_pass(reason: object) -> bool:
    unknown_host = isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME
    return unknown_host or isinstance(reason, (str, ssl.SSLCertVerificationError))


class _Other:
    """A file behind any scheme that fsspec knows."""

    def __init__(self, url: str, start: int) -> None:
        self._url = url
        with _fsspec_failures(url):
            import fsspec.core  # only here: most data is not behind it

            system, path = fsspec.core.url_to_fs(url)
            found = system.info(path)
            # No cache of its own: what is read is read once, in large pieces.
            self._file = system.open(path, "rb", cache_type="none")
            self._file.seek(start)
        self.start, self.version = start, Version(size=found.get("size"), tag=_tag(found))

    def read(self, count: int) -> bytes:
        with _fsspec_failures(self._url):
            data: bytes = self._file.read(count)
            return data

    def close(self) -> None:
        self._file.close()


def _tag(found: dict[str, Any]) -> str:
    names = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created")
    return next((str(found[name]) for name in names if found.get(name)), "")


@contextlib.contextmanager
def _fsspec_failures(url: str) -> Iterator[None]:
    scheme = url.partition("://")[0]
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise MissingError(f"cannot read {shown(url)}: {error}", "check the address") from error
    except ImportError as error:
        raise InputError(
            f"cannot read {shown(url)}: {error}", "pip install 'mobilefit[shards]' brings s3"
        ) from error
    except ValueError as error:  # fsspec's word for an unknown scheme
        raise InputError(f"cannot read {shown(url)}: {error}", "check the address") from error
    except Exception as error:  # each file system raises its own kinds
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
            hint = f"give {scheme} its credentials, or FSSPEC_{scheme.upper()}_ANON=true for public data"
            raise InputError(f"cannot read {shown(url)}: {error}", hint) from error
        raise TransferError(" ".join(str(error).split()) or type(error).__name__) from error
