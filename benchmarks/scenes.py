"""What detectors and segmenters reach on small data, and what the paper's choices are worth there.

    python -m benchmarks.scenes bccd DATA WEIGHTS       # SSDLite: MobileNetV2 from ImageNet, V3-Small from scratch
    python -m benchmarks.scenes camvid DATA WEIGHTS     # LR-ASPP and R-ASPP on MobileNetV2 from ImageNet
    python -m benchmarks.scenes netadapt DATA           # the trained MobileNetV2 detector at 0.75 of its latency
    python -m benchmarks.scenes detectors DATA          # V3-Small: halved or whole; V2; two seeds, from scratch
    python -m benchmarks.scenes segmenters DATA         # R-ASPP, LR-ASPP, F, halved, V2; two seeds, from scratch
    python -m benchmarks.scenes summary

Each training is a ``mobilefit train`` in ``runs/scenes``: what is finished there is taken up, and an interrupted
one goes on; ``--only bccd-v3-small-scratch`` makes one row. ``results/scenes`` gets a row for each, and ``scenes.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, header, write_row
from mobilefit import arch
from mobilefit.adapt import LOG
from mobilefit.device import measure_many
from mobilefit.jobs import pretrained
from mobilefit.jobs.adapt import AdaptConfig, adapt
from mobilefit.jobs.folder import RECORD, command
from mobilefit.jobs.kinds import KINDS, Source
from mobilefit.jobs.model import export
from mobilefit.jobs.train import TrainConfig, train
from mobilefit.runs import read_json, write_atomic

RUNS, RESULTS = ROOT / "runs" / "scenes", ROOT / "results" / "scenes"
PROTOCOL = (
    "mobilefit train; mAP@0.5 or mIoU on all test images, float32 in torch and the int8 file made of it by "
    "calibration alone; latency of both files in one interleaved run, one thread on one core, as they are "
    "exported (boxes decoded and suppressed in the file; resized logits); seconds of training as it "
    "was, with what else the machine did"
)
MODEL = "model.safetensors"
SEEDS = (1, 2)
Rows = Iterator[tuple[str, TrainConfig]]


def bccd(data: str, weights: str) -> Rows:
    """MobileNetV2 from ImageNet, and V3-Small from scratch beside it."""
    common: dict[str, Any] = {"data": data, "task": "detect", "holdout": 0.0}
    yield "bccd-v2-imagenet", TrainConfig(**common, model="mobilenet_v2", weights=weights)
    yield "bccd-v3-small-scratch", TrainConfig(**common, model="mobilenet_v3_small", epochs=200)


def netadapt(data: str) -> Rows:
    """The detector that :func:`bccd` trained, cut to 0.75 of its latency, and trained on from what is left."""
    out, weights = RUNS / "netadapt", RUNS / "bccd-v2-imagenet" / MODEL
    if not (out / RECORD).exists():
        adapt(AdaptConfig(weights=weights, data=data, latency="75%", delta=0.1, tune_steps=5, out=out))
    log = (out / "netadapt" / LOG).read_text()
    write_atomic(RESULTS / "netadapt.jsonl", log)
    yield "bccd-v2-adapted", TrainConfig(
        data=data, task="detect", model=str(out / "adapted.json"), weights=str(out / MODEL), epochs=20, holdout=0.0
    )  # type: ignore[call-arg]


def camvid(data: str, weights: str) -> Rows:
    """LR-ASPP and R-ASPP on MobileNetV2 from ImageNet."""
    for kind, reduced in (("lraspp", True), ("raspp", False)):
        yield f"camvid-{kind}-v2-imagenet", TrainConfig(
            data=data, task="segment", model=_segmenter("mobilenet_v2", kind=kind, reduced=reduced),
            weights=weights, holdout=0.0, ignore_label=(11,),
        )  # type: ignore[call-arg]  # fmt: skip


DETECTORS = {
    "v3-small": ("mobilenet_v3_small", False), "v3-small-halved": ("mobilenet_v3_small", True),
    "v2": ("mobilenet_v2", False),
}  # fmt: skip
SEGMENTERS: dict[str, dict[str, Any]] = {
    "v3-small-raspp-256": {"kind": "raspp", "filters": 256, "reduced": False},
    "v3-small-halved-raspp-256": {"kind": "raspp", "filters": 256},
    "v3-small-halved-lraspp-256": {"filters": 256},
    "v3-small-halved-lraspp-128": {"filters": 128},
    "v2-halved-lraspp-128": {"filters": 128, "backbone": "mobilenet_v2"},
}


def detectors(data: str) -> Rows:
    """The halved last stage against the whole one, V3 against V2: Table 6 at our scale."""
    for seed in SEEDS:
        for name, (backbone, reduced) in DETECTORS.items():
            path = _spec(name, arch.detector(arch.spec(backbone), reduced=reduced))
            yield f"detect-{name}-{seed}", TrainConfig(
                data=data, task="detect", model=path, seed=seed, epochs=60, resolution=224, holdout=0.0
            )  # type: ignore[call-arg]


def segmenters(data: str) -> Rows:
    """R-ASPP against LR-ASPP, F, the halved last stage, V3 against V2: Table 7 at our scale."""
    for seed in SEEDS:
        for name, options in SEGMENTERS.items():
            yield f"segment-{name}-{seed}", TrainConfig(
                data=data, task="segment", model=_segmenter(name=name, **{"backbone": "mobilenet_v3_small", **options}),
                seed=seed, epochs=30, resolution=256, columns=352, holdout=0.0, ignore_label=(11,),
            )  # type: ignore[call-arg]  # fmt: skip


def _segmenter(backbone: str, name: str | None = None, **options: Any) -> str:
    made = arch.segmenter(arch.spec(backbone), **options)
    return _spec(name or made.name, made)


def _spec(name: str, spec: arch.NetSpec) -> str:
    path = RUNS / "specs" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, spec.to_json())
    return str(path)


def row(name: str, config: TrainConfig) -> dict[str, Any]:
    """Train, unless it is done, and say what came out."""
    config = replace(config, out=RUNS / name, resume=True)
    finished = config.out / RECORD
    record = read_json(finished) if finished.exists() else train(config)
    assert config.task is not None
    kind = KINDS[config.task]
    data = kind.load(Source(
        name=config.data, seed=config.seed, holdout=config.holdout, ignore=config.ignore_label
    ))  # fmt: skip
    opened = pretrained.opened(config.out / MODEL)
    files = export(opened.network, data, opened.preset(data), seed=config.seed)
    latency = dict(zip(("float32", "int8"), measure_many([files.float32, files.int8]), strict=True))
    portable = replace(config, out=Path("runs"), resume=False, data=Path(config.data).name,
                       weights=config.weights and Path(config.weights).name,
                       model=Path(config.model).name)  # fmt: skip
    cost = opened.network.spec.cost()
    return {
        "name": name, "command": command("train", portable), "score": kind.score, "seed": config.seed,
        "float32": record["final"]["accuracy_float"], "int8": kind.value(files.found["int8"]),
        "final": {key: value for key, value in record["final"].items() if key in ("map", "map75", "per_class", "pixel_accuracy")},
        "latency_ms": {key: found.median_ms for key, found in latency.items()},
        "params": cost.params, "madds": cost.madds, "seconds": record["seconds"]["training"],
        "steps": record["training"]["steps"], "images_per_second": record["training"]["images_per_second"],
    }  # fmt: skip


def summary() -> str:
    """Tables of all rows; runs that differ in the seed alone are one line."""
    rows = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("rows/*.json"))]
    single = [found for found in rows if not found["name"].startswith(("detect-", "segment-"))]
    lines = ["# Detectors and segmenters on small data", "", PROTOCOL + ".", "",
             "| run | score | float32 | int8 | float32 ms | int8 ms | minutes | on | command |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for found in single:
        ms = found["latency_ms"]
        lines.append(
            f"| {found['name']} | {found['score']} | {found['float32']:.1%} | {found['int8']:.1%} | {ms['float32']:.2f} "
            f"| {ms['int8']:.2f} | {found['seconds'] / 60:.0f} | {_processor(found)} | `{found['command']}` |"
        )
    for task, title in (("detect", "SSDLite, from scratch"), ("segment", "R-ASPP and LR-ASPP, from scratch")):
        lines += _compared(title, [found for found in rows if found["name"].startswith(f"{task}-")])
    return "\n".join(lines) + "\n"


def _compared(title: str, rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    score = rows[0]["score"]
    lines = ["", f"## {title}", "", f"On {', '.join(sorted({_processor(found) for found in rows}))}.", "",
             f"| network | params | MAdds | seeds | {score} float32 | {score} int8 | float32 ms | int8 ms |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    groups: dict[str, list[dict[str, Any]]] = {}
    for found in rows:
        groups.setdefault(found["name"].rsplit("-", 1)[0], []).append(found)
    for name, of_name in groups.items():
        scores = [_spread([100 * found[kind] for found in of_name]) for kind in ("float32", "int8")]
        ms = [statistics.median(found["latency_ms"][kind] for found in of_name) for kind in ("float32", "int8")]
        lines.append(
            f"| {name.split('-', 1)[1]} | {of_name[0]['params'] / 1e6:.2f} M | {of_name[0]['madds'] / 1e9:.3f} B "
            f"| {len(of_name)} | {scores[0]} | {scores[1]} | {ms[0]:.2f} | {ms[1]:.2f} |"
        )
    return lines


def _processor(found: dict[str, Any]) -> str:
    cpu: str = found["machine"]["cpu"]
    return cpu.replace("(R)", "")


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


MADE: dict[str, Callable[..., Rows]] = {
    "bccd": bccd, "camvid": camvid, "netadapt": netadapt, "detectors": detectors, "segmenters": segmenters
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*MADE, "summary"])
    parser.add_argument("files", nargs="*", help="a data set, and weights")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="these rows alone, of those that are made")
    options = parser.parse_args(arguments)
    for name, config in MADE[options.what](*options.files) if options.what in MADE else ():
        if options.only and name not in options.only:
            continue
        write_row(RESULTS, name, {**header(PROTOCOL), **row(name, config)})
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_atomic(RESULTS / "scenes.md", summary())
    print(summary())


if __name__ == "__main__":
    main()
