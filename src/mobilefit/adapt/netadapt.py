"""NetAdapt, as the MobileNetV3 paper changed it (section 4.2; original: arXiv 1804.03230).

From a trained seed network, step by step: every proposal cuts the latency by at least delta (less
where less is left to the target) and is tuned for a few steps from the previous step's weights; the one
with the best trade of accuracy for latency is taken; until the target is met. The result is a *spec*:
the paper then trains it from scratch. Where few groups can cut a large delta alone, proposals cut a part
of it, and the best ones are taken together, if they are together what they are one by one.

All proposals of a step are tuned on the same batches and judged on the same held-out images: what differs
between two of them is then what they are. (With batches of their own the accuracy of one and the same proposal
spread by 1.2 points between seeds, while most of a step's lie within 0.1.) The log keeps how each one's mean loss
differs from that of the network before the step, with the standard error of that paired difference, and how many
others the winner could not be told from.

Everything is logged to ``netadapt.jsonl``; a run that was cut off anywhere, also in the middle of
a step, goes on from there and takes the same steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from mobilefit.adapt.judgement import Judgement
from mobilefit.adapt.proposals import KINDS, Kind, Proposal, groups, propose
from mobilefit.adapt.steps import TOP1, Adapted, StepRun, Tools
from mobilefit.errors import InputError, unknown
from mobilefit.nn import Network, save_weights
from mobilefit.train.statistics import paired

LOG = "netadapt.jsonl"
Tried = tuple[Proposal, dict[str, Any]]
"""A proposal, and its row in the log."""
Rule = Literal["ratio", "accuracy", "cautious"]

USUAL, LEAST = 0.01, 0.001
"""Cuts, as parts of the seed's latency: a larger one than the paper's is halved until half of the groups can
make it; one that none can make, until it is not worth a step."""


@dataclass(frozen=True, kw_only=True)
class AdaptSettings:
    """How NetAdapt proceeds."""

    target_ms: float
    """Stop at or under this latency."""
    margin: float = 0.0
    """The estimate must come under the target by this part of it; the measurement need not."""
    delta: float = 0.01
    """Least latency cut of a step, as a part of the seed's latency (V3 paper: 0.01), and of every proposal.
    Where fewer than half of the groups can make it alone, their cut is halved, while it is above the paper's, and a
    step takes the best of them together."""
    decay: float = 1.0
    """Factor on delta after each step (NetAdapt's code: 0.96; V3 paper: none)."""
    rule: Rule = "ratio"
    """Which proposal wins: see :meth:`score`."""
    kinds: tuple[Kind, ...] | None = None
    """What may shrink: see :func:`~.proposals.groups` and :func:`~.proposals.removable`; ``None``: what is usual for
    the network, :func:`~.proposals.usual_kinds`."""

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise InputError("bad NetAdapt settings: " + "; ".join(problems))

    def score(self, change: float, saved_ms: float, error: float) -> float:
        """A proposal's score by the rule; the largest wins.

        - ``ratio``: accuracy change per millisecond saved (V3 paper, section 4.2: it maximises
          dAcc / abs(dLatency)). The paper's dAcc is of the accuracy, so this one is too, not of the loss.
          Where accuracy rises, it favours the smallest cut.
        - ``accuracy``: accuracy change alone, whatever is saved (NetAdapt, arXiv 1804.03230).
        - ``cautious``: ``ratio`` after one standard error of the accuracy is taken off the change, so that it stays
          a loss unless the gain is real (not from a paper). Where changes are smaller than the error it
          comes near to favouring the largest cut.

        Args:
            change: of the accuracy, 0 to 1, usually negative.
            saved_ms: milliseconds, above 0.
            error: standard error of the accuracy before the step.
        """
        if self.rule == "accuracy":
            return change
        return (change - error if self.rule == "cautious" else change) / saved_ms


def _problems(settings: AdaptSettings) -> Iterator[str]:
    if not settings.target_ms > 0:
        yield f"target_ms is {settings.target_ms}, must be above 0"
    if not 0 <= settings.margin < 1:
        yield f"margin is {settings.margin}, must be from 0 to below 1"
    for name in ("delta", "decay"):
        if not 0 < getattr(settings, name) <= 1:
            yield f"{name} is {getattr(settings, name)}, must be above 0 and at most 1"
    if settings.rule not in get_args(Rule):
        yield str(unknown("rule", settings.rule, get_args(Rule)))
    for kind in settings.kinds or ():
        if kind not in KINDS:
            yield str(unknown("kind", kind, KINDS))


def adapt(
    seed_network: Network, settings: AdaptSettings, tools: Tools, out: Path, *, seed: int = 0,
    say: Callable[[str], None] = lambda line: None, label: str | None = None,
) -> Adapted:  # fmt: skip
    """Shrink a trained network to a latency.

    Args:
        seed_network: trained; not changed.
        out: folder for the log and the weights of the steps; what is there is taken up.
        seed: of the fine-tunings.
        say: takes a line of progress after every proposal.
        label: what the search for proposals is called while it measures; ``None``: no progress is shown.

    Raises:
        InputError: no proposal meets the next cut: the target is out of reach, and the message says
            what was reached.
    """
    run = _Run(seed_network, settings, tools, out, seed, say, label)
    run.start()
    while not run.done():
        run.step_once()
    return run.adapted()


class _Run(StepRun):
    def __init__(
        self, network: Network, settings: AdaptSettings, tools: Tools, out: Path, seed: int,
        say: Callable[[str], None], label: str | None,
    ) -> None:  # fmt: skip
        super().__init__(network, settings.target_ms, settings.margin, tools, out, LOG, seed)
        self.settings, self.say, self.label = settings, say, label

    def step_once(self) -> None:
        """Try every proposal, accept the best."""
        step = self.accepted["step"] + 1
        proposals = self._planned(step) or self._plan(step)
        done = self._judged(step)
        for row in done.values():  # of an earlier run, perhaps by another rule
            row["score"] = self._score(row["accuracy"], row["latency_ms"])
        for number, proposal in enumerate(proposals):
            if proposal.spec.id not in done:
                done[proposal.spec.id] = self._try(proposal, step, number, len(proposals), done)
        rows = [done[proposal.spec.id] for proposal in proposals]
        self._choose(proposals, rows, step)

    def _plan(self, step: int) -> list[Proposal]:
        cut = self._cut(step)
        each, proposals = self._within_reach(cut)
        if not proposals:
            raise InputError(
                f"no proposal cuts another {cut:.4f} ms: NetAdapt ends at "
                f"{self.accepted['measured_ms']:.3f} ms, the target is {self.settings.target_ms:.3f} ms",
                "raise --latency, lower --resolution, or start from a smaller seed network",
            )
        widths = [{"group": p.group, "width": p.width, "latency_ms": p.latency_ms} for p in proposals]
        self._log({"event": "plan", "step": step, "cut_ms": cut, "each_ms": each, "proposals": widths})
        return proposals

    def _within_reach(self, cut: float) -> tuple[float, list[Proposal]]:
        """A cut and the proposals that make it: where few groups can, of half the cut, and so on.

        A cut that only one or two groups can make takes most of what they have, whatever that is worth.
        """
        spec, kinds, whole = self.network.spec, self.settings.kinds, float(self.origin["latency_ms"])
        enough = len(groups(spec, kinds)) / 2

        def making(cut: float) -> list[Proposal]:
            return propose(spec, self.accepted["latency_ms"] - cut, self.tools.latency, kinds, label=self.label)

        found = making(cut)
        while sum(proposal.width > 0 for proposal in found) < enough and cut > (USUAL if found else LEAST) * whole:
            cut /= 2
            found = making(cut)
        return cut, found

    def _planned(self, step: int) -> list[Proposal]:
        """The proposals of a step that was cut off: measuring anew might give others."""
        return [
            Proposal.of(
                self.network.spec, *self._planned_change(entry, entry.get("group"), entry.get("width")), entry["latency_ms"]
            )
            for plan in self._logged("plan", step) for entry in plan["proposals"]
        ]  # fmt: skip

    def _try(
        self, proposal: Proposal, step: int, number: int, count: int, done: dict[str, Any]
    ) -> dict[str, Any]:
        began = time.monotonic()
        candidate, judgement = self._tuned(proposal, step)
        row = self._scored("proposal", proposal, step, judgement)
        if all(self._rank(row) > self._rank(other) for other in done.values()):
            save_weights(candidate, self._weights(step))
        self.losses.save(step, proposal.spec.id, judgement.losses)  # before its row: a logged proposal has them
        self._log(row)
        seconds = time.monotonic() - began
        left = self._steps_left() * count * seconds - number * seconds
        quality = "" if self.tools.quality == TOP1 else f" {self.tools.quality}"
        self.say(
            f"NetAdapt step {step}, {number + 1}/{count}: {proposal.what}, "
            f"{proposal.latency_ms:.3f} ms, {judgement.score:.1%}{quality}; about {max(left, 0) / 60:.1f} min left"
        )
        return row

    def _scored(self, event: str, proposal: Proposal, step: int, judgement: Judgement) -> dict[str, Any]:
        score = self._score(judgement.score, proposal.latency_ms)
        return {**self._row(event, proposal, step, judgement), "score": score}

    def _cut(self, step: int) -> float:
        """What a step is to cut, milliseconds."""
        least = self.settings.delta * self.origin["latency_ms"] * self.settings.decay ** (step - 1)
        return float(min(least, self._over()))

    def _steps_left(self) -> float:
        return max(1.0, self._over() / (1.3 * self.settings.delta * float(self.origin["latency_ms"])))

    def _score(self, accuracy: float, latency_ms: float) -> float:
        """See :meth:`AdaptSettings.score`."""
        change = accuracy - float(self.accepted["accuracy"])
        return self.settings.score(change, float(self.accepted["latency_ms"]) - latency_ms, self._error())

    def _error(self) -> float:
        """Standard error of the accuracy before the step.

        It is that of a share of images: of a mean of numbers from 0 to 1, as other tasks' scores are, it is
        the most that it can be.
        """
        before = float(self.accepted["accuracy"])
        return math.sqrt(max(before * (1 - before), 1e-4) / self.tools.images)

    def _rank(self, row: dict[str, Any]) -> tuple[float, float]:
        """What proposals are ordered by: the score, and the mean loss where scores are equal.

        On some hundred images many accuracies are; losses hardly ever.
        """
        saved = 1.0 if self.settings.rule == "accuracy" else self.accepted["latency_ms"] - row["latency_ms"]
        return row["score"], -row["loss_change"] / saved

    def _choose(self, proposals: list[Proposal], rows: list[dict[str, Any]], step: int) -> None:
        ranked = sorted(zip(proposals, rows, strict=True), key=lambda pair: self._rank(pair[1]), reverse=True)
        proposal, row = self._together(ranked, step)
        undecided = self._undecided([row for _, row in ranked], step)
        self._accept(self._best(proposal, step), {**row, **undecided})

    def _together(self, ranked: list[Tried], step: int) -> tuple[Proposal, dict[str, Any]]:
        """The best proposal; where it cuts less than the step is to, with the next best ones.

        Together they are tuned and judged as one network: small losses need not add up. While their joint loss is
        above the sum of what each lost alone by more than its standard error, the worst of them is left out.

        Args:
            ranked: the best first.
        """
        members = self._members(ranked, step)
        while len(members) > 1:
            joint = self._combined([proposal for proposal, _ in members])
            row = self._joint_row(joint, members, step)
            if row["holds"]:
                return joint, row
            members.pop()
        return members[0]

    def _members(self, ranked: list[Tried], step: int) -> list[Tried]:
        """As many of the best proposals as make the step's cut together."""
        ceiling = self.accepted["latency_ms"] - self._cut(step)
        members = [ranked[0]]
        joint = ranked[0][0]
        for proposal, row in ranked[1:]:
            if joint.latency_ms <= ceiling:
                break
            both = joint.with_also(proposal, self.tools.latency)
            if both is not None:
                members.append((proposal, row))
                joint = both
        return members

    def _combined(self, members: list[Proposal]) -> Proposal:
        """Several proposals as one."""
        joint = members[0]
        for other in members[1:]:
            both = joint.with_also(other, self.tools.latency)
            assert both is not None, "these were put together before"
            joint = both
        return joint

    def _joint_row(self, joint: Proposal, members: list[Tried], step: int) -> dict[str, Any]:
        """Judge proposals together, or take up what the log says of them; whether they are worth it."""
        for row in self._logged("joint", step):
            if row["spec_id"] == joint.spec.id:
                return {**row, "score": self._score(row["accuracy"], row["latency_ms"])}
        network, judgement = self._tuned(joint, step)
        before = self._before_step(step).losses.astype(np.float64)
        alone = [self.losses.load(step, row["spec_id"]) - before for _, row in members]
        foretold = np.sum(alone, axis=0)
        excess = paired(judgement.losses - before, foretold)
        error = self._error() if math.isnan(excess.error) else excess.error
        row = {
            **self._scored("joint", joint, step, judgement), "foretold": float(foretold.mean()),
            "excess": excess.mean, "excess_error": error, "holds": excess.mean <= error,
        }  # fmt: skip
        if row["holds"]:
            save_weights(network, self._weights(step))
        self._log(row)
        return row
