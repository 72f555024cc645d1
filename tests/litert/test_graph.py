"""The flatbuffer reader and writer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mobilefit.errors import InputError
from mobilefit.int8 import with_random_ranges
from mobilefit.litert import compile, read_metadata
from mobilefit.litert.graph import ALIGNMENT, CODE, Op, Tensor, name_uniquely, parse, serialize


@pytest.fixture(scope="module")
def blob():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 40, 3), nn.Hardswish(), nn.Conv2d(40, 50, 1))
    return compile(net, (1, 3, 16, 16), metadata={"a": 1})


@pytest.mark.parametrize("int8", [False, True])
def test_reading_and_writing_changes_nothing(blob, int8):
    data = with_random_ranges(blob) if int8 else blob
    once = serialize(parse(data))
    assert serialize(parse(once)) == once
    before, after = parse(data), parse(once)
    assert after.metadata == before.metadata
    assert [op.name for op in after.ops] == [op.name for op in before.ops]
    for a, b in zip(before.tensors(), after.tensors(), strict=True):
        assert (a.name, a.shape, a.dtype) == (b.name, b.shape, b.dtype)
        assert (a.data is None) == (b.data is None)
        assert a.data is None or np.array_equal(a.data, b.data)
        assert (a.quantization is None) == (b.quantization is None)
        assert a.quantization is None or np.array_equal(a.quantization.scale, b.quantization.scale)


def test_a_custom_operator_is_read_and_written(blob):
    graph = parse(blob)
    out = Tensor("found", (1, 4))
    custom = {"custom": "Its_Name", "custom_options": b"\1\2\3"}
    graph.ops.append(Op(CODE.CUSTOM, [graph.outputs[0]], [out], **custom))
    graph.ops.append(Op(CODE.CUSTOM, [out], [Tensor("more", (1,))], custom="Other"))
    graph.outputs = [graph.ops[-1].output]
    data = serialize(graph)
    again = parse(data)
    assert serialize(again) == data
    first, second = again.ops[-2:]
    assert (first.name, first.custom, first.custom_options) == ("Its_Name", "Its_Name", b"\1\2\3")
    assert (second.name, second.custom_options) == ("Other", b"")


def test_operators_that_nothing_depends_on_are_dropped(blob):
    graph = parse(blob)
    kept = [op.name for op in graph.ops]
    graph.ops.insert(1, Op(CODE.RELU, [graph.ops[0].output], [Tensor("nobody", (1,))]))
    graph.drop_unread()
    assert [op.name for op in graph.ops] == kept


def test_weights_lie_at_multiples_of_16_bytes(blob):
    weights = [t.data for t in parse(blob).tensors() if t.data is not None]
    assert len(weights) == 4
    assert all(blob.index(data.tobytes()) % ALIGNMENT == 0 for data in weights)


def test_names_become_unique(blob):
    graph = parse(blob)
    for op in graph.ops:
        op.output.name = "same"
    name_uniquely(graph)
    names = [t.name for t in graph.tensors()]
    assert len(set(names)) == len(names)


def test_tensors_are_compared_by_identity():
    a, b = (Tensor.constant("a", np.zeros(2, np.float32)) for _ in range(2))
    assert a != b and len({a, b}) == 2


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\x08\0\0\0PK34" + bytes(100), b"text" * 50])
def test_what_is_no_model_is_refused(data):
    with pytest.raises(InputError, match="not a LiteRT model"):
        parse(data)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_model_is_refused(blob, share):
    cut = blob[: int(len(blob) * share)]
    for read in (parse, read_metadata):
        with pytest.raises(InputError, match="truncated or corrupt"):
            read(cut)
