"""What is wrong with a data set of boxes or masks that can be loaded: the same picture twice, classes
that a part lacks, what was left out.

Which pictures are the same is told as for class folders: see ``inspect``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobilefit.data.classification import SkippedFile
from mobilefit.data.detection import DetectionData, DetectionSet
from mobilefit.data.inspect import Group, Pictures, looked_at
from mobilefit.data.segmentation import SegmentationData, SegmentationSet


@dataclass(frozen=True, kw_only=True)
class SceneInspection:
    """What was found, by part: "train", "holdout" and "test", as loading divides them by seed 0."""

    root: str
    sizes: dict[str, int]
    """Images."""
    counts: dict[str, dict[str, int]]
    """Boxes, or pixels of the masks, by part and class."""
    broken: tuple[SkippedFile, ...]
    """Files that were left out."""
    boxes: tuple[str, ...]
    """How many boxes were left out or cut, by reason."""
    leaks: tuple[Group, ...]
    """Pictures of the test that are trained on or held out too; how they are the same across the two."""
    duplicates: dict[str, tuple[Group, ...]]
    """Pictures that a part has more than once."""
    small: dict[str, tuple[str, ...]]
    """Images with a side under the resolution."""
    resolution: int

    @property
    def lacking(self) -> dict[str, tuple[str, ...]]:
        """Classes that a part has none of: nothing is learnt of them, or nothing is said of them."""
        return {
            part: tuple(name for name, count in classes.items() if not count)
            for part, classes in self.counts.items()
        }

    @property
    def falsified(self) -> tuple[str, ...]:
        """What would make a result wrong: empty if nothing would."""
        said = [f"pictures of the test in training too: {len(self.leaks)}"] * bool(self.leaks)
        if unseen := self.lacking["train"]:
            said.append(f"train: nothing of {', '.join(unseen)}")
        return tuple(said)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "lacking": self.lacking, "falsified": self.falsified}


def inspect_scenes(
    data: DetectionData | SegmentationData, root: Path, *, resolution: int, progress: str | None = None
) -> SceneInspection:
    """Look at every image of a data set with boxes or masks.

    Args:
        root: its folder.
        resolution: of the network, in pixels.
        progress: label of the progress shown on standard error; ``None``: silent.
    """
    parts = {"train": data.train, "holdout": data.holdout, "test": data.test}
    paths = [name for part in parts.values() for name in part.names]
    part = np.repeat(np.arange(len(parts), dtype=np.int8), [len(one) for one in parts.values()])
    looks = looked_at(paths, progress)
    bad = [SkippedFile(path=paths[place], why=why) for place, why in looks.bad.items()]
    good = np.flatnonzero(looks.sides)
    pictures = Pictures([paths[place] for place in good], root, looks.only(good), part[good])
    return SceneInspection(
        root=str(root),
        sizes={name: len(one) for name, one in parts.items()},
        counts={name: _counts(one, data.classes) for name, one in parts.items() if len(one)},
        broken=(*data.skipped, *bad),
        boxes=_boxes(data),
        leaks=pictures.across(part[good] == list(parts).index("test")),
        duplicates={name: pictures.within(number) for number, name in enumerate(parts)},
        small={
            name: tuple(paths[place] for place in good if part[place] == number and looks.sides[place] < resolution)
            for number, name in enumerate(parts)
        },
        resolution=resolution,
    )


def _counts(images: DetectionSet | SegmentationSet, classes: tuple[str, ...]) -> dict[str, int]:
    counts = images.counts if isinstance(images, DetectionSet) else images.pixels[:-1]
    return dict(zip(classes, counts.tolist(), strict=True))


def _boxes(data: DetectionData | SegmentationData) -> tuple[str, ...]:
    if isinstance(data, SegmentationData):
        return ()
    return tuple(str(found) for found in (*data.dropped, data.clipped) if found.count)
