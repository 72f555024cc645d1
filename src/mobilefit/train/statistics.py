"""Paired comparisons: two networks on the same images differ by a mean with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
