"""The standard TFLite metadata: what lets other programs prepare images and name classes.

A flatbuffer of its own (identifier M001, schema ``metadata_schema.fbs`` of the MediaPipe and TFLite
Support projects) in the model's buffer ``TFLITE_METADATA``, and the class names as a zip archive
behind the model. Both are made from the JSON that our files carry (``graph.read_metadata``).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np

from mobilefit.errors import InputError
from mobilefit.litert.graph import Graph, encode_metadata, parse, read_metadata, serialize

STANDARD_NAME = "TFLITE_METADATA"
IDENTIFIER = b"M001"
LABELS = "labels.txt"
MIN_PARSER_VERSION = "1.0.0"
"""The schema's first version has every field that we write."""


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
    outputs = graph.outputs[0].shape[-1]
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
_RGB = _Byte(1)
_IMAGE_PROPERTIES = _Byte(2)  # of the union ContentProperties
_FEATURE_PROPERTIES = _Byte(1)
_NORMALIZATION = _Byte(1)  # of the union ProcessUnitOptions
_AXIS_LABELS = _Byte(2)  # AssociatedFileType.TENSOR_AXIS_LABELS: a class at each place of the axis


def standard(description: Mapping[str, Any], graph: Graph) -> bytes:
    """The metadata flatbuffer for a file's own description (its JSON)."""
    spec = description.get("spec") or {}
    name = str(spec.get("name") or "image classifier")
    subgraph: _Table = {
        0: name,
        2: [_input(graph.input_names[0], description["preset"])],
        3: [_output(graph.output_names[0], len(description["classes"]))],
    }
    model: _Table = {0: name, 1: _text(description), 3: [subgraph], 7: MIN_PARSER_VERSION}
    builder = flatbuffers.Builder(1024)
    builder.Finish(_pack(builder, model), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _text(description: Mapping[str, Any]) -> str:
    """The model in a sentence or two."""
    said = [f"Tells {len(description['classes'])} classes of images apart."]
    for kind, found in sorted((description.get("accuracy") or {}).items()):
        said.append(f"Top-1 of the {kind} file: {found['top1']:.2%} on {found['images']}.")
    return " ".join(said)


def _input(name: str, preset: Mapping[str, Any]) -> _Table:
    """An RGB image. Mean and deviation are those of values 0 to 255, whatever the tensor's type."""
    mean, std = (255 * np.asarray(preset[key], np.float64) for key in ("mean", "std"))
    if len(set(preset["mean"])) == len(set(preset["std"])) == 1:
        mean, std = mean[:1], std[:1]  # MediaPipe takes one value for all channels, not three
    side = _Uint(preset["resolution"])
    part = float(preset.get("crop_fraction", 1.0))
    return {
        0: name,
        1: f"The central square of the image, {part:g} of its short side, resized to "
        f"{side.value}x{side.value} with antialiasing.",
        3: {0: _IMAGE_PROPERTIES, 1: {0: _RGB, 1: {0: side, 1: side}}},
        4: [{0: _NORMALIZATION, 1: {0: mean, 1: std}}],
        5: {0: (255 - mean) / std, 1: -mean / std},
    }


def _output(name: str, classes: int) -> _Table:
    return {
        0: name,
        1: f"{classes} logits; their softmax is each class's share.",
        3: {0: _FEATURE_PROPERTIES, 1: {}},
        6: [{0: LABELS, 1: "The classes, one a line.", 2: _AXIS_LABELS}],
    }


def _pack(builder: flatbuffers.Builder, value: Any) -> int:
    """Write a string, a table, a vector of floats or of tables; where it lies."""
    if isinstance(value, str):
        return int(builder.CreateString(value))
    if isinstance(value, np.ndarray):
        return int(builder.CreateNumpyVector(value.astype(np.float32)))
    if isinstance(value, list):
        places = [_pack(builder, item) for item in value]
        builder.StartVector(4, len(places), 4)
        for place in reversed(places):
            builder.PrependUOffsetTRelative(place)
        return int(builder.EndVector())
    scalar = (_Byte, _Uint)
    parts = {k: _pack(builder, v) for k, v in value.items() if not isinstance(v, scalar)}
    builder.StartObject(max(value, default=-1) + 1)
    for slot, field in value.items():
        if isinstance(field, _Byte):
            builder.PrependInt8Slot(slot, field.value, 0)
        elif isinstance(field, _Uint):
            builder.PrependUint32Slot(slot, field.value, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(slot, parts[slot], 0)
    return int(builder.EndObject())
