"""One self-contained HTML page from a run's records."""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from mobilefit import runs
from mobilefit.arch import NetSpec, difference
from mobilefit.errors import InputError
from mobilefit.report import (
    classes,
    detection,
    drawing,
    measures,
    plots,
    race,
    search,
    segmentation,
    tables,
    training,
    trials,
    units,
    verdict,
)

NAME = "report.html"
STEPS = "netadapt/netadapt.jsonl"
ROUNDS = "knapsack/knapsack.jsonl"
SWEEP = "lr_finder.json"
MAX_CURVES = 8
"""Training runs in one figure: the longest ones; more cannot be told apart."""
MAX_SKIPPED = 200
"""Skipped files that are listed by name; the rest are counted."""


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run directory, from the records that lie there.

    Reads ``record.json``, ``netadapt/netadapt.jsonl`` or ``knapsack/knapsack.jsonl``, ``search/trials.jsonl``,
    ``lr_finder.json`` and every ``metrics.jsonl`` at or below ``run_dir``, and the sizes of the model files that the record
    names.
    Of a design for several budgets also the ``record.json`` of each one's folder.
    A section whose records are missing is left out. The page needs no other file and loads nothing
    from anywhere.

    Returns:
        The page's path.

    Raises:
        InputError: there are no records, or one of them cannot be read.
    """
    record_path = run_dir / "record.json"
    record = runs.read_json(record_path) if record_path.exists() else {}
    if not isinstance(record, dict):
        raise InputError(f"{record_path} is not a run's record: the JSON is not an object")
    log_path = run_dir / (ROUNDS if (run_dir / ROUNDS).exists() else STEPS)
    steps = [row for row in runs.read_jsonl(log_path) if isinstance(row, dict)]
    metrics, log = _metrics(run_dir), trials.read_log(run_dir)
    sweep = runs.read_json(run_dir / SWEEP) if (run_dir / SWEEP).exists() else None
    if not (record or steps or metrics or log.trials or sweep):
        raise InputError(
            f"no run records in {run_dir}", "give the folder that 'mobilefit design' wrote"
        )
    try:
        page = _template().render(_content(run_dir, record, steps, metrics, log, sweep))
    except (*_SHAPE_ERRORS, InputError) as error:
        raise InputError(
            f"cannot make sense of {record_path} and the rows beside it: {error}"
        ) from error
    path = run_dir / NAME
    runs.write_atomic(path, page)
    return path


_SHAPE_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, jinja2.UndefinedError)
"""What a record of another shape than expected ends in."""


def _metrics(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each ``metrics.jsonl``, by the folder that holds it; the race's short trainings aside."""
    found = {}
    for path in sorted(run_dir.rglob("metrics.jsonl")):
        folder = path.parent.relative_to(run_dir).as_posix()
        if folder.startswith("race/"):
            continue
        rows = [row for row in runs.read_jsonl(path) if isinstance(row, dict)]
        if rows:
            found["training" if folder == "." else folder] = rows
    return found


@functools.cache
def _template() -> jinja2.Template:
    folder = importlib.resources.files("mobilefit.report")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,  # a record may lack any field
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text("utf-8")),
    )  # fmt: skip
    environment.filters |= {
        "ms": units.ms, "percent": units.percent, "count": units.count, "seconds": units.seconds,
        "millions": units.millions, "size": units.size, "share": units.share,
        "digits": units.digits,
    }  # fmt: skip
    return environment.get_template("page.html.jinja")


def _content(
    run_dir: Path,
    record: dict[str, Any],
    steps: list[dict[str, Any]],
    metrics: dict[str, list[dict[str, Any]]],
    log: trials.Log,
    sweep: Any,
) -> dict[str, Any]:
    """Everything the template shows; what is empty or ``None`` is left out there."""
    data, final = record.get("data") or {}, record.get("final") or {}
    files, designs = _files(run_dir, final), _designs(run_dir, record)
    found, score = tables.entries(record), measures.measure(record)
    exported = plots.exported(designs) or {str(final.get("label"))}
    return {
        "task": measures.task_of(record),
        "measure": score,
        "title": f"{record.get('verb') or 'run'}: {data.get('name') or run_dir.resolve().name}",
        "record": record,
        "data": data,
        "final": final,
        "files": files,
        "verdict": tables.verdict(record),
        "advantage": verdict.sentences(record),
        "budgets": verdict.budget_rows(designs),
        "over": verdict.over_budget(record),
        "params": None if designs else _params(record),
        "comparison_header": tables.comparison_header(score.name),
        "comparison": [
            (e.kind, e.label in exported, tables.title(e, record), tables.comparison(e)) for e in found
        ],
        "several_seeds": any(entry.runs > 1 for entry in found),
        "frontier": _frontier(record, steps, found, designs),
        "race": _race(record, designs, score),
        "search": search.section(record, log),
        **_network({} if designs else record),
        "steps_header": tables.steps_header(score.name),
        "steps": tables.steps(steps),
        "shrinking": tables.shrinking(steps),
        **_layers(record),
        **_training(record, metrics),
        **_classes(record),
        "detection": detection.section(record),
        "segmentation": segmentation.section(record),
        "shown_of": _shown_of,
        "sweep": _sweep(sweep),
        "int8": tables.int8_against_float(
            final, {k: size for k, (_, size) in files.items() if size}, score.name
        ),
        "config": json.dumps(record["config"], indent=2) if record.get("config") else None,
        "machine": _machine(record),
        "max_skipped": MAX_SKIPPED,
    }  # fmt: skip


def _files(run_dir: Path, final: dict[str, Any]) -> dict[str, tuple[str, int | None]]:
    """Name and size in bytes of each exported file; no size where it is not there any more."""
    sizes = {}
    for kind, name in (final.get("files") or {}).items():
        path = run_dir / str(name)
        sizes[str(kind)] = str(name), path.stat().st_size if path.is_file() else None
    return sizes


def _params(record: dict[str, Any]) -> int | None:
    spec = record.get("final_spec")
    return NetSpec.from_dict(spec).cost().params if spec else None


def _network(record: dict[str, Any]) -> dict[str, Any]:
    if not record.get("final_spec"):
        return {"network": None}
    final = NetSpec.from_dict(record["final_spec"])
    seed, reference = (
        NetSpec.from_dict(record[key]) if record.get(key) else None
        for key in ("seed_spec", "reference_spec")
    )
    if tables.raced(record) and seed is not None and _blocks(seed) != _blocks(final):
        seed = None  # the exported network was not made from it: no cell can be compared
    return {
        "network": tables.network(seed, final),
        "network_header": tables.NETWORK_HEADER,
        "raced": tables.raced(record),
        "pixels": _pixels,
        "spec": final,
        "seed_spec": seed,
        "reference": (reference, reference.cost()) if reference else None,
        "costs": (seed.cost() if seed else None, final.cost()),
        "changes": difference(seed, final) if seed else [],
    }


def _blocks(spec: NetSpec) -> list[tuple[object, ...]]:
    """What blocks keep whatever their widths and the input's size."""
    return [(block.op, block.kernel, block.stride, block.act) for block in spec.blocks]


def _pixels(spec: NetSpec) -> str:
    height, width = spec.image_shape
    return f"{height} px" if height == width else f"{height}×{width} px"


def _layers(record: dict[str, Any]) -> dict[str, Any]:
    sides = record.get("layers") or {}
    before, after = (tables.by_row(sides.get(key) or ()) for key in ("before", "after"))
    words = ("before", "after")
    if record.get("reference_spec") and not record.get("seed_spec"):  # not one made from the other
        words = ("by hand", "found")
    figure = drawing.inline(plots.layers_figure(before, after, words)) if before or after else None
    return {
        "layers_figure": figure, "layers_header": tables.LAYERS_HEADER,
        "layers": tables.layers(record),
    }  # fmt: skip


def _training(record: dict[str, Any], metrics: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The run's one training in full, or the curves of several side by side."""
    alone = list(metrics) == ["training"]
    return {
        "training": training.section(record, metrics["training"]) if alone else None,
        "settings": training.settings(record),
        "rate": training.rate(record, metrics["training"]) if alone else None,
        **(_curves({}) if alone else _curves(metrics)),
    }  # fmt: skip


def _curves(metrics: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    longest = sorted(metrics, key=lambda name: -len(metrics[name]))[:MAX_CURVES]
    figure = plots.curves_figure({name: metrics[name] for name in metrics if name in longest})
    return {
        "curves": drawing.inline(figure) if figure else None,
        "curves_left_out": len(metrics) - len(longest),
    }


def _shown_of(rows: Sequence[Any]) -> int:
    """How many classes are shown before one asks for all."""
    return len(rows) if len(rows) <= classes.MAX_NUMBERS else classes.WORST


def _classes(record: dict[str, Any]) -> dict[str, Any]:
    found = classes.matrix(record)
    rows = classes.table(record) if measures.task_of(record) == "classify" else []
    of_pixels = measures.task_of(record) == "segment"
    confusion = classes.confusion(*found, by_share=of_pixels) if found else None
    pictured = confusion is not None and len(confusion.names) > classes.MAX_NUMBERS
    return {
        "confusion": confusion,
        "heat": classes.figure(confusion) if confusion is not None and pictured else None,
        "strength": classes.strength,
        "legend": classes.LEGEND,
        "classes": rows,
        "classes_unfolded": classes.MAX_NUMBERS,
        "classes_shown": _shown_of(rows),
        "most_training": max((row.training or 0 for row in rows), default=0),
        "balance": classes.balance(rows),
        "tested": int(found[1].sum()) if found else None,
    }


def _frontier(
    record: dict[str, Any], steps: list[dict[str, Any]], entries: list[tables.Entry],
    designs: dict[str, Any],
) -> str | None:  # fmt: skip
    """Accuracy against latency, of a run that measured any."""
    if not any(entry.latency for entry in entries):
        return None
    return drawing.inline(plots.frontier_figure(record, steps, designs))


def _designs(run_dir: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The records of a design's budgets, by the names of their folders; those that are there."""
    paths = {str(name): run_dir / str(name) / "record.json" for name in record.get("designs") or ()}
    return {name: runs.read_json(path) for name, path in paths.items() if path.exists()}


def _race(
    record: dict[str, Any], designs: dict[str, Any], score: measures.Measure
) -> list[race.RungTable]:
    if not designs:
        return race.rungs(record, score)
    return [rung for name, one in designs.items() for rung in race.rungs(one, score, f"{name}: ")]


def _sweep(sweep: Any) -> dict[str, Any] | None:
    return {"figure": drawing.inline(plots.lr_curve(sweep)), **sweep} if sweep else None


def _machine(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The machine as (what, value), packages last, lists and mappings as plain text."""
    machine = dict(record.get("machine") or {})
    packages = machine.pop("packages", None) or {}
    rows = [
        (str(key).replace("_", " "), " ".join(map(str, v)) if isinstance(v, list) else str(v))
        for key, v in machine.items()
    ]
    return rows + [(str(name), str(version)) for name, version in packages.items()]
