"""A search's records as values and tables: the log of its trials, and ``record["search"]``."""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mobilefit import runs
from mobilefit.arch import NetSpec
from mobilefit.report import units
from mobilefit.report.tables import Row

LOG = "search/trials.jsonl"
MAX_CAUSES = 12
"""Causes of failed trials that are told apart; the rest are counted together."""
MAX_CAUSE = 300
"""Characters of a cause."""
PART = 5
"""The first and the last fifth of the trials are compared."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One row of the log.

    Attributes:
        number: its place in the search.
        tokens: the option taken of each decision.
        latency, accuracy, reward: ``None`` where the trial failed; milliseconds and a share in 0..1.
        error: why it failed.
    """

    number: int
    tokens: tuple[Any, ...]
    latency: float | None
    accuracy: float | None
    reward: float | None
    error: str | None


@dataclass(frozen=True, kw_only=True)
class Log:
    """What ``trials.jsonl`` holds.

    Attributes:
        heading: its first row: what is searched, by what.
        trials: by number, each once.
    """

    heading: Row
    trials: list[Trial]

    @property
    def points(self) -> list[Point]:
        """The trials that did not fail."""
        return [
            Point(number=t.number, latency=t.latency, accuracy=t.accuracy, reward=t.reward)
            for t in self.trials
            if t.latency is not None and t.accuracy is not None and t.reward is not None
        ]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A trial that did not fail."""

    number: int
    latency: float
    accuracy: float
    reward: float


def read_log(run_dir: Path) -> Log:
    """The log of the run's search; without one, no heading and no trials.

    A trial done again counts as it was the last time; one that was voided, as the search went on from
    before it, does not count. Lines that make no sense are left out.
    """
    heading: Row = {}
    found: dict[int, Trial] = {}
    for row in runs.read_jsonl(run_dir / LOG):
        event = row.get("event") if isinstance(row, dict) else None
        if event == "space":
            heading = row
        elif event == "resumed" and isinstance(row.get("from"), int):
            found = {number: trial for number, trial in found.items() if number < row["from"]}
        elif event == "trial" and isinstance(row.get("number"), int):
            found[row["number"]] = _trial(row)
    return Log(heading=heading, trials=[found[number] for number in sorted(found)])


def _trial(row: Row) -> Trial:
    tokens = row.get("tokens")
    return Trial(
        number=row["number"],
        tokens=tuple(tokens) if isinstance(tokens, list) else (),
        latency=units.number(row.get("latency_ms")),
        accuracy=units.number(row.get("accuracy")),
        reward=units.number(row.get("reward")),
        error=None if row.get("error") is None else str(row["error"]),
    )


def thinned(items: Sequence[T], most: int) -> list[T]:
    """At most so many of them, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i * (len(items) - 1) // (most - 1)] for i in range(most)]


def running_best(points: Sequence[Point]) -> list[Point]:
    """The points that were better than everything before them."""
    best, found = -math.inf, []
    for point in points:
        if point.reward > best:
            best = point.reward
            found.append(point)
    return found


def running_median(values: Sequence[float], window: int) -> list[float]:
    """The median of each value and those around it, about ``window`` in all, fewer at the ends."""
    half = window // 2
    ordered = sorted(values[:half])
    found = []
    for i in range(len(values)):
        if i + half < len(values):
            bisect.insort(ordered, values[i + half])
        if i - half > 0:
            del ordered[bisect.bisect_left(ordered, values[i - half - 1])]
        middle = len(ordered) // 2
        odd = len(ordered) % 2
        found.append(ordered[middle] if odd else (ordered[middle - 1] + ordered[middle]) / 2)
    return found


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other one beats in both accuracy and latency, fastest first."""
    best, found = -math.inf, []
    for point in sorted(points, key=lambda p: (p.latency, -p.accuracy)):
        if point.accuracy > best:
            best = point.accuracy
            found.append(point)
    return found


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option of a decision, and the share of the trials that took it."""

    name: str
    early: float
    late: float


@dataclass(frozen=True, kw_only=True)
class Preference:
    """A decision: of which block, what is decided, its options, and the column of its drawing."""

    what: str
    options: list[Option]
    column: int


def preferences(log: Log) -> list[tuple[str, list[Preference]]]:
    """What was asked for in the first and in the last fifth of the trials, block by block.

    Decisions of no block (stem, tail) come first. Failed trials count: they were asked for too. Empty
    where there are too few trials.
    """
    decisions = log.heading.get("decisions") or []
    trials = [t.tokens for t in log.trials if len(t.tokens) == len(decisions)]
    part = len(trials) // PART
    if not part:
        return []
    rows: dict[str, list[Preference]] = {}
    columns: list[str] = []
    for place, decision in enumerate(decisions):
        block, _, what = str(decision.get("name", "")).rpartition(".")
        if block and what not in columns:
            columns.append(what)
        row = rows.setdefault(block, [])
        early, late = (Counter(t[place] for t in some) for some in (trials[:part], trials[-part:]))
        row.append(Preference(
            what=what, column=(columns.index(what) if block else len(row)) + 1,
            options=[Option(name=_option(option), early=early[i] / part, late=late[i] / part)
                     for i, option in enumerate(decision.get("options") or ())],
        ))  # fmt: skip
    return sorted(rows.items(), key=lambda row: row[0] != "")


def _option(value: Any) -> str:
    return "h-swish" if value == "hard_swish" else str(value).replace("_", "-")


def failures(log: Log) -> list[tuple[str, int]]:
    """Causes of failed trials and how often each was met, the most frequent first."""
    counts = Counter(
        (trial.error or "no cause given")[:MAX_CAUSE] for trial in log.trials if trial.accuracy is None
    )
    found = counts.most_common()
    rest = sum(number for _, number in found[MAX_CAUSES:])
    return found[:MAX_CAUSES] + ([("other causes", rest)] if rest else [])


TOP_HEADER = ("network", "trial", "params", "MAdds", "predicted", "measured", "off by",
              "in the search", "scored again", "trained fully", "reward")  # fmt: skip


def top(found: Row) -> tuple[list[str], list[tuple[bool, list[str]]]]:
    """The header and the rows (is it the winner, cells) of the best networks.

    Columns that no row fills are left out.
    """
    rows = [_top_row(entry) for entry in found.get("top") or ()]
    keep = [i for i in range(len(TOP_HEADER)) if i == 0 or any(r[i] != units.NONE for r in rows)]
    return [TOP_HEADER[i] for i in keep], [
        (place == found.get("winner"), [row[i] for i in keep]) for place, row in enumerate(rows)
    ]


def _top_row(entry: Row) -> tuple[str, ...]:
    cost = NetSpec.from_dict(entry["spec"]).cost() if entry.get("spec") else None
    predicted, measured = (units.number(entry.get(key)) for key in ("predicted_ms", "measured_ms"))
    off = f"{100 * (predicted / measured - 1):+.1f} %" if predicted and measured else units.NONE
    reward = units.number(entry.get("reward_full"))
    return (
        label(entry), units.count(entry.get("trial")),
        units.millions(cost and cost.params), units.millions(cost and cost.madds),
        units.ms(predicted), units.ms(measured), off,
        *(units.percent(entry.get(f"{kind}_accuracy")) for kind in ("proxy", "rescored", "full")),
        units.NONE if reward is None else f"{reward:.4f}",
    )  # fmt: skip


def label(entry: Row) -> str:
    """What one of the best networks is called."""
    return str(entry.get("label") or units.NONE)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two numbers of one of the best networks."""

    label: str
    x: float
    y: float


def latencies(found: Row) -> list[Pair]:
    """Predicted and measured milliseconds of the best networks."""
    return _pairs(found, lambda entry: (entry.get("predicted_ms"), entry.get("measured_ms")))


def accuracies(found: Row) -> list[Pair]:
    """Percent in the search (by the second look, where there was one) and after full training."""
    pairs = _pairs(found, lambda entry: (_in_the_search(entry), entry.get("full_accuracy")))
    return [Pair(label=p.label, x=100 * p.x, y=100 * p.y) for p in pairs]


def _in_the_search(entry: Row) -> Any:
    again = entry.get("rescored_accuracy")
    return entry.get("proxy_accuracy") if again is None else again


def _pairs(found: Row, of: Callable[[Row], tuple[Any, Any]]) -> list[Pair]:
    pairs = []
    for entry in found.get("top") or ():
        x, y = map(units.number, of(entry))
        if x is not None and y is not None:
            pairs.append(Pair(label=label(entry), x=x, y=y))
    return pairs


STRATEGIES = {
    "rnn": "an LSTM controller (rnn)",
    "reinforce": "REINFORCE over free choices (reinforce)",
    "evolution": "regularised evolution (evolution)",
    "random": "random sampling (random)",
}
EVALUATORS = {
    "supernet": "the shared weights of a supernet",
    "proxy": "a short training of each network",
    "tabular": "a table of known accuracy",
}


def told(found: Row, log: Log, score: str = "accuracy") -> str | None:
    """What was searched with what, in a sentence or two; of what is known."""
    heading = log.heading
    strategy, evaluator, form = (
        found.get(key) or heading.get(key) for key in ("strategy", "evaluator", "reward")
    )
    target = units.number(found.get("target_ms") or heading.get("target_ms"))
    trials, name = found.get("trials") or len(log.trials), space_name(found, log)
    parts = [
        f"{units.count(trials)} trials" if trials else None,
        f"space {name}{_space_size(heading)}" if name else None,
        f"proposed by {STRATEGIES.get(str(strategy), strategy)}" if strategy else None,
        f"{score} from {EVALUATORS.get(str(evaluator), evaluator)}" if evaluator else None,
        f"reward {form}" if form else None,
        f"target {units.ms(target)}" if target else None,
    ]
    text = "; ".join(part for part in parts if part)
    return f"{text[:1].upper()}{text[1:]}." if text else None


def space_name(found: Row, log: Log) -> str | None:
    """Of the space that was searched."""
    space = log.heading.get("space")
    name = found.get("space") or (space.get("name") if isinstance(space, dict) else space)
    return str(name) if name else None


def _space_size(heading: Row) -> str:
    sizes = [len(decision.get("options") or ()) for decision in heading.get("decisions") or ()]
    if not sizes:
        return ""
    size = math.prod(sizes)
    text = f"{size:,}" if size < 100_000 else f"{size:.2g}".replace("e+", "e")
    return f" ({text} networks)"


def numbers(found: Row, log: Log) -> list[tuple[str, str]]:
    """(What, value) of what the search came to; what is not known is left out."""
    best, optimal = (units.number(found.get(key)) for key in ("best_reward", "optimal_reward"))
    if best is None:
        best = max((point.reward for point in log.points), default=None)
    share = f" ({best / optimal:.1%} of the best possible)" if best and optimal else ""
    failed = found.get("failed")
    if failed is None:
        failed = sum(number for _, number in failures(log))
    rows = [
        ("different networks", units.count(found.get("distinct"))),
        ("failed trials", units.count(failed)),
        ("best reward", units.NONE if best is None else f"{best:.4f}{share}"),
    ]
    rows += [(f"time, {k}", units.seconds(v)) for k, v in (found.get("seconds") or {}).items()]
    return [row for row in rows if row[1] != units.NONE]
