"""Does a file say what the module says? By its logits, on real images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilefit.errors import unknown


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """What a format may differ by."""

    logits: float
    """Largest difference of a logit, as a part of the module's largest absolute logit."""
    share: float
    """Least share of the logits within that difference."""
    agreement: float
    """Least share of the images with the same top-1."""


_EXACT = Tolerance(logits=1e-4, share=1.0, agreement=0.99)
_INT8 = Tolerance(logits=0.25, share=0.95, agreement=0.8)
TOLERANCES = {
    "float32": _EXACT,
    "onnx": _EXACT,
    "pt2": _EXACT,
    "executorch": _EXACT,
    "float16": Tolerance(logits=1e-2, share=1.0, agreement=0.98),
    "dynamic": Tolerance(logits=0.15, share=0.98, agreement=0.9),
    "int8": _INT8,
    "int8_io": _INT8,
}
"""By format. float32 rounds differently; float16 keeps 11 bits of a weight; int8 keeps 8, and is
told from a broken file by its top-1."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """A file's logits against the module's."""

    kind: str
    """The format, a key of :data:`TOLERANCES`."""
    images: int
    agreement: float
    """Share of the images with the same top-1, 0 to 1."""
    largest: float
    """Largest absolute difference of a logit; infinite where one is not finite."""
    scale: float
    """The module's largest absolute logit."""
    within: float
    """Share of the logits within the tolerance, 0 to 1."""

    @property
    def tolerance(self) -> Tolerance:
        """What is allowed."""
        return TOLERANCES[self.kind]

    @property
    def ok(self) -> bool:
        """Whether the file is within the tolerance of its format."""
        return self.within >= self.tolerance.share and self.agreement >= self.tolerance.agreement

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an infinite difference is None."""
        largest = self.largest if np.isfinite(self.largest) else None
        limits = asdict(self.tolerance)
        return {**asdict(self), "largest": largest, "tolerance": limits, "ok": self.ok}

    def __str__(self) -> str:
        return (
            f"top-1 agrees on {self.agreement:.1%} of {self.images} images, "
            f"logits differ by at most {self.largest:.3g} (of {self.scale:.3g})"
        )


def parity(kind: str, module: npt.ArrayLike, file: npt.ArrayLike) -> Parity:
    """Compare logits ``[n, classes]`` of the same images, the module's and the file's.

    Raises:
        InputError: an unknown format.
    """
    if kind not in TOLERANCES:
        raise unknown("format", kind, TOLERANCES)
    expected, found = np.asarray(module, np.float64), np.asarray(file, np.float64)
    if expected.shape != found.shape or expected.ndim != 2 or not expected.size:
        raise ValueError(f"logits of shape {expected.shape} and {found.shape}")
    difference = np.where(np.isfinite(found), np.abs(found - expected), np.inf)
    scale = float(np.abs(expected).max())
    return Parity(
        kind=kind, images=len(expected), largest=float(difference.max()), scale=scale,
        agreement=float((expected.argmax(1) == found.argmax(1)).mean()),
        within=float((difference <= TOLERANCES[kind].logits * scale).mean()),
    )  # fmt: skip
