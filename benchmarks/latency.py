"""mobilefit against its peers: compile time, and latency of float32 and int8 files.

    python -m benchmarks.latency
    python -m benchmarks.latency --network ssdlite320_mobilenet_v3_large --resolution 320
    python -m benchmarks.latency --network lraspp_mobilenet_v3_large --resolution 512

Networks have torchvision's names. Of its detector the peers get what goes into suppression, which no
converter takes, and our file is timed so too; beside it as it is exported, boxes suppressed inside. The peers live in ``.venv-peers``, which the first run makes (about 6 GB, mostly torch); their files
are kept in ``build/``. ``--prepare`` makes both and measures nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mobilefit as mf
from benchmarks import peers
from benchmarks.common import ROOT, header
from benchmarks.latency_table import table
from benchmarks.peer import settled
from benchmarks.peers import Peers
from mobilefit import int8
from mobilefit.device import lowerings
from mobilefit.jobs.ends import usual_outputs
from mobilefit.litert.outputs import with_outputs
from mobilefit.runs import write_atomic, write_json
from mobilefit.runtime import StopRule, Worker, available_cores

ROUND = StopRule(warmup_seconds=0.02, min_runs=10, min_seconds=0.12, max_seconds=0.25, spread=0.005)

NAMES = {"lraspp_mobilenet_v3_large": "lraspp_mobilenet_v3_large_torchvision"}
"""Ours, where they are not torchvision's."""
OURS, OURS_INT8 = "mobilefit float32", "mobilefit int8"
EDGES = "mobilefit int8, int8 in and out"
EXPORTED, EXPORTED_INT8 = "mobilefit float32, as exported", "mobilefit int8, as exported"
CONVERTED, STOCK = "litert-torch float32", "litert-torch int8, stock recipe"
TARGETS = (
    (OURS_INT8, OURS, 0.55),
    (OURS_INT8, STOCK, 0.4),
    (OURS_INT8, "ONNX Runtime int8", 0.65),
    (OURS_INT8, "OpenVINO int8", 0.65),
    (OURS, CONVERTED, 1.0),
    (OURS, "ONNX Runtime float32", 1.0),
    (OURS, "OpenVINO float32", 1.0),
)
"""``(a, b, r)``: a's latency is to be at most r times b's."""
TASK_TARGETS = (
    (OURS_INT8, OURS, 0.6),
    (OURS_INT8, STOCK, 0.6),
    (OURS_INT8, "ONNX Runtime int8", 0.6),
    (OURS, CONVERTED, 1.0),
    (OURS, "ONNX Runtime float32", 1.0),
)
"""The same of detectors and segmenters."""
COMPILE_RATIO, COMPILE_SECONDS = 20.0, 0.5
ACTIVATIONS = ("hard_swish", "swish", "relu")
ACCURACIES = ROOT / "results" / "int8" / "activations.json"
"""``{NETWORK: {ACTIVATION: {"float32": top-1, "int8": top-1}}}``, shares of 1; filled in where it is."""
PROTOCOL = (
    "one thread on one pinned core, batch 1; rounds, each in new processes, in which every LiteRT file "
    "is timed in turns, and after them ONNX Runtime's and OpenVINO's; medians over rounds of each "
    "round's median, ratios are the medians of each round's ratio; random weights; compile times "
    "alternate, on the same core"
)


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """This process on one core."""
    before = available_cores()
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def compile_times(network: str, resolution: int, rounds: int, core: int) -> dict[str, Any]:
    """Seconds of each compiler, in turns; the first call of each only warms up."""
    net = mf.build(spec_of(network, resolution)).eval()
    shape = (1, 3, resolution, resolution)
    ours, theirs = [], []
    with pinned(core), Peers(core) as converter, tempfile.TemporaryDirectory() as folder:
        ask = {"network": network, "resolution": resolution, "path": str(Path(folder, "f.tflite"))}
        for _ in range(rounds + 1):
            ours.append(_seconds(lambda: mf.compile(net, shape)))
            theirs.append(converter("litert_torch", **ask))
    del ours[0], theirs[0]
    found = {"mobilefit_s": statistics.median(ours), "litert_torch_s": statistics.median(theirs)}
    ratio = statistics.median(b / a for a, b in zip(ours, theirs))
    met = ratio >= COMPILE_RATIO and found["mobilefit_s"] <= COMPILE_SECONDS
    return {**found, "ratio": ratio, "met": met, "rounds": rounds}


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def spec_of(network: str, resolution: int) -> mf.NetSpec:
    """Our description of torchvision's network."""
    return mf.spec(NAMES.get(network, network)).resolution(resolution)


def our_files(spec: mf.NetSpec, resolution: int) -> dict[str, bytes]:
    """Our float32 file, and what our quantizer makes of it."""
    torch.manual_seed(0)
    net = settled(mf.build(spec), resolution)
    blob = mf.compile(net, (1, 3, resolution, resolution))
    images = np.random.default_rng(0).normal(size=(4, resolution, resolution, 3))
    simulation = int8.calibrated(blob, [images.astype(np.float32)])
    files = {OURS: blob, OURS_INT8: int8.written(simulation)}
    if spec.task == "classify":
        return {**files, EDGES: int8.written(simulation, edges="int8")}
    if spec.task == "detect":
        ends = usual_outputs(spec)
        files |= {EXPORTED: with_outputs(blob, spec, ends), EXPORTED_INT8: with_outputs(files[OURS_INT8], spec, ends)}
    return files


def lowering_files(spec: mf.NetSpec) -> dict[str, bytes]:
    """Every alternative of every layer that has some, each but the default in one choice."""
    return {
        f"{arithmetic}, {name}": blob
        for arithmetic in ("int8", "float")
        for name, blob in lowerings.alternatives(spec, arithmetic).items()
    }


def activation_files(spec: mf.NetSpec) -> dict[str, bytes]:
    """The network as the paper has it, and with other activations for h-swish (Table 5)."""
    files = {}
    for act in ACTIVATIONS:
        net = mf.build(spec.activations({"hard_swish": act})).eval()
        blob = mf.compile(net, (1, 3, spec.input_size, spec.input_size))
        files |= {f"{act} float32": blob, f"{act} int8": int8.with_random_ranges(blob)}
    return files


def latencies(files: dict[str, bytes], folder: Path, rounds: int, core: int) -> dict[str, list[float]]:
    """Milliseconds of each file in each round.

    Every round is a process of its own: where the memory of a network lies makes it 1 % faster or
    slower, for as long as the process lives.
    """
    medians: dict[str, list[float]] = {name: [] for name in (*files, *peers.TIMED)}
    for _ in range(rounds):
        with Worker() as worker, Peers(core) as process:
            for peer in peers.TIMED.values():
                process("load", path=str(folder / peer.file), settings=peer.settings)
            for name, samples in zip(files, worker.time_many(list(files.values()), core=core, rule=ROUND)):
                medians[name].append(samples.median)
            for name in peers.TIMED:
                medians[name].append(peers.time(process, folder, name, ROUND.min_seconds))
    return medians


def ratio(medians: dict[str, list[float]], a: str, b: str) -> float:
    """The median of each round's ratio."""
    return statistics.median(x / y for x, y in zip(medians[a], medians[b]))


def compare(network: str, resolution: int, rounds: int, compiles: int, core: int) -> dict[str, Any]:
    """Everything about one network."""
    folder = peers.files(network, resolution, core)
    spec = spec_of(network, resolution)
    files = our_files(spec, resolution)
    files |= {CONVERTED: (folder / peers.LITERT).read_bytes(),
              STOCK: (folder / peers.LITERT_INT8).read_bytes()}  # fmt: skip
    classifier = spec.task == "classify"
    chosen, acts = (lowering_files(spec), activation_files(spec)) if classifier else ({}, {})
    compiling = compile_times(network, resolution, compiles, core)
    medians = latencies(files | chosen | acts, folder, rounds, core)
    with Peers(core) as process:
        versions = process("versions", packages=peers.PACKAGES)
    with Worker() as worker:
        found = {name: worker.inspect(blob) for name, blob in (files | chosen | acts).items()}
    return {
        "network": network, "resolution": resolution, **header(PROTOCOL), "peers": versions,
        "compile": compiling, "rounds": rounds,
        "latency_ms": {name: statistics.median(medians[name]) for name in (*files, *peers.TIMED)},
        "partitions": {name: found[name].partitions for name in files},
        "outside": {name: sorted(set(found[name].outside)) for name in files},
        "file_bytes": {name: len(blob) for name, blob in files.items()},
        "ratios": [
            {"of": a, "to": b, "ratio": ratio(medians, a, b), "target": target,
             "met": ratio(medians, a, b) <= target}
            for a, b, target in (TARGETS if classifier else TASK_TARGETS)
        ],
        "lowerings": [
            {"name": name, "ms": statistics.median(medians[name]), "partitions": found[name].partitions,
             "of_default": ratio(medians, name, f"{name.partition(',')[0]}, default")}
            for name in chosen
        ],
        "activations": [
            {"activation": act, "float32_ms": statistics.median(medians[f"{act} float32"]),
             "int8_ms": statistics.median(medians[f"{act} int8"]),
             "int8_of_float32": ratio(medians, f"{act} int8", f"{act} float32"),
             "partitions": found[f"{act} int8"].partitions}
            for act in ACTIVATIONS if acts
        ],
    }  # fmt: skip


def merged(path: Path, new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of a file, those of the same network and resolution replaced."""
    old = json.loads(path.read_text())["results"] if path.exists() else []
    keys = {(r["network"], r["resolution"]) for r in new}
    return [r for r in old if (r["network"], r["resolution"]) not in keys] + new


def main(arguments: list[str] | None = None) -> None:
    """Compare, print the tables, and write them with the data."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", nargs="+", default=["mobilenet_v3_large", "mobilenet_v3_small"])
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9, help="of latency timing")
    parser.add_argument("--compiles", type=int, default=3, help="timed calls of each compiler")
    parser.add_argument("--prepare", action="store_true", help="only make what the peers need")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks")
    options = parser.parse_args(arguments)
    peers.install()
    core = max(available_cores())
    if options.prepare:
        for name in options.network:
            peers.files(name, options.resolution, core)
        return
    new = [
        compare(name, options.resolution, options.rounds, options.compiles, core)
        for name in options.network
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    results = merged(options.out / "latency.json", new)
    write_json(options.out / "latency.json", {"results": results})
    accuracies = json.loads(ACCURACIES.read_text()) if ACCURACIES.exists() else {}
    text = "\n".join(table(results, accuracies))
    write_atomic(options.out / "latency.md", text)
    print(text)


if __name__ == "__main__":
    main()
