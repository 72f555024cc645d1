"""What a spec costs: shapes, parameters, multiply-adds and activations, layer by layer.

Counting follows the papers: a multiply-add is one multiplication with its addition; convolutions,
squeeze-and-excite and fully connected layers count; biases, batch norm, activations, additions and
pooling do not count as multiply-adds. Batch norm counts two parameters a channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mobilefit.arch.scaling import Excite, reduced_width

if TYPE_CHECKING:
    from mobilefit.arch.spec import Activation, Block, Conv, NetSpec

Kind = Literal["conv", "depthwise", "excite", "pool", "linear"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One measurable layer: a convolution with its norm and activation, an SE, a pool, a linear.

    Attributes:
        name: the path of its module in the built network, such as ``blocks.3.expand``.
        kind: what it computes.
        inputs, out: channels in and out.
        size, out_size: side of the square feature map in and out, pixels.
        kernel, stride: of the window (1 where there is none).
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
    kernel: int = 1
    stride: int = 1
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


def count(spec: NetSpec) -> Cost:
    """Walk a spec from input to output. See :class:`Layer` for what is counted."""
    return Cost(layers=tuple(_layers(spec)))


def _layers(spec: NetSpec) -> Iterator[Layer]:
    size = spec.input_size
    for layer in _full(spec.stem, "stem", spec.in_channels, size):
        yield layer
        size = layer.out_size
    inputs = spec.stem.out
    for index, block in enumerate(spec.blocks):
        yield from _block(block, f"blocks.{index}", inputs, size)
        inputs, size = block.out, -(-size // block.stride)
    if spec.last is not None:
        yield from _full(spec.last, "last", inputs, size)
        inputs = spec.last.out
    yield from _head(spec, inputs, size)


def _full(conv: Conv, name: str, inputs: int, size: int) -> Iterator[Layer]:
    yield _conv(name, inputs, conv.out, size, conv.kernel, conv.stride, conv.act)
    if conv.se is not None:
        yield _excite(f"{name}.se", conv.se, conv.out, inputs, -(-size // conv.stride))


def _block(block: Block, name: str, inputs: int, size: int) -> Iterator[Layer]:
    out_size, k, s, act = -(-size // block.stride), block.kernel, block.stride, block.act
    wide = block.width(inputs)
    residual = block.has_residual(inputs)
    kept = inputs * out_size**2 if residual else 0
    # The first layer reads the input; a pool has run before it, and made a second map.
    first = kept if block.skip == "pool" else 0
    if block.op == "conv":
        yield _conv(f"{name}.conv", inputs, wide, size, k, s, act, first, residual=residual)
    elif block.op == "fused":
        yield _conv(f"{name}.expand", inputs, wide, size, k, s, act, first)
    elif block.expand is None:
        yield _depthwise(f"{name}.depthwise", wide, size, k, s, act, first)
    else:
        yield _conv(f"{name}.expand", inputs, wide, size, 1, 1, act, first)
        yield _depthwise(f"{name}.depthwise", wide, size, k, s, act, kept)
    if block.se is not None:
        yield _excite(f"{name}.se", block.se, wide, inputs, out_size, kept)
    if block.op == "conv":
        return
    act = act if block.op == "separable" else "none"
    yield _conv(f"{name}.project", wide, block.out, out_size, 1, 1, act, kept, residual=residual)


def _head(spec: NetSpec, inputs: int, size: int) -> Iterator[Layer]:
    head = spec.head
    yield Layer(
        name="head.pool", kind="pool", inputs=inputs, out=inputs, size=size, out_size=1,
        activations=inputs * size**2 + inputs,
    )  # fmt: skip
    if head.hidden is not None:
        yield _linear("head.hidden", inputs, head.hidden, head.act)
        inputs = head.hidden
    yield _linear("head.logits", inputs, head.num_classes, "none")


def _conv(
    name: str, inputs: int, out: int, size: int, kernel: int, stride: int, act: Activation,
    kept: int = 0, *, residual: bool = False,
) -> Layer:  # fmt: skip
    out_size = -(-size // stride)
    weights = kernel**2 * inputs * out
    return Layer(
        name=name, kind="conv", inputs=inputs, out=out, size=size, out_size=out_size,
        kernel=kernel, stride=stride, act=act, residual=residual,
        params=weights + 2 * out, madds=weights * out_size**2,
        activations=inputs * size**2 + out * out_size**2 + kept,
    )  # fmt: skip


def _depthwise(
    name: str, width: int, size: int, kernel: int, stride: int, act: Activation, kept: int
) -> Layer:
    out_size = -(-size // stride)
    weights = kernel**2 * width
    return Layer(
        name=name, kind="depthwise", inputs=width, out=width, size=size, out_size=out_size,
        kernel=kernel, stride=stride, act=act,
        params=weights + 2 * width, madds=weights * out_size**2,
        activations=width * (size**2 + out_size**2) + kept,
    )  # fmt: skip


def _excite(
    name: str, se: Excite, width: int, block_inputs: int, size: int, kept: int = 0
) -> Layer:
    reduced = reduced_width(se, width, block_inputs)
    weights = 2 * width * reduced
    return Layer(
        name=name, kind="excite", inputs=width, out=width, size=size, out_size=size,
        reduced=reduced, gate=se, params=weights + reduced + width, madds=weights,
        activations=2 * width * size**2 + kept,
    )  # fmt: skip


def _linear(name: str, inputs: int, out: int, act: Activation) -> Layer:
    return Layer(
        name=name, kind="linear", inputs=inputs, out=out, size=1, out_size=1, act=act,
        params=(inputs + 1) * out, madds=inputs * out, activations=inputs + out,
    )  # fmt: skip
