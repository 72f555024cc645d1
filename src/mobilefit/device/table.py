"""A lookup table of latency: predicts any network of a space from its measured rows.

The entry is a *row* of the spec (a whole block, the stem, the last convolution, the head) at its
width and feature map size, compiled to int8 and timed alone. A detector's or segmenter's head is one row
too: its maps are joined and resized to each other, so its parts' times would not add up. A network's
latency is then
``offset + scale * (sum of its rows - one empty call each)``, offset and scale fitted to a few
networks measured end to end. Entries are measured when first needed, and kept.

Whatever the table times, it times in turns with a small fixed reference network, and divides by how
much slower than at first the reference was: machines change their speed by 15 % for a second and
back, and so an entry of today fits one of yesterday.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mobilefit import int8, litert
from mobilefit.arch import Block, ClassifierHead, NetSpec, SSDLiteHead
from mobilefit.device.android import Phone
from mobilefit.device.host import device_id, shared_worker
from mobilefit.errors import InputError
from mobilefit.litert.graph import Graph, Tensor, parse, serialize
from mobilefit.nn import Network, build
from mobilefit.parsing import checked
from mobilefit.progress import Progress
from mobilefit.runs import machine, read_json, write_json
from mobilefit.runtime import StopRule, Worker, available_cores

FORMAT = 2
"""1: int8 files were arranged otherwise, and took longer."""
ENTRY_RULE = StopRule(
    warmup_seconds=0.01, min_runs=20, max_runs=5000, min_seconds=0.015, max_seconds=0.1, spread=0.02
)
NETWORK_RULE = StopRule(warmup_seconds=0.02, min_seconds=0.05, max_seconds=0.15, spread=0.01)
PASSES = 3
"""Measurements of a whole network, all networks in turns; the fastest counts. What else a machine
does slows a network down (by 15 %, for a second) more often than its small reference."""
FIT_WIDTHS = (0.35, 0.5, 0.75, 1.0)
"""Width multipliers of the networks that offset and scale are fitted to."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One row of a network, as the table knows it."""

    name: str
    """Its module: ``stem``, ``blocks.3``, ``last``, ``head``."""
    key: str
    """Everything that its latency depends on, as JSON."""
    shape: tuple[int, int, int, int]
    """Of its input, NCHW; of a head that takes several maps, the first."""


Map = tuple[int, int]
"""Height and width of a map, pixels."""


def units(spec: NetSpec) -> Iterator[Unit]:
    """The rows of a network, from input to output."""
    at, inputs = spec.image_shape, spec.in_channels
    rows: list[tuple[str, Any, int]] = [("stem", spec.stem, spec.stem.stride)]
    rows += [(f"blocks.{i}", b, b.stride) for i, b in enumerate(spec.blocks)]
    rows += [("last", spec.last, 1)] if spec.last is not None else []
    for name, row, stride in rows:
        fields = dataclasses.asdict(row)
        fields.pop("scaling", None)
        for later, default in (("dilation", 1), ("start_kernel", 0)):  # keys are older than these
            if fields.get(later) == default:
                del fields[later]
        if isinstance(row, Block) and not row.has_residual(inputs):
            fields["skip"] = "none"  # whatever it would have been
        yield _unit(name, {**fields, "kind": type(row).__name__, "padding": spec.padding}, inputs, at)
        at, inputs = (-(-at[0] // stride), -(-at[1] // stride)), row.out
    yield _head(spec, inputs, at)


def _head(spec: NetSpec, inputs: int, at: Map) -> Unit:
    """The head; of a backbone that ends in a map of ``inputs`` channels at that size."""
    head = dataclasses.asdict(spec.head)
    if isinstance(spec.head, ClassifierHead):
        kept = ("hidden", "act", "num_classes", *(["hidden_norm"] if head["hidden_norm"] else []))
        return _unit("head", {name: head[name] for name in kept}, inputs, at)
    cost = spec.cost()
    detects = isinstance(spec.head, SSDLiteHead)
    taps = head["taps"] if detects else [tap for tap in (head["tap"], head["skip"]) if tap is not None]
    layers = [cost.of(tap).layers[-1] for tap in taps]
    maps = [(layer.out, layer.out_size, layer.out_columns) for layer in layers]
    # The depthwise convolutions of stride 2 are padded; logits of pixels are resized to the image.
    outside: dict[str, Any] = {"padding": spec.padding} if detects else {"image": spec.image_shape}
    fields = {name: value for name, value in head.items() if name not in _NOT_TIMED}
    key = json.dumps({**fields, **outside, "kind": type(spec.head).__name__, "maps": maps}, sort_keys=True)
    return Unit(name="head", key=key, shape=(1, *maps[0]))


_NOT_TIMED = ("taps", "tap", "skip", "norm", "scoring", "gate_bias")
"""Of a head: where its maps come from, what is folded into weights, what comes behind its outputs."""


def _unit(name: str, fields: dict[str, Any], inputs: int, at: Map) -> Unit:
    size: dict[str, int] = {"size": at[0]} if at[0] == at[1] else {"size": at[0], "columns": at[1]}
    key = json.dumps({**fields, "inputs": inputs, **size}, sort_keys=True)
    return Unit(name=name, key=key, shape=(1, inputs, *at))


@dataclass(kw_only=True)
class LatencyTable:
    """Measured rows, and the fit that adds them up.

    Attributes:
        device: where it was measured; it predicts for no other.
        rows: milliseconds by :attr:`Unit.key`.
        offset: milliseconds.
        scale: without unit.
        frozen: measure nothing more; a row that is missing is an error.
        worker: measures, here or on a phone; this machine's shared one when left out.
        nominal: milliseconds of the ``reference`` network and of an ``empty`` call when the table
            was begun.
        file: the file of a network whose latency is predicted, weights made up; the int8 network alone
            when left out. What else it holds (operators behind the network's outputs) is in the offset.
    """

    device: str
    rows: dict[str, float] = field(default_factory=dict)
    offset: float = 0.0
    scale: float = 1.0
    frozen: bool = False
    worker: Worker | Phone | None = None
    nominal: dict[str, float] = field(default_factory=dict)
    file: Callable[[NetSpec], bytes] | None = None

    @classmethod
    def build(
        cls, spec: NetSpec, *, worker: Worker | Phone | None = None,
        file: Callable[[NetSpec], bytes] | None = None, label: str | None = None,
    ) -> LatencyTable:  # fmt: skip
        """A table for a network and its narrower relatives, fitted to where the worker measures.

        Args:
            label: what progress calls it; ``None``: none is shown.
        """
        table = cls(device=_device(worker), worker=worker, file=file)
        table.fit([spec.width(width) for width in FIT_WIDTHS], label)
        return table

    def predict(self, spec: NetSpec) -> float:
        """Milliseconds of a network, measuring the rows that are missing.

        Raises:
            InputError: a row is missing and the table is frozen.
        """
        return self.offset + self.scale * sum(self.row_times(spec).values())

    def row_times(self, spec: NetSpec) -> dict[str, float]:
        """Milliseconds of each row of a network, by name; not scaled by the fit."""
        self.ensure([spec])
        return {unit.name: self.rows[unit.key] for unit in units(spec)}

    def ensure(self, specs: Sequence[NetSpec], label: str | None = None) -> None:
        """Measure every row of the networks that is not there yet."""
        missing = {u.key: (u, spec) for spec in specs for u in units(spec) if u.key not in self.rows}
        if missing and self.frozen:
            raise InputError(
                f"the latency table lacks {next(iter(missing))}", "build it again for this network"
            )
        with Progress(len(missing), label, unit="row") as progress:
            for key, (unit, spec) in missing.items():
                self.rows[key] = self._time(unit, spec)
                progress.update(1)

    def fit(self, specs: Sequence[NetSpec], label: str | None = None) -> None:
        """Fit offset and scale, by least squares on the relative error, to measured networks."""
        self.ensure(specs, label)
        sums = [sum(self.row_times(spec).values()) for spec in specs]
        measured = self.measure(specs, label)
        weights = [1 / value**2 for value in measured]
        total = sum(weights)
        mean_x = sum(w * x for w, x in zip(weights, sums)) / total
        mean_y = sum(w * y for w, y in zip(weights, measured)) / total
        spread = sum(w * (x - mean_x) ** 2 for w, x in zip(weights, sums))
        shared = sum(w * (x - mean_x) * (y - mean_y) for w, x, y in zip(weights, sums, measured))
        self.scale = shared / spread if spread > 0 else 1.0
        self.offset = mean_y - self.scale * mean_x

    def check(self, specs: Sequence[NetSpec], label: str | None = None) -> TableCheck:
        """Compare predictions with end-to-end measurements of the networks (:meth:`measure`)."""
        self.ensure(specs, label)
        measured = self.measure(specs, label)
        return TableCheck(pairs=tuple((self.predict(s), ms) for s, ms in zip(specs, measured)))

    def measure(self, specs: Sequence[NetSpec], label: str | None = None) -> list[float]:
        """Milliseconds of whole networks, at the speed that the machine had for the rows."""
        blobs = [(self.file or _whole)(spec) for spec in specs]
        times: list[list[tuple[float, float]]] = [[] for _ in specs]
        with Progress(len(specs) * PASSES, label, unit="measurement") as progress:
            for _ in range(PASSES):
                for blob, mine in zip(blobs, times):
                    mine.append(self._beside_reference(blob, NETWORK_RULE))
                    progress.update(1)
        return [min(mine)[1] for mine in times]

    def save(self, path: Path) -> None:
        """Write the table with its provenance."""
        write_json(path, {"format": FORMAT, "device": self.device, "offset": self.offset,
                          "scale": self.scale, "nominal": self.nominal, "machine": machine(),
                          "rows": self.rows})  # fmt: skip

    @classmethod
    def load(
        cls, path: Path, *, worker: Worker | Phone | None = None,
        file: Callable[[NetSpec], bytes] | None = None,
    ) -> LatencyTable:  # fmt: skip
        """Read a table that was measured where the worker measures.

        Raises:
            InputError: it is missing or damaged, or comes from another device (names both).
        """
        value = read_json(path)
        try:
            if value["format"] != FORMAT:
                raise InputError(f"{path} has the unknown format {value['format']}", "build it again")
            rows, nominal = (
                {key: checked(float, ms, name, f"{path}: {name}[{key!a}]") for key, ms in value[name].items()}
                for name in ("rows", "nominal")
            )
            offset, scale = (checked(float, value[name], name, f"{path}: {name}") for name in ("offset", "scale"))
            table = cls(device=str(value["device"]), rows=rows, offset=offset, scale=scale, nominal=nominal,
                        worker=worker, file=file)  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is not a latency table: {error!r}", "build it again") from error
        if table.device != _device(worker):
            raise InputError(
                f"{path} was measured on '{table.device}', this is '{_device(worker)}'",
                "build a table on this device",
            )
        return table

    def _time(self, unit: Unit, spec: NetSpec) -> float:
        """Milliseconds of a row beyond an empty call."""
        _, row = self._beside_reference(_alone(unit, spec), ENTRY_RULE)
        return max(0.0, row - self.nominal["empty"])

    def _beside_reference(self, blob: bytes, rule: StopRule) -> tuple[float, float]:
        """Milliseconds of a file: as they are, and corrected for the machine's present speed."""
        if not self.nominal:
            times = [self._times(ENTRY_RULE, _reference(), _empty()) for _ in range(5)]
            reference, empty = (min(column) for column in zip(*times))
            self.nominal = {"reference": reference, "empty": empty}
        time, reference = self._times(rule, blob, _reference())
        return time, time * self.nominal["reference"] / reference

    def _times(self, rule: StopRule, *blobs: bytes) -> list[float]:
        worker = self.worker or shared_worker()
        if isinstance(worker, Phone):
            core: int | None = worker.core
        else:
            core = max(available_cores(), default=None)
        return [times.median for times in worker.time_many(blobs, core=core, rule=rule)]


@dataclass(frozen=True, kw_only=True)
class TableCheck:
    """How well a table predicts: pairs of predicted and measured milliseconds."""

    pairs: tuple[tuple[float, float], ...]

    @property
    def median_error(self) -> float:
        """Median of |predicted - measured| / measured."""
        return statistics.median(abs(p - m) / m for p, m in self.pairs)

    @property
    def kendall_tau(self) -> float:
        """Rank correlation of predicted and measured: see :func:`kendall_tau`."""
        return kendall_tau(self.pairs)


def kendall_tau(pairs: Sequence[tuple[float, float]]) -> float:
    """Rank correlation of two or more pairs, tau-a: 1 when the order is the same throughout."""
    score = sum(_sign((a[0] - b[0]) * (a[1] - b[1])) for i, a in enumerate(pairs) for b in pairs[:i])
    return score / (len(pairs) * (len(pairs) - 1) / 2)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _device(worker: Worker | Phone | None) -> str:
    """What a worker's figures depend on."""
    return worker.device_id if isinstance(worker, Phone) else device_id()


@functools.lru_cache(maxsize=1)
def _network(spec: NetSpec) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(spec).eval()


def _compiled(spec: NetSpec) -> bytes:
    return litert.compile(_network(spec), (1, spec.in_channels, *spec.image_shape))


def _whole(spec: NetSpec) -> bytes:
    """The int8 file of a network."""
    return int8.with_random_ranges(_compiled(spec))


def _alone(unit: Unit, spec: NetSpec) -> bytes:
    """The int8 file of one of a network's rows."""
    if unit.name != "head":
        return _int8(_network(spec).layer(unit.name), unit.shape)
    if isinstance(spec.head, ClassifierHead):
        return _int8(_network(spec).head, unit.shape)
    return int8.with_random_ranges(_cut(_compiled(spec)), edges="int8")


def _cut(blob: bytes) -> bytes:
    """The head of a compiled network: its operators, on the maps that they take from the backbone."""
    graph = parse(blob)
    ops = [op for op in graph.ops if op.output.name.startswith("head")]
    made = {tensor for op in ops for tensor in op.outputs}
    read = [t for op in ops for t in op.inputs if t is not None and t.data is None and t not in made]
    maps: list[Tensor] = list(dict.fromkeys(read))
    names = [f"map_{index}" for index, _ in enumerate(maps)]
    return serialize(Graph(maps, graph.outputs, ops, {}, names, graph.output_names))


def _int8(module: nn.Module, shape: tuple[int, int, int, int]) -> bytes:
    return int8.with_random_ranges(litert.compile(module.eval(), shape), edges="int8")


@functools.cache
def _reference() -> bytes:
    """A small network that everything is timed beside."""
    return _int8(nn.Conv2d(64, 64, 1), (1, 64, 14, 14))


@functools.cache
def _empty() -> bytes:
    """A network that does almost nothing: what a call costs."""
    return _int8(nn.Conv2d(8, 8, 1), (1, 8, 1, 1))
