"""What else this machine is doing: a busy core's latencies are not the network's own."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from mobilefit.cores import available_cores, core_ticks

BUSY = 0.1
"""The share of a core's time that others may take. More shows in the median, not in p90 alone."""
LOOK_SECONDS = 0.2
FRESH_SECONDS = 5.0
"""How long a look is good for."""
ROOT = Path("/")


@dataclass(frozen=True, kw_only=True)
class Load:
    """What others did on the core, and how the system runs it; ``None`` where it does not tell."""

    others: float | None
    """Share of its time, 0 to 1, or of its hyperthread sibling's if that is busier."""
    loadavg: float | None
    """Processes that wanted to run, mean of the last minute: for the record, it lags behind."""
    governor: str | None
    """Of the core's frequency, such as ``performance``."""

    @property
    def busy(self) -> bool:
        """Whether a latency would show it."""
        return self.others is not None and self.others > BUSY


def look(core: int | None, seconds: float = LOOK_SECONDS) -> Load:
    """Watch a core and its siblings, or all cores for ``None``, while this process does nothing."""
    before = core_ticks(ROOT)
    time.sleep(seconds)
    after = core_ticks(ROOT)
    shares = {n: _share(before[n], after[n]) for n in after.keys() & before.keys()}
    if core is None:
        mine = [shares[n] for n in available_cores() if n in shares]
        others = sum(mine) / len(mine) if mine else None
    else:
        others = max((shares[n] for n in _siblings(core) if n in shares), default=None)
    found = None if others is None else round(others, 3)
    return Load(others=found, loadavg=_loadavg(), governor=_governor(core))


_looks: dict[int | None, tuple[float, Load]] = {}


def recent(core: int | None) -> Load:
    """A look, or the last one where that is fresh."""
    then, _ = _looks.get(core, (float("-inf"), None))
    if time.monotonic() - then >= FRESH_SECONDS:
        _looks[core] = (time.monotonic(), look(core))
    return _looks[core][1]


def _share(before: tuple[int, int], after: tuple[int, int]) -> float:
    return (after[0] - before[0]) / max(1, after[1] - before[1])


def _siblings(core: int) -> set[int]:
    """The core itself and those that share its arithmetic units."""
    found = {core}
    text = _read(f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").strip()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _loadavg() -> float | None:
    words = _read("proc/loadavg").split()
    return float(words[0]) if words else None


def _governor(core: int | None) -> str | None:
    number = core if core is not None else min(available_cores(), default=0)
    return _read(f"sys/devices/system/cpu/cpu{number}/cpufreq/scaling_governor").strip() or None


def _read(path: str) -> str:
    try:
        return (ROOT / path).read_text()
    except OSError:
        return ""
