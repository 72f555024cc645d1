"""Is a .tflite file what it says it is? Looked at before a reader or a runtime trusts it.

The Python reader of flatbuffers follows every offset and believes every length: garbage leads it
into hours of reading, and a runtime out of its memory. :func:`layout` sees that all offsets and
lengths stay within the file; :func:`content` that the numbers in it fit together: indices, the sizes
of constants, scales, the order of the operators, the memory that they take.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from mobilefit.errors import InputError

DAMAGED = ("the LiteRT model is truncated or corrupt", "export or copy the .tflite file again")
_DEEPEST = 64  # tables within tables, as flatbuffers' own verifier in C++ has it
_MOST_AT_ONCE = 2**32
"""Bytes of the tensors that are alive between two operators."""
_LARGEST = 2**31
"""Bytes of a tensor: a flatbuffer, and what LiteRT counts bytes with, ends there."""

# What lies at each slot of a table, where it is not a plain number. By schema.fbs.
_STRING = ("vector", 1)
_INTS, _LONGS, _BYTES = ("vector", 4), ("vector", 8), ("vector", 1)
_TABLES: dict[str, dict[int, tuple[str, Any]]] = {
    "Model": {
        1: ("tables", "OperatorCode"), 2: ("tables", "SubGraph"), 3: _STRING,
        4: ("tables", "Buffer"), 5: _INTS, 6: ("tables", "Metadata"),
        7: ("tables", "SignatureDef"), 8: ("tables", "Named"), 9: ("tables", "ExternalBuffer"),
    },
    "OperatorCode": {1: _STRING},
    "SubGraph": {0: ("tables", "Tensor"), 1: _INTS, 2: _INTS, 3: ("tables", "Operator"), 4: _STRING},
    "Tensor": {
        0: _INTS, 3: _STRING, 4: ("table", "Quantization"), 6: ("table", "Sparsity"), 7: _INTS,
        9: ("tables", "VariantSubType"),
    },
    "Quantization": {0: _INTS, 1: _INTS, 2: _INTS, 3: _LONGS, 5: ("table", "Options")},
    "Sparsity": {0: _INTS, 1: _INTS, 2: ("tables", "DimensionMetadata")},
    "DimensionMetadata": {3: ("table", "Options"), 5: ("table", "Options")},
    "VariantSubType": {0: _INTS},
    "Operator": {
        1: _INTS, 2: _INTS, 4: ("table", "Options"), 5: _BYTES, 7: _BYTES, 8: _INTS,
        12: ("table", "Options"),
    },
    "Options": {},  # one of the hundred unions: numbers, and vectors of numbers
    "Buffer": {0: _BYTES},
    "Metadata": {0: _STRING},
    "SignatureDef": {0: ("tables", "TensorMap"), 1: ("tables", "TensorMap"), 2: _STRING},
    "TensorMap": {0: _STRING},
    "Named": {0: _STRING},
    "ExternalBuffer": {4: _STRING},
}  # fmt: skip


def layout(blob: bytes) -> None:
    """See that every table, vector and string lies within the file.

    Raises:
        InputError: one does not.
    """
    try:
        file = _Layout(blob)
        file.table(file.offset(0), "Model", 0)
    except struct.error as error:  # a number that would lie outside
        raise InputError(*DAMAGED) from error


class _Layout:
    def __init__(self, blob: bytes) -> None:
        self.blob = blob
        self.left = len(blob) // 4  # tables: each takes at least the four bytes of its reference

    def offset(self, place: int) -> int:
        """Where the reference at ``place`` leads."""
        target: int = place + struct.unpack_from("<I", self.blob, place)[0]
        return target

    def table(self, place: int, kind: str, depth: int) -> None:
        self.left -= 1
        _require(self.left >= 0 and depth < _DEEPEST)
        vtable: int = place - struct.unpack_from("<i", self.blob, place)[0]
        _require(vtable >= 0)
        size, inline = struct.unpack_from("<HH", self.blob, vtable)
        _require(size >= 4 and vtable + size <= len(self.blob))
        _require(inline >= 4 and place + inline <= len(self.blob))
        for slot, (what, of) in _TABLES[kind].items():
            entry = 4 + 2 * slot
            field = struct.unpack_from("<H", self.blob, vtable + entry)[0] if entry < size else 0
            if not field:
                continue
            target = self.offset(place + field)
            if what == "table":
                self.table(target, of, depth + 1)
            else:
                for item in self.vector(target, 4 if what == "tables" else of, what == "tables"):
                    self.table(self.offset(item), of, depth + 1)

    def vector(self, place: int, width: int, references: bool) -> Iterable[int]:
        """The places of a vector's references, after a look at its length."""
        (length,) = struct.unpack_from("<I", self.blob, place)
        _require(place + 4 + length * width <= len(self.blob))
        return range(place + 4, place + 4 + 4 * length, 4) if references else ()


def content(model: schema.ModelT) -> None:
    """See that indices point to something, constants have their size, and scales are numbers.

    Raises:
        InputError: something does not fit; an impossible scale or size names its tensor.
    """
    buffers, codes = len(model.buffers), len(model.operatorCodes or [])
    for sub in model.subgraphs:
        tensors = sub.tensors or []
        for tensor in tensors:
            _require(tensor.buffer < buffers)
            _check_tensor(tensor, model.buffers[tensor.buffer].data)
        _indices(sub.inputs, len(tensors))
        _indices(sub.outputs, len(tensors))
        for op in sub.operators or []:
            _require(op.opcodeIndex < codes)
            _indices(op.inputs, len(tensors), least=-1)
            _indices(op.outputs, len(tensors))
        _check_order(sub, model.buffers)
    for entry in model.metadata or []:
        _require(entry.buffer < buffers and entry.name is not None)
    for signature in model.signatureDefs or []:
        _require(signature.subgraphIndex < len(model.subgraphs))
        tensors = model.subgraphs[signature.subgraphIndex].tensors or []
        sub = model.subgraphs[signature.subgraphIndex]
        for maps, known in ((signature.inputs or [], sub.inputs), (signature.outputs or [], sub.outputs)):
            _indices([m.tensorIndex for m in maps], len(tensors))
            _require({m.tensorIndex for m in maps} <= {int(i) for i in _all(known)})
            _require(all(m.name is not None for m in maps))
        _require(signature.signatureKey is not None)


def _check_order(sub: schema.SubGraphT, buffers: list[schema.BufferT]) -> None:
    """Check that operators read what is there by then, that nothing is written twice, and what is alive at a time."""
    tensors = sub.tensors or []
    sizes = [_bytes(tensor) for tensor in tensors]
    written = {i for i, tensor in enumerate(tensors) if len(_all(buffers[tensor.buffer].data))}  # constants
    written.update(int(index) for index in _all(sub.inputs))
    unwritten = {i for i, tensor in enumerate(tensors) if tensor.isVariable or not sizes[i]}
    ops = [([int(i) for i in _all(op.inputs) if i >= 0], [int(i) for i in _all(op.outputs)]) for op in sub.operators or []]
    ends: dict[int, set[int]] = {}
    for index, place in {index: place for place, (read, _) in enumerate(ops) for index in read}.items():
        ends.setdefault(place, set()).add(index)
    alive = sum(sizes[int(index)] for index in _all(sub.inputs))
    for place, (read, made) in enumerate(ops):
        early = next((index for index in read if index not in written and index not in unwritten), None)
        if early is not None:
            raise InputError(
                f"operator {place} of the LiteRT model reads the tensor {_name(tensors[early])}, which nothing has written",
                DAMAGED[1],
            )
        if len({*made}) < len(made) or not written.isdisjoint(made):
            raise InputError(f"operator {place} of the LiteRT model writes what is written already", DAMAGED[1])
        written.update(made)
        alive += sum(sizes[index] for index in made)
        if alive > _MOST_AT_ONCE:
            raise InputError(
                f"the LiteRT model needs {alive / 2**30:.1f} GiB for its tensors, more than {_MOST_AT_ONCE >> 30}",
                "export it for smaller images",
            )
        constants = (index for index in ends.get(place, ()) if not len(_all(buffers[tensors[index].buffer].data)))
        alive -= sum(sizes[index] for index in constants)
    _require(written.union(unwritten).issuperset(int(index) for index in _all(sub.outputs)))


def _all(values: Any) -> Any:
    return () if values is None else values


def _bytes(tensor: schema.TensorT) -> int:
    """0 of a tensor without values, and of a type whose values have no fixed size."""
    return -(-math.prod(int(side) for side in _all(tensor.shape)) * _BITS.get(tensor.type, 0) // 8)


def _check_tensor(tensor: schema.TensorT, data: Any) -> None:
    shape = [] if tensor.shape is None else [int(side) for side in tensor.shape]
    _require(all(side >= 0 for side in shape))
    bits = _BITS.get(tensor.type)
    if bits is not None:
        size = _bytes(tensor)
        if size > _LARGEST:
            raise InputError(
                f"the LiteRT model's tensor {_name(tensor)} of shape {shape} is too large", DAMAGED[1]
            )
        _require(data is None or len(data) == 0 or tensor.sparsity is not None or len(data) == size)
    q = tensor.quantization
    if q is not None and q.scale is not None:
        scale = np.asarray(q.scale)
        bad = scale[~(np.isfinite(scale) & (scale >= 0))]
        if len(bad):
            raise InputError(
                f"the scale of the LiteRT model's tensor {_name(tensor)} is {bad[0]:g}",
                "LiteRT would abort on it; quantize the network again",
            )
        _require(q.zeroPoint is None or len(q.zeroPoint) in (0, 1, len(scale)))
        _require(len(scale) <= 1 or 0 <= q.quantizedDimension < max(1, len(shape)))


def _name(tensor: schema.TensorT) -> str:
    return "without a name" if tensor.name is None else repr(tensor.name.decode(errors="replace"))


def _indices(values: Any, count: int, least: int = 0) -> None:
    _require(values is None or all(least <= int(value) < count for value in values))


def _require(good: bool) -> None:
    if not good:
        raise InputError(*DAMAGED)


_KIND = schema.TensorType
_BITS: dict[int, int] = {
    _KIND.FLOAT32: 32, _KIND.FLOAT16: 16, _KIND.INT32: 32, _KIND.UINT8: 8, _KIND.INT64: 64,
    _KIND.BOOL: 8, _KIND.INT16: 16, _KIND.COMPLEX64: 64, _KIND.INT8: 8, _KIND.FLOAT64: 64,
    _KIND.UINT64: 64, _KIND.UINT32: 32, _KIND.UINT16: 16, _KIND.INT4: 4,
}  # fmt: skip
"""Of one value, by type; those of other types have no fixed size."""
