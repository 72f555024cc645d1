from __future__ import annotations

import numpy as np
import pytest

from mobilefit.data import Feed, ImageSet, Preset, Sampling, by_workers, class_weights
from mobilefit.data.images import ArraySource
from mobilefit.data.order import epoch_order
from mobilefit.errors import InputError

PRESET = Preset(resolution=8, crop_fraction=1.0)


class Sharded(ArraySource):
    """Images that lie together ten by ten."""

    @property
    def groups(self) -> np.ndarray:
        return np.arange(len(self.names)) // 10


def made(count: int, source: type[ArraySource] = ArraySource) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    return ImageSet(source(pixels, [str(n) for n in range(count)]), np.arange(count) % 3)


def order(image_set: ImageSet, ranks: int = 1, **sampling: object) -> np.ndarray:
    random = np.random.default_rng(1)
    return epoch_order(image_set, Sampling(**sampling), random, ranks=ranks, batch_size=8)  # type: ignore[arg-type]


def test_every_image_once() -> None:
    found = order(made(53))
    assert sorted(found) == list(range(53)) and found.tolist() != sorted(found)


def test_images_in_shards_come_once_each_and_not_in_their_order() -> None:
    images = made(160, Sharded)
    for ranks in (1, 2):
        found = order(images, ranks=ranks)
        assert sorted(found) == list(range(160)) and found.tolist() != sorted(found)
    with pytest.raises(InputError, match="cannot be drawn by class; use --balance loss"):
        order(images, balanced=True)


def test_each_process_reads_its_own_shards() -> None:
    """The first process's part of each batch lies in the shards that the second one does not touch."""
    images = made(160, Sharded)
    feeds = [Feed(images, PRESET, 8, seed=3, rank=rank, ranks=2) for rank in range(2)]
    chosen = [np.concatenate([feed.chosen(step) for step in range(20)]) for feed in feeds]
    assert sorted(np.concatenate(chosen)) == list(range(160))
    shards = [set(part // 10) for part in chosen]
    assert not shards[0] & shards[1] and len(shards[0]) == len(shards[1]) == 8


@pytest.mark.parametrize("count", [64, 61])
def test_two_processes_with_two_workers_see_what_one_sees(count: int) -> None:
    images, steps = made(count), range(3, 20)  # over the border of an epoch
    whole = list(by_workers(Feed(images, PRESET, 16, seed=2), steps, 0))
    parts = [list(by_workers(Feed(images, PRESET, 16, seed=2, rank=rank, ranks=2), steps, 2)) for rank in range(2)]
    for (pixels, labels), *halves in zip(whole, *parts, strict=True):
        assert np.array_equal(np.concatenate([half[0] for half in halves]), pixels)
        assert np.array_equal(np.concatenate([half[1] for half in halves]), labels)


def test_weights_of_classes() -> None:
    labels = np.array([0, 0, 0, 0, 2, 2])
    assert class_weights(labels, 4)[[1, 3]].tolist() == [1, 1]  # of no image
    weights = class_weights(labels)[labels]
    assert weights.mean() == pytest.approx(1) and weights[labels == 0].sum() == pytest.approx(3)
    assert weights[labels == 2].sum() == pytest.approx(3)


def test_errors_of_worker_processes_arrive_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    def prepare(number: int) -> tuple[object, object]:
        raise InputError(f"cannot read {number}", "mend it")

    for workers in (0, 2):
        with pytest.raises(InputError, match=r"^cannot read 0; mend it$"):
            next(by_workers(prepare, range(3), workers))  # type: ignore[arg-type]


def test_what_comes_is_told_ahead() -> None:
    told: list[int] = []

    class Distant(Sharded):
        ahead_count = 20

        def ahead(self, indices: np.ndarray) -> None:
            told.extend(indices)

    feed = Feed(made(160, Distant), PRESET, 8, seed=3)
    feed(2)
    assert told == [image for step in (3, 4, 5) for image in feed.chosen(step)]
    told.clear()
    feed(19)
    assert told == []  # the pass ends
