from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from mobilefit.data.shards import sharded_order

Indices = npt.NDArray[np.int64]

GROUPS = np.repeat(np.arange(40), np.random.default_rng(0).integers(20, 60, 40))


def order_of(epoch: int, *, ranks: int = 1, batch: int = 32, groups: Indices = GROUPS) -> Indices:
    random = np.random.default_rng([3, epoch])
    return sharded_order(groups, random, batch_size=batch, ranks=ranks)


def runs_of(order: Indices, ranks: int, batch: int) -> list[Indices]:
    """What each rank reads, as ``batches`` deals it out."""
    whole = order[: len(order) // batch * batch].reshape(-1, ranks, batch // ranks)
    return [whole[:, rank].reshape(-1) for rank in range(ranks)]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("shards", [1, 3, 8, 9, 40])
def test_every_image_comes_once(ranks: int, shards: int) -> None:
    groups = GROUPS[shards > GROUPS]
    order = order_of(0, ranks=ranks, groups=groups)
    assert sorted(order) == list(range(len(groups)))
    for count in (0, 1, 5, 31, 32, 33):
        assert sorted(order_of(0, ranks=ranks, groups=groups[:count])) == list(range(count))


def test_the_order_is_that_of_the_epoch_alone_and_any_numbers_name_the_shards() -> None:
    np.testing.assert_array_equal(order_of(1, ranks=2), order_of(1, ranks=2))
    assert (order_of(1, ranks=2) != order_of(2, ranks=2)).mean() > 0.9
    np.testing.assert_array_equal(order_of(1, groups=GROUPS * 7 + 3), order_of(1))


def test_a_rank_reads_other_shards_in_every_epoch() -> None:
    first = [set(GROUPS[runs_of(order_of(epoch, ranks=2), 2, 32)[0]]) for epoch in range(20)]
    assert len(set.union(*first)) == 40
    assert all(len(one & other) < 18 for one, other in itertools.pairwise(first))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_each_rank_reads_its_own_shards_eight_at_a_time(ranks: int) -> None:
    order = order_of(0, ranks=ranks, batch=8)
    runs = runs_of(order, ranks, 8)
    for run in runs:
        assert len(set(GROUPS[run])) <= 40 / ranks * 1.35  # shards differ in size
        for place in range(0, len(run) - 20):
            assert len(set(GROUPS[run[place : place + 20]])) <= 10
        spans = [np.ptp(np.flatnonzero(GROUPS[run] == shard)) for shard in set(GROUPS[run])]
        assert max(spans) <= 8 * 60  # images of eight shards
    shared = [set(GROUPS[one]) & set(GROUPS[other]) for one in runs for other in runs if one is not other]
    assert all(len(both) <= 1 for both in shared)


def test_a_batch_is_a_good_mixture_from_the_first_one_on() -> None:
    groups = np.repeat(np.arange(40), 100)
    seen = np.array([len(set(groups[batch])) for epoch in range(20)
                     for batch in order_of(epoch, groups=groups).reshape(-1, 32)[[0, 1, 60, -1]]])  # fmt: skip
    assert seen.min() >= 4 and seen.mean() > 7


def test_few_shards_are_permuted_as_if_there_were_none() -> None:
    groups = np.repeat(np.arange(8), 50)
    places = np.array([np.argsort(order_of(epoch, groups=groups)) for epoch in range(300)])
    # Uniform on 0..399: mean 199.5 with a standard error of 6.7, deviation 115.5.
    assert abs(places.mean(0) - 199.5).max() < 30 and abs(places.std(0) - 115.5).max() < 20
    together = np.corrcoef(places[:, 0], places[:, 1])[0, 1]
    assert abs(together) < 0.2


def test_classes_are_mixed_as_by_a_permutation_if_shards_were_written_in_random_order() -> None:
    random = np.random.default_rng(5)
    groups, labels = np.repeat(np.arange(40), 100), random.permutation(np.arange(4000) % 10)

    def spread(order: Indices) -> float:
        counts = [np.bincount(labels[batch], minlength=10) for batch in order.reshape(-1, 50)]
        return float(np.std(counts))

    plain = np.mean([spread(random.permutation(4000)) for _ in range(5)])
    mine = np.mean([spread(order_of(epoch, groups=groups)) for epoch in range(5)])
    assert abs(mine / plain - 1) < 0.05


def test_ranks_that_cannot_share_a_batch_equally_still_read_their_own_shards() -> None:
    order = order_of(0, ranks=3, batch=8)
    assert sorted(order) == list(range(len(GROUPS)))
    starts = range(0, len(order) // 8 * 8, 8)
    for rank in range(3):
        run = np.concatenate([np.array_split(order[start : start + 8], 3)[rank] for start in starts])
        assert len(set(GROUPS[run])) <= 40 / 3 * 1.35
