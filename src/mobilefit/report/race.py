"""The race of a design: its rungs as tables, from the record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mobilefit.report import units
from mobilefit.report.measures import Measure, Row

ORIGINS = {
    "family": "family", "head": "family, narrower head", "width": "width multiplier", "shrunk": "NetAdapt",
    "knapsack": "knapsack", "searched": "search",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RungTable:
    """One rung: a row a candidate, the best first.

    Attributes:
        title: what was done in it.
        header: of the rows; where each candidate comes from is left out if all are of the family.
        text: the columns that are no numbers.
        rows: whether the candidate goes on, and its cells.
    """

    title: str
    header: tuple[str, ...]
    text: tuple[int, ...]
    rows: tuple[tuple[bool, tuple[str, ...]], ...]


def rungs(record: Row, measure: Measure, prefix: str = "") -> list[RungTable]:
    """The rungs of a record's race, in order; none of a record without one.

    Args:
        prefix: in front of each title.
    """
    with_candidates = [rung for rung in record.get("race") or () if rung.get("standings")]
    return [
        _table(rung, measure, prefix, last=rung is with_candidates[-1], shrink=_shrink(record))
        for rung in with_candidates
    ]


def _shrink(record: Row) -> str:
    """What shrank a network, as a key of :data:`ORIGINS`."""
    return "knapsack" if (record.get("config") or {}).get("shrink") == "knapsack" else "shrunk"


def _table(rung: Row, measure: Measure, prefix: str, *, last: bool, shrink: str) -> RungTable:
    standings: Sequence[Row] = rung["standings"]
    title = str(rung.get("what") or rung.get("rung") or "race")
    score = f"{measure.name}, held out"
    # Tasks without a loss of single images are ranked by 1 - score, which says nothing of its own.
    by_loss = measure.key == "val_top1"
    winner = last and sum(bool(row.get("survives")) for row in standings) == 1
    origins = [_origin(row, shrink) for row in standings]
    mixed = set(origins) != {"family"}
    header = ("candidate", *(("origin",) if mixed else ()), "latency int8", score,
              *(("loss, held out",) if by_loss else ()), "behind the best", "")  # fmt: skip
    rows = []
    for index, row in enumerate(standings):
        survives = bool(row.get("survives"))
        outcome = ("wins" if winner else "goes on") if survives else "out"
        rows.append((survives, (
            str(row.get("name") or units.NONE), *((origins[index],) if mixed else ()),
            units.ms(row.get("latency_ms")), units.share(row.get("score")), *((_nats(row.get("loss")),) if by_loss else ()),
            units.NONE if index == 0 else _behind(row, by_loss), outcome,
        )))  # fmt: skip
    return RungTable(
        title=prefix + title[:1].upper() + title[1:], header=header,
        text=(0, *((1,) if mixed else ()), len(header) - 1), rows=tuple(rows),
    )  # fmt: skip


def _origin(row: Row, shrink: str) -> str:
    origin = str(row.get("origin") or "family")
    origin = shrink if origin == "shrunk" else origin
    name = ORIGINS.get(origin, origin)
    return f"{name}, pretrained" if row.get("pretrained") and origin in ("family", "head") else name


def _nats(value: object) -> str:
    number = units.number(value)
    return units.NONE if number is None else f"{number:.3f}"


def _behind(row: Row, by_loss: bool) -> str:
    behind, error = units.number(row.get("behind")), units.number(row.get("error"))
    if behind is None:
        return units.NONE
    if not by_loss:
        return f"{100 * behind:.1f} points"
    return f"{behind:.3f} ± {error:.3f}" if error else f"{behind:.3f}"
