"""A network as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mobilefit import arch
from mobilefit.arch import NetSpec, Task
from mobilefit.arch.rows import Padding
from mobilefit.arch.scaling import WidthRules
from mobilefit.errors import InputError
from mobilefit.jobs.lab import check_positive
from mobilefit.jobs.model import spec_of
from mobilefit.jobs.options import option


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Options of ``mobilefit info``."""

    model: str = option(help="a name of the family, ssdlite_NAME, lraspp_NAME, raspp_NAME, or a spec's .json", argument=True)
    task: Literal["classify", "detect", "segment"] | None = option(
        None, help="a classifier as the backbone of SSDLite or LR-ASPP"
    )
    width: float = option(1.0, help="width multiplier")
    rules: WidthRules = option("tf", help="how widths scale: tf (the paper's) or torchvision")
    resolution: int | None = option(None, help="side of the input, or its height, pixels")
    columns: int | None = option(None, help="width of the input, where it is not square, pixels")
    classes: int | None = option(None, help="number of classes")
    padding: Padding | None = option(None, help="same (TensorFlow) or torch")
    head: str | None = option(None, help="of mobilenet_v3_small: v5, iccv or table2")
    against: str | None = option(None, help="another network: list what differs from it")
    json: bool = option(False, help="print the spec as JSON, for --model of other verbs")


def info(config: InfoConfig) -> NetSpec:
    """Print a network row by row with its costs, as JSON, or against another one."""
    check_positive(resolution=config.resolution, columns=config.columns, classes=config.classes)
    spec = spec_of(config.model) if config.head is None else arch.spec(config.model, head=config.head)
    spec = _for_task(spec, config.task)
    if config.columns is not None and spec.task == "classify":
        raise InputError("a classifier sees a square", "leave --columns out, or say --task")
    if config.width != 1.0:
        spec = spec.width(config.width, config.rules)
    if config.resolution is not None or config.columns is not None:
        spec = spec.resolution(config.resolution or spec.input_size, config.columns)
    if config.classes is not None:
        spec = spec.classes(config.classes)
    if config.padding is not None:
        spec = spec.padded(config.padding)
    if config.json:
        print(spec.to_json())
    elif config.against is not None:
        print("\n".join(arch.difference(spec_of(config.against), spec)) or "nothing differs")
    else:
        print(arch.table(spec))
    return spec


def _for_task(spec: NetSpec, task: Task | None) -> NetSpec:
    if task in (None, spec.task):
        return spec
    if spec.task != "classify":
        raise InputError(f"'{spec.name}' is for --task {spec.task}, not for {task}", "name its backbone")
    return arch.detector(spec) if task == "detect" else arch.segmenter(spec)
