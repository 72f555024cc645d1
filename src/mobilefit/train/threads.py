"""How many CPU threads a training uses while other processes take cores.

OpenMP divides an operation into equal parts, one a thread, and all threads wait for the last one. A thread
that has to share its core with another process is late every time, so that two threads on two cores, of which
one is busy, are slower than one thread alone; beside several busy processes they are thirty times slower. No
setting of OpenMP serves both a busy and a quiet machine (``OMP_WAIT_POLICY=PASSIVE`` halves the speed of a quiet
one), so a training measures its own speed and changes the number of threads.

:class:`ThreadTuner` decides, from the durations of the steps alone; :class:`AdaptiveThreads` carries it out.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from mobilefit.cores import FRESH_SECONDS, CoreMeter, CoreUsage, note_thread_change, recent_usage
from mobilefit.errors import InputError

USER_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables by which the user decides."""

WINDOW_SECONDS, TRIAL_SECONDS = 1.0, 0.5
"""Time in steps over which a speed is measured; in a trial of another number of threads."""
WINDOW_STEPS = 3
LONG_SECONDS = 4.0
"""After which one step is enough."""
STALL_SECONDS, STALL_RATIO = 1.0, 4.0
"""A step that takes longer than both, the second in usual steps, ends the measurement at once."""
RECENT_SECONDS = 0.3
"""The end of a window, which other work that came within it does not blur."""
COLLAPSED = 0.4
"""Share of the best speed with a number of threads below which fewer are tried at once."""
DROPPED = 0.75
"""The same where the system does not tell how busy the cores are: fewer are tried after the pause."""
RISEN = 1.3
"""Ratio to the speed after the last trial above which more threads are tried, where the system does not tell."""
FASTER = 1.05
"""Ratio of speeds that a change of threads needs."""
CROWDED, ROOM = 0.45, 0.4
"""Cores by which threads and other processes together may exceed what there is: above the first, fewer threads are
tried; with one thread more at most the second, more are."""
STARTS_FEWER = 0.7
"""Cores that others take from which on a training begins with fewer threads."""
SHORTEST_PAUSE, LONGEST_PAUSE = 2.0, 64.0
"""Seconds between two trials: twice as many each time that they follow each other quickly."""
BLIND_SECONDS = 60.0
"""Seconds until a trial for which nothing speaks but the time, where the system does not tell."""
RETRY_SECONDS = 15.0
"""The same for more threads after a change to fewer, where the system does not tell; twice as long each time."""
COST_FACTOR = 50.0
"""A trial in vain is followed by a pause of so many times what it costs: 2 % of the time at most."""
LONGEST_BLIND_PAUSE = 600.0
"""A step that took long for another reason, such as a stopped process, is no cost. Where the system tells what the
cores do, more threads are tried after so long although it says that there is no room: other work may have a low
priority."""


@dataclass(kw_only=True)
class _Window:
    """Steps over which a speed is measured: images and seconds of each."""

    steps: list[tuple[int, float]] = field(default_factory=list)

    def is_full(self, seconds: float) -> bool:
        passed = sum(step_seconds for _, step_seconds in self.steps)
        return (passed >= seconds and len(self.steps) >= WINDOW_STEPS) or passed >= LONG_SECONDS

    def rate(self, seconds: float = math.inf) -> float:
        """Images a second, over the last so many seconds or three steps at least."""
        images = passed = 0.0
        for number, (step_images, step_seconds) in enumerate(reversed(self.steps)):
            if number >= WINDOW_STEPS and passed >= seconds:
                break
            images, passed = images + step_images, passed + step_seconds
        return images / max(passed, 1e-9)


@dataclass(kw_only=True)
class _Trial:
    """A comparison of other numbers of threads with the one before."""

    home: int
    home_rate: float
    candidates: list[int]
    began: float
    blind: bool
    best: int
    best_rate: float
    step_images: int
    images: int = 0


@dataclass(kw_only=True)
class ThreadTuner:
    """Chooses the number of threads from the speed of the steps; knows no clock but their durations.

    It compares one number with another only by trying both, one after the other, and keeps the faster one. A
    trial has a reason: other processes take cores that the threads need, or leave some free. Where the system does
    not tell what the cores do, the reason is a fall or a rise of the speed and, now and then, the time alone. On a
    quiet machine whose system does tell there is no trial, so that the bits stay the same.
    """

    most: int
    """Threads on a quiet machine."""
    threads: int
    """For the next step."""
    _seconds: float = 0.0
    _window: _Window = field(default_factory=_Window)
    _best_rates: dict[int, float] = field(default_factory=dict)
    _settled_rate: float = math.inf
    _trial: _Trial | None = None
    _settling: bool = True
    _step_images: int = 0
    _pause: float = SHORTEST_PAUSE
    _last_trial: float = -math.inf
    _next_trial: float = 0.0
    _trial_end: float = 0.0
    _blind_pause: float = BLIND_SECONDS

    @property
    def has_measured(self) -> bool:
        """Whether the number of threads is more than a first guess."""
        return bool(self._best_rates)

    @property
    def settled(self) -> int:
        """Threads that are not only being tried."""
        return self.threads if self._trial is None else self._trial.home

    def step(self, images: int, seconds: float, usage: Callable[[], CoreUsage | None]) -> int:
        """Take note of a step that was done with ``threads`` threads, and return the number for the next one.

        Args:
            images: of the step.
            seconds: of computing, without the wait for images.
            usage: what others took of the cores since it was last called; called now and then. It returns
                ``None`` where the system does not tell.
        """
        self._seconds, self._step_images = self._seconds + seconds, images
        if self._trial is not None:
            self._trial.images += images
        if self._settling:  # after a change the first step makes its threads and kernels
            self._settling = False
            if seconds < STALL_SECONDS:
                return self.threads
        self._window.steps.append((images, seconds))
        stalled = seconds > max(STALL_SECONDS, STALL_RATIO * images / self._usual_rate)
        if stalled or self._window.is_full(WINDOW_SECONDS if self._trial is None else TRIAL_SECONDS):
            window, self._window = self._window, _Window()
            if self._trial is not None:
                usage()  # what is read next is of the time after the trial
                self._compare(self._trial, window.rate())
            else:
                self._consider(window, usage())
        return self.threads

    @property
    def _usual_rate(self) -> float:
        rate = self._best_rates.get(self.threads, 0.0) if self._trial is None else self._trial.home_rate
        return rate or 1e-9

    def _consider(self, window: _Window, usage: CoreUsage | None) -> None:
        """Begin a trial if there is a reason."""
        best = self._best_rates[self.threads] = max(window.rate(), self._best_rates.get(self.threads, 0.0))
        rate = window.rate(RECENT_SECONDS)
        rested = self._seconds >= self._next_trial
        blind_pause = self._blind_pause if usage is None else LONGEST_BLIND_PAUSE
        if fewer := self._fewer(rate / best, usage):
            if rested or rate < COLLAPSED * best:
                self._begin_trial(fewer, rate)
        elif more := self._more(rate, usage):
            if rested:
                self._begin_trial(more, rate)
        elif self._seconds - self._trial_end >= blind_pause and (usage is None or self.threads < self.most):
            twice, half = min(self.most, 2 * self.threads), max(1, self.threads // 2)
            self._begin_trial([twice if self.threads < self.most else half], rate, blind=True)

    def _fewer(self, speed: float, usage: CoreUsage | None) -> list[int]:
        """Smaller numbers of threads that may be faster; ``speed`` is the present one as a share of the best."""
        if self.threads == 1:
            return []
        if usage is None:
            fewer = {self.threads - 1, self.threads // 2, 1} if speed < DROPPED else set()
        elif self.threads + usage.others > usage.cores + CROWDED:
            # With equal shares for all, so many processes take what others took.
            processes = usage.others * self.threads / max(1e-9, usage.cores - usage.others)
            fewer = {int(usage.cores - taken + CROWDED) for taken in (usage.others, min(processes, usage.cores))}
        else:
            fewer = set()
        return sorted({max(1, min(self.threads - 1, number)) for number in fewer}, reverse=True)

    def _more(self, rate: float, usage: CoreUsage | None) -> list[int]:
        """Larger numbers of threads that may be faster."""
        if self.threads == self.most:
            return []
        if usage is None:
            return [min(self.most, 2 * self.threads)] if rate > RISEN * self._settled_rate else []
        if self.threads + 1 + usage.others > usage.cores + ROOM:
            return []
        return [min(self.most, max(self.threads + 1, int(usage.cores - usage.others + ROOM)))]

    def _begin_trial(self, candidates: list[int], rate: float, blind: bool = False) -> None:
        quickly = self._seconds - self._last_trial < 4 * self._pause
        pause = 2 * self._pause if quickly else self._pause / 2
        self._pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, pause))
        self._last_trial = self._seconds
        self._trial = _Trial(
            home=self.threads, home_rate=rate, candidates=candidates, began=self._seconds, blind=blind,
            best=self.threads, best_rate=rate * FASTER, step_images=self._step_images,
        )  # fmt: skip
        self._change(candidates.pop(0))

    def _compare(self, trial: _Trial, rate: float) -> None:
        if rate > trial.best_rate:
            trial.best, trial.best_rate = self.threads, rate
        if trial.candidates:
            self._change(trial.candidates.pop(0))
            return
        self._trial, self._trial_end = None, self._seconds
        if trial.best == trial.home:
            self._after_failure(trial)
        else:
            self._after_success(trial)
        self._best_rates[trial.best] = self._settled_rate  # an older speed is no measure any more
        self._change(trial.best)

    def _after_failure(self, trial: _Trial) -> None:
        self._settled_rate = trial.home_rate
        pause = COST_FACTOR * max(0.0, self._seconds - trial.began - trial.images / trial.home_rate)
        # That a blind trial failed says nothing about one that has a reason.
        self._next_trial = self._seconds + max(self._pause, 0.0 if trial.blind else min(LONGEST_PAUSE, pause))
        longer = min(LONGEST_PAUSE, 2 * self._blind_pause) if trial.blind else self._blind_pause
        self._blind_pause = max(longer, min(LONGEST_BLIND_PAUSE, pause))

    def _after_success(self, trial: _Trial) -> None:
        self._settled_rate = trial.best_rate
        self._next_trial = self._seconds + self._pause
        # What a trial of the number before would cost: a step at least.
        seconds = max(TRIAL_SECONDS, trial.step_images / trial.home_rate)
        pause = COST_FACTOR * seconds * (1 - trial.home_rate / trial.best_rate)
        shortest = RETRY_SECONDS if trial.best < self.most else BLIND_SECONDS
        self._blind_pause = max(shortest, min(LONGEST_PAUSE, pause))

    def _change(self, threads: int) -> None:
        self._settling = threads != self.threads
        self.threads = threads


_tuning = threading.Lock()
"""Held by the one training of this process that changes the number of threads."""
_last_count: tuple[float, int] = -math.inf, 0
"""When a training that had measured its speed last ended, and with how many threads."""


class AdaptiveThreads:
    """Within the block torch computes with a number of threads that adapts to what other processes take.

    The number at entry is the largest one that is used, and is restored at the end. Nothing changes if there is
    only one, if ``OMP_NUM_THREADS`` or ``MKL_NUM_THREADS`` is set, with a ``number``, or within another training
    that adapts. May be entered again, for a training whose caller does other things between its steps.

    A changed number of threads changes the order of sums, and so the last bits of a result.

    Args:
        number: fixed; ``None``: adapt.
        adapt: ``False``: leave the number alone, as for a training on a GPU or in several processes.
        report: is called once with a line for the user, when the training goes on with fewer threads.

    Raises:
        InputError: the number is not positive.
    """

    def __init__(
        self, number: int | None = None, *, adapt: bool = True, report: Callable[[str], None] | None = None
    ) -> None:
        if number is not None and number < 1:
            raise InputError(f"threads is {number}, must be 1 or more")
        self._number, self._report = number, report
        self._adapt = adapt and number is None and not any(os.environ.get(name) for name in USER_SETTINGS)
        self._tuner: ThreadTuner | None = None
        self._meter: CoreMeter | None = None
        self._before: int | None = None
        self._holds_lock = False

    @property
    def count(self) -> int:
        """Threads of the next step."""
        if self._tuner is not None:
            return self._tuner.threads
        return self._number or torch.get_num_threads()

    def __enter__(self) -> AdaptiveThreads:
        self._before = torch.get_num_threads()
        if self._number is not None:
            torch.set_num_threads(self._number)
        elif self._adapt and self._before > 1 and _tuning.acquire(blocking=False):
            self._holds_lock = True
            if self._tuner is None:
                self._tuner = ThreadTuner(most=self._before, threads=first_count(self._before))
                self._meter = CoreMeter()
            torch.set_num_threads(self._tuner.threads)
        return self

    def __exit__(self, *_: object) -> None:
        global _last_count
        if self._holds_lock and self._tuner is not None:
            if self._tuner.has_measured:
                _last_count = time.monotonic(), self._tuner.settled
            self._holds_lock = False
            _tuning.release()
        assert self._before is not None
        torch.set_num_threads(self._before)

    def after_step(self, images: int, seconds: float) -> None:
        """Take note of a step, and change the number of threads for the next one if that is better.

        Args:
            images: of the step.
            seconds: of computing, without the wait for images.
        """
        if not self._holds_lock or self._tuner is None or self._meter is None:
            return
        before = self._tuner.threads
        threads = self._tuner.step(images, seconds, self._meter.read)
        if threads != before:
            torch.set_num_threads(threads)
            note_thread_change()
        if self._report is not None and self._tuner.settled < self._tuner.most:
            self._report(f"other work takes cores: training with {self._tuner.settled} of {self._tuner.most} threads")
            self._report = None


def first_count(most: int) -> int:
    """Threads to begin with: as the training before ended if that was just now, else what others leave."""
    ended, threads = _last_count
    if time.monotonic() - ended < FRESH_SECONDS:
        return min(most, threads)
    usage = recent_usage()
    if usage is None or usage.source != "ticks" or usage.others < STARTS_FEWER:
        return most
    return max(1, min(most, int(usage.cores - usage.others + STARTS_FEWER)))
