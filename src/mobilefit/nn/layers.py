"""The layers that the family is made of, under the names that costs and weights use for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from mobilefit.arch.rows import Activation, BatchNorm, Padding
from mobilefit.arch.scaling import Excite
from mobilefit.nn import depthwise, recompute

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hard_swish": nn.Hardswish,
    "swish": nn.SiLU,
    "none": nn.Identity,
}

BY_RESULT = ("relu", "relu6")
"""Activations whose gradient follows from their result: only these save memory by working in place.
Of the others torch would copy the input first, which costs more than a new result."""


def activation(name: Activation) -> nn.Module:
    """A new module for the activation."""
    return nn.Identity() if name == "none" else ACTIVATIONS[name](inplace=name in BY_RESULT)


class Conv2d(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow (``same``) or torch does.

    At stride 1 the two are one. At stride 2 on an even side ``same`` pads one pixel less at the top
    and left, so it samples a grid shifted by one pixel; :attr:`same` can be switched after building.
    """

    def __init__(
        self, inputs: int, out: int, kernel: int, stride: int, groups: int, padding: Padding,
        dilation: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(
            inputs, out, kernel, stride, (kernel - 1) // 2 * dilation, dilation, groups, bias=False
        )
        self.same = padding == "same"

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in, H, W]`` to ``[N, out, ceil(H/stride), ceil(W/stride)]``."""
        padding = self.padding
        if self.same and self.stride[0] != 1:
            bottom, right = self._total(x.shape[2]), self._total(x.shape[3])
            pads = [right // 2, right - right // 2, bottom // 2, bottom - bottom // 2]
            x, padding = self._padded(x, pads), (0, 0)
        if self.training and depthwise.applies(self, x):
            return depthwise.Depthwise5.apply(x, self.weight, self.stride, padding)  # type: ignore[no-any-return]
        return functional.conv2d(x, self.weight, None, self.stride, padding, self.dilation, self.groups)

    def _total(self, side: int) -> int:
        kernel, stride = self.kernel_size[0], self.stride[0]
        return max((-(-side // stride) - 1) * stride + kernel - side, 0)

    def _padded(self, x: Tensor, pads: list[int]) -> Tensor:
        if self.training and not torch.compiler.is_compiling():
            return _Pad.apply(x, pads)  # type: ignore[no-any-return]
        return functional.pad(x, pads)


class _Pad(torch.autograd.Function):
    """Zeros around a map; its gradient is a part of the one that comes, not a copy of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pads: list[int]) -> Tensor:
        ctx.pads, ctx.sides = pads, x.shape[2:]
        return functional.pad(x, pads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (left, _, top, _), (height, width) = ctx.pads, ctx.sides
        return grad[:, :, top : top + height, left : left + width], None


class MaxPool2d(nn.MaxPool2d):
    """A 3x3 max pool, padded as TensorFlow's SAME (with less than any value, not with zeros)."""

    def __init__(self, stride: int) -> None:
        super().__init__(3, stride, ceil_mode=True)
        self.same = True

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to ``[N, C, ceil(H/stride), ceil(W/stride)]``."""
        # An even side at stride 2 is padded below and right alone: what ceil_mode does by itself.
        pads = [0 if self.stride == 2 and side % 2 == 0 else 1 for side in x.shape[2:]]
        return functional.max_pool2d(x, 3, self.stride, pads, ceil_mode=True)


class ConvNormAct(nn.Sequential):
    """Convolution, batch norm, activation: ``[N, in, H, W]`` to ``[N, out, H/s, W/s]``."""

    def __init__(
        self, inputs: int, out: int, *, kernel: int = 1, stride: int = 1, dilation: int = 1,
        groups: int = 1, act: Activation, padding: Padding, norm: BatchNorm,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = Conv2d(inputs, out, kernel, stride, groups, padding, dilation)
        self.norm = nn.BatchNorm2d(out, eps=norm.eps, momentum=norm.momentum)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """In training large maps take less memory than layer by layer."""
        conv, norm, act, *more = self
        x = conv(x)
        if self.training and recompute.applies(norm, act, x):
            x = recompute.norm_hardswish(self.norm, x)
        else:
            x = act(norm(x))
        for layer in more:  # squeeze-and-excite, where a stem or a last convolution has it
            x = layer(x)
        return x


class GlobalPool(nn.AdaptiveAvgPool2d):
    """The mean of a map, ``[N, C, H, W]`` to ``[N, C, 1, 1]``.

    In training by a sum, whose gradient torch does not write out for every pixel.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return x.sum((2, 3), keepdim=True) * (1 / (x.shape[2] * x.shape[3]))


class Pixel(nn.Conv2d):
    """A 1x1 convolution of maps of a single pixel, ``[N, in, 1, 1]`` to ``[N, out, 1, 1]``.

    In training as the matrix product that it is, which convolutions take twice as long for.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return functional.linear(x.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]


class SqueezeExcite(nn.Module):
    """Squeeze-and-excite (V3 paper 5.3): scales each channel by a gate seen over the whole map.

    MnasNet's gate is a sigmoid, the others' a hard-sigmoid; between the two layers is a ReLU.
    """

    def __init__(self, width: int, reduced: int, gate: Excite) -> None:
        super().__init__()
        self.pool = GlobalPool(1)
        self.reduce = Pixel(width, reduced, 1)
        self.act = nn.ReLU(inplace=True)
        self.expand = Pixel(reduced, width, 1)
        self.gate = nn.Sigmoid() if gate == "mnasnet" else nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to the same shape."""
        gate: Tensor = self.gate(self.expand(self.act(self.reduce(self.pool(x)))))
        return x * gate


class ResizeLike(nn.Module):
    """Bilinear resizing of a map to another's size.

    Args:
        align_corners: whether the corners' centres stay in their places (TensorFlow's DeepLab), or the
            map's edges (torchvision).
    """

    def __init__(self, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """``[N, C, h, w]`` to ``[N, C, H, W]``, the height and width of ``like``."""
        return functional.interpolate(
            x, size=like.shape[2:], mode="bilinear", align_corners=self.align_corners
        )


class Rows(nn.Module):
    """A predictor's map as rows, one for each anchor of each place: places row by row, and the anchors
    of a place in a row.

    Args:
        outputs: numbers of an anchor; they lie together among the channels.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        """``[N, anchors * outputs, H, W]`` to ``[N, H * W * anchors, outputs]``."""
        return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, self.outputs)
