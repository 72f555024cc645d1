"""What a detector's or segmenter's outputs become in the file: boxes, detections, label maps.

A compiled network gives what the module gives: encodings and logits of a detector, logits of a segmenter.
Programs that run a file want boxes or classes, so operators are put behind these outputs. They are no part
of the network: they are float32 also in an int8 file (a box in steps of an eighth of a bit would be off by
pixels), and quantizing or converting takes them off (:func:`split`) and puts them back (:func:`join`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

from mobilefit.arch.heads import SegmentationHead, SSDLiteHead
from mobilefit.arch.spec import NetSpec
from mobilefit.errors import InputError, unknown
from mobilefit.litert.graph import (
    CODE,
    Graph,
    Op,
    Tensor,
    encode_metadata,
    parse,
    read_metadata,
    serialize,
)
from mobilefit.litert.metadata import BOXES, DETECTIONS, STANDARD_NAME
from mobilefit.litert.passes import add_op, concatenate_op, mul_op
from mobilefit.nn import boxes

Nms = Literal["file", "outside"]
Form = Literal["logits", "labels", "coarse"]

POST_PROCESS = "TFLite_Detection_PostProcess"
"""The custom operator of non-maximum suppression; every build of LiteRT has it."""
_PREFIX = "outputs/"


@dataclass(frozen=True, kw_only=True)
class DetectionOutputs:
    """A detector's outputs.

    ``file``: detections. ``location`` float32 ``[1, max_detections, 4]`` (y0, x0, y1, x1 as parts of the
    image's sides, clipped to it), ``category`` ``[1, max_detections]`` (classes from 0),
    ``score``, and ``number of detections`` ``[1]``: what is behind that many means nothing.

    ``outside``: ``boxes`` float32 ``[1, A, 4]`` (x0, y0, x1, y1 as parts of the sides, not clipped) and
    ``scores`` ``[1, A, num_classes]`` of every anchor: :func:`mobilefit.nn.boxes.select` picks among them.
    """

    nms: Nms = "file"
    score_threshold: float | None = None
    """``None``, here and below: as published for the head's scoring, see :data:`mobilefit.nn.boxes.RULES`.
    With these 1e-8 or 1e-3, which serve to measure precision, suppression takes longer than the network."""
    iou_threshold: float | None = None
    max_detections: int | None = None
    class_wise: bool = False
    """Whether boxes of one class alone suppress each other. Otherwise each anchor has its best class,
    and all boxes suppress each other, as in TensorFlow's own files. In a ``file`` class by class is for one thread
    alone: with t threads the operator passes over class t, without a word (LiteRT 2.3 and TFLite before it)."""

    def __post_init__(self) -> None:
        if self.nms not in get_args(Nms):
            raise unknown("place of the suppression", self.nms, get_args(Nms))


@dataclass(frozen=True, kw_only=True)
class SegmentationOutputs:
    """A segmenter's output, of the size of its input but for the last.

    ``logits``: float32 ``[1, H, W, num_classes]``. ``labels``: the class of each pixel, uint8 ``[1, H, W]``.
    ``coarse``: logits before they are resized, for programs that resize themselves, as MediaPipe does.
    """

    form: Form = "logits"

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise unknown("form of the output", self.form, get_args(Form))


Outputs = DetectionOutputs | SegmentationOutputs


@dataclass(frozen=True, eq=False)
class Tail:
    """Operators behind a network's own outputs."""

    sources: list[Tensor]
    """The network's outputs, as it gave them when the tail was made."""
    ops: list[Op]
    outputs: list[Tensor]
    names: list[str]


def with_outputs(blob: bytes, spec: NetSpec, outputs: Outputs) -> bytes:
    """A file with operators behind the network's own outputs; its JSON tells which (``outputs``).

    Args:
        blob: compiled from a network of ``spec``, float32 or quantized.
        spec: says where the anchors are and how logits become scores.
        outputs: of the head's kind.

    Raises:
        InputError: they are of another kind, a threshold is out of range, or the file is not of ``spec``,
            has operators behind its outputs already, or takes several images at once.
    """
    graph = parse(blob)
    if isinstance(outputs, DetectionOutputs):
        tail = _Detection(spec, outputs, graph).tail()
    elif not isinstance(spec.head, SegmentationHead):
        raise InputError(f"'{spec.name}' is no segmenter: its head is for '{spec.task}'")
    else:
        tail = _segmentation(outputs, graph)
    description = {**(read_metadata(blob) or {}), "outputs": asdict(outputs)}
    graph.metadata |= encode_metadata(description)
    return _joined(graph, tail)


def split(blob: bytes) -> tuple[bytes, Tail | None]:
    """A network alone, and what :func:`with_outputs` put behind it: ``None`` where there is nothing.

    Raises:
        InputError: ``blob`` is no LiteRT file, or is damaged.
    """
    graph = parse(blob)
    behind = [op for op in graph.ops if op.output.name.startswith(_PREFIX)]
    if not behind:
        return blob, None
    made = {tensor for op in behind for tensor in op.outputs}
    read = [t for op in behind for t in op.inputs if t is not None and t.data is None and t not in made]
    sources = list(dict.fromkeys(read))  # a tail reads them first in the network's order
    tail = Tail(sources, behind, graph.outputs, graph.output_names)
    graph.ops = [op for op in graph.ops if op not in set(behind)]
    graph.outputs = sources
    graph.output_names = ["output", *(f"output_{i}" for i in range(1, len(sources)))]
    graph.metadata.pop(STANDARD_NAME, None)
    return serialize(graph), tail


def join(blob: bytes, tail: Tail | None) -> bytes:
    """A network, in whatever format, with a tail behind its outputs.

    Raises:
        InputError: the network has other outputs than the one that the tail was made for.
    """
    return blob if tail is None else _joined(parse(blob), tail)


def _joined(graph: Graph, tail: Tail) -> bytes:
    shapes = [[t.shape for t in tensors] for tensors in (graph.outputs, tail.sources)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"the network gives {shapes[0]}, and what comes behind its outputs takes {shapes[1]}",
            "take the file that the outputs were made for",
        )
    real = {source: _real(graph, out) for source, out in zip(tail.sources, graph.outputs, strict=True)}
    for op in tail.ops:
        inputs = [real.get(t, t) if t is not None else None for t in op.inputs]
        if op.code == CODE.ARG_MAX:  # the largest is the largest in int8, too
            inputs[0] = _stored(graph, inputs[0])
        graph.ops.append(replace(op, inputs=inputs))
    graph.outputs, graph.output_names = [real.get(t, t) for t in tail.outputs], list(tail.names)
    graph.drop_unread()
    return serialize(graph)


def _real(graph: Graph, tensor: Tensor) -> Tensor:
    """The tensor in float32."""
    if tensor.dtype == np.float32:
        return tensor
    out = Tensor(f"{tensor.name}_dequant", tensor.shape)
    graph.ops.append(Op(CODE.DEQUANTIZE, [tensor], [out], schema.DequantizeOptionsT()))
    return out


def _stored(graph: Graph, tensor: Tensor | None) -> Tensor | None:
    maker = None if tensor is None else graph.producers().get(tensor)
    return maker.inputs[0] if maker is not None and maker.code == CODE.DEQUANTIZE else tensor


# ---- detection


class _Detection:
    """Builds the tail of a detector."""

    def __init__(self, spec: NetSpec, chosen: DetectionOutputs, graph: Graph) -> None:
        self.chosen, self.head = chosen, boxes.detector_head(spec)
        self.rule = boxes.rule(
            self.head.scoring, score_threshold=chosen.score_threshold,
            iou_threshold=chosen.iou_threshold, max_detections=chosen.max_detections,
        )  # fmt: skip
        self.anchors = boxes.spec_anchors(spec).numpy()  # cx, cy, w, h
        self.encodings, self.logits = _detector_outputs(graph, self.head, len(self.anchors))
        self.ops: list[Op] = []

    def tail(self) -> Tail:
        within = self.chosen.nms == "file"
        found = self.suppressed() if within else [self.boxes(), self.scores()]
        names = list(DETECTIONS if within else BOXES)
        return Tail([self.encodings, self.logits], self.ops, found, names)

    def emit(
        self, name: str, shape: Sequence[int], make: Callable[[Tensor], Op]
    ) -> Tensor:
        out = Tensor(f"{_PREFIX}{name}", tuple(shape))
        self.ops.append(make(out))
        return out

    def constant(self, name: str, value: Any) -> Tensor:
        return Tensor.constant(f"{_PREFIX}{name}", np.asarray(value, np.float32))

    def part(self, x: Tensor, name: str, first: int, count: int) -> Tensor:
        """Columns of rows."""
        shape = (*x.shape[:2], count)
        bounds = [
            Tensor.constant(f"{_PREFIX}{name}/{what}", np.asarray(value, np.int32))
            for what, value in (("begin", (0, 0, first)), ("size", shape))
        ]
        options = schema.SliceOptionsT()
        return self.emit(name, shape, lambda out: Op(CODE.SLICE, [x, *bounds], [out], options))

    def all_scores(self, x: Tensor) -> Tensor:
        if self.head.scoring == "sigmoid":
            return self.emit("scores", x.shape, lambda out: Op(CODE.LOGISTIC, [x], [out]))
        options = schema.SoftmaxOptionsT(beta=1.0)
        return self.emit("scores", x.shape, lambda out: Op(CODE.SOFTMAX, [x], [out], options))

    def scores(self) -> Tensor:
        """Without the background, which a softmax needs and sigmoids do not."""
        count = self.head.num_classes
        if self.head.scoring == "sigmoid":
            return self.all_scores(self.part(self.logits, "classes", 1, count))
        return self.part(self.all_scores(self.logits), "classes", 1, count)

    def boxes(self) -> Tensor:
        """:func:`mobilefit.nn.boxes.decode`, operator by operator."""
        moves, sides = boxes.WEIGHTS[0], boxes.WEIGHTS[2]
        shape = (*self.encodings.shape[:2], 2)
        centre, side = self.anchors[None, :, :2], self.anchors[None, :, 2:]
        at = self.part(self.encodings, "moved", 0, 2)
        at = self.emit("offset", shape, lambda out: mul_op(at, self.constant("sides", side / moves), out))
        at = self.emit("centre", shape, lambda out: add_op(at, self.constant("anchors", centre), out))
        size = self.part(self.encodings, "sized", 2, 2)
        most = self.constant("most", [boxes.LARGEST * sides])
        size = self.emit("capped", shape, lambda out: Op(
            CODE.MINIMUM, [size, most], [out], schema.MaximumMinimumOptionsT()
        ))  # fmt: skip
        size = self.emit("power", shape, lambda out: mul_op(size, self.constant("share", [1 / sides]), out))
        size = self.emit("grown", shape, lambda out: Op(CODE.EXP, [size], [out], schema.ExpOptionsT()))
        half = self.emit("half", shape, lambda out: mul_op(size, self.constant("halves", side / 2), out))
        low = self.emit("low", shape, lambda out: Op(CODE.SUB, [at, half], [out], schema.SubOptionsT()))
        high = self.emit("high", shape, lambda out: add_op(at, half, out))
        return self.emit("boxes", self.encodings.shape, lambda out: concatenate_op([low, high], out, 2))

    def suppressed(self) -> list[Tensor]:
        """The operator reads (y, x, h, w), for encodings and for anchors."""
        order = [1, 0, 3, 2]
        swap = self.constant("order", np.eye(4)[order])
        options = schema.FullyConnectedOptionsT(keepNumDims=True)
        encodings = self.emit("encodings", self.encodings.shape, lambda out: Op(
            CODE.FULLY_CONNECTED, [self.encodings, swap, None], [out], options
        ))  # fmt: skip
        anchors = self.constant("anchors", self.anchors[:, order])
        most = self.rule.max_detections
        shapes = ((1, most, 4), (1, most), (1, most), (1,))
        found = [Tensor(f"{_PREFIX}{name}", shape) for name, shape in zip(DETECTIONS, shapes, strict=True)]
        found[0].name += "/whole"
        inputs: list[Tensor | None] = [encodings, self.all_scores(self.logits), anchors]
        self.ops.append(
            Op(CODE.CUSTOM, inputs, found, custom=POST_PROCESS, custom_options=self.options())
        )
        return [self.clipped(found[0]), *found[1:]]

    def clipped(self, x: Tensor) -> Tensor:
        """To the image: MediaPipe would keep a box's width and move its edge."""
        for name, code, bound in (("right", CODE.MINIMUM, 1.0), ("location", CODE.MAXIMUM, 0.0)):
            inputs: list[Tensor | None] = [x, self.constant(f"{name}/bound", [bound])]
            x = Tensor(f"{_PREFIX}{name}", x.shape)
            self.ops.append(Op(code, inputs, [x], schema.MaximumMinimumOptionsT()))
        return x

    def options(self) -> bytes:
        x, y, w, h = boxes.WEIGHTS
        builder = flexbuffers.Builder()
        builder.MapFromElements({
            "max_detections": self.rule.max_detections, "max_classes_per_detection": 1,
            "detections_per_class": self.rule.max_detections, "use_regular_nms": self.chosen.class_wise,
            "nms_score_threshold": float(self.rule.score_threshold),
            "nms_iou_threshold": float(self.rule.iou_threshold), "num_classes": self.head.num_classes,
            "x_scale": x, "y_scale": y, "w_scale": w, "h_scale": h,
        })  # fmt: skip
        return bytes(builder.Finish())


def _detector_outputs(graph: Graph, head: SSDLiteHead, anchors: int) -> tuple[Tensor, Tensor]:
    wanted = [(1, anchors, 4), (1, anchors, head.num_classes + 1)]
    shapes = [t.shape for t in graph.outputs]
    if shapes != wanted:
        raise InputError(
            f"the file gives {shapes}, where encodings and logits of the network are {wanted}",
            "compile the network of this spec for one image at a time",
        )
    return graph.outputs[0], graph.outputs[1]


# ---- segmentation


def _segmentation(outputs: SegmentationOutputs, graph: Graph) -> Tail:
    if len(graph.outputs) != 1 or len(graph.outputs[0].shape) != 4:
        raise InputError(
            f"the file gives {[t.shape for t in graph.outputs]}, where logits are [1, height, width, classes]",
            "compile the network of this spec",
        )
    logits = graph.outputs[0]
    if outputs.form == "coarse":
        _unresize(graph)
        logits = graph.outputs[0]
    ops = _labels(logits) if outputs.form == "labels" else []
    out = ops[-1].output if ops else logits
    return Tail([logits], ops, [out], ["labels" if ops else "output"])


def _unresize(graph: Graph) -> None:
    """Have the last resizing left out, in place."""
    makers = graph.producers()
    stored = _stored(graph, graph.outputs[0])
    resize = None if stored is None else makers.get(stored)
    if resize is None or resize.code != CODE.RESIZE_BILINEAR or resize.inputs[0] is None:
        raise InputError("the file's logits are not resized", "take the file of the logits")
    source = resize.inputs[0]
    graph.outputs = [source]
    graph.outputs = [_real(graph, source)]


def _labels(logits: Tensor) -> list[Op]:
    """ARG_MAX gives int32, four times what a class needs."""
    shape, kinds = logits.shape[:3], schema.TensorType
    axis = Tensor.constant(f"{_PREFIX}axis", np.asarray([3], np.int32))
    wide = Tensor(f"{_PREFIX}best", shape, np.dtype(np.int32))
    small = Tensor(f"{_PREFIX}labels", shape, np.dtype(np.uint8))
    return [
        Op(CODE.ARG_MAX, [logits, axis], [wide], schema.ArgMaxOptionsT(outputType=kinds.INT32)),
        Op(CODE.CAST, [wide], [small], schema.CastOptionsT(inDataType=kinds.INT32, outDataType=kinds.UINT8)),
    ]
