"""A spec as text: the paper's Table 1 or 2, with what each row costs."""

from __future__ import annotations

from collections.abc import Iterator

from mobilefit.arch.cost import Layer
from mobilefit.arch.heads import Task
from mobilefit.arch.rows import Activation, Block, Conv
from mobilefit.arch.spec import NetSpec

_NL: dict[Activation, str] = {
    "relu": "RE", "relu6": "R6", "hard_swish": "HS", "swish": "SW", "none": "-",
}  # fmt: skip
_HEADER = ("#", "input", "operator", "exp", "out", "SE", "NL", "s", "params", "MAdds")


def table(spec: NetSpec) -> str:
    """The network row by row, as in the paper's Tables 1 and 2, with params and MAdds of each row."""
    rows = [_HEADER, *_rows(spec)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    lines = ["  ".join(_align(cell, w, i) for i, (cell, w) in enumerate(zip(row, widths)))
             for row in rows]  # fmt: skip
    cost = spec.cost()
    lines.append(
        f"{spec.name} ({spec.id}): {cost.params:,} parameters, {cost.madds:,} multiply-adds, "
        f"peak activations {cost.peak_activations:,} elements, padding '{spec.padding}'"
    )
    return "\n".join(line.rstrip() for line in lines)


def _align(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column in (1, 2) else cell.rjust(width)


def _rows(spec: NetSpec) -> Iterator[tuple[str, ...]]:
    cost = spec.cost()
    items: list[tuple[str, Conv | Block]] = [("stem", spec.stem)]
    items += [(f"blocks.{i}", block) for i, block in enumerate(spec.blocks)]
    items += [("last", spec.last)] if spec.last is not None else []
    inputs = spec.in_channels
    for number, (name, row) in enumerate(items):
        own = cost.of(name)
        expand = row.expand if isinstance(row, Block) else None
        yield (
            str(number), _map(own.layers[0], inputs), _operator(row), str(expand or "-"), str(row.out),
            "x" if row.se else "-", _NL[row.act], str(row.stride),
            f"{own.params:,}", f"{own.madds:,}",
        )  # fmt: skip
        inputs = row.out
    for number, layer in enumerate(cost.of("head").layers, len(items)):
        yield _head_row(str(number), layer, spec.task)


def _map(layer: Layer, channels: int) -> str:
    square = layer.size == layer.columns
    return f"{layer.size}² x {channels}" if square else f"{layer.size} x {layer.columns} x {channels}"


def _head_row(number: str, layer: Layer, task: Task) -> tuple[str, ...]:
    if layer.kind == "pool":
        whole = layer.out_size == layer.out_columns == 1
        what = f"pool, {layer.size}x{layer.columns}" if whole else f"pool to {layer.out_size}x{layer.out_columns}"
        return (number, _map(layer, layer.inputs), what, *["-"] * 7)
    dense = "conv2d 1x1, NBN" if layer.kind == "linear" else f"conv2d {layer.kernel}x{layer.kernel}"
    what = f"depthwise {layer.kernel}x{layer.kernel}" if layer.kind == "depthwise" else dense
    named = what if task == "classify" else f"{layer.name.removeprefix('head.')}: {what}"
    stride = str(layer.stride)
    return (
        number, _map(layer, layer.inputs), named, "-", str(layer.out), "-", _NL[layer.act], stride,
        f"{layer.params:,}", f"{layer.madds:,}",
    )  # fmt: skip


def _operator(row: Conv | Block) -> str:
    names = {"conv": "conv2d", "inverted": "bneck", "fused": "fused bneck", "separable": "separable"}
    op, skip = ("conv", "identity") if isinstance(row, Conv) else (row.op, row.skip)
    dilation, start = (1, 0) if isinstance(row, Conv) else (row.dilation, row.start_kernel)
    return (
        (f"dw {start}x{start} + " if start else "")
        + (f"{names[op]} {row.kernel}x{row.kernel}" if row.kernel else "ffn")
        + (f", dilation {dilation}" if dilation > 1 else "")
        + (", pool skip" if skip == "pool" else "")
    )
