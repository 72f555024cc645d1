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

import itertools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mobilefit import adapt, arch, device, report
from mobilefit.adapt import AdaptSettings
from mobilefit.arch import NetSpec
from mobilefit.data import Preset
from mobilefit.device import Phone
from mobilefit.errors import InputError, QualityGateError
from mobilefit.jobs import checks, kinds, lab, searching
from mobilefit.jobs import plan as search_time
from mobilefit.jobs.folder import RECORD, RunFolder
from mobilefit.jobs.kinds import KINDS, Kind, source_of
from mobilefit.jobs.lab import Trained
from mobilefit.jobs.model import Exported, export, network_for, spec_of
from mobilefit.jobs.options import Budget, device_option, option, parse_budget, tool_option
from mobilefit.jobs.plan import SearchPlan
from mobilefit.jobs.searching import FullTraining, Search, Searching
from mobilefit.nn import Network, load_network, save_weights
from mobilefit.pipeline import candidates as networks_at
from mobilefit.pipeline import time_budget
from mobilefit.pipeline.candidates import Candidate, Sizes
from mobilefit.pipeline.initial_weights import AUTO, InitialWeights, covers, pretrained_sources
from mobilefit.pipeline.probe import probe_losses
from mobilefit.pipeline.race import Losses, Race, Rung, Standing, timed, to_dict
from mobilefit.pipeline.time_budget import AdaptPlan, SpeedModel, StagePlan
from mobilefit.progress import Voice
from mobilefit.runs import read_json
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
AFTER_PROBE, FINALISTS = 3, 2
"""Candidates that go on after the probe, and after the first training."""
JUDGED_AGAIN = 3
"""Measurements of a network that seems to be over the budget by less than the noise."""

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
    teacher: str | None = option(None, help="a trained network to be taught by: a file, or timm:NAME=FILE (default: a larger one of the run)")
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
        with device.opened(config.device, tool=config.benchmark_model, say=log) as phone:
            lab.check_table(config.table, run.path, phone)
            task = task_of(config)
            data = task.load(source_of(config, log))
            lab.check_held_out(data)
            _Design(config, task, budgets, run, data, log, phone).run_all()
    return _closing(run, config)


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
        delta=config.delta, epochs=config.epochs, trials=config.trials, top=config.top,
    )  # fmt: skip
    AdaptSettings(target_ms=1.0, delta=config.delta or 0.01, rule=config.rule)  # late is too late
    task = task_of(config).task
    kinds.check_options(
        task, recipe=config.recipe, height=config.resolution, width=config.columns,
        ignore=config.ignore_label,
    )  # fmt: skip
    if config.searches and config.weights not in ((), (AUTO,), ("none",)):
        raise InputError(
            f"{config.weights[0]} are one network's weights, and a search tries many",
            "leave --search out, and name the network with --seed-network",
        )
    searching.check_names(config.space, config.strategy, config.reward)
    device.check_target(config.device, config.benchmark_model)


def _closing(run: RunFolder, config: DesignConfig) -> dict[str, Any]:
    """Print what came out, and pass the gates."""
    record = run.record()
    several = record.get("designs")
    for place in [run.path / name for name in several] if several else [run.path]:
        own = read_json(place / RECORD) if several else record
        print(report.summary_table(own))
        for name in (*own["final"]["files"].values(), "report.html"):
            print(place / name)
        _gates(own, place, config)
    return record


def _gates(record: dict[str, Any], folder: Path, config: DesignConfig) -> None:
    final = record["final"]
    checks.gate(final["parity"], folder)
    latency_ms, budget_ms = final["latency"]["median_ms"], record["budget_ms"]
    if latency_ms > budget_ms:
        raise QualityGateError(
            f"the final network is {latency_ms - budget_ms:.3g} ms over the budget of {budget_ms:.4g} ms",
            "the machine may have been slower at the end: see the report; or give a lower --latency",
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
    initial: Callable[[int], tuple[Network, Preset]]
    """By the seed."""


class _Design:
    """The stages of a run, in order; each is done once, whatever interrupts the run."""

    def __init__(
        self, config: DesignConfig, task: Kind, budgets: Sequence[Budget], run: RunFolder, data: Any,
        log: Voice, phone: Phone | None,
    ) -> None:  # fmt: skip
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
        self.recipe: Recipe
        self.speed: SpeedModel
        self.images_per_second: float

    def run_all(self) -> None:
        """Everything, and the record at the end."""
        start = self.run.stage("start", self.start)
        lab.check_unchanged(start["fingerprint"], self.data, self.run.path)
        self.networks = [_sizes(entry) for entry in start["networks"]]
        self.reference_ms = start["reference_ms"]
        self.recipe = self.task.recipe(self.config.recipe, start["pretrained"] or None, self.data)
        self.recipe = replace(self.recipe, batch_size=time_budget.batch_size(self.recipe, len(self.data.train)))
        speed = self.run.stage("speed", self.measure_speed)
        self.speed = SpeedModel(madds=speed["madds"], seconds=1 / speed["training"])
        self.images_per_second = speed["evaluation"]
        if self.space is not None and self.worth_searching(start["pretrained"]):
            self.networks.append(self.search(start))
        designs = {}
        for budget, budget_ms in reversed(list(zip(self.budgets, start["budgets_ms"], strict=True))):
            several = len(self.budgets) > 1
            folder = self.run.path / _label(budget) if several else self.run.path
            designs[folder.name] = _ForBudget(self, budget, budget_ms, folder, _label(budget) + " " if several else "")
            designs[folder.name].run_all()
        if len(designs) > 1:
            self.finish_several(designs)
        shutil.rmtree(self.run.path / TEACHER, ignore_errors=True)

    # ---- before anything is trained

    def start(self) -> dict[str, Any]:
        """Measure the reference and the family's networks around the budgets, and see that these can be met."""
        kinds.tell_left_out(self.data, self.log)
        sources = self.sources()
        (reference_ms,) = self.measure([self.reference])
        budgets_ms = [budget.of(reference_ms) for budget in self.budgets]
        aims = [aim(budget, budget_ms) for budget, budget_ms in zip(self.budgets, budgets_ms, strict=True)]
        networks = self.family(sources)
        self.log(f"measuring {len(networks)} networks at the sizes that the budget allows")
        networks_at.measure_sizes(
            networks, aims, self.measure, ms_per_madd=reference_ms / self.reference.cost().madds
        )
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
        return [latency.median_ms for latency in lab.measured(specs, self.phone)]

    def measure_speed(self) -> dict[str, float]:
        """Train and evaluate the reference for a few seconds."""
        recipe = replace(self.recipe, distillation=0.0)
        preset = self.task.preset(self.data, self.reference)
        speed = search_time.speed(
            network_for(self.reference, None), self.data, preset, recipe, self.task.port
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
            seconds, self.space, speed, self.recipe.batch_size, c.trials, c.top, steps, held, 1
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
        teacher: SoftTargets | None, *, kind: str,
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
        teacher: SoftTargets | None, *, shrunk: bool = False,
    ) -> None:  # fmt: skip
        """Train in place, going on from the folder's checkpoint if there is one; learn how fast it was."""
        share = TEACHING if teacher is not None else 0.0
        recipe = time_budget.distilled(self.recipe, share) if share else replace(self.recipe, distillation=0.0)
        if shrunk:
            recipe = adapt.for_shrunk(recipe)
        result = lab.train(
            network, self.data, preset, recipe, task=self.task.port, steps=steps, seed=seed,
            folder=folder, label=label, teacher=teacher,
        )  # fmt: skip
        if result.images_per_second:
            madds = time_budget.training_madds(network.spec, recipe)
            self.speed.learn(madds, 1 / result.images_per_second)

    def soft_targets(self, larger: Trained | None) -> SoftTargets | None:
        """A teacher's answers, kept on disk for all that learn from them; ``None``: nobody teaches."""
        if larger is None or self.task.task != "classify":
            return None
        return SoftTargets(
            network=larger.network.eval(), preset=larger.preset, cache=self.run.path / TEACHER
        )

    def judge(self, network: Network, preset: Preset) -> tuple[Losses, float]:
        """Losses of the held-out images, and the task's score."""
        evaluation = self.task.port.evaluate(network, self.held_out, preset)
        score = evaluation.row()[self.task.port.score]
        losses = getattr(evaluation, "losses", None)
        return (np.array([1 - score], np.float32) if losses is None else losses), score

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
        "origin": network.origin, "measured": [[size, ms] for size, ms in sorted(network.measured.items())],
    }  # fmt: skip


def _sizes(entry: dict[str, Any]) -> Sizes:
    return Sizes(
        spec=NetSpec.from_dict(entry["spec"]), weights=entry["weights"], sizes=tuple(entry["sizes"]),
        origin=entry["origin"], measured={int(size): ms for size, ms in entry["measured"]},
    )  # fmt: skip


class _ForBudget:
    """The race for one budget, and the trainings and files that come of it.

    Args:
        run: the whole design, with what the budgets share.
        folder: of this budget's files and record.
        prefix: of its stages in the run's state.
    """

    def __init__(self, run: _Design, budget: Budget, budget_ms: float, folder: Path, prefix: str) -> None:
        self.design, self.budget, self.budget_ms, self.folder, self.prefix = run, budget, budget_ms, folder, prefix
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
            entrants.append(shrunk)
        if not entrants:
            raise InputError(
                f"nothing meets {self.budget_ms:.4g} ms, and --shrink none leaves the larger networks as they are",
                "raise --latency, lower --resolution, or leave --shrink out",
            )
        winner = self.taught(entrants, larger)
        standing = self.standing(winner, entrants, larger)
        trained = self.trained([winner, *standing], larger)
        self.finish([] if larger is None else [larger], trained)

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
        pretrained = self.task.task == "classify" and all(one.weights is not None for one in contenders)
        if pretrained and len(contenders) > PROBED:
            rung = Rung(name=f"{self.prefix}probe", survivors=AFTER_PROBE, what="frozen features")
            standings = c.race.rung(rung, contenders, timed(self.probe))
            contenders = self.survivors(rung, standings)
        if len(contenders) > 1:
            name = f"{self.prefix}rung_1"
            plan = self.planned("rung_1", lambda: time_budget.race_rung(
                time_budget.RUNG_EPOCHS[0], c.left() * time_budget.RACE_SHARE / 2,
                [c.step_seconds(one.spec) for one in contenders], c.per_epoch,
            ))  # fmt: skip
            rung = Rung(name=name, survivors=FINALISTS, what=f"short trainings ({plan['epochs']:.1f} epochs)")
            judge = partial(self.brief, name, plan["steps"], None, None)
            contenders = self.survivors(rung, c.race.rung(rung, contenders, timed(judge)))
        return contenders

    def survivors(self, rung: Rung, standings: list[Standing]) -> list[Candidate]:
        """Who goes on; the standings are kept for the record."""
        self.rungs.append({"rung": rung.name, "what": rung.what, "standings": [to_dict(s) for s in standings]})
        return [standing.candidate for standing in standings if standing.survives]

    def probe(self, candidate: Candidate) -> tuple[Losses, float]:
        """A linear classifier on the features of pretrained weights."""
        network, preset = self.design.weights_from(None).network(
            candidate.spec, candidate.weights, self.config.seed
        )
        losses = probe_losses(network, preset, self.data.train, self.design.held_out)
        return losses, float((losses < np.log(2)).mean())

    def brief(
        self, rung: str, steps: int, larger: Trained | None, entrants: dict[str, Entrant] | None,
        candidate: Candidate,
    ) -> tuple[Losses, float]:  # fmt: skip
        """A candidate after a short training."""
        c, seed = self.design, self.config.seed
        initial = self.initial(candidate, larger) if entrants is None else entrants[candidate.slug].initial
        network, preset = initial(seed)
        folder = c.race.folder / rung / candidate.slug
        c.fit(
            network, preset, steps, seed, folder, self.log.label(f"{candidate.name}, {steps} steps"),
            c.soft_targets(larger),
            shrunk=entrants is not None and entrants[candidate.slug].kind == "adapted",
        )  # fmt: skip
        judged = c.judge(network, preset)
        lab.drop_checkpoints(folder)
        return judged

    def initial(self, candidate: Candidate, larger: Trained | None) -> Callable[[int], tuple[Network, Preset]]:
        """What a candidate begins with: the larger network's weights, pretrained ones, or none."""
        weights = self.design.weights_from(larger)
        return lambda seed: weights.network(candidate.spec, candidate.weights, seed)

    # ---- the larger network

    def larger(self, ranked: Sequence[Candidate]) -> Trained | None:
        """The network that the others begin from and are taught by, trained in full; one for all budgets."""
        c = self.design
        if c.larger is None and self.config.teacher is None:
            chosen = c.run.stage("larger", lambda: self.choose_larger(ranked))
            if chosen is not None:
                c.larger = self.train_larger(Candidate(
                    spec=NetSpec.from_dict(chosen["spec"]), weights=chosen["weights"],
                    latency_ms=chosen["latency_ms"], origin=chosen["origin"],
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
                for network in c.networks for size in network.sizes
                if covers(spec := network.at(size), best.spec) and least <= spec.cost().madds <= most
            ]  # fmt: skip
        else:
            options = networks_at.above(c.networks, self.aim_ms)[:1]
        seconds = c.left() * time_budget.TEACHER_SHARE
        for option_ in sorted(options, key=lambda one: -one.spec.cost().madds):
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
                "seed", label, plan["steps"], self.config.seed, self.initial(candidate, None), None, kind="seed"
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
            c.left() * time_budget.SHRINK_SHARE, base.spec, over=1 - self.aim_ms / start_ms,
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

        def initial(seed: int) -> tuple[Network, Preset]:
            preset = replace(self.task.preset(self.data, spec), mean=larger.preset.mean, std=larger.preset.std)
            if self.config.retrain == "scratch":
                return network_for(spec, None, seed=seed), preset
            return lab.last_step(folder, base), preset

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
        if larger is not None and covers(larger.network.spec, candidate.spec):
            same_widths = replace(larger.network.spec, name="", input_size=1, input_width=None) == replace(
                candidate.spec, name="", input_size=1, input_width=None, padding=larger.network.spec.padding,
                norm=larger.network.spec.norm,
            )  # fmt: skip
            return "resolution" if same_widths else "width"
        named = self.config.named is not None and self.config.resolution is not None
        return "seed" if named and larger is None else "candidate"

    def taught(self, entrants: Sequence[Entrant], larger: Trained | None) -> Entrant:
        """The winner: after a short training, taught by the larger network."""
        if len(entrants) == 1:
            return entrants[0]
        c = self.design
        name = f"{self.prefix}rung_2"
        plan = self.planned("rung_2", lambda: time_budget.race_rung(
            time_budget.RUNG_EPOCHS[1], c.left() * time_budget.RACE_SHARE,
            [c.step_seconds(e.candidate.spec) for e in entrants], c.per_epoch,
        ))  # fmt: skip
        by_slug = {entrant.candidate.slug: entrant for entrant in entrants}
        how = "taught" if c.soft_targets(larger) else "untaught"
        rung = Rung(name=name, survivors=1, what=f"finals ({plan['epochs']:.1f} epochs, {how})")
        judge = partial(self.brief, name, plan["steps"], larger, by_slug)
        standings = c.race.rung(rung, [e.candidate for e in entrants], timed(judge))
        self.survivors(rung, standings)
        return by_slug[standings[0].candidate.slug]

    def standing(
        self, winner: Entrant, entrants: Sequence[Entrant], larger: Trained | None
    ) -> list[Entrant]:
        """What a user could do by hand: the larger network at a lower resolution, and scaled in width."""
        if larger is None:
            return []
        rows = [e for e in entrants if e.kind == "resolution" and e is not winner]
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
            c.left() - export_, [c.step_seconds(e.candidate.spec) for e in entrants] * self.config.seeds
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
            chosen, latencies = self.within_budget(order, files)
            names = lab.write_files(self.folder, files[chosen])
            parity = checks.compare(
                entries[chosen].network,
                {kind: (getattr(files[chosen], kind), checks.through_litert) for kind in names},
                self.data, entries[chosen].preset, seed=self.config.seed,
            )  # fmt: skip
            checks.keep(parity, self.folder)
            save_weights(
                entries[chosen].network, self.folder / "model.safetensors",
                preset=entries[chosen].preset.to_dict(), classes=self.data.classes,
            )  # fmt: skip
            (in_float,) = lab.side_by_side([files[chosen].float32], c.phone)
        results = [
            lab.result(entry, file, latency)
            for entry, file, latency in zip(entries, files, latencies, strict=True)
        ]
        final_spec = entries[chosen].network.spec
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
            "verdict": self.verdict(entries, [evaluation for _, evaluation in results], chosen),
            "final": {
                **results[chosen][0], **self.task.record(results[chosen][1], self.data),
                "latency_float": in_float.to_dict(), "files": names, "parity": parity,
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

    def within_budget(self, order: Sequence[int], files: Sequence[Exported]) -> tuple[int, list[Any]]:
        """The best network that is measured within the budget, and everybody's latency.

        A measurement that is over by less than the noise is made again beside the reference: a neighbour
        on the machine makes a network slower, never faster. The next best takes the place of one that is
        really over.
        """
        c = self.design
        blobs = [file.int8 for file in files]
        latencies = lab.side_by_side(blobs, c.phone)
        for _ in range(JUDGED_AGAIN):
            inside = [i for i in order if latencies[i].median_ms <= self.budget_ms]
            if inside and inside[0] == order[0]:
                break
            again = lab.side_by_side(blobs, c.phone)
            latencies = [min(pair, key=lambda x: x.median_ms) for pair in zip(latencies, again, strict=True)]
        inside = [i for i in order if latencies[i].median_ms <= self.budget_ms]
        if inside and inside[0] != order[0]:
            self.log(
                f"the best network takes {latencies[order[0]].median_ms:.4g} ms and is over the budget of "
                f"{self.budget_ms:.4g} ms: the next best takes its place"
            )
        return (inside or list(order))[0], latencies

    def verdict(self, entries: Sequence[Trained], evaluations: Sequence[Any], chosen: int) -> dict[str, Any]:
        """The exported network against what stands beside it, on the test images: paired differences."""
        own = entries[chosen]
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

