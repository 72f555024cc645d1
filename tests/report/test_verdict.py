"""What a design's network is worth, in plain sentences."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mobilefit.report import summary_table, tables, verdict, write_report

from .example import against, latency, raced_record, record, write_budgets, write_run
from .test_page import Page


def compared(*comparisons: dict[str, Any], kind: str = "adapted", label: str = "adapted") -> dict[str, Any]:
    return {"verdict": {"kind": kind, "label": label, "against": list(comparisons)}}


def sentences(content: dict[str, Any]) -> str:
    """With plain spaces in the place of those at which no line is broken."""
    return str(verdict.sentences(content)).replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(
    ("comparisons", "text"),
    [
        (
            [against("resolution", 2.1), against("width", 6.0, 1.2)],
            "ahead of lower resolution (mobilenet_v2 48 px) by 2.1 ± 0.6 points and of the width multiplier "
            "by 6.0 ± 1.2 points",
        ),
        ([against("width", 6.0, 1.2)], "ahead of the width multiplier by 6.0 ± 1.2 points"),
        ([against("width", 0.3, 0.9)], "level with the width multiplier (+0.3 ± 0.9 points)"),
        ([against("width", -0.3, 0.9)], "level with the width multiplier (-0.3 ± 0.9 points)"),
        (
            [against("resolution", 0.3, 0.9)],
            "level with lower resolution (mobilenet_v2 48 px, +0.3 ± 0.9 points)",
        ),
        ([against("width", -3.0, 0.9)], "behind the width multiplier by 3.0 ± 0.9 points"),
        (
            [against("resolution", -0.1), against("width", 6.0, 1.2)],
            "level with lower resolution (mobilenet_v2 48 px, -0.1 ± 0.6 points) and ahead of the width "
            "multiplier by 6.0 ± 1.2 points",
        ),
        (
            [against("resolution", 0.1), against("width", 0.2)],
            "level with lower resolution (mobilenet_v2 48 px, +0.1 ± 0.6 points) and with the width "
            "multiplier (+0.2 ± 0.6 points)",
        ),
        (
            [against("resolution", -2.0), against("width", -4.0)],
            "behind lower resolution (mobilenet_v2 48 px) by 2.0 ± 0.6 points and the width multiplier by "
            "4.0 ± 0.6 points",
        ),
        ([against("width", 0.6, 0.6)], "ahead of the width multiplier by 0.6 ± 0.6 points"),
        ([against("width", 0.0, 0.0)], "level with the width multiplier (+0.0 ± 0.0 points)"),
        ([against("width", 2.0, None)], "ahead of the width multiplier by 2.0 points"),
        ([against("width", 2.0, math.nan)], "ahead of the width multiplier by 2.0 points"),
        ([against("width", None), against("resolution", 2.1)],
         "ahead of lower resolution (mobilenet_v2 48 px) by 2.1 ± 0.6 points"),
        ([against("other", 2.1, label="a network")], "ahead of a network by 2.1 ± 0.6 points"),
    ],
)  # fmt: skip
def test_how_far_ahead(comparisons: list[dict[str, Any]], text: str) -> None:
    assert verdict.advantage(compared(*comparisons)) == text
    assert sentences(compared(*comparisons)) == f"It is {text} on the test images."
    assert verdict.summary_lines(compared(*comparisons)) == [text]


def test_no_line_breaks_within_a_figure() -> None:
    text = verdict.sentences(compared(against("resolution", 2.1), against("width", 0.3, 0.9)))
    assert text is not None
    for part in ("48 px", "2.1 ± 0.6 points", "+0.3 ± 0.9 points"):
        assert part.replace(" ", "\N{NO-BREAK SPACE}") in text


@pytest.mark.parametrize(
    ("kind", "label", "name"),
    [
        ("resolution", "mobilenet_v2 64 px", "lower resolution"),
        ("width", "mobilenet_v2_0.6", "the width multiplier"),
    ],
)
def test_what_a_user_could_do_by_hand_was_best(kind: str, label: str, name: str) -> None:
    alone = compared(kind=kind, label=label)
    assert sentences(alone) == (
        f"On the held-out images nothing was better than {name} ({label}), so that is what was exported."
    )
    beside = compared(against("width", -5.0, 3.3), kind=kind, label=label)
    assert sentences(beside) == (
        f"{sentences(alone)} It is behind the width multiplier by 5.0 ± 3.3 points on the test images."
    )
    assert verdict.summary_lines(beside) == [
        f"nothing was better than {name}, so that is what was exported",
        "behind the width multiplier by 5.0 ± 3.3 points",
    ]


@pytest.mark.parametrize(
    "content",
    [{}, {"verdict": None}, {"verdict": {}}, compared(), compared(against("width", None)),
     {"verdict": {"kind": "candidate", "against": None}}],
)  # fmt: skip
def test_nothing_to_compare_with_is_no_sentence(content: dict[str, Any]) -> None:
    assert verdict.advantage(content) is verdict.sentences(content) is None
    assert verdict.summary_lines(content) == []


# ---- in a terminal


def test_the_summary_names_kinds_and_ends_with_the_verdict() -> None:
    lines = summary_table(raced_record()).splitlines()
    assert [line.split("  ")[0] if line[0] == " " else line[:20] for line in lines[1:3]]
    assert lines[1].startswith("  mobilenet_v3_small 128 px (larger network, the teacher)")
    assert lines[2].startswith("* adapted  ")
    assert lines[3].startswith("  mobilenet_v3_small 88 px (lower resolution, taught) ")
    assert lines[4].startswith("  mobilenet_v3_small_0.62 (width multiplier) ")
    assert len({len(line) for line in lines[:5]}) == 1  # columns are aligned
    assert lines[5:] == [
        "* adapted: 0.412 ms measured, within the budget of 0.420 ms",
        "* adapted: ahead of lower resolution (mobilenet_v3_small 88 px) by 1.3 ± 0.6 points and of the width "
        "multiplier by 4.2 ± 1.2 points",
    ]


def test_an_older_record_has_the_summary_that_it_had() -> None:
    assert "(" not in summary_table(record()) and len(summary_table(record()).splitlines()) == 6


def test_kinds_of_a_race() -> None:
    words = tables.kinds(raced_record())
    assert words["resolution"] == "lower resolution, taught"
    untaught = raced_record() | {"plan": {"taught": False}}
    assert tables.kinds(untaught)["resolution"] == "lower resolution"
    assert tables.kinds(untaught)["seed"] == "larger network"
    own = raced_record()  # --teacher
    own["config"] |= {"teacher": "teacher.safetensors"}
    assert tables.kinds(own)["seed"] == "larger network"
    assert tables.kinds(own)["resolution"] == "lower resolution, taught"
    named = raced_record()  # the user's network at the user's size, which met the budget
    named["final"] |= {"kind": "seed"}
    assert tables.kinds(named)["seed"] == "seed network"


# ---- on the page


def test_the_page_begins_with_the_verdict(tmp_path: Path) -> None:
    page = Page(write_report(write_run(tmp_path, raced_record())).read_text())
    words = " ".join(page.text.split())
    sentence = (
        "It is ahead of lower resolution (mobilenet_v3_small 88 px) by 1.3 ± 0.6 points and of the width "
        "multiplier by 4.2 ± 1.2 points on the test images."
    )
    assert words.index("within the budget of 0.420 ms") < words.index(sentence) < words.index("latency budget")
    for kind in ("larger network, the teacher", "lower resolution, taught", "width multiplier"):
        assert kind in words


def test_a_frontier_of_several_budgets(tmp_path: Path) -> None:
    path = write_report(write_budgets(tmp_path / "run"))
    text = path.read_text()
    page = Page(text)
    assert page.sections[:3] == ["budgets", "frontier", "race"] and not page.open
    words = " ".join(page.text.split())
    plain = "nothing was better than lower resolution (mobilenet_v3_small 88 px), so that is what was exported."
    assert f"0.25ms: On the held-out images {plain} It is level with the width multiplier (-0.4" in words
    assert "0.42ms: It is ahead of lower resolution" in words
    assert "ahead of lower resolution (mobilenet_v3_small 88 px) by 1.3 ± 0.6 points" in words
    assert "budgets 0.250 ms, 0.420 ms" in words
    assert text.count('<tr class="chosen"><td><span class="dot') == 2  # one network a budget
    assert {"0.25ms/report.html", "0.42ms/report.html"} <= set(page.references)
    assert "0.25ms: Finals (5.0 epochs, taught)" in words and "0.42ms: Frozen features" in words
    assert "latency budget" not in words and "The network" not in words  # each has a page of its own


def test_a_budget_whose_folder_is_gone(tmp_path: Path) -> None:
    folder = write_budgets(tmp_path / "run")
    (folder / "0.25ms" / "record.json").unlink()
    page = Page(write_report(folder).read_text())
    assert "0.42ms/report.html" in page.references and "0.25ms/report.html" not in page.references
    (folder / "0.42ms" / "record.json").unlink()
    assert "frontier" in Page(write_report(folder).read_text()).sections


def test_a_budget_that_is_missed_is_marked() -> None:
    late = raced_record()
    late["final"]["latency"] = latency(0.5)
    (row,) = verdict.budget_rows({"0.42ms": late})
    assert row["over"] and row["latency"] == "0.500 ms" and row["network"] == "adapted"
    (row,) = verdict.budget_rows({"x": {}})
    assert (row["over"], row["network"], row["latency"], row["accuracy"]) == (False, "–", "–", "–")


def test_what_there_was_no_time_to_compare_with_is_named() -> None:
    content = compared(against("resolution", 2.1))
    content["verdict"]["left_out"] = ["width"]
    assert sentences(content).endswith("There was no time to train the width multiplier beside it.")
    assert verdict.summary_lines(content)[-1] == "no time to train the width multiplier beside it"
    content["verdict"] = {"kind": "candidate", "label": "", "against": [], "left_out": ["resolution", "width"]}
    assert sentences(content) == "There was no time to train lower resolution and the width multiplier beside it."
