"""What running, timing and inspecting a file asks and answers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mobilefit.errors import InputError


class RuntimeCrash(InputError):
    """A runtime took its process down with a file, or hung on it; the next call starts anew."""


@dataclass(frozen=True, kw_only=True)
class StopRule:
    """When a timing has enough runs.

    A network is timed until the 95 % confidence interval of its median is narrower than ``spread``
    (relative to the median), within these limits.
    """

    warmup_runs: int = 3  # untimed runs first, at least so many,
    warmup_seconds: float = 0.05  # and for at least so long
    min_runs: int = 20
    max_runs: int = 2000
    min_seconds: float = 0.1  # sum of the timed runs
    max_seconds: float = 5.0  # wall clock per file, stable or not
    spread: float = 0.01


class TimingSamples(list[float]):
    """Milliseconds of each timed run, in order; ``stable``: was the rule met in time?"""

    def __init__(self, samples: Sequence[float], *, stable: bool) -> None:
        super().__init__(samples)
        self.stable = stable

    @property
    def median(self) -> float:
        return statistics.median(self)


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """How a runtime runs a file."""

    ops: tuple[str, ...]  # operators in execution order, as the file has them; LiteRT alone
    partitions: int  # XNNPACK delegate partitions; 1 when the whole file runs in one; LiteRT alone
    outside: tuple[str, ...]  # operators that no partition runs
    inputs: tuple[
        str, ...
    ]  # "input float32 [?, 96, 96, 3]"; ? is a length that the file leaves open
    outputs: tuple[str, ...]
    runtime: str  # "ai-edge-litert 2.3.0"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a file costs a fresh process besides the time of its runs."""

    load_ms: float  # from bytes to a network that is ready to run
    first_ms: float  # the first run
    idle_mib: float  # peak memory (VmHWM) with the runtime and the file's bytes there, not loaded;
    loaded_mib: float  # when it was loaded;
    peak_mib: float  # and after the runs. NaN where the system does not tell

    @property
    def memory_mib(self) -> float:
        """What loading and running added, MiB: activations, packed weights, scratch space."""
        return self.peak_mib - self.idle_mib
