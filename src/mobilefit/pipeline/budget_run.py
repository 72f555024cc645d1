"""A design for one budget: the race, the trainings and the files that come of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mobilefit import adapt, report
from mobilefit.adapt import AdaptSettings, KnapsackSettings
from mobilefit.arch import NetSpec
from mobilefit.errors import InputError
from mobilefit.jobs import checks, kinds, lab
from mobilefit.jobs.folder import PAGE
from mobilefit.jobs.lab import Trained
from mobilefit.jobs.model import export
from mobilefit.jobs.options import Budget
from mobilefit.nn import Network, load_network, save_weights
from mobilefit.parsing import check_fields
from mobilefit.pipeline import candidates as networks_at
from mobilefit.pipeline import outcome, time_budget
from mobilefit.pipeline.by_hand import STANDING, ByHand
from mobilefit.pipeline.candidates import Candidate
from mobilefit.pipeline.design_run import DesignRun, aim, budget_label
from mobilefit.pipeline.initial_weights import covers
from mobilefit.pipeline.race import Rung, Standing, to_dict
from mobilefit.pipeline.race_task import Entrant, FeatureProbe, Initial, ShrunkWeights, TeacherFile
from mobilefit.pipeline.time_budget import AdaptPlan, RungPlan, StagePlan
from mobilefit.train import SoftTargets

TEACHER_MADDS = {"classify": (1.3, 2.6), "detect": (1.3, 4.0), "segment": (1.3, 4.0)}
"""Least and most multiply-adds of the larger network, in the student's. A classifier at twice the student's
resolution taught no better than one at one and a half times (MobileNetV2 at 64 px, photos of clothes). Boxes and masks
may gain more by pixels than they lose by channels: see :meth:`.by_hand.ByHand.narrowed`."""
LEAST_TEACHER_EPOCHS = 3.0
PROBED = 3
"""With more candidates than this, pretrained ones are first compared by frozen features."""
AFTER_PROBE, FINALISTS = 4, 3
"""Candidates that go on after the probe, and after the first training."""

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
        self.by_hand = ByHand(design, self.aim_ms, self.stage)
        self.rungs: list[dict[str, Any]] = []
        self.plans: dict[str, Any] = {}
        self.left_out: list[str] = []
        """Of :data:`.by_hand.STANDING`, what there was no time to train."""

    def run_all(self) -> str:
        """From the candidates to the record; the name of the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        ranked = self.untaught(self.contenders())
        if self.config.named is not None and self.config.resolution is not None and ranked:
            self.log(f"the seed network meets the budget already ({ranked[0].latency_ms:.4g} of "
                     f"{self.budget_ms:.4g} ms): NetAdapt is not needed")  # fmt: skip
        larger = self.larger(ranked)
        entrants = self.entrants(ranked, larger)
        shrunk = self.shrunk(larger)
        if shrunk is not None:
            entrants.insert(1, shrunk)  # it took a third of the time: the last to be left out but for the best one
        if not entrants:
            raise InputError(
                f"nothing meets {self.budget_ms:.4g} ms, and --shrink none leaves the larger networks as they are",
                "raise --latency, lower --resolution, or leave --shrink out",
            )
        winner = self.widened(self.taught(entrants, larger), larger)
        standing = self.standing(winner, larger)
        trained = self.trained([winner, *standing], larger)
        if not (self.folder / PAGE).exists():  # an earlier call was interrupted in a later budget
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
            0, self.left() * time_budget.RACE_SHARE / 2, contenders, teacher
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

    def entrants(self, ranked: list[Candidate], larger: Trained | None) -> list[Entrant]:
        """Who is in the finals, the most promising one first: the first ones are trained where there is little time.

        Classes need channels more than pixels; for boxes and masks networks of more pixels and fewer channels come in,
        except where the user fixed the resolution, and for boxes they come first: those are small.
        """
        if self.task.task != "classify" and self.config.resolution is None and larger is not None and ranked:
            narrowed = self.by_hand.narrowed(ranked[0], larger)
            ranked = [*narrowed, *ranked] if self.task.task == "detect" else [ranked[0], *narrowed, *ranked[1:]]
        return [Entrant(kind=self.by_hand.kind_of(c, larger), candidate=c, initial=self.initial(c, larger)) for c in ranked]

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
            least, most = (factor * best.spec.cost().madds for factor in TEACHER_MADDS[self.task.task])
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
        target: dict[str, Any] = {"target_ms": self.budget_ms, "margin": lab.MARGIN}
        settings = (
            KnapsackSettings(**target, cut=plan.delta) if self.config.shrink == "knapsack"
            else AdaptSettings(**target, delta=plan.delta, rule=self.config.rule)
        )  # fmt: skip
        result = lab.shrink(base, settings, tools, folder, seed=self.config.seed, log=self.log)
        return replace(result.spec, name=f"{base.spec.name}_adapted")

    # ---- the finals, and what stands beside the winner

    def taught(self, entrants: list[Entrant], larger: Trained | None) -> Entrant:
        """The winner: after a short training, taught by the larger network."""
        if len(entrants) == 1:
            return entrants[0]
        c = self.design
        name = f"{self.prefix}rung_2"
        teacher = c.soft_targets(larger)
        plan = self.planned("rung_2", lambda: c.rung_plan(
            1, self.left() * time_budget.RACE_SHARE, [e.candidate for e in entrants], teacher
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

    def widened(self, winner: Entrant, larger: Trained | None) -> Entrant:
        """A winner by the width multiplier as wide as the budget allows: the race knows three widths of a network."""
        if winner.kind != "width":
            return winner
        full, smaller = self.by_hand.full_network(winner.candidate, larger)
        widest = self.by_hand.scaled_width(full, smaller.weights, winner.candidate)
        same_size = widest.spec.image_shape == winner.candidate.spec.image_shape
        if not same_size or widest.spec.cost().params <= winner.candidate.spec.cost().params:
            return winner
        self.log(f"there is room for {widest.spec.name}: trained in the place of {winner.candidate.name}")
        return Entrant(kind="width", candidate=widest, initial=self.initial(widest, larger))

    def standing(self, winner: Entrant, larger: Trained | None) -> list[Entrant]:
        """What a user could do by hand in the winner's place: lower resolution, and the width multiplier.

        What there is no time to train beside the winner is left out, and that is said.
        """
        full, smaller = self.by_hand.full_network(winner.candidate, larger)
        if winner.candidate.spec == full:
            return []
        order = STANDING if self.task.task == "classify" else STANDING[::-1]
        others = [kind for kind in order if kind != winner.kind]
        most = self.stage("plan standing", lambda: self.affordable_beside(
            winner.candidate, len(others), self.design.soft_targets(larger)
        ), int)
        entrants: list[Entrant] = []
        for kind in others:
            if len(entrants) == most:
                self.left_out.append(kind)
                continue
            if kind == "resolution":
                candidate = self.by_hand.lower_resolution(smaller, winner.candidate)
            else:
                candidate = self.by_hand.scaled_width(full, smaller.weights, winner.candidate)
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
        entrants = list(entrants)
        for seed in range(self.config.seed, self.config.seed + self.config.seeds):
            for entrant in tuple(entrants):
                beside = seed == self.config.seed and entrant is not entrants[0]
                if beside and self.too_late_for(entrant, plan, teacher, export_):
                    entrants.remove(entrant)
                    continue
                with c.run.timed(f"{self.prefix}training {entrant.kind}"):
                    trained.append(c.train(
                        f"{self.prefix.strip()}-{entrant.kind}".strip("-"), self.label(entrant), plan["steps"],
                        seed, entrant.initial, teacher, kind=entrant.kind,
                    ))  # fmt: skip
        return trained

    def too_late_for(
        self, entrant: Entrant, plan: dict[str, Any], teacher: SoftTargets | TeacherFile | None, export_seconds: float
    ) -> bool:
        """Whether the machine became so slow that a network beside the winner would end after the time that was promised.

        It is left out then, and that is said; the trainings' length stays, or they could not be compared.
        """
        if self.config.epochs is not None:
            return False

        def late() -> bool:
            each = self.config.seeds * self.design.step_seconds(entrant.candidate.spec, teacher)
            left, grace = self.left(), 60 * self.config.minutes * time_budget.GRACE
            return left == 0 or plan["steps"] * each + export_seconds > left + grace

        if not self.stage(f"late for {entrant.kind}", late, bool):
            return False
        self.left_out.append(entrant.kind)
        self.log(f"the machine became slower: there is no time to train {report.BY_HAND[entrant.kind]}, left out")
        return True

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
            order = outcome.best_first(c, entries, trained)
            best, latencies, judged_ms = outcome.within_budget(c, self.budget_ms, order, files)
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
            "verdict": outcome.verdict(c, entries, [evaluation for _, evaluation in results], best, self.left_out),
            "final": {
                **results[best][0], **self.task.record(results[best][1], self.data),
                "judged_ms": judged_ms, "latency_float": in_float.to_dict(), "files": names, "parity": parity,
            },
            "layers": outcome.layers(c, seed_spec, final_spec),
        }  # fmt: skip
        c.run.finish_part(self.folder, record)
        report.write_report(self.folder)
