"""ONNX, torch.export and ExecuTorch: one suite over the formats that torch writes."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from graphs import pooled_network

from mobilefit.arch import spec
from mobilefit.errors import InputError
from mobilefit.formats import executorch, onnx, torch_export
from mobilefit.formats.parity import parity

from .conftest import METADATA, lively, planes, said

KINDS = {"onnx": onnx, "pt2": torch_export, "executorch": executorch}
PACKAGES = {"onnx": "onnxruntime", "pt2": "torch", "executorch": "executorch"}
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def files(network):
    """Each format's file of MobileNetV3-Small, made when first asked for."""
    made = {}

    def get(kind):
        pytest.importorskip(PACKAGES[kind])
        if kind not in made:
            made[kind] = KINDS[kind].export(network, (1, 3, 32, 32), metadata=METADATA)
        return made[kind]

    return get


@every_kind
@pytest.mark.parametrize("count", [1, 7])
def test_it_says_what_the_module_says(files, kind, count, network):
    array = planes(count)
    found = parity(kind, said(network, array), KINDS[kind].run(files(kind), array))
    assert found.ok and found.images == count, found
    assert found.largest < 1e-4


@every_kind
def test_it_carries_the_description(files, kind):
    blob = files(kind)
    assert KINDS[kind].read_metadata(blob) == METADATA


@every_kind
def test_it_does_not_tell_where_it_was_made(files, kind):
    assert str(Path(importlib.import_module("mobilefit").__file__).parent).encode() not in files(kind)


@every_kind
@pytest.mark.parametrize("damage", ["cut", "text"])
def test_a_damaged_file(files, kind, damage):
    blob = files(kind)
    bad = blob[: len(blob) // 2] if damage == "cut" else b"this is no network at all" * 9
    with pytest.raises(InputError):
        KINDS[kind].run(bad, planes(1))


@pytest.mark.parametrize("kind", ["onnx", "executorch"])
def test_a_missing_package_names_its_extra(kind, network, monkeypatch):
    real = importlib.import_module

    def missing(name, *rest):
        if name.partition(".")[0] == kind:
            raise ModuleNotFoundError(f"No module named '{kind}'")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError, match=f"needs the package {kind}") as caught:
        KINDS[kind].export(network, (1, 3, 32, 32))
    assert caught.value.hint == f"pip install 'mobilefit[{kind}]'"


# ---- ONNX


def test_hard_activations_are_operators_of_their_own(files):
    loaded = pytest.importorskip("onnx").load_from_string(files("onnx"))
    count = Counter(node.op_type for node in loaded.graph.node)
    assert (count["HardSwish"], count["HardSigmoid"]) == (19, 9)  # as the paper's Table 2 has them
    assert not {"Clip", "BatchNormalization", "Div", "Min", "Max"} & set(count)
    assert [(o.domain, o.version) for o in loaded.opset_import] == [("", onnx.OPSET)]


def test_the_batch_is_free_and_the_rest_is_not(files):
    graph = pytest.importorskip("onnx").load_from_string(files("onnx")).graph
    (source,), (target,) = graph.input, graph.output
    sides = source.type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in sides] == ["batch", 3, 32, 32]
    sides = target.type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in sides] == ["batch", 10]


@pytest.mark.parametrize(
    "given", [spec("mobilenet_v2"), pooled_network(32)], ids=lambda s: s.name
)
def test_other_networks_to_onnx(given):
    pytest.importorskip("onnxruntime")
    network = lively(given)
    blob = onnx.export(network, (1, 3, 32, 32))
    assert onnx.read_metadata(blob) is None
    for count in (1, 7):
        array = planes(count)
        assert np.abs(onnx.run(blob, array) - said(network, array)).max() < 1e-4
