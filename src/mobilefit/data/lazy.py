"""Images that are decoded whenever they are used, and that nobody looked at before.

For data sets too large to be looked at when they are loaded. An image that turns out bad is named once
on standard error and replaced, from then on, by the next good one that may stand for it: a training of
days does not end for a file, and a resumed one sees the same images. Too many bad ones are an error.
"""

from __future__ import annotations

import abc
import multiprocessing
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from mobilefit.data.decode import BadImageError, Pixels, centre_box, read_image, resample, shrink
from mobilefit.data.images import KEPT_SIDE, Indices, worker_count
from mobilefit.errors import InputError
from mobilefit.progress import Voice

BAD_FRACTION = 0.1
"""A data set with a larger part of bad images is refused."""
BAD_ALWAYS_ALLOWED = 3
"""Bad images that even a small data set may have."""
TOLD = 20
"""Bad images that are named while a data set is in use; further ones are only counted."""


def too_many_bad(bad: int, count: int) -> bool:
    """Whether so many bad images of ``count`` are more than a data set may have."""
    return bad > max(BAD_ALWAYS_ALLOWED, BAD_FRACTION * count)


def say(line: str) -> None:
    """Say a line on standard error, from any process."""
    if multiprocessing.parent_process() is None:
        Voice()(line)
    else:  # the fork may have copied tqdm's lock while another thread held it
        print(line, file=sys.stderr, flush=True)


class LeftOut:
    """The images of a data set that turned out bad in use, in whichever process: each is named once.

    Args:
        count: how many images there are.
        what: what they are called: "images".
        instead: what stands for a bad one.
        hint: what to do when there are too many.
    """

    def __init__(self, count: int, *, what: str, instead: str, hint: str) -> None:
        # Shared memory: what one worker process finds out, all know, and none says again.
        self._bad = torch.zeros(count, dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]
        self._what, self._instead, self._hint = what, instead, hint
        self._lock = threading.Lock()

    def __contains__(self, index: int) -> bool:
        return bool(self._bad[index])

    @property
    def flags(self) -> npt.NDArray[np.bool_]:
        """[count]"""
        flags: npt.NDArray[np.bool_] = self._bad.numpy()
        return flags

    @property
    def found(self) -> Indices:
        """Which they are."""
        return np.flatnonzero(self.flags)

    def add(self, index: int, why: str) -> None:
        """Leave one out, and say so.

        Raises:
            InputError: there are too many.
        """
        with self._lock:
            if index in self:  # another thread was faster
                return
            self._bad[index] = True
            count = len(self.found)
        if count <= TOLD:
            say(f"{why}: {self._instead} takes its place")
        if count == TOLD:
            say(f"further bad {self._what} are not named")
        if too_many_bad(count, len(self._bad)):
            raise InputError(
                f"{count} of {len(self._bad)} {self._what} turned out bad, the last: {why}", self._hint
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())


class LazySource(abc.ABC):
    """A :class:`mobilefit.data.images.Source` of images in RGB; subclasses say where they lie.

    Args:
        names: one for each image.
    """

    channels = 3
    mend = "mend or remove the bad images"
    """What to do about bad images."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.threads = worker_count()
        self._left_out = LeftOut(
            len(names), what="images", instead="another image of its class",
            hint=f"{self.mend}; at most {BAD_FRACTION:.0%} are replaced",
        )  # fmt: skip

    @abc.abstractmethod
    def decoded(self, index: int, at_least: int | None) -> Image.Image:
        """The image; ``at_least`` as in :func:`mobilefit.data.decode.decode`.

        Raises:
            BadImageError: it is bad; the message names it. (A server that does not answer is another
                matter: no image would be left.)
        """

    @abc.abstractmethod
    def stand_ins(self, index: int) -> Iterator[int]:
        """The images that may stand for one, the nearest first; without itself."""

    @property
    def replaced(self) -> Indices:
        """The images that turned out bad so far, in whichever process."""
        return self._left_out.found

    def working(self, index: int) -> Image.Image:
        """See :class:`mobilefit.data.images.Source`."""
        return shrink(self._good(index, KEPT_SIDE), KEPT_SIDE)

    def square(self, index: int, resolution: int, crop_fraction: float) -> Pixels:
        """See :class:`mobilefit.data.images.Source`."""
        image = self._good(index, None)
        return resample(image, centre_box(image.size, crop_fraction), resolution)

    def _good(self, index: int, at_least: int | None) -> Image.Image:
        for candidate in self._candidates(index):
            if candidate in self._left_out:
                continue
            try:
                return self.decoded(candidate, at_least)
            except BadImageError as error:
                self._left_out.add(candidate, str(error))
        raise InputError(
            f"no usable image is left to stand for {self.names[index]}, in the whole of its class", self.mend
        )

    def _candidates(self, index: int) -> Iterator[int]:
        yield index
        yield from self.stand_ins(index)


class LazyFileSource(LazySource):
    """Files on disk.

    Args:
        names: the paths.
        groups: int [n]; an image may stand for another of the same group: same class, same part.
    """

    mend = "mend or remove them (mobilefit doctor lists all)"

    def __init__(self, names: Sequence[str], groups: npt.NDArray[np.int32]) -> None:
        super().__init__(names)
        self._groups = groups

    def decoded(self, index: int, at_least: int | None) -> Image.Image:
        """See :class:`LazySource`."""
        try:
            return read_image(Path(self.names[index]), at_least)
        except InputError as error:
            raise BadImageError(error.message) from error

    def stand_ins(self, index: int) -> Iterator[int]:
        """The others of its group in turn, beginning after it."""
        found = np.flatnonzero(self._groups == self._groups[index])
        yield from np.roll(found, -int(np.searchsorted(found, index, "right"))).tolist()
