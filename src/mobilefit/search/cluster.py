"""The proxy's trials on Ray (https://docs.ray.io): several at a time here, or on a cluster.

Ray schedules by the resources that a trial declares and starts a trial anew whose worker was lost.
Of Ray's own output only what it says of lost workers and missing resources reaches the terminal.

Ray is an extra and is imported nowhere else.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from mobilefit.arch import NetSpec
from mobilefit.errors import InputError
from mobilefit.search.evaluate import Evaluator, Outcome, Trial, one_line, outcome
from mobilefit.search.proxy import ProxyTask

RETRIES = 3
"""How often a trial begins again after its worker was lost."""
ANSWER_SECONDS = 5.0
"""For a cluster to take a connection; Ray itself would try for minutes."""


class ProxyOnRay(Evaluator):
    """Trains every network on its own, several at a time.

    Ray starts with the first trial. A Ray that the process is connected to already is used as it is
    and left running; else :meth:`close`, and anything that ends :meth:`evaluate` early, shuts a local
    Ray down or leaves the cluster.

    Args:
        task: travels to each machine once. A cluster's machines need this package and, at the same
            paths, the images that are not in memory.
        workers: trials at a time on this machine; a cluster takes as many as it has room for.
        cpus, gpus: what one trial gets. It trains with ``cpus`` threads, however many trials run, so
            that its accuracy does not depend on that.
        address: of a running cluster, as Ray has it: ``HOST:PORT`` or ``auto``.
        retries: see :data:`RETRIES`.

    Raises:
        InputError: Ray is not installed, or nobody answers at the address.
    """

    name = "proxy"

    def __init__(
        self, task: ProxyTask, *, workers: int = 1, cpus: float = 1.0, gpus: float = 0.0,
        address: str | None = None, retries: int = RETRIES,
    ) -> None:  # fmt: skip
        if workers < 1 or not cpus > 0 or gpus < 0:
            raise InputError(f"{workers} workers with {cpus:g} CPUs and {gpus:g} GPUs each")
        self._ray = _ray()
        if address is not None:
            _require_answer(address)
        self._task, self._address, self._retries = task, address, retries
        self._workers, self._cpus, self._gpus = workers, cpus, gpus
        self._there: Any = None
        """Ray's reference to the task."""
        self._connected = False

    def evaluate(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        """The outcomes as they end. A trial whose worker is lost too often has failed."""
        running: dict[Any, int] = {}
        try:
            self._start()
            remote = self._ray.remote(
                num_cpus=self._cpus, num_gpus=self._gpus, max_retries=self._retries,
                retry_exceptions=False,
            )(_trial)  # fmt: skip
            for trial in trials:
                place = remote.remote(self._there, trial.number, trial.spec, self._cpus, self._gpus)
                running[place] = trial.number
            while running:
                ended, _ = self._ray.wait(list(running), num_returns=1)
                found = self._outcome(ended[0], running[ended[0]])
                del running[ended[0]]
                yield found
        except BaseException:  # Ctrl-C, or the search stopped
            for place in running:
                self._ray.cancel(place, force=True)
            self.close()
            raise

    def _outcome(self, place: Any, number: int) -> Outcome:
        errors = self._ray.exceptions
        try:
            found: Outcome = self._ray.get(place)
        except errors.RayTaskError as error:  # what `outcome` lets through: a problem of the user's
            raise error.cause from None
        except errors.RayError as error:
            return Outcome(number=number, accuracy=None, error=one_line(error))
        return found

    def _start(self) -> None:
        if self._there is not None and self._ray.is_initialized():
            return
        if not self._ray.is_initialized():
            self._connect()
            self._connected = True
        self._require_room()
        self._there = self._ray.put(self._task)

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if self._address is None:
            cpus = math.ceil(self._workers * self._cpus)
            options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        else:
            options["address"] = self._address
        try:
            self._ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = "on this machine" if self._address is None else f"at {self._address}"
            raise InputError(f"Ray does not start {where}: {one_line(error)}") from error

    def _require_room(self) -> None:
        """Ray would wait for ever for a node that is large enough."""
        wanted = {"CPU": self._cpus, "GPU": self._gpus}
        for node in self._ray.nodes():
            has = node["Resources"] if node["Alive"] else {}
            if all(has.get(kind, 0.0) >= amount for kind, amount in wanted.items()):
                return
        raise InputError(
            f"no machine of the cluster has {self._cpus:g} CPUs and {self._gpus:g} GPUs for a trial"
        )

    def close(self) -> None:
        """Shut down what was started; the next :meth:`evaluate` starts it again."""
        if self._connected:
            self._ray.shutdown()
        self._connected, self._there = False, None


def _trial(task: ProxyTask, number: int, spec: NetSpec, cpus: float, gpus: float) -> Outcome:
    """What a worker does."""
    torch.set_num_threads(max(1, int(cpus)))
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray restricts those alone that asked for some
    return outcome(number, functools.partial(task.accuracy, spec))


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "trials on several workers need Ray", "pip install 'mobilefit[cluster]'"
        ) from error
    return ray


def _require_answer(address: str) -> None:
    """See that somebody listens at a cluster's address.

    Raises:
        InputError: nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        if address != "auto":
            raise InputError(
                f"'{address}' is not the address of a Ray cluster", "write HOST:PORT or auto"
            )
        return
    try:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"no Ray cluster answers at {address}: {error}", "start one with: ray start --head"
        ) from error
