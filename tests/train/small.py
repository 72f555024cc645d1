"""A network, images and a training small enough for a test; also for a process of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mobilefit.arch import Block, ClassifierHead, Conv, NetSpec
from mobilefit.data import ImageSet, Preset
from mobilefit.data.images import ArraySource
from mobilefit.nn import Network, build
from mobilefit.train import FitResult, Recipe, fit

SPEC = NetSpec(
    name="small",
    input_size=8,
    stem=Conv(out=8, kernel=3, stride=2, act="hard_swish"),
    blocks=(
        Block(expand=16, out=8, se="v3", act="relu"),
        Block(expand=16, out=12, stride=2, act="hard_swish"),
    ),
    head=ClassifierHead(hidden=16, act="hard_swish", dropout=0.2, num_classes=3),
)
PRESET = Preset(resolution=8, crop_fraction=1.0)
RECIPE = Recipe(
    epochs=5, batch_size=8, optimizer="rmsprop_tf", lr=0.3, schedule="cosine", warmup_epochs=0.5,
    ema_decay=0.9, bn_momentum=0.1, augment="light",
)  # fmt: skip
RATES = ("images_per_s", "data_wait")
"""Fields of the history that no two runs share."""
STEPS, EPOCH_STEPS = 30, 6  # under 20 steps there would be no average


def shades(count: int = 48, seed: int = 0) -> ImageSet:
    """Dark, grey and bright noise: three classes that the mean tells apart."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    noise = random.integers(0, 60, (count, 8, 8))
    pixels = (noise + 90 * labels[:, None, None]).astype(np.uint8)
    names = [str(number) for number in range(count)]
    return ImageSet(ArraySource(pixels, names), labels.astype(np.int64))


def network(seed: int = 0, spec: NetSpec = SPEC) -> Network:
    """The network with fresh weights of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(spec)


def with_fixed_statistics(net: Network) -> Network:
    """The network with batch norm that looks at no batch: then nothing joins a batch's images but the loss."""
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.forward = partial(_by_running_statistics, norm)  # type: ignore[method-assign]
    return net


def _by_running_statistics(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def train(net: Network, out: Path | None = None, **options: Any) -> FitResult:
    """Train ``net`` on :func:`shades`; options of :func:`fit`, or fields of the recipe."""
    fields = {key: options.pop(key) for key in list(options) if key in RECIPE.to_dict()}
    defaults: dict[str, Any] = {
        "preset": PRESET, "recipe": replace(RECIPE, **fields), "seed": 5, "out": out,
        "validation": shades(21, seed=1), "accelerator": "cpu",
    }  # fmt: skip
    return fit(net, shades(), **defaults | options)


def rows(out: Path) -> list[dict[str, float]]:
    """``metrics.jsonl`` without the rates, which no two runs share; every line must be whole."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in RATES} for row in found]


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks agree in every bit, statistics included."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)
