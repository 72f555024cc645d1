"""Stem, blocks and last convolution: what every task shares."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mobilefit.arch.spec import NetSpec
from mobilefit.nn.blocks import Row, full_conv


class Backbone(nn.Module):
    """``[N, in_channels, H, W]`` to the feature map before pooling, at a stride of 32 unless dilated."""

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

    def maps(self, x: Tensor, taps: Sequence[str]) -> list[Tensor]:
        """What layers of the backbone give, in the order of ``taps``.

        Args:
            x: ``[N, in_channels, H, W]``.
            taps: ``blocks.12`` (a row's output), ``blocks.12.expand`` (a layer's, after its activation and
                before squeeze-and-excite), ``last``.
        """
        found: dict[str, Tensor] = {}
        x = self.stem(x)
        for index, row in enumerate(self.blocks):
            within: dict[str, Tensor] = {}
            assert isinstance(row, Row)
            x = found[f"blocks.{index}"] = row.shown(x, within)
            found |= {f"blocks.{index}.{name}": value for name, value in within.items()}
        if "last" in taps:
            found["last"] = self.last(x)
        return [found[tap] for tap in taps]
