"""What a design's exported network is worth, in words: beside what a user could do by hand in its place."""

from __future__ import annotations

import itertools
import re
from typing import Any

from mobilefit.report import units
from mobilefit.report.measures import Row


def over_budget(record: Row) -> bool | None:
    """Whether the final network is over the latency budget; ``None`` where a record has no budget or latency.

    ``judged_ms`` is what the latency would be at the speed that the machine had when the budget was set.
    """
    final = record.get("final") or {}
    budget = units.number(record.get("budget_ms"))
    measured = units.number((final.get("latency") or {}).get("median_ms"))
    judged = units.number(final.get("judged_ms")) or measured
    return None if budget is None or judged is None else judged > budget


def advantage(record: Row) -> str | None:
    """``ahead of lower resolution (mobilenet_v2 48 px) by 2.1 ± 0.6 points and of the width multiplier by ...``.

    Paired differences on the test images, with their standard errors; one that is below its error is no
    lead: ``level with the width multiplier (+0.3 ± 0.9 points)``. ``None`` where nothing was compared.
    """
    comparisons = (record.get("verdict") or {}).get("against") or ()
    phrases = [phrase for row in comparisons if (phrase := _phrase(row)) is not None]
    if not phrases:
        return None
    words = [f"{phrases[0][0]} {phrases[0][1]}"]
    for (before, _), (relation, rest) in itertools.pairwise(phrases):
        words.append(rest if relation == before else f"{relation} {rest}")
    return " and ".join(words)


def _phrase(row: Row) -> tuple[str, str] | None:
    """``ahead`` and ``of the width multiplier by 6.0 ± 1.2 points``."""
    points, error = units.number(row.get("points")), units.number(row.get("error"))
    if points is None:
        return None
    spread = f" ± {error:.1f}" if error is not None else ""
    if points == 0 or abs(points) < (error or 0.0):
        return "level", f"with {_name(row, f'{points:+.1f}{spread} points')}"
    relation, word = ("ahead", "of ") if points > 0 else ("behind", "")
    return relation, f"{word}{_name(row)} by {abs(points):.1f}{spread} points"


BY_HAND = {"resolution": "lower resolution", "width": "the width multiplier"}
"""What a user could do by hand, by the kind that the record has it under."""


def _name(row: Row, detail: str | None = None) -> str:
    """What was compared with; of a lower resolution also which."""
    kind, label = str(row.get("kind")), row.get("label")
    inner = [str(label)] if kind == "resolution" and label else []
    inner += [detail] if detail else []
    return BY_HAND.get(kind, str(label or kind)) + (f" ({', '.join(inner)})" if inner else "")


def plain_winner(record: Row) -> str | None:
    """What was exported, if it is what a user could do by hand: a value of :data:`BY_HAND`."""
    return BY_HAND.get(str((record.get("verdict") or {}).get("kind")))


def not_compared(record: Row) -> str | None:
    """What a user could do by hand that there was no time to train beside the network."""
    kinds = (record.get("verdict") or {}).get("left_out") or ()
    return " and ".join(BY_HAND.get(str(kind), str(kind)) for kind in kinds) or None


def sentences(record: Row) -> str | None:
    """The verdict on the page: a few sentences, whose figures are not broken between lines."""
    plain, lead = plain_winner(record), advantage(record)
    label = (record.get("verdict") or {}).get("label")
    parts = []
    if plain is not None:
        name = f"{plain} ({label})" if label else plain
        parts.append(f"On the held-out images nothing was better than {name}, so that is what was exported.")
    if lead is not None:
        parts.append(f"It is {lead} on the test images.")
    if (missing := not_compared(record)) is not None:
        parts.append(f"There was no time to train {missing} beside it.")
    text = " ".join(parts)
    return re.sub(r" (±|px|points)", "\N{NO-BREAK SPACE}\\1", text).replace("± ", "±\N{NO-BREAK SPACE}") or None


def summary_lines(record: Row) -> list[str]:
    """The verdict as what follows the exported network's name in a terminal."""
    plain, lead = plain_winner(record), advantage(record)
    lines = [f"nothing was better than {plain}, so that is what was exported"] if plain is not None else []
    missing = not_compared(record)
    return [
        *lines, *([lead] if lead is not None else []),
        *([f"no time to train {missing} beside it"] if missing is not None else []),
    ]  # fmt: skip


def budget_rows(designs: dict[str, Row]) -> list[dict[str, Any]]:
    """One row a budget: name, exported network, its latency and accuracy, and the verdict.

    Args:
        designs: the record of each budget, by the name of its folder.
    """
    rows = []
    for name, record in designs.items():
        final = record.get("final") or {}
        latency = units.number((final.get("latency") or {}).get("median_ms"))
        budget = units.number(record.get("budget_ms"))
        rows.append({
            "name": name, "network": final.get("label") or units.NONE, "budget": units.ms(budget),
            "latency": units.ms(latency),
            "over": bool(over_budget(record)),
            "accuracy": units.percent(final.get("accuracy_int8")), "verdict": sentences(record),
        })  # fmt: skip
    return rows
