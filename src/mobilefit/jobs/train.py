"""Training alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mobilefit import report
from mobilefit.data import ClassificationData, load
from mobilefit.errors import InputError
from mobilefit.jobs import lab
from mobilefit.jobs.folder import RunFolder
from mobilefit.jobs.model import network_for, spec_of
from mobilefit.jobs.options import option
from mobilefit.nn import save_weights
from mobilefit.progress import Voice
from mobilefit.train import Recipe, evaluate, fit, recipe


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Options of ``mobilefit train``."""

    data: str = option(help="folder of class folders, or fashion-mnist", argument=True)
    model: str = option("mobilenet_v3_small", help="a name of the family, or a spec's .json")
    width: float = option(1.0, help="width multiplier, by the paper's rule")
    weights: Path | None = option(None, help="weights to start from; a last layer of another size starts anew")
    resolution: int = option(96, help="side of the network's input, pixels")
    recipe: str | None = option(
        None, help="fast, finetune or paper (default: finetune with --weights, else fast)"
    )
    epochs: int | None = option(None, help="passes over the images (default: the recipe's)")
    steps: int | None = option(None, help="optimizer steps, in place of --epochs")
    lr: float | None = option(None, help="learning rate for a batch of 256 (default: the recipe's)")
    batch_size: int | None = option(None, help="images a step (default: the recipe's)")
    augment: str | None = option(None, help="light, mild, inception or none (default: the recipe's; mild for tiny images)")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = option("32-true", help="of the arithmetic")
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = option("auto", help="where to train")
    checkpoint_every: int | None = option(None, help="steps between checkpoints (default: an epoch)")
    seed: int = option(0, help="of everything random")
    out: Path = option(Path("runs/train"), help="run folder")
    resume: bool = option(False, help="go on with the interrupted run in --out")
    quiet: bool = option(False, help="show no progress")


def train(config: TrainConfig) -> dict[str, Any]:
    """Train a network; writes ``model.safetensors``, ``metrics.jsonl``, record and report.

    Raises:
        InputError: bad data, options, weights or folder.
        TrainingDiverged: the loss is not finite.
    """
    _check(config)
    data = load(config.data, seed=config.seed)
    chosen = _recipe(config, data)
    spec = spec_of(config.model)
    if config.width != 1.0:
        spec = spec.width(config.width)
    spec = spec.resolution(config.resolution).classes(len(data.classes))
    network = network_for(spec, config.weights, seed=config.seed)
    preset = data.preset(config.resolution)
    run = RunFolder(config.out, "train", config, resume=config.resume)
    if run.finished:
        raise InputError(f"{run.path} holds a finished run", "choose another --out")
    voice = Voice(quiet=config.quiet)
    with run.timed("training"):
        fit(
            network, data.train, preset=preset, recipe=chosen, validation=data.holdout,
            seed=config.seed, steps=config.steps, out=run.path, resume=config.resume,
            checkpoint_every=config.checkpoint_every, accelerator=config.accelerator,
            progress=voice.label(f"training {spec.name}"),
        )  # fmt: skip
    save_weights(network, run.path / "model.safetensors")
    found = evaluate(network, data.test, preset)
    cost = spec.cost()
    row = {"label": spec.name, "kind": "seed", "seed": config.seed, "accuracy_float": found.top1,
           "params": cost.params, "madds": cost.madds}  # fmt: skip
    record = run.finish({
        "seed": config.seed, "data": lab.describe(data), "recipe": chosen.to_dict(),
        "final_spec": network.spec.to_dict(), "results": [row],
        "final": {**row, "top5": found.top5, "loss": found.loss,
                  "confusion": found.confusion.tolist(),
                  "misclassified": lab.misclassified(found, data)},
    })  # fmt: skip
    report.write_report(run.path)
    print(f"{spec.name}: {found.top1:.2%} on {found.count} test images")
    print(run.path / "model.safetensors")
    return record


def _check(config: TrainConfig) -> None:
    """What can be told before the images are read."""
    lab.check_positive(
        width=config.width, resolution=config.resolution, steps=config.steps, epochs=config.epochs
    )
    if config.steps is not None and config.epochs is not None:
        raise InputError("--steps and --epochs both say how long to train", "give one of them")
    _overridden(recipe(config.recipe or "fast"), config)


def _recipe(config: TrainConfig, data: ClassificationData) -> Recipe:
    return _overridden(lab.recipe_for(config.recipe, config.weights, data), config)


def _overridden(base: Recipe, config: TrainConfig) -> Recipe:
    given = {name: value for name in ("epochs", "lr", "batch_size", "augment")
             if (value := getattr(config, name)) is not None}  # fmt: skip
    return replace(base, precision=config.precision, **given)
