"""Trials in worker processes of Ray (https://docs.ray.io): several at a time here, or on a cluster.

Ray schedules by the resources that a trial declares and starts a trial again whose worker was lost.
Of Ray's own output only its messages about lost workers and missing resources reach the terminal.

Ray is an extra and is imported nowhere else.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

import torch

from mobilefit.errors import InputError, one_line

T = TypeVar("T")
R = TypeVar("R")

RETRIES = 3
"""How often a trial begins again after its worker was lost."""
ANSWER_SECONDS = 5.0
"""Time for a cluster to accept a connection; Ray itself would try for minutes."""


class RayPool:
    """Worker processes that apply a function to items, several at a time.

    Ray starts with the first item, or with :meth:`open`. If the process is already connected to a Ray,
    that one is used and left running; otherwise :meth:`close`, and anything that ends :meth:`map` early,
    shuts the local Ray down or leaves the cluster. Use it as a context manager to close it.

    Args:
        workers: items at a time on this machine; a cluster takes as many as it has room for.
        cpus, gpus: what one item gets. It computes with ``cpus`` threads (rounded down, at least one)
            however many workers there are, so that its result does not depend on their number.
        address: of a running cluster, as Ray spells it: ``HOST:PORT`` or ``auto``.
        retries: see :data:`RETRIES`.

    Raises:
        InputError: Ray is not installed, or nothing answers at the address.
    """

    def __init__(
        self, *, workers: int = 1, cpus: float = 1.0, gpus: float = 0.0, address: str | None = None,
        retries: int = RETRIES,
    ) -> None:  # fmt: skip
        if workers < 1 or not cpus > 0 or gpus < 0:
            raise InputError(f"{workers} workers with {cpus:g} CPUs and {gpus:g} GPUs each")
        self._ray = _ray()
        if address is not None:
            _require_answer(address)
        self._workers, self._cpus, self._gpus = workers, cpus, gpus
        self._address, self._retries = address, retries
        self._owns_connection = False
        self._stored: tuple[Callable[[Any], Any], Any] | None = None
        """The function that was sent last, and Ray's reference to it."""

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def parallel(self) -> int:
        """Items at a time. Connects to a cluster to count its room."""
        if self._address is None:
            return self._workers
        self.open()
        return max(1, sum(self._room(node) for node in self._ray.nodes()))

    def map(
        self, function: Callable[[T], R], items: Sequence[T], *,
        lost: Callable[[T, str], R] | None = None,
    ) -> Generator[tuple[int, R], None, None]:  # fmt: skip
        """Each item's index with the function's result, as they end.

        Args:
            function: a picklable callable, sent to each machine once, with all that it holds. A cluster's
                machines need this package and, at the same paths, the files that the function uses.
            items: picklable.
            lost: gives the result of an item whose worker was lost too often, from the item and Ray's
                reason in one line; ``None``: that is an error.

        Raises:
            InputError: Ray does not start, no machine has enough room for one item, or a worker was lost
                too often. What the function raises is raised here.
        """
        if not items:
            return
        running: dict[Any, int] = {}
        try:
            self.open()
            stored = self._store(function)
            remote = self._ray.remote(
                num_cpus=self._cpus, num_gpus=self._gpus, max_retries=self._retries,
                retry_exceptions=False,
            )(_work)  # fmt: skip
            for index, item in enumerate(items):
                reference = remote.remote(stored, item, self._cpus, self._gpus, os.getcwd())
                running[reference] = index
            while running:
                (reference,), _ = self._ray.wait(list(running), num_returns=1)
                item = items[running[reference]]
                result = self._result(reference, item, lost)
                yield running.pop(reference), result
        except BaseException:  # Ctrl-C, or the caller stopped
            for reference in running:
                self._ray.cancel(reference, force=True)
            self.close()
            raise

    def _result(self, reference: Any, item: T, lost: Callable[[T, str], R] | None) -> R:
        errors = self._ray.exceptions
        try:
            result: R = self._ray.get(reference)
        except errors.RayTaskError as error:
            raise error.cause from None
        except errors.RayError as error:
            if lost is None:
                raise InputError(
                    f"a worker was lost {self._retries + 1} times at the same work: {one_line(error)}",
                    "fewer workers need less memory; the same command continues",
                ) from error
            return lost(item, one_line(error))
        return result

    def open(self) -> None:
        """Start Ray or connect to the cluster, unless that is done, and check that an item has room."""
        if self._ray.is_initialized():
            if not self._owns_connection:
                self._require_room()
            return
        self._stored = None
        self._connect()
        self._owns_connection = True
        self._require_room()

    def _store(self, function: Callable[[Any], Any]) -> Any:
        if self._stored is None or self._stored[0] is not function:
            self._stored = function, self._ray.put(function)
        return self._stored[1]

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if self._address is None:
            cpus = math.ceil(self._workers * self._cpus)
            options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        else:
            options["address"] = self._address
        try:
            with _sigterm_unchanged():
                self._ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = "on this machine" if self._address is None else f"at {self._address}"
            raise InputError(f"Ray does not start {where}: {one_line(error)}") from error

    def _room(self, node: dict[str, Any]) -> int:
        """Items at a time on one machine."""
        resources = node["Resources"] if node["Alive"] else {}
        needs = {"CPU": self._cpus, "GPU": self._gpus}
        return min(int(resources.get(kind, 0.0) // need) for kind, need in needs.items() if need)

    def _require_room(self) -> None:
        """Ray would wait forever for a node that is large enough."""
        if not any(self._room(node) for node in self._ray.nodes()):
            raise InputError(
                f"no machine of the cluster has {self._cpus:g} CPUs and {self._gpus:g} GPUs for a trial"
            )

    def close(self) -> None:
        """Shut down what was started; the next :meth:`map` starts it again."""
        if self._owns_connection:
            self._ray.shutdown()
        self._owns_connection, self._stored = False, None


def _work(function: Callable[[T], R], item: T, cpus: float, gpus: float, folder: str) -> R:
    """What a worker does."""
    torch.set_num_threads(max(1, int(cpus)))
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray restricts only those that asked for some
    with contextlib.suppress(OSError):  # relative paths are the driver's, where the machine has its folder
        os.chdir(folder)
    return function(item)


@contextlib.contextmanager
def _sigterm_unchanged() -> Iterator[None]:
    """Restore the handler of SIGTERM that ``ray.init`` replaces."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if main and handler is not None:
            signal.signal(signal.SIGTERM, handler)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "trials on several workers need Ray", "pip install 'mobilefit[cluster]'"
        ) from error
    return ray


def _require_answer(address: str) -> None:
    """Check that something listens at a cluster's address.

    Raises:
        InputError: nothing does, or it is no address.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
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
