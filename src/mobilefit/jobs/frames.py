"""Where pictures come from: image files and folders, a video, a camera."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from mobilefit.data.decode import read_image
from mobilefit.data.folder import image_files
from mobilefit.data.layout import passed_over
from mobilefit.errors import InputError

if TYPE_CHECKING:
    import cv2

VIDEO_EXTENSIONS = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".3gp", ".ogv",
)  # fmt: skip
CAMERA = re.compile(r"camera:(\d+)")


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A picture of a source, or why there is none."""

    source: str
    picture: Image.Image | None = None
    """Upright, RGB."""
    problem: str | None = None
    number: int | None = None
    """Of a video's or a camera's frame, from 0; ``None`` for an image file."""
    seconds: float | None = None
    """Into the video, or since the camera began."""

    @property
    def name(self) -> str:
        """The file, with the time where it has one."""
        return self.source if self.seconds is None else f"{self.source} {self.seconds:.2f} s"


class Images:
    """Image files.

    Args:
        paths: files that exist.
        notes: what is to be said of files that are passed over.
    """

    moving, name, fps = False, "images", 0.0

    def __init__(self, paths: Sequence[Path], notes: Sequence[str] = ()) -> None:
        self._paths, self.notes = paths, notes
        self.count = len(paths)
        self.widest = max(len(str(path)) for path in paths)

    def __iter__(self) -> Iterator[Frame]:
        for path in self._paths:
            try:
                yield Frame(source=str(path), picture=read_image(path))
            except InputError as error:
                yield Frame(source=str(path), problem=error.message)


class Film:
    """Every N-th frame of a video file or a camera, opened at once.

    Args:
        path: the file, or ``camera:N``.
        every: N.

    Raises:
        InputError: OpenCV is not installed, or cannot open it.
    """

    moving = True
    notes: Sequence[str] = ()

    def __init__(self, path: Path, every: int) -> None:
        camera = CAMERA.fullmatch(str(path))
        self._cv2 = opencv()
        self.name, self._every, self._live = str(path), every, camera is not None
        # FFmpeg would take the relative path "file:b.mp4" for an address, and read b.mp4.
        self._capture: cv2.VideoCapture = self._cv2.VideoCapture(
            int(camera[1]) if camera else os.path.abspath(path)
        )
        # CV_IMAGES takes a name for the pattern of the names of other files: it would read those.
        if not self._capture.isOpened() or self._capture.getBackendName() == "CV_IMAGES":
            raise InputError(
                f"cannot open {path}" + ("" if camera else " as a video"),
                "is it connected, free, and yours to read?" if camera
                else "it is damaged, or of a format that OpenCV cannot read",
            )  # fmt: skip
        # A phone's video lies on its side and says so. Some versions turn it only when they are asked.
        self._capture.set(self._cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        rate = self._capture.get(self._cv2.CAP_PROP_FPS)
        self._rate = rate if 0 < rate < 1000 else 25.0
        # Some containers state none, or nonsense.
        self._stated = 0 if camera else max(0, int(self._capture.get(self._cv2.CAP_PROP_FRAME_COUNT)))
        self.count = -(-self._stated // every)
        self.fps = self._rate / every
        self.widest = len(self.name) + len(" 0000.00 s")

    def __iter__(self) -> Iterator[Frame]:
        began, number = time.monotonic(), 0
        try:
            while self._capture.grab():
                if number % self._every == 0:
                    seconds = time.monotonic() - began if self._live else number / self._rate
                    yield self._frame(number, seconds)
                number += 1
            # What a container states can be off by a few frames.
            if number < 0.98 * self._stated or self._live or not number:
                yield Frame(source=self.name, problem=self._ended(number), number=number)
        finally:
            self._capture.release()

    def _frame(self, number: int, seconds: float) -> Frame:
        known: dict[str, Any] = {"source": self.name, "number": number, "seconds": seconds}
        good, pixels = self._capture.retrieve()
        if not good or pixels is None:
            return Frame(**known, problem=f"cannot decode frame {number} of {self.name}")
        rgb = self._cv2.cvtColor(pixels, self._cv2.COLOR_BGR2RGB)
        return Frame(**known, picture=Image.fromarray(rgb))

    def _ended(self, number: int) -> str:
        if self._live:
            return f"{self.name} stopped after {number} frames"
        return f"{self.name} ended after {number} of the {self._stated} frames that it states"


Source = Images | Film


def sources(paths: Sequence[Path], every: int) -> list[Source]:
    """Find and open what was named; images that follow each other are one source.

    Raises:
        InputError: it is not there, cannot be opened, or is a folder without images.
    """
    found: list[list[Path] | Film] = []
    notes: list[str] = []
    for path in paths:
        if CAMERA.fullmatch(str(path)) or _video(path):
            found.append(Film(path, every))
        elif found and isinstance(found[-1], list):
            found[-1] += _images(path, notes)
        else:
            found.append(_images(path, notes))
    made: list[Source] = [Images(source) if isinstance(source, list) else source for source in found]
    made[0].notes = notes
    return made


def _video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_EXTENSIONS and path.is_file()


def _images(path: Path, notes: list[str]) -> list[Path]:
    if path.is_dir():
        others: list[str] = []
        if inside := image_files(path, others):
            notes += filter(None, [passed_over(path, others)])
            return inside
        films = [file.name for file in sorted(path.iterdir()) if _video(file)]
        hint = f"name a video itself: {path / films[0]}" if films else passed_over(path, others) or None
        raise InputError(f"no image in the folder {path}", hint)
    if not path.exists():
        raise InputError(f"no such image or folder: {path}", "a camera is camera:0")
    return [path]


def opencv() -> Any:
    """The module ``cv2``, silenced: what goes wrong is ours to say, in one line.

    Raises:
        InputError: it is not installed.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            "videos and cameras need OpenCV", "pip install 'mobilefit[video]'"
        ) from error
    return cv2
