"""NetAdapt alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mobilefit import adapt as netadapt
from mobilefit import device, train
from mobilefit.adapt import AdaptSettings, Tools
from mobilefit.data import load
from mobilefit.errors import InputError
from mobilefit.jobs import lab, pretrained
from mobilefit.jobs.folder import RunFolder
from mobilefit.jobs.options import device_option, option, parse_budget, tool_option
from mobilefit.nn import save_weights
from mobilefit.progress import Voice
from mobilefit.runs import read_jsonl, write_atomic


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Options of ``mobilefit adapt``."""

    weights: Path = option(help="trained .safetensors that mobilefit wrote", argument=True)
    data: str = option(help="the images it was trained on", argument=True)
    latency: str = option(help="target here: 2ms, 850us, or 70% of the network's own")
    delta: float = option(0.01, help="least cut of a step, part of the network's latency")
    decay: float = option(1.0, help="factor on delta after each step (NetAdapt's code: 0.96)")
    rule: netadapt.Rule = option("ratio", help="ratio (V3 paper) or accuracy (NetAdapt)")
    tune_steps: int = option(100, help="fine-tuning steps of a proposal (V3 paper: 10000)")
    recipe: str = option("fast", help="of the fine-tuning, at a quarter of its rate")
    table: Path | None = option(None, help="latency table of this device, from an earlier run")
    device: str = device_option()
    benchmark_model: Path | None = tool_option()
    seed: int = option(0, help="of everything random")
    out: Path = option(Path("runs/adapt"), help="run folder")
    quiet: bool = option(False, help="show no progress")


def adapt(config: AdaptConfig) -> dict[str, Any]:
    """Shrink a trained network; writes its spec and short-term weights, to be trained from scratch.

    Raises:
        InputError: bad data, weights or options, or a target out of reach.
    """
    budget = parse_budget(config.latency)
    lab.check_positive(delta=config.delta, decay=config.decay, tune_steps=config.tune_steps)
    train.recipe(config.recipe)  # a wrong name is told before the images are read
    device.check_target(config.device, config.benchmark_model)
    opened = pretrained.opened(config.weights)
    network, data = opened.network, load(config.data, seed=config.seed)
    preset = opened.preset(data)
    run = RunFolder(config.out, "adapt", config)
    if run.finished:
        raise InputError(f"{run.path} holds a finished run", "choose another --out")
    voice = Voice(quiet=config.quiet)
    with device.opened(config.device, tool=config.benchmark_model, say=voice) as phone:
        seed_ms = run.stage("start", lambda: lab.measured([network.spec], phone)[0].median_ms)
        table = lab.OpenTable(run.path / lab.TABLE, config.table, phone)
        table.fitted(network.spec, voice)
        held = lab.held_out(data, 2000, config.seed)
        tools = Tools(
            latency=table.predict,
            confirm=lab.Confirm(network, seed_ms, phone),
            tune=lab.tuner(
                data, preset, lab.recipe_for(config.recipe, None, data), config.tune_steps
            ),
            accuracy=lambda candidate: lab.accuracy(candidate, held, preset),
            images=len(held),
        )
        settings = AdaptSettings(target_ms=budget.of(seed_ms), margin=lab.MARGIN, delta=config.delta,
                                 decay=config.decay, rule=config.rule)  # fmt: skip
        with run.timed("netadapt"):
            found = netadapt.adapt(
                network, settings, tools, run.path / "netadapt", seed=config.seed, say=voice
            )
    spec = replace(found.spec, name=f"{network.spec.name}_adapted")
    write_atomic(run.path / "adapted.json", spec.to_json() + "\n")
    save_weights(
        lab.last_step(run.path / "netadapt", network), run.path / "model.safetensors",
        preset=preset.to_dict(), classes=data.classes,
    )  # fmt: skip
    record = run.finish({
        "seed": config.seed, "budget_ms": settings.target_ms, "data": lab.describe(data),
        "seed_spec": network.spec.to_dict(), "final_spec": spec.to_dict(),
        "steps": found.steps, "latency_ms": found.measured_ms,
    })  # fmt: skip
    accepted = [r for r in read_jsonl(run.path / "netadapt" / netadapt.LOG)
                if r["event"] in ("seed", "accepted")]  # fmt: skip
    for row in accepted:
        print(f"{row['step']:3d}  {row['what']:<32} {row['measured_ms']:.4f} ms  {row['accuracy']:.2%}")
    print(f"train it from scratch with --model {run.path / 'adapted.json'}")
    return record
