"""The report's figures of networks, layers and trainings, drawn by matplotlib as SVG."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mobilefit.report import drawing, tables, units
from mobilefit.report.drawing import COLOURS, STYLE, Mark
from mobilefit.report.measures import MEASURES, measure
from mobilefit.report.trials import thinned

_SERIES = ("adapted", "width", "seed", "budget", "steps", "muted")
_MARKERS = {"seed": "D", "adapted": "o", "candidate": "o", "searched": "o", "width": "s",
            "resolution": "^", "reference": "v"}  # fmt: skip
_KIND_COLOURS = {"candidate": "adapted", "searched": "adapted", "resolution": "reference"}
"""Of the kinds that have no colour of their own name: no record has both kinds of a colour."""


def frontier_figure(
    record: tables.Row, steps: Sequence[tables.Row], designs: Mapping[str, tables.Row] | None = None
) -> bytes:
    """Accuracy (mAP, mIoU) against measured latency, as a standalone SVG file.

    Above: every network of ``record["results"]``, trained alike and measured on the test set; small
    dots are single seeds, the large mark their mean, the bars the sample standard deviation. Below:
    the accepted ``steps`` of NetAdapt or the knapsack with their short-term accuracy, which is another quantity (few
    training steps, held-out images), hence its own axis. The accuracy above is int8's where any
    is recorded, else float32's, and the axis says which.

    Args:
        record: the content of ``record.json``.
        steps: the rows of ``netadapt.jsonl`` or ``knapsack.jsonl``; may be empty.
        designs: of several budgets the record of each, by the name that its labels begin with: a line
            joins the exported networks, which alone are named.
    """
    designs = designs or {}
    short = _short_term(steps)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.8, 4.6 if short else 3.5), layout="constrained")
        ratios = {"height_ratios": [2.2, 1]} if short else None
        axes = figure.subplots(2 if short else 1, 1, sharex=True, squeeze=False, gridspec_kw=ratios)
        marks = _draw_results(axes[0, 0], record, exported(designs))
        if short:
            _draw_steps(axes[1, 0], short, tables.shrinking(steps), measure(record).name)
        numbers = [units.number(one.get("budget_ms")) for one in (record, *designs.values())]
        budgets = [number for number in numbers if number is not None]
        for axis in axes[:, 0]:
            _draw_budgets(axis, budgets)
        axes[-1, 0].set_xlabel("measured latency, median (ms)")
        handles, names = axes[0, 0].get_legend_handles_labels()
        drawing.legend_below(figure, dict(zip(names, handles)))
        if marks:
            drawing.label(axes[0, 0], marks, budgets)
    return drawing.svg(figure, "frontier")


def exported(designs: Mapping[str, tables.Row]) -> dict[str, str]:
    """The name of each budget, by the label that its exported network has among all results."""
    labels = {name: (record.get("final") or {}).get("label") for name, record in designs.items()}
    return {f"{name}: {label}": name for name, label in labels.items()}


def _short_term(steps: Sequence[tables.Row]) -> list[tuple[float, float]]:
    points = []
    for row in steps:
        if row.get("event") in ("seed", "accepted"):
            measured = units.number(row.get("measured_ms"))
            accuracy = units.number(row.get("accuracy"))
            if measured is not None and accuracy is not None:
                points.append((measured, 100 * accuracy))
    return points


def _draw_results(axis: Axes, record: tables.Row, exported: Mapping[str, str]) -> list[Mark]:
    """Every network as a mark; dotted lines join the widths and the resolutions of one network.

    Args:
        exported: the budget by the label of its network; if there are any, these alone are named.
    """
    marks: list[Mark] = []
    entries = tables.entries(record)
    int8 = any(entry.accuracy_int8 for entry in entries)
    words = tables.kinds(record)
    unscaled = "reference" if tables.searched(record) else "seed"
    lines: dict[str, list[tuple[float, float]]] = {"width": [], "resolution": [], "exported": []}
    in_legend: set[str] = set()
    for entry in entries:
        accuracy = entry.accuracy_int8 if int8 else entry.accuracy_float
        if accuracy is None or entry.latency is None:
            continue
        colour = COLOURS.get(_KIND_COLOURS.get(entry.kind, entry.kind), COLOURS["ink"])
        x, y = entry.latency, accuracy
        if len(x.values) == len(y.values) > 1:
            axis.scatter(x.values, [100 * v for v in y.values], s=9, color=colour, alpha=0.45,
                         linewidths=0)  # fmt: skip
        axis.errorbar(
            x.mean, 100 * y.mean, xerr=x.spread, yerr=100 * y.spread if y.spread else None,
            fmt=_MARKERS.get(entry.kind, "^"), color=colour, markersize=7, elinewidth=1.1, capsize=2,
            label=None if entry.kind in in_legend else words.get(entry.kind, entry.kind),
        )  # fmt: skip
        in_legend.add(entry.kind)
        point = x.mean, 100 * y.mean
        if not exported or entry.label in exported:
            marks.append((exported.get(entry.label, _short_label(entry, record)), *point))
        for kind, points in lines.items():
            member = entry.label in exported if kind == "exported" else entry.kind in (unscaled, kind)
            points += [point] if member else []
    _draw_lines(axis, lines)
    axis.margins(0.14)
    axis.set_title("trained and measured")
    axis.set_ylabel(f"{measure(record).name}, {'int8' if int8 else 'float32'} (%)")
    return marks


def _short_label(entry: tables.Entry, record: tables.Row) -> str:
    """``48 px`` and ``width 0.59`` of the larger network at a lower resolution, and scaled in width."""
    larger = str((record.get("seed_spec") or {}).get("name"))
    if entry.kind == "resolution" and entry.label.startswith(f"{larger} "):
        return entry.label.removeprefix(f"{larger} ")
    if entry.kind == "width" and entry.label.startswith(f"{larger}_"):
        return entry.label.replace(f"{larger}_", "width ", 1)
    return entry.label


def _draw_lines(axis: Axes, lines: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    looks = {"width": ("width", ":"), "resolution": ("reference", ":"), "exported": ("adapted", "-")}
    for kind, points in lines.items():
        if len(points) > 1:
            colour, style = looks[kind]
            axis.plot(*zip(*sorted(points)), color=COLOURS[colour], lw=1, ls=style, zorder=1)


def _draw_steps(axis: Axes, points: Sequence[tuple[float, float]], method: str, score: str) -> None:
    x, y = zip(*points)
    axis.plot(x, y, color=COLOURS["steps"], lw=1, marker="o", markersize=3.5, alpha=0.85)
    axis.margins(0.14)
    axis.set_title(f"{method}'s accepted steps, short-term {score}")
    axis.set_ylabel(f"{score} (%)")


def _draw_budgets(axis: Axes, budgets: Sequence[float]) -> None:
    texts = [units.ms(budget) for budget in budgets]
    name = f"{'budgets' if len(texts) > 1 else 'budget'} {', '.join(texts)}"
    for index, budget in enumerate(budgets):
        axis.axvline(budget, color=COLOURS["budget"], lw=1.1, ls="--", label=name if index == 0 else None)


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
    """Losses and top-1 (mAP, mIoU) over the steps of each training run; ``None`` if nothing was recorded.

    Training and validation loss have an axis each: label smoothing is in the first alone.
    """
    dots = {"marker": "o", "markersize": 3}
    panels: list[tuple[str, str, float, dict[str, Any]]] = [
        ("loss", "training loss", 1.0, {}),
        ("val_loss", "validation loss", 1.0, dots),
        *((found.key, f"{found.validation} (%)", 100.0, dots) for found in MEASURES.values()),
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


# ---- one training


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Steps of a training that are marked in its curves."""

    best: float | None = None
    """That of the best validation."""
    resumed: tuple[float, ...] = ()
    """Those that an interrupted run went on from."""


_PANELS: tuple[tuple[str, str, float], ...] = (
    ("loss", "training loss", 1.0), ("val_loss", "validation loss", 1.0),
    *((found.key, f"{found.validation} (%)", 100.0) for found in MEASURES.values()),
    ("lr", "learning rate", 1.0),
    ("images_per_s", "images a second", 1.0), ("data_wait", "waiting for images (% of the time)", 100.0),
)  # fmt: skip
_FROM_ZERO = ("images_per_s", "data_wait")
MAX_POINTS = 500
"""Corners of a curve; of more, every so-manieth one."""
MAX_DOTS = 40
"""Points up to which each gets a dot."""


def training_figures(rows: Sequence[tables.Row], marks: Marks) -> list[bytes]:
    """A small figure for each quantity that two rows or more have, over the epochs.

    A scale is logarithmic where the median lies under a tenth of the maximum, but for the speed's. Training and validation
    loss have a figure each: label smoothing and mixing are in the first alone.
    """
    epochs, found = _epochs(rows), []
    end = max((x for key, *_ in _PANELS for x, _ in _points(rows, key)), default=0.0)
    for key, title, scale in _PANELS:
        points = [(x, scale * y) for x, y in _points(rows, key)]
        if len(points) > 1:
            found.append(_panel(key, title, points, marks, epochs, end))
    return found


def _epochs(rows: Sequence[tables.Row]) -> float | None:
    """Epochs a step; ``None`` where the rows do not tell, or there is no whole epoch."""
    last = rows[-1] if rows else {}
    step, epoch = units.number(last.get("step")), units.number(last.get("epoch"))
    return epoch / step if step and epoch and epoch >= 1 else None


def _panel(
    key: str, title: str, points: Sequence[tuple[float, float]], marks: Marks, epochs: float | None,
    end: float,
) -> bytes:  # fmt: skip
    unit = epochs or 1.0
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.5, 2.35), layout="constrained")
        axis = figure.subplots()
        drawn = thinned(points, MAX_POINTS)
        validated = key.startswith("val_")
        axis.plot([unit * x for x, _ in drawn], [y for _, y in drawn], lw=1.4, color=COLOURS["adapted"],
                  marker="o" if validated and len(drawn) <= MAX_DOTS else "", markersize=3)  # fmt: skip
        for step in marks.resumed:
            axis.axvline(unit * step, color=COLOURS["steps"], lw=1, ls=":")
        if validated:
            _draw_best(axis, points, marks.best, unit)
        if key in _FROM_ZERO:
            axis.set_ylim(0, 1.1 * max(y for _, y in points) or 1)
        elif _logarithmic([y for _, y in points]):
            drawing.logarithmic(axis, "y")
        axis.set_title(title)
        axis.set_xlabel("epoch" if epochs else "step")
        axis.set_xlim(0, 1.02 * unit * end)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=unit * end >= 6))
    return drawing.svg(figure, f"training-{key}")


def _logarithmic(values: Sequence[float]) -> bool:
    return min(values) > 0 and statistics.median(values) < max(values) / 10


def _draw_best(
    axis: Axes, points: Sequence[tuple[float, float]], best: float | None, unit: float
) -> None:
    at = next((y for x, y in points if x == best), None)
    if best is not None and at is not None:
        axis.plot([unit * best], [at], "o", color=COLOURS["seed"], markersize=7, fillstyle="none", mew=1.6)


def lr_curve(curve: tables.Row) -> bytes:
    """A learning-rate sweep as a standalone SVG file.

    Args:
        curve: ``rates``, ``losses`` and ``smoothed`` of one length, ``suggestion`` and, if it is there,
            ``tenth_of_minimum``, as ``mobilefit train --find-lr`` writes them.
    """
    rates, smoothed = curve["rates"], curve["smoothed"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.8, 3.2), layout="constrained")
        axis = figure.subplots()
        axis.plot(rates, curve["losses"], color=COLOURS["steps"], lw=0.9, alpha=0.6, label="loss of each step")
        axis.plot(rates, smoothed, color=COLOURS["adapted"], lw=1.8, label="smoothed")
        for key, colour, style, name in (("suggestion", "seed", "-", "steepest descent"),
                                         ("tenth_of_minimum", "width", "--", "a tenth of the minimum's")):  # fmt: skip
            rate = units.number(curve.get(key))
            if rate is not None:
                axis.axvline(rate, color=COLOURS[colour], lw=1.3, ls=style, label=f"{name}: {rate:.2g}")
        low, high = min(smoothed), smoothed[0]
        axis.set_ylim(low - 0.15 * (high - low), high + 0.6 * (high - low))  # where it diverges says nothing
        drawing.logarithmic(axis, "x")
        axis.set_xlabel("learning rate for a batch of 256")
        axis.set_ylabel("training loss")
        handles, names = axis.get_legend_handles_labels()
        drawing.legend_below(figure, dict(zip(names, handles)))
    return drawing.svg(figure, "learning-rates")
