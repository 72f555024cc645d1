"""AutoAugment, RandAugment and TrivialAugment: a few operations on each image, drawn by lot.

What an operation does is Pillow's, as in torchvision's and timm's classes; magnitudes, signs and fill
follow those two to the bit. The drawing is by a NumPy generator that the caller gives: torchvision
draws from the one generator of torch's process and timm from Python's and NumPy's, so that with
threads or worker processes a resumed training would not see the same images again.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from mobilefit.data.decode import Pixels
from mobilefit.errors import InputError, unknown

Resampling = Image.Resampling


@dataclass(frozen=True)
class Step:
    """One operation on one image."""

    operation: str
    """A name in ``OPERATIONS``."""
    argument: float = 0.0
    """Shear: pixels a pixel; Translate: pixels to the right or down; Rotate: degrees to the left;
    Brightness, Color, Contrast, Sharpness: factor, 1 changes nothing; Posterize: bits that stay;
    Solarize: lowest value that is inverted; SolarizeAdd: what is added to values below 128."""
    resampling: Resampling = Resampling.NEAREST
    fill: int = 0
    """What comes in from outside the image, in each channel."""

    def on(self, image: Image.Image) -> Image.Image:
        """The image, L or RGB, after this step; grey comes out as the same grey in RGB would."""
        return OPERATIONS[self.operation](image, self)


def _moved(image: Image.Image, step: Step, *matrix: float) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, step.resampling, fillcolor=_fill(image, step)
    )


def _rotated(image: Image.Image, step: Step) -> Image.Image:
    return image.rotate(step.argument, step.resampling, fillcolor=_fill(image, step))


def _fill(image: Image.Image, step: Step) -> tuple[int, ...]:
    return (step.fill,) * len(image.getbands())


def _solarize_add(image: Image.Image, step: Step) -> Image.Image:
    table = [min(255, value + int(step.argument)) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


OPERATIONS: dict[str, Callable[[Image.Image, Step], Image.Image]] = {
    "ShearX": lambda image, step: _moved(image, step, 1, step.argument, 0, 0, 1, 0),
    "ShearY": lambda image, step: _moved(image, step, 1, 0, 0, step.argument, 1, 0),
    "TranslateX": lambda image, step: _moved(image, step, 1, 0, -step.argument, 0, 1, 0),
    "TranslateY": lambda image, step: _moved(image, step, 1, 0, 0, 0, 1, -step.argument),
    "Rotate": _rotated,
    "Brightness": lambda image, step: ImageEnhance.Brightness(image).enhance(step.argument),
    "Color": lambda image, step: ImageEnhance.Color(image).enhance(step.argument),
    "Contrast": lambda image, step: ImageEnhance.Contrast(image).enhance(step.argument),
    "Sharpness": lambda image, step: ImageEnhance.Sharpness(image).enhance(step.argument),
    "Posterize": lambda image, step: ImageOps.posterize(image, int(step.argument)),
    "Solarize": lambda image, step: ImageOps.solarize(image, int(step.argument)),
    "SolarizeAdd": _solarize_add,
    "AutoContrast": lambda image, step: ImageOps.autocontrast(image),
    "Equalize": lambda image, step: ImageOps.equalize(image),
    "Invert": lambda image, step: ImageOps.invert(image),
}
_FACTORS = ("Brightness", "Color", "Contrast", "Sharpness")


class Policy(ABC):
    """What is done to an image, by lot."""

    @property
    def relative(self) -> bool:
        """Images are moved by parts of their sides: the same at every resolution, but for rounding."""
        return True

    @abstractmethod
    def draw(self, size: tuple[int, int], seed: np.random.Generator) -> list[Step]:
        """Steps for an image of this width and height."""

    def apply(self, pixels: Pixels, seed: np.random.Generator) -> Pixels:
        """The image after steps drawn by ``seed``.

        Args:
            pixels: uint8 [h, w, c], c = 1 or 3, cropped and resized; it stays as it is.

        Returns:
            uint8 [h, w, c], which may be ``pixels`` itself, or read-only.
        """
        height, width, channels = pixels.shape
        steps = self.draw((width, height), seed)
        if not steps:
            return pixels
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        for step in steps:
            image = step.on(image)
        return np.asarray(image).reshape(pixels.shape)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The argument of an operation at each of torchvision's magnitude bins.

    The bins divide the way from nothing, at bin 0, to the values below, at the last bin.
    """

    bins: int
    shear: float
    translate: float
    """Pixels, or a part of the side."""
    relative: bool
    """``translate`` is a part of the side."""
    rotate: float
    factor: float
    """How far brightness, colour, contrast and sharpness go from 1, up or down."""
    bits: int
    """How many of the 8 bits Posterize takes."""

    def step(self, operation: str, place: int, sign: int, size: tuple[int, int]) -> Step:
        """The operation at bin ``place``; ``sign`` is 1 or -1, and size is width and height."""
        if operation == "Posterize":
            return Step(operation, round(8 - place / ((self.bins - 1) / self.bits)))
        if operation == "Solarize":
            return Step(operation, math.ceil(255 * _steps(1.0, 0.0, self.bins)[place]))
        value = sign * _steps(0.0, self._most(operation, size), self.bins)[place]
        if operation in _FACTORS:
            return Step(operation, 1 + value)
        return Step(operation, int(value) if operation.startswith("Translate") else value)

    def _most(self, operation: str, size: tuple[int, int]) -> float:
        if operation.startswith("Translate"):
            return self.translate * size[operation == "TranslateY"] if self.relative else self.translate
        if operation.startswith("Shear"):
            return self.shear
        if operation == "Rotate":
            return self.rotate
        return self.factor if operation in _FACTORS else 0.0


@lru_cache(maxsize=256)
def _steps(first: float, last: float, bins: int) -> tuple[float, ...]:
    return tuple(torch.linspace(first, last, bins).tolist())  # in float32, as torchvision has them


_PAPER = Scale(bins=31, shear=0.3, translate=150 / 331, relative=True, rotate=30, factor=0.9, bits=4)
"""AutoAugment's ranges (arXiv:1805.09501, appendix), where an image had 331 px."""
_WIDE = Scale(bins=31, shear=0.99, translate=32, relative=False, rotate=135, factor=0.99, bits=6)
"""TrivialAugment's (arXiv:2103.10158), as torchvision has them."""


def _sign(seed: np.random.Generator) -> int:
    return 1 if seed.random() < 0.5 else -1


_IMAGENET = (
    # Operation, probability and bin of 10; bin 0 where there is no magnitude.
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 0), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 0)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 0)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 0), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 0)),
    (("Equalize", 0.0, 0), ("Equalize", 0.8, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 0)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 0)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 0)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
)


@dataclass(frozen=True, kw_only=True)
class AutoAugment(Policy):
    """One of the pairs found for ImageNet, each operation with its probability (arXiv:1805.09501).

    Torchvision's ``AutoAugment`` with its defaults: nearest pixels, and black comes in.
    """

    pairs: tuple[tuple[tuple[str, float, int], ...], ...] = _IMAGENET
    scale: Scale = replace(_PAPER, bins=10)

    def draw(self, size: tuple[int, int], seed: np.random.Generator) -> list[Step]:
        pair = self.pairs[seed.integers(len(self.pairs))]
        return [
            self.scale.step(operation, place, _sign(seed), size)
            for operation, probability, place in pair
            if seed.random() < probability
        ]


_DRAWN = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color",
    "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RandAugment(Policy):
    """So many operations, each as likely as the others (arXiv:1909.13719, arXiv:2103.10158).

    Torchvision's ``RandAugment`` and ``TrivialAugmentWide`` with their defaults: nearest pixels, and
    black comes in.
    """

    count: int
    scale: Scale
    place: int | None
    """The bin of the magnitude; ``None``: any, each as likely as the others."""

    @property
    def relative(self) -> bool:
        return self.scale.relative

    def draw(self, size: tuple[int, int], seed: np.random.Generator) -> list[Step]:
        drawn = [_DRAWN[place] for place in seed.integers(len(_DRAWN), size=self.count)]
        return [
            self.scale.step(operation, self._bin(seed), _sign(seed), size)
            for operation in drawn
            if operation != "Identity"
        ]

    def _bin(self, seed: np.random.Generator) -> int:
        return int(seed.integers(self.scale.bins)) if self.place is None else self.place


_TIMM_DRAWN = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color",
    "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY",
)  # fmt: skip
_TIMM_RESAMPLINGS = (Resampling.BILINEAR, Resampling.BICUBIC)
_TIMM_FILL = 128
_TIMM_UNIFORM = 100
"""More noise than this: any magnitude up to the mean, each as likely as the others."""


@dataclass(frozen=True, kw_only=True)
class TimmRandAugment(Policy):
    """timm's RandAugment: each operation is done or not, and its magnitude is noisy.

    What is moved or turned is resampled bilinear or bicubic, by lot, as in timm's training script.
    The middle grey comes in: timm's default, and the mean of :class:`~mobilefit.data.Preset`'s default,
    where timm's script takes the mean of ImageNet.
    """

    magnitude: float = 10
    """On timm's scale, 0 to 10."""
    noise: float = 0
    """Standard deviation of the magnitude."""
    most: float = 10
    """Where magnitudes are cut."""
    count: int = 2
    probability: float = 0.5
    increasing: bool = False
    """Posterize, Solarize and the factors change more with the magnitude. Without, Posterize and
    Solarize change less with it, and the factors go from 0.1 to 1.9."""

    def draw(self, size: tuple[int, int], seed: np.random.Generator) -> list[Step]:
        drawn = [_TIMM_DRAWN[place] for place in seed.integers(len(_TIMM_DRAWN), size=self.count)]
        return [
            Step(
                operation,
                self.argument(operation, self._level(seed), _sign(seed), size),
                _TIMM_RESAMPLINGS[seed.integers(2)],
                _TIMM_FILL,
            )
            for operation in drawn
            if seed.random() < self.probability
        ]

    def _level(self, seed: np.random.Generator) -> float:
        uniform = self.noise > _TIMM_UNIFORM
        level = seed.uniform(0, self.magnitude) if uniform else seed.normal(self.magnitude, self.noise)
        return max(0.0, min(level, self.most))

    def argument(self, operation: str, level: float, sign: int, size: tuple[int, int]) -> float:
        """The step's argument at a magnitude of ``level``; ``sign`` is 1 or -1."""
        part = level / 10
        match operation:
            case "Rotate":
                return sign * part * 30
            case "ShearX" | "ShearY":
                return sign * part * 0.3
            case "TranslateX" | "TranslateY":
                return sign * part * 0.45 * size[operation == "TranslateY"]
            case "Posterize":
                return max(0, min(8, 4 - int(part * 4) if self.increasing else int(part * 4)))
            case "Solarize":
                lowest = min(256, int(part * 256))
                return 256 - lowest if self.increasing else lowest
            case "SolarizeAdd":
                return min(128, int(part * 110))
            case "Brightness" | "Color" | "Contrast" | "Sharpness":
                return max(0.1, 1 + sign * part * 0.9) if self.increasing else part * 1.8 + 0.1
        return 0


POLICIES: dict[str, Policy | None] = {
    "none": None,
    "autoaugment": AutoAugment(),
    "randaugment": RandAugment(count=2, scale=_PAPER, place=9),
    "trivialaugment": RandAugment(count=1, scale=_WIDE, place=None),
}
_TIMM_EXAMPLE = "rand-m9-mstd0.5"
_NUMBER = r"\d+(\.\d+)?"
_WHOLE = r"[1-9]\d*"
_SETTINGS: dict[str, tuple[str, Callable[[str], Any], str, str]] = {
    "m": ("magnitude", float, _NUMBER, "a number"),
    "mstd": ("noise", float, _NUMBER, "a number"),
    "mmax": ("most", float, _WHOLE, "a whole number above 0"),
    "n": ("count", int, _WHOLE, "a whole number above 0"),
    "p": ("probability", float, r"0(\.\d+)?|1(\.0+)?", "a number from 0 to 1"),
    "inc": ("increasing", lambda value: value == "1", r"[01]", "0 or 1"),
}
"""timm's letters: our field, how to read it, what may follow, and that in words."""


def policy(name: str) -> Policy | None:
    """The policy of that name; ``none``: no policy.

    Args:
        name: one of ``POLICIES``, or RandAugment in timm's form: ``rand`` and settings, joined by ``-``:
            ``m`` magnitude, ``mstd`` its standard deviation (above 100: evenly from 0 to ``m``),
            ``mmax`` its upper bound, ``n`` operations an image, ``p`` probability of each, ``inc1``
            severity increases with the magnitude. What is not given is as in timm.

    Raises:
        InputError: there is none, and the nearest is suggested; or a setting is wrong, and all such
            are named.
    """
    if name.startswith("rand-"):
        return _timm(name)
    if name not in POLICIES:
        raise unknown("policy", name, (*POLICIES, _TIMM_EXAMPLE))
    return POLICIES[name]


def _timm(name: str) -> TimmRandAugment:
    values: dict[str, Any] = {}
    problems = []
    for setting in name.split("-")[1:]:
        letters = setting.rstrip("0123456789.")
        value = setting[len(letters) :]
        if letters not in _SETTINGS:
            problems.append(f"'{setting}' is none of {', '.join(_SETTINGS)}")
            continue
        field, read, pattern, words = _SETTINGS[letters]
        if not re.fullmatch(pattern, value):
            problems.append(f"'{setting}' must be {letters} and {words}")
        elif field in values:
            problems.append(f"{letters} is given twice")
        else:
            values[field] = read(value)
    if problems:
        hint = f"write it like {_TIMM_EXAMPLE}-n2-inc1"
        raise InputError(f"bad policy '{name}': {'; '.join(problems)}", hint)
    return TimmRandAugment(**values)
