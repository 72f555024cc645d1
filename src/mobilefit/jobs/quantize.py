"""A float32 file to int8: after training (PTQ), or trained further with the rounding in place (QAT)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mobilefit import device, int8
from mobilefit.arch import NetSpec
from mobilefit.data import Preset
from mobilefit.device import lowerings
from mobilefit.errors import InputError, QualityGateError, naming
from mobilefit.int8 import Fidelity, LayerSensitivity, Policy, Simulation
from mobilefit.int8.observers import Observer
from mobilefit.int8.training import DELAY, FREEZE
from mobilefit.jobs import checks, lab, pretrained
from mobilefit.jobs.folder import RunFolder
from mobilefit.jobs.kinds import KINDS, Kind, described, loaded, source_of
from mobilefit.jobs.model import (
    FileInfo,
    accuracy_entry,
    calibration,
    evaluate_file,
    file_info,
    prepared,
    read_file,
    some,
    value_of,
)
from mobilefit.jobs.options import option
from mobilefit.jobs.running import File, Runner
from mobilefit.jobs.simulated import OfSimulation
from mobilefit.litert.lowerings import DEFAULT, INT8, named
from mobilefit.litert.metadata import packaged
from mobilefit.litert.outputs import split
from mobilefit.progress import Voice
from mobilefit.runs import read_json, write_atomic
from mobilefit.tasks.metrics import record_of
from mobilefit.train import Evaluation, Recipe, fit, recipe

FILE = "model_int8.tflite"
MEASURE = "measure"
AUTO_DROP = 0.003  # of held-out accuracy: what "auto" lets calibration alone lose
WORST = 3
_PROBED_PIXELS = 256 * 96 * 96  # of the images that a sensitivity looks at, all together


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """Options of ``mobilefit quantize``."""

    file: Path = option(help="a float32 .tflite that mobilefit wrote", argument=True)
    data: str = option(help="images like those it will see; their training part calibrates", argument=True)
    method: Literal["ptq", "qat", "auto"] = option(
        "ptq", help="ptq: ranges from images alone; qat: train on with the rounding in place; auto: qat where ptq loses more than 0.3 points on held-out images"
    )
    ignore_label: tuple[int, ...] = option((), help="segment: a label in the masks that is no class; may be repeated")
    images: int = option(200, help="calibration images, spread over the classes, or over the training images")
    observer: Observer = option("percentile", help="how a range is made of the values seen")
    bias_correction: bool = option(False, help="shift each bias by its layer's mean error (ptq)")
    keep_float: str = option("", help="layers that stay float32: patterns such as 'head.*,blocks.0.*'")
    int16: str = option("", help="layers with int16 activations (slow: outside of the delegate)")
    policy: Path | None = option(None, help="the same as a .json file")
    edges: Literal["float", "int8"] = option("float", help="type of the file's input and output")
    lowering: str = option(
        DEFAULT, help="which operators the layers become: a name, or 'measure' for the fastest here"
    )
    epochs: int = option(1, help="qat: passes over the training images")
    steps: int | None = option(None, help="qat: optimizer steps, in place of --epochs")
    lr: float | None = option(None, help="qat: learning rate for a batch of 256")
    distillation: float | None = option(None, help="qat of a classifier: share of the loss that the float network sets (0 to 1)")
    max_drop: float = option(1.0, help="most points of accuracy, mAP@0.5 or mIoU that int8 may lose: more is exit code 3")
    sensitivity: bool = option(False, help="tell what each layer costs, also when nothing is wrong")
    seed: int = option(0, help="of the choice of images and of training")
    out: Path = option(Path("runs/quantize"), help="run folder; an interrupted run there goes on")
    quiet: bool = option(False, help="show no progress")


def quantize(config: QuantizeConfig) -> dict[str, Any]:
    """Write ``model_int8.tflite`` and ``record.json``; print quality, latency and size of both files.

    Raises:
        InputError: a bad file (or an int8 one already), bad options, data or folder.
        QualityGateError: int8 loses more than ``max_drop`` points on the test images. The file is
            there; the layers that cost most are named.
    """
    lab.check_positive(
        images=config.images, epochs=config.epochs, steps=config.steps, lr=config.lr
    )
    if config.lowering != MEASURE:
        named(config.lowering, INT8)
    policy = _policy(config)
    blob = read_file(config.file)
    info = file_info(blob, config.file)
    kind = KINDS[info.spec.task]
    voice = Voice(quiet=config.quiet)
    data = loaded(kind, source_of(config, voice))
    pretrained.check_classes(config.file, info.spec.head.num_classes, info.classes, data)
    if config.distillation and kind.task != "classify":
        raise InputError("--distillation is for classifiers", "leave it out")
    run = RunFolder(config.out, "quantize", config)
    if run.finished:
        raise InputError(f"{run.path} holds a finished run", "choose another --out")
    lowering = run.stage("lowering", lambda: _lowering(config, info.spec, voice), str)
    work = _Work(config, kind, data, info, run, voice, lowering)
    with naming(config.file):
        simulation = work.calibrated(blob, policy)
        small, method = work.best(blob, simulation)
    return _finish(work, blob, small, method, simulation)


def _lowering(config: QuantizeConfig, spec: NetSpec, voice: Voice) -> str:
    """The name of the lowering: the one asked for, or the fastest of all here, side by side."""
    if config.lowering != MEASURE:
        return config.lowering
    timed = lowerings.compare(spec)
    for row in timed:
        voice(f"lowering '{row.name}': {row.latency}, {row.partitions} partition(s)")
    return lowerings.fastest(timed).name


def _policy(config: QuantizeConfig) -> Policy:
    named = Policy.of(keep_float=_patterns(config.keep_float), int16=_patterns(config.int16))
    if config.policy is None:
        return named
    with naming(config.policy):
        return Policy(rules=(*Policy.from_dict(read_json(config.policy)).rules, *named.rules))


def _patterns(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


@dataclass(frozen=True)
class _Work:
    """What the steps of a quantization share."""

    config: QuantizeConfig
    kind: Kind
    data: Any
    info: FileInfo
    run: RunFolder
    voice: Voice
    lowering: str

    @property
    def preset(self) -> Preset:
        return self.info.preset

    def calibrated(self, blob: bytes, policy: Policy) -> Simulation:
        images = list(calibration(self.data, self.preset, self.config.seed, self.config.images))
        simulation = int8.calibrated(
            blob, images, observer=self.config.observer, policy=policy, lowering=self.lowering
        )
        if self.config.bias_correction:
            int8.correct_biases(simulation, int8.quantizer.batches_of(simulation.graph, images))
        return simulation

    def best(self, blob: bytes, simulation: Simulation) -> tuple[bytes, str]:
        """The int8 file by the method asked for, and the method."""
        small = self.file(simulation)
        if self.config.method == "ptq" or (self.config.method == "auto" and self.keeps(blob, small)):
            return small, "ptq"
        self.train(simulation)
        return self.file(simulation), "qat"

    def file(self, simulation: Simulation) -> bytes:
        return int8.written(simulation, edges=self.config.edges, lowering=self.lowering)

    def keeps(self, blob: bytes, small: bytes) -> bool:
        """Whether int8 loses at most 0.3 points on held-out images."""
        images = self.held_out(2000)
        before, after = (value_of(evaluate_file(f, images, self.preset)) for f in (blob, small))
        self.voice(f"after training alone: {before:.2%} float32, {after:.2%} int8 on held-out images")
        return before - after <= AUTO_DROP

    def train(self, simulation: Simulation) -> None:
        config = self.config
        given = {name: value for name in ("lr", "distillation")
                 if (value := getattr(config, name)) is not None}  # fmt: skip
        chosen = replace(recipe("int8"), **self.varied(), **given, epochs=config.epochs)
        steps = config.steps or chosen.epochs * max(1, len(self.data.train) // chosen.batch_size)
        with self.run.timed("training"):
            self.fit(simulation, chosen, steps)

    def fit(self, simulation: Simulation, chosen: Recipe, steps: int) -> None:
        """Training steps, from the folder's checkpoint on if there is one."""
        more: dict[str, Any] = {
            "preset": self.preset, "recipe": chosen, "steps": steps, "validation": self.held_out(2000),
            "seed": self.config.seed, "out": self.run.path / "train", "resume": True,
            "checkpoint_every": max(1, steps // 10),
            "progress": self.voice.label("quantization-aware training"),
        }  # fmt: skip
        if self.kind.task == "classify":
            int8.fit_int8(simulation, self.data.train, **more)
            return
        simulation.delay, simulation.freeze = round(DELAY * steps), round(FREEZE * steps)
        fit(simulation, self.data.train, task=OfSimulation(self.kind, self.info.spec), **more)

    def varied(self) -> dict[str, Any]:
        """What the recipe has otherwise for these images."""
        task = self.kind.task
        if task == "classify":
            return {"augment": "mild"} if self.data.tiny else {}
        usual = self.kind.recipe(None, None, self.data)
        batch = min(usual.batch_size, len(self.data.train))
        return {"task": task, "augment": usual.augment, "batch_size": batch, "distillation": 0.0}

    def held_out(self, most: int) -> Any:
        """Held-out images to decide by; some of the training images where none are held out."""
        if self.kind.task == "classify":
            return lab.held_out(self.data, most, self.config.seed)
        return some(self.data, self.data.holdout or self.data.train, most, self.config.seed)

    def layers(self, simulation: Simulation) -> list[LayerSensitivity]:
        """What each layer costs, on held-out images."""
        images = self.held_out(max(16, _PROBED_PIXELS // math.prod(self.preset.shape)))
        labels = images.labels if self.kind.task == "classify" else None
        return int8.sensitivity_of(
            simulation, [*prepared(images, self.preset)], labels,
            progress=self.voice.label("layer by layer"),
        )  # fmt: skip

    def fidelity(self, simulation: Simulation, small: bytes) -> Fidelity:
        """Whether the file computes what was simulated, on a thousand test images of 96 pixels a side."""
        most = max(8, min(1000, 1000 * 96**2 // math.prod(self.preset.shape)))
        images = self.data.test.subset(np.arange(min(most, len(self.data.test))))
        network = Runner(small) if self.kind.task == "classify" else File(split(small)[0]).run
        return int8.fidelity_of(simulation, network, [*prepared(images, self.preset)])


def _finish(
    work: _Work, blob: bytes, small: bytes, method: str, simulation: Simulation
) -> dict[str, Any]:
    config, run, files = work.config, work.run, (blob, small)
    score = work.kind.score
    names = (str(config.file), str(run.path / FILE))
    slow, quick = device.measure_many(files)
    exact, rounded = (evaluate_file(f, work.data.test, work.preset) for f in files)
    before, after = value_of(exact), value_of(rounded)
    drop = before - after
    accuracy = {"float32": accuracy_entry(exact, work.data), "int8": accuracy_entry(rounded, work.data)}
    write_atomic(run.path / FILE, packaged(small, accuracy))
    failed = 100 * drop > config.max_drop
    rows = work.layers(simulation) if config.sensitivity or failed else []
    fidelity = work.fidelity(simulation, small)
    checks.keep({"int8": fidelity.to_dict()}, run.path)
    record = run.finish({
        "seed": config.seed, "task": work.kind.task, "data": described(work.data), "method": method,
        "lowering": work.lowering, "policy": simulation.policy.to_dict(),
        "final_spec": work.info.spec.to_dict(),
        "final": {
            "accuracy_float": before, "accuracy_int8": after, "drop": drop, **_compared(exact, rounded),
            "latency": quick.to_dict(), "latency_float": slow.to_dict(),
            "bytes": {"float32": len(blob), "int8": len(small)}, "files": {"int8": FILE},
        },
        "fidelity": fidelity.to_dict(),
        "sensitivity": [row.to_dict() for row in rows],
    })  # fmt: skip
    called = "" if work.kind.task == "classify" else f"{score} "
    for name, file, latency, value in zip(names, files, (slow, quick), (before, after)):
        print(f"{name}: {called}{value:.2%} on the test images, {latency}, {len(file) / 1e6:.2f} MB")
    if config.sensitivity:
        print(_table(rows))
    if not fidelity.ok:
        raise QualityGateError(
            f"the int8 file does not compute what was simulated: the same top-1 on {fidelity.top1:.1%} of "
            f"{fidelity.images} images, {fidelity.within_one_step:.1%} of the logits within a step",
            "another runtime may round otherwise; see parity.json, and trust the file's own accuracy",
        )
    if failed:
        raise QualityGateError(
            f"int8 loses {100 * drop:.2f} points of {score} ({method}), more than --max-drop {config.max_drop:g}; "
            f"the layers that cost most: {', '.join(row.layer for row in rows[:WORST])}",
            f"try {'--method qat, or ' if method == 'ptq' else ''}--keep-float {rows[0].layer}",
        )
    return record


def _compared(exact: Any, rounded: Any) -> dict[str, Any]:
    """How far the two files' answers agree, where an image has one answer; else int8's numbers by class."""
    if isinstance(exact, Evaluation):
        return {"agreement": float(np.mean(exact.predictions == rounded.predictions))}
    return record_of(rounded.score)


def _table(rows: list[LayerSensitivity]) -> str:
    width = max(len(row.layer) for row in rows)
    lines = [f"{'layer alone in int8':<{width}}   SNR dB   points   same top-1"]
    for row in rows:
        lost = "     -" if row.accuracy_drop is None else f"{0 - 100 * row.accuracy_drop:+6.2f}"
        lines.append(f"{row.layer:<{width}}   {row.snr_db:6.1f}   {lost}   {row.agreement:10.1%}")
    return "\n".join(lines)
