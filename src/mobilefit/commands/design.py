"""The main job: images and a latency budget in, a trained, quantized, measured network out.

The network and the size of its input are found, unless they are named. Every network that is within the
budget at some size is a candidate; so are what the shrinking of a larger one and, with ``--search``, a
block-wise search make (MobileNetV3 paper, sections 4.1 and 4.2). They race (:mod:`..pipeline.race`): the
best on held-out images is trained in full, begun from and taught by a larger network that never ships.
Beside it stand what a user could do by hand in its place, trained alike: the width multiplier, and the
same network at a lower resolution. What is best on the held-out images is exported; the test images are
looked at once, at the end.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from mobilefit import adapt, arch, device, report
from mobilefit.adapt import AdaptSettings
from mobilefit.arch import NetSpec
from mobilefit.cluster import RayPool
from mobilefit.data import Preset
from mobilefit.device import Latency, Phone
from mobilefit.errors import InputError, QualityGateError
from mobilefit.jobs import checks, kinds, lab, searching
from mobilefit.jobs import plan as search_time
from mobilefit.jobs.folder import RECORD, RunFolder
from mobilefit.jobs.kinds import KINDS, Kind, source_of
from mobilefit.jobs.lab import Trained
from mobilefit.jobs.model import Exported, export, int8_for_timing, network_for, spec_of
from mobilefit.jobs.options import Budget, device_option, option, parse_budget, tool_option
from mobilefit.jobs.plan import SearchPlan
from mobilefit.jobs.searching import FullTraining, Search, Searching
from mobilefit.nn import Network, load_network, save_weights
from mobilefit.pipeline import candidates as networks_at
from mobilefit.pipeline import time_budget
from mobilefit.pipeline.candidates import Candidate, Sizes
from mobilefit.pipeline.initial_weights import AUTO, InitialWeights, covers, pretrained_sources
from mobilefit.pipeline.race import Judge, Losses, Race, Rung, Standing, to_dict
from mobilefit.pipeline.race_task import (
    FeatureProbe,
    Initial,
    ShortTraining,
    ShrunkWeights,
    TeacherFile,
    judged_by,
)
from mobilefit.pipeline.time_budget import AdaptPlan, RungPlan, SpeedModel, StagePlan
from mobilefit.progress import Voice
from mobilefit.runs import read_json
from mobilefit.runtime import StopRule
from mobilefit.search import Reward, Space, Supernet
from mobilefit.train import Recipe, SoftTargets
from mobilefit.train.statistics import paired

TEACHER = "teacher"
"""Folder of the teacher's answers while a run lasts."""
SEARCH = "search"
"""The value of ``--seed-network`` that used to ask for a search."""
WIDEST = 150
"""Percent: the largest width multiplier that is compared with."""
WIDTHS_AROUND = 4
"""Width multipliers, in hundredths, that are measured on either side of the best guess."""
TEACHING = 0.5
"""Share of the loss that compares with the teacher."""
TEACHER_MADDS = (1.3, 2.6)
"""Least and most multiply-adds of the larger network, in the student's. A teacher at twice the student's
resolution taught no better than one at one and a half times (MobileNetV2 at 64 px, photos of clothes)."""
LEAST_TEACHER_EPOCHS = 3.0
PROBED = 3
"""With more candidates than this, pretrained ones are first compared by frozen features."""
AFTER_PROBE, FINALISTS = 4, 3
"""Candidates that go on after the probe, and after the first training."""
CANDIDATE_RULE = StopRule(max_seconds=0.5)
"""Of one of the three passes of a candidate's measurement: there are dozens."""
JUDGED_AGAIN = 3
"""Measurements of a network that seems to be over the budget by less than the noise."""

T = TypeVar("T")
Shrink = Literal["auto", "netadapt", "none"]
Retrain = Literal["inherit", "scratch"]


@dataclass(frozen=True, kw_only=True)
class DesignConfig:
    """Options of ``mobilefit design``."""

    data: str = option(help="images: docs/data.md; with boxes: docs/detection.md; with masks: docs/segmentation.md", argument=True)
    latency: str = option(
        help="budget of the int8 network here: 2ms, 850us, or 70% of the reference's (--seed-network at "
        "--resolution, else MobileNetV3-Small at 96 px); several: 1ms,2ms,4ms"
    )
    task: Literal["classify", "detect", "segment"] | None = option(
        None, help="what the network is for (default: what --seed-network is for, else classify)"
    )
    seed_network: str | None = option(
        None, help="the only network to take, by name or a spec's .json, at the best size (default: the best of the family)"
    )
    search: bool = option(False, help="search block-wise for a network too (docs/search.md)")
    space: str = option("mobilenet_v3_small", help="what is searched: see mobilefit search")
    strategy: str = option("evolution", help="of the search: rnn, reinforce, evolution or random")
    reward: str = option("absolute", help="of the search: absolute, soft, soft_small or hard")
    trials: int | None = option(None, help="networks that the search tries (default: by --minutes)")
    top: int = option(1, help="best networks of the search that are trained in full")
    resolution: int | None = option(
        None, help="side of the network's input, or its height, pixels (default: the best within the budget)"
    )
    columns: int | None = option(None, help="width of the network's input, where it is not square, pixels")
    ignore_label: tuple[int, ...] = option((), help="segment: a label in the masks that is no class; may be repeated")
    minutes: float = option(30.0, help="how long it may take")
    weights: tuple[str, ...] = option(
        (), help="pretrained weights: auto (the default: what torchvision and timm have), none, torchvision, timm, "
        "timm:NAME, or a file; several files: their networks race"
    )
    teacher: str | None = option(None, help="a trained network of these classes to learn from: a file, or timm:NAME=FILE (default: a larger one of the run)")
    shrink: Shrink = option("auto", help="whether a larger network is shrunk as well: netadapt, none, or auto: where it can win")
    retrain: Retrain = option("inherit", help="what a shrunk network is trained from: its inherited weights, or scratch (as in the papers)")
    seeds: int = option(1, help="trainings of each compared network, for mean and spread")
    seed: int = option(0, help="random seed; the first of --seeds")
    delta: float | None = option(
        None, help="least latency cut of a NetAdapt step, part of the larger network's (default: by --minutes)"
    )
    rule: adapt.Rule = option("ratio", help="which NetAdapt proposal wins: ratio (V3 paper), accuracy or cautious")
    tune_steps: int | None = option(
        None, help="fine-tuning steps of a NetAdapt proposal (default: by --minutes)"
    )
    epochs: float | None = option(None, help="of each full training (default: by --minutes)")
    recipe: str | None = option(
        None, help="how to train: docs/recipes.md (default: finetune with pretrained weights, else fast; detect; segment)"
    )
    max_drop: float = option(1.0, help="most points of accuracy, mAP or mIoU that int8 may lose: more is exit code 3")
    table: Path | None = option(None, help="latency table of this device, from an earlier run")
    workers: int | None = option(
        None, help="candidates of the race trained at a time, on Ray (pip install 'mobilefit[cluster]'), each with one "
        "thread (default: one after the other, with all threads)"
    )
    cluster: str | None = option(None, help="HOST:PORT of a Ray cluster, or auto: as many candidates at a time as it has room for")
    device: str = device_option()
    benchmark_model: Path | None = tool_option()
    out: Path | None = option(None, help="run folder (default: runs/design-...)")
    quiet: bool = option(False, help="show no progress")

    @property
    def searches(self) -> bool:
        """Whether there is a block-wise search."""
        return self.search or self.seed_network == SEARCH

    @property
    def named(self) -> str | None:
        """The network that the user named."""
        return None if self.seed_network == SEARCH else self.seed_network


def design(config: DesignConfig) -> dict[str, Any]:
    """Run the chain, or what is left of it, and return the run's record.

    Raises:
        InputError: bad data or options, a budget that cannot be met (says the lowest that can).
        QualityGateError: everything is done and written, but the network is over the budget, or int8
            loses too much.
    """
    budgets = parse_budgets(config.latency)
    _check(config)
    run = RunFolder(config.out or default_out(config), "design", config)
    log = Voice(quiet=config.quiet)
    if run.finished:
        log(f"{run.path} holds this run, finished; delete the folder to run it again")
    else:
        with ray_pool(config) as pool, device.opened(config.device, tool=config.benchmark_model, say=log) as phone:
            lab.check_table(config.table, run.path, phone)
            task = task_of(config)
            data = task.load(source_of(config, log))
            lab.check_held_out(data)
            _Design(config, task, budgets, run, data, log, phone, pool).run_all()
    return _closing(run, config)


@contextlib.contextmanager
def ray_pool(config: DesignConfig) -> Iterator[RayPool | None]:
    """The workers that the race's candidates are trained by; ``None``: this process trains them.

    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """
    if config.workers is None and config.cluster is None:
        yield None
        return
    with RayPool(workers=config.workers or 1, address=config.cluster) as pool:
        if config.cluster is not None:
            pool.open()
        yield pool


def parse_budgets(text: str) -> list[Budget]:
    """Read one budget, or several divided by commas.

    Raises:
        InputError: one of them is no latency, they are of two kinds, or out of order or doubled.
    """
    budgets = [parse_budget(part) for part in text.split(",")]
    values = [(budget.milliseconds, budget.fraction) for budget in budgets]
    numbers = [milliseconds or fraction or 0.0 for milliseconds, fraction in values]
    if len({milliseconds is None for milliseconds, _ in values}) > 1:
        raise InputError(f"--latency {text} mixes times and shares", "write 1ms,2ms or 50%,70%")
    if any(second <= first for first, second in itertools.pairwise(numbers)):
        raise InputError(
            f"--latency {text} is out of order, or names a budget twice", "write each once, rising"
        )
    return budgets


def default_out(config: DesignConfig) -> Path:
    """A folder that the same command finds again."""
    share = config.latency.replace("%", "pct").replace("/", "_").replace(",", "-")
    network = config.space if config.searches else config.named or "family"
    size = [] if config.resolution is None else [
        f"{config.resolution}" + (f"x{config.columns}" if config.columns else "")
    ]
    words = [Path(config.data).name, Path(network).stem, *size, share]
    words[1:1] = [config.task] if config.task not in (None, "classify") else []
    words += [config.device.replace(":", "-")] if config.device != "host" else []
    return Path("runs") / ("design-" + "-".join(words))


def task_of(config: DesignConfig) -> Kind:
    """The task of a design.

    Raises:
        InputError: the network that is named is for another.
    """
    if config.named is None:
        return KINDS[config.task or "classify"]
    return kinds.kind_for(config.task, spec_of(config.named))


def _check(config: DesignConfig) -> None:
    lab.check_positive(
        resolution=config.resolution, columns=config.columns, minutes=config.minutes, seeds=config.seeds,
        delta=config.delta, epochs=config.epochs, trials=config.trials, top=config.top, workers=config.workers,
    )  # fmt: skip
    AdaptSettings(target_ms=1.0, delta=config.delta or 0.01, rule=config.rule)  # late is too late
    task = task_of(config).task
    kinds.check_options(
        task, recipe=config.recipe, height=config.resolution, width=config.columns,
        ignore=config.ignore_label,
    )  # fmt: skip
    if config.teacher is not None and task != "classify":
        raise InputError(f"--teacher is for classification, and this is --task {task}", "leave --teacher out")
    if config.searches and config.weights not in ((), (AUTO,), ("none",)):
        raise InputError(
            f"{config.weights[0]} are one network's weights, and a search tries many",
            "leave --search out, and name the network with --seed-network",
        )
    if config.workers is not None and config.cluster is not None:
        raise InputError(
            "--workers counts trainings on this machine, a --cluster takes what it has room for", "give one of them"
        )
    searching.check_names(config.space, config.strategy, config.reward)
    device.check_target(config.device, config.benchmark_model)


def _closing(run: RunFolder, config: DesignConfig) -> dict[str, Any]:
    """Print what came out, and pass the gates."""
    record = run.record()
    several = record.get("designs")
    for folder in [run.path / name for name in several] if several else [run.path]:
        own = read_json(folder / RECORD) if several else record
        print(report.summary_table(own))
        for name in (*own["final"]["files"].values(), "report.html"):
            print(folder / name)
        _gates(own, folder, config)
    return record


def _gates(record: dict[str, Any], folder: Path, config: DesignConfig) -> None:
    final = record["final"]
    checks.gate(final["parity"], folder)
    if report.over_budget(record):
        latency_ms, budget_ms = final["judged_ms"], record["budget_ms"]
        raise QualityGateError(
            f"the final network is {latency_ms - budget_ms:.3g} ms over the budget of {budget_ms:.4g} ms",
            "give a lower --latency, or run it again on a quiet machine",
        )
    drop = 100 * (final["accuracy_float"] - final["accuracy_int8"])
    if drop > config.max_drop:
        score = "" if record["task"] == "classify" else f" of {KINDS[record['task']].score}"
        raise QualityGateError(
            f"int8 loses {drop:.2f} points{score}, more than --max-drop {config.max_drop:g}",
            f"mobilefit quantize {folder / final['files']['float32']} {config.data} --method qat trains "
            "it with the rounding in place",
        )


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A network that may be trained in full, and with what it begins."""

    kind: str
    candidate: Candidate
    initial: Initial


class _Design:
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
        self.rungs: list[dict[str, Any]] = []
        self.plans: dict[str, Any] = {}
        self.searched: dict[str, Any] | None = None
        self.larger: Trained | None = None
        self.networks: list[Sizes] = []
        self.reference_ms = 0.0
        self.own_teacher: TeacherFile | None = None
        self.recipe: Recipe
        self.speed: SpeedModel
        self.trial_speed: SpeedModel
        """Of a candidate's short training, which a worker does with one thread."""
        self.images_per_second: float

    def run_all(self) -> None:
        """Everything, and the record at the end."""
        self.own_teacher = self._own_teacher()
        start = self.run.stage("start", self.start)
        lab.check_unchanged(start["fingerprint"], self.data, self.run.path)
        self.networks = [_sizes(entry) for entry in start["networks"]]
        self.reference_ms = start["reference_ms"]
        self.recipe = self.task.recipe(self.config.recipe, start["pretrained"] or None, self.data)
        self.recipe = replace(self.recipe, batch_size=time_budget.batch_size(self.recipe, len(self.data.train)))
        speed = self.run.stage("speed", self.measure_speed)
        self.speed = SpeedModel(madds=speed["madds"], seconds=1 / speed["training"])
        self.images_per_second = speed["evaluation"]
        self.trial_speed = self.speed
        if self.pool is not None:
            one_thread = self.run.stage("speed of a worker", lambda: self.measure_speed(threads=1))
            self.trial_speed = SpeedModel(madds=one_thread["madds"], seconds=1 / one_thread["training"])
        if self.space is not None and self.worth_searching(start["pretrained"]):
            self.networks.append(self.search(start))
        designs: dict[str, _ForBudget] = {}
        for budget, budget_ms in reversed(list(zip(self.budgets, start["budgets_ms"], strict=True))):
            several = len(self.budgets) > 1
            folder = self.run.path / _label(budget) if several else self.run.path
            designs[folder.name] = _ForBudget(
                self, budget, budget_ms, folder, _label(budget) + " " if several else "",
                share=1 / (len(self.budgets) - len(designs)),
            )  # fmt: skip
            designs[folder.name].run_all()
        if len(designs) > 1:
            self.finish_several(designs)
        shutil.rmtree(self.run.path / TEACHER, ignore_errors=True)

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
            "networks": [_described(network) for network in networks], "pretrained": bool(sources),
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
        name, least = lab.family_floor(family, self.phone)
        raise InputError(
            f"no network made from {spec.name} at {lab.pixels(spec)} meets {budget_ms:.4g} ms: "
            f"the lowest reachable is {lowest:.4g} ms; in the whole family {least:.4g} ms, from {name}",
            "raise --latency or lower --resolution",
        )

    def measure(self, specs: Sequence[NetSpec]) -> list[float]:
        """Milliseconds of the int8 files of networks."""
        return [latency.median_ms for latency in lab.measured(specs, self.phone, CANDIDATE_RULE)]

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
        plan = SearchPlan(**self.run.stage("plan search", lambda: vars(self.plan_search())))
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
        record = self.run.stage("search", stage.run)
        full = self.run.stage("plan searched", lambda: self.plan_searched(len(record["top"])).to_dict())
        training = FullTraining(
            kind=self.task, data=self.data, preset=self.task.preset(self.data, self.reference),
            recipe=self.recipe, steps=full["steps"], folder=self.run.path / "train", voice=self.log,
        )  # fmt: skip
        self.searched = self.run.stage(
            "training searched", lambda: searching.fully_trained(record, training, reward, self.config.seed)
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

    def step_seconds(self, spec: NetSpec) -> float:
        """About how long a training step of a network takes."""
        return self.recipe.batch_size * self.speed.image(time_budget.training_madds(spec, self.recipe))

    @property
    def per_epoch(self) -> int:
        """Steps of a pass over the training images."""
        return time_budget.epoch_steps(len(self.data.train), self.recipe)

    def rung_plan(self, epochs: float, seconds: float, candidates: Sequence[Candidate]) -> RungPlan:
        """A rung of the race within some seconds."""
        batch, speed = self.recipe.batch_size, self.trial_speed
        step_seconds = [batch * speed.image(time_budget.training_madds(c.spec, self.recipe)) for c in candidates]
        parallel = 1 if self.pool is None else self.pool.parallel
        return time_budget.race_rung(
            epochs, seconds, step_seconds, self.per_epoch, parallel=parallel,
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
            task=self.task, data=self.data, larger=None if larger is None else larger.network,
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
                shrunk=kind == "adapted",
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
        self.learn_speed(self.speed, network.spec, result.images_per_second)

    def training_recipe(self, teacher: SoftTargets | TeacherFile | None) -> Recipe:
        """The recipe of a training with or without a teacher."""
        if teacher is None:
            return replace(self.recipe, distillation=0.0)
        return time_budget.distilled(self.recipe, TEACHING)

    def learn_speed(self, speed: SpeedModel, spec: NetSpec, images_per_second: float) -> None:
        """Update a speed from a training; 0 images per second: it had no steps left to do."""
        if images_per_second:
            speed.learn(time_budget.training_madds(spec, self.recipe), 1 / images_per_second)

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
        """Who teaches, its answers kept on disk for all that learn from them; ``None``: nobody does."""
        if self.own_teacher is not None or larger is None or self.task.task != "classify":
            return self.own_teacher
        return SoftTargets(
            network=larger.network.eval(), preset=larger.preset, cache=self.run.path / TEACHER
        )

    def _own_teacher(self) -> TeacherFile | None:
        """The teacher that the user brought.

        Raises:
            InputError: it cannot be read, knows other classes, or the task takes no teacher.
        """
        if self.config.teacher is None:
            return None
        teacher = TeacherFile(
            source=self.config.teacher, preset=self.task.preset(self.data, self.reference),
            classes=tuple(self.data.classes), quiet=self.config.quiet, cache=self.run.path / TEACHER,
        )  # fmt: skip
        teacher.opened()  # a bad file is refused before anything is measured
        return teacher

    def judge(self, network: Network, preset: Preset) -> tuple[Losses, float]:
        """Losses of the held-out images, and the task's score."""
        return judged_by(self.task, network, self.held_out, preset)

    def finish_several(self, designs: dict[str, _ForBudget]) -> None:
        """One record and one frontier of several budgets."""
        records = {name: read_json(self.run.path / name / RECORD) for name in reversed(designs)}
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
        report.write_report(self.run.path)


def aim(budget: Budget, budget_ms: float) -> float:
    """Milliseconds that a candidate may take: the budget less a measurement's error.

    The reference itself meets a budget of 100 % by definition.
    """
    whole = budget.fraction is not None and budget.fraction >= 1
    return budget_ms if whole else budget_ms * (1 - lab.MARGIN)


def _label(budget: Budget) -> str:
    """A budget as a folder's name."""
    if budget.milliseconds is not None:
        return f"{budget.milliseconds:g}ms"
    return f"{100 * (budget.fraction or 0.0):g}pct"


def _described(network: Sizes) -> dict[str, Any]:
    return {
        "spec": network.spec.to_dict(), "weights": network.weights, "sizes": list(network.sizes),
        "whole": None if network.whole is None else network.whole.to_dict(),
        "origin": network.origin, "measured": [[size, ms] for size, ms in sorted(network.measured.items())],
    }  # fmt: skip


def _sizes(entry: dict[str, Any]) -> Sizes:
    return Sizes(
        spec=NetSpec.from_dict(entry["spec"]), weights=entry["weights"], sizes=tuple(entry["sizes"]),
        origin=entry["origin"], whole=None if entry["whole"] is None else NetSpec.from_dict(entry["whole"]),
        measured={int(size): ms for size, ms in entry["measured"]},
    )  # fmt: skip


class _ForBudget:
    """The race for one budget, and the trainings and files that come of it.

    Args:
        run: the whole design, with what the budgets share.
        folder: of this budget's files and record.
        prefix: of its stages in the run's state.
        share: of the time that is left; the rest is for the budgets after this one.
    """

    def __init__(
        self, run: _Design, budget: Budget, budget_ms: float, folder: Path, prefix: str, *, share: float
    ) -> None:
        self.design, self.budget, self.budget_ms, self.folder, self.prefix = run, budget, budget_ms, folder, prefix
        self.share = share
        self.config, self.task, self.data, self.log = run.config, run.task, run.data, run.log
        self.aim_ms = aim(budget, budget_ms)
        self.rungs: list[dict[str, Any]] = []
        self.plans: dict[str, Any] = {}

    def run_all(self) -> None:
        """From the candidates to the record."""
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
        if larger is None:  # the images are no larger: a smaller budget's networks learn from this one
            self.design.larger = replace(trained[0], kind="seed")
        self.finish([] if larger is None else [larger], trained)

    def left(self) -> float:
        """Seconds that are left for this budget."""
        return self.design.left() * self.share

    def stage(self, name: str, work: Callable[[], Any]) -> Any:
        """The result of a stage of this budget, done once."""
        return self.design.run.stage(self.prefix + name, work)

    def planned(self, name: str, work: Callable[[], StagePlan | AdaptPlan]) -> dict[str, Any]:
        """How long a stage is: decided when it begins, and kept."""
        plan: dict[str, Any] = self.stage(f"plan {name}", lambda: work().to_dict())
        self.plans[name] = plan
        return plan

    # ---- the race

    def contenders(self) -> list[Candidate]:
        """Every network at its largest size within the budget; from scratch the most promising ones."""
        within = networks_at.within(self.design.networks, self.aim_ms)
        if len(within) <= networks_at.MOST_SCRATCH or any(c.weights for c in within):
            return within
        return networks_at.spread(within)

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
            contenders = self.survivors(rung, c.rung(rung, contenders, probe))
        if len(contenders) < 2:
            return contenders
        name = f"{self.prefix}rung_1"
        plan = self.planned("rung_1", lambda: c.rung_plan(
            time_budget.RUNG_EPOCHS[0], self.left() * time_budget.RACE_SHARE / 2, contenders
        ))  # fmt: skip
        contenders = self.affordable(contenders, plan)
        if len(contenders) < 2:
            return contenders
        rung = Rung(name=name, survivors=FINALISTS, what=f"short trainings ({plan['epochs']:.1f} epochs)")
        entrants = [
            Entrant(kind="candidate", candidate=contender, initial=self.initial(contender, None))
            for contender in contenders
        ]
        judge = c.short_training(name, plan["steps"], entrants, c.soft_targets(None))
        return self.survivors(rung, c.rung(rung, contenders, judge))

    def affordable(self, contenders: list[T], plan: dict[str, Any]) -> list[T]:
        """The most promising ones, as many as there is time to train for long enough."""
        count = plan["candidates"]
        if count < len(contenders):
            self.log(f"there is time for {count} of {len(contenders)} candidates: the first ones go on")
        return contenders[:count]

    def survivors(self, rung: Rung, standings: list[Standing]) -> list[Candidate]:
        """Who goes on; the standings are kept for the record, and the best one's speed for the next plan."""
        for standing in reversed(standings):
            self.design.learn_speed(
                self.design.trial_speed, standing.candidate.spec, standing.judged.images_per_second
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
            larger = c.run.stage("larger", lambda: self.choose_larger(ranked))
            if larger is not None:
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
            epochs = seconds / (c.step_seconds(option_.spec) * c.per_epoch)
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
            c.left() * time_budget.TEACHER_SHARE, [c.step_seconds(candidate.spec)]
        ).to_dict())  # fmt: skip
        self.plans["larger"] = plan
        label = "seed" if self.config.named else candidate.name
        with c.run.timed("training seed"):
            return c.train(
                "seed", label, plan["steps"], self.config.seed, self.initial(candidate, None), c.own_teacher,
                kind="seed",
            )

    # ---- shrinking it

    def shrunk(self, larger: Trained | None) -> Entrant | None:
        """What NetAdapt makes of the larger network, or of it at the first size that is over the budget."""
        c = self.design
        if larger is None or self.config.shrink == "none":
            return None
        base = self.shrink_base(larger)
        if base is None:
            return None
        start_ms = self.stage("shrink base", lambda: c.measure([base.spec])[0])
        if start_ms <= self.aim_ms:
            return None
        evaluation = len(c.held_out) / c.images_per_second
        plan = AdaptPlan(**self.planned("netadapt", lambda: time_budget.netadapt(
            self.left() * time_budget.SHRINK_SHARE, base.spec, over=1 - self.aim_ms / start_ms,
            step_seconds=c.step_seconds(base.spec), evaluation_seconds=evaluation,
            held_images=len(c.held_out), per_epoch=c.per_epoch, delta=self.config.delta,
            tune_steps=self.config.tune_steps,
        )))  # fmt: skip
        if plan.tune_steps == 0:
            if self.config.shrink == "auto" and networks_at.within(c.networks, self.aim_ms):
                self.log("there is no time to shrink a larger network well: left out (--shrink netadapt insists)")
                return None
            self.log("there is no time to tune NetAdapt's proposals: they are judged with new batch norm statistics alone")
        with c.run.timed(f"{self.prefix}table"):
            c.table.fitted(base.spec, self.log)
        folder = self.folder / "netadapt"
        with c.run.timed(f"{self.prefix}netadapt"):
            spec = self.netadapt(base, larger, start_ms, plan, folder)
        latency_ms = self.stage("adapted latency", lambda: c.measure([spec])[0])
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

    def netadapt(
        self, base: Network, larger: Trained, start_ms: float, plan: AdaptPlan, folder: Path
    ) -> NetSpec:
        """NetAdapt from a trained network down to the budget."""
        c = self.design
        settings = AdaptSettings(
            target_ms=self.budget_ms, margin=lab.MARGIN, delta=plan.delta, rule=self.config.rule
        )
        tools = adapt.tools_for(
            self.data.train, c.held_out,
            preset=replace(larger.preset, resolution=base.spec.image_shape[0]), recipe=c.recipe,
            steps=plan.tune_steps, latency=c.table.predict, confirm=lab.Confirm(base, start_ms, c.phone),
            task=self.task.port,
        )  # fmt: skip
        result = adapt.adapt(
            base, settings, tools, folder, seed=self.config.seed, say=self.log,
            label=self.log.label("looking for proposals"),
        )  # fmt: skip
        return replace(result.spec, name=f"{base.spec.name}_adapted")

    # ---- the finals, and what stands beside the winner

    def kind_of(self, candidate: Candidate, larger: Trained | None) -> str:
        """What a candidate is called in the record."""
        if larger is not None and candidate.origin != "head" and covers(larger.network.spec, candidate.spec):
            return "resolution" if self.same_widths(candidate.spec, larger) else "width"
        fixed = self.config.named is not None and self.config.resolution is not None
        return "seed" if fixed and larger is None else "candidate"

    def same_widths(self, spec: NetSpec, larger: Trained) -> bool:
        """Whether a network is the larger one at another resolution."""
        return replace(
            larger.network.spec, name="", input_size=spec.input_size, input_width=spec.input_width
        ) == replace(spec, name="", padding=larger.network.spec.padding, norm=larger.network.spec.norm)

    def taught(self, entrants: list[Entrant], larger: Trained | None) -> Entrant:
        """The winner: after a short training, taught by the larger network."""
        if len(entrants) == 1:
            return entrants[0]
        c = self.design
        name = f"{self.prefix}rung_2"
        plan = self.planned("rung_2", lambda: c.rung_plan(
            time_budget.RUNG_EPOCHS[1], self.left() * time_budget.RACE_SHARE, [e.candidate for e in entrants]
        ))  # fmt: skip
        entrants = self.affordable(entrants, plan)
        if len(entrants) < 2:
            return entrants[0]
        by_slug = {entrant.candidate.slug: entrant for entrant in entrants}
        teacher = c.soft_targets(larger)
        how = "untaught" if teacher is None else "taught"
        rung = Rung(name=name, survivors=1, what=f"finals ({plan['epochs']:.1f} epochs, {how})")
        judge = c.short_training(name, plan["steps"], entrants, teacher)
        standings = c.rung(rung, [e.candidate for e in entrants], judge)
        self.survivors(rung, standings)
        return by_slug[standings[0].candidate.slug]

    def standing(self, winner: Entrant, larger: Trained | None) -> list[Entrant]:
        """What a user could do by hand: the larger network at a lower resolution, and scaled in width."""
        if larger is None:
            return []
        rows = [
            Entrant(kind="resolution", candidate=candidate, initial=self.initial(candidate, larger))
            for candidate in networks_at.within(self.design.networks, self.aim_ms)
            if winner.kind != "resolution" and self.same_widths(candidate.spec, larger)
        ]
        if winner.kind != "width":
            spec = NetSpec.from_dict(self.stage("width", lambda: self.same_latency(larger, winner.candidate)))
            candidate = Candidate(spec=spec, latency_ms=winner.candidate.latency_ms, origin="width")
            rows.append(Entrant(kind="width", candidate=candidate, initial=self.initial(candidate, larger)))
        return rows

    def same_latency(self, larger: Trained, winner: Candidate) -> dict[str, Any]:
        """The larger network by the width multiplier that comes nearest in measured latency."""
        c, family = self.design, larger.network.spec
        goal = winner.latency_ms
        low, high = 5, WIDEST  # percent; narrower below, wider above the goal
        while high - low > 1:
            middle = (low + high) // 2
            narrower = c.measure([family.width(middle / 100)])[0] <= goal
            low, high = (middle, high) if narrower else (low, middle)
        around = range(max(5, low - WIDTHS_AROUND), min(WIDEST, low + WIDTHS_AROUND) + 1)
        near = list({s.id: s for s in (family.width(w / 100) for w in around)}.values())
        aim, *latencies = c.measure([winner.spec, *near])
        best = min(range(len(near)), key=lambda i: abs(latencies[i] - aim))
        return near[best].to_dict()

    def trained(self, entrants: Sequence[Entrant], larger: Trained | None) -> list[Trained]:
        """The winner and what stands beside it after full trainings, all of the same length."""
        c = self.design
        networks = len(entrants) * self.config.seeds + (larger is not None)
        export_ = time_budget.export_seconds(networks, self.budget_ms, len(self.data.test))
        plan = self.planned("full", lambda: c.full_plan(
            self.left() - export_, [c.step_seconds(e.candidate.spec) for e in entrants] * self.config.seeds
        ))  # fmt: skip
        self.log(f"full trainings of {plan['epochs']:.1f} epochs, about {time_budget.duration(plan['seconds'])}")
        teacher = c.soft_targets(larger)
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
            "budget": _label(self.budget) if self.prefix else self.config.latency,
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
        self.write(record)
        report.write_report(self.folder)

    def write(self, record: dict[str, Any]) -> None:
        """The record of the run, or of one of its budgets."""
        if not self.prefix:
            self.design.run.finish(record)
        else:
            self.design.run.finish_part(self.folder, record)

    def best_first(self, entries: Sequence[Trained], trained: Sequence[Trained]) -> list[int]:
        """Places of the networks that may be exported, the best on held-out images first.

        Labels are compared by the mean over their seeds, and of a label's networks the best is taken.
        """
        c = self.design
        losses = {id(e): c.judge(e.network, e.preset)[0].mean() for e in trained}
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
        for kind in ("resolution", "width"):
            pairs = [
                (first, second)
                for i, first in enumerate(evaluations) if entries[i].label == own.label
                for j, second in enumerate(evaluations)
                if entries[j].kind == kind and entries[j].seed == entries[i].seed
            ]  # fmt: skip
            if kind == own.kind or not pairs or not hasattr(pairs[0][0], "predictions"):
                continue
            labels = self.data.test.labels
            right = [np.stack([e.predictions == labels for e in side]) for side in zip(*pairs)]
            difference = paired(*(side.astype(np.float64) for side in right))
            label = next(e.label for e in entries if e.kind == kind)
            against.append({
                "kind": kind, "label": label, "points": 100 * difference.mean, "error": 100 * difference.error,
                "seeds": len(pairs),
            })  # fmt: skip
        return {"kind": own.kind, "label": own.label, "against": against}

    def layers(self, before: NetSpec, after: NetSpec) -> dict[str, Any] | None:
        """Milliseconds of each block before and after, where a latency table was made."""
        c = self.design
        if not c.table.path.exists():
            return None
        c.table.fitted(after, self.log)
        return {"before": c.table.layer_rows(before), "after": c.table.layer_rows(after)}

