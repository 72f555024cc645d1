"""How a network is trained, as a value."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from mobilefit.arch import Task
from mobilefit.data import AUGMENTS, Augment
from mobilefit.data.detection_augment import DETECTION_AUGMENTS
from mobilefit.data.policy import policy
from mobilefit.data.segmentation_augment import SEGMENTATION_AUGMENTS
from mobilefit.errors import InputError, unknown

Optimizer = Literal["rmsprop_tf", "rmsprop", "sgd", "adamw", "lamb"]
Schedule = Literal["cosine", "exponential", "onecycle", "poly", "constant"]
Decays = Literal["weights", "not_depthwise", "not_norms", "all"]
Balance = Literal["none", "sampling", "loss"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


def setting(default: Any, help: str) -> Any:
    """A field of a recipe; ``help`` is also the line of its option on the command line."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that training depends on beside the network, the data and the seed.

    The defaults are those that TF-slim's README gives for MobileNetV3, where it has them. Whence the
    values of each named recipe are is in ``docs/recipes.md``.
    """

    name: str = dataclasses.field(default="", metadata={"help": None})
    source: str = dataclasses.field(default="", metadata={"help": None})
    """Where the values are from, and what they are known to reach."""
    task: Task = dataclasses.field(default="classify", metadata={"help": None})

    epochs: int = setting(100, "passes over the training images")
    batch_size: int = setting(128, "images a step, over all devices and accumulated parts")

    optimizer: Optimizer = setting("rmsprop_tf", "TensorFlow's RMSProp, torch's, SGD, AdamW or LAMB")
    lr: float = setting(0.16 * 256 / 1536, "peak of the learning rate for a batch of 256; scaled in proportion to the batch")
    momentum: float = setting(0.9, "of SGD and RMSProp")
    nesterov: bool = setting(True, "SGD with Nesterov's momentum")
    rho: float = setting(0.9, "RMSProp's decay of the mean square")
    eps: float | None = setting(None, "the optimizer's epsilon; inside the root for rmsprop_tf")
    weight_decay: float = setting(1e-5, "L2 penalty's factor; apart from the gradient for AdamW and LAMB")
    decays: Decays = setting("weights", "what decays: weights; not_depthwise (weights but those of depthwise layers); not_norms (weights and biases); all")
    clip_norm: float | None = setting(None, "largest norm of the gradient (LAMB: 1 unless given)")
    accumulate: int = setting(1, "parts that a step's batch is computed in, to save memory")
    layer_decay: float = setting(1.0, "each row's learning rate as a part of the next one's: pretrained early rows move less")
    freeze: int = setting(0, "rows from the image, the stem with the first, that stay as they are")

    schedule: Schedule = setting("exponential", "of the learning rate")
    decay: float = setting(0.99, "exponential: factor every decay_epochs")
    decay_epochs: float = setting(3.0, "exponential: epochs between two decays")
    warmup_epochs: float = setting(5.0, "linear warm-up; a quarter of the training at most (onecycle has its own)")
    warmup_from: float = setting(0.0, "rate at the start of warm-up, as a part of the peak")
    by_epoch: bool = setting(False, "the rate changes once an epoch, not every step")
    lr_noise: float = setting(0.0, "exponential: bound of a random change of each epoch's rate, a part of it, from 0.42 to 0.9 of the epochs")

    label_smoothing: float = setting(0.1, "part of the label that is spread over all classes")
    mixup: float = setting(0.0, "alpha of mixup (arXiv:1710.09412)")
    cutmix: float = setting(0.0, "alpha of cutmix (arXiv:1905.04899); with mixup, one of the two by lot")
    distillation: float = setting(0.0, "share of the loss that compares with a teacher (arXiv:1503.02531)")
    temperature: float = setting(1.0, "of the distillation's probabilities")
    balance: Balance = setting("none", "against rare classes: draw them more often, or weigh their loss")

    ema_decay: float | None = setting(0.9999, "decay of the average of weights and statistics; less in short trainings")
    ema_every: int = setting(1, "steps between two updates of the average")
    bn_momentum: float | None = setting(None, "batch norm's momentum while training")
    dropout: float | None = setting(None, "before the last layer, in place of the network's own")
    drop_path: float = setting(0.0, "stochastic depth (arXiv:1603.09382), growing from 0 at the first row to nearly this at the last")
    sync_bn: bool = setting(False, "batch norm's statistics over all devices")

    augment: str = setting("inception", "crop, flip and colours: inception, resized, photo, light, mild or none; detection: ssd, ssdlite, photo, overhead, flip; segmentation: deeplab, photo, light")
    policy: str = setting("none", "autoaugment, randaugment, trivialaugment, timm's form such as rand-m9-mstd0.5, or none")
    erasing: float = setting(0.0, "share of images with a part erased (arXiv:1708.04896)")
    erasing_fill: Literal["mean", "noise"] = setting("mean", "what is erased becomes the mean colour, or noise")
    repeats: int = setting(1, "repeated augmentation: times that an image comes in its epoch (arXiv:1901.09335)")
    train_scale: float = setting(1.0, "resolution in training as a part of evaluation's (arXiv:1906.06423)")
    min_train_size: int = setting(0, "pixels below which train_scale does not bring the resolution in training")

    channels_last: bool = setting(True, "memory format; 1.5 times faster than NCHW on a CPU at 224 px")
    compile: bool = setting(False, "torch.compile")
    precision: Precision = setting("32-true", "of the arithmetic; Fabric's names")

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
        return min(self.ema_decay, max(0.0, 1 - 20 * self.ema_every / steps))

    def train_size(self, resolution: int) -> int:
        """Height in pixels that images have in training, for an evaluation at ``resolution``.

        What a scale takes from a small image is missed: with 30 px in the place of 40 MobileNetV2's last maps are one
        pixel in training and four in evaluation, and its batch norm statistics are of other activations.
        """
        scaled = max(8, round(resolution * self.train_scale))
        return max(scaled, min(resolution, self.min_train_size))

    @property
    def augmentation(self) -> Augment | None:
        """What is varied in an image."""
        base = AUGMENTS[self.augment]
        if self.policy == "none" and not self.erasing:
            return base
        return replace(base or Augment(area=(1.0, 1.0), aspect=(1.0, 1.0), flip=False),
                       policy=self.policy, erasing=self.erasing, erasing_fill=self.erasing_fill)  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


_ABOVE_0 = ("epochs", "batch_size", "lr", "decay_epochs", "accumulate", "ema_every", "repeats",
            "temperature", "train_scale")  # fmt: skip
_NOT_BELOW_0 = ("weight_decay", "warmup_epochs", "freeze", "mixup", "cutmix", "min_train_size")
_SHARES = ("momentum", "rho", "lr_noise", "label_smoothing", "distillation", "ema_decay", "bn_momentum",
           "dropout", "drop_path", "erasing", "warmup_from")  # fmt: skip
_FACTORS = ("decay", "layer_decay")
_CHOICES = {"optimizer": Optimizer, "schedule": Schedule, "precision": Precision, "decays": Decays,
            "balance": Balance, "erasing_fill": Literal["mean", "noise"]}  # fmt: skip


def _problems(recipe: Recipe) -> Iterator[str]:
    for name in _ABOVE_0:
        if not 0 < getattr(recipe, name) < math.inf:
            yield f"{name} is {getattr(recipe, name)}, must be above 0"
    for name in _NOT_BELOW_0:
        if not 0 <= getattr(recipe, name) < math.inf:
            yield f"{name} is {getattr(recipe, name)}, must not be below 0"
    for name in _FACTORS:
        if not 0 < getattr(recipe, name) <= 1:
            yield f"{name} is {getattr(recipe, name)}, must be above 0 and at most 1"
    for name in _SHARES:
        value = getattr(recipe, name)
        if value is not None and not 0 <= value <= 1:
            yield f"{name} is {value}, must be from 0 to 1"
    for name in ("clip_norm", "eps"):
        value = getattr(recipe, name)
        if value is not None and not 0 < value < math.inf:
            yield f"{name} is {value}, must be above 0"
    if recipe.batch_size % max(1, recipe.accumulate):
        yield f"batch_size {recipe.batch_size} is not divisible by accumulate {recipe.accumulate}"
    yield from _unknown_names(recipe)


_AUGMENTS: dict[Task, Iterable[str]] = {
    "classify": AUGMENTS, "detect": DETECTION_AUGMENTS, "segment": SEGMENTATION_AUGMENTS
}  # fmt: skip


def _unknown_names(recipe: Recipe) -> Iterator[str]:
    for name, kind in _CHOICES.items():
        if getattr(recipe, name) not in get_args(kind):
            yield str(unknown(name, getattr(recipe, name), get_args(kind)))
    known: Iterable[str] = _AUGMENTS[recipe.task]
    if recipe.augment not in known:
        yield str(unknown("augment", recipe.augment, known))
    try:
        policy(recipe.policy)
    except InputError as error:
        yield str(error)


_THOUSAND = 256 / 1024
"""Brings a learning rate that is published for 1,024 images a step to a batch of 256."""

RECIPES: dict[str, Recipe] = {
    # A rate of 0.16 for 8 x 192 images. The number of epochs is not published; 600 is what timm and
    # torchvision need to get there. Slim's regulariser leaves depthwise kernels out.
    "paper": Recipe(
        source="TF-slim's README, Training, V3: V3-Large 75.2 % on a 2x2 TPU, 74.6 % on 8 GPUs",
        epochs=600, batch_size=8 * 192, decays="not_depthwise", bn_momentum=0.003, dropout=0.2,
    ),
    # Instead of an average over steps, its weights are the mean of three of the run's checkpoints.
    "torchvision-v1": Recipe(
        source="torchvision's references/classification, IMAGENET1K_V1: V3-Large 74.04 %, V3-Small 67.67 %",
        epochs=600, batch_size=1024, optimizer="rmsprop", lr=0.064 * _THOUSAND, eps=0.0316,
        decays="all", decay=0.973, decay_epochs=2, warmup_epochs=0, by_epoch=True, label_smoothing=0.0,
        ema_decay=None, augment="resized", policy="autoaugment", erasing=0.2, dropout=0.2,
    ),
    # Its average is taken every 32 steps, with a decay that goes by batch and epochs:
    # 1 - (1 - 0.99998) * 1024 * 32 / 600.
    "torchvision-v2": Recipe(
        source="torchvision's issue 3995, IMAGENET1K_V2: V3-Large 75.27 %",
        epochs=600, batch_size=1024, optimizer="sgd", lr=0.5 * _THOUSAND, nesterov=False,
        weight_decay=2e-5, decays="not_norms", schedule="cosine", warmup_epochs=5, warmup_from=0.01,
        by_epoch=True, mixup=0.2, cutmix=1.0, ema_decay=1 - 2e-5 * 1024 * 32 / 600, ema_every=32,
        augment="resized", policy="trivialaugment", erasing=0.1, dropout=0.2, train_scale=176 / 224,
    ),
    # The command does not name the warm-up: 3 epochs were the script's default then (March 2020).
    "timm-ra": Recipe(
        source="timm's training script, mobilenetv3_large_100.ra_in1k: V3-Large 75.77 %",
        epochs=600, batch_size=1024, lr=0.064 * _THOUSAND, eps=0.001, decay=0.973, decay_epochs=2.4,
        warmup_epochs=3, warmup_from=1e-6 / 0.064, by_epoch=True, lr_noise=0.67, bn_momentum=0.1,
        dropout=0.2, drop_path=0.2, augment="resized", policy="rand-m9-mstd0.5", erasing=0.2,
        erasing_fill="noise",
    ),
    # V3-Small without label smoothing.
    "d-li14": Recipe(
        source="d-li14/mobilenetv3.pytorch: V3-Large 74.28 %, V3-Small 67.21 %",
        epochs=150, batch_size=1024, optimizer="sgd", lr=0.4 * _THOUSAND, nesterov=False,
        weight_decay=4e-5, schedule="cosine", warmup_epochs=5, warmup_from=0.25, ema_decay=None,
        bn_momentum=0.1, dropout=0.2, augment="resized",
    ),
    # For thousands of images and minutes: one cosine to zero, statistics and average that follow.
    "fast": Recipe(
        source="for minutes on a CPU: what design trains by",
        epochs=4, batch_size=128, optimizer="sgd", lr=0.2, weight_decay=5e-5, schedule="cosine",
        warmup_epochs=0.3, warmup_from=0.1, label_smoothing=0.05, bn_momentum=0.1, augment="light",
    ),
    # As fast, for as long as it takes: with more passes comes more variation.
    "scratch": Recipe(
        source="from scratch on small data, an hour on a CPU: results/training",
        epochs=40, batch_size=128, optimizer="sgd", lr=0.3, weight_decay=1e-4, schedule="cosine",
        warmup_epochs=1, warmup_from=0.1, label_smoothing=0.05, bn_momentum=0.1, augment="light",
        erasing=0.25,
    ),
    # From pretrained weights: small steps of AdamW, smaller ones near the image.
    "finetune": Recipe(
        source="from pretrained weights, minutes on a CPU: results/training",
        epochs=12, batch_size=64, optimizer="adamw", lr=2e-3, weight_decay=0.05,
        schedule="cosine", warmup_epochs=0.5, warmup_from=0.1, layer_decay=0.9, bn_momentum=0.1,
        augment="photo", train_scale=0.75, min_train_size=96,
    ),
    # Detection. The rate is 0.4 for a batch of 512, and 400,000 steps of it are 1,731 passes over COCO.
    "ssdlite": Recipe(
        task="detect", source="TensorFlow's ssdlite_mobilenet_v3_large_320x320_coco.config: V3-Large 22.6 mAP",
        epochs=1731, batch_size=512, optimizer="sgd", lr=0.2, nesterov=False, weight_decay=4e-5,
        schedule="cosine", warmup_epochs=2000 * 512 / 118_287, warmup_from=1 / 3, label_smoothing=0.0, ema_decay=None,
        bn_momentum=0.03, augment="ssdlite",
    ),
    "detect": Recipe(
        task="detect", source="hundreds of images, an hour on a CPU: results/scenes",
        epochs=60, batch_size=16, optimizer="adamw", lr=8e-3, weight_decay=0.05, schedule="cosine",
        warmup_epochs=1, warmup_from=0.1, label_smoothing=0.0, layer_decay=0.95, bn_momentum=0.1,
        augment="photo",
    ),
    # Segmentation. DeepLab's rate of 0.007 is for 16 crops a step, its 90,000 steps for Cityscapes.
    "deeplab": Recipe(
        task="segment", source="DeepLab's released code and flags: LR-ASPP on V3-Large 72.4 mIoU on Cityscapes",
        epochs=484, batch_size=16, optimizer="sgd", lr=0.007 * 16, nesterov=False, weight_decay=4e-5,
        schedule="poly", warmup_epochs=0, label_smoothing=0.0, ema_decay=None, bn_momentum=3e-4,
        augment="deeplab",
    ),
    "segment": Recipe(
        task="segment", source="hundreds of images, an hour on a CPU: results/scenes",
        epochs=40, batch_size=8, optimizer="adamw", lr=0.02, weight_decay=0.05, schedule="cosine",
        warmup_epochs=1, warmup_from=0.1, label_smoothing=0.0, layer_decay=0.95, bn_momentum=0.1,
        augment="photo",
    ),
    # Quantization-aware: a trained network goes on with the rounding in place, in steps so small that
    # it keeps what it knows, led by what it was in float.
    "int8": Recipe(
        source="quantization-aware training: results/int8",
        epochs=1, batch_size=64, optimizer="adamw", lr=2e-4, weight_decay=0.0,
        schedule="cosine", warmup_epochs=0.05, label_smoothing=0.0, distillation=0.5, ema_decay=None,
        augment="light",
    ),
}  # fmt: skip
RECIPES = {name: replace(found, name=name) for name, found in RECIPES.items()}


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        InputError: there is none; the nearest is suggested.
    """
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]
