"""Which networks may enter the race: those of the family at the sizes that the budget allows.

How latency grows with the input's size is the device's business: an odd map at a stride of 2 costs
nearly what the next even one does (MobileNetV2 in int8: 72 px take 0.91 of 80 px, and 64 px 0.63).
So sizes are measured, never computed.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal

from mobilefit.arch import ClassifierHead, NetSpec
from mobilefit.nn.weights import rows
from mobilefit.parsing import check_fields

Origin = Literal["family", "head", "width", "shrunk", "searched"]
Measure = Callable[[Sequence[NetSpec]], list[float]]
"""Milliseconds of the int8 files of networks, measured side by side."""

SIZES = (
    32, 40, 48, 56, 64, 72, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256, 288, 320, 384,
    448, 512,
)  # fmt: skip
"""Sides of the network's input that are tried, pixels."""
SMALLEST_LIMIT = 64
"""Images smaller than this may be enlarged to it, pixels: networks with a total stride of 32 need a map."""
WIDTHS = (1.0, 0.75, 0.5, 0.35)
"""Width multipliers that are tried from scratch: the published ones up to 1 (V2 paper, Table 4)."""
HEAD_SHARES = (Fraction(1, 2), Fraction(1, 4))
"""Of a network's last layers: made for 1,000 classes, they are 14 to 17 % of MobileNetV2's int8 latency at
96 px, and an input size that is a little too slow may fit with fewer features."""
FEATURES_PER_CLASS = 8
"""Features of a reduced head, at least."""
HEAD_SAVES = 0.25
"""Part of the latency that a reduced head may save; a size further above the budget is not tried."""
MOST_SCRATCH = 8
"""Candidates from scratch that race."""
SCRATCH_FAMILY = ("mobilenet_v3_small", "mobilenet_v3_large", "mobilenet_v2", "efficientnet_lite0")
"""Networks that are tried from scratch, the most accurate at equal CPU time first: every width is a candidate.

MobileNetV4-Conv-S is not among them. It is ahead of all in the first steps and behind in the end: at width 0.5 it
keeps 83.7 % after five epochs of recipe ``fast`` (Fashion-MNIST, 48 px), MobileNetV3-Small at width 0.7 90.2 % after
three, at about the same latency."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A network at an input size, with its measured latency."""

    spec: NetSpec
    """For the data's classes, at its size."""
    latency_ms: float
    """Of its int8 file, median, at the machine's speed when the run began."""
    origin: Origin = "family"
    weights: str | None = None
    """Where pretrained weights come from, as ``--weights`` has it; ``None``: from scratch."""
    whole: NetSpec | None = None
    """The network that the weights are of, where this one is narrower."""

    @property
    def name(self) -> str:
        """Readable and unique in a run: ``mobilenet_v2 64 px``."""
        height, width = self.spec.image_shape
        size = f"{height}" if height == width else f"{height}x{width}"
        return f"{self.spec.name} {size} px"

    @property
    def slug(self) -> str:
        """The name as a file's."""
        return self.name.replace(" px", "").replace(" ", "_").replace("/", "_")


_SIZES = {
    "spec": dict, "weights": str | None, "sizes": tuple[int, ...], "origin": str, "whole": dict | None,
    "measured": tuple[tuple[int, float], ...],
}  # fmt: skip


@dataclass
class Sizes:
    """One network at several input sizes: measured ones, and guesses of the others."""

    spec: NetSpec
    weights: str | None
    sizes: tuple[int, ...]
    origin: Origin = "family"
    whole: NetSpec | None = None
    """See :class:`Candidate`."""
    measured: dict[int, float] = field(default_factory=dict)
    """Milliseconds by size."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "spec": self.spec.to_dict(), "weights": self.weights, "sizes": list(self.sizes), "origin": self.origin,
            "whole": None if self.whole is None else self.whole.to_dict(),
            "measured": [[size, ms] for size, ms in sorted(self.measured.items())],
        }  # fmt: skip

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], what: str = "sizes") -> Sizes:
        """The inverse of :meth:`to_dict`.

        Args:
            what: the value is called in an error.

        Raises:
            InputError: a field is missing or of another type.
        """
        check_fields(value, _SIZES, what)
        whole = value["whole"]
        return cls(
            spec=NetSpec.from_dict(value["spec"]), weights=value["weights"], sizes=tuple(value["sizes"]),
            origin=value["origin"], whole=None if whole is None else NetSpec.from_dict(whole),
            measured={int(size): ms for size, ms in value["measured"]},
        )  # fmt: skip

    def at(self, size: int) -> NetSpec:
        """The network at a size; an input that is not square keeps its form, in multiples of 32."""
        height, width = self.spec.image_shape
        if height == width:
            return self.spec.resolution(size)
        return self.spec.resolution(size, max(32, round(size * width / height / 32) * 32))

    def guess(self, size: int, ms_per_madd: float) -> float:
        """Milliseconds at a size, from the multiply-adds and what was measured of the nearest size."""
        if size in self.measured:
            return self.measured[size]
        madds = self.at(size).cost().madds
        if not self.measured:
            return ms_per_madd * madds
        nearest = min(self.measured, key=lambda other: abs(other - size))
        return self.measured[nearest] * madds / self.at(nearest).cost().madds

    def largest(self, budget_ms: float, ms_per_madd: float) -> int | None:
        """The largest size that is within a budget by what is known; ``None``: not even the smallest."""
        within = [size for size in self.sizes if self.guess(size, ms_per_madd) <= budget_ms]
        return max(within, default=None)


def sizes_for(short_side: int, resolution: int | None) -> tuple[int, ...]:
    """The input sizes to try for images of this short side (the median), in pixels.

    Args:
        resolution: the one size to try, whatever the images are.
    """
    if resolution is not None:
        return (resolution,)
    limit = max(short_side, SMALLEST_LIMIT)
    return SIZES[: bisect.bisect_right(SIZES, limit)]


def scratch_networks(family: Mapping[str, NetSpec], names: Iterable[str]) -> dict[str, NetSpec]:
    """Every network of these names at every width of :data:`WIDTHS`; by name."""
    networks = {}
    for name in names:
        if name in family:
            for multiplier in WIDTHS:
                spec = family[name] if multiplier == 1 else family[name].width(multiplier)
                networks[spec.name] = spec
    return networks


def measure_sizes(
    networks: Sequence[Sizes], budgets_ms: Sequence[float], measure: Measure, *, ms_per_madd: float,
    rounds: int = 6,
) -> None:  # fmt: skip
    """Measure every network around each budget: the largest size within it, and the next one above.

    The first guess is by multiply-adds; each round corrects it by what was measured, so that some two
    or three sizes of a network are compiled and timed.

    Args:
        networks: their ``measured`` is filled.
        measure: of several networks in one go.
        ms_per_madd: of a typical network, for the first guess.
        rounds: at most; where the first guess is three times off, some networks take four.
    """
    for _ in range(rounds):
        missing: list[tuple[Sizes, int]] = []
        for network in networks:
            around: set[int] = set()
            for budget_ms in budgets_ms:
                size = network.largest(budget_ms, ms_per_madd)
                index = -1 if size is None else network.sizes.index(size)
                around |= set(network.sizes[max(0, index) : index + 2])
            missing += [(network, size) for size in sorted(around) if size not in network.measured]
        if not missing:
            return
        latencies = measure([network.at(size) for network, size in missing])
        for (network, size), latency_ms in zip(missing, latencies, strict=True):
            network.measured[size] = latency_ms


def reduced_heads(
    networks: Sequence[Sizes], budgets_ms: Sequence[float], measure: Measure
) -> list[Sizes]:
    """Networks with fewer features at a size that is a little over a budget, measured, where one is then met.

    Args:
        networks: as :func:`measure_sizes` leaves them.
        measure: of several networks in one go.
    """
    tried: list[tuple[Sizes, int]] = []
    for network in networks:
        over = {
            min((size for size, ms in network.measured.items() if ms > budget_ms >= ms * (1 - HEAD_SAVES)), default=0)
            for budget_ms in budgets_ms
        } - {0}
        for spec in filter(None, (reduced_head(network.spec, share) for share in HEAD_SHARES if over)):
            variant = Sizes(
                spec=spec, weights=network.weights, sizes=network.sizes, origin="head", whole=network.spec
            )
            tried += [(variant, size) for size in sorted(over)]
    if not tried:
        return []
    latencies = measure([variant.at(size) for variant, size in tried])
    for (variant, size), latency_ms in zip(tried, latencies, strict=True):
        variant.measured[size] = latency_ms
    variants = list({id(variant): variant for variant, _ in tried}.values())
    return [v for v in variants if any(min(v.measured.values()) <= budget_ms for budget_ms in budgets_ms)]


def reduced_head(spec: NetSpec, share: Fraction) -> NetSpec | None:
    """A classifier with part of its last layers' widths, in multiples of 8.

    Returns:
        ``None``: it is no classifier, or that would be too few features for its classes.
    """
    head = spec.head
    if not isinstance(head, ClassifierHead) or spec.last is None:
        return None

    def part(width: int) -> int:
        return max(8, round(width * share / 8) * 8)

    features = part(head.hidden or spec.last.out)
    if features < FEATURES_PER_CLASS * head.num_classes:
        return None
    return replace(
        spec, name=f"{spec.name}_head{features}", last=replace(spec.last, out=part(spec.last.out)),
        head=head if head.hidden is None else replace(head, hidden=features),
    )  # fmt: skip


def within(networks: Sequence[Sizes], budget_ms: float) -> list[Candidate]:
    """Each network at its largest measured size within a budget, in the order of the networks."""
    candidates = []
    for network in networks:
        sizes = [size for size, ms in network.measured.items() if ms <= budget_ms]
        if sizes:
            candidates.append(_candidate(network, max(sizes)))
    return _widest_heads(candidates)


def _widest_heads(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Without the reduced heads that a wider one at the same size makes pointless."""
    widest: dict[tuple[NetSpec | None, tuple[int, int]], Candidate] = {}
    for candidate in candidates:
        key = candidate.whole, candidate.spec.image_shape
        best = widest.get(key)
        if best is None or candidate.spec.cost().params > best.spec.cost().params:
            widest[key] = candidate
    return [c for c in candidates if c.whole is None or widest[c.whole, c.spec.image_shape] is c]


def above(networks: Sequence[Sizes], budget_ms: float) -> list[Candidate]:
    """Each network at the smallest measured size that is over a budget: to be shrunk."""
    candidates = []
    for network in networks:
        sizes = [size for size, ms in network.measured.items() if ms > budget_ms]
        if sizes:
            candidates.append(_candidate(network, min(sizes)))
    return sorted(candidates, key=lambda candidate: candidate.latency_ms)


def _candidate(network: Sizes, size: int) -> Candidate:
    return Candidate(
        spec=network.at(size), latency_ms=network.measured[size], origin=network.origin,
        weights=network.weights, whole=network.whole,
    )  # fmt: skip


def spread(candidates: Sequence[Candidate], most: int = MOST_SCRATCH) -> list[Candidate]:
    """At most so many candidates: one of each family of widths in turn, its largest network first.

    At one latency the larger network of a family sees the smaller picture.

    Args:
        candidates: in the order of preference of their families.
    """
    families: dict[NetSpec, list[Candidate]] = {}
    for candidate in candidates:
        families.setdefault(rows(candidate.spec), []).append(candidate)
    for family in families.values():
        family.sort(key=lambda candidate: -candidate.spec.cost().params)
    turns = itertools.zip_longest(*families.values())
    return [candidate for turn in turns for candidate in turn if candidate is not None][:most]
