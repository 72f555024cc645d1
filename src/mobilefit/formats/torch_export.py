"""A torch.export program (.pt2): the network for torch without its Python code."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mobilefit.errors import InputError

METADATA_NAME = "mobilefit.json"
Floats = npt.NDArray[np.float32]


def export(
    net: nn.Module, input_shape: tuple[int, ...], *, metadata: dict[str, Any] | None = None
) -> bytes:
    """The module as a torch.export program, as it is at inference.

    Args:
        net: takes one tensor, and gives one or several; it is left in evaluation mode.
        input_shape: ``(batch, channels, height, width)``; the batch is free in the file.
        metadata: JSON-able; stored as the extra file "mobilefit.json".
    """
    example = torch.zeros(2, *input_shape[1:])  # of one image, it would make a constant
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(net.eval(), (example,), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of the machine that it ran on
    file = io.BytesIO()
    extra = {} if metadata is None else {METADATA_NAME: json.dumps(metadata, sort_keys=True)}
    torch.export.save(program, file, extra_files=extra)
    return file.getvalue()


def load(blob: bytes) -> tuple[nn.Module, dict[str, Any] | None]:
    """The network of a .pt2 file, and the metadata that :func:`export` stored with it.

    Raises:
        InputError: no such file, or damaged, or of a torch that this one cannot read.
    """
    extra: dict[str, Any] = {METADATA_NAME: ""}
    try:
        module = torch.export.load(io.BytesIO(blob), extra_files=extra).module()
        text = extra[METADATA_NAME]
        return module, json.loads(text) if text else None
    except Exception as error:  # whatever the bytes lead torch's reader to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"torch cannot load the program: {reason}", "export it again") from error


def run(blob: bytes, images: Floats) -> Floats:
    """The first of :func:`run_all`."""
    return run_all(blob, images)[0]


def run_all(blob: bytes, images: Floats) -> list[Floats]:
    """Every output that the reloaded program computes for images ``[n, channels, height, width]``.

    Raises:
        InputError: see :func:`load`.
    """
    module, _ = load(blob)
    with torch.no_grad():
        found = module(torch.from_numpy(images))
    return [one.numpy() for one in (found if isinstance(found, (tuple, list)) else [found])]
