"""Rows of ``mobilefit bench`` as text and as a figure; what changed since an earlier CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from mobilefit.errors import InputError
from mobilefit.report import drawing
from mobilefit.report.drawing import COLOURS, STYLE

Row = Mapping[str, Any]
FIGURES = (".svg", ".png")
_SHOWN = ("file", "runtime", "median_ms", "p10_ms", "p90_ms", "ratio", "runs", "stable", "partitions",
          "load_ms", "first_ms", "memory_mib")  # fmt: skip
_NUMBERS = ("median_ms", "p10_ms", "p90_ms", "runs")
_SAME = {"device": "another device", "version": "another runtime version", "threads": "other threads",
         "core": "another core"}  # fmt: skip


def csv_text(rows: Sequence[Row]) -> str:
    """The rows with a header, ``None`` as nothing."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def columns(lines: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """Lines of cells: the columns of words (``left``) to the left, those of numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    adjusted = [
        [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in adjusted)


def table(rows: Sequence[Row]) -> str:
    """The columns that matter most, as text."""
    cells = [["" if row[key] is None else str(row[key]) for key in _SHOWN] for row in rows]
    return columns([_SHOWN, *cells], left=(0, 1))


def profile_table(times: Sequence[Row]) -> str:
    """Times of operators as text: ``op``, ``name``, ``ms``, ``least_ms`` and ``most_ms`` each.

    Shares are of their sum; below it are the sums of each kind of operator, the largest first.
    """
    total = sum(t["ms"] for t in times)

    def line(op: str, ms: float, *more: str) -> tuple[str, ...]:
        least, most, name = more or ("", "", "")
        share = round(ms / total, 3) + 0.0  # no -0.0 %
        return (op, f"{ms:.4f}", least, most, f"{share:.1%}", name)

    lines = [line(t["op"], t["ms"], f"{t['least_ms']:.4f}", f"{t['most_ms']:.4f}", t["name"])
             for t in times]  # fmt: skip
    sums = {op: [t["ms"] for t in times if t["op"] == op] for op in dict.fromkeys(t["op"] for t in times)}
    kinds = [line(f"{len(ms)} {op}", sum(ms)) for op, ms in sums.items()]
    kinds.sort(key=lambda cells: -float(cells[1]))
    head = ("operator", "ms", "least", "most", "share", "output")
    text = columns([head, *lines, ("",) * 6, *kinds, line("all", total)], left=(0, 5))
    below = sum(t["ms"] < 0 for t in times)
    if below:
        text += f"\n{below} of {len(times)} come out below zero: less than the noise, or fused with a neighbour"
    return text


# ---- the earlier CSV


@dataclass(frozen=True, kw_only=True)
class Change:
    """A file's latency against an earlier one."""

    name: str
    old_ms: float
    new_ms: float
    noise: float
    """Half the width of the ratio's 95 % interval, relative."""
    differs: tuple[str, ...]
    """What was not the same then."""

    @property
    def ratio(self) -> float:
        """New to old."""
        return self.new_ms / self.old_ms

    @property
    def verdict(self) -> str:
        """Faster or slower, if the interval does not hold 1."""
        if abs(self.ratio - 1) <= self.noise * self.ratio:
            return "within the noise"
        return "faster" if self.ratio < 1 else "slower"


def read_csv(path: Path) -> list[dict[str, str]]:
    """An earlier run's rows.

    Raises:
        InputError: the file is missing or not one that ``bench`` wrote.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise InputError(f"cannot read {path}: {reason}") from error
    try:
        rows = list(csv.DictReader(lines))
        numbers = [float(row[key]) for row in rows for key in _NUMBERS]
        good = all(0 < number < math.inf for number in numbers) and all(row["file"] for row in rows)
    except (KeyError, TypeError, ValueError, csv.Error):
        good = False
    if not good or not rows:
        raise InputError(f"{path} is not a CSV of mobilefit bench", "make one with --csv")
    return rows


def changes(new: Sequence[Row], old: Sequence[Row]) -> list[Change]:
    """Each new row against the old one of the same file and runtime, or else of the same name."""
    found = []
    for row in new:
        before = _partner(row, old)
        if before is None:
            continue
        differs = [
            f"{what} ({before[key]}, now {row[key]})" for key, what in _SAME.items()
            if before.get(key) is not None and str(row[key] if row[key] is not None else "") != before[key]
        ]  # fmt: skip
        busy = [when for when, r in (("then", before), ("now", row)) if str(r.get("busy")) == "True"]
        differs += [f"the machine was busy {' and '.join(busy)}"] if busy else []
        found.append(
            Change(
                name=_name(row), old_ms=float(before["median_ms"]), new_ms=float(row["median_ms"]),
                noise=math.hypot(_noise(before), _noise(row)), differs=tuple(differs),
            )
        )  # fmt: skip
    return found


def _partner(row: Row, old: Sequence[Row]) -> Row | None:
    runtime = row["runtime"]
    same = [r for r in old if (r.get("runtime") or "litert") == runtime]
    for key in (str, lambda path: Path(path).name):
        matching = [r for r in same if key(r["file"]) == key(row["file"])]
        if len(matching) == 1:
            return matching[0]
    return None


def _noise(row: Row) -> float:
    """Half the width of the median's 95 % interval, relative, as for normally distributed runs.

    Their deciles lie 2.563 deviations apart, and the median of n of them has a deviation of
    sqrt(pi / 2 / n).
    """
    deviation = (float(row["p90_ms"]) - float(row["p10_ms"])) / 2.563
    return 1.96 * deviation * math.sqrt(math.pi / 2 / float(row["runs"])) / float(row["median_ms"])


def change_lines(found: Sequence[Change], source: Path) -> list[str]:
    """What ``--compare`` prints."""
    if not found:
        return [f"{source} has none of these files"]
    head = ["against " + source.name, "old ms", "new ms", "new/old", "95 %", ""]
    cells = [
        [c.name, f"{c.old_ms:.3f}", f"{c.new_ms:.3f}", f"{c.ratio:.3f}",
         f"{c.ratio * (1 - c.noise):.3f}..{c.ratio * (1 + c.noise):.3f}", c.verdict]
        for c in found
    ]  # fmt: skip
    warnings = dict.fromkeys(what for c in found for what in c.differs)
    return [columns([head, *cells], left=(0, 5)), *(f"NOT ALIKE: {what}" for what in warnings)]


# ---- the figure


def figure(rows: Sequence[Row], suffix: str) -> bytes:
    """Bars of medians with lines from p10 to p90, as the content of an ``.svg`` or ``.png`` file."""
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(6.4, 1.1 + 0.42 * len(rows)), layout="constrained")
        axes = drawn.subplots()
        medians = [float(row["median_ms"]) for row in rows]
        spread = [
            [m - float(row["p10_ms"]) for m, row in zip(medians, rows)],
            [float(row["p90_ms"]) - m for m, row in zip(medians, rows)],
        ]
        places = range(len(rows))
        axes.barh(places, medians, height=0.62, color=COLOURS["adapted"])
        axes.errorbar(medians, places, xerr=spread, fmt="none", ecolor=COLOURS["ink"], elinewidth=1.1,
                      capsize=3)  # fmt: skip
        for place, median, row in zip(places, medians, rows):
            axes.annotate(
                f"{median:.3g} ms", (max(median, float(row["p90_ms"])), place), (5, 0),
                textcoords="offset points", va="center", color=COLOURS["ink"],
            )  # fmt: skip
        axes.set_yticks(places, [_name(row) for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0, 1.16 * max(float(row["p90_ms"]) for row in rows))
        axes.set_xlabel("latency: median, p10 to p90 (ms)")
        drawn.suptitle(_conditions(rows[0]), fontsize=8, color=COLOURS["muted"], x=0.01, ha="left")
        if suffix == ".svg":
            return drawing.svg(drawn, "bench")
        file = io.BytesIO()
        drawn.savefig(file, format="png", dpi=160)
        return file.getvalue()


def _conditions(row: Row) -> str:
    threads = f"{row['threads']} thread{'s' if int(row['threads']) > 1 else ''}"
    device = str(row["device"]).partition(" [")[0]
    return f"{device}, {threads}, {str(row['date'])[:10]}" + (", BUSY" if row.get("busy") else "")


def _name(row: Row) -> str:
    name = Path(row["file"]).name
    return name if row["runtime"] in (None, "litert") else f"{name}, {row['runtime']}"
