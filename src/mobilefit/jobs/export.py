"""Trained weights to files for the device and for other programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mobilefit import int8
from mobilefit.data import ClassificationData, Preset, load
from mobilefit.device import Latency
from mobilefit.errors import InputError, unknown
from mobilefit.formats import executorch, litert, onnx, torch_export
from mobilefit.formats.extra import needed
from mobilefit.jobs import checks, lab, pretrained
from mobilefit.jobs import model as models
from mobilefit.jobs.folder import RunFolder
from mobilefit.jobs.options import option
from mobilefit.litert import read_metadata
from mobilefit.litert.metadata import packaged
from mobilefit.nn import Network
from mobilefit.runs import write_atomic


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Options of ``mobilefit export``."""

    weights: Path = option(help=".safetensors that mobilefit wrote", argument=True)
    data: str = option(help="the images it was trained on: to calibrate int8 and to check by", argument=True)
    formats: str = option(
        "float32,int8",
        help="of float32, int8, float16, dynamic, int8_io (LiteRT), onnx, pt2, executorch; commas between",
    )
    seed: int = option(0, help="of the data's division and the calibration images")
    out: Path = option(Path("runs/export"), help="run folder")


@dataclass(frozen=True, kw_only=True)
class Source:
    """What the files are made of."""

    network: Network
    data: ClassificationData
    preset: Preset
    seed: int
    base: models.Exported

    def other(self, module: Any) -> bytes:
        """The network in the format of one of the modules of ``formats``."""
        said = models.description(self.network, self.data, self.preset)
        made: bytes = module.export(
            self.network, models.input_shape(self.network.spec), metadata=said
        )
        return made

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
    "onnx": Format("model.onnx", lambda source: source.other(onnx), onnx.run,
                   needs=("onnx", "onnxscript", "onnxruntime")),
    "pt2": Format("model.pt2", lambda source: source.other(torch_export), torch_export.run),
    "executorch": Format("model.pte", lambda source: source.other(executorch), executorch.run,
                         needs=("executorch.runtime",)),
}  # fmt: skip


def export(config: ExportConfig) -> dict[str, Any]:
    """Write the network's files; LiteRT's float32 and int8 are always evaluated and measured.

    ``parity.json`` tells how far each file's logits are from the module's on test images.

    Raises:
        InputError: bad weights, data, formats or folder, or a format's extra is not installed.
        QualityGateError: everything is written, but a file is out of its format's tolerance.
    """
    kinds = _kinds(config.formats)
    opened = pretrained.opened(config.weights)
    network, data = opened.network, load(config.data, seed=config.seed)
    preset = opened.preset(data)
    run = RunFolder(config.out, "export", config)
    if run.finished:
        raise InputError(f"{run.path} holds a finished run", "choose another --out")
    base = models.export(network, data, preset, seed=config.seed)
    source = Source(network=network, data=data, preset=preset, seed=config.seed, base=base)
    files = {kind: FORMATS[kind].make(source) for kind in kinds}
    found_parity = checks.compare(
        network, {kind: (blob, FORMATS[kind].run) for kind, blob in files.items()}, data, preset,
        seed=config.seed,
    )  # fmt: skip
    timed = {"int8": base.int8, "float32": base.float32,
             **{kind: blob for kind, blob in files.items() if FORMATS[kind].run is checks.through_litert}}  # fmt: skip
    latencies = dict(zip(timed, lab.side_by_side([*timed.values()]), strict=True))
    for kind, blob in files.items():
        write_atomic(run.path / FORMATS[kind].file, blob)
    checks.keep(found_parity, run.path)
    entry = lab.Entry(label=network.spec.name, kind="seed", seed=config.seed, network=network)
    row, found = lab.result(entry, base, latencies["int8"])
    record = run.finish({
        "data": lab.describe(data), "final_spec": network.spec.to_dict(), "results": [row],
        "final": {**row, "latency_float": latencies["float32"].to_dict(),
                  "files": {kind: FORMATS[kind].file for kind in files},
                  "bytes": {kind: len(blob) for kind, blob in files.items()},
                  "confusion": found.confusion.tolist()},
    })  # fmt: skip
    for kind, blob in files.items():
        _tell(kind, blob, latencies.get(kind), run.path / FORMATS[kind].file)
    checks.gate(found_parity, run.path)
    return record


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
        known = read_metadata(blob) or {}
        said += f"{known['accuracy'][kind]['top1']:.2%}, {latency}, "
    print(f"{said}{len(blob) / 1e6:.2f} MB   {path}")
