"""What a file sees in images, in a video, through a camera."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilefit.errors import InputError
from mobilefit.jobs.drawn import Drawings
from mobilefit.jobs.frames import Frame, Source, sources
from mobilefit.jobs.lab import check_positive
from mobilefit.jobs.model import FileInfo, file_info, naming, read_file
from mobilefit.jobs.options import option
from mobilefit.jobs.running import Runner
from mobilefit.progress import Progress, Voice

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
    every: int = option(10, help="of a video or a camera, look at every N-th frame")
    draw: Path | None = option(None, help="write pictures and videos with the classes into this folder")
    json: bool = option(False, help="print JSON")


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A LiteRT file that names what is in a picture."""

    path: Path
    info: FileInfo
    runner: Runner

    @classmethod
    def load(cls, path: Path) -> Classifier:
        """Open a file that mobilefit wrote.

        Raises:
            InputError: it is missing, damaged, not one of ours, or at odds with its own description.
        """
        blob = read_file(path)
        info = file_info(blob, path)
        with naming(path):
            runner = Runner(blob)
            outputs, side = runner.output.shape[-1], info.preset.resolution
            if outputs != len(info.classes):
                raise InputError(
                    f"names {len(info.classes)} classes, but has {outputs} outputs", "export it again"
                )
            if runner.input.shape[1:] != (side, side, 3):
                raise InputError(
                    f"takes {list(runner.input.shape)}, but says that images are brought to "
                    f"{side}x{side}", "export it again",
                )  # fmt: skip
        return cls(path=path, info=info, runner=runner)

    def prepare(self, picture: Image.Image) -> npt.NDArray[np.float32]:
        """The picture as the network takes it, ``[1, height, width, 3]``."""
        return self.info.preset.apply(picture)[None]

    def shares(self, prepared: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The softmax of the outputs, one share a class.

        Raises:
            InputError: LiteRT does not take the file, or ended on it.
        """
        with naming(self.path):
            logits = self.runner(prepared)[0]
        powers = np.exp(logits - logits.max())
        shares: npt.NDArray[np.float32] = powers / powers.sum()
        return shares

    def top(self, shares: npt.NDArray[np.float32], count: int) -> list[dict[str, Any]]:
        """The likeliest classes first, ``{"class", "share"}`` each."""
        best = np.argsort(-shares, kind="stable")[:count]
        return [{"class": self.info.classes[i], "share": float(shares[i])} for i in best]


def predict(config: PredictConfig) -> list[dict[str, Any]]:
    """Print the likeliest classes of each image or frame.

    What cannot be read is said, and left out. Ctrl-C ends a video or a camera with what was seen.

    Raises:
        InputError: a bad file, no image, or none that can be read.
    """
    check_positive(top=config.top, every=config.every)
    classifier = Classifier.load(config.file)
    inputs = sources(config.images, config.every)
    drawings = None if config.draw is None else Drawings(config.draw)
    rows: list[dict[str, Any]] = []
    _watch(inputs, classifier, config, drawings, rows)
    problems = [row["problem"] for row in rows if "problem" in row]
    if len(problems) == len(rows):
        raise InputError(problems[0])
    if config.json:
        print(json.dumps(rows, indent=1))
    return rows


def _watch(
    inputs: Sequence[Source], classifier: Classifier, config: PredictConfig,
    drawings: Drawings | None, rows: list[dict[str, Any]],
) -> None:  # fmt: skip
    """Fill the rows, and print and draw them as they come."""
    voice, source = Voice(), inputs[0]
    quiet = not config.json and sys.stdout.isatty()  # the lines themselves show the progress
    try:
        with Progress(sum(s.count for s in inputs), None if quiet else "predict") as progress:
            for source in inputs:
                if source.moving and not source.count:
                    voice(f"{source.name}: Ctrl-C ends it")
                for frame in source:
                    rows.append(_row(classifier, frame, config.top))
                    if frame.picture is None:
                        voice(f"left out: {frame.problem}")
                    elif not config.json:
                        _print(frame, source, rows[-1]["classes"], classifier)
                    if drawings is not None and frame.picture is not None:
                        drawings.add(source, frame, rows[-1]["classes"])
                    progress.update(1)
    except KeyboardInterrupt:
        if not source.moving or not rows:
            raise
        voice("stopped")
    finally:
        if drawings is not None:
            drawings.close()


def _row(classifier: Classifier, frame: Frame, top: int) -> dict[str, Any]:
    row: dict[str, Any] = {"image": frame.source}
    if frame.seconds is not None:
        row |= {"frame": frame.number, "seconds": round(frame.seconds, 3)}
    if frame.picture is None:
        return {**row, "problem": frame.problem}
    shares = classifier.shares(classifier.prepare(frame.picture))
    return {**row, "classes": classifier.top(shares, top)}


def _print(
    frame: Frame, source: Source, classes: Sequence[dict[str, Any]], classifier: Classifier
) -> None:
    widest = min(WIDEST_NAME, max(map(len, classifier.info.classes)))
    cells = "  ".join(f"{c['class']:<{widest}} {c['share']:6.1%}" for c in classes)
    print(f"{frame.name:<{source.widest}}  {cells}", flush=source.moving)
