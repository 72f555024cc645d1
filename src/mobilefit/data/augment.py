"""Random crops, flips and colours for training, drawn for a whole epoch at once.

Everything random is drawn by position in the epoch before the first image is touched, so that a
batch depends on (seed, epoch, position) alone and a resumed run sees what it would have seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mobilefit.data import erasing as erase
from mobilefit.data.decode import Box, Pixels
from mobilefit.data.erasing import Erased, Erasing
from mobilefit.data.policy import policy
from mobilefit.errors import InputError

Range = tuple[float, float]
_GREY = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R BT.601, as Pillow and TensorFlow weigh them."""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What training varies in an image.

    Raises:
        InputError: a range is empty or out of bounds.
    """

    area: Range
    """The crop's part of the image's area, drawn evenly."""
    aspect: Range = (3 / 4, 4 / 3)
    """The crop's width by its height, drawn evenly in its logarithm."""
    flip: bool = True
    """Mirror half of the images left to right."""
    brightness: float = 0.0
    """Largest change added to all values, on the scale of 0 to 1."""
    saturation: Range = (1.0, 1.0)
    """Factor on the difference from grey; no effect on grey images."""
    policy: str = "none"
    """What else is done to an image, by lot: a name that :func:`mobilefit.data.policy.policy` knows."""
    erasing: float = 0.0
    """Share of the images with a part erased."""
    erasing_fill: Literal["mean", "noise"] = "mean"

    def __post_init__(self) -> None:
        problems = []
        policy(self.policy)
        Erasing(probability=self.erasing, fill=self.erasing_fill)
        if not 0 < self.area[0] <= self.area[1] <= 1:
            problems.append(f"area {self.area} must be a range within (0, 1]")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            problems.append(f"aspect {self.aspect} must be a range above 0")
        if not 0 <= self.brightness <= 1:
            problems.append(f"brightness {self.brightness} must be in [0, 1]")
        if not 0 <= self.saturation[0] <= self.saturation[1]:
            problems.append(f"saturation {self.saturation} must be a range from 0 up")
        if problems:
            raise InputError("bad augmentation: " + "; ".join(problems))


INCEPTION = Augment(area=(0.08, 1.0), brightness=32 / 255, saturation=(0.5, 1.5))
"""The paper's training preprocessing: TF-slim's ``inception_preprocessing.py`` in its fast mode,
with the crop range of the MnasNet code, (0.08, 1), for slim's (0.05, 1) with its object boxes."""

LIGHT = Augment(area=(0.6, 1.0), aspect=(0.9, 1.1))
"""For short trainings: most of the image stays in sight."""

MILD = Augment(area=(0.8, 1.0), aspect=(0.95, 1.05), flip=False)
"""For tiny images, where a crop is a loss, and where mirrored often means something else: digits,
shoes that all point one way."""

RESIZED = Augment(area=(0.08, 1.0))
"""A random part and a mirror alone: what torchvision's and timm's scripts begin with."""

PHOTO = Augment(area=(0.25, 1.0), brightness=0.12, saturation=(0.6, 1.4))
"""For a dozen passes over photos from pretrained weights: between :data:`LIGHT` and Inception's."""

AUGMENTS = {"inception": INCEPTION, "resized": RESIZED, "photo": PHOTO, "light": LIGHT,
            "mild": MILD, "none": None}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Draws:
    """One epoch's random numbers, [n] each, by position."""

    area: npt.NDArray[np.float64]
    aspect: npt.NDArray[np.float64]
    left: npt.NDArray[np.float64]
    top: npt.NDArray[np.float64]
    flip: npt.NDArray[np.bool_]
    brightness: npt.NDArray[np.float32]
    saturation: npt.NDArray[np.float32]
    erased: Erased | None

    @property
    def recolours(self) -> bool:
        """Whether any colour changes: if not, the pixels need not become floats."""
        return bool(self.brightness.any() or (self.saturation != 1).any())

    def box(self, position: int, size: tuple[int, int]) -> Box:
        """The crop of an image of this width and height: (left, top, right, bottom)."""
        width, height = size
        area = self.area[position] * width * height
        # A side longer than the image is cut to it. (torchvision draws again, up to ten times.)
        crop_width = min(max(1.0, (area * self.aspect[position]) ** 0.5), width)
        crop_height = min(max(1.0, (area / self.aspect[position]) ** 0.5), height)
        left = self.left[position] * (width - crop_width)
        top = self.top[position] * (height - crop_height)
        return left, top, left + crop_width, top + crop_height


def draw(augment: Augment, count: int, random: np.random.Generator) -> Draws:
    """Draw everything for ``count`` images."""
    low, high = np.log(augment.aspect)
    return Draws(
        area=random.uniform(*augment.area, count),
        aspect=np.exp(random.uniform(low, high, count)),
        left=random.random(count),
        top=random.random(count),
        flip=(random.random(count) < 0.5) & augment.flip,
        brightness=(random.uniform(-1, 1, count) * augment.brightness).astype(np.float32),
        saturation=random.uniform(*augment.saturation, count).astype(np.float32),
        erased=erase.draw(Erasing(probability=augment.erasing, fill=augment.erasing_fill), count, random)
        if augment.erasing else None,
    )  # fmt: skip


def mirrored(pixels: Pixels, flip: npt.NDArray[np.bool_]) -> Pixels:
    """Mirror the images [n, h, w, c] where ``flip`` [n] says so, in place."""
    pixels[flip] = pixels[flip, :, ::-1]
    return pixels


def recoloured(
    values: npt.NDArray[np.float32],
    brightness: npt.NDArray[np.float32],
    saturation: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """Change brightness and saturation [n] of values of 0 to 255 [n, c, h, w], in place.

    Slim draws the order of the two; since grey takes the brightness along and values are cut once,
    at the end, the order makes no difference here.
    """
    if values.shape[1] == 3:
        factor = saturation[:, None, None, None]
        grey = (values.transpose(0, 2, 3, 1) @ _GREY) * (1 - factor[..., 0])
        values *= factor
        for channel in range(3):  # numpy would add three values at a time
            values[:, channel] += grey
    values += 255 * brightness[:, None, None, None]
    return np.clip(values, 0, 255, out=values)
