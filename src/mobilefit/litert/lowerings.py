"""Which operators a layer is made of, by name: alternatives that compute the same.

XNNPACK, which runs LiteRT files on CPUs, has no int8 HARD_SWISH kernel, a broadcasting product that
pays for each pixel, int8 convolutions that read input channels by eights, and for output channels that
its float kernel's tiles do not divide a slower kernel. What is fastest under these conditions is a
matter of measurement: ``device.lowerings`` times the alternatives side by side,
and the defaults are what was fastest in ``results/benchmarks/latency.md``.

Two kinds, since they come at different times. :func:`lower` changes operators before ranges are
known; exact in float, it moves the places where int8 rounds. :func:`arranged` reshapes what a file is
written with; no value changes, not even in int8.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from mobilefit.errors import unknown
from mobilefit.litert.graph import CODE, Graph, Op, Tensor
from mobilefit.litert.passes import (
    ACT,
    LINEAR,
    add_op,
    concatenate_op,
    fold_scales,
    is_pointwise,
    mul_op,
    reshape_op,
    scalar,
)

Parts = Callable[[Op], list[Op]]
"""The operators instead of one."""
Arrange = Callable[[Graph, Callable[[Op], bool], dict[str, str]], None]
"""Rewrites a graph's list of operators; see :func:`arranged` for the other two."""


@dataclass(frozen=True, kw_only=True)
class Lowering:
    """One alternative for each layer that has several."""

    hard_swish: str = "parts"
    """``x * relu6(x + 3) / 6``: a key of :data:`HARD_SWISH`."""
    hard_sigmoid: str = "bias"
    """``relu6(x + 3) / 6``: a key of :data:`HARD_SIGMOID`."""
    excite: str = "rows"
    """The product of a map and a gate a channel: a key of :data:`EXCITE`."""
    stem: str = "pairs"
    """The convolution of the image: a key of :data:`STEM`."""
    remainder: str = "joined"
    """Output channels that a float tile leaves over: a key of :data:`REMAINDER`."""

    def __post_init__(self) -> None:
        for field in fields(self):
            known = _REGISTRIES[field.name]
            if getattr(self, field.name) not in known:
                raise unknown(f"lowering of {field.name}", getattr(self, field.name), known)


# ---- before ranges are known


def lower(graph: Graph, lowering: Lowering, *, drop_at_outputs: bool = False) -> None:
    """Make a float32 graph of operators as the lowering says, in place; exact in float.

    Args:
        drop_at_outputs: see :func:`~mobilefit.litert.passes.fold_scales`.
    """
    _join_remainders(graph)
    _replace(graph, _hard_sigmoids(graph), HARD_SIGMOID[lowering.hard_sigmoid])
    hard_swishes = {op for op in graph.ops if op.code == CODE.HARD_SWISH}
    if lowering.hard_swish in _AFTER_FOLDING:
        fold_scales(graph, drop_at_outputs=drop_at_outputs)
    _replace(graph, hard_swishes, HARD_SWISH[lowering.hard_swish])
    if lowering.hard_swish not in _AFTER_FOLDING:
        fold_scales(graph, drop_at_outputs=drop_at_outputs)
    _replace(graph, set(filter(_leaves_few, graph.ops)), REMAINDER[lowering.remainder])


def _replace(graph: Graph, chosen: set[Op], parts: Parts) -> None:
    graph.ops = [part for op in graph.ops for part in (parts(op) if op in chosen else [op])]


def _hard_sigmoids(graph: Graph) -> set[Op]:
    """The linear layers with RELU6 that scale the channels of a map."""
    makers = graph.producers()
    found = set()
    for op in graph.ops:
        gate = op.inputs[1] if _scales_channels(op) else None
        maker = None if gate is None else makers.get(gate)
        if maker is not None and _by_a_number(maker):  # the 1/6, which is not folded yet
            maker = makers.get(_input(maker))
        if maker is not None and maker.code in LINEAR and maker.activation == ACT.RELU6:
            found.add(maker)
    return found


def _scales_channels(op: Op) -> bool:
    """Whether this is the product of a map ``[n, h, w, c]`` and a gate ``[n, 1, 1, c]``."""
    if op.code != CODE.MUL:
        return False
    x, gate = op.inputs
    if x is None or gate is None or gate.data is not None or len(x.shape) != 4:
        return False
    return gate.shape == (x.shape[0], 1, 1, x.shape[3]) and x.shape[1:3] != (1, 1)


def _input(op: Op) -> Tensor:
    x = op.inputs[0]
    assert x is not None
    return x


def _constant(op: Op, position: int) -> np.ndarray:
    tensor = op.inputs[position]
    assert tensor is not None and tensor.data is not None
    return tensor.data


def _sixth_last(op: Op) -> list[Op]:
    """``(x * relu6(x + 3)) / 6``: the next layer's weights take the 1/6 along."""
    x, y = _input(op), op.output
    relu6 = Tensor(f"{y.name}/relu6", x.shape)
    product = Tensor(f"{y.name}/product", x.shape)
    return [
        add_op(x, scalar(f"{y.name}/three", 3.0), relu6, ACT.RELU6),
        mul_op(x, relu6, product),
        mul_op(product, scalar(f"{y.name}/sixth", 1 / 6), y),
    ]


def _sixth_in_gate(op: Op) -> list[Op]:
    """``x * (relu6(x + 3) / 6)``, as the paper writes it (section 5.2)."""
    x, y = _input(op), op.output
    relu6 = Tensor(f"{y.name}/relu6", x.shape)
    gate = Tensor(f"{y.name}/gate", x.shape)
    return [
        add_op(x, scalar(f"{y.name}/three", 3.0), relu6, ACT.RELU6),
        mul_op(relu6, scalar(f"{y.name}/sixth", 1 / 6), gate),
        mul_op(x, gate, y),
    ]


def _as_is(op: Op) -> list[Op]:
    return [op]


def _three_as_sum(op: Op) -> list[Op]:
    """The 3 that the compiler put into the bias, as an ADD of its own."""
    y, bias = op.output, op.inputs[2]
    assert bias is not None
    options = copy(op.options)
    options.fusedActivationFunction = ACT.NONE
    before = Tensor(f"{y.name}/before", y.shape)
    without = Tensor.constant(bias.name, _constant(op, 2) - np.float32(3))
    return [
        Op(op.code, [*op.inputs[:2], without], [before], options, op.version),
        add_op(before, scalar(f"{y.name}/three", 3.0), y, ACT.RELU6),
    ]


# XNNPACK makes one table of 256 bytes out of operators on a single int8 map
# (xnn_subgraph_fuse_unary_quantized_into_lut, since May 2025), so all three are equally fast; before,
# each operator was a pass over the map of its own, and "parts" had the fewest.
HARD_SWISH: dict[str, Parts] = {
    "parts": _sixth_last,
    "explicit": _sixth_in_gate,
    "whole": _as_is,  # in float, between DEQUANTIZE and QUANTIZE
}
_AFTER_FOLDING = ("explicit",)  # else its 1/6 would move on, too
HARD_SIGMOID: dict[str, Parts] = {"bias": _as_is, "sum": _three_as_sum}


_TILE, _NARROW_TILE = 32, 16  # channels of XNNPACK's float kernels with AVX-512
_DEEP = 200  # input channels from which on joining two maps is little beside making them
_CONSTANTS = (("weight", 1), ("bias", 2))


def _leaves_few(op: Op) -> bool:
    """Whether this is a 1x1 convolution with a few channels beyond whole tiles."""
    if not is_pointwise(op):
        return False
    channels, *_, depth = _constant(op, 1).shape
    return bool(channels > _TILE and 0 < channels % _TILE <= _NARROW_TILE and depth >= _DEEP)


def _in_two(op: Op) -> list[Op]:
    """The channels of whole tiles, and those beyond them.

    Where its widest tile would compute more than 1% of the channels for nothing and a narrower one
    less, XNNPACK takes the narrower kernel for all of them (``xnn_use_nr2``): with AVX-512 7x16 for
    7x32, on 64-bit Arm 4x2 for 4x8. Of the 546 channels that 6 anchors of 91 classes need, 544 are
    whole tiles of either; of MobileNetV3-Large's 112, 96 are with AVX-512 and all are on Arm.
    """
    y, channels = op.output, op.output.shape[3]
    whole = channels - channels % _TILE
    parts = []
    for name, some in (("tiles", slice(whole)), ("rest", slice(whole, channels))):
        part = Tensor(f"{y.name}/{name}", (*y.shape[:3], len(range(channels)[some])))
        constants = [
            Tensor.constant(f"{part.name}/{kind}", np.ascontiguousarray(_constant(op, place)[some]))
            for kind, place in _CONSTANTS
        ]
        parts.append(Op(op.code, [_input(op), *constants], [part], copy(op.options)))
    return [*parts, concatenate_op([part.output for part in parts], y, 3)]


def _join_remainders(graph: Graph) -> None:
    """The reverse of :func:`_in_two`: int8 files are made of float32 ones, and their tiles lose little."""
    makers, uses = graph.producers(), graph.uses()
    ops: list[Op] = []
    for op in graph.ops:
        parts = [makers[t] for t in op.inputs if t in makers and uses[t] == 1]
        whole = _in_one(op, parts) if op.code == CODE.CONCATENATION and len(op.inputs) == 2 else None
        ops = ops if whole is None else [other for other in ops if other not in parts]
        ops.append(whole or op)
    graph.ops = ops


def _in_one(joined: Op, parts: list[Op]) -> Op | None:
    """The convolution that :func:`_in_two` takes into these parts; ``None``: there is no such."""
    if len(parts) != 2 or not all(map(is_pointwise, parts)) or joined.options.axis != 3:
        return None
    (tiles, rest), y = parts, joined.output
    if _input(tiles) is not _input(rest) or tiles.activation != rest.activation:
        return None
    constants = [
        Tensor.constant(f"{y.name}/{kind}", np.concatenate([_constant(op, place) for op in parts]))
        for kind, place in _CONSTANTS
    ]
    whole = Op(CODE.CONV_2D, [_input(tiles), *constants], [y], tiles.options)
    return whole if _leaves_few(whole) and rest.output.shape[3] == y.shape[3] % _TILE else None


REMAINDER: dict[str, Parts] = {"joined": _as_is, "apart": _in_two}


# ---- when the file is written


def arranged(
    graph: Graph, lowering: Lowering, movable: Callable[[Op], bool]
) -> tuple[Graph, dict[str, str]]:
    """The graph with tensors reshaped for XNNPACK's kernels; the given one stays as it is.

    The same numbers go through the same sums, so an int8 file computes the same to the bit.

    Args:
        movable: whether an operator is int8, so that its tensors may be reshaped.

    Returns:
        The new graph, and for each new tensor the name of the one that has the same values.
    """
    made = replace(graph, ops=list(graph.ops))
    names: dict[str, str] = {}
    for rewrite in (STEM[lowering.stem], EXCITE[lowering.excite]):
        rewrite(made, movable, names)
    return made, names


def _nothing(graph: Graph, movable: Callable[[Op], bool], names: dict[str, str]) -> None:
    pass


def _pixel_pairs(graph: Graph, movable: Callable[[Op], bool], names: dict[str, str]) -> None:
    """A 3x3 convolution of stride 2 reads pairs of pixels, and so two thirds of the bytes.

    XNNPACK pads input channels to eight. Two pixels of three channels side by side are one pixel of
    six, which needs no copy of the data; the kernel is 3x2 of those, one of its four columns zero.
    """
    makers, uses = graph.producers(), graph.uses()
    ops: list[Op] = []
    for op in graph.ops:
        pad = makers.get(_input(op)) if op.code == CODE.CONV_2D else None
        first = op if pad is None or uses[_input(op)] != 1 else pad
        if _input(first) in graph.inputs and movable(op) and movable(first) and _pairs_up(op, pad):
            if pad is not None:
                ops.remove(pad)
            ops += _paired(op, pad)
            names[f"{op.output.name}/pairs"] = _input(first).name
        else:
            ops.append(op)
    graph.ops = ops


def _pairs_up(op: Op, pad: Op | None) -> bool:
    """Whether a window's three columns lie in two pairs, whichever the output pixel.

    TensorFlow's SAME puts its column of zeros after an even row: columns 0, 1 and 2. torch's padding,
    a PAD of one row and one column before, shifts the window back by one: columns 1, 2 and 3.
    """
    if op.code != CODE.CONV_2D or (pad is not None and not _is_torch_padding(pad)):
        return False
    o, x = op.options, _input(op if pad is None else pad)
    return bool(
        o.padding == (schema.Padding.SAME if pad is None else schema.Padding.VALID)
        and _constant(op, 1).shape[1:3] == (3, 3)
        and (o.strideW, o.dilationWFactor) == (2, 1)
        and x.shape[3] <= 4
        and x.shape[2] % 2 == 0
    )


def _is_torch_padding(op: Op) -> bool:
    return op.code == CODE.PAD and bool((_constant(op, 1) == [[0, 0], [1, 0], [1, 0], [0, 0]]).all())


def _paired(op: Op, pad: Op | None) -> list[Op]:
    x, weight = _input(op if pad is None else pad), op.inputs[1]
    assert weight is not None
    n, height, width, channels = x.shape
    pairs = Tensor(f"{op.output.name}/pairs", (n, height, width // 2, 2 * channels))
    ops = [reshape_op(x, pairs)]
    if pad is not None:
        padded = Tensor(pad.output.name, (n, height + 1, width // 2 + 1, 2 * channels))
        ops.append(Op(CODE.PAD, [pairs, pad.inputs[1]], [padded], pad.options, pad.version))
    zero = (0, 1) if pad is None else (1, 0)
    columns = np.pad(_constant(op, 1), ((0, 0), (0, 0), zero, (0, 0)))
    kernel = Tensor.constant(weight.name, columns.reshape(len(columns), 3, 2, 2 * channels))
    options = copy(op.options)
    options.strideW = 1
    inputs = [ops[-1].output, kernel, op.inputs[2]]
    return [*ops, Op(op.code, inputs, op.outputs, options, op.version)]


_ROW = 512  # channels of a product: more gain nothing
_NARROW = 64  # from here on, a pixel's channels are enough for a call


def _gate_rows(graph: Graph, movable: Callable[[Op], bool], names: dict[str, str]) -> None:
    """A gate of few channels multiplies several pixels at once.

    XNNPACK calls its kernel once a pixel to multiply ``[n, h, w, c]`` and ``[n, 1, 1, c]``. Repeated
    in the layer that makes it, the gate fits to as many pixels of a row, which are one of more
    channels without any copy.
    """
    makers, uses = graph.producers(), graph.uses()
    ops: list[Op] = []
    for op in graph.ops:
        times = _repeats(op) if _scales_channels(op) else 1
        gate = _gate_chain(op, makers, uses) if times > 1 else []
        if not gate or not all(movable(o) for o in (op, *gate, *_maker(op, makers))):
            ops.append(op)
            continue
        wider = _repeated(gate, times)
        ops = [wider.get(o, o) for o in ops]
        x, y = _input(op), op.output
        n, height, width, channels = x.shape
        shape = (n, height, width // times, channels * times)
        rows, product = Tensor(f"{y.name}/map", shape), Tensor(f"{y.name}/rows", shape)
        names.update({rows.name: x.name, product.name: y.name})
        last = wider[gate[0]].output
        ops += [reshape_op(x, rows), Op(CODE.MUL, [rows, last], [product], op.options), reshape_op(product, y)]
    graph.ops = ops


def _repeats(op: Op) -> int:
    """How many pixels of a row fit into :data:`_ROW` channels."""
    _, _, width, channels = _input(op).shape
    if channels >= _NARROW:
        return 1
    return max(k for k in range(1, width + 1) if width % k == 0 and k * channels <= _ROW)


def _maker(op: Op, makers: dict[Tensor, Op]) -> list[Op]:
    maker = makers.get(_input(op))
    return [] if maker is None else [maker]


def _gate_chain(op: Op, makers: dict[Tensor, Op], uses: Counter[Tensor]) -> list[Op]:
    """The operators from the gate back to the linear layer that makes it; empty for another form."""
    chain: list[Op] = []
    tensor = op.inputs[1]
    while tensor is not None and uses[tensor] == 1 and tensor in makers:
        maker = makers[tensor]
        chain.append(maker)
        if maker.code == CODE.CONV_2D:
            return chain
        if maker.code != CODE.LOGISTIC and not _by_a_number(maker):
            return []
        tensor = maker.inputs[0]
    return []


def _by_a_number(op: Op) -> bool:
    constant = op.inputs[1] if op.code in (CODE.ADD, CODE.MUL) else None
    return constant is not None and constant.data is not None and constant.data.size == 1


def _repeated(chain: list[Op], times: int) -> dict[Op, Op]:
    """The chain with every output channel ``times`` over."""
    wider: dict[Tensor, Tensor] = {}
    made: dict[Op, Op] = {}
    for op in reversed(chain):
        n, _, _, channels = op.output.shape
        output = wider[op.output] = Tensor(op.output.name, (n, 1, 1, channels * times))
        inputs = [wider.get(t, t) if t is not None else None for t in op.inputs]
        if op.code == CODE.CONV_2D:
            for position in (1, 2):
                constant, data = op.inputs[position], _constant(op, position)
                assert constant is not None
                repeats = (times, *[1] * (data.ndim - 1))
                inputs[position] = Tensor.constant(constant.name, np.tile(data, repeats))
        made[op] = Op(op.code, inputs, [output], op.options, op.version)
    return made


STEM: dict[str, Arrange] = {"pixels": _nothing, "pairs": _pixel_pairs}
EXCITE: dict[str, Arrange] = {"channels": _nothing, "rows": _gate_rows}
_REGISTRIES: dict[str, dict[str, Any]] = {
    "hard_swish": HARD_SWISH, "hard_sigmoid": HARD_SIGMOID, "excite": EXCITE, "stem": STEM,
    "remainder": REMAINDER,
}  # fmt: skip

DEFAULT = "default"
INT8: dict[str, Lowering] = {
    DEFAULT: Lowering(),
    "h-swish explicit": Lowering(hard_swish="explicit"),
    "h-swish whole": Lowering(hard_swish="whole"),
    "hard-sigmoid sum": Lowering(hard_sigmoid="sum"),
    "excite channels": Lowering(excite="channels"),
    "stem pixels": Lowering(stem="pixels"),
}
"""The default, and beside it what differs from it in one choice."""
_FLOAT = Lowering(hard_swish="whole", remainder="apart")
FLOAT: dict[str, Lowering] = {
    DEFAULT: _FLOAT,
    "h-swish parts": replace(_FLOAT, hard_swish="parts"),
    "h-swish explicit": replace(_FLOAT, hard_swish="explicit"),
    "hard-sigmoid sum": replace(_FLOAT, hard_sigmoid="sum"),
    "remainder joined": replace(_FLOAT, remainder="joined"),
}
"""The same for float32 files, which are never rearranged: ``stem`` and ``excite`` do not count."""


def named(name: str, among: dict[str, Lowering]) -> Lowering:
    """A lowering of :data:`INT8` or :data:`FLOAT` by its name.

    Raises:
        InputError: an unknown name (with the nearest one).
    """
    if name not in among:
        raise unknown("lowering", name, among)
    return among[name]
