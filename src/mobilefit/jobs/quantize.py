"""A float32 file to int8."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mobilefit import device, int8
from mobilefit.data import load
from mobilefit.jobs.lab import check_positive
from mobilefit.jobs.model import calibration, evaluate_file, file_info, naming, read_file
from mobilefit.jobs.options import option
from mobilefit.runs import write_atomic


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """Options of ``mobilefit quantize``."""

    file: Path = option(help="a float32 .tflite that mobilefit wrote", argument=True)
    data: str = option(help="images like those it will see; their training part calibrates", argument=True)
    images: int = option(200, help="calibration images, spread over the classes")
    seed: int = option(0, help="of the choice of images")
    out: Path | None = option(None, help="the int8 file (default: beside the float32 one)")


def quantize(config: QuantizeConfig) -> bytes:
    """Write the int8 file, and print accuracy, latency and size of both.

    Raises:
        InputError: a bad file (or an int8 one already), or bad data.
    """
    check_positive(images=config.images)
    blob = read_file(config.file)
    described = file_info(blob, config.file)
    data = load(config.data, seed=config.seed)
    with naming(config.file):
        small = int8.quantize(
            blob, calibration(data, described.preset, config.seed, config.images)
        )
    stem = config.file.stem.removesuffix("_float32")
    out = config.out or config.file.with_name(f"{stem}_int8.tflite")
    write_atomic(out, small)
    files = {str(config.file): blob, str(out): small}
    for (name, file), latency in zip(files.items(), device.measure_many([*files.values()])):
        top1 = evaluate_file(file, data.test, described.preset).top1
        print(f"{name}: {top1:.2%} on the test images, {latency}, {len(file) / 1e6:.2f} MB")
    return small
