"""A fixed colour for each class, the same in curves, tables, drawn boxes and masks.

The first are those of Okabe and Ito (2008), told apart with every common kind of colour blindness, but for
black; then those of Tol's sets (2021) that are not like one of them. Twelve is about as many as can be told
apart at all; further ones are the same, lighter and darker. Names always stand beside them.
"""

from __future__ import annotations

Colour = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""

_OKABE_ITO = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
_TOL = ("#332288", "#117733", "#882255", "#999933", "#bbbbbb")
_BASE = (*_OKABE_ITO, *_TOL)
_SHADES = (0.0, 0.45, -0.4, 0.7, -0.65)
"""Parts of the way to white, or to black below 0."""


def colours(count: int) -> list[Colour]:
    """Colours of ``count`` classes; a class has the same one whatever their number."""
    return [_shade(_parsed(_BASE[i % len(_BASE)]), _SHADES[i // len(_BASE) % len(_SHADES)]) for i in range(count)]


def _parsed(code: str) -> Colour:
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


def _shade(colour: Colour, part: float) -> Colour:
    end = 255 if part > 0 else 0
    red, green, blue = (round(value + abs(part) * (end - value)) for value in colour)
    return red, green, blue


def hexadecimal(colour: Colour) -> str:
    """As in CSS: ``#e69f00``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def ink(colour: Colour) -> Colour:
    """Black or white, whichever is read better on a colour (WCAG's relative luminance)."""
    linear = [(v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4) for v in (x / 255 for x in colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)
