"""Text without secrets and without what a terminal obeys."""

from __future__ import annotations

import io

import pytest

from mobilefit.data.shard_remote import shown
from mobilefit.text import EscapedStream, address_without_secrets, printable, without_secrets

ADDRESSES = {
    "http://host/x.tar": "http://host/x.tar",
    "http://host:8080/x.tar": "http://host:8080/x.tar",
    "http://host:8080/photo@2x.tar": "http://host:8080/photo@2x.tar",
    "http://host/a@b.tar": "http://host/a@b.tar",
    "http://host/x.tar?token=SECRET": "http://host/x.tar?token=***",
    "http://host/x-{0..9}.tar?a=SECRET&b=SECRET=&SECRET": "http://host/x-{0..9}.tar?a=***&b=***&***",
    "http://host/x.tar?SECRET": "http://host/x.tar?***",
    "http://host/x.tar?token=SE'CR ET": "http://host/x.tar?token=***",
    "http://user:SECRET@host/x.tar": "http://***@host/x.tar",
    "https://SECRET@host/x.tar": "https://***@host/x.tar",
    "https://user:SE@CRET@host/x.tar": "https://***@host/x.tar",
    "https://user:SE/CRET@host/x.tar": "https://***@host/x.tar",
    "https://user:SE?CRET@host/x.tar": "https://***@host/x.tar",
    "HTTPS://user:SECRET@host/x.tar?sig=SECRET": "HTTPS://***@host/x.tar?sig=***",
    "s3://KEY:SECRET@bucket/x.tar": "s3://***@bucket/x.tar",
    "s3://KEY:1/SECRET+/=@bucket/{0..3}.tar": "s3://***@bucket/{0..3}.tar",
    "abfs://container@account.dfs.core.windows.net/x.tar": "abfs://container@account.dfs.core.windows.net/x.tar",
    "gs://bucket/x.tar::http://me:SECRET@host/?t=SECRET": "gs://bucket/x.tar::http://***@host/?t=***",
    "simplecache::s3://KEY:SECRET@bucket/x.tar": "simplecache::s3://***@bucket/x.tar",
    "http://[::1]:80/x.tar": "http://[::1]:80/x.tar",
    "http:/me:SECRET@host/x.pth?t=SECRET": "http:/***@host/x.pth?t=***",
    "C:/me:x@y?a=b": "C:/me:x@y?a=b",
    "rtsp://admin:SECRET@camera/1": "rtsp://***@camera/1",
    "ray://user:SECRET@head:10001": "ray://***@head:10001",
    "http://host/x.tar?token=$TOKEN&b=${TOKEN}": "http://host/x.tar?token=$TOKEN&b=${TOKEN}",
    "http://$USER:$PASSWORD@host/x.tar": "http://$USER:$PASSWORD@host/x.tar",
    "http://user:$PASSWORD@host/x.tar": "http://***@host/x.tar",
    "photos/cats": "photos/cats",
    "a@b:c?d=e": "a@b:c?d=e",
}  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_secrets_of_an_address(address: str) -> None:
    assert address_without_secrets(address) == ADDRESSES[address]
    assert address_without_secrets(ADDRESSES[address]) == ADDRESSES[address]
    if "://" in address:
        assert "CRET" not in shown(address)


def test_secrets_in_a_line() -> None:
    line = "mobilefit: cannot read 'http://u:SECRET@h/x.tar?t=SECRET' (s3://K:SECRET@b/y): http://h/1.tar#key; e.g. a?b=c"
    assert without_secrets(line) == (
        "mobilefit: cannot read 'http://***@h/x.tar?t=***' (s3://***@b/y): http://h/1.tar#key; e.g. a?b=c"
    )


def test_control_characters_are_escaped_and_letters_stay() -> None:
    assert printable("\x1b]0;title\x07 \x9b2J \x7f \r \x00") == "\\x1b]0;title\\x07 \\x9b2J \\x7f \\x0d \\x00"
    assert printable("a\u202egpj.exe \u2066x\u2069") == "a\\u202egpj.exe \\u2066x\\u2069"
    for text in ("two\nlines\tand a tab", "猫 é 👨‍👩‍👧 ünï", "\udcff"):
        assert printable(text) == text


def test_a_stream_lets_progress_bars_through() -> None:
    stream = io.StringIO()
    bar = EscapedStream(stream, progress=True)
    assert bar.write("\r 50 % \x1b[A\x1b[2J http://u:p@h/") == len("\r 50 % \x1b[A\x1b[2J http://u:p@h/")
    assert stream.getvalue() == "\r 50 % \x1b[A\\x1b[2J http://***@h/" and not bar.isatty()
    bar.write("\x1b[33;1mred\x1b[0m")
    assert stream.getvalue().endswith("\x1b[33;1mred\x1b[0m")
    EscapedStream(stream).write("\r\x1b[A")
    assert stream.getvalue().endswith("\\x0d\\x1b[A")
