"""Block-wise search as a stage of a run: from a space, images and a target latency to seed networks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mobilefit import device
from mobilefit import search as nas
from mobilefit.arch import NetSpec
from mobilefit.data import Preset
from mobilefit.device import Phone
from mobilefit.errors import InputError
from mobilefit.jobs import lab
from mobilefit.jobs.kinds import Kind
from mobilefit.jobs.model import network_for
from mobilefit.jobs.plan import SearchPlan
from mobilefit.nn import Network, load_network, save_weights
from mobilefit.progress import Voice
from mobilefit.search import Evaluator, Reward, SearchSettings, Space, Trial
from mobilefit.search.log import Row
from mobilefit.train import BEST, CHECKPOINT, Recipe

FOLDER = "search"
RESCORED = 24
"""Networks that are scored again at the end, on more images and with the final weights."""
HELD_IMAGES = 2000


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched, with what, towards what."""

    kind: Kind
    """The task."""
    space: Space
    """Of the task, at the resolution and number of classes of the run."""
    strategy: str
    evaluator: str
    """supernet (classification alone) or proxy."""
    reward: Reward
    plan: SearchPlan
    recipe: Recipe
    """Of the shared weights or of the proxy's trainings."""
    seed: int
    measure: bool = False
    """Time each network end to end instead of asking the table."""
    workers: int = 1
    cluster: str | None = None
    trial_cpus: float = 1.0
    trial_gpus: float = 0.0
    """What a trial on Ray is given."""

    @property
    def on_ray(self) -> bool:
        """Whether trials run on workers."""
        return self.workers > 1 or self.cluster is not None


class Searching:
    """The search of a run, in its own folder; what an interrupted one has done is taken up.

    Args:
        run: the run's folder.
        table: fitted; learns the rows that the search meets.
        nominal_ms: the reference network's latency when the run began: what is measured later is
            brought to the machine's speed of then.
    """

    def __init__(
        self, search: Search, run: Path, data: Any, preset: Preset,
        table: lab.OpenTable, nominal_ms: float, voice: Voice,
    ) -> None:  # fmt: skip
        self.search, self.folder = search, run / FOLDER
        self.data, self.preset, self.table, self.voice = data, preset, table, voice
        self.reference, self.nominal_ms = search.space.reference, nominal_ms

    def run(self) -> dict[str, Any]:
        """Search, score the best again, measure the very best: the record's part, plain JSON values."""
        s = self.search
        with contextlib.closing(self.evaluator()) as evaluator:
            found = nas.search(
                s.space, nas.strategy(s.strategy, s.space.sizes, s.seed), evaluator, self.latencies,
                s.reward, SearchSettings(strategy=s.strategy, trials=s.plan.trials, seed=s.seed),
                self.folder, label=self.voice.label("search"),
            )  # fmt: skip
            rows = found.log.good()
            if not rows:
                raise InputError(f"no trial of the search succeeded: see {found.log.path}")
            best = self.rescored(evaluator, nas.best_by_network(rows)[:RESCORED])
        top = self.measured(best[: max(1, s.plan.top)])
        return {
            "space": s.space.name, "strategy": s.strategy, "evaluator": s.evaluator,
            "reward": s.reward.form, "target_ms": s.reward.target_ms, "trials": len(found.log.rows),
            "failed": sum(found.log.failures().values()),
            "distinct": len({row["spec_id"] for row in rows}),
            "seconds": {name: round(value, 2) for name, value in found.seconds.items()},
            "best_reward": max(row["reward"] for row in rows), "optimal_reward": None,
            "front": front(rows), "top": top, "winner": 0, "rank_correlation": None,
            "reference": {"name": self.reference.name, "spec": self.reference.to_dict()},
        }  # fmt: skip

    def latencies(self, specs: Sequence[NetSpec]) -> list[float]:
        """Milliseconds by the table, which measures the rows that it lacks, or end to end."""
        if self.search.measure:
            return self.end_to_end(specs)
        self.table.ensure(specs)
        return [self.table.predict(spec) for spec in specs]

    def end_to_end(self, specs: Sequence[NetSpec]) -> list[float]:
        """Milliseconds measured beside the reference, at the machine's speed when the run began."""
        reference, *latencies = lab.measured([self.reference, *specs], self.table.phone)
        return [x.median_ms * self.nominal_ms / reference.median_ms for x in latencies]

    def evaluator(self) -> Evaluator:
        """As the search wants it."""
        s, held = self.search, lab.held_out(self.data, HELD_IMAGES, self.search.seed)
        if s.evaluator == "supernet":
            return nas.SharedWeights(s.space, nas.SupernetTask(
                train_set=self.data.train, held_out=held, preset=self.preset, recipe=s.recipe,
                warmup_steps=s.plan.warmup_steps, trials=s.plan.trials, seed=s.seed,
                folder=self.folder / "warmup", label=self.voice.label("supernet, random paths"),
            ))  # fmt: skip
        task = nas.ProxyTask(
            train_set=self.data.train, held_out=held, preset=self.preset, recipe=s.recipe,
            steps=s.plan.proxy_steps, seed=s.seed, task=s.kind.port,
        )  # fmt: skip
        if not s.on_ray:
            return nas.Proxy(task)
        from mobilefit.search.cluster import ProxyOnRay  # Ray is an extra

        return ProxyOnRay(
            task, workers=s.workers, address=s.cluster, cpus=s.trial_cpus, gpus=s.trial_gpus
        )

    def rescored(self, evaluator: Evaluator, rows: list[Row]) -> list[Row]:
        """The rows by what a second look says of them, best first.

        The best trial of a noisy evaluator was lucky; more images and the final weights tell better.
        """
        if not evaluator.depends_on_history:
            return rows
        self.voice(f"scoring the best {len(rows)} again")
        trials = [
            Trial(number=row["number"], tokens=tuple(row["tokens"]),
                  spec=self.search.space.spec(row["tokens"]))
            for row in rows
        ]  # fmt: skip
        again = {o.number: o.accuracy for o in evaluator.rescore(trials) if o.accuracy is not None}
        known = [row | {"rescored": again[row["number"]]} for row in rows if row["number"] in again]
        return sorted(
            known, key=lambda row: -self.search.reward(row["rescored"], row["latency_ms"])
        )

    def measured(self, rows: list[Row]) -> list[dict[str, Any]]:
        """The record of the best networks, each measured end to end beside the reference."""
        specs = [self.search.space.spec(row["tokens"]) for row in rows]
        latencies = self.end_to_end(specs)
        return [
            {
                "label": f"search_{place}", "spec": spec.to_dict(), "spec_id": spec.id,
                "trial": row["number"], "proxy_accuracy": row["accuracy"],
                "rescored_accuracy": row.get("rescored"), "predicted_ms": row["latency_ms"],
                "measured_ms": latency,
                "full_accuracy": None, "reward_full": None,
            }
            for place, (row, spec, latency) in enumerate(zip(rows, specs, latencies, strict=True), 1)
        ]  # fmt: skip


def front(rows: list[Row]) -> list[dict[str, Any]]:
    """The record of the networks that no other trial beats in both accuracy and latency."""
    keys = ("number", "tokens", "spec_id", "latency_ms", "accuracy")
    return [{key: row[key] for key in keys} for row in nas.pareto(rows)]


def check_names(space: str, strategy: str, reward: str) -> None:
    """What can be told of a search before the images are read.

    Raises:
        InputError: there is no such space, strategy or reward, or the space is not legal.
    """
    nas.space(space)
    nas.strategy(strategy, (2,), 0)
    Reward(form=reward, target_ms=1.0)


def space_for(kind: Kind, name: str, data: Any, height: int | None, width: int | None) -> Space:
    """The space of a name or file for some images: of networks of the task, of their classes and size.

    Args:
        height, width: of the input, pixels; ``None``: what is usual.

    Raises:
        InputError: a size that the task has not, or no head fits to the space's networks.
    """
    found = nas.space(name)
    base = kind.network(found.base, data, height, width)
    if kind.task == "classify":
        return found.resolution(base.input_size).classes(base.head.num_classes)
    return found.for_task(kind.task, base.head.num_classes, *base.image_shape)


def check_space(space: Space, target_ms: float, phone: Phone | None = None) -> None:
    """See that the space has a network within the target.

    Raises:
        InputError: its smallest network is slower (says how slow, and what to widen).
    """
    smallest = lab.measured([space.spec(space.smallest())], phone)[0].median_ms
    if smallest > target_ms:
        raise InputError(
            f"no network of the space '{space.name}' meets {target_ms:.4g} ms at "
            f"{lab.pixels(space.reference)}: the nearest, its smallest, takes {smallest:.4g} ms",
            "raise --latency, lower --resolution, or widen the space: fewer layers, smaller filters",
        )


@dataclass(frozen=True, kw_only=True)
class FullTraining:
    """How every network of a run is trained in full."""

    kind: Kind
    data: Any
    preset: Preset
    recipe: Recipe
    steps: int
    folder: Path
    """Of the trainings, a folder each."""
    voice: Voice

    def network(
        self, name: str, spec: NetSpec, seed: int, *, label: str | None = None,
        initial: Callable[[], Network] | None = None,
    ) -> Network:  # fmt: skip
        """A trained network; taken up where it stopped.

        Args:
            name: of its folder, with the seed.
            label: what it is called while it trains; ``None``: as its folder.
            initial: gives the weights that it begins with; ``None``: fresh ones by the seed.
        """
        folder, label = self.folder / f"{name}-{seed}", label or name
        weights = folder / "model.safetensors"
        if not weights.exists():
            self.voice(f"training {label}, seed {seed}")
            network = network_for(spec, None, seed=seed) if initial is None else initial()
            lab.train(
                network, self.data, self.preset, self.recipe, task=self.kind.port, steps=self.steps,
                seed=seed, folder=folder, label=self.voice.label(f"{label}, seed {seed}"),
            )  # fmt: skip
            save_weights(network, weights, preset=self.preset.to_dict(), classes=self.data.classes)
            for needless in (CHECKPOINT, BEST):
                (folder / needless).unlink(missing_ok=True)
        return load_network(weights)


def fully_trained(
    found: dict[str, Any], training: FullTraining, reward: Reward, seed: int
) -> dict[str, Any]:
    """The search's record with the best networks trained fully, and the winner among them.

    They are compared on held-out images and by measured latency; the search's own scores of them are
    then worth their rank correlation.
    """
    top = []
    for entry in found["top"]:
        network = training.network(entry["label"], NetSpec.from_dict(entry["spec"]), seed)
        accuracy = lab.accuracy(training.kind.port, network, training.data.holdout, training.preset)
        top.append(entry | {
            "full_accuracy": accuracy, "reward_full": reward(accuracy, entry["measured_ms"]),
        })  # fmt: skip
    pairs = [
        (entry["proxy_accuracy"] if entry["rescored_accuracy"] is None else entry["rescored_accuracy"],
         entry["full_accuracy"])
        for entry in top
    ]  # fmt: skip
    winner = max(range(len(top)), key=lambda i: top[i]["reward_full"])
    return found | {
        "top": top, "winner": winner,
        "rank_correlation": device.kendall_tau(pairs) if len(pairs) > 1 else None,
    }  # fmt: skip


def winning_entry(found: dict[str, Any]) -> dict[str, Any]:
    """The winner among a search's best networks."""
    entry: dict[str, Any] = found["top"][found["winner"]]
    return entry


def winner(found: dict[str, Any]) -> NetSpec:
    """The search's result as a seed network."""
    spec = NetSpec.from_dict(winning_entry(found)["spec"])
    return replace(spec, name=f"{found['space']}_searched")
