"""Frozen features judged by a linear classifier."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from mobilefit.arch import Block, ClassifierHead, Conv, NetSpec
from mobilefit.data import ImageSet, Preset
from mobilefit.data.images import ArraySource
from mobilefit.nn import Network, build
from mobilefit.pipeline import probe as probe_module
from mobilefit.pipeline.probe import probe

SIDE, CLASSES = 16, 4
SPEC = NetSpec(
    name="tiny", input_size=SIDE, stem=Conv(out=8, kernel=3, stride=2, act="relu"),
    blocks=(Block(expand=24, out=16, stride=2, act="relu"),),
    head=ClassifierHead(hidden=32, act="relu", dropout=0.5, num_classes=CLASSES),
)  # fmt: skip
PRESET = Preset(resolution=SIDE, crop_fraction=1.0)


def images(count: int, seed: int, labels: npt.NDArray[np.int64] | None = None) -> ImageSet:
    """Four shades with a little noise; or other labels for the same images."""
    rng = np.random.default_rng(seed)
    shades = np.arange(count) % CLASSES
    noise = rng.integers(0, 20, (count, SIDE, SIDE))
    pixels = (noise + 70 * shades[:, None, None]).clip(0, 255).astype(np.uint8)
    source = ArraySource(pixels, [str(i) for i in range(count)])
    return ImageSet(source, (shades if labels is None else labels).astype(np.int64))


@pytest.fixture
def network() -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return build(SPEC)


def set_features(monkeypatch: pytest.MonkeyPatch, features: Callable[[ImageSet], Tensor]) -> None:
    """Features by construction, in the place of a network's."""
    monkeypatch.setattr(
        probe_module, "logits_of", lambda network, image_set, preset: features(image_set).numpy()
    )


def test_separable_features_are_learned(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each class in a corner of its own, on scales that differ by 10^6, off centre."""
    scale = torch.tensor([1e-3, 1.0, 50.0, 1e3, 1.0])

    def features(image_set: ImageSet) -> Tensor:
        corners = torch.eye(CLASSES, 5)[torch.from_numpy(image_set.labels)]
        noise = torch.randn(len(image_set), 5, generator=torch.Generator().manual_seed(len(image_set)))
        return scale * (corners + 0.05 * noise + 2.0)

    set_features(monkeypatch, features)
    losses, accuracy = probe(network, PRESET, images(120, 0), images(60, 1))
    assert accuracy == 1.0 and losses.shape == (60,) and losses.dtype == np.float32
    assert losses.max() < 0.1


def test_features_that_say_nothing_give_the_log_of_the_classes(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bias alone is learned: of 4 classes, of which one is as frequent as all others, 1.24 nats."""

    def constant(image_set: ImageSet) -> Tensor:
        return torch.full((len(image_set), 6), 3.25)

    set_features(monkeypatch, constant)
    even, _ = probe(network, PRESET, images(400, 0), images(80, 1))
    assert np.allclose(even, math.log(CLASSES), atol=1e-3)
    labels = np.array([0, 0, 0, 1, 2, 3] * 40)
    skewed, _ = probe(network, PRESET, images(240, 0, labels), images(60, 1, labels[:60]))
    assert skewed.mean() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(6), abs=1e-3)


def test_labels_at_random_give_no_less_than_chance(network: Network) -> None:
    rng = np.random.default_rng(5)
    train = images(800, 0, rng.integers(0, CLASSES, 800))
    held_out = images(200, 1, rng.integers(0, CLASSES, 200))
    losses, _ = probe(network, PRESET, train, held_out)
    assert losses.mean() == pytest.approx(math.log(CLASSES), abs=0.15)


def test_a_networks_own_features_tell_shades_apart(network: Network) -> None:
    """Random filters already keep the brightness."""
    losses, _ = probe(network, PRESET, images(200, 0), images(80, 1))
    assert losses.mean() < 0.1


def test_it_ranks_a_network_that_sees_above_one_that_does_not(network: Network) -> None:
    blind = build(SPEC)
    with torch.no_grad():
        next(blind.parameters()).zero_()  # of the first convolution: nothing of the image passes
    seeing, _ = probe(network, PRESET, images(200, 0), images(80, 1))
    assert seeing.mean() < 0.2 * probe(blind, PRESET, images(200, 0), images(80, 1))[0].mean()


def test_the_network_is_as_before(network: Network) -> None:
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    logits = network.head.logits
    first, _ = probe(network, PRESET, images(40, 0), images(20, 1))
    assert network.head.logits is logits and network.training
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert np.array_equal(first, probe(network, PRESET, images(40, 0), images(20, 1))[0])


def test_the_last_layer_comes_back_after_a_failure(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = network.head.logits

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(probe_module, "logits_of", fail)
    with pytest.raises(MemoryError):
        probe(network, PRESET, images(8, 0), images(8, 1))
    assert network.head.logits is logits


def test_how_many_classes_the_network_was_trained_with_does_not_matter() -> None:
    """Pretrained weights come with a thousand."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        wide = build(replace(SPEC, head=replace(SPEC.head, num_classes=1000)))
    losses, _ = probe(wide, PRESET, images(100, 0), images(40, 1))
    assert losses.shape == (40,) and losses.mean() < 0.3


def test_a_class_that_only_the_held_out_images_have(network: Network) -> None:
    """No training image of the last class: its held-out images are lost, the others are not."""
    train = images(90, 0).subset(np.flatnonzero(images(90, 0).labels < 3))
    losses, _ = probe(network, PRESET, train, images(40, 1))
    assert losses.shape == (40,)
    labels = images(40, 1).labels
    assert losses[labels < 3].mean() < 0.2 < losses[labels == 3].min()
