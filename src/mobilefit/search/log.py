"""The log of a search's trials: append-only, crash-safe, resumable.

``trials.jsonl`` begins with a row that says which search it is; then comes a row for each trial, in
the order in which they ended. A row cut short by a crash is left out when reading. A search that
goes on from an earlier point than its log's end says so in a row of its own, which voids the trials
from there on; nothing is ever taken out of the file. Rows ``rescored`` hold what networks scored at the
end, by the final weights; any trial after them voids them.
"""

from __future__ import annotations

import math
from collections import Counter
from numbers import Real
from pathlib import Path
from typing import Any

from mobilefit.errors import InputError
from mobilefit.parsing import check_fields
from mobilefit.runs import append_jsonl, read_jsonl

NAME = "trials.jsonl"
_TRIAL = {
    "number": int, "tokens": tuple[int, ...], "spec_id": str, "latency_ms": float | None, "accuracy": float | None,
    "reward": Real | None, "error": Any,
}  # fmt: skip
_RESCORED = {"number": int, "accuracy": float, "loss": Real}

Row = dict[str, Any]


class TrialLog:
    """A search's log on disk, and its rows by trial number.

    Args:
        folder: made if it is not there.
        heading: the search that it is of; what is there must begin with the same.

    Raises:
        InputError: the file is another search's (says what differs), or not a log.
    """

    def __init__(self, folder: Path, heading: Row) -> None:
        self.path = folder / NAME
        folder.mkdir(parents=True, exist_ok=True)
        self.rows: dict[int, Row] = {}
        self.rescored: dict[int, Row] = {}
        """By trial: number, accuracy and loss by the final weights."""
        found = read_jsonl(self.path)
        if found:
            self._check(found[0], heading)
            for number, row in enumerate(found[1:], 2):
                self._take(row, number)
        else:
            append_jsonl(self.path, {"event": "space", **heading})

    def _check(self, first: Any, heading: Row) -> None:
        if not isinstance(first, dict) or first.get("event") != "space":
            raise InputError(f"{self.path} is not the log of a search", _ELSEWHERE)
        differing = [
            f"the options of {key} {_short(value)} differ" if _short(first.get(key)) == _short(value)
            else f"{key} {_short(first.get(key))} there, {_short(value)} now"
            for key, value in heading.items()
            if first.get(key) != value
        ]  # fmt: skip
        if differing:
            raise InputError(
                f"{self.path} is the log of another search: " + "; ".join(differing[:3]), _ELSEWHERE
            )

    def _take(self, row: Any, line: int) -> None:
        try:
            self._take_checked(row)
        except InputError as error:
            raise InputError(f"{self.path}, row {line}: {error.message}", _ELSEWHERE) from error

    def _take_checked(self, row: Any) -> None:
        event = row.get("event") if isinstance(row, dict) else None
        if event == "resumed":
            check_fields(row, {"from": int}, "it")
            self.rows = {n: kept for n, kept in self.rows.items() if n < row["from"]}
            self.rescored = {}
        elif event == "rescored":
            check_fields(row, _RESCORED, "it")
            self.rescored[row["number"]] = row
        elif event == "trial":
            check_fields(row, _TRIAL, "it")
            before = self.rows.get(row["number"])
            if before is not None and before["accuracy"] is not None:  # a failed one is tried again
                raise InputError(f"trial {row['number']} is there twice")
            self.rows[row["number"]] = row
            self.rescored = {}
        else:
            raise InputError("not a row of a search's log")

    def add(self, row: Row) -> None:
        """Append a trial."""
        row = {"event": "trial", **row}  # as it is when read again
        append_jsonl(self.path, row)
        self.rows[row["number"]] = row
        self.rescored = {}

    def add_rescored(self, row: Row) -> None:
        """Append what a trial's network scores by the final weights."""
        row = {"event": "rescored", **row}
        append_jsonl(self.path, row)
        self.rescored[row["number"]] = row

    def void_from(self, number: int) -> None:
        """The trials from this one on will be done again."""
        if any(known >= number for known in self.rows):
            append_jsonl(self.path, {"event": "resumed", "from": number})
            self.rows = {n: row for n, row in self.rows.items() if n < number}

    def in_order(self) -> list[Row]:
        """The trials by number."""
        return [self.rows[number] for number in sorted(self.rows)]

    def good(self) -> list[Row]:
        """The trials that did not fail, by number."""
        return [row for row in self.in_order() if row["accuracy"] is not None]

    def failures(self) -> Counter[str]:
        """How many trials failed, by cause."""
        return Counter(str(row["error"]) for row in self.rows.values() if row["accuracy"] is None)


_ELSEWHERE = "use another output folder, or delete that file to start anew"


def _short(value: Any) -> str:
    text = value.get("name", "") if isinstance(value, dict) else value
    return f"{text!r}"[:60]


def shortlist(rows: list[Row], count: int, spans: int = 4) -> list[Row]:
    """Networks to score again: of each span of the search the best by reward, one row a network.

    Shared weights improve all the time, so a late reward is higher than an early one of the same
    network; within a span of the search they compare about like with like.
    """
    latest = sorted(best_by_network(rows), key=lambda row: row["number"])
    size = math.ceil(max(1, len(latest)) / spans)
    taken = [
        row for start in range(0, len(latest), size)
        for row in best_by_network(latest[start : start + size])[: max(1, count // spans)]
    ]  # fmt: skip
    return taken[:count]


def best_by_network(rows: list[Row]) -> list[Row]:
    """One row for each network, its last one, best reward first."""
    latest = {row["spec_id"]: row for row in rows if row["accuracy"] is not None}
    return sorted(latest.values(), key=lambda row: (-row["reward"], row["number"]))


def pareto(rows: list[Row]) -> list[Row]:
    """The networks that no other one beats in both accuracy and latency, fastest first."""
    front, best = [], -math.inf
    for row in sorted(best_by_network(rows), key=lambda row: (row["latency_ms"], -row["accuracy"])):
        if row["accuracy"] > best:
            front.append(row)
            best = row["accuracy"]
    return front
