"""What a file sees in images, in a video, through a camera: classes, boxes, or a class for each pixel."""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilefit.arch import Task
from mobilefit.errors import InputError, naming
from mobilefit.jobs.drawn import Drawings, captioned, draw_boxes, draw_mask
from mobilefit.jobs.ends import Answer, channels_first, labels
from mobilefit.jobs.frames import Frame, Source, sources
from mobilefit.jobs.lab import check_positive, check_share
from mobilefit.jobs.masks import Masks
from mobilefit.jobs.model import FileInfo, file_info, read_file
from mobilefit.jobs.options import option
from mobilefit.jobs.running import File, Floats, Runner
from mobilefit.nn.boxes import Detections
from mobilefit.progress import Progress, Voice
from mobilefit.tasks.detect import Found
from mobilefit.text import printable

WIDEST_NAME = 24
"""Characters that a column is made wide for; longer names push their row to the right."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Options of ``mobilefit predict``."""

    file: Path = option(help="a .tflite that mobilefit wrote", argument=True)
    images: tuple[Path, ...] = option(
        help="images, folders of them, videos, or camera:0", argument=True
    )
    top: int = option(3, help="how many classes of each image")
    score: float = option(0.5, help="of a detector: least score of the boxes that are told and drawn, 0 to 1")
    every: int = option(10, help="of a video or a camera, look at every N-th frame")
    draw: Path | None = option(None, help="write pictures and videos with what was seen into this folder")
    masks: Path | None = option(None, help="of a segmenter: write the class of each pixel as PNG files into this folder")
    json: bool = option(False, help="print JSON")


# ---- files


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was seen in a picture."""

    row: dict[str, Any]
    """For JSON."""
    line: str
    """For the terminal."""
    drawn: Callable[[], Image.Image]
    """The picture with it; both sides are even."""
    mask: npt.NDArray[np.int64] | None = None
    """[h, w]: the class of each pixel."""


@dataclass(frozen=True, kw_only=True)
class Network(ABC):
    """A LiteRT file that mobilefit wrote, and what it sees in a picture."""

    path: Path
    info: FileInfo
    file: File

    @classmethod
    def of(cls, path: Path, info: FileInfo, blob: bytes) -> Network:
        """A file by its content.

        Raises:
            InputError: it is damaged, or at odds with its own description.
        """
        return cls(path=path, info=info, file=File(blob))

    def prepare(self, picture: Image.Image) -> Floats:
        """The picture as the network takes it, ``[1, height, width, 3]``."""
        return self.info.preset.apply(picture)[None]

    def run(self, prepared: Floats) -> list[Floats]:
        """What the file gives.

        Raises:
            InputError: LiteRT does not take the file, or ended on it.
        """
        with naming(self.path):
            return self.file.run(prepared)

    @abstractmethod
    def seen(self, outputs: Sequence[Floats], picture: Image.Image, *, top: int, score: float) -> Seen:
        """What the outputs say of the picture, in its pixels.

        Args:
            picture: that was prepared, or the same one of another size.
            top: how many classes.
            score: of a detector: least score of a box.

        Raises:
            InputError: the file does not give what it says that it gives.
        """

    def see(self, picture: Image.Image, *, top: int, score: float) -> Seen:
        """What there is in a picture: all three steps."""
        return self.seen(self.run(self.prepare(picture)), picture, top=top, score=score)


class Classifier(Network):
    """A LiteRT file that names what is in a picture."""

    @classmethod
    def of(cls, path: Path, info: FileInfo, blob: bytes) -> Classifier:
        """See :class:`Network`."""
        return cls(path=path, info=info, file=Runner(blob))

    def shares(self, outputs: Sequence[Floats]) -> Floats:
        """The softmax of the outputs, one share a class.

        Raises:
            InputError: they are not numbers.
        """
        logits = outputs[0][0]
        if not np.isfinite(logits.max()):  # NaN as soon as there is one
            raise InputError(f"{self.path}: gives {logits.max()} for a picture", "its weights are damaged: export it again")
        powers = np.exp(logits - logits.max())
        shares: Floats = powers / powers.sum()
        return shares

    def seen(self, outputs: Sequence[Floats], picture: Image.Image, *, top: int, score: float) -> Seen:
        """See :class:`Network`."""
        classes = _largest(self.shares(outputs), self.info, top)
        return Seen(
            row={"classes": classes}, line=_shares(classes, self.info),
            drawn=lambda: captioned(picture, classes),
        )  # fmt: skip


def _largest(shares: npt.NDArray[Any], info: FileInfo, count: int) -> list[dict[str, Any]]:
    best = np.argsort(-shares, kind="stable")[:count]
    return [{"class": info.classes[i], "share": float(shares[i])} for i in best]


def _shares(classes: Sequence[dict[str, Any]], info: FileInfo) -> str:
    widest = min(WIDEST_NAME, max(map(len, info.classes)))
    return "  ".join(f"{c['class']:<{widest}} {c['share']:6.1%}" for c in classes)


class _Scenes(Network):
    """A LiteRT file whose answer has places in the picture."""

    def answer(self, outputs: Sequence[Floats]) -> Answer:
        """Of one picture.

        Raises:
            InputError: the file does not give what it says that it gives.
        """
        with naming(self.path):
            return self.info.ends.answers([channels_first(values) for values in outputs])[0]


class Detector(_Scenes):
    """A LiteRT file that finds things in a picture."""

    def found(self, outputs: Sequence[Floats], size: tuple[int, int]) -> Found:
        """Detections in pixels of a picture of that width and height, the surest first; all that the file gives."""
        answer = self.answer(outputs)
        assert isinstance(answer, Detections)
        return Found.of(answer, size)

    def seen(self, outputs: Sequence[Floats], picture: Image.Image, *, top: int, score: float) -> Seen:
        """See :class:`Network`."""
        found, names = self.found(outputs, picture.size), self.info.classes
        sure = found.scores >= score
        boxes, labels, scores = found.boxes[sure], found.labels[sure], found.scores[sure]
        rows = [
            {"class": names[label], "score": float(score), "box": [round(float(v), 2) for v in box]}
            for box, label, score in zip(boxes, labels, scores, strict=True)
        ]
        return Seen(
            row={"boxes": rows}, line="  ".join(map(_box, rows)) or "nothing",
            drawn=lambda: draw_boxes(picture, boxes, labels, scores, names),
        )  # fmt: skip


def _box(found: dict[str, Any]) -> str:
    corners = ", ".join(f"{value:.0f}" for value in found["box"])
    return f"{found['class']} {found['score']:.1%} ({corners})"


class Segmenter(_Scenes):
    """A LiteRT file that tells the class of each pixel."""

    def labels(self, outputs: Sequence[Floats], size: tuple[int, int]) -> npt.NDArray[np.int64]:
        """[h, w], of a picture of that width and height."""
        answer = self.answer(outputs)
        assert isinstance(answer, np.ndarray)
        return labels(answer, size[::-1])

    def seen(self, outputs: Sequence[Floats], picture: Image.Image, *, top: int, score: float) -> Seen:
        """See :class:`Network`."""
        mask, names = self.labels(outputs, picture.size), self.info.classes
        shares = np.bincount(mask.ravel(), minlength=len(names)) / mask.size
        classes = [found for found in _largest(shares, self.info, top) if found["share"]]
        return Seen(
            row={"classes": classes}, line=_shares(classes, self.info), mask=mask,
            drawn=lambda: draw_mask(picture, mask, None, names),
        )  # fmt: skip


_NETWORKS: dict[Task, type[Network]] = {"classify": Classifier, "detect": Detector, "segment": Segmenter}


def opened(path: Path) -> Network:
    """A file that mobilefit wrote, by the task that it says it is for.

    Raises:
        InputError: it is missing, damaged, not one of ours, or at odds with its own description.
    """
    blob = read_file(path)
    info = file_info(blob, path)
    with naming(path):
        return _NETWORKS[info.spec.task].of(path, info, blob)


# ---- the verb


def predict(config: PredictConfig) -> list[dict[str, Any]]:
    """Print what is seen in each image or frame: the likeliest classes, boxes, or shares of the pixels.

    What cannot be read is said, and left out. Ctrl-C ends a video or a camera with what was seen.

    Raises:
        InputError: a bad file, no image, or none that can be read.
    """
    check_positive(top=config.top, every=config.every)
    check_share(score=config.score)
    network = opened(config.file)
    if config.masks is not None and network.info.spec.task != "segment":
        raise InputError("--masks is for segmenters", f"{config.file} is for --task {network.info.spec.task}")
    inputs = sources(config.images, config.every)
    writers = _Writers(
        drawings=None if config.draw is None else Drawings(config.draw),
        masks=None if config.masks is None else Masks(config.masks),
    )
    rows: list[dict[str, Any]] = []
    _watch(inputs, network, config, writers, rows)
    problems = [row["problem"] for row in rows if "problem" in row]
    if len(problems) == len(rows):
        raise InputError(problems[0])
    if config.json:
        print(json.dumps(rows, indent=1))
    return rows


@dataclass(frozen=True, kw_only=True)
class _Writers:
    """What is written of pictures."""

    drawings: Drawings | None
    masks: Masks | None

    def add(self, source: Source, frame: Frame, seen: Seen) -> None:
        if self.drawings is not None:
            self.drawings.add_picture(source, frame, seen.drawn())
        if self.masks is not None and seen.mask is not None:
            self.masks.add(frame, seen.mask)

    def close(self) -> None:
        if self.drawings is not None:
            self.drawings.close()


def _watch(
    inputs: Sequence[Source], network: Network, config: PredictConfig, writers: _Writers,
    rows: list[dict[str, Any]],
) -> None:  # fmt: skip
    """Fill the rows, and print and draw them as they come."""
    voice, source = Voice(), inputs[0]
    quiet = not config.json and sys.stdout.isatty()  # the lines themselves show the progress
    try:
        with Progress(sum(s.count for s in inputs), None if quiet else "predict") as progress:
            for source in inputs:
                for note in source.notes:
                    voice(note)
                if source.moving and not source.count:
                    voice(f"{source.name}: Ctrl-C ends it")
                for frame in source:
                    seen = None if frame.picture is None else network.see(frame.picture, top=config.top, score=config.score)
                    rows.append(_row(frame, seen))
                    if seen is None:
                        voice(f"left out: {frame.problem}")
                    elif not config.json:
                        print(printable(f"{frame.name:<{source.widest}}  {seen.line}"), flush=source.moving)
                    if seen is not None:
                        writers.add(source, frame, seen)
                    progress.update(1)
    except KeyboardInterrupt:
        if not source.moving or not rows:
            raise
        voice("stopped")
    finally:
        writers.close()


def _row(frame: Frame, seen: Seen | None) -> dict[str, Any]:
    row: dict[str, Any] = {"image": frame.source}
    if frame.seconds is not None:
        row |= {"frame": frame.number, "seconds": round(frame.seconds, 3)}
    return {**row, "problem": frame.problem} if seen is None else {**row, **seen.row}
