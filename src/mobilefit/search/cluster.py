"""The proxy's trials on Ray: several at a time here, or on a cluster."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mobilefit.cluster import RETRIES, RayPool
from mobilefit.search.evaluate import Evaluator, Outcome, Trial, outcome
from mobilefit.search.proxy import ProxyTask


class ProxyOnRay(Evaluator):
    """Trains every network on its own, several at a time.

    Args:
        task: travels to each machine once.
        workers, cpus, gpus, address, retries: see :class:`mobilefit.cluster.RayPool`; an accuracy does
            not depend on ``workers``.

    Raises:
        InputError: Ray is not installed, or nothing answers at the address.
    """

    name = "proxy"

    def __init__(
        self, task: ProxyTask, *, workers: int = 1, cpus: float = 1.0, gpus: float = 0.0,
        address: str | None = None, retries: int = RETRIES,
    ) -> None:  # fmt: skip
        self._pool = RayPool(workers=workers, cpus=cpus, gpus=gpus, address=address, retries=retries)
        self._training = _ProxyTraining(task=task)

    def evaluate(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        """The outcomes as they end. A trial whose worker is lost too often has failed."""
        with contextlib.closing(self._pool.map(self._training, trials, lost=_failure)) as outcomes:
            for _, result in outcomes:
                yield result

    def close(self) -> None:
        """Shut down what was started; the next :meth:`evaluate` starts it again."""
        self._pool.close()


@dataclass(frozen=True, kw_only=True)
class _ProxyTraining:
    """What a worker does with a trial."""

    task: ProxyTask

    def __call__(self, trial: Trial) -> Outcome:
        return outcome(trial.number, functools.partial(self.task.accuracy, trial.spec))


def _failure(trial: Trial, reason: str) -> Outcome:
    return Outcome(number=trial.number, accuracy=None, error=reason)
