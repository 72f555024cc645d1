"""What `mobilefit design` delivers without pretrained weights, beside what a user could do by hand, at equal latency.

    python -m benchmarks.design_scratch                        # Fashion-MNIST: days on two cores; goes on where it stopped
    python -m benchmarks.design_scratch --seeds 0 --epochs 5 --only width resolution design
    python -m benchmarks.design_scratch summary                # the table of the same options, from the rows there are

Budgets are shares of MobileNetV3-Small's int8 latency at 48 px. Every network is trained for the same number of epochs,
from scratch and taught by the MobileNetV3-Small at 48 px of its seed (``--untaught``: by nobody; ``--inherit``: begun with
the channels of the network that it was made from):

- ``width``: MobileNetV3-Small at 48 px, scaled in width to the budget (it and ``resolution`` may be 3 % over it);
- ``resolution``: MobileNetV3-Small at the largest size that fits;
- ``adapted``: NetAdapt's, from the trained MobileNetV3-Small at 48 px;
- ``searched``: the winner of ``mobilefit search``, which aims a little above the budget, scaled in width to the budget;
- ``searched-adapted``: NetAdapt's, from the trained winner of the search;
- ``design``: ``mobilefit design`` for all budgets in one run. Its own larger network begins its candidates; with
  ``--untaught`` it also teaches them, which the other rows then lack.

``width``, ``adapted``, ``searched`` and ``searched-adapted`` tell what search and what shrinking adds. ``rows`` in
``results/design/scratch/SETTING`` gets a row for each network, with which test images its int8 file got right, as soon as
it is trained; ``summary.md`` their paired differences. Test images decide nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import ROOT, header, int8_beside, write_row
from mobilefit import arch
from mobilefit.adapt import for_shrunk, gates_on, transfer
from mobilefit.arch import NetSpec
from mobilefit.commands.design import DesignConfig, design
from mobilefit.data import ClassificationData, load
from mobilefit.errors import QualityGateError
from mobilefit.jobs import lab, pretrained
from mobilefit.jobs.adapt import AdaptConfig, adapt
from mobilefit.jobs.kinds import KINDS
from mobilefit.jobs.model import network_for
from mobilefit.jobs.plan import ABOVE
from mobilefit.jobs.search import SearchConfig, search
from mobilefit.nn import Network, load_network, save_weights
from mobilefit.pipeline import time_budget
from mobilefit.pipeline.design_run import CANDIDATE_RULE, TEACHING
from mobilefit.runs import read_json, write_atomic
from mobilefit.train import SoftTargets
from mobilefit.train.statistics import paired

Row = dict[str, Any]
Right = npt.NDArray[np.float64]
"""[seeds, images]: 1 where a network was right."""

PROTOCOL = (
    "top-1 of the int8 file on the test images; latency of the int8 file beside MobileNetV3-Small's at 48 px in one "
    "interleaved run, one thread; the same epochs of the same recipe for all"
)
NETWORK, SIZE = "mobilenet_v3_small", 48
SIZES = range(16, SIZE, 4)
WIDTHS = tuple(percent / 100 for percent in range(10, 101))
SLACK = 0.03
"""How far a network that was scaled by hand may be over the budget: channels go in steps of eight, and V3-Small has at
width 0.55 0.40 of its multiply-adds, at 0.56 0.50."""
MODEL = "model.safetensors"
CLASSIFY = KINDS["classify"]
SEARCH_TOP, SEARCH_EPOCHS = 2, 3.0
"""The search's best networks that are trained before one is chosen, and for how long."""
FACTORIAL = (("width", "adapted"), ("searched", "searched-adapted"))
"""Rows: from the network by hand, from the search; columns: scaled in width, shrunk by NetAdapt."""
TARGETS = {50: {"width": 0.5, "resolution": 0.3}, 30: {"width": 1.0, "resolution": 0.3}}
"""Points that ``design`` is to be ahead, by budget; the better of width and resolution by the least of both."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all rows share."""

    data: str
    shares: tuple[int, ...]
    """Budgets, per cent of the reference's latency."""
    epochs: float
    recipe: str
    taught: bool
    inherit: bool
    delta: float
    tune_steps: int
    search_minutes: float
    design_minutes: float
    """For each budget."""
    design_search: bool
    runs: Path
    results: Path

    @property
    def name(self) -> str:
        """What tells the trainings of one setting from those of another."""
        how = ("taught" if self.taught else "untaught") + ("-inherited" if self.inherit else "")
        data = "" if self.data == "fashion-mnist" else f"{Path(self.data).name}-"
        return f"{data}{how}-{self.recipe}-{self.epochs:g}-epochs"

    @property
    def folder(self) -> Path:
        """Of everything that is trained."""
        return self.runs / self.name

    @property
    def rows(self) -> Path:
        """Folder of the rows and the summary."""
        return self.results / self.name

    def images(self, seed: int) -> ClassificationData:
        """As the commands divide them by the seed."""
        return _images(self.data, seed)

    @property
    def reference(self) -> NetSpec:
        """What the budgets are shares of."""
        return arch.spec(NETWORK).resolution(SIZE).classes(len(self.images(0).classes))


@functools.lru_cache(maxsize=2)
def _images(name: str, seed: int) -> ClassificationData:
    return load(name, seed=seed, holdout=0.1)


# ---- trainings


def trained(
    name: str, network: Callable[[], Network], setting: Setting, seed: int, teacher: Path | None, *, shrunk: bool = False
) -> Path:
    """The folder of a network after its training; an earlier one is taken up where it stopped.

    Args:
        network: gives it with its first weights.
        shrunk: whether it is narrower than what it begins from.
    """
    folder = setting.folder / f"{name}-{seed}"
    if (folder / MODEL).exists():
        return folder
    data, student = setting.images(seed), network()
    preset = CLASSIFY.preset(data, student.spec)
    recipe = CLASSIFY.recipe(setting.recipe, None, data)
    recipe = dataclasses.replace(recipe, batch_size=time_budget.batch_size(recipe, len(data.train)))
    recipe = for_shrunk(recipe) if shrunk else recipe
    soft_targets = None
    if teacher is None:
        recipe = dataclasses.replace(recipe, distillation=0.0)
    else:
        recipe, opened = time_budget.distilled(recipe, TEACHING), pretrained.opened(teacher / MODEL)
        soft_targets = SoftTargets(
            network=opened.network.eval(), preset=opened.preset(data), cache=setting.folder / f"answers-{seed}"
        )
    steps = max(1, round(setting.epochs * time_budget.epoch_steps(len(data.train), recipe)))
    lab.train(
        student, data, preset, recipe, task=CLASSIFY.port, steps=steps, seed=seed, folder=folder,
        label=f"{name}, seed {seed}", teacher=soft_targets,
    )  # fmt: skip
    save_weights(student, folder / MODEL, preset=preset.to_dict(), classes=data.classes)
    lab.drop_checkpoints(folder)
    return folder


def by_hand(setting: Setting, seed: int) -> Path:
    """MobileNetV3-Small at 48 px: the teacher, and what NetAdapt shrinks."""
    return trained("base", lambda: network_for(setting.reference, None, seed=seed), setting, seed, None)


def teacher(setting: Setting, seed: int) -> Path | None:
    """Who teaches all rows of a seed."""
    return by_hand(setting, seed) if setting.taught else None


def searched(setting: Setting, seed: int, budget: int) -> Path:
    """The search's winner for a little more than a budget, trained like all others."""
    out = setting.folder / f"search-{budget}-{seed}"
    if not (out / "record.json").exists():
        search(SearchConfig(
            data=setting.data, latency=f"{ABOVE * budget:g}%", space=NETWORK, resolution=SIZE,
            minutes=setting.search_minutes, top=SEARCH_TOP, epochs=min(SEARCH_EPOCHS, setting.epochs),
            recipe=setting.recipe, seed=seed, out=out,
        ))  # fmt: skip
    spec = NetSpec.from_json((out / "seed.json").read_text())
    first = functools.partial(network_for, spec, None, seed=seed)
    return trained(f"searched-base-{budget}", first, setting, seed, teacher(setting, seed))


# ---- the rows


def within(budget: int, shares: Iterable[float]) -> int:
    """The index of the largest share, of 1, that is at most :data:`SLACK` over a budget, per cent.

    Raises:
        ValueError: none is.
    """
    most = budget / 100 * (1 + SLACK)
    return max((share, index) for index, share in enumerate(shares) if share <= most)[1]


def fitting(name: str, specs: Sequence[NetSpec], setting: Setting, budget: int) -> NetSpec:
    """The slowest of some networks that is within a budget; measured once beside the reference.

    Args:
        name: of these networks.
    """
    path = setting.folder / f"latency-{name}.json"
    different = list({spec.id: spec for spec in specs}.values())
    if not path.exists():
        reference, *others = lab.measured([setting.reference, *different], rule=CANDIDATE_RULE)
        path.parent.mkdir(parents=True, exist_ok=True)
        shares = {spec.id: x.median_ms / reference.median_ms for spec, x in zip(different, others, strict=True)}
        write_atomic(path, json.dumps(shares))
    shares = read_json(path)
    return different[within(budget, [shares[spec.id] for spec in different])]


def inherited(base: Path, spec: NetSpec, setting: Setting, seed: int) -> Network:
    """First weights: fresh ones by the seed, or the strongest channels of a trained network."""
    if not setting.inherit:
        return network_for(spec, None, seed=seed)
    opened, data = pretrained.opened(base / MODEL), setting.images(seed)
    recipe = CLASSIFY.recipe(setting.recipe, None, data)
    return transfer(opened.network, spec, gates_on(opened.network, data.train, opened.preset(data), recipe))


def made_from(base: Path, name: str, spec: NetSpec, setting: Setting, seed: int) -> Path:
    """A network that was scaled, trained."""
    first = functools.partial(inherited, base, spec, setting, seed)
    return trained(name, first, setting, seed, teacher(setting, seed), shrunk=setting.inherit)


def scaled(base: Path, name: str, setting: Setting, seed: int, budget: int) -> Path:
    """A network scaled in width to a budget."""
    network = load_network(base / MODEL).spec
    spec = fitting(f"widths-{network.id}", [network.width(multiplier) for multiplier in WIDTHS], setting, budget)
    return made_from(base, f"{name}-{budget}", spec, setting, seed)


def shrunk(base: Path, name: str, setting: Setting, seed: int, budget: int) -> Path:
    """A trained network shrunk to a budget by NetAdapt, and trained like all others."""
    out = setting.folder / f"netadapt-{name}-{budget}-{seed}"
    spec, target = load_network(base / MODEL).spec, out.with_suffix(".target")
    if not target.exists():  # per cent of its own latency; an interrupted run goes on with the same
        reference, own = lab.measured([setting.reference, spec])
        write_atomic(target, f"{budget * reference.median_ms / own.median_ms:.4f}")
    if float(target.read_text()) >= 100:  # the search's winner is within the budget
        return made_from(base, f"{name}-{budget}", spec, setting, seed)
    if not (out / "record.json").exists():
        adapt(AdaptConfig(
            weights=base / MODEL, data=setting.data, latency=f"{target.read_text()}%", delta=setting.delta,
            tune_steps=setting.tune_steps, recipe=setting.recipe, seed=seed, out=out,
        ))  # fmt: skip
    first = functools.partial(load_network, out / MODEL)
    if not setting.inherit:
        adapted = NetSpec.from_json((out / "adapted.json").read_text())
        first = functools.partial(network_for, adapted, None, seed=seed)
    return trained(f"{name}-{budget}", first, setting, seed, teacher(setting, seed), shrunk=setting.inherit)


def resolution(setting: Setting, seed: int, budget: int) -> Path:
    """MobileNetV3-Small at the size that fits."""
    spec = fitting("sizes", [setting.reference.resolution(size) for size in SIZES], setting, budget)
    return made_from(by_hand(setting, seed), f"resolution-{budget}", spec, setting, seed)


def designed(setting: Setting, seed: int, budget: int) -> Path:
    """What ``mobilefit design`` delivers for a budget; the run is for all of them."""
    out = setting.folder / f"design-{'-'.join(map(str, setting.shares))}-{seed}"
    state = out.with_suffix(".budgets")
    if not state.exists():
        (reference,) = (x.median_ms for x in lab.measured([setting.reference]))
        state.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(state, json.dumps({str(b): f"{reference * b / 100:.4g}ms" for b in sorted(setting.shares)}))
    labels: dict[str, str] = read_json(state)
    folder = out if len(labels) == 1 else out / labels[str(budget)]
    if not (out / "record.json").exists():
        own = teacher(setting, seed)
        try:
            design(DesignConfig(
                data=setting.data, latency=",".join(labels.values()), weights=("none",), epochs=setting.epochs,
                minutes=setting.design_minutes * len(labels), teacher=None if own is None else str(own / MODEL),
                recipe=setting.recipe, search=setting.design_search, seed=seed, max_drop=100.0, out=out,
            ))  # fmt: skip
        except QualityGateError as error:  # everything is written: the row says how far it is over
            print(error)
    return folder


METHODS: dict[str, Callable[[Setting, int, int], Path]] = {
    "width": lambda setting, seed, budget: scaled(by_hand(setting, seed), "width", setting, seed, budget),
    "resolution": resolution,
    "design": designed,
    "adapted": lambda setting, seed, budget: shrunk(by_hand(setting, seed), "adapted", setting, seed, budget),
    "searched": lambda setting, seed, budget: scaled(
        searched(setting, seed, budget), "searched", setting, seed, budget
    ),
    "searched-adapted": lambda setting, seed, budget: shrunk(
        searched(setting, seed, budget), "searched-adapted", setting, seed, budget
    ),
}  # fmt: skip


def row(method: str, budget: int, folder: Path, setting: Setting, seed: int) -> Row:
    """A trained network's int8 file on the test images, and its latency beside the reference's."""
    data, opened = setting.images(seed), pretrained.opened(folder / MODEL)
    evaluation, measured = int8_beside(
        setting.reference, folder, opened.network, data, opened.preset(data), seed=seed
    )
    return {
        "method": method, "budget": budget, "seed": seed, "pixels": opened.network.spec.input_size, **measured,
        "top1": evaluation.top1, "epochs": setting.epochs, "taught": setting.taught, "inherit": setting.inherit,
        "right": "".join("01"[int(r)] for r in evaluation.predictions == data.test.labels),
    }  # fmt: skip


def run(setting: Setting, seeds: Sequence[int], only: Sequence[str]) -> None:
    """Every row that is not there yet; the summary after each."""
    for seed in seeds:
        for method, make in METHODS.items():
            for budget in setting.shares:
                name = f"{method}-{budget}-{seed}"
                if (only and method not in only) or (setting.rows / "rows" / f"{name}.json").exists():
                    continue
                measured = row(method, budget, make(setting, seed, budget), setting, seed)
                write_row(setting.rows, name, {**header(PROTOCOL), **measured})
                print(f"{name}: {measured['top1']:.2%} at {measured['share']:.3f}", flush=True)
                write_summary(setting)


# ---- the summary


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far one network is ahead of another, in points."""

    points: float
    image_error: float
    """Standard error over the test images, each counted by its mean over the seeds."""
    seed_error: float
    """Standard error over the seeds; NaN of one."""
    seeds: int

    def __str__(self) -> str:
        seeds = "" if math.isnan(self.seed_error) else f", ± {self.seed_error:.2f} over seeds"
        return f"{self.points:+.2f} (± {self.image_error:.2f} over images{seeds}; n = {self.seeds})"


def compare(first: Right, second: Right) -> Comparison:
    """Paired by image and seed."""
    difference, by_seed = paired(first, second), (first - second).mean(1)
    error = float(by_seed.std(ddof=1)) / math.sqrt(len(by_seed)) if len(by_seed) > 1 else math.nan
    return Comparison(points=100 * difference.mean, image_error=100 * difference.error, seed_error=100 * error,
                      seeds=len(by_seed))  # fmt: skip


def right(rows: Mapping[str, Mapping[int, Row]], methods: Sequence[str]) -> dict[str, Right]:
    """Which images the networks of some methods got right, of the seeds that all of them have."""
    common = sorted(set.intersection(*(set(rows.get(method, {})) for method in methods)))
    return {
        method: np.array([[float(c) for c in rows[method][seed]["right"]] for seed in common]) for method in methods
        if common
    }  # fmt: skip


def summary(rows: Sequence[Row], setting_name: str) -> str:
    """The page: a table for each budget, what search and shrinking add, and how far ``design`` is ahead."""
    lines = [
        f"# design from scratch beside what a user could do by hand ({setting_name})", "",
        "Top-1 of the int8 files on test images that decided nothing, mean over the seeds; latency as a share of "
        f"{NETWORK}'s at {SIZE} px. Differences are in points, paired by image and seed.", "",
    ]  # fmt: skip
    for budget in sorted({row["budget"] for row in rows}, reverse=True):
        by_method: dict[str, dict[int, Row]] = {}
        for entry in (row for row in rows if row["budget"] == budget):
            by_method.setdefault(entry["method"], {})[entry["seed"]] = entry
        lines += [f"## {budget} %", "", "| method | seeds | top-1 | latency | networks | design minus it |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        for method in (m for m in METHODS if m in by_method):
            same = list(by_method[method].values())
            networks = sorted({f"{r['network']} {r['pixels']} px" for r in same})
            both = right(by_method, ("design", method)) if method != "design" else {}
            lines.append(
                f"| {method} | {len(same)} | {np.mean([r['top1'] for r in same]):.2%} | "
                f"{np.mean([r['share'] for r in same]):.3f} | {', '.join(networks)} | "
                f"{compare(both['design'], both[method]) if both else ''} |"
            )
        lines += ["", *_targets(by_method, TARGETS.get(budget, {})), *_factorial(by_method), ""]
    return "\n".join(lines)


def _targets(rows: Mapping[str, Mapping[int, Row]], targets: Mapping[str, float]) -> list[str]:
    """Whether ``design`` is as far ahead as it is to be."""
    all_three = right(rows, ("design", "width", "resolution"))
    if not all_three or not targets:
        return []
    better = max(("width", "resolution"), key=lambda method: float(all_three[method].mean()))
    lines = []
    for what, method, least in (
        ("the width multiplier", "width", targets["width"]),
        (f"the better of both ({better})", better, targets["resolution"]),
    ):
        ahead = compare(all_three["design"], all_three[method])
        met = "met" if ahead.points >= least else "**missed**"
        lines.append(f"- design ahead of {what} by {least} points: {met}, {ahead}")
    return lines


def _factorial(rows: Mapping[str, Mapping[int, Row]]) -> list[str]:
    """What search and what NetAdapt adds, each with and without the other."""
    four = right(rows, [method for pair in FACTORIAL for method in pair])
    if not four:
        return []
    (hand_scaled, hand_adapted), (search_scaled, search_adapted) = (tuple(four[m] for m in pair) for pair in FACTORIAL)
    return [
        "", "| | scaled in width | NetAdapt |", "|---|---|---|",
        f"| {NETWORK} | {hand_scaled.mean():.2%} | {hand_adapted.mean():.2%} |",
        f"| searched | {search_scaled.mean():.2%} | {search_adapted.mean():.2%} |", "",
        f"- search, scaled: {compare(search_scaled, hand_scaled)}; adapted: {compare(search_adapted, hand_adapted)}; "
        f"mean: {compare((search_scaled + search_adapted) / 2, (hand_scaled + hand_adapted) / 2)}",
        f"- NetAdapt, by hand: {compare(hand_adapted, hand_scaled)}; searched: {compare(search_adapted, search_scaled)}; "
        f"mean: {compare((hand_adapted + search_adapted) / 2, (hand_scaled + search_scaled) / 2)}",
    ]  # fmt: skip


def write_summary(setting: Setting) -> str:
    """Of all rows there are."""
    rows = [read_json(path) for path in sorted((setting.rows / "rows").glob("*.json"))]
    text = summary(rows, setting.name)
    setting.rows.mkdir(parents=True, exist_ok=True)
    write_atomic(setting.rows / "summary.md", text)
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("run", "summary"), default="run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--shares", type=int, nargs="+", default=[50, 30], help="budgets, per cent")
    parser.add_argument("--only", nargs="+", default=[], choices=tuple(METHODS))
    parser.add_argument("--epochs", type=float, default=30.0, help="of every full training")
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--untaught", action="store_true", help="no teacher")
    parser.add_argument("--inherit", action="store_true", help="begin with the channels of the network that it is made from")
    parser.add_argument("--delta", type=float, default=0.03, help="of NetAdapt")
    parser.add_argument("--tune-steps", type=int, default=20, help="of NetAdapt")
    parser.add_argument("--search-minutes", type=float, default=20.0)
    parser.add_argument("--design-minutes", type=float, default=60.0, help="for each budget, beside --epochs")
    parser.add_argument("--design-search", action="store_true", help="design searches too")
    parser.add_argument("--data", default="fashion-mnist", help="or a folder of images, to try it")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "design-scratch")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "design" / "scratch")
    asked = parser.parse_args(arguments)
    setting = Setting(
        data=asked.data, shares=tuple(asked.shares), epochs=asked.epochs, recipe=asked.recipe, taught=not asked.untaught,
        inherit=asked.inherit, delta=asked.delta, tune_steps=asked.tune_steps, search_minutes=asked.search_minutes,
        design_minutes=asked.design_minutes, design_search=asked.design_search, runs=asked.runs, results=asked.results,
    )  # fmt: skip
    if asked.part == "run":
        run(setting, asked.seeds, asked.only)
    print(write_summary(setting))


if __name__ == "__main__":
    main()
