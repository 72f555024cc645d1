"""The race's section of the page."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest

from mobilefit.arch import spec
from mobilefit.report import plots, race, write_report
from mobilefit.report.measures import MEASURES

from .example import metrics, raced_record, record, write_jsonl, write_run
from .example import race as example_race
from .test_page import Page, paths, written
from .test_plots import texts

CLASSIFY = MEASURES["classify"]


def test_every_candidate_of_every_rung() -> None:
    probe, first, finals = race.rungs(raced_record(), CLASSIFY)
    assert [t.title for t in (probe, first, finals)] == [
        "Frozen features", "Short trainings (2.0 epochs)", "Finals (5.0 epochs, taught)"
    ]  # fmt: skip
    assert first.header == (
        "candidate", "origin", "latency int8", "accuracy, held out", "loss, held out", "behind the best", ""
    )  # fmt: skip
    assert first.rows == (
        (True, ("mobilenet_v3_small 96 px", "family, pretrained", "0.400 ms", "80.0 %", "0.510", "–", "goes on")),
        (True, ("mobilenet_v2 64 px", "family, pretrained", "0.400 ms", "79.7 %", "0.520", "0.010 ± 0.009", "goes on")),
    )  # fmt: skip
    assert [cells[-1] for _, cells in probe.rows] == ["goes on", "goes on", "out"]
    assert probe.rows[2][1][5] == "0.218 ± 0.020"
    assert [(survives, cells[1], cells[-1]) for survives, cells in finals.rows] == [
        (True, "NetAdapt", "wins"), (False, "family, pretrained", "out")
    ]  # fmt: skip


def test_origins_are_left_out_where_all_are_the_same() -> None:
    content = raced_record()
    for row in content["race"][1]["standings"]:
        row["pretrained"] = False
    _, first, _ = race.rungs(content, CLASSIFY)
    assert "origin" not in first.header and all(len(cells) == 6 for _, cells in first.rows)
    assert first.text == (0, 5)


def test_a_narrower_head_is_told_from_the_whole_network() -> None:
    content = raced_record()
    content["race"][1]["standings"][0] |= {"origin": "head", "pretrained": False}
    content["race"][1]["standings"][1] |= {"origin": "head"}
    _, first, _ = race.rungs(content, CLASSIFY)
    assert [cells[1] for _, cells in first.rows] == ["family, narrower head", "family, narrower head, pretrained"]


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_a_task_without_losses_of_images_is_ranked_by_its_score(task: str) -> None:
    content = raced_record()
    content["race"][1]["standings"][1] |= {"behind": 0.0321, "error": 0.0}
    _, first, _ = race.rungs(content, MEASURES[task])
    assert first.header[3:] == (f"{MEASURES[task].name}, held out", "behind the best", "")
    assert first.rows[1][1][4] == "3.2 points"


def test_a_record_without_a_race() -> None:
    for content in ({}, {"race": None}, {"race": []}, {"race": [{"rung": "rung_1", "standings": []}]}):
        assert race.rungs(content, CLASSIFY) == []


def test_two_that_go_on_from_the_last_rung_are_no_winner() -> None:
    content = {"race": example_race()[:2]}
    assert [cells[-1] for _, cells in race.rungs(content, CLASSIFY)[1].rows] == ["goes on", "goes on"]


# ---- on the page


def test_the_section_comes_after_the_frontier(tmp_path: Path) -> None:
    page = written(write_run(tmp_path, raced_record()))
    assert page.sections[:3] == ["frontier", "race", "int8"] and not page.open
    for text in ("Frozen features", "mnasnet_a1 48 px", "0.218 ± 0.020", "wins", "out"):
        assert text in page.text, text


def test_the_network_is_compared_with_the_larger_one_that_it_was_made_from(tmp_path: Path) -> None:
    content = raced_record()
    words = " ".join(written(write_run(tmp_path / "shrunk", content)).text.split())
    assert "mobilenet_v3_small adapted" in words and "at 96 px; the larger network is mobilenet_v3_small" in words
    assert "at 128 px: " in words and "Shaded cells differ." in words
    content["seed_spec"] = spec("mobilenet_v2").classes(6).to_dict()  # another network of the race
    text = write_report(write_run(tmp_path / "other", content)).read_text()
    assert "larger network is" not in text and 'class="num changed"' not in text


def test_an_older_record_has_no_race(tmp_path: Path) -> None:
    page = written(write_run(tmp_path, record()))
    assert "race" not in page.sections and "The race" not in page.text


def test_markup_in_names_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    content = raced_record()
    content["race"][0]["what"] = content["race"][0]["standings"][0]["name"] = evil
    content["race"][0]["standings"][0]["origin"] = evil
    content["verdict"] = {"kind": "resolution", "label": evil,
                          "against": [{"kind": evil, "label": evil, "points": 1.0, "error": 0.1}]}  # fmt: skip
    text = write_report(write_run(tmp_path, content)).read_text()
    assert "<script" not in text and Page(text).text.count(evil) >= 5


def test_the_races_short_trainings_are_not_among_the_curves(tmp_path: Path) -> None:
    folder = write_run(tmp_path, raced_record())
    write_jsonl(folder / "race" / "rung_1" / "mobilenet_v2_64" / "metrics.jsonl", metrics(0.3))
    page = written(folder)
    assert "race/rung_1" not in page.text and "width/0" in page.text


KEYS = ("race", "verdict", "plan", "designs")
PLACES = [place for place in paths(raced_record()) if place[0] in KEYS and place[-1] != 0]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_any_field_may_be_missing_or_empty(
    place: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for figure in ("frontier_figure", "layers_figure", "curves_figure"):
        monkeypatch.setattr(plots, figure, lambda *_: b"<svg></svg>")
    folder = write_run(tmp_path)
    for value in ("missing", None, math.nan):
        content = copy.deepcopy(raced_record())
        holder: Any = content
        for key in place[:-1]:
            holder = holder[key]
        if value == "missing":
            del holder[place[-1]]
        elif value is None or isinstance(holder[place[-1]], float):
            holder[place[-1]] = value
        (folder / "record.json").write_text(json.dumps(content))
        page = written(folder)
        assert not page.open and "frontier" in page.sections
        assert "Undefined" not in page.text and "nan" not in page.text.lower().split()


# ---- the frontier


def test_the_frontier_names_what_stands_beside() -> None:
    words = texts(plots.frontier_figure(raced_record(), []))
    for text in (
        "larger network, the teacher", "NetAdapt, trained", "lower resolution, taught", "width multiplier",
        "88 px", "width 0.62", "adapted", "budget 0.420 ms",
    ):  # fmt: skip
        assert words.count(text) == 1, text


def test_the_frontier_of_several_budgets_names_the_exported_networks() -> None:
    designs = {name: {"budget_ms": ms, "final": {"label": "a"}} for name, ms in (("1ms", 1.0), ("2ms", 2.0))}
    rows = [
        {"label": f"{name}: {label}", "kind": kind, "latency": {"median_ms": ms}, "accuracy_int8": share}
        for name, ms, share in (("1ms", 0.95, 0.8), ("2ms", 1.9, 0.9))
        for label, kind in (("a", "adapted"), ("b", "width"))
    ]
    words = texts(plots.frontier_figure({"results": rows, "race": []}, [], designs))
    assert words.count("1ms") == words.count("2ms") == words.count("budgets 1.00 ms, 2.00 ms") == 1
    assert not [word for word in words if "1ms: " in word]
    assert plots.exported(designs) == {"1ms: a": "1ms", "2ms: a": "2ms"}
