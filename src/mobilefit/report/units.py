"""Numbers as people read them: with a unit, at the precision that they have, a dash for none."""

from __future__ import annotations

import math
from typing import Any

NONE = "–"


def number(value: Any) -> float | None:
    """``value`` if it is a finite number, else ``None``: records of a broken run may hold NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def ms(value: Any) -> str:
    """Milliseconds to three significant digits: ``1.93 ms``."""
    return NONE if number(value) is None else f"{digits(value)} ms"


def significant(value: float) -> str:
    """Three significant digits without an exponent."""
    rounded = abs(float(f"{value:.3g}"))  # 9.999 is 10.0, not 10.00
    if rounded == 0 or rounded >= 100:
        return f"{value:.0f}"
    return f"{value:.{2 - math.floor(math.log10(rounded))}f}"


def percent(value: Any) -> str:
    """A share in 0..1 as ``92.31 %``."""
    found = number(value)
    return NONE if found is None else f"{100 * found:.2f} %"


def share(value: Any) -> str:
    """A share in 0..1 as ``8.1 %``, where its second decimal says nothing."""
    found = number(value)
    return NONE if found is None else f"{100 * found:.1f} %"


def digits(value: Any) -> str:
    """A number to three significant digits."""
    found = number(value)
    return NONE if found is None else significant(found)


def count(value: Any) -> str:
    """A whole number with its thousands marked."""
    found = number(value)
    return NONE if found is None else f"{found:,.0f}"


def millions(value: Any) -> str:
    """A count as ``1.52 M``."""
    found = number(value)
    return NONE if found is None else f"{found / 1e6:.2f} M"


def size(value: Any) -> str:
    """Bytes as ``812 kB`` or ``3.21 MB`` (powers of ten)."""
    found = number(value)
    if found is None:
        return NONE
    return f"{found / 1e6:.2f} MB" if found >= 999_500 else f"{found / 1e3:.0f} kB"


def seconds(value: Any) -> str:
    """A duration as ``7.2 s`` or ``12 min 30 s`` or ``1 h 5 min``."""
    found = number(value)
    if found is None:
        return NONE
    if found < 59.5:
        return f"{found:.1f} s"
    minutes, rest = divmod(round(found), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s"
