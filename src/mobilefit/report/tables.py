"""The tables of the report: records in, rows of text out. Standard library only."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mobilefit.arch import Block, Conv, Layer, NetSpec
from mobilefit.report import units
from mobilefit.report import verdict as verdicts
from mobilefit.report.measures import Row as Row
from mobilefit.report.measures import measure


@dataclass(frozen=True, kw_only=True)
class Stat:
    """The mean of what the seeds gave; ``spread`` is the sample standard deviation of several."""

    mean: float
    spread: float | None
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One network of the comparison, all its seeds together.

    Attributes:
        label, kind: as in the record.
        runs: how many seeds.
        latency: of the int8 file, median, milliseconds.
        between: p10 and p90 in milliseconds: the lowest and the highest of all seeds.
        accuracy_int8, accuracy_float: shares in 0..1 on the test set.
        params, madds: of the network.
    """

    label: str
    kind: str
    runs: int
    latency: Stat | None
    between: tuple[float, float] | None
    accuracy_int8: Stat | None
    accuracy_float: Stat | None
    params: float | None
    madds: float | None


def entries(record: Row) -> list[Entry]:
    """The record's ``results``, one entry a label, in the record's order."""
    groups: dict[str, list[Row]] = {}
    for result in record.get("results") or ():
        groups.setdefault(str(result.get("label", "")), []).append(result)
    return [_entry(label, rows) for label, rows in groups.items()]


def _entry(label: str, rows: Sequence[Row]) -> Entry:
    latencies = [row.get("latency") or {} for row in rows]
    low, high = _numbers(latencies, "p10_ms"), _numbers(latencies, "p90_ms")
    return Entry(
        label=label,
        kind=str(rows[0].get("kind", "")),
        runs=len(rows),
        latency=_stat(_numbers(latencies, "median_ms")),
        between=(min(low), max(high)) if low and high else None,
        accuracy_int8=_stat(_numbers(rows, "accuracy_int8")),
        accuracy_float=_stat(_numbers(rows, "accuracy_float")),
        params=units.number(rows[0].get("params")),
        madds=units.number(rows[0].get("madds")),
    )


def _numbers(rows: Sequence[Row], key: str) -> list[float]:
    return [value for row in rows if (value := units.number(row.get(key))) is not None]


def _stat(values: Sequence[float]) -> Stat | None:
    if not values:
        return None
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Stat(mean=statistics.fmean(values), spread=spread, values=tuple(values))


def searched(record: Row) -> bool:
    """Whether a search found the seed network: then the family's is among the results as well."""
    return bool(record.get("search")) or any(entry.kind == "reference" for entry in entries(record))


def kinds(record: Row) -> dict[str, str]:
    """What the kinds of ``results`` are called, in the order of their making.

    A design that raced names the larger network, which begins and teaches the others, ``seed``. Before,
    the seed network was a hand-made one of the family unless a search made it; then the family's
    network, which the width multiplier scales, is the reference.
    """
    taught = bool((record.get("plan") or {}).get("taught"))
    seed = "searched network" if searched(record) else "seed network"
    config = record.get("config") or {}
    if raced(record) and (record.get("final") or {}).get("kind") != "seed":
        teaches = taught and not config.get("teacher")  # else the user's own does
        seed = "larger network, the teacher" if teaches else "larger network"
    return {
        "reference": "the family's network",
        "seed": seed,
        "adapted": "knapsack, trained" if config.get("shrink") == "knapsack" else "NetAdapt, trained",
        "candidate": "winner of the race",
        "searched": "searched network",
        "resolution": "lower resolution, taught" if taught else "lower resolution",
        "width": "width multiplier",
    }


def raced(record: Row) -> bool:
    """Whether a design raced its candidates."""
    return record.get("race") is not None


def title(entry: Entry, record: Row) -> str:
    """What a network of a race is, where its label alone does not say it; else nothing."""
    words = kinds(record).get(entry.kind, "") if raced(record) else ""
    return "" if entry.kind == "adapted" else words


def comparison_header(score: str) -> tuple[str, ...]:
    """What the columns of :func:`comparison` are called, where quality is called ``score``."""
    return ("network", "latency int8", "p10 to p90", f"{score} int8", f"{score} float32",
            "params", "MAdds", "seeds")  # fmt: skip


def comparison(entry: Entry) -> tuple[str, ...]:
    """The cells of :func:`comparison_header` for one network."""
    return (
        entry.label, _ms(entry.latency), _between(entry.between),
        _percent(entry.accuracy_int8), _percent(entry.accuracy_float),
        units.millions(entry.params), units.millions(entry.madds), str(entry.runs),
    )  # fmt: skip


def _ms(stat: Stat | None) -> str:
    if stat is None or stat.spread is None:
        return units.ms(stat and stat.mean)
    mean = units.significant(stat.mean)
    decimals = len(mean.partition(".")[2])
    return f"{mean} ± {stat.spread:.{decimals}f} ms"


def _between(pair: tuple[float, float] | None) -> str:
    return units.NONE if pair is None else f"{units.significant(pair[0])} to {units.ms(pair[1])}"


def _percent(stat: Stat | None) -> str:
    if stat is None or stat.spread is None:
        return units.percent(stat and stat.mean)
    return f"{100 * stat.mean:.2f} ± {100 * stat.spread:.2f} %"


def verdict(record: Row) -> str | None:
    """One sentence: the final network's measured latency against the budget."""
    over = verdicts.over_budget(record)
    if over is None:
        return None
    final = record["final"]
    measured, judged = (units.number(x) for x in (final["latency"]["median_ms"], final.get("judged_ms")))
    slower = judged is not None and measured is not None and judged < 0.99 * measured
    speed = f" ({units.ms(judged)} at the speed that the machine had at the start)" if slower else ""
    outcome = "OVER" if over else "within"
    return f"{units.ms(measured)} measured{speed}, {outcome} the budget of {units.ms(record['budget_ms'])}"


def summary_table(record: Row) -> str:
    """The comparison of a run as plain text for a terminal, with the verdicts below.

    Columns that no row fills are left out; ``*`` marks the network that the run chose.
    """
    chosen = (record.get("final") or {}).get("label")
    found = entries(record)
    rows = [comparison_header(measure(record).name), *map(comparison, found)]
    for index, entry in enumerate(found, 1):
        if words := title(entry, record):
            rows[index] = (f"{entry.label} ({words})", *rows[index][1:])
    marks = [" ", *("*" if entry.label == chosen else " " for entry in found)]
    keep = [i for i in range(len(rows[0])) if _worth(rows[0][i], [row[i] for row in rows[1:]])]
    lines = [
        f"{mark} {'  '.join(_padded(row[i], i, rows) for i in keep)}".rstrip()
        for mark, row in zip(marks, rows)
        if found
    ]
    said = [line for line in (verdict(record), *verdicts.summary_lines(record)) if line]
    lines += [f"* {chosen}: {line}" for line in said]
    return "\n".join(lines)


def _worth(column: str, cells: Sequence[str]) -> bool:
    empty = "1" if column == "seeds" else units.NONE
    return any(cell != empty for cell in cells)


def _padded(cell: str, column: int, rows: Sequence[Sequence[str]]) -> str:
    width = max(len(row[column]) for row in rows)
    return cell.rjust(width) if column else cell.ljust(width)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One value of the network's table, and what it was in the seed where that differs."""

    new: str
    old: str | None = None


NETWORK_HEADER = ("layer", "input", "operator", "expand", "out", "SE", "activation", "stride",
                  "params", "MAdds")  # fmt: skip


def network(seed: NetSpec | None, final: NetSpec) -> list[tuple[str, list[Cell]]]:
    """The final network row by row; cells that differ from the seed's carry the old value too.

    Rows are matched by name. A row that only the final network has is compared with dashes; one
    that only the seed has comes where it stood, its new values dashes.
    """
    after = dict(_rows(final))
    before = after if seed is None else dict(_rows(seed))
    names = [*after, *(name for name in before if name not in after)]
    names.sort(key=lambda name: name.startswith("head"))
    nothing = (units.NONE,) * (len(NETWORK_HEADER) - 1)
    return [
        (name, [Cell(new=new, old=None if new == old else old)
                for new, old in zip(after.get(name, nothing), before.get(name, nothing))])
        for name in names
    ]  # fmt: skip


def _rows(spec: NetSpec) -> Iterator[tuple[str, tuple[str, ...]]]:
    cost, inputs = spec.cost(), spec.in_channels
    items: list[tuple[str, Conv | Block]] = [("stem", spec.stem)]
    items += [(f"blocks.{i}", block) for i, block in enumerate(spec.blocks)]
    items += [("last", spec.last)] if spec.last is not None else []
    for name, row in items:
        part = cost.of(name)
        expand = row.expand if isinstance(row, Block) else None
        reduced = next((layer.reduced for layer in part.layers if layer.kind == "excite"), None)
        yield name, (
            _map(part.layers[0], inputs), f"{_operator(row)}{_dilation(row)}",
            units.count(expand), units.count(row.out), units.count(reduced), _act(row.act),
            str(row.stride), units.count(part.params), units.millions(part.madds),
        )  # fmt: skip
        inputs = row.out
    names = dict.fromkeys(_part(layer.name) for layer in cost.of("head").layers)
    for name in names:
        part = cost.of(name)
        first, stride = part.layers[0], max(layer.stride for layer in part.layers)
        yield name, (
            _map(first, first.inputs), _kinds(part.layers), units.NONE,
            units.count(part.layers[-1].out), units.NONE, _act(first.act),
            str(stride) if stride > 1 else units.NONE, units.count(part.params), units.millions(part.madds),
        )  # fmt: skip


def _part(name: str) -> str:
    """A head's row that a layer belongs to: ``head.extras.0`` of ``head.extras.0.reduce``."""
    return ".".join(name.split(".")[:3])


def _map(layer: Layer, inputs: int) -> str:
    """The size of what a layer takes in, and its channels."""
    size = f"{layer.size}²" if layer.size == layer.columns else f"{layer.size}×{layer.columns}"
    return f"{size} × {inputs}"


def _kinds(layers: Sequence[Layer]) -> str:
    return " + ".join(f"{layer.kind} {layer.kernel}×{layer.kernel}" if len(layers) > 1 else layer.kind
                      for layer in layers)  # fmt: skip


def _dilation(row: Conv | Block) -> str:
    return f", dilation {row.dilation}" if isinstance(row, Block) and row.dilation > 1 else ""


def _act(name: str) -> str:
    return units.NONE if name == "none" else name.replace("_", "-")


def _operator(row: Conv | Block) -> str:
    names = {"inverted": "bottleneck", "fused": "fused bottleneck", "separable": "separable"}
    name = "conv" if isinstance(row, Conv) else names.get(row.op, row.op)
    start = row.start_kernel if isinstance(row, Block) else 0
    before = f"depthwise {start}×{start} + " if start else ""
    return before + (f"{name} {row.kernel}×{row.kernel}" if row.kernel else "feed-forward")


def steps_header(score: str) -> tuple[str, ...]:
    """What the columns of :func:`steps` are called, where quality is called ``score``."""
    return ("step", "change", "predicted", "measured", "off by", f"short-term {score}",
            "score", "loss", "proposals", "as good")  # fmt: skip


def shrinking(rows: Sequence[Row]) -> str:
    """What made these steps: rounds of the knapsack say how each allocation came about."""
    return "Knapsack" if any("how" in row for row in rows) else "NetAdapt"


def steps(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The accepted steps of NetAdapt or the knapsack (and the seed) as cells of :func:`steps_header`.

    The loss is the change on the held-out images with its standard error; as good are the step's proposals that are
    within two standard errors of the best one. Logs from before these were kept have neither.
    """
    proposals = [row.get("step") for row in rows if row.get("event") == "proposal"]
    table: list[tuple[str, ...]] = []
    for row in rows:
        if row.get("event") not in ("seed", "accepted"):
            continue
        predicted, measured = (units.number(row.get(key)) for key in ("latency_ms", "measured_ms"))
        off = f"{100 * (predicted / measured - 1):+.1f} %" if predicted and measured else units.NONE
        score = units.number(row.get("score"))
        seed = row["event"] == "seed"
        table.append((
            str(row.get("step", units.NONE)), "seed" if seed else str(row.get("what", "")).replace("->", "→"),
            units.ms(predicted), units.ms(measured), off, units.percent(row.get("accuracy")),
            units.NONE if seed or score is None else f"{score:.4g}",
            _loss_change(row), units.NONE if seed else str(proposals.count(row.get("step"))),
            units.NONE if row.get("within_two_errors") is None else str(row["within_two_errors"]),
        ))  # fmt: skip
    return table


def _loss_change(row: Row) -> str:
    change, error = (units.number(row.get(key)) for key in ("loss_change", "loss_error"))
    if change is None:
        return units.NONE
    return f"{change:+.3f}" + ("" if error is None else f" ± {error:.3f}")


def int8_against_float(
    final: Row, sizes: Mapping[str, int], score: str = "accuracy"
) -> list[tuple[str, str, str, str]]:
    """Rows of (what, int8, float32, int8 against float32); rows known for neither are left out.

    None at all where nothing is known of int8.
    """
    quick, slow = (final.get(key) or {} for key in ("latency", "latency_float"))
    pairs = [
        (f"latency, {name}", quick.get(key), slow.get(key), units.ms)
        for name, key in (("median", "median_ms"), ("p10", "p10_ms"), ("p90", "p90_ms"))
    ]
    pairs.append(("file size", sizes.get("int8"), sizes.get("float32"), units.size))
    rows = [(what, show(a), show(b), _ratio(a, b)) for what, a, b, show in pairs]
    a, b = (units.number(final.get(f"accuracy_{kind}")) for kind in ("int8", "float"))
    gap = units.NONE if a is None or b is None else f"{100 * (a - b):+.2f} points"
    rows.insert(0, (f"{score}, test set", units.percent(a), units.percent(b), gap))
    if all(row[1] == units.NONE for row in rows):
        return []
    return [row for row in rows if row[1:3] != (units.NONE, units.NONE)]


def _ratio(a: Any, b: Any) -> str:
    top, bottom = units.number(a), units.number(b)
    return f"× {top / bottom:.2f}" if top is not None and bottom else units.NONE


def by_row(layers: Sequence[Row]) -> dict[str, float]:
    """Milliseconds of each row of the network: its layers' sum, in the record's order."""
    sums: dict[str, float] = {}
    for layer in layers:
        parts = str(layer.get("name", "")).split(".")
        row = ".".join(parts[:2]) if parts[0] == "blocks" else parts[0]
        sums[row] = sums.get(row, 0.0) + (units.number(layer.get("ms")) or 0.0)
    return sums


LAYERS_HEADER = ("layer", "before", "after", "saved", "MAdds before", "MAdds after")


def layers(record: Row) -> list[tuple[str, ...]]:
    """Every layer's latency and multiply-adds before and after, cells of :data:`LAYERS_HEADER`."""
    sides = record.get("layers") or {}
    before, after = ({str(x.get("name")): x for x in sides.get(k) or ()} for k in ("before", "after"))
    table: list[tuple[str, ...]] = []
    for name in [*before, *(name for name in after if name not in before)]:
        old, new = before.get(name, {}), after.get(name, {})
        a, b = units.number(old.get("ms")), units.number(new.get("ms"))
        saved = units.NONE if a is None or b is None else f"{1e3 * (a - b):.0f} µs"
        table.append((name, units.ms(a), units.ms(b), saved, units.millions(old.get("madds")),
                      units.millions(new.get("madds"))))  # fmt: skip
    return table
