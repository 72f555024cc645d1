"""Batches that worker processes prepare are those that this process prepares: same numbers, same types."""

from __future__ import annotations

import multiprocessing
import warnings
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.shard_server import write_shards
from PIL import Image
from torch.utils.data._utils.pin_memory import pin_memory
from train.small import network

from mobilefit.data import ImageSet, Preset, by_workers, load
from mobilefit.data import folder as folder_module
from mobilefit.data.images import ArraySource
from mobilefit.errors import InputError
from mobilefit.tasks.detect import Detect
from mobilefit.tasks.segment import Segment
from mobilefit.train import SoftTargets, fit, open_fabric, recipe
from mobilefit.train.classify import Classify
from mobilefit.train.distillation import distillation_task

from .scenes import SIDE, boxes_data, detector_network, masks_data, segmenter_network

PRESET = Preset(resolution=SIDE, fit="stretch")
STEPS = range(1, 4)


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> None:
    multiprocessing.get_context("forkserver").set_forkserver_preload(["mobilefit.tasks.detect", "timm.optim"])


def write_folder(root: Path) -> Path:
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for number in range(12):
            pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def classify_feed(root: Path) -> Any:
    images = load(write_folder(root)).train
    return Classify().feed(images, PRESET, replace(recipe("fast"), batch_size=4, policy="rand-m9-n2"), seed=1)


def large_folder_feed(root: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_module, "LOOKED_AT", 1)
        return classify_feed(root)


def shards_feed(root: Path) -> Any:
    root.mkdir()
    write_shards(root, shards=2, each=20)
    images = load(str(root)).train
    return Classify().feed(images, PRESET, replace(recipe("fast"), batch_size=4), seed=1)


def taught_feed(root: Path) -> Any:
    images, chosen = load(write_folder(root)).train, replace(recipe("fast"), batch_size=4, distillation=0.5)
    teacher = SoftTargets(network=network(), preset=Preset(resolution=16), cache=root / "cache")
    task = distillation_task(Classify(), teacher, images, PRESET, chosen, 1, open_fabric("cpu"))
    return task.feed(images, PRESET, chosen, seed=1)


def detect_feed(root: Path) -> Any:
    return Detect().feed(boxes_data(root).train, PRESET, replace(recipe("detect"), batch_size=4), seed=1)


def segment_feed(root: Path) -> Any:
    return Segment().feed(masks_data(root).train, PRESET, replace(recipe("segment"), batch_size=4), seed=1)


FEEDS = [classify_feed, large_folder_feed, shards_feed, taught_feed, detect_feed, segment_feed]


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and one.equal(other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key])
    elif isinstance(one, (tuple, list)):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other):
            assert_same(mine, theirs)
    else:
        assert one == other


@pytest.mark.parametrize("make", FEEDS, ids=lambda make: make.__name__.removesuffix("_feed"))
def test_every_task_with_any_number_of_workers_started_in_any_way(
    make: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOBILEFIT_CACHE", str(tmp_path / "cache"))
    feed = make(tmp_path / "data")
    expected = [feed(step) for step in STEPS]
    for method in ("fork", "spawn", "forkserver"):
        for workers in (0, 1, 2):
            batches = list(by_workers(feed, STEPS, workers, start_method=method))
            assert len(batches) == len(STEPS), (method, workers)
            for batch, plain in zip(batches, expected):
                assert_same(batch, plain)


@pytest.mark.parametrize("make", FEEDS, ids=lambda make: make.__name__.removesuffix("_feed"))
def test_types_survive_pinned_memory(
    make: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``DataLoader`` does to a batch where there is a GPU, with a GPU's memory simulated."""
    monkeypatch.setenv("MOBILEFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    batch = make(tmp_path / "data")(1)
    assert_same(pin_memory(batch), batch)


Pair = namedtuple("Pair", "boxes labels")


def odd_targets(step: int) -> Any:
    """Structures that no task has today."""
    numbers = torch.arange(step, step + 3)
    return numbers.float(), (numbers, [numbers, (numbers,)], {"pair": Pair(numbers, (numbers, "name"))}, None, 3.5)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_any_structure_of_targets_stays_as_it_is(method: str) -> None:
    for batch, step in zip(by_workers(odd_targets, STEPS, 2, start_method=method), STEPS, strict=True):
        assert_same(batch, odd_targets(step))


def failing(step: int) -> Any:
    if step == 2:
        raise InputError("image 7 is bad", "replace it")
    return odd_targets(step)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_an_error_of_a_worker_keeps_its_line_and_hint(method: str) -> None:
    batches = by_workers(failing, STEPS, 1, start_method=method)
    next(batches)
    with pytest.raises(InputError) as caught:
        next(batches)
    assert (caught.value.message, caught.value.hint) == ("image 7 is bad", "replace it")


@pytest.mark.parametrize("task", ["classify", "detect", "segment"])
def test_a_training_with_workers_equals_one_without(task: str, tmp_path: Path) -> None:
    base = replace(recipe({"classify": "fast"}.get(task, task)), batch_size=4)
    if task == "classify":
        pixels = np.random.default_rng(0).integers(0, 256, (16, 12, 12), dtype=np.uint8)
        images = ImageSet(ArraySource(pixels, [str(n) for n in range(16)]), np.arange(16, dtype=np.int64) % 3)
        job, make = Classify(), network
    elif task == "detect":
        images, job, make = boxes_data(tmp_path / "data").train, Detect(), detector_network
    else:
        images, job, make = masks_data(tmp_path / "data").train, Segment(), segmenter_network
    losses = []
    for workers in (0, 1, 2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = fit(make(), images, preset=PRESET, recipe=base, task=job, steps=3, workers=workers,
                         accelerator="cpu", threads=1)  # fmt: skip
        losses.append(result.loss)
    assert losses[0] == losses[1] == losses[2] and np.isfinite(losses[0])
