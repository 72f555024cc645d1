"""What a search asks of an evaluator: how good is this network, about?"""

from __future__ import annotations

import functools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mobilefit.arch import NetSpec
from mobilefit.errors import InputError, one_line
from mobilefit.search.strategy import Tokens


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One network to evaluate."""

    number: int
    """From 0, over the whole search."""
    tokens: Tokens
    spec: NetSpec


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a trial."""

    number: int
    accuracy: float | None
    """Top-1, or the score of another task (mAP@0.5, mIoU): 0 to 1; ``None``: it failed."""
    error: str | None = None
    """Why it failed, one line."""
    loss: float | None = None
    """Mean cross-entropy on the same images, nats, where the evaluator has it."""
    seconds: float = 0.0


class Evaluator(ABC):
    """Scores networks.

    Attributes:
        name: as the command line calls it.
        depends_on_history: a score depends on what was evaluated before (shared weights): scores are
            never reused, and :meth:`state_dict` belongs to the search's state.
    """

    name: str
    depends_on_history = False
    scored_on: str | None = None
    """Rule by which held-out images are taken, where an earlier version's was another one: a log by
    another rule is refused, since its rewards cannot be compared."""

    def prepare(self) -> None:  # noqa: B027 - most have nothing to do
        """Whatever must be done before the first trial; taken up where it was interrupted."""

    @abstractmethod
    def evaluate(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        """The outcomes, in any order, each as soon as it is known. A failure is an outcome too."""

    def rescore(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        """More exact scores for the best networks, where the evaluator has any."""
        return self.evaluate(trials)

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`evaluate` depends on beside its argument: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Go on from :meth:`state_dict`."""

    def close(self) -> None:  # noqa: B027
        """Give back what is held beside memory: worker processes."""


class Known(Evaluator):
    """Scores by a function of the tokens, for tests, studies and teaching.

    Args:
        accuracy: of a network, 0 to 1.
    """

    name = "tabular"

    def __init__(self, accuracy: Callable[[Tokens], float]) -> None:
        self._accuracy = accuracy

    def evaluate(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        """The function's values."""
        for trial in trials:
            yield outcome(trial.number, functools.partial(self._accuracy, trial.tokens))


def outcome(
    number: int, work: Callable[[], float], clock: Callable[[], float] = time.perf_counter
) -> Outcome:
    """The outcome of ``work``; an exception or a number that is not finite is a failure.

    A problem of the user's (a full disk, images that changed) is not the network's and passes through,
    as Ctrl-C does.
    """
    began = clock()
    accuracy, error = math.nan, None
    try:
        accuracy = work()
    except InputError:
        raise
    except Exception as caught:
        error = one_line(caught)
    if error is None and not math.isfinite(accuracy):
        error = f"the accuracy is {accuracy}"
    return Outcome(
        number=number, accuracy=accuracy if error is None else None, error=error,
        seconds=round(clock() - began, 3),
    )  # fmt: skip
