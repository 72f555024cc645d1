"""The report's figures of networks, layers and trainings, drawn by matplotlib as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mobilefit.report import drawing, tables, units
from mobilefit.report.drawing import COLOURS, STYLE, Mark

_SERIES = ("adapted", "width", "seed", "budget", "steps", "muted")
_MARKERS = {"seed": "D", "adapted": "o", "width": "s", "reference": "v"}


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
    with matplotlib.rc_context(STYLE):
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
        drawing.legend_below(figure, dict(zip(names, handles)))
        if marks:
            drawing.label(axes[0, 0], marks, budget)
    return drawing.svg(figure, "frontier")


def _short_term(steps: Sequence[tables.Row]) -> list[tuple[float, float]]:
    points = []
    for row in steps:
        if row.get("event") in ("seed", "accepted"):
            measured = units.number(row.get("measured_ms"))
            accuracy = units.number(row.get("accuracy"))
            if measured is not None and accuracy is not None:
                points.append((measured, 100 * accuracy))
    return points


def _draw_results(axis: Axes, record: tables.Row) -> list[Mark]:
    marks: list[Mark] = []
    found = tables.entries(record)
    int8 = any(entry.accuracy_int8 for entry in found)
    words = tables.kinds(record)
    searched = bool(record.get("search")) or any(entry.kind == "reference" for entry in found)
    unscaled = "reference" if searched else "seed"
    family: list[tuple[float, float]] = []  # the hand-made network and its widths
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
            label=None if entry.kind in named else words.get(entry.kind, entry.kind),
        )  # fmt: skip
        named.add(entry.kind)
        marks.append((entry.label, x.mean, 100 * y.mean))
        family += [(x.mean, 100 * y.mean)] if entry.kind in (unscaled, "width") else []
    if len(family) > 1:
        axis.plot(*zip(*sorted(family)), color=COLOURS["width"], lw=1, ls=":", zorder=1)
    axis.margins(0.14)
    axis.set_title("trained and measured")
    axis.set_ylabel(f"accuracy, {'int8' if int8 else 'float32'} (%)")
    return marks


def _draw_steps(axis: Axes, points: Sequence[tuple[float, float]]) -> None:
    x, y = zip(*points)
    axis.plot(x, y, color=COLOURS["steps"], lw=1, marker="o", markersize=3.5, alpha=0.85)
    axis.margins(0.14)
    axis.set_title("NetAdapt's accepted steps, short-term accuracy")
    axis.set_ylabel("accuracy (%)")


def _draw_budget(axis: Axes, budget: float | None) -> None:
    if budget is not None:
        axis.axvline(budget, color=COLOURS["budget"], lw=1.1, ls="--", label=f"budget {units.ms(budget)}")


def layers_figure(
    before: Mapping[str, float], after: Mapping[str, float], words: tuple[str, str] = ("before", "after")
) -> bytes:
    """Milliseconds of each row of the network as horizontal bars, before above after."""
    names = [*before, *(name for name in after if name not in before)]
    sides = [(label, side, colour, offset) for label, side, colour, offset in
             ((words[0], before, "steps", -0.19), (words[1], after, "adapted", 0.19)) if side]  # fmt: skip
    with matplotlib.rc_context(STYLE):
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
    return drawing.svg(figure, "layers")


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
    with matplotlib.rc_context(STYLE):
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
    return drawing.svg(figure, "curves")


def _points(rows: Sequence[tables.Row], key: str) -> list[tuple[float, float]]:
    pairs = ((units.number(row.get("step")), units.number(row.get(key))) for row in rows)
    return [(x, y) for x, y in pairs if x is not None and y is not None]
