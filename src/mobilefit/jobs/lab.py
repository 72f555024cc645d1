"""What the verbs do with networks and measurements: train, tune, evaluate, time, describe."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mobilefit import adapt, device
from mobilefit.adapt import Adapted, AdaptSettings, KnapsackSettings, Tools
from mobilefit.arch import NetSpec
from mobilefit.data import ClassificationData, Preset
from mobilefit.data.detection import DetectionData
from mobilefit.data.segmentation import SegmentationData
from mobilefit.data.splits import stratified
from mobilefit.device import Latency, LatencyTable, Phone, Protocol
from mobilefit.errors import InputError
from mobilefit.jobs.model import Exported, int8_for_timing, value_of
from mobilefit.nn import Network, load_network
from mobilefit.progress import Voice
from mobilefit.runs import write_atomic
from mobilefit.runtime import StopRule
from mobilefit.train import (
    BEST,
    CHECKPOINT,
    Evaluation,
    FitResult,
    Recipe,
    SoftTargets,
    fit,
    recipe,
)
from mobilefit.train.task import Task

TABLE = "latency_table.json"
MARGIN = 0.02
"""How far under the budget the estimate of NetAdapt and of the knapsack goes, so that the exported file meets it too."""
NARROWEST = 8
PASSES = 3
PASS_RULE = StopRule(max_seconds=2.0)
"""Of a pass. Where a neighbour keeps medians from settling, this time runs out for every file."""
SHOWN_MISTAKES = 12


# ---- training


def usual_recipe(weights: object | None) -> str:
    """The recipe that is taken where none is named."""
    return "fast" if weights is None else "finetune"


def recipe_for(name: str | None, weights: object | None, data: ClassificationData) -> Recipe:
    """The recipe of that name, else the one for pretrained weights or for none.

    On tiny images the mild augmentation takes the light one's place.

    Raises:
        InputError: it is for another task.
    """
    found = recipe(name or usual_recipe(weights))
    if found.task != "classify":
        raise InputError(f"recipe '{name}' is for --task {found.task}, not for classify")
    return replace(found, augment="mild") if data.tiny and found.augment == "light" else found


def train(
    network: Network, data: Any, preset: Preset, recipe: Recipe, *, task: Task, steps: int,
    seed: int, folder: Path, label: str | None, teacher: SoftTargets | None = None, validate: bool = True,
) -> FitResult:  # fmt: skip
    """Train in place, going on from the folder's checkpoint if there is one.

    Args:
        data: of the task's kind, with its ``train`` and ``holdout``.
        task: whose loss and score.
        teacher: who is learned from, by a recipe with distillation.
        validate: whether the held-out images are looked at meanwhile, for the curves.
    """
    return fit(
        network, data.train, preset=preset, recipe=recipe, task=task,
        validation=held_out(data, 2000, seed) if validate else None,
        seed=seed, steps=steps, out=folder, resume=True, progress=label,
        checkpoint_every=max(1, steps // 20), teacher=teacher,
    )  # fmt: skip


def drop_checkpoints(folder: Path) -> None:
    """Remove what only an unfinished training needs."""
    for needless in (CHECKPOINT, BEST):
        (folder / needless).unlink(missing_ok=True)


def held_out(data: Any, most: int, seed: int) -> Any:
    """Held-out images to decide by: all, or ``most`` of them.

    Of images with a class each in the classes' proportions, chosen by the seed; of others spread evenly
    over the set.
    """
    count = len(data.holdout)
    if count <= most:
        return data.holdout
    if isinstance(data, ClassificationData):
        return data.holdout.subset(stratified(data.holdout.labels, most / count, seed)[1])
    return data.holdout.subset(np.linspace(0, count - 1, most).round().astype(np.int64))


def check_held_out(data: Any) -> None:
    """See that networks can be chosen by the held-out images.

    Raises:
        InputError: there are none, or they hold nothing to be found.
    """
    held, hint = data.holdout, "add training images"
    if not len(held):
        raise InputError(f"{data.name} has no held-out images, which networks are chosen by", hint)
    there = held.counts.sum() if isinstance(data, DetectionData) else 1
    if isinstance(data, SegmentationData):
        there = held.pixels[:-1].sum()
    if not there:
        what = "box" if isinstance(data, DetectionData) else "labelled pixel"
        raise InputError(
            f"the {len(held)} held-out images of {data.name} have no {what}: no network can be chosen by them",
            f"{hint}, or divide them by another --seed",
        )


def accuracy(task: Task, network: Network, images: Any, preset: Preset) -> float:
    """Top-1, or the score of another task: 0 to 1."""
    return task.evaluate(network, images, preset).row()[task.score]


def shrink(
    network: Network, settings: AdaptSettings | KnapsackSettings, tools: Tools, folder: Path, *, seed: int, log: Voice
) -> Adapted:
    """Shrink a trained network by the method that the settings are of.

    Args:
        network: not changed.
        folder: of the log and the weights; what is there is taken up.

    Raises:
        InputError: the target is out of reach, and the message says what was reached.
    """
    if isinstance(settings, KnapsackSettings):
        return adapt.shrink_by_knapsack(
            network, settings, tools, folder, seed=seed, say=log, label=log.label("measuring savings and losses")
        )
    return adapt.adapt(network, settings, tools, folder, seed=seed, say=log, label=log.label("looking for proposals"))


def last_step(folder: Path, seed_network: Network) -> Network:
    """The network of the last accepted step of NetAdapt or the knapsack, with its short-term weights."""
    steps = sorted(folder.glob("step_*.safetensors"))
    return load_network(steps[-1]) if steps else seed_network


# ---- latency; here, or on the phone that is given


def side_by_side(
    blobs: Sequence[bytes], phone: Phone | None = None, rule: StopRule = PASS_RULE
) -> list[Latency]:
    """Latency of files in turns, the fastest of three passes each.

    A pass lasts about a second, and a shared machine can be slow for that long: the slowest of three
    would be the neighbours' doing, not the network's. A phone measures in rounds, and has no neighbours.

    Args:
        rule: of a pass: on a busy machine no median settles, and the rule's time runs out for every file.
    """
    if phone is not None:
        return phone.measure_many(blobs)
    passes = [device.measure_many(blobs, Protocol(rule=rule)) for _ in range(PASSES)]
    return [min(found, key=lambda latency: latency.median_ms) for found in zip(*passes, strict=True)]


def measured(
    specs: Sequence[NetSpec], phone: Phone | None = None, rule: StopRule = PASS_RULE
) -> list[Latency]:
    """End-to-end latency of int8 networks side by side; weights do not matter."""
    return side_by_side([int8_for_timing(spec) for spec in specs], phone, rule)


def pixels(spec: NetSpec) -> str:
    """The size of a network's input, in words: its side, or height and width."""
    height, width = spec.image_shape
    return f"{height} px" if height == width else f"{height}x{width} px"


def narrowest(spec: NetSpec) -> NetSpec:
    """Every width that NetAdapt may shrink at its least, with all blocks."""
    for group in adapt.groups(spec):
        spec = group.shrunk(spec, min(group.width, NARROWEST))
    return spec


def floor(spec: NetSpec, phone: Phone | None = None) -> float:
    """Milliseconds of the smallest network that NetAdapt can reach."""
    return measured([narrowest(spec)], phone)[0].median_ms


class Confirm:
    """End-to-end measurement beside the seed network, in milliseconds of the machine's first speed.

    The machine's speed drifts over a long run; what the seed network takes now against what it took
    at the start takes the drift out.
    """

    def __init__(self, seed_network: Network, seed_ms: float, phone: Phone | None = None) -> None:
        self._reference, self._nominal = int8_for_timing(seed_network.spec), seed_ms
        self._phone = phone

    def __call__(self, network: Network) -> float:
        mine = int8_for_timing(network.spec)  # as it is shipped; a latency needs no weights
        found, reference = side_by_side([mine, self._reference], self._phone)
        return found.median_ms * self._nominal / reference.median_ms


def check_table(given: Path | None, run: Path, phone: Phone | None = None) -> None:
    """See that a table that a new run is to begin with is of this device; a resumed run has its copy.

    Raises:
        InputError: it is of another device, or none.
    """
    if given is not None and not (run / TABLE).exists():
        LatencyTable.load(given, worker=phone)


@dataclass
class OpenTable:
    """A run's latency table, saved whenever it learns a row, so that a resumed run knows the same."""

    path: Path
    given: Path | None
    phone: Phone | None = None
    _table: LatencyTable | None = None

    def fitted(self, spec: NetSpec, voice: Voice) -> OpenTable:
        """Loaded, or else built for the networks made from ``spec``."""
        source = self.path if self.path.exists() else self.given
        if source is not None:
            self._table = LatencyTable.load(source, worker=self.phone, file=int8_for_timing)
        else:
            label = voice.label("building the latency table")
            self._table = LatencyTable.build(spec, worker=self.phone, file=int8_for_timing, label=label)
        self._table.save(self.path)
        return self

    @property
    def table(self) -> LatencyTable:
        """The table itself."""
        assert self._table is not None, "fitted() comes first"
        return self._table

    def ensure(self, specs: Sequence[NetSpec], label: str | None = None) -> None:
        """Measure the rows of these networks that are missing, and keep them."""
        known = len(self.table.rows)
        self.table.ensure(specs, label)
        if len(self.table.rows) != known:
            self.table.save(self.path)

    def predict(self, spec: NetSpec) -> float:
        """Milliseconds of a network."""
        self.ensure([spec])
        return self.table.predict(spec)

    def layer_rows(self, spec: NetSpec) -> list[dict[str, Any]]:
        """Each row of a network with its share of the predicted milliseconds and its multiply-adds."""
        cost = spec.cost()
        self.ensure([spec])
        return [
            {"name": name, "ms": self.table.scale * ms, "madds": cost.of(name).madds}
            for name, ms in self.table.row_times(spec).items()
        ]


# ---- results


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A network of a comparison, trained in full."""

    label: str
    kind: str
    """``seed`` (the larger network), ``candidate``, ``adapted``, ``width`` or ``resolution``."""
    seed: int
    network: Network
    preset: Preset
    """How an image becomes its input."""


def result(
    entry: Trained, files: Exported, latency: Latency
) -> tuple[dict[str, Any], Any]:
    """An entry's row in the record, and the evaluation of its int8 file on the test images."""
    int8 = files.found["int8"]
    cost = entry.network.spec.cost()
    row = {
        "label": entry.label, "kind": entry.kind, "seed": entry.seed,
        "latency": latency.to_dict(), "accuracy_int8": value_of(int8),
        "accuracy_float": value_of(files.found["float32"]),
        "params": cost.params, "madds": cost.madds, "spec_id": entry.network.spec.id,
    }  # fmt: skip
    return row, int8


def write_files(folder: Path, files: Exported) -> dict[str, str]:
    """Write a network's two files; their names by kind."""
    names = {"int8": "model_int8.tflite", "float32": "model_float32.tflite"}
    for kind, name in names.items():
        write_atomic(folder / name, getattr(files, kind))
    return names


def describe(data: ClassificationData) -> dict[str, Any]:
    """A data set in a record."""
    return {
        "name": data.name, "classes": list(data.classes), "fingerprint": data.fingerprint,
        "sizes": {part: len(getattr(data, part)) for part in ("train", "holdout", "test")},
        "counts": {part: _counts(data, part) for part in ("train", "holdout", "test")},
        "skipped": [{"path": file.path, "why": file.why} for file in data.skipped],
    }  # fmt: skip


def _counts(data: ClassificationData, part: str) -> list[int]:
    counts: list[int] = np.bincount(getattr(data, part).labels, minlength=len(data.classes)).tolist()
    return counts


def check_unchanged(fingerprint: str, data: Any, path: Path) -> None:
    """See that a resumed run has the images that it was begun with.

    Raises:
        InputError: it has not.
    """
    if fingerprint != data.fingerprint:
        raise InputError(
            f"the images of {data.name} changed since {path} was begun", "choose another --out"
        )


def misclassified(found: Evaluation, data: ClassificationData) -> list[dict[str, Any]]:
    """The surest mistakes on the test images, with pictures for the report."""
    wrong = np.flatnonzero(found.predictions != data.test.labels)
    return _pictured(wrong[np.argsort(-found.confidence[wrong], kind="stable")][:SHOWN_MISTAKES], found, data)


def hardest(found: Evaluation, data: ClassificationData) -> list[dict[str, Any]]:
    """Of each class the test image with the highest loss, if it was taken for another; the worst first."""
    wrong = np.flatnonzero(found.predictions != data.test.labels)
    worst = wrong[np.argsort(-found.losses[wrong], kind="stable")]
    first = np.sort(np.unique(data.test.labels[worst], return_index=True)[1])[:SHOWN_MISTAKES]
    shown = _pictured(worst[first], found, data)
    return [{**image, "loss": float(found.losses[image["index"]])} for image in shown]


def _pictured(chosen: np.ndarray, found: Evaluation, data: ClassificationData) -> list[dict[str, Any]]:
    pictures = data.test.images(chosen, 96).permute(0, 2, 3, 1).numpy()
    return [
        {
            "index": int(i), "true": data.classes[data.test.labels[i]],
            "predicted": data.classes[found.predictions[i]],
            "confidence": float(found.confidence[i]), "png_base64": _png(picture),
        }
        for i, picture in zip(chosen, pictures, strict=True)
    ]  # fmt: skip


def _png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def check_positive(**values: float | None) -> None:
    """Refuse options that must be above 0, all in one message.

    Raises:
        InputError: it names them.
    """
    bad = [f"--{name.replace('_', '-')} is {value}, must be a number above 0"
           for name, value in values.items() if value is not None and not 0 < value < math.inf]  # fmt: skip
    if bad:
        raise InputError("; ".join(bad))


def check_share(**values: float) -> None:
    """Refuse options that must be from 0 to 1, all in one message.

    Raises:
        InputError: it names them.
    """
    bad = [f"--{name.replace('_', '-')} is {value}, must be from 0 to 1"
           for name, value in values.items() if not 0 <= value <= 1]  # fmt: skip
    if bad:
        raise InputError("; ".join(bad))
