"""A torch.export program (.pt2): the network for torch without its Python code.

Weights of such a file are read by :mod:`mobilefit.nn.program_weights`, which runs nothing of it. The program itself
runs here, to compare a file that was just made with its module, and only then: see :func:`run_all`.
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mobilefit.errors import InputError
from mobilefit.nn.program_weights import DESCRIPTION, read_program
from mobilefit.runs import sha256

Floats = npt.NDArray[np.float32]

_made: set[str] = set()
"""SHA-256 of the programs that this process exported."""


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
    extra = {} if metadata is None else {DESCRIPTION: json.dumps(metadata, sort_keys=True)}
    torch.export.save(program, file, extra_files=extra)
    blob = file.getvalue()
    _made.add(sha256(blob))
    return blob


def read_metadata(blob: bytes) -> dict[str, Any] | None:
    """The dictionary that :func:`export` stored, or None where there is none.

    Raises:
        InputError: ``blob`` is no such program, or damaged.
    """
    return read_program(blob)[1]


def run(blob: bytes, images: Floats) -> Floats:
    """The first of :func:`run_all`."""
    return run_all(blob, images)[0]


def run_all(blob: bytes, images: Floats) -> list[Floats]:
    """Every output that the reloaded program computes for images ``[n, channels, height, width]``.

    torch's reader runs any code that a file holds, so this takes what :func:`export` made in this very process
    and nothing else.

    Raises:
        InputError: it was not made here.
    """
    if sha256(blob) not in _made:
        raise InputError(
            "this program was not exported by this process, and torch would run any code that it holds",
            "if you trust it, load it with torch.export.load",
        )
    module = torch.export.load(io.BytesIO(blob)).module()
    with torch.no_grad():
        found = module(torch.from_numpy(images))
    return [one.numpy() for one in (found if isinstance(found, (tuple, list)) else [found])]
