"""The standard metadata: read back by the reader that the schema's own compiler made."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from mobilefit.arch import spec
from mobilefit.errors import InputError
from mobilefit.int8 import quantize
from mobilefit.litert import compile, read_metadata
from mobilefit.litert.graph import parse, serialize
from mobilefit.litert.metadata import LABELS, STANDARD_NAME, labels_of, packaged
from mobilefit.litert.outputs import DetectionOutputs, SegmentationOutputs, with_outputs
from mobilefit.nn import build

CLASSES = ["ant", "bee", "süß, with comma", "d", "e", "f"]
PRESET = {"resolution": 20, "mean": [0.5] * 3, "std": [0.25] * 3, "crop_fraction": 0.875}


def described(**changes):
    return {"preset": PRESET, "classes": CLASSES, "spec": {"name": "tiny"}, **changes}


def compiled(metadata):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 6),
    )  # fmt: skip
    return compile(net, (1, 3, 20, 20), metadata=metadata)


@pytest.fixture(scope="module")
def files(images):
    plain = compiled(described())
    return {"float32": plain, "int8": quantize(plain, [images((4, 3, 20, 20))])}


def read_back(blob):
    module = pytest.importorskip("mediapipe.tasks.metadata.metadata_schema_py_generated")
    data = parse(blob).metadata[STANDARD_NAME]
    assert module.ModelMetadata.ModelMetadataBufferHasIdentifier(data, 0)
    return module, module.ModelMetadataT.InitFromPackedBuf(data, 0)


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_the_schemas_reader_reads_it(files, kind):
    module, model = read_back(packaged(files[kind]))
    assert (model.name, model.minParserVersion) == (b"tiny", b"1.0.0")
    assert b"6 classes" in model.description
    (subgraph,) = model.subgraphMetadata
    (source,), (target,) = subgraph.inputTensorMetadata, subgraph.outputTensorMetadata
    image = source.content.contentProperties
    assert source.content.contentPropertiesType == module.ContentProperties.ImageProperties
    assert image.colorSpace == module.ColorSpaceType.RGB
    assert (image.defaultSize.width, image.defaultSize.height) == (20, 20)
    (unit,) = source.processUnits
    assert unit.optionsType == module.ProcessUnitOptions.NormalizationOptions
    assert list(unit.options.mean) == [127.5] and list(unit.options.std) == [63.75]
    assert list(source.stats.min) == [-2.0] and list(source.stats.max) == [2.0]
    assert (source.name, target.name) == (b"input", b"output")
    assert target.content.contentPropertiesType == module.ContentProperties.FeatureProperties
    (labels,) = target.associatedFiles
    assert labels.name == LABELS.encode()
    assert labels.type == module.AssociatedFileType.TENSOR_AXIS_LABELS


def test_a_preset_of_three_values_keeps_them():
    preset = {**PRESET, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    _, model = read_back(packaged(compiled(described(preset=preset))))
    options = model.subgraphMetadata[0].inputTensorMetadata[0].processUnits[0].options
    assert list(options.mean) == pytest.approx([123.675, 116.28, 103.53])
    assert list(options.std) == pytest.approx([58.395, 57.12, 57.375])


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_labels_are_a_zip_behind_the_model(files, kind):
    blob = packaged(files[kind])
    assert labels_of(blob) == CLASSES and labels_of(files[kind]) == []
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        assert archive.namelist() == [LABELS] and archive.testzip() is None
        (entry,) = archive.infolist()
        assert entry.compress_type == zipfile.ZIP_STORED
        assert blob[entry.header_offset :].startswith(b"PK\3\4")


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_packaging_changes_no_logit_and_no_second_time(files, kind, worker, images):
    blob, array = packaged(files[kind]), images((3, 3, 20, 20), seed=1)
    assert packaged(blob) == blob
    assert np.array_equal(worker.run(blob, array), worker.run(files[kind], array))
    assert worker.inspect(blob) == worker.inspect(files[kind])


def test_our_own_description_is_still_read(files):
    blob = packaged(files["float32"])
    assert read_metadata(blob) == described()
    graph = parse(blob)
    assert (graph.signature, graph.input_names) == ("serving_default", ["input"])
    assert serialize(parse(serialize(graph))) == serialize(graph)
    assert blob.startswith(serialize(graph))


def test_a_packaged_float_file_is_quantized_like_a_plain_one(files, images):
    again = quantize(packaged(files["float32"]), [images((4, 3, 20, 20))])
    assert packaged(again) == packaged(files["int8"])


def test_accuracy_travels_and_grows(files):
    first = packaged(files["float32"], {"float32": {"top1": 0.91, "images": "300 images"}})
    both = packaged(first, {"int8": {"top1": 0.9, "images": "300 images"}})
    assert read_metadata(both)["accuracy"] == {
        "float32": {"top1": 0.91, "images": "300 images"},
        "int8": {"top1": 0.9, "images": "300 images"},
    }
    assert packaged(both) == both
    other = packaged(files["float32"], {"int8": {"top1": 0.9, "images": "300 images"}})
    assert packaged(other, {"float32": {"top1": 0.91, "images": "300 images"}}) == both
    _, model = read_back(both)
    assert b"Top-1 of the int8 file: 90.00% on 300 images." in model.description


@pytest.mark.parametrize("count", [5, 7])
def test_labels_that_do_not_fit_the_outputs(count):
    blob = compiled(described(classes=[str(i) for i in range(count)]))
    with pytest.raises(InputError, match=f"there are {count} labels for 6 outputs"):
        packaged(blob)


@pytest.mark.parametrize("name", ["", "two\nlines", "return\r"])
def test_a_label_that_is_not_a_line(name):
    with pytest.raises(InputError, match="cannot stand in labels"):
        packaged(compiled(described(classes=[*CLASSES[:-1], name])))


@pytest.mark.parametrize("metadata", [None, {"preset": PRESET}, ["preset", "classes"]])
def test_a_file_that_does_not_describe_itself(metadata):
    with pytest.raises(InputError, match="does not name its preset and classes"):
        packaged(compiled(metadata))


@pytest.mark.parametrize("lost", [1, 40, 100])
def test_a_damaged_archive_leaves_the_model(files, lost):
    cut = packaged(files["float32"])[:-lost]
    assert labels_of(cut) == []
    assert read_metadata(cut) == described()
    assert packaged(cut) == packaged(files["float32"])


# ---- detectors and segmenters


WIDE = {"resolution": 32, "width": 64, "fit": "stretch", "mean": [0.5] * 3, "std": [0.5] * 3,
        "crop_fraction": 0.875}  # fmt: skip
FOUND = {
    "detections": ("ssdlite_mobilenet_v3_small_reduced", DetectionOutputs()),
    "boxes": ("ssdlite_mobilenet_v3_small_reduced", DetectionOutputs(nms="outside")),
    "encodings": ("ssdlite_mobilenet_v3_small_reduced", None),
    "mask": ("lraspp_mobilenet_v3_small", SegmentationOutputs()),
    "coarse": ("lraspp_mobilenet_v3_small", SegmentationOutputs(form="coarse")),
    "labels": ("lraspp_mobilenet_v3_small", SegmentationOutputs(form="labels")),
}


@pytest.fixture(scope="module")
def other_tasks():
    kept = {}

    def make(kind, classes=CLASSES):
        name, outputs = FOUND[kind]
        chosen = spec(name).resolution(32, 64).classes(6)
        if name not in kept:
            kept[name] = build(chosen).eval()
        said = described(preset=WIDE, classes=list(classes), spec=chosen.to_dict())
        blob = compile(kept[name], (1, 3, 32, 64), metadata=said)
        return packaged(blob if outputs is None else with_outputs(blob, chosen, outputs))

    return make


def test_a_detectors_four_outputs_are_named_grouped_and_explained(other_tasks):
    module, model = read_back(other_tasks("detections"))
    assert model.minParserVersion == b"1.2.0" and b"objects of 6 classes" in model.description
    (subgraph,) = model.subgraphMetadata
    location, category, score, number = subgraph.outputTensorMetadata
    names = [t.name for t in (location, category, score, number)]
    assert names == [b"location", b"category", b"score", b"number of detections"]
    box = location.content.contentProperties
    assert location.content.contentPropertiesType == module.ContentProperties.BoundingBoxProperties
    assert list(box.index) == [1, 0, 3, 2]
    assert (box.type, box.coordinateType) == (
        module.BoundingBoxType.BOUNDARIES, module.CoordinateType.RATIO,
    )  # fmt: skip
    (labels,) = category.associatedFiles
    assert labels.type == module.AssociatedFileType.TENSOR_VALUE_LABELS
    assert {(t.content.range.min, t.content.range.max) for t in (location, category, score)} == {(2, 2)}
    (group,) = subgraph.outputTensorGroups
    assert list(group.tensorNames) == names[:3]


def test_the_image_of_a_detector_is_stretched(other_tasks):
    _, model = read_back(other_tasks("detections"))
    (image,) = model.subgraphMetadata[0].inputTensorMetadata
    size = image.content.contentProperties.defaultSize
    assert (size.width, size.height) == (64, 32)
    assert image.description == b"The whole image, resized to 64x32 with antialiasing."


@pytest.mark.parametrize("kind", ["mask", "coarse"])
def test_a_segmenters_softmax_is_left_to_the_program(other_tasks, kind):
    module, model = read_back(other_tasks(kind))
    (subgraph,) = model.subgraphMetadata
    (mask,) = subgraph.outputTensorMetadata
    assert mask.content.contentPropertiesType == module.ContentProperties.ImageProperties
    assert mask.associatedFiles[0].type == module.AssociatedFileType.TENSOR_AXIS_LABELS
    assert model.minParserVersion == b"1.5.0" and b"6 classes of pixels" in model.description
    (custom,) = subgraph.customMetadata
    assert custom.name == b"SEGMENTER_METADATA"
    from mediapipe.tasks.metadata import image_segmenter_metadata_schema_py_generated as segmenter

    options = segmenter.ImageSegmenterOptionsT.InitFromPackedBuf(bytes(custom.data), 0)
    assert options.activation == segmenter.Activation.SOFTMAX


@pytest.mark.parametrize("kind, names", [
    ("boxes", [b"boxes", b"scores"]), ("encodings", [b"output", b"output_1"]), ("labels", [b"labels"]),
])  # fmt: skip
def test_other_outputs_are_described(other_tasks, kind, names):
    _, model = read_back(other_tasks(kind))
    assert [t.name for t in model.subgraphMetadata[0].outputTensorMetadata] == names


@pytest.mark.parametrize("kind", FOUND)
def test_labels_go_with_every_form_and_have_to_fit(other_tasks, kind):
    blob = other_tasks(kind)
    assert labels_of(blob) == CLASSES and packaged(blob) == blob
    with pytest.raises(InputError, match="there are 5 labels for 6 outputs"):
        other_tasks(kind, CLASSES[:5])


def test_the_accuracy_of_each_task_is_told(other_tasks):
    said = {"int8": {"map50": 0.5, "map": 0.25, "images": "60 images"}}
    _, model = read_back(packaged(other_tasks("boxes"), said))
    assert b"mAP of the int8 file: 25.00% on 60 images. mAP@0.5 of the int8" in model.description
    _, model = read_back(packaged(other_tasks("mask"), {"float32": {"miou": 0.7, "images": "9 images"}}))
    assert b"Mean intersection over union of the float32 file: 70.00% on 9 images." in model.description
