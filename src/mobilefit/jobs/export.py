"""Trained weights to files for the device and for other programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mobilefit import int8
from mobilefit.arch import NetSpec
from mobilefit.data import Preset
from mobilefit.device import Latency
from mobilefit.errors import InputError, unknown
from mobilefit.formats import executorch, litert, onnx, torch_export
from mobilefit.formats.extra import needed
from mobilefit.jobs import checks, kinds, lab, pretrained
from mobilefit.jobs import model as models
from mobilefit.jobs.ends import Ends, Served, usual_outputs
from mobilefit.jobs.folder import RunFolder
from mobilefit.jobs.kinds import KINDS, loaded, trained_preset
from mobilefit.jobs.options import option
from mobilefit.litert import read_metadata
from mobilefit.litert.metadata import packaged
from mobilefit.litert.outputs import Outputs
from mobilefit.nn import Network
from mobilefit.progress import Voice
from mobilefit.runs import write_atomic
from mobilefit.tasks.metrics import record_of
from mobilefit.train import Evaluation


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Options of ``mobilefit export``."""

    weights: Path = option(help=".safetensors that mobilefit wrote", argument=True)
    data: str = option(help="the images it was trained on: to calibrate int8 and to check by", argument=True)
    ignore_label: tuple[int, ...] = option((), help="segment: a label in the masks that is no class; may be repeated")
    formats: str = option(
        "float32,int8",
        help="of float32, int8, float16, dynamic, int8_io (LiteRT), onnx, pt2, executorch; commas between",
    )
    nms: Literal["file", "outside"] | None = option(
        None, help="detect: non-maximum suppression in the LiteRT files, which then give detections, or left to the program, which then gets the box and the scores of every anchor (default: file)"
    )
    score_threshold: float | None = option(
        None, help="detect: least score of a detection (default: 0.05)"
    )
    ends: Literal["logits", "labels", "coarse"] | None = option(
        None, help="segment: what the LiteRT files give: logits of the input's size, the class of each pixel, or logits of the head's own size (default: logits)"
    )
    seed: int = option(0, help="of the data's division and the calibration images")
    out: Path = option(Path("runs/export"), help="run folder")


@dataclass(frozen=True, kw_only=True)
class Source:
    """What the files are made of."""

    network: Network
    data: Any
    preset: Preset
    seed: int
    base: models.Exported

    def other(self, module: Any, **more: Any) -> bytes:
        """The network in the format of one of the modules of ``formats``; a detector's gives boxes and scores."""
        said = models.description(self.network, self.data, self.preset)
        made: bytes = module.export(
            Served(self.network), models.input_shape(self.network.spec), metadata=said, **more
        )
        return made

    def onnx(self) -> bytes:
        """With names for the outputs."""
        return self.other(onnx, outputs=Served(self.network).names)

    def smaller(self, kind: str) -> bytes:
        """A LiteRT file made of the float32 one, with its accuracy."""
        blob = self.base.float32
        made = {
            "float16": lambda: litert.float16(blob),
            "dynamic": lambda: litert.dynamic_int8(blob),
            "int8_io": lambda: int8.quantize(
                blob, models.calibration(self.data, self.preset, self.seed), edges="int8"
            ),
        }[kind]()
        found = models.evaluate_file(made, self.data.test, self.preset)
        return packaged(made, {kind: models.accuracy_entry(found, self.data)})


class Format(NamedTuple):
    """A file's name, how it is made, and how images ``[n, 3, H, W]`` go through it."""

    file: str
    make: Callable[[Source], bytes]
    run: checks.Answers
    needs: tuple[str, ...] = ()
    """Packages of the extra that is named like the format."""


FORMATS = {
    "float32": Format("model_float32.tflite", lambda source: source.base.float32, checks.through_litert),
    "int8": Format("model_int8.tflite", lambda source: source.base.int8, checks.through_litert),
    "float16": Format("model_float16.tflite", lambda source: source.smaller("float16"), checks.through_litert),
    "dynamic": Format("model_dynamic.tflite", lambda source: source.smaller("dynamic"), checks.through_litert),
    "int8_io": Format("model_int8_io.tflite", lambda source: source.smaller("int8_io"), checks.through_litert),
    "onnx": Format("model.onnx", lambda source: source.onnx(), onnx.run_all,
                   needs=("onnx", "onnxscript", "onnxruntime")),
    "pt2": Format("model.pt2", lambda source: source.other(torch_export), torch_export.run_all),
    "executorch": Format("model.pte", lambda source: source.other(executorch), executorch.run_all,
                         needs=("executorch.runtime",)),
}  # fmt: skip


MEASURES = {"top1": "", "map50": "mAP@0.5 ", "miou": "mIoU "}
"""What a file's number is called in a line of the output, by its name in the metadata."""


def export(config: ExportConfig) -> dict[str, Any]:
    """Write the network's files; LiteRT's float32 and int8 are always evaluated and measured.

    ``parity.json`` tells how far each file is from the module on test images: its logits, boxes and
    scores, or labels of pixels.

    Raises:
        InputError: bad weights, data, formats, outputs or folder, or a format's extra is not installed.
        QualityGateError: everything is written, but a file is out of its format's tolerance.
    """
    formats = _kinds(config.formats)
    opened = pretrained.opened(config.weights)
    network = opened.network
    kind, outputs = KINDS[network.spec.task], _outputs(config, network.spec)
    data = loaded(kind, kinds.source_of(config, Voice()))
    preset = trained_preset(opened, data, kind)
    run = RunFolder(config.out, "export", config)
    if run.finished:
        raise InputError(f"{run.path} holds a finished run", "choose another --out")
    base = models.export(network, data, preset, seed=config.seed, outputs=outputs)
    source = Source(network=network, data=data, preset=preset, seed=config.seed, base=base)
    files = {form: FORMATS[form].make(source) for form in formats}
    found_parity = checks.compare(
        network, {form: (blob, FORMATS[form].run) for form, blob in files.items()}, data, preset,
        seed=config.seed, outputs=outputs,
    )  # fmt: skip
    timed = {"int8": base.int8, "float32": base.float32,
             **{form: blob for form, blob in files.items() if FORMATS[form].run is checks.through_litert}}  # fmt: skip
    latencies = dict(zip(timed, lab.side_by_side([*timed.values()]), strict=True))
    for form, blob in files.items():
        write_atomic(run.path / FORMATS[form].file, blob)
    checks.keep(found_parity, run.path)
    row, found = _row(network, config.seed, base), base.found["int8"]
    row["latency"] = latencies["int8"].to_dict()
    record = run.finish({
        "task": kind.task, "data": kinds.described(data), "final_spec": network.spec.to_dict(), "results": [row],
        "final": {**row, **_of_classes(found), "latency_float": latencies["float32"].to_dict(),
                  "files": {form: FORMATS[form].file for form in files},
                  "bytes": {form: len(blob) for form, blob in files.items()}},
    })  # fmt: skip
    for form, blob in files.items():
        _tell(form, blob, latencies.get(form), run.path / FORMATS[form].file)
    checks.gate(found_parity, run.path)
    return record


def _row(network: Network, seed: int, base: models.Exported) -> dict[str, Any]:
    cost = network.spec.cost()
    return {
        "label": network.spec.name, "kind": "seed", "seed": seed,
        "accuracy_int8": models.value_of(base.found["int8"]),
        "accuracy_float": models.value_of(base.found["float32"]),
        "params": cost.params, "madds": cost.madds, "spec_id": network.spec.id,
    }  # fmt: skip


def _of_classes(found: Any) -> dict[str, Any]:
    """What the record keeps of the int8 file's evaluation."""
    if isinstance(found, Evaluation):
        return {"confusion": found.confusion.tolist()}
    return record_of(found.score)


def _outputs(config: ExportConfig, spec: NetSpec) -> Outputs | None:
    """What the LiteRT files end with.

    Raises:
        InputError: an option is for another task, or out of range.
    """
    given: dict[str, dict[str, Any]] = {
        "detect": {"nms": config.nms, "score_threshold": config.score_threshold},
        "segment": {"form": config.ends},
    }
    changes = {task: {k: v for k, v in each.items() if v is not None} for task, each in given.items()}
    for task, name in (("detect", "--nms and --score-threshold are"), ("segment", "--ends is")):
        if changes[task] and spec.task != task:
            raise InputError(f"{name} for --task {task}, and '{spec.name}' is for {spec.task}", "leave it out")
    usual = usual_outputs(spec)
    if usual is None:
        return None
    chosen = replace(usual, **changes[spec.task])
    if spec.task == "detect":
        _ = Ends(spec=spec, outputs=chosen).rule  # which checks the threshold
    return chosen


def _kinds(formats: str) -> list[str]:
    """The formats named, each once."""
    kinds = list(dict.fromkeys(word.strip() for word in formats.split(",") if word.strip()))
    if not kinds:
        raise InputError("--formats names none", "choose from " + ", ".join(FORMATS))
    for kind in kinds:
        if kind not in FORMATS:
            raise unknown("format", kind, FORMATS)
        for package in FORMATS[kind].needs:  # to say it before the work, not after
            needed(package, kind)
    return kinds


def _tell(kind: str, blob: bytes, latency: Latency | None, path: Path) -> None:
    said = f"{kind + ':':<8} "
    if latency is not None:
        known = (read_metadata(blob) or {})["accuracy"][kind]
        measure = next(name for name in MEASURES if name in known)
        said += f"{MEASURES[measure]}{known[measure]:.2%}, {latency}, "
    print(f"{said}{len(blob) / 1e6:.2f} MB   {path}")
