"""The main job: images and a latency budget in, a trained, quantized, measured network out.

The chain is the paper's: a trained seed network, NetAdapt on measured latency down to the budget
(section 4.2), training from scratch, int8, measurement of the very file that is exported. Beside it
the seed network scaled by a width multiplier to the same latency is trained in the same way, so that
the report can say what NetAdapt was worth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mobilefit import adapt, report
from mobilefit.adapt import AdaptSettings, Tools
from mobilefit.arch import NetSpec
from mobilefit.data import ClassificationData, Preset, load
from mobilefit.device import LatencyTable
from mobilefit.errors import InputError, QualityGateError
from mobilefit.jobs import lab, plan
from mobilefit.jobs.folder import RunFolder
from mobilefit.jobs.model import export, network_for, spec_of
from mobilefit.jobs.options import Budget, option, parse_budget
from mobilefit.jobs.plan import Plan
from mobilefit.nn import Network, load_network, save_weights
from mobilefit.progress import Voice
from mobilefit.train import CHECKPOINT, recipe

WIDTHS_AROUND = 6
"""Width multipliers, in hundredths, that are measured on either side of the predicted one."""


@dataclass(frozen=True, kw_only=True)
class DesignConfig:
    """Options of ``mobilefit design``."""

    data: str = option(help="folder of class folders, or fashion-mnist", argument=True)
    latency: str = option(help="budget of the int8 network here: 2ms, 850us, or 70% of the seed's")
    seed_network: str = option("mobilenet_v3_small", help="name of the family, or a spec's .json")
    resolution: int = option(96, help="side of the network's input, pixels")
    minutes: float = option(30.0, help="about how long it may take")
    weights: Path | None = option(None, help="pretrained weights of the seed network to start from")
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
        None, help="how to train: fast, finetune, paper (default: finetune with --weights, else fast)"
    )
    table: Path | None = option(None, help="latency table of this device, from an earlier run")
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
        data = load(config.data, seed=config.seed)
        _Chain(config, budget, run, data, voice).run_all()
    return _closing(run)


def default_out(config: DesignConfig) -> Path:
    """A folder that the same command finds again."""
    share = config.latency.replace("%", "pct").replace("/", "_")
    words = [Path(config.data).name, Path(config.seed_network).stem, str(config.resolution), share]
    return Path("runs") / ("design-" + "-".join(words))


def _check(config: DesignConfig) -> None:
    lab.check_positive(
        resolution=config.resolution, minutes=config.minutes, seeds=config.seeds,
        delta=config.delta, tune_steps=config.tune_steps, epochs=config.epochs,
    )  # fmt: skip
    AdaptSettings(target_ms=1.0, delta=config.delta or 0.01, rule=config.rule)  # late is too late
    spec_of(config.seed_network)
    own_table = (config.out or default_out(config)) / lab.TABLE
    if config.table is not None and not own_table.exists():  # a resumed run has its copy
        LatencyTable.load(config.table)
    if config.recipe is not None:
        recipe(config.recipe)


def _closing(run: RunFolder) -> dict[str, Any]:
    record = run.record()
    print(report.summary_table(record))
    for name in (*record["final"]["files"].values(), "report.html"):
        print(run.path / name)
    over = record["final"]["latency"]["median_ms"] - record["budget_ms"]
    if over > 0:
        raise QualityGateError(
            f"the final network is {over:.3f} ms over the budget of {record['budget_ms']:.3f} ms",
            "the machine may have been slower at the end: see the report; or give a lower --latency",
        )
    return record


class _Chain:
    """The stages of a run, in order; each is done once, whatever interrupts the run."""

    def __init__(
        self, config: DesignConfig, budget: Budget, run: RunFolder, data: ClassificationData,
        voice: Voice,
    ) -> None:  # fmt: skip
        self.config, self.budget, self.run, self.data, self.voice = config, budget, run, data, voice
        self.seed_spec = _seed_spec(config, data)
        self.preset: Preset = data.preset(config.resolution)
        self.table = lab.OpenTable(run.path / lab.TABLE, config.table)
        self.plan: Plan

    def run_all(self) -> None:
        """Everything, and the record at the end."""
        start = self.run.stage("start", self.start)
        if start["fingerprint"] != self.data.fingerprint:
            raise InputError(
                f"the images of {self.data.name} changed since {self.run.path} was begun",
                "choose another --out",
            )
        self.plan = Plan(**self.run.stage("plan", self.make_plan))
        self.voice(self.plan.told(self.run.path))
        if not self.plan.shrink:
            self.voice(f"the seed network meets the budget already ({start['seed_ms']:.4g} of "
                       f"{start['budget_ms']:.4g} ms): NetAdapt is not needed")  # fmt: skip
        with self.run.timed("table"):
            self.table.fitted(self.seed_spec, self.voice)
        entries = [self.train("seed", self.seed_spec, self.config.seed)]
        final = self.seed_spec
        if self.plan.shrink:
            with self.run.timed("netadapt"):
                final = self.adapted(start)
            width = NetSpec.from_dict(self.run.stage("width", lambda: self.same_latency(final)))
            for seed in range(self.config.seed, self.config.seed + self.config.seeds):
                entries.append(self.train("adapted", final, seed))
                entries.append(self.train("width", width, seed))
        self.finish(final, entries)

    # ---- before anything is trained

    def start(self) -> dict[str, Any]:
        """Measure the seed network, and see that the budget can be met."""
        seed_ms = lab.measured([self.seed_spec])[0].median_ms
        budget_ms = self.budget.of(seed_ms)
        lowest = lab.floor(self.seed_spec)
        if lowest > budget_ms:
            name, least = lab.family_floor(self.seed_spec)
            raise InputError(
                f"no network made from {self.config.seed_network} at {self.config.resolution} px "
                f"meets {budget_ms:.4g} ms: the lowest reachable is {lowest:.4g} ms; "
                f"in the whole family {least:.4g} ms, from {name}",
                "raise --latency or lower --resolution",
            )
        if self.data.skipped:
            self.voice(f"{len(self.data.skipped)} bad image files are left out; the first: "
                       f"{self.data.skipped[0].path} ({self.data.skipped[0].why})")  # fmt: skip
        return {
            "fingerprint": self.data.fingerprint, "seed_ms": seed_ms, "budget_ms": budget_ms,
            "floor_ms": lowest,
        }  # fmt: skip

    def make_plan(self) -> dict[str, Any]:
        """Divide the time: see :mod:`mobilefit.jobs.plan`."""
        start = self.run.state["start"]
        c = self.config
        request = plan.Request(
            minutes=c.minutes, seeds=c.seeds, delta=c.delta, tune_steps=c.tune_steps,
            epochs=c.epochs, recipe=lab.recipe_for(c.recipe, c.weights, self.data),
        )  # fmt: skip
        speed = plan.speed(self.seed_spec, self.data, self.preset, request.recipe)
        return plan.make(
            request, self.data, speed, self.seed_spec, start["seed_ms"], start["budget_ms"]
        ).to_dict()

    # ---- networks

    def train(self, kind: str, spec: NetSpec, seed: int) -> lab.Entry:
        """A trained network with its label; taken up where it stopped."""
        label = spec.name if kind == "width" else kind
        folder = self.run.path / "train" / f"{kind}-{seed}"
        weights = folder / "model.safetensors"
        if not weights.exists():
            self.voice(f"training {label}, seed {seed}")
            with self.run.timed(f"training {kind}"):
                network = self.initial(kind, spec, seed)
                lab.train(
                    network, self.data, self.preset, self.plan.recipe(), steps=self.plan.train_steps,
                    seed=seed, folder=folder, label=self.voice.label(f"{label}, seed {seed}"),
                )  # fmt: skip
                save_weights(network, weights)
                (folder / CHECKPOINT).unlink(missing_ok=True)
        return lab.Entry(label=label, kind=kind, seed=seed, network=load_network(weights))

    def initial(self, kind: str, spec: NetSpec, seed: int) -> Network:
        """From scratch, as in the paper; from the seed network's weights if those were pretrained."""
        if self.config.weights is None:
            return network_for(spec, None, seed=seed)
        if kind == "seed":
            return network_for(self.seed_spec, self.config.weights, seed=seed)
        if kind == "adapted":
            return lab.last_step(self.run.path / "netadapt", self.trained_seed())
        return adapt.transfer(self.trained_seed(), spec)

    def trained_seed(self) -> Network:
        """The seed network after its training."""
        return load_network(self.run.path / "train" / f"seed-{self.config.seed}" / "model.safetensors")

    def adapted(self, start: dict[str, Any]) -> NetSpec:
        """NetAdapt from the trained seed network down to the budget."""
        seed_network = self.trained_seed()
        settings = AdaptSettings(
            target_ms=start["budget_ms"], margin=lab.MARGIN, delta=self.plan.delta, rule=self.config.rule
        )
        held = lab.held_out(self.data, self.plan.held_images, self.config.seed)
        tools = Tools(
            latency=self.table.predict,
            confirm=lab.Confirm(seed_network, start["seed_ms"]),
            tune=lab.tuner(self.data, self.preset, self.plan.recipe(), self.plan.tune_steps),
            accuracy=lambda network: lab.accuracy(network, held, self.preset),
            images=len(held),
        )
        found = adapt.adapt(
            seed_network, settings, tools, self.run.path / "netadapt", seed=self.config.seed,
            say=self.voice,
        )  # fmt: skip
        return replace(found.spec, name=f"{self.seed_spec.name}_adapted")

    def same_latency(self, final: NetSpec) -> dict[str, Any]:
        """The seed network scaled by the width multiplier that comes nearest in measured latency."""
        goal = self.table.predict(final)
        low, high = 5, 100  # percent; narrower below, wider above the goal
        while high - low > 1:
            middle = (low + high) // 2
            narrower = self.table.predict(self.seed_spec.width(middle / 100)) <= goal
            low, high = (middle, high) if narrower else (low, middle)
        around = range(max(5, low - WIDTHS_AROUND), min(100, low + WIDTHS_AROUND) + 1)
        near = list({s.id: s for s in (self.seed_spec.width(w / 100) for w in around)}.values())
        aim, *found = lab.measured([final, *near])
        best = min(range(len(near)), key=lambda i: abs(found[i].median_ms - aim.median_ms))
        return near[best].to_dict()

    # ---- the end

    def finish(self, final: NetSpec, entries: list[lab.Entry]) -> None:
        """Export and measure every trained network side by side, write files, record and report."""
        self.voice("quantizing, evaluating on the test images, measuring")
        with self.run.timed("export and measure"):
            chosen = self.choose(entries)
            files = [export(e.network, self.data, self.preset, seed=self.config.seed) for e in entries]
            blobs = [file.int8 for file in files] + [files[chosen].float32]
            latencies = lab.side_by_side(blobs)
            found = [
                lab.result(entry, file, latency, self.data, self.preset)
                for entry, file, latency in zip(entries, files, latencies[:-1], strict=True)
            ]
            names = lab.write_files(self.run.path, files[chosen])
            save_weights(entries[chosen].network, self.run.path / "model.safetensors")
        budget_ms = self.budget.of(latencies[0].median_ms)
        self.run.finish({
            "seed": self.config.seed,
            "budget_ms": budget_ms,
            "budget": self.config.latency,
            "data": lab.describe(self.data),
            "seed_spec": self.seed_spec.to_dict(),
            "final_spec": entries[chosen].network.spec.to_dict(),
            "plan": self.plan.to_dict(),
            "results": [row for row, _ in found],
            "final": {
                **found[chosen][0],
                "latency_float": latencies[-1].to_dict(),
                "confusion": found[chosen][1].confusion.tolist(),
                "misclassified": lab.misclassified(found[chosen][1], self.data),
                "files": names,
            },
            "layers": {
                "before": self.table.layer_rows(self.seed_spec),
                "after": self.table.layer_rows(final),
            },
        })  # fmt: skip
        report.write_report(self.run.path)

    def choose(self, entries: list[lab.Entry]) -> int:
        """The adapted network that is best on the held-out images; never by the test set."""
        mine = [i for i, e in enumerate(entries) if e.kind == "adapted"] or [0]
        return max(
            mine, key=lambda i: lab.accuracy(entries[i].network, self.data.holdout, self.preset)
        )


def _seed_spec(config: DesignConfig, data: ClassificationData) -> NetSpec:
    spec = spec_of(config.seed_network).resolution(config.resolution).classes(len(data.classes))
    if config.weights is not None:  # the weights may want other padding and norm constants
        return network_for(spec, config.weights, seed=config.seed).spec
    return spec
