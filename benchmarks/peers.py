"""The peers: their environment, the process that runs them, and the files that they make."""

from __future__ import annotations

import hashlib
import json
import statistics
import subprocess
import sys
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT

ENVIRONMENT = ROOT / ".venv-peers"
REQUIREMENTS = Path(__file__).with_name("requirements-peers.txt")
PACKAGES = (
    "litert-torch", "litert-quantizer", "ai-edge-litert", "onnxruntime", "openvino", "nncf", "torch",
    "torchvision",
)  # fmt: skip


class Peers:
    """A process in .venv-peers: ``peers("onnx", network=...)`` is one command of peer.py."""

    def __init__(self, core: int) -> None:
        self.process = subprocess.Popen(
            [ENVIRONMENT / "bin" / "python", Path(__file__).with_name("peer.py")],
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


def install() -> None:
    """Make .venv-peers anew when it is missing or its requirements changed."""
    stamp, wanted = ENVIRONMENT / ".installed", REQUIREMENTS.read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print("installing the peers in .venv-peers", file=sys.stderr)
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    pip = [ENVIRONMENT / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", REQUIREMENTS]
    subprocess.run(pip, check=True)
    stamp.write_text(wanted)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A file that the peers' process times."""

    file: str
    settings: dict[str, str] = field(default_factory=dict)
    """OpenVINO's, see https://docs.openvino.ai on supported properties."""


LITERT, LITERT_INT8 = "litert.tflite", "litert_int8.tflite"
F32 = {"INFERENCE_PRECISION_HINT": "f32"}
TIMED: dict[str, Peer] = {
    "ONNX Runtime float32": Peer(file="f32.onnx"),
    "ONNX Runtime int8": Peer(file="int8.onnx"),
    "OpenVINO float32": Peer(file="f32.xml", settings=F32),
    "OpenVINO bfloat16": Peer(file="f32.xml", settings={"INFERENCE_PRECISION_HINT": "bf16"}),
    "OpenVINO int8": Peer(file="int8.xml", settings=F32),
}
"""What is timed in the peers' process; LiteRT's files are timed beside ours."""


def files(network: str, resolution: int, core: int) -> Path:
    """The folder with the peers' files of a network, made where it is missing (a minute)."""
    key = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:8]
    folder = ROOT / "build" / f"peers-{key}" / f"{network}_{resolution}"
    done = folder / ".made"
    if done.exists():
        return folder
    print(f"the peers convert {network} at {resolution}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    at: dict[str, Any] = {"network": network, "resolution": resolution}

    def paths(suffix: str) -> dict[str, str]:
        return {"path": str(folder / f"f32.{suffix}"), "int8": str(folder / f"int8.{suffix}")}

    with Peers(core) as peers:
        peers("litert_torch", **at, path=str(folder / LITERT))
        peers("quantize", source=str(folder / LITERT), path=str(folder / LITERT_INT8),
              resolution=resolution)  # fmt: skip
        peers("onnx", **at, **paths("onnx"))
        peers("openvino", **at, **paths("xml"))
    done.touch()
    return folder


def time(peers: Peers, folder: Path, name: str, seconds: float) -> float:
    """The median of a round's runs, in milliseconds, of a file of :data:`TIMED` that is loaded."""
    peer = TIMED[name]
    path = str(folder / peer.file)
    samples = peers("time", path=path, settings=peer.settings, seconds=seconds)
    return statistics.median(samples)
