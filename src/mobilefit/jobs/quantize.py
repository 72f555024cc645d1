"""A float32 file to int8: after training (PTQ), or trained further with the rounding in place (QAT)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mobilefit import device, int8
from mobilefit.arch import NetSpec
from mobilefit.data import ClassificationData, Preset, batches, load
from mobilefit.device import lowerings
from mobilefit.errors import InputError, QualityGateError
from mobilefit.int8 import Fidelity, LayerSensitivity, Policy, Simulation
from mobilefit.int8.observers import Observer
from mobilefit.jobs import checks, lab
from mobilefit.jobs.folder import RunFolder
from mobilefit.jobs.model import FileInfo, calibration, evaluate_file, file_info, naming, read_file
from mobilefit.jobs.options import option
from mobilefit.jobs.running import Runner
from mobilefit.litert.lowerings import DEFAULT, INT8, named
from mobilefit.litert.metadata import packaged
from mobilefit.progress import Voice
from mobilefit.runs import read_json, write_atomic
from mobilefit.train import recipe

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
    images: int = option(200, help="calibration images, spread over the classes")
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
    distillation: float | None = option(None, help="qat: share of the loss that the float network sets (0 to 1)")
    max_drop: float = option(1.0, help="most points of accuracy that int8 may lose: more is exit code 3")
    sensitivity: bool = option(False, help="tell what each layer costs, also when nothing is wrong")
    seed: int = option(0, help="of the choice of images and of training")
    out: Path = option(Path("runs/quantize"), help="run folder; an interrupted run there goes on")
    quiet: bool = option(False, help="show no progress")


def quantize(config: QuantizeConfig) -> dict[str, Any]:
    """Write ``model_int8.tflite`` and ``record.json``; print accuracy, latency and size of both files.

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
    described = file_info(blob, config.file)
    data = load(config.data, seed=config.seed)
    run = RunFolder(config.out, "quantize", config)
    if run.finished:
        raise InputError(f"{run.path} holds a finished run", "choose another --out")
    voice = Voice(quiet=config.quiet)
    lowering = run.stage("lowering", lambda: _lowering(config, described.spec, voice))
    work = _Work(config, data, described.preset, run, voice, lowering)
    with naming(config.file):
        simulation = work.calibrated(blob, policy)
        small, method = work.best(blob, simulation)
    return _finish(work, blob, small, method, simulation, described)


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
    data: ClassificationData
    preset: Preset
    run: RunFolder
    voice: Voice
    lowering: str

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
        images = lab.held_out(self.data, 2000, self.config.seed)
        before, after = (evaluate_file(f, images, self.preset).top1 for f in (blob, small))
        self.voice(f"after training alone: {before:.2%} float32, {after:.2%} int8 on held-out images")
        return before - after <= AUTO_DROP

    def train(self, simulation: Simulation) -> None:
        config = self.config
        given = {name: value for name in ("lr", "distillation")
                 if (value := getattr(config, name)) is not None}  # fmt: skip
        chosen = replace(recipe("int8"), **given, epochs=config.epochs)
        if self.data.tiny:
            chosen = replace(chosen, augment="mild")
        steps = config.steps or chosen.epochs * max(1, len(self.data.train) // chosen.batch_size)
        with self.run.timed("training"):
            int8.fit_int8(
                simulation, self.data.train, preset=self.preset, recipe=chosen, steps=steps,
                validation=lab.held_out(self.data, 2000, config.seed), seed=config.seed,
                out=self.run.path / "train", resume=True, checkpoint_every=max(1, steps // 10),
                progress=self.voice.label("quantization-aware training"),
            )  # fmt: skip

    def layers(self, simulation: Simulation) -> list[LayerSensitivity]:
        """What each layer costs, on held-out images."""
        most = max(16, _PROBED_PIXELS // self.preset.resolution**2)
        images = lab.held_out(self.data, most, self.config.seed)
        found = [batch for batch, _ in batches(images, self.preset, 32, train=False)]
        return int8.sensitivity_of(
            simulation, found, images.labels, progress=self.voice.label("layer by layer")
        )

    def fidelity(self, simulation: Simulation, small: bytes) -> Fidelity:
        """Whether the file computes what was simulated, on a thousand test images."""
        images = self.data.test.subset(np.arange(min(1000, len(self.data.test))))
        found = [batch for batch, _ in batches(images, self.preset, 32, train=False)]
        return int8.fidelity_of(simulation, Runner(small), found)


def _finish(
    work: _Work, blob: bytes, small: bytes, method: str, simulation: Simulation, described: FileInfo
) -> dict[str, Any]:
    config, run, files = work.config, work.run, (blob, small)
    names = (str(config.file), str(run.path / FILE))
    slow, quick = device.measure_many(files)
    exact, rounded = (evaluate_file(f, work.data.test, work.preset) for f in files)
    drop = exact.top1 - rounded.top1
    seen = f"{len(work.data.test)} test images of {work.data.name}"
    accuracy = {"float32": {"top1": exact.top1, "images": seen}, "int8": {"top1": rounded.top1, "images": seen}}
    write_atomic(run.path / FILE, packaged(small, accuracy))
    failed = 100 * drop > config.max_drop
    rows = work.layers(simulation) if config.sensitivity or failed else []
    fidelity = work.fidelity(simulation, small)
    checks.keep({"int8": fidelity.to_dict()}, run.path)
    record = run.finish({
        "seed": config.seed, "data": lab.describe(work.data), "method": method, "lowering": work.lowering,
        "policy": simulation.policy.to_dict(), "final_spec": described.spec.to_dict(),
        "final": {
            "accuracy_float": exact.top1, "accuracy_int8": rounded.top1, "drop": drop,
            "agreement": float(np.mean(exact.predictions == rounded.predictions)),
            "latency": quick.to_dict(), "latency_float": slow.to_dict(),
            "bytes": {"float32": len(blob), "int8": len(small)}, "files": {"int8": FILE},
        },
        "fidelity": fidelity.to_dict(),
        "sensitivity": [row.to_dict() for row in rows],
    })  # fmt: skip
    for name, file, latency, found in zip(names, files, (slow, quick), (exact, rounded)):
        print(f"{name}: {found.top1:.2%} on the test images, {latency}, {len(file) / 1e6:.2f} MB")
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
            f"int8 loses {100 * drop:.2f} points ({method}), more than --max-drop {config.max_drop:g}; "
            f"the layers that cost most: {', '.join(row.layer for row in rows[:WORST])}",
            f"try {'--method qat, or ' if method == 'ptq' else ''}--keep-float {rows[0].layer}",
        )
    return record


def _table(rows: list[LayerSensitivity]) -> str:
    width = max(len(row.layer) for row in rows)
    lines = [f"{'layer alone in int8':<{width}}   SNR dB   points   same top-1"]
    lines += [f"{row.layer:<{width}}   {row.snr_db:6.1f}   {0 - 100 * row.accuracy_drop:+6.2f}   {row.agreement:10.1%}"
              for row in rows]  # fmt: skip
    return "\n".join(lines)
