"""A space, images and trainings small enough for a test; also for a process of its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from mobilefit.arch import Block, ClassifierHead, Conv, NetSpec
from mobilefit.data import ImageSet, Preset
from mobilefit.data.images import ArraySource
from mobilefit.search import ProxyTask, Space, Trial
from mobilefit.train import Recipe

SPEC = NetSpec(
    name="base",
    input_size=16,
    stem=Conv(out=8, kernel=3, stride=2, act="hard_swish"),
    blocks=(
        Block(expand=16, out=8, se="v3", act="relu"),
        Block(expand=16, out=12, stride=2, act="hard_swish"),
    ),
    head=ClassifierHead(hidden=16, act="hard_swish", dropout=0.2, num_classes=3),
)
DESCRIPTION: dict[str, Any] = {
    "name": "small",
    "base": SPEC.to_dict(),
    "rows": [0, 2],
    "blocks": [
        {"stride": 1, "op": ["conv", "mbconv2"], "kernel": [3, 5], "filters": [8, 16],
         "layers": [1, 2]},
        {"stride": 2, "op": ["mbconv3"], "kernel": [3], "se": ["none", "v3"], "filters": [16],
         "layers": [1], "act": ["relu", "hard_swish"]},
    ],
}  # fmt: skip
SPACE = Space.from_dict(DESCRIPTION)
"""2^6 networks."""
UNIVERSAL = Space.from_dict({
    "name": "universal",
    "base": "mobilenetv4_conv_small",
    "rows": [4, 16],
    "blocks": [
        {"stride": 2, "op": ["extradw3", "mbconv4", "convnext4"], "kernel": [3, 5], "filters": [72, 96],
         "layers": [1, 2]},
        {"stride": 2, "op": ["convnext2", "extradw6"], "kernel": [3, 5], "filters": [128], "layers": [2]},
    ],
})  # fmt: skip
"""MobileNetV4-Conv-S with both of its last stages searched."""
PIXELS = 16
PRESET = Preset(resolution=PIXELS, crop_fraction=1.0)
RECIPE = Recipe(
    epochs=1, batch_size=16, optimizer="sgd", lr=2.0, schedule="cosine", warmup_epochs=0.0,
    ema_decay=None, bn_momentum=0.1, augment="light",
)  # fmt: skip


def shades(count: int, seed: int) -> ImageSet:
    """Dark, grey and bright noise; a few of one class are as bright as some of the next."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    light = 70 * labels + random.integers(0, 80, count)
    pixels = light[:, None, None] + random.integers(0, 30, (count, PIXELS, PIXELS))
    source = ArraySource(pixels.astype(np.uint8), [str(n) for n in range(count)])
    return ImageSet(source, labels.astype(np.int64))


def task(steps: int = 30, seed: int = 3, kind: type[ProxyTask] = ProxyTask) -> ProxyTask:
    """A proxy task on shades that takes a fraction of a second."""
    return kind(
        train_set=shades(96, seed=0), held_out=shades(60, seed=1), preset=PRESET, recipe=RECIPE,
        steps=steps, seed=seed,
    )  # fmt: skip


def space() -> Space:
    """The small space at the images' size."""
    return SPACE.resolution(PIXELS)


def trials(count: int, step: int = 5) -> list[Trial]:
    """Different networks of the small space."""
    chosen = space()
    found = []
    for number in range(count):
        tokens = tuple(number * step >> bit & 1 for bit in range(len(chosen.sizes)))
        found.append(Trial(number=number, tokens=tokens, spec=chosen.spec(tokens)))
    return found


def spec_of(number: int) -> NetSpec:
    """The network of a trial."""
    return trials(number + 1)[number].spec
