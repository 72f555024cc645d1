"""NetAdapt, or the knapsack, alone."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from mobilefit import adapt as netadapt
from mobilefit import device
from mobilefit.adapt import AdaptSettings, KnapsackSettings
from mobilefit.arch import NetSpec
from mobilefit.device import Phone
from mobilefit.errors import InputError, unknown
from mobilefit.jobs import kinds, lab, pretrained
from mobilefit.jobs.folder import RunFolder
from mobilefit.jobs.kinds import KINDS
from mobilefit.jobs.options import Budget, device_option, option, parse_budget, tool_option
from mobilefit.nn import save_weights
from mobilefit.progress import Voice
from mobilefit.runs import read_jsonl, write_atomic

Method = Literal["netadapt", "knapsack"]
OWN_OPTIONS: dict[Method, tuple[str, ...]] = {
    "netadapt": ("delta", "decay", "rule", "importance"), "knapsack": ("cut",)
}  # fmt: skip
"""Options that one method alone has."""


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Options of ``mobilefit adapt``."""

    weights: Path = option(help="trained .safetensors that mobilefit wrote", argument=True)
    data: str = option(help="the images it was trained on", argument=True)
    ignore_label: tuple[int, ...] = option((), help="segment: a label in the masks that is no class; may be repeated")
    latency: str = option(help="target here: 2ms, 850us, or 70% of the network's own")
    method: Method = option("netadapt", help="netadapt (V3 paper: layer by layer), or knapsack (all widths and blocks at once, from gates and the latency table)")
    delta: float = option(0.01, help="netadapt: least cut of a step, part of the network's latency")
    decay: float = option(1.0, help="netadapt: factor on delta after each step (NetAdapt's code: 0.96)")
    rule: netadapt.Rule = option("ratio", help="netadapt: which proposal wins: ratio (V3 paper: accuracy change per ms), accuracy (NetAdapt: smallest drop) or cautious (ratio less one standard error)")
    importance: netadapt.Importance = option(
        "gates", help="netadapt: which channels stay: gates (by the loss of some training images), norm (of filters, NetAdapt) or bn-scale"
    )
    cut: float = option(netadapt.ROUND_CUT, help="knapsack: most latency cut of a round, part of the network's; a deeper cut takes several rounds")
    shrink: str | None = option(
        None, help="what may shrink, with commas: expansion, bottleneck, head, block (residual blocks left out); default: all, the head only of fewer than 250 classes"
    )
    tune_steps: int = option(100, help="fine-tuning steps of a proposal (V3 paper: 10000), or of a knapsack's round; 0: none, only new batch norm statistics")
    recipe: str | None = option(
        None, help="of the fine-tuning, at a quarter of its rate (default: fast; detect; segment)"
    )
    table: Path | None = option(None, help="latency table of this device, from an earlier run")
    device: str = device_option()
    benchmark_model: Path | None = tool_option()
    seed: int = option(0, help="of everything random")
    out: Path = option(Path("runs/adapt"), help="run folder")
    quiet: bool = option(False, help="show no progress")


def adapt(config: AdaptConfig) -> dict[str, Any]:
    """Shrink a trained network by NetAdapt or by a knapsack; writes its spec and short-term weights, to be trained from scratch.

    Raises:
        InputError: bad data, weights or options, or a target out of reach.
    """
    budget, shrinking = parse_budget(config.latency), parse_shrink(config.shrink)
    _check(config)
    opened = pretrained.opened(config.weights)
    network = opened.network
    kind = KINDS[network.spec.task]
    kinds.check_options(kind.task, recipe=config.recipe, ignore=config.ignore_label)
    voice = Voice(quiet=config.quiet)
    data = kinds.loaded(kind, kinds.source_of(config, voice))
    lab.check_held_out(data)
    preset = kinds.trained_preset(opened, data, kind)
    run = RunFolder(config.out, "adapt", config)
    if run.finished:
        raise InputError(f"{run.path} holds a finished run", "choose another --out")
    kinds.tell_left_out(data, voice)
    voice(tuning_plan(config.tune_steps, config.method))
    with device.opened(config.device, tool=config.benchmark_model, say=voice) as phone:
        seed_ms = run.stage("start", lambda: _measured(network.spec, budget, phone), float)
        table = lab.OpenTable(run.path / lab.TABLE, config.table, phone)
        table.fitted(network.spec, voice)
        tools = netadapt.tools_for(
            data.train, lab.held_out(data, 2000, config.seed), preset=preset,
            recipe=kind.recipe(config.recipe, None, data), steps=config.tune_steps,
            latency=table.predict, confirm=lab.Confirm(network, seed_ms, phone), task=kind.port,
            importance=config.importance,
        )  # fmt: skip
        target_ms, folder = budget.of(seed_ms), run.path / config.method
        with run.timed(config.method):
            adapted = lab.shrink(
                network, settings_for(config, target_ms, shrinking), tools, folder, seed=config.seed, log=voice
            )
    spec = replace(adapted.spec, name=f"{network.spec.name}_adapted")
    write_atomic(run.path / "adapted.json", spec.to_json() + "\n")
    save_weights(
        lab.last_step(folder, network), run.path / "model.safetensors",
        preset=preset.to_dict(), classes=data.classes,
    )  # fmt: skip
    record = run.finish({
        "seed": config.seed, "task": kind.task, "method": config.method, "budget_ms": target_ms, "data": kinds.described(data),
        "seed_spec": network.spec.to_dict(), "final_spec": spec.to_dict(),
        "steps": adapted.steps, "latency_ms": adapted.measured_ms,
    })  # fmt: skip
    _tell(run, config.method, "" if kind.task == "classify" else f" {kind.score}")
    return record


def parse_shrink(text: str | None) -> tuple[netadapt.Kind, ...] | None:
    """What may shrink, from names with commas; ``None``: what is usual for the network.

    Raises:
        InputError: no such name, with the nearest one.
    """
    if text is None:
        return None
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in netadapt.KINDS:
            raise unknown("part to --shrink", name, netadapt.KINDS)
    return tuple(kind for kind in netadapt.KINDS if kind in names)


def _check(config: AdaptConfig) -> None:
    """What can be wrong with the options before anything is loaded."""
    defaults = {field.name: field.default for field in fields(config)}
    for method, names in OWN_OPTIONS.items():
        changed = [f"--{name}" for name in names if getattr(config, name) != defaults[name]]
        if method != config.method and changed:
            raise InputError(f"{', '.join(changed)} belongs to --method {method}, not {config.method}", "leave it out")
    lab.check_positive(delta=config.delta, decay=config.decay, cut=config.cut)
    if config.tune_steps < 0:
        raise InputError(f"--tune-steps is {config.tune_steps}, must not be below 0", "0 tunes nothing")
    device.check_target(config.device, config.benchmark_model)


def settings_for(
    config: AdaptConfig, target_ms: float, shrinking: tuple[netadapt.Kind, ...] | None
) -> AdaptSettings | KnapsackSettings:
    """The settings of the method that is asked for.

    Args:
        shrinking: what may shrink; ``None``: what is usual for the network.
    """
    common: dict[str, Any] = {"target_ms": target_ms, "margin": lab.MARGIN, "kinds": shrinking}
    if config.method == "knapsack":
        return KnapsackSettings(**common, cut=config.cut)
    return AdaptSettings(**common, delta=config.delta, decay=config.decay, rule=config.rule)


def tuning_plan(steps: int, method: Method = "netadapt") -> str:
    """A line: how proposals are tuned."""
    if method == "knapsack":
        return f"each round is tuned for {steps} steps" if steps else "rounds are not tuned: only batch norm statistics are new"
    if steps == 0:
        return "proposals are not tuned: they are judged with new batch norm statistics alone"
    line = f"each proposal is tuned for {steps} step{'s' if steps > 1 else ''}"
    if steps < netadapt.LEAST_TUNE_STEPS:
        line += f": fewer than {netadapt.LEAST_TUNE_STEPS} teach it less than new batch norm statistics do (--tune-steps 0)"
    return line


def _tell(run: RunFolder, method: Method, score: str) -> None:
    """The accepted steps, with how many other proposals each could not be told from, and what to do with the result."""
    for row in read_jsonl(run.path / method / f"{method}.jsonl"):
        if row["event"] in ("seed", "accepted"):
            others = row.get("within_two_errors")
            equals = f"  as good by the loss as {others} other{'s' if others > 1 else ''}" if others else ""
            print(f"{row['step']:3d}  {row['what']:<32} {row['measured_ms']:.4f} ms  {row['accuracy']:.2%}{score}{equals}")
    print(f"train it from scratch with --model {run.path / 'adapted.json'}")


def _measured(spec: NetSpec, budget: Budget, phone: Phone | None) -> float:
    """Milliseconds of the trained network.

    Raises:
        InputError: no network made from it meets the budget.
    """
    seed_ms = lab.measured([spec], phone)[0].median_ms
    lowest, target = lab.floor(spec, phone), budget.of(seed_ms)
    if lowest > target:
        raise InputError(
            f"no network made from '{spec.name}' at {lab.pixels(spec)} meets {target:.4g} ms: "
            f"the lowest reachable is {lowest:.4g} ms",
            "raise --latency, or train a network at a lower --resolution",
        )
    return seed_ms
