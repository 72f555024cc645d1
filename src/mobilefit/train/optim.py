"""Optimizers by name, what they are given, and learning-rate schedules."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from mobilefit.nn.backbone import Backbone
from mobilefit.nn.blocks import Row
from mobilefit.train.batchnorm import batch_norms
from mobilefit.train.recipe import Recipe

Groups = list[dict[str, Any]]

EPS = {"rmsprop_tf": 0.002, "rmsprop": 0.0316, "sgd": 0.0, "adamw": 1e-8, "lamb": 1e-6}
"""Each optimizer's usual epsilon: TF-slim's README for V3, torchvision's script, torch's, LAMB's paper.
SGD has none."""
NOISY = (0.42, 0.9)
"""From where to where a noisy schedule is noisy, parts of the epochs (timm's RA recipe)."""


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over what is trained of a network.

    Its groups hold, beside torch's own fields, ``lr_scale``: the factor on the schedule's rate.
    """
    groups = list(_groups(network, recipe))
    eps = EPS[recipe.optimizer] if recipe.eps is None else recipe.eps
    return _MAKERS[recipe.optimizer](groups, peak_lr(recipe), eps, recipe)


def _rmsprop_tf(groups: Groups, lr: float, eps: float, recipe: Recipe) -> torch.optim.Optimizer:
    """TensorFlow 1's: epsilon inside the root, mean squares begin at one, the rate goes into the momentum."""
    from timm.optim.rmsprop_tf import RMSpropTF  # takes seconds: timm loads its networks

    return RMSpropTF(groups, lr, alpha=recipe.rho, momentum=recipe.momentum, eps=eps)


def _rmsprop(groups: Groups, lr: float, eps: float, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(
        groups, lr, alpha=recipe.rho, momentum=recipe.momentum, eps=eps, foreach=True
    )


def _sgd(groups: Groups, lr: float, eps: float, recipe: Recipe) -> torch.optim.Optimizer:
    nesterov = recipe.nesterov and recipe.momentum > 0
    return torch.optim.SGD(groups, lr, momentum=recipe.momentum, nesterov=nesterov, foreach=True)


def _adamw(groups: Groups, lr: float, eps: float, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr, eps=eps, foreach=True)


def _lamb(groups: Groups, lr: float, eps: float, recipe: Recipe) -> torch.optim.Optimizer:
    """NVIDIA's form of LAMB, as timm has it.

    Beyond Algorithm 2 of the paper (arXiv:1904.00962): the gradient of all parameters together is cut
    to a norm of 1, and what does not decay is not scaled by the trust ratio.
    """
    from timm.optim.lamb import Lamb

    return Lamb(groups, lr, eps=eps, max_grad_norm=recipe.clip_norm or 1.0)


_MAKERS: dict[str, Callable[[Groups, float, float, Recipe], torch.optim.Optimizer]] = {
    "rmsprop_tf": _rmsprop_tf, "rmsprop": _rmsprop, "sgd": _sgd, "adamw": _adamw, "lamb": _lamb,
}  # fmt: skip


def _groups(network: nn.Module, recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Parameters by what decays and by how fast they learn."""
    spared = {id(parameter) for parameter in _spared(network, recipe)}
    scale_of = _scales(network, recipe.layer_decay)
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            decay = 0.0 if id(parameter) in spared else recipe.weight_decay
            found.setdefault((scale_of(parameter), decay), []).append(parameter)
    for (scale, decay), parameters in sorted(found.items(), key=lambda item: item[0]):
        yield {"params": parameters, "weight_decay": decay, "lr_scale": scale}


def _spared(network: nn.Module, recipe: Recipe) -> Iterator[torch.Tensor]:
    """What does not decay."""
    if recipe.decays == "all":
        return
    if recipe.decays == "not_norms":
        for norm in batch_norms(network):
            yield from norm.parameters()
        return
    yield from (parameter for parameter in network.parameters() if parameter.ndim <= 1)
    if recipe.decays == "not_depthwise":
        for module in network.modules():
            if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
                yield module.weight


def _scales(network: nn.Module, layer_decay: float) -> Callable[[nn.Parameter], float]:
    """From a parameter to the factor on its learning rate: 1 at the head, less near the image."""
    places = parts(network)
    below_head = {id(p): len(places) - place for place, part in enumerate(places) for p in part.parameters()}
    return lambda parameter: layer_decay ** below_head.get(id(parameter), 0)


def parts(network: nn.Module) -> list[nn.Module]:
    """What comes before the head, from the image on: the stem, every row, the last convolution.

    A network without our backbone (the graph of an int8 file) has none.
    """
    backbone = getattr(network, "backbone", None)
    if not isinstance(backbone, Backbone):
        return []
    rows = [module for module in backbone.modules() if isinstance(module, Row)]
    return [backbone.stem, *rows, backbone.last]


POLY_POWER = 0.9
"""DeepLab's ``learning_power``."""


def peak_lr(recipe: Recipe) -> float:
    """The learning rate at the end of warm-up, for the recipe's batch."""
    return recipe.lr * recipe.batch_size / 256


def learning_rate(recipe: Recipe, step: int, steps: int, epoch_steps: int) -> float:
    """The learning rate of one step.

    Args:
        step: from 0.
        steps: of the whole training; the cosine and the polynomial end at zero there.
        epoch_steps: steps an epoch.
    """
    at = step // epoch_steps * epoch_steps if recipe.by_epoch else step
    if recipe.schedule == "onecycle":
        return peak_lr(recipe) * _one_cycle(at, steps)
    warmup = min(recipe.warmup_epochs * epoch_steps, steps / 4)
    rise = recipe.warmup_from + (1 - recipe.warmup_from) * at / warmup if warmup else 1.0
    if recipe.schedule == "exponential":
        fall = math.pow(recipe.decay, at / epoch_steps // recipe.decay_epochs)
        noise = _noise(recipe, step // epoch_steps, steps // epoch_steps)
        # Counted from the first step, as slim and timm do, so that it may fall within warm-up.
        return peak_lr(recipe) * (min(rise, fall) if at < warmup else fall * (1 + noise))
    if at < warmup:
        return peak_lr(recipe) * rise
    if recipe.schedule == "constant":
        return peak_lr(recipe)
    done = (at - warmup) / max(1.0, steps - warmup)
    if recipe.schedule == "poly":
        return peak_lr(recipe) * math.pow(1 - min(1.0, done), POLY_POWER)
    return peak_lr(recipe) * _half_cosine(done)


def _half_cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _one_cycle(step: int, steps: int, up: float = 0.3, start: float = 25.0, end: float = 1e4) -> float:
    """Smith's 1cycle (arXiv:1708.07120) with torch's numbers: up from 1/25, down to 1/250,000.

    Of the rate alone: the momentum stays.
    """
    top = up * steps - 1
    if step <= top:
        return 1 - (1 - 1 / start) * _half_cosine(step / max(top, 1e-9))
    low = 1 / start / end
    return low + (1 - low) * _half_cosine((step - top) / max(1.0, steps - 1 - top))


def _noise(recipe: Recipe, epoch: int, epochs: int) -> float:
    """timm's: one normal number an epoch, drawn until it is within bounds."""
    if not recipe.lr_noise or not NOISY[0] * epochs <= epoch < NOISY[1] * epochs:
        return 0.0
    return _bounded_normal(recipe.lr_noise, 42 + epoch)


@functools.lru_cache(1)  # of an epoch
def _bounded_normal(bound: float, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    while True:
        found = torch.randn(1, generator=generator).item()
        if abs(found) < bound:
            return found
