from __future__ import annotations

import numpy as np
import pytest

from mobilefit.data.splits import interleaved_by_class, stratified


def test_stratified_parts_are_disjoint_sorted_and_proportional() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 3])
    stay, apart = stratified(labels, 0.1, seed=1)
    assert np.array_equal(np.sort(np.concatenate([stay, apart])), np.arange(153))
    assert np.bincount(labels[apart]).tolist() == [10, 5, 1]
    assert (np.diff(stay) > 0).all() and (np.diff(apart) > 0).all()


def test_stratified_follows_the_seed_alone() -> None:
    labels = np.repeat([0, 1], 50)
    assert np.array_equal(stratified(labels, 0.2, 5)[1], stratified(labels, 0.2, 5)[1])
    assert not np.array_equal(stratified(labels, 0.2, 5)[1], stratified(labels, 0.2, 6)[1])


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, []), (0.01, [1, 1]), (0.99, [1, 1])])
def test_stratified_leaves_no_class_out(fraction: float, expected: list[int]) -> None:
    labels = np.array([0, 1, 0, 1])
    stay, apart = stratified(labels, fraction, seed=0)
    assert np.bincount(labels[apart]).tolist() == expected
    assert set(labels[stay]) == {0, 1}


def test_interleaved_alternates_without_repeating() -> None:
    labels = np.repeat([0, 1, 2], [9, 30, 5])
    chosen = interleaved_by_class(labels, 4, seed=2)
    assert labels[chosen].tolist() == [0, 1, 2] * 4
    assert len(set(chosen.tolist())) == 12
    assert len(interleaved_by_class(labels, 8, seed=2)) == 15  # the smallest class has 5
    assert not np.array_equal(chosen, interleaved_by_class(labels, 4, seed=3))
    assert len(interleaved_by_class(labels[:0], 4, seed=0)) == 0
