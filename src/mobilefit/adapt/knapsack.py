"""Shrinking by a knapsack: the widths and blocks that save the latency at the least loss foretold, chosen at once.

Each round has a part of the latency to save. One pass over training images gives the gates (:mod:`.importance`),
which foretell what each width and each residual block is worth; the lookup table says what each saves; a multiple-choice
knapsack takes one option of every group (HALP, arXiv 2110.10811; with whole blocks MDP, arXiv 2406.12079). A block's
options are to be left out or to have one of some expansion widths. Savings are those of one change alone; blocks,
bottlenecks and expansions share rows, so the knapsack is asked for more, or less, until the table's latency of the
whole allocation is what it is to be.

Gates are slopes. They foretell small cuts, and add up too optimistically for deep ones, bottlenecks and many blocks
above all. Hence a group at most halves in a round; every round ends with fine-tuning; each group at its narrowest and
each block is once left out, and its loss measured with new batch norm statistics; and several allocations, by prices that
are made in several ways (:class:`Prices`), are compared by their held-out loss before one is tuned.

Everything is logged to ``knapsack.jsonl``: see :mod:`.steps`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from mobilefit.adapt.importance import Gates
from mobilefit.adapt.proposals import KINDS, STEP, Group, Kind, Proposal, groups, removable
from mobilefit.adapt.steps import TOP1, Adapted, StepRun, Tools
from mobilefit.adapt.transfer import last_layer, shared_outputs
from mobilefit.arch import NetSpec
from mobilefit.errors import InputError, unknown
from mobilefit.nn import Network, save_weights
from mobilefit.nn.blocks import Row
from mobilefit.parsing import check_fields
from mobilefit.progress import Progress
from mobilefit.runs import ROW_HINT

KNAPSACK_LOG = "knapsack.jsonl"
Way = Literal["joint", "measured", "even"]
"""How losses are foretold: see :class:`Prices`."""
LEFT: tuple[tuple[Kind, ...], ...] = ((), ("bottleneck",), ("block",))
"""Kinds that an allocation leaves as they are."""
ROUND_CUT = 0.2
"""Of the seed's latency, in a round."""
EIGHTHS = (7, 6, 5, 4)
"""Widths that a group may take in a round, in eighths of its own."""
BINS = 1000
"""A round's cut is divided into so many parts for the dynamic programme."""
CORRECTIONS = 8
"""Knapsacks that are solved for an allocation until its latency is right."""
CLOSE = 0.03
"""An allocation that saves more than it must by less than this part is not corrected."""
LEAST = 0.001
"""Of the seed's latency: a smaller cut is not worth a round."""


@dataclass(frozen=True, kw_only=True)
class KnapsackSettings:
    """How the knapsack proceeds."""

    target_ms: float
    """Stop at or under this latency."""
    margin: float = 0.0
    """The estimate must come under the target by this part of it; the measurement need not."""
    cut: float = ROUND_CUT
    """Most latency cut of a round, as a part of the seed's: a deeper cut is divided evenly among several rounds."""
    kinds: tuple[Kind, ...] | None = None
    """What may shrink; ``None``: what is usual for the network, :func:`~.proposals.usual_kinds`."""

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise InputError("bad knapsack settings: " + "; ".join(problems))


def _problems(settings: KnapsackSettings) -> Iterator[str]:
    if not settings.target_ms > 0:
        yield f"target_ms is {settings.target_ms}, must be above 0"
    if not 0 <= settings.margin < 1:
        yield f"margin is {settings.margin}, must be from 0 to below 1"
    if not 0 < settings.cut <= 1:
        yield f"cut is {settings.cut}, must be above 0 and at most 1"
    for kind in settings.kinds or ():
        if kind not in KINDS:
            yield str(unknown("kind", kind, KINDS))


def cheapest(costs: Sequence[Sequence[float]], savings: Sequence[Sequence[int]], least: int) -> list[int] | None:
    """One option of each item, together at the least cost of all that save enough: a multiple-choice knapsack.

    Args:
        costs: [items][options]
        savings: [items][options], 0 or more.
        least: what the options have to save together.

    Returns:
        The option of each item; ``None`` where no choice saves enough. Takes items x options x ``least`` time.
    """
    best = np.full(least + 1, np.inf)  # by what is saved so far, "or more" in the last place
    best[0] = 0.0
    options = np.zeros((len(costs), least + 1), np.int64)
    before = np.zeros((len(costs), least + 1), np.int64)
    for item, (item_costs, item_savings) in enumerate(zip(costs, savings, strict=True)):
        after = np.full(least + 1, np.inf)
        for option, (cost, saving) in enumerate(zip(item_costs, item_savings, strict=True)):
            first = max(0, least - saving)  # from here on there is enough
            sources = np.append(np.arange(first), first + int(best[first:].argmin()))
            places = np.append(np.arange(first) + saving, least)
            totals = best[sources] + cost
            better = totals < after[places]
            places, sources = places[better], sources[better]
            after[places], options[item, places], before[item, places] = totals[better], option, sources
        best = after
    if not np.isfinite(best[least]):
        return None
    choice: list[int] = []
    place = least
    for item in reversed(range(len(costs))):
        choice.append(int(options[item, place]))
        place = int(before[item, place])
    return choice[::-1]


@dataclass(frozen=True, kw_only=True)
class Option:
    """A change of one group alone."""

    group: Group
    width: int
    """0: the block is left out."""
    saved_ms: float

    @property
    def change(self) -> tuple[Group, int]:
        """As :meth:`Proposal.together` takes it."""
        return self.group, self.width


Item = list[Option]
"""Options of which one at most is taken."""


class Prices:
    """What changes of a network lose, in nats: foretold by gates, and measured once for every group.

    A gate that closes changes an image's loss by about its derivative; the change of the mean loss is half of the
    mean square, as far as the Fisher information stands for the curvature (Theis et al., arXiv 1801.05787). On
    training images that a network knows by heart this is too little for its late layers.

    - ``joint``: by gates alone, the derivatives of all channels that go added before they are squared;
    - ``measured``: of a group's narrowest option, and of a block that is left out, what it was measured to lose; wider
      options lose less in proportion to the squares of the gates that go, which count more the fewer are left;
    - ``even``: the same, but in proportion to the square of the part of the channels that goes: many shallow cuts.

    Held-out images are few, so a loss counts at least half of what gates foretell, on the scale of all that was measured
    (a task without losses of single images measures its score).

    Args:
        network: that the changes are of.
        gates: of its channels. A residual block's gate is on all that it adds to its input.
        probes: the narrowest option of each group and every block's, by the names of the groups.
        measured: what each of them lost.
    """

    def __init__(
        self, network: Network, gates: Gates, probes: Mapping[str, Option], measured: Mapping[str, float]
    ) -> None:
        self._network, self._gates, self._probes, self._measured = network, gates, probes, measured
        foretold = {name: self._foretold(probe) for name, probe in probes.items()}
        scale = sum(max(measured[name], 0.0) for name in probes) / max(sum(foretold.values()), 1e-12)
        self._least = {name: scale * value / 2 for name, value in foretold.items()}

    def price(self, option: Option, way: Way) -> float:
        """Of an option, at least 0."""
        if way == "joint":
            return self._foretold(option, joint=True)
        name = option.group.name
        probe = self._probes[name]
        lost = max(self._measured[name], self._least[name])
        if way == "even":
            return lost * ((option.group.width - option.width) / (option.group.width - probe.width)) ** 2
        return lost * self._foretold(option) / max(self._foretold(probe), 1e-12)

    def _foretold(self, option: Option, *, joint: bool = False) -> float:
        group = option.group
        if group.kind == "block":
            index = group.members[0]
            row = self._network.backbone.blocks[index]
            assert isinstance(row, Row)
            return float(self._gates.derivatives(last_layer(row, index)).sum(1).square().mean()) / 2
        total = 0.0
        for layers in _layers(self._network, group):
            derivatives, importance = self._gates.derivatives(*layers), self._gates(*layers)
            count = len(importance)
            left = round(count * option.width / group.width)
            gone = torch.argsort(importance, descending=True, stable=True)[left:]
            if joint:
                total += float(derivatives[:, gone].sum(1).square().mean()) / 2
            else:
                present = torch.arange(left + 1, count + 1)  # when each one goes, the least important first
                total += float((importance[gone] * count / present).sum()) / 2
        return total


def _layers(network: Network, group: Group) -> list[tuple[str, ...]]:
    """The layers whose channels a group's width is; those that share channels are one entry."""
    if group.kind == "expansion":
        return [(group.name,)]
    if group.kind == "bottleneck":
        layers: list[tuple[str, ...]] = []
        first = -1  # the stem
        for shared in shared_outputs(network):
            if first in group.members:
                layers.append(shared)
            first += len(shared)
        return layers
    if group.name == "head.filters":
        merged = hasattr(network.head, "merge")
        return [("head.image",), ("head.project",), ("head.merge",)] if merged else [("head.project",)]
    if group.name.startswith("head.extras"):
        return [(f"{group.name}.reduce",), (f"{group.name}.project",)]
    return [(group.name.removesuffix(".out"),)]


def shrink_by_knapsack(
    seed_network: Network, settings: KnapsackSettings, tools: Tools, out: Path, *, seed: int = 0,
    say: Callable[[str], None] = lambda line: None, label: str | None = None,
) -> Adapted:  # fmt: skip
    """Shrink a trained network to a latency.

    Args:
        seed_network: trained; not changed.
        tools: with gates.
        out: folder for the log and the weights of the rounds; what is there is taken up.
        seed: of the fine-tunings.
        say: takes a line of progress after every allocation and every round.
        label: what measuring savings and losses is called; ``None``: no progress is shown.

    Raises:
        InputError: the target is out of reach, and the message says what was reached.
    """
    run = _Run(seed_network, settings, tools, out, seed, say, label)
    run.start()
    while not run.done():
        run.round()
    return run.adapted()


def most_judged(spec: NetSpec, kinds: tuple[Kind, ...] | None = None) -> int:
    """Networks that are judged in a round, at most: each group and each block alone, and the allocations."""
    return len(groups(spec, kinds)) + len(removable(spec, kinds)) + len(get_args(Way)) * len(LEFT)


class _Run(StepRun):
    def __init__(
        self, network: Network, settings: KnapsackSettings, tools: Tools, out: Path, seed: int,
        say: Callable[[str], None], label: str | None,
    ) -> None:  # fmt: skip
        super().__init__(network, settings.target_ms, settings.margin, tools, out, KNAPSACK_LOG, seed)
        self.settings, self.say, self.label = settings, say, label

    def importance(self) -> Gates:
        """Gates: channels stay by what losses are foretold by."""
        assert self.tools.gates is not None, "the knapsack needs gates"
        return self.tools.gates(self.network)

    def round(self) -> None:
        """Allocate, compare, tune and accept."""
        step = self.accepted["step"] + 1
        proposals = self._planned(step) or self._plan(step)
        done = self._judged(step)
        for number, (proposal, how) in enumerate(proposals):
            if proposal.spec.id not in done:
                row = done[proposal.spec.id] = self._compare(proposal, how, step)
                self.say(
                    f"knapsack round {step}, allocation {number + 1}/{len(proposals)} ({how}): "
                    f"{proposal.latency_ms:.3f} ms, {row['accuracy']:.1%}{self._quality()}"
                )
        ranked = sorted(
            ((proposal, done[proposal.spec.id]) for proposal, _ in proposals), key=lambda pair: pair[1]["loss_change"]
        )
        best, row = ranked[0]
        network, judgement = self._tuned(best, step)
        save_weights(network, self._weights(step))
        self._accept(network, {
            **self._row("accepted", best, step, judgement), "untuned": row["accuracy"],
            "untuned_loss": float(self.losses.load(step, best.spec.id).mean()), "how": row.get("how"),
            **self._undecided([row for _, row in ranked], step),
        })  # fmt: skip
        self.say(
            f"knapsack round {step}: {best.what}: {best.latency_ms:.3f} ms, "
            f"{row['accuracy']:.1%} untuned, {judgement.score:.1%} tuned{self._quality()}"
        )

    def _quality(self) -> str:
        return "" if self.tools.quality == TOP1 else f" {self.tools.quality}"

    def _compare(self, proposal: Proposal, how: str, step: int) -> dict[str, Any]:
        """Judge an allocation with new batch norm statistics alone."""
        judgement = self.tools.judge(self._inherited(proposal, step))
        row = {**self._row("proposal", proposal, step, judgement), "how": how}
        self.losses.save(step, proposal.spec.id, judgement.losses)  # before its row: a logged proposal has them
        self._log(row)
        return row

    # ---- the allocations of a round

    def _planned(self, step: int) -> list[tuple[Proposal, str]]:
        """The allocations of a round that was interrupted: measuring anew might give others."""
        planned = []
        for entry in (entry for plan in self._logged("plan", step) for entry in plan["proposals"]):
            check_fields(entry, {"how": str, "changes": tuple[tuple[Any, Any], ...]}, f"{self.log_path}: the plan")
            changes = [self._planned_change(entry, *change) for change in entry["changes"]]
            if not changes:
                raise InputError(f"{self.log_path}: a proposal of the plan changes nothing", ROW_HINT)
            proposal = Proposal.together(self.network.spec, changes, lambda _: math.nan)
            planned.append((replace(proposal, latency_ms=entry["latency_ms"]), entry["how"]))
        return planned

    def _plan(self, step: int) -> list[tuple[Proposal, str]]:
        """Allocations by every way and of all kinds or some, each once."""
        cut = self._cut()
        items = self._items()
        prices = self._prices(items, step)
        found: dict[str, tuple[Proposal, str, list[tuple[Group, int]]]] = {}
        while True:
            for way in get_args(Way):
                for left in LEFT:
                    changes = self._allocation(items, cut, prices, way, left)
                    if changes:
                        proposal = Proposal.together(self.network.spec, changes, self.tools.latency)
                        how = ", ".join([way, *(f"no {kind}" for kind in left)])
                        found.setdefault(proposal.spec.id, (proposal, how, changes))
            if found:
                break
            cut /= 2  # a group halves at most: where that is not enough, the next rounds go on
            if cut < LEAST * self.origin["latency_ms"]:
                raise InputError(
                    f"no width and no block saves another {cut:.4f} ms: the knapsack ends at "
                    f"{self.accepted['measured_ms']:.3f} ms, the target is {self.target_ms:.3f} ms",
                    "raise --latency, lower --resolution, or start from a smaller seed network",
                )
        self._log({"event": "plan", "step": step, "cut_ms": cut, "proposals": [
            {"how": how, "latency_ms": proposal.latency_ms, "changes": [[group.name, width] for group, width in changes]}
            for proposal, how, changes in found.values()
        ]})  # fmt: skip
        return [(proposal, how) for proposal, how, _ in found.values()]

    def _cut(self) -> float:
        """What this round is to cut, milliseconds: as many rounds as are left cut the same."""
        over = self._over()
        rounds = math.ceil(over / (self.settings.cut * float(self.origin["latency_ms"])) - 1e-9)
        return over / max(rounds, 1)

    def _items(self) -> list[Item]:
        """What each group saves at each width, alone; a block's expansion and the block itself are one item."""
        spec, kinds = self.network.spec, self.settings.kinds
        blocks = {group.members[0]: group for group in removable(spec, kinds)}
        if len(blocks) == len(spec.blocks):  # one has to stay
            blocks.popitem()
        candidates: list[list[tuple[Group, int]]] = []
        for group in groups(spec, kinds):
            widths = dict.fromkeys(-(-group.width * eighths // 8 // STEP) * STEP for eighths in EIGHTHS)
            changes = [(group, width) for width in widths if STEP <= width < group.width]
            if group.kind == "expansion" and group.members[0] in blocks:
                changes.append((blocks.pop(group.members[0]), 0))
            candidates.append(changes)
        candidates += [[(block, 0)] for block in blocks.values()]
        items = []
        with Progress(sum(map(len, candidates)), self.label, unit="option") as progress:
            for changes in candidates:
                options = []
                for group, width in changes:
                    saved = self.accepted["latency_ms"] - self.tools.latency(group.shrunk(spec, width))
                    options.append(Option(group=group, width=width, saved_ms=saved))
                    progress.update(1)
                items.append([option for option in options if option.saved_ms > 0])
        return [item for item in items if item]

    def _prices(self, items: Sequence[Item], step: int) -> Prices:
        """Gates, and the loss of every block and of every group at its narrowest, as logged or measured now."""
        gates = self._importance_before(step)
        assert isinstance(gates, Gates)
        probes = {option.group.name: option for item in items for option in item}  # the last one: the narrowest
        measured = {row["what"]: float(row["loss_change"]) for row in self._logged("price", step)}
        with Progress(len(probes), self.label, unit="group") as progress:
            for name, probe in probes.items():
                proposal = Proposal.together(self.network.spec, [probe.change], lambda _: math.nan)
                if proposal.what not in measured:
                    row = {**self._row("price", proposal, step, self.tools.judge(self._inherited(proposal, step))),
                           "latency_ms": None}  # fmt: skip
                    self._log(row)
                    measured[proposal.what] = row["loss_change"]
                measured[name] = measured[proposal.what]
                progress.update(1)
        return Prices(self.network, gates, probes, measured)

    def _allocation(
        self, items: Sequence[Item], cut: float, prices: Prices, way: Way, left: tuple[Kind, ...]
    ) -> list[tuple[Group, int]] | None:
        """The cheapest changes that save the cut by the table; ``None`` where there are none.

        What the knapsack is asked to save is corrected by what its last answer saved.
        """
        usable = [[option for option in item if option.group.kind not in left] for item in items]
        unit = cut / BINS
        costs = [[0.0, *(prices.price(option, way) for option in item)] for item in usable]
        savings = [[0, *(int(option.saved_ms / unit) for option in item)] for item in usable]
        best: list[tuple[Group, int]] | None = None
        asked, low, high = 1.0, 0.0, math.inf
        for _ in range(CORRECTIONS):
            choice = cheapest(costs, savings, math.ceil(asked * BINS))
            if choice is None:
                high, nearer = asked, asked
            else:
                changes = [item[taken - 1].change for item, taken in zip(usable, choice) if taken]
                spec = Proposal.together(self.network.spec, changes, lambda _: math.nan).spec
                part = (self.accepted["latency_ms"] - self.tools.latency(spec)) / cut
                nearer = asked * (1 + CLOSE / 2) / part if part > 0 else math.inf
                if part >= 1 - 1e-9:
                    best, high = changes, asked
                    if part <= 1 + CLOSE:
                        break
                else:
                    low = asked
            middle = (low + high) / 2 if high < math.inf else 1.5 * low
            asked = nearer if low < nearer < high else middle
            if high - low < 1e-3:
                break
        return best
