"""mobilefit: your images and a latency budget in, a MobileNetV3-class network that fits out.

The names here are loaded when they are first used, so that ``import mobilefit`` is cheap and brings
in no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilefit.arch import NetSpec, spec
    from mobilefit.device import Latency, measure
    from mobilefit.int8 import quantize
    from mobilefit.litert import compile
    from mobilefit.nn import Network, build, load_network, load_weights, save_weights

__version__ = "0.1.0"
__all__ = [
    "Latency", "NetSpec", "Network", "build", "compile", "load_network", "load_weights", "measure",
    "quantize", "save_weights", "spec",
]  # fmt: skip

_HOMES = {
    "NetSpec": "arch", "spec": "arch",
    "Network": "nn", "build": "nn", "load_network": "nn", "load_weights": "nn", "save_weights": "nn",
    "compile": "litert", "quantize": "int8",
    "Latency": "device", "measure": "device",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mobilefit' has no attribute '{name}'")
    return getattr(importlib.import_module(f"mobilefit.{_HOMES[name]}"), name)
