"""The class of each pixel as a file: a PNG of the picture's size, its values the classes from 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilefit.errors import InputError
from mobilefit.jobs.folder import made_empty
from mobilefit.jobs.frames import Frame
from mobilefit.palette import colours


class Masks:
    """Writes masks into a new or an empty folder: palette PNGs, which data sets with masks may hold too.

    Raises:
        InputError: the folder holds something, or cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = made_empty(folder, "--masks")

    def add(self, frame: Frame, mask: npt.NDArray[Any]) -> None:
        """Write the mask ``[h, w]`` of a frame; a video's frames have their numbers in the name.

        Raises:
            InputError: it cannot be written.
        """
        name = Path(frame.source).stem.replace(":", "_")
        path = self._free(name if frame.number is None else f"{name}_{frame.number:06d}")
        image = Image.fromarray(mask.astype(np.uint8))
        image.putpalette(np.asarray(colours(int(mask.max()) + 1), np.uint8).tobytes())
        try:
            image.save(path)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from error

    def _free(self, stem: str) -> Path:
        """A name that is not taken: images of different folders can have the same."""
        path, number = self._folder / f"{stem}.png", 1
        while path.exists():
            number += 1
            path = self._folder / f"{stem}-{number}.png"
        return path
