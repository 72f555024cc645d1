"""What each operator of a LiteRT file takes, in its place.

LiteRT's Python interface tells no times of operators, so they are found by differences: the file is
cut behind its k-th operator and behind the next one, both are timed side by side, and what the second
takes longer is the operator's. That holds what it costs where it stands (caches, fusion with its
neighbours), which a run of the operator alone would not. A difference can come out below zero: noise,
or an operator that spares its predecessor the writing of its output.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mobilefit.device.host import chosen_core, shared_worker
from mobilefit.device.protocol import Protocol
from mobilefit.litert.graph import Graph, Tensor, parse, serialize
from mobilefit.progress import Progress
from mobilefit.runtime import StopRule, Worker

WINDOW = 12
"""Neighbours that are timed in one go; each is a network in memory."""
ROUNDS = 5
ROUND_RULE = StopRule(
    warmup_seconds=0.005, min_runs=5, min_seconds=0.02, max_seconds=0.06, spread=0.02
)


@dataclass(frozen=True, kw_only=True)
class OpTime:
    """An operator's time, milliseconds: median, least and most of the rounds."""

    op: str
    name: str
    """Of its first output."""
    ms: float
    least_ms: float
    most_ms: float

    @classmethod
    def of(cls, op: str, name: str, rounds: Sequence[float]) -> OpTime:
        """Summarise the differences of each round."""
        return cls(op=op, name=name, ms=statistics.median(rounds), least_ms=min(rounds),
                   most_ms=max(rounds))  # fmt: skip


def profile(
    blob: bytes,
    protocol: Protocol | None = None,
    *,
    rounds: int = ROUNDS,
    worker: Worker | None = None,
    label: str | None = None,
) -> list[OpTime]:
    """Time the operators of a LiteRT file in their order; the first one's holds the empty call too.

    Args:
        protocol: threads and core; each round has a short rule of its own.
        rounds: differences of each operator.
        label: for the progress; ``None``: show none.

    Raises:
        InputError: the file is damaged, does not load, or is of a form that cannot be cut.
    """
    protocol, worker = protocol or Protocol(), worker or shared_worker()
    graph = parse(blob)
    found: list[OpTime] = []
    with Progress(len(graph.ops), label, unit="operator") as progress:
        for first in range(0, len(graph.ops), WINDOW):
            ops = graph.ops[first : first + WINDOW]
            cuts = [serialize(g) for g in _prefixes(graph, max(first, 1), first + len(ops))]
            columns = _differences(cuts, protocol, rounds, worker, whole=first == 0)
            names = [op.outputs[0].name if op.outputs else "" for op in ops]
            found += [OpTime.of(op.name, n, c) for op, n, c in zip(ops, names, columns)]
            progress.update(len(ops))
    return found


def _prefixes(graph: Graph, first: int, last: int) -> Iterator[Graph]:
    """The graph cut behind its ``first``-th to ``last``-th operator; what is not read goes out."""
    for count in range(first, last + 1):
        ops = graph.ops[:count]
        read = {t for op in ops for t in op.inputs if t is not None}
        ends: list[Tensor] = [
            t for op in ops for t in op.outputs if t not in read or t in graph.outputs
        ]
        yield Graph(
            graph.inputs, ends, ops, input_names=graph.input_names,
            output_names=[f"output{i}" for i in range(len(ends))],
        )  # fmt: skip


def _differences(
    cuts: Sequence[bytes], protocol: Protocol, rounds: int, worker: Worker, *, whole: bool
) -> list[list[float]]:
    """For each operator, the differences of neighbours in each round.

    Args:
        whole: there is no cut before the first operator: its time is its cut's own.
    """
    core = chosen_core(protocol)
    rows = []
    for _ in range(rounds):
        timed = worker.time_many(cuts, threads=protocol.threads, core=core, rule=ROUND_RULE)
        medians = [samples.median for samples in timed]
        before = [0.0, *medians] if whole else medians
        rows.append([b - a for a, b in itertools.pairwise(before)])
    return [list(column) for column in zip(*rows, strict=True)]
