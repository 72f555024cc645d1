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
LEAVING_OUT = threading.Lock()
"""Held by the thread that tells of a bad image; of a module, since sources go to other processes."""


def too_many_bad(bad: int, count: int) -> bool:
    """Whether so many bad images of ``count`` are more than a data set may have."""
    return bad > max(BAD_ALWAYS_ALLOWED, BAD_FRACTION * count)


def say(line: str) -> None:
    """Say a line on standard error, from any process."""
    if multiprocessing.parent_process() is None:
        Voice()(line)
    else:  # the fork may have copied tqdm's lock while another thread held it
        print(line, file=sys.stderr, flush=True)


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
        # Shared memory: what one worker process finds out, all know, and none says again.
        self._bad = torch.zeros(len(names), dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]

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
        return np.flatnonzero(self._bad.numpy())

    def working(self, index: int) -> Image.Image:
        """See :class:`mobilefit.data.images.Source`."""
        return shrink(self._good(index, KEPT_SIDE), KEPT_SIDE)

    def square(self, index: int, resolution: int, crop_fraction: float) -> Pixels:
        """See :class:`mobilefit.data.images.Source`."""
        image = self._good(index, None)
        return resample(image, centre_box(image.size, crop_fraction), resolution)

    def _good(self, index: int, at_least: int | None) -> Image.Image:
        for candidate in self._candidates(index):
            if self._bad[candidate]:
                continue
            try:
                return self.decoded(candidate, at_least)
            except BadImageError as error:
                self._leave_out(candidate, str(error))
        raise InputError(
            f"no usable image is left to stand for {self.names[index]}, in the whole of its class", self.mend
        )

    def _candidates(self, index: int) -> Iterator[int]:
        yield index
        yield from self.stand_ins(index)

    def _leave_out(self, index: int, why: str) -> None:
        with LEAVING_OUT:
            if self._bad[index]:  # another thread was faster
                return
            self._bad[index] = True
            count = len(self.replaced)
        if count <= TOLD:
            say(f"{why}: another image of its class takes its place")
        if count == TOLD:
            say("further bad images are not named")
        if too_many_bad(count, len(self.names)):
            raise InputError(
                f"{count} of {len(self.names)} images turned out bad, the last: {why}",
                f"{self.mend}; at most {BAD_FRACTION:.0%} are replaced",
            )


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
