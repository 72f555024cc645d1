"""Every kind of image becomes the RGB it shows; every kind of bad file is told apart."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilefit.data.decode import (
    MIN_SIDE,
    BadImageError,
    centre_box,
    decode,
    read_image,
    resample,
    shrink,
)
from mobilefit.errors import InputError

from .conftest import photo


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def png_16_bit_rgb(colour: tuple[int, int, int], side: int = 8) -> bytes:
    """A PNG with 16 bits a channel, which Pillow reads but cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    rows = (b"\0" + struct.pack(">3H", *colour) * side) * side
    header = struct.pack(">IIBBBBB", side, side, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def palette_image(transparent: bool) -> bytes:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return encoded(image, transparency=1) if transparent else encoded(image)


GREY_16 = Image.fromarray(np.full((8, 8), 0x8080, np.uint16))

KINDS = {
    "grey": (encoded(Image.new("L", (8, 8), 77)), (77, 77, 77)),
    "one bit": (encoded(Image.new("1", (8, 8), 1)), (255, 255, 255)),
    "palette": (palette_image(transparent=False), (200, 100, 50)),
    "palette, transparent": (palette_image(transparent=True), (255, 255, 255)),
    "alpha": (encoded(Image.new("RGBA", (8, 8), (0, 0, 200, 128))), (127, 127, 227)),
    "grey, transparent": (encoded(Image.new("LA", (8, 8), (10, 0))), (255, 255, 255)),
    "16-bit grey PNG": (encoded(GREY_16), (128, 128, 128)),
    "16-bit grey TIFF": (encoded(GREY_16, "TIFF"), (128, 128, 128)),
    "16-bit grey PGM": (b"P5 8 8 65535\n" + b"\x80\x80" * 64, (128, 128, 128)),
    "16-bit colour PNG": (png_16_bit_rgb((0xFFFF, 0x8080, 0x0101)), (255, 128, 1)),
    "32-bit grey": (encoded(Image.new("I", (8, 8), 65535), "TIFF"), (255, 255, 255)),
    "CMYK JPEG": (encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), (255, 0, 0)),
    "CMYK TIFF": (encoded(Image.new("CMYK", (8, 8), (255, 0, 255, 0)), "TIFF"), (0, 255, 0)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_becomes_the_colour_it_shows(kind: str) -> None:
    data, colour = KINDS[kind]
    image, size = decode(data)
    assert (image.mode, image.size, size) == ("RGB", (8, 8), (8, 8))
    assert np.abs(np.asarray(image).astype(int) - colour).max() <= 2


def test_exif_orientation_is_applied() -> None:
    left_red = Image.new("RGB", (16, 8), "blue")
    left_red.paste("red", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: the left becomes the top
    image, _ = decode(encoded(left_red, "JPEG", exif=exif, quality=95))
    assert image.size == (8, 16)
    top, bottom = image.getpixel((4, 2)), image.getpixel((4, 13))
    assert isinstance(top, tuple) and isinstance(bottom, tuple)
    assert top[0] > 200 > 50 > top[2] and bottom[2] > 200 > 50 > bottom[0]


JPEG = encoded(photo(1, (64, 64)), "JPEG")
BAD = {
    "empty": (b"", "empty file"),
    "text": (b"this is no picture\n" * 20, "not an image"),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "truncated"),
    "truncated PNG": (encoded(photo(1, (64, 64)))[:900], "truncated"),
    "header alone": (JPEG[:20], "truncated|cannot be decoded|not an image"),
    "one pixel": (encoded(Image.new("RGB", (1, 1))), f"only 1x1 pixels.* {MIN_SIDE}"),
    "thin": (encoded(Image.new("RGB", (100, 3))), "only 100x3 pixels"),
    "floating point": (encoded(Image.new("F", (8, 8)), "TIFF"), "floating-point"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("at_least", [None, 8])
def test_bad_files_say_why(kind: str, at_least: int | None) -> None:
    data, why = BAD[kind]
    with pytest.raises(BadImageError, match=why):
        decode(data, at_least)


def test_damage_anywhere_never_escapes_as_another_error() -> None:
    random = np.random.default_rng(0)
    for data in (JPEG, encoded(photo(2, (32, 32))), encoded(photo(3), "GIF")):
        for _ in range(60):
            damaged = bytearray(data)
            for place in random.integers(0, len(data), 8):
                damaged[place] = random.integers(256)
            try:
                image, _ = decode(bytes(damaged))
            except BadImageError:
                continue
            assert image.mode == "RGB"


def test_read_image_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*absent\.png"):
        read_image(tmp_path / "absent.png")
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(InputError, match=r"text\.jpg as an image: not an image"):
        read_image(tmp_path / "text.jpg")


def test_large_jpegs_are_decoded_small_and_still_say_their_size() -> None:
    data = encoded(photo(4, (640, 480)), "JPEG", quality=95)
    image, size = decode(data, at_least=100)
    assert size == (640, 480) and image.size == (160, 120)
    small = np.asarray(shrink(image, 100)).astype(int)
    exact = np.asarray(shrink(decode(data)[0], 100)).astype(int)
    assert small.shape == exact.shape == (100, 133, 3)
    assert np.abs(small - exact).mean() < 3


def test_centre_box_is_the_central_square() -> None:
    assert centre_box((100, 60), 1.0) == (20, 0, 80, 60)
    assert centre_box((60, 100), 0.5) == (15, 35, 45, 65)
    assert centre_box((7, 7), 1.0) == (0, 0, 7, 7)


def test_reduction_is_antialiased() -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    pixels = resample(Image.fromarray(stripes), (0, 0, 64, 64), 8)
    assert pixels.shape == (8, 8, 1)
    assert np.abs(pixels.astype(int) - 128).max() < 10


@pytest.mark.parametrize("picture", ["exif", "large", "palette"])
def test_pillows_warnings_stay_off_standard_error(tmp_path: Path, picture: str) -> None:
    path = tmp_path / "a.png"
    if picture == "exif":
        path = tmp_path / "a.jpg"
        Image.new("RGB", (9, 9)).save(path, exif=b"Exif\0\0II*\0\x08\0\0\0\x03\0\x12\x01\x03\0\x09\0\0\0\xff\xff")
    elif picture == "large":
        Image.new("1", (10000, 9000)).save(path)
    else:
        Image.new("P", (9, 9)).save(path, transparency=bytes(range(256)))
    code = f"from pathlib import Path; from mobilefit.data.decode import read_image; read_image(Path({str(path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
