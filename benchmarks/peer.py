"""The peers' side: runs in .venv-peers, without mobilefit, and takes one command a line.

A command is a JSON object ``{"do": NAME, ...arguments}`` on standard input, the answer one JSON
value on standard output.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


class Peer:
    """The commands; each returns what goes back as JSON."""

    def __init__(self) -> None:
        self.sessions: dict[str, Any] = {}

    def versions(self, packages: list[str]) -> dict[str, str]:
        return {name: importlib.metadata.version(name) for name in packages}

    def pin(self, core: int) -> None:
        os.sched_setaffinity(0, {core})

    def litert_torch(self, network: str, resolution: int, path: str) -> float:
        """Convert torchvision's network; seconds of the conversion alone, modules imported."""
        import litert_torch

        module, example = _torchvision(network, resolution)
        start = time.perf_counter()
        litert_torch.convert(module, (example,)).export(path)
        return time.perf_counter() - start

    def quantize(self, source: str, path: str, resolution: int) -> None:
        """The stock int8 path: the quantizer's own static recipe, on a converted file."""
        from litert_quantizer import quantizer, recipe

        tool = quantizer.Quantizer(source, recipe.static_wi8_ai8())
        random = np.random.default_rng(0)
        images = random.normal(size=(4, 1, 3, resolution, resolution)).astype(np.float32)
        ranges = tool.calibrate({"serving_default": [{"args_0": image} for image in images]})
        result = tool.quantize(ranges)
        assert result.quantized_model is not None
        Path(path).write_bytes(result.quantized_model)

    def onnx(self, network: str, resolution: int, path: str) -> None:
        import torch

        module, example = _torchvision(network, resolution)
        torch.onnx.export(module, (example,), path, external_data=False)

    def time_onnx(self, path: str, seconds: float) -> list[float]:
        """Milliseconds of each run, after a warm-up, of an ONNX file on one thread."""
        invoke = self.sessions.get(path) or self.sessions.setdefault(path, _session(path))
        for _ in range(3):
            invoke()
        samples: list[float] = []
        while sum(samples) < seconds * 1e3:
            start = time.perf_counter_ns()
            invoke()
            samples.append((time.perf_counter_ns() - start) / 1e6)
        return samples


def _torchvision(network: str, resolution: int) -> tuple[Any, Any]:
    import torch
    import torchvision

    torch.manual_seed(0)
    module = torchvision.models.get_model(network, weights=None)
    return settled(module, resolution), torch.randn(1, 3, resolution, resolution)


def settled(module: Any, resolution: int) -> Any:
    """A fresh network with batch norm statistics of noise: activations as large as trained ones.

    Without, they shrink to 1e-10, and no int8 scale fits.
    """
    import torch

    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        module.train()(torch.randn(8, 3, resolution, resolution))
    return module.eval()


def _session(path: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    image = np.random.default_rng(0).normal(size=entry.shape).astype(np.float32)
    # Bound once, as an application would: a dictionary a call costs a copy.
    binding = session.io_binding()
    binding.bind_cpu_input(entry.name, image)
    binding.bind_output(session.get_outputs()[0].name)
    return lambda: session.run_with_iobinding(binding)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the peers print to standard output
    peer = Peer()
    for line in sys.stdin:
        arguments = json.loads(line)
        result = getattr(peer, arguments.pop("do"))(**arguments)
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
