"""Trained weights to files for the device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilefit.data import load
from mobilefit.errors import InputError
from mobilefit.jobs import lab
from mobilefit.jobs import model as models
from mobilefit.jobs.folder import RunFolder
from mobilefit.jobs.options import option
from mobilefit.nn import load_network


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Options of ``mobilefit export``."""

    weights: Path = option(help=".safetensors that mobilefit wrote", argument=True)
    data: str = option(help="the images it was trained on: to calibrate int8 and to check by", argument=True)
    seed: int = option(0, help="of the data's division and the calibration images")
    out: Path = option(Path("runs/export"), help="run folder")


def export(config: ExportConfig) -> dict[str, Any]:
    """Write ``model_float32.tflite`` and ``model_int8.tflite``, evaluated and measured.

    Raises:
        InputError: bad weights, data or folder.
    """
    network = load_network(config.weights)
    data = load(config.data, seed=config.seed)
    if network.spec.head.num_classes != len(data.classes):
        raise InputError(
            f"{config.weights} tells {network.spec.head.num_classes} classes apart, {data.name} has "
            f"{len(data.classes)}",
            "give the data that it was trained on",
        )
    run = RunFolder(config.out, "export", config)
    if run.finished:
        raise InputError(f"{run.path} holds a finished run", "choose another --out")
    preset = data.preset(network.spec.input_size)
    files = models.export(network, data, preset, seed=config.seed)
    entry = lab.Entry(label=network.spec.name, kind="seed", seed=config.seed, network=network)
    quick, slow = lab.side_by_side([files.int8, files.float32])
    row, found = lab.result(entry, files, quick, data, preset)
    names = lab.write_files(run.path, files)
    record = run.finish({
        "data": lab.describe(data), "final_spec": network.spec.to_dict(), "results": [row],
        "final": {**row, "latency_float": slow.to_dict(), "files": names,
                  "confusion": found.confusion.tolist()},
    })  # fmt: skip
    print(f"float32: {row['accuracy_float']:.2%}, {slow}   {run.path / names['float32']}")
    print(f"int8:    {row['accuracy_int8']:.2%}, {quick}   {run.path / names['int8']}")
    return record
