"""What int8 costs: networks trained here, every way of choosing ranges, quantization-aware training.

    python -m benchmarks.int8 fashion-mnist --network mobilenet_v3_small --seeds 1 2 3 --epochs 2
    python -m benchmarks.int8 PHOTOS --network mobilenet_v3_large --seeds 1 2 3 --epochs 30
    python -m benchmarks.int8 fashion-mnist --activation swish --epochs 2 --qat-steps 0
    python -m benchmarks.int8 --summary

Each network is trained, quantized and evaluated on the test images once: what is there already, in
``runs/int8`` and ``results/int8``, is taken up, so an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np

import mobilefit as mf
from benchmarks.common import ROOT, header
from mobilefit import int8, litert
from mobilefit.data import ClassificationData, load
from mobilefit.int8.observers import Observer
from mobilefit.int8.quantizer import batches_of
from mobilefit.jobs.model import calibration, description, evaluate_file, input_shape
from mobilefit.jobs.quantize import QuantizeConfig, quantize
from mobilefit.jobs.train import TrainConfig, train
from mobilefit.nn import load_network
from mobilefit.runs import write_atomic, write_json

RUNS, RESULTS = ROOT / "runs" / "int8", ROOT / "results" / "int8"
PROTOCOL = (
    "networks trained from scratch by the recipe 'fast'; 200 training images calibrate; accuracy of the "
    ".tflite files on all test images; quantization-aware training goes on from the float weights with the "
    "recipe 'int8' (AdamW, cosine, half of the loss from the float network)"
)
H_SWISH = "hard_swish"


def name_of(options: argparse.Namespace, seed: int) -> str:
    """Of a trained network's folder and file."""
    network = options.network + (f"_{options.activation}" if options.activation != H_SWISH else "")
    return f"{Path(options.data).name}-{network}-{seed}"


def one(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Everything about one trained network."""
    name = name_of(options, seed)
    data = load(options.data, seed=seed)
    network = load_network(_trained(options, seed, RUNS / name))
    preset = data.preset(options.resolution)
    blob = litert.compile(
        network.eval(), input_shape(network.spec), metadata=description(network, data, preset)
    )
    write_atomic(RUNS / name / "model_float32.tflite", blob)
    exact = evaluate_file(blob, data.test, preset)
    ptq = list(_calibrations(blob, data, preset, exact, seed))
    qat = _qat(options, seed, RUNS / name) if options.qat_steps else None
    return {
        "data": data.name, "network": options.network, "activation": options.activation, "resolution": options.resolution, "seed": seed,
        "epochs": options.epochs, "qat_steps": options.qat_steps, "float32": exact.top1,
        "test_images": exact.count, "ptq": ptq, "qat": qat,
    }  # fmt: skip


def _trained(options: argparse.Namespace, seed: int, folder: Path) -> Path:
    if not (folder / "record.json").exists():
        spec = mf.spec(options.network).activations({H_SWISH: options.activation})
        model = folder.with_suffix(".json")
        write_atomic(model, spec.to_json())
        train(TrainConfig(
            data=options.data, model=str(model), resolution=options.resolution,
            epochs=options.epochs, seed=seed, out=folder, resume=True,
        ))  # fmt: skip
    return folder / "model.safetensors"


def _calibrations(
    blob: bytes, data: ClassificationData, preset: Any, exact: Any, seed: int
) -> Iterator[dict[str, Any]]:
    """Accuracy by each observer, and by the default one with bias correction."""
    images = list(calibration(data, preset, seed))
    for observer in get_args(Observer):
        for corrected in (False, True) if observer == "percentile" else (False,):
            simulation = int8.calibrated(blob, images, observer=observer)
            if corrected:
                int8.correct_biases(simulation, batches_of(simulation.graph, images))
            found = evaluate_file(int8.written(simulation), data.test, preset)
            yield {
                "observer": observer, "bias_correction": corrected, "top1": found.top1,
                "agreement": float(np.mean(found.predictions == exact.predictions)),
            }  # fmt: skip


def _qat(options: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    record_path = folder / "qat" / "record.json"
    if not record_path.exists():
        quantize(QuantizeConfig(
            file=folder / "model_float32.tflite", data=options.data, method="qat",
            observer=options.observer, steps=options.qat_steps, max_drop=100.0, seed=seed,
            out=folder / "qat",
        ))  # fmt: skip
    record = json.loads(record_path.read_text())
    final = record["final"]
    return {
        "top1": final["accuracy_int8"], "agreement": final["agreement"],
        "seconds": record["seconds"].get("training"), "fidelity": record["fidelity"],
    }  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The lines of a Markdown table: mean and spread over seeds."""
    yield "| images | network | seeds | float32 | PTQ, " + " | PTQ, ".join(get_args(Observer)) + " | QAT |"
    yield "|---" * (5 + len(get_args(Observer))) + "|"
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["data"], row["network"]].append(row)
    for (data, network), mine in groups.items():
        cells = [_spread([row["float32"] for row in mine])]
        for observer in get_args(Observer):
            cells.append(_change(mine, [_plain(row, observer) for row in mine]))
        cells.append(_change(mine, [row["qat"]["top1"] for row in mine]))
        yield f"| {data} | {network} | {len(mine)} | {' | '.join(cells)} |"


def _plain(row: dict[str, Any], observer: str) -> float:
    return next(p["top1"] for p in row["ptq"] if p["observer"] == observer and not p["bias_correction"])


def _spread(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.2f} ± {100 * spread:.2f}"


def _change(rows: list[dict[str, Any]], values: list[float]) -> str:
    """Points against the same network in float."""
    changes = [100 * (value - row["float32"]) for row, value in zip(rows, values)]
    spread = statistics.stdev(changes) if len(changes) > 1 else 0.0
    return f"{statistics.mean(changes):+.2f} ± {spread:.2f}"


def fidelities(rows: list[dict[str, Any]]) -> str:
    """The least of each share over all networks."""
    found = [row["qat"]["fidelity"] for row in rows if row["qat"]]
    return (
        f"Fake-quant forward pass against the file, the least over {len(found)} networks: top-1 equal on "
        f"{min(f['top1'] for f in found):.2%} of images, {min(f['equal'] for f in found):.2%} of logits equal, "
        f"{min(f['within_one_step'] for f in found):.2%} within one step."
    )


def activations(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean accuracy by network and activation on Fashion-MNIST, as ``benchmarks.latency`` reads it."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for network, act in sorted({(row["network"], row["activation"]) for row in rows}):
        mine = [r for r in rows if (r["network"], r["activation"], r["data"]) == (network, act, "fashion-mnist")]
        if mine:
            found[network][act] = {
                "float32": statistics.mean(row["float32"] for row in mine),
                "int8": statistics.mean(_plain(row, "percentile") for row in mine), "seeds": len(mine),
            }  # fmt: skip
    return found


def write_summary() -> None:
    """Read every row that there is, write and print the table."""
    rows = [json.loads(path.read_text()) for path in sorted((RESULTS / "rows").glob("*.json"))]
    write_json(RESULTS / "activations.json", activations(rows))
    rows = [row for row in rows if row["activation"] == H_SWISH]
    top = header(PROTOCOL)
    text = "\n".join([
        "# What int8 costs", "", f"{top['device']}, {top['machine']['date']}. {PROTOCOL[0].upper()}{PROTOCOL[1:]}.",
        "", "Float32 in per cent, the others in points against it.", "", *summary(rows), "", fidelities(rows), "",
    ])  # fmt: skip
    write_atomic(RESULTS / "accuracy.md", text)
    print(text)


def main(arguments: list[str] | None = None) -> None:
    """Train, quantize, evaluate; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", help="fashion-mnist, or a folder of class folders")
    parser.add_argument("--network", default="mobilenet_v3_small")
    parser.add_argument("--activation", default=H_SWISH, choices=(H_SWISH, "swish", "relu"))
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--qat-steps", type=int, default=200, help="0: none")
    parser.add_argument("--observer", default="percentile", help="of the ranges that QAT starts from")
    parser.add_argument("--summary", action="store_true", help="only write the table anew")
    options = parser.parse_args(arguments)
    for seed in options.seeds if options.data and not options.summary else ():
        name = f"{name_of(options, seed)}.json"
        if not (RESULTS / "rows" / name).exists():
            (RESULTS / "rows").mkdir(parents=True, exist_ok=True)
            write_json(RESULTS / "rows" / name, one(options, seed))
    write_summary()


if __name__ == "__main__":
    main()
