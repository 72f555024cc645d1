"""What a search maximises: accuracy against latency, in one number.

- ``soft``: ACC x (LAT/TAR)^w with w = -0.07, MnasNet's (section 3) and V3-Large's: by that a network
  of twice the latency is worth it for 5 % more accuracy;
- ``soft_small``: w = -0.15, V3-Small's (section 4.1): small networks gain more accuracy from the same
  latency, so latency must weigh more;
- ``hard``: ACC where the latency is within the target, ACC x TAR/LAT above it (MnasNet's hard form);
- ``absolute``: ACC - 0.1 |LAT/TAR - 1|, TuNAS's (arXiv 2008.06120, section 3.3), whose optimum lies
  at the target instead of wherever the exponent puts it.
"""

from __future__ import annotations

from dataclasses import dataclass

from mobilefit.errors import InputError, unknown


@dataclass(frozen=True, kw_only=True)
class Form:
    """A reward without its target."""

    below: float
    """Exponent up to the target; for the absolute form, what the deviation costs."""
    above: float
    """The same beyond it."""
    absolute: bool = False


FORMS = {
    "soft": Form(below=-0.07, above=-0.07),
    "soft_small": Form(below=-0.15, above=-0.15),
    "hard": Form(below=0.0, above=-1.0),
    "absolute": Form(below=-0.1, above=-0.1, absolute=True),
}


@dataclass(frozen=True, kw_only=True)
class Reward:
    """A form with its target, as a function of accuracy and latency."""

    form: str
    """A name of :data:`FORMS`."""
    target_ms: float

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise unknown("reward", self.form, FORMS)
        if not self.target_ms > 0:
            raise InputError(f"target latency {self.target_ms} is not above 0")

    def __call__(self, accuracy: float, latency_ms: float) -> float:
        """The reward.

        Args:
            accuracy: top-1, or the score of another task: 0 to 1.
            latency_ms: milliseconds, above 0.
        """
        form, ratio = FORMS[self.form], latency_ms / self.target_ms
        weight = form.below if ratio <= 1 else form.above
        if form.absolute:
            return accuracy + weight * abs(ratio - 1)
        return float(accuracy * ratio**weight)
