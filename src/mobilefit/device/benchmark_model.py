"""What TFLite's ``benchmark_model`` prints, as a value.

Its formats over the years, from TensorFlow's ``lite/tools/benchmark``: lines may have ``INFO: `` or
logcat's columns before them; the statistics of a run are ``count=50 first=... curr=... min=... max=...
avg=... std=...`` in microseconds, newer versions add ``p5=... median=... p95=...``, and equal times are
``count=50 curr=...(all same)``. The warm-up has such a line as well: the runs' line is the last one
before the profile, if there is one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

NUMBER = r"([\d.]+(?:e[+-]?\d+)?)"
STATISTICS = re.compile(r"\bcount=\d+ (?:first|curr)=.*")
PROFILE = "Operator-wise Profiling Info for Regular Benchmark Runs"
PARTITIONS = (
    re.compile(r"delegate \(TfLiteXNNPackDelegate\) node, yielding (\d+) partitions"),
    re.compile(r"executed by the delegate w/ (\d+) delegate kernels"),
)
WHOLE = "model graph will be completely executed by the delegate"
GENERIC_FAILURE = "Benchmarking failed."


@dataclass(frozen=True, kw_only=True)
class Op:
    """A line of the profile: an operator of the file, or of the delegate that runs it."""

    kind: str
    name: str
    ms: float
    """Average of a run."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """One run of ``benchmark_model``; what its version does not tell is ``None``."""

    runs: int
    average_ms: float
    least_ms: float
    most_ms: float
    p5_ms: float | None
    median_ms: float | None
    p95_ms: float | None
    init_ms: float | None
    """From the file to a network that is ready to run."""
    first_ms: float | None
    """The first run of all, in the warm-up."""
    memory_mib: float | None
    """Growth of the process from its start to its end."""
    partitions: int | None
    """Delegate partitions; 1 when the whole file runs in one."""
    ops: tuple[Op, ...]
    """In the order in which they run; empty without ``--enable_op_profiling``."""


def parse(text: str) -> Report:
    """Read what the tool printed.

    Raises:
        ValueError: there are no timings in it.
    """
    timings, _, profile = text.partition(PROFILE)
    timings = timings.partition("Profiling Info for Benchmark Initialization")[0]
    lines = STATISTICS.findall(timings)
    values = {key: float(value) for key, value in re.findall(rf"(\w+)={NUMBER}", lines[-1])} if lines else {}
    current = values.get("curr")
    if current is None or not values.get("count"):
        raise ValueError("no timings")
    times = {key: value / 1e3 for key, value in values.items()}
    return Report(
        runs=int(values["count"]), average_ms=times.get("avg", current / 1e3),
        least_ms=times.get("min", current / 1e3), most_ms=times.get("max", current / 1e3),
        p5_ms=times.get("p5"), median_ms=times.get("median"), p95_ms=times.get("p95"),
        init_ms=_number(rf"Initialized session in {NUMBER} ?ms", timings),
        first_ms=_first(timings),
        memory_mib=_number(rf"\(MB\): init={NUMBER} overall={NUMBER}", timings, group=2),
        partitions=_partitions(timings), ops=tuple(_ops(profile)),
    )  # fmt: skip


def failure(text: str) -> str:
    """The line that says why the tool failed: its last error, or else its last line.

    Its general farewell says nothing, and does not count.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if not line.endswith(GENERIC_FAILURE)]
    errors = [line for line in told if line.startswith("ERROR: ")]
    return (errors or told or [""])[-1].removeprefix("ERROR: ")


def _number(pattern: str, text: str, group: int = 1) -> float | None:
    found = re.search(pattern, text)
    return float(found[group]) if found else None


def _first(text: str) -> float | None:
    found = _number(rf"First inference: {NUMBER}", text)
    return None if found is None else found / 1e3


def _partitions(text: str) -> int | None:
    for pattern in PARTITIONS:
        if found := pattern.search(text):
            return int(found[1])
    return 1 if WHOLE in text else None


def _ops(profile: str) -> list[Op]:
    """The first table, in the order of execution; its columns are found by the header's names."""
    columns: list[str] | None = None
    ops = []
    for line in profile.splitlines()[1:]:
        cells = re.split(r"\s*\t\s*|\s{2,}", line.strip())
        if columns is None:
            columns = cells if "[node type]" in cells else None
        elif len(cells) == len(columns):
            row = dict(zip(columns, cells, strict=True))
            ops.append(Op(kind=row["[node type]"], name=row["[Name]"], ms=float(row["[avg ms]"])))
        elif ops:
            break
    return ops
