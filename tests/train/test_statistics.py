"""Differences between networks on the same images."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mobilefit.train.statistics import paired


def test_a_paired_difference_by_hand() -> None:
    first, second = np.array([1.0, 2.0, 4.0, 5.0]), np.array([1.0, 1.0, 2.0, 2.0])
    difference = paired(first, second)  # 0, 1, 2, 3: the variance is 5/3
    assert (difference.mean, difference.count) == (1.5, 4)
    assert difference.error == pytest.approx(math.sqrt(5 / 3 / 4))


def test_what_both_share_does_not_count() -> None:
    hard = np.array([0.0, 100.0, 3.0, 50.0])
    assert paired(hard + 0.5, hard).error == pytest.approx(0.0, abs=1e-12)


def test_seeds_are_averaged_before_images_are_compared() -> None:
    first, second = np.array([[1.0, 3.0], [3.0, 5.0]]), np.zeros((2, 2))
    assert paired(first, second).mean == 3.0 and paired(first, second).count == 2


def test_one_image_has_no_error() -> None:
    assert math.isnan(paired(np.array([1.0]), np.array([2.0])).error)
