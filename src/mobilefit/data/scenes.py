"""Batches of images whose truth is more than a class: boxes, or a mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from mobilefit.data.batches import ahead
from mobilefit.data.decode import Pixels
from mobilefit.data.order import Indices, Steps, batch_count
from mobilefit.data.preset import Preset, to_floats

Read = Callable[[int], tuple[Image.Image, Any]]
"""From an image's place in its set to the image, RGB, and its truth."""


class Vary(Protocol):
    """Augmentation of an image and its truth. It can be pickled: worker processes may be spawned."""

    def __call__(self, image: Image.Image, truth: Any, *, random: np.random.Generator) -> tuple[Pixels, Any]:
        """An image and its truth as training sees them."""


class Scenes(Protocol):
    """A set of images with their truth, in a fixed order."""

    def __len__(self) -> int: ...

    @property
    def names(self) -> Sequence[str]:
        """Paths of the images."""

    @property
    def digest(self) -> str:
        """12 hex digits of the content and the order."""

    def subset(self, indices: Sequence[int] | Indices) -> Scenes:
        """The images at these positions, in this order."""

    def sample(self, index: int) -> tuple[Image.Image, Any]:
        """An image in RGB and its truth."""


class SceneFeed:
    """Every batch of a training, by the number of its step.

    As of :class:`mobilefit.data.Feed`: the order is drawn from (seed, epoch), what is varied in an image
    from (seed, epoch, its place in the epoch), so a batch is the same whoever asks for it, and when.

    Args:
        count: images in the set.
        read: gives one.
        vary: makes of it what training sees.
        collate: puts the truths of a batch together.
        preset: how pixels become the network's input.
        batch_size: images of a step in all processes.
        rank, ranks: which part of each batch is given, and of how many.
    """

    def __init__(
        self, count: int, read: Read, vary: Vary, collate: Callable[[list[Any]], Any], preset: Preset,
        batch_size: int, *, seed: int = 0, rank: int = 0, ranks: int = 1,
    ) -> None:  # fmt: skip
        self._read, self._vary, self._collate = read, vary, collate
        self._preset, self._seed = preset, seed
        self._steps = Steps(count=count, batch_size=batch_size, rank=rank, ranks=ranks)
        self._drawn: tuple[int, Indices] | None = None

    def _order(self, epoch: int) -> Indices:
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, np.random.default_rng([self._seed, epoch]).permutation(self._steps.count)
        return self._drawn[1]

    def chosen(self, step: int) -> Indices:
        """Which images of the set a step's batch holds, int64 [n]."""
        epoch, places = self._steps.places(step)
        return self._order(epoch)[places]

    def __call__(self, step: int) -> tuple[torch.Tensor, Any]:
        """Float32 [n, 3, height, width] and the collated truths."""
        epoch, places = self._steps.places(step)
        order = self._order(epoch)
        found = [self._one(int(order[place]), [self._seed, epoch, 1 + int(place)]) for place in places]
        return prepared([pixels for pixels, _ in found], self._preset), self._collate([t for _, t in found])

    def _one(self, index: int, seeds: list[int]) -> tuple[Pixels, Any]:
        return self._vary(*self._read(index), random=np.random.default_rng(seeds))


def prepared(pixels: Sequence[Pixels], preset: Preset) -> torch.Tensor:
    """Pixels uint8 [h, w, 3] of several images as the network takes them: float32 [n, 3, h, w]."""
    return torch.from_numpy(preset.normalise(to_floats(np.stack(pixels))))


def scene_batches(
    scenes: Scenes, see: Callable[[Image.Image, Any], tuple[Pixels, Any]], preset: Preset, batch_size: int,
    *, rank: int = 0, ranks: int = 1,
) -> Iterator[tuple[range, torch.Tensor, list[Any]]]:  # fmt: skip
    """One pass for evaluation, in the set's order.

    Args:
        see: an image and its truth as evaluation sees them.
        rank, ranks: every ``ranks``-th batch from ``rank`` on.

    Yields:
        The images' places in the set, float32 [n, 3, height, width], and what ``see`` made of each truth.
    """

    def one(number: int) -> Any:
        places = range(number * batch_size, min((number + 1) * batch_size, len(scenes)))
        seen = [see(*scenes.sample(place)) for place in places]
        return places, prepared([pixels for pixels, _ in seen], preset), [truth for _, truth in seen]

    numbers = range(rank, batch_count(len(scenes), batch_size, train=False), ranks)
    found: Iterator[Any] = ahead(one, numbers, 2)
    yield from found
