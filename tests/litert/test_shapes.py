"""Operators that do not fit their tensors are refused before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mobilefit import arch, litert
from mobilefit.arch import Block, ClassifierHead, Conv, NetSpec
from mobilefit.errors import InputError
from mobilefit.int8 import with_random_ranges
from mobilefit.jobs.model import compiled
from mobilefit.litert.graph import CODE, Graph, Op, Tensor, parse
from mobilefit.litert.shapes import check_shapes
from mobilefit.nn import build

SPEC = NetSpec(
    name="tiny", input_size=32, stem=Conv(out=8, kernel=3, stride=2, act="hard_swish"),
    blocks=(Block(expand=16, out=8), Block(expand=24, out=16, stride=2, se="v3", act="hard_swish")),
    head=ClassifierHead(num_classes=3, hidden=16, act="hard_swish"),
)  # fmt: skip


@pytest.fixture(scope="module")
def blob() -> bytes:
    torch.manual_seed(0)
    return litert.compile(build(SPEC).eval(), (1, 3, 32, 32))


@pytest.mark.parametrize("kind", ["detect", "segment"])
@pytest.mark.parametrize("small", [False, True])
def test_our_own_files_fit(kind: str, small: bool) -> None:
    base = arch.spec("mobilenet_v3_small").resolution(64)
    spec = (arch.detector(base) if kind == "detect" else arch.segmenter(base)).classes(3)
    made = compiled(build(spec).eval())
    check_shapes(parse(with_random_ranges(made) if small else made))


def first(graph: Graph, code: int) -> Op:
    return next(op for op in graph.ops if op.code == code)


def constant(values: Any) -> Tensor:
    return Tensor.constant("c", np.asarray(values, np.int32))


def reshaped(code: int, change: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Callable[[Graph], None]:
    def on(graph: Graph) -> None:
        output = first(graph, code).output
        output.shape = change(output.shape)

    return on


def retyped(code: int) -> Callable[[Graph], None]:
    return lambda graph: setattr(first(graph, code).output, "dtype", np.dtype(np.int8))


def optionless(code: int) -> Callable[[Graph], None]:
    return lambda graph: setattr(first(graph, code), "options", None)


def fewer(code: int) -> Callable[[Graph], None]:
    return lambda graph: first(graph, code).inputs.pop()


CHANGES: dict[str, Callable[[Graph], None]] = {
    "a convolution's sides": reshaped(CODE.CONV_2D, lambda s: (s[0], s[1] + 1, *s[2:])),
    "a convolution's channels": reshaped(CODE.CONV_2D, lambda s: (*s[:3], s[3] + 1)),
    "a convolution's rank": reshaped(CODE.CONV_2D, lambda s: s[1:]),
    "a depthwise convolution": reshaped(CODE.DEPTHWISE_CONV_2D, lambda s: (*s[:3], 2 * s[3])),
    "a product": reshaped(CODE.MUL, lambda s: (*s[:-1], 1)),
    "a sum": reshaped(CODE.ADD, lambda s: s[::-1]),
    "a mean": reshaped(CODE.MEAN, lambda s: (1, 1, 1, 7)),
    "a linear layer": reshaped(CODE.FULLY_CONNECTED, lambda s: (2, *s[1:])),
    "a convolution of another type": retyped(CODE.CONV_2D),
    "a product of another type": retyped(CODE.MUL),
    "a convolution without options": optionless(CODE.CONV_2D),
    "a mean without options": optionless(CODE.MEAN),
    "a product of one": fewer(CODE.MUL),
    "a stride of none": lambda graph: setattr(first(graph, CODE.CONV_2D).options, "strideH", 0),
    "no outputs": lambda graph: first(graph, CODE.MUL).outputs.clear(),
    **{f"a bias of another length, {code}": lambda graph, code=code: first(graph, code).inputs.__setitem__(2, constant([0] * 5))
       for code in (CODE.CONV_2D, CODE.DEPTHWISE_CONV_2D, CODE.FULLY_CONNECTED)},
    "an axis that is not there": lambda graph: first(graph, CODE.MEAN).inputs.__setitem__(1, constant([9])),
    "an axis that is computed": lambda graph: first(graph, CODE.MEAN).inputs.__setitem__(1, graph.inputs[0]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_does_not_fit_is_named(what: str, blob: bytes) -> None:
    graph = parse(blob)
    check_shapes(graph)
    CHANGES[what](graph)
    with pytest.raises(InputError, match=r"operator \d+ of the LiteRT model, \w+, does not fit its tensors"):
        check_shapes(graph)


def test_an_operator_of_others_is_left_to_the_runtime() -> None:
    x, y = Tensor("x", (1, 4)), Tensor("y", (7,))
    check_shapes(Graph([x], [y], [Op(CODE.SQRT, [x], [y]), Op(CODE.CUSTOM, [y], [x], custom="Other")]))


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        (lambda x, y: Op(CODE.PAD, [x, constant([[0, 0], [1, 1], [2, 0], [0, 0]])], [y]), (1, 6, 7, 3)),
        (lambda x, y: Op(CODE.TRANSPOSE, [x, constant([0, 3, 1, 2])], [y]), (1, 3, 4, 5)),
        (lambda x, y: Op(CODE.SLICE, [x, constant([0, 0, 0, 1]), constant([1, 4, 5, 2])], [y]), (1, 4, 5, 2)),
        (lambda x, y: Op(CODE.RESHAPE, [x, constant([1, -1, 3])], [y]), (1, 20, 3)),
    ],
)
def test_what_moves_values(op: Callable[[Tensor, Tensor], Op], shape: tuple[int, ...]) -> None:
    x = Tensor("x", (1, 4, 5, 3))
    y = Tensor("y", shape)
    check_shapes(Graph([x], [y], [op(x, y)]))
    y.shape = (*shape[:-1], shape[-1] + 1)
    with pytest.raises(InputError):
        check_shapes(Graph([x], [y], [op(x, y)]))
