"""Image and mask go through the same scale, crop and mirror, all drawn from the generator given."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from mobilefit.data.augment import recoloured
from mobilefit.data.masks import IGNORED, Mask
from mobilefit.data.preset import Preset, to_floats
from mobilefit.data.segmentation_augment import (
    DEEPLAB,
    LIGHT,
    PHOTO,
    SEGMENTATION_AUGMENTS,
    SegmentationAugment,
    collate,
    draw,
    eval_sample,
    nearest,
    segmentation_augment,
    train_sample,
)
from mobilefit.errors import InputError

from .conftest import photo

PRESET = Preset(resolution=48, width=80, fit="stretch")
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


def plain(**options: Any) -> SegmentationAugment:
    """One scale, no mirror."""
    return SegmentationAugment(**{"scale": (1.0, 1.0), "flip": False} | options)


def halves(size: tuple[int, int], x: int, y: int) -> tuple[Image.Image, Mask]:
    """Red is 200 and not 0 right of ``x``, green below ``y``; the mask counts the two as 1 and 2."""
    width, height = size
    right, below = np.arange(width) >= x, np.arange(height) >= y
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, right, 0], pixels[below, :, 1] = 200, 200
    mask = right[None] * np.uint8(1) + below[:, None] * np.uint8(2)
    return Image.fromarray(pixels), mask


def crossing(values: npt.NDArray[np.uint8]) -> float:
    """Where a rising edge of 0 to 200 passes 100, in pixels from the left border."""
    line = values.astype(float)
    after = int(np.argmax(line >= 100))
    return after - 0.5 + (100 - line[after - 1]) / (line[after] - line[after - 1]) + 0.0


def same(one: tuple[npt.NDArray[Any], ...], other: tuple[npt.NDArray[Any], ...]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("size", [(80, 48), (117, 61), (40, 90), (301, 200)])
@pytest.mark.parametrize("scale", [*SCALES, 0.613, 1.377])
def test_image_and_mask_are_aligned_to_half_a_pixel(scale: float, size: tuple[int, int]) -> None:
    image, truth = halves(size, x=size[0] * 5 // 9, y=size[1] * 4 // 9)
    edges = 0
    for seed in range(12):
        pixels, mask = train_sample(
            image, truth, PRESET, plain(scale=(scale, scale)), np.random.default_rng(seed)
        )
        seen = mask != IGNORED
        for channel, bit, axis in ((0, 1, 0), (1, 2, 1)):
            labels = np.where(seen, mask & bit, 0).max(axis)
            if np.argmax(labels > 0) > 0 and labels.any():
                edge = crossing(np.where(seen, pixels[..., channel], 0).max(axis))
                # A boundary of nearest labels is at a pixel's border; so is the best that a network can do.
                assert abs(np.argmax(labels > 0) - edge) <= 0.5 + 0.02
                edges += 1
    assert edges >= 4


def test_the_mask_alone_would_notice_a_shift_of_a_pixel() -> None:
    image, truth = halves((80, 48), x=40, y=24)
    pixels, mask = train_sample(image, np.roll(truth, 1, 1), PRESET, plain(), np.random.default_rng(0))
    edge = crossing(pixels[10, :, 0])
    assert abs(np.argmax(mask[10, 5:] & 1) + 5 - edge) > 0.5


@pytest.mark.parametrize("scale", SCALES)
def test_one_step_gives_what_scaling_and_then_cutting_gives(scale: float) -> None:
    image, truth = photo(3, (97, 71)), np.random.default_rng(0).integers(0, 9, (71, 97)).astype(np.uint8)
    augment = plain(scale=(scale, scale))
    pixels, mask = train_sample(image, truth, PRESET, augment, np.random.default_rng(5))
    height, width = round(48 * scale), round(80 * scale)
    large = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
    labels = np.asarray(Image.fromarray(truth).resize((width, height), Image.Resampling.NEAREST))
    drawn = draw(augment, np.random.default_rng(5))
    y, x = int(drawn.top * max(1, height - 47)), int(drawn.left * max(1, width - 79))
    rows, columns = min(48, height), min(80, width)
    apart = np.abs(pixels[:rows, :columns] - large[y : y + rows, x : x + columns])
    assert apart.max() <= 2 and apart.mean() < 0.02  # Pillow keeps the box in single precision
    assert np.array_equal(mask[:rows, :columns], labels[y : y + rows, x : x + columns])


@pytest.mark.parametrize("box", [(0, 0, 50, 40), (3.25, 1.5, 40.75, 39.0), (10, 10, 11.5, 12.25)])
def test_nearest_is_pillows(box: tuple[float, float, float, float]) -> None:
    mask = np.random.default_rng(1).integers(0, 256, (40, 50)).astype(np.uint8)
    theirs = Image.fromarray(mask).resize((34, 32), Image.Resampling.NEAREST, box=box)
    assert np.array_equal(nearest(mask, box, 32, 34), np.asarray(theirs))


def test_scale_one_is_what_evaluation_sees() -> None:
    image, truth = photo(1, (120, 90)), np.zeros((90, 120), np.uint8)
    pixels, mask = train_sample(image, truth, PRESET, plain(), np.random.default_rng(0))
    whole, kept = eval_sample(image, truth, PRESET)
    assert np.array_equal(pixels, whole) and np.array_equal(whole, PRESET.pixels(image))
    assert kept is truth and mask.shape == (48, 80)
    nothing = train_sample(image, truth, PRESET, None, np.random.default_rng(0))
    assert same(nothing, (pixels, mask))


def test_beyond_a_smaller_image_is_the_mean_colour_and_nothing_to_learn() -> None:
    preset = Preset(resolution=48, width=80, fit="stretch", mean=(0.485, 0.456, 0.406), std=(0.2, 0.2, 0.2))
    image, truth = Image.new("RGB", (80, 48), (9, 9, 9)), np.full((48, 80), 3, np.uint8)
    pixels, mask = train_sample(image, truth, preset, plain(scale=(0.5, 0.5)), np.random.default_rng(0))
    assert (mask[:24, :40] == 3).all() and (pixels[:24, :40] == 9).all()
    outside = mask == IGNORED
    assert outside.sum() == 48 * 80 - 24 * 40 and (pixels[outside] == (124, 116, 104)).all()
    assert np.abs(preset.normalise(to_floats(pixels[None]))[0, :, outside]).max() < 0.02


def test_an_image_smaller_than_the_crop_is_padded() -> None:
    image, truth = photo(2, (20, 30)), np.ones((30, 20), np.uint8)
    pixels, mask = train_sample(
        image, truth, Preset(resolution=30, width=20, fit="stretch"), plain(crop=(33, 50)), np.random.default_rng(1)
    )
    assert pixels.shape == (33, 50, 3) and (mask[:30, :20] == 1).all()
    assert np.array_equal(pixels[:30, :20], np.asarray(image))
    assert (mask != IGNORED).sum() == 600 and (pixels[mask == IGNORED] == 128).all()


def test_a_crop_of_its_own_shape_keeps_the_scale() -> None:
    image = Image.fromarray(np.broadcast_to(np.arange(80, dtype=np.uint8)[:, None], (48, 80, 3)).copy())
    truth = np.zeros((48, 80), np.uint8)
    begins = set()
    for seed in range(300):
        pixels, mask = train_sample(image, truth, PRESET, plain(crop=(32, 33)), np.random.default_rng(seed))
        assert mask.shape == (32, 33) and (np.diff(pixels[0, :, 0].astype(int)) == 1).all()
        begins.add(int(pixels[0, 0, 0]))
    assert min(begins) == 0 and max(begins) == 80 - 33 and len(begins) > 40


@pytest.mark.parametrize("augment", [DEEPLAB, LIGHT, PHOTO])
def test_half_the_images_are_mirrored_with_their_masks(augment: SegmentationAugment) -> None:
    image, truth = photo(4, (80, 48)), np.random.default_rng(0).integers(0, 5, (48, 80)).astype(np.uint8)
    options = {name: getattr(augment, name) for name in ("scale", "scale_step", "brightness", "saturation")}
    mirrored = 0
    for seed in range(60):
        found = train_sample(image, truth, PRESET, augment, np.random.default_rng(seed))
        upright = train_sample(
            image, truth, PRESET, SegmentationAugment(**options, flip=False), np.random.default_rng(seed)
        )
        if not same(found, upright):
            mirrored += 1
            assert same((found[0][:, ::-1], found[1][:, ::-1]), upright)
    assert 15 < mirrored < 45


def test_deeplab_draws_its_seven_scales_evenly() -> None:
    random = np.random.default_rng(0)
    scales = [draw(DEEPLAB, random).scale for _ in range(7000)]
    values, counts = np.unique(scales, return_counts=True)
    assert values.tolist() == list(SCALES)
    assert counts.min() > 880 and counts.max() < 1120


@pytest.mark.parametrize("name", ["light", "photo"])
def test_scales_without_steps_fill_their_range(name: str) -> None:
    augment, random = segmentation_augment(name), np.random.default_rng(0)
    assert augment is not None
    low, high = augment.scale
    places = (np.array([draw(augment, random).scale for _ in range(4000)]) - low) / (high - low)
    deciles = np.quantile(places, np.linspace(0.1, 0.9, 9))
    assert np.abs(deciles - np.linspace(0.1, 0.9, 9)).max() < 0.04
    assert places.min() >= 0 and places.max() <= 1


def test_colours_are_changed_as_in_classification() -> None:
    image, truth = photo(6, (80, 48)), np.zeros((48, 80), np.uint8)
    augment = plain(brightness=0.3, saturation=(0.2, 1.9))
    for seed in range(20):
        pixels, _ = train_sample(image, truth, PRESET, augment, np.random.default_rng(seed))
        drawn = draw(augment, np.random.default_rng(seed))
        values = to_floats(eval_sample(image, truth, PRESET)[0][None])
        brightness, saturation = np.float32([drawn.brightness]), np.float32([drawn.saturation])
        expected = recoloured(values, brightness, saturation)[0].transpose(1, 2, 0)
        assert np.abs(pixels - expected).max() <= 0.51  # rounded to 8 bits
        assert -0.3 <= drawn.brightness <= 0.3 and 0.2 <= drawn.saturation <= 1.9


@pytest.mark.parametrize("name", ["deeplab", "light", "photo"])
def test_a_sample_is_a_function_of_the_generator(name: str) -> None:
    image, truth = photo(7, (90, 60)), np.random.default_rng(0).integers(0, 3, (60, 90)).astype(np.uint8)
    augment = segmentation_augment(name)
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    made = [train_sample(image, truth, PRESET, augment, np.random.default_rng([1, 2, n])) for n in (3, 3, 4)]
    assert same(made[0], made[1]) and not same(made[0], made[2])
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # type: ignore[index]


def test_every_augmentation_draws_as_many_numbers() -> None:
    ends = []
    for augment in (DEEPLAB, LIGHT, PHOTO, plain()):
        random = np.random.default_rng(0)
        draw(augment, random)
        ends.append(random.random())
    assert len(set(ends)) == 1


@pytest.mark.parametrize("size", [(4, 4), (5, 200), (1000, 7)])
def test_any_size_of_image_comes_out_in_the_shape_of_the_preset(size: tuple[int, int]) -> None:
    image, truth = photo(8, size), np.zeros(size[::-1], np.uint8)
    for augment in SEGMENTATION_AUGMENTS.values():
        for seed in range(20):
            pixels, mask = train_sample(image, truth, PRESET, augment, np.random.default_rng(seed))
            assert pixels.shape == (48, 80, 3) and mask.shape == (48, 80)
            assert pixels.dtype == mask.dtype == np.uint8
            assert pixels.flags.c_contiguous and mask.flags.c_contiguous


def test_the_given_image_and_mask_are_not_changed() -> None:
    image, truth = photo(9, (90, 60)), np.random.default_rng(0).integers(0, 3, (60, 90)).astype(np.uint8)
    before, labels = np.asarray(image).copy(), truth.copy()
    for seed, augment in enumerate([*SEGMENTATION_AUGMENTS.values()] * 5):
        _, mask = train_sample(image, truth, PRESET, augment, np.random.default_rng(seed))
        assert not np.shares_memory(mask, truth)
    assert np.array_equal(np.asarray(image), before) and np.array_equal(truth, labels)


def test_masks_of_a_training_batch_are_one_tensor() -> None:
    batch = collate([np.full((4, 6), label, np.uint8) for label in (0, 7, IGNORED)])
    assert batch.dtype == torch.int64 and batch.shape == (3, 4, 6)
    assert batch[:, 0, 0].tolist() == [0, 7, 255]


def test_bad_values_are_named_all_at_once() -> None:
    with pytest.raises(InputError) as raised:
        SegmentationAugment(
            scale=(2.0, 1.0), scale_step=0, crop=(0, 4), brightness=1.5, saturation=(-1.0, float("nan"))
        )
    for name in ("scale (2.0, 1.0)", "scale_step is 0", "crop (0, 4)", "brightness 1.5", "saturation (-1.0, nan)"):
        assert name in raised.value.message


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown augment 'deplab'; did you mean 'deeplab'"):
        segmentation_augment("deplab")
