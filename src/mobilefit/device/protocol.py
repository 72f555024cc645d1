"""How latency is measured, and what a measurement holds."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass
from typing import Any

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
