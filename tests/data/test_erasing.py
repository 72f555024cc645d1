from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchvision.transforms import v2

from mobilefit.data import ImageSet, Preset, batches
from mobilefit.data.augment import Augment
from mobilefit.data.erasing import Erased, Erasing, draw
from mobilefit.data.images import ArraySource
from mobilefit.errors import InputError

MARK = 7.0
"""Above anything that noise comes to; images full of it show what was erased."""


def drawn(count: int = 4000, **options: Any) -> Erased:
    return draw(Erasing(**{"probability": 1.0} | options), count, np.random.default_rng(3))


def marked(count: int, side: int = 40) -> npt.NDArray[np.float32]:
    return np.full((count, 3, side, side), MARK, np.float32)


def erased_from(images: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """[n, h, w]: where something was erased, which is the same in every channel."""
    gone = images != MARK
    assert (gone == gone[:, :1]).all()
    return gone[:, 0]


def even(values: npt.NDArray[np.float64], low: float, high: float) -> bool:
    """Whether values are within the range, and their deciles within 4 % of where even ones have them."""
    parts = (values - low) / (high - low)
    deciles = np.quantile(parts, np.linspace(0.1, 0.9, 9))
    inside = parts.min() >= -1e-9 and parts.max() <= 1 + 1e-9
    return bool(inside and np.abs(deciles - np.linspace(0.1, 0.9, 9)).max() < 0.04)


def test_area_and_aspect_are_those_of_the_paper() -> None:
    erased = drawn()
    whole = (erased.height < 1) & (erased.width < 1)
    assert whole.mean() > 0.97  # the others would be longer than the image
    area, aspect = erased.height * erased.width, erased.height / erased.width
    assert even(area[whole], 0.02, 1 / 3)
    assert even(np.log(aspect[whole]), np.log(0.3), np.log(1 / 0.3))
    assert area.max() <= 1 / 3 and max(erased.height.max(), erased.width.max()) <= 1


def test_what_is_erased_is_one_rectangle_of_the_drawn_size() -> None:
    erased, images = drawn(400), marked(400)
    erased.apply(images, 0)
    for place, gone in enumerate(erased_from(images)):
        rows, columns = np.flatnonzero(gone.any(1)), np.flatnonzero(gone.any(0))
        assert gone[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert len(rows) == round(erased.height[place] * 40)
        assert len(columns) == round(erased.width[place] * 40)


def test_every_place_is_erased_as_often_as_by_torchvision() -> None:
    images, theirs = marked(3000, 20), torch.full((3000, 3, 20, 20), MARK)
    drawn(3000).apply(images, 0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        erase = v2.RandomErasing(p=1.0, inplace=True)
        for image in theirs:
            erase(image)
    covered, expected = erased_from(images).mean(0), erased_from(theirs.numpy()).mean(0)
    assert covered.min() > 0 and expected.max() > 10 * expected.min()
    assert covered == pytest.approx(expected, abs=0.05)
    assert covered.mean() == pytest.approx(expected.mean(), rel=0.05)


def test_a_tiny_image_loses_a_pixel_at_least_and_keeps_its_size() -> None:
    erased = drawn(300)
    for shape in ((300, 3, 1, 1), (300, 3, 2, 3), (300, 1, 4, 4)):
        images = np.full(shape, MARK, np.float32)
        erased.apply(images, 0)
        lost = erased_from(images).reshape(300, -1).sum(1)
        assert images.shape == shape and lost.min() >= 1


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 1.0])
def test_the_share_asked_for_is_erased(probability: float) -> None:
    images = marked(2000, 8)
    drawn(2000, probability=probability).apply(images, 0)
    share = erased_from(images).any((1, 2)).mean()
    assert share == pytest.approx(probability, abs=5 * (probability * (1 - probability) / 2000) ** 0.5)


@pytest.mark.parametrize("fill", ["mean", "noise"])
def test_an_image_loses_the_same_in_any_batch(fill: str) -> None:
    erased, whole = drawn(48, probability=0.6, fill=fill), marked(48)
    erased.apply(whole, 0)
    for size in (1, 7, 16):
        parts = marked(48)
        for first in range(0, 48, size):
            erased.apply(parts[first : first + size], first)
        assert np.array_equal(parts, whole)
    other = marked(48)
    draw(Erasing(probability=0.6), 48, np.random.default_rng(4)).apply(other, 0)
    assert not np.array_equal(other, whole)


def test_mean_is_zero_in_normalised_values() -> None:
    images = marked(50)
    drawn(50).apply(images, 0)
    assert set(np.unique(images)) == {0.0, MARK}


def test_noise_is_standard_normal_and_of_its_own_everywhere() -> None:
    images = marked(300)
    drawn(300, fill="noise").apply(images, 0)
    noise = images[images != MARK]
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    assert abs((noise**3).mean()) < 0.05 and abs((noise**4).mean() - 3) < 0.1
    values = len(np.unique(noise)) / len(noise)
    assert values > 0.9  # no image, channel or pixel repeats another's


def test_batches_erase_what_the_augmentation_asks_for() -> None:
    pixels = np.full((64, 12, 12), 255, np.uint8)
    white = ImageSet(ArraySource(pixels, ["white"] * 64), np.zeros(64, np.int64))
    augment = Augment(area=(1.0, 1.0), erasing=0.5)
    made = [values for values, _ in batches(white, Preset(resolution=16), 16, train=True, augment=augment)]
    gone = np.concatenate(made)[:, 0] == 0
    assert 20 < gone.any((1, 2)).sum() < 44


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_a_probability_out_of_range_is_refused(probability: float) -> None:
    with pytest.raises(InputError, match=f"erasing is {probability}, must be from 0 to 1"):
        Erasing(probability=probability)


def test_an_unknown_fill_is_refused_and_the_nearest_named() -> None:
    with pytest.raises(InputError, match="unknown erasing_fill 'nois'; did you mean 'noise'"):
        Erasing(fill="nois")  # type: ignore[arg-type]
