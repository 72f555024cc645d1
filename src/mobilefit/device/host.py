"""Measuring on this machine."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from mobilefit.device.protocol import Latency, Protocol
from mobilefit.runs import machine, now, sha256
from mobilefit.runtime import Worker, available_cores, runtime_version


@functools.cache
def device_id() -> str:
    """Names what a latency depends on: the processor, its vector extensions, and the runtime."""
    facts = machine()
    flags = sha256(" ".join(facts["cpu_flags"]).encode())[:6]
    return f"{facts['cpu']} [{flags}], {runtime_version()}"


@functools.cache
def shared_worker() -> Worker:
    """The one child process that this process measures in; it ends with it."""
    return Worker()


def measure(
    blob: bytes, protocol: Protocol | None = None, *, worker: Worker | None = None
) -> Latency:
    """Measure a LiteRT file end to end.

    Raises:
        InputError: the file is damaged or does not load.
    """
    return measure_many([blob], protocol, worker=worker)[0]


def measure_many(
    blobs: Sequence[bytes], protocol: Protocol | None = None, *, worker: Worker | None = None
) -> list[Latency]:
    """Measure several files side by side, in turns, so that their ratios can be trusted."""
    protocol = protocol or Protocol()
    core = protocol.core
    if core is None and protocol.threads == 1:
        core = max(available_cores(), default=None)
    samples = (worker or shared_worker()).time_many(
        blobs, threads=protocol.threads, core=core, rule=protocol.rule
    )
    return [
        Latency.of(times, threads=protocol.threads, core=core, device=device_id(),
                   runtime=runtime_version(), date=now())
        for times in samples
    ]  # fmt: skip
