from __future__ import annotations

import math
from dataclasses import replace

import pytest

from mobilefit.report import summary_table, tables

from .example import final_spec, netadapt, record, seed_spec

SMALL = {
    "budget_ms": 2.0,
    "results": [
        {"label": "seed", "kind": "seed", "latency": {"p10_ms": 2.4, "median_ms": 2.5, "p90_ms": 2.7},
         "accuracy_int8": 0.9, "params": 1_500_000},
        {"label": "adapted", "kind": "adapted", "seed": 0,
         "latency": {"p10_ms": 1.8, "median_ms": 1.9, "p90_ms": 2.0},
         "accuracy_int8": 0.88, "params": 1_200_000},
        {"label": "adapted", "kind": "adapted", "seed": 1,
         "latency": {"p10_ms": 1.7, "median_ms": 1.94, "p90_ms": 2.1},
         "accuracy_int8": 0.9, "params": 1_200_000},
        {"label": "lost", "kind": "width", "latency": None, "accuracy_int8": math.nan},
    ],
    "final": {"label": "adapted", "latency": {"median_ms": 1.9}},
}  # fmt: skip


def test_summary_is_exact() -> None:
    assert summary_table(SMALL).splitlines() == [
        "  network    latency int8       p10 to p90   accuracy int8  params  seeds",
        "  seed            2.50 ms  2.40 to 2.70 ms         90.00 %  1.50 M      1",
        "* adapted  1.92 ± 0.03 ms  1.70 to 2.10 ms  89.00 ± 1.41 %  1.20 M      2",
        "  lost                  –                –               –       –      1",
        "* adapted: 1.90 ms measured, within the budget of 2.00 ms",
    ]


def test_summary_of_little() -> None:
    assert summary_table({}) == ""
    late = {"budget_ms": 1.0, "final": {"label": "x", "latency": {"median_ms": 1.0004}}}
    assert summary_table(late) == "* x: 1.00 ms measured, OVER the budget of 1.00 ms"
    alone = {"results": [{"label": "x", "accuracy_float": 0.5}]}
    assert summary_table(alone) == "  network  accuracy float32\n  x                 50.00 %"


def test_statistics_over_seeds() -> None:
    seed, adapted, lost = tables.entries(SMALL)
    assert (seed.runs, adapted.runs, lost.runs) == (1, 2, 1)
    assert adapted.accuracy_int8 is not None and adapted.latency is not None
    assert adapted.accuracy_int8.mean == pytest.approx(0.89)
    assert adapted.accuracy_int8.spread == pytest.approx(0.01 * math.sqrt(2))  # of the sample
    assert adapted.accuracy_int8.values == (0.88, 0.9)
    assert adapted.latency.mean == pytest.approx(1.92) and adapted.between == (1.7, 2.1)
    assert seed.latency is not None and seed.latency.spread is None
    assert lost.latency is lost.accuracy_int8 is lost.between is None


def test_netadapts_steps() -> None:
    found = tables.steps(netadapt())
    assert len(found) == 13
    assert found[0] == ("0", "seed", "0.570 ms", "0.585 ms", "-2.6 %", "88.00 %", "–", "–", "–", "–")
    assert found[1][:5] == ("1", "blocks.1.expand 96 → 88", "0.556 ms", "0.567 ms", "-2.0 %")
    assert found[1][6:] == ("-0.32", "–", "3", "–")  # of before the log had losses
    assert tables.steps([{"event": "accepted"}, {"event": "proposal"}, {}]) == [
        ("–", "", "–", "–", "–", "–", "–", "–", "1", "–")
    ]


def test_steps_say_how_far_the_loss_moved_and_who_was_as_good() -> None:
    row = {"event": "accepted", "step": 1, "loss_change": 0.0123, "loss_error": 0.0046, "within_two_errors": 4}
    header = tables.steps_header("top-1")
    (cells,) = tables.steps([row])
    assert cells[header.index("loss")] == "+0.012 ± 0.005" and cells[header.index("as good")] == "4"
    (alone,) = tables.steps([{**row, "loss_error": None, "within_two_errors": None}])  # a task without losses of images
    assert alone[header.index("loss")] == "+0.012" and alone[header.index("as good")] == "–"


def test_the_network_table_shows_what_changed() -> None:
    rows = dict(tables.network(seed_spec(), final_spec()))
    expand = tables.NETWORK_HEADER.index("expand") - 1
    assert rows["blocks.1"][expand] == tables.Cell(new="56", old="72")
    assert [cell.old for cell in rows["stem"]] == [None] * 9
    params = tables.NETWORK_HEADER.index("params") - 1
    total = sum(int(cells[params].new.replace(",", "")) for cells in rows.values())
    assert total == final_spec().cost().params
    assert all(cell.old is None for _, cells in tables.network(None, final_spec()) for cell in cells)


def test_rows_that_one_network_alone_has() -> None:
    shorter = replace(seed_spec(), blocks=seed_spec().blocks[:-1])
    names = [name for name, _ in tables.network(seed_spec(), shorter)]
    assert names.index("blocks.10") < names.index("head.pool")
    gone = dict(tables.network(seed_spec(), shorter))["blocks.10"]
    assert {cell.new for cell in gone} == {"–"}


def test_layers_by_row_and_saved() -> None:
    layers = [{"name": "stem", "ms": 1.0}, {"name": "blocks.1.expand", "ms": 0.5},
              {"name": "blocks.1.project", "ms": 0.25}, {"name": "head.logits", "ms": math.nan}]  # fmt: skip
    assert tables.by_row(layers) == {"stem": 1.0, "blocks.1": 0.75, "head": 0.0}
    after = [{"name": "stem", "ms": 0.6, "madds": 2e6}, {"name": "new", "ms": 0.1}]
    found = tables.layers({"layers": {"before": layers[:2], "after": after}})
    assert found == [
        ("stem", "1.00 ms", "0.600 ms", "400 µs", "–", "2.00 M"),
        ("blocks.1.expand", "0.500 ms", "–", "–", "–", "–"),
        ("new", "–", "0.100 ms", "–", "–", "–"),
    ]


def test_int8_against_float32() -> None:
    found = tables.int8_against_float(record()["final"], {"int8": 500_000, "float32": 2_000_000})
    assert found == [
        ("accuracy, test set", "87.33 %", "87.67 %", "-0.34 points"),
        ("latency, median", "0.412 ms", "0.826 ms", "× 0.50"),
        ("latency, p10", "0.406 ms", "0.814 ms", "× 0.50"),
        ("latency, p90", "0.424 ms", "0.851 ms", "× 0.50"),
        ("file size", "500 kB", "2.00 MB", "× 0.25"),
    ]
    assert tables.int8_against_float({}, {}) == []
    assert tables.int8_against_float({"accuracy_int8": 0.5}, {}) == [
        ("accuracy, test set", "50.00 %", "–", "–")
    ]
