"""From a float32 LiteRT file to int8: ranges, the arithmetic's limits, quantization.

Names load on first use. (The module is ``quantizer`` because a submodule named like a function of
its package would take that function's place in the package.)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilefit.int8.quantizer import quantize, with_random_ranges

__all__ = ["quantize", "with_random_ranges"]

_HOMES = {"quantize": "quantizer", "with_random_ranges": "quantizer"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    value = globals()[name] = getattr(home, name)
    return value
