"""Measuring on this machine."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from mobilefit.device import busy
from mobilefit.device.protocol import Latency, Protocol
from mobilefit.runs import machine, now, sha256
from mobilefit.runtime import LITERT, Worker, available_cores, runtime_version


@functools.cache
def device_id(runtime: str = LITERT) -> str:
    """Names what a latency depends on: the processor, its vector extensions, and the runtime."""
    facts = machine()
    flags = sha256(" ".join(facts["cpu_flags"]).encode())[:6]
    return f"{facts['cpu']} [{flags}], {runtime_version(runtime)}"


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
    blobs: Sequence[bytes],
    protocol: Protocol | None = None,
    *,
    worker: Worker | None = None,
    runtimes: Sequence[str] | None = None,
) -> list[Latency]:
    """Measure several files side by side, in turns, so that their ratios can be trusted.

    Args:
        runtimes: the name of each file's, all by LiteRT when left out; see ``mobilefit.runtime``.

    Raises:
        InputError: a file is damaged or does not load, or a runtime is not installed.
    """
    protocol = protocol or Protocol()
    core = chosen_core(protocol)
    load = busy.recent(core)
    names = list(runtimes or [LITERT] * len(blobs))
    # A worker that knows LiteRT alone need not take runtimes.
    more = {"runtimes": names} if set(names) - {LITERT} else {}
    samples = (worker or shared_worker()).time_many(
        blobs, threads=protocol.threads, core=core, rule=protocol.rule, **more
    )
    return [
        Latency.of(times, threads=protocol.threads, core=core, device=device_id(name),
                   runtime=runtime_version(name), date=now(), others=load.others,
                   governor=load.governor)
        for times, name in zip(samples, names, strict=True)
    ]  # fmt: skip


def chosen_core(protocol: Protocol) -> int | None:
    """The core that a measurement is pinned to; several threads are not pinned."""
    if protocol.core is None and protocol.threads == 1:
        return max(available_cores(), default=None)
    return protocol.core
