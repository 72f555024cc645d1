"""Running and timing model files, in a process of their own that may die without harm."""

from mobilefit.runtime.worker import (
    Inspection,
    RuntimeCrash,
    StopRule,
    TimingSamples,
    Worker,
    available_cores,
    runtime_version,
)

__all__ = [
    "Inspection",
    "RuntimeCrash",
    "StopRule",
    "TimingSamples",
    "Worker",
    "available_cores",
    "runtime_version",
]
