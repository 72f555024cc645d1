"""How an image becomes the network's input: a value that travels with the model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilefit.arch.rows import LARGEST_SIDE
from mobilefit.data.decode import BadImageError, Pixels, centre_box, read_image, resample, to_rgb
from mobilefit.errors import InputError
from mobilefit.parsing import dataclass_from

Fit = Literal["crop", "stretch"]
Triple = tuple[float, float, float]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Central square (or the whole image), bilinear antialiased resize, then ``(value / 255 - mean) / std``.

    The defaults are the Inception preprocessing that MobileNetV3 was evaluated with (TF-slim
    ``inception_preprocessing.py``: central crop 0.875, bilinear, [-1, 1]), except that the crop is
    a square of the short side, as torchvision and the MnasNet code have it, so that the aspect
    ratio is kept. At 224 px it is torchvision's "resize to 256, crop 224" in one step.

    Raises:
        InputError: a value is out of range; all problems in one message.
    """

    resolution: int
    """Side of the network's input in pixels."""
    mean: Triple = (0.5, 0.5, 0.5)
    """Of R, G, B on the scale of 0 to 1."""
    std: Triple = (0.5, 0.5, 0.5)
    """Of R, G, B on the scale of 0 to 1."""
    crop_fraction: float = 0.875
    """Side of the central square as a part of the short side; 1.0 for tiny images."""
    width: int | None = None
    """Columns of the network's input in pixels; ``None``: square."""
    fit: Fit = "crop"
    """``crop``: the central square; ``stretch``: the whole image, whatever its sides, as detectors and
    segmenters are given it (TensorFlow's fixed-shape resizer, torchvision's ``ssdlite320``)."""

    def __post_init__(self) -> None:
        problems = []
        for name, side in (("resolution", self.resolution), ("width", self.width or 1)):
            if not 1 <= side <= LARGEST_SIDE:
                problems.append(f"{name} is {side}, must be 1 to {LARGEST_SIDE}")
        if self.fit not in get_args(Fit):
            problems.append(f"fit is '{self.fit}', must be one of {', '.join(get_args(Fit))}")
        if self.fit == "crop" and self.width not in (None, self.resolution):
            problems.append("a central square has no width of its own: fit must be 'stretch'")
        if not 0 < self.crop_fraction <= 1:
            problems.append(f"crop_fraction is {self.crop_fraction}, must be in (0, 1]")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std, default=0) <= 0:
            problems.append("mean and std are three numbers each, those of std above 0")
        elif not (max(map(abs, self.mean)) <= 1e6 and 1e-6 <= min(self.std) <= max(self.std) <= 1e6):
            problems.append("mean and std are on the scale of 0 to 1, and a million times that at most")
        if problems:
            raise InputError("bad preset: " + "; ".join(problems))

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the network's input in pixels."""
        return self.resolution, self.width or self.resolution

    def apply(self, image: Image.Image | Path | str) -> Floats:
        """One image as the network takes it: float32 [height, width, 3].

        Exactly what an evaluation batch holds for the same image.

        Raises:
            InputError: the file is missing or a bad image.
        """
        planes = self.normalise(to_floats(self.pixels(image)[None]))
        return np.ascontiguousarray(planes[0].transpose(1, 2, 0))

    def pixels(self, image: Image.Image | Path | str) -> Pixels:
        """The image before normalisation: uint8 [height, width, 3]."""
        try:
            rgb = to_rgb(image) if isinstance(image, Image.Image) else read_image(Path(image))
        except BadImageError as error:
            raise InputError(f"cannot use the image: {error}") from error
        if self.fit == "stretch":
            return resample(rgb, (0, 0, *rgb.size), *self.shape)
        return resample(rgb, centre_box(rgb.size, self.crop_fraction), self.resolution)

    def normalise(self, values: Floats) -> Floats:
        """Values of 0 to 255, [n, 3, h, w], or [n, 1, h, w] for grey, to [n, 3, h, w], channels last in
        memory; in place, as far as they are so already."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        if len(set(self.mean)) == len(set(self.std)) == 1:
            values *= 1 / (255 * std[:1])
            values -= mean[:1] / std[:1]
            return values if values.shape[1] == 3 else _in_three(values)
        if values.shape[1] == 1:
            values = _in_three(values)
        last = np.ascontiguousarray(values.transpose(0, 2, 3, 1))
        rows = last.reshape(*last.shape[:2], -1)  # whole rows at a time: three values are too few
        rows *= np.tile(1 / (255 * std), last.shape[2])
        rows -= np.tile(mean / std, last.shape[2])
        return last.transpose(0, 3, 1, 2)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = {**dataclasses.asdict(self), "mean": list(self.mean), "std": list(self.std)}
        return {key: value for key, value in plain.items() if (key, value) not in _USUAL.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preset:
        """The preset that :meth:`to_dict` wrote.

        Raises:
            InputError: an unknown or a missing field, or a value of another type or out of range.
        """
        if isinstance(values, dict):
            missing = [f.name for f in dataclasses.fields(cls) if f.name not in values and f.name not in _USUAL]
            if missing:
                raise InputError(f"the preset lacks {', '.join(missing)}")
        made: Preset = dataclass_from(cls, values, "the preset")
        return made


_USUAL: dict[str, Any] = {"width": None, "fit": "crop"}
"""Fields that are written only where they are otherwise."""


def to_floats(pixels: Pixels) -> Floats:
    """Pixels [n, h, w, c] as float32 [n, c, h, w], channels last in memory, as networks are trained on them."""
    return pixels.astype(np.float32).transpose(0, 3, 1, 2)


def _in_three(values: Floats) -> Floats:
    number, _, height, width = values.shape
    last = np.empty((number, height, width, 3), np.float32)
    for channel in range(3):
        last[..., channel] = values[:, 0]
    return last.transpose(0, 3, 1, 2)
