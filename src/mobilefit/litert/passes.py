"""Exact rewrites of a float32 graph: constant factors moved into weights, projections merged.

h-swish is ``x * relu6(x + 3) / 6`` (see ``lowerings``), and so is its gate's little sister; their 1/6
costs nothing once it is moved into the weights of the next linear layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from mobilefit.litert.graph import CODE, Graph, Op, Tensor

ACT = schema.ActivationFunctionType
LINEAR = frozenset({CODE.CONV_2D, CODE.DEPTHWISE_CONV_2D, CODE.FULLY_CONNECTED})
# f(s * x) = s * f(x) for every s > 0
_HOMOGENEOUS = frozenset(
    {
        CODE.MEAN,
        CODE.AVERAGE_POOL_2D,
        CODE.MAX_POOL_2D,
        CODE.PAD,
        CODE.RESHAPE,
        CODE.TRANSPOSE,
        CODE.RELU,
        CODE.RESIZE_BILINEAR,
    }
)
_HOMOGENEOUS_ACTIVATIONS = (ACT.NONE, ACT.RELU)


def scalar(name: str, value: float) -> Tensor:
    return Tensor.constant(name, np.asarray([value], np.float32))


def add_op(a: Tensor, b: Tensor, out: Tensor, activation: int = ACT.NONE) -> Op:
    return Op(CODE.ADD, [a, b], [out], schema.AddOptionsT(fusedActivationFunction=activation))


def mul_op(a: Tensor, b: Tensor, out: Tensor) -> Op:
    return Op(CODE.MUL, [a, b], [out], schema.MulOptionsT())


def reshape_op(x: Tensor, out: Tensor) -> Op:
    shape = Tensor.constant(f"{out.name}/shape", np.asarray(out.shape, np.int32))
    return Op(CODE.RESHAPE, [x, shape], [out], schema.ReshapeOptionsT(newShape=list(out.shape)))


def concatenate_op(parts: Sequence[Tensor], out: Tensor, axis: int) -> Op:
    return Op(CODE.CONCATENATION, [*parts], [out], schema.ConcatenationOptionsT(axis=axis))


def merge_projections(graph: Graph) -> None:
    """Make one of two 1x1 convolutions with nothing between them, in place, where that is less work.

    ``W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2)``. V3-Small's first row ends in a projection of 16
    channels to 16, which the next row expands to 72: 16 * 72 products are less than 16 * 16 + 16 * 72.
    """
    makers, uses = graph.producers(), graph.uses()
    ops: list[Op] = []
    for op in graph.ops:
        x = op.inputs[0]
        first = None if x is None or uses[x] != 1 else makers.get(x)
        if first is not None and _are_one(first, op):
            ops.remove(first)
            op = makers[op.output] = _merged(first, op)
        ops.append(op)
    graph.ops = ops


def _are_one(first: Op, second: Op) -> bool:
    if first.activation != ACT.NONE or not (is_pointwise(first) and is_pointwise(second)):
        return False
    (inner, _), (outer, _) = _matrix(first), _matrix(second)
    return bool(inner.shape[1] * outer.shape[0] <= inner.size + outer.size)


def _merged(first: Op, second: Op) -> Op:
    (inner, b1), (outer, b2) = _matrix(first), _matrix(second)
    constants = [t for t in second.inputs[1:] if t is not None]
    data = ((outer @ inner)[:, None, None, :], outer @ b1 + b2)
    renewed = [
        Tensor.constant(t.name, d.astype(np.float32)) for t, d in zip(constants, data, strict=True)
    ]
    return Op(second.code, [first.inputs[0], *renewed], second.outputs, second.options)


def is_pointwise(op: Op) -> bool:
    """Whether this is a 1x1 convolution of stride 1."""
    if op.code != CODE.CONV_2D:
        return False
    weight = op.inputs[1]
    assert weight is not None
    return bool(weight.shape[1:3] == (1, 1) and op.options.strideH == op.options.strideW == 1)


def _matrix(op: Op) -> tuple[np.ndarray, np.ndarray]:
    """Weights ``[out, in]`` and bias of a 1x1 convolution."""
    _, weight, bias = op.inputs
    assert weight is not None and weight.data is not None
    assert bias is not None and bias.data is not None
    return weight.data[:, 0, 0].astype(np.float64), bias.data.astype(np.float64)


def fold_scales(graph: Graph, *, drop_at_outputs: bool = False) -> None:
    """Move every multiplication by a positive scalar constant into weights downstream, in place.

    A factor rides along through operators that commute with it (pooling, reshapes, products, sums
    of equal factors) until a convolution or fully connected layer takes it into its weights. At a
    residual sum whose branches carry different factors, the branch that ends in a linear layer is
    scaled to match the other. Where nothing downstream can take the factor (an output, another
    activation), an explicit MUL remains.

    Args:
        drop_at_outputs: leave factors out that reach an output. This changes the outputs by a
            constant factor; it is for timing a fragment whose next layer would take the factor.
    """
    _ScaleFolder(graph, drop_at_outputs).run()


class _ScaleFolder:
    """One walk in execution order; ``pending[t] = (source, s)`` says that t is ``s * source``."""

    def __init__(self, graph: Graph, drop_at_outputs: bool) -> None:
        self.graph = graph
        self.drop_at_outputs = drop_at_outputs
        self.pending: dict[Tensor, tuple[Tensor, float]] = {}
        self.uses: Counter[Tensor] = graph.uses()
        self.producers = graph.producers()
        self.ops: list[Op] = []

    def run(self) -> None:
        for op in self.graph.ops:
            factor = _scalar_factor(op)
            if factor is not None:
                source, scale = self.resolve(op.inputs[0])
                self.pending[op.output] = (source, scale * factor)
            else:
                self.visit(op)
        self.graph.ops = self.ops
        self.graph.outputs = [self.output(t) for t in self.graph.outputs]

    def resolve(self, tensor: Tensor | None) -> tuple[Tensor, float]:
        assert tensor is not None
        return self.pending.get(tensor, (tensor, 1.0))

    def visit(self, op: Op) -> None:
        scaled = [t for t in op.inputs if t is not None and self.resolve(t)[1] != 1.0]
        rule = self.rule(op) if scaled else None
        if rule is not None:
            rule(op)
        else:
            op.inputs = [None if t is None else self.explicit(t) for t in op.inputs]
        self.ops.append(op)

    def rule(self, op: Op) -> Callable[[Op], None] | None:
        if op.code in LINEAR:
            return self.absorb
        if op.activation not in _HOMOGENEOUS_ACTIVATIONS:
            return None
        if op.code in _HOMOGENEOUS:
            return self.pass_on
        return {CODE.MUL: self.multiply, CODE.ADD: self.add}.get(op.code)

    def absorb(self, op: Op) -> None:
        """weights @ (s * x) = (s * weights) @ x"""
        op.inputs[0], scale = self.resolve(op.inputs[0])
        op.inputs[1] = _scaled(op.inputs[1], scale)

    def pass_on(self, op: Op) -> None:
        op.inputs[0], scale = self.resolve(op.inputs[0])
        self.pending[op.output] = (op.output, scale)

    def multiply(self, op: Op) -> None:
        (a, sa), (b, sb) = (self.resolve(t) for t in op.inputs)
        op.inputs = [a, b]
        self.pending[op.output] = (op.output, sa * sb)

    def add(self, op: Op) -> None:
        (a, sa), (b, sb) = (self.resolve(t) for t in op.inputs)
        if sa != sb:
            if self.rescale(b, sb / sa):
                sb = sa
            elif self.rescale(a, sa / sb):
                sa = sb
        if sa == sb:
            op.inputs = [a, b]
            self.pending[op.output] = (op.output, sa)
        else:
            op.inputs = [None if t is None else self.explicit(t) for t in op.inputs]

    def rescale(self, tensor: Tensor, scale: float) -> bool:
        """Scale the linear layer that makes ``tensor``, if this sum alone reads it."""
        producer = self.producers.get(tensor)
        if producer is None or producer.code not in LINEAR or self.uses[tensor] != 1:
            return False
        if producer.activation not in _HOMOGENEOUS_ACTIVATIONS:
            return False
        producer.inputs[1:] = [_scaled(t, scale) for t in producer.inputs[1:]]
        return True

    def explicit(self, tensor: Tensor) -> Tensor:
        """``tensor`` with its pending factor applied by a MUL (made once)."""
        source, scale = self.resolve(tensor)
        if scale == 1.0:
            return source
        name = tensor.name if source is not tensor else f"{tensor.name}/scaled"
        result = Tensor(name, tensor.shape)
        self.ops.append(mul_op(source, scalar(f"{tensor.name}/factor", scale), result))
        self.pending[tensor] = (result, 1.0)
        return result

    def output(self, tensor: Tensor) -> Tensor:
        return self.resolve(tensor)[0] if self.drop_at_outputs else self.explicit(tensor)


def _scalar_factor(op: Op) -> float | None:
    """The constant c > 0 of ``MUL(x, c)`` without a fused activation, else None."""
    if op.code != CODE.MUL or op.activation != ACT.NONE:
        return None
    constant = op.inputs[1]
    if constant is None or constant.data is None or constant.data.size != 1:
        return None
    factor = float(constant.data.reshape(()))
    return factor if factor > 0 else None


def _scaled(tensor: Tensor | None, scale: float) -> Tensor | None:
    if tensor is None or tensor.data is None:
        return tensor
    data = (tensor.data.astype(np.float64) * scale).astype(np.float32)
    return Tensor.constant(tensor.name, data)
