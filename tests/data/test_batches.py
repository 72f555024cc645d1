from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mobilefit.data import (
    INCEPTION,
    LIGHT,
    MILD,
    Augment,
    ImageSet,
    Preset,
    batch_count,
    batches,
    load,
)
from mobilefit.data import folder as folder_module
from mobilefit.data.augment import draw, mirrored, recoloured
from mobilefit.data.images import ArraySource
from mobilefit.errors import InputError

from .conftest import MakeFolder

PRESET = Preset(resolution=16, crop_fraction=1.0)


@pytest.fixture
def grey_set() -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (53, 12, 12), dtype=np.uint8)
    names = [str(number) for number in range(53)]
    return ImageSet(ArraySource(pixels, names), np.arange(53, dtype=np.int64))


def everything(image_set: ImageSet, size: int = 8, **options: object) -> tuple[torch.Tensor, ...]:
    options = {"train": True, "augment": LIGHT, "seed": 1, "epoch": 2} | options
    made = list(batches(image_set, PRESET, size, **options))  # type: ignore[arg-type]
    values, labels = zip(*made, strict=True)
    return torch.cat(values), torch.cat(labels)


def test_evaluation_keeps_order_and_every_image(grey_set: ImageSet) -> None:
    values, labels = everything(grey_set, train=False)
    assert values.shape == (53, 3, 16, 16) and values.dtype == torch.float32
    assert values.is_contiguous(memory_format=torch.channels_last) and -1 <= values.min() < values.max() <= 1
    assert labels.dtype == torch.int64 and labels.tolist() == list(range(53))


def test_training_shuffles_and_leaves_out_the_rest(grey_set: ImageSet) -> None:
    values, labels = everything(grey_set)
    assert len(values) == 48 and len(set(labels.tolist())) == 48
    assert labels.tolist() != sorted(labels.tolist())


@pytest.mark.parametrize(
    ("count", "size", "train", "expected"),
    [(53, 8, True, 6), (53, 8, False, 7), (5, 8, True, 1), (0, 8, True, 0), (16, 8, False, 2)],
)
def test_batch_count(grey_set: ImageSet, count: int, size: int, train: bool, expected: int) -> None:
    assert batch_count(count, size, train=train) == expected
    made = list(batches(grey_set.subset(range(count)), PRESET, size, train=train, augment=LIGHT))
    assert len(made) == expected


@pytest.mark.parametrize("augment", [None, LIGHT, MILD, INCEPTION])
def test_batches_follow_seed_epoch_and_position_alone(
    grey_set: ImageSet, augment: Augment | None
) -> None:
    values, labels = everything(grey_set, augment=augment)
    for options in ({}, {"prefetch": 0}, {"size": 12}, {"start": 0}):
        again, its_labels = everything(grey_set, augment=augment, **options)
        assert again.equal(values) and its_labels.equal(labels)
    resumed, its_labels = everything(grey_set, augment=augment, start=4)
    assert resumed.equal(values[32:]) and its_labels.equal(labels[32:])
    for changed in ({"seed": 2}, {"epoch": 3}):
        assert not everything(grey_set, augment=augment, **changed)[1].equal(labels)


def test_start_touches_no_earlier_image(
    grey_set: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    touched: list[int] = []
    original = ArraySource.working

    def working(self: ArraySource, index: int) -> Image.Image:
        touched.append(index)
        return original(self, index)

    monkeypatch.setattr(ArraySource, "working", working)
    everything(grey_set, start=5)
    assert len(touched) == 8


def test_augmentation_changes_images_and_keeps_their_range(grey_set: ImageSet) -> None:
    plain, labels = everything(grey_set, augment=None)
    varied, its_labels = everything(grey_set, augment=INCEPTION)
    assert labels.equal(its_labels)
    assert (plain - varied).abs().mean() > 0.1
    assert varied.min() >= -1 and varied.max() <= 1


def test_crops_stay_inside_and_have_the_asked_area() -> None:
    augment = Augment(area=(0.2, 0.6), aspect=(0.5, 2.0))
    draws = draw(augment, 500, np.random.default_rng(0))
    left_out = []
    for position in range(500):
        left, top, right, bottom = draws.box(position, (80, 60))
        assert 0 <= left < right <= 80 + 1e-9 and 0 <= top < bottom <= 60 + 1e-9
        left_out.append((right - left) * (bottom - top) / 4800)
    assert max(left_out) < 0.6 + 1e-9 and np.mean(left_out) > 0.35
    assert min(draws.box(0, (1, 1))[2:]) > 0


def test_flip_mirrors_half_of_the_images() -> None:
    draws = draw(LIGHT, 400, np.random.default_rng(0))
    assert 150 < draws.flip.sum() < 250
    assert not draw(Augment(area=(1, 1), flip=False), 400, np.random.default_rng(0)).flip.any()
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    turned = mirrored(pixels.copy(), np.array([False, True]))
    assert np.array_equal(turned[0], pixels[0])
    assert np.array_equal(turned[1], pixels[1, :, ::-1])


def test_colours_by_hand() -> None:
    red = np.zeros((1, 3, 1, 1), np.float32)
    red[0, 0] = 200

    def changed(brightness: float, saturation: float) -> list[float]:
        one, two = (np.array([value], np.float32) for value in (brightness, saturation))
        return recoloured(red.copy(), one, two).reshape(3).round(2).tolist()

    assert changed(0, 1) == [200, 0, 0]
    assert changed(0, 0) == pytest.approx([59.8] * 3)
    assert changed(0, 0.5) == pytest.approx([129.9, 29.9, 29.9])
    assert changed(0.1, 1) == pytest.approx([225.5, 25.5, 25.5])
    assert changed(1, 1) == [255] * 3 and changed(-1, 1) == [0] * 3


def test_bad_augmentation_names_all_problems() -> None:
    with pytest.raises(InputError, match=r"area .*aspect .*brightness .*saturation"):
        Augment(area=(0, 2), aspect=(2, 1), brightness=3, saturation=(1, 0))


@pytest.fixture
def threads() -> Callable[[], int]:
    """Counts the batches' threads, without those of iterators that earlier tests left for the collector."""
    before = set(threading.enumerate())

    def count() -> int:
        new = set(threading.enumerate()) - before
        return sum(thread.name.startswith("mobilefit-batches") for thread in new)

    return count


def test_the_background_thread_ends_with_the_iterator(
    grey_set: ImageSet, threads: Callable[[], int]
) -> None:
    made = batches(grey_set, PRESET, 4, train=True, augment=LIGHT)
    assert isinstance(made, Iterator)
    next(made)
    assert threads() == 1
    made.close()  # type: ignore[attr-defined]
    assert threads() == 0
    for _ in batches(grey_set, PRESET, 4, train=True):
        break
    assert threads() == 0


def test_errors_of_the_background_thread_arrive(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, threads: Callable[[], int]
) -> None:
    monkeypatch.setattr(folder_module, "ROOM", 0)
    train = load(make_folder({"a": 8, "b": 8})).train
    lost = Path(train.names[3])
    lost.unlink()
    with pytest.raises(InputError, match=f"cannot read {lost}"):
        list(batches(train, PRESET, 2, train=True, augment=LIGHT))
    assert threads() == 0


def test_subsets_share_pixels_and_names(grey_set: ImageSet) -> None:
    part = grey_set.subset([5, 3, 40]).subset([2, 0])
    assert part.names == ("40", "5") and part.labels.tolist() == [40, 5]
    assert part.images([1], 20).equal(grey_set.images([5], 20))
    assert part.images([0, 1], 20).dtype == torch.uint8


def test_balanced_subsets(make_folder: MakeFolder) -> None:
    train = load(make_folder({"a": 12, "b": 30})).train
    chosen = train.balanced(3, seed=1)
    assert np.bincount(chosen.labels).tolist() == [3, 3]
    assert chosen.names == train.balanced(3, seed=1).names != train.balanced(3, seed=2).names
