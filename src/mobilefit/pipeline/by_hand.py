"""Networks scaled to a budget by resolution and width: what a user could do by hand, and what lies between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from mobilefit.arch import NetSpec
from mobilefit.jobs.lab import Trained
from mobilefit.nn.weights import rows
from mobilefit.pipeline import candidates as networks_at
from mobilefit.pipeline.candidates import SIZES, Candidate, Sizes
from mobilefit.pipeline.design_run import DesignRun
from mobilefit.pipeline.initial_weights import covers

STANDING = ("resolution", "width")
"""Kinds of what stands beside the winner, the one that is harder to beat first: the last is the first to be left out."""
WIDEST = 150
"""Percent: the largest width multiplier that is compared with."""
WIDTHS_AROUND = 4
"""Width multipliers, in hundredths, that are measured on either side of the best guess."""


class ByHand:
    """The networks that a user would scale by hand to one budget, and what is made of them.

    Args:
        design: what the budgets share.
        aim_ms: the latency that a network may have.
        stage: a stage of the budget's run, done once.
    """

    def __init__(
        self, design: DesignRun, aim_ms: float, stage: Callable[[str, Callable[[], Any], Any], Any]
    ) -> None:
        self.design, self.aim_ms, self.stage = design, aim_ms, stage

    def kind_of(self, candidate: Candidate, larger: Trained | None) -> str:
        """What a candidate is called in the record: ``resolution`` or ``width`` if a user could make it by hand."""
        if larger is not None:
            if candidate.origin != "head" and covers(larger.network.spec, candidate.spec):
                if same_widths(candidate.spec, larger.network.spec):
                    return "resolution"
                return "width" if candidate.spec.image_shape == larger.network.spec.image_shape else "candidate"
            return "candidate"
        full, _ = self.full_network(candidate, None)
        if candidate.origin == "family" and candidate.spec != full:
            if same_widths(candidate.spec, full):
                return "resolution"
            if candidate.spec.image_shape == full.image_shape:
                return "width"
        fixed = self.design.config.named is not None and self.design.config.resolution is not None
        return "seed" if fixed else "candidate"

    def full_network(self, candidate: Candidate, larger: Trained | None) -> tuple[NetSpec, Sizes]:
        """The network that a user would scale by hand in a candidate's place, and it at the smaller sizes.

        It is the larger network, or without one the candidate's family at its full width and size. Beside a searched
        network it is the hand-made one that the search is to beat.
        """
        c = self.design
        family = [network for network in c.networks if network.origin == "family"]
        if larger is not None and larger.label != "searched":
            full = larger.network.spec
            base = next((n for n in family if same_widths(n.spec, full)), Sizes(spec=full, weights=None, sizes=()))
        else:
            hand_made = Sizes(spec=c.reference, weights=None, sizes=(c.reference.image_shape[0],))
            relatives = [n for n in family if larger is None and rows(n.spec) == rows(candidate.spec)]
            base = max(relatives, key=lambda network: network.spec.cost().params, default=hand_made)
            full = base.at(max(base.sizes))
        sizes = tuple(size for size in SIZES if size < full.image_shape[0])
        measured = {size: base.measured[size] for size in sizes if size in base.measured}
        return full, replace(base, sizes=sizes, measured=measured)

    def lower_resolution(self, smaller: Sizes, winner: Candidate) -> Candidate | None:
        """The largest of the smaller sizes that is within the budget; ``None``: none is.

        What was not measured yet is measured now.
        """

        def measured_sizes() -> dict[str, Any]:
            ms_per_madd = winner.latency_ms / winner.spec.cost().madds
            measure = partial(self.measured_beside, winner)
            networks_at.measure_sizes([smaller], [self.aim_ms], measure, ms_per_madd=ms_per_madd)
            return smaller.to_dict()

        sizes = Sizes.from_dict(self.stage("resolution", measured_sizes, dict), f"{self.design.run.path}: resolution")
        return next(iter(networks_at.within([sizes], self.aim_ms)), None)

    def scaled_width(self, full: NetSpec, weights: str | None, winner: Candidate) -> Candidate:
        """The widest network within the budget by the width multiplier, at its full size.

        It may be slower than the winner: by hand a user would take all of the budget too. A larger network above the
        reference's size is scaled at that: it is larger to teach, and by the width alone nothing would be left of it.

        Args:
            weights: of the full network, where pretrained ones serve it.
        """
        if full.image_shape[0] > self.design.reference.image_shape[0]:
            full = full.resolution(*self.design.reference.image_shape)
        stage = f"width at {full.image_shape[0]} px"
        width = self.stage(stage, lambda: self.widest_within(full, winner), {"spec": dict, "latency_ms": float})
        spec = NetSpec.from_dict(width["spec"])
        return Candidate(
            spec=spec, latency_ms=width["latency_ms"], origin="width", weights=weights if covers(full, spec) else None,
            whole=full,
        )  # fmt: skip

    def narrowed(self, best: Candidate, larger: Trained) -> list[Candidate]:
        """Networks with more pixels than the largest size within the budget, and as few channels as that takes.

        At the larger network's size, the reference's at most, and half-way to it; each begins with that network's strongest channels. At one
        latency SSDLite on MobileNetV2 reached 30, 42, 48 and 55 % mAP@0.5 at 96, 112, 144 and 160 px (BCCD, 20 epochs).
        """
        full, base = self.full_network(best, larger)
        most = min(full.image_shape[0], self.design.reference.image_shape[0])
        sizes = [size for size in SIZES if best.spec.image_shape[0] < size <= most]
        tried = sorted({sizes[(len(sizes) - 1) // 2], sizes[-1]}) if sizes else []
        networks = [full.resolution(*base.at(size).image_shape) for size in tried]
        return [self.scaled_width(network, base.weights, best) for network in networks]

    def widest_within(self, full: NetSpec, winner: Candidate) -> dict[str, Any]:
        """A network scaled in width to the budget, and its latency at the speed that the machine had at the start."""
        low, high = 5, WIDEST  # percent; within the budget below, over it above
        while high - low > 1:
            middle = (low + high) // 2
            within = self.measured_beside(winner, [full.width(middle / 100)])[0] <= self.aim_ms
            low, high = (middle, high) if within else (low, middle)
        around = range(max(5, low - WIDTHS_AROUND), min(WIDEST, low + WIDTHS_AROUND) + 1)
        near = list({s.id: s for s in (full.width(w / 100) for w in around)}.values())
        latencies = self.measured_beside(winner, near)
        # The widest one that no narrower one contradicts, judged again: of noisy latencies the least would win, and what
        # is over the budget at the end was trained in vain.
        over = next((i for i, latency_ms in enumerate(latencies) if latency_ms > self.aim_ms), len(near))
        best = max(0, over - 1)
        while best > 0 and self.design.judged_latency(near[best]) > self.aim_ms:
            best -= 1
        return {"spec": near[best].to_dict(), "latency_ms": latencies[best]}

    def measured_beside(self, winner: Candidate, specs: Sequence[NetSpec]) -> list[float]:
        """Latencies at the speed that the machine had when the winner was measured: it is measured again beside them."""
        own, *latencies = self.design.measure([winner.spec, *specs])
        return [latency_ms * winner.latency_ms / own for latency_ms in latencies]


def same_widths(spec: NetSpec, other: NetSpec) -> bool:
    """Whether two networks differ in resolution alone, or in what comes with pretrained weights."""
    return replace(other, name="", input_size=spec.input_size, input_width=spec.input_width) == replace(
        spec, name="", padding=other.padding, norm=other.norm
    )
