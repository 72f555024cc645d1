"""A design for one budget: the race, the trainings and the files that come of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mobilefit import adapt, report
from mobilefit.adapt import AdaptSettings, KnapsackSettings
from mobilefit.arch import NetSpec
from mobilefit.device import Latency
from mobilefit.errors import InputError
from mobilefit.jobs import checks, kinds, lab
from mobilefit.jobs.lab import Trained
from mobilefit.jobs.model import Exported, export, int8_for_timing
from mobilefit.jobs.options import Budget
from mobilefit.nn import Network, load_network, save_weights
from mobilefit.nn.weights import rows
from mobilefit.parsing import check_fields
from mobilefit.pipeline import candidates as networks_at
from mobilefit.pipeline import time_budget
from mobilefit.pipeline.candidates import SIZES, Candidate, Sizes
from mobilefit.pipeline.design_run import DesignRun, aim, budget_label
from mobilefit.pipeline.initial_weights import covers
from mobilefit.pipeline.race import Rung, Standing, to_dict
from mobilefit.pipeline.race_task import Entrant, FeatureProbe, Initial, ShrunkWeights, TeacherFile
from mobilefit.pipeline.time_budget import AdaptPlan, RungPlan, StagePlan
from mobilefit.train import SoftTargets
from mobilefit.train.statistics import Difference, bootstrapped, paired

WIDEST = 150
"""Percent: the largest width multiplier that is compared with."""
WIDTHS_AROUND = 4
"""Width multipliers, in hundredths, that are measured on either side of the best guess."""
TEACHER_MADDS = (1.3, 2.6)
"""Least and most multiply-adds of the larger network, in the student's. A teacher at twice the student's
resolution taught no better than one at one and a half times (MobileNetV2 at 64 px, photos of clothes)."""
LEAST_TEACHER_EPOCHS = 3.0
PROBED = 3
"""With more candidates than this, pretrained ones are first compared by frozen features."""
AFTER_PROBE, FINALISTS = 4, 3
"""Candidates that go on after the probe, and after the first training."""
JUDGED_AGAIN = 3
"""Measurements of a network that seems to be over the budget by less than the noise."""

STANDING = ("resolution", "width")
"""Kinds of what stands beside the winner, the one that is harder to beat first: the last is the first to be left out."""
REPORT = "report.html"
"""The last of a budget's files."""

_LARGER = {"spec": dict, "weights": str | None, "latency_ms": float, "origin": str}
"""Of the stage that chooses the larger network."""

T = TypeVar("T")


class BudgetRun:
    """The race for one budget, and the trainings and files that come of it.

    Args:
        design: what the budgets share.
        share: of the time that is left; the rest is for the budgets after this one.
    """

    def __init__(self, design: DesignRun, budget: Budget, budget_ms: float, *, share: float) -> None:
        self.design, self.budget, self.budget_ms, self.share = design, budget, budget_ms, share
        self.config, self.task, self.data, self.log = design.config, design.task, design.data, design.log
        several = len(design.budgets) > 1
        self.folder = design.run.path / budget_label(budget) if several else design.run.path
        """Of this budget's files and record."""
        self.prefix = f"{budget_label(budget)} " if several else ""
        """Of its stages in the run's state."""
        self.aim_ms = aim(budget, budget_ms)
        self.rungs: list[dict[str, Any]] = []
        self.plans: dict[str, Any] = {}
        self.left_out: list[str] = []
        """Of :data:`STANDING`, what there was no time to train."""

    def run_all(self) -> str:
        """From the candidates to the record; the name of the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        ranked = self.untaught(self.contenders())
        if self.config.named is not None and self.config.resolution is not None and ranked:
            self.log(f"the seed network meets the budget already ({ranked[0].latency_ms:.4g} of "
                     f"{self.budget_ms:.4g} ms): NetAdapt is not needed")  # fmt: skip
        larger = self.larger(ranked)
        entrants = [
            Entrant(kind=self.kind_of(c, larger), candidate=c, initial=self.initial(c, larger)) for c in ranked
        ]
        shrunk = self.shrunk(larger)
        if shrunk is not None:
            entrants.insert(1, shrunk)  # it took a third of the time: the last to be left out but for the best one
        if not entrants:
            raise InputError(
                f"nothing meets {self.budget_ms:.4g} ms, and --shrink none leaves the larger networks as they are",
                "raise --latency, lower --resolution, or leave --shrink out",
            )
        winner = self.taught(entrants, larger)
        standing = self.standing(winner, larger)
        trained = self.trained([winner, *standing], larger)
        if not (self.folder / REPORT).exists():  # an earlier call was interrupted in a later budget
            self.finish([] if larger is None else [larger], trained)
        if larger is None:  # the images are no larger: a smaller budget's networks learn from this one
            self.design.larger = replace(trained[0], kind="seed")
        return self.folder.name

    def left(self) -> float:
        """Seconds that are left for this budget."""
        return self.design.left() * self.share

    def stage(self, name: str, work: Callable[[], Any], shape: Any) -> Any:
        """The result of a stage of this budget, done once; see :meth:`RunFolder.stage`."""
        return self.design.run.stage(self.prefix + name, work, shape)

    def planned(self, name: str, work: Callable[[], StagePlan | AdaptPlan], shape: type = StagePlan) -> dict[str, Any]:
        """How long a stage is: decided when it begins, and kept."""
        plan: dict[str, Any] = self.stage(f"plan {name}", lambda: work().to_dict(), shape)
        self.plans[name] = plan
        return plan

    # ---- the race

    def contenders(self) -> list[Candidate]:
        """Every network at its largest size within the budget; from scratch the most promising ones."""
        within = networks_at.within(self.design.networks, self.aim_ms)
        return within if any(candidate.weights for candidate in within) else networks_at.spread(within)

    def untaught(self, contenders: list[Candidate]) -> list[Candidate]:
        """The best ones by frozen features and a short training of their own, the best first."""
        c = self.design
        pretrained = self.task.task == "classify" and all(candidate.weights is not None for candidate in contenders)
        if pretrained and len(contenders) > PROBED:
            rung = Rung(name=f"{self.prefix}probe", survivors=AFTER_PROBE, what="frozen features")
            probe = FeatureProbe(
                data=self.data, held_out=c.held_out, seed=self.config.seed,
                initial={contender.slug: self.initial(contender, None) for contender in contenders},
            )  # fmt: skip
            contenders = self.survivors(rung, c.rung(rung, contenders, probe), None)
        if len(contenders) < 2:
            return contenders
        name = f"{self.prefix}rung_1"
        teacher = c.soft_targets(None)
        plan = self.planned("rung_1", lambda: c.rung_plan(
            time_budget.RUNG_EPOCHS[0], self.left() * time_budget.RACE_SHARE / 2, contenders, teacher
        ), RungPlan)  # fmt: skip
        contenders = self.affordable(contenders, plan)
        if len(contenders) < 2:
            return contenders
        rung = Rung(name=name, survivors=FINALISTS, what=f"short trainings ({plan['epochs']:.1f} epochs)")
        entrants = [
            Entrant(kind="candidate", candidate=contender, initial=self.initial(contender, None))
            for contender in contenders
        ]
        judge = c.short_training(name, plan["steps"], entrants, teacher)
        return self.survivors(rung, c.rung(rung, contenders, judge), teacher)

    def affordable(self, contenders: list[T], plan: dict[str, Any]) -> list[T]:
        """The most promising ones, as many as there is time to train for long enough."""
        count = plan["candidates"]
        if count < len(contenders):
            self.log(f"there is time for {count} of {len(contenders)} candidates: the first ones go on")
        return contenders[:count]

    def survivors(
        self, rung: Rung, standings: list[Standing], teacher: SoftTargets | TeacherFile | None
    ) -> list[Candidate]:
        """Who goes on; the standings are kept for the record, and the best one's speed for the next plan."""
        for standing in reversed(standings):
            self.design.learn_speed(
                self.design.trial_speed, standing.candidate.spec, standing.judged.images_per_second, teacher
            )
        self.rungs.append({"rung": rung.name, "what": rung.what, "standings": [to_dict(s) for s in standings]})
        return [standing.candidate for standing in standings if standing.survives]

    def initial(self, candidate: Candidate, larger: Trained | None) -> Initial:
        """What a candidate begins with: the larger network's weights, pretrained ones, or none."""
        weights = self.design.weights_from(larger)
        return partial(weights.network, candidate.spec, candidate.weights, whole=candidate.whole)

    # ---- the larger network

    def larger(self, ranked: Sequence[Candidate]) -> Trained | None:
        """The network that the others begin from and are taught by, trained in full; one for all budgets."""
        c = self.design
        if c.larger is None:
            larger = c.run.stage("larger", lambda: self.choose_larger(ranked), dict | None)
            if larger is not None:
                check_fields(larger, _LARGER, f"{c.run.path}: larger")
                c.larger = self.train_larger(Candidate(
                    spec=NetSpec.from_dict(larger["spec"]), weights=larger["weights"],
                    latency_ms=larger["latency_ms"], origin=larger["origin"],
                ))  # fmt: skip
        return c.larger

    def choose_larger(self, ranked: Sequence[Candidate]) -> dict[str, Any] | None:
        """The largest network like the best one that there is time to train, over the budget or not."""
        c = self.design
        if ranked:
            best = ranked[0]
            least, most = (factor * best.spec.cost().madds for factor in TEACHER_MADDS)
            options = [
                Candidate(spec=spec, weights=network.weights, latency_ms=network.guess(size, 0.0), origin=network.origin)
                for network in c.networks if network.origin != "head" for size in network.sizes
                if covers(spec := network.at(size), best.spec) and least <= spec.cost().madds <= most
            ]  # fmt: skip
        else:
            whole = [network for network in c.networks if network.origin != "head"]
            options = networks_at.above(whole, self.aim_ms)[:1]
        seconds = c.left() * time_budget.TEACHER_SHARE
        for option_ in sorted(options, key=lambda option: -option.spec.cost().madds):
            epochs = seconds / (c.step_seconds(option_.spec, c.own_teacher) * c.per_epoch)
            if not ranked or epochs >= LEAST_TEACHER_EPOCHS or self.config.epochs is not None:
                return {
                    "spec": option_.spec.to_dict(), "weights": option_.weights,
                    "latency_ms": option_.latency_ms, "origin": option_.origin,
                }  # fmt: skip
        why = "there is no time to train one" if options else "the images are no larger"
        self.log(f"no larger network teaches: {why}")
        return None

    def train_larger(self, candidate: Candidate) -> Trained:
        """The larger network after its own training; a search's network is trained already."""
        c = self.design
        preset = self.task.preset(self.data, candidate.spec)
        if candidate.origin == "searched":
            assert candidate.weights is not None
            return Trained(label="searched", kind="seed", seed=self.config.seed,
                           network=load_network(Path(candidate.weights)), preset=preset)  # fmt: skip
        plan = self.design.run.stage("plan larger", lambda: c.full_plan(
            c.left() * time_budget.TEACHER_SHARE, [c.step_seconds(candidate.spec, c.own_teacher)]
        ).to_dict(), StagePlan)  # fmt: skip
        self.plans["larger"] = plan
        label = "seed" if self.config.named else candidate.name
        with c.run.timed("training seed"):
            return c.train(
                "seed", label, plan["steps"], self.config.seed, self.initial(candidate, None), c.own_teacher,
                kind="seed",
            )

    # ---- shrinking it

    def shrunk(self, larger: Trained | None) -> Entrant | None:
        """What NetAdapt or the knapsack makes of the larger network, or of it at the first size that is over the budget."""
        c = self.design
        if larger is None or self.config.shrink == "none":
            return None
        base = self.shrink_base(larger)
        if base is None:
            return None
        start_ms = self.stage("shrink base", lambda: c.measure([base.spec])[0], float)
        if start_ms <= self.aim_ms:
            return None
        method = "knapsack" if self.config.shrink == "knapsack" else "netadapt"
        plan = AdaptPlan(**self.planned(method, lambda: self.shrink_plan(base, 1 - self.aim_ms / start_ms), AdaptPlan))
        if plan.tune_steps == 0:
            if self.config.shrink == "auto" and networks_at.within(c.networks, self.aim_ms):
                self.log("there is no time to shrink a larger network well: left out (--shrink netadapt insists)")
                return None
            self.log("there is no time to tune what shrinking proposes: it is judged with new batch norm statistics alone")
        with c.run.timed(f"{self.prefix}table"):
            c.table.fitted(base.spec, self.log)
        folder = self.folder / method
        with c.run.timed(f"{self.prefix}{method}"):
            spec = self.smaller(base, larger, start_ms, plan, folder)
        latency_ms = self.stage("adapted latency", lambda: c.measure([spec])[0], float)
        candidate = Candidate(spec=spec, latency_ms=latency_ms, origin="shrunk")
        initial = ShrunkWeights(
            spec=spec,
            preset=replace(self.task.preset(self.data, spec), mean=larger.preset.mean, std=larger.preset.std),
            inherited=None if self.config.retrain == "scratch" else lab.last_step(folder, base),
        )
        return Entrant(kind="adapted", candidate=candidate, initial=initial)

    def shrink_base(self, larger: Trained) -> Network | None:
        """The larger network at the smallest size that is over the budget; as it is, where its size is fixed."""
        over = [
            candidate for candidate in networks_at.above(self.design.networks, self.aim_ms)
            if covers(larger.network.spec, candidate.spec)
        ]  # fmt: skip
        fixed = self.config.resolution is not None or not over
        spec = larger.network.spec if fixed else over[0].spec
        if spec == larger.network.spec:
            return larger.network
        return self.design.weights_from(larger).network(spec, None, self.config.seed)[0]

    def shrink_plan(self, base: Network, over: float) -> AdaptPlan:
        """How NetAdapt or the knapsack uses its share of the time; ``over`` is the part of the latency that must go."""
        c = self.design
        seconds = self.left() * time_budget.SHRINK_SHARE
        common: dict[str, Any] = {
            "over": over, "step_seconds": c.step_seconds(base.spec), "held_images": len(c.held_out),
            "evaluation_seconds": len(c.held_out) / c.images_per_second, "per_epoch": c.per_epoch,
            "tune_steps": self.config.tune_steps,
        }  # fmt: skip
        if self.config.shrink == "knapsack":
            return time_budget.knapsack(seconds, base.spec, **common)
        return time_budget.netadapt(seconds, base.spec, delta=self.config.delta, **common)

    def smaller(
        self, base: Network, larger: Trained, start_ms: float, plan: AdaptPlan, folder: Path
    ) -> NetSpec:
        """A trained network shrunk to the budget."""
        c = self.design
        tools = adapt.tools_for(
            self.data.train, c.held_out,
            preset=replace(larger.preset, resolution=base.spec.image_shape[0]), recipe=c.recipe,
            steps=plan.tune_steps, latency=c.table.predict, confirm=lab.Confirm(base, start_ms, c.phone),
            task=self.task.port,
        )  # fmt: skip
        if self.config.shrink == "knapsack":
            result = adapt.shrink_by_knapsack(
                base, KnapsackSettings(target_ms=self.budget_ms, margin=lab.MARGIN, cut=plan.delta), tools, folder,
                seed=self.config.seed, say=self.log, label=self.log.label("measuring savings and losses"),
            )  # fmt: skip
        else:
            settings = AdaptSettings(
                target_ms=self.budget_ms, margin=lab.MARGIN, delta=plan.delta, rule=self.config.rule
            )
            result = adapt.adapt(
                base, settings, tools, folder, seed=self.config.seed, say=self.log,
                label=self.log.label("looking for proposals"),
            )  # fmt: skip
        return replace(result.spec, name=f"{base.spec.name}_adapted")

    # ---- the finals, and what stands beside the winner

    def kind_of(self, candidate: Candidate, larger: Trained | None) -> str:
        """What a candidate is called in the record."""
        if larger is not None:
            if candidate.origin != "head" and covers(larger.network.spec, candidate.spec):
                return "resolution" if same_widths(candidate.spec, larger.network.spec) else "width"
            return "candidate"
        full, _ = self.by_hand(candidate, None)
        if candidate.origin == "family" and candidate.spec != full:
            if same_widths(candidate.spec, full):
                return "resolution"
            if candidate.spec.image_shape == full.image_shape:
                return "width"
        fixed = self.config.named is not None and self.config.resolution is not None
        return "seed" if fixed else "candidate"

    def by_hand(self, candidate: Candidate, larger: Trained | None) -> tuple[NetSpec, Sizes]:
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

    def taught(self, entrants: list[Entrant], larger: Trained | None) -> Entrant:
        """The winner: after a short training, taught by the larger network."""
        if len(entrants) == 1:
            return entrants[0]
        c = self.design
        name = f"{self.prefix}rung_2"
        teacher = c.soft_targets(larger)
        plan = self.planned("rung_2", lambda: c.rung_plan(
            time_budget.RUNG_EPOCHS[1], self.left() * time_budget.RACE_SHARE, [e.candidate for e in entrants], teacher
        ), RungPlan)  # fmt: skip
        entrants = self.affordable(entrants, plan)
        if len(entrants) < 2:
            return entrants[0]
        by_slug = {entrant.candidate.slug: entrant for entrant in entrants}
        how = "untaught" if teacher is None else "taught"
        rung = Rung(name=name, survivors=1, what=f"finals ({plan['epochs']:.1f} epochs, {how})")
        judge = c.short_training(name, plan["steps"], entrants, teacher)
        standings = c.rung(rung, [e.candidate for e in entrants], judge)
        self.survivors(rung, standings, teacher)
        return by_slug[standings[0].candidate.slug]

    def standing(self, winner: Entrant, larger: Trained | None) -> list[Entrant]:
        """What a user could do by hand in the winner's place: lower resolution, and the width multiplier.

        What there is no time to train beside the winner is left out, and that is said.
        """
        full, smaller = self.by_hand(winner.candidate, larger)
        if winner.candidate.spec == full:
            return []
        kinds = [kind for kind in STANDING if kind != winner.kind]
        most = self.stage("plan standing", lambda: self.affordable_beside(
            winner.candidate, len(kinds), self.design.soft_targets(larger)
        ), int)
        entrants: list[Entrant] = []
        for kind in kinds:
            if len(entrants) == most:
                self.left_out.append(kind)
                continue
            make = self.lower_resolution if kind == "resolution" else self.scaled_width
            candidate = make(full, smaller, winner.candidate)
            if candidate is not None and candidate.spec.id != winner.candidate.spec.id:
                entrants.append(Entrant(kind=kind, candidate=candidate, initial=self.initial(candidate, larger)))
        if self.left_out:
            names = " and ".join(report.BY_HAND[kind] for kind in self.left_out)
            self.log(f"there is no time to train {names} beside the winner: left out (more --minutes)")
        return entrants

    def affordable_beside(self, winner: Candidate, most: int, teacher: SoftTargets | TeacherFile | None) -> int:
        """How many networks there is time to train beside the winner."""
        if self.config.epochs is not None:
            return most
        c, seeds = self.design, self.config.seeds
        return min(most, time_budget.beside(
            self.left(), seeds * c.step_seconds(winner.spec, teacher), c.per_epoch,
            time_budget.export_seconds(seeds, self.budget_ms, len(self.data.test)),
        ))  # fmt: skip

    def lower_resolution(self, full: NetSpec, smaller: Sizes, winner: Candidate) -> Candidate | None:
        """The largest of the smaller sizes that is within the budget; ``None``: none is.

        What was not measured yet is measured beside the winner, whose latency takes out how much slower the machine
        became.
        """
        c = self.design

        def measure(specs: Sequence[NetSpec]) -> list[float]:
            own, *latencies = c.measure([winner.spec, *specs])
            return [latency_ms * winner.latency_ms / own for latency_ms in latencies]

        def measured_sizes() -> dict[str, Any]:
            ms_per_madd = winner.latency_ms / winner.spec.cost().madds
            networks_at.measure_sizes([smaller], [self.aim_ms], measure, ms_per_madd=ms_per_madd)
            return smaller.to_dict()

        sizes = Sizes.from_dict(self.stage("resolution", measured_sizes, dict))
        return next(iter(networks_at.within([sizes], self.aim_ms)), None)

    def scaled_width(self, full: NetSpec, smaller: Sizes, winner: Candidate) -> Candidate:
        """The network by the width multiplier that comes nearest in measured latency, at its full size.

        A larger network above the reference's size is scaled at that: it is larger to teach, and by the width alone
        nothing would be left of it.
        """
        if full.image_shape[0] > self.design.reference.image_shape[0]:
            full = full.resolution(*self.design.reference.image_shape)
        spec = NetSpec.from_dict(self.stage("width", lambda: self.same_latency(full, winner), dict))
        inherits = covers(full, spec)
        return Candidate(
            spec=spec, latency_ms=winner.latency_ms, origin="width", weights=smaller.weights if inherits else None,
            whole=full,
        )  # fmt: skip

    def same_latency(self, full: NetSpec, winner: Candidate) -> dict[str, Any]:
        """A network scaled in width to a candidate's latency."""
        c = self.design
        goal = winner.latency_ms
        low, high = 5, WIDEST  # percent; narrower below, wider above the goal
        while high - low > 1:
            middle = (low + high) // 2
            narrower = c.measure([full.width(middle / 100)])[0] <= goal
            low, high = (middle, high) if narrower else (low, middle)
        around = range(max(5, low - WIDTHS_AROUND), min(WIDEST, low + WIDTHS_AROUND) + 1)
        near = list({s.id: s for s in (full.width(w / 100) for w in around)}.values())
        goal, *latencies = c.measure([winner.spec, *near])
        best = min(range(len(near)), key=lambda i: abs(latencies[i] - goal))
        return near[best].to_dict()

    def trained(self, entrants: Sequence[Entrant], larger: Trained | None) -> list[Trained]:
        """The winner and what stands beside it after full trainings, all of the same length."""
        c = self.design
        networks = len(entrants) * self.config.seeds + (larger is not None)
        teacher = c.soft_targets(larger)
        export_ = time_budget.export_seconds(networks, self.budget_ms, len(self.data.test))
        plan = self.planned("full", lambda: c.full_plan(
            self.left() - export_, [c.step_seconds(e.candidate.spec, teacher) for e in entrants] * self.config.seeds
        ))  # fmt: skip
        self.log(f"full trainings of {plan['epochs']:.1f} epochs, about {time_budget.duration(plan['seconds'])}")
        trained = []
        for seed in range(self.config.seed, self.config.seed + self.config.seeds):
            for entrant in entrants:
                with c.run.timed(f"{self.prefix}training {entrant.kind}"):
                    trained.append(c.train(
                        f"{self.prefix.strip()}-{entrant.kind}".strip("-"), self.label(entrant), plan["steps"],
                        seed, entrant.initial, teacher, kind=entrant.kind,
                    ))  # fmt: skip
        return trained

    def label(self, entrant: Entrant) -> str:
        """What an entrant is called in the record's table."""
        if entrant.kind in ("adapted", "seed"):
            return entrant.kind
        return entrant.candidate.spec.name if entrant.kind == "width" else entrant.candidate.name

    # ---- the end

    def finish(self, larger: Sequence[Trained], trained: Sequence[Trained]) -> None:
        """Export and measure every trained network side by side, write files, record and report."""
        c = self.design
        self.log("quantizing, evaluating on the test images, measuring")
        entries = [*larger, *trained]
        with c.run.timed(f"{self.prefix}export and measure"):
            files = [export(e.network, self.data, e.preset, seed=self.config.seed) for e in entries]
            order = self.best_first(entries, trained)
            best, latencies, judged_ms = self.within_budget(order, files)
            names = lab.write_files(self.folder, files[best])
            parity = checks.compare(
                entries[best].network,
                {kind: (getattr(files[best], kind), checks.through_litert) for kind in names},
                self.data, entries[best].preset, seed=self.config.seed,
            )  # fmt: skip
            checks.keep(parity, self.folder)
            save_weights(
                entries[best].network, self.folder / "model.safetensors",
                preset=entries[best].preset.to_dict(), classes=self.data.classes,
            )  # fmt: skip
            (in_float,) = lab.side_by_side([files[best].float32], c.phone)
        results = [
            lab.result(entry, file, latency)
            for entry, file, latency in zip(entries, files, latencies, strict=True)
        ]
        final_spec = entries[best].network.spec
        seed_spec = larger[0].network.spec if larger else final_spec
        record = {
            "seed": self.config.seed, "task": self.task.task, "budget_ms": self.budget_ms,
            "budget": budget_label(self.budget) if self.prefix else self.config.latency,
            "data": kinds.described(self.data), "seed_spec": seed_spec.to_dict(),
            "reference_spec": c.reference.to_dict(), "reference_ms": c.reference_ms, "search": c.searched,
            "final_spec": final_spec.to_dict(), "race": self.rungs,
            "plan": {
                **self.plans, "training": c.recipe.to_dict(), "train_steps": self.plans["full"]["steps"],
                "epochs": self.plans["full"]["epochs"], "taught": c.soft_targets(c.larger) is not None,
            },
            "results": [row for row, _ in results],
            "verdict": self.verdict(entries, [evaluation for _, evaluation in results], best),
            "final": {
                **results[best][0], **self.task.record(results[best][1], self.data),
                "judged_ms": judged_ms, "latency_float": in_float.to_dict(), "files": names, "parity": parity,
            },
            "layers": self.layers(seed_spec, final_spec),
        }  # fmt: skip
        c.run.finish_part(self.folder, record)
        report.write_report(self.folder)

    def best_first(self, entries: Sequence[Trained], trained: Sequence[Trained]) -> list[int]:
        """Places of the networks that may be exported, the best on held-out images first.

        Labels are compared by the mean over their seeds, and of a label's networks the best is taken. Where the user
        fixed the resolution, a lower one is there to compare with and not to be exported.
        """
        c = self.design
        trained = [e for e in trained if self.config.resolution in (None, e.network.spec.image_shape[0])]
        losses = {
            id(e): adapt.judge(self.task.port, e.network, c.held_out, e.preset).losses.mean() for e in trained
        }  # fmt: skip
        means = {
            label: float(np.mean([losses[id(e)] for e in trained if e.label == label]))
            for label in {e.label for e in trained}
        }
        ranked = sorted(trained, key=lambda e: (means[e.label], losses[id(e)]))
        return [next(i for i, other in enumerate(entries) if other is e) for e in ranked]

    def within_budget(
        self, order: Sequence[int], files: Sequence[Exported]
    ) -> tuple[int, list[Latency], float]:
        """The best network that is within the budget, everybody's latency, and the best one's judged latency.

        The files are timed beside the reference. Where that is slower than when the budget was set, so is the
        machine, and the latencies are judged as if it were not. What seems to be over the budget is timed
        again: a neighbour on the machine makes a network slower, never faster. The next best takes the place of
        one that is really over.
        """
        c = self.design
        blobs = [int8_for_timing(c.reference), *(file.int8 for file in files)]
        latencies: list[Latency] = []
        judged: list[float] = []
        for _ in range(1 + JUDGED_AGAIN):
            reference, *again = lab.side_by_side(blobs, c.phone)
            slower = max(1.0, reference.median_ms / c.reference_ms)
            latencies = [min(pair, key=lambda x: x.median_ms) for pair in zip(latencies or again, again)]
            judged = [min(pair) for pair in zip(judged or [np.inf] * len(again), (x.median_ms / slower for x in again))]
            if judged[order[0]] <= self.budget_ms:
                break
        best = next((i for i in order if judged[i] <= self.budget_ms), order[0])
        if best != order[0]:
            self.log(
                f"the best network takes {judged[order[0]]:.4g} ms and is over the budget of "
                f"{self.budget_ms:.4g} ms: the next best takes its place"
            )
        return best, latencies, judged[best]

    def verdict(self, entries: Sequence[Trained], evaluations: Sequence[Any], best: int) -> dict[str, Any]:
        """The exported network against what stands beside it, on the test images: paired differences."""
        own = entries[best]
        against = []
        for kind in STANDING:
            pairs = [
                (first, second)
                for i, first in enumerate(evaluations) if entries[i].label == own.label
                for j, second in enumerate(evaluations)
                if entries[j].kind == kind and entries[j].seed == entries[i].seed
            ]  # fmt: skip
            if kind == own.kind or not pairs:
                continue
            difference = self.difference(pairs)
            label = next(e.label for e in entries if e.kind == kind)
            against.append({
                "kind": kind, "label": label, "points": 100 * difference.mean, "error": 100 * difference.error,
                "seeds": len(pairs),
            })  # fmt: skip
        return {"kind": own.kind, "label": own.label, "against": against, "left_out": self.left_out}

    def difference(self, pairs: Sequence[tuple[Any, Any]]) -> Difference:
        """The score of the first evaluations above that of the second, by image of the test set."""
        test = self.data.test
        if self.task.task != "classify":
            return bootstrapped([(a.outcomes(test), b.outcomes(test)) for a, b in pairs], len(test))
        right = [np.stack([e.predictions == test.labels for e in side]) for side in zip(*pairs)]
        return paired(*(side.astype(np.float64) for side in right))

    def layers(self, before: NetSpec, after: NetSpec) -> dict[str, Any] | None:
        """Milliseconds of each block before and after, where a latency table was made."""
        c = self.design
        if not c.table.path.exists():
            return None
        c.table.fitted(after, self.log)
        return {"before": c.table.layer_rows(before), "after": c.table.layer_rows(after)}


def same_widths(spec: NetSpec, other: NetSpec) -> bool:
    """Whether two networks differ in resolution alone, or in what comes with pretrained weights."""
    return replace(other, name="", input_size=spec.input_size, input_width=spec.input_width) == replace(
        spec, name="", padding=other.padding, norm=other.norm
    )
