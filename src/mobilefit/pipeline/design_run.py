"""What the budgets of a design share: measured networks, the larger network, trainings and the plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mobilefit import adapt, arch
from mobilefit.arch import NetSpec
from mobilefit.cluster import RayPool
from mobilefit.data import Preset
from mobilefit.device import Latency, Phone
from mobilefit.errors import InputError
from mobilefit.jobs import kinds, lab, searching
from mobilefit.jobs import plan as search_time
from mobilefit.jobs.folder import RECORD, RunFolder
from mobilefit.jobs.kinds import Kind
from mobilefit.jobs.lab import Trained
from mobilefit.jobs.model import network_for, spec_of
from mobilefit.jobs.options import Budget
from mobilefit.jobs.plan import SearchPlan
from mobilefit.jobs.searching import FullTraining, Search, Searching
from mobilefit.nn import Network, load_network, save_weights
from mobilefit.pipeline import candidates as networks_at
from mobilefit.pipeline import time_budget
from mobilefit.pipeline.candidates import Candidate, Sizes
from mobilefit.pipeline.design_config import SEARCH, DesignConfig
from mobilefit.pipeline.initial_weights import AUTO, InitialWeights, pretrained_sources
from mobilefit.pipeline.race import Judge, Race, Rung, Standing
from mobilefit.pipeline.race_task import Entrant, ShortTraining, TeacherFile
from mobilefit.pipeline.time_budget import RungPlan, SpeedModel, StagePlan
from mobilefit.progress import Voice
from mobilefit.runs import read_json
from mobilefit.runtime import StopRule
from mobilefit.search import Reward, Space, Supernet
from mobilefit.train import Recipe, SoftTargets

TEACHER = "teacher"
"""Folder of the teacher's answers while a run lasts."""
TEACHING = 0.5
"""Share of the loss that compares with the teacher."""
CANDIDATE_RULE = StopRule(max_seconds=0.5)
"""Of one of the three passes of a candidate's measurement: there are dozens."""


_START = {
    "fingerprint": str, "reference_ms": float, "budgets_ms": tuple[float, ...], "networks": tuple[dict[str, Any], ...],
    "pretrained": bool,
}  # fmt: skip
_SPEED = {"madds": float, "training": float, "evaluation": float}


class DesignRun:
    """The stages of a run, in order; each is done once, whatever interrupts the run."""

    def __init__(
        self, config: DesignConfig, task: Kind, budgets: Sequence[Budget], run: RunFolder, data: Any,
        log: Voice, phone: Phone | None, pool: RayPool | None,
    ) -> None:  # fmt: skip
        self.pool = pool
        self.config, self.task, self.budgets = config, task, budgets
        self.run, self.data, self.log, self.phone = run, data, log, phone
        self.held_out = lab.held_out(data, time_budget.HELD_IMAGES, config.seed)
        self.space = self._space()
        self.reference = self._reference()
        """What a budget in per cent is a share of, and what is measured beside everything."""
        self.table = lab.OpenTable(run.path / lab.TABLE, config.table, phone)
        self.race = Race(run.path / "race", log)
        self.searched: dict[str, Any] | None = None
        self.larger: Trained | None = None
        self.networks: list[Sizes] = []
        self.reference_ms = 0.0
        self.budgets_ms: list[float] = []
        self.own_teacher: TeacherFile | None = None
        self.recipe: Recipe
        self.speed: SpeedModel
        self.trial_speed: SpeedModel
        """Of a candidate's short training, which a worker does with one thread."""
        self.images_per_second: float

    def prepare(self) -> None:
        """Measure the candidates and the speed of training, and search where that is asked for."""
        self.own_teacher = self._own_teacher()
        start = self.run.stage("start", self.start, _START)
        lab.check_unchanged(start["fingerprint"], self.data, self.run.path)
        self.networks = [Sizes.from_dict(entry, f"{self.run.path}: networks") for entry in start["networks"]]
        self.budgets_ms, self.reference_ms = start["budgets_ms"], start["reference_ms"]
        self.recipe = self.task.recipe(self.config.recipe, start["pretrained"] or None, self.data)
        self.recipe = replace(self.recipe, batch_size=time_budget.batch_size(self.recipe, len(self.data.train)))
        speed = self.run.stage("speed", self.measure_speed, _SPEED)
        self.speed = SpeedModel(madds=speed["madds"], seconds=1 / speed["training"])
        self.images_per_second = speed["evaluation"]
        self.trial_speed = self.speed
        if self.pool is not None:
            one_thread = self.run.stage("speed of a worker", lambda: self.measure_speed(threads=1), _SPEED)
            self.trial_speed = SpeedModel(madds=one_thread["madds"], seconds=1 / one_thread["training"])
        if self.space is not None and self.worth_searching(start["pretrained"]):
            self.networks.append(self.search(start))

    # ---- before anything is trained

    def start(self) -> dict[str, Any]:
        """Measure the reference and the family's networks around the budgets, and see that these can be met."""
        kinds.tell_left_out(self.data, self.log)
        sources = self.sources()
        (reference_ms,) = (latency.median_ms for latency in lab.measured([self.reference], self.phone))
        budgets_ms = [budget.of(reference_ms) for budget in self.budgets]
        aims = [aim(budget, budget_ms) for budget, budget_ms in zip(self.budgets, budgets_ms, strict=True)]
        networks = self.family(sources)
        self.log(f"measuring {len(networks)} networks at the sizes that the budget allows")
        networks_at.measure_sizes(
            networks, aims, self.measure, ms_per_madd=reference_ms / self.reference.cost().madds
        )
        networks += networks_at.reduced_heads(networks, aims, self.measure)
        for budget_ms, aim_ms in zip(budgets_ms, aims, strict=True):
            if not networks_at.within(networks, aim_ms):
                self.check_reachable(networks, budget_ms)
        return {
            "fingerprint": self.data.fingerprint, "reference_ms": reference_ms, "budgets_ms": budgets_ms,
            "networks": [network.to_dict() for network in networks], "pretrained": bool(sources),
        }  # fmt: skip

    def sources(self) -> dict[str, tuple[NetSpec, str]]:
        """Networks with their pretrained weights, by name."""
        if self.searches_alone:
            return {}
        named = None if self.config.named is None else self.task_network(spec_of(self.config.named))
        return pretrained_sources(
            self.config.weights or (AUTO,), named, arch.FAMILY, self.log,
            tiny=bool(getattr(self.data, "tiny", False)), quiet=self.config.quiet,
        )  # fmt: skip

    @property
    def searches_alone(self) -> bool:
        """Whether the search's network is the only one, as ``--seed-network search`` had it."""
        return self.config.seed_network == SEARCH

    def family(self, sources: dict[str, tuple[NetSpec, str]]) -> list[Sizes]:
        """The networks of the race, each with the sizes that are tried; nothing is measured yet."""
        if self.searches_alone:
            return []
        networks: list[tuple[NetSpec, str | None]]
        if sources:
            networks = [
                (self.trained_as(self.task_network(spec), source), source)
                for spec, source in sources.values()
            ]
        elif self.config.named is not None:
            networks = [(self.task_network(spec_of(self.config.named)), None)]
        else:
            scratch = networks_at.scratch_networks(arch.FAMILY, networks_at.SCRATCH_FAMILY)
            networks = [(self.task_network(spec), None) for spec in scratch.values()]
        return [Sizes(spec=spec, weights=source, sizes=self.sizes(spec)) for spec, source in networks]

    def sizes(self, spec: NetSpec) -> tuple[int, ...]:
        """Heights of the input that are tried: those of the images, or of the network's task, at most."""
        short_side = getattr(self.data, "short_side", spec.image_shape[0])
        return networks_at.sizes_for(short_side, self.config.resolution)

    def task_network(self, spec: NetSpec) -> NetSpec:
        """A network for these images, at the size that is asked for or usual."""
        return self.task.network(spec, self.data, self.config.resolution, self.config.columns)

    def trained_as(self, spec: NetSpec, source: str) -> NetSpec:
        """The network with the padding and epsilon of its weights, which count in its latency."""
        start = kinds.begun(self.task, spec, source, self.data, seed=self.config.seed, quiet=self.config.quiet)
        if start.note:
            self.log(start.note)
        return replace(start.network.spec, name=spec.name)

    def check_reachable(self, networks: Sequence[Sizes], budget_ms: float) -> None:
        """See that a budget that no network meets can be met by shrinking one.

        Raises:
            InputError: it cannot: says what can be reached, and by what.
        """
        smallest = [network.at(min(network.sizes)) for network in networks]
        if self.space is not None:
            smallest.append(self.space.spec(self.space.smallest()))
        floors = self.measure([lab.narrowest(spec) for spec in smallest])
        lowest, spec = min(zip(floors, smallest, strict=True), key=lambda pair: pair[0])
        if lowest <= budget_ms and self.config.shrink != "none":
            return
        family = {
            name: self.task.network(network, self.data, *spec.image_shape) for name, network in arch.FAMILY.items()
        }
        family_floors = self.measure([lab.narrowest(network) for network in family.values()])
        least, name = min(zip(family_floors, family, strict=True))
        raise InputError(
            f"no network made from {spec.name} at {lab.pixels(spec)} meets {budget_ms:.4g} ms: "
            f"the lowest reachable is {lowest:.4g} ms; in the whole family {least:.4g} ms, from {name}",
            "raise --latency or lower --resolution",
        )

    def measure(self, specs: Sequence[NetSpec]) -> list[float]:
        """Milliseconds of the int8 files of networks."""
        return [latency.median_ms for latency in lab.measured(specs, self.phone, CANDIDATE_RULE)]

    def judged_latency(self, spec: NetSpec) -> float:
        """Milliseconds of a network's int8 file as they are judged at the end: timed longer, beside the reference."""
        reference, own = lab.measured([self.reference, spec], self.phone)
        return own.median_ms / self.slowdown(reference)

    def slowdown(self, reference: Latency) -> float:
        """How many times slower the machine is than when the budget was set, by what the reference takes; at least 1."""
        return max(1.0, reference.median_ms / self.reference_ms)

    def measure_speed(self, threads: int | None = None) -> dict[str, float]:
        """Train and evaluate the reference for a few seconds."""
        recipe = replace(self.recipe, distillation=0.0)
        preset = self.task.preset(self.data, self.reference)
        speed = search_time.speed(
            network_for(self.reference, None), self.data, preset, recipe, self.task.port, threads
        )
        return {
            "madds": time_budget.training_madds(self.reference, recipe), "training": speed.training,
            "evaluation": speed.evaluation,
        }  # fmt: skip

    def _reference(self) -> NetSpec:
        if self.config.named is not None:
            return self.task_network(spec_of(self.config.named))
        if self.space is not None:
            return self.space.reference
        return self.task_network(arch.spec("mobilenet_v3_small"))

    # ---- a search, as one more network

    def _space(self) -> Space | None:
        c = self.config
        if not c.searches:
            return None
        return searching.space_for(self.task, c.space, self.data, c.resolution, c.columns)

    def worth_searching(self, pretrained: bool) -> bool:
        """Whether a search can win here; where it cannot, it is left out, and that is said."""
        source = "the networks at hand" if pretrained else None
        worth, why = searching.worthwhile(len(self.data.train), source)
        if not worth:
            self.log(f"the search is left out: {why}")
        return worth

    def search(self, start: dict[str, Any]) -> Sizes:
        """Block-wise search for a little more than the largest budget; its best network, trained in full."""
        assert self.space is not None
        budget_ms = start["budgets_ms"][-1]
        reward = Reward(form=self.config.reward, target_ms=search_time.ABOVE * budget_ms)
        plan = SearchPlan(**self.run.stage("plan search", lambda: vars(self.plan_search()), SearchPlan))
        with self.run.timed("table"):
            self.table.fitted(self.reference, self.log)
        stage = Searching(
            Search(
                kind=self.task, space=self.space, strategy=self.config.strategy,
                evaluator="supernet" if self.task.task == "classify" else "proxy", reward=reward,
                plan=plan, recipe=self.recipe, seed=self.config.seed,
                workers=self.config.workers or 1, cluster=self.config.cluster,
            ),
            self.run.path, self.data, self.task.preset(self.data, self.reference), self.table,
            start["reference_ms"], self.log,
        )  # fmt: skip
        record = self.run.stage("search", stage.run, searching.RECORD_FIELDS)
        full = self.run.stage("plan searched", lambda: self.plan_searched(len(record["top"])).to_dict(), StagePlan)
        training = FullTraining(
            kind=self.task, data=self.data, preset=self.task.preset(self.data, self.reference),
            recipe=self.recipe, steps=full["steps"], folder=self.run.path / "train", voice=self.log,
        )  # fmt: skip
        self.searched = self.run.stage(
            "training searched", lambda: searching.fully_trained(record, training, reward, self.config.seed),
            searching.RECORD_FIELDS,
        )
        spec = searching.winner(self.searched)
        entry = searching.winning_entry(self.searched)
        path = self.run.path / "train" / f"{entry['label']}-{self.config.seed}" / "model.safetensors"
        size = spec.image_shape[0]
        return Sizes(
            spec=spec, weights=str(path), sizes=(size,), origin="searched",
            measured={size: entry["measured_ms"]},
        )  # fmt: skip

    def plan_search(self) -> SearchPlan:
        """The search's part of the time."""
        assert self.space is not None
        c, seconds = self.config, self.left() * search_time.SEARCH_SHARE
        speed = search_time.Speed(training=1 / self.speed.seconds, evaluation=self.images_per_second)
        if self.task.task == "classify":
            preset = self.task.preset(self.data, self.reference)
            shared = search_time.speed(Supernet(self.space), self.data, preset, self.recipe)
            return search_time.search_with_shared_weights(
                seconds, self.space, shared, self.recipe.batch_size, c.trials, c.top
            )
        held = len(self.held_out)
        steps = search_time.proxy_steps(seconds, speed, self.recipe.batch_size, c.trials, held)
        return search_time.search_by_proxy(
            seconds, self.space, speed, self.recipe.batch_size, c.trials, c.top, steps, held, c.workers or 1
        )

    def plan_searched(self, count: int) -> StagePlan:
        """The full trainings of a search's best networks."""
        each = self.step_seconds(self.reference)
        seconds = self.left() * time_budget.TEACHER_SHARE
        return self.full_plan(seconds, [each] * count)

    # ---- time

    def left(self) -> float:
        """Seconds that are left of what was promised."""
        return max(0.0, 60 * self.config.minutes * (1 - time_budget.RESERVE) - self.run.elapsed)

    def step_seconds(
        self, spec: NetSpec, teacher: SoftTargets | TeacherFile | None = None, speed: SpeedModel | None = None
    ) -> float:
        """About how long a training step of a network takes, here or at another speed."""
        image = (speed or self.speed).image(time_budget.training_madds(spec, self.recipe))
        return self.recipe.batch_size * image * self.with_answers(spec, teacher)

    def with_answers(self, spec: NetSpec, teacher: SoftTargets | TeacherFile | None) -> float:
        """How many times as long a step takes for a teacher's answers; 1 where these are kept, of a classifier."""
        if teacher is None or self.task.task == "classify":
            return 1.0
        soft_targets = teacher.opened() if isinstance(teacher, TeacherFile) else teacher
        assert isinstance(soft_targets.network, Network)
        return time_budget.with_answers(spec, soft_targets.network.spec, self.recipe)

    @property
    def per_epoch(self) -> int:
        """Steps of a pass over the training images."""
        return time_budget.epoch_steps(len(self.data.train), self.recipe)

    def rung_plan(
        self, number: int, seconds: float, candidates: Sequence[Candidate], teacher: SoftTargets | TeacherFile | None
    ) -> RungPlan:
        """The first (0) or second (1) rung of the race within some seconds."""
        step_seconds = [self.step_seconds(c.spec, teacher, self.trial_speed) for c in candidates]
        parallel = 1 if self.pool is None else self.pool.parallel
        most = time_budget.rung_steps(number, self.per_epoch, self.config.epochs)
        return time_budget.race_rung(
            most, seconds, step_seconds, self.per_epoch, parallel=parallel,
            evaluation_seconds=len(self.held_out) / self.images_per_second,
        )  # fmt: skip

    def full_plan(self, seconds: float, step_seconds: Sequence[float]) -> StagePlan:
        """Full trainings within some seconds, or as long as the user wants them."""
        pretrained = any(network.weights is not None and network.origin == "family" for network in self.networks)
        most = time_budget.MOST_PRETRAINED_EPOCHS if pretrained else time_budget.MOST_EPOCHS
        return time_budget.full_training(seconds, step_seconds, self.per_epoch, most, self.config.epochs)

    # ---- trainings

    def weights_from(self, larger: Trained | None) -> InitialWeights:
        """What networks begin with, beside a larger network of the run."""
        return InitialWeights(
            task=self.task, data=self.data, recipe=self.recipe, larger=None if larger is None else larger.network,
            larger_preset=None if larger is None else larger.preset, quiet=True,
        )  # fmt: skip

    def train(
        self, name: str, label: str, steps: int, seed: int, initial: Callable[[int], tuple[Network, Preset]],
        teacher: SoftTargets | TeacherFile | None, *, kind: str,
    ) -> Trained:  # fmt: skip
        """A network trained in full; taken up where it stopped."""
        folder = self.run.path / "train" / f"{name}-{seed}"
        path = folder / "model.safetensors"
        network, preset = initial(seed)
        if not path.exists():
            self.log(f"training {label}, seed {seed}" + (f", {steps} steps" if steps else ""))
            self.fit(
                network, preset, steps, seed, folder, self.log.label(f"{label}, seed {seed}"), teacher,
                shrunk=kind in ("adapted", "width"),
            )  # fmt: skip
            save_weights(network, path, preset=preset.to_dict(), classes=self.data.classes)
            lab.drop_checkpoints(folder)
        return Trained(label=label, kind=kind, seed=seed, network=load_network(path), preset=preset)

    def fit(
        self, network: Network, preset: Preset, steps: int, seed: int, folder: Path, label: str | None,
        teacher: SoftTargets | TeacherFile | None, *, shrunk: bool = False,
    ) -> None:  # fmt: skip
        """Train in place, going on from the folder's checkpoint if there is one; learn how fast it was."""
        recipe = self.training_recipe(teacher)
        if shrunk:
            recipe = adapt.for_shrunk(recipe)
        result = lab.train(
            network, self.data, preset, recipe, task=self.task.port, steps=steps, seed=seed,
            folder=folder, label=label,
            teacher=teacher.opened() if isinstance(teacher, TeacherFile) else teacher,
        )  # fmt: skip
        self.learn_speed(self.speed, network.spec, result.images_per_second, teacher)

    def training_recipe(self, teacher: SoftTargets | TeacherFile | None) -> Recipe:
        """The recipe of a training with or without a teacher."""
        if teacher is None:
            return replace(self.recipe, distillation=0.0)
        return time_budget.distilled(self.recipe, TEACHING)

    def learn_speed(
        self, speed: SpeedModel, spec: NetSpec, images_per_second: float, teacher: SoftTargets | TeacherFile | None
    ) -> None:
        """Update a speed from a training; 0 images per second: it had no steps left to do."""
        if images_per_second:
            seconds = 1 / images_per_second / self.with_answers(spec, teacher)
            speed.learn(time_budget.training_madds(spec, self.recipe), seconds)

    def rung(self, rung: Rung, candidates: Sequence[Candidate], judge: Judge) -> list[Standing]:
        """One rung of the race, here or on the workers, which then end: latencies are measured without them."""
        if self.pool is None:
            return self.race.rung(rung, candidates, judge)
        standings = self.race.rung(rung, candidates, judge, run=self.pool.map)
        if self.config.cluster is None:
            self.pool.close()
        return standings

    def short_training(
        self, rung: str, steps: int, entrants: Sequence[Entrant], teacher: SoftTargets | TeacherFile | None
    ) -> ShortTraining:
        """What a rung does with each of its candidates."""
        return ShortTraining(
            task=self.task, data=self.data, held_out=self.held_out,
            initial={entrant.candidate.slug: entrant.initial for entrant in entrants},
            recipe=self.training_recipe(teacher), teacher=teacher, steps=steps, seed=self.config.seed,
            folder=self.race.folder / rung, quiet=self.config.quiet or self.pool is not None,
        )  # fmt: skip

    def soft_targets(self, larger: Trained | None) -> SoftTargets | TeacherFile | None:
        """Who teaches, a classifier's answers kept on disk for all that learn from them; ``None``: nobody does."""
        if self.own_teacher is not None or larger is None:
            return self.own_teacher
        return SoftTargets(
            network=larger.network.eval(), preset=larger.preset,
            cache=self.run.path / TEACHER if self.task.task == "classify" else None,
        )  # fmt: skip

    def _own_teacher(self) -> TeacherFile | None:
        """The teacher that the user brought.

        Raises:
            InputError: it cannot be read, knows other classes, or is of another task.
        """
        if self.config.teacher is None:
            return None
        teacher = TeacherFile(
            source=self.config.teacher, preset=self.task.preset(self.data, self.reference),
            classes=tuple(self.data.classes), quiet=self.config.quiet, cache=self.run.path / TEACHER,
            spec=self.reference,
        )  # fmt: skip
        teacher.opened()  # a bad file is refused before anything is measured
        return teacher

    def finish_several(self, names: Sequence[str]) -> None:
        """One record and one frontier of several budgets.

        Args:
            names: of the budgets' folders, rising.
        """
        records = {name: read_json(self.run.path / name / RECORD) for name in names}
        largest = records[next(reversed(records))]
        results = [
            {**row, "label": f"{name}: {row['label']}"}
            for name, record in records.items() for row in record["results"]
            if row["label"] == record["final"]["label"] or row["kind"] in ("width", "resolution")
        ]  # fmt: skip
        self.run.finish({
            **{key: largest[key] for key in ("seed", "task", "data", "seed_spec", "reference_spec",
                                             "reference_ms", "final_spec", "plan", "race")},
            "budget": self.config.latency, "designs": list(records), "results": results,
            "final": {"label": None},
        })  # fmt: skip


def aim(budget: Budget, budget_ms: float) -> float:
    """Milliseconds that a candidate may take: the budget less a measurement's error.

    The reference itself meets a budget of 100 % by definition.
    """
    whole = budget.fraction is not None and budget.fraction >= 1
    return budget_ms if whole else budget_ms * (1 - lab.MARGIN)


def budget_label(budget: Budget) -> str:
    """A budget as a folder's name."""
    if budget.milliseconds is not None:
        return f"{budget.milliseconds:g}ms"
    return f"{100 * (budget.fraction or 0.0):g}pct"
