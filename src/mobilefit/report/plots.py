"""The report's figures, drawn by matplotlib as SVG.

Colours are those of the light page. :func:`inline` turns them into the page's CSS variables, so that
one drawing follows the reader's light or dark setting.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Affine2D

from mobilefit.report import tables, units

COLOURS = {
    "ink": "#1b2430",
    "muted": "#667084",
    "rule": "#dfe3e9",
    "card": "#fffffe",
    "seed": "#7c4fd6",
    "adapted": "#0a7d74",
    "width": "#c9650a",
    "steps": "#8d99a9",
    "budget": "#c8324a",
}
_SERIES = ("adapted", "width", "seed", "budget", "steps", "muted")
_STYLE: dict[Any, Any] = {
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
_NAMES = {"seed": "seed network", "adapted": "NetAdapt, trained", "width": "width multiplier"}
_MARKERS = {"seed": "D", "adapted": "o", "width": "s"}


def inline(svg: bytes) -> str:
    """An SVG file as an element of the page: its size and colours are left to the page's CSS."""
    text = svg.decode()
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # figure_1 and so on: ids are unique in a page
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return text[text.index("<svg") :]


def _svg(figure: Figure, name: str) -> bytes:
    """The figure's SVG; the same figure gives the same bytes."""
    file = io.BytesIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"<metadata>.*?</metadata>|<!DOCTYPE[^>]*>", "", file.getvalue().decode(),
                  flags=re.DOTALL)  # fmt: skip
    return text.encode()


def frontier_figure(record: tables.Row, steps: Sequence[tables.Row]) -> bytes:
    """Accuracy against measured latency, as a standalone SVG file.

    Above: every network of ``record["results"]``, trained alike and measured on the test set; small
    dots are single seeds, the large mark their mean, the bars the sample standard deviation. Below:
    NetAdapt's accepted ``steps`` with their short-term accuracy, which is another quantity (few
    training steps, held-out images), hence its own axis. The accuracy above is int8's where any
    is recorded, else float32's, and the axis says which.

    Args:
        record: the content of ``record.json``.
        steps: the rows of ``netadapt.jsonl``; may be empty.
    """
    short = _short_term(steps)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.8, 4.6 if short else 3.5), layout="constrained")
        ratios = {"height_ratios": [2.2, 1]} if short else None
        axes = figure.subplots(2 if short else 1, 1, sharex=True, squeeze=False, gridspec_kw=ratios)
        marks = _draw_results(axes[0, 0], record)
        if short:
            _draw_steps(axes[1, 0], short)
        budget = units.number(record.get("budget_ms"))
        for axis in axes[:, 0]:
            _draw_budget(axis, budget)
        axes[-1, 0].set_xlabel("measured latency, median (ms)")
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names) or 1)
        if marks:
            _label(axes[0, 0], marks, budget)
    return _svg(figure, "frontier")


def _short_term(steps: Sequence[tables.Row]) -> list[tuple[float, float]]:
    points = []
    for row in steps:
        if row.get("event") in ("seed", "accepted"):
            measured = units.number(row.get("measured_ms"))
            accuracy = units.number(row.get("accuracy"))
            if measured is not None and accuracy is not None:
                points.append((measured, 100 * accuracy))
    return points


Mark = tuple[str, float, float]
"""A network's label, milliseconds and percent."""


def _draw_results(axis: Axes, record: tables.Row) -> list[Mark]:
    marks: list[Mark] = []
    found = tables.entries(record)
    int8 = any(entry.accuracy_int8 for entry in found)
    width_line = []
    named: set[str] = set()
    for entry in found:
        accuracy = entry.accuracy_int8 if int8 else entry.accuracy_float
        if accuracy is None or entry.latency is None:
            continue
        colour = COLOURS.get(entry.kind, COLOURS["ink"])
        x, y = entry.latency, accuracy
        if len(x.values) == len(y.values) > 1:
            axis.scatter(x.values, [100 * v for v in y.values], s=9, color=colour, alpha=0.45,
                         linewidths=0)  # fmt: skip
        axis.errorbar(
            x.mean, 100 * y.mean, xerr=x.spread, yerr=100 * y.spread if y.spread else None,
            fmt=_MARKERS.get(entry.kind, "^"), color=colour, markersize=7, elinewidth=1.1, capsize=2,
            label=None if entry.kind in named else _NAMES.get(entry.kind, entry.kind),
        )  # fmt: skip
        named.add(entry.kind)
        marks.append((entry.label, x.mean, 100 * y.mean))
        width_line += [(x.mean, 100 * y.mean)] if entry.kind in ("seed", "width") else []
    if len(width_line) > 1:
        axis.plot(*zip(*sorted(width_line)), color=COLOURS["width"], lw=1, ls=":", zorder=1)
    axis.margins(0.14)
    axis.set_title("trained and measured")
    axis.set_ylabel(f"accuracy, {'int8' if int8 else 'float32'} (%)")
    return marks


_LABEL_SIZE = 8.0


def _label(axis: Axes, marks: Sequence[Mark], budget: float | None) -> None:
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
    if budget is not None:
        x = to_points.transform((budget, axis.get_ylim()[0]))[0]
        taken.append(((x - 2, -math.inf, x + 2, math.inf), 10))
    for (name, ms, percent), (x, y) in zip(marks, middles):
        width = 0.52 * _LABEL_SIZE * len(name)
        places = []
        for dx, dy in itertools.product((7, -7), (-9, 3, -18, 12)):
            start = x + dx if dx > 0 else x + dx - width
            box = (start, y + dy, start + width, y + dy + _LABEL_SIZE)
            outside = 10 * (box[0] < left or box[2] > right)
            covered = sum(cost for other, cost in taken if _overlap(box, other))
            places.append((outside + covered, dx, dy, box))
        _, dx, dy, box = min(places, key=lambda place: place[0])
        taken.append((box, 10))
        axis.annotate(name, (ms, percent), xytext=(dx, dy), textcoords="offset points",
                      fontsize=_LABEL_SIZE, ha="left" if dx > 0 else "right",
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


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _draw_steps(axis: Axes, points: Sequence[tuple[float, float]]) -> None:
    x, y = zip(*points)
    axis.plot(x, y, color=COLOURS["steps"], lw=1, marker="o", markersize=3.5, alpha=0.85)
    axis.margins(0.14)
    axis.set_title("NetAdapt's accepted steps, short-term accuracy")
    axis.set_ylabel("accuracy (%)")


def _draw_budget(axis: Axes, budget: float | None) -> None:
    if budget is not None:
        axis.axvline(budget, color=COLOURS["budget"], lw=1.1, ls="--", label=f"budget {units.ms(budget)}")


def layers_figure(before: Mapping[str, float], after: Mapping[str, float]) -> bytes:
    """Milliseconds of each row of the network as horizontal bars, before above after."""
    names = [*before, *(name for name in after if name not in before)]
    sides = [(label, side, colour, offset) for label, side, colour, offset in
             (("before", before, "steps", -0.19), ("after", after, "adapted", 0.19)) if side]  # fmt: skip
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.8, 0.9 + 0.27 * len(names)), layout="constrained")
        axis = figure.subplots()
        for label, side, colour, offset in sides:
            total = f"{label}, {units.ms(sum(side.values()))} in all"
            axis.barh([i + offset for i in range(len(names))], [side.get(n, 0) for n in names],
                      height=0.36, color=COLOURS[colour], label=total)  # fmt: skip
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.grid(visible=False, axis="y")
        axis.set_xlabel("latency (ms)")
        axis.legend(loc="best")
    return _svg(figure, "layers")


def curves_figure(runs: Mapping[str, Sequence[tables.Row]]) -> bytes | None:
    """Losses and top-1 over the steps of each training run; ``None`` if nothing was recorded.

    Training and validation loss have an axis each: label smoothing is in the first alone.
    """
    dots = {"marker": "o", "markersize": 3}
    panels: list[tuple[str, str, float, dict[str, Any]]] = [
        ("loss", "training loss", 1.0, {}),
        ("val_loss", "validation loss", 1.0, dots),
        ("val_top1", "validation top-1 (%)", 100.0, dots),
    ]
    series = {key: {name: points for name, rows in runs.items() if (points := _points(rows, key))}
              for key, *_ in panels}  # fmt: skip
    panels = [panel for panel in panels if series[panel[0]]]
    if not panels:
        return None
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.8, 2.1 * len(panels) + 0.3), layout="constrained")
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)
        colours = dict(zip(runs, (COLOURS[_SERIES[i % len(_SERIES)]] for i in range(len(runs)))))
        styles = dict(zip(runs, ("-" if i < len(_SERIES) else "--" for i in range(len(runs)))))
        for axis, (key, label, scale, how) in zip(axes[:, 0], panels):
            for name, points in series[key].items():
                axis.plot([x for x, _ in points], [scale * y for _, y in points], lw=1.3,
                          color=colours[name], ls=styles[name], label=name, **how)  # fmt: skip
            axis.set_ylabel(label)
        axes[0, 0].legend(loc="best")
        axes[-1, 0].set_xlabel("training step")
    return _svg(figure, "curves")


def _points(rows: Sequence[tables.Row], key: str) -> list[tuple[float, float]]:
    pairs = ((units.number(row.get("step")), units.number(row.get(key))) for row in rows)
    return [(x, y) for x, y in pairs if x is not None and y is not None]
