from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from mobilefit.data import detection_augment as augments
from mobilefit.data.detection import Boxes
from mobilefit.data.detection_augment import (
    DETECTION_AUGMENTS,
    OVERHEAD,
    PHOTO,
    SSD,
    Colours,
    DetectionAugment,
    collate,
    cropped,
    detection_augment,
    draw_colours,
    eval_sample,
    recoloured,
    seen_boxes,
    train_sample,
    view,
    zoomed_out,
)
from mobilefit.data.preset import Preset
from mobilefit.errors import InputError

from .conftest import photo

PRESET = Preset(resolution=32, width=40, fit="stretch", crop_fraction=1.0)
SIZE = (60, 48)


def some_boxes(seed: int, count: int = 6, size: tuple[int, int] = SIZE) -> Boxes:
    random = np.random.default_rng(seed)
    corners = np.sort(random.integers(0, 24, (count, 2, 2)), axis=1).transpose(0, 1, 2).reshape(count, 4)
    corners[:, 2:] += 1
    boxes = (corners * np.array([size[0], size[1]] * 2) / 25).astype(np.float32)
    return Boxes(boxes=boxes, labels=random.integers(0, 5, count), crowd=np.zeros(count, bool))


def truth(*boxes: tuple[float, ...], crowd: tuple[bool, ...] | None = None) -> Boxes:
    flags = np.zeros(len(boxes), bool) if crowd is None else np.array(crowd)
    return Boxes(boxes=np.array(boxes, np.float32).reshape(-1, 4), labels=np.arange(len(boxes)), crowd=flags)


def marked(box: tuple[int, int, int, int], size: tuple[int, int] = SIZE) -> Image.Image:
    """Black, with one white box."""
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), box)
    return image


def white_box(pixels: np.ndarray) -> list[int]:
    """The box around what is white."""
    rows, columns = np.nonzero(pixels[..., 0] > 200)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def test_evaluation_sees_the_whole_image_and_all_boxes() -> None:
    image, boxes = photo(1, SIZE), truth((0, 0, 60, 48), (3, 6, 3.2, 12))
    pixels, seen = eval_sample(image, boxes, PRESET)
    assert np.array_equal(pixels, PRESET.pixels(image)) and pixels.shape == (32, 40, 3)
    np.testing.assert_allclose(seen.boxes, [[0, 0, 40, 32], [2, 4, 2.1333, 8]], atol=1e-3)


def test_without_augmentation_training_sees_what_evaluation_sees() -> None:
    image, boxes = photo(1, SIZE), some_boxes(1)
    for nothing in (None, DetectionAugment()):
        pixels, seen = train_sample(image, boxes, PRESET, nothing, np.random.default_rng(0))
        expected, all_boxes = eval_sample(image, boxes, PRESET)
        assert np.array_equal(pixels, expected)
        np.testing.assert_allclose(seen.boxes, all_boxes.boxes, rtol=1e-6)


@pytest.mark.parametrize("name", list(DETECTION_AUGMENTS))
def test_the_same_generator_gives_the_same_sample_and_another_another(name: str) -> None:
    image, boxes, state = photo(2, SIZE), some_boxes(2), torch.get_rng_state()
    global_state = np.random.get_state()[1].copy()
    samples = [train_sample(image, boxes, PRESET, detection_augment(name), np.random.default_rng(seed))
               for seed in (7, 7, *range(8, 40))]  # fmt: skip
    for pixels, seen in samples:
        assert pixels.shape == (32, 40, 3) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
        assert seen.boxes.dtype == np.float32 and len(seen.boxes) == len(seen.labels) == len(seen.crowd)
        assert (seen.boxes >= 0).all() and (seen.boxes <= [40, 32, 40, 32]).all()
        assert ((seen.boxes[:, 2:] - seen.boxes[:, :2]) >= 1).all()
    assert np.array_equal(samples[0][0], samples[1][0]) and np.array_equal(samples[0][1].boxes, samples[1][1].boxes)
    if name != "none":
        assert any(not np.array_equal(samples[0][0], pixels) for pixels, _ in samples[2:])
    assert torch.equal(state, torch.get_rng_state()) and np.array_equal(global_state, np.random.get_state()[1])


@pytest.mark.parametrize("name", list(DETECTION_AUGMENTS))
def test_the_boxes_stay_on_what_they_are_around(name: str) -> None:
    box, size = (120, 90, 420, 360), (600, 480)
    augment = dataclasses.replace(detection_augment(name) or DetectionAugment(), colours=0.0)  # white stays white
    preset = Preset(resolution=80, width=100, fit="stretch", mean=(0.2, 0.2, 0.2))
    image, found = marked(box, size), 0
    for seed in range(40):
        pixels, seen = train_sample(image, truth(box), preset, augment, np.random.default_rng(seed))
        if len(seen):
            assert np.abs(np.array(white_box(pixels)) - seen.boxes[0]).max() <= 1
            found += 1
    assert found > 25


class Stream:
    """Feeds torchvision's crop the numbers that ours draws: all trials of an overlap at once."""

    def __init__(self, seed: int, size: tuple[int, int]) -> None:
        self.random, self.size = np.random.default_rng(seed), size
        self.place: np.ndarray | None = None

    def randint(self, low: int, high: int, size: tuple[int, ...]) -> torch.Tensor:
        option = int(self.random.integers(high))
        self.trials = iter(self.random.random((40, 4))) if option < 6 else iter(())
        self.place = None
        return torch.tensor([option])

    def rand(self, count: int) -> torch.Tensor:
        if self.place is not None:
            place, self.place = self.place, None
            return torch.tensor(place)
        row = next(self.trials)
        width, height = (int(side * (0.3 + 0.7 * part)) for side, part in zip(self.size, row))
        self.place = row[2:] if 0.5 <= width / height <= 2 else None
        return torch.tensor(row[:2])


@pytest.mark.parametrize("seed", range(40))
def test_the_crop_is_torchvisions(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = some_boxes(seed, count=1 + seed % 5)
    ours = cropped((0, 0, *SIZE), boxes.boxes.astype(np.float64), np.random.default_rng(seed))
    stream = Stream(seed, SIZE)
    monkeypatch.setattr(torch, "randint", stream.randint)
    monkeypatch.setattr(torch, "rand", stream.rand)
    theirs = tv_tensors.BoundingBoxes(torch.from_numpy(boxes.boxes), format="XYXY", canvas_size=SIZE[::-1])
    drawn = v2.RandomIoUCrop().make_params([theirs])
    if not drawn:
        assert ours == (0, 0, *SIZE)
        return
    assert ours == (drawn["left"], drawn["top"], drawn["left"] + drawn["width"], drawn["top"] + drawn["height"])
    seen = seen_boxes(boxes, ours, (drawn["height"], drawn["width"]))
    assert set(seen.labels) <= set(boxes.labels[drawn["is_within_crop_area"].numpy()])


def test_crops_of_all_overlaps_occur_and_keep_to_them() -> None:
    assert tuple(v2.RandomIoUCrop().options) == augments.MIN_JACCARD and v2.RandomIoUCrop().trials == 40
    box = np.array([[10.0, 8, 50, 40]])
    views = [cropped((0, 0, *SIZE), box, np.random.default_rng(seed)) for seed in range(300)]
    whole = sum(one == (0, 0, *SIZE) for one in views)
    assert 300 / 7 * 0.5 < whole < 300 / 7 * 2
    assert len({one for one in views}) > 200
    for left, top, right, bottom in views:
        assert 0 <= left < 30 < right <= 60 and 0 <= top < 24 < bottom <= 48
        assert 0.5 <= (right - left) / (bottom - top) <= 2


def test_an_image_without_boxes_or_with_crowds_alone_is_not_cropped() -> None:
    augment = DetectionAugment(iou_crop=True)
    for boxes in (truth(), truth((1, 1, 9, 9), crowd=(True,))):
        for seed in range(10):
            assert view(augment, SIZE, boxes, np.random.default_rng(seed)) == (0, 0, *SIZE)


@pytest.mark.parametrize("seed", range(20))
def test_the_zoom_is_torchvisions(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left, top, right, bottom = zoomed_out(SIZE, np.random.default_rng(seed))
    random = np.random.default_rng(seed)
    monkeypatch.setattr(torch, "rand", lambda count: torch.tensor(random.random(count)))
    padding = v2.RandomZoomOut().make_params([tv_tensors.Image(torch.zeros(3, *SIZE[::-1]))])["padding"]
    assert [-left, -top, right - SIZE[0], bottom - SIZE[1]] == padding


@pytest.mark.parametrize("seed", range(20))
def test_boxes_go_where_torchvisions_operators_move_them(seed: int) -> None:
    boxes = some_boxes(seed, count=12)
    augment = DetectionAugment(zoom_out=0.7, iou_crop=True)
    left, top, right, bottom = view(augment, SIZE, boxes, np.random.default_rng(seed))
    moved = tv_tensors.BoundingBoxes(torch.from_numpy(boxes.boxes), format="XYXY", canvas_size=SIZE[::-1])
    pad = [int(side) for side in (max(0, -left), max(0, -top), max(0, right - 60), max(0, bottom - 48))]
    moved = F.pad(moved, pad)
    moved = F.crop(moved, int(top + pad[1]), int(left + pad[0]), int(bottom - top), int(right - left))
    moved = F.resize(moved.to(torch.float64), [32, 40])
    moved = F.vertical_flip(F.horizontal_flip(moved))
    pixels = np.zeros((32, 40, 3), np.uint8)
    _, ours = augments.mirrored(pixels, seen_boxes(boxes, (left, top, right, bottom), (32, 40)), True, True)
    centres = (boxes.boxes[:, :2] + boxes.boxes[:, 2:]) / 2
    inside = ((centres > [left, top]) & (centres < [right, bottom])).all(1)
    large = ((moved[:, 2:] - moved[:, :2]).numpy() >= 1).all(1)
    np.testing.assert_allclose(ours.boxes, moved.numpy()[inside & large], atol=1e-3)
    assert ours.labels.tolist() == boxes.labels[inside & large].tolist() and len(ours)


def test_a_box_whose_centre_is_not_seen_is_dropped_and_one_partly_seen_is_cut() -> None:
    boxes = truth((0, 0, 30, 48), (0, 0, 28, 48), (25, 10, 35, 20), (18, 10, 21, 20))
    seen = seen_boxes(boxes, (20, 0, 60, 48), (48, 40))
    assert seen.labels.tolist() == [2] and seen.boxes.tolist() == [[5, 10, 15, 20]]
    seen = seen_boxes(boxes, (10, 0, 50, 48), (48, 40))
    assert seen.labels.tolist() == [0, 1, 2, 3] and seen.boxes[0].tolist() == [0, 0, 20, 48]


def test_what_is_left_of_a_box_has_a_pixel_each_way() -> None:
    boxes = truth((10, 10, 12, 40), (10, 10, 10.5, 40))
    assert seen_boxes(boxes, (0, 0, 60, 48), (48, 60)).labels.tolist() == [0]
    assert seen_boxes(boxes, (0, 0, 60, 48), (24, 24)).labels.tolist() == []


def test_beyond_the_image_is_the_presets_mean_colour() -> None:
    preset = Preset(resolution=40, fit="stretch", mean=(0.2, 0.4, 0.6))
    image = Image.new("RGB", (10, 10), (255, 0, 9))
    pixels = augments._shown(image, (-10.0, -20.0, 30.0, 20.0), preset, Colours())
    expected = np.full((40, 40, 3), [51, 102, 153], np.uint8)
    expected[20:30, 10:20] = [255, 0, 9]
    assert np.array_equal(pixels, expected)
    assert (augments._shown(image, (20.0, 20.0, 30.0, 30.0), preset, Colours()) == [51, 102, 153]).all()


def test_what_lies_between_two_pixels_keeps_its_place() -> None:
    ramp = np.broadcast_to((12 * np.arange(20, dtype=np.uint8))[None, :, None], (20, 20, 3))
    pixels = augments._shown(Image.fromarray(ramp.copy()), (-3.5, 0.0, 20.0, 20.0), PRESET, Colours())
    places = -3.5 + (np.arange(40) + 0.5) * 23.5 / 40
    inside = (places > 0.5) & (places < 19.5)
    assert np.abs(pixels[16, inside, 0] - 12 * (places[inside] - 0.5)).max() <= 1


def test_the_ground_keeps_its_colour_when_the_image_changes() -> None:
    augment = dataclasses.replace(SSD, zoom_out=1.0, iou_crop=False)
    preset = Preset(resolution=40, fit="stretch", mean=(0.2, 0.4, 0.6))
    for seed in range(10):
        pixels, _ = train_sample(photo(1, SIZE), truth(), preset, augment, np.random.default_rng(seed))
        edges = np.concatenate([pixels[[0, -1]].reshape(-1, 3), pixels[:, [0, -1]].reshape(-1, 3)])
        counts = (edges == [51, 102, 153]).all(1).sum()
        assert counts >= 40  # the image touches two of the four edges at most


def test_scaling_shows_a_part_or_more_than_the_whole() -> None:
    boxes, sides = truth((1, 1, 9, 9)), []
    for seed in range(300):
        left, top, right, bottom = view(PHOTO, SIZE, boxes, np.random.default_rng(seed))
        sides.append((right - left) / SIZE[0])
        assert (right - left) / SIZE[0] == pytest.approx((bottom - top) / SIZE[1])
        inner, outer = ((left, right), (0, SIZE[0]))[:: 1 if right - left < SIZE[0] else -1]
        assert outer[0] - 1e-9 <= inner[0] < inner[1] <= outer[1] + 1e-9
    scales = 1 / np.array(sides)
    assert 0.5 <= scales.min() < 0.52 and 1.48 < scales.max() <= 1.5 and scales.mean() == pytest.approx(1, abs=0.07)


def test_half_of_the_images_are_mirrored_each_way() -> None:
    box = (0, 0, 30, 24)
    augment = DetectionAugment(flip=True, flip_vertical=True)
    corners = []
    for seed in range(200):
        pixels, seen = train_sample(marked(box), truth(box), PRESET, augment, np.random.default_rng(seed))
        corners.append(tuple(seen.boxes[0, :2].tolist()))
        assert white_box(pixels) == seen.boxes[0].tolist()
    assert {corner: corners.count(corner) > 30 for corner in set(corners)} == {
        (0, 0): True, (20, 0): True, (0, 16): True, (20, 16): True
    }  # fmt: skip


@pytest.mark.parametrize("first", [True, False])
def test_colours_change_as_torchvision_changes_them(first: bool) -> None:
    pixels = np.asarray(photo(5, SIZE))
    params = {"brightness_factor": 1.1, "contrast_factor": 0.7, "saturation_factor": 1.4, "hue_factor": -0.0392,
              "contrast_before": first, "channel_permutation": None}  # fmt: skip
    theirs = v2.RandomPhotometricDistort().transform(Image.fromarray(pixels), params)
    colours = Colours(brightness=1.1, contrast=0.7, saturation=1.4, hue=-0.0392, contrast_first=first)
    assert np.array_equal(recoloured(pixels, colours), np.asarray(theirs))
    swapped = recoloured(pixels, colours._replace(order=(2, 0, 1)))
    assert np.array_equal(swapped, np.asarray(theirs)[..., [2, 0, 1]])
    assert recoloured(pixels, Colours()) is pixels


def test_ssds_colours_have_torchvisions_ranges_and_odds() -> None:
    usual = {name: one.default for name, one in inspect.signature(v2.RandomPhotometricDistort).parameters.items()}
    assert (SSD.brightness, SSD.contrast, SSD.saturation, SSD.hue, SSD.colours) == tuple(
        usual[name] for name in ("brightness", "contrast", "saturation", "hue", "p")
    )
    assert SSD.zoom_out == v2.RandomZoomOut().p and tuple(v2.RandomZoomOut().side_range) == augments.ZOOM
    drawn = [draw_colours(SSD, np.random.default_rng(seed)) for seed in range(400)]
    for name in ("brightness", "contrast", "saturation", "hue"):
        values = np.array([getattr(one, name) for one in drawn if getattr(one, name) is not None])
        low, high = getattr(SSD, name)
        assert 150 < len(values) < 250 and low <= values.min() < values.max() <= high
        assert values.max() - values.min() > 0.9 * (high - low)
    assert 150 < sum(one.contrast_first for one in drawn) < 250
    assert 150 < sum(one.order is not None for one in drawn) < 250 and len({one.order for one in drawn}) == 7


def test_a_batch_of_boxes_is_padded_normalised_and_without_crowds() -> None:
    truths = [truth((0, 0, 40, 32), (10, 8, 20, 16), (1, 1, 2, 2), crowd=(False, False, True)), truth(),
              truth((20, 0, 40, 8))]  # fmt: skip
    boxes, labels = collate(truths, PRESET.shape)
    assert boxes.dtype == torch.float32 and labels.dtype == torch.int64
    assert labels.tolist() == [[0, 1], [-1, -1], [0, -1]]
    assert boxes.tolist() == [[[0, 0, 1, 1], [0.25, 0.25, 0.5, 0.5]], [[0] * 4] * 2, [[0.5, 0, 1, 0.25], [0] * 4]]


def test_a_batch_without_boxes_has_room_for_one() -> None:
    boxes, labels = collate([truth(), truth()], PRESET.shape)
    assert boxes.shape == (2, 1, 4) and labels.tolist() == [[-1], [-1]]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"zoom_out": 1.5}, "zoom_out is 1.5, must be from 0 to 1"),
        ({"colours": -1}, "colours is -1, must be from 0 to 1"),
        ({"colours": float("nan")}, "colours is nan"),
        ({"scale": (0.0, 1.0)}, "scale (0.0, 1.0) must be a range above 0"),
        ({"scale": (1.5, 0.5)}, "scale (1.5, 0.5)"),
        ({"contrast": (-1.0, 1.0)}, "contrast (-1.0, 1.0) must be a range from 0 up"),
        ({"hue": (0.0, 0.6)}, "hue (0.0, 0.6) must be a range within"),
    ],
)
def test_a_value_out_of_range_is_an_error(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        DetectionAugment(**values)
    assert said in error.value.message


def test_an_unknown_name_suggests_the_nearest() -> None:
    assert detection_augment("none") is None and detection_augment("overhead") is OVERHEAD
    assert dataclasses.replace(PHOTO, flip_vertical=True) == OVERHEAD
    with pytest.raises(InputError, match="unknown augment 'sdlite'; did you mean 'ssdlite'"):
        detection_augment("sdlite")
