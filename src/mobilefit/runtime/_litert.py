"""LiteRT, in the child process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from mobilefit.litert.graph import unpack
from mobilefit.runtime._port import Port, in_batches, only_input

ERRORS = (RuntimeError, ValueError)
"""What it raises on a file that it cannot load or run."""


class Network:
    """A loaded .tflite file."""

    def __init__(self, blob: bytes, threads: int) -> None:
        self.interpreter = Interpreter(model_content=blob, num_threads=threads)
        self.interpreter.allocate_tensors()
        self.sources = self.interpreter.get_input_details()
        self.targets = self.interpreter.get_output_details()
        self.inputs, self.outputs = ([_port(d) for d in p] for p in (self.sources, self.targets))

    def run(self, array: np.ndarray, alive: Callable[[], None]) -> list[np.ndarray]:
        """Batch by batch, of the size that the file has."""
        # The interpreter's own shape, not the signature's: an open length is not resized to.
        port = only_input([_at_present(p, d) for p, d in zip(self.inputs, self.sources)], array)
        return in_batches(array, port.shape[0], self._once, self.outputs, alive)

    def _once(self, batch: np.ndarray) -> list[np.ndarray]:
        self.interpreter.set_tensor(self.sources[0]["index"], batch)
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(target["index"]) for target in self.targets]

    def ready(self) -> Callable[[], object]:
        """Inputs of the interpreter's own shape."""
        for port, detail in zip(self.inputs, self.sources):
            self.interpreter.set_tensor(detail["index"], _at_present(port, detail).filled())
        invoke: Callable[[], object] = self.interpreter.invoke
        return invoke

    def inspect(self) -> dict[str, Any]:
        """The operators, and which of them XNNPACK runs."""
        details = self.interpreter._get_ops_details()
        delegates = [d for d in details if d["op_name"] == "DELEGATE"]
        ops = [d for d in details if d["op_name"] != "DELEGATE"]
        return {
            "ops": tuple(d["op_name"] for d in ops),
            "partitions": len(delegates),
            "outside": tuple(_outside(ops, delegates)),
        }


def check(blob: bytes) -> None:
    """A damaged file must not reach the interpreter, which would crash on it."""
    unpack(blob)


def load(blob: bytes, threads: int) -> Network:
    """Bring a file, checked, into an interpreter."""
    return Network(blob, threads)


def _port(detail: dict[str, Any]) -> Port:
    sides = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
    return Port(detail["name"], tuple(int(side) for side in sides), np.dtype(detail["dtype"]))


def _at_present(port: Port, detail: dict[str, Any]) -> Port:
    return port._replace(shape=tuple(int(side) for side in detail["shape"]))


def _outside(ops: list[dict[str, Any]], delegates: list[dict[str, Any]]) -> list[str]:
    """Names of the operators that no delegate runs.

    The interpreter lists the original operators beside the delegates that replaced them. A delegate
    runs what lies between its inputs and its outputs.
    """
    maker = {int(t): op for op in ops for t in op["outputs"]}
    inside: set[int] = set()
    for delegate in delegates:
        known = {int(t) for t in delegate["inputs"]}
        todo = [int(t) for t in delegate["outputs"]]
        while todo:
            tensor = todo.pop()
            if tensor in known:
                continue
            known.add(tensor)
            if tensor in maker:
                inside.add(maker[tensor]["index"])
                todo.extend(int(t) for t in maker[tensor]["inputs"])
    return [op["op_name"] for op in ops if op["index"] not in inside]
