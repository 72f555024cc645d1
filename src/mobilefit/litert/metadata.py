"""The standard TFLite metadata: what lets other programs prepare images and name what is found.

A flatbuffer of its own (identifier M001, schema ``metadata_schema.fbs`` of the MediaPipe and TFLite
Support projects) in the model's buffer ``TFLITE_METADATA``, and the class names as a zip archive
behind the model. Both are made from the JSON that our files carry (``graph.read_metadata``).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from flatbuffers import flexbuffers

from mobilefit.errors import InputError
from mobilefit.litert.graph import (
    CODE,
    Graph,
    Op,
    Tensor,
    aligned_vector,
    encode_metadata,
    parse,
    read_metadata,
    serialize,
)

STANDARD_NAME = "TFLITE_METADATA"
IDENTIFIER = b"M001"
LABELS = "labels.txt"
DETECTIONS = ("location", "category", "score", "number of detections")
"""Names of a detector's outputs where the file ends with non-maximum suppression, in the order of
TensorFlow's detectors; by these names MediaPipe finds them."""
BOXES = ("boxes", "scores")
"""Names of a detector's outputs where suppression is left to the program."""


def packaged(blob: bytes, accuracy: Mapping[str, Any] | None = None) -> bytes:
    """The file with the standard metadata: what every file that we write to disk goes through.

    Args:
        blob: a .tflite whose JSON tells ``preset`` and ``classes`` (a list of names), float32 or
            quantized; one that is packaged already stays as it is, or gets the new accuracy.
        accuracy: to add to the JSON's ``accuracy``, by format:
            ``{"float32": {"top1": 0.91, "images": "300 test images of clothing"}}``.

    Raises:
        InputError: no LiteRT model, no such JSON in it, or labels that do not fit the outputs.
    """
    description = read_metadata(blob)
    if not isinstance(description, dict) or not {"preset", "classes"} <= description.keys():
        raise InputError(
            "the LiteRT model does not name its preset and classes",
            "compile it with metadata={'preset': ..., 'classes': ...}",
        )
    if accuracy:
        description["accuracy"] = {**description.get("accuracy", {}), **accuracy}
    graph = parse(blob)
    labels = _labels(description["classes"], graph)
    graph.metadata |= encode_metadata(description)
    graph.metadata[STANDARD_NAME] = standard(description, graph)
    return _with_archive(serialize(graph), LABELS, "\n".join(labels))


def labels_of(blob: bytes) -> list[str]:
    """The class names in the archive behind a packaged file; none where there is no archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            return archive.read(LABELS).decode().split("\n")
    except (zipfile.BadZipFile, KeyError):
        return []


def _labels(classes: Sequence[str], graph: Graph) -> list[str]:
    outputs = _form(graph).classes
    if len(classes) != outputs:
        raise InputError(
            f"there are {len(classes)} labels for {outputs} outputs", "give each output one label"
        )
    for name in classes:
        if not name or "\n" in name or "\r" in name:
            raise InputError(
                f"the label {name!r} cannot stand in {LABELS}", "labels are one line of text each"
            )
    return list(classes)


def _with_archive(blob: bytes, name: str, text: str) -> bytes:
    """The bytes with a zip of one file behind them, stored as it is: MediaPipe reads it in place.

    The zip's offsets count from the model's first byte. The date is fixed: same model, same bytes.
    """
    file = io.BytesIO(blob)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text)
    return file.getvalue()


# ---- the schema's tables, as {slot: value}; a slot is the field's place in the .fbs


@dataclass(frozen=True)
class _Byte:
    value: int


@dataclass(frozen=True)
class _Uint:
    value: int


_Table = dict[int, Any]
_RGB, _GREY = _Byte(1), _Byte(2)
_FEATURE_PROPERTIES, _IMAGE_PROPERTIES, _BOX_PROPERTIES = _Byte(1), _Byte(2), _Byte(3)
"""Of the union ContentProperties."""
_NORMALIZATION = _Byte(1)  # of the union ProcessUnitOptions
_AXIS_LABELS, _VALUE_LABELS = _Byte(2), _Byte(3)
"""AssociatedFileType: a class at each place of the last axis; the values themselves are classes."""
_BOUNDARIES = _Byte(1)  # of BoundingBoxType; its coordinates are ratios by default
_SOFTMAX = _Byte(2)  # of the segmenter's Activation


@dataclass(frozen=True, kw_only=True)
class _Form:
    """What a file's outputs are."""

    what: str
    """The network does, in a sentence."""
    classes: int
    outputs: list[_Table]
    version: str = "1.0.0"
    """Of the schema, from which on it has every field that is written."""
    more: _Table = field(default_factory=dict)
    """Fields of the subgraph."""


def standard(description: Mapping[str, Any], graph: Graph) -> bytes:
    """The metadata flatbuffer for a file's own description (its JSON)."""
    spec, form = description.get("spec") or {}, _form(graph)
    name = str(spec.get("name") or "image classifier")
    subgraph: _Table = {
        0: name,
        2: [_input(graph.input_names[0], description["preset"])],
        3: form.outputs,
        **form.more,
    }
    said = _text(form.what.format(len(description["classes"])), description)
    model: _Table = {0: name, 1: said, 3: [subgraph], 7: form.version}
    return _finished(model, IDENTIFIER)


_MEASURES = {"top1": "Top-1", "map": "mAP", "map50": "mAP@0.5", "miou": "Mean intersection over union"}


def _text(what: str, description: Mapping[str, Any]) -> str:
    """The model in a sentence or two."""
    said = [what]
    for kind, found in sorted((description.get("accuracy") or {}).items()):
        for key, label in _MEASURES.items():
            if key in found:
                said.append(f"{label} of the {kind} file: {found[key]:.2%} on {found.get('images', 'images')}.")
    return " ".join(said)


def _input(name: str, preset: Mapping[str, Any]) -> _Table:
    """An RGB image. Mean and deviation are those of values 0 to 255, whatever the tensor's type."""
    mean, std = (255 * np.asarray(preset[key], np.float64) for key in ("mean", "std"))
    if len(set(preset["mean"])) == len(set(preset["std"])) == 1:
        mean, std = mean[:1], std[:1]  # MediaPipe takes one value for all channels, not three
    height = preset["resolution"]
    width = preset.get("width") or height
    part = float(preset.get("crop_fraction", 1.0))
    which = f"The central square of the image, {part:g} of its short side,"
    if preset.get("fit") == "stretch":
        which = "The whole image,"
    size = {0: _Uint(width), 1: _Uint(height)}
    return {
        0: name,
        1: f"{which} resized to {width}x{height} with antialiasing.",
        3: {0: _IMAGE_PROPERTIES, 1: {0: _RGB, 1: size}},
        4: [{0: _NORMALIZATION, 1: {0: mean, 1: std}}],
        5: {0: (255 - mean) / std, 1: -mean / std},
    }


# ---- outputs


def _form(graph: Graph) -> _Form:
    names, shapes = tuple(graph.output_names), [tensor.shape for tensor in graph.outputs]
    if names == DETECTIONS:
        return _detections(_suppressed_classes(graph))
    if len(shapes) == 2:
        return _anchors(names, shapes[1][-1])
    makers = graph.producers()
    last = makers.get(graph.outputs[0])
    if last is not None and last.code == CODE.CAST:  # a map of labels
        best = makers[_first(last)]
        return _label_map(names[0], _first(best).shape[-1])
    classes = shapes[0][-1]
    return _mask(names[0], classes) if len(shapes[0]) == 4 else _logits(names[0], classes)


def _first(op: Op) -> Tensor:
    assert op.inputs[0] is not None
    return op.inputs[0]


def _feature(name: str, text: str, *, content: _Table | None = None, labels: _Byte | None = None) -> _Table:
    table: _Table = {0: name, 1: text, 3: content or {0: _FEATURE_PROPERTIES, 1: {}}}
    if labels is not None:
        table[6] = [{0: LABELS, 1: "The classes, one a line.", 2: labels}]
    return table


def _logits(name: str, classes: int) -> _Form:
    text = f"{classes} logits; their softmax is each class's share."
    return _Form(
        what="Tells {} classes of images apart.", classes=classes,
        outputs=[_feature(name, text, labels=_AXIS_LABELS)],
    )  # fmt: skip


def _suppressed_classes(graph: Graph) -> int:
    maker = graph.producers()[graph.outputs[1]]
    return int(flexbuffers.Loads(maker.custom_options)["num_classes"])


def _detections(classes: int) -> _Form:
    """What MediaPipe's ObjectDetector and the TFLite Task Library read."""
    location, category, score, number = DETECTIONS
    each = {2: {0: _Uint(2), 1: _Uint(2)}}  # of the dimensions, the second runs along the detections
    order = np.asarray([1, 0, 3, 2], np.uint32)  # where left, top, right and bottom are
    box = {0: _BOX_PROPERTIES, 1: {0: order, 1: _BOUNDARIES}, **each}
    plain = {0: _FEATURE_PROPERTIES, 1: {}, **each}
    return _Form(
        what="Finds objects of {} classes.", classes=classes, version="1.2.0",
        outputs=[
            _feature(location, "Top, left, bottom and right as parts of the image's sides.", content=box),
            _feature(category, "The class of each, from 0.", content=plain, labels=_VALUE_LABELS),
            _feature(score, "How sure each is, 0 to 1; the surest comes first.", content=plain),
            _feature(number, "How many there are."),
        ],
        more={8: [{0: "detection_result", 1: [location, category, score]}]},
    )  # fmt: skip


def _anchors(names: tuple[str, ...], columns: int) -> _Form:
    """Of every anchor: boxes and scores, or what the network itself gives."""
    decoded = names == BOXES
    box = {0: _BOX_PROPERTIES, 1: {1: _BOUNDARIES}} if decoded else None
    first = "Left, top, right and bottom as parts of the image's sides" if decoded else "Encoded boxes"
    second = "Scores of the classes, 0 to 1" if decoded else "Logits, the background's first"
    return _Form(
        what="Finds objects of {} classes.", classes=columns if decoded else columns - 1,
        outputs=[
            _feature(names[0], f"{first}, of each anchor.", content=box),
            _feature(names[1], f"{second}, of each anchor.", labels=_AXIS_LABELS if decoded else None),
        ],
    )  # fmt: skip


def _mask(name: str, classes: int) -> _Form:
    """What MediaPipe's ImageSegmenter reads: it takes the softmax itself, and resizes."""
    pixels = {0: _IMAGE_PROPERTIES, 1: {0: _GREY}, 2: {0: _Uint(1), 1: _Uint(2)}}
    text = f"{classes} logits of each pixel; their softmax is each class's share."
    options = _finished({0: _SOFTMAX, 1: "1.0.0"}, b"V001")
    return _Form(
        what="Tells {} classes of pixels apart.", classes=classes, version="1.5.0",
        outputs=[_feature(name, text, content=pixels, labels=_AXIS_LABELS)],
        more={9: [{0: "SEGMENTER_METADATA", 1: options}]},
    )  # fmt: skip


def _label_map(name: str, classes: int) -> _Form:
    return _Form(
        what="Tells {} classes of pixels apart.", classes=classes,
        outputs=[_feature(name, "The class of each pixel, from 0.", labels=_VALUE_LABELS)],
    )


def _finished(table: _Table, identifier: bytes) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(_pack(builder, table), file_identifier=identifier)
    return bytes(builder.Output())


def _pack(builder: flatbuffers.Builder, value: Any) -> int:
    """Write a string, bytes, a table, a vector of floats, of indices, strings or tables; where it lies."""
    if isinstance(value, str):
        return int(builder.CreateString(value))
    if isinstance(value, bytes):
        return aligned_vector(builder, value)
    if isinstance(value, np.ndarray):
        kept = value if value.dtype == np.uint32 else value.astype(np.float32)
        return int(builder.CreateNumpyVector(kept))
    if isinstance(value, list):
        places = [_pack(builder, item) for item in value]
        builder.StartVector(4, len(places), 4)
        for place in reversed(places):
            builder.PrependUOffsetTRelative(place)
        return int(builder.EndVector())
    scalar = (_Byte, _Uint)
    parts = {k: _pack(builder, v) for k, v in value.items() if not isinstance(v, scalar)}
    builder.StartObject(max(value, default=-1) + 1)
    for slot, entry in value.items():
        if isinstance(entry, _Byte):
            builder.PrependInt8Slot(slot, entry.value, 0)
        elif isinstance(entry, _Uint):
            builder.PrependUint32Slot(slot, entry.value, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(slot, parts[slot], 0)
    return int(builder.EndObject())
