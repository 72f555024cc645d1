"""A spec as text: the paper's Table 1 or 2, with what each row costs."""

from __future__ import annotations

from collections.abc import Iterator

from mobilefit.arch.spec import Activation, Block, Conv, NetSpec

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
    size, inputs = spec.input_size, spec.in_channels
    items: list[tuple[str, Conv | Block]] = [("stem", spec.stem)]
    items += [(f"blocks.{i}", block) for i, block in enumerate(spec.blocks)]
    items += [("last", spec.last)] if spec.last is not None else []
    for number, (name, row) in enumerate(items):
        cost = spec.cost().of(name)
        expand = row.expand if isinstance(row, Block) else None
        yield (
            str(number), f"{size}² x {inputs}", _operator(row), str(expand or "-"), str(row.out),
            "x" if row.se else "-", _NL[row.act], str(row.stride),
            f"{cost.params:,}", f"{cost.madds:,}",
        )  # fmt: skip
        size, inputs = -(-size // row.stride), row.out
    yield from _head_rows(spec, len(items), size, inputs)


def _head_rows(spec: NetSpec, number: int, size: int, inputs: int) -> Iterator[tuple[str, ...]]:
    yield (str(number), f"{size}² x {inputs}", f"pool, {size}x{size}", *["-"] * 7)
    for name, act in (("head.hidden", spec.head.act), ("head.logits", "none")):
        for layer in spec.cost().of(name).layers:
            number += 1
            yield (
                str(number), f"1² x {layer.inputs}", "conv2d 1x1, NBN", "-", str(layer.out), "-",
                _NL[act], "1", f"{layer.params:,}", f"{layer.madds:,}",
            )  # fmt: skip


def _operator(row: Conv | Block) -> str:
    names = {"conv": "conv2d", "inverted": "bneck", "fused": "fused bneck", "separable": "separable"}
    op, skip = ("conv", "identity") if isinstance(row, Conv) else (row.op, row.skip)
    return f"{names[op]} {row.kernel}x{row.kernel}" + (", pool skip" if skip == "pool" else "")
