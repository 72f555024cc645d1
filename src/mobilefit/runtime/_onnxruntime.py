"""ONNX Runtime, in the child process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state

from mobilefit.errors import InputError
from mobilefit.runtime._port import Port, in_batches, only_input

_TYPES = {"float": "float32", "double": "float64"}  # the others are named as numpy's

ERRORS = (
    state.EPFail, state.EngineError, state.Fail, state.InvalidArgument, state.InvalidGraph,
    state.InvalidProtobuf, state.ModelLoaded, state.NoModel, state.NoSuchFile,
    state.NotImplemented, state.RuntimeException, RuntimeError, ValueError,
)  # fmt: skip
"""What it raises on a file that it cannot load or run: its own have no common base."""


class Network:
    """A loaded .onnx file."""

    def __init__(self, blob: bytes, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4  # what goes wrong is raised as well
        self.session = onnxruntime.InferenceSession(
            blob, options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [_port(entry) for entry in self.session.get_inputs()]
        self.outputs = [_port(entry) for entry in self.session.get_outputs()]

    def run(self, array: np.ndarray, alive: Callable[[], None]) -> list[np.ndarray]:
        """Batch by batch, of the size that the file has, or one at a time."""
        port = only_input(self.inputs, array)

        def once(batch: np.ndarray) -> list[np.ndarray]:
            found: list[np.ndarray] = self.session.run(None, {port.name: batch})
            return found

        return in_batches(array, port.shape[0], once, self.outputs, alive)

    def ready(self) -> Callable[[], object]:
        """Inputs and outputs are bound once, as an application would: a dictionary costs a copy."""
        binding = self.session.io_binding()
        for port in self.inputs:
            binding.bind_cpu_input(port.name, port.filled())
        for port in self.outputs:
            binding.bind_output(port.name)
        return lambda: self.session.run_with_iobinding(binding)

    def inspect(self) -> dict[str, Any]:
        """It does not tell its operators."""
        return {"ops": (), "partitions": 0, "outside": ()}


def check(blob: bytes) -> None:
    """The runtime itself refuses what is damaged."""


def load(blob: bytes, threads: int) -> Network:
    """Bring a file into a session."""
    return Network(blob, threads)


def _port(entry: Any) -> Port:
    kind = entry.type.removeprefix("tensor(").removesuffix(")")
    try:
        dtype = np.dtype(_TYPES.get(kind, kind))
    except TypeError as error:
        raise InputError(f"'{entry.name}' holds {entry.type}, which is not supported") from error
    return Port(entry.name, tuple(s if isinstance(s, int) else -1 for s in entry.shape), dtype)
