"""What training varies in an image with boxes, and how both come to the network's input.

Whatever moves an image, zoom, crop or scale, only chooses the rectangle of it that is seen; that is then
brought to the network's shape in one resampling, and the colours are changed in the small result. The
rectangle may reach beyond the image: what is there has the preset's mean colour, as in SSD. A
box stays where its centre is seen (SSD, section 2.2) and is cut to what is seen of it.

The crop and the zoom are those of SSD (Liu et al., 2016, arXiv:1512.02325) as torchvision has them in
``RandomIoUCrop`` and ``RandomZoomOut``, numbers and rounding alike, but drawn from the generator given:
torchvision draws from torch's global one, which threads share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageEnhance

from mobilefit.data.augment import Range
from mobilefit.data.decode import Box, Pixels, resample
from mobilefit.data.detection import Boxes
from mobilefit.data.preset import Preset
from mobilefit.errors import InputError, unknown

MIN_JACCARD = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
"""What an SSD crop must overlap some box by, drawn for each image; 1.0: the image stays whole."""
CROP_TRIALS = 40
"""Crops tried before another overlap is drawn."""
CROP_SCALE = (0.3, 1.0)
"""Each side of an SSD crop by the image's."""
CROP_ASPECT = (0.5, 2.0)
"""Width by height of an SSD crop in pixels."""
ZOOM = (1.0, 4.0)
"""Sides of the canvas that an image is laid on, by its own."""
LEAST_SIDE = 1.0
"""Pixels of the network's input: what is left of a box in training has at least so many each way."""


@dataclass(frozen=True, kw_only=True)
class DetectionAugment:
    """What training varies in an image. The defaults vary nothing.

    Raises:
        InputError: a value is out of range; all problems in one message.
    """

    flip: bool = False
    """Mirror half of the images left to right."""
    flip_vertical: bool = False
    """Mirror half of them top to bottom too: for pictures without an up, of microscopes or from above."""
    zoom_out: float = 0.0
    """Share of the images laid on a canvas of 1 to 4 times their sides."""
    iou_crop: bool = False
    """SSD's crop, which overlaps some box by an amount drawn from ``MIN_JACCARD``."""
    scale: Range = (1.0, 1.0)
    """Factor on the image's size, drawn evenly; then a part as large as the image was is seen, anywhere."""
    colours: float = 0.0
    """Probability of each of the following, drawn one by one."""
    brightness: Range = (1.0, 1.0)
    """Factor on all values."""
    contrast: Range = (1.0, 1.0)
    """Factor on the difference from the mean grey of what is seen."""
    saturation: Range = (1.0, 1.0)
    """Factor on the difference from grey."""
    hue: Range = (0.0, 0.0)
    """Turn of the hue, in full turns."""
    swap_channels: bool = False
    """Red, green and blue in any order."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value}, must be from 0 to 1"
            for name, value in (("zoom_out", self.zoom_out), ("colours", self.colours))
            if not 0 <= value <= 1
        ]
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            problems.append(f"scale {self.scale} must be a range above 0")
        for name in ("brightness", "contrast", "saturation"):
            low, high = getattr(self, name)
            if not 0 <= low <= high < math.inf:
                problems.append(f"{name} {(low, high)} must be a range from 0 up")
        if not -0.5 <= self.hue[0] <= self.hue[1] <= 0.5:
            problems.append(f"hue {self.hue} must be a range within (-0.5, 0.5)")
        if problems:
            raise InputError("bad augmentation: " + "; ".join(problems))


SSD = DetectionAugment(
    flip=True, zoom_out=0.5, iou_crop=True, colours=0.5, brightness=(0.875, 1.125), contrast=(0.5, 1.5),
    saturation=(0.5, 1.5), hue=(-0.05, 0.05), swap_channels=True,
)  # fmt: skip
"""torchvision's ``ssd`` (``references/detection/presets.py``): colours, zoom out, crop, mirror."""

SSDLITE = DetectionAugment(flip=True, iou_crop=True)
"""torchvision's ``ssdlite``: crop and mirror. TensorFlow's ``ssd_random_crop``, which the paper's released
configurations name, follows the same section of SSD, but asks for a covered part of a box where this asks
for an IoU, and keeps boxes by their covered part, not by their centre."""

FLIP = DetectionAugment(flip=True)
"""torchvision's ``hflip``."""

PHOTO = DetectionAugment(
    flip=True, scale=(0.5, 1.5), colours=0.5, brightness=(0.875, 1.125), contrast=(0.8, 1.2),
    saturation=(0.7, 1.3), hue=(-0.02, 0.02),
)  # fmt: skip
"""For many passes over few photos: scale jitter, as in torchvision's ``lsj`` but milder, and mild colours."""

OVERHEAD = DetectionAugment(
    flip=True, flip_vertical=True, scale=(0.5, 1.5), colours=0.5, brightness=(0.875, 1.125), contrast=(0.8, 1.2),
    saturation=(0.7, 1.3), hue=(-0.02, 0.02),
)  # fmt: skip
""":data:`PHOTO` for pictures without an up: of microscopes, from the air."""

DETECTION_AUGMENTS = {"ssd": SSD, "ssdlite": SSDLITE, "photo": PHOTO, "overhead": OVERHEAD, "flip": FLIP,
                      "none": None}  # fmt: skip


def detection_augment(name: str) -> DetectionAugment | None:
    """The augmentation of this name; ``None`` for "none".

    Raises:
        InputError: there is none; the nearest name is suggested.
    """
    if name not in DETECTION_AUGMENTS:
        raise unknown("augment", name, DETECTION_AUGMENTS)
    return DETECTION_AUGMENTS[name]


def train_sample(
    image: Image.Image,
    truth: Boxes,
    preset: Preset,
    augment: DetectionAugment | None,
    random: np.random.Generator,
) -> tuple[Pixels, Boxes]:
    """An image and its boxes as training sees them.

    Args:
        image: RGB.
        truth: in pixels of the image.
        augment: ``None``: the whole image, as in evaluation.
        random: what is drawn for this image comes from it alone.

    Returns:
        uint8 [height, width, 3] of the preset's shape, and the boxes in its pixels.
    """
    assert preset.fit == "stretch"
    augment = augment or DetectionAugment()
    box = view(augment, image.size, truth, random)
    pixels = _shown(image, box, preset, draw_colours(augment, random))
    seen = seen_boxes(truth, box, preset.shape)
    across, down = (random.random(2) < 0.5).tolist()
    return mirrored(pixels, seen, augment.flip and across, augment.flip_vertical and down)


def eval_sample(image: Image.Image, truth: Boxes, preset: Preset) -> tuple[Pixels, Boxes]:
    """An image and its boxes as evaluation sees them: uint8 [height, width, 3], all boxes in its pixels."""
    assert preset.fit == "stretch"
    height, width = preset.shape
    pixels = resample(image, (0, 0, *image.size), height, width)
    return pixels, truth.scaled(width / image.width, height / image.height)


def collate(truths: Sequence[Boxes], shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The boxes of a training batch, without crowds.

    Args:
        truths: in pixels of the network's input.
        shape: height and width of that.

    Returns:
        float32 [n, most, 4], left, top, right, bottom as parts of the input's sides, and int64 [n, most],
        the labels, -1 where there is none; ``most`` is the largest number of boxes, at least 1.
    """
    known = [truth.chosen(~truth.crowd) for truth in truths]
    most = max([1, *map(len, known)])
    boxes = np.zeros((len(known), most, 4), np.float32)
    labels = np.full((len(known), most), -1, np.int64)
    for place, truth in enumerate(known):
        boxes[place, : len(truth)] = truth.scaled(1 / shape[1], 1 / shape[0]).boxes
        labels[place, : len(truth)] = truth.labels
    return torch.from_numpy(boxes), torch.from_numpy(labels)


def view(
    augment: DetectionAugment, size: tuple[int, int], truth: Boxes, random: np.random.Generator
) -> Box:
    """Draw what is seen of an image of this width and height: left, top, right, bottom in its pixels."""
    box: Box = (0.0, 0.0, float(size[0]), float(size[1]))
    if augment.zoom_out and random.random() < augment.zoom_out:
        box = zoomed_out(size, random)
    if augment.iou_crop:
        box = cropped(box, truth.boxes[~truth.crowd].astype(np.float64), random)
    if augment.scale != (1.0, 1.0):
        box = _rescaled(box, augment.scale, random)
    return box


def zoomed_out(size: tuple[int, int], random: np.random.Generator) -> Box:
    """A canvas around an image, as ``torchvision.transforms.v2.RandomZoomOut`` draws it."""
    low, high = ZOOM
    factor = low + random.random() * (high - low)
    width, height = (int(side * factor) for side in size)
    across, down = random.random(2).tolist()
    left, top = int((width - size[0]) * across), int((height - size[1]) * down)
    return float(-left), float(-top), float(width - left), float(height - top)


def cropped(box: Box, boxes: npt.NDArray[np.float64], random: np.random.Generator) -> Box:
    """A part of the view, as ``torchvision.transforms.v2.RandomIoUCrop`` draws it.

    A draw of an overlap is followed by up to ``CROP_TRIALS`` crops, the first of which is taken that has a
    side ratio within ``CROP_ASPECT`` and overlaps a box in it by so much. The trials are drawn
    and judged all at once.

    Args:
        box: the view.
        boxes: float64 [m, 4] in the same pixels.
    """
    if not len(boxes):
        return box  # no crop holds a box: torchvision too draws on until the image stays whole
    while True:
        overlap = MIN_JACCARD[int(random.integers(len(MIN_JACCARD)))]
        if overlap >= 1:
            return box
        trials, fit = _crops(box, random.random((CROP_TRIALS, 4)))
        good = np.flatnonzero(fit & (_best_overlap(trials, boxes) >= overlap))
        if len(good):
            left, top, right, bottom = trials[good[0]].tolist()
            return left, top, right, bottom


def _crops(
    box: Box, drawn: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Crops [n, 4] of the view from random numbers [n, 4], and which have a good ratio of their sides."""
    corner, sides = np.array(box[:2]), np.array([box[2] - box[0], box[3] - box[1]])
    low, high = CROP_SCALE
    cut = np.floor(sides * (low + (high - low) * drawn[:, :2]))
    begin = corner + np.floor((sides - cut) * drawn[:, 2:])
    aspect = cut[:, 0] / np.maximum(cut[:, 1], 1)
    fit = (aspect >= CROP_ASPECT[0]) & (aspect <= CROP_ASPECT[1]) & (cut.min(1) >= 1)
    return np.concatenate([begin, begin + cut], 1), fit


def _best_overlap(
    crops: npt.NDArray[np.float64], boxes: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The largest IoU of each crop [n, 4] with a box [m, 4] whose centre it holds; -1: it holds none."""
    centres, crops = (boxes[:, :2] + boxes[:, 2:]) / 2, crops[:, None]
    common = np.minimum(crops[..., 2:], boxes[:, 2:]) - np.maximum(crops[..., :2], boxes[:, :2])
    shared = np.maximum(common, 0).prod(-1)
    areas = (crops[..., 2:] - crops[..., :2]).prod(-1) + (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    inside = ((crops[..., :2] < centres) & (centres < crops[..., 2:])).all(-1)
    best: npt.NDArray[np.float64] = np.where(inside, shared / (areas - shared), -1.0).max(1)
    return best


def _rescaled(box: Box, scale: Range, random: np.random.Generator) -> Box:
    """A part of the view where the image grows, more than all of it where it shrinks, anywhere."""
    factor, across, down = random.random(3).tolist()
    factor = scale[0] + (scale[1] - scale[0]) * factor
    sides = box[2] - box[0], box[3] - box[1]
    width, height = (side / factor for side in sides)
    left, top = box[0] + (sides[0] - width) * across, box[1] + (sides[1] - height) * down
    return left, top, left + width, top + height


def seen_boxes(truth: Boxes, box: Box, shape: tuple[int, int]) -> Boxes:
    """The boxes in a view that is brought to this height and width: those whose centre is in it."""
    corner = np.array(box[:2] * 2, np.float64)
    sides = np.array([box[2] - box[0], box[3] - box[1]])
    moved = truth.boxes.astype(np.float64) - corner
    centres = (moved[:, :2] + moved[:, 2:]) / 2
    limits = np.array(shape[::-1] * 2, np.float64)
    placed = np.clip(moved * (limits / np.concatenate([sides, sides])), 0, limits)
    large = (placed[:, 2:] - placed[:, :2]).min(1, initial=np.inf) >= LEAST_SIDE
    inside = np.logical_and.reduce((centres > 0) & (centres < sides), axis=1)
    seen = Boxes(boxes=placed.astype(np.float32), labels=truth.labels, crowd=truth.crowd)
    return seen.chosen(inside & large)


def mirrored(pixels: Pixels, truth: Boxes, across: bool, down: bool) -> tuple[Pixels, Boxes]:
    """Pixels and their boxes, mirrored left to right and top to bottom where so said."""
    height, width = pixels.shape[:2]
    boxes = truth.boxes
    if across:
        pixels = pixels[:, ::-1]
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    if down:
        pixels = pixels[::-1]
        boxes = np.stack([boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]], 1)
    return np.ascontiguousarray(pixels), Boxes(boxes=boxes, labels=truth.labels, crowd=truth.crowd)


class Colours(NamedTuple):
    """One image's changes of colour; ``None``: not changed."""

    brightness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    hue: float | None = None
    contrast_first: bool = True
    """Contrast before saturation and hue, not after."""
    order: tuple[int, ...] | None = None
    """Which channel each channel becomes."""


def draw_colours(augment: DetectionAugment, random: np.random.Generator) -> Colours:
    """Draw what ``torchvision.transforms.v2.RandomPhotometricDistort`` draws."""
    if not augment.colours:
        return Colours()

    def one(limits: Range) -> float | None:
        happens, place = random.random(2).tolist()
        return limits[0] + (limits[1] - limits[0]) * place if happens < augment.colours else None

    return Colours(
        brightness=one(augment.brightness),
        contrast=one(augment.contrast),
        saturation=one(augment.saturation),
        hue=one(augment.hue),
        contrast_first=bool(random.random() < 0.5),
        order=tuple(random.permutation(3).tolist())
        if augment.swap_channels and random.random() < augment.colours else None,
    )  # fmt: skip


def recoloured(pixels: Pixels, colours: Colours) -> Pixels:
    """Pixels [h, w, 3] with other colours: to the bit what torchvision's functions do to a Pillow image."""
    if colours == Colours(contrast_first=colours.contrast_first):
        return pixels
    image = Image.fromarray(pixels)
    if colours.brightness is not None:
        image = ImageEnhance.Brightness(image).enhance(colours.brightness)
    if colours.contrast is not None and colours.contrast_first:
        image = ImageEnhance.Contrast(image).enhance(colours.contrast)
    if colours.saturation is not None:
        image = ImageEnhance.Color(image).enhance(colours.saturation)
    if colours.hue is not None:
        image = _turned(image, colours.hue)
    if colours.contrast is not None and not colours.contrast_first:
        image = ImageEnhance.Contrast(image).enhance(colours.contrast)
    changed: Pixels = np.asarray(image)
    return changed if colours.order is None else changed[..., list(colours.order)]


def _turned(image: Image.Image, turn: float) -> Image.Image:
    steps = int(turn * 255)
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(level + steps) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def _shown(image: Image.Image, box: Box, preset: Preset, colours: Colours) -> Pixels:
    """A view of an image in the preset's shape; beyond the image the preset's mean colour."""
    height, width = preset.shape
    across = _along(box[0], box[2], width, image.width)
    down = _along(box[1], box[3], height, image.height)
    if across.length == width and down.length == height:
        left, top, right, bottom = box
        inside = max(0.0, left), max(0.0, top), min(right, image.width), min(bottom, image.height)
        return recoloured(resample(image, inside, height, width), colours)
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[...] = [round(255 * part) for part in preset.mean]
    if across.length > 0 and down.length > 0:
        part = resample(image, (across.begin, down.begin, across.end, down.end), down.length, across.length)
        rows, columns = (slice(one.first, one.first + one.length) for one in (down, across))
        pixels[rows, columns] = recoloured(part, colours)
    return pixels


class _Along(NamedTuple):
    """Along one axis: the network's pixels that lie wholly on the image, and what of the image they show."""

    first: int
    length: int
    begin: float
    end: float


def _along(begin: float, end: float, count: int, size: int) -> _Along:
    """The pixels of ``count`` between ``begin`` and ``end`` that an image of this size fills.

    A pixel that only a part of the image's edge falls on is left to the ground, so that the others keep
    their exact places.
    """
    step = (end - begin) / count
    first = max(0, math.ceil(-begin / step - 1e-6))
    last = min(count, math.floor((size - begin) / step + 1e-6))
    return _Along(first, last - first, max(0.0, begin + first * step), min(float(size), begin + last * step))
