"""The search loop: sample, evaluate, update (MnasNet, section 4.2), as ask and tell.

A batch of networks is asked for (the first ones are the hand-made networks of the space), timed, evaluated and told; then the state is saved. What decides
what comes next is in the log and the state alone, so a search that was stopped anywhere goes on as
if it had not been.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mobilefit.arch import NetSpec
from mobilefit.errors import InputError
from mobilefit.progress import Progress
from mobilefit.search.evaluate import Evaluator, Outcome, Trial
from mobilefit.search.log import Row, TrialLog
from mobilefit.search.reward import Reward
from mobilefit.search.space import Space
from mobilefit.search.strategy import Strategy
from mobilefit.train.checkpoint import load_checkpoint, save_checkpoint

STATE = "search.pt"
BATCH = 20
"""Networks between two updates of the strategy."""
SAVE_SECONDS = 30.0
"""Between two savings of shared weights, which are large."""
FAILURES = 3
"""Trials in a row that fail for one reason and end the search."""
FAILED = 0.0
"""The reward that a strategy is told for a failed trial: that of an accuracy of zero."""

Latencies = Callable[[Sequence[NetSpec]], Sequence[float]]
"""Milliseconds of networks. Called before a batch is trained, so that nothing is timed beside a training."""


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """A search, apart from what it is made of."""

    strategy: str
    """Its name, for the log."""
    trials: int
    batch: int = BATCH
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Searched:
    """Where a search arrived."""

    log: TrialLog
    seconds: dict[str, float]
    """Spent in this call on: latency, evaluation, strategy (asking and telling), records."""


def search(
    space: Space, strategy: Strategy, evaluator: Evaluator, latencies: Latencies, reward: Reward,
    settings: SearchSettings, out: Path, *, label: str | None = None,
) -> Searched:  # fmt: skip
    """Search a space, or go on with the search in ``out``.

    Args:
        strategy, evaluator: fresh; an earlier run's state is loaded into them.
        out: folder for ``trials.jsonl`` and the state.
        label: of the progress; ``None``: silent.

    Raises:
        InputError: the folder is another search's, or three trials in a row failed for one reason.
    """
    run = _Run(space, strategy, evaluator, latencies, reward, settings, out)
    with Progress(settings.trials, label, unit="trial", done=run.told) as progress:
        while run.told < settings.trials:
            run.batch(progress)
    return Searched(log=run.log, seconds=run.seconds)


def load_evaluator(evaluator: Evaluator, out: Path) -> None:
    """Load a fresh evaluator with what it was when the search in ``out`` ended.

    Raises:
        InputError: there is no such state, or it cannot be read.
    """
    path = out / STATE
    if not path.exists():
        raise InputError(f"{path} is missing", "give the search's command again")
    evaluator.load_state_dict(load_checkpoint(path, {})["evaluator"])


class _Run:
    def __init__(
        self, space: Space, strategy: Strategy, evaluator: Evaluator, latencies: Latencies,
        reward: Reward, settings: SearchSettings, out: Path,
    ) -> None:  # fmt: skip
        self.space, self.strategy, self.evaluator = space, strategy, evaluator
        self.latencies, self.reward, self.settings = latencies, reward, settings
        self.seconds: dict[str, float] = {}
        self.identity = {
            "space": space.to_dict(), "strategy": settings.strategy, "evaluator": evaluator.name,
            "reward": reward.form, "target_ms": reward.target_ms, "seed": settings.seed,
            "batch": settings.batch,
        }  # fmt: skip
        if evaluator.scored_on is not None:
            self.identity["scored_on"] = evaluator.scored_on
        decisions = [{"name": d.name, "options": list(d.options)} for d in space.decisions]
        self.log = TrialLog(out, {**self.identity, "decisions": decisions})
        self.state, self.told, self._saved = out / STATE, 0, time.monotonic()
        self._take_up()
        self._best = max((row["reward"] for row in self.log.good()), default=-math.inf)
        self._failed: list[str] = []

    def _take_up(self) -> None:
        """Load the state of an earlier run; what its log has beyond that is used again or voided."""
        if self.state.exists():
            state = load_checkpoint(self.state, self.identity)
            self.strategy.load_state_dict(state["strategy"])
            self.evaluator.load_state_dict(state["evaluator"])
            self.told = int(state["told"])
            missing = [n for n in range(self.told) if n not in self.log.rows]
            if missing:
                raise InputError(
                    f"{self.log.path} lacks trial {missing[0]}, which {self.state} knows of",
                    "use another output folder, or delete both files to start anew",
                )
        else:
            self.evaluator.prepare()
        if self.evaluator.depends_on_history:
            self.log.void_from(self.told)

    def batch(self, progress: Progress) -> None:
        """Ask, time, evaluate, tell, save."""
        with self.timed("strategy"):
            count = min(self.settings.batch, self.settings.trials - self.told)
            first = self.space.handmade[self.told : self.told + count]
            asked = [*first, *self.strategy.ask(count - len(first))]
            trials = [
                Trial(number=self.told + i, tokens=tokens, spec=self.space.spec(tokens))
                for i, tokens in enumerate(asked)
            ]
        with self.timed("latency"):
            milliseconds = self.latencies([trial.spec for trial in trials])
        self._void_if_foreign(trials)
        done = 0
        for trial, outcome, repeat_of in self._outcomes(trials):
            with self.timed("records"):
                self._record(trial, outcome, milliseconds[trial.number - self.told], repeat_of)
            progress.update(1, self._note())
            done += 1
        progress.update(count - done)  # known from an earlier run
        rows = [self.log.rows[trial.number] for trial in trials]
        with self.timed("strategy"):
            rewards = [FAILED if row["reward"] is None else row["reward"] for row in rows]
            self.strategy.tell(asked, rewards)
            self.told += count
        with self.timed("records"):
            self._save()

    def _void_if_foreign(self, trials: Sequence[Trial]) -> None:
        """What lies beyond the state is of no use if now other networks are asked for.

        Another version of torch may round otherwise and so draw otherwise.
        """
        known = self.log.rows
        if any(known[t.number]["tokens"] != list(t.tokens) for t in trials if t.number in known):
            self.log.void_from(self.told)

    def _outcomes(self, trials: Sequence[Trial]) -> Iterator[tuple[Trial, Outcome, int | None]]:
        """The outcomes that the log lacks, as they become known; and the trial that one repeats."""
        if self.evaluator.depends_on_history:
            yield from self._evaluated(trials)
            return
        wanted = [trial for trial in trials if not self._is_good(trial.number)]
        known = self._by_network()
        fresh: dict[str, Trial] = {}
        for trial in wanted:
            if trial.spec.id not in known:
                fresh.setdefault(trial.spec.id, trial)
        yield from self._evaluated(list(fresh.values()))
        known = self._by_network()
        for trial in wanted:
            first = fresh.get(trial.spec.id)
            if first is trial:
                continue
            row = known.get(trial.spec.id)
            if row is None:  # the first of this batch failed
                assert first is not None
                row = self.log.rows[first.number]
            yield trial, Outcome(
                number=trial.number, accuracy=row["accuracy"], error=row["error"]
            ), row["number"]

    def _evaluated(self, trials: Sequence[Trial]) -> Iterator[tuple[Trial, Outcome, None]]:
        by_number = {trial.number: trial for trial in trials}
        outcomes = self.evaluator.evaluate(trials) if trials else iter(())
        while True:
            with self.timed("evaluation"):
                outcome = next(outcomes, None)
            if outcome is None:
                return
            yield by_number[outcome.number], outcome, None

    def _is_good(self, number: int) -> bool:
        row = self.log.rows.get(number)
        return row is not None and row["accuracy"] is not None

    def _by_network(self) -> dict[str, Row]:
        """The first good trial of each network."""
        return {row["spec_id"]: row for row in reversed(self.log.good())}

    def _record(
        self, trial: Trial, outcome: Outcome, milliseconds: float, repeat_of: int | None
    ) -> None:
        accuracy = outcome.accuracy
        self.log.add({
            "number": trial.number, "tokens": list(trial.tokens), "spec_id": trial.spec.id,
            "latency_ms": milliseconds, "accuracy": accuracy,
            "reward": None if accuracy is None else self.reward(accuracy, milliseconds),
            "repeat_of": repeat_of, "error": outcome.error, "seconds": outcome.seconds,
        })  # fmt: skip
        if accuracy is not None:
            self._best, self._failed = max(self._best, self.log.rows[trial.number]["reward"]), []
        elif repeat_of is None:
            self._failed.append(str(outcome.error))
            self._stop_if_hopeless()

    def _stop_if_hopeless(self) -> None:
        last = self._failed[-FAILURES:]
        if len(last) == FAILURES and len(set(last)) == 1:
            raise InputError(
                f"{FAILURES} trials in a row failed alike: {last[0]}",
                "mend the cause and give the same command again: the search goes on",
            )

    def _note(self) -> str:
        return f"best {self._best:.3f}" if self._best > -math.inf else ""

    def _save(self) -> None:
        """The state after a whole batch; large states not every time."""
        large, done = self.evaluator.depends_on_history, self.told == self.settings.trials
        if large and not done and time.monotonic() - self._saved < SAVE_SECONDS:
            return
        save_checkpoint(self.state, self.identity, {
            "told": self.told, "strategy": self.strategy.state_dict(),
            "evaluator": self.evaluator.state_dict(),
        })  # fmt: skip
        self._saved = time.monotonic()

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Adds the block's seconds to :attr:`seconds`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - began
