"""A LiteRT flatbuffer as a small object graph: built, read, rewritten, written.

The compiler, the passes and the int8 writer all work on :class:`Graph`; only this module knows the
flatbuffer schema (``ai_edge_litert.schema_py_generated``, generated from tensorflow's schema.fbs).
One subgraph and one signature, which is what every network of this project is.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from mobilefit.errors import InputError
from mobilefit.litert.verify import DAMAGED, content, layout
from mobilefit.parsing import parse_json

FILE_IDENTIFIER = b"TFL3"
METADATA_NAME = "mobilefit"
SIGNATURE = "serving_default"
ALIGNMENT = 16  # schema.fbs: Buffer.data has force_align 16, which the Python generator leaves out

CODE = schema.BuiltinOperator
_CODE_NAMES: dict[int, str] = {v: k for k, v in vars(CODE).items() if isinstance(v, int)}
_TYPES: dict[int, np.dtype[Any]] = {
    schema.TensorType.FLOAT32: np.dtype(np.float32),
    schema.TensorType.FLOAT16: np.dtype(np.float16),
    schema.TensorType.INT32: np.dtype(np.int32),
    schema.TensorType.UINT8: np.dtype(np.uint8),
    schema.TensorType.INT64: np.dtype(np.int64),
    schema.TensorType.BOOL: np.dtype(np.bool_),
    schema.TensorType.INT8: np.dtype(np.int8),
    schema.TensorType.INT16: np.dtype(np.int16),
}
_TYPE_CODES = {dtype: code for code, dtype in _TYPES.items()}


@dataclass(frozen=True, eq=False)
class Quantization:
    """Affine quantization: ``real = scale * (stored - zero_point)``, per tensor or per channel."""

    scale: np.ndarray  # float32 [1] or [channels]
    zero_point: np.ndarray  # int64, same length
    dimension: int = 0  # the axis that per-channel scales run along


@dataclass(eq=False)
class Tensor:
    """A tensor of the graph; ``data`` is None for activations. Compared by identity."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float32))
    data: np.ndarray | None = None
    quantization: Quantization | None = None

    @classmethod
    def constant(cls, name: str, data: np.ndarray) -> Tensor:
        return cls(name, data.shape, data.dtype, data)


@dataclass(eq=False)
class Op:
    """One operator; ``code`` is a ``BuiltinOperator``, ``options`` the schema's own object.

    One that is not built in has ``CODE.CUSTOM``, its name in ``custom`` and its options as bytes.
    """

    code: int
    inputs: list[Tensor | None]
    outputs: list[Tensor]
    options: Any = None
    version: int = 1
    custom: str = ""
    custom_options: bytes = b""

    @property
    def name(self) -> str:
        return self.custom or _CODE_NAMES.get(self.code, str(self.code))

    @property
    def output(self) -> Tensor:
        return self.outputs[0]

    @property
    def activation(self) -> int:
        """The fused activation, ``ActivationFunctionType.NONE`` where the operator has none."""
        return int(getattr(self.options, "fusedActivationFunction", 0))


@dataclass(eq=False)
class Graph:
    """A whole model: operators in execution order, inputs, outputs, named metadata."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    ops: list[Op] = field(default_factory=list)
    metadata: dict[str, bytes] = field(default_factory=dict)
    input_names: list[str] = field(default_factory=lambda: ["input"])
    output_names: list[str] = field(default_factory=lambda: ["output"])
    signature: str = SIGNATURE

    def tensors(self) -> list[Tensor]:
        """Every tensor in use, each once: inputs, then in the order of the operators."""
        found: dict[Tensor, None] = dict.fromkeys(self.inputs)
        for op in self.ops:
            found.update(dict.fromkeys(t for t in op.inputs if t is not None))
            found.update(dict.fromkeys(op.outputs))
        found.update(dict.fromkeys(self.outputs))
        return list(found)

    def uses(self) -> Counter[Tensor]:
        """How often each tensor is read: by an operator or as an output of the graph."""
        count = Counter(t for op in self.ops for t in op.inputs if t is not None)
        count.update(self.outputs)
        return count

    def producers(self) -> dict[Tensor, Op]:
        return {tensor: op for op in self.ops for tensor in op.outputs}

    def drop_unread(self) -> None:
        """Leave operators out that no output depends on, in place."""
        wanted, kept = set(self.outputs), []
        for op in reversed(self.ops):
            if not wanted.isdisjoint(op.outputs):
                wanted.update(t for t in op.inputs if t is not None)
                kept.append(op)
        self.ops = kept[::-1]


# ---- writing


class _AlignedBuffer(schema.BufferT):  # type: ignore[misc]
    """A buffer whose data is copied in one piece and starts at a multiple of 16 bytes."""

    def Pack(self, builder: flatbuffers.Builder) -> int:
        data = None if self.data is None else aligned_vector(builder, self.data)
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        return int(schema.BufferEnd(builder))


def aligned_vector(builder: flatbuffers.Builder, data: bytes) -> int:
    """Write bytes at a multiple of :data:`ALIGNMENT`; where they lie."""
    builder.StartVector(1, len(data), ALIGNMENT)
    builder.head -= len(data)
    builder.Bytes[builder.head : builder.head + len(data)] = data
    return int(builder.EndVector())


def name_uniquely(graph: Graph) -> None:
    """Give tensors that share a name a suffix each, in place: the quantizer keys on names."""
    taken: set[str] = set()
    repeats: Counter[str] = Counter()  # from where on to look: a file may call all its tensors alike
    for tensor in graph.tensors():
        name = tensor.name
        while tensor.name in taken:
            repeats[name] += 1
            tensor.name = f"{name};{repeats[name] + 1}"
        taken.add(tensor.name)


def serialize(graph: Graph) -> bytes:
    """The flatbuffer of ``graph``, whose tensors get unique names on the way."""
    name_uniquely(graph)
    tensors = graph.tensors()
    index = {tensor: i for i, tensor in enumerate(tensors)}
    buffers = [_AlignedBuffer()]  # buffer 0 is the empty one, by convention
    subgraph = schema.SubGraphT(
        tensors=_pack_tensors(tensors, buffers),
        inputs=[index[t] for t in graph.inputs],
        outputs=[index[t] for t in graph.outputs],
        name=b"main",
    )
    codes = sorted({_code(op) for op in graph.ops})
    subgraph.operators = [_pack_op(op, codes, index) for op in graph.ops]
    model = schema.ModelT(
        version=3,
        operatorCodes=[_pack_code(*code) for code in codes],
        subgraphs=[subgraph],
        description=b"mobilefit",
        signatureDefs=[_pack_signature(graph, index)],
    )
    model.metadata = [
        schema.MetadataT(name=name.encode(), buffer=_add_buffer(buffers, data))
        for name, data in graph.metadata.items()
    ]
    model.buffers = buffers
    size = sum(len(b.data) + 64 for b in buffers if b.data is not None)
    builder = flatbuffers.Builder(size + 65536)
    builder.Finish(model.Pack(builder), file_identifier=FILE_IDENTIFIER)
    return bytes(builder.Output())


def _add_buffer(buffers: list[_AlignedBuffer], data: bytes) -> int:
    buffers.append(_AlignedBuffer(data=data))
    return len(buffers) - 1


def _pack_tensors(tensors: list[Tensor], buffers: list[_AlignedBuffer]) -> list[schema.TensorT]:
    packed = []
    for tensor in tensors:
        data = tensor.data
        packed.append(
            schema.TensorT(
                shape=list(tensor.shape),
                type=_TYPE_CODES[tensor.dtype],
                buffer=0 if data is None else _add_buffer(buffers, data.tobytes()),
                name=tensor.name.encode(),
                quantization=_pack_quantization(tensor.quantization),
                hasRank=True,
            )
        )
    return packed


def _pack_quantization(q: Quantization | None) -> schema.QuantizationParametersT | None:
    if q is None:
        return None
    return schema.QuantizationParametersT(
        scale=np.asarray(q.scale, np.float32),
        zeroPoint=np.asarray(q.zero_point, np.int64),
        quantizedDimension=q.dimension,
    )


_Code = tuple[int, int, str]


def _code(op: Op) -> _Code:
    return op.code, op.version, op.custom


def _pack_op(op: Op, codes: list[_Code], index: dict[Tensor, int]) -> schema.OperatorT:
    kind = 0
    if op.options is not None:
        kind = getattr(schema.BuiltinOptions, type(op.options).__name__.removesuffix("T"))
    return schema.OperatorT(
        opcodeIndex=codes.index(_code(op)),
        inputs=[-1 if t is None else index[t] for t in op.inputs],
        outputs=[index[t] for t in op.outputs],
        builtinOptionsType=kind,
        builtinOptions=op.options,
        customOptions=np.frombuffer(op.custom_options, np.uint8) if op.custom else None,
    )


def _pack_code(code: int, version: int, custom: str) -> schema.OperatorCodeT:
    # Codes under 127 are written in both fields, so that runtimes from before the wider one read it
    return schema.OperatorCodeT(
        deprecatedBuiltinCode=min(code, 127),
        builtinCode=code,
        version=version,
        customCode=custom.encode() if custom else None,
    )


def _pack_signature(graph: Graph, index: dict[Tensor, int]) -> schema.SignatureDefT:
    def maps(names: list[str], tensors: list[Tensor]) -> list[schema.TensorMapT]:
        return [
            schema.TensorMapT(name=name.encode(), tensorIndex=index[tensor])
            for name, tensor in zip(names, tensors, strict=True)
        ]

    return schema.SignatureDefT(
        inputs=maps(graph.input_names, graph.inputs),
        outputs=maps(graph.output_names, graph.outputs),
        signatureKey=graph.signature.encode(),
    )


# ---- reading


def unpack(blob: bytes) -> schema.ModelT:
    """The schema's own object of a .tflite file.

    Raises:
        InputError: the bytes are not a LiteRT model, or are damaged (see :mod:`~.verify`).
    """
    if len(blob) < 8 or bytes(blob[4:8]) != FILE_IDENTIFIER:
        raise InputError(
            "not a LiteRT model: its first bytes lack the mark 'TFL3'", "give a .tflite file"
        )
    layout(blob)
    try:
        model = schema.ModelT.InitFromPackedBuf(blob, 0)
        complete = bool(model.subgraphs and model.buffers)
    except Exception as error:  # the schema reader raises whatever the garbage leads it to
        raise InputError(*DAMAGED) from error
    if not complete:
        raise InputError(*DAMAGED)
    for buffer in model.buffers:
        _bring_in(buffer, blob)
    content(model)
    return model


def _bring_in(buffer: schema.BufferT, blob: bytes) -> None:
    """The LiteRT quantizer puts large buffers behind the flatbuffer; most readers look inside."""
    if buffer.offset > 1:  # 0 and 1 mean that there is none
        if buffer.offset + buffer.size > len(blob):
            raise InputError(*DAMAGED)
        buffer.data = np.frombuffer(blob, np.uint8, buffer.size, buffer.offset)
        buffer.offset = buffer.size = 0


def parse(blob: bytes) -> Graph:
    """The graph of a .tflite file with one subgraph, for rewriting.

    Raises:
        InputError: not a LiteRT model, damaged, or of a form that this project never writes.
    """
    model = unpack(blob)
    if len(model.subgraphs) != 1:
        raise InputError(
            f"the LiteRT model has {len(model.subgraphs)} subgraphs", "only one is supported"
        )
    try:
        return _graph(model)
    except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(*DAMAGED) from error


def _graph(model: schema.ModelT) -> Graph:
    sub = model.subgraphs[0]
    tensors = [_tensor(t, model.buffers) for t in sub.tensors]
    graph = Graph([tensors[i] for i in sub.inputs], [tensors[i] for i in sub.outputs])
    for packed in sub.operators:
        code = model.operatorCodes[packed.opcodeIndex]
        graph.ops.append(
            Op(
                max(code.builtinCode, code.deprecatedBuiltinCode),
                [None if i < 0 else tensors[i] for i in _ints(packed.inputs)],
                [tensors[i] for i in packed.outputs],
                packed.builtinOptions,
                code.version,
                "" if code.customCode is None else code.customCode.decode(),
                b"" if packed.customOptions is None else bytes(packed.customOptions),
            )
        )
    for entry in model.metadata or []:
        data = model.buffers[entry.buffer].data
        graph.metadata[entry.name.decode()] = b"" if data is None else bytes(data)
    _read_signature(graph, model, tensors)
    return graph


def _read_signature(graph: Graph, model: schema.ModelT, tensors: list[Tensor]) -> None:
    graph.input_names = [t.name for t in graph.inputs]
    graph.output_names = [t.name for t in graph.outputs]
    if model.signatureDefs:
        signature = model.signatureDefs[0]
        if (len(signature.inputs or []), len(signature.outputs or [])) != (len(graph.inputs), len(graph.outputs)):
            raise InputError(*DAMAGED)
        graph.signature = signature.signatureKey.decode()
        graph.inputs = [tensors[m.tensorIndex] for m in signature.inputs]
        graph.outputs = [tensors[m.tensorIndex] for m in signature.outputs]
        graph.input_names = [m.name.decode() for m in signature.inputs]
        graph.output_names = [m.name.decode() for m in signature.outputs]


def _ints(values: Any) -> list[int]:
    return [] if values is None else [int(v) for v in values]


def _tensor(packed: schema.TensorT, buffers: list[schema.BufferT]) -> Tensor:
    dtype = _TYPES[packed.type]
    shape = tuple(_ints(packed.shape))
    raw = buffers[packed.buffer].data
    data = None if raw is None else np.frombuffer(raw, dtype).reshape(shape)
    q = packed.quantization
    quantization = None
    if q is not None and q.scale is not None and len(q.scale):
        quantization = Quantization(
            np.asarray(q.scale), np.asarray(q.zeroPoint), q.quantizedDimension
        )
    return Tensor(packed.name.decode(), shape, dtype, data, quantization)


# ---- metadata


def encode_metadata(metadata: dict[str, Any] | None) -> dict[str, bytes]:
    """The graph's metadata entry for a JSON-able dictionary; empty for None."""
    if metadata is None:
        return {}
    return {METADATA_NAME: json.dumps(metadata, sort_keys=True).encode()}


def read_metadata(blob: bytes) -> dict[str, Any] | None:
    """The dictionary that ``compile`` attached to the file, or None where there is none.

    Raises:
        InputError: ``blob`` is not a LiteRT model, or is damaged.
    """
    model = unpack(blob)
    for entry in model.metadata or []:
        if entry.name == METADATA_NAME.encode():
            try:
                loaded: dict[str, Any] = parse_json(bytes(model.buffers[entry.buffer].data))
            except (IndexError, TypeError, ValueError) as error:
                raise InputError(*DAMAGED) from error
            return loaded
    return None
