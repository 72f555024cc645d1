"""The lowered graph run by torch with the arithmetic of the device: fake quantization.

There is one description of what the device computes, the lowered LiteRT graph, and this module
executes it: in float to see which values occur, in int8 to see what becomes of them, and in training
to let the weights adapt to it (quantization-aware training: Jacob et al., 2018, arXiv:1712.05877).
Rounding happens where LiteRT and XNNPACK round: weights per output channel, biases to the step of
their sums of products, every activation as it is stored. In training, sums of products are float32,
which moves a value by one step where it lies on the edge of two; with gradients off the integer
arithmetic is followed to the bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ai_edge_litert import schema_py_generated as schema
from torch import Tensor, nn

from mobilefit.errors import InputError
from mobilefit.int8.limits import Range, scale_homes, span
from mobilefit.int8.policy import Arithmetic, Policy, layer_of
from mobilefit.litert import graph as litert
from mobilefit.litert.graph import CODE, Graph, Op
from mobilefit.litert.outputs import Tail
from mobilefit.litert.passes import ACT, LINEAR

Visit = Callable[[Op | None, Tensor], Tensor | None]
"""Sees the value that an operator makes (None: the input), before it is rounded, and may change it."""

Outputs = Tensor | tuple[Tensor, ...]
"""Of a graph: one tensor where it has one output."""

_LOGISTIC = (0.0, 255 / 256)  # the scale of its output is 1/256, whatever comes in


def channels_last(outputs: Outputs) -> list[np.ndarray]:
    """A simulation's outputs as LiteRT gives them."""
    several = outputs if isinstance(outputs, tuple) else (outputs,)
    return [(x.permute(0, 2, 3, 1) if x.dim() == 4 else x).cpu().numpy() for x in several]


class Simulation(nn.Module):
    """A lowered float32 graph as a module: ``[N, C, H, W]`` to the graph's outputs.

    These have torch's layout, as the module's own: logits ``[N, k]``, rows ``[N, rows, k]``, maps
    ``[N, k, H, W]``; a tuple where there are several.

    Attributes:
        arithmetic: ``"int8"`` or ``"float"``, of the next calls.
        names: of the activations, one to a row of ``ranges``.
        delay: training steps before the rounding begins.
        freeze: training step from which the ranges stay as they are; None: they never move.
        momentum: how far a training step moves the ranges towards the extremes of its batch.
        tail: what the file has behind the graph's outputs, in float32; it is no part of the simulation.
    """

    ranges: Tensor
    steps: Tensor

    def __init__(
        self, graph: Graph, ranges: Mapping[str, Range] | None = None, policy: Policy | None = None
    ) -> None:
        super().__init__()
        self.graph = graph
        self.arithmetic: Arithmetic = "float" if ranges is None else "int8"
        self.delay = 0
        self.freeze: int | None = None
        self.momentum = 0.01
        self.tail: Tail | None = None
        self.policy = policy or Policy()
        self._of_op = {op: self.policy.of_op(op) for op in graph.ops}
        self._makers = graph.producers()
        activations = self._activations = [graph.inputs[0], *(op.output for op in graph.ops)]
        self.names = [tensor.name for tensor in activations]
        rows = {tensor: i for i, tensor in enumerate(activations)}
        homes = scale_homes(graph, self.policy)
        self._slots = {tensor: rows[homes.get(tensor, tensor)] for tensor in activations}
        self._last_use = {t: i for i, op in enumerate(graph.ops) for t in op.inputs if t is not None}
        self._last_use |= dict.fromkeys(graph.outputs, len(graph.ops))
        self._constants: dict[litert.Tensor, int] = {}
        self.constants = nn.ParameterList(self._float_constants())
        self.register_buffer("ranges", torch.zeros(len(activations), 2))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        if ranges is not None:
            self.set_ranges(ranges)

    def _float_constants(self) -> Iterator[nn.Parameter]:
        for op in self.graph.ops:
            for position, tensor in enumerate(op.inputs):
                if tensor is None or tensor.data is None or tensor.data.dtype != np.float32:
                    continue
                self._constants[tensor] = len(self._constants)
                value = torch.from_numpy(tensor.data.copy())
                if op.code in LINEAR and position == 1:
                    value = _to_torch(op, value)
                # The 3 of h-swish and the like are no weights.
                yield nn.Parameter(value, requires_grad=op.code in LINEAR)

    def set_ranges(self, ranges: Mapping[str, Range]) -> None:
        """Take the ranges of the activations, by name, from calibration."""
        for row, name in enumerate(self.names):
            if name in ranges:
                low, high = (float(f(ranges[name][k])) for f, k in ((np.min, "min"), (np.max, "max")))
                self.ranges[row] = torch.tensor([low, high])
        for op in self.graph.ops:
            if op.code == CODE.LOGISTIC:
                self.ranges[self._slots[op.output]] = torch.tensor(_LOGISTIC)

    def range_table(self) -> dict[str, Range]:
        """The ranges by name, as the quantizer takes them."""
        table = self.ranges.tolist()
        slots = [self._slots[t] for t in (self.graph.inputs[0], *(op.output for op in self.graph.ops))]
        return {name: span(*table[slot]) for name, slot in zip(self.names, slots, strict=True)}

    def trained_graph(self) -> Graph:
        """A copy of the graph with the weights that the parameters have now; free to be changed."""
        return replace(self.graph, ops=[self._trained(op) for op in self.graph.ops])

    def _trained(self, op: Op) -> Op:
        inputs = list(op.inputs)
        for position, tensor in enumerate(inputs if op.code in LINEAR else ()):
            if tensor is not None and tensor in self._constants:
                value = self.constants[self._constants[tensor]].detach().to("cpu")
                value = _to_litert(op, value) if position == 1 else value
                inputs[position] = litert.Tensor.constant(tensor.name, value.contiguous().numpy())
        return replace(op, inputs=inputs)

    # ---- running

    def forward(self, x: Tensor) -> Outputs:
        """The outputs; in training mode a step's ranges are followed and its number decides on rounding."""
        if not self.training:
            return self.run(x, self.arithmetic)
        step = int(self.steps)
        self.steps += 1
        arithmetic: Arithmetic = "int8" if step >= self.delay else "float"
        if self.freeze is None or step >= self.freeze:
            return self.run(x, arithmetic)
        extremes: dict[int, Tensor] = {}

        def follow(op: Op | None, value: Tensor) -> None:
            tensor = self.graph.inputs[0] if op is None else op.output
            slot = self._slots[tensor]  # the range is that of the tensor whose scale others share
            if self._activations[slot] is tensor and (op is None or op.code != CODE.LOGISTIC):
                extremes[slot] = torch.stack(torch.aminmax(value.detach()))

        out = self.run(x, arithmetic, follow)
        rows = torch.tensor([*extremes], device=self.ranges.device)
        self.ranges[rows] = self.ranges[rows].lerp(torch.stack([*extremes.values()]), self.momentum)
        return out

    def run(
        self, x: Tensor, arithmetic: Arithmetic, visit: Visit | None = None,
        *, before_activation: Visit | None = None,
    ) -> Outputs:  # fmt: skip
        """Run in ``"int8"`` (as the policy has it) or ``"float"`` altogether.

        Args:
            x: ``[N, C, H, W]``, or ``[N, features]`` for a graph that takes those.
            visit, before_activation: see :data:`Visit`; the second comes before a fused activation.
        """
        exact = arithmetic != "float" and not torch.is_grad_enabled()
        return (_IntegerPass if exact else _Pass)(self, arithmetic, visit, before_activation)(x)

    @property
    def output_steps(self) -> list[float]:
        """The int8 scale of each output; of one that joins several in float, their largest."""
        return [max(self._steps_of(tensor)) for tensor in self.graph.outputs]

    def _steps_of(self, tensor: litert.Tensor) -> Iterator[float]:
        maker = self._makers.get(tensor)
        if maker is None or maker.code != CODE.CONCATENATION or self._of_op[maker] != "float":
            yield float(_affine(self.ranges)[0][self._slots[tensor]])
            return
        for part in maker.inputs:
            assert part is not None
            yield from self._steps_of(part)

    @contextlib.contextmanager
    def only(self, layer: str) -> Iterator[None]:
        """Within the block, that layer alone is not float."""
        before = self._of_op
        self._of_op = {op: a if layer_of(op) == layer else "float" for op, a in before.items()}
        try:
            yield
        finally:
            self._of_op = before

    def bias(self, op: Op) -> nn.Parameter:
        """The bias of a linear operator."""
        tensor = op.inputs[2]
        assert tensor is not None
        found: nn.Parameter = self.constants[self._constants[tensor]]
        return found


class _Pass:
    """One run through the graph."""

    def __init__(
        self, sim: Simulation, arithmetic: Arithmetic, visit: Visit | None, before: Visit | None
    ) -> None:
        self.sim, self.visit, self.before = sim, visit, before
        self.rounding = arithmetic != "float"
        if self.rounding:
            self.scales, self.zeros = _affine(sim.ranges)
            self.wide = sim.ranges.abs().amax(1).clamp(min=1e-9) / 32767

    def __call__(self, x: Tensor) -> Outputs:
        graph = self.sim.graph
        values: dict[litert.Tensor, Tensor] = {graph.inputs[0]: _seen(self.visit, None, x)}
        for i, op in enumerate(graph.ops):
            value = _seen(self.before, op, self.compute(op, values))
            value = _seen(self.visit, op, _activated(op.activation, value))
            values[op.output] = self.rounded(op.output, value, self.kind(op))
            for tensor in op.inputs:  # what nobody reads any more
                if tensor in values and self.sim._last_use[tensor] == i:
                    del values[tensor]
        found = tuple(values[tensor] for tensor in graph.outputs)
        return found[0] if len(found) == 1 else found

    def kind(self, op: Op | None) -> Arithmetic:
        """How an operator computes and stores; what comes in from outside is float."""
        return self.sim._of_op[op] if self.rounding and op is not None else "float"

    def rounded(self, tensor: litert.Tensor, value: Tensor, kind: Arithmetic) -> Tensor:
        slot = self.sim._slots[tensor]
        if kind == "int8":
            return torch.fake_quantize_per_tensor_affine(
                value, self.scales[slot], self.zeros[slot], -128, 127
            )
        if kind == "int16":
            scale = self.wide[slot]
            return torch.fake_quantize_per_tensor_affine(
                value, scale, torch.zeros_like(self.zeros[slot]), -32767, 32767
            )
        return value

    def read(self, op: Op, position: int, values: Mapping[litert.Tensor, Tensor]) -> Tensor:
        """An input as the operator gets it: rounded once more where its maker stores it otherwise."""
        tensor = op.inputs[position]
        assert tensor is not None
        if tensor in self.sim._constants:
            constant: Tensor = self.sim.constants[self.sim._constants[tensor]]
            return constant
        maker = self.sim._makers.get(tensor)
        value = values[tensor]
        return value if self.kind(maker) == self.kind(op) else self.rounded(tensor, value, self.kind(op))

    def compute(self, op: Op, values: Mapping[litert.Tensor, Tensor]) -> Tensor:
        if op.code in LINEAR:
            return self.linear(op, values)
        handler = _HANDLERS.get(op.code)
        if handler is None:
            raise InputError(f"the simulation does not know the operator {op.name}")
        count = sum(t is not None and (t.data is None or t in self.sim._constants) for t in op.inputs)
        return handler(op, *(self.read(op, i, values) for i in range(count)))

    def linear(self, op: Op, values: Mapping[litert.Tensor, Tensor]) -> Tensor:
        x, weight, bias = (self.read(op, i, values) for i in range(3))
        kind = self.kind(op)
        if kind != "float":
            source = op.inputs[0]
            assert source is not None
            slot = self.sim._slots[source]
            step = self.scales[slot] if kind == "int8" else self.wide[slot]
            scale = _weight_scales(weight)
            weight = torch.fake_quantize_per_channel_affine(
                weight, scale, torch.zeros_like(scale, dtype=torch.int32), 0, -127, 127
            )
            bias = _rounded(bias, step * scale)
        return _linear(op, x, weight, bias)


class _IntegerPass(_Pass):
    """The arithmetic of XNNPACK's int8 kernels, on whole numbers (stored - zero point).

    What they make is handed on in float64, such that rounding it to the steps of the output gives what
    the kernel gives.
    """

    def rounded(self, tensor: litert.Tensor, value: Tensor, kind: Arithmetic) -> Tensor:
        if kind != "int8" or value.dtype != torch.float64:
            return super().rounded(tensor, value.float(), kind)
        slot = self.sim._slots[tensor]
        scale, zero = self.scales[slot].double(), self.zeros[slot]
        steps = torch.round(value / scale).clamp(-128 - zero, 127 - zero)
        return (steps * scale).float()

    def compute(self, op: Op, values: Mapping[litert.Tensor, Tensor]) -> Tensor:
        if self.kind(op) == "int8" and op.code in (CODE.ADD, CODE.MUL):
            (a, a_scale), (b, b_scale) = (self.steps(op, i, values) for i in range(2))
            scale = self.scales[self.sim._slots[op.output]]
            if op.code == CODE.ADD:
                return _sum(a, b, a_scale / scale, b_scale / scale) * scale.double()
            return (a * b * (a_scale * b_scale / scale)).double() * scale.double()
        whole = _WHOLE.get(op.code) if self.kind(op) == "int8" else None
        if whole is not None:
            x, step = self.steps(op, 0, values)
            zero = self.zeros[self.sim._slots[_first(op)]]
            return whole(op, x.double(), zero) * step.double()
        return super().compute(op, values)

    def linear(self, op: Op, values: Mapping[litert.Tensor, Tensor]) -> Tensor:
        if self.kind(op) != "int8":
            return super().linear(op, values)
        x, step = self.steps(op, 0, values)
        weight, bias = self.read(op, 1, values), self.read(op, 2, values)
        scale = _weight_scales(weight)
        weight = torch.round(weight / scale.view(-1, *[1] * (weight.dim() - 1)))
        # float32 holds the int32 sums exactly up to 2^24
        sums = _linear(op, x, weight, torch.round(bias / (step * scale)))
        out = self.scales[self.sim._slots[op.output]]
        factor = step * scale / out
        return (sums * (factor if sums.dim() == 2 else factor[:, None, None])).double() * out.double()

    def steps(
        self, op: Op, position: int, values: Mapping[litert.Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """An input as whole numbers, and the scale of them."""
        tensor, value = op.inputs[position], self.read(op, position, values)
        assert tensor is not None
        if tensor in self.sim._constants:  # one number, which the file holds as 255 steps
            scale = value.abs().amax().clamp(min=1e-9) / 255
        else:
            scale = self.scales[self.sim._slots[tensor]]
        return torch.round(value / scale), scale


def _sum(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor) -> Tensor:
    """XNNPACK's int8 sum: fixed-point factors of 21 bits, halves rounded up."""
    shift = 20 - (int(torch.frexp(torch.maximum(a_scale, b_scale)).exponent) - 1)
    factors = [torch.round(scale.double() * 2.0**shift).long() for scale in (a_scale, b_scale)]
    total = a.long() * factors[0] + b.long() * factors[1] + (1 << (shift - 1))
    return (total >> shift).double()


def _seen(visit: Visit | None, op: Op | None, value: Tensor) -> Tensor:
    changed = None if visit is None else visit(op, value)
    return value if changed is None else changed


def _weight_scales(weight: Tensor) -> Tensor:
    """Of each output channel; symmetric, so that its largest weight is 127 steps."""
    return weight.detach().abs().flatten(1).amax(1).clamp(min=1e-9) / 127


def _affine(ranges: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and zero points of int8, as the LiteRT quantizer makes them: zero is always exact."""
    low, high = ranges[:, 0].clamp(max=0), ranges[:, 1].clamp(min=0)
    scales = (high - low).clamp(min=1e-9) / 255
    zeros = torch.round(-128 - low / scales).clamp(-128, 127).to(torch.int32)
    return scales, zeros


def _rounded(value: Tensor, step: Tensor) -> Tensor:
    """To multiples of ``step``, with the gradient of no rounding at all."""
    return value + (torch.round(value / step) * step - value).detach()


# ---- operators


def _first(op: Op) -> litert.Tensor:
    assert op.inputs[0] is not None
    return op.inputs[0]


def _to_torch(op: Op, weight: Tensor) -> Tensor:
    """``[out, kh, kw, in]`` (depthwise: ``[1, kh, kw, out]``) to ``[out, in, kh, kw]``."""
    if op.code == CODE.DEPTHWISE_CONV_2D:
        return weight.permute(3, 0, 1, 2).contiguous()
    return weight.permute(0, 3, 1, 2).contiguous() if op.code == CODE.CONV_2D else weight


def _to_litert(op: Op, weight: Tensor) -> Tensor:
    if op.code == CODE.DEPTHWISE_CONV_2D:
        return weight.permute(1, 2, 3, 0)
    return weight.permute(0, 2, 3, 1) if op.code == CODE.CONV_2D else weight


def _linear(op: Op, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if op.code == CODE.FULLY_CONNECTED:
        return F.linear(x, weight, bias)
    options = op.options
    stride = (options.strideH, options.strideW)
    dilation = (options.dilationHFactor, options.dilationWFactor)
    groups = x.shape[1] if op.code == CODE.DEPTHWISE_CONV_2D else 1
    before, after = _padding(options.padding, x, weight.shape[2:], stride, dilation)
    if before == after:
        return F.conv2d(x, weight, bias, stride, before, dilation, groups)
    x = F.pad(x, (before[1], after[1], before[0], after[0]))
    return F.conv2d(x, weight, bias, stride, 0, dilation, groups)


Pair = tuple[int, int]


def _padding(scheme: int, x: Tensor, kernel: Any, stride: Pair, dilation: Pair) -> tuple[Pair, Pair]:
    """Zeros before and after, rows and columns, by TensorFlow's scheme."""
    if scheme == schema.Padding.VALID:
        return (0, 0), (0, 0)
    before, after = [], []
    for side, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True):
        total = max((-(-side // s) - 1) * s + (k - 1) * d + 1 - side, 0)
        before.append(total // 2)
        after.append(total - total // 2)
    return (before[0], before[1]), (after[0], after[1])


def _activated(activation: int, x: Tensor) -> Tensor:
    if activation == ACT.RELU:
        return F.relu(x)
    if activation == ACT.RELU6:
        return F.relu6(x)
    if activation != ACT.NONE:
        raise InputError(f"the simulation does not know the fused activation {activation}")
    return x


def _mean(op: Op, x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=bool(op.options.keepDims))


def _pooled(pool: Callable[..., Tensor], empty: float) -> Callable[[Op, Tensor], Tensor]:
    def handler(op: Op, x: Tensor) -> Tensor:
        o = op.options
        kernel, stride = (o.filterHeight, o.filterWidth), (o.strideH, o.strideW)
        before, after = _padding(o.padding, x, kernel, stride, (1, 1))
        x = F.pad(x, (before[1], after[1], before[0], after[0]), value=empty)
        return pool(x, kernel, stride)

    return handler


def _averaged_as_stored(op: Op, x: Tensor, zero: Tensor) -> Tensor:
    """LiteRT's own kernel (XNNPACK has none for int8): halves away from zero, of the stored numbers."""
    stored = _average(op, x) + zero
    return torch.sign(stored) * torch.floor(stored.abs() + 0.5) - zero


def _resize(op: Op, x: Tensor) -> Tensor:
    o = op.options
    if not o.alignCorners and not o.halfPixelCenters:
        raise InputError(
            "the simulation does not know RESIZE_BILINEAR with neither align_corners nor "
            "half_pixel_centers"
        )
    size = op.output.shape[1:3]
    return F.interpolate(x, size, mode="bilinear", align_corners=bool(o.alignCorners))


def _resized_as_stored(op: Op, x: Tensor, zero: Tensor) -> Tensor:
    """XNNPACK's int8 kernel: shares of 11 bits along each side, halves rounded up.

    The shares of the four neighbours add up to 2^22, so the zero point need not be in the sums.
    """
    (y0, y1, down), (x0, x1, right) = (
        _neighbours(int(before), after, bool(op.options.alignCorners), x.device)
        for before, after in zip(x.shape[2:], op.output.shape[1:3], strict=True)
    )
    whole = x.long()
    left = whole[..., x0]
    along = (left << 11) + (whole[..., x1] - left) * right
    top = along[:, :, y0]
    total = (top << 11) + (along[:, :, y1] - top) * down[:, None]
    return ((total + (1 << 21)) >> 22).double()


def _neighbours(
    before: int, after: int, aligned: bool, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Along a side of ``before`` pixels, for each of ``after``: the two beside it, and the second's
    share of 2^11. In float32, as XNNPACK reckons."""
    one = np.float32(1 if aligned and after != 1 else 0)
    scale = (np.float32(before) - one) / (np.float32(after) - one)
    places = np.arange(after, dtype=np.float32) * scale
    if not aligned:
        half = np.float32(0.5)
        places = np.clip(places + (half * scale - half), np.float32(0), np.float32(before - 1))
    first = np.minimum(places.astype(np.int64), before - 1)
    share = np.rint((places - first.astype(np.float32)) * np.float32(2048)).astype(np.int64)
    second = np.minimum(first + 1, before - 1)
    found = [torch.from_numpy(part).to(device) for part in (first, second, share)]
    return found[0], found[1], found[2]


def _concatenate(op: Op, *parts: Tensor) -> Tensor:
    rank = parts[0].dim()
    axis = op.options.axis % rank
    return torch.cat(parts, (0, 2, 3, 1)[axis] if rank == 4 else axis)


def _pad(op: Op, x: Tensor) -> Tensor:
    amounts = op.inputs[1]
    assert amounts is not None and amounts.data is not None
    (top, bottom), (left, right) = amounts.data[1:3].tolist()
    return F.pad(x, (left, right, top, bottom))


def _reshape(op: Op, x: Tensor) -> Tensor:
    """In LiteRT's order of dimensions, which is channels last."""
    shape = (x.shape[0], *op.output.shape[1:])
    x = x.permute(0, 2, 3, 1) if x.dim() == 4 else x
    x = x.reshape(shape)
    return x.permute(0, 3, 1, 2) if x.dim() == 4 else x


_average = _pooled(F.avg_pool2d, 0.0)
_HANDLERS: dict[int, Callable[..., Tensor]] = {
    CODE.ADD: lambda op, a, b: a + b,
    CODE.MUL: lambda op, a, b: a * b,
    CODE.MEAN: _mean,
    CODE.AVERAGE_POOL_2D: _average,
    CODE.MAX_POOL_2D: _pooled(F.max_pool2d, -torch.inf),
    CODE.PAD: _pad,
    CODE.RESHAPE: _reshape,
    CODE.RESIZE_BILINEAR: _resize,
    CODE.CONCATENATION: _concatenate,
    CODE.LOGISTIC: lambda op, x: torch.sigmoid(x),
    CODE.RELU: lambda op, x: F.relu(x),
    CODE.RELU6: lambda op, x: F.relu6(x),
    CODE.HARD_SWISH: lambda op, x: F.hardswish(x),
}

_WHOLE: dict[int, Callable[[Op, Tensor, Tensor], Tensor]] = {
    CODE.MEAN: lambda op, x, zero: _mean(op, x),
    CODE.AVERAGE_POOL_2D: _averaged_as_stored,
    CODE.RESIZE_BILINEAR: _resized_as_stored,
}
"""In whole numbers, given beside their zero point."""
