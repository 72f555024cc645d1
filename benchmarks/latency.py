"""mobilefit against its peers: compile time, and latency of float32 and int8 files.

    python -m benchmarks.latency

The peers live in ``.venv-peers``, which the first run makes (about 6 GB, mostly torch).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mobilefit as mf
from benchmarks.common import ROOT, header
from benchmarks.peer import settled
from mobilefit.runs import write_atomic, write_json
from mobilefit.runtime import StopRule, Worker, available_cores

PEERS = ROOT / ".venv-peers"
REQUIREMENTS = Path(__file__).with_name("requirements-peers.txt")
PACKAGES = ("litert-torch", "litert-quantizer", "ai-edge-litert", "onnxruntime", "torch", "torchvision")
ROUND = StopRule(warmup_seconds=0.05, min_runs=10, min_seconds=0.3, max_seconds=0.6, spread=0.005)

OURS, OURS_INT8 = "mobilefit float32", "mobilefit int8"
PEER, PEER_INT8, ONNX = "litert-torch float32", "litert-torch int8, stock recipe", "ONNX Runtime float32"
TARGETS = (
    (OURS, PEER, 1.02),
    (OURS, ONNX, 1.02),
    (OURS_INT8, OURS, 0.6),
    (OURS_INT8, PEER_INT8, 0.45),
)
"""``(a, b, r)``: a's latency is to be at most r times b's."""
COMPILE_RATIO, COMPILE_SECONDS = 20.0, 0.5
PROTOCOL = (
    "one thread on one pinned core, batch 1; rounds in which every file is timed in turns, ONNX "
    "Runtime between them in its own process; medians over rounds of each round's median, ratios "
    "are the medians of each round's ratio; random weights; compile times alternate, on the same core"
)


class Peers:
    """A process in .venv-peers: ``peers("onnx", network=...)`` is one command of peer.py."""

    def __init__(self, core: int) -> None:
        self.process = subprocess.Popen(
            [PEERS / "bin" / "python", Path(__file__).with_name("peer.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self("pin", core=core)

    def __call__(self, command: str, **arguments: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps({"do": command, **arguments}), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"the peers' process ended at '{command}'; try benchmarks/peer.py alone")
        return json.loads(answer)

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def install_peers() -> None:
    """Make .venv-peers anew when it is missing or its requirements changed."""
    stamp, wanted = PEERS / ".installed", REQUIREMENTS.read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print("installing the peers in .venv-peers", file=sys.stderr)
    venv.create(PEERS, with_pip=True, clear=True)
    subprocess.run(
        [PEERS / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", REQUIREMENTS], check=True
    )
    stamp.write_text(wanted)


def compile_times(
    network: str, resolution: int, rounds: int, core: int, peers: Peers, converted: Path
) -> dict[str, Any]:
    """Seconds of each compiler, in turns; the first call of each only warms up."""
    net = mf.build(mf.spec(network).resolution(resolution)).eval()
    shape = (1, 3, resolution, resolution)
    ask = {"network": network, "resolution": resolution, "path": str(converted)}
    ours, theirs = [], []
    with pinned(core):
        for _ in range(rounds + 1):
            ours.append(_seconds(lambda: mf.compile(net, shape)))
            theirs.append(peers("litert_torch", **ask))
    del ours[0], theirs[0]
    found = {"mobilefit_s": statistics.median(ours), "litert_torch_s": statistics.median(theirs)}
    ratio = statistics.median(b / a for a, b in zip(ours, theirs))
    met = ratio >= COMPILE_RATIO and found["mobilefit_s"] <= COMPILE_SECONDS
    return {**found, "ratio": ratio, "met": met, "rounds": rounds}


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """This process on one core."""
    before = available_cores()
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def our_files(network: str, resolution: int) -> dict[str, bytes]:
    """Our float32 file, and what our quantizer makes of it."""
    torch.manual_seed(0)
    net = settled(mf.build(mf.spec(network).resolution(resolution)), resolution)
    blob = mf.compile(net, (1, 3, resolution, resolution))
    images = np.random.default_rng(0).normal(size=(4, resolution, resolution, 3))
    return {OURS: blob, OURS_INT8: mf.quantize(blob, [images.astype(np.float32)])}


def latencies(
    files: dict[str, bytes], onnx: Path, rounds: int, core: int, peers: Peers
) -> dict[str, Any]:
    """Milliseconds, ratios and delegate partitions."""
    medians: dict[str, list[float]] = {name: [] for name in (*files, ONNX)}
    with Worker() as worker:
        for _ in range(rounds):
            timed = worker.time_many(list(files.values()), core=core, rule=ROUND)
            for name, samples in zip(files, timed):
                medians[name].append(samples.median)
            samples = peers("time_onnx", path=str(onnx), seconds=ROUND.min_seconds)
            medians[ONNX].append(statistics.median(samples))
        inspections = {name: worker.inspect(blob) for name, blob in files.items()}
    return {
        "rounds": rounds,
        "latency_ms": {name: statistics.median(values) for name, values in medians.items()},
        "partitions": {name: found.partitions for name, found in inspections.items()},
        "outside": {name: sorted(set(found.outside)) for name, found in inspections.items()},
        "file_bytes": {name: len(blob) for name, blob in files.items()},
        "ratios": [
            {"of": a, "to": b, "ratio": ratio, "target": target, "met": ratio <= target}
            for a, b, target in TARGETS
            for ratio in [statistics.median(x / y for x, y in zip(medians[a], medians[b]))]
        ],
    }


def compare(network: str, resolution: int, rounds: int, compiles: int, core: int) -> dict[str, Any]:
    """Everything about one network."""
    at = {"network": network, "resolution": resolution}
    with tempfile.TemporaryDirectory() as folder:
        converted, stock, onnx = (Path(folder, f) for f in ("f32.tflite", "int8.tflite", "f32.onnx"))
        with Peers(core) as peers:
            versions = peers("versions", packages=PACKAGES)
            compiling = compile_times(network, resolution, compiles, core, peers, converted)
            peers("quantize", source=str(converted), path=str(stock), resolution=resolution)
            peers("onnx", **at, path=str(onnx))
        files = our_files(network, resolution)
        files |= {PEER: converted.read_bytes(), PEER_INT8: stock.read_bytes()}
        with Peers(core) as peers:  # a new one: the timing shares its process with no converter
            timing = latencies(files, onnx, rounds, core, peers)
    return {**at, "peers": versions, "compile": compiling, **timing}


def table(results: list[dict[str, Any]]) -> Iterator[str]:
    """The lines of a Markdown summary."""
    for result in results:
        compiling = result["compile"]
        yield f"## {result['network']} at {result['resolution']}"
        yield ""
        yield "| file | median ms | XNNPACK partitions | MB |"
        yield "|---|---|---|---|"
        for name, ms in result["latency_ms"].items():
            size = result["file_bytes"].get(name)
            yield f"| {name} | {ms:.3f} | {result['partitions'].get(name, '')} | " + (
                f"{size / 1e6:.1f} |" if size else "|"
            )
        yield ""
        yield "| ratio | found | target | met |"
        yield "|---|---|---|---|"
        for row in result["ratios"]:
            yield (f"| {row['of']} / {row['to']} | {row['ratio']:.3f} | at most {row['target']:g} | "
                   f"{_yes(row['met'])} |")  # fmt: skip
        yield (f"| compile time, litert-torch {compiling['litert_torch_s']:.2f} s / mobilefit "
               f"{compiling['mobilefit_s']:.3f} s | {compiling['ratio']:.0f} | at least "
               f"{COMPILE_RATIO:g}, ours under {COMPILE_SECONDS:g} s | {_yes(compiling['met'])} |")  # fmt: skip
        yield ""


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"


def main(arguments: list[str] | None = None) -> None:
    """Compare, print the table, and write it with the data."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", nargs="+", default=["mobilenet_v3_large", "mobilenet_v3_small"])
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9, help="of latency timing")
    parser.add_argument("--compiles", type=int, default=3, help="timed calls of each compiler")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks")
    options = parser.parse_args(arguments)
    install_peers()
    core = max(available_cores())
    results = [
        compare(name, options.resolution, options.rounds, options.compiles, core)
        for name in options.network
    ]
    top = header(PROTOCOL)
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "latency.json", {**top, "results": results})
    text = "\n".join(table(results))
    facts = f"{top['device']}, {top['machine']['date']}. {PROTOCOL}."
    write_atomic(options.out / "latency.md", f"# Against peers\n\n{facts}\n\n{text}")
    print(text)


if __name__ == "__main__":
    main()
