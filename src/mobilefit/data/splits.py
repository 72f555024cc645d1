"""Dividing labelled images by a seed, class by class. Positions in, positions out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def stratified(labels: Indices, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Divide positions in two so that both parts have every class in the same proportion.

    The smaller part gets ``fraction`` of each class, rounded, at least one image and never all;
    with ``fraction`` 0 it is empty. Both parts keep the original order.

    Args:
        labels: int64 [n]; every class that occurs has two images or more, unless ``fraction`` is 0.

    Returns:
        the positions that stay and those set apart: disjoint, together all.
    """
    apart = np.zeros(len(labels), dtype=bool)
    if fraction > 0:
        random = np.random.default_rng(seed)
        for label in np.unique(labels):
            members = random.permutation(np.flatnonzero(labels == label))
            count = min(max(1, round(fraction * len(members))), len(members) - 1)
            apart[members[:count]] = True
    return np.flatnonzero(~apart), np.flatnonzero(apart)


def interleaved_by_class(labels: Indices, per_class: int, seed: int) -> Indices:
    """Positions of ``per_class`` images of each class (fewer if a class has fewer), alternating."""
    random = np.random.default_rng(seed)
    classes = np.unique(labels)
    shuffled = [random.permutation(np.flatnonzero(labels == label)) for label in classes]
    count = min([per_class, *(len(members) for members in shuffled)])
    rounds = [[members[place] for members in shuffled] for place in range(count)]
    return np.array(rounds, dtype=np.int64).reshape(-1)
