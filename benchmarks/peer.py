"""The peers' side: runs in .venv-peers, without mobilefit, and takes one command a line.

A command is a JSON object ``{"do": NAME, ...arguments}`` on standard input, the answer one JSON
value on standard output.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


class Peer:
    """The commands; each returns what goes back as JSON."""

    def __init__(self) -> None:
        self.invokes: dict[tuple[str, str], Any] = {}

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
        feeds = [{"args_0": image} for image in _images(resolution)]
        ranges = tool.calibrate({"serving_default": feeds})
        result = tool.quantize(ranges)
        assert result.quantized_model is not None
        Path(path).write_bytes(result.quantized_model)

    def onnx(self, network: str, resolution: int, path: str, int8: str) -> None:
        """ONNX Runtime's files: as torch exports it, and static QDQ with per-channel weights.

        Activations are unsigned: signed ones ran seven times slower here.
        """
        import torch
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        module, example = _torchvision(network, resolution)
        torch.onnx.export(module, (example,), path, external_data=False, input_names=["image"])
        with tempfile.TemporaryDirectory() as folder:
            inferred = str(Path(folder, "inferred.onnx"))
            quant_pre_process(path, inferred)
            quantization.quantize_static(
                inferred, int8, _Reader({"image": image} for image in _images(resolution)),
                quant_format=quantization.QuantFormat.QDQ, per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )  # fmt: skip

    def openvino(self, network: str, resolution: int, path: str, int8: str) -> None:
        """OpenVINO's files: converted from torch, and NNCF's post-training quantization of that."""
        import nncf
        import openvino

        module, example = _torchvision(network, resolution)
        shape = list(example.shape)
        model = openvino.convert_model(module, example_input=example, input=[shape])
        openvino.save_model(model, path, compress_to_fp16=False)
        images = _images(resolution)
        small = nncf.quantize(model, nncf.Dataset(images), subset_size=len(images))
        openvino.save_model(small, int8, compress_to_fp16=False)

    def load(self, path: str, settings: dict[str, str]) -> None:
        """Make a file ready to be timed, ``settings`` being OpenVINO's."""
        make = _onnx_session if path.endswith(".onnx") else _openvino_request
        self.invokes[path, json.dumps(settings)] = make(path, settings)

    def time(self, path: str, settings: dict[str, str], seconds: float) -> list[float]:
        """Milliseconds of each run, after a warm-up, of a loaded file on one thread."""
        invoke = self.invokes[path, json.dumps(settings)]
        for _ in range(3):
            invoke()
        samples: list[float] = []
        while sum(samples) < seconds * 1e3:
            start = time.perf_counter_ns()
            invoke()
            samples.append((time.perf_counter_ns() - start) / 1e6)
        return samples


class _Reader:
    """What ONNX Runtime's calibration reads images from."""

    def __init__(self, feeds: Iterator[dict[str, Any]]) -> None:
        self.feeds = feeds

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def _images(resolution: int) -> list[Any]:
    random = np.random.default_rng(0)
    return list(random.normal(size=(4, 1, 3, resolution, resolution)).astype(np.float32))


def _torchvision(network: str, resolution: int) -> tuple[Any, Any]:
    import torch
    import torchvision

    torch.manual_seed(0)
    if network.startswith(("ssdlite", "lraspp")):
        module = _raw(torchvision.models.get_model(network, weights=None, weights_backbone=None))
    else:
        module = torchvision.models.get_model(network, weights=None)
    return settled(module, resolution), torch.randn(1, 3, resolution, resolution)


def _raw(model: Any) -> Any:
    """A segmenter's logits, or what goes into a detector's suppression: the converters take no more."""
    import torch

    class Raw(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Any) -> Any:
            if not hasattr(self.model, "head"):
                return self.model(x)["out"]
            found = self.model.head(list(self.model.backbone(x).values()))
            return found["bbox_regression"], found["cls_logits"]

    return Raw()


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


def _onnx_session(path: str, settings: dict[str, str]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    image = np.random.default_rng(0).normal(size=entry.shape).astype(np.float32)
    # Bound once, as an application would: a dictionary a call costs a copy.
    binding = session.io_binding()
    binding.bind_cpu_input(entry.name, image)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return lambda: session.run_with_iobinding(binding)


def _openvino_request(path: str, settings: dict[str, str]) -> Any:
    import openvino

    one = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    model = openvino.Core().compile_model(path, "CPU", {**one, **settings})
    request = model.create_infer_request()
    image = np.random.default_rng(0).normal(size=tuple(model.input(0).shape))
    request.set_input_tensor(openvino.Tensor(image.astype(np.float32)))  # bound once, as above
    return request.infer


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
