"""The rows of a table: convolutions and blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mobilefit.arch.scaling import Excite, Scaling
from mobilefit.errors import unknown

Activation = Literal["relu", "relu6", "hard_swish", "swish", "none"]
Op = Literal["inverted", "separable", "fused", "conv"]
Skip = Literal["identity", "pool", "none"]
Padding = Literal["same", "torch"]

WIDEST = 65_536
"""Channels of a layer: fifty times those of the widest of the family."""
LARGEST_KERNEL = 255
"""Side of a kernel, and distance of its taps."""
LARGEST_SIDE = 8192
"""Of an input, pixels."""
MOST_CLASSES = 1_000_000
MOST_BLOCKS = 1000
MOST_PARAMS = 2**29
"""Of a network: a LiteRT file, which counts its bytes with 31 bits, holds no more float32 numbers."""


@dataclass(frozen=True, kw_only=True)
class BatchNorm:
    """Batch normalisation, in torch's terms (momentum = 1 - TensorFlow's decay)."""

    eps: float = 1e-3
    """TF-slim, torchvision's V3 and Keras alike."""
    momentum: float = 0.01
    """The V3 paper's "average decay of 0.99"."""

    def problems(self, where: str) -> Iterator[str]:
        """Everything that is wrong with it."""
        if not is_number(self.eps) or not self.eps > 0:
            yield f"{where}.eps {self.eps} is not above 0"
        if not is_number(self.momentum) or not 0 <= self.momentum <= 1:
            yield f"{where}.momentum {self.momentum} is not in [0, 1]"


@dataclass(frozen=True, kw_only=True)
class Conv:
    """A full convolution, batch norm and an activation: the stem, and the last layer before pooling."""

    out: int
    kernel: int = 1
    stride: int = 1
    act: Activation = "relu"
    se: Excite | None = None
    """Only for the V3 paper's Table 2 as printed, which no released network follows."""
    scaling: Scaling = "always"
    """When a width multiplier reaches this layer."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One row of the table.

    ``op`` says what it is, in order of execution:

    - ``inverted``: [1x1 expand, BN, act,] k x k depthwise, BN, act, [SE,] 1x1 project, BN
      (MobileNetV2's and V3's bottleneck; without ``expand`` it begins at the depthwise convolution).
      With ``expand`` it may also be one of MobileNetV4's (arXiv 2404.10518, Figure 4): with
      ``start_kernel`` a depthwise convolution and BN come first (ExtraDW), with ``kernel=0`` there is none
      after the expansion (ConvNeXt-like), and with neither it is a feed-forward network;
    - ``fused``: k x k full convolution to ``expand``, BN, act, [SE,] 1x1 project, BN (V3-EdgeTPU);
    - ``separable``: k x k depthwise, BN, act, [SE,] 1x1, BN, act (MobileNetV1, PP-LCNet);
    - ``conv``: k x k full convolution, BN, act[, SE].
    """

    op: Op = "inverted"
    kernel: int = 3
    """Side of the depthwise convolution (or the full one); 0: none, in an inverted bottleneck."""
    start_kernel: int = 0
    """Side of a depthwise convolution before the expansion, without an activation; 0: none."""
    stride: int = 1
    """Of the depthwise convolution (or the full one); of the starting one where there is no other."""
    dilation: int = 1
    """Of the depthwise convolutions (or the full one): the distance of their taps in pixels."""
    expand: int | None = None
    """Channels inside the block; ``None`` where there is no expansion layer."""
    out: int
    se: Excite | None = None
    """Squeeze-and-excite after the activation of the block's wide part (``conv``: of its output): see
    :func:`~.scaling.reduced_width`."""
    act: Activation = "relu"
    skip: Skip = "identity"
    """What is added to the output where the widths agree: the input itself (``identity``, at stride
    1), or the input through a 3x3 max pool of the block's stride (``pool``), padded as TensorFlow's
    SAME whatever the network's padding is. MnasNet's paper names "pooling" as a SkipOp and says no
    more; it is max pooling here because XNNPACK runs int8 MAX_POOL_2D inside of the delegate, which
    an int8 AVERAGE_POOL_2D would split."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of its convolutions that have an activation, in order of execution."""
        if self.op == "conv":
            return ("conv",)
        if self.op == "fused" or self.kernel == 0:
            return ("expand",)
        return ("depthwise",) if self.expand is None else ("expand", "depthwise")

    @property
    def start_stride(self) -> int:
        """Stride of the starting depthwise convolution."""
        return 1 if self.kernel else self.stride

    def width(self, inputs: int) -> int:
        """Channels of the block's wide part, where the depthwise convolution and SE work."""
        if self.op == "conv":
            return self.out
        return inputs if self.expand is None else self.expand

    def has_residual(self, inputs: int) -> bool:
        """Whether the input, pooled or as it is, is added to the output."""
        if inputs != self.out:
            return False
        return self.skip == "pool" or (self.skip == "identity" and self.stride == 1)


def conv_problems(where: str, conv: Conv | Block) -> Iterator[str]:
    yield from positive(f"{where}.out", conv.out)
    yield from choice(f"{where}.act", conv.act, Activation)
    if conv.se is not None:
        yield from choice(f"{where}.se", conv.se, Excite)
    if not isinstance(conv, Block) or conv.op != "inverted" or conv.kernel != 0:
        yield from odd(f"{where}.kernel", conv.kernel)
    if conv.stride not in (1, 2):
        yield f"{where}.stride {conv.stride} is neither 1 nor 2"


def block_problems(where: str, block: Block) -> Iterator[str]:
    yield from positive(f"{where}.expand", block.expand)
    yield from choice(f"{where}.op", block.op, Op)
    yield from choice(f"{where}.skip", block.skip, Skip)
    yield from positive(f"{where}.dilation", block.dilation, LARGEST_KERNEL)
    if block.start_kernel != 0:
        yield from odd(f"{where}.start_kernel", block.start_kernel)
        if block.op != "inverted":
            yield f"{where} is {block.op} and takes no 'start_kernel'"
    if block.op == "inverted" and block.expand is None and (block.start_kernel != 0 or block.kernel == 0):
        yield f"{where} needs 'expand' between its depthwise convolutions or in their place"
    if block.stride == 2 and block.kernel == block.start_kernel == 0:
        yield f"{where} has a stride and no depthwise convolution"
    if block.dilation > 1 and block.stride > 1:
        yield f"{where} has both a stride and a dilation"
    if block.op == "fused" and block.expand is None:
        yield f"{where} is fused and needs 'expand'"
    if block.op in ("separable", "conv") and block.expand is not None:
        yield f"{where} is {block.op} and takes no 'expand'"


def positive(where: str, value: int | None, most: int = WIDEST) -> Iterator[str]:
    if value is not None and (not isinstance(value, int) or value < 1):
        yield f"{where} {value!r} is not a positive whole number"
    elif value is not None and value > most:
        yield f"{where} {value} is more than {most:,}"


def odd(where: str, value: object) -> Iterator[str]:
    if not isinstance(value, int) or value % 2 == 0 or value < 1:
        yield f"{where} {value} is not an odd size"
    elif value > LARGEST_KERNEL:
        yield f"{where} {value} is more than {LARGEST_KERNEL}"


def choice(where: str, value: str, kind: Any) -> Iterator[str]:
    if value not in get_args(kind):
        yield f"{where}: {unknown('value', str(value), get_args(kind))}"


def is_number(value: object) -> bool:
    return isinstance(value, (int, float))
