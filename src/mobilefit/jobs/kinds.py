"""What differs between tasks in the verbs: data, the network's form, and what is said of a result.

All else (loop, latency, NetAdapt, int8, files) is the same for every task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from mobilefit import arch
from mobilefit.arch import NetSpec, Task
from mobilefit.data import ClassificationData, Preset, load
from mobilefit.data.detection import DetectionData, load_detection
from mobilefit.data.segmentation import SegmentationData, load_segmentation
from mobilefit.errors import InputError
from mobilefit.jobs import drawn, lab, pretrained
from mobilefit.jobs.model import network_for
from mobilefit.nn import hub
from mobilefit.progress import Voice
from mobilefit.tasks.detect import Detect, DetectionEvaluation
from mobilefit.tasks.metrics import record_of
from mobilefit.tasks.segment import Segment, SegmentationEvaluation
from mobilefit.train import Evaluation, Recipe, SoftTargets, recipe
from mobilefit.train.classify import Classify
from mobilefit.train.task import Task as Port

Data = ClassificationData | DetectionData | SegmentationData

GRID = 32
"""Sides of an image are multiples of it where they are chosen here: the backbones' stride."""
LONGEST = 512
"""Pixels of the longer side, where the images are larger and nothing is said."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where images come from, and how they are divided."""

    name: str
    """A folder, or the name of a data set."""
    seed: int = 0
    holdout: float = 0.1
    ignore: Sequence[int] = ()
    """Segmentation: labels that are no class."""
    progress: str | None = None
    """Label of the progress of reading them; ``None``: silent."""


class Asked(Protocol):
    """The options of a verb that reads images."""

    @property
    def data(self) -> str: ...

    @property
    def seed(self) -> int: ...

    @property
    def ignore_label(self) -> Sequence[int]: ...


def source_of(asked: Asked, voice: Voice, *, holdout: float = 0.1) -> Source:
    """Where a verb's images come from; reading them shows its progress."""
    return Source(
        name=asked.data, seed=asked.seed, holdout=holdout, ignore=asked.ignore_label,
        progress=voice.label("reading images"),
    )  # fmt: skip


class Kind(Protocol):
    """A task, as the verbs need it."""

    task: Task
    port: Port
    score: str
    """What a result's number is called."""

    def load(self, source: Source) -> Any:
        """The images.

        Raises:
            InputError: there are none, or they cannot be used.
        """

    def network(self, chosen: NetSpec, data: Any, height: int | None, width: int | None) -> NetSpec:
        """A chosen network for these images: its head, its classes, its input's size.

        Args:
            chosen: of this task, or a classifier, which becomes the backbone.
            height, width: of the input, pixels; ``None``: what is usual.
        """

    def preset(self, data: Any, spec: NetSpec) -> Preset:
        """How an image becomes the network's input."""

    def recipe(self, name: str | None, weights: object | None, data: Any) -> Recipe:
        """The recipe of that name, else the usual one.

        Raises:
            InputError: it is for another task.
        """

    def value(self, found: Any) -> float:
        """The number that tells how good the network is, 0 to 1."""

    def record(self, found: Any, data: Any) -> dict[str, Any]:
        """What a record keeps of an evaluation on the test images."""


class Classification:
    """One class for each image. See :class:`Kind`."""

    task: Task = "classify"
    port: Port = Classify()
    score = "top-1"

    def load(self, source: Source) -> ClassificationData:
        return load(source.name, seed=source.seed, holdout=source.holdout, progress=source.progress)

    def network(
        self, chosen: NetSpec, data: ClassificationData, height: int | None, width: int | None
    ) -> NetSpec:
        _check_shape(self.task, height, width)
        return chosen.resolution(height or 96).classes(len(data.classes))

    def preset(self, data: ClassificationData, spec: NetSpec) -> Preset:
        return data.preset(spec.input_size)

    def recipe(self, name: str | None, weights: object | None, data: ClassificationData) -> Recipe:
        return lab.recipe_for(name, weights, data)

    def value(self, found: Evaluation) -> float:
        return found.top1

    def record(self, found: Evaluation, data: ClassificationData) -> dict[str, Any]:
        return {
            "top5": found.top5, "loss": found.loss, "confusion": found.confusion.tolist(),
            "misclassified": lab.misclassified(found, data), "hardest": lab.hardest(found, data),
        }  # fmt: skip


class Detection:
    """Boxes and their classes. See :class:`Kind`."""

    task: Task = "detect"
    port: Port = Detect()
    score = "mAP@0.5"

    def load(self, source: Source) -> DetectionData:
        return load_detection(
            source.name, seed=source.seed, holdout=source.holdout, progress=source.progress
        )

    def network(self, chosen: NetSpec, data: DetectionData, height: int | None, width: int | None) -> NetSpec:
        made = chosen if chosen.task == "detect" else arch.detector(chosen)
        side = height or made.input_size
        return made.classes(len(data.classes)).resolution(side, width)

    def preset(self, data: DetectionData, spec: NetSpec) -> Preset:
        return data.preset(*spec.image_shape)

    def recipe(self, name: str | None, weights: object | None, data: DetectionData) -> Recipe:
        return _of_task(name or "detect", self.task)

    def value(self, found: DetectionEvaluation) -> float:
        return found.score.map50

    def record(self, found: DetectionEvaluation, data: DetectionData) -> dict[str, Any]:
        return {**record_of(found.score), "pictures": drawn.detection_pictures(data.test, found)}


class Segmentation:
    """A class for every pixel. See :class:`Kind`."""

    task: Task = "segment"
    port: Port = Segment()
    score = "mIoU"

    def load(self, source: Source) -> SegmentationData:
        return load_segmentation(
            source.name, seed=source.seed, holdout=source.holdout, ignore=tuple(source.ignore),
            progress=source.progress,
        )  # fmt: skip

    def network(
        self, chosen: NetSpec, data: SegmentationData, height: int | None, width: int | None
    ) -> NetSpec:
        made = chosen if chosen.task == "segment" else arch.segmenter(chosen)
        _check_shape(self.task, height, width)
        shape = usual_shape(data.size) if height is None else (height, width)
        return made.classes(len(data.classes)).resolution(*shape)

    def preset(self, data: SegmentationData, spec: NetSpec) -> Preset:
        height, width = spec.image_shape
        return Preset(resolution=height, width=width, fit="stretch")

    def recipe(self, name: str | None, weights: object | None, data: SegmentationData) -> Recipe:
        return _of_task(name or "segment", self.task)

    def value(self, found: SegmentationEvaluation) -> float:
        return found.score.miou

    def record(self, found: SegmentationEvaluation, data: SegmentationData) -> dict[str, Any]:
        pictures = drawn.segmentation_pictures(data.test, found.score, found.labels, data.palette)
        colours = drawn.class_colours(data.classes, data.palette)
        return {**record_of(found.score), "pictures": pictures, "colours": colours}


KINDS: dict[Task, Kind] = {kind.task: kind for kind in (Classification(), Detection(), Segmentation())}


def kind_for(task: Task | None, spec: NetSpec) -> Kind:
    """What is asked for, else what the network is for.

    Raises:
        InputError: the network is for another task.
    """
    if task is not None and spec.task not in ("classify", task):
        raise InputError(f"'{spec.name}' is for --task {spec.task}, not for {task}")
    if task == "classify" or task is None:
        return KINDS[spec.task]
    return KINDS[task]


def usual_shape(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a segmenter's input for images of this width and height.

    The nearest multiples of :data:`GRID`, of the images' own size or with their longer side at
    :data:`LONGEST`.
    """
    factor = min(1.0, LONGEST / max(size))
    width, height = (max(GRID, round(side * factor / GRID) * GRID) for side in size)
    return height, width


def check_options(
    task: Task, *, recipe: str | None, ignore: Sequence[int], height: int | None = None,
    width: int | None = None,
) -> None:  # fmt: skip
    """What can be told of a task's options before the images are read.

    Raises:
        InputError: there is no such recipe, or one of them is for another task.
    """
    if recipe is not None:
        _of_task(recipe, task)
    if ignore and task != "segment":
        raise InputError("--ignore-label is for masks", "leave it out, or say --task segment")
    _check_shape(task, height, width)


def _check_shape(task: Task, height: int | None, width: int | None) -> None:
    if task == "classify" and width not in (None, height):
        raise InputError("a classifier sees a square", "leave --columns out")
    if task == "segment" and height is None and width is not None:
        raise InputError("--columns says how wide the input is, and nothing how high", "give --resolution too")


def _of_task(name: str, task: Task) -> Recipe:
    found = recipe(name)
    if found.task != task:
        raise InputError(f"recipe '{name}' is for --task {found.task}, not for {task}")
    return found


def loaded(kind: Kind, source: Source) -> Any:
    """The data for a network that is there already.

    Raises:
        InputError: there are none of its task; the message says what the network takes.
    """
    if source.ignore and kind.task != "segment":
        raise InputError("--ignore-label is for masks", f"leave it out: the network is for --task {kind.task}")
    try:
        return kind.load(source)
    except InputError as error:
        if not Path(source.name).is_dir():
            raise
        raise InputError(f"the network takes {_TAKES[kind.task]}: {error.message}", error.hint) from error


_TAKES: dict[Task, str] = {
    "classify": "images in class folders", "detect": "images with boxes", "segment": "images with masks"
}  # fmt: skip


def trained_preset(opened: pretrained.Opened, data: Any, kind: Kind) -> Preset:
    """How images become a network's input: as in its training; the data's usual way, if nothing tells it.

    Raises:
        InputError: the network was trained for other classes than the data's.
    """
    if opened.saved.preset is not None or kind.task == "classify":
        return opened.preset(data)
    spec = opened.network.spec
    pretrained.check_classes(opened.path, spec.head.num_classes, opened.saved.classes, data)
    return kind.preset(data, spec)


def begun(
    kind: Kind, spec: NetSpec, weights: str | None, data: Any, *, seed: int, quiet: bool
) -> pretrained.Start:
    """What a training begins with: fresh weights by the seed, or pretrained ones.

    Args:
        spec: of the task, for the data's classes.
        weights: see :func:`.pretrained.start` and :func:`.pretrained.start_task`.

    Raises:
        InputError: from there.
    """
    if isinstance(data, ClassificationData):
        return pretrained.start(
            spec, weights, data=data, resolution=spec.input_size, seed=seed, quiet=quiet
        )
    usual = kind.preset(data, spec)
    return pretrained.start_task(spec, weights, usual, data.classes, seed=seed, quiet=quiet)


def scene_teacher(kind: Kind, source: str, spec: NetSpec, classes: Sequence[str]) -> SoftTargets:
    """The teacher of a detector or segmenter; it sees images of the size that it was trained at.

    Args:
        source: a file of a network of the same task, as ``mobilefit train`` writes it.
        spec: of the network that is taught.
        classes: the data's.

    Raises:
        InputError: the file cannot be read, or is of another task, of other classes or of another layout of its head.
    """
    if hub.model(source) is not None or source.endswith(".pt2"):
        raise InputError(f"{source} cannot teach for --task {kind.task}", "give a file that mobilefit train wrote")
    opened = pretrained.opened(Path(source))
    network = opened.network.eval()
    try:
        kind.port.soft_objective(network_for(spec, None), network, recipe(kind.task), torch.device("cpu"))
    except InputError as error:
        raise InputError(f"{source}: {error.message}", error.hint) from error
    trained_classes = opened.saved.classes
    if trained_classes is not None and trained_classes != tuple(classes):
        raise InputError(
            f"the teacher {source} was trained on other classes ({', '.join(trained_classes[:5])}) than the data's "
            f"({', '.join(classes[:5])})", "train it on the data first",
        )  # fmt: skip
    height, width = network.spec.image_shape
    preset = opened.saved.preset or Preset(resolution=height, width=width, fit="stretch").to_dict()
    return SoftTargets(network=network, preset=Preset.from_dict(preset))


def tell_left_out(data: Data, voice: Voice) -> None:
    """Say how the data set was read where it could be read in another way, and what of it is not used."""
    for note in data.notes:
        voice(note)
    if data.skipped:
        first = data.skipped[0]
        what = "bad image files" if isinstance(data, ClassificationData) else "bad files"
        voice(f"{len(data.skipped)} {what} are left out; the first: {first.path} ({first.why})")
    if isinstance(data, DetectionData):
        for boxes in data.dropped:
            voice(f"boxes left out: {boxes}")
        if data.clipped.count:
            voice(f"boxes changed: {data.clipped}")


def described(data: Data) -> dict[str, Any]:
    """A data set in a record."""
    parts = {part: len(getattr(data, part)) for part in ("train", "holdout", "test")}
    found: dict[str, Any] = {
        "name": data.name, "classes": list(data.classes), "fingerprint": data.fingerprint, "sizes": parts,
        "skipped": [{"path": file.path, "why": file.why} for file in data.skipped],
    }  # fmt: skip
    if data.notes:
        found["notes"] = list(data.notes)
    if isinstance(data, DetectionData):
        found["counts"] = {part: getattr(data, part).counts.tolist() for part in parts}
        found["dropped"] = [{"why": box.why, "count": box.count, "examples": list(box.examples)}
                            for box in (*data.dropped, *([data.clipped] if data.clipped.count else []))]  # fmt: skip
    elif isinstance(data, SegmentationData):
        found["pixels"] = {part: getattr(data, part).pixels.tolist() for part in parts}
        found["ignored"] = data.ignored
    else:
        found["counts"] = lab.describe(data)["counts"]
    return found
