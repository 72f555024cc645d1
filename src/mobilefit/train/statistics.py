"""Paired comparisons: two networks on the same images differ by a mean with its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A mean difference over the same images, and its standard error."""

    mean: float
    error: float
    """Standard error of the mean: the sample standard deviation of the differences by the root of
    their number; NaN of fewer than two."""
    count: int

    def __str__(self) -> str:
        return f"{self.mean:+.4g} ± {self.error:.2g}"


def paired(first: Floats, second: Floats) -> Difference:
    """What ``first`` is above ``second``, over the same images in the same order.

    Args:
        first, second: [n] each: losses in nats, or 1 where an image is right and 0 where it is not (the
            standard error is then that of McNemar's test). [seeds, n]: an image counts by its mean over
            the seeds, as the images and not the trainings are the sample.
    """
    assert first.shape == second.shape, "the same images"
    differences = np.atleast_2d(np.asarray(first, np.float64) - np.asarray(second, np.float64)).mean(0)
    count = len(differences)
    error = float(differences.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return Difference(mean=float(differences.mean()), error=error, count=count)


class Outcomes(Protocol):
    """What a network did with each image of a set, and a score that is no mean over the images: mAP, mIoU."""

    def score(self, weights: npt.NDArray[np.int64]) -> float:
        """The score if image ``i`` of ``n`` counts ``weights[i]`` times; NaN where it has none."""


def bootstrapped(
    pairs: Sequence[tuple[Outcomes, Outcomes]], images: int, *, resamples: int = 400, seed: int = 0
) -> Difference:
    """What the first scores are above the second, over the same images, as a mean over the pairs (seeds).

    The standard error is the standard deviation of that difference over sets of as many images, drawn with
    replacement, the same ones for all (paired bootstrap; Efron and Tibshirani, 1993, chapter 6). The images and not
    the trainings are the sample, as in :func:`paired`. Of 400 sets the error is known to 4 %.

    Args:
        pairs: of each seed the two networks' outcomes.
        images: their number.
    """

    def difference(weights: npt.NDArray[np.int64]) -> float:
        return float(np.mean([first.score(weights) - second.score(weights) for first, second in pairs]))

    random = np.random.default_rng(seed)
    drawn = random.multinomial(images, np.full(images, 1 / images), resamples)
    differences = np.array([difference(weights) for weights in drawn])
    return Difference(
        mean=difference(np.ones(images, np.int64)), error=float(np.nanstd(differences, ddof=1)), count=images
    )
