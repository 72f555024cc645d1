"""Running and timing model files, in a process of their own that may die without harm."""

from mobilefit.cores import available_cores
from mobilefit.runtime.engines import ENGINES, LITERT, Engine, engine, runtime_version
from mobilefit.runtime.results import Cost, Inspection, RuntimeCrash, StopRule, TimingSamples
from mobilefit.runtime.worker import Worker, check_pin, cost

__all__ = [
    "ENGINES",
    "LITERT",
    "Cost",
    "Engine",
    "Inspection",
    "RuntimeCrash",
    "StopRule",
    "TimingSamples",
    "Worker",
    "available_cores",
    "check_pin",
    "cost",
    "engine",
    "runtime_version",
]
