"""A search in the report: its figures, and all that the page's section about it shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mobilefit.arch import NetSpec
from mobilefit.report import drawing, networks, trials, units
from mobilefit.report.drawing import COLOURS, STYLE
from mobilefit.report.measures import measure
from mobilefit.report.tables import Row
from mobilefit.report.trials import Log, Pair, Point, thinned

MAX_POINTS = 500
"""Trials that are drawn as points; of more, every so-manieth one."""
MAX_CORNERS = 200
"""Corners of a line."""
WINDOW = 10
"""The running median is taken over a tenth of the trials."""


def section(record: Row, log: Log) -> dict[str, Any] | None:
    """What the template shows of a search; ``None`` where the run has none."""
    found = record.get("search") or {}
    if not (found or log.heading or log.trials):
        return None
    header, rows = trials.top(found)
    points, score = log.points, measure(record).name
    picture, preferences = _networks(record, found), trials.preferences(log)
    return {
        "told": trials.told(found, log, score),
        "numbers": trials.numbers(found, log),
        **(_over_trials(found, log, points, score) if points else {}),
        "networks": networks.figure(picture) if picture else None,
        "kinds": _kinds(spec for _, spec in picture) if picture else [],
        "preferences": preferences,
        "columns": max((p.column for _, row in preferences for p in row), default=1),
        "agreement": drawing.inline(figure) if (figure := agreement_figure(found, score)) else None,
        "prediction": _prediction(trials.latencies(found)),
        "correlation": units.number(found.get("rank_correlation")),
        "compared": len(trials.accuracies(found)),
        "top_header": header,
        "top": rows,
        "failures": trials.failures(log),
    }


def _over_trials(found: Row, log: Log, points: Sequence[Point], score: str) -> dict[str, Any]:
    target = _target(found, log)
    return {
        "trials": drawing.inline(trials_figure(points, target, found)),
        "front": drawing.inline(front_figure(points, target, _winner(found), score)),
        "thinned": len(points) > MAX_POINTS,
    }


def _target(found: Row, log: Log) -> float | None:
    return units.number(found.get("target_ms") or log.heading.get("target_ms"))


def _winner(found: Row) -> Row | None:
    """The best network's record."""
    top, place = found.get("top") or [], found.get("winner")
    return top[place] if isinstance(place, int) and 0 <= place < len(top) else None


def _networks(record: Row, found: Row) -> list[tuple[str, NetSpec]]:
    """The winner, and what it is compared with: the hand-made network, or the table's optimum."""
    winner = _winner(found)
    if winner is None or not winner.get("spec"):
        return []
    drawn = [(f"found: {trials.label(winner)}", NetSpec.from_dict(winner["spec"]))]
    reference = found.get("reference") or {}
    spec = reference.get("spec") or record.get("reference_spec")
    if spec:
        made = NetSpec.from_dict(spec)
        drawn.append((f"by hand: {reference.get('name') or made.name}", made))
    elif found.get("optimum"):
        drawn.append(("the best possible", NetSpec.from_dict(found["optimum"])))
    return drawn


def _kinds(specs: Any) -> list[tuple[str, str]]:
    """The operators that occur, and their colours."""
    present = {bar.kind for spec in specs for bar in networks.bars(spec)}
    return [(kind, colour) for kind, colour in networks.COLOURS.items() if kind in present]


def _prediction(pairs: Sequence[Pair]) -> str | None:
    """How far off the latency table was."""
    errors = [abs(pair.x / pair.y - 1) for pair in pairs if pair.y]
    if not errors:
        return None
    mean, worst = sum(errors) / len(errors), max(errors)
    return f"{100 * mean:.1f} % on average, {100 * worst:.1f} % at most"


def trials_figure(points: Sequence[Point], target: float | None, found: Row) -> bytes:
    """Reward above and latency below over the trials: points, running median, best so far.

    Args:
        points: the trials that did not fail, by number.
        target: milliseconds.
        found: ``record["search"]``, for the reward of the best possible network where it is known.
    """
    drawn = thinned(points, MAX_POINTS)
    numbers = [point.number for point in drawn]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.8, 4.4), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        above.scatter(numbers, [p.reward for p in drawn], **_dots())
        below.scatter(numbers, [p.latency for p in drawn], **_dots())
        _draw_median(above, points, lambda point: point.reward)
        _draw_median(below, points, lambda point: point.latency)
        _draw_best(above, points)
        optimal = units.number(found.get("optimal_reward"))
        if optimal is not None:
            above.axhline(optimal, color=COLOURS["reference"], lw=1, ls="--", label="best possible")
        if target is not None:
            below.axhline(target, color=COLOURS["budget"], lw=1.1, ls="--",
                          label=f"target {units.ms(target)}")  # fmt: skip
        above.set_ylabel("reward")
        below.set_ylabel("predicted latency (ms)")
        below.set_xlabel("trial")
        _legend(figure, (above, below))
    return drawing.svg(figure, "search-trials")


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One below the figure, each name once."""
    named: dict[str, Any] = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels()):
            named.setdefault(name, handle)
    drawing.legend_below(figure, named)


def _dots() -> dict[str, Any]:
    return {"s": 7, "color": COLOURS["steps"], "alpha": 0.5, "linewidths": 0}


def _draw_median(axis: Axes, points: Sequence[Point], of: Callable[[Point], float]) -> None:
    values = trials.running_median([of(point) for point in points], max(5, len(points) // WINDOW))
    line = thinned(list(zip((point.number for point in points), values)), MAX_CORNERS)
    axis.plot([x for x, _ in line], [y for _, y in line], color=COLOURS["adapted"], lw=1.6,
              label="running median")  # fmt: skip


def _draw_best(axis: Axes, points: Sequence[Point]) -> None:
    line = thinned(trials.running_best(points), MAX_CORNERS)
    if line:
        ends = [*(point.number for point in line), points[-1].number]
        axis.step(ends, [*(point.reward for point in line), line[-1].reward], where="post",
                  color=COLOURS["seed"], lw=1.3, label="best so far")  # fmt: skip


def front_figure(
    points: Sequence[Point], target: float | None, winner: Row | None, score: str = "accuracy"
) -> bytes:
    """The front of quality, called ``score``, against latency after a third of the trials, two thirds, all."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.8, 4.4), layout="constrained")
        axis = figure.subplots()
        drawn = thinned(points, MAX_POINTS)
        axis.scatter([p.latency for p in drawn], [100 * p.accuracy for p in drawn], **_dots())
        for part, name, colour, style in (
            (1, "after a third", "width", ":"), (2, "two thirds", "reference", "--"),
            (3, "all trials", "adapted", "-"),
        ):  # fmt: skip
            front = thinned(trials.front(points[: -(-len(points) * part // 3)]), MAX_CORNERS)
            axis.step([p.latency for p in front], [100 * p.accuracy for p in front], where="post",
                      color=COLOURS[colour], lw=1.6, ls=style, label=name)  # fmt: skip
        if target is not None:
            axis.axvline(target, color=COLOURS["budget"], lw=1.1, ls="--",
                         label=f"target {units.ms(target)}")  # fmt: skip
        _draw_winner(axis, winner)
        axis.set_xlabel("predicted latency (ms)")
        axis.set_ylabel(f"{score} in the search (%)")
        _legend(figure, (axis,))
    return drawing.svg(figure, "search-front")


def _draw_winner(axis: Axes, winner: Row | None) -> None:
    x, y = (units.number((winner or {}).get(key)) for key in ("predicted_ms", "proxy_accuracy"))
    if x is not None and y is not None:
        axis.plot([x], [100 * y], "D", color=COLOURS["seed"], markersize=7, ls="", label="the winner")


def agreement_figure(found: Row, score: str = "accuracy") -> bytes | None:
    """Predicted against measured latency, and quality, called ``score``, in the search against full training's.

    Of the best networks, where there are two or more; else ``None``.
    """
    latencies, accuracies = trials.latencies(found), trials.accuracies(found)
    panels = []
    if len(latencies) > 1:
        panels.append((latencies, "predicted latency (ms)", "measured latency (ms)", True))
    if len(accuracies) > 1:
        panels.append((accuracies, f"{score} in the search (%)", f"{score}, fully trained (%)", False))
    if not panels:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.9 * len(panels), 2.7), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (pairs, x, y, same) in zip(axes, panels):
            _draw_pairs(axis, pairs, same)
            axis.set_xlabel(x)
            axis.set_ylabel(y)
        for axis, (pairs, *_) in zip(axes, panels):
            drawing.label(axis, [(pair.label, pair.x, pair.y) for pair in pairs], ())
    return drawing.svg(figure, "search-agreement")


def _draw_pairs(axis: Axes, pairs: Sequence[Pair], same: bool) -> None:
    """The pairs as marks; with the line where both are the ``same``, on equal scales."""
    axis.margins(0.25)
    axis.plot([p.x for p in pairs], [p.y for p in pairs], "o", color=COLOURS["seed"], markersize=6)
    if same:
        both = [value for p in pairs for value in (p.x, p.y)]
        room = 0.25 * (max(both) - min(both)) or 0.1 * abs(max(both)) or 1.0
        ends = min(both) - room, max(both) + room
        axis.plot(ends, ends, ls=":", lw=1.1, color=COLOURS["muted"])
        axis.set_xlim(ends)
        axis.set_ylim(ends)


def rewards_figure(curves: Mapping[str, Sequence[tuple[float, float]]]) -> bytes:
    """Rewards over latency by target, at one accuracy, as a standalone SVG file.

    Args:
        curves: (latency / target, reward) along each form, by its name.
    """
    colours = ("seed", "reference", "width", "adapted")
    styles = ("-", "--", "-.", "-")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.8, 3.2), layout="constrained")
        axis = figure.subplots()
        for place, (name, points) in enumerate(curves.items()):
            axis.plot([x for x, _ in points], [y for _, y in points], lw=1.8, label=name,
                      color=COLOURS[colours[place % 4]], ls=styles[place % 4])  # fmt: skip
        axis.axvline(1.0, color=COLOURS["budget"], lw=1, ls=":")
        axis.set_xlabel("latency / target")
        axis.set_ylabel("reward")
        axis.margins(x=0.02)
        _legend(figure, (axis,))
    return drawing.svg(figure, "rewards")
