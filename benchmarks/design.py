"""What `mobilefit design` delivers, beside what a user could do by hand, at the same measured latency.

    python -m benchmarks.design PHOTOS mobilenet_v2=FILE efficientnet_lite0=FILE     # hours; goes on where it stopped
    python -m benchmarks.design PHOTOS mobilenet_v2=FILE --only taught width --seeds 0 --shares 45
    python -m benchmarks.design summary

PHOTOS is a folder with ``train`` and ``validation``: the latter are the test images, and decide nothing. The
budgets are shares of the first network's int8 latency at 96 px. Every network is trained for the same
number of epochs, begins from a network of its family that was trained at 96 px (by the same seed),
and is taught by it:

- ``taught``: the first network at the largest size within the budget;
- ``taught-NAME``: another network likewise;
- ``width``: the first network at 96 px and the largest width multiplier within the budget;
- ``netadapt``: the first network at 96 px shrunk by ``mobilefit adapt``;
- ``torch-pruning``, ``fastnas``: the first network, MobileNetV2, at 96 px pruned by Torch-Pruning or by NVIDIA's
  FastNAS as far as the budget wants it; :mod:`.design_peers` says how to install them;
- ``design``: ``mobilefit design`` with all the weights, for all budgets in one run.

``results/design/rows`` gets a row for each network, with which test images it got right;
``results/design/pretrained.md`` their paired differences.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import design_peers
from benchmarks.common import ROOT, header, int8_beside, write_row
from mobilefit import arch
from mobilefit.adapt import for_shrunk, gates_on, transfer
from mobilefit.arch import NetSpec
from mobilefit.commands.design import DesignConfig, design
from mobilefit.data import ClassificationData, load
from mobilefit.jobs import lab, pretrained
from mobilefit.jobs.adapt import AdaptConfig, adapt
from mobilefit.jobs.kinds import KINDS, begun
from mobilefit.nn import Network, copy_weights, load_network, save_weights
from mobilefit.pipeline import candidates, time_budget
from mobilefit.pipeline.design_run import TEACHING
from mobilefit.runs import read_json, write_atomic
from mobilefit.train import SoftTargets
from mobilefit.train.statistics import paired

RUNS, RESULTS = ROOT / "runs" / "design-benchmark", ROOT / "results" / "design"
PROTOCOL = (
    "top-1 of the int8 file on the test images; latency of the int8 file beside the reference's in one "
    "interleaved run, one thread; the same epochs of recipe finetune for all; seconds as they were, with "
    "what else the machine did"
)
SIZE = 96
"""Of the reference and of the teachers, pixels."""
MODEL = "model.safetensors"
WIDTHS = tuple(percent / 100 for percent in range(20, 100, 5))
CLASSIFY = KINDS["classify"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all rows share."""

    photos: str
    data: ClassificationData
    sources: dict[str, str]
    """Files of pretrained weights, by the network's name; the first one's network is the reference."""
    shares: tuple[int, ...]
    """Budgets, per cent of the reference's latency."""
    epochs: float
    minutes: float

    @property
    def first(self) -> str:
        """The network that is compared with."""
        return next(iter(self.sources))

    @property
    def reference(self) -> NetSpec:
        """What the budgets are shares of."""
        return pretrained_spec(self.first, self).resolution(SIZE)


def pretrained_spec(name: str, setting: Setting) -> NetSpec:
    """A network for the data's classes, padded as its weights want it."""
    spec = CLASSIFY.network(arch.spec(name), setting.data, SIZE, None)
    start = begun(CLASSIFY, spec, setting.sources[name], setting.data, seed=0, quiet=True)
    return dataclasses.replace(start.network.spec, name=name)


# ---- trainings


def trained(
    name: str, network: Network, setting: Setting, seed: int, teacher: Network | None,
    normalised: Any = None, *, shrunk: bool = False,
) -> Path:  # fmt: skip
    """The folder of a network after its training; what is done there is taken up.

    Args:
        normalised: a preset whose mean and deviation the network's weights are used to.
        shrunk: whether it is narrower than what it begins from.
    """
    folder = RUNS / f"{name}-{seed}"
    if (folder / MODEL).exists():
        return folder
    data, spec = setting.data, network.spec
    preset = CLASSIFY.preset(data, spec)
    if normalised is not None:
        preset = dataclasses.replace(preset, mean=normalised.mean, std=normalised.std)
    recipe = CLASSIFY.recipe(None, "pretrained", data)
    recipe = time_budget.distilled(recipe, TEACHING if teacher is not None else 0.0)
    recipe = for_shrunk(recipe) if shrunk else recipe
    soft_targets = None
    if teacher is not None:
        shown = dataclasses.replace(preset, resolution=SIZE)
        soft_targets = SoftTargets(network=teacher.eval(), preset=shown, cache=RUNS / f"answers-{seed}")
    steps = round(setting.epochs * time_budget.epoch_steps(len(data.train), recipe))
    lab.train(
        network, data, preset, recipe, task=CLASSIFY.port, steps=steps, seed=seed, folder=folder,
        label=f"{name}, seed {seed}", teacher=soft_targets,
    )  # fmt: skip
    save_weights(network, folder / MODEL, preset=preset.to_dict(), classes=data.classes)
    lab.drop_checkpoints(folder)
    return folder


def teacher(name: str, setting: Setting, seed: int) -> Path:
    """A network of the family at 96 px, from its pretrained weights."""
    spec = CLASSIFY.network(arch.spec(name), setting.data, SIZE, None)
    start = begun(CLASSIFY, spec, setting.sources[name], setting.data, seed=seed, quiet=True)
    return trained(f"teacher-{name}", start.network, setting, seed, None, start.preset)


def within(specs: Sequence[NetSpec], setting: Setting) -> list[float]:
    """Latencies of networks as shares of the reference's, measured beside it."""
    reference, *others = (latency.median_ms for latency in lab.measured([setting.reference, *specs]))
    return [other / reference for other in others]


def largest(specs: Sequence[NetSpec], setting: Setting, what: str) -> dict[int, NetSpec]:
    """The last of some rising networks that is within each budget."""
    path = RUNS / f"latency-{what}.json"
    if not path.exists():
        write_atomic(path, json.dumps(within(specs, setting)))
    shares = read_json(path)
    return {
        budget: max((s for s in zip(shares, specs) if 100 * s[0] <= budget), key=lambda s: s[0])[1]
        for budget in setting.shares
    }


def taught(setting: Setting, seed: int, name: str, method: str) -> Iterator[tuple[str, int, Path]]:
    """The same network at a lower resolution."""
    folder = teacher(name, setting, seed)
    larger, preset = load_network(folder / MODEL), pretrained.opened(folder / MODEL).preset(setting.data)
    sizes = [larger.spec.resolution(size) for size in candidates.SIZES if size <= SIZE]
    for budget, spec in largest(sizes, setting, method).items():
        student = copy_weights(larger, spec)
        label = f"{method}-{spec.input_size}px"
        yield method, budget, trained(label, student, setting, seed, larger, preset)


def width(setting: Setting, seed: int) -> Iterator[tuple[str, int, Path]]:
    """The same network scaled in width, with the strongest channels of the larger one."""
    folder = teacher(setting.first, setting, seed)
    larger, preset = load_network(folder / MODEL), pretrained.opened(folder / MODEL).preset(setting.data)
    widths = [larger.spec.width(multiplier) for multiplier in WIDTHS]
    importance = gates_on(larger, setting.data.train, preset, CLASSIFY.recipe(None, "pretrained", setting.data))
    for budget, spec in largest(widths, setting, "width").items():
        yield "width", budget, trained(
            f"width-{spec.name.rpartition('_')[2]}", transfer(larger, spec, importance), setting, seed, larger, preset,
            shrunk=True,
        )  # fmt: skip


def netadapt(setting: Setting, seed: int) -> Iterator[tuple[str, int, Path]]:
    """The same network shrunk by NetAdapt."""
    folder = teacher(setting.first, setting, seed)
    larger, preset = load_network(folder / MODEL), pretrained.opened(folder / MODEL).preset(setting.data)
    for budget in sorted(setting.shares):
        out = RUNS / f"netadapt-{budget}-{seed}-shrunk"
        adapt(AdaptConfig(
            weights=folder / MODEL, data=setting.photos, latency=f"{budget}%", delta=0.03, tune_steps=20,
            seed=seed, out=out,
        ))  # fmt: skip
        shrunk = load_network(out / MODEL)
        yield "netadapt", budget, trained(f"netadapt-{budget}", shrunk, setting, seed, larger, preset, shrunk=True)


def pruned(setting: Setting, seed: int, method: str) -> Iterator[tuple[str, int, Path]]:
    """The same network pruned by a peer to the largest that it makes within the budget."""
    folder = teacher(setting.first, setting, seed)
    larger, preset = load_network(folder / MODEL), pretrained.opened(folder / MODEL).preset(setting.data)
    files = {b: RUNS / f"{method}-{b}-{seed}-pruned" / MODEL for b in sorted(setting.shares, reverse=True)}
    missing = [budget for budget, file in files.items() if not file.exists()]
    if missing:
        smaller = design_peers.PRUNERS[method](larger, setting.data, preset, folder)
        share = functools.cache(lambda spec: within([spec], setting)[0])
    for budget in missing:
        network = design_peers.first_within(smaller, share, budget / 100)
        files[budget].parent.mkdir(parents=True, exist_ok=True)
        save_weights(network, files[budget], preset=preset.to_dict(), classes=setting.data.classes)
    for budget, file in files.items():
        network = load_network(file)
        yield method, budget, trained(f"{method}-{budget}", network, setting, seed, larger, preset, shrunk=True)


def designed(setting: Setting, seed: int) -> Iterator[tuple[str, int, Path]]:
    """What ``mobilefit design`` delivers for each budget."""
    out = RUNS / f"design-{'-'.join(map(str, setting.shares))}-{seed}"
    state = RUNS / f"{out.name}-budgets.json"
    if not state.exists():
        (reference,) = (x.median_ms for x in lab.measured([setting.reference]))
        write_atomic(state, json.dumps({str(b): reference * b / 100 for b in sorted(setting.shares)}))
    budgets = {int(share): f"{ms:.4g}ms" for share, ms in read_json(state).items()}
    design(DesignConfig(
        data=setting.photos, latency=",".join(budgets.values()), weights=tuple(setting.sources.values()),
        epochs=setting.epochs, minutes=setting.minutes * len(budgets), seed=seed, max_drop=100.0, out=out,
    ))  # fmt: skip
    for budget, label in budgets.items():
        yield "design", budget, out if len(budgets) == 1 else out / label


# ---- rows


def row(method: str, budget: int, folder: Path, setting: Setting, seed: int) -> dict[str, Any]:
    """A trained network's int8 file on the test images, and its latency beside the reference's."""
    data, opened = setting.data, pretrained.opened(folder / MODEL)
    evaluation, measured = int8_beside(
        setting.reference, folder, opened.network, data, opened.preset(data), seed=seed
    )
    return {
        "method": method, "budget": budget, "seed": seed, "pixels": opened.network.spec.input_size, **measured,
        "top1": evaluation.top1, "epochs": setting.epochs,
        "right": "".join("01"[int(r)] for r in evaluation.predictions == data.test.labels),
    }  # fmt: skip


def run(setting: Setting, seeds: Sequence[int], only: Sequence[str]) -> None:
    """Every row that is not there yet; the summary after each."""
    others = list(setting.sources)[1:]
    methods: dict[str, Any] = {
        "taught": lambda seed: taught(setting, seed, setting.first, "taught"),
        "design": lambda seed: designed(setting, seed),
        **{f"taught-{n}": (lambda seed, n=n: taught(setting, seed, n, f"taught-{n}")) for n in others},
        "width": lambda seed: width(setting, seed),
        "netadapt": lambda seed: netadapt(setting, seed),
        **{name: (lambda seed, name=name: pruned(setting, seed, name)) for name in design_peers.PRUNERS},
    }
    for method in methods:
        if not only or method in only:
            design_peers.check_installed(method)
    for seed in seeds:
        for method in methods:
            missing = [b for b in setting.shares if not _path(method, b, seed).exists()]
            if (only and method not in only) or not missing:
                continue
            for name, budget, folder in methods[method](seed):
                if not _path(name, budget, seed).exists():
                    measured = row(name, budget, folder, setting, seed)
                    write_row(RESULTS, _path(name, budget, seed).stem, {**header(PROTOCOL), **measured})
                    print(f"{name} {budget} % seed {seed}: {measured['top1']:.1%} at {measured['share']:.3f}", flush=True)
                summarise()


def _path(method: str, budget: int, seed: int) -> Path:
    return RESULTS / "rows" / f"{method}-{budget}-{seed}.json"


def summarise() -> None:
    """The table of all rows, with the paired differences of ``design`` to each method."""
    rows = [read_json(path) for path in sorted((RESULTS / "rows").glob("*.json"))]
    lines = [
        "# design beside what a user could do by hand", "",
        "Top-1 of the int8 files on test images that decided nothing, mean over the seeds; in brackets the "
        "share of the reference's latency, the network and its input. The last column is design's result "
        "minus the row's in points, paired by image and seed, with its standard error over the images.", "",
    ]  # fmt: skip
    for budget in sorted({r["budget"] for r in rows}, reverse=True):
        at = [r for r in rows if r["budget"] == budget]
        lines += [f"## {budget} %", "", "| method | seeds | top-1 | latency | networks | design minus it |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        own = {r["seed"]: r for r in at if r["method"] == "design"}
        for method in sorted({r["method"] for r in at}):
            same = [r for r in at if r["method"] == method]
            networks = sorted({f"{r['network']} {r['pixels']} px" for r in same})
            lines.append(
                f"| {method} | {len(same)} | {np.mean([r['top1'] for r in same]):.1%} | "
                f"{np.mean([r['share'] for r in same]):.3f} | {', '.join(networks)} | {_against(own, same)} |"
            )
        lines.append("")
    write_atomic(RESULTS / "pretrained.md", "\n".join(lines))


def _against(own: dict[int, dict[str, Any]], others: Sequence[dict[str, Any]]) -> str:
    pairs = [(own[r["seed"]], r) for r in others if r["seed"] in own and r is not own[r["seed"]]]
    if not pairs:
        return ""
    first, second = (np.array([[float(c) for c in r["right"]] for r in side]) for side in zip(*pairs))
    difference = paired(first, second)
    return f"{100 * difference.mean:+.1f} ± {100 * difference.error:.1f} ({len(pairs)} seeds)"


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="a folder of photos, or summary")
    parser.add_argument("weights", nargs="*", help="NAME=FILE of pretrained weights, the reference's first")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shares", type=int, nargs="+", default=[70, 45, 30])
    parser.add_argument("--only", nargs="+", default=[], help="methods")
    parser.add_argument("--epochs", type=float, default=15.0)
    parser.add_argument("--minutes", type=float, default=30.0, help="of a design, for each budget")
    asked = parser.parse_args()
    if asked.photos != "summary":
        setting = Setting(
            photos=asked.photos, data=load(asked.photos), sources=dict(w.split("=", 1) for w in asked.weights),
            shares=tuple(asked.shares), epochs=asked.epochs, minutes=asked.minutes,
        )  # fmt: skip
        RUNS.mkdir(parents=True, exist_ok=True)
        run(setting, asked.seeds, asked.only)
    summarise()


if __name__ == "__main__":
    main()
