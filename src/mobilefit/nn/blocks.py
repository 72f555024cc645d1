"""Rows of a spec as modules."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from mobilefit.arch.rows import Block, Conv
from mobilefit.arch.scaling import reduced_width
from mobilefit.arch.spec import NetSpec
from mobilefit.nn.layers import ConvNormAct, MaxPool2d, SqueezeExcite


class Row(nn.Sequential):
    """One row of the table; adds its input to its output where the row says so.

    Its children are named as the layers of :meth:`NetSpec.cost`: ``start``, ``expand``, ``depthwise``,
    ``se``, ``project`` or ``conv``. Beside them is ``pool`` where the input is pooled before it is added.
    """

    def __init__(self, block: Block, inputs: int, spec: NetSpec) -> None:
        super().__init__()
        self.residual = block.has_residual(inputs)
        self.drop_path = 0.0
        """Stochastic depth: the probability, in training, that an image takes the shortcut alone."""
        make = partial(ConvNormAct, padding=spec.padding, norm=spec.norm)
        spatial = partial(make, kernel=block.kernel, stride=block.stride, dilation=block.dilation)
        wide = block.width(inputs)
        if self.residual and block.skip == "pool":
            self.pool = MaxPool2d(block.stride)
        if block.op == "conv":
            self.conv = spatial(inputs, wide, act=block.act)
        elif block.op == "fused":
            self.expand = spatial(inputs, wide, act=block.act)
        else:
            if block.start_kernel:
                self.start = make(
                    inputs, inputs, kernel=block.start_kernel, stride=block.start_stride, dilation=block.dilation,
                    groups=inputs, act="none",
                )  # fmt: skip
            if block.expand is not None:
                self.expand = make(inputs, wide, act=block.act)
            if block.kernel:
                self.depthwise = spatial(wide, wide, groups=wide, act=block.act)
        if block.se is not None:
            self.se = SqueezeExcite(wide, reduced_width(block.se, wide, inputs), block.se)
        if block.op != "conv":
            act = block.act if block.op == "separable" else "none"
            self.project = make(wide, block.out, act=act)

    def layers(self) -> list[tuple[str, nn.Module]]:
        """The layers from input to output with their names, without the pool beside them."""
        return [(name, layer) for name, layer in self.named_children() if name != "pool"]

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in, H, W]`` to ``[N, out, H/stride, W/stride]``."""
        return self.shown(x, {})

    def shown(self, x: Tensor, seen: dict[str, Tensor]) -> Tensor:
        """The same; ``seen`` is filled with what each layer gives, by its name."""
        kept = self.pool(x) if hasattr(self, "pool") else x
        out = x
        for name, layer in self.layers():
            out = seen[name] = layer(out)
        if not self.residual:
            return out
        if self.training and self.drop_path:
            from torchvision.ops import stochastic_depth

            out = stochastic_depth(out, self.drop_path, "row")
        return kept + out


def full_conv(conv: Conv, inputs: int, spec: NetSpec) -> ConvNormAct:
    """The stem or the last convolution."""
    made = ConvNormAct(
        inputs, conv.out, kernel=conv.kernel, stride=conv.stride, act=conv.act,
        padding=spec.padding, norm=spec.norm,
    )  # fmt: skip
    if conv.se is not None:
        made.se = SqueezeExcite(conv.out, reduced_width(conv.se, conv.out, inputs), conv.se)
    return made
