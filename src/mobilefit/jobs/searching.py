"""Block-wise search as a stage of a run: from a space, images and a target latency to seed networks."""

from __future__ import annotations

import contextlib
import functools
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
from mobilefit.nn import Network, hub, load_network, save_weights
from mobilefit.parsing import check_fields
from mobilefit.progress import Voice
from mobilefit.search import Evaluator, Reward, SearchSettings, Space, Tokens, Trial
from mobilefit.search.log import Row, TrialLog
from mobilefit.train import Recipe, recalibrated

FOLDER = "search"
RESCORED = 48
"""Networks that are scored again at the end, on all held-out images and with the final weights."""
MANY_IMAGES = 20_000
"""Training images from which a search may win over pretrained weights."""
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
        self._shared: nas.SharedWeights | None = None

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
            best = self.rescored(evaluator, found.log, rows)
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

    def extract(self, tokens: Tokens) -> Network:
        """A network with its slice of the finished search's shared weights, and its own statistics."""
        if self._shared is None:
            shared = self.evaluator()
            assert isinstance(shared, nas.SharedWeights)
            nas.load_evaluator(shared, self.folder)
            self._shared = shared
        network = self._shared.supernet.extract(tokens)
        return recalibrated(network, self.data.train, self.preset, self.search.recipe)

    def rescored(self, evaluator: Evaluator, log: TrialLog, rows: list[Row]) -> list[Row]:
        """The networks of the shortlist, best first, by the final weights on the same images.

        Scores of shared weights rise during the search, and the best trial was lucky too. Hand-made
        networks are always scored again. Equal rewards are decided by the loss. The log keeps it all.
        """
        if not evaluator.depends_on_history:
            return nas.best_by_network(rows)
        handmade = {tuple(tokens) for tokens in self.search.space.handmade}
        shortlist = {row["number"]: row for row in nas.shortlist(rows, RESCORED)}
        shortlist |= {
            row["number"]: row for row in nas.best_by_network(rows) if tuple(row["tokens"]) in handmade
        }
        trials = [
            Trial(number=row["number"], tokens=tuple(row["tokens"]),
                  spec=self.search.space.spec(row["tokens"]))
            for row in shortlist.values() if row["number"] not in log.rescored
        ]  # fmt: skip
        if trials:
            self.voice(f"scoring {len(shortlist)} networks again, by the final weights")
        for score in evaluator.rescore(trials):
            log.add_rescored({"number": score.number, "accuracy": score.accuracy, "loss": score.loss})
        scored = [
            row | {"rescored": log.rescored[number]["accuracy"], "loss": log.rescored[number]["loss"]}
            for number, row in shortlist.items() if log.rescored[number]["accuracy"] is not None
        ]  # fmt: skip
        return sorted(scored, key=lambda row: (
            -self.search.reward(row["rescored"], row["latency_ms"]), row["loss"], row["number"]
        ))  # fmt: skip

    def measured(self, rows: list[Row]) -> list[dict[str, Any]]:
        """The record of the best networks, each measured end to end beside the reference."""
        specs = [self.search.space.spec(row["tokens"]) for row in rows]
        latencies = self.end_to_end(specs)
        return [
            {
                "label": f"search_{place}", "spec": spec.to_dict(), "spec_id": spec.id,
                "trial": row["number"], "proxy_accuracy": row["accuracy"],
                "rescored_accuracy": row.get("rescored"), "rescored_loss": row.get("loss"),
                "tokens": row["tokens"], "predicted_ms": row["latency_ms"],
                "measured_ms": latency,
                "full_accuracy": None, "reward_full": None,
            }
            for place, (row, spec, latency) in enumerate(zip(rows, specs, latencies, strict=True), 1)
        ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A network of a search's shortlist."""

    label: str
    """``search_1`` is the first."""
    spec: NetSpec
    accuracy: float
    """0 to 1, on held-out images: by the final shared weights, else by the trial's own training."""
    loss: float | None
    """Mean cross-entropy on the same images, nats; ``None``: the evaluator has none."""
    latency_ms: float
    """Measured end to end."""
    initial: Callable[[], Network] | None
    """The network with its slice of the final shared weights and its own statistics, extracted when it
    is called; ``None``: the evaluator shares no weights."""


def candidates(result: dict[str, Any], stage: Searching) -> list[Candidate]:
    """The shortlist of a search, best first.

    Args:
        result: what :meth:`Searching.run` returned, now or in an earlier run of the same folder.
        stage: the same search's.
    """
    return [
        Candidate(
            label=entry["label"], spec=NetSpec.from_dict(entry["spec"]),
            accuracy=entry["proxy_accuracy"] if entry["rescored_accuracy"] is None else entry["rescored_accuracy"],
            loss=entry["rescored_loss"], latency_ms=entry["measured_ms"],
            initial=functools.partial(stage.extract, tuple(entry["tokens"]))
            if result["evaluator"] == "supernet" else None,
        )
        for entry in result["top"]
    ]  # fmt: skip


def published_weights(space: Space) -> str | None:
    """The hub's weights for the network that a space is made around; ``None``: there are none."""
    for hub_name, models in hub.PUBLISHED.items():
        for name, spec in models.items():
            if spec.blocks == space.base.blocks:
                return f"{hub_name}:{name}"
    return None


def worthwhile(images: int, pretrained: str | None) -> tuple[bool, str]:
    """Whether a search can win, and why, in words.

    Args:
        images: to train on.
        pretrained: what the pretrained weights at hand are of; ``None``: there are none.
    """
    if pretrained is None:
        return True, "there are no pretrained weights that a searched network would give up"
    if images >= MANY_IMAGES:
        return True, f"{images:,} training images are enough to train a network from scratch"
    return False, (
        f"a searched network gives up the pretrained weights of {pretrained}, and "
        f"{images:,} training images are too few to make up for them (from about {MANY_IMAGES:,})"
    )


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
            lab.drop_checkpoints(folder)
        return load_network(weights)


RECORD_FIELDS = {
    "space": str, "strategy": str, "evaluator": str, "reward": str, "target_ms": float, "trials": int, "failed": int,
    "front": Any, "top": tuple[dict[str, Any], ...], "winner": int,
}  # fmt: skip
"""Of what :meth:`Searching.run` and :func:`fully_trained` give, what is read again."""
_TOP_FIELDS = {
    "label": str, "spec": dict, "measured_ms": float, "proxy_accuracy": float, "rescored_accuracy": float | None,
    "rescored_loss": float | None, "tokens": tuple[int, ...],
}  # fmt: skip


def fully_trained(
    found: dict[str, Any], training: FullTraining, reward: Reward, seed: int, *,
    stage: Searching | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The search's record with the best networks trained fully, and the winner among them.

    They are compared on held-out images and by measured latency; the search's own scores of them are
    then worth their rank correlation.

    Args:
        stage: the search's: each network begins from its slice of the shared weights, where there are
            any. ``None``: from scratch.
    """
    for entry in found["top"]:
        check_fields(entry, _TOP_FIELDS, "a network at the top of the search")
    initial = {} if stage is None else {c.label: c.initial for c in candidates(found, stage)}
    top = []
    for entry in found["top"]:
        network = training.network(
            entry["label"], NetSpec.from_dict(entry["spec"]), seed, initial=initial.get(entry["label"])
        )
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
    if not 0 <= found["winner"] < len(found["top"]):
        raise InputError(f"the search's winner is network {found['winner']} of {len(found['top'])}")
    return check_fields(found["top"][found["winner"]], {"spec": dict}, "the search's winner")


def winner(found: dict[str, Any]) -> NetSpec:
    """The search's result as a seed network."""
    spec = NetSpec.from_dict(winning_entry(found)["spec"])
    return replace(spec, name=f"{found['space']}_searched")
