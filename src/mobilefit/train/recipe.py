"""How a network is trained, as a value."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mobilefit.data import AUGMENTS
from mobilefit.errors import InputError, unknown

Optimizer = Literal["rmsprop_tf", "sgd", "adamw"]
Schedule = Literal["cosine", "exponential"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that training depends on beside the network, the data and the seed."""

    epochs: int
    """Passes over the training images."""
    batch_size: int = 128
    """Images a step."""
    optimizer: Optimizer = "rmsprop_tf"
    lr: float = 0.16 * 256 / 1536
    """Learning rate for a batch of 256; scaled in proportion to the batch."""
    momentum: float = 0.9
    """Of SGD and RMSProp (V3 paper, section 6.1.1)."""
    rho: float = 0.9
    """RMSProp's decay of the mean square (TF-slim's V3 README)."""
    eps: float = 0.002
    """RMSProp's epsilon, inside the root (TF-slim's V3 README)."""
    weight_decay: float = 1e-5
    """L2 on convolution and linear weights (V3 paper); decoupled for AdamW. Norms and biases: none."""
    schedule: Schedule = "exponential"
    decay: float = 0.99
    """Exponential schedule: factor every ``decay_epochs`` (README; the paper's "0.01" is 1 - 0.99)."""
    decay_epochs: float = 3.0
    warmup_epochs: float = 5.0
    """Linear warm-up from zero (TF-slim's V3 README)."""
    label_smoothing: float = 0.1
    distillation: float = 0.0
    """Share of the loss that compares with a teacher's probabilities, not with the labels (Hinton et
    al., 2015, arXiv:1503.02531, at temperature 1)."""
    ema_decay: float | None = 0.9999
    """Most decay of the average of weights and statistics (V3 paper); ``None``: no average. See
    :meth:`ema_decay_for`."""
    bn_momentum: float | None = None
    """Overrides the network's batch norm momentum while training: with 0.01 the statistics need
    hundreds of steps to follow, which short trainings do not have."""
    augment: str = "inception"
    """A name of ``mobilefit.data.AUGMENTS``."""
    channels_last: bool = True
    """Memory format; about 1.5 times faster than NCHW on a CPU at 224 px."""
    precision: Precision = "32-true"
    """Fabric's name for it."""

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise InputError("bad recipe: " + "; ".join(problems))

    def ema_decay_for(self, steps: int) -> float | None:
        """The decay for a training of that many steps: it averages a twentieth of them at most.

        With the paper's 0.9999 the average of a training of a thousand steps would be mostly of its
        beginning.
        """
        if self.ema_decay is None:
            return None
        return min(self.ema_decay, max(0.0, 1 - 20 / steps))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def _problems(recipe: Recipe) -> Iterator[str]:
    for name in ("epochs", "batch_size", "lr", "eps", "decay", "decay_epochs"):
        if not getattr(recipe, name) > 0:
            yield f"{name} is {getattr(recipe, name)}, must be above 0"
    for name in ("weight_decay", "warmup_epochs"):
        if getattr(recipe, name) < 0:
            yield f"{name} is {getattr(recipe, name)}, must not be below 0"
    for name in ("momentum", "rho", "label_smoothing", "distillation", "ema_decay",
                 "bn_momentum"):  # fmt: skip
        value = getattr(recipe, name)
        if value is not None and not 0 <= value <= 1:
            yield f"{name} is {value}, must be from 0 to 1"
    choices = (("optimizer", Optimizer), ("schedule", Schedule), ("precision", Precision))
    for name, kind in choices:
        if getattr(recipe, name) not in get_args(kind):
            yield str(unknown(name, getattr(recipe, name), get_args(kind)))
    if recipe.augment not in AUGMENTS:
        yield str(unknown("augment", recipe.augment, AUGMENTS))


RECIPES: dict[str, Recipe] = {
    # The released clarification (TF-slim's README, "MobileNetV3 training"): lr 0.16 in all for
    # 8 x 192 images, RMSProp .9/.9/.002, 0.99 every 3 epochs, EMA .9999. The number of epochs is
    # not published; 600 is what timm and torchvision need to get there.
    "paper": Recipe(epochs=600, batch_size=192),
    # For thousands of images and minutes: one cosine to zero, statistics and average that follow.
    "fast": Recipe(
        epochs=4, batch_size=128, optimizer="sgd", lr=0.2, weight_decay=5e-5, schedule="cosine",
        warmup_epochs=0.3, label_smoothing=0.05, ema_decay=0.9999, bn_momentum=0.1, augment="light",
    ),
    # From pretrained weights: small steps of AdamW.
    "finetune": Recipe(
        epochs=8, batch_size=64, optimizer="adamw", lr=1e-3, weight_decay=0.02, schedule="cosine",
        warmup_epochs=0.5, label_smoothing=0.1, ema_decay=0.9999, bn_momentum=0.1, augment="light",
    ),
    # Quantization-aware: a trained network goes on with the rounding in place, in steps so small that
    # it keeps what it knows, led by what it was in float.
    "int8": Recipe(
        epochs=1, batch_size=64, optimizer="adamw", lr=2e-4, weight_decay=0.0, schedule="cosine",
        warmup_epochs=0.05, label_smoothing=0.0, distillation=0.5, ema_decay=None, augment="light",
    ),
}  # fmt: skip


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        InputError: there is none; the nearest is suggested.
    """
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]
