"""What turns features into outputs, as values: a head for each task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar, Literal

from mobilefit.arch.rows import MOST_CLASSES, Activation, BatchNorm, choice, is_number, positive
from mobilefit.arch.scaling import Scaling, WidthRules, near_output

Task = Literal["classify", "detect", "segment"]
Anchors = Literal["tf", "torchvision"]
Scoring = Literal["sigmoid", "softmax"]
SegmentationKind = Literal["lraspp", "raspp"]

MOST_MAPS = 64
"""That a detector predicts on."""


@dataclass(frozen=True, kw_only=True)
class ClassifierHead:
    """Global average pooling, an optional hidden layer, dropout, logits."""

    task: ClassVar[Task] = "classify"

    hidden: int | None = None
    hidden_norm: bool = False
    """Whether the hidden layer has batch norm (MobileNetV4) in the place of a bias (V3)."""
    act: Activation = "none"
    dropout: float = 0.2
    """Probability of dropping (the paper's "dropout of 0.8" is the share kept)."""
    num_classes: int = 1000
    scaling: Scaling = "above_one"
    """When a width multiplier reaches the hidden layer."""

    def scaled(self, factor: Fraction, rules: WidthRules, scaling: Scaling | None) -> ClassifierHead:
        """The head of a network whose widths are multiplied.

        Args:
            scaling: in the place of its own. (torchvision scales V3's hidden layer at every width; the
                papers keep it below 1.0.)
        """
        if self.hidden is None:
            return self
        wanted = scaling or ("always" if rules == "torchvision" else self.scaling)
        return replace(self, hidden=near_output(self.hidden, factor, wanted))

    @property
    def widths(self) -> dict[str, int]:
        """Its own widths, by their places in the network."""
        return {} if self.hidden is None else {"head.hidden": self.hidden}

    def bare(self) -> ClassifierHead:
        """What two heads share that differ in widths and classes alone."""
        hidden = None if self.hidden is None else 1
        return replace(self, hidden=hidden, num_classes=1, dropout=0.0, scaling="always")

    def problems(self, layers: Sequence[str]) -> Iterator[str]:
        """Everything that is wrong with it."""
        yield from positive("head.num_classes", self.num_classes, MOST_CLASSES)
        yield from positive("head.hidden", self.hidden)
        if self.hidden_norm and self.hidden is None:
            yield "head.hidden_norm is set, and there is no hidden layer"
        yield from choice("head.act", self.act, Activation)
        yield from choice("head.scaling", self.scaling, Scaling)
        if not is_number(self.dropout) or not 0 <= self.dropout < 1:
            yield f"head.dropout {self.dropout} is not in [0, 1)"


@dataclass(frozen=True, kw_only=True)
class SSDLiteHead:
    """SSDLite (MobileNetV2 paper 6.2, V3 paper 6.3): predictors on maps of falling size.

    The first maps are layers of the backbone, further ones are made by extra layers of stride 2. Each
    map has one predictor of classes and one of boxes: depthwise 3x3, batch norm, activation, 1x1.
    """

    task: ClassVar[Task] = "detect"

    num_classes: int = 90
    """Without the background, which has the first of ``num_classes + 1`` logits."""
    taps: tuple[str, ...]
    """Layers of the backbone with a predictor each, by their names in the cost."""
    extras: tuple[int, ...] = (512, 256, 256, 128)
    """Output channels of the extra layers: 1x1 to half as many, depthwise 3x3 at stride 2, 1x1."""
    anchors: Anchors = "tf"
    """Default boxes: 3 on the first map and 6 on the others (the paper's configuration: TensorFlow's
    ``ssdlite_mobilenet_v3_large_320x320_coco.config``), or 6 on every one (torchvision)."""
    act: Activation = "relu6"
    scoring: Scoring = "sigmoid"
    """From logits to scores: ``sigmoid`` with focal loss (TensorFlow), ``softmax`` with hard
    negatives (torchvision)."""
    norm: BatchNorm = BatchNorm(momentum=0.03)
    """Of the head's own layers."""

    @property
    def per_map(self) -> tuple[int, ...]:
        """Default boxes at each place of each map."""
        maps = len(self.taps) + len(self.extras)
        return ((3,) if self.anchors == "tf" else (6,)) + (6,) * (maps - 1)

    def scaled(self, factor: Fraction, rules: WidthRules, scaling: Scaling | None) -> SSDLiteHead:
        """The head of a network whose widths are multiplied: TensorFlow's SSD feature extractors."""
        return replace(self, extras=tuple(max(int(width * factor), 16) for width in self.extras))

    @property
    def widths(self) -> dict[str, int]:
        """Its own widths, by their places in the network."""
        return {f"head.extras.{index}": width for index, width in enumerate(self.extras)}

    def bare(self) -> SSDLiteHead:
        """What two heads share that differ in widths and classes alone."""
        return replace(self, num_classes=1, extras=(1,) * len(self.extras), norm=BatchNorm())

    def problems(self, layers: Sequence[str]) -> Iterator[str]:
        """Everything that is wrong with it."""
        yield from positive("head.num_classes", self.num_classes, MOST_CLASSES)
        for index, width in enumerate(self.extras):
            yield from positive(f"head.extras.{index}", width)
        yield from choice("head.anchors", self.anchors, Anchors)
        yield from choice("head.act", self.act, Activation)
        yield from choice("head.scoring", self.scoring, Scoring)
        yield from self.norm.problems("head.norm")
        if not 1 <= len(self.per_map) <= MOST_MAPS:
            yield f"head.taps and head.extras are {len(self.per_map)} maps, more than {MOST_MAPS}"
            return
        if not self.taps:
            yield "head.taps is empty"
        for tap in self.taps:
            yield from _tap("head.taps", tap, layers)


@dataclass(frozen=True, kw_only=True)
class SegmentationHead:
    """R-ASPP and LR-ASPP (V3 paper 6.4, Figure 10), as DeepLab's code released them.

    ``raspp``: 1x1 convolution beside the pooled image, concatenated, 1x1, logits.
    ``lraspp``: 1x1 convolution times a gate of the pooled image, at twice the size; logits of that and
    of a finer map are added.
    """

    task: ClassVar[Task] = "segment"

    num_classes: int = 19
    kind: SegmentationKind = "lraspp"
    filters: int = 128
    """F of Table 7."""
    tap: str = "last"
    """The layer of the backbone that it begins with."""
    skip: str | None = None
    """``lraspp``: the finer layer, at half the stride or less."""
    pool: tuple[int, int, int] | None = (49, 16, 20)
    """``lraspp``: side and strides (down, across) of the average pool before the gate; a side longer
    than the map is cut to it. ``None``: of the whole map (torchvision)."""
    gate_bias: bool = True
    """``lraspp``: whether the gate's convolution has a bias (torchvision's has none)."""
    align_corners: bool = True
    """How maps are resized: TensorFlow's DeepLab aligns the corners, torchvision does not."""
    norm: BatchNorm = BatchNorm(eps=1e-5, momentum=3e-4)
    """Of the head's own layers: DeepLab's decay of 0.9997."""

    def scaled(self, factor: Fraction, rules: WidthRules, scaling: Scaling | None) -> SegmentationHead:
        """Itself: Table 7 has the same F at every width."""
        return self

    @property
    def widths(self) -> dict[str, int]:
        """Its own widths, by their places in the network."""
        return {"head.filters": self.filters}

    def bare(self) -> SegmentationHead:
        """What two heads share that differ in widths and classes alone."""
        return replace(self, num_classes=1, filters=1, norm=BatchNorm())

    def problems(self, layers: Sequence[str]) -> Iterator[str]:
        """Everything that is wrong with it."""
        yield from positive("head.num_classes", self.num_classes, MOST_CLASSES)
        yield from positive("head.filters", self.filters)
        yield from choice("head.kind", self.kind, SegmentationKind)
        yield from self.norm.problems("head.norm")
        yield from _tap("head.tap", self.tap, layers)
        if self.kind == "lraspp" and self.skip is None:
            yield "head.skip is missing: lraspp adds the logits of a finer layer"
        if self.kind == "lraspp" and self.skip is not None:
            yield from _tap("head.skip", self.skip, layers)
        if self.kind == "raspp" and self.skip is not None:
            yield "head.skip: raspp has none"
        for side in self.pool or ():
            yield from positive("head.pool", side)
        if self.pool is not None and len(self.pool) != 3:
            yield f"head.pool {self.pool} is not a side and two strides"


Head = ClassifierHead | SSDLiteHead | SegmentationHead
HEADS: dict[str, type[Head]] = {kind.task: kind for kind in (ClassifierHead, SSDLiteHead, SegmentationHead)}


def _tap(where: str, name: str, layers: Sequence[str]) -> Iterator[str]:
    if name not in layers:
        yield f"{where}: the backbone has no layer '{name}'"
