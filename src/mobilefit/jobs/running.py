"""Prepared images through a LiteRT file, whatever number type its ends have."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mobilefit.device import shared_worker
from mobilefit.errors import InputError
from mobilefit.litert.graph import Graph, Tensor, parse
from mobilefit.runtime import Worker

Floats = npt.NDArray[np.float32]


class File:
    """A file that takes images and gives numbers for each, float32 on both sides.

    Where the input is int8 or uint8, the images are quantized by its scale and zero point, as a
    phone's camera code would: ``stored = round(real / scale) + zero_point``. Such an output is
    brought back to real numbers by its own; without a scale (labels of pixels) it stays what it is.

    Args:
        blob: the file's content.
        worker: runs it; the shared one when left out.

    Raises:
        InputError: the file is damaged, or does not take one image.
    """

    def __init__(self, blob: bytes, worker: Worker | None = None) -> None:
        graph = parse(blob)
        self.blob = blob
        self.input, self.outputs = _only(graph.inputs, "input"), graph.outputs
        self.numbers = numbers(graph)
        self._worker = worker or shared_worker()
        if len(self.input.shape) != 4:
            raise InputError(
                f"takes {list(self.input.shape)}, where an image is [1, height, width, channels]"
            )

    def run(self, images: Floats, *, threads: int = 1) -> list[Floats]:
        """Every output ``[n, ...]`` for prepared images ``[n, height, width, channels]``."""
        found = self._worker.outputs(self.blob, _stored(images, self.input), threads=threads)
        return [_real(values, tensor) for values, tensor in zip(found, self.outputs, strict=True)]


class Runner(File):
    """A file that gives one row of numbers for each image: a classifier. See :class:`File`.

    Raises:
        InputError: also where it gives something else.
    """

    def __init__(self, blob: bytes, worker: Worker | None = None) -> None:
        super().__init__(blob, worker)
        self.output = _only(self.outputs, "output")
        if len(self.output.shape) != 2:
            raise InputError(
                f"takes {list(self.input.shape)} and gives {list(self.output.shape)}, "
                "where an image is [1, height, width, channels] and its classes are [1, classes]"
            )
        if self.output.dtype.kind != "f":
            _scale(self.output)

    def __call__(self, images: Floats, *, threads: int = 1) -> Floats:
        """The outputs ``[n, classes]`` for prepared images ``[n, height, width, channels]``."""
        return self.run(images, threads=threads)[0]


def numbers(graph: Graph) -> str:
    """The number type of a file, by what its operators compute in and what its weights are kept in."""
    values = {t.dtype for t in graph.tensors() if t.data is None}
    weights = {t.dtype for t in graph.tensors() if t.data is not None}
    if np.dtype(np.int8) in values:
        return "int8"
    narrow = [np.dtype(t) for t in (np.int8, np.float16) if np.dtype(t) in weights]
    return f"float32, {narrow[0]} weights" if narrow else "float32"


def outline(blob: bytes) -> str:
    """What a file takes and gives, in a line; for files that are not ours."""
    graph = parse(blob)
    ends = [", ".join(f"{t.dtype} {list(t.shape)}" for t in tensors) or "nothing"
            for tensors in (graph.inputs, graph.outputs)]  # fmt: skip
    return f"takes {ends[0]} and gives {ends[1]} (signature {graph.signature})"


def _only(tensors: list[Tensor], what: str) -> Tensor:
    if len(tensors) != 1:
        raise InputError(f"has {len(tensors)} {what}s, must have one")
    if tensors[0].dtype.kind not in "fiu" or tensors[0].dtype.itemsize > 4:
        raise InputError(f"has an {what} of {tensors[0].dtype}, must be float32, int8 or uint8")
    return tensors[0]


def _stored(values: Floats, tensor: Tensor) -> npt.NDArray[np.generic]:
    if tensor.dtype.kind == "f":
        return values.astype(tensor.dtype)
    scale, zero_point = _scale(tensor)
    limits, stored = np.iinfo(tensor.dtype), np.rint(values / scale) + zero_point
    clipped: npt.NDArray[np.generic] = np.clip(stored, limits.min, limits.max).astype(tensor.dtype)
    return clipped


def _real(values: npt.NDArray[np.generic], tensor: Tensor) -> Floats:
    if tensor.dtype.kind == "f" or tensor.quantization is None:
        return values.astype(np.float32)
    scale, zero_point = _scale(tensor)
    return (values.astype(np.float32) - zero_point) * scale


def _scale(tensor: Tensor) -> tuple[np.float32, np.float32]:
    known = tensor.quantization
    if known is None or len(known.scale) != 1:
        raise InputError(f"the {tensor.dtype} tensor '{tensor.name}' has no scale")
    return np.float32(known.scale[0]), np.float32(known.zero_point[0])
