"""Pictures and videos with what a network saw in them: classes written underneath, boxes, masks."""

from __future__ import annotations

import base64
import functools
import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from mobilefit.data.detection import Boxes, DetectionSet
from mobilefit.data.masks import IGNORED, Mask
from mobilefit.data.segmentation import SegmentationSet
from mobilefit.errors import InputError
from mobilefit.jobs.folder import made_empty
from mobilefit.jobs.frames import CAMERA, Frame, Source, opencv
from mobilefit.palette import Colour, colours, hexadecimal, ink
from mobilefit.tasks.detect import DetectionEvaluation, Found
from mobilefit.tasks.metrics import SHOWN_SCORE, SegmentationScore, confusion_of, iou_of, matching

NARROWEST = 480
"""Pixels; a smaller picture is enlarged, or text would not fit."""
SMALLEST_TEXT = 20
PANEL, INK, BAR = "#1a2028", "#e7ebf0", "#0a7d74"


def captioned(picture: Image.Image, classes: Sequence[dict[str, Any]]) -> Image.Image:
    """The picture over a panel with a bar, a name and a share for each class.

    Both sides are even, as video codecs want them.
    """
    picture = _enlarged(picture)
    width = max(picture.width, NARROWEST)
    text = max(SMALLEST_TEXT, min(width, 2 * picture.height) // 28)
    row, pad = round(1.7 * text), text // 2
    height = picture.height + row * len(classes) + pad
    canvas = Image.new("RGB", (width + width % 2, height + height % 2), PANEL)
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    for i, found in enumerate(classes):
        top = picture.height + pad // 2 + i * row
        _row(draw, found, (pad, top, width - pad, top + row), text)
    return canvas


def _enlarged(picture: Image.Image) -> Image.Image:
    return picture if max(picture.size) >= NARROWEST else _with_longest(picture, NARROWEST)


def _with_longest(picture: Image.Image, side: int) -> Image.Image:
    """The picture with a long side of so many pixels."""
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC)


def _row(
    draw: ImageDraw.ImageDraw, found: dict[str, Any], box: tuple[int, int, int, int], text: int
) -> None:
    left, top, right, bottom = box
    font, pad = _font(text, _dejavu()), text // 2
    (name,), own = _written([found["class"]], text)
    share = f"{found['share']:.1%}"
    end = left + (right - left) * float(found["share"])
    if end >= left + 1:
        draw.rectangle((left, top + 2, end, bottom - 2), fill=BAR)
    middle, room = (top + bottom) // 2, right - left - 3 * pad - font.getlength(share)
    draw.text((left + pad, middle), _fitted(name, own, room), INK, own, anchor="lm")
    draw.text((right - pad, middle), share, INK, font, anchor="rm")


def _fitted(name: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    if font.getlength(name) <= room:
        return name
    while name and font.getlength(name + "…") > room:
        name = name[:-1]
    return name + "…"


def _written(names: Sequence[str], size: int) -> tuple[list[str], ImageFont.FreeTypeFont]:
    """Names as they are drawn, and a font for all; what no font of this machine has is escaped."""
    path = _font_with(frozenset("".join(names)))
    if path is not None:
        return list(names), _font(size, path)
    had = _letters(_dejavu())
    escaped = ["".join(c if ord(c) in had else c.encode("ascii", "backslashreplace").decode() for c in name) for name in names]
    return escaped, _font(size, _dejavu())


@functools.cache
def _font(size: int, path: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def _dejavu() -> str:
    import matplotlib  # its DejaVu Sans has Latin, Greek and Cyrillic; Pillow's own has Latin alone

    return str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")


@functools.cache
def _letters(path: str) -> frozenset[int]:
    """The characters that a font has; none if it cannot be drawn with."""
    from matplotlib.ft2font import FT2Font

    try:
        ImageFont.truetype(path, SMALLEST_TEXT)  # not with a font of coloured pictures of one size
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@functools.cache
def _font_with(letters: frozenset[str]) -> str | None:
    """A font that has all of these letters: DejaVu Sans, or one of this machine's."""
    from matplotlib import font_manager

    codes = {ord(letter) for letter in letters}
    if codes <= _letters(_dejavu()):
        return _dejavu()
    codes.update(map(ord, "0123456789.%…"))
    return next((path for path in sorted(font_manager.findSystemFonts()) if codes <= _letters(path)), None)


# ---- boxes

DASH = 4
"""Length of a dash, in widths of the line."""
LABEL_GAP = 3
"""Parts of the text's height around a label's text: a third."""

Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def draw_boxes(
    image: Image.Image, boxes: npt.ArrayLike, labels: Sequence[int] | npt.NDArray[Any],
    scores: Sequence[float] | npt.NDArray[Any] | None, classes: Sequence[str], *,
    dashed: Sequence[bool] | npt.NDArray[Any] | None = None,
) -> Image.Image:  # fmt: skip
    """The picture with boxes, each in its class's colour and with its name, the surest on top.

    A picture narrower than ``NARROWEST`` is enlarged. Lines and text grow with the picture; labels
    stay inside it and, where there is room, off each other. Both sides are even, as video codecs
    want them.

    Args:
        boxes: [m, 4]: left, top, right, bottom in pixels of ``image``.
        labels: [m], indices into ``classes``.
        scores: [m], written beside the names; ``None``: a truth, which has none.
        dashed: [m]: boxes that something is the matter with.
    """
    canvas = _even(_enlarged(image.convert("RGB")))
    draw, scale = ImageDraw.Draw(canvas), np.divide(canvas.size, image.size)
    corners = np.asarray(boxes, np.float64).reshape(-1, 4) * [*scale, *scale]
    corners = corners.clip(0, [canvas.width - 1, canvas.height - 1] * 2)
    width, text = max(2, round(sum(canvas.size) / 420)), max(13, min(canvas.size) // 30)
    palette, broken = colours(len(classes)), [False] * len(corners) if dashed is None else list(dashed)
    order = _drawing_order(corners, scores)
    for i in order:
        _outline(draw, tuple(corners[i]), palette[int(labels[i])], width, broken[i])
    taken: list[Rectangle] = []
    for i in reversed(order):  # the surest choose their places first
        name = classes[int(labels[i])] + ("" if scores is None else f" {float(scores[i]):.0%}")
        taken.append(_label(draw, canvas.size, tuple(corners[i]), name, palette[int(labels[i])], text, taken))
    return canvas


def _even(picture: Image.Image) -> Image.Image:
    """A copy with even sides, an odd one a row or a column longer."""
    return picture.resize((picture.width + picture.width % 2, picture.height + picture.height % 2))


def _drawing_order(corners: npt.NDArray[np.float64], scores: Any) -> list[int]:
    """The least sure first; without scores the largest."""
    key = -(corners[:, 2:] - corners[:, :2]).prod(1) if scores is None else np.asarray(scores)
    order: list[int] = np.argsort(key, kind="stable").tolist()
    return order


def _outline(
    draw: ImageDraw.ImageDraw, box: tuple[float, ...], colour: Colour, width: int, dashed: bool
) -> None:
    """A frame on a dark one, so that it is seen on any ground."""
    left, top, right, bottom = box
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=PANEL, width=width + 2)
    if not dashed:
        draw.rectangle((left, top, right, bottom), outline=colour, width=width)
        return
    for start, end in _sides(left, top, right, bottom, width):
        for piece in _dashes(start, end, DASH * width):
            draw.line(piece, fill=colour, width=width)


Point = tuple[float, float]


def _sides(left: float, top: float, right: float, bottom: float, width: int) -> Iterator[tuple[Point, Point]]:
    """The middle lines of a frame's four sides."""
    inset = width / 2
    left, top, right, bottom = left + inset, top + inset, right - inset, bottom - inset
    yield from itertools.pairwise([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)])


def _dashes(start: Point, end: Point, length: float) -> Iterator[tuple[Point, Point]]:
    """Dashes on a line, from its beginning, gaps as long as they are."""
    (x, y), (to_x, to_y) = start, end
    whole = max(abs(to_x - x), abs(to_y - y), 1e-6)
    for at in np.arange(0, whole, 2 * length):
        a, b = at / whole, min(at + length, whole) / whole
        yield (x + a * (to_x - x), y + a * (to_y - y)), (x + b * (to_x - x), y + b * (to_y - y))


def _label(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], box: tuple[float, ...], name: str, colour: Colour,
    text: int, taken: Sequence[Rectangle],
) -> Rectangle:  # fmt: skip
    """Write a name on its colour beside a box, and tell where."""
    gap = max(2, text // LABEL_GAP)
    (name,), font = _written([name], text)
    name = _fitted(name, font, size[0] - 2 * gap)
    across, down = font.getlength(name) + 2 * gap, text + gap
    small = across * down / max((box[2] - box[0]) * (box[3] - box[1]), 1)  # such a box would be hidden
    place = min(_places(box, across, down, size),
                key=lambda found: _covered(found, taken) + min(1, small) * _covered(found, [box]))  # fmt: skip
    draw.rectangle(place, fill=colour)
    draw.text((place[0] + gap, (place[1] + place[3]) / 2), name, ink(colour), font, anchor="lm")
    return place


def _places(box: tuple[float, ...], across: float, down: float, size: tuple[int, int]) -> Iterator[Rectangle]:
    """Where a label may stand: above the box, in it, under it, at either end; moved into the picture."""
    left, top, right, bottom = box
    for y, x in itertools.product((top - down, top, bottom, bottom - down), (left, right - across)):
        x, y = max(0.0, min(x, size[0] - across - 1)), max(0.0, min(y, size[1] - down - 1))
        yield x, y, x + across, y + down


def _covered(place: Rectangle, taken: Sequence[Sequence[float]]) -> float:
    """Square pixels of others under a place."""
    return sum(
        max(0.0, min(place[2], other[2]) - max(place[0], other[0]))
        * max(0.0, min(place[3], other[3]) - max(place[1], other[1]))
        for other in taken
    )


# ---- masks

OPACITY = 0.6
"""Of a class's colour over the picture, which is grey under it, so that colours are the legend's."""
UNLABELLED = "not labelled"
MOST_LISTED = 24
"""Classes up to which a legend has all, so that it is as high in every frame; above, those that are seen."""


def draw_mask(
    image: Image.Image, mask: npt.NDArray[Any], palette: Sequence[Colour] | None, classes: Sequence[str], *,
    legend: bool = True,
) -> Image.Image:  # fmt: skip
    """The picture in grey with a colour for each class, and a legend underneath.

    Both sides are even, as video codecs want them.

    Args:
        mask: [h, w] of any size: indices into ``classes``; ``IGNORED`` stays dark.
        palette: a colour for each class; ``None``: fixed ones that the colour-blind can tell apart.
        legend: whether to add it.
    """
    picture = _even(_enlarged(image.convert("RGB")))
    shades = np.zeros((256, 3), np.float32)
    shades[: len(classes)] = palette or colours(len(classes))
    fine = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(picture.size, Image.Resampling.NEAREST))
    grey = np.asarray(picture.convert("L"), np.float32)[..., None]
    drawn = (1 - OPACITY) * grey + OPACITY * shades[fine]
    drawn[_borders(fine)] *= 0.55
    canvas = Image.fromarray(drawn.astype(np.uint8))
    if not legend:
        return canvas
    seen = set(np.unique(fine).tolist())
    listed = [i for i in range(len(classes)) if len(classes) <= MOST_LISTED or i in seen]
    entries = [(classes[i], tuple(int(v) for v in shades[i])) for i in listed]
    return _with_legend(canvas, entries + [(UNLABELLED, (0, 0, 0))] * (IGNORED in seen))


def _borders(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """[h, w]: pixels whose right or lower neighbour has another label."""
    found = np.zeros(mask.shape, bool)
    found[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    found[:-1] |= mask[:-1] != mask[1:]
    return found


def _with_legend(picture: Image.Image, entries: Sequence[tuple[str, Any]]) -> Image.Image:
    """The picture over a panel with a swatch and a name for each entry, in rows."""
    text = max(13, min(picture.size) // 30)
    row, pad = round(1.7 * text), text // 2
    names, font = _written([name for name, _ in entries], text)
    fitted = [_fitted(name, font, picture.width - 4 * pad - text) for name in names]
    rows = _in_rows(zip(fitted, [colour for _, colour in entries], strict=True),
                    lambda name: font.getlength(name) + text + 4 * pad, picture.width - 2 * pad)  # fmt: skip
    height = picture.height + row * len(rows) + 2 * pad
    canvas = Image.new("RGB", (picture.width, height + height % 2), PANEL)
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(rows):
        middle = picture.height + pad + row * number + row // 2
        for x, name, colour in line:
            left = pad + x
            draw.rectangle((left, middle - text // 2, left + text, middle + text // 2), colour, INK)
            draw.text((left + text + pad, middle), name, INK, font, anchor="lm")
    return canvas


def _in_rows(
    entries: Iterable[tuple[str, Any]], width: Callable[[str], float], room: float
) -> list[list[tuple[float, str, Any]]]:
    """Entries with where they begin in their row."""
    rows: list[list[tuple[float, str, Any]]] = [[]]
    x = 0.0
    for name, colour in entries:
        if rows[-1] and x + width(name) > room:
            rows.append([])
            x = 0.0
        rows[-1].append((x, name, colour))
        x += width(name)
    return rows


# ---- truth beside prediction, for the report

SHOWN_IMAGES = 4
"""Of the worst ones, and of ones evenly spread over the set."""
REPORT_SIDE = 480
"""Long side in pixels of a picture in the report."""


def detection_pictures(images: DetectionSet, evaluation: DetectionEvaluation) -> dict[str, list[dict[str, Any]]]:
    """``record["final"]["pictures"]`` of a detector: ``worst``, with most missed and false boxes, and ``others``.

    Each is a mapping: ``index``, ``name``, ``found``, ``missed``, ``false`` (boxes), ``truth_jpeg`` and
    ``found_jpeg``, in which missed and false ones are dashed.
    """
    score = evaluation.score
    counts = {image.index: image for image in score.images}
    found = dict(zip(counts, evaluation.found, strict=True))

    def pictured(index: int) -> dict[str, Any]:
        image, truth = images.sample(index)
        one = counts[index]
        told = {"found": one.found, "missed": one.missed, "false": one.false}
        return {**_named(index, images.names), **told,
                **boxes_beside(image, truth, found[index], score.classes)}  # fmt: skip

    return _chosen(score.worst(SHOWN_IMAGES), len(images), pictured)


def segmentation_pictures(
    images: SegmentationSet, score: SegmentationScore, labels: Callable[[int], npt.NDArray[Any]],
    palette: Sequence[Colour] | None = None,
) -> dict[str, list[dict[str, Any]]]:  # fmt: skip
    """``record["final"]["pictures"]`` of a segmenter: ``worst``, of the lowest IoU, and ``others``.

    Each is a mapping: ``index``, ``name``, ``iou``, ``truth_jpeg``, ``found_jpeg``.

    Args:
        labels: the labels [h, w] found in the image at a place, of that image's size.
        palette: as in :func:`draw_mask`.
    """

    def pictured(index: int) -> dict[str, Any]:
        image, truth = images.sample(index)
        found = labels(index)
        iou = iou_of(confusion_of(found, truth, len(score.classes)))
        known = iou[~np.isnan(iou)]
        return {**_named(index, images.names), "iou": float(known.mean()) if len(known) else None,
                **masks_beside(image, truth, found, score.classes, palette)}  # fmt: skip

    return _chosen(score.worst(SHOWN_IMAGES), len(images), pictured)


def _named(index: int, names: Sequence[str]) -> dict[str, Any]:
    return {"index": index, "name": Path(names[index]).name}


def _chosen(
    worst: Sequence[int], count: int, pictured: Callable[[int], dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """The worst images, and others evenly spread over the set."""
    spread = np.linspace(0, count - 1, min(count, SHOWN_IMAGES)).round().astype(int).tolist()
    others = [index for index in spread if index not in worst]
    return {"worst": [pictured(i) for i in worst], "others": [pictured(i) for i in others]}


def boxes_beside(image: Image.Image, truth: Boxes, found: Found, classes: Sequence[str]) -> dict[str, str]:
    """Truth and detections of at least ``SHOWN_SCORE`` as JPEG in base64; missed and false ones are dashed."""
    small = _with_longest(image.convert("RGB"), REPORT_SIDE)
    scale = REPORT_SIDE / max(image.size)
    matched = matching(found.boxes, found.scores, found.labels, truth.boxes, truth.labels, truth.crowd)
    sure = found.scores >= SHOWN_SCORE
    right = draw_boxes(small, truth.boxes * scale, truth.labels, None, classes,
                       dashed=~matched.found & ~truth.crowd)  # fmt: skip
    shown = draw_boxes(small, found.boxes[sure] * scale, found.labels[sure], found.scores[sure], classes,
                       dashed=matched.false[sure])  # fmt: skip
    return {"truth_jpeg": jpeg(right), "found_jpeg": jpeg(shown)}


def masks_beside(
    image: Image.Image, truth: Mask, found: npt.NDArray[Any], classes: Sequence[str],
    palette: Sequence[Colour] | None = None,
) -> dict[str, str]:  # fmt: skip
    """Truth and prediction, [h, w] each, as JPEG in base64, without legends."""
    small = _with_longest(image.convert("RGB"), REPORT_SIDE)
    drawn = (draw_mask(small, mask, palette, classes, legend=False) for mask in (truth, found))
    return dict(zip(("truth_jpeg", "found_jpeg"), map(jpeg, drawn), strict=True))


def class_colours(classes: Sequence[str], palette: Sequence[Colour] | None = None) -> list[str]:
    """``record["final"]["colours"]``: what the classes are drawn in, ``#rrggbb`` each."""
    return [hexadecimal(colour) for colour in palette or colours(len(classes))]


def jpeg(picture: Image.Image) -> str:
    """A JPEG in base64."""
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=82)
    return base64.b64encode(file.getvalue()).decode()


# ---- files


class Drawings:
    """Writes pictures into a new or an empty folder: one a picture, one video a film.

    Raises:
        InputError: the folder holds something, or cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = made_empty(folder, "--draw")
        self._film: Any = None
        self._film_of: Source | None = None
        self._size = (0, 0)

    def add(self, source: Source, frame: Frame, classes: Sequence[dict[str, Any]]) -> None:
        """Write a frame with its classes.

        Raises:
            InputError: it cannot be written.
        """
        assert frame.picture is not None
        self.add_picture(source, frame, captioned(frame.picture, classes))

    def add_picture(self, source: Source, frame: Frame, picture: Image.Image) -> None:
        """Write what was drawn of a frame, its sides even.

        Raises:
            InputError: it cannot be written.
        """
        if source.moving:
            self._add_frame(source, frame, picture)
            return
        path = self._free(Path(frame.source).stem, ".jpg")
        try:
            picture.save(path, quality=92)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from error

    def _add_frame(self, source: Source, frame: Frame, picture: Image.Image) -> None:
        cv2 = opencv()
        if self._film_of is not source:
            self.close()
            camera = CAMERA.fullmatch(frame.source)
            name = f"camera_{camera[1]}" if camera else Path(frame.source).stem
            path = self._free(name, ".mp4")
            self._size = picture.size
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._film = cv2.VideoWriter(os.path.abspath(path), code, source.fps, self._size)
            self._film_of = source
            if not self._film.isOpened():
                raise InputError(f"cannot write {path}", "OpenCV has no MPEG-4 encoder here")
        if picture.size != self._size:  # a frame of another size would be dropped without a word
            picture = picture.resize(self._size)
        self._film.write(cv2.cvtColor(np.asarray(picture), cv2.COLOR_RGB2BGR))

    def _free(self, stem: str, suffix: str) -> Path:
        """A name that is not taken: images of different folders can have the same."""
        path, number = self._folder / f"{stem}{suffix}", 1
        while path.exists():
            number += 1
            path = self._folder / f"{stem}-{number}{suffix}"
        return path

    def close(self) -> None:
        """Finish the video that is being written."""
        if self._film is not None:
            self._film.release()
        self._film = self._film_of = None
