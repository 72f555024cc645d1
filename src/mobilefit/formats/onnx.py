"""ONNX: for ONNX Runtime, OpenVINO, TensorRT and whatever else reads it."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mobilefit.errors import InputError
from mobilefit.formats.extra import needed
from mobilefit.litert.graph import METADATA_NAME
from mobilefit.parsing import parse_json

OPSET = 18
"""The lowest that torch's exporter writes by itself; HardSwish is an operator since 14."""
Floats = npt.NDArray[np.float32]


def export(
    net: nn.Module, input_shape: tuple[int, ...], *, metadata: dict[str, Any] | None = None,
    outputs: Sequence[str] = ("output",),
) -> bytes:  # fmt: skip
    """The module as ONNX, as it is at inference.

    Args:
        net: takes one tensor, and gives one or several; it is left in evaluation mode.
        input_shape: ``(batch, channels, height, width)``; the batch is free in the file.
        metadata: JSON-able; stored in ``metadata_props`` under "mobilefit".
        outputs: a name for each tensor that it gives.

    Returns:
        The bytes of the .onnx file: input "input" (NCHW), these outputs, float32.

    Raises:
        InputError: the extra ``onnx`` is not installed.
    """
    onnx = needed("onnx", "onnx")
    needed("onnxscript", "onnx")
    example = torch.zeros(2, *input_shape[1:])  # of one image, torch.export would make a constant
    logging.getLogger("onnxscript").setLevel(logging.WARNING)
    program = torch.onnx.export(
        net.eval(), (example,), dynamo=True, opset_version=OPSET, verbose=False,
        input_names=["input"], output_names=list(outputs),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
    )  # fmt: skip
    assert program is not None
    model = program.model_proto
    _forget_origins(model.graph)
    if metadata is not None:
        model.metadata_props.add(key=METADATA_NAME, value=json.dumps(metadata, sort_keys=True))
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def _forget_origins(graph: Any) -> None:
    """Remove the exporter's notes: half of the file's text, and paths of the machine it ran on."""
    parts = (graph.node, graph.input, graph.output, graph.value_info, graph.initializer)
    for part in (graph, *(item for kind in parts for item in kind)):
        del part.metadata_props[:]
        part.doc_string = ""


def read_metadata(blob: bytes) -> dict[str, Any] | None:
    """The dictionary that :func:`export` stored, or None where there is none.

    Raises:
        InputError: the extra ``onnx`` is not installed, or ``blob`` is no ONNX model.
    """
    onnx = needed("onnx", "onnx")
    try:
        model = onnx.load_from_string(blob)
        found = {entry.key: entry.value for entry in model.metadata_props}
        loaded: dict[str, Any] | None = parse_json(found.get(METADATA_NAME, "null"))
    except Exception as error:  # protobuf's own error type differs between its versions
        raise InputError("not an ONNX model of ours, or damaged", "export it again") from error
    return loaded


def run(blob: bytes, images: Floats, *, threads: int = 1) -> Floats:
    """The first of :func:`run_all`."""
    return run_all(blob, images, threads=threads)[0]


def run_all(blob: bytes, images: Floats, *, threads: int = 1) -> list[Floats]:
    """Every output that ONNX Runtime computes for images ``[n, channels, height, width]``.

    Raises:
        InputError: the extra ``onnx`` is not installed, or ONNX Runtime does not take the file.
    """
    runtime = needed("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        session = runtime.InferenceSession(blob, options, providers=["CPUExecutionProvider"])
        found: list[Floats] = session.run(None, {"input": images})
    except Exception as error:  # its errors share no base but Exception
        reason = str(error).splitlines()[0]
        raise InputError(f"ONNX Runtime does not take the model: {reason}") from error
    return found
