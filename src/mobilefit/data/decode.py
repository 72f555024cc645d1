"""From the bytes of an image file to upright 8-bit pixels, and from pixels to a square of any size.

Two functions do all the resampling there is: :func:`centre_box` says which part of an image the
network sees, :func:`resample` brings a part to the network's resolution (bilinear, antialiased:
Pillow's triangle filter, which widens with the reduction). Evaluation, training, calibration and
prediction all go through them, so that a pixel is never computed in two ways.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

from mobilefit.errors import InputError
from mobilefit.runs import open_file, read_bytes

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]

# What Pillow has to say of metadata and sizes would stand between our own lines: a picture is decoded or it is bad.
warnings.filterwarnings("ignore", module=r"PIL\.")

_NEEDING = {"jpg_2000": (".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c"), "avif": (".avif",)}
"""Extensions by what Pillow may lack."""
HEIC = (".heic", ".heif", ".hif")
HEIC_HINT = "pip install 'mobilefit[heic]'"


def _read_here() -> tuple[str, ...]:
    """Extensions of the image files that are read, of all that Pillow and pillow-heif read here."""
    usual = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jpe", ".jfif")
    more = [ends for feature, ends in _NEEDING.items() if features.check(feature)]
    if importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
        more.append(HEIC)
    return (*usual, *(end for ends in more for end in ends))


EXTENSIONS = _read_here()
"""Of image files that can be read."""

MIN_SIDE = 4
"""Shortest side in pixels of an image that can show anything; anything below is a bad file."""

_MODES_8_BIT = {"L", "RGB"}
DEEP_EXTENSIONS = (".png", ".apng", ".tif", ".tiff", ".pgm", ".ppm", ".pnm", ".jp2", ".j2k", ".jpx")
"""Of formats that can have 16 bits a channel."""


class BadImageError(Exception):
    """Why a file cannot be used as an image, in a few words."""


def decode(data: bytes, at_least: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """Decode a whole image file, upright and in RGB.

    Args:
        data: the file's content.
        at_least: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size (by its own DCT, several
            times faster) as long as its short side keeps this many pixels; ``None``: never.

    Returns:
        the image, and the width and height that the file states.

    Raises:
        BadImageError: empty, not an image, truncated, or its short side is under ``MIN_SIDE``.
    """
    if not data:
        raise BadImageError("empty file")
    try:
        file = open_picture(io.BytesIO(data))
        full_size = file.size
        if at_least is not None:
            file.draft(None, _scaled(full_size, at_least))
        file.load()  # the header alone does not show a truncated file
        image = to_rgb(file)
    except UnidentifiedImageError as error:
        heic = data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"heim", b"hevc", b"mif1", b"msf1")
        raise BadImageError(f"a HEIC picture: {HEIC_HINT}" if heic else "not an image") from error
    except BadImageError:
        raise
    except Exception as error:  # decoders raise anything at all on damaged bytes
        truncated = "truncated" in str(error).lower()  # in different words from each decoder
        why = "truncated" if truncated else f"cannot be decoded: {error}"
        raise BadImageError(why) from error
    if min(full_size) < MIN_SIDE:
        width, height = full_size
        raise BadImageError(f"only {width}x{height} pixels, the shortest side must be {MIN_SIDE}")
    return image, full_size


def open_picture(source: BinaryIO | Path) -> Image.Image:
    """Pillow's picture of a file, by any decoder except that of EPS, which has Ghostscript run the file."""
    Image.init()
    return Image.open(source, formats=[name for name in Image.ID if name != "EPS"])


def read_image(path: Path, at_least: int | None = None) -> Image.Image:
    """Read one image file, upright and in RGB; ``at_least`` as in :func:`decode`.

    Raises:
        InputError: the file is missing, unreadable or a bad image; the message names it.
    """
    try:
        return decode(read_bytes(path), at_least)[0]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except BadImageError as error:
        raise InputError(f"cannot use {path} as an image: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any kind as upright 8-bit RGB.

    EXIF orientation is applied, transparency is laid over white, 16-bit values are scaled by 1/257
    (Pillow's own conversion would clip them at 255), grey is repeated, CMYK and palettes converted.

    Raises:
        BadImageError: floating-point pixels, whose range is anybody's guess.
    """
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)  # copies even what is upright
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode == "F":
        raise BadImageError("floating-point pixels; save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        image = Image.fromarray(_scaled_to_8_bit(np.asarray(image)))
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, opaque).convert("RGB")
    return image.convert("RGB")


def _scaled_to_8_bit(values: npt.NDArray[np.generic]) -> Pixels:
    # Mode "I" is what Pillow makes of 16-bit values that it has no narrower type for.
    wide = np.clip(values.astype(np.int64), 0, 65535)
    return ((wide + 128) // 257).astype(np.uint8)


def peak_of_16_bits(path: str) -> int | None:
    """The largest value in an image file with 16 bits a channel; ``None``: it has 8, or cannot be read."""
    if not path.lower().endswith(DEEP_EXTENSIONS):
        return None
    try:
        with open_file(Path(path)) as stream, open_picture(stream) as file:
            if file.mode.startswith("I"):
                return int(np.asarray(file).max())
            if _bits(file, path) != 16:
                return None
            bands = zip(file.getbands(), np.atleast_2d(file.getextrema()), strict=True)
            # Pillow keeps the upper 8 bits of a colour.
            return max(int(high) << 8 | 255 for band, (_, high) in bands if band != "A")
    except Exception:  # decoders raise anything at all on damaged bytes; what reads the file says what
        return None


def _bits(file: Image.Image, path: str) -> int:
    if file.format == "PNG":
        with open_file(Path(path)) as raw:
            return raw.read(25)[24]
    bits = getattr(file, "tag_v2", {}).get(ExifTags.Base.BitsPerSample, 8)
    return max(bits) if isinstance(bits, tuple) else int(bits)


def shrink(image: Image.Image, side: int) -> Image.Image:
    """The image with its short side reduced to ``side`` pixels; a smaller image as it is."""
    if min(image.size) <= side:
        return image
    return image.resize(_scaled(image.size, side), Image.Resampling.BILINEAR)


def _scaled(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    scale = short_side / min(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def centre_box(size: tuple[int, int], fraction: float) -> Box:
    """The central square of ``fraction`` of the short side: (left, top, right, bottom).

    Args:
        size: width and height in pixels.
    """
    width, height = size
    half = fraction * min(size) / 2
    return (
        max(0.0, width / 2 - half),
        max(0.0, height / 2 - half),
        min(float(width), width / 2 + half),
        min(float(height), height / 2 + half),
    )


def resample(image: Image.Image, box: Box, resolution: int, width: int | None = None) -> Pixels:
    """Bring ``box`` of an L or RGB image to so many pixels: uint8 [resolution, width, channels].

    Args:
        width: columns; the same as ``resolution`` when left out.
    """
    assert image.mode in _MODES_8_BIT, image.mode
    size = (width or resolution, resolution)
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box))
    return pixels if pixels.ndim == 3 else pixels[..., None]
