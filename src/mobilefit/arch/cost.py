"""What a spec costs: shapes, parameters, multiply-adds and activations, layer by layer.

Counting follows the papers: a multiply-add is one multiplication with its addition; convolutions,
squeeze-and-excite and fully connected layers count; biases, batch norm, activations, additions and
pooling do not count as multiply-adds. Batch norm counts two parameters a channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mobilefit.arch.heads import ClassifierHead, Head, SegmentationHead, SSDLiteHead
from mobilefit.arch.rows import Activation, Block, Conv
from mobilefit.arch.scaling import Excite, reduced_width

Kind = Literal["conv", "depthwise", "excite", "pool", "linear"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One measurable layer: a convolution with its norm and activation, an SE, a pool, a linear.

    Attributes:
        name: the path of its module in the built network, such as ``blocks.3.expand``.
        kind: what it computes.
        inputs, out: channels in and out.
        size, out_size: height of the feature map in and out, pixels.
        columns, out_columns: its width, the same where it is square.
        kernel, stride, dilation: of the window (1 where there is none).
        reduced: width of the squeeze-and-excite bottleneck, else 0.
        gate: which squeeze-and-excite it is.
        act: activation after it.
        residual: whether the block's input, pooled or not, is added to its output.
        params: trainable parameters, exact.
        madds: multiply-adds for one image, exact.
        activations: elements read and written: input, output, and the residual kept beside them.
    """

    name: str
    kind: Kind
    inputs: int
    out: int
    size: int
    out_size: int
    columns: int
    out_columns: int
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    reduced: int = 0
    gate: Excite | None = None
    act: Activation = "none"
    residual: bool = False
    params: int = 0
    madds: int = 0
    activations: int = 0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The exact cost of a network for one image."""

    layers: tuple[Layer, ...]

    @property
    def params(self) -> int:
        """Trainable parameters."""
        return sum(layer.params for layer in self.layers)

    @property
    def madds(self) -> int:
        """Multiply-adds."""
        return sum(layer.madds for layer in self.layers)

    @property
    def peak_activations(self) -> int:
        """Elements alive at once at the widest point: bytes for int8, four times that for float32."""
        return max(layer.activations for layer in self.layers)

    def of(self, prefix: str) -> Cost:
        """The layers of one module, ``blocks.3`` say."""
        return Cost(
            layers=tuple(x for x in self.layers if f"{x.name}.".startswith(f"{prefix}."))
        )


Map = tuple[int, int]
"""Height and width of a feature map in pixels."""


def count(
    image: Map, in_channels: int, stem: Conv, blocks: tuple[Block, ...], last: Conv | None, head: Head
) -> Cost:
    """Walk a network from input to output. See :class:`Layer` for what is counted."""
    backbone = list(_backbone(image, in_channels, stem, blocks, last))
    return Cost(layers=(*backbone, *_head(head, backbone)))


def _backbone(
    image: Map, in_channels: int, stem: Conv, blocks: tuple[Block, ...], last: Conv | None
) -> Iterator[Layer]:
    yield from _full(stem, "stem", in_channels, image)
    inputs, at = stem.out, _strided(image, stem.stride)
    for index, block in enumerate(blocks):
        yield from _block(block, f"blocks.{index}", inputs, at)
        inputs, at = block.out, _strided(at, block.stride)
    if last is not None:
        yield from _full(last, "last", inputs, at)


def _strided(at: Map, stride: int) -> Map:
    return -(-at[0] // stride), -(-at[1] // stride)


def _area(at: Map) -> int:
    return at[0] * at[1]


def _full(conv: Conv, name: str, inputs: int, at: Map) -> Iterator[Layer]:
    yield convolution(name, inputs, conv.out, at, kernel=conv.kernel, stride=conv.stride, act=conv.act)
    if conv.se is not None:
        yield _excite(f"{name}.se", conv.se, conv.out, inputs, _strided(at, conv.stride))


def _block(block: Block, name: str, inputs: int, at: Map) -> Iterator[Layer]:
    window: dict[str, Any] = {"kernel": block.kernel, "stride": block.stride, "dilation": block.dilation}
    out_at, act = _strided(at, block.stride), block.act
    wide = block.width(inputs)
    residual = block.has_residual(inputs)
    kept = inputs * _area(out_at) if residual else 0
    # The first layer reads the input; a pool has run before it, and made a second map.
    first = kept if block.skip == "pool" else 0
    if block.start_kernel:
        start: dict[str, Any] = {"kernel": block.start_kernel, "stride": block.start_stride, "dilation": block.dilation}
        yield depthwise(f"{name}.start", inputs, at, **start, act="none", kept=first)
        at, first = _strided(at, block.start_stride), kept
    if block.op == "conv":
        yield convolution(f"{name}.conv", inputs, wide, at, **window, act=act, kept=first, residual=residual)
    elif block.op == "fused":
        yield convolution(f"{name}.expand", inputs, wide, at, **window, act=act, kept=first)
    elif block.expand is None:
        yield depthwise(f"{name}.depthwise", wide, at, **window, act=act, kept=first)
    else:
        yield convolution(f"{name}.expand", inputs, wide, at, act=act, kept=first)
        if block.kernel:
            yield depthwise(f"{name}.depthwise", wide, at, **window, act=act, kept=kept)
    if block.se is not None:
        yield _excite(f"{name}.se", block.se, wide, inputs, out_at, kept)
    if block.op == "conv":
        return
    act = act if block.op == "separable" else "none"
    yield convolution(f"{name}.project", wide, block.out, out_at, act=act, kept=kept, residual=residual)


def _head(head: Head, backbone: list[Layer]) -> Iterator[Layer]:
    """The layers of the head, on those of the backbone."""
    if isinstance(head, SSDLiteHead):
        yield from _ssdlite(head, [_tapped(backbone, tap) for tap in head.taps])
    elif isinstance(head, SegmentationHead):
        skip = None if head.skip is None else _tapped(backbone, head.skip)
        yield from _segmentation(head, _tapped(backbone, head.tap), skip)
    else:
        last = backbone[-1]
        yield from _classifier(head, last.out, (last.out_size, last.out_columns))


def _classifier(head: ClassifierHead, inputs: int, at: Map) -> Iterator[Layer]:
    yield pool("head.pool", inputs, at, (1, 1))
    if head.hidden is not None and head.hidden_norm:
        yield convolution("head.hidden", inputs, head.hidden, (1, 1), act=head.act)
        inputs = head.hidden
    elif head.hidden is not None:
        yield _linear("head.hidden", inputs, head.hidden, head.act)
        inputs = head.hidden
    yield _linear("head.logits", inputs, head.num_classes, "none")


def _tapped(backbone: list[Layer], tap: str) -> tuple[int, Map]:
    """Channels and size of what a head takes from the backbone."""
    layer = next(x for x in reversed(backbone) if f"{x.name}.".startswith(f"{tap}."))
    return layer.out, (layer.out_size, layer.out_columns)


def _ssdlite(head: SSDLiteHead, maps: list[tuple[int, Map]]) -> Iterator[Layer]:
    inputs, at = maps[-1]
    for index, out in enumerate(head.extras):
        name, narrow = f"head.extras.{index}", out // 2
        yield convolution(f"{name}.reduce", inputs, narrow, at, act=head.act)
        yield depthwise(f"{name}.depthwise", narrow, at, kernel=3, stride=2, act=head.act)
        inputs, at = out, _strided(at, 2)
        yield convolution(f"{name}.project", narrow, out, at, act=head.act)
        maps = [*maps, (out, at)]
    for index, ((width, at), boxes) in enumerate(zip(maps, head.per_map, strict=True)):
        for part, outputs in (("classes", head.num_classes + 1), ("boxes", 4)):
            name = f"head.{part}.{index}"
            yield depthwise(f"{name}.depthwise", width, at, kernel=3, act=head.act)
            yield convolution(f"{name}.predict", width, boxes * outputs, at, bias=True)


def _segmentation(
    head: SegmentationHead, tap: tuple[int, Map], skip: tuple[int, Map] | None
) -> Iterator[Layer]:
    (inputs, at), filters = tap, head.filters
    yield convolution("head.project", inputs, filters, at, act="relu")
    if skip is None:
        yield pool("head.pool", inputs, at, (1, 1))
        yield convolution("head.image", inputs, filters, (1, 1), act="relu")
        yield convolution("head.merge", 2 * filters, filters, at, act="relu")
        yield convolution("head.high", filters, head.num_classes, at, bias=True)
        return
    pooled = pooled_map(at, head.pool)
    yield pool("head.pool", inputs, at, pooled)
    yield convolution("head.gate", inputs, filters, pooled, bias=head.gate_bias, norm=False)
    yield convolution("head.high", filters, head.num_classes, skip[1], bias=True)
    yield convolution("head.low", skip[0], head.num_classes, skip[1], bias=True)


def pooled_map(at: Map, window: tuple[int, int, int] | None) -> Map:
    """The size of a map after an average pool of a side and two strides, without padding.

    Args:
        at: height and width of the map; a side of the window that is longer is cut to it.
        window: side and strides; ``None``: the whole map.
    """
    if window is None:
        return 1, 1
    side, down, across = window
    return (at[0] - min(side, at[0])) // down + 1, (at[1] - min(side, at[1])) // across + 1


def convolution(
    name: str, inputs: int, out: int, at: Map, *, kernel: int = 1, stride: int = 1, dilation: int = 1,
    act: Activation = "none", kept: int = 0, residual: bool = False, bias: bool = False,
    norm: bool = True,
) -> Layer:  # fmt: skip
    """A full convolution with its norm, or with a bias in its place."""
    out_at, weights = _strided(at, stride), kernel**2 * inputs * out
    own = out if bias else 2 * out if norm else 0
    return Layer(
        name=name, kind="conv", inputs=inputs, out=out, **_sizes(at, out_at),
        kernel=kernel, stride=stride, dilation=dilation, act=act, residual=residual,
        params=weights + own, madds=weights * _area(out_at),
        activations=inputs * _area(at) + out * _area(out_at) + kept,
    )  # fmt: skip


def depthwise(
    name: str, width: int, at: Map, *, kernel: int, stride: int = 1, dilation: int = 1,
    act: Activation, kept: int = 0,
) -> Layer:  # fmt: skip
    """A depthwise convolution with its norm."""
    out_at, weights = _strided(at, stride), kernel**2 * width
    return Layer(
        name=name, kind="depthwise", inputs=width, out=width, **_sizes(at, out_at),
        kernel=kernel, stride=stride, dilation=dilation, act=act,
        params=weights + 2 * width, madds=weights * _area(out_at),
        activations=width * (_area(at) + _area(out_at)) + kept,
    )  # fmt: skip


def pool(name: str, inputs: int, at: Map, out_at: Map) -> Layer:
    """An average pool."""
    return Layer(
        name=name, kind="pool", inputs=inputs, out=inputs, **_sizes(at, out_at),
        activations=inputs * (_area(at) + _area(out_at)),
    )  # fmt: skip


def _sizes(at: Map, out_at: Map) -> dict[str, Any]:
    return {"size": at[0], "out_size": out_at[0], "columns": at[1], "out_columns": out_at[1]}


def _excite(name: str, se: Excite, width: int, block_inputs: int, at: Map, kept: int = 0) -> Layer:
    reduced = reduced_width(se, width, block_inputs)
    weights = 2 * width * reduced
    return Layer(
        name=name, kind="excite", inputs=width, out=width, **_sizes(at, at),
        reduced=reduced, gate=se, params=weights + reduced + width, madds=weights,
        activations=2 * width * _area(at) + kept,
    )  # fmt: skip


def _linear(name: str, inputs: int, out: int, act: Activation) -> Layer:
    return Layer(
        name=name, kind="linear", inputs=inputs, out=out, **_sizes((1, 1), (1, 1)), act=act,
        params=(inputs + 1) * out, madds=inputs * out, activations=inputs + out,
    )  # fmt: skip
