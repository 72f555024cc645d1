"""Options of ``mobilefit design``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mobilefit import adapt
from mobilefit.jobs import kinds
from mobilefit.jobs.kinds import KINDS, Kind
from mobilefit.jobs.model import spec_of
from mobilefit.jobs.options import device_option, option, tool_option

SEARCH = "search"
"""The value of ``--seed-network`` that used to ask for a search."""

Shrink = Literal["auto", "netadapt", "knapsack", "none"]
Retrain = Literal["inherit", "scratch"]


@dataclass(frozen=True, kw_only=True)
class DesignConfig:
    """Options of ``mobilefit design``."""

    data: str = option(help="images: docs/data.md; with boxes: docs/detection.md; with masks: docs/segmentation.md", argument=True)
    latency: str = option(
        help="budget of the int8 network here: 2ms, 850us, or 70% of the reference's (--seed-network at "
        "--resolution, else MobileNetV3-Small at 96 px); several: 1ms,2ms,4ms"
    )
    task: Literal["classify", "detect", "segment"] | None = option(
        None, help="what the network is for (default: what --seed-network is for, else classify)"
    )
    seed_network: str | None = option(
        None, help="the only network to take, by name or a spec's .json, at the best size (default: the best of the family)"
    )
    search: bool = option(False, help="search block-wise for a network too (docs/search.md)")
    space: str = option("mobilenet_v3_small", help="what is searched: see mobilefit search")
    strategy: str = option("evolution", help="of the search: rnn, reinforce, evolution or random")
    reward: str = option("absolute", help="of the search: absolute, soft, soft_small or hard")
    trials: int | None = option(None, help="networks that the search tries (default: by --minutes)")
    top: int = option(1, help="best networks of the search that are trained in full")
    resolution: int | None = option(
        None, help="side of the network's input, or its height, pixels (default: the best within the budget)"
    )
    columns: int | None = option(None, help="width of the network's input, where it is not square, pixels")
    ignore_label: tuple[int, ...] = option((), help="segment: a label in the masks that is no class; may be repeated")
    minutes: float = option(30.0, help="how long it may take")
    weights: tuple[str, ...] = option(
        (), help="pretrained weights: auto (the default: what torchvision and timm have), none, torchvision, timm, "
        "timm:NAME, or a file; several files: their networks race"
    )
    teacher: str | None = option(None, help="a trained network of these classes to learn from: a file, or timm:NAME=FILE (default: a larger one of the run)")
    shrink: Shrink = option("auto", help="whether a larger network is shrunk as well: netadapt, knapsack (see mobilefit adapt), none, or auto: NetAdapt where it can win")
    retrain: Retrain = option("inherit", help="what a shrunk network is trained from: its inherited weights, or scratch (as in the papers)")
    seeds: int = option(1, help="trainings of each compared network, for mean and spread")
    seed: int = option(0, help="random seed; the first of --seeds")
    delta: float | None = option(
        None, help="least latency cut of a NetAdapt step, part of the larger network's (default: by --minutes)"
    )
    rule: adapt.Rule = option("ratio", help="which NetAdapt proposal wins: ratio (V3 paper), accuracy or cautious")
    tune_steps: int | None = option(
        None, help="fine-tuning steps of a NetAdapt proposal (default: by --minutes)"
    )
    epochs: float | None = option(None, help="of each full training (default: by --minutes)")
    recipe: str | None = option(
        None, help="how to train: docs/recipes.md (default: finetune with pretrained weights, else fast; detect; segment)"
    )
    max_drop: float = option(1.0, help="most points of accuracy, mAP or mIoU that int8 may lose: more is exit code 3")
    table: Path | None = option(None, help="latency table of this device, from an earlier run")
    workers: int | None = option(
        None, help="candidates of the race trained at a time, on Ray (pip install 'mobilefit[cluster]'), each with one "
        "thread (default: one after the other, with all threads)"
    )
    cluster: str | None = option(None, help="HOST:PORT of a Ray cluster, or auto: as many candidates at a time as it has room for")
    device: str = device_option()
    benchmark_model: Path | None = tool_option()
    out: Path | None = option(None, help="run folder (default: runs/design-...)")
    quiet: bool = option(False, help="show no progress")

    @property
    def searches(self) -> bool:
        """Whether there is a block-wise search."""
        return self.search or self.seed_network == SEARCH

    @property
    def named(self) -> str | None:
        """The network that the user named."""
        return None if self.seed_network == SEARCH else self.seed_network


def task_of(config: DesignConfig) -> Kind:
    """The task of a design.

    Raises:
        InputError: the network that is named is for another.
    """
    if config.named is None:
        return KINDS[config.task or "classify"]
    return kinds.kind_for(config.task, spec_of(config.named))
