"""How latency is measured, and what a measurement holds."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass
from typing import Any

from mobilefit.device.busy import BUSY
from mobilefit.runtime import StopRule, TimingSamples


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One thread on one pinned core, batch 1: the protocol of the MobileNetV3 paper (section 6.1.2)."""

    threads: int = 1
    core: int | None = None
    """Which core; ``None``: the last one available, which the system uses least."""
    rule: StopRule = StopRule()
    """Warm-up, and when there are enough runs."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """A measured latency, with all that it depends on."""

    p10_ms: float
    median_ms: float
    p90_ms: float
    runs: int
    stable: bool
    """Whether the median settled within the rule's time."""
    threads: int
    core: int | None
    device: str
    """See :func:`mobilefit.device.device_id`."""
    runtime: str
    date: str
    others: float | None = None
    """Share of the core's time, 0 to 1, that others took just before (:mod:`~.busy`); ``None``: not
    known."""
    governor: str | None = None
    """Of the core's frequency, where the system tells it."""
    rounds: int | None = None
    """How many rounds of runs, where the device tells the average of a round alone: a phone. The
    deciles and the median are then those of the averages."""

    @property
    def busy(self) -> bool:
        """Whether others kept the core so busy that the latency may show it."""
        return self.others is not None and self.others > BUSY

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, samples: TimingSamples, **conditions: Any) -> Latency:
        """Summarise timed runs, milliseconds each."""
        deciles = statistics.quantiles(samples, n=10, method="inclusive")
        return cls(
            p10_ms=deciles[0], median_ms=samples.median, p90_ms=deciles[8], runs=len(samples),
            stable=samples.stable, **conditions,
        )  # fmt: skip

    def __str__(self) -> str:
        return f"{self.median_ms:.3f} ms (p10 {self.p10_ms:.3f}, p90 {self.p90_ms:.3f})"
