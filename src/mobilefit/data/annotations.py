"""What the annotation files of a data set with boxes hold, whatever their format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mobilefit.data.classification import SkippedFile

States = Literal["corners", "sides", "shares"]
"""What a format states of a box: corners in pixels, or left, top, width and height in pixels, or corners as
shares of the picture's width and height, 0 to 1."""
PARTS = ("train", "val", "test")

Corners = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One image's annotation, as a file has it."""

    part: str
    """One of ``PARTS``."""
    path: Path
    """Of the picture."""
    source: str
    """What to name a box by, before its id."""
    size: tuple[int, int] | None
    """Width and height that the annotation states; ``None``: it does not."""
    boxes: Sequence[Corners]
    """Whatever stands there; NaN for what is no number."""
    names: Sequence[str]
    """The class of each box."""
    crowd: Sequence[bool]
    ids: Sequence[object]
    """What to name each box by."""


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """What the annotation files of a data set hold; no picture was opened yet."""

    root: Path
    classes: tuple[str, ...]
    records: tuple[Record, ...]
    skipped: tuple[SkippedFile, ...] = ()
    """Annotations that cannot be used."""
    strays: tuple[str, ...] = ()
    """Boxes of images that their file does not list."""
    notes: tuple[str, ...] = ()
    """What is to be said of how the folder was read."""
    states: States = "corners"
    """What the numbers of the boxes were in the files; ``Record.boxes`` are corners in any case."""
