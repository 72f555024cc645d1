"""5x5 depthwise convolutions whose training is fast on a CPU.

oneDNN's depthwise kernel for the gradient of the weights takes three columns at most and pads by one
(``jit_uni_dw_conv_bwd_weights_kernel``); for five columns a general one stands in, which can take
longer than all else of the layer. So the columns are computed three at a time, of gradients of the
output that are shifted to where their columns of the input are.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

HAS_KERNELS = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")  # type: ignore[no-untyped-call]
"""oneDNN has its depthwise kernels for this processor."""


def applies(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether torch's own gradient of the weights is the slow one."""
    return (
        HAS_KERNELS and x.device.type == "cpu" and x.dtype == torch.float32
        and conv.kernel_size == (5, 5) and conv.dilation == (1, 1) and conv.groups == len(conv.weight) > 1
        and conv.stride[0] <= 2 and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()
    )  # fmt: skip


class Depthwise5(torch.autograd.Function):
    """A 5x5 depthwise convolution ``[N, C, H, W]``, channels last, without bias."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(x, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = _gradients(grad, x, weight, ctx.stride, ctx.padding, (True, False, False))[0]
        if ctx.needs_input_grad[1]:
            of_weight = _five_columns(grad, x, ctx.stride[0], ctx.padding)
        return of_x, of_weight, None, None


def _five_columns(grad: Tensor, x: Tensor, stride: int, padding: tuple[int, int]) -> Tensor:
    """The gradient of a depthwise 5x5 kernel ``[C, 1, 5, 5]``."""
    shift = 2 // stride
    rows = padding[0]
    if rows and x.shape[2] < 5:  # the kernel is to fit into the map
        x, rows = functional.pad(x, (0, 0, rows, rows)), 0
    if not padding[1]:
        left = _three_columns(functional.pad(grad, (0, shift)), x, stride, (rows, 0))
        right = _three_columns(functional.pad(grad, (shift, 0)), x, stride, (rows, 0))
        return torch.cat([left, right[..., 1:]], dim=-1)
    middle = _three_columns(grad, x, stride, (rows, 1))
    if grad.shape[3] <= shift:  # the outer columns meet nothing but padding
        return functional.pad(middle, (1, 1))
    left = _three_columns(functional.pad(grad, (-shift, shift)), x, stride, (rows, 1))
    right = _three_columns(functional.pad(grad, (shift, -shift)), x, stride, (rows, 1))
    return torch.cat([left[..., 1:2], middle, right[..., 1:2]], dim=-1)


def _three_columns(grad: Tensor, x: Tensor, stride: int, padding: tuple[int, int]) -> Tensor:
    """The gradient of a depthwise kernel ``[C, 1, 5, 3]``."""
    kernel = x.new_empty((x.shape[1], 1, 5, 3))
    return _gradients(grad, x, kernel, (stride, stride), padding, (False, True, False))[1]


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int],
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What torch gives for a depthwise convolution: the gradients of input, weight and bias."""
    return torch.ops.aten.convolution_backward(  # type: ignore[no-any-return]
        grad, x, weight, None, stride, padding, (1, 1), False, (0, 0), len(weight), wanted
    )
