"""What a file is looked at for before a reader or a runtime trusts it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import flatbuffers
import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import nn

from mobilefit.errors import InputError
from mobilefit.int8 import with_random_ranges
from mobilefit.litert import compile, verify
from mobilefit.litert.graph import unpack
from mobilefit.litert.verify import layout


@pytest.fixture(scope="module")
def blob() -> bytes:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    return with_random_ranges(compile(net, (1, 3, 8, 8), metadata={"a": 1}))


def changed(blob: bytes, change: Callable[[Any], None]) -> bytes:
    """The file after a change to the schema's objects."""
    model = schema.ModelT.InitFromPackedBuf(blob, 0)
    change(model)
    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def on_tensor(name: str, value: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        weights = model.subgraphs[0].operators[1].inputs[1]
        tensor = model.subgraphs[0].tensors[weights]
        owner = tensor.quantization if hasattr(tensor.quantization, name) else tensor
        setattr(owner, name, value)

    return change


def test_a_whole_file_is_taken(blob: bytes) -> None:
    assert unpack(changed(blob, lambda model: None)).subgraphs[0].operators


CHANGES: dict[str, Callable[[Any], None]] = {
    "a buffer that is not there": on_tensor("buffer", 999),
    "a shape that the constant has not": on_tensor("shape", [8, 3, 3, 4]),
    "a type that the constant has not": on_tensor("type", schema.TensorType.FLOAT32),
    "a side below zero": on_tensor("shape", [8, 3, 3, -3]),
    "an axis that is not there": on_tensor("quantizedDimension", 4),
    "zero points for other channels": on_tensor("zeroPoint", np.zeros(3, np.int64)),
    "an operator code that is not there": lambda m: setattr(
        m.subgraphs[0].operators[0], "opcodeIndex", 77
    ),
    "an input that is not there": lambda m: setattr(m.subgraphs[0].operators[0], "inputs", [0, 99]),
    "an output that is none": lambda m: setattr(m.subgraphs[0].operators[0], "outputs", [-1]),
    "a graph's output that is not there": lambda m: setattr(m.subgraphs[0], "outputs", [99]),
    "a signature of no subgraph": lambda m: setattr(m.signatureDefs[0], "subgraphIndex", 5),
    "a signature of no tensor": lambda m: setattr(m.signatureDefs[0].inputs[0], "tensorIndex", 99),
    "metadata in no buffer": lambda m: setattr(m.metadata[0], "buffer", 99),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_does_not_fit_together_is_refused(what: str, blob: bytes) -> None:
    bad = changed(blob, CHANGES[what])
    layout(bad)  # as a flatbuffer it is well made
    with pytest.raises(InputError, match="truncated or corrupt"):
        unpack(bad)


def test_a_tensor_beyond_all_memory_is_named(blob: bytes) -> None:
    def change(model: Any) -> None:
        tensor = model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]]
        tensor.name, tensor.shape = b"image", [1, 60_000, 60_000, 3]

    with pytest.raises(InputError, match=r"tensor 'image' of shape \[1, 60000, 60000, 3\] is too"):
        unpack(changed(blob, change))


def operators(model: Any) -> Any:
    return model.subgraphs[0].operators


ORDERS: dict[str, tuple[Callable[[Any], None], str]] = {
    "swapped": (lambda m: operators(m).reverse(), "which nothing has written"),
    "doubled": (lambda m: operators(m).append(operators(m)[0]), "writes what is written already"),
    "dropped": (lambda m: operators(m).pop(0), "which nothing has written"),
    "the last one dropped": (lambda m: operators(m).pop(), "truncated or corrupt"),
    "reading itself": (lambda m: setattr(operators(m)[0], "inputs", [*operators(m)[0].outputs]), "which nothing"),
    "writing the input": (lambda m: setattr(operators(m)[0], "outputs", m.subgraphs[0].inputs), "written already"),
    "writing weights": (lambda m: setattr(operators(m)[1], "outputs", operators(m)[1].inputs[1:2]), "written already"),
    "a signature of something within": (
        lambda m: setattr(m.signatureDefs[0].outputs[0], "tensorIndex", operators(m)[0].outputs[0]), "truncated or corrupt",
    ),
}


@pytest.mark.parametrize("what", ORDERS)
def test_operators_that_cannot_follow_each_other(what: str, blob: bytes) -> None:
    change, message = ORDERS[what]
    with pytest.raises(InputError, match=message):
        unpack(changed(blob, change))


def test_tensors_that_are_large_together_are_counted(blob: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """8x8x3 numbers and 6x6x8 of one byte each are alive around the first convolution, quantized before it."""
    monkeypatch.setattr(verify, "_MOST_AT_ONCE", 8 * 8 * 3 * 5)
    unpack(blob)
    monkeypatch.setattr(verify, "_MOST_AT_ONCE", 8 * 8 * 3 * 5 - 1)
    with pytest.raises(InputError, match="GiB for its tensors"):
        unpack(blob)


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("value", [0xFFFFFFFF, 0x7FFFFFFF, 0x80000000])
def test_wild_offsets_are_refused(steps: int, value: int, blob: bytes) -> None:
    """In the place of the reference to the root, of the root's to its form, of a field's reference."""
    root = struct.unpack_from("<I", blob)[0]
    form = root - struct.unpack_from("<i", blob, root)[0]
    subgraphs = root + struct.unpack_from("<H", blob, form + 4 + 2 * 2)[0]
    bad = bytearray(blob)
    struct.pack_into("<I", bad, (0, root, subgraphs)[steps], value)
    with pytest.raises(InputError, match="truncated or corrupt"):
        layout(bytes(bad))


def test_tables_that_share_their_parts_are_not_followed_a_million_times() -> None:
    """Vectors whose thousand references all lead to one table with such a vector: a million visits."""
    builder = flatbuffers.Builder(1 << 16)
    name = builder.CreateString("t")
    schema.TensorMapStart(builder)
    schema.TensorMapAddName(builder, name)
    inner = schema.TensorMapEnd(builder)
    for start, add, end in (
        (schema.SignatureDefStart, schema.SignatureDefAddInputs, schema.SignatureDefEnd),
        (schema.ModelStart, schema.ModelAddSignatureDefs, schema.ModelEnd),
    ):
        builder.StartVector(4, 1000, 4)
        for _ in range(1000):
            builder.PrependUOffsetTRelative(inner)
        vector = builder.EndVector()
        start(builder)
        add(builder, vector)
        inner = end(builder)
    builder.Finish(inner, file_identifier=b"TFL3")
    with pytest.raises(InputError, match="truncated or corrupt"):
        layout(bytes(builder.Output()))
