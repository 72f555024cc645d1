"""Rows of a spec as modules."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from mobilefit.arch.scaling import reduced_width
from mobilefit.arch.spec import Block, Conv, NetSpec
from mobilefit.nn.layers import ConvNormAct, SqueezeExcite


class Row(nn.Sequential):
    """One row of the table; adds its input to its output where the row says so.

    Its children are named as the layers of :meth:`NetSpec.cost`: ``expand``, ``depthwise``, ``se``,
    ``project`` or ``conv``.
    """

    def __init__(self, block: Block, inputs: int, spec: NetSpec) -> None:
        super().__init__()
        self.residual = block.has_residual(inputs)
        make = partial(ConvNormAct, padding=spec.padding, norm=spec.norm)
        spatial = partial(make, kernel=block.kernel, stride=block.stride)
        wide = block.width(inputs)
        if block.op == "conv":
            self.conv = spatial(inputs, block.out, act=block.act)
            return
        if block.op == "fused":
            self.expand = spatial(inputs, wide, act=block.act)
        else:
            if block.expand is not None:
                self.expand = make(inputs, wide, act=block.act)
            self.depthwise = spatial(wide, wide, groups=wide, act=block.act)
        if block.se is not None:
            self.se = SqueezeExcite(wide, reduced_width(block.se, wide, inputs), block.se)
        self.project = make(wide, block.out, act=block.act if block.op == "separable" else "none")

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in, H, W]`` to ``[N, out, H/stride, W/stride]``."""
        out = x
        for layer in self:
            out = layer(out)
        return x + out if self.residual else out


def full_conv(conv: Conv, inputs: int, spec: NetSpec) -> ConvNormAct:
    """The stem or the last convolution."""
    made = ConvNormAct(
        inputs, conv.out, kernel=conv.kernel, stride=conv.stride, act=conv.act,
        padding=spec.padding, norm=spec.norm,
    )  # fmt: skip
    if conv.se is not None:
        made.se = SqueezeExcite(conv.out, reduced_width(conv.se, conv.out, inputs), conv.se)
    return made
