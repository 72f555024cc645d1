"""From a module to a LiteRT flatbuffer: float32, NHWC, batch norm folded, activations fused.

The module is traced with ``torch.fx``; each kind of node has one small function below that adds
its operators to a :class:`~mobilefit.litert.graph.Graph`. The layer set of the MobileNet family is
small, so this is too, and a network takes a tenth of a second, where a general converter takes ten.
Modules are always compiled as they are at inference (running statistics, no dropout).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import fx, nn
from torch.nn import functional

from mobilefit.errors import InputError
from mobilefit.litert.graph import CODE, Graph, Op, Tensor, encode_metadata, serialize
from mobilefit.litert.lowerings import DEFAULT, FLOAT, lower, named
from mobilefit.litert.passes import (
    ACT,
    LINEAR,
    add_op,
    concatenate_op,
    merge_projections,
    mul_op,
    reshape_op,
    scalar,
)
from mobilefit.nn.blocks import Row
from mobilefit.nn.layers import ResizeLike, Rows
from mobilefit.nn.segmentation import ImagePool

_FUSES = LINEAR | {CODE.ADD, CODE.MUL}
_SIXTH = 1 / 6


def compile(
    net: nn.Module,
    input_shape: tuple[int, ...],
    *,
    metadata: dict[str, Any] | None = None,
    lowering: str = DEFAULT,
    outputs: Sequence[str] | None = None,
) -> bytes:
    """Compile a network, a block or a single layer to a float32 LiteRT flatbuffer.

    Args:
        net: a module of standard layers; its weights are read, nothing in it is changed.
        input_shape: ``(batch, channels, height, width)``, or ``(batch, features)``.
        metadata: JSON-able; stored in the file, see ``read_metadata``.
        lowering: which operators the layers become: a key of ``lowerings.FLOAT``.
        outputs: names of the outputs in the signature, one for each tensor that the network returns;
            when left out "output", and "output_1", "output_2" ... for what follows.

    Returns:
        The bytes of the .tflite file: signature "serving_default", input "input" (NHWC, or
        ``[batch, features]``), float32. Maps are channels last; rows ``[batch, rows, k]`` stay.

    Raises:
        InputError: a layer or operation has no translation, or the shapes do not fit; it names it.
    """
    if len(input_shape) not in (2, 4) or any(side < 1 for side in input_shape):
        raise InputError(
            f"input_shape {tuple(input_shape)} is not (batch, channels, height, width)",
            "every side is 1 or more",
        )
    graph = _Compiler(net, tuple(input_shape)).run()
    graph.output_names = _output_names(outputs, len(graph.outputs))
    graph.drop_unread()
    merge_projections(graph)
    lower(graph, named(lowering, FLOAT))
    graph.metadata = encode_metadata(metadata)
    return serialize(graph)


def _output_names(given: Sequence[str] | None, count: int) -> list[str]:
    names = list(given or ["output", *(f"output_{i}" for i in range(1, count))])
    if len(names) != count or len(set(names)) != count:
        raise InputError(
            f"the network has {count} outputs, and {len(names)} names are given ({', '.join(names)})",
            "give each output a name of its own",
        )
    return names


class _Tracer(fx.Tracer):
    """Stops at every layer of torch.nn and at subclasses of the layers handled here."""

    def is_leaf_module(self, m: nn.Module, qualname: str) -> bool:
        return _module_handler(m) is not None or super().is_leaf_module(m, qualname)


def _trace(net: nn.Module) -> fx.Graph:
    try:
        graph = _Tracer().trace(net)
    except Exception as error:  # the module's own code runs here: anything can come
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{type(net).__name__} cannot be traced: {reason}") from error
    modules = dict(net.named_modules())
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], _NO_OPS):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    for node in graph.nodes:
        if node.op != "call_module" and not node.meta.get("nn_module_stack"):
            node.meta["nn_module_stack"] = dict.fromkeys(_row_of(node, modules))
    return graph


def _row_of(node: fx.Node, modules: dict[str, nn.Module]) -> list[str]:
    """The row that an operation ends: torch.fx notes it for ``forward``, and for no other method of it."""
    for source in reversed(node.all_input_nodes):
        path = str(source.target) if source.op == "call_module" else ""
        while path:
            if isinstance(modules[path], Row):
                return [path]
            path = path.rpartition(".")[0]
    return []


_NO_OPS = (nn.Identity, nn.Dropout, nn.Dropout2d)


class _Compiler:
    """The state of one compilation: the values of the nodes so far and the graph being built."""

    def __init__(self, net: nn.Module, input_shape: tuple[int, ...]) -> None:
        if _module_handler(net) is not None:  # a single layer: fx would trace into its forward
            net = nn.Sequential(net)
        self.modules = dict(net.named_modules())
        self.trace = _trace(net)
        n, *rest = input_shape
        shape = (n, *rest[1:], rest[0]) if len(rest) == 3 else input_shape
        self.graph = Graph([Tensor("input", shape)], [])
        self.values: dict[fx.Node, Tensor] = {}
        self.producers: dict[Tensor, Op] = {}

    def run(self) -> Graph:
        for node in self.trace.nodes:
            if node.op == "output":
                found = node.args[0]
                several = found if isinstance(found, (tuple, list)) else [found]
                self.graph.outputs = [self.value(one, node) for one in several]
            elif node.op == "placeholder":
                if self.values:
                    raise InputError("the network takes several inputs", "compile takes one")
                self.values[node] = self.graph.inputs[0]
            else:
                self.values[node] = self.translate(node)
        return self.graph

    def translate(self, node: fx.Node) -> Tensor:
        handler: Handler | None
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            module_handler = _module_handler(module)
            if module_handler is None:
                raise _unsupported(node, type(module).__name__)
            return module_handler(self, node, module)
        handler = _FUNCTIONS.get(node.target) if node.op != "get_attr" else None
        if handler is None:
            raise _unsupported(node, getattr(node.target, "__name__", str(node.target)))
        return handler(self, node)

    def value(self, arg: Any, node: fx.Node) -> Tensor:
        if not isinstance(arg, fx.Node):
            raise _unsupported(node, f"{node.target} of {type(arg).__name__}")
        return self.values[arg]

    def input(self, node: fx.Node, *, rank: int | None = None) -> Tensor:
        x = self.value(node.args[0], node)
        if rank is not None and len(x.shape) != rank:
            raise InputError(
                f"'{node.target}' gets a tensor of {len(x.shape)} dimensions, not {rank}"
            )
        return x

    def emit(self, op: Op) -> Tensor:
        self.graph.ops.append(op)
        self.producers[op.output] = op
        return op.output

    def fusible(self, node: fx.Node, codes: frozenset[int]) -> Op | None:
        """The operator that makes this node's input, if the node alone reads it and it is bare."""
        source = node.args[0]
        if not isinstance(source, fx.Node) or len(source.users) != 1:
            return None
        op = self.producers.get(self.values[source])
        return op if op and op.code in codes and op.activation == ACT.NONE else None


Handler = Callable[[_Compiler, fx.Node], Tensor]
ModuleHandler = Callable[[_Compiler, fx.Node, Any], Tensor]


def _unsupported(node: fx.Node, kind: str) -> InputError:
    known = ", ".join(sorted(cls.__name__ for cls in _MODULES))
    return InputError(
        f"cannot compile '{node.target if node.op == 'call_module' else node.name}' ({kind})",
        f"layers with a translation: {known}",
    )


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float64).numpy()


def _name(node: fx.Node) -> str:
    """The module's path, and for an operation the path of the module whose code has it."""
    if node.op == "call_module":
        return str(node.target)
    inside = [path for path in node.meta.get("nn_module_stack", ()) if path]
    return ".".join([*inside[-1:], re.sub(r"_\d+$", "", node.name) if inside else node.name])


# ---- convolutions, batch norm, linear


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _conv(c: _Compiler, node: fx.Node, module: nn.Conv2d) -> Tensor:
    x = c.input(node, rank=4)
    channels = module.in_channels
    if x.shape[3] != channels:
        raise InputError(f"'{_name(node)}' takes {channels} channels, not {x.shape[3]}")
    depthwise = module.groups == channels and channels > 1
    if module.groups not in (1, channels) or module.padding_mode != "zeros":
        raise _unsupported(node, f"Conv2d of {module.groups} groups, {module.padding_mode}")
    weight = _array(module.weight)  # [out, in / groups, kh, kw]
    by_channel = weight[:, 0].transpose(1, 2, 0)[None]  # [1, kh, kw, out]
    weight = by_channel if depthwise else weight.transpose(0, 2, 3, 1)  # [out, kh, kw, in]
    bias = np.zeros(module.out_channels) if module.bias is None else _array(module.bias)
    x, padding, (height, width) = _padded(c, node, module, x)
    (sh, sw), (dh, dw) = _pair(module.stride), _pair(module.dilation)
    geometry = dict(padding=padding, strideH=sh, strideW=sw, dilationHFactor=dh, dilationWFactor=dw)
    if depthwise:
        multiplier = module.out_channels // channels
        options = schema.DepthwiseConv2DOptionsT(depthMultiplier=multiplier, **geometry)
    else:
        options = schema.Conv2DOptionsT(**geometry)
    code = CODE.DEPTHWISE_CONV_2D if depthwise else CODE.CONV_2D
    return c.emit(
        Op(
            code,
            [x, *_parameters(_name(node), weight, bias)],
            [Tensor(_name(node), (x.shape[0], height, width, module.out_channels))],
            options,
            version=2 if depthwise and (dh, dw) != (1, 1) else 1,
        )
    )


def _parameters(name: str, weight: np.ndarray, bias: np.ndarray) -> list[Tensor]:
    return [
        Tensor.constant(f"{name}/weight", np.ascontiguousarray(weight, np.float32)),
        Tensor.constant(f"{name}/bias", np.ascontiguousarray(bias, np.float32)),
    ]


def _padded(
    c: _Compiler, node: fx.Node, module: nn.Conv2d | nn.MaxPool2d, x: Tensor
) -> tuple[Tensor, int, tuple[int, int]]:
    """The input (through a PAD only where needed), the padding scheme and the output's sides."""
    kernel, stride, dilation = (
        _pair(v) for v in (module.kernel_size, module.stride, module.dilation)
    )
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    sides = x.shape[1:3]
    same = [_same(side, span, s) for side, span, s in zip(sides, spans, stride, strict=True)]
    if getattr(module, "same", False) or module.padding == "same":
        return x, schema.Padding.SAME, (same[0][0], same[1][0])
    before = _pair(0 if module.padding == "valid" else module.padding)
    out = [
        (side + 2 * p - span) // s + 1
        for side, span, s, p in zip(sides, spans, stride, before, strict=True)
    ]
    if min(out) < 1:
        raise InputError(f"'{_name(node)}' gets {sides[0]}x{sides[1]} pixels, less than its kernel")
    if before == (0, 0):
        return x, schema.Padding.VALID, (out[0], out[1])
    if [(o, p) for o, p in zip(out, before, strict=True)] == same:
        return x, schema.Padding.SAME, (out[0], out[1])
    after = [
        max((o - 1) * s + span - side - p, 0)
        for o, s, span, side, p in zip(out, stride, spans, sides, before, strict=True)
    ]
    x = _pad(c, f"{_name(node)}/pad", x, ((before[0], after[0]), (before[1], after[1])))
    return x, schema.Padding.VALID, (out[0], out[1])


def _same(side: int, span: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME along one side: the output's size, and the zeros put before the input."""
    out = -(-side // stride)
    return out, max((out - 1) * stride + span - side, 0) // 2


def _pad(c: _Compiler, name: str, x: Tensor, sides: tuple[tuple[int, int], ...]) -> Tensor:
    amounts = np.asarray([(0, 0), *sides, (0, 0)], np.int32)
    shape = tuple(side + int(extra.sum()) for side, extra in zip(x.shape, amounts, strict=True))
    inputs: list[Tensor | None] = [x, Tensor.constant(f"{name}/amounts", amounts)]
    return c.emit(Op(CODE.PAD, inputs, [Tensor(name, shape)], schema.PadOptionsT()))


def _batch_norm(c: _Compiler, node: fx.Node, module: nn.BatchNorm2d) -> Tensor:
    """y = scale * x + shift, taken into the convolution before it."""
    x = c.input(node, rank=4)
    if module.running_mean is None or module.running_var is None:
        raise _unsupported(node, "BatchNorm2d without running statistics")
    scale = 1 / np.sqrt(_array(module.running_var) + module.eps)
    if module.weight is not None:
        scale = scale * _array(module.weight)
    shift = -_array(module.running_mean) * scale
    if module.bias is not None:
        shift = shift + _array(module.bias)
    op = c.fusible(node, LINEAR)
    if op is None:
        options = schema.DepthwiseConv2DOptionsT(strideH=1, strideW=1, depthMultiplier=1)
        parameters = _parameters(_name(node), scale.reshape(1, 1, 1, -1), shift)
        output = Tensor(_name(node), x.shape)
        return c.emit(Op(CODE.DEPTHWISE_CONV_2D, [x, *parameters], [output], options))
    _, weight, bias = op.inputs
    assert weight is not None and weight.data is not None
    assert bias is not None and bias.data is not None
    axis = (-1, 1, 1, 1) if op.code == CODE.CONV_2D else (1, 1, 1, -1)
    op.inputs[1:] = _parameters(
        op.output.name, weight.data * scale.reshape(axis), bias.data * scale + shift
    )
    return op.output


def _linear(c: _Compiler, node: fx.Node, module: nn.Linear) -> Tensor:
    x = c.input(node, rank=2)
    if x.shape[1] != module.in_features:
        raise InputError(f"'{_name(node)}' takes {module.in_features} features, not {x.shape[1]}")
    bias = np.zeros(module.out_features) if module.bias is None else _array(module.bias)
    parameters = _parameters(_name(node), _array(module.weight), bias)
    output = Tensor(_name(node), (x.shape[0], module.out_features))
    options = schema.FullyConnectedOptionsT()
    return c.emit(Op(CODE.FULLY_CONNECTED, [x, *parameters], [output], options))


# ---- activations


def _activation(fused: int, code: int) -> Callable[..., Tensor]:
    def handler(c: _Compiler, node: fx.Node, module: nn.Module | None = None) -> Tensor:
        op = c.fusible(node, _FUSES)
        if op is not None:
            op.options.fusedActivationFunction = fused
            return op.output
        x = c.input(node)
        return c.emit(Op(code, [x], [Tensor(_name(node), x.shape)]))

    return handler


def _hard_swish(c: _Compiler, node: fx.Node, module: nn.Module | None = None) -> Tensor:
    x = c.input(node)
    output = Tensor(_name(node), x.shape)
    return c.emit(Op(CODE.HARD_SWISH, [x], [output], schema.HardSwishOptionsT()))


def _hard_sigmoid(c: _Compiler, node: fx.Node, module: nn.Module | None = None) -> Tensor:
    """relu6(x + 3) / 6: the 3 joins the bias before it, ``fold_scales`` moves the 1/6 onward."""
    x, name = c.input(node), _name(node)
    op = c.fusible(node, LINEAR)
    if op is not None:
        bias = op.inputs[2]
        assert bias is not None and bias.data is not None
        op.inputs[2] = Tensor.constant(bias.name, bias.data + np.float32(3))
        op.options.fusedActivationFunction = ACT.RELU6
    else:
        three = scalar(f"{name}/three", 3.0)
        x = c.emit(add_op(x, three, Tensor(f"{name}/relu6", x.shape), ACT.RELU6))
    return c.emit(mul_op(x, scalar(f"{name}/sixth", _SIXTH), Tensor(name, x.shape)))


def _sigmoid(c: _Compiler, node: fx.Node, module: nn.Module | None = None) -> Tensor:
    x = c.input(node)
    return c.emit(Op(CODE.LOGISTIC, [x], [Tensor(_name(node), x.shape)]))


def _swish(c: _Compiler, node: fx.Node, module: nn.Module | None = None) -> Tensor:
    """x * sigmoid(x)"""
    x, name = c.input(node), _name(node)
    gate = c.emit(Op(CODE.LOGISTIC, [x], [Tensor(f"{name}/sigmoid", x.shape)]))
    return c.emit(mul_op(x, gate, Tensor(name, x.shape)))


# ---- pooling, shapes


def _mean(c: _Compiler, node: fx.Node, keep: bool) -> Tensor:
    x = c.input(node, rank=4)
    n, _, _, channels = x.shape
    axes = Tensor.constant(f"{_name(node)}/axes", np.asarray([1, 2], np.int32))
    output = Tensor(_name(node), (n, 1, 1, channels) if keep else (n, channels))
    return c.emit(Op(CODE.MEAN, [x, axes], [output], schema.ReducerOptionsT(keepDims=keep)))


def _adaptive_pool(
    c: _Compiler, node: fx.Node, module: nn.AdaptiveAvgPool2d | None = None
) -> Tensor:
    size = _argument(node, 1, "output_size") if module is None else module.output_size
    if size not in (1, (1, 1), [1, 1]):
        raise _unsupported(node, f"adaptive average pooling to {size}")
    return _mean(c, node, keep=True)


def _mean_method(c: _Compiler, node: fx.Node) -> Tensor:
    axes = _argument(node, 1, "dim")
    if sorted(axis % 4 for axis in axes or ()) != [2, 3]:
        raise _unsupported(node, f"mean over {axes}")
    return _mean(c, node, keep=bool(_argument(node, 2, "keepdim")))


def _average_pool(c: _Compiler, node: fx.Node, module: nn.AvgPool2d) -> Tensor:
    x = c.input(node, rank=4)
    (kh, kw), (sh, sw) = _pair(module.kernel_size), _pair(module.stride)
    if isinstance(module, ImagePool):
        kh, kw = min(kh, x.shape[1]), min(kw, x.shape[2])
    if _pair(module.padding) != (0, 0) or module.ceil_mode or module.divisor_override:
        raise _unsupported(node, "AvgPool2d with padding, ceil_mode or divisor_override")
    n, height, width, channels = x.shape
    if height < kh or width < kw:
        raise InputError(f"'{_name(node)}' gets {height}x{width} pixels, less than its kernel")
    if (height, width) == (kh, kw):  # XNNPACK has an int8 MEAN, and no AVERAGE_POOL_2D
        return _mean(c, node, keep=True)
    shape = (n, (height - kh) // sh + 1, (width - kw) // sw + 1, channels)
    options = schema.Pool2DOptionsT(
        padding=schema.Padding.VALID, strideH=sh, strideW=sw, filterHeight=kh, filterWidth=kw
    )
    return c.emit(Op(CODE.AVERAGE_POOL_2D, [x], [Tensor(_name(node), shape)], options))


def _max_pool(c: _Compiler, node: fx.Node, module: nn.MaxPool2d) -> Tensor:
    x = c.input(node, rank=4)
    ceil_mode = module.ceil_mode and not getattr(module, "same", False)
    if ceil_mode or module.return_indices or _pair(module.dilation) != (1, 1):
        raise _unsupported(node, "MaxPool2d with ceil_mode, return_indices or dilation")
    padded, padding, (height, width) = _padded(c, node, module, x)
    if padded is not x:  # by a PAD of zeros, which may be more than the largest value
        raise _unsupported(node, "MaxPool2d padded otherwise than TensorFlow's SAME")
    (kh, kw), (sh, sw) = _pair(module.kernel_size), _pair(module.stride)
    options = schema.Pool2DOptionsT(
        padding=padding, strideH=sh, strideW=sw, filterHeight=kh, filterWidth=kw
    )
    output = Tensor(_name(node), (x.shape[0], height, width, x.shape[3]))
    return c.emit(Op(CODE.MAX_POOL_2D, [x], [output], options))


def _flatten(c: _Compiler, node: fx.Node, module: nn.Flatten | None = None) -> Tensor:
    x = c.input(node)
    start = _argument(node, 1, "start_dim") if module is None else module.start_dim
    if start != 1 or (len(x.shape) == 4 and x.shape[1:3] != (1, 1)):
        raise _unsupported(node, f"flattening {x.shape} from dimension {start}")
    if len(x.shape) == 2:
        return x
    shape = (x.shape[0], x.shape[3])
    pool = c.fusible(node, frozenset({CODE.MEAN}))
    if pool is not None:  # pooled to [n, c] at once
        pool.options.keepDims = False
        pool.output.shape = shape
        return pool.output
    return c.emit(reshape_op(x, Tensor(_name(node), shape)))


def _resize_like(c: _Compiler, node: fx.Node, module: ResizeLike) -> Tensor:
    """Bilinear to another map's sides."""
    x, like = c.input(node, rank=4), c.value(_argument(node, 1, "like"), node)
    height, width = like.shape[1:3]
    if x.shape[1:3] == (height, width):
        return x
    aligned, name = module.align_corners, _name(node)
    size = Tensor.constant(f"{name}/size", np.asarray([height, width], np.int32))
    output = Tensor(name, (x.shape[0], height, width, x.shape[3]))
    options = schema.ResizeBilinearOptionsT(alignCorners=aligned, halfPixelCenters=not aligned)
    return c.emit(Op(CODE.RESIZE_BILINEAR, [x, size], [output], options, 1 if aligned else 3))


def _rows(c: _Compiler, node: fx.Node, module: Rows) -> Tensor:
    """Channels last, an anchor's numbers lie together: their order in memory is that of the rows."""
    x = c.input(node, rank=4)
    n, height, width, channels = x.shape
    if channels % module.outputs:
        raise InputError(f"'{_name(node)}' cannot make rows of {module.outputs} of {channels} channels")
    shape = (n, height * width * channels // module.outputs, module.outputs)
    return c.emit(reshape_op(x, Tensor(_name(node), shape)))


_LAST = {0: 0, 1: 3, 2: 1, 3: 2}
"""Where torch's dimensions of a map are, channels last."""


def _cat(c: _Compiler, node: fx.Node) -> Tensor:
    parts = [c.value(part, node) for part in _argument(node, 0, "tensors")]
    dim, rank = _argument(node, 1, "dim") or 0, len(parts[0].shape)
    axis = _LAST[dim % rank] if rank == 4 else dim % rank
    others = {(*t.shape[:axis], *t.shape[axis + 1 :]) for t in parts}
    if len(others) != 1:
        raise InputError(f"'{node.name}' joins {' and '.join(str(t.shape) for t in parts)}")
    name = _name(node)
    while len(parts) > _JOINED:  # the last ones first: they are the smallest of a detector's maps
        rest = _concatenation(c, f"{name}/rest", parts[-_JOINED:], axis)
        parts = [*parts[:-_JOINED], rest]
    return _concatenation(c, name, parts, axis)


_JOINED = 5
"""Inputs that XNNPACK's concatenation takes at most."""


def _concatenation(c: _Compiler, name: str, parts: list[Tensor], axis: int) -> Tensor:
    shape = list(parts[0].shape)
    shape[axis] = sum(t.shape[axis] for t in parts)
    return c.emit(concatenate_op(parts, Tensor(name, tuple(shape)), axis))


def _argument(node: fx.Node, position: int, name: str) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name)


# ---- sums, products


def _binary(make: Callable[..., Op]) -> Handler:
    def handler(c: _Compiler, node: fx.Node) -> Tensor:
        if node.kwargs:
            raise _unsupported(node, f"{_name(node)} with {', '.join(node.kwargs)}")
        a, b = (_one_for_all(c, c.value(arg, node)) for arg in node.args)
        sides = zip(a.shape, b.shape, strict=False)
        if len(a.shape) != len(b.shape) or any(p != q and 1 not in (p, q) for p, q in sides):
            raise InputError(f"'{node.name}' joins {a.shape} and {b.shape}")
        shape = tuple(max(p, q) for p, q in zip(a.shape, b.shape, strict=True))
        return c.emit(make(a, b, Tensor(_name(node), shape)))

    return handler


def _one_for_all(c: _Compiler, x: Tensor) -> Tensor:
    """The one pixel that ``x`` is made of, if resizing has but repeated it: a sum or product does too."""
    maker = c.producers.get(x)
    source = maker.inputs[0] if maker is not None and maker.code == CODE.RESIZE_BILINEAR else None
    return x if source is None or source.shape[1:3] != (1, 1) else source


_add, _mul = _binary(add_op), _binary(mul_op)
_relu = _activation(ACT.RELU, CODE.RELU)
_relu6 = _activation(ACT.RELU6, CODE.RELU6)

_MODULES: dict[type[nn.Module], ModuleHandler] = {
    nn.Conv2d: _conv,
    nn.BatchNorm2d: _batch_norm,
    nn.Linear: _linear,
    nn.ReLU: _relu,
    nn.ReLU6: _relu6,
    nn.Hardswish: _hard_swish,
    nn.Hardsigmoid: _hard_sigmoid,
    nn.Sigmoid: _sigmoid,
    nn.SiLU: _swish,
    nn.AdaptiveAvgPool2d: _adaptive_pool,
    nn.AvgPool2d: _average_pool,
    nn.MaxPool2d: _max_pool,
    nn.Flatten: _flatten,
    ResizeLike: _resize_like,
    Rows: _rows,
}
_FUNCTIONS: dict[Any, Handler] = {
    operator.add: _add,
    operator.iadd: _add,
    torch.add: _add,
    operator.mul: _mul,
    operator.imul: _mul,
    torch.mul: _mul,
    functional.adaptive_avg_pool2d: _adaptive_pool,
    torch.flatten: _flatten,
    torch.cat: _cat,
    "flatten": _flatten,
    "mean": _mean_method,
}


def _module_handler(module: nn.Module) -> ModuleHandler | None:
    return next((_MODULES[cls] for cls in type(module).__mro__ if cls in _MODULES), None)
