"""The log of a search on disk: torn, foreign, broken, voided; and what is read off it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mobilefit.errors import InputError
from mobilefit.search import TrialLog, best_by_network, pareto, shortlist

HEADING: dict[str, Any] = {"space": {"name": "small"}, "strategy": "rnn", "seed": 1, "target_ms": 2.0}


def row(number: int, accuracy: float | None = 0.5, **fields: Any) -> dict[str, Any]:
    return {
        "number": number, "tokens": [number, 0], "spec_id": f"n{number}", "latency_ms": 1.0,
        "accuracy": accuracy, "reward": accuracy, "error": None if accuracy is not None else "E: x",
    } | fields  # fmt: skip


def filled(folder: Path, *rows: dict[str, Any]) -> TrialLog:
    log = TrialLog(folder, HEADING)
    for one in rows:
        log.add(one)
    return log


def lines(log: TrialLog) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.path.read_text().splitlines()]


def test_rows_are_there_again_in_order_of_their_numbers(tmp_path: Path) -> None:
    filled(tmp_path / "new" / "folder", row(2), row(0), row(1, None))
    again = TrialLog(tmp_path / "new" / "folder", HEADING)
    assert [found["number"] for found in again.in_order()] == [0, 1, 2]
    assert [found["number"] for found in again.good()] == [0, 2]
    assert again.failures() == {"E: x": 1}
    assert lines(again)[0] == {"event": "space", **HEADING}
    assert [line["number"] for line in lines(again)[1:]] == [2, 0, 1]


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_last_line_is_left_out_and_the_next_row_is_whole(tmp_path: Path, cut: int) -> None:
    log = filled(tmp_path, row(0), row(1))
    log.path.write_bytes(log.path.read_bytes()[: -1 - cut])
    again = TrialLog(tmp_path, HEADING)
    assert list(again.rows) == [0]
    again.add(row(1, 0.75))
    assert TrialLog(tmp_path, HEADING).rows == {
        n: {"event": "trial", **row(n, a)} for n, a in ((0, 0.5), (1, 0.75))
    }


def test_a_torn_heading_begins_anew(tmp_path: Path) -> None:
    log = filled(tmp_path)
    log.path.write_bytes(log.path.read_bytes()[:20])
    filled(tmp_path, row(0))
    assert list(TrialLog(tmp_path, HEADING).rows) == [0]


def test_another_search_s_log_says_what_differs(tmp_path: Path) -> None:
    filled(tmp_path, row(0))
    with pytest.raises(InputError, match="another search: seed 1 there, 2 now") as caught:
        TrialLog(tmp_path, HEADING | {"seed": 2})
    assert "another output folder" in str(caught.value) and "strategy" not in str(caught.value)
    with pytest.raises(InputError, match=r"space 'small' there, 'large' now; strategy 'rnn' there, 'random' now"):
        TrialLog(tmp_path, HEADING | {"space": {"name": "large"}, "strategy": "random"})


def test_a_file_that_is_no_log(tmp_path: Path) -> None:
    (tmp_path / "trials.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(InputError, match="is not the log of a search"):
        TrialLog(tmp_path, HEADING)


@pytest.mark.parametrize("broken", ['{"event": "trial", "number": 1}', "[1]", '{"event": "tria"}',
                                    '{"event": "resumed", "from": "1"}', json.dumps(row(1) | {"event": "trial", "tokens": 3})])  # fmt: skip
def test_a_broken_row_is_named_by_its_line(tmp_path: Path, broken: str) -> None:
    log = filled(tmp_path, row(0))
    log.path.write_text(log.path.read_text() + broken + "\n")
    with pytest.raises(InputError, match=r"trials\.jsonl, row 3: "):
        TrialLog(tmp_path, HEADING)


def test_a_trial_may_be_there_again_only_after_a_failure(tmp_path: Path) -> None:
    log = filled(tmp_path, row(0, None), row(0), row(1))
    assert TrialLog(tmp_path, HEADING).rows[0]["accuracy"] == 0.5
    log.add(row(1))
    with pytest.raises(InputError, match="row 5: trial 1 is there twice"):
        TrialLog(tmp_path, HEADING)


def test_voided_rows_stay_in_the_file_and_count_no_more(tmp_path: Path) -> None:
    log = filled(tmp_path, row(0), row(1), row(3))
    log.void_from(1)
    log.add(row(1, 0.9))
    for found in (log, TrialLog(tmp_path, HEADING)):
        assert {number: one["accuracy"] for number, one in found.rows.items()} == {0: 0.5, 1: 0.9}
    assert len(lines(log)) == 6
    before = log.path.read_text()
    log.void_from(2)  # nothing there
    assert log.path.read_text() == before


def test_the_best_of_each_network_is_its_last_score() -> None:
    rows = [
        row(0, 0.9, spec_id="a"), row(1, 0.7, spec_id="b"), row(2, 0.6, spec_id="a"),
        row(3, None, spec_id="b"), row(4, 0.7, spec_id="c"),
    ]  # fmt: skip
    assert [(r["spec_id"], r["number"]) for r in best_by_network(rows)] == [("b", 1), ("c", 4), ("a", 2)]


def test_the_front_holds_what_nothing_beats() -> None:
    points = [(3.0, 0.8), (1.0, 0.5), (2.0, 0.5), (2.0, 0.7), (2.0, 0.6), (4.0, 0.8), (5.0, None)]
    rows = [row(n, a, latency_ms=ms) for n, (ms, a) in enumerate(points)]
    assert [(r["latency_ms"], r["accuracy"]) for r in pareto(rows)] == [(1.0, 0.5), (2.0, 0.7), (3.0, 0.8)]
    assert pareto([]) == []


def test_scores_by_the_final_weights_are_kept_until_another_trial_follows(tmp_path: Path) -> None:
    log = filled(tmp_path, row(0), row(1))
    log.add_rescored({"number": 1, "accuracy": 0.7, "loss": 0.9})
    again = TrialLog(tmp_path, HEADING)
    assert again.rescored[1]["accuracy"] == 0.7 and again.rows[1]["accuracy"] == 0.5
    again.add(row(2))
    assert not again.rescored and not TrialLog(tmp_path, HEADING).rescored


def test_the_shortlist_takes_the_best_of_each_span_of_the_search() -> None:
    rows = [row(n, 0.1 * (n // 4) + 0.01 * (n % 4)) for n in range(16)]  # scores rise with time
    assert [entry["number"] for entry in shortlist(rows, 8)] == [3, 2, 7, 6, 11, 10, 15, 14]
    assert [entry["number"] for entry in best_by_network(rows)[:8]] == [15, 14, 13, 12, 11, 10, 9, 8]


def test_a_space_of_the_same_name_with_other_options_is_refused_in_words(tmp_path: Path) -> None:
    filled(tmp_path, row(0))
    other = {**HEADING, "space": {"name": "small", "blocks": []}}
    with pytest.raises(InputError, match="the options of space 'small' differ"):
        TrialLog(tmp_path, other)
