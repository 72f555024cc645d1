"""NetAdapt's estimates on Fashion-MNIST: how noisy they are, whether they foretell, and which channels to keep.

    python -m benchmarks.netadapt channels      # gates, norms, batch norm scales and chance: two minutes
    python -m benchmarks.netadapt proposals     # spread between seeds: six minutes
    python -m benchmarks.netadapt ranking       # estimate against a longer training: a quarter of an hour
    python -m benchmarks.netadapt knapsack --photos FOLDER --weights FILE     # beside a smaller picture: ten minutes a share

MobileNetV3-Small at 48 px, trained once for ``--base-steps``. Two ways of judging a proposal are compared:

- ``before``: channels kept by the norm of their filters, fine-tuned on batches of the proposal's own, judged with the
  running statistics that this leaves;
- ``after``: channels kept by gates, fine-tuned on the same batches as every proposal, judged with statistics of its own.

Proposals are cuts of multiply-adds, so that nothing is timed. ``knapsack`` alone is about another network: one that was
trained on photos (``--weights``, of ``mobilefit train``), shrunk by ``adapt --method knapsack`` to shares of its measured
latency, beside itself at the smaller input that is as fast, tuned for as many steps. Every measurement is a row of a ``.jsonl`` file in
``results/netadapt``, written as soon as it is made: an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import ROOT, header
from mobilefit import spec
from mobilefit.adapt import (
    KNAPSACK_LOG,
    ChannelImportance,
    Group,
    Judgement,
    KnapsackSettings,
    Proposal,
    Tools,
    bn_scales,
    filter_norms,
    groups,
    propose,
    short_term,
    shrink_by_knapsack,
    tools_for,
    transfer,
)
from mobilefit.arch import NetSpec
from mobilefit.data import ClassificationData, Preset, load
from mobilefit.errors import InputError
from mobilefit.jobs import lab, pretrained
from mobilefit.nn import Network, build, copy_weights, load_network, save_weights
from mobilefit.pipeline import candidates
from mobilefit.progress import Voice
from mobilefit.runs import append_jsonl, read_jsonl, write_atomic
from mobilefit.train import evaluate, fit, recipe
from mobilefit.train.statistics import paired

Row = dict[str, Any]

RESOLUTION, HELD = 48, 2000
CUTS = (0.03, 0.08)
"""Parts of the multiply-adds that proposals cut."""
SEEDED = ("blocks.1.expand", "blocks.1.out", "blocks.3.expand", "blocks.3.out", "blocks.6.expand", "blocks.8.out")
"""Proposals whose spread between seeds is measured."""
HALVED = (*SEEDED, "blocks.4.expand", "blocks.9.expand", "last.out", "head.hidden")
"""Groups that the choice of channels is measured on."""
DRAWS = 10
TARGET = 0.3
"""Points: the standard deviation of an estimate is to be no more."""
WAYS = ("before", "after")
RECIPE = recipe("fast")


def madds(net_spec: NetSpec) -> float:
    """Millions of multiply-adds, in the place of milliseconds."""
    return net_spec.cost().madds / 1e6


class Bench:
    """The trained network, its images, and the rows of one part of the benchmark."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out: Path = options.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.log = self.out / f"{options.part}.jsonl"
        self.rows = read_jsonl(self.log)
        self.data: ClassificationData = load(options.photos or "fashion-mnist", seed=0, holdout=0.1)
        self.held = self.data.holdout.subset(np.arange(min(HELD, len(self.data.holdout))))
        self.preset, self.recipe = self.data.preset(RESOLUTION), RECIPE
        if options.weights is None:
            self.network = self._base()
        else:
            opened = pretrained.opened(options.weights)
            self.network, self.preset = opened.network, opened.preset(self.data)
            self.recipe = lab.recipe_for(None, "pretrained", self.data)
        self.tools = self._tools(options.steps)

    def _base(self) -> Network:
        path = self.options.runs / f"base-{self.options.base_steps}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.manual_seed(0)
            network = build(spec("mobilenet_v3_small").resolution(RESOLUTION).classes(len(self.data.classes)))
            fit(network, self.data.train, preset=self.preset, recipe=RECIPE, steps=self.options.base_steps,
                progress="the network to shrink")  # fmt: skip
            save_weights(network, path)
        return load_network(path)

    def _tools(self, steps: int) -> Tools:
        return self.tools_at(self.preset, steps, madds)

    def tools_at(self, preset: Preset, steps: int, latency: Callable[[NetSpec], float]) -> Tools:
        """Tools for networks with such an input."""
        return tools_for(
            self.data.train, self.held, preset=preset, recipe=self.recipe, steps=steps, latency=latency,
            confirm=lambda network: latency(network.spec),
        )  # fmt: skip

    def measured(self, key: Row, measure: Callable[[], Row]) -> Row:
        """A row by its key: from the log, or measured now."""
        for row in self.rows:
            if all(row.get(name) == value for name, value in key.items()):
                return row
        began = time.monotonic()
        row = {**key, **measure()}
        row["seconds"] = round(time.monotonic() - began, 2)
        append_jsonl(self.log, row)
        self.rows.append(row)
        print(json.dumps(row), file=sys.stderr)
        return row

    def estimate(self, way: str, proposal: Proposal, seed: int, steps: int, own_batches: int) -> tuple[Network, Judgement]:
        """A proposal after its fine-tuning, judged.

        Args:
            seed: of the step.
            own_batches: number of the proposal, which its batches depend on in the way ``before``.
        """
        importance = filter_norms(self.network) if way == "before" else self.gates()
        network = transfer(self.network, proposal.spec, importance)
        tuned = 1000 * seed + (own_batches if way == "before" else 0)
        fit(network, self.data.train, preset=self.preset, recipe=short_term(RECIPE), steps=steps, seed=tuned)
        if way == "after":
            return network, self.tools.judge(network)
        evaluation = evaluate(network, self.held, self.preset)
        return network, Judgement(score=evaluation.top1, losses=evaluation.losses)

    def gates(self) -> ChannelImportance:
        """Gates of the network's channels, from one pass."""
        if not hasattr(self, "_gates"):
            network = copy.deepcopy(self.network)  # the way before inherits the training's own statistics
            self.tools.judge(network)
            self._gates = self.tools.importance(network)
        return self._gates

    def proposals(self, cuts: Sequence[float] = CUTS) -> list[Proposal]:
        """Every group at every cut that it can make."""
        net_spec = self.network.spec
        by_id: dict[str, Proposal] = {}
        for cut in cuts:
            for proposal in propose(net_spec, (1 - cut) * madds(net_spec), madds, ("expansion", "bottleneck")):
                by_id.setdefault(proposal.spec.id, proposal)
        return list(by_id.values())


# ---- (a) the spread between seeds


def proposals(bench: Bench) -> Iterator[str]:
    """The estimate of the same proposals by several seeds, in both ways, for a small cut and a large one."""
    for cut in CUTS:
        tried = [p for p in bench.proposals((cut,)) if p.group in SEEDED]
        scores = {way: np.array([_estimates(bench, way, tried, seed) for seed in range(bench.options.seeds)]) for way in WAYS}
        yield from ("", f"Proposals that cut {cut:.0%}:", "")
        yield from spread_table(scores, [p.what for p in tried])


def _estimates(bench: Bench, way: str, tried: Sequence[Proposal], seed: int) -> list[float]:
    """Accuracies of a step's proposals."""
    return [
        bench.measured(
            {"way": way, "what": proposal.what, "seed": seed},
            lambda p=proposal, n=number: _scores(bench.estimate(way, p, seed, bench.options.steps, n)),
        )["accuracy"]
        for number, proposal in enumerate(tried)
    ]  # fmt: skip


def _scores(estimate: tuple[Network, Judgement]) -> Row:
    judgement = estimate[1]
    return {"accuracy": judgement.score, "loss": float(judgement.losses.mean())}


def spread_table(scores: dict[str, np.ndarray], names: Sequence[str]) -> Iterator[str]:
    """Standard deviations over the seeds.

    Args:
        scores: by way [seeds, proposals], 0 to 1.
    """
    relative = {way: values - values.mean(1, keepdims=True) for way, values in scores.items()}
    yield "| proposal | before: accuracy | spread | among the others | after: accuracy | spread | among the others |"
    yield "|---|---|---|---|---|---|---|"
    for index, name in enumerate(names):
        cells = [
            f"{100 * scores[way][:, index].mean():.2f} % | {_spread(scores[way][:, index])} | {_spread(relative[way][:, index])}"
            for way in WAYS
        ]
        yield f"| {name} | {' | '.join(cells)} |"
    typical = {
        way: [100 * np.sqrt(values.var(0, ddof=1).mean()) for values in (scores[way], relative[way])] for way in WAYS
    }
    yield ""
    for way in WAYS:
        yield f"- {way}: spread {typical[way][0]:.2f} points, among the others {typical[way][1]:.2f} (root of the mean variance)"
    met = "met" if typical["after"][1] <= TARGET else "**missed**"
    yield f"- target: at most {TARGET} points among the others, which is what proposals are chosen by: {met}"


def _spread(values: np.ndarray) -> str:
    return f"{100 * values.std(ddof=1):.2f}"


# ---- (b) does the estimate foretell?


def ranking(bench: Bench) -> Iterator[str]:
    """The estimate of twenty proposals against the test loss after a longer training."""
    tried = bench.proposals()
    random.Random(0).shuffle(tried)  # any number of them holds small and large cuts of all kinds
    tried = tried[: bench.options.count]
    for number, proposal in enumerate(tried):
        for way in WAYS:
            bench.measured(
                {"way": way, "what": proposal.what},
                lambda w=way, p=proposal, n=number: _foretold(bench, w, p, n),
            )
    yield f"{len(tried)} proposals; the longer training has {bench.options.long_steps} steps; test images: {len(bench.data.test):,}."
    yield ""
    yield "| way | estimate | Spearman's rho with the test loss |"
    yield "|---|---|---|"
    for way in WAYS:
        rows = [bench.measured({"way": way, "what": p.what}, dict) for p in tried]
        truth = [row["long_loss"] for row in rows]
        yield f"| {way} | loss | {spearman([row['loss'] for row in rows], truth):+.2f} |"
        yield f"| {way} | accuracy | {spearman([-row['accuracy'] for row in rows], truth):+.2f} |"
        worst = max(rows, key=lambda row: abs(row["loss"] - row["long_loss"]))
        yield (f"| {way} | *mean test accuracy at the end* | {np.mean([row['long_accuracy'] for row in rows]):.2%}; "
               f"furthest off: {worst['what']} |")  # fmt: skip


def _foretold(bench: Bench, way: str, proposal: Proposal, number: int) -> Row:
    row = _scores(bench.estimate(way, proposal, 0, bench.options.steps, number))
    # The same batches for all in both ways: the longer training is what is to be foretold, not how it is judged.
    importance = filter_norms(bench.network) if way == "before" else bench.gates()
    network = transfer(bench.network, proposal.spec, importance)
    fit(network, bench.data.train, preset=bench.preset, recipe=short_term(RECIPE), steps=bench.options.long_steps, seed=7)
    bench.tools.judge(network)  # sets its statistics
    evaluation = evaluate(network, bench.data.test, bench.preset)
    return {**row, "long_accuracy": evaluation.top1, "long_loss": evaluation.loss}


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation, -1 to 1; ties share their mean rank."""
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.array([(values < value).sum() + ((values == value).sum() - 1) / 2 for value in values])


# ---- (c) which channels stay


def channels(bench: Bench) -> Iterator[str]:
    """Groups at half their width: the accuracy with new statistics alone, by what chose the channels."""
    by_name = {group.name: group for group in groups(bench.network.spec, ("expansion", "bottleneck", "head"))}
    chance = [f"random {draw}" for draw in range(DRAWS)]
    yield "| group | gates | norm | bn-scale | random, mean ± sd of ten | best of ten |"
    yield "|---|---|---|---|---|---|"
    table = []
    for name in HALVED:
        group = by_name[name]
        scores = {
            way: bench.measured(
                {"what": f"{name} {group.width} -> {_half(group)}", "way": way},
                lambda g=group, w=way: _halved(bench, g, w),
            )["accuracy"]
            for way in ("gates", "norm", "bn-scale", *chance)
        }  # fmt: skip
        draws = np.array([scores[way] for way in chance])
        table.append([scores["gates"], scores["norm"], scores["bn-scale"], draws.mean()])
        cells = " | ".join(f"{value:.2%}" for value in table[-1][:3])
        yield f"| {name} {group.width} -> {_half(group)} | {cells} | {draws.mean():.2%} ± {100 * draws.std(ddof=1):.2f} | {draws.max():.2%} |"
    cells = " | ".join(f"{value:.2%}" for value in np.mean(table, 0))
    yield f"| mean | {cells} | |"


def _half(group: Group) -> int:
    return max(8, group.width // 16 * 8)


def _halved(bench: Bench, group: Group, way: str) -> Row:
    ways: dict[str, Callable[[], ChannelImportance]] = {
        "gates": bench.gates, "norm": lambda: filter_norms(bench.network), "bn-scale": lambda: bn_scales(bench.network)
    }  # fmt: skip
    importance = ways[way]() if way in ways else by_chance(bench.network, int(way.split()[1]))
    network = transfer(bench.network, group.shrunk(bench.network.spec, _half(group)), importance)
    judgement = bench.tools.judge(network)
    return {"accuracy": judgement.score, "loss": float(judgement.losses.mean())}


def by_chance(network: Network, seed: int) -> ChannelImportance:
    """Channels by lot."""
    generator = torch.Generator().manual_seed(seed)
    norms = filter_norms(network)

    def importance(*layers: str) -> torch.Tensor:
        return torch.rand(len(norms(*layers)), generator=generator)

    return importance


# ---- (d) the knapsack


def knapsack(bench: Bench) -> Iterator[str]:
    """The knapsack at shares of the network's latency, beside the network at the largest input that is as fast."""
    if bench.options.photos is None or bench.options.weights is None:
        raise InputError("the part knapsack needs --photos and --weights")
    runs, net_spec, steps = bench.options.runs, bench.network.spec, bench.options.steps
    runs.mkdir(parents=True, exist_ok=True)
    table = lab.OpenTable(runs / lab.TABLE, None).fitted(net_spec, Voice(quiet=False))
    start_ms = table.predict(net_spec)
    tools = bench.tools_at(bench.preset, steps, table.predict)
    by_size = {size: table.predict(net_spec.resolution(size)) for size in candidates.SIZES if size < net_spec.input_size}
    yield "| network | latency | without tuning: top-1 | loss | rounds | steps | top-1 | loss | loss above the smaller input's |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for share in bench.options.shares:
        out = runs / f"knapsack-{share}"
        shrunk = bench.measured({"share": share, "what": "knapsack"}, lambda s=share, o=out: _shrunk(bench, tools, o, s * start_ms / 100))
        size = max((size for size, ms in by_size.items() if ms <= shrunk["latency_ms"]), default=min(by_size))
        smaller = bench.measured(
            {"share": share, "what": f"{size} px"}, lambda z=size, r=shrunk["rounds"], o=out: _smaller(bench, table.predict, z, r, o)
        )
        own, other = (np.load(out / f"{row['what'].replace(' ', '_')}.npy") for row in (shrunk, smaller))
        for row, against in ((shrunk, str(paired(own, other))), (smaller, "")):
            cells = " | ".join(f"{row[f'{when}_accuracy']:.1%} | {row[f'{when}_loss']:.3f}" for when in ("untuned", "tuned"))
            untuned, tuned = cells.split(" | ")[:2], cells.split(" | ")[2:]
            yield (f"| {row['what']} | {row['latency_ms'] / start_ms:.3f} | {' | '.join(untuned)} | {shrunk['rounds']} | "
                   f"{shrunk['rounds'] * steps} | {' | '.join(tuned)} | {against} |")  # fmt: skip


def _shrunk(bench: Bench, tools: Tools, out: Path, target_ms: float) -> Row:
    settings = KnapsackSettings(target_ms=target_ms, margin=lab.MARGIN, cut=bench.options.cut)
    result = shrink_by_knapsack(bench.network, settings, tools, out, say=lambda line: print(line, file=sys.stderr))
    judgement = tools.judge(lab.last_step(out, bench.network))
    np.save(out / "knapsack.npy", judgement.losses)
    last = read_jsonl(out / KNAPSACK_LOG)[-1]
    return {
        "rounds": result.steps, "latency_ms": result.latency_ms, "untuned_accuracy": last["untuned"],
        "untuned_loss": last["untuned_loss"], "tuned_accuracy": judgement.score,
        "tuned_loss": float(judgement.losses.mean()), "spec": result.spec.to_dict(),
    }  # fmt: skip


def _smaller(bench: Bench, latency: Callable[[NetSpec], float], size: int, rounds: int, out: Path) -> Row:
    """The network at another input size, with its own weights, tuned like the shrunk one."""
    network = copy_weights(bench.network, bench.network.spec.resolution(size))
    tools = bench.tools_at(replace(bench.preset, resolution=size), bench.options.steps, latency)
    before = tools.judge(network)
    for step in range(1, rounds + 1):
        tools.tune(network, 1000 * step)  # as a round's
    after = tools.judge(network)
    np.save(out / f"{size}_px.npy", after.losses)
    return {
        "latency_ms": latency(network.spec), "untuned_accuracy": before.score, "untuned_loss": float(before.losses.mean()),
        "tuned_accuracy": after.score, "tuned_loss": float(after.losses.mean()),
    }  # fmt: skip


PARTS: dict[str, Callable[[Bench], Iterator[str]]] = {
    "proposals": proposals, "ranking": ranking, "channels": channels,
    "knapsack": knapsack,
}
TITLES = {
    "proposals": "The spread of a proposal's estimate between seeds",
    "ranking": "The estimate against a longer training",
    "channels": "Which channels stay: groups at half their width, nothing tuned",
    "knapsack": "The knapsack beside a smaller input",
}  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    """Measure one part, and write its table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.netadapt", description=str(__doc__).split("\n\n")[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--base-steps", type=int, default=1200, help="of the network that is shrunk")
    parser.add_argument("--steps", type=int, default=15, help="of a proposal's fine-tuning")
    parser.add_argument("--long-steps", type=int, default=300, help="ranking: of the longer training")
    parser.add_argument("--count", type=int, default=20, help="ranking: proposals")
    parser.add_argument("--seeds", type=int, default=6, help="proposals: seeds")
    parser.add_argument("--photos", help="knapsack: a folder of photos")
    parser.add_argument("--weights", type=Path, help="knapsack: a network trained on them")
    parser.add_argument("--shares", type=int, nargs="+", default=[75, 55], help="knapsack: per cent of its latency")
    parser.add_argument("--cut", type=float, default=0.3, help="knapsack: most of a round")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "netadapt")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "netadapt", help="where the trained network is kept")
    options = parser.parse_args(words)
    bench = Bench(options)
    lines = list(PARTS[options.part](bench))
    start = evaluate(bench.network, bench.held, bench.preset).top1
    base_of = f"MobileNetV3-Small at {RESOLUTION} px on Fashion-MNIST, {options.base_steps} steps of recipe {RECIPE.name}"
    if options.weights is not None:
        base_of = f"{bench.network.spec.name} at {lab.pixels(bench.network.spec)} on {len(bench.data.train):,} photos"
    base = header(
        f"{base_of}; tuned for {options.steps} steps of {bench.recipe.batch_size} images, judged on {len(bench.held):,} held-out images"
    )
    usual = parser.parse_args([options.part])
    changed = {name: value for name, value in vars(options).items() if value != getattr(usual, name)}
    if options.part == "knapsack":
        changed |= {"photos": "FOLDER", "weights": "FILE"}
    shown = " ".join([f"python -m benchmarks.netadapt {options.part}", *(
        f"--{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list) else value}" for name, value in changed.items() if not isinstance(value, Path)
    )])  # fmt: skip
    text = [f"# {TITLES[options.part]}", "", f"`{shown}`", "", base["protocol"] + ".",
            f"Before anything is cut: {start:.2%}. {base['device']}, {base['machine']['date']}.", "", *lines]  # fmt: skip
    write_atomic(options.out / f"{options.part}.md", "\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
