"""Statistics of a few training batches in the place of running ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mobilefit.arch import Block, ClassifierHead, Conv, NetSpec
from mobilefit.data import ImageSet, Preset
from mobilefit.data.images import ArraySource
from mobilefit.nn import build
from mobilefit.train import calibration_batches, recalibrate_bn, recalibrated, recipe

SIDE = 16
PRESET = Preset(resolution=SIDE, fit="stretch")
RECIPE = replace(recipe("fast"), batch_size=8)
SPEC = NetSpec(
    name="small", input_size=SIDE, stem=Conv(out=8, kernel=3, stride=2), blocks=(Block(expand=16, out=8),),
    head=ClassifierHead(num_classes=3),
)


def noise(count: int) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE), np.uint8)
    return ImageSet(ArraySource(pixels, ["noise"] * count), np.arange(count) % 3)


@pytest.mark.parametrize(
    ("count", "images", "batches"), [(100, 24, 3), (100, 25, 4), (30, 512, 3), (5, 512, 1)]
)
def test_about_as_many_images_as_asked_for_and_at_most_one_pass(count: int, images: int, batches: int) -> None:
    sizes = [len(x) for x, _ in calibration_batches(noise(count), PRESET, RECIPE, images=images)]
    assert sizes == [min(8, count)] * batches


def test_the_batches_are_the_same_every_time_and_as_large_as_the_evaluations() -> None:
    shrunk = replace(RECIPE, train_scale=0.5, balance="sampling", repeats=2)
    first, again = (list(calibration_batches(noise(24), PRESET, r)) for r in (shrunk, RECIPE))
    assert len(first) == 3 and all(x.shape == (8, 3, SIDE, SIDE) for x, _ in first)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))


def test_statistics_are_the_mean_over_those_batches() -> None:
    torch.manual_seed(0)
    network, other, images = build(SPEC), build(SPEC), noise(32)
    other.load_state_dict(network.state_dict())
    assert recalibrated(network, images, PRESET, RECIPE) is network
    recalibrate_bn(other, [x for x, _ in calibration_batches(images, PRESET, RECIPE)])
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in network.state_dict().items())
    assert not any(torch.equal(v, torch.ones_like(v)) for k, v in network.state_dict().items() if k.endswith("running_var"))
