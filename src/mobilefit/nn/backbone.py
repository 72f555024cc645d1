"""Stem, blocks and last convolution: what every task shares."""

from __future__ import annotations

from torch import Tensor, nn

from mobilefit.arch.spec import NetSpec
from mobilefit.nn.blocks import Row, full_conv


class Backbone(nn.Module):
    """``[N, in_channels, H, W]`` to the feature map before pooling, at a stride of 32."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.stem = full_conv(spec.stem, spec.in_channels, spec)
        self.blocks = nn.Sequential(
            *(Row(block, width, spec) for block, width in zip(spec.blocks, spec.widths))
        )
        self.last = nn.Identity() if spec.last is None else full_conv(
            spec.last, spec.widths[-1], spec
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """The last feature map, ``[N, C, H/32, W/32]``."""
        out: Tensor = self.last(self.blocks(self.stem(x)))
        return out
