"""From a module to a LiteRT flatbuffer.

Names load on first use: ``compile`` brings torch. (The module is ``compiler`` because a submodule
named like a function of its package would take that function's place in the package.)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilefit.litert.compiler import compile
    from mobilefit.litert.graph import read_metadata

__all__ = ["compile", "read_metadata"]

_HOMES = {"compile": "compiler", "read_metadata": "graph"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    value = globals()[name] = getattr(home, name)
    return value
