"""Images divided for training, for decisions and for the final test."""

from __future__ import annotations

from dataclasses import dataclass

from mobilefit.data.images import ImageSet
from mobilefit.data.preset import Preset

TINY_SIDE = 64
"""Images whose short side is under this many pixels are shown to the network whole."""


@dataclass(frozen=True, kw_only=True)
class SkippedFile:
    """A bad file that was left out."""

    path: str
    why: str


@dataclass(frozen=True, kw_only=True)
class ClassificationData:
    """A labelled data set. No image is in two of the three sets."""

    name: str
    classes: tuple[str, ...]
    """A label is an index into it. Of a folder: as the class folders' names are sorted."""
    train: ImageSet
    holdout: ImageSet
    """Set apart from training, to choose networks by (search, NetAdapt): never the test set."""
    test: ImageSet
    skipped: tuple[SkippedFile, ...]
    """Left out when loading; of a large data set see also ``ImageSet.replaced``."""
    fingerprint: str
    """SHA-256 of the content (names, classes and pixels or files; of a large data set the files'
    sizes), whatever the split's seed."""
    short_side: int
    """Median short side of the images in pixels, as they are on disk."""
    notes: tuple[str, ...] = ()
    """What is to be said of how the folder was read."""

    @property
    def tiny(self) -> bool:
        """Whether the images are too small to lose any of their sides."""
        return self.short_side < TINY_SIDE

    def preset(self, resolution: int) -> Preset:
        """The usual preset for these images: tiny ones whole, photos cropped to 0.875."""
        return Preset(resolution=resolution, crop_fraction=1.0 if self.tiny else 0.875)
