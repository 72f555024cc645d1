"""What `mobilefit design` delivers for boxes and masks, beside what a user could do by hand, at the same latency.

    python -m benchmarks.design_scenes detect BCCD mobilenet_v2=FILE          # a quarter of an hour a seed; goes on where it stopped
    python -m benchmarks.design_scenes segment CAMVID mobilenet_v2=FILE --ignore-label 11
    python -m benchmarks.design_scenes detect BCCD mobilenet_v2=FILE --only taught width --seeds 0
    python -m benchmarks.design_scenes summary

The budget is half of the network's int8 latency at ``--size``. Every network is trained for the same number of epochs
on the same images, begins from the same network at ``--size`` that was trained as long (by the same seed) and is
taught by it; of ``design`` the larger network is its own choice:

- ``taught``: the network at the largest input within the budget;
- ``width``: the network at ``--size`` and the largest width multiplier within the budget;
- ``design``: ``mobilefit design --task`` with the same weights.

``results/design/scenes/rows`` gets a row for each, and beside it what the int8 file did with each test image;
``results/design/scenes.md`` the differences, with the standard error of a paired bootstrap over the images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ROOT, header, int8_beside, write_row
from mobilefit import arch
from mobilefit.adapt import for_shrunk, gates_on, transfer
from mobilefit.arch import NetSpec
from mobilefit.commands.design import DesignConfig, design
from mobilefit.data import Preset
from mobilefit.errors import QualityGateError
from mobilefit.jobs import lab, pretrained
from mobilefit.jobs.kinds import KINDS, Kind, Source, begun, trained_preset
from mobilefit.nn import Network, copy_weights, save_weights
from mobilefit.pipeline import candidates, time_budget
from mobilefit.pipeline.candidates import Sizes
from mobilefit.pipeline.design_run import CANDIDATE_RULE, TEACHING
from mobilefit.runs import atomic_file, read_json, write_atomic, write_json
from mobilefit.tasks.metrics import DetectionOutcomes, SegmentationOutcomes
from mobilefit.train import SoftTargets
from mobilefit.train.statistics import Outcomes, bootstrapped

RUNS, RESULTS = ROOT / "runs" / "design-scenes", ROOT / "results" / "design" / "scenes"
PROTOCOL = (
    "mAP@0.5 or mIoU of the int8 file on the test images; latency of the int8 file beside the reference's in one "
    "interleaved run, one thread; the same epochs for all; seconds as they were, with what else the machine did"
)
SHARE = 50
"""Per cent of the reference's latency: the budget."""
USUAL = {"detect": (160, 20.0), "segment": (160, 10.0)}
"""Height of the reference's input in pixels, and epochs: a quarter of an hour a seed on two cores."""
WIDTHS = tuple(percent / 100 for percent in range(20, 100, 5))
METHODS = ("taught", "width", "design")
MODEL = "model.safetensors"
OUTCOMES: dict[str, Callable[..., Outcomes]] = {"detect": DetectionOutcomes, "segment": SegmentationOutcomes}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the rows of one seed share."""

    kind: Kind
    images: str
    data: Any
    name: str
    """Of the network."""
    weights: str
    """A file of its pretrained weights."""
    size: int
    epochs: float
    minutes: float
    """Of a design."""
    ignore: tuple[int, ...]
    seed: int

    @property
    def runs(self) -> Path:
        """The folder of everything that is trained for this task at this size and length."""
        return RUNS / f"{self.kind.task}-{self.size}-{self.epochs:g}"

    @cached_property
    def sizes(self) -> Sizes:
        """The network for the data's classes, padded as its weights want it, at every input size."""
        spec = self.kind.network(arch.spec(self.name), self.data, None, None)
        start = begun(self.kind, spec, self.weights, self.data, seed=self.seed, quiet=True)
        return Sizes(spec=replace(start.network.spec, name=spec.name), weights=self.weights, sizes=candidates.SIZES)

    @property
    def reference(self) -> NetSpec:
        """What the budget is a share of, and what teaches."""
        return self.sizes.at(self.size)


# ---- trainings


def trained(
    name: str, network: Network, preset: Preset, setting: Setting, teacher: SoftTargets | None, *, shrunk: bool = False
) -> Path:
    """The folder of a network after its training; what is done there is taken up."""
    folder = setting.runs / f"{name}-{setting.seed}"
    if (folder / MODEL).exists():
        return folder
    recipe = setting.kind.recipe(None, "pretrained", setting.data)
    recipe = time_budget.distilled(recipe, TEACHING if teacher is not None else 0.0)
    recipe = for_shrunk(recipe) if shrunk else recipe
    steps = round(setting.epochs * time_budget.epoch_steps(len(setting.data.train), recipe))
    lab.train(
        network, setting.data, preset, recipe, task=setting.kind.port, steps=steps, seed=setting.seed, folder=folder,
        label=f"{name}, seed {setting.seed}", teacher=teacher, validate=False,
    )  # fmt: skip
    save_weights(network, folder / MODEL, preset=preset.to_dict(), classes=setting.data.classes)
    lab.drop_checkpoints(folder)
    return folder


def restored(folder: Path, setting: Setting) -> tuple[Network, Preset]:
    """A trained network, and how images become its input."""
    opened = pretrained.opened(folder / MODEL)
    return opened.network, trained_preset(opened, setting.data, setting.kind)


def larger(setting: Setting) -> tuple[Network, Preset]:
    """The reference after its training from pretrained weights."""
    start = begun(
        setting.kind, setting.reference, setting.weights, setting.data, seed=setting.seed, quiet=True
    )
    return restored(trained("larger", start.network, start.preset, setting, None), setting)


def largest(specs: Sequence[NetSpec], setting: Setting, what: str) -> NetSpec:
    """The slowest of some networks that is within the budget, by latencies measured once."""
    path = setting.runs / f"latency-{what}.json"
    if not path.exists():
        reference, *others = (x.median_ms for x in lab.measured([setting.reference, *specs], rule=CANDIDATE_RULE))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, [ms / reference for ms in others])
    within = [pair for pair in zip(read_json(path), specs, strict=True) if 100 * pair[0] <= SHARE]
    return max(within, key=lambda pair: pair[0])[1]


def taught(setting: Setting) -> Path:
    """The same network at a smaller input."""
    network, preset = larger(setting)
    smaller = [setting.sizes.at(size) for size in candidates.SIZES if setting.size / 2 <= size < setting.size]
    spec = largest(smaller, setting, "taught")
    student = copy_weights(network, replace(spec, name=network.spec.name))
    return trained(
        f"taught-{spec.image_shape[0]}px", student, seen_as(preset, spec, setting), setting, soft_targets(network, preset)
    )


def width(setting: Setting) -> Path:
    """The same network scaled in width, with the channels of the larger one that matter most."""
    network, preset = larger(setting)
    spec = largest([network.spec.width(multiplier) for multiplier in WIDTHS], setting, "width")
    recipe = setting.kind.recipe(None, "pretrained", setting.data)
    importance = gates_on(network, setting.data.train, preset, recipe, setting.kind.port)
    return trained(
        f"width-{spec.name.rpartition('_')[2]}", transfer(network, spec, importance), preset, setting,
        soft_targets(network, preset), shrunk=True,
    )  # fmt: skip


def soft_targets(network: Network, preset: Preset) -> SoftTargets:
    """The larger network as the teacher."""
    return SoftTargets(network=network.eval(), preset=preset)


def seen_as(preset: Preset, spec: NetSpec, setting: Setting) -> Preset:
    """How images become the input of a network that begins with another's weights."""
    return replace(setting.kind.preset(setting.data, spec), mean=preset.mean, std=preset.std)


def designed(setting: Setting) -> Path:
    """What ``mobilefit design`` delivers."""
    out = setting.runs / f"design-{setting.seed}"
    budget = setting.runs / f"budget-{setting.seed}.json"
    if not budget.exists():
        (reference,) = (x.median_ms for x in lab.measured([setting.reference]))
        budget.parent.mkdir(parents=True, exist_ok=True)
        write_json(budget, reference * SHARE / 100)
    config = DesignConfig(
        data=setting.images, task=setting.kind.task, latency=f"{read_json(budget):.4g}ms", weights=(setting.weights,),
        ignore_label=setting.ignore, epochs=setting.epochs, minutes=setting.minutes, seed=setting.seed, max_drop=100.0,
        out=out,
    )  # fmt: skip
    try:
        design(config)
    except QualityGateError as error:  # all files are written: the row says how far over the budget they are
        print(f"design, seed {setting.seed}: {error.message}", file=sys.stderr, flush=True)
    return out


# ---- rows


def row(method: str, folder: Path, setting: Setting) -> tuple[dict[str, Any], Outcomes]:
    """A trained network's int8 file on the test images, and its latency beside the reference's."""
    network, preset = restored(folder, setting)
    spec = network.spec
    evaluation, measured = int8_beside(setting.reference, folder, network, setting.data, preset, seed=setting.seed)
    return {
        "task": setting.kind.task, "method": method, "seed": setting.seed, "pixels": lab.pixels(spec),
        "reference": f"{setting.name} {lab.pixels(setting.reference)}", **measured,
        "score": setting.kind.value(evaluation), "score_name": setting.kind.score, "epochs": setting.epochs,
        "test_images": len(setting.data.test),
    }, evaluation.outcomes(setting.data.test)  # fmt: skip


def path_of(task: str, method: str, seed: int) -> Path:
    """Of a row."""
    return RESULTS / "rows" / f"{task}-{method}-{seed}.json"


def run(setting: Setting, only: Sequence[str]) -> None:
    """Every row of a seed that is not there yet; the summary after each."""
    makers: dict[str, Callable[[Setting], Path]] = {"taught": taught, "width": width, "design": designed}
    for method in only or METHODS:
        path = path_of(setting.kind.task, method, setting.seed)
        if path.exists():
            continue
        measured, outcomes = row(method, makers[method](setting), setting)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path.with_suffix(".npz")) as file:
            np.savez_compressed(file, **vars(outcomes))
        write_row(RESULTS, path.stem, {**header(PROTOCOL), **measured})
        print(f"{path.stem}: {measured['score']:.1%} at {measured['share']:.3f} of the reference's latency", flush=True)
        summarise()


def outcomes_of(entry: dict[str, Any]) -> Outcomes:
    """What a row's int8 file did with each test image."""
    with np.load(path_of(entry["task"], entry["method"], entry["seed"]).with_suffix(".npz")) as arrays:
        return OUTCOMES[entry["task"]](**arrays)


def summarise() -> None:
    """The table of all rows, with the paired differences of ``design`` to each method."""
    rows = [read_json(path) for path in sorted((RESULTS / "rows").glob("*.json"))]
    lines = [
        "# design beside what a user could do by hand: boxes and masks", "",
        f"Int8 files on test images that decided nothing, mean over the seeds, at {SHARE} % of the reference's latency. "
        "The last column is design's result minus the row's in points, by the same seeds, with the standard error of a "
        "paired bootstrap over the images.", "",
    ]  # fmt: skip
    for task in sorted({entry["task"] for entry in rows}):
        of_task = [entry for entry in rows if entry["task"] == task]
        first = of_task[0]
        lines += [
            f"## {task}: {first['reference']}, {first['epochs']:g} epochs, {first['test_images']} test images", "",
            f"| method | seeds | {first['score_name']} | latency | networks | design minus it |", "|---|---|---|---|---|---|",
        ]  # fmt: skip
        designs = {entry["seed"]: entry for entry in of_task if entry["method"] == "design"}
        for method in METHODS:
            same = [entry for entry in of_task if entry["method"] == method]
            if same:
                networks = sorted({f"{entry['network']} {entry['pixels']}" for entry in same})
                lines.append(
                    f"| {method} | {len(same)} | {np.mean([e['score'] for e in same]):.1%} | "
                    f"{np.mean([e['share'] for e in same]):.3f} | {', '.join(networks)} | {_against(designs, same)} |"
                )
        lines.append("")
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_atomic(RESULTS.with_suffix(".md"), "\n".join(lines))


def _against(designs: dict[int, dict[str, Any]], others: Sequence[dict[str, Any]]) -> str:
    pairs = [(designs[e["seed"]], e) for e in others if e["seed"] in designs and e["method"] != "design"]
    if not pairs:
        return ""
    outcomes = [(outcomes_of(first), outcomes_of(second)) for first, second in pairs]
    difference = bootstrapped(outcomes, pairs[0][0]["test_images"])
    return f"{100 * difference.mean:+.1f} ± {100 * difference.error:.1f} ({len(pairs)} seeds)"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*USUAL, "summary"])
    parser.add_argument("files", nargs="*", help="a data set, and NAME=FILE of pretrained weights")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=METHODS, default=[], help="methods")
    parser.add_argument("--size", type=int, help="height of the reference's input, pixels")
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--minutes", type=float, default=12.0, help="of a design")
    parser.add_argument("--ignore-label", type=int, nargs="+", default=[], help="labels in the masks that are no class")
    asked = parser.parse_args(arguments)
    if asked.what != "summary":
        if len(asked.files) != 2 or "=" not in asked.files[1]:
            parser.error("give a data set and NAME=FILE")
        images, (name, weights) = asked.files[0], asked.files[1].split("=", 1)
        size, epochs = USUAL[asked.what]
        for seed in asked.seeds:
            kind, ignore = KINDS[asked.what], tuple(asked.ignore_label)
            run(Setting(
                kind=kind, images=images, data=kind.load(Source(name=images, seed=seed, ignore=ignore)), name=name,
                weights=weights, size=asked.size or size, epochs=asked.epochs or epochs, minutes=asked.minutes,
                ignore=ignore, seed=seed,
            ), asked.only)  # fmt: skip
    summarise()


if __name__ == "__main__":
    main()
