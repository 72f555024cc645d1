"""ExecuTorch (.pte) with the XNNPACK backend: torch's own runtime for phones."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mobilefit.errors import InputError
from mobilefit.formats.extra import needed
from mobilefit.parsing import parse_json

METADATA_NAME = "mobilefit"
"""A method of the program without arguments, which gives the JSON: ExecuTorch's constant methods."""
Floats = npt.NDArray[np.float32]


def export(
    net: nn.Module, input_shape: tuple[int, ...], *, metadata: dict[str, Any] | None = None
) -> bytes:
    """The module as an ExecuTorch program, float32, its operators given to XNNPACK.

    Args:
        net: takes one tensor, and gives one or several; it is left in evaluation mode.
        input_shape: ``(batch, channels, height, width)``, fixed in the file.
        metadata: JSON-able; the program's method "mobilefit" gives it as text.

    Raises:
        InputError: the extra ``executorch`` is not installed.
    """
    exir = needed("executorch.exir", "executorch")
    xnnpack = needed("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch")
    program = torch.export.export(net.eval(), (torch.zeros(input_shape),))
    constant = {} if metadata is None else {METADATA_NAME: json.dumps(metadata, sort_keys=True)}
    logging.getLogger("executorch").setLevel(logging.ERROR)
    lowered = exir.to_edge_transform_and_lower(
        program, partitioner=[xnnpack.XnnpackPartitioner()], constant_methods=constant
    )
    data: bytes = bytes(lowered.to_executorch().buffer)
    return data


def read_metadata(blob: bytes) -> dict[str, Any] | None:
    """The dictionary that :func:`export` stored, or None where there is none.

    Raises:
        InputError: the extra ``executorch`` is not installed, or ``blob`` is no such program.
    """
    program = _load(blob)
    if METADATA_NAME not in program.method_names:
        return None
    try:
        found: dict[str, Any] = parse_json(program.load_method(METADATA_NAME).execute([])[0])
    except (ValueError, TypeError) as error:
        raise InputError("not an ExecuTorch program of ours, or damaged", "export it again") from error
    return found


def run(blob: bytes, images: Floats) -> Floats:
    """The first of :func:`run_all`."""
    return run_all(blob, images)[0]


def run_all(blob: bytes, images: Floats) -> list[Floats]:
    """Every output that ExecuTorch computes for images ``[n, channels, height, width]``, one at a time.

    Raises:
        InputError: the extra ``executorch`` is not installed, or ``blob`` is no such program.
    """
    method = _load(blob).load_method("forward")
    found = [
        [output.numpy().copy() for output in method.execute([image[None]])]
        for image in torch.from_numpy(images)
    ]
    return [np.concatenate(of_all) for of_all in zip(*found, strict=True)]


def _load(blob: bytes) -> Any:
    runtime = needed("executorch.runtime", "executorch")
    try:
        return runtime.Runtime.get().load_program(blob)
    except RuntimeError as error:
        raise InputError("not an ExecuTorch program, or damaged", "export it again") from error
