"""int8: what becomes of a network when its numbers are rounded, and networks that bear it.

``simulation`` runs the lowered graph with the device's arithmetic; ``observers``, ``correction``,
``sensitivity`` and ``training`` (quantization-aware) work on it; ``quantizer`` writes the file.

Names load on first use. (The module is ``quantizer`` because a submodule named like a function of
its package would take that function's place in the package.)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilefit.int8.correction import correct_biases
    from mobilefit.int8.fidelity import Fidelity, fidelity_of
    from mobilefit.int8.policy import Policy, Rule
    from mobilefit.int8.quantizer import calibrated, quantize, with_random_ranges, written
    from mobilefit.int8.sensitivity import LayerSensitivity, sensitivity_of
    from mobilefit.int8.simulation import Simulation
    from mobilefit.int8.training import fit_int8

__all__ = [
    "Fidelity", "LayerSensitivity", "Policy", "Rule", "Simulation", "calibrated", "correct_biases",
    "fidelity_of", "fit_int8", "quantize", "sensitivity_of", "with_random_ranges", "written",
]  # fmt: skip
_HOMES = {
    "Fidelity": "fidelity", "fidelity_of": "fidelity",
    "LayerSensitivity": "sensitivity", "sensitivity_of": "sensitivity",
    "Policy": "policy", "Rule": "policy", "Simulation": "simulation",
    "calibrated": "quantizer", "quantize": "quantizer", "with_random_ranges": "quantizer",
    "written": "quantizer", "correct_biases": "correction", "fit_int8": "training",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    value = globals()[name] = getattr(home, name)
    return value
