"""float16 and dynamic-range LiteRT files."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from mobilefit.errors import InputError
from mobilefit.formats.litert import dynamic_int8, float16
from mobilefit.formats.parity import parity
from mobilefit.litert import compile, read_metadata
from mobilefit.litert.graph import parse
from mobilefit.litert.metadata import labels_of, packaged

from .conftest import METADATA, planes, said

MAKERS = {"float16": float16, "dynamic": dynamic_int8}
every_kind = pytest.mark.parametrize("kind", MAKERS)


@pytest.fixture(scope="module")
def files(network):
    blob = compile(network, (1, 3, 32, 32), metadata=METADATA)
    return {"float32": blob} | {kind: make(blob) for kind, make in MAKERS.items()}


@every_kind
def test_it_says_what_the_module_says(files, kind, network, worker):
    array = planes(16)
    nhwc = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    found = parity(kind, said(network, array), worker.run(files[kind], nhwc))
    assert found.ok, found
    assert found.largest > 0  # its weights are others


@every_kind
def test_it_runs_in_one_partition(files, kind, worker):
    inspection = worker.inspect(files[kind])
    assert (inspection.partitions, inspection.outside) == (1, ())


@every_kind
def test_it_is_smaller_and_keeps_what_the_file_says(files, kind):
    limit = {"float16": 0.52, "dynamic": 0.32}[kind]
    assert len(files[kind]) < limit * len(files["float32"])
    assert read_metadata(files[kind]) == METADATA
    graph = parse(files[kind])
    assert (graph.input_names, graph.output_names) == (["input"], ["output"])
    assert graph.inputs[0].dtype == graph.outputs[0].dtype == np.float32


@every_kind
def test_a_packaged_file_stays_packaged(files, kind):
    packed = MAKERS[kind](packaged(files["float32"]))
    assert labels_of(packed) == METADATA["classes"]
    assert packed == packaged(files[kind])
    assert labels_of(files[kind]) == []


def test_dynamic_weights_have_a_scale_per_channel(files):
    weights = {op.name: op.inputs[1] for op in parse(files["dynamic"]).ops if len(op.inputs) > 2}
    assert weights["CONV_2D"].dtype == weights["FULLY_CONNECTED"].dtype == np.int8
    for tensor in (weights["CONV_2D"], weights["FULLY_CONNECTED"]):
        assert len(tensor.quantization.scale) == tensor.shape[0] > 1
        assert not tensor.quantization.zero_point.any()
    assert weights["DEPTHWISE_CONV_2D"].dtype == np.float32


def test_float16_weights_are_the_rounded_ones(files):
    before, after = parse(files["float32"]), parse(files["float16"])
    heavy = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}
    rounded = [op.inputs[0].data for op in after.ops if op.name == "DEQUANTIZE"]
    weights = [op.inputs[1].data for op in before.ops if op.name in heavy]
    assert len(rounded) == len(weights) > 50
    same = Counter(w.astype(np.float16).tobytes() for w in weights)
    assert same == Counter(w.tobytes() for w in rounded)


@every_kind
def test_a_quantized_file_is_refused(files, kind):
    for made in ("float16", "dynamic"):
        with pytest.raises(InputError, match="already quantized"):
            MAKERS[kind](files[made])


def test_a_weight_beyond_float16_is_named():
    net = nn.Sequential(nn.Conv2d(3, 8, 1))
    net[0].weight.data.fill_(7e4)
    blob = compile(net, (1, 3, 8, 8))
    with pytest.raises(InputError, match=r"holds 7e\+04, more than float16 can"):
        float16(blob)
    assert torch.finfo(torch.float16).max == 65504
