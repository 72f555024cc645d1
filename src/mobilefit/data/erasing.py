"""Random erasing (Zhong et al., 2017, arXiv:1708.04896), drawn for a whole epoch at once.

A rectangle of 2 to 33 % of the image, its height 0.3 to 3.3 times its width, becomes the mean colour
(torchvision) or noise (timm's ``pixel``). As in both, it is done to normalised values, where the mean
is zero and noise is standard normal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from mobilefit.errors import InputError, unknown

Fill = Literal["mean", "noise"]
AREA = (0.02, 1 / 3)
ASPECT = (0.3, 1 / 0.3)


@dataclass(frozen=True, kw_only=True)
class Erasing:
    """Which part of the images loses a rectangle, and what it becomes.

    Raises:
        InputError: a value is out of range.
    """

    probability: float = 0.0
    fill: Fill = "mean"

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise InputError(f"erasing is {self.probability}, must be from 0 to 1")
        if self.fill not in get_args(Fill):
            raise unknown("erasing_fill", self.fill, get_args(Fill))


@dataclass(frozen=True, kw_only=True)
class Erased:
    """One epoch's rectangles by position, all as parts of the image's sides."""

    chosen: npt.NDArray[np.bool_]
    height: npt.NDArray[np.float64]
    width: npt.NDArray[np.float64]
    top: npt.NDArray[np.float64]
    left: npt.NDArray[np.float64]
    noise: npt.NDArray[np.uint64] | None
    """A seed for each image; ``None``: the mean."""

    def apply(self, images: npt.NDArray[np.float32], first: int) -> None:
        """Erase in normalised images [n, c, h, w], which stand from ``first`` in the epoch; in place."""
        height, width = images.shape[2:]
        for index in np.flatnonzero(self.chosen[first : first + len(images)]):
            place = first + int(index)
            rows = max(1, min(height, round(self.height[place] * height)))
            columns = max(1, min(width, round(self.width[place] * width)))
            top = int(self.top[place] * (height - rows + 1))
            left = int(self.left[place] * (width - columns + 1))
            part = images[index, :, top : top + rows, left : left + columns]
            part[...] = 0 if self.noise is None else _noise(self.noise[place], part.shape)


def _noise(seed: np.uint64, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    return np.random.default_rng(int(seed)).standard_normal(shape, np.float32)


def draw(erasing: Erasing, count: int, random: np.random.Generator) -> Erased:
    """Draw rectangles for ``count`` images.

    A rectangle longer than the image is cut to it. (torchvision draws again, up to ten times.)
    """
    area = random.uniform(*AREA, count)
    aspect = np.exp(random.uniform(np.log(ASPECT[0]), np.log(ASPECT[1]), count))
    return Erased(
        chosen=random.random(count) < erasing.probability,
        height=np.minimum(1.0, np.sqrt(area * aspect)),
        width=np.minimum(1.0, np.sqrt(area / aspect)),
        top=random.random(count),
        left=random.random(count),
        noise=random.integers(0, 2**63, count, np.uint64) if erasing.fill == "noise" else None,
    )
