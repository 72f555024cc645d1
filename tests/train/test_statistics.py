"""Paired differences, checked by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from mobilefit.train.statistics import Difference, bootstrapped, paired


def test_losses_by_hand() -> None:
    difference = paired(np.array([1.0, 2.0, 3.0, 6.0]), np.array([0.0, 2.0, 1.0, 1.0]))
    # differences 1, 0, 2, 5: mean 2, squared deviations 1 + 4 + 0 + 9 = 14, variance 14 / 3
    assert difference.mean == 2.0
    assert difference.error == pytest.approx(math.sqrt(14 / 3 / 4))
    assert difference.count == 4


def test_right_and_wrong_answers_as_in_mcnemars_test() -> None:
    """b images only the first has right, c only the second: difference (b - c) / n."""
    both, b, c, neither = 50, 20, 10, 20
    first = np.repeat([1.0, 1.0, 0.0, 0.0], [both, b, c, neither])
    second = np.repeat([1.0, 0.0, 1.0, 0.0], [both, b, c, neither])
    difference = paired(first, second)
    n = both + b + c + neither
    assert difference.mean == pytest.approx((b - c) / n)
    # the variance of a difference of paired proportions: (b + c - (b - c)^2 / n) / n^2, and n / (n - 1)
    by_hand = math.sqrt((b + c - (b - c) ** 2 / n) / (n * (n - 1)))
    assert difference.error == pytest.approx(by_hand)
    assert difference.mean / difference.error == pytest.approx((b - c) / math.sqrt(b + c), rel=0.03)


def test_pairing_is_what_makes_the_error_small() -> None:
    hard = np.linspace(0, 5, 100)  # images differ far more than the networks do
    wobble = 0.01 * (-1.0) ** np.arange(100)
    difference = paired(hard + 0.1 + wobble, hard)
    assert difference.mean == pytest.approx(0.1)
    assert difference.error == pytest.approx(0.01 / math.sqrt(99))


def test_the_images_are_the_sample_and_not_the_seeds() -> None:
    first = np.array([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])  # [2 seeds, 3 images]
    second = np.zeros((2, 3))
    difference = paired(first, second)
    # means over the seeds 1, 0.5, 0.5: mean 2/3, squared deviations 1/9 + 1/36 + 1/36 = 1/6
    assert difference.count == 3
    assert difference.mean == pytest.approx(2 / 3)
    assert difference.error == pytest.approx(math.sqrt(1 / 6 / 2 / 3))
    doubled = paired(np.repeat(first, 5, axis=0), np.repeat(second, 5, axis=0))
    assert doubled.error == pytest.approx(difference.error)  # more seeds are no more images


def test_which_side_is_first_is_the_sign() -> None:
    first, second = np.array([0.3, 0.1, 0.9]), np.array([0.5, 0.2, 0.1])
    there, back = paired(first, second), paired(second, first)
    assert there.mean == pytest.approx(-back.mean) and there.error == pytest.approx(back.error)


def test_one_image_has_no_error() -> None:
    for shape in ((1,), (3, 1)):
        difference = paired(np.full(shape, 0.75), np.full(shape, 0.5))
        assert difference.mean == 0.25 and difference.count == 1
        assert math.isnan(difference.error)


def test_equals_do_not_differ() -> None:
    losses = np.linspace(0, 1, 7, dtype=np.float32)
    assert paired(losses, losses) == Difference(mean=0.0, error=0.0, count=7)


def test_float32_losses_are_averaged_in_float64() -> None:
    """In float32 a difference of one in ten million is lost beside a loss of 16."""
    first = np.full(1000, 16.0, np.float64) + 1e-7
    assert paired(first, np.full(1000, 16.0, np.float32)).mean == pytest.approx(1e-7, rel=1e-3)


def test_other_images_are_refused() -> None:
    with pytest.raises(AssertionError, match="the same images"):
        paired(np.zeros(3), np.zeros(4))


def test_in_words() -> None:
    assert str(Difference(mean=0.021, error=0.0064, count=10)) == "+0.021 ± 0.0064"


@dataclass(frozen=True)
class Mean:
    """A score that is a mean over the images after all."""

    values: np.ndarray

    def score(self, weights: np.ndarray) -> float:
        return float(weights @ self.values / weights.sum())


def test_the_bootstraps_error_of_a_mean_is_that_of_the_mean() -> None:
    random = np.random.default_rng(4)
    first, second = random.normal(1.0, 1.0, (2, 300))
    both = random.normal(0.0, 5.0, 300)  # an image that is hard for one is hard for the other
    found = bootstrapped([(Mean(first + both), Mean(second + both))], 300, resamples=2000)
    expected = paired(first + both, second + both)
    assert found.mean == pytest.approx(expected.mean) and found.count == 300
    assert found.error == pytest.approx(expected.error, rel=0.08)
    assert bootstrapped([(Mean(first), Mean(second))] * 2, 300, seed=1) == bootstrapped(
        [(Mean(first), Mean(second))], 300, seed=1
    )


def test_several_seeds_are_averaged_before_the_images_are_drawn() -> None:
    random = np.random.default_rng(5)
    first, second = random.normal(0.0, 1.0, (2, 3, 200))
    pairs = [(Mean(a), Mean(b)) for a, b in zip(first, second)]
    found = bootstrapped(pairs, 200, resamples=2000)
    assert found.mean == pytest.approx(paired(first, second).mean)
    assert found.error == pytest.approx(paired(first, second).error, rel=0.08)
