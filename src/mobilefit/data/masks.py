"""What a file of labels holds: a value or a colour for each pixel, and what these mean."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from mobilefit.data.decode import BadImageError, Pixels, open_picture
from mobilefit.errors import InputError
from mobilefit.runs import read_bytes

Colour = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""

IGNORED = 255
"""In a mask: a pixel that neither the loss nor the metric sees."""
IGNORED_NAMES = ("void", "ignore", "ignored", "unlabelled", "unlabeled")
"""Names in ``classes.txt`` for pixels of no class."""
HEADS = frozenset([
    "name", "names", "class", "classes", "class_name", "classname", "label", "labels", "category", "categories",
    "id", "ids", "class_id", "label_id", "index", "idx", "value", "values", "number", "r", "g", "b", "rgb", "red", "green",
    "blue", "color", "colour", "colors", "colours", "color_rgb", "parts", "actions",
])  # fmt: skip
"""Words of a head over the columns of a file of classes."""
MOST_CLASSES = 255
LARGEST = 65535
"""Value in a mask: 16 bits."""
CLASSES_FILE = "classes.txt"
LABELMAP_FILE = "labelmap.txt"
Mask = npt.NDArray[np.uint8]
"""[h, w]: class indices, and ``IGNORED``."""
Codes = npt.NDArray[np.uint8] | npt.NDArray[np.int32]
"""[h, w]: what a mask file holds, values or (red x 256 + green) x 256 + blue."""


class Row(NamedTuple):
    """A line of ``classes.txt``."""

    value: int
    name: str
    colour: Colour | None = None
    ignored: bool = False


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What the values and colours of masks mean."""

    names: tuple[str, ...]
    """Of the classes; a label is an index into it."""
    values: Mapping[int, int]
    """From a value to its class or ``IGNORED``."""
    colours: Mapping[int, int] = field(default_factory=dict)
    """From a colour as in ``Codes`` to its class or ``IGNORED``."""
    palette: tuple[Colour, ...] | None = None
    """A colour for each class, where the data set has such."""

    def of(self, coloured: bool) -> Mapping[int, int]:
        """From what a mask file holds, colours or values, to classes and ``IGNORED``."""
        return self.colours if coloured else self.values

    @property
    def told(self) -> str:
        """All of it in one line, for fingerprints."""
        return repr((self.names, sorted(self.values.items()), sorted(self.colours.items())))

    def classes(self, mask: RawMask) -> Mask:
        """The classes in a mask that holds nothing unknown."""
        known = self.of(mask.coloured)
        codes = np.array(sorted(known), np.int32)
        classes = np.array([known[int(code)] for code in codes], np.uint8)
        if mask.coloured:
            return classes[np.searchsorted(codes, mask.codes)]
        table = np.zeros(int(codes[-1]) + 1, np.uint8)
        table[codes] = classes
        return table[mask.codes]


class RawMask(NamedTuple):
    """A mask file as it is."""

    codes: Codes
    coloured: bool
    palette: Mapping[int, int] = {}
    """The colours, as in ``Codes``, that the file's own palette gives its values; empty without one."""


def read_classes(path: Path) -> tuple[Row, ...]:
    """Read ``classes.txt``; the module's text says what it may hold.

    Raises:
        InputError: a line is no name, or a name, value or colour comes twice; all such lines are named.
    """
    rows: list[Row] = []
    problems = []
    try:
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8") from error
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text and not text.startswith("#"):
            row = _row(text, rows[-1].value + 1 if rows else 0)
            problems += [f"line {number}: {what}" for what in _misread(text, first=not rows)]
            problems += [f"line {number}: {what}" for what in _problems(row, rows)]
            rows.append(row)
    if not rows:
        problems.append("it names no class")
    if problems:
        raise InputError(
            f"{path}: {'; '.join(problems)}", "a line is 'name', 'value name' or 'name red green blue'"
        )
    return tuple(rows)


def read_labelmap(path: Path) -> tuple[Row, ...]:
    """Read ``labelmap.txt`` of CVAT and Datumaro: ``name:r,g,b:parts:actions``, the values in the lines' order.

    Raises:
        InputError: a line is something else, or a name or colour comes twice; all such lines are named.
    """
    rows: list[Row] = []
    problems = []
    try:
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = re.fullmatch(r"(.+?):(\d{1,9}),(\d{1,9}),(\d{1,9}):.*", line.strip())
        if found is None:
            problems.append(f"line {number}: '{line.strip()[:40]}' is no 'name:r,g,b:parts:actions'")
            continue
        colour = int(found[2]), int(found[3]), int(found[4])
        row = Row(len(rows), found[1], colour, found[1].lower() in IGNORED_NAMES)
        problems += [f"line {number}: {what}" for what in _problems(row, rows)]
        rows.append(row)
    if problems or not rows:
        raise InputError(f"{path}: {'; '.join(problems) or 'it names no class'}", f"write {CLASSES_FILE} in its place")
    return tuple(rows)


def _row(text: str, value: int) -> Row:
    """A line that is not empty; ``value`` is its value unless it says another."""
    colour = None
    if found := re.fullmatch(r"(.+?)\s+(\d{1,9})\s+(\d{1,9})\s+(\d{1,9})", text):
        text, colour = found[1], (int(found[2]), int(found[3]), int(found[4]))
    if found := re.fullmatch(r"(\d{1,9})\s+(.*\D.*)", text):
        value, text = int(found[1]), found[2]
    return Row(value, text, colour, text.lower() in IGNORED_NAMES)


def _misread(text: str, first: bool) -> Iterator[str]:
    """What a line is that was written for another reader."""
    words = re.split(r"[\s,;:|=]+", text.strip("\"'[]{}").lower())
    if first and all(word.strip("\"'_") in HEADS for word in words if word):
        yield f"'{text}' is a head, and would be the first class; begin it with #, or with a value if it is a class"
    elif re.search(r"[,;:|=]\s*\d+\s*[\]})]*$", text) or re.match(r"\d+\s*[,;:|=]", text):
        yield f"'{text}' separates numbers by more than blanks"
    elif text[0] in "[{" or text[-1] in "]}:":
        yield f"'{text}' is JSON or YAML"


def _problems(row: Row, before: list[Row]) -> Iterator[str]:
    if row.name.isdigit():
        yield f"'{row.name}' is no name"
    if row.colour is not None and max(row.colour) > 255:
        yield f"colour {row.colour} is beyond 255"
    if row.value > LARGEST:
        yield f"value {row.value} is beyond {LARGEST}"
    for other in before:
        if row.name == other.name and not row.ignored:
            yield f"'{row.name}' comes twice"
        if row.value == other.value:
            yield f"value {row.value} is that of '{other.name}'"
        if row.colour is not None and row.colour == other.colour:
            yield f"colour {row.colour} is that of '{other.name}'"


def labelled(rows: Sequence[Row], ignore: Iterable[int] = ()) -> Labels:
    """Number the classes that are not ignored, in the order of the rows."""
    ignored = set(ignore)
    values = dict.fromkeys([IGNORED, *ignored], IGNORED)
    colours: dict[int, int] = {}
    kept: list[Row] = []
    for row in rows:
        left_out = row.ignored or row.value in ignored
        label = IGNORED if left_out else len(kept)
        values[row.value] = label
        if row.colour is not None:
            colours[code_of(*row.colour)] = label
        kept += [row] * (not left_out)
    palette = tuple(row.colour for row in kept if row.colour is not None)
    return Labels(
        names=tuple(row.name for row in kept),
        values=values,
        colours=colours,
        palette=palette if len(palette) == len(kept) else None,
    )


def decode_mask(data: bytes, *, coloured: bool = False) -> RawMask:
    """Decode a whole mask file.

    Args:
        data: the file's content.
        coloured: colours are known: a colour picture that shows grey alone is one of colours then,
            and not one of values, and so is a picture with a palette.

    Raises:
        BadImageError: empty, not an image, truncated, compressed with losses, or of a kind that holds no labels.
    """
    if not data:
        raise BadImageError("empty file")
    try:
        file: Image.Image = open_picture(io.BytesIO(data))
        if lossy := _lossy(file, data):
            raise BadImageError(f"a {lossy}, whose compression changes labels; masks must be PNG")
        file.load()
    except UnidentifiedImageError as error:
        raise BadImageError("not an image") from error
    except BadImageError:
        raise
    except Exception as error:  # decoders raise anything at all on damaged bytes
        raise BadImageError(f"cannot be decoded: {error}") from error
    if file.mode in ("RGB", "RGBA"):
        return _of_colours(np.asarray(file)[..., :3], coloured)
    values, palette = _values(file, data), {}
    if file.mode in ("P", "PA"):
        colours = np.array(file.getpalette("RGB") or [], np.int32).reshape(-1, 3) @ [1 << 16, 1 << 8, 1]
        palette = {value: int(colours[value]) for value in np.unique(values).tolist() if value < len(colours)}
        if coloured and values.max() < len(colours):
            return RawMask(colours.astype(np.int32)[values], True, palette)
    return RawMask(values, False, palette)


def _lossy(file: Image.Image, data: bytes) -> str:
    """The kind of a picture whose pixels are not what was saved; empty: they are."""
    kind = file.format or ""
    if kind == "TIFF":
        return "TIFF with JPEG inside" if "jpeg" in str(file.info.get("compression")) else ""
    if kind == "WEBP":  # in a RIFF file the pictures are chunks named VP8L, without losses, or VP8
        return "" if re.match(rb"RIFF....WEBP(?:VP8L|VP8X.*VP8L)", data, re.DOTALL) else "WebP with losses"
    if kind == "JPEG2000":  # its coding style says which wavelet: 0 is the irreversible one
        style = data.find(b"\xff\x52")
        return "JPEG 2000 with losses" if style >= 0 and data[style + 13 : style + 14] == b"\0" else ""
    return kind if kind in ("JPEG", "MPO", "AVIF", "HEIF") else ""


def _of_colours(pixels: Pixels, coloured: bool) -> RawMask:
    red, green, blue = np.moveaxis(pixels, -1, 0)
    if not coloured and np.array_equal(red, green) and np.array_equal(red, blue):
        return RawMask(red.copy(), False)
    return RawMask((red.astype(np.int32) << 16) | (green.astype(np.int32) << 8) | blue, True)


def _values(file: Image.Image, data: bytes) -> Codes:
    if file.mode in ("1", "P", "PA", "L", "LA"):
        values = np.asarray(file).astype(np.uint8)
        return (values if values.ndim == 2 else values[..., 0].copy()) // _stretch(file, data)
    if not file.mode.startswith("I"):
        raise BadImageError(f"its pixels are of the kind {file.mode}, which holds no labels")
    wide = np.asarray(file).astype(np.int64)
    if wide.min() < 0 or wide.max() > LARGEST:
        raise BadImageError(f"values from {wide.min()} to {wide.max()}; labels are 0 to {LARGEST}")
    return wide.astype(np.int32)


def _stretch(file: Image.Image, data: bytes) -> int:
    """By how much Pillow multiplies values: those of grey PNGs of 2 or 4 bits become 0 to 255."""
    depth, kind = data[24:26]
    return {2: 85, 4: 17}.get(depth, 1) if file.format == "PNG" and kind == 0 else 1


def code_of(red: int, green: int, blue: int) -> int:
    """The number of a colour in ``Codes``."""
    return (red << 16) | (green << 8) | blue


def colour_of(code: int) -> Colour:
    """The colour of a number in ``Codes``."""
    return code >> 16, code >> 8 & 255, code & 255
