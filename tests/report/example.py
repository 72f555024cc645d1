"""A run's records as the verbs design and search leave them, made up but of realistic numbers."""

from __future__ import annotations

import base64
import io
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mobilefit.arch import Block, NetSpec, detector, segmenter, spec

Record = dict[str, Any]
CLASSES = ("dress", "hat", "long sleeve", "shirt", "shoes & <b>socks</b>", "t-shirt")
BUDGET = 0.42


def seed_spec() -> NetSpec:
    """V3-Small for six classes."""
    return spec("mobilenet_v3_small").resolution(96).classes(len(CLASSES))


def final_spec() -> NetSpec:
    """The seed with narrower blocks, as NetAdapt leaves it."""
    seed = seed_spec()
    blocks = [
        replace(block, expand=block.expand and 8 * max(1, round(block.expand * share / 8)))
        for block, share in zip(seed.blocks, (1, 0.8, 0.7, 0.6, 0.9, 0.55, 0.8, 1, 0.5, 0.75, 0.6))
    ]
    return replace(seed, name="mobilenet_v3_small adapted", blocks=tuple(blocks))


def latency(median: float) -> Record:
    """A measurement as the record holds it."""
    return {
        "p10_ms": median * 0.985, "median_ms": median, "p90_ms": median * 1.03, "runs": 400,
        "stable": True, "threads": 1, "core": 1, "device": "a device", "runtime": "LiteRT 2.3.0",
        "date": "2026-05-01T10:20:30+00:00",
    }  # fmt: skip


def results() -> list[Record]:
    """The seed network, the adapted one and two of the width family, three seeds each."""
    nets = [
        ("mobilenet_v3_small", "seed", 0.585, 0.881, seed_spec()),
        ("NetAdapt", "adapted", 0.412, 0.8755, final_spec()),
        ("width 0.75", "width", 0.418, 0.8635, seed_spec().width(0.75)),
        ("width 0.5", "width", 0.301, 0.842, seed_spec().width(0.5)),
    ]
    rows = []
    for label, kind, ms, accuracy, net in nets:
        for number in range(3):
            wobble = (number - 1) * 0.004 + 0.001 * math.sin(7 * ms + number)
            rows.append({
                "label": label, "kind": kind, "seed": number, "latency": latency(ms + wobble / 4),
                "accuracy_int8": accuracy + wobble, "accuracy_float": accuracy + wobble + 0.003,
                "params": net.cost().params, "madds": net.cost().madds,
            })  # fmt: skip
    return rows


def layers(net: NetSpec) -> list[Record]:
    """Milliseconds of each layer, roughly by its work."""
    return [
        {"name": layer.name, "ms": 0.004 + layer.madds * 2.2e-8, "madds": layer.madds}
        for layer in net.cost().layers
    ]


def png(seed: int) -> str:
    """A small smooth picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((48, 60), Image.Resampling.BICUBIC).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


CONFUSION = [
    [44, 0, 2, 1, 0, 3],
    [0, 50, 0, 0, 0, 0],
    [1, 0, 40, 7, 0, 2],
    [2, 0, 9, 35, 0, 4],
    [0, 1, 0, 0, 49, 0],
    [1, 0, 3, 2, 0, 44],
]


def record() -> Record:
    """``record.json`` of a whole design run."""
    misclassified = [
        {"index": 17 * i, "true": CLASSES[i % 6], "predicted": CLASSES[(i + 3) % 6],
         "confidence": 0.97 - 0.06 * i, "png_base64": png(i)}
        for i in range(8)
    ]  # fmt: skip
    return {
        "verb": "design",
        "command": "mobilefit design clothing --latency 0.42ms --resolution 96 --out run",
        "config": {"data": "clothing", "latency": "0.42ms", "resolution": 96, "minutes": 30.0},
        "seed": 0, "started": "2026-05-01T10:00:00+00:00", "finished": "2026-05-01T10:31:12+00:00",
        "seconds": {"data": 7.2, "seed network": 310.0, "netadapt": 905.5, "training": 615.0},
        "budget_ms": BUDGET,
        "data": {
            "name": "clothing", "classes": list(CLASSES), "fingerprint": "9f2c71d0e5ab",
            "sizes": {"train": 2400, "validation": 300, "test": 300},
            "skipped": [{"path": "clothing/hat/broken.jpg", "why": "cut short after 812 bytes"}],
        },
        "seed_spec": seed_spec().to_dict(), "final_spec": final_spec().to_dict(),
        "results": results(),
        "final": {
            "label": "NetAdapt", "latency": latency(0.4118), "latency_float": latency(0.8262),
            "accuracy_int8": 0.8733, "accuracy_float": 0.8767, "confusion": CONFUSION,
            "misclassified": misclassified,
            "files": {"int8": "model_int8.tflite", "float32": "model_float32.tflite"},
        },
        "layers": {"before": layers(seed_spec()), "after": layers(final_spec())},
        "machine": {
            "cpu": "An Example 9000", "cpu_flags": ["avx2", "avx512_vnni", "fma"], "cores": 2,
            "memory_gib": 15.6, "system": "Linux 6.1 x86_64", "python": "3.11.2",
            "packages": {"mobilefit": "0.1.0", "torch": "2.14.0"},
            "date": "2026-05-01T10:00:00+00:00",
        },
    }  # fmt: skip


def netadapt() -> list[Record]:
    """``netadapt.jsonl``: the seed, and twelve steps of three proposals each."""
    rows: list[Record] = [{
        "event": "seed", "step": 0, "what": "seed", "latency_ms": 0.57, "measured_ms": 0.585,
        "accuracy": 0.88, "spec_id": "0" * 12, "spec": seed_spec().to_dict(),
    }]  # fmt: skip
    ms, accuracy = 0.57, 0.88
    for step in range(1, 13):
        ms, accuracy = ms - 0.0138, accuracy - 0.002 * (1 + math.sin(step))
        proposal = {
            "step": step, "what": f"blocks.{step % 11}.expand 96 -> 88", "latency_ms": ms,
            "accuracy": accuracy, "score": -0.31 - step / 100,
        }  # fmt: skip
        for number in range(3):
            rows.append({**proposal, "event": "proposal", "measured_ms": None,
                         "spec_id": f"{step:06d}{number:06d}"})  # fmt: skip
        rows.append({**proposal, "event": "accepted", "measured_ms": ms * 1.02,
                     "spec_id": f"{step:06d}{0:06d}", "spec": final_spec().to_dict()})  # fmt: skip
    return rows


def metrics(offset: float) -> list[Record]:
    """``metrics.jsonl`` as the training loop writes it: validation after each epoch alone."""
    rows = []
    for step in range(4, 161, 4):
        row = {
            "step": step, "epoch": step / 40, "loss": 0.4 + offset + 1.4 * math.exp(-step / 40),
            "lr": 0.002 * (1 - step / 160), "images_per_s": 431.0,
        }  # fmt: skip
        if step % 40 == 0:
            row |= {"val_top1": 0.89 - offset - 0.4 * math.exp(-step / 40), "val_loss": 0.4 + offset + math.exp(-step / 40)}
        rows.append(row)
    return rows


def write_jsonl(path: Path, rows: list[Record]) -> None:
    """Rows as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(folder: Path, content: Record | None = None) -> Path:
    """Everything that a run leaves, in ``folder``; ``content`` in place of :func:`record`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_text(json.dumps(record() if content is None else content))
    (folder / "model_int8.tflite").write_bytes(bytes(812_345))
    (folder / "model_float32.tflite").write_bytes(bytes(3_210_000))
    write_jsonl(folder / "netadapt" / "netadapt.jsonl", netadapt())
    for name, offset in (("seed", 0.0), ("final/0", 0.02), ("final/1", 0.05), ("width/0", 0.08)):
        write_jsonl(folder / name / "metrics.jsonl", metrics(offset))
    return folder


# ---- a design that raced


def standing(name: str, loss: float, score: float, **changes: Any) -> Record:
    """A candidate after a rung."""
    return {
        "name": name, "origin": "family", "spec_id": name.replace(" ", "")[:12], "latency_ms": 0.4,
        "pretrained": True, "score": score, "loss": loss, "behind": 0.0, "error": 0.0, "survives": True,
        **changes,
    }  # fmt: skip


def race() -> list[Record]:
    """Three rungs: frozen features, short trainings, and finals with a shrunk network beside."""
    return [
        {"rung": "probe", "what": "frozen features", "standings": [
            standing("mobilenet_v2 64 px", 0.612, 0.74, latency_ms=0.403),
            standing("mobilenet_v3_small 96 px", 0.655, 0.713, behind=0.043, error=0.0112, latency_ms=0.418),
            standing("mnasnet_a1 48 px", 0.83, 0.62, behind=0.218, error=0.0201, survives=False),
        ]},
        {"rung": "rung_1", "what": "short trainings (2.0 epochs)", "standings": [
            standing("mobilenet_v3_small 96 px", 0.51, 0.8),
            standing("mobilenet_v2 64 px", 0.5204, 0.797, behind=0.0104, error=0.009),
        ]},
        {"rung": "rung_2", "what": "finals (5.0 epochs, taught)", "standings": [
            standing("mobilenet_v3_small_adapted 112 px", 0.401, 0.861, origin="shrunk", pretrained=False),
            standing("mobilenet_v3_small 96 px", 0.4222, 0.853, behind=0.0212, error=0.0074, survives=False),
        ]},
    ]  # fmt: skip


def against(kind: str, points: float | None, error: float | None = 0.6, label: str = "") -> Record:
    """A comparison with what a user could do by hand."""
    labels = {"resolution": "mobilenet_v2 48 px", "width": "mobilenet_v2_0.6"}
    return {
        "kind": kind, "label": label or labels.get(kind, kind), "points": points, "error": error, "seeds": 1
    }  # fmt: skip


def raced_record() -> Record:
    """``record.json`` of a design that raced the family, and exported what NetAdapt made."""
    content = record()
    rows = [
        ("mobilenet_v3_small 128 px", "seed", 0.81, 0.902, seed_spec().resolution(128)),
        ("adapted", "adapted", 0.412, 0.884, final_spec()),
        ("mobilenet_v3_small 88 px", "resolution", 0.409, 0.871, seed_spec().resolution(88)),
        ("mobilenet_v3_small_0.62", "width", 0.415, 0.842, seed_spec().width(0.62)),
    ]
    return content | {
        "race": race(), "reference_ms": 0.585, "plan": {"taught": True},
        "seed_spec": seed_spec().resolution(128).to_dict(), "reference_spec": seed_spec().to_dict(),
        "results": [
            {"label": label, "kind": kind, "seed": 0, "latency": latency(ms), "accuracy_int8": accuracy,
             "accuracy_float": accuracy + 0.003, "params": net.cost().params, "madds": net.cost().madds}
            for label, kind, ms, accuracy, net in rows
        ],
        "verdict": {"kind": "adapted", "label": "adapted", "against": [
            against("resolution", 1.3, 0.62, "mobilenet_v3_small 88 px"),
            against("width", 4.2, 1.2, "mobilenet_v3_small_0.62"),
        ]},
        "final": content["final"] | {"label": "adapted", "kind": "adapted"},
    }  # fmt: skip


def write_budgets(folder: Path) -> Path:
    """A design for two budgets: a folder and a record of each, and one above them."""
    lower, higher = raced_record(), raced_record()
    lower["budget_ms"], higher["budget_ms"] = 0.25, BUDGET
    for row in (*lower["results"], lower["final"]):
        row["latency"] = latency(0.6 * row["latency"]["median_ms"])
        row["accuracy_int8"] -= 0.05
    lower["verdict"] = {"kind": "resolution", "label": "mobilenet_v3_small 88 px", "against": [
        against("width", -0.4, 0.9, "mobilenet_v3_small_0.62"),
    ]}  # fmt: skip
    lower["final"] |= {"label": "mobilenet_v3_small 88 px", "kind": "resolution"}
    records = {"0.25ms": lower, "0.42ms": higher}
    for name, content in records.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "record.json").write_text(json.dumps(content))
    whole = {key: value for key, value in higher.items() if key not in ("budget_ms", "verdict", "layers")}
    whole |= {
        "designs": list(records), "final": {"label": None}, "budget": "0.25ms,0.42ms",
        "results": [
            {**row, "label": f"{name}: {row['label']}"}
            for name, content in records.items() for row in content["results"] if row["kind"] != "seed"
        ],
    }  # fmt: skip
    (folder / "record.json").write_text(json.dumps(whole))
    return folder


# ---- a training


def recipe() -> Record:
    """Some fields of a recipe."""
    return {
        "name": "fast", "source": "for minutes on a CPU", "epochs": 4, "batch_size": 128,
        "optimizer": "sgd", "lr": 0.2, "nesterov": True, "clip_norm": None, "augment": "light",
    }  # fmt: skip


def train_record() -> Record:
    """``record.json`` of ``mobilefit train``."""
    whole, net = record(), seed_spec()
    cost = net.cost()
    row = {"label": net.name, "kind": "seed", "seed": 3, "accuracy_float": 0.8733, "params": cost.params,
           "madds": cost.madds}  # fmt: skip
    misclassified = whole["final"]["misclassified"]
    return {
        "verb": "train", "command": "mobilefit train clothing --lr 0.1 --seed 3 --out run",
        "config": {"data": "clothing", "weights": None, "lr": 0.1, "batch_size": None, "seed": 3},
        "seed": 3, "started": whole["started"], "finished": whole["finished"],
        "seconds": {"training": 615.0},
        "data": whole["data"] | {"counts": {"train": [400, 40, 500, 600, 480, 380]}},
        "recipe": recipe() | {"lr": 0.1, "augment": "mild"}, "named_recipe": recipe(),
        "training": {
            "steps": 160, "images_per_second": 411.6, "best": {"step": 120, "val_top1": 0.87},
            "weights": None, "teacher": None, "result": "best", "device": "cpu", "processes": 2,
            "resumed": [50],
        },
        "final_spec": net.to_dict(), "results": [row],
        "final": row | {
            "top5": 0.996, "loss": 0.41, "confusion": CONFUSION, "misclassified": misclassified,
            "hardest": [image | {"loss": 6.25 - i} for i, image in enumerate(misclassified[:6])],
        },
        "machine": whole["machine"],
    }  # fmt: skip


def train_rows() -> list[Record]:
    """``metrics.jsonl`` of a training whose best validation is at step 120."""
    rows = [row | {"data_wait": 0.05} for row in metrics(0.0)]
    rows[29] |= {"val_top1": 0.885}
    return rows


def write_training(folder: Path, content: Record | None = None) -> Path:
    """Everything that ``mobilefit train`` leaves for the report."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_text(json.dumps(train_record() if content is None else content))
    write_jsonl(folder / "metrics.jsonl", train_rows())
    return folder


def sweep() -> Record:
    """``lr_finder.json``: the loss falls from 1e-3 on, is lowest at 0.1, and diverges."""
    rates = [10 ** (-5 + i / 10) for i in range(55)]
    losses = [2.3 - 1.2 * math.exp(-((math.log10(rate) + 1) ** 2)) + 40 * rate**4 for rate in rates]
    return {
        "rates": rates, "losses": losses, "smoothed": losses, "suggestion": 10**-1.7,
        "tenth_of_minimum": 0.01,
    }  # fmt: skip


# ---- a search

TARGET = 0.44
STAGES = ((2, (8, 16, 24), 2), (2, (16, 24, 32), 2), (2, (24, 32, 40), 3), (1, (48, 56, 64), 2),
          (2, (72, 96, 120), 3))  # fmt: skip
"""Stride, widths and layers of a space's blocks, after V3-Small's."""
LIKED = {"op": 3, "kernel": 1, "se": 1, "skip": 1, "filters": 1, "layers": 0, "act": 1, "stem": 0, "tail": 0}
"""The option of each decision that the made-up controller comes to like."""


def decisions() -> list[Record]:
    """Every choice of the space, in the order of the tokens."""
    found: list[Record] = [{"name": "stem", "options": [0, 1]}]
    for index, (_, filters, layers) in enumerate(STAGES):
        choices: list[tuple[str, list[Any]]] = [
            ("op", ["conv", "depthwise", "mbconv3", "mbconv6"]), ("kernel", [3, 5]),
            ("se", ["none", "v3"]), ("skip", ["pool", "identity", "none"]),
            ("filters", list(filters)), ("layers", [layers - 1, layers, layers + 1]),
        ]  # fmt: skip
        if index:
            choices.append(("act", ["relu", "hard_swish"]))
        found += [{"name": f"blocks.{index}.{name}", "options": options} for name, options in choices]
    return [*found, {"name": "tail", "options": [0, 1]}]


def searched_spec(tokens: list[int]) -> NetSpec:
    """The network of these tokens; stem and tail stay V3-Small's."""
    taken = {d["name"]: d["options"][t] for d, t in zip(decisions(), tokens)}
    base, blocks = seed_spec(), list[Block]()
    width = base.stem.out
    for index, (stride, _, _) in enumerate(STAGES):
        form = {name: taken.get(f"blocks.{index}.{name}") for name in LIKED}
        for layer in range(form["layers"]):
            ratio = form["op"].removeprefix("mbconv")
            blocks.append(Block(
                op="conv" if form["op"] == "conv" else "inverted", kernel=form["kernel"],
                stride=1 if layer else stride, out=form["filters"], skip=form["skip"],
                expand=int(ratio) * width if ratio.isdigit() else None,
                se=None if form["se"] == "none" else "v3", act=form["act"] or "relu",
            ))  # fmt: skip
            width = form["filters"]
    made = replace(base, name="searched", blocks=tuple(blocks))
    return replace(made, name=f"searched_{made.id}")


def trials(number: int = 300) -> list[Record]:
    """``search/trials.jsonl``: a search whose later trials are better, two in a hundred failing."""
    draw, made = random.Random(7), decisions()
    rows: list[Record] = [{
        "event": "space", "space": {"name": "mobilenet_v3_small"}, "decisions": made,
        "strategy": "rnn", "evaluator": "supernet", "reward": "absolute", "target_ms": TARGET,
        "seed": 0,
    }]  # fmt: skip
    for i in range(number):
        tokens, liked = [], 0
        for decision in made:
            best = LIKED[decision["name"].rpartition(".")[2]]
            taken = best if draw.random() < 0.75 * i / number else draw.randrange(len(decision["options"]))
            tokens.append(taken)
            liked += taken == best
        share = liked / len(made)
        ms = TARGET * (1 + 1.2 * (0.75 - share) + 0.15 * draw.gauss(0, 1))
        accuracy: float | None = 0.45 + 0.3 * share + 0.25 * ms + 0.02 * draw.gauss(0, 1)
        error = None
        if draw.random() < 0.02:
            accuracy, error = None, draw.choice(["loss is not finite at step 12", "out of <memory>"])
        rows.append({
            "event": "trial", "number": i, "tokens": tokens, "spec_id": f"{i:012d}", "latency_ms": ms,
            "accuracy": accuracy,
            "reward": None if accuracy is None else accuracy - 0.1 * abs(ms / TARGET - 1),
            "repeat_of": None, "error": error, "seconds": 0.4,
        })  # fmt: skip
    return rows


def search(rows: list[Record]) -> Record:
    """``record["search"]`` of these trials."""
    good = sorted((r for r in rows[1:] if r["accuracy"] is not None), key=lambda r: -r["reward"])
    top = []
    for place, row in enumerate(good[:4], 1):
        net, full = searched_spec(row["tokens"]), row["accuracy"] + 0.14 - 0.01 * (place % 3)
        top.append({
            "label": f"search_{place}", "spec": net.to_dict(), "spec_id": net.id,
            "trial": row["number"], "proxy_accuracy": row["accuracy"],
            "rescored_accuracy": row["accuracy"] - 0.01 * place, "predicted_ms": row["latency_ms"],
            "measured_ms": row["latency_ms"] * (1.03 - 0.015 * (place % 3)), "full_accuracy": full,
            "reward_full": full - 0.1 * abs(row["latency_ms"] / TARGET - 1),
        })  # fmt: skip
    return {
        "space": "mobilenet_v3_small", "strategy": "rnn", "evaluator": "supernet",
        "reward": "absolute", "target_ms": TARGET, "trials": len(rows) - 1,
        "failed": len(rows) - 1 - len(good), "distinct": len(good) - 3,
        "seconds": {"latency": 21.3, "evaluation": 412.0, "strategy": 3.1, "records": 0.6},
        "best_reward": good[0]["reward"], "optimal_reward": None, "top": top, "winner": 1,
        "rank_correlation": 0.667,
        "reference": {"name": "mobilenet_v3_small", "spec": seed_spec().to_dict()},
    }  # fmt: skip


def searched_record(rows: list[Record]) -> Record:
    """``record.json`` of a design run whose seed network was searched for."""
    found, content = search(rows), record()
    winner = found["top"][1]
    family = {**content["results"][0], "label": "mobilenet_v3_small", "kind": "reference"}
    seeds = [{**row, "label": "seed"} for row in content["results"][:3]]
    for row in seeds:
        row |= {"accuracy_int8": row["accuracy_int8"] + 0.008, "latency": latency(0.46)}
    return content | {
        "search": found, "reference_spec": seed_spec().to_dict(), "seed_spec": winner["spec"],
        "final_spec": winner["spec"], "results": [*seeds, *content["results"][3:], family],
    }  # fmt: skip


def write_search(folder: Path, rows: list[Record] | None = None, content: Record | None = None) -> Path:
    """A design run with its search, in ``folder``."""
    rows = trials() if rows is None else rows
    write_run(folder, searched_record(rows) if content is None else content)
    write_jsonl(folder / "search" / "trials.jsonl", rows)
    return folder


# ---- detection and segmentation


def jpeg(seed: int) -> str:
    """A small smooth picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((60, 48), Image.Resampling.BICUBIC).save(file, "jpeg")
    return base64.b64encode(file.getvalue()).decode()


def pictures(**told: Any) -> Record:
    """``record["final"]["pictures"]``."""
    rows = [{"index": 7 * i, "name": f"street {i}.jpg", **told, "truth_jpeg": jpeg(i), "found_jpeg": jpeg(9 + i)}
            for i in range(4)]  # fmt: skip
    return {"worst": rows[:2], "others": rows[2:]}


def task_record(task: str, head: NetSpec, score: str, value: float, final: Record) -> Record:
    """A training's record, for another task."""
    whole, cost = train_record(), head.cost()
    row = {"label": head.name, "kind": "seed", "seed": 3, "accuracy_float": value, "params": cost.params,
           "madds": cost.madds}  # fmt: skip
    return whole | {
        "task": task, "final_spec": head.to_dict(), "results": [row],
        "final": row | {"task": task, score: value} | final,
        "training": whole["training"] | {"best": {"step": 120}},
    }  # fmt: skip


BOXES = ("cup", "fish", "hat & <i>cap</i>", "unseen")


def detect_record() -> Record:
    """``record.json`` of ``mobilefit train --task detect``."""
    rows = [("cup", 0.8, 0.5, 40, 35, 5, 1.0), ("fish", 0.3, 0.1, 10, 4, 6, 0.6), (BOXES[2], 0.9, 0.75, 100, 90, 2, 1.0)]
    final = {
        "map": 0.45, "map75": 0.4, "by_size": {"small": 0.1, "medium": 0.5, "large": None},
        "per_class": [
            {"class": name, "ap50": ap50, "ap": ap, "truths": truths, "found": found, "false": false}
            for name, ap50, ap, truths, found, false, _ in rows
        ] + [{"class": "unseen", "ap50": None, "ap": None, "truths": 0, "found": 0, "false": 3}],
        "curves": [[high] * 61 + [high / 2] * 20 + [0.0] * 20 for *_, high in rows] + [None],
        "counts": {"images": 30, "boxes": 150, "crowds": 2, "found": 129, "false": 16, "score": 0.5, "iou": 0.5},
        "pictures": pictures(found=3, missed=2, false=0),
    }  # fmt: skip
    made = task_record("detect", detector(seed_spec(), num_classes=4), "map50", 0.6667, final)
    made["data"] |= {
        "classes": list(BOXES), "counts": {"train": [200, 50, 700, 1]},
        "dropped": [{"why": "without width or height", "count": 2, "examples": ["a.xml #1"]}],
    }  # fmt: skip
    return made


PLACES = ("road", "car", "pole & <i>post</i>", "sky")


def segment_record() -> Record:
    """``record.json`` of ``mobilefit train --task segment``; sky is neither there nor taken for anything."""
    confusion = [[9000, 500, 500, 0], [100, 880, 20, 0], [60, 10, 30, 0], [0] * 4]
    per_class = [
        {"class": name, "iou": iou, "accuracy": right, "pixels": sum(row)}
        for name, iou, right, row in zip(PLACES, (0.8858, 0.5828, 0.0484, None), (0.9, 0.88, 0.3, None), confusion)
    ]
    final = {
        "pixel_accuracy": 0.8928, "class_accuracy": 0.6933, "per_class": per_class, "confusion": confusion,
        "counts": {"images": 30, "pixels": 11_100}, "colours": ["#804080", "#00008e", "#999999", "#4682b4"],
        "pictures": pictures(iou=0.5057),
    }  # fmt: skip
    net = segmenter(seed_spec(), num_classes=4).resolution(64, 128)
    made = task_record("segment", net, "miou", 0.5057, final)
    made["data"] |= {"classes": list(PLACES), "pixels": {"train": [600, 300, 100, 0, 77]}}
    made["data"].pop("counts")
    return made


def task_rows(key: str) -> list[Record]:
    """``metrics.jsonl`` whose validation is of another task."""
    return [{key if name == "val_top1" else name: value for name, value in row.items()} for row in train_rows()]


def write_task(folder: Path, content: Record) -> Path:
    """Everything that such a training leaves for the report."""
    write_training(folder, content)
    write_jsonl(folder / "metrics.jsonl", task_rows({"detect": "val_map50", "segment": "val_miou"}[content["task"]]))
    return folder
