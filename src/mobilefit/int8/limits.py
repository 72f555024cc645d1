"""What the int8 arithmetic of LiteRT can hold: graphs and ranges are fitted to it, and checked.

Outside of these limits nothing warns: a bias saturates and the network is silently wrong, an
operator falls out of the delegate, or the interpreter aborts with the whole process. Networks come
near them through channels and layers that are (almost) dead.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mobilefit.errors import InputError
from mobilefit.int8.policy import Policy
from mobilefit.litert.graph import CODE, Graph, Op, Tensor
from mobilefit.litert.passes import LINEAR

Range = dict[str, np.ndarray]  # {"min": [1], "max": [1]}: the quantizer's own form

# XNNPACK's conditions on scales: (input * weight) / output of a linear layer, and of a product;
# each input / output of a sum (xnn_define_* in XNNPACK's subgraph sources)
_PRODUCT_BELOW = 2.0**8
_SUM_BETWEEN = (2.0**-10, 2.0**8)
_BIAS_MOST = 2.0**30  # of int32, which also has to hold the sum of products
_DEAD = 1e-9  # a range narrower than this means that the tensor is zero for every image


def span(low: float, high: float) -> Range:
    return {"min": np.asarray([low], np.float32), "max": np.asarray([high], np.float32)}


# Operators whose output is stored on the scale of their input (LiteRT's constraint)
_SAME_SCALE = frozenset(
    {CODE.RESHAPE, CODE.MAX_POOL_2D, CODE.AVERAGE_POOL_2D, CODE.PAD, CODE.RESIZE_BILINEAR, CODE.TRANSPOSE}
)


def scale_homes(graph: Graph, policy: Policy) -> dict[Tensor, Tensor]:
    """For each activation that is stored on another's scale, that other one.

    A pool or a resized map has the scale of its input; what an int8 concatenation joins has the scale of
    the result, so that bytes are copied and nothing is rounded again.
    """
    homes: dict[Tensor, Tensor] = {}
    makers, joined = graph.producers(), set()
    for op in graph.ops:
        if op.code in _SAME_SCALE:
            homes[op.output] = homes.get(_first(op), _first(op))
        elif op.code == CODE.CONCATENATION and policy.of_op(op) != "float":
            joined.add(op.output)
            for part in op.inputs:
                assert part is not None
                home = homes.get(part, part)
                taken = home in joined and home is not part  # by another concatenation
                if home in makers and not taken and makers[home].code != CODE.LOGISTIC:
                    homes |= {t: op.output for t in [home, *(t for t, h in homes.items() if h is home)]}
    return homes


def _first(op: Op) -> Tensor:
    assert op.inputs[0] is not None
    return op.inputs[0]


class _Shared:
    """Ranges by name, where tensors on one scale have one range: that of their home."""

    def __init__(self, ranges: dict[str, Range], homes: dict[Tensor, Tensor]) -> None:
        self.ranges = ranges
        self.homes = {tensor.name: home.name for tensor, home in homes.items()}

    def __getitem__(self, name: str) -> Range:
        return self.ranges[self.homes.get(name, name)]

    def __setitem__(self, name: str, found: Range) -> None:
        self.ranges[self.homes.get(name, name)] = found


def fit(graph: Graph, ranges: dict[str, Range], policy: Policy) -> None:
    """Bring weights and ranges within the limits, in place, by less than int8 can resolve.

    A tensor that is always zero gets the range -1..1 (zero stays exact). A channel whose weights
    are so small that its bias would overflow gets one weight raised, by at most 4e-5 of the bias.
    An output so narrow that XNNPACK could not rescale to it gets a wider range, and so do an operand
    of a sum a thousand times narrower than the sum, and a sum far narrower than its operands. Tensors
    on one scale (:func:`scale_homes`) get one range.
    """
    shared = _Shared(ranges, scale_homes(graph, policy))
    for name, found in ranges.items():
        if _width(found) < _DEAD:
            ranges[name] = span(-1.0, 1.0)
    for op in graph.ops:
        if op.code in LINEAR:
            _raise_weak_channels(op, shared)
            _widen_output(op, shared)
        elif op.code == CODE.ADD:
            _balance_sum(op, shared)
        elif op.code == CODE.MUL:
            _widen_product(op, shared)
    for name in list(ranges):
        ranges[name] = shared[name]


def _width(found: Range) -> float:
    """Of the range with zero in it, as the quantizer takes it."""
    return max(float(np.max(found["max"])), 0.0) - min(float(np.min(found["min"])), 0.0)


def _channel_peaks(op: Op) -> tuple[np.ndarray, int]:
    """The largest weight of each output channel, and the axis of these channels."""
    weight = op.inputs[1]
    assert weight is not None and weight.data is not None
    axis = weight.data.ndim - 1 if op.code == CODE.DEPTHWISE_CONV_2D else 0
    others = tuple(i for i in range(weight.data.ndim) if i != axis)
    return np.abs(weight.data).max(axis=others), axis


def _input_scale(op: Op, ranges: _Shared) -> float:
    return _width(ranges[_first(op).name]) / 255


def _raise_weak_channels(op: Op, ranges: _Shared) -> None:
    """A bias is stored in steps of (input scale x weight scale), as an int32."""
    bias = op.inputs[2] if len(op.inputs) > 2 else None
    if bias is None or bias.data is None:
        return
    peaks, axis = _channel_peaks(op)
    least = np.abs(bias.data) / (_BIAS_MOST * _input_scale(op, ranges)) * 127
    weak = np.flatnonzero(peaks < least)
    if not len(weak):
        return
    weight = op.inputs[1]
    assert weight is not None and weight.data is not None
    data = weight.data.copy()
    first: list[Any] = [0] * data.ndim  # each weak channel's first weight
    first[axis] = weak
    data[tuple(first)] = least[weak]
    op.inputs[1] = Tensor.constant(weight.name, data)


def _widen_output(op: Op, ranges: _Shared) -> None:
    step = _input_scale(op, ranges) * float(_channel_peaks(op)[0].max()) / 127
    _widen(op.output.name, 255 * step / (_PRODUCT_BELOW / 2), ranges)


def _balance_sum(op: Op, ranges: _Shared) -> None:
    """An operand far narrower than the sum hardly moves it; a sum far narrower is a cancellation."""
    low, high = _SUM_BETWEEN
    operands = [t.name for t in op.inputs if t is not None and t.data is None]
    _widen(op.output.name, max(_width(ranges[name]) for name in operands) / (high / 2), ranges)
    for name in operands:
        _widen(name, _width(ranges[op.output.name]) * low * 2, ranges)


def _widen_product(op: Op, ranges: _Shared) -> None:
    a, b = (_operand_width(t, ranges) for t in op.inputs)
    _widen(op.output.name, a * b / 255 / (_PRODUCT_BELOW / 2), ranges)


def _operand_width(tensor: Tensor | None, ranges: _Shared) -> float:
    assert tensor is not None
    if tensor.data is not None:
        return 2 * float(np.abs(tensor.data).max())
    return _width(ranges[tensor.name])


def _widen(name: str, least: float, ranges: _Shared) -> None:
    found = ranges[name]
    missing = least - _width(found)
    if missing > 0:
        low, high = float(np.min(found["min"])), float(np.max(found["max"]))
        ranges[name] = span(min(low, 0.0) - missing / 2, max(high, 0.0) + missing / 2)


# ---- the finished file


def check(graph: Graph) -> None:
    """Refuse an int8 graph that LiteRT would abort on or run outside of the delegate.

    Raises:
        InputError: naming the tensor.
    """
    for tensor in graph.tensors():
        q = tensor.quantization
        if q is not None and not (np.isfinite(q.scale).all() and (q.scale > 0).all()):
            raise _beyond(tensor, "is zero or not finite")
    for op in graph.ops:
        if len(op.inputs) < 2:
            continue
        a, b, out = _scale(op.inputs[0]), _scale(op.inputs[1]), _scale(op.output)
        if a is None or b is None or out is None:
            continue
        if op.code in LINEAR or op.code == CODE.MUL:
            if a * b / out >= _PRODUCT_BELOW:
                raise _beyond(op.output, "is too small for those of its inputs")
        elif op.code == CODE.ADD:
            low, high = _SUM_BETWEEN
            if not all(low <= scale / out < high for scale in (a, b)):
                raise _beyond(op.output, "is too far from those of its inputs")


def _scale(tensor: Tensor | None) -> float | None:
    q = None if tensor is None else tensor.quantization
    return None if q is None else float(q.scale.max())


def _beyond(tensor: Tensor, what: str) -> InputError:
    return InputError(
        f"the int8 scale of '{tensor.name}' {what}",
        "values there are almost all zero or far apart; check the weights and the images",
    )
