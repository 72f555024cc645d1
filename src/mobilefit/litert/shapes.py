"""Do the operators of a file fit their tensors? Checked once, when a file is opened, before anything is computed.

:mod:`~.verify` looks at what every .tflite file must be; this at the operators that our own files are made of: how many
tensors each has, their types, and that its output has the shape that it makes of its inputs. An operator that is not
among them is left to the runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

from mobilefit.errors import InputError
from mobilefit.litert.graph import CODE, Graph, Op, Tensor
from mobilefit.litert.verify import DAMAGED

Shape = tuple[int, ...]
_ERRORS = (TypeError, ValueError, IndexError, AttributeError, KeyError, OverflowError, ZeroDivisionError)


def check_shapes(graph: Graph) -> None:
    """Check that every operator's tensors fit together.

    Raises:
        InputError: some do not; names the operator, its place and its shapes.
    """
    for index, op in enumerate(graph.ops):
        try:
            fits = op.code not in _RULES or (_typed(op) and tuple(_RULES[op.code](op)) == op.output.shape)
        except _ERRORS:
            fits = False
        if not fits:
            inputs = ", ".join("none" if t is None else str(list(t.shape)) for t in op.inputs)
            outputs = ", ".join(str(list(t.shape)) for t in op.outputs)
            raise InputError(
                f"operator {index} of the LiteRT model, {op.name}, does not fit its tensors: {inputs} to {outputs}",
                DAMAGED[1],
            )


def _typed(op: Op) -> bool:
    """Whether the options are the operator's own, and what it computes with is of one type."""
    options = _OPTIONS.get(op.code)
    if options is not None and not isinstance(op.options, options):
        return False
    if op.code in _CONVERTS:
        return True
    together = op.inputs if op.code in _PAIRS else op.inputs[:1]
    return all(tensor is not None and tensor.dtype == op.output.dtype for tensor in together)


def _in(op: Op, position: int, rank: int | None = None) -> Tensor:
    tensor = op.inputs[position]
    if tensor is None or (rank is not None and len(tensor.shape) != rank):
        raise ValueError(f"input {position} of {op.name}")
    return tensor


def _numbers(op: Op, position: int) -> list[Any]:
    """A constant that tells an operator what to do."""
    tensor = _in(op, position)
    if tensor.data is None or tensor.dtype not in (np.int32, np.int64):
        raise ValueError(f"input {position} of {op.name} is no constant")
    values: list[Any] = tensor.data.tolist()
    return values


def _window(op: Op, x: Shape, kernel: Shape, dilation: Shape = (1, 1)) -> Shape:
    """Height and width of what slides over a map."""
    o, sides = op.options, []
    for side, k, stride, step in zip(x[1:3], kernel, (o.strideH, o.strideW), dilation, strict=True):
        if min(k, stride, step) < 1:
            raise ValueError("a window without a size")
        reach = 1 if o.padding == schema.Padding.SAME else (k - 1) * step + 1
        sides.append((side - reach) // stride + 1)
    if min(sides) < 1:
        raise ValueError("a window that is larger than the map")
    return tuple(sides)


def _require(good: bool) -> None:
    if not good:
        raise ValueError


def _bias(op: Op, channels: int) -> None:
    if len(op.inputs) > 2 and op.inputs[2] is not None:
        _require(op.inputs[2].shape == (channels,))


def _conv(op: Op) -> Shape:
    x, w = _in(op, 0, 4).shape, _in(op, 1, 4).shape
    _require(x[3] == w[3])
    _bias(op, w[0])
    return (x[0], *_window(op, x, w[1:3], _dilation(op)), w[0])


def _depthwise(op: Op) -> Shape:
    x, w = _in(op, 0, 4).shape, _in(op, 1, 4).shape
    _require(w[0] == 1 and w[3] == x[3])
    _bias(op, w[3])
    return (x[0], *_window(op, x, w[1:3], _dilation(op)), w[3])


def _dilation(op: Op) -> Shape:
    return op.options.dilationHFactor, op.options.dilationWFactor


def _fully_connected(op: Op) -> Shape:
    x, (out, inputs) = _in(op, 0).shape, _in(op, 1, 2).shape
    _bias(op, out)
    if op.options.keepNumDims:
        _require(x[-1] == inputs)
        return (*x[:-1], out)
    _require(math.prod(x) % inputs == 0)
    return (math.prod(x) // inputs, out)


def _broadcast(op: Op) -> Shape:
    _require(len(op.inputs) == 2)
    return np.broadcast_shapes(_in(op, 0).shape, _in(op, 1).shape)


def _mean(op: Op) -> Shape:
    x = _in(op, 0).shape
    requested = np.ravel(_numbers(op, 1)).tolist()
    _require(all(-len(x) <= axis < len(x) for axis in requested))
    axes = {axis % len(x) for axis in requested}
    if op.options.keepDims:
        return tuple(1 if axis in axes else side for axis, side in enumerate(x))
    return tuple(side for axis, side in enumerate(x) if axis not in axes)


def _pool(op: Op) -> Shape:
    x = _in(op, 0, 4).shape
    return (x[0], *_window(op, x, (op.options.filterHeight, op.options.filterWidth)), x[3])


def _pad(op: Op) -> Shape:
    x, amounts = _in(op, 0).shape, _numbers(op, 1)
    _require(all(min(pair) >= 0 for pair in amounts))
    return tuple(side + before + after for side, (before, after) in zip(x, amounts, strict=True))


def _reshape(op: Op) -> Shape:
    shape = op.output.shape
    _require(math.prod(_in(op, 0).shape) == math.prod(shape))
    if len(op.inputs) > 1 and op.inputs[1] is not None:
        target = _numbers(op, 1)
        _require(len(target) == len(shape) and all(w in (-1, side) for w, side in zip(target, shape, strict=True)))
    return shape


def _concatenation(op: Op) -> Shape:
    shapes = [_in(op, position).shape for position in range(len(op.inputs))]
    axis = op.options.axis % len(shapes[0])
    bare = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    _require(len(bare) == 1 and len({len(shape) for shape in shapes}) == 1)
    return (*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])


def _same(op: Op) -> Shape:
    _require(len(op.inputs) == 1)
    return _in(op, 0).shape


def _resize(op: Op) -> Shape:
    x, (height, width) = _in(op, 0, 4).shape, _numbers(op, 1)
    return (x[0], height, width, x[3])


def _arg_max(op: Op) -> Shape:
    x, (axis,) = _in(op, 0).shape, np.ravel(_numbers(op, 1)).tolist()
    axis %= len(x)
    return (*x[:axis], *x[axis + 1 :])


def _slice(op: Op) -> Shape:
    x, begin, size = _in(op, 0).shape, _numbers(op, 1), _numbers(op, 2)
    _require(all(b >= 0 and s >= 1 and b + s <= side for side, b, s in zip(x, begin, size, strict=True)))
    return tuple(size)


def _transpose(op: Op) -> Shape:
    x, order = _in(op, 0).shape, _numbers(op, 1)
    _require(sorted(order) == [*range(len(x))])
    return tuple(x[axis] for axis in order)


def _custom(op: Op) -> Shape:
    """Non-maximum suppression; others are not known here."""
    if op.custom != "TFLite_Detection_PostProcess":
        return op.output.shape
    (batch, anchors, four), (_, rows, columns) = _in(op, 0, 3).shape, _in(op, 1, 3).shape
    _require((batch, four) == (1, 4) and rows == anchors and _in(op, 2).shape == (anchors, 4))
    options = flexbuffers.Loads(op.custom_options)
    most, classes = options["max_detections"], options["num_classes"]
    _require(type(most) is int and type(classes) is int and 1 <= classes <= columns <= classes + 1 and most >= 1)
    _require([t.shape for t in op.outputs] == [(1, most, 4), (1, most), (1, most), (1,)])
    return (1, most, 4)


_RULES: dict[int, Callable[[Op], Shape]] = {
    CODE.CONV_2D: _conv, CODE.DEPTHWISE_CONV_2D: _depthwise, CODE.FULLY_CONNECTED: _fully_connected,
    CODE.ADD: _broadcast, CODE.SUB: _broadcast, CODE.MUL: _broadcast, CODE.MINIMUM: _broadcast,
    CODE.MAXIMUM: _broadcast, CODE.MEAN: _mean, CODE.AVERAGE_POOL_2D: _pool, CODE.MAX_POOL_2D: _pool,
    CODE.PAD: _pad, CODE.RESHAPE: _reshape, CODE.CONCATENATION: _concatenation, CODE.RESIZE_BILINEAR: _resize,
    CODE.ARG_MAX: _arg_max, CODE.SLICE: _slice, CODE.TRANSPOSE: _transpose, CODE.CUSTOM: _custom,
    **dict.fromkeys((CODE.LOGISTIC, CODE.RELU, CODE.RELU6, CODE.HARD_SWISH, CODE.EXP, CODE.SOFTMAX, CODE.QUANTIZE,
                     CODE.DEQUANTIZE, CODE.CAST), _same),
}  # fmt: skip
"""The shape of an operator's first output."""
_OPTIONS: dict[int, type[Any]] = {
    CODE.CONV_2D: schema.Conv2DOptionsT, CODE.DEPTHWISE_CONV_2D: schema.DepthwiseConv2DOptionsT,
    CODE.FULLY_CONNECTED: schema.FullyConnectedOptionsT, CODE.MEAN: schema.ReducerOptionsT,
    CODE.AVERAGE_POOL_2D: schema.Pool2DOptionsT, CODE.MAX_POOL_2D: schema.Pool2DOptionsT,
    CODE.CONCATENATION: schema.ConcatenationOptionsT, CODE.RESIZE_BILINEAR: schema.ResizeBilinearOptionsT,
}  # fmt: skip
"""Of the operators that cannot do without."""
_CONVERTS = {CODE.QUANTIZE, CODE.DEQUANTIZE, CODE.CAST, CODE.ARG_MAX, CODE.CUSTOM}
_PAIRS = {CODE.ADD, CODE.SUB, CODE.MUL, CODE.MINIMUM, CODE.MAXIMUM, CODE.CONCATENATION}
