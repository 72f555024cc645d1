"""SSDLite as a module: extra maps, and predictors of classes and boxes (V2 paper 6.2, V3 paper 6.3)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from mobilefit.arch.heads import SSDLiteHead
from mobilefit.arch.rows import Padding
from mobilefit.arch.spec import NetSpec
from mobilefit.nn.boxes import detector_head
from mobilefit.nn.layers import ConvNormAct, Rows

STD = 0.03
"""Standard deviation of fresh weights, in both references."""
RARE = -4.6
"""Fresh bias of the classes' logits under a focal loss: every class begins at a score of 1 %."""


class Extra(nn.Sequential):
    """A further map: ``[N, in, H, W]`` to ``[N, out, ceil(H/2), ceil(W/2)]``."""

    def __init__(self, inputs: int, out: int, head: SSDLiteHead, padding: Padding) -> None:
        super().__init__()
        make = partial(ConvNormAct, act=head.act, padding=padding, norm=head.norm)
        narrow = out // 2
        self.reduce = make(inputs, narrow)
        self.depthwise = make(narrow, narrow, kernel=3, stride=2, groups=narrow)
        self.project = make(narrow, out)


class Predictor(nn.Sequential):
    """A map's predictions: ``[N, C, H, W]`` to ``[N, H * W * anchors, outputs]``."""

    def __init__(
        self, inputs: int, anchors: int, outputs: int, head: SSDLiteHead, padding: Padding
    ) -> None:
        super().__init__()
        self.depthwise = ConvNormAct(
            inputs, inputs, kernel=3, groups=inputs, act=head.act, padding=padding, norm=head.norm
        )
        self.predict = nn.Conv2d(inputs, anchors * outputs, 1)
        self.rows = Rows(outputs)


class SSDLite(nn.Module):
    """The head of a detector.

    Raises:
        InputError: the spec is of another kind of network.
    """

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        head = detector_head(spec)
        self.taps = head.taps
        self.focal = head.scoring == "sigmoid"
        layers = {layer.name: layer for layer in spec.cost().layers}
        predictors = range(len(head.per_map))
        widths = [layers[f"head.classes.{index}.depthwise"].inputs for index in predictors]
        into = widths[len(head.taps) - 1 :]
        self.extras = nn.ModuleList(
            Extra(inputs, out, head, spec.padding) for inputs, out in zip(into, head.extras)
        )

        def made(outputs: int) -> nn.ModuleList:
            return nn.ModuleList(
                Predictor(width, anchors, outputs, head, spec.padding)
                for width, anchors in zip(widths, head.per_map, strict=True)
            )

        self.classes = made(head.num_classes + 1)
        self.boxes = made(4)
        self.reset()

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """What the anchors of :func:`mobilefit.nn.boxes.anchors` say, in their order.

        Args:
            maps: those of the taps.

        Returns:
            Encodings of boxes ``[N, A, 4]``, and logits ``[N, A, num_classes + 1]``, background first.
        """
        found = list(maps)
        for extra in self.extras:
            found.append(extra(found[-1]))
        boxes = [predictor(x) for predictor, x in zip(self.boxes, found)]
        logits = [predictor(x) for predictor, x in zip(self.classes, found)]
        return torch.cat(boxes, 1), torch.cat(logits, 1)

    @torch.no_grad()
    def reset(self) -> None:
        """Fresh weights as published: normal with a deviation of :data:`STD`, biases 0.

        Under a focal loss as in TensorFlow's configuration: there the extra layers' are cut at two
        deviations, and the classes' biases are :data:`RARE`. With softmax as in torchvision.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if not self.focal:
            return
        for module in self.extras.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=STD, a=-2 * STD, b=2 * STD)
        for module in self.classes.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.constant_(module.bias, RARE)
