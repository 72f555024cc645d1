"""An input or output of a loaded network, whatever the runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from mobilefit.errors import InputError


class Port(NamedTuple):
    """An input or output; a length of -1 is one that the file leaves open."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        sides = ", ".join("?" if side < 0 else str(side) for side in self.shape)
        return f"{self.name} {self.dtype} [{sides}]"

    def filled(self) -> np.ndarray:
        """Fixed random values, lengths of 1 for open ones: what is timed never depends on them.

        Integers wider than a byte are most often indices: those are 0.
        """
        shape = tuple(max(side, 1) if side < 0 else side for side in self.shape)
        if self.dtype.kind not in "fiu" or (self.dtype.kind in "iu" and self.dtype.itemsize > 1):
            return np.zeros(shape, self.dtype)
        values = np.random.default_rng(0).standard_normal(shape)
        return (values * 32 if self.dtype.kind in "iu" else values).astype(self.dtype)


class Loaded(Protocol):
    """A network that a runtime has loaded: what each of the modules here gives."""

    inputs: list[Port]
    outputs: list[Port]

    def run(self, array: np.ndarray, alive: Callable[[], None]) -> list[np.ndarray]:
        """Each output for an array in the only input's layout; calls ``alive`` now and then."""

    def ready(self) -> Callable[[], object]:
        """Fill the inputs; what comes back is one run."""

    def inspect(self) -> dict[str, Any]:
        """``ops``, ``partitions`` and ``outside`` of an :class:`~mobilefit.runtime.Inspection`."""


def in_batches(
    array: np.ndarray,
    side: int,
    run: Callable[[np.ndarray], Sequence[np.ndarray]],
    outputs: Sequence[Port],
    alive: Callable[[], None],
) -> list[np.ndarray]:
    """The outputs for an array in batches of the file's own size (1 where it leaves that open)."""
    parts = []
    step = max(1, side)
    for start in range(0, len(array), step):
        parts.append(run(array[start : start + step]))
        alive()
    if not parts:
        return [np.empty((0, *output.shape[1:]), output.dtype) for output in outputs]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def only_input(inputs: list[Port], array: np.ndarray) -> Port:
    """The one input, which the array fits but for its first side, a multiple of the batch.

    Raises:
        InputError: it does not, or there are several inputs.
    """
    if len(inputs) != 1:
        raise InputError(
            f"the network takes {len(inputs)} inputs ({', '.join(map(str, inputs))}), "
            "where one image is given",
            "give a network with one input",
        )
    port = inputs[0]
    shape, given = port.shape, array.shape
    fits = len(shape) == len(given) and all(a in (-1, b) for a, b in zip(shape[1:], given[1:]))
    if not fits or array.dtype != port.dtype or (shape and shape[0] > 0 and given[0] % shape[0]):
        raise InputError(
            f"the network takes {port.dtype} arrays of shape {list(shape)}, "
            f"not {array.dtype} {list(given)}"
        )
    return port
