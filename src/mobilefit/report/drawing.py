"""What all figures share: colours, style, SVG as text, names beside their marks.

Colours are those of the light page. :func:`inline` turns them into the page's CSS variables, so that
one drawing follows the reader's light or dark setting.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Affine2D

COLOURS = {
    "ink": "#1b2430",
    "muted": "#667084",
    "rule": "#dfe3e9",
    "card": "#fffffe",
    "seed": "#7c4fd6",
    "adapted": "#0a7d74",
    "width": "#c9650a",
    "reference": "#2467c9",
    "steps": "#8d99a9",
    "budget": "#c8324a",
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it is small, and it can be selected and searched
    "text.parse_math": False,  # a class may be called "$5"
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": COLOURS["rule"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.facecolor": COLOURS["card"],
    "figure.facecolor": COLOURS["card"],
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "axes.grid": True,
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def inline(drawn: bytes) -> str:
    """An SVG file as an element of the page: its size and colours are left to the page's CSS."""
    text = drawn.decode()
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # figure_1 and so on: ids are unique in a page
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return text[text.index("<svg") :]


def svg(figure: Figure, name: str) -> bytes:
    """The figure's SVG; the same figure gives the same bytes."""
    file = io.BytesIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"<metadata>.*?</metadata>|<!DOCTYPE[^>]*>", "", file.getvalue().decode(),
                  flags=re.DOTALL)  # fmt: skip
    return text.encode()


def legend_below(figure: Figure, named: Mapping[str, Any]) -> None:
    """The figure's legend, of handles by name, in rows that stay within its width."""
    columns = {4: 2}.get(len(named), min(3, len(named)))
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=columns or 1)


def logarithmic(axes: Axes, which: Literal["x", "y"]) -> None:
    """Plain numbers on a logarithmic scale: matplotlib's own are powers in markup.

    Where it spans less than two decades, 2 and 5 are named too.
    """
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,), numticks=9))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


Mark = tuple[str, float, float]
"""A network's label, and where it is in the axes."""
LABEL_SIZE = 8.0


def label(axis: Axes, marks: Sequence[Mark], budgets: Sequence[float]) -> None:
    """Name the marks, each on the side where it covers least of other names, marks and lines.

    Networks of one latency are what the figure is about, so marks do stand close together. Sizes
    are estimated: the reader's font is not known here.
    """
    axis.figure.draw_without_rendering()  # the layout is final from here on
    to_points = axis.transData + Affine2D().scale(72 / axis.figure.dpi)
    left, right = to_points.transform([(x, axis.get_ylim()[0]) for x in axis.get_xlim()])[:, 0]
    middles = to_points.transform([(x, y) for _, x, y in marks])
    taken = [(_square(x, y, 5), 10) for x, y in middles]
    for line in axis.get_lines():
        if line.get_linestyle() == ":":
            corners = to_points.transform(line.get_xydata())
            taken += [(_square(x, y, 1), 1) for x, y in _along(corners)]
    for budget in budgets:
        x = to_points.transform((budget, axis.get_ylim()[0]))[0]
        taken.append(((x - 2, -math.inf, x + 2, math.inf), 10))
    for (name, ms, percent), (x, y) in zip(marks, middles):
        width = 0.52 * LABEL_SIZE * len(name)
        places = []
        for dx, dy in itertools.product((7, -7), (-9, 3, -18, 12)):
            start = x + dx if dx > 0 else x + dx - width
            box = (start, y + dy, start + width, y + dy + LABEL_SIZE)
            outside = 10 * (box[0] < left or box[2] > right)
            covered = sum(cost for other, cost in taken if overlap(box, other))
            places.append((outside + covered, dx, dy, box))
        _, dx, dy, box = min(places, key=lambda place: place[0])
        taken.append((box, 10))
        axis.annotate(name, (ms, percent), xytext=(dx, dy), textcoords="offset points",
                      fontsize=LABEL_SIZE, ha="left" if dx > 0 else "right",
                      color=COLOURS["muted"])  # fmt: skip


Box = tuple[float, float, float, float]
"""Left, bottom, right, top in points."""


def _square(x: float, y: float, half: float) -> Box:
    return x - half, y - half, x + half, y + half


def _along(corners: Any) -> Iterator[tuple[float, float]]:
    """Points every few points along a line through ``corners``, [n, 2]."""
    for (x, y), (to_x, to_y) in itertools.pairwise(corners):
        steps = max(1, round(math.hypot(to_x - x, to_y - y) / 4))
        for i in range(steps + 1):
            yield x + (to_x - x) * i / steps, y + (to_y - y) * i / steps


def overlap(one: Box, other: Box) -> bool:
    """Whether two boxes share more than an edge."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
