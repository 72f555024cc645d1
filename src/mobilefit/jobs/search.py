"""Block-wise search alone: images and a target latency in, a trained seed network out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mobilefit import device, report
from mobilefit import search as nas
from mobilefit.arch import NetSpec
from mobilefit.data import Preset
from mobilefit.data.shard_remote import shown
from mobilefit.device import Phone
from mobilefit.errors import InputError
from mobilefit.jobs import kinds, lab, plan, searching
from mobilefit.jobs.folder import RunFolder
from mobilefit.jobs.kinds import KINDS, Kind, source_of
from mobilefit.jobs.model import network_for, value_of
from mobilefit.jobs.options import device_option, option, parse_budget, tool_option
from mobilefit.jobs.plan import SearchPlan
from mobilefit.jobs.searching import FullTraining, Search, Searching
from mobilefit.nn import save_weights
from mobilefit.progress import Voice
from mobilefit.runs import write_atomic
from mobilefit.search import Reward, SearchSettings, Space, Supernet
from mobilefit.train import Recipe

TABULAR = "tabular"
TABULAR_TRIALS = 2000
TRAINING_SHARE = 0.35
"""Of the time, for training the best networks fully."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Options of ``mobilefit search``."""

    data: str = option(
        help="images: docs/data.md; with boxes: docs/detection.md; with masks: docs/segmentation.md; "
             "or tabular: a known table, no images",
        argument=True,
    )
    latency: str = option(help="target of the int8 network here: 2ms, or 70% of the space's base network")
    task: Literal["classify", "detect", "segment"] = option(
        "classify", help="what the networks are for: of detect and segment the backbones are searched"
    )
    space: str = option("mobilenet_v3_small", help="mnasnet, mnasnet_a1, mobilenet_v3_small, or a space's .json")
    strategy: str = option("evolution", help="evolution, rnn (LSTM controller, PPO), reinforce or random")
    evaluator: Literal["supernet", "proxy"] | None = option(
        None, help="supernet: shared weights; proxy: a short training of each network "
                   "(default: supernet; detect, segment: proxy)"
    )  # fmt: skip
    reward: str = option("absolute", help="absolute (aims at the target), soft, soft_small or hard")
    trials: int | None = option(None, help="networks to try (default: by --minutes; tabular: 2000)")
    resolution: int | None = option(
        None, help="side of the network's input, or its height, pixels (default: 96; detect: 320; segment: by the images)"
    )
    columns: int | None = option(None, help="width of the network's input, where it is not square, pixels")
    ignore_label: tuple[int, ...] = option((), help="segment: a label in the masks that is no class; may be repeated")
    minutes: float = option(30.0, help="about how long it may take")
    proxy_steps: int = option(100, help="training steps of a trial of the proxy")
    initial: Literal["scratch", "shared"] = option(
        "scratch", help="what full trainings begin with: fresh weights, or each network's slice of the shared ones"
    )
    top: int = option(3, help="best networks that are trained fully at the end")
    epochs: float | None = option(None, help="of each full training (default: by --minutes)")
    recipe: str | None = option(
        None, help="how to train: docs/recipes.md (default: fast; detect; segment)"
    )
    workers: int = option(1, help="proxy trials at a time here, on Ray (pip install 'mobilefit[cluster]')")
    cluster: str | None = option(None, help="HOST:PORT of a Ray cluster, or auto: as many proxy trials at a time as it has room for")
    trial_cpus: float = option(1.0, help="CPUs of a trial on Ray: it trains with as many threads")
    trial_gpus: float = option(0.0, help="GPUs of a trial on Ray")
    measure: bool = option(False, help="time every network end to end instead of asking the latency table")
    table: Path | None = option(None, help="latency table of this device, from an earlier run")
    device: str = device_option()
    benchmark_model: Path | None = tool_option()
    seed: int = option(0, help="of everything random")
    out: Path | None = option(None, help="run folder (default: runs/search-...)")
    quiet: bool = option(False, help="show no progress")


def search(config: SearchConfig) -> dict[str, Any]:
    """Search, or go on with the search; writes ``seed.json``, its weights, record and report.

    Raises:
        InputError: bad data, options, space or folder; a target that nothing in the space meets;
            trials that fail one after the other for one reason.
    """
    budget = parse_budget(config.latency)
    _check(config)
    space = nas.space(config.space)
    run = RunFolder(config.out or default_out(config), "search", config)
    voice = Voice(quiet=config.quiet)
    if run.finished:
        voice(f"{run.path} holds this run, finished; delete the folder to run it again")
    elif config.data == TABULAR:
        if budget.milliseconds is None:
            raise InputError("a table has no base network to take a part of", "write --latency 75ms")
        _tabular(config, space, Reward(form=config.reward, target_ms=budget.milliseconds), run, voice)
    else:
        with device.opened(config.device, tool=config.benchmark_model, say=voice) as phone:
            lab.check_table(config.table, run.path, phone)
            kind = KINDS[config.task]
            data = kind.load(source_of(config, voice))
            lab.check_held_out(data)
            _Run(config, kind, run, data, voice, phone).run_all()
    return _closing(run)


def default_out(config: SearchConfig) -> Path:
    """A folder that the same command finds again."""
    share = config.latency.replace("%", "pct").replace("/", "_")
    words = [Path(shown(config.data)).name, Path(config.space).stem, config.strategy, share]
    words += [config.task] if config.task != "classify" else []
    words += [config.device.replace(":", "-")] if config.device != "host" else []
    return Path("runs") / ("search-" + "-".join(words))


def _check(config: SearchConfig) -> None:
    lab.check_positive(
        resolution=config.resolution, columns=config.columns, minutes=config.minutes, trials=config.trials, top=config.top,
        epochs=config.epochs, proxy_steps=config.proxy_steps, workers=config.workers,
        trial_cpus=config.trial_cpus,
    )  # fmt: skip
    searching.check_names(config.space, config.strategy, config.reward)
    kinds.check_options(
        config.task, recipe=config.recipe, height=config.resolution, width=config.columns,
        ignore=config.ignore_label,
    )  # fmt: skip
    if config.task != "classify" and config.evaluator == "supernet":
        raise InputError(
            f"--evaluator supernet is for classification, not for --task {config.task}: heads share no weights",
            "leave it out: proxy, a short training of each network, is then the default",
        )
    if _evaluator(config) == "proxy" and config.initial == "shared":
        raise InputError(
            "--initial shared needs shared weights, and the proxy trains each network on its own",
            "leave it out, or add --evaluator supernet",
        )
    if _evaluator(config) != "proxy" and (config.workers > 1 or config.cluster):
        raise InputError(
            "--workers and --cluster spread the proxy's trials; shared weights are one training",
            "add --evaluator proxy",
        )
    if config.workers > 1 and config.cluster:
        raise InputError(
            "--workers counts trials on this machine, a --cluster takes what it has room for",
            "give one of them",
        )
    if config.trial_gpus < 0:
        raise InputError(f"--trial-gpus is {config.trial_gpus}, must not be below 0")
    on_ray = config.workers > 1 or config.cluster is not None
    if not on_ray and (config.trial_cpus, config.trial_gpus) != (1.0, 0.0):
        raise InputError(
            "--trial-cpus and --trial-gpus are for trials on Ray", "add --workers or --cluster"
        )
    device.check_target(config.device, config.benchmark_model)
    if config.data == TABULAR and config.task != "classify":
        raise InputError("a table of known accuracies is of classifiers", "leave --task out")
    if config.data == TABULAR and config.device != "host":
        raise InputError("a table of known latencies has its device", "leave --device out")


def _evaluator(config: SearchConfig) -> str:
    return config.evaluator or ("supernet" if config.task == "classify" else "proxy")


def _tabular(
    config: SearchConfig, space: Space, reward: Reward, run: RunFolder, voice: Voice
) -> None:
    """A search in a table of known accuracy and latency, whose best network is known."""
    table = nas.Tabular(space)
    fastest = table.fastest()
    if fastest > reward.target_ms:
        raise InputError(
            f"no network of the space '{space.name}' meets {reward.target_ms:.4g} ms in the table: "
            f"the nearest takes {fastest:.4g} ms",
            "raise --latency, or widen the space: fewer layers, smaller filters",
        )
    trials = config.trials or TABULAR_TRIALS
    evaluator = nas.Known(lambda tokens: table.evaluate(tokens)[0])
    with run.timed("search"):
        found = nas.search(
            space, nas.strategy(config.strategy, space.sizes, config.seed), evaluator,
            lambda specs: [table.evaluate(space.tokens(spec))[1] for spec in specs], reward,
            SearchSettings(strategy=config.strategy, trials=trials, seed=config.seed),
            run.path / searching.FOLDER, label=voice.label("search"),
        )  # fmt: skip
    tokens, optimal = table.optimum(reward)
    best = nas.best_by_network(found.log.good())
    top = [
        {"label": f"search_{place}", "spec": space.spec(row["tokens"]).to_dict(),
         "spec_id": row["spec_id"], "trial": row["number"], "proxy_accuracy": row["accuracy"],
         "predicted_ms": row["latency_ms"]}
        for place, row in enumerate(best[: config.top], 1)
    ]  # fmt: skip
    write_atomic(run.path / "seed.json", space.spec(best[0]["tokens"]).to_json() + "\n")
    run.finish({
        "seed": config.seed, "budget_ms": reward.target_ms, "data": {"name": TABULAR},
        "best_reward": best[0]["reward"], "optimal_reward": optimal,
        "final_spec": top[0]["spec"],
        "search": {
            "space": space.name, "strategy": config.strategy, "evaluator": evaluator.name,
            "reward": reward.form, "target_ms": reward.target_ms, "trials": trials,
            "failed": 0, "distinct": len(best), "best_reward": best[0]["reward"],
            "optimal_reward": optimal, "optimum": space.spec(tokens).to_dict(),
            "front": searching.front(found.log.good()), "top": top, "winner": 0,
            "seconds": {name: round(value, 2) for name, value in found.seconds.items()},
        },
    })  # fmt: skip


_PLAN = {"told": Any, "search": SearchPlan, "batch": int, "train_steps": int}
"""Of the stage that divides the time."""


class _Run:
    """The stages of a search on images; each is done once, whatever interrupts the run."""

    def __init__(
        self, config: SearchConfig, kind: Kind, run: RunFolder, data: Any, voice: Voice, phone: Phone | None
    ) -> None:
        self.config, self.run, self.data, self.voice = config, run, data, voice
        self.kind, self.phone = kind, phone
        self.space = searching.space_for(kind, config.space, data, config.resolution, config.columns)
        self.preset: Preset = kind.preset(data, self.space.reference)
        self.table = lab.OpenTable(run.path / lab.TABLE, config.table, phone)
        self.recipe: Recipe = kind.recipe(config.recipe, None, data)

    def run_all(self) -> None:
        """Everything, and the record at the end."""
        start = self.run.stage("start", self.start, {"fingerprint": str, "base_ms": float, "target_ms": float})
        lab.check_unchanged(start["fingerprint"], self.data, self.run.path)
        planned = self.run.stage("plan", lambda: self.make_plan(start["target_ms"]), _PLAN)
        self.voice(planned["told"])
        found = SearchPlan(**planned["search"])
        reward = Reward(form=self.config.reward, target_ms=start["target_ms"])
        with self.run.timed("table"):
            self.table.fitted(self.space.reference, self.voice)
        search = Search(
            kind=self.kind, space=self.space, strategy=self.config.strategy, evaluator=_evaluator(self.config),
            reward=reward, plan=found, recipe=replace(self.recipe, batch_size=planned["batch"]),
            seed=self.config.seed, measure=self.config.measure, workers=self.config.workers,
            cluster=self.config.cluster, trial_cpus=self.config.trial_cpus,
            trial_gpus=self.config.trial_gpus,
        )  # fmt: skip
        stage = Searching(
            search, self.run.path, self.data, self.preset, self.table, start["base_ms"], self.voice
        )
        searched = self.run.stage("search", stage.run, searching.RECORD_FIELDS)
        training = FullTraining(
            kind=self.kind, data=self.data, preset=self.preset,
            recipe=replace(self.recipe, batch_size=planned["batch"]), steps=planned["train_steps"],
            folder=self.run.path / "train", voice=self.voice,
        )  # fmt: skip
        searched = self.run.stage(
            "training", lambda: searching.fully_trained(
                searched, training, reward, self.config.seed,
                stage=stage if self.config.initial == "shared" else None,
            ), searching.RECORD_FIELDS,
        )
        self.finish(searched, training)

    def start(self) -> dict[str, Any]:
        """Measure the base network, and see that the space can meet the target."""
        base_ms = lab.measured([self.space.reference], self.phone)[0].median_ms
        target_ms = parse_budget(self.config.latency).of(base_ms)
        searching.check_space(self.space, target_ms, self.phone)
        kinds.tell_left_out(self.data, self.voice)
        likely, reason = searching.worthwhile(len(self.data.train), searching.published_weights(self.space))
        if not likely:
            self.voice(f"a search is not likely to win here: {reason}; design starts from such weights")
        return {"fingerprint": self.data.fingerprint, "base_ms": base_ms, "target_ms": target_ms}

    def make_plan(self, target_ms: float) -> dict[str, Any]:
        """Divide the time between the search and the full trainings."""
        c = self.config
        batch = plan.batch_size(self.recipe, len(self.data.train))
        classifies = self.kind.task == "classify"
        network = Supernet(self.space, c.seed) if classifies else network_for(self.space.reference)
        found = plan.speed(network, self.data, self.preset, self.recipe, self.kind.port)
        seconds = 60 * c.minutes * (1 - TRAINING_SHARE)
        if _evaluator(c) == "supernet":
            search = plan.search_with_shared_weights(
                seconds, self.space, found, batch, c.trials, c.top
            )
        else:
            search = plan.search_by_proxy(
                seconds, self.space, found, batch, c.trials, c.top, c.proxy_steps,
                min(searching.HELD_IMAGES, len(self.data.holdout)), c.workers,
            )  # fmt: skip
        per_epoch = max(1, len(self.data.train) // batch)
        left = max(0.0, 60 * c.minutes - search.seconds) / c.top
        steps = max(20, min(plan.MOST_EPOCHS * per_epoch, int(left * found.training / batch)))
        if c.epochs is not None:
            steps = max(1, round(c.epochs * per_epoch))
        training = c.top * steps * batch / found.training
        told = (
            f"1. search {self.space.size:.2g} networks of '{self.space.name}' for {target_ms:.4g} ms: "
            f"{search.trials} trials ({search.seconds / 60:.0f} min)\n"
            f"2. train the best {c.top} for {steps / per_epoch:.1f} epochs ({training / 60:.0f} min)\n"
            f"in {self.run.path}; Ctrl-C any time: the same command goes on"
        )
        return {"search": vars(search), "batch": batch, "train_steps": steps, "told": told}

    def finish(self, searched: dict[str, Any], training: FullTraining) -> None:
        """The winner's files, the record, the report."""
        spec, entry = searching.winner(searched), searching.winning_entry(searched)
        network = training.network(entry["label"], NetSpec.from_dict(entry["spec"]), self.config.seed)
        found = self.kind.port.evaluate(network, self.data.test, self.preset)
        network.spec = spec
        write_atomic(self.run.path / "seed.json", spec.to_json() + "\n")
        save_weights(
            network, self.run.path / "model.safetensors", preset=self.preset.to_dict(),
            classes=self.data.classes,
        )  # fmt: skip
        reference = self.space.reference
        self.table.ensure([spec, reference])
        cost = spec.cost()
        row = {
            "label": spec.name, "kind": "seed", "seed": self.config.seed,
            "accuracy_float": value_of(found), "params": cost.params, "madds": cost.madds,
            "spec_id": spec.id,
        }  # fmt: skip
        timed = {**row, "latency": {"median_ms": entry["measured_ms"]}}
        self.run.finish({
            "seed": self.config.seed, "task": self.kind.task, "data": kinds.described(self.data), "search": searched, "recipe": training.recipe.to_dict(),
            "best_reward": searched["best_reward"], "final_spec": spec.to_dict(),
            "reference_spec": reference.to_dict(), "results": [timed],
            "final": {**row, **self.kind.record(found, self.data)},
            "layers": {"before": self.table.layer_rows(reference),
                       "after": self.table.layer_rows(spec)},
        })  # fmt: skip


def _closing(run: RunFolder) -> dict[str, Any]:
    """Write the page of a finished run, if it has none, and print what came out."""
    if run.lacks_page:
        report.write_report(run.path)
    record = run.record()
    found = record["search"]
    best = searching.winning_entry(found)
    if record.get("optimal_reward"):
        share = record["best_reward"] / record["optimal_reward"]
        print(f"best reward {record['best_reward']:.4f}, {share:.1%} of the optimal "
              f"{record['optimal_reward']:.4f}: {best['proxy_accuracy']:.2%} at "
              f"{best['predicted_ms']:.2f} ms")  # fmt: skip
    else:
        for place, entry in enumerate(found["top"]):
            mark = "*" if place == found["winner"] else " "
            print(f"{mark} {entry['label']}  {entry['measured_ms']:.4f} ms "
                  f"(predicted {entry['predicted_ms']:.4f})  {entry['full_accuracy']:.2%} held out, "
                  f"{entry['proxy_accuracy']:.2%} in the search")  # fmt: skip
        score = "" if record["task"] == "classify" else f" {KINDS[record['task']].score}"
        print(f"{record['final']['accuracy_float']:.2%}{score} on the test images")
        print(run.path / "model.safetensors")
    print(f"design with it: --seed-network {run.path / 'seed.json'}")
    print(run.path / "report.html")
    return record
