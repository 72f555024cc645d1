"""Batch norm and h-swish in less memory, where a network is trained on a CPU.

torch keeps three maps of such a layer for the backward pass: what goes into batch norm, what comes out
of it and goes into h-swish, and what comes out of that. The second is computed again here from the
first, by the same kernel as before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

LEAST = 1 << 20
"""Elements of a map for which memory is worth a tenth of the layer's time."""


def applies(norm: nn.Module, act: nn.Module, x: Tensor) -> bool:
    """Whether a layer in training is computed so."""
    return (
        isinstance(x, Tensor)  # and not what a tracer gives
        and type(norm) is nn.BatchNorm2d and type(act) is nn.Hardswish and norm.training
        and norm.momentum is not None and norm.affine and norm.track_running_stats
        and x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() >= LEAST
        and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()
    )  # fmt: skip


def norm_hardswish(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """``hardswish(norm(x))``, of ``[N, C, H, W]`` in training; the statistics, if it has any, move as always."""
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    return _NormHardswish.apply(x, norm.weight, norm.bias, norm)  # type: ignore[no-any-return]


class _NormHardswish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        normed, mean, inverse = torch.native_batch_norm(
            x, weight, bias, norm.running_mean, norm.running_var, True, norm.momentum or 0.0, norm.eps
        )
        ctx.save_for_backward(x, weight, bias, mean, inverse)
        ctx.eps = norm.eps
        return functional.hardswish(normed, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, inverse = ctx.saved_tensors
        variance = inverse.pow(-2) - ctx.eps
        normed = torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, ctx.eps)[0]
        grad = torch.ops.aten.hardswish_backward(grad, normed)
        found = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, inverse, True, ctx.eps, ctx.needs_input_grad[:3]
        )
        return (*found, None)
