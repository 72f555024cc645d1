"""The most memory that each verb takes on large data: 20,000 photos, 5,000 street scenes, a shard of 2 GB.

    python -m benchmarks.memory                       # hours; goes on where it stopped
    python -m benchmarks.memory --data shard --verbs train evaluate
    python -m benchmarks.memory --part 0.01           # a hundredth of the images, to try it

Makes the data once in ``--work`` (6 GB of disk): photos of 1,000x750 px in ten classes, pictures of 2,000x1,000 px with
their masks, and the photos again in one tar file. The pictures are blobs of colour, no two files the same; how they
look changes nothing in the memory. Each verb is one process of the command line with its default settings except for
how long it trains. The peak is the larger of the system's own figure for the largest process (``VmHWM``) and the most
that the process and its children held together at any look, five looks a second, each shared page counted once (PSS).
Linux alone has both.

``results/memory.md`` has the table, ``results/memory.jsonl`` its rows.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks.common import ROOT, header
from benchmarks.training import memory
from mobilefit.runs import append_jsonl, read_jsonl, write_atomic

PROTOCOL = (
    "The command line's own process and its children: the larger of the largest one's VmHWM and of the sum of their PSS, "
    "at five looks a second; CPU, training with 20 steps"
)
LIMIT_MIB = 2048
PHOTOS, SCENES = 20_000, 5_000
CLASSES = 10
PHOTO_SIZE, SCENE_SIZE = (1000, 750), (2000, 1000)
DIFFERENT = 40
"""Pictures that are drawn; a number in the JPEG's comment makes files of them that are not the same."""
LOOKS_APART = 0.2
"""Seconds."""
CUT = "--steps 20 --resolution 96"

Command = tuple[str, ...]


# ---- the data


def jpegs(size: tuple[int, int], draw: np.random.Generator) -> list[bytes]:
    """Pictures of blobs with some noise, about as large on the disk as photos are."""
    width, height = size
    files = []
    for _ in range(DIFFERENT):
        blobs = Image.fromarray(draw.integers(0, 256, (9, 12, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
        noise = draw.normal(0, 6, (height, width, 1))
        buffer = io.BytesIO()
        Image.fromarray(np.clip(np.asarray(blobs) + noise, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=80)
        files.append(buffer.getvalue())
    return files


def numbered(jpeg: bytes, number: int) -> bytes:
    """The same picture with a number in a comment (segment 0xFFFE, ITU-T T.81 B.2.4.5)."""
    return jpeg[:2] + b"\xff\xfe\x00\x0a" + f"{number:08d}".encode() + jpeg[2:]


def label_of(number: int) -> int:
    """Every class in every part, of which one has each tenth photo."""
    return (number + number // 10) % CLASSES


def make_photos(folder: Path, part: float) -> None:
    """``train/CLASS/NUMBER.jpg``, and a tenth as many in ``val``."""
    pictures = jpegs(PHOTO_SIZE, np.random.default_rng(0))
    for number in range(round(PHOTOS * part)):
        place = folder / ("val" if number % 10 == 0 else "train") / f"class_{label_of(number)}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:08d}.jpg").write_bytes(numbered(pictures[number % DIFFERENT], number))


def make_scenes(folder: Path, part: float) -> None:
    """``{train,val}/{images,labels}``: masks of five classes."""
    draw = np.random.default_rng(1)
    pictures = jpegs(SCENE_SIZE, draw)
    masks = []
    for _ in range(DIFFERENT):
        labels = Image.fromarray(draw.integers(0, 5, (10, 20), np.uint8))
        buffer = io.BytesIO()
        labels.resize(SCENE_SIZE, Image.Resampling.NEAREST).save(buffer, "PNG")
        masks.append(buffer.getvalue())
    for number in range(round(SCENES * part)):
        place = folder / ("val" if number % 10 == 0 else "train")
        for kind in ("images", "labels"):
            (place / kind).mkdir(parents=True, exist_ok=True)
        (place / "images" / f"{number:08d}.jpg").write_bytes(numbered(pictures[number % DIFFERENT], number))
        (place / "labels" / f"{number:08d}.png").write_bytes(masks[number % DIFFERENT])


def make_shard(folder: Path, part: float) -> None:
    """One tar file of as many photos with their labels."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = jpegs(PHOTO_SIZE, np.random.default_rng(0))
    with tarfile.open(folder / "train-0000.tar", "w") as archive:
        for number in range(round(PHOTOS * part)):
            content = numbered(pictures[number % DIFFERENT], number)
            for name, data in ((f"{number:08d}.jpg", content), (f"{number:08d}.cls", b"%d" % label_of(number))):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    (folder / "classes.txt").write_text("\n".join(f"class_{i}" for i in range(CLASSES)))


MAKERS: dict[str, Callable[[Path, float], None]] = {"photos": make_photos, "scenes": make_scenes, "shard": make_shard}


def made(data: str, work: Path, part: float) -> Path:
    """The folder of a data set, made if it is not there."""
    folder = work / data
    if not folder.exists():
        print(f"making {folder}", flush=True)
        partial = work / f".{data}-{os.getpid()}"
        MAKERS[data](partial, part)
        partial.rename(folder)
    return folder


# ---- the verbs


def commands(data: str, folder: Path, work: Path) -> dict[str, Command]:
    """The command lines of the verbs on a data set, in an order in which each finds what it needs."""
    run = work / f"run-{data}"
    task = ("--task", "segment") if data == "scenes" else ()
    network = "lraspp_mobilenet_v3_small" if data == "scenes" else "mobilenet_v3_small"
    weights, file = str(run / "model.safetensors"), str(run / "export" / "model_int8.tflite")
    at = str(folder)
    lines: dict[str, Command] = {
        "doctor": ("doctor", at, *task, "--out", str(work)),
        "train": ("train", at, *task, "--model", network, *CUT.split(), "--out", str(run)),
        "evaluate": ("evaluate", at, weights),
        "export": ("export", weights, at, "--out", str(run / "export")),
        "quantize": ("quantize", str(run / "export" / "model_float32.tflite"), at, "--out", str(run / "quantize")),
        "evaluate a file": ("evaluate", at, file),
        "predict": ("predict", file, str(folder / "val" / "images" if task else folder / "val"), "--json"),
        "adapt": ("adapt", weights, at, "--latency", "95%", "--tune-steps", "1", "--out", str(run / "adapt")),
        "design": (
            "design", at, *task, "--latency", "70%", "--resolution", "96", "--seed-network", network, "--weights", "none",
            "--minutes", "4", "--epochs", "0.1", "--max-drop", "100", "--out", str(run / "design"),
        ),
    }  # fmt: skip
    if data == "shard":
        del lines["predict"]  # it looks at pictures and folders
    return lines


def peak(command: Command, log: Path) -> dict[str, Any]:
    """Run a verb: its status, seconds, and the most MiB that it held."""
    began, together, alone = time.monotonic(), 0, 0
    with log.open("wb") as output:
        process = psutil.Popen(
            [sys.executable, "-m", "mobilefit", *command], stdout=output, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            together = max(together, memory(process))
            alone = max(alone, high_water(process))
            time.sleep(LOOKS_APART)
    return {
        "status": process.returncode, "seconds": round(time.monotonic() - began, 1),
        "mib": max(together, alone) >> 20, "largest_process_mib": alone >> 20,
    }  # fmt: skip


def high_water(process: psutil.Process) -> int:
    """The most bytes that the process, or any of its children that live, ever held.

    ``ru_maxrss`` would count what the process that started it held.
    """
    most = 0
    with contextlib.suppress(psutil.Error):
        for pid in (process.pid, *(child.pid for child in process.children(recursive=True))):
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                most = max(most, *(int(kib) << 10 for kib in re.findall(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)), 0)
    return most


# ---- the page


def table(rows: Sequence[dict[str, Any]], head: dict[str, Any]) -> str:
    """A row for each verb, a column for each data set."""
    machine = head["machine"]
    lines = ["# The most memory that a verb takes on large data", "", f"{head['protocol']}.", "",
             f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}. MiB; wanted: under {LIMIT_MIB}.", "",
             f"| verb | {' | '.join(MAKERS)} |", "|---|" + "---|" * len(MAKERS)]  # fmt: skip
    by_key = {(row["data"], row["verb"]): row for row in rows}
    for verb in dict.fromkeys(row["verb"] for row in rows):
        lines.append(f"| {verb} | {' | '.join(_cell(by_key.get((data, verb))) for data in MAKERS)} |")
    return "\n".join([*lines, ""])


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    failed = f" (status {row['status']})" if row["status"] else ""
    return f"{row['mib']:,}{failed}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Every row that is not there yet; the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=MAKERS, default=list(MAKERS))
    parser.add_argument("--verbs", nargs="+", help="default: all")
    parser.add_argument("--part", type=float, default=1.0, help="of the images")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "memory-benchmark")
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    options = parser.parse_args(arguments)
    for folder in (options.work, options.out):
        folder.mkdir(parents=True, exist_ok=True)
    log = options.out / "memory.jsonl"
    for data, verb, command in jobs(options):
        if any((row["data"], row["verb"]) == (data, verb) for row in read_jsonl(log)):
            continue
        row = peak(command, options.work / f"{data}-{verb.replace(' ', '-')}.log")
        append_jsonl(log, {"data": data, "verb": verb, **row})
        write_atomic(options.out / "memory.md", table(read_jsonl(log), header(PROTOCOL)))
        print(f"{verb} on {data}: {row['mib']:,} MiB, {row['seconds']:.0f} s, status {row['status']}", flush=True)


def jobs(options: argparse.Namespace) -> Iterator[tuple[str, str, Command]]:
    """Data set, verb and command line of all that is asked for."""
    for data in options.data:
        folder = made(data, options.work, options.part)
        for verb, command in commands(data, folder, options.work).items():
            if options.verbs is None or verb in options.verbs:
                yield data, verb, command


if __name__ == "__main__":
    main()
