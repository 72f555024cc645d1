"""What training varies in an image and its mask, both on one grid.

Scale 1 is what evaluation sees: the whole image brought to the preset's shape. At another scale the
whole image is that many times larger, and a part of the preset's shape is cut from it; what lies
beyond a smaller image is the mean colour in the image and ``IGNORED`` in the mask. Scaling, cutting and
resizing are one step from the original pixels: bilinear and antialiased for the image, the nearest
label for the mask. All random numbers come from the generator given, always as many of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from mobilefit.data.decode import Box, Pixels, resample
from mobilefit.data.masks import IGNORED, Mask
from mobilefit.data.preset import Preset
from mobilefit.errors import InputError, unknown

Range = tuple[float, float]

_GREY = (0.299, 0.587, 0.114)
"""ITU-R BT.601, as Pillow and TensorFlow weigh red, green and blue."""


@dataclass(frozen=True, kw_only=True)
class SegmentationAugment:
    """What training varies in an image and its mask.

    Raises:
        InputError: a range is empty or out of bounds; all problems in one message.
    """

    scale: Range = (0.5, 2.0)
    """How many times larger than the preset's shape the whole image becomes, drawn evenly."""
    scale_step: float | None = None
    """The scales drawn are this far apart; ``None``: any in the range."""
    crop: tuple[int, int] | None = None
    """Height and width of what is cut from it, in pixels; ``None``: the preset's shape. (DeepLab trains
    Cityscapes on 769x769 of 1024x2048: the network is convolutional.)"""
    flip: bool = True
    """Mirror half of the images left to right."""
    brightness: float = 0.0
    """Largest change added to all values, on the scale of 0 to 1."""
    saturation: Range = (1.0, 1.0)
    """Factor on the difference from grey."""

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.scale[0] <= self.scale[1] < float("inf"):
            problems.append(f"scale {self.scale} must be a range above 0")
        if self.scale_step is not None and not self.scale_step > 0:
            problems.append(f"scale_step is {self.scale_step}, must be above 0")
        if self.crop is not None and min(self.crop) < 1:
            problems.append(f"crop {self.crop} must be a height and a width of 1 or more")
        if not 0 <= self.brightness <= 1:
            problems.append(f"brightness {self.brightness} must be in [0, 1]")
        if not 0 <= self.saturation[0] <= self.saturation[1] < float("inf"):
            problems.append(f"saturation {self.saturation} must be a range from 0 up")
        if problems:
            raise InputError("bad augmentation: " + "; ".join(problems))


DEEPLAB = SegmentationAugment(scale_step=0.25)
"""DeepLab's released code (``input_preprocess.py``, flags of its training script): scales 0.5 to 2 in
steps of 0.25, a random crop, padded below and to the right with the mean pixel, and a mirror."""

LIGHT = SegmentationAugment(scale=(0.75, 1.25))
"""For short trainings: most of the image stays in sight."""

PHOTO = SegmentationAugment(brightness=0.12, saturation=(0.6, 1.4))
"""For many passes over few images: any scale, and mild colours."""

SEGMENTATION_AUGMENTS = {"deeplab": DEEPLAB, "light": LIGHT, "photo": PHOTO, "none": None}


def segmentation_augment(name: str) -> SegmentationAugment | None:
    """The augmentation of this name; ``None`` for "none".

    Raises:
        InputError: there is none; the nearest name is suggested.
    """
    if name not in SEGMENTATION_AUGMENTS:
        raise unknown("augment", name, SEGMENTATION_AUGMENTS)
    return SEGMENTATION_AUGMENTS[name]


class Drawn(NamedTuple):
    """One image's random numbers."""

    scale: float
    left: float
    """Where the crop begins, from 0 to 1 of the places there are; so ``top``."""
    top: float
    flip: bool
    brightness: float
    """Added to all values, on the scale of 0 to 1."""
    saturation: float


def draw(augment: SegmentationAugment, random: np.random.Generator) -> Drawn:
    """Draw what happens to an image: six numbers, whatever the augmentation."""
    scale, left, top, flip, brightness, saturation = random.random(6).tolist()
    low, high = augment.saturation
    return Drawn(
        scale=_scale(augment, scale),
        left=left,
        top=top,
        flip=augment.flip and flip < 0.5,
        brightness=augment.brightness * (2 * brightness - 1),
        saturation=low + (high - low) * saturation,
    )


def _scale(augment: SegmentationAugment, place: float) -> float:
    low, high = augment.scale
    if augment.scale_step is None:
        return low + (high - low) * place
    count = int((high - low) / augment.scale_step + 1 + 1e-9)
    return float(np.linspace(low, high, count)[int(place * count)])


def train_sample(
    image: Image.Image,
    truth: Mask,
    preset: Preset,
    augment: SegmentationAugment | None,
    random: np.random.Generator,
) -> tuple[Pixels, Mask]:
    """An image and its mask as training sees them.

    Args:
        image: RGB.
        truth: uint8 [h, w], of the image's own size.
        augment: ``None``: the whole image, as in evaluation.

    Returns:
        uint8 [h, w, 3] and uint8 [h, w] of the preset's shape, or of ``augment.crop``.
    """
    assert preset.fit == "stretch" and truth.shape == image.size[::-1]
    if augment is None:
        pixels, truth = eval_sample(image, truth, preset)
        return pixels, nearest(truth, (0, 0, *image.size), *preset.shape)
    drawn, shape = draw(augment, random), augment.crop or preset.shape
    box, height, width = _cut(image.size, preset.shape, shape, drawn)
    pixels = _recoloured(resample(image, box, height, width), drawn)
    mask = nearest(truth, box, height, width)
    if (height, width) != shape:
        pixels, mask = _padded(pixels, shape, _mean(preset)), _padded(mask, shape, IGNORED)
    if drawn.flip:
        pixels, mask = pixels[:, ::-1], mask[:, ::-1]
    return np.ascontiguousarray(pixels), np.ascontiguousarray(mask)


def eval_sample(image: Image.Image, truth: Mask, preset: Preset) -> tuple[Pixels, Mask]:
    """An image and its mask as evaluation sees them.

    The image is brought to the preset's shape, the mask stays as it is: IoU is counted on the pixels
    that were labelled, as DeepLab, Cityscapes and Pascal VOC count it, so the logits are to be resized
    to the mask, not the other way round.

    Args:
        image: RGB.
        truth: uint8 [h, w], of the image's own size.

    Returns:
        uint8 [height, width, 3] of the preset's shape, and the mask given.
    """
    assert preset.fit == "stretch" and truth.shape == image.size[::-1]
    return resample(image, (0, 0, *image.size), *preset.shape), truth


def collate(truths: Sequence[Mask]) -> torch.Tensor:
    """The masks of a training batch: int64 [n, h, w]."""
    return torch.from_numpy(np.stack(truths).astype(np.int64))


def nearest(mask: Mask, box: Box, height: int, width: int) -> Mask:
    """Bring ``box`` of a mask to uint8 [height, width], each pixel the label at its centre.

    The centres are those that :func:`mobilefit.data.decode.resample` weighs an image around.
    """
    left, top, right, bottom = box
    rows = _centres(top, bottom, height, mask.shape[0])
    columns = _centres(left, right, width, mask.shape[1])
    return mask[rows[:, None], columns]


def _centres(begin: float, end: float, count: int, size: int) -> npt.NDArray[np.int64]:
    places = begin + (np.arange(count) + 0.5) * ((end - begin) / count)
    return np.minimum(places.astype(np.int64), size - 1)


def _cut(
    size: tuple[int, int], shape: tuple[int, int], crop: tuple[int, int], drawn: Drawn
) -> tuple[Box, int, int]:
    """The part of an image of this width and height that is seen, and its height and width then."""
    top, bottom, height = _along(size[1], shape[0], crop[0], drawn.scale, drawn.top)
    left, right, width = _along(size[0], shape[1], crop[1], drawn.scale, drawn.left)
    return (left, top, right, bottom), height, width


def _along(size: int, shape: int, crop: int, scale: float, place: float) -> tuple[float, float, int]:
    """Along one axis: where the part begins and ends in the image, and how many pixels it becomes."""
    scaled = max(1, round(shape * scale))
    count = min(scaled, crop)
    first = int(place * (scaled - count + 1))
    return first * size / scaled, min((first + count) * size / scaled, float(size)), count


def _recoloured(pixels: Pixels, drawn: Drawn) -> Pixels:
    """Saturation and brightness in one step, so that values are cut to 0..255 once."""
    if drawn.saturation == 1 and drawn.brightness == 0:
        return pixels
    grey = [(1 - drawn.saturation) * part for part in _GREY]
    rows = []
    for channel in range(3):
        row = [*grey, 255 * drawn.brightness]
        row[channel] += drawn.saturation
        rows += row
    return np.asarray(Image.fromarray(pixels).convert("RGB", matrix=tuple(rows)))


def _padded(array: Pixels, shape: tuple[int, int], fill: int | Pixels) -> Pixels:
    """The array [h, w, ...] above and to the left in one of this shape."""
    whole = np.empty((*shape, *array.shape[2:]), np.uint8)
    whole[...] = fill
    whole[: array.shape[0], : array.shape[1]] = array
    return whole


def _mean(preset: Preset) -> Pixels:
    return np.array([round(255 * part) for part in preset.mean], np.uint8)
