"""The main job: images and a latency budget in, a trained, quantized, measured network out.

The chain is the paper's: a seed network found by block-wise search (section 4.1), trained, shrunk by
NetAdapt on measured latency down to the budget (section 4.2), trained from scratch, int8, measurement
of the very file that is exported. For detection and segmentation it is the same, with the task's head,
loss and score; a search there trains each network briefly, since shared weights are for classification.
Beside it the hand-made network (the search space's base, or the
seed network where one was named) scaled by a width multiplier to the same latency is trained in the
same way, so that the report can say what the rest was worth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mobilefit import adapt, arch, device, report
from mobilefit.adapt import AdaptSettings
from mobilefit.arch import NetSpec
from mobilefit.data import Preset
from mobilefit.device import Phone
from mobilefit.errors import InputError, QualityGateError
from mobilefit.jobs import checks, kinds, lab, plan, searching
from mobilefit.jobs.folder import RunFolder
from mobilefit.jobs.kinds import KINDS, Kind, source_of
from mobilefit.jobs.model import export, int8_for_timing, network_for, spec_of
from mobilefit.jobs.options import Budget, device_option, option, parse_budget, tool_option
from mobilefit.jobs.plan import Plan, SearchPlan
from mobilefit.jobs.pretrained import Start
from mobilefit.jobs.searching import FullTraining, Search, Searching
from mobilefit.nn import Network, save_weights
from mobilefit.progress import Voice
from mobilefit.search import Reward, Space, Supernet
from mobilefit.train import Recipe

SEARCH = "search"
WIDEST = 150
"""Percent: the largest width multiplier that is compared with."""
WIDTHS_AROUND = 6
"""Width multipliers, in hundredths, that are measured on either side of the predicted one."""


@dataclass(frozen=True, kw_only=True)
class DesignConfig:
    """Options of ``mobilefit design``."""

    data: str = option(help="images: docs/data.md; with boxes: docs/detection.md; with masks: docs/segmentation.md", argument=True)
    latency: str = option(
        help="budget of the int8 network here: 2ms, 850us, or 70% of the seed's (of the space's base)"
    )
    task: Literal["classify", "detect", "segment"] | None = option(
        None, help="what the network is for (default: what --seed-network is for)"
    )
    seed_network: str = option(
        SEARCH, help="search for one, or a network's name, or a spec's .json; a classifier's becomes the backbone of --task"
    )
    space: str = option("mobilenet_v3_small", help="what is searched: see mobilefit search")
    strategy: str = option("rnn", help="of the search: rnn, reinforce, evolution or random")
    reward: str = option("absolute", help="of the search: absolute, soft, soft_small or hard")
    trials: int | None = option(None, help="networks that the search tries (default: by --minutes)")
    top: int = option(1, help="best networks of the search that are trained; NetAdapt takes the winner")
    resolution: int | None = option(
        None, help="side of the network's input, or its height, pixels (default: 96; detect: 320; segment: by the images)"
    )
    columns: int | None = option(None, help="width of the network's input, where it is not square, pixels")
    ignore_label: tuple[int, ...] = option((), help="segment: a label in the masks that is no class; may be repeated")
    minutes: float = option(30.0, help="about how long it may take")
    weights: str | None = option(
        None, help="pretrained weights of the seed network or its backbone: torchvision, timm, timm:NAME, or a file"
    )
    seeds: int = option(1, help="trainings of each compared network, for mean and spread")
    seed: int = option(0, help="of everything random; the first of --seeds")
    delta: float | None = option(
        None, help="least latency cut of a NetAdapt step, part of the seed's (default: by --minutes)"
    )
    rule: adapt.Rule = option("ratio", help="NetAdapt's choice: ratio (V3 paper) or accuracy")
    tune_steps: int | None = option(
        None, help="fine-tuning steps of a NetAdapt proposal (default: by --minutes)"
    )
    epochs: float | None = option(None, help="of each training (default: by --minutes)")
    recipe: str | None = option(
        None, help="how to train: docs/recipes.md (default: finetune with --weights, else fast; detect; segment)"
    )
    max_drop: float = option(1.0, help="most points of accuracy, mAP or mIoU that int8 may lose: more is exit code 3")
    table: Path | None = option(None, help="latency table of this device, from an earlier run")
    device: str = device_option()
    benchmark_model: Path | None = tool_option()
    out: Path | None = option(None, help="run folder (default: runs/design-...)")
    quiet: bool = option(False, help="show no progress")


def design(config: DesignConfig) -> dict[str, Any]:
    """Run the chain, or what is left of it, and return the run's record.

    Raises:
        InputError: bad data or options, a budget that cannot be met (says the lowest that can).
        QualityGateError: everything is done and written, but the network is over the budget.
    """
    budget = parse_budget(config.latency)
    _check(config)
    run = RunFolder(config.out or default_out(config), "design", config)
    voice = Voice(quiet=config.quiet)
    if run.finished:
        voice(f"{run.path} holds this run, finished; delete the folder to run it again")
    else:
        with device.opened(config.device, tool=config.benchmark_model, say=voice) as phone:
            lab.check_table(config.table, run.path, phone)
            kind = kind_of(config)
            data = kind.load(source_of(config, voice))
            lab.check_held_out(data)
            _Chain(config, kind, budget, run, data, voice, phone).run_all()
    return _closing(run, config)


def default_out(config: DesignConfig) -> Path:
    """A folder that the same command finds again."""
    share = config.latency.replace("%", "pct").replace("/", "_")
    network = config.space if config.seed_network == SEARCH else config.seed_network
    words = [Path(config.data).name, Path(network).stem, *_size(config), share]
    words[1:1] = [config.task] if config.task not in (None, "classify") else []
    words += [config.device.replace(":", "-")] if config.device != "host" else []
    return Path("runs") / ("design-" + "-".join(words))


def _size(config: DesignConfig) -> list[str]:
    if config.resolution is None:
        return ["96"] if config.task in (None, "classify") else []
    return [f"{config.resolution}" + (f"x{config.columns}" if config.columns else "")]


def kind_of(config: DesignConfig) -> Kind:
    """The task of a design.

    Raises:
        InputError: the network that is named is for another.
    """
    if config.seed_network == SEARCH:
        return KINDS[config.task or "classify"]
    return kinds.kind_for(config.task, spec_of(config.seed_network))


def _check(config: DesignConfig) -> None:
    lab.check_positive(
        resolution=config.resolution, columns=config.columns, minutes=config.minutes, seeds=config.seeds,
        delta=config.delta, tune_steps=config.tune_steps, epochs=config.epochs,
        trials=config.trials, top=config.top,
    )  # fmt: skip
    AdaptSettings(target_ms=1.0, delta=config.delta or 0.01, rule=config.rule)  # late is too late
    kinds.check_options(
        kind_of(config).task, recipe=config.recipe, height=config.resolution, width=config.columns,
        ignore=config.ignore_label,
    )  # fmt: skip
    if config.seed_network == SEARCH and config.weights is not None:
        raise InputError(
            f"{config.weights} are one network's weights, and a search tries many",
            "name the network with --seed-network as well",
        )
    searching.check_names(config.space, config.strategy, config.reward)
    device.check_target(config.device, config.benchmark_model)


def _closing(run: RunFolder, config: DesignConfig) -> dict[str, Any]:
    record = run.record()
    print(report.summary_table(record))
    for name in (*record["final"]["files"].values(), "report.html"):
        print(run.path / name)
    final = record["final"]
    checks.gate(final["parity"], run.path)
    over = final["latency"]["median_ms"] - record["budget_ms"]
    if over > 0:
        raise QualityGateError(
            f"the final network is {over:.3f} ms over the budget of {record['budget_ms']:.3f} ms",
            "the machine may have been slower at the end: see the report; or give a lower --latency",
        )
    drop = 100 * (final["accuracy_float"] - final["accuracy_int8"])
    if drop > config.max_drop:
        score = "" if record["task"] == "classify" else f" of {KINDS[record['task']].score}"
        raise QualityGateError(
            f"int8 loses {drop:.2f} points{score}, more than --max-drop {config.max_drop:g}",
            f"mobilefit quantize {run.path / final['files']['float32']} {config.data} --method qat trains "
            "it with the rounding in place",
        )
    return record


class _Chain:
    """The stages of a run, in order; each is done once, whatever interrupts the run."""

    def __init__(
        self, config: DesignConfig, kind: Kind, budget: Budget, run: RunFolder, data: Any,
        voice: Voice, phone: Phone | None,
    ) -> None:  # fmt: skip
        self.config, self.budget, self.run, self.data, self.voice = config, budget, run, data, voice
        self.kind, self.phone = kind, phone
        self.space = self._space()
        begun = self.begun(self._family_spec() if self.space is None else self.space.reference, config.seed)
        if begun.note:
            voice(begun.note)
        self.family_spec = begun.network.spec  # with the padding and epsilon of the weights
        self.seed_spec = self.family_spec  # until a search has found one
        self.preset: Preset = begun.preset
        self.table = lab.OpenTable(run.path / lab.TABLE, config.table, phone)
        self.searched: dict[str, Any] | None = None
        self.plan: Plan

    def run_all(self) -> None:
        """Everything, and the record at the end."""
        start = self.run.stage("start", self.start)
        lab.check_unchanged(start["fingerprint"], self.data, self.run.path)
        self.plan = Plan(**self.run.stage("plan", self.make_plan))
        self.voice(self.plan.told(self.run.path, pretrained=self.config.weights is not None))
        with self.run.timed("table"):
            self.table.fitted(self.family_spec, self.voice)
        seed_ms = start["seed_ms"]
        if self.space is not None:
            self.searched = self.search(start)
            self.seed_spec = searching.winner(self.searched)
            seed_ms = searching.winning_entry(self.searched)["measured_ms"]
        entries = [self.train("seed", self.seed_spec, self.config.seed)]
        final, shrink = self.seed_spec, seed_ms > start["budget_ms"]
        if shrink:
            with self.run.timed("netadapt"):
                final = self.adapted(seed_ms, start["budget_ms"])
        else:
            self.voice(f"the seed network meets the budget already ({seed_ms:.4g} of "
                       f"{start['budget_ms']:.4g} ms): NetAdapt is not needed")  # fmt: skip
        if shrink or self.space is not None:
            width = NetSpec.from_dict(self.run.stage("width", lambda: self.same_latency(final)))
            for seed in range(self.config.seed, self.config.seed + self.config.seeds):
                if shrink:
                    entries.append(self.train("adapted", final, seed))
                elif seed != self.config.seed:
                    entries.append(self.train("seed", final, seed))
                entries.append(self.train("width", width, seed))
        self.finish(final, entries)

    # ---- before anything is trained

    def start(self) -> dict[str, Any]:
        """Measure the family's network, and see that the budget can be met."""
        seed_ms = lab.measured([self.family_spec], self.phone)[0].median_ms
        budget_ms = self.budget.of(seed_ms)
        smallest = self.family_spec
        if self.space is not None:
            smallest = self.space.spec(self.space.smallest())
        lowest = lab.floor(smallest, self.phone)
        if lowest > budget_ms:
            name, least = lab.family_floor(self._family(), self.phone)
            what = self.config.seed_network if self.space is None else f"the space {self.space.name}"
            raise InputError(
                f"no network made from {what} at {lab.pixels(self.family_spec)} "
                f"meets {budget_ms:.4g} ms: the lowest reachable is {lowest:.4g} ms; "
                f"in the whole family {least:.4g} ms, from {name}",
                "raise --latency or lower --resolution",
            )
        kinds.tell_left_out(self.data, self.voice)
        return {
            "fingerprint": self.data.fingerprint, "seed_ms": seed_ms, "budget_ms": budget_ms,
            "floor_ms": lowest,
        }  # fmt: skip

    def make_plan(self) -> dict[str, Any]:
        """Divide the time: see :mod:`mobilefit.jobs.plan`."""
        start, c = self.run.state["start"], self.config
        request = plan.Request(
            minutes=c.minutes, seeds=c.seeds, delta=c.delta, tune_steps=c.tune_steps,
            epochs=c.epochs, recipe=self.kind.recipe(c.recipe, c.weights, self.data),
        )  # fmt: skip
        network = network_for(self.family_spec, None)
        speed = plan.speed(network, self.data, self.preset, request.recipe, self.kind.port)
        seed_ms, budget_ms = start["seed_ms"], start["budget_ms"]
        if self.space is None:
            return plan.make(request, self.data, speed, self.family_spec, seed_ms, budget_ms).to_dict()
        found = self.search_plan(request.recipe, speed)
        left = replace(
            request, minutes=max(0.0, c.minutes - found.seconds / 60), seed_networks=c.top
        )
        return plan.make(
            left, self.data, speed, self.family_spec, plan.ABOVE * budget_ms, budget_ms
        ).with_search(found).to_dict()  # fmt: skip

    def search_plan(self, recipe: Recipe, speed: plan.Speed) -> SearchPlan:
        """The search's part of the time.

        Args:
            speed: of the space's base network.
        """
        assert self.space is not None
        c, seconds = self.config, 60 * self.config.minutes * plan.SEARCH_SHARE
        batch = plan.batch_size(recipe, len(self.data.train))
        if self.kind.task == "classify":
            shared = plan.speed(Supernet(self.space), self.data, self.preset, recipe)
            return plan.search_with_shared_weights(seconds, self.space, shared, batch, c.trials, c.top)
        held = min(searching.HELD_IMAGES, len(self.data.holdout))
        steps = plan.proxy_steps(seconds, speed, batch, c.trials, held)
        return plan.search_by_proxy(seconds, self.space, speed, batch, c.trials, c.top, steps, held, 1)

    def search(self, start: dict[str, Any]) -> dict[str, Any]:
        """Block-wise search for a little more than the budget; the best networks trained in full."""
        assert self.space is not None
        reward = Reward(form=self.config.reward, target_ms=plan.ABOVE * start["budget_ms"])
        search = Search(
            kind=self.kind, space=self.space, strategy=self.config.strategy,
            evaluator="supernet" if self.kind.task == "classify" else "proxy", reward=reward,
            plan=self.plan.for_search(), recipe=self.plan.recipe(), seed=self.config.seed,
        )  # fmt: skip
        stage = Searching(
            search, self.run.path, self.data, self.preset, self.table, start["seed_ms"], self.voice
        )
        found = self.run.stage("search", stage.run)
        trained: dict[str, Any] = self.run.stage(
            "training seed", lambda: searching.fully_trained(
                found, self.full_training, reward, self.config.seed
            )
        )
        return trained

    @property
    def full_training(self) -> FullTraining:
        """How a search's best networks are trained: as every network of the run."""
        return FullTraining(
            kind=self.kind, data=self.data, preset=self.preset, recipe=self.plan.recipe(),
            steps=self.plan.train_steps, folder=self.run.path / "train", voice=self.voice,
        )  # fmt: skip

    # ---- networks

    def train(self, kind: str, spec: NetSpec, seed: int) -> lab.Entry:
        """A trained network with its label; taken up where it stopped, and a search's winner as it is."""
        name, label = kind, spec.name if kind == "width" else kind
        if kind == "seed" and self.searched is not None:
            name, label = searching.winning_entry(self.searched)["label"], "searched"
        with self.run.timed(f"training {kind}"):
            network = self.full_training.network(
                name, spec, seed, label=label, initial=lambda: self.initial(kind, spec, seed)
            )
        return lab.Entry(label=label, kind=kind, seed=seed, network=network)

    def initial(self, kind: str, spec: NetSpec, seed: int) -> Network:
        """From scratch, as in the paper; from the seed network's weights if those were pretrained."""
        if self.config.weights is None:
            return network_for(spec, None, seed=seed)
        if kind == "seed":
            return self.begun(self.seed_spec, seed).network
        if kind == "adapted":
            return lab.last_step(self.run.path / "netadapt", self.trained_seed())
        return adapt.transfer(self.trained_seed(), spec)

    def begun(self, spec: NetSpec, seed: int) -> Start:
        """What training begins with: the pretrained weights, if there are any."""
        return kinds.begun(
            self.kind, spec, self.config.weights, self.data, seed=seed, quiet=self.config.quiet
        )

    def trained_seed(self) -> Network:
        """The seed network after its training."""
        return self.train("seed", self.seed_spec, self.config.seed).network

    def adapted(self, seed_ms: float, budget_ms: float) -> NetSpec:
        """NetAdapt from the trained seed network down to the budget."""
        seed_network = self.trained_seed()
        settings = AdaptSettings(
            target_ms=budget_ms, margin=lab.MARGIN, delta=self.plan.delta, rule=self.config.rule
        )
        tools = adapt.tools_for(
            self.data.train, lab.held_out(self.data, self.plan.held_images, self.config.seed),
            preset=self.preset, recipe=self.plan.recipe(), steps=self.plan.tune_steps,
            latency=self.table.predict, confirm=lab.Confirm(seed_network, seed_ms, self.phone),
            task=self.kind.port,
        )  # fmt: skip
        found = adapt.adapt(
            seed_network, settings, tools, self.run.path / "netadapt", seed=self.config.seed,
            say=self.voice, label=self.voice.label("looking for proposals"),
        )  # fmt: skip
        return replace(found.spec, name=f"{self.seed_spec.name}_adapted")

    def same_latency(self, final: NetSpec) -> dict[str, Any]:
        """The family's network by the width multiplier that comes nearest in measured latency."""
        goal = self.table.predict(final)
        low, high = 5, WIDEST  # percent; narrower below, wider above the goal
        while high - low > 1:
            middle = (low + high) // 2
            narrower = self.table.predict(self.family_spec.width(middle / 100)) <= goal
            low, high = (middle, high) if narrower else (low, middle)
        around = range(max(5, low - WIDTHS_AROUND), min(WIDEST, low + WIDTHS_AROUND) + 1)
        near = list({s.id: s for s in (self.family_spec.width(w / 100) for w in around)}.values())
        aim, *found = lab.measured([final, *near], self.phone)
        best = min(range(len(near)), key=lambda i: abs(found[i].median_ms - aim.median_ms))
        return near[best].to_dict()

    # ---- the end

    def finish(self, final: NetSpec, entries: list[lab.Entry]) -> None:
        """Export and measure every trained network side by side, write files, record and report."""
        self.voice("quantizing, evaluating on the test images, measuring")
        with self.run.timed("export and measure"):
            chosen = self.choose(entries)
            files = [export(e.network, self.data, self.preset, seed=self.config.seed) for e in entries]
            blobs = [*(file.int8 for file in files), files[chosen].float32]
            if self.searched is not None:
                blobs.append(int8_for_timing(self.family_spec))
            measured = lab.side_by_side(blobs, self.phone)
            latencies, in_float = measured[: len(files)], measured[len(files)]
            found = [
                lab.result(entry, file, latency)
                for entry, file, latency in zip(entries, files, latencies, strict=True)
            ]
            names = lab.write_files(self.run.path, files[chosen])
            parity = checks.compare(
                entries[chosen].network,
                {kind: (getattr(files[chosen], kind), checks.through_litert) for kind in names},
                self.data, self.preset, seed=self.config.seed,
            )  # fmt: skip
            checks.keep(parity, self.run.path)
            save_weights(
                entries[chosen].network, self.run.path / "model.safetensors",
                preset=self.preset.to_dict(), classes=self.data.classes,
            )  # fmt: skip
        of_family = measured[0 if self.searched is None else -1]  # else the seed network is the family's
        budget_ms = self.budget.of(of_family.median_ms)
        self.run.finish({
            "seed": self.config.seed,
            "task": self.kind.task,
            "budget_ms": budget_ms,
            "budget": self.config.latency,
            "data": kinds.described(self.data),
            "seed_spec": self.seed_spec.to_dict(),
            "reference_spec": self.family_spec.to_dict(),
            "search": self.searched,
            "final_spec": entries[chosen].network.spec.to_dict(),
            "plan": self.plan.to_dict(),
            "results": [row for row, _ in found],
            "final": {
                **found[chosen][0],
                **self.kind.record(found[chosen][1], self.data),
                "latency_float": in_float.to_dict(),
                "files": names,
                "parity": parity,
            },
            "layers": {
                "before": self.table.layer_rows(self.seed_spec),
                "after": self.table.layer_rows(final),
            },
        })  # fmt: skip
        report.write_report(self.run.path)

    def choose(self, entries: list[lab.Entry]) -> int:
        """The adapted network that is best on the held-out images; never by the test set."""
        wanted = "adapted" if any(entry.kind == "adapted" for entry in entries) else "seed"
        mine = [i for i, entry in enumerate(entries) if entry.kind == wanted]
        if len(mine) == 1:
            return mine[0]
        return max(mine, key=lambda i: lab.accuracy(
            self.kind.port, entries[i].network, self.data.holdout, self.preset
        ))  # fmt: skip

    # ---- what it begins with

    def _space(self) -> Space | None:
        """What is searched; ``None`` where the seed network is named."""
        c = self.config
        if c.seed_network != SEARCH:
            return None
        return searching.space_for(self.kind, c.space, self.data, c.resolution, c.columns)

    def _family_spec(self) -> NetSpec:
        c = self.config
        return self.kind.network(spec_of(c.seed_network), self.data, c.resolution, c.columns)

    def _family(self) -> dict[str, NetSpec]:
        """Every network of the family, for the same images at the same size."""
        height, width = self.family_spec.image_shape
        return {
            name: self.kind.network(spec, self.data, height, width) for name, spec in arch.FAMILY.items()
        }
