"""The search loop with toys: stopped anywhere and resumed, repeats, failures, foreign folders."""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mobilefit.arch import NetSpec
from mobilefit.errors import InputError
from mobilefit.search import Evaluator, Outcome, Reward, Searched, SearchSettings, Tokens, Trial
from mobilefit.search import search as run_search
from mobilefit.search.evaluate import outcome
from mobilefit.search.log import TrialLog

from .small import SPACE

TRIALS, BATCH = 10, 4  # the last batch is smaller
REWARD = Reward(form="soft", target_ms=2.0)


class Point:
    """Raises KeyboardInterrupt the n-th time that something happens."""

    def __init__(self, at: int = 0) -> None:
        self.at, self.count = at, 0

    def __call__(self) -> None:
        self.count += 1
        if self.count == self.at:
            raise KeyboardInterrupt


class Toy:
    """Asks by what it was told so far; asks for a network now and then again."""

    def __init__(self, point: Point | None = None) -> None:
        self.asked, self.memory, self.told = 0, 0, []  # type: ignore[var-annotated]
        self.point = point or Point()

    def ask(self, count: int) -> list[Tokens]:
        self.point()
        found = []
        for _ in range(count):
            number = (self.asked * 37 + self.memory) % 23
            found.append(tuple(number >> bit & 1 for bit in range(len(SPACE.sizes))))
            self.asked += 1
        return found

    def tell(self, tokens: Sequence[Tokens], rewards: Sequence[float]) -> None:
        self.point()
        self.told += list(zip(tokens, rewards, strict=True))
        self.memory = (self.memory * 31 + round(sum(rewards) * 1e6)) % 1_000_003

    def state_dict(self) -> dict[str, Any]:
        return {"asked": self.asked, "memory": self.memory}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.asked, self.memory = state["asked"], state["memory"]


class Scores(Evaluator):
    """Scores a network by its tokens; backwards, as several workers may."""

    name = "toy"

    def __init__(self, point: Point | None = None, score: Callable[[Trial], float] | None = None) -> None:
        self.point, self.score = point or Point(), score or self._score
        self.evaluated: list[int] = []
        self.prepared = 0

    def _score(self, trial: Trial) -> float:
        return 0.2 + 0.1 * sum(trial.tokens)

    def prepare(self) -> None:
        self.prepared += 1

    def evaluate(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        for trial in reversed(trials):
            self.point()
            self.evaluated.append(trial.number)
            yield outcome(trial.number, functools.partial(self.score, trial))


class Weights(Scores):
    """Scores depend on all that was evaluated before."""

    depends_on_history = True
    weight = 0

    def _score(self, trial: Trial) -> float:
        self.weight += 1 + sum(trial.tokens)
        return super()._score(trial) + 0.001 * self.weight

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight = state["weight"]


def milliseconds(point: Point, specs: Sequence[NetSpec]) -> list[float]:
    point()
    return [spec.cost().madds / 20_000 for spec in specs]


def go(
    out: Path, *, toy: Toy | None = None, evaluator: Evaluator | None = None,
    point: Point | None = None, **settings: Any,
) -> Searched:  # fmt: skip
    """Search, or go on."""
    options: dict[str, Any] = {"strategy": "toy", "trials": TRIALS, "batch": BATCH, "seed": 1}
    return run_search(
        SPACE, toy or Toy(point), evaluator or Scores(point),
        functools.partial(milliseconds, point or Point()), REWARD,
        SearchSettings(**options | settings), out,
    )  # fmt: skip


def good(log: TrialLog) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in log.good()]


def test_a_search_asks_times_evaluates_and_tells(tmp_path: Path) -> None:
    strategy, evaluator = Toy(), Scores()
    found = go(tmp_path, toy=strategy, evaluator=evaluator)
    rows = found.log.in_order()
    assert [row["number"] for row in rows] == list(range(TRIALS))
    assert [(tuple(row["tokens"]), row["reward"]) for row in rows] == strategy.told
    for row in rows:
        spec = SPACE.spec(row["tokens"])
        assert row["spec_id"] == spec.id and row["error"] is None
        assert row["accuracy"] == pytest.approx(0.2 + 0.1 * sum(row["tokens"]))
        assert row["reward"] == REWARD(row["accuracy"], spec.cost().madds / 20_000)
    assert evaluator.prepared == 1
    assert set(found.seconds) == {"strategy", "latency", "evaluation", "records"}
    fresh = Scores()
    assert good(go(tmp_path, evaluator=fresh).log) == good(found.log)  # a finished one does nothing
    assert not fresh.evaluated and not fresh.prepared


def test_the_hand_made_network_is_the_first_trial(tmp_path: Path) -> None:
    tokens = (0, 1, 1, 0, 1, 0)
    around = replace(SPACE, base=SPACE.spec(tokens))
    assert around.handmade == (tokens,) and SPACE.handmade == ()
    strategy = Toy()
    found = run_search(
        around, strategy, Scores(), functools.partial(milliseconds, Point()), REWARD,
        SearchSettings(strategy="toy", trials=TRIALS, batch=BATCH, seed=1), tmp_path,
    )  # fmt: skip
    assert tuple(found.log.rows[0]["tokens"]) == tokens == strategy.told[0][0]
    assert strategy.asked == TRIALS - 1


# ---- stopped and resumed


@pytest.mark.parametrize(
    ("kind", "save_seconds"), [(Scores, 30.0), (Weights, 0.0), (Weights, 30.0)]
)
def test_stopped_anywhere_and_resumed(
    kind: type[Scores], save_seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["mobilefit.search.search"]  # as an attribute it is the function
    monkeypatch.setattr(module, "SAVE_SECONDS", save_seconds)
    undisturbed = go(tmp_path / "undisturbed", evaluator=kind())
    add, save = TrialLog.add, module.save_checkpoint
    for at in range(1, 1000):
        point, out = Point(at), tmp_path / str(at)

        def noisy_add(self: TrialLog, row: dict[str, Any], point: Point = point) -> None:
            point()
            add(self, row)
            point()

        def noisy_save(*arguments: Any, point: Point = point) -> None:
            point()
            save(*arguments)
            point()

        with monkeypatch.context() as patch:
            patch.setattr(TrialLog, "add", noisy_add)
            patch.setattr(module, "save_checkpoint", noisy_save)
            try:
                go(out, point=point, evaluator=kind(point))
                stopped = False
            except KeyboardInterrupt:
                stopped = True
        if not stopped:
            break
        evaluator = kind()
        resumed = go(out, evaluator=evaluator)
        assert good(resumed.log) == good(undisturbed.log), at
        assert good(TrialLog(out, heading(out))) == good(undisturbed.log), at
        if kind is Scores:  # nothing is evaluated twice
            distinct = {row["spec_id"] for row in undisturbed.log.good()}
            assert len(evaluator.evaluated) <= len(distinct)
    assert at > 3 * TRIALS  # every point was one


def heading(out: Path) -> dict[str, Any]:
    first = json.loads((out / "trials.jsonl").read_text().splitlines()[0])
    del first["event"]
    return dict(first)


def test_what_was_evaluated_is_not_evaluated_again(tmp_path: Path) -> None:
    point = Point(at=6)  # ask, latencies, then the third of the first batch's networks
    evaluator = Scores(point)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, evaluator=evaluator, toy=Toy())
    again = Scores()
    go(tmp_path, evaluator=again)
    assert evaluator.evaluated and not set(evaluator.evaluated) & set(again.evaluated)


def test_shared_weights_void_what_their_state_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, evaluator=Weights(Point(at=3)), toy=Toy())
    again = Weights()
    found = go(tmp_path, evaluator=again)
    assert sorted(again.evaluated) == list(range(TRIALS))  # repeats too
    assert all(row["repeat_of"] is None for row in found.log.good())
    assert '{"event": "resumed", "from": 0}' in found.log.path.read_text()


def test_rows_of_other_networks_than_are_asked_for_are_voided(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, evaluator=Scores(Point(at=4)), toy=Toy())
    other = Toy()
    other.memory = 5
    found = go(tmp_path, toy=other)
    assert [(tuple(row["tokens"]), row["reward"]) for row in found.log.in_order()] == other.told
    assert '{"event": "resumed", "from": 0}' in found.log.path.read_text()


# ---- repeats


class Same(Toy):
    """Three networks in turns, two of them alike in a batch."""

    def ask(self, count: int) -> list[Tokens]:
        numbers = range(self.asked, self.asked + count)
        self.asked += count
        return [tuple((n % 3) >> bit & 1 for bit in range(len(SPACE.sizes))) for n in numbers]


def test_repeats_reuse_scores_and_are_marked(tmp_path: Path) -> None:
    evaluator = Scores()
    rows = go(tmp_path, toy=Same(), evaluator=evaluator).log.in_order()
    assert sorted(evaluator.evaluated) == [0, 1, 2]
    assert [row["repeat_of"] for row in rows] == [None] * 3 + [n % 3 for n in range(3, TRIALS)]
    assert all(row["accuracy"] == rows[n % 3]["accuracy"] for n, row in enumerate(rows))


# ---- failures


def failing(numbers: set[int], how: str = "crash") -> Callable[[Trial], float]:
    def score(trial: Trial) -> float:
        if trial.number in numbers:
            if how == "nan":
                return math.nan
            raise RuntimeError(f"trial {trial.number} is broken\nin two lines")
        return 0.5

    return score


@pytest.mark.parametrize("how", ["crash", "nan"])
@pytest.mark.parametrize("kind", [Scores, Weights])
def test_failed_trials_are_recorded_and_told_as_nothing(
    kind: type[Scores], how: str, tmp_path: Path
) -> None:
    strategy = Toy()
    log = go(tmp_path, toy=strategy, evaluator=kind(score=failing({1, 3}, how))).log
    failed = [row for row in log.in_order() if row["accuracy"] is None and row["repeat_of"] is None]
    assert [row["number"] for row in failed] == [1, 3]
    assert all(row["reward"] is None for row in failed)
    expected = ["the accuracy is nan"] * 2 if how == "nan" else [
        f"RuntimeError: trial {n} is broken" for n in (1, 3)
    ]
    assert [row["error"] for row in failed] == expected
    assert [strategy.told[n][1] for n in (1, 3)] == [0.0, 0.0]
    assert sum(log.failures().values()) == TRIALS - len(log.good())


def test_a_repeat_of_a_failed_network_in_its_batch_fails_with_it(tmp_path: Path) -> None:
    rows = go(tmp_path, toy=Same(), evaluator=Scores(score=failing({0})), trials=4).log.in_order()
    assert [row["accuracy"] for row in rows] == [None, 0.5, 0.5, None]
    assert rows[3]["repeat_of"] == 0 and rows[3]["error"] == "RuntimeError: trial 0 is broken"


@pytest.mark.parametrize("kind", [Scores, Weights])
def test_three_alike_in_a_row_end_the_search_and_the_next_run_tries_them_again(
    kind: type[Scores], tmp_path: Path
) -> None:
    def broken(trial: Trial) -> float:
        if trial.number >= BATCH:
            raise OSError("no space left")
        return 0.5

    with pytest.raises(InputError, match="3 trials in a row failed alike: OSError: no space left") as caught:
        go(tmp_path, evaluator=kind(score=broken))
    assert "the search goes on" in str(caught.value)
    failed = TrialLog(tmp_path, heading(tmp_path)).failures()
    assert failed == {"OSError: no space left": 3}
    evaluator = kind(score=lambda trial: 0.5)
    found = go(tmp_path, evaluator=evaluator)
    assert len(found.log.good()) == TRIALS and not found.log.failures()
    if kind is Scores:
        assert not set(evaluator.evaluated) & set(range(BATCH))
    again = TrialLog(tmp_path, heading(tmp_path))  # the file agrees
    assert good(again) == good(found.log)


def test_failures_with_different_causes_or_apart_do_not_end_it(tmp_path: Path) -> None:
    several = Scores(score=failing(set(range(TRIALS))))  # each names its own number
    assert not go(tmp_path / "a", evaluator=several).log.good()

    def pairs(trial: Trial) -> float:
        if trial.number % 4 in (1, 2):
            raise RuntimeError("x")
        return 0.5

    found = go(tmp_path / "b", evaluator=Weights(score=pairs)).log
    assert found.failures() == {"RuntimeError: x": sum(n % 4 in (1, 2) for n in range(TRIALS))}


def test_a_problem_of_the_user_s_ends_the_search_at_once(tmp_path: Path) -> None:
    def full(trial: Trial) -> float:
        raise InputError("the disk is full", "free some space")

    with pytest.raises(InputError, match=r"^the disk is full; free some space$"):
        go(tmp_path, evaluator=Scores(score=full))
    assert len(go(tmp_path).log.good()) == TRIALS


# ---- foreign folders


def test_another_search_s_folder(tmp_path: Path) -> None:
    go(tmp_path)
    for field, value, said in (
        ("seed", 2, "seed 1 there, 2 now"), ("strategy", "rnn", "strategy 'toy' there, 'rnn' now"),
        ("batch", 5, "batch 4 there, 5 now"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            go(tmp_path, **{field: value})


def test_more_trials_go_on_from_a_finished_search(tmp_path: Path) -> None:
    go(tmp_path / "a", trials=2 * BATCH)
    assert good(go(tmp_path / "a").log) == good(go(tmp_path / "b").log)


def test_a_state_without_its_log_and_a_damaged_state(tmp_path: Path) -> None:
    log = go(tmp_path).log
    text = log.path.read_text()
    log.path.write_text("".join(text.splitlines(keepends=True)[:-2]))
    with pytest.raises(InputError, match=r"lacks trial \d+, which .*search\.pt knows of"):
        go(tmp_path)
    log.path.write_text(text)
    (tmp_path / "search.pt").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"search\.pt is not a readable checkpoint"):
        go(tmp_path)


def test_a_log_without_its_state_is_used_again(tmp_path: Path) -> None:
    before = good(go(tmp_path).log)
    (tmp_path / "search.pt").unlink()
    evaluator = Scores()
    assert good(go(tmp_path, evaluator=evaluator).log) == before
    assert not evaluator.evaluated
