"""TensorFlow's RMSProp, learning-rate schedules, and which parameters decay."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mobilefit.train.recipe import Recipe


class RMSpropTF(torch.optim.Optimizer):
    """RMSProp as TensorFlow 1 computes it, which the published recipes assume.

    Unlike torch's: epsilon is inside the root, the mean square starts at one, and the learning rate
    multiplies the gradient before momentum, so that a change of rate does not rescale the past.
    """

    def __init__(
        self, params: Any, lr: float, *, rho: float = 0.9, momentum: float = 0.9,
        eps: float = 0.002, weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        defaults = {"lr": lr, "rho": rho, "momentum": momentum, "eps": eps,
                    "weight_decay": weight_decay}  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        if closure is not None:
            raise TypeError("RMSpropTF takes no closure")
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(group, params)

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p] = {"square": torch.ones_like(p), "momentum": torch.zeros_like(p)}
        squares = [self.state[p]["square"] for p in params]
        moments = [self.state[p]["momentum"] for p in params]
        gradients = [p.grad for p in params if p.grad is not None]
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, params, alpha=group["weight_decay"]))
        torch._foreach_mul_(squares, group["rho"])
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - group["rho"])
        roots = torch._foreach_sqrt(torch._foreach_add(squares, group["eps"]))
        torch._foreach_mul_(moments, group["momentum"])
        torch._foreach_addcdiv_(moments, gradients, roots, group["lr"])
        torch._foreach_sub_(params, moments)


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over a network; norms and biases (one-dimensional) do not decay."""
    params = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]
    lr = peak_lr(recipe)
    if recipe.optimizer == "rmsprop_tf":
        return RMSpropTF(groups, lr, rho=recipe.rho, momentum=recipe.momentum, eps=recipe.eps)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
    return torch.optim.AdamW(groups, lr, foreach=True)


def peak_lr(recipe: Recipe) -> float:
    """The learning rate at the end of warm-up, for the recipe's batch."""
    return recipe.lr * recipe.batch_size / 256


def learning_rate(recipe: Recipe, step: int, steps: int, epoch_steps: int) -> float:
    """The learning rate of one step.

    Args:
        step: from 0.
        steps: of the whole training; the cosine ends at zero there.
        epoch_steps: steps an epoch.
    """
    warmup = min(recipe.warmup_epochs * epoch_steps, steps / 4)
    rate = peak_lr(recipe) * min(1.0, (step + 1) / (warmup + 1))
    if recipe.schedule == "cosine":
        done = max(0.0, step - warmup) / max(1.0, steps - warmup)
        return rate * 0.5 * (1 + math.cos(math.pi * done))
    return float(rate * recipe.decay ** (step / epoch_steps // recipe.decay_epochs))
