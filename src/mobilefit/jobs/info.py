"""A network as a table."""

from __future__ import annotations

from dataclasses import dataclass

from mobilefit import arch
from mobilefit.arch import NetSpec
from mobilefit.arch.rows import Padding
from mobilefit.arch.scaling import WidthRules
from mobilefit.jobs.model import spec_of
from mobilefit.jobs.options import option


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Options of ``mobilefit info``."""

    model: str = option(help="a name of the family, or a spec's .json", argument=True)
    width: float = option(1.0, help="width multiplier")
    rules: WidthRules = option("tf", help="how widths scale: tf (the paper's) or torchvision")
    resolution: int | None = option(None, help="side of the input, pixels")
    classes: int | None = option(None, help="number of classes")
    padding: Padding | None = option(None, help="same (TensorFlow) or torch")
    head: str | None = option(None, help="of mobilenet_v3_small: v5, iccv or table2")
    against: str | None = option(None, help="another network: list what differs from it")
    json: bool = option(False, help="print the spec as JSON, for --model of other verbs")


def info(config: InfoConfig) -> NetSpec:
    """Print a network row by row with its costs, as JSON, or against another one."""
    spec = spec_of(config.model) if config.head is None else arch.spec(config.model, head=config.head)
    if config.width != 1.0:
        spec = spec.width(config.width, config.rules)
    if config.resolution is not None:
        spec = spec.resolution(config.resolution)
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
