"""From a trained network to files, and from files to predictions: what several verbs share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mobilefit import arch, int8, litert
from mobilefit.arch import NetSpec
from mobilefit.data import ClassificationData, ImageSet, Preset, batches
from mobilefit.errors import InputError
from mobilefit.jobs import pretrained
from mobilefit.jobs.running import Runner, outline
from mobilefit.litert.metadata import packaged
from mobilefit.nn import Network, build
from mobilefit.train import Evaluation, evaluation_of

CALIBRATION_IMAGES = 200
"""Spread evenly over the classes; a min-max range does not move much after a hundred."""


def input_shape(spec: NetSpec) -> tuple[int, int, int, int]:
    """One image, NCHW."""
    return (1, spec.in_channels, spec.input_size, spec.input_size)


def int8_for_timing(spec: NetSpec) -> bytes:
    """An int8 file of the spec with made-up weights and ranges: its latency is the real one's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build(spec).eval()
    return int8.with_random_ranges(litert.compile(network, input_shape(spec)))


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A network's two files as they are written, and what they make of the test images."""

    float32: bytes
    int8: bytes
    found: dict[str, Evaluation]
    """By the file's name here."""


def export(network: Network, data: ClassificationData, preset: Preset, *, seed: int = 0) -> Exported:
    """Compile to LiteRT, quantize with training images as calibration, evaluate, and package."""
    blob = litert.compile(
        network.eval(), input_shape(network.spec), metadata=description(network, data, preset)
    )
    files = {"float32": blob, "int8": int8.quantize(blob, calibration(data, preset, seed))}
    found = {kind: evaluate_file(file, data.test, preset) for kind, file in files.items()}
    known = {kind: accuracy_entry(evaluation, data) for kind, evaluation in found.items()}
    return Exported(
        float32=packaged(files["float32"], known), int8=packaged(files["int8"], known), found=found
    )


def description(network: Network, data: ClassificationData, preset: Preset) -> dict[str, Any]:
    """What a file says of itself."""
    return {
        "preset": preset.to_dict(), "classes": list(data.classes), "spec": network.spec.to_dict(),
    }  # fmt: skip


def accuracy_entry(found: Evaluation, data: ClassificationData) -> dict[str, Any]:
    """A file's accuracy as its metadata keep it (see ``litert.metadata.packaged``)."""
    return {"top1": found.top1, "images": f"{found.count} test images of {data.name}"}


def calibration(
    data: ClassificationData, preset: Preset, seed: int, images: int = CALIBRATION_IMAGES
) -> Iterator[npt.NDArray[np.float32]]:
    """Training images as the file takes them, ``[1, H, W, 3]`` each."""
    chosen = data.train.balanced(max(1, images // len(data.classes)), seed)
    for batch, _ in batches(chosen, preset, 1, train=False):
        yield np.ascontiguousarray(batch.permute(0, 2, 3, 1).numpy())


def evaluate_file(blob: bytes, images: ImageSet, preset: Preset) -> Evaluation:
    """Accuracy of a LiteRT file, run image by image as on the device."""
    runner = Runner(blob)
    logits = [
        runner(np.ascontiguousarray(batch.permute(0, 2, 3, 1).numpy()), threads=2)
        for batch, _ in batches(images, preset, 200, train=False)
    ]
    return evaluation_of(np.concatenate(logits), images.labels)


def network_for(spec: NetSpec, weights: None = None, *, seed: int = 0) -> Network:
    """A network with fresh weights by the seed; with pretrained ones: :func:`.pretrained.start`."""
    return pretrained.fresh(spec, seed)


def spec_of(model: str) -> NetSpec:
    """The spec of a family name or of a ``.json`` file."""
    if not model.endswith(".json"):
        return arch.spec(model)
    path = Path(model)
    if not path.is_file():
        raise InputError(f"no such spec file: {path}")
    with naming(path):
        return NetSpec.from_json(read_file(path).decode(errors="replace"))


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """What a LiteRT file of ours says of itself."""

    preset: Preset
    classes: tuple[str, ...]
    spec: NetSpec


def file_info(blob: bytes, path: Path) -> FileInfo:
    """Read the description that :func:`export` put into a file.

    Raises:
        InputError: the file is damaged or not one of ours.
    """
    with naming(path):
        metadata: Any = litert.read_metadata(blob)
        if not isinstance(metadata, dict) or not {"preset", "classes", "spec"} <= metadata.keys():
            raise InputError(
                f"{outline(blob)}, but does not say how its input is prepared",
                "use a file that mobilefit exported",
            )
        return FileInfo(
            preset=Preset.from_dict(metadata["preset"]), classes=tuple(metadata["classes"]),
            spec=NetSpec.from_dict(metadata["spec"]),
        )  # fmt: skip


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts a file's name before what is wrong with it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error.message}", error.hint) from error


def read_file(path: Path) -> bytes:
    """A model file's bytes.

    Raises:
        InputError: it is missing or unreadable.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
