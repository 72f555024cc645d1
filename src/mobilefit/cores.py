"""Which cores this process may use, and how much of them other processes take.

Linux counts the ticks of every core in ``/proc/stat`` (proc(5)); what this process used itself is subtracted.
Elsewhere there is only the load average. Standard library only.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path("/")
SAMPLE_SECONDS = 0.3
FRESH_SECONDS = 30.0
"""How long a sample is reused by :func:`recent_usage`."""
TAKEN = 0.5
"""Cores of other work from which on it is worth a message."""


@dataclass(frozen=True, kw_only=True)
class CoreUsage:
    """How much of the cores other processes took."""

    cores: int
    """Cores that this process may use."""
    others: float
    """Cores that other processes took, 0 to ``cores``: 1.0 is the whole time of one core. Time stolen by other
    virtual machines counts too."""
    source: Literal["ticks", "loadavg"] = "ticks"
    """``loadavg``: processes that wanted to run in the last minute, this one included."""

    @property
    def message(self) -> str | None:
        """One line for the user where at least half a core is taken, else ``None``."""
        if self.others < TAKEN:
            return None
        taken = min(self.cores, max(1, round(self.others)))
        verb = "is" if taken == 1 else "are"
        return f"{taken} of {self.cores} cores {verb} busy with other work: training will be slower"


def available_cores() -> set[int]:
    """The cores that this process may run on; empty where the system cannot pin."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def core_ticks(root: Path | None = None) -> dict[int, tuple[int, int]]:
    """Ticks of each core at work and in all since the system started; empty where it does not count them.

    Waiting for a disk is not work, time stolen by other virtual machines is.

    Args:
        root: holds ``proc/stat``; ``None``: :data:`ROOT`.
    """
    try:
        text = ((root or ROOT) / "proc/stat").read_text()
    except OSError:
        return {}
    ticks = {}
    for line in text.splitlines():
        name, *numbers = line.split() or [""]
        if name.startswith("cpu") and name != "cpu" and len(numbers) >= 4:
            values = [int(number) for number in numbers[:8]]  # the guests' are counted in the first two
            ticks[int(name[3:])] = (sum(values) - sum(values[3:5]), sum(values))
    return ticks


def _reading() -> tuple[dict[int, tuple[int, int]], float, float]:
    """The cores' ticks, the clock and this process's own time in all its threads, seconds."""
    return core_ticks(), time.perf_counter(), time.process_time()


class CoreMeter:
    """Reads how much of the cores other processes took between two readings, at no cost but reading a file.

    The processes that this one started (data workers, say) are others: they compete for the cores too.
    """

    def __init__(self) -> None:
        self._last = _reading()

    def read(self) -> CoreUsage | None:
        """Usage since the last reading; ``None`` where the system counts no ticks, or none has passed."""
        (before, clock, own), self._last = self._last, _reading()
        after, clock_after, own_after = self._last
        usable = available_cores()
        shares = [
            (work - before[core][0]) / (ticks - before[core][1])
            for core, (work, ticks) in after.items()
            if core in before and ticks > before[core][1] and (not usable or core in usable)
        ]
        if not shares:
            return None
        own_cores = (own_after - own) / max(1e-9, clock_after - clock)
        others = min(max(0.0, sum(shares) - own_cores), float(len(shares)))
        return CoreUsage(cores=len(usable) or len(shares), others=round(others, 3))


def usage(seconds: float = SAMPLE_SECONDS) -> CoreUsage | None:
    """Usage while this process sleeps; by the load average where the system counts no ticks.

    Args:
        seconds: of sleep; a tick is 0.01 s on most systems.
    """
    meter = CoreMeter()
    time.sleep(seconds)
    return meter.read() or _by_load_average()


_samples: list[tuple[float, CoreUsage | None]] = []


def recent_usage() -> CoreUsage | None:
    """The last sample if it is younger than :data:`FRESH_SECONDS`, else a new one."""
    if not _samples or time.monotonic() - _samples[-1][0] > FRESH_SECONDS:
        sample = usage()
        _samples[:] = [(time.monotonic(), sample)]
    return _samples[-1][1]


_thread_changes = 0


def note_thread_change() -> None:
    """Count one change of the number of threads that this process computes with."""
    global _thread_changes
    _thread_changes += 1


def thread_change_count() -> int:
    """Changes so far in this process. Results after one are equal to others but for their last bits."""
    return _thread_changes


def _by_load_average() -> CoreUsage | None:
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows; some sandboxes
        return None
    cores = len(available_cores()) or os.cpu_count() or 1
    return CoreUsage(cores=cores, others=round(min(load, float(cores)), 3), source="loadavg")
