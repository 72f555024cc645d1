"""Pictures and videos with what a network saw in them written underneath."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mobilefit.errors import InputError
from mobilefit.jobs.frames import CAMERA, Frame, Source, opencv

NARROWEST = 480
"""Pixels; a smaller picture is enlarged, or text would not fit."""
SMALLEST_TEXT = 20
PANEL, INK, BAR = "#1a2028", "#e7ebf0", "#0a7d74"


def captioned(picture: Image.Image, classes: Sequence[dict[str, Any]]) -> Image.Image:
    """The picture over a panel with a bar, a name and a share for each class.

    Both sides are even, as video codecs want them.
    """
    if max(picture.size) < NARROWEST:
        scale = NARROWEST / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
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


def _row(
    draw: ImageDraw.ImageDraw, found: dict[str, Any], box: tuple[int, int, int, int], text: int
) -> None:
    left, top, right, bottom = box
    font, pad = _font(text), text // 2
    share = f"{found['share']:.1%}"
    end = left + (right - left) * float(found["share"])
    if end >= left + 1:
        draw.rectangle((left, top + 2, end, bottom - 2), fill=BAR)
    middle, room = (top + bottom) // 2, right - left - 3 * pad - font.getlength(share)
    draw.text((left + pad, middle), _fitted(found["class"], font, room), INK, font, anchor="lm")
    draw.text((right - pad, middle), share, INK, font, anchor="rm")


def _fitted(name: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    if font.getlength(name) <= room:
        return name
    while name and font.getlength(name + "…") > room:
        name = name[:-1]
    return name + "…"


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # its DejaVu Sans has Latin, Greek and Cyrillic; Pillow's own has Latin alone

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)


class Drawings:
    """Writes pictures into a new or an empty folder: one a picture, one video a film.

    Raises:
        InputError: the folder holds something, or cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            taken = any(folder.iterdir())
        except OSError as error:
            raise InputError(f"cannot write to {folder}: {error.strerror}") from error
        if taken:  # it could be the very folder that the images are in
            raise InputError(f"the folder {folder} is not empty", "choose another --draw")
        self._folder = folder
        self._film: Any = None
        self._film_of: Source | None = None
        self._size = (0, 0)

    def add(self, source: Source, frame: Frame, classes: Sequence[dict[str, Any]]) -> None:
        """Write a frame with its classes.

        Raises:
            InputError: it cannot be written.
        """
        assert frame.picture is not None
        picture = captioned(frame.picture, classes)
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
            self._film = cv2.VideoWriter(str(path), code, source.fps, self._size)
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
