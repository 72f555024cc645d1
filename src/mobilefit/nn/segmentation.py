"""R-ASPP and LR-ASPP as modules (V3 paper 6.4, Figure 10), as DeepLab's code released them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from mobilefit.arch.heads import SegmentationHead
from mobilefit.arch.spec import NetSpec
from mobilefit.errors import InputError
from mobilefit.nn.layers import ConvNormAct, GlobalPool, ResizeLike

DROPOUT = 0.1
"""Of R-ASPP's merged map, in training (DeepLab keeps 0.9 of it)."""
LOGITS_STD = 0.01
"""Of R-ASPP's fresh logits, cut at two deviations; all else is Glorot's uniform, slim's default."""


class ImagePool(nn.AvgPool2d):
    """Average pool without padding; a side of the window that is longer than the map is cut to it.

    DeepLab's pool has the size of the map of a training image, or of the map at hand where that is not
    given, so a map is never smaller than it.
    """

    def __init__(self, side: int, down: int, across: int) -> None:
        super().__init__(side, (down, across))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to ``[N, C, (H - h) // down + 1, (W - w) // across + 1]``."""
        side = int(self.kernel_size)  # type: ignore[arg-type]
        window = [min(side, at) for at in x.shape[2:]]
        return functional.avg_pool2d(x, window, self.stride)


class Segmentation(nn.Module):
    """The head of a segmenter.

    Raises:
        InputError: the spec is of another kind of network.
    """

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        head = spec.head
        if not isinstance(head, SegmentationHead):
            raise InputError(f"'{spec.name}' is no segmenter: its head is for '{spec.task}'")
        layers = {layer.name: layer for layer in spec.cost().layers}
        inputs, filters = layers["head.project"].inputs, head.filters
        make = partial(ConvNormAct, act="relu", padding=spec.padding, norm=head.norm)
        self.project = make(inputs, filters)
        if head.skip is None:
            self.taps: tuple[str, ...] = (head.tap,)
            self.pool: nn.Module = GlobalPool(1)
            self.image = make(inputs, filters)
            self.merge = make(2 * filters, filters)
            self.dropout = nn.Dropout(DROPOUT)
        else:
            self.taps = (head.tap, head.skip)
            self.pool = GlobalPool(1) if head.pool is None else ImagePool(*head.pool)
            self.gate = nn.Conv2d(inputs, filters, 1, bias=head.gate_bias)
            self.sigmoid = nn.Sigmoid()
            self.low = nn.Conv2d(layers["head.low"].inputs, head.num_classes, 1)
        self.high = nn.Conv2d(filters, head.num_classes, 1)
        self.resize = ResizeLike(head.align_corners)
        self.reset()

    def forward(self, maps: list[Tensor], images: Tensor) -> Tensor:
        """Logits ``[N, num_classes, H, W]`` of the size of the images.

        Args:
            maps: those of the taps.
            images: ``[N, C, H, W]``; only its size counts.
        """
        resized: Tensor = self.resize(self.logits(maps), images)
        return resized

    def logits(self, maps: list[Tensor]) -> Tensor:
        """Logits of the size that they are computed at: the finest map's."""
        x: Tensor = self.project(maps[0])
        pooled = self.pool(maps[0])
        if len(self.taps) == 1:
            image = self.resize(self.image(pooled), x)
            merged = self.dropout(self.merge(torch.cat([image, x], 1)))
            coarse: Tensor = self.high(merged)
            return coarse
        gate = self.sigmoid(self.gate(pooled))
        if isinstance(self.pool, ImagePool):  # one value for the whole map needs no resizing
            gate = self.resize(gate, x)
        fine: Tensor = self.high(self.resize(x * gate, maps[1])) + self.low(maps[1])
        return fine

    @torch.no_grad()
    def reset(self) -> None:
        """Fresh weights as DeepLab's: Glorot's uniform, biases 0; R-ASPP's logits :data:`LOGITS_STD`."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if len(self.taps) == 1:
            nn.init.trunc_normal_(
                self.high.weight, std=LOGITS_STD, a=-2 * LOGITS_STD, b=2 * LOGITS_STD
            )
