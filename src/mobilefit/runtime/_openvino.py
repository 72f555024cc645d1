"""OpenVINO, in the child process; it reads .onnx files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino

from mobilefit.runtime._port import Port, in_batches, only_input

ERRORS = (RuntimeError, ValueError)
"""What it raises on a file that it cannot load or run."""


class Network:
    """A compiled .onnx file, float32 as the other runtimes compute it.

    By default OpenVINO would compute in bfloat16 where the processor can, which is faster and less
    exact.
    """

    def __init__(self, blob: bytes, threads: int) -> None:
        core = openvino.Core()
        model = core.read_model(model=blob)
        settings = {
            "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        }  # fmt: skip
        self.request = core.compile_model(model, "CPU", settings).create_infer_request()
        self.inputs = [_port(p) for p in model.inputs]
        self.outputs = [_port(p) for p in model.outputs]
        self.ops = tuple(op.get_type_name() for op in model.get_ordered_ops())

    def run(self, array: np.ndarray, alive: Callable[[], None]) -> list[np.ndarray]:
        """Batch by batch, of the size that the file has, or one at a time."""
        side = only_input(self.inputs, array).shape[0]
        return in_batches(array, side, self._once, self.outputs, alive)

    def _once(self, batch: np.ndarray) -> list[np.ndarray]:
        self.request.set_input_tensor(openvino.Tensor(batch))
        self.request.infer()
        places = range(len(self.outputs))
        return [self.request.get_output_tensor(place).data.copy() for place in places]

    def ready(self) -> Callable[[], object]:
        """Inputs that are set once."""
        for index, port in enumerate(self.inputs):
            self.request.set_input_tensor(index, openvino.Tensor(port.filled()))
        infer: Callable[[], object] = self.request.infer
        return infer

    def inspect(self) -> dict[str, Any]:
        """Its operators as read, before it fuses them."""
        plain = ("Parameter", "Constant", "Result")
        return {
            "ops": tuple(op for op in self.ops if op not in plain), "partitions": 0, "outside": ()
        }  # fmt: skip


def check(blob: bytes) -> None:
    """The runtime itself refuses what is damaged."""


def load(blob: bytes, threads: int) -> Network:
    """Compile a file."""
    return Network(blob, threads)


def _port(node: Any) -> Port:
    sides = [d.get_length() if d.is_static else -1 for d in node.get_partial_shape()]
    name = node.get_any_name() if node.get_names() else ""
    return Port(name, tuple(sides), np.dtype(node.get_element_type().to_dtype()))
