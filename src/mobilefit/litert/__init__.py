"""From a module to a LiteRT file, float32 or int8, and running it safely.

Names load on first use: ``compile`` brings torch, ``quantize`` the quantizer, ``Worker`` neither.
(The modules are ``compiler`` and ``quantizer`` because a submodule named like a function of its
package would take that function's place in the package.)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilefit.litert.compiler import compile
    from mobilefit.litert.graph import read_metadata
    from mobilefit.litert.quantizer import quantize, with_random_ranges
    from mobilefit.litert.runtime import (
        Inspection,
        RuntimeCrash,
        StopRule,
        TimingSamples,
        Worker,
        available_cores,
        runtime_version,
    )

__all__ = [
    "Inspection",
    "RuntimeCrash",
    "StopRule",
    "TimingSamples",
    "Worker",
    "available_cores",
    "compile",
    "quantize",
    "read_metadata",
    "runtime_version",
    "with_random_ranges",
]

_HOMES = {
    "compile": "compiler",
    "read_metadata": "graph",
    "quantize": "quantizer",
    "with_random_ranges": "quantizer",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'runtime')}")
    value = globals()[name] = getattr(home, name)
    return value
