"""Ctrl-C and SIGTERM in the middle of a training."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from mobilefit.errors import Terminated


class Interrupts:
    """Lets Ctrl-C and SIGTERM through between steps only, so that what is saved is a whole step.

    A second one is let through at once. Outside of the main thread Python delivers none.

    Args:
        on: whether to do so at all; without anything to save they act as always.
        agree: with several processes, from whether this one is to stop to whether any is: all stop
            after the same step, and none between two.
    """

    def __init__(self, *, on: bool, agree: Callable[[bool], bool] | None = None) -> None:
        self._on = on and threading.current_thread() is threading.main_thread()
        self._agree = agree
        self.between_steps = True
        self._wanted: type[BaseException] | None = None
        self._before: list[tuple[int, Any]] = []

    def __enter__(self) -> Interrupts:
        if self._on:
            self._before = [(n, signal.signal(n, self._interrupt)) for n in (signal.SIGINT, signal.SIGTERM)]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        kind = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if self._wanted is not None:
            raise kind
        self._wanted = kind
        if self.between_steps and self._agree is None:
            raise kind

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """What comes within the block is acted on after it."""
        self.between_steps = False
        yield
        self.between_steps = True
        wanted = self._wanted is not None
        if wanted if self._agree is None else self._agree(wanted):
            raise self._wanted or Terminated
