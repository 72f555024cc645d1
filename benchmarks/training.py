"""Training beside timm's and torchvision's own scripts: images a second, waiting for data, memory.

    python -m benchmarks.training --data PHOTOS --timm DIR --torchvision DIR

PHOTOS holds ``train`` and ``val`` with one folder a class. The two DIRs are checkouts of the peers'
repositories, whose training scripts are in no package. Every run is kept as soon as it is done: after
an interruption the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.common import ROOT, header
from benchmarks.training_peers import OURS, Rule
from mobilefit.runs import append_jsonl, read_json, read_jsonl, write_atomic, write_json

Row = dict[str, Any]

VALIDATION_NAMES = ("val", "validation")
SUFFIXES = (".jpg", ".jpeg", ".png")
"""Of photos, as all three programs see them; timm has no others."""
NETWORKS = ["mobilenet_v3_small", "mobilenet_v3_large"]
RESOLUTIONS = [64, 224]
LOADER_RATIO = 1.5
"""Our loader alone is to be so many times as fast as the network alone."""

PROCESS = Path(__file__).with_name("training_peers.py")
LIMIT_SECONDS = 900
"""A script that runs for longer has hung."""
PAUSE_SECONDS = 0.1
"""Between two looks at a script's memory."""
LOADER, UNKEPT_LOADER = "loader alone", "loader alone, photos not kept"

PROTOCOL = (
    "each run is a process of its own, in turns, OMP_NUM_THREADS and the like as they are; a script is "
    "run as it is, by a stopwatch that torch's hook for all optimizers tells when a step is done; "
    "images/s: over all timed steps of a run (a median step would hide that every fourth one waits for "
    "four workers), median, least and most of the rounds; ratios are the medians of each round's ratio; "
    "waiting: the time in next() of torch's DataLoader by the time of the steps, ours by its own metrics; "
    "memory: the most proportional set size (pages that processes share counted once) of all processes, "
    "looked at before and after the timed steps, not during them"
)

KEPT = (
    "mobilefit decodes a photo once and keeps it, up to 2 GiB of them; 'photos not kept' decodes it for "
    "every batch, as the others do, and as mobilefit does with what is more than that."
)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A way to train."""

    program: str
    """mobilefit, timm or torchvision."""
    options: tuple[str, ...] = ()
    """Beside what every way is given."""
    kept: bool = True
    """Ours keeps decoded photos, 2 GiB at most; ``False``: none, as of a set too large for memory."""


def contenders(device: str) -> dict[str, Contender]:
    """What is compared on a device, by name; the first is what the others are compared with."""
    if device == "cpu":
        return {
            "mobilefit": Contender(program=OURS),
            "timm": Contender(program="timm"),
            "torchvision": Contender(program="torchvision"),
            "mobilefit, photos not kept": Contender(program=OURS, kept=False),
            "timm --channels-last": Contender(program="timm", options=("--channels-last",)),
        }
    mixed = ("--precision", "16-mixed")
    best = ("--amp", "--channels-last", "--pin-mem", "--workers", str(os.cpu_count()))
    return {
        "mobilefit, mixed precision": Contender(program=OURS, options=mixed),
        "timm, best settings": Contender(program="timm", options=best),
        "timm, best settings, compiled": Contender(program="timm", options=(*best, "--torchcompile")),
        "mobilefit, mixed precision, compiled": Contender(program=OURS, options=(*mixed, "--compile")),
        "mobilefit, mixed precision, photos not kept": Contender(program=OURS, options=mixed, kept=False),
    }


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all runs share."""

    data: Path
    """Holds ``train`` and ``val``."""
    scripts: dict[str, Path]
    """Each peer's training script."""
    batch: int
    device: str
    rule: Rule


def script_of(contender: Contender, network: str, resolution: int, setting: Setting) -> tuple[str, list[str]]:
    """The script and its arguments: what it has to be given, the same crop, and the contender's options.

    torchvision's crop is its default, an 8th to all of the image's area and a mirror; timm's too,
    but for its colours and its resampling.
    """
    side, batch, data, device = str(resolution), str(setting.batch), str(setting.data), setting.device
    common = ["--batch-size", batch, "--epochs", "1", "--model", network]
    match contender.program:
        case "mobilefit":
            given = ["train", data, *common, "--resolution", side, "--augment", "resized",
                     "--accelerator", device, "--out", "run"]  # fmt: skip
        case "timm":
            name = network.replace("mobilenet_v3", "mobilenetv3") + "_100"
            classes = str(sum(folder.is_dir() for folder in (setting.data / "train").iterdir()))
            given = ["--data-dir", data, *common[:-1], name, "--num-classes", classes, "--device", device,
                     "--input-size", "3", side, side, "--color-jitter", "0",
                     "--train-interpolation", "bilinear"]  # fmt: skip
        case _:
            given = ["--data-path", data, *common, "--device", device, "--train-crop-size", side,
                     "--val-crop-size", side, "--val-resize-size", side]  # fmt: skip
    script = OURS if contender.program == OURS else str(setting.scripts[contender.program])
    return script, [*given, *contender.options]


# ---- one run


def timed(contender: Contender, network: str, resolution: int, setting: Setting) -> Row:
    """A training's rate, waiting and memory."""
    script, arguments = script_of(contender, network, resolution, setting)
    command = {"do": "watch", "script": script, "arguments": arguments, "kept": contender.kept}
    with tempfile.TemporaryDirectory() as folder:
        found, peak = in_process(command, Path(folder), setting.rule)
        seconds = sum(found["step_s"])
        wait: float | None = found["wait_s"] / seconds
        if contender.program == OURS:  # whose thread torch's DataLoader knows nothing of
            metrics = read_jsonl(Path(folder, "run", "metrics.jsonl"))
            wait = our_wait(metrics, found["first"], found["last"])
    return {
        "images_per_s": setting.batch * len(found["step_s"]) / seconds, "data_wait": wait,
        "peak_mib": peak / 2**20, "median_step_ms": 1e3 * statistics.median(found["step_s"]),
        "steps": len(found["step_s"]), "after": found["first"], "threads": found["threads"],
        "versions": found["versions"],
    }  # fmt: skip


def our_wait(rows: list[Row], first: int, last: int) -> float | None:
    """Share of the time that waits for data, by the rows of metrics that have of these steps; ``None``: no row.

    The first row is left out: the network waits for the first batch of all.
    """
    inside = [
        ((row["step"] - before["step"]) / row["images_per_s"], row["data_wait"])
        for before, row in itertools.pairwise(rows)
        if row["step"] > first and before["step"] < last
    ]
    total = sum(taken for taken, _ in inside)
    return sum(taken * wait for taken, wait in inside) / total if total else None


def alone(kept: bool, networks: list[str], resolution: int, setting: Setting) -> Row:
    """Our loader's images a second, and with ``kept`` the networks' too, each without the other."""
    command = {
        "do": "alone", "data": str(setting.data), "networks": networks if kept else [], "kept": kept,
        "resolution": resolution, "batch": setting.batch, "device": setting.device,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        return in_process(command, Path(folder), setting.rule)[0]


def in_process(command: Row, folder: Path, rule: Rule) -> tuple[Row, int]:
    """What a command of :mod:`benchmarks.training_peers` found, and the most memory it had, in bytes.

    Raises:
        SystemExit: it failed or hung; the message ends with its last lines.
    """
    out, log = folder / "found.json", folder / "log.txt"
    order = json.dumps({**command, "rule": dataclasses.asdict(rule), "out": str(out)})
    with log.open("w") as output:
        process = psutil.Popen(
            [sys.executable, PROCESS, order], cwd=folder, stdout=output, stderr=subprocess.STDOUT
        )
        peak = _watched(process, folder / "quiet")
    if not out.exists():
        last = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        how = "was killed (no memory, or no result in time)" if process.returncode < 0 else "failed"
        raise SystemExit(f"{command.get('script', 'the loader')} {how}:\n{last}")
    return read_json(out), peak


def _watched(process: psutil.Popen, quiet: Path) -> int:
    """The most memory until the process ends; it is not looked at while steps are timed."""
    began, peak = time.monotonic(), 0
    try:
        while process.poll() is None and time.monotonic() - began < LIMIT_SECONDS:
            looking = time.monotonic()
            if not quiet.exists():
                peak = max(peak, memory(process))
            time.sleep(max(PAUSE_SECONDS, 4 * (time.monotonic() - looking)))
    finally:
        with contextlib.suppress(psutil.Error):
            for one in (*process.children(recursive=True), process):
                with contextlib.suppress(psutil.Error):
                    one.kill()
        process.wait()
    return peak


def memory(process: psutil.Process) -> int:
    """Bytes of a process and its children, each page once: PSS where the system tells it, else RSS."""
    total = 0
    with contextlib.suppress(psutil.Error):
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                found = one.memory_full_info()
                total += getattr(found, "pss", found.rss)
    return total


# ---- all runs


def jobs(networks: list[str], resolutions: list[int], rounds: int, device: str) -> Iterator[Row]:
    """What is run, in order: a round has everything once, the contenders in turns."""
    for number in range(rounds):
        for resolution in resolutions:
            for network in networks:
                for name in contenders(device):
                    yield {"round": number, "name": name, "network": network, "resolution": resolution}
            for name in (LOADER, UNKEPT_LOADER):
                yield {"round": number, "name": name, "network": None, "resolution": resolution}


def measured(todo: list[Row], networks: list[str], setting: Setting, partial: Path) -> list[Row]:
    """The rows of all jobs; those in the file are not run again, and each new one is added to it."""
    known = {_key(row): row for row in read_jsonl(partial) if "round" in row}
    for number, job in enumerate(todo, 1):
        if _key(job) in known:
            continue
        began = time.monotonic()
        name, network, resolution = job["name"], job["network"], job["resolution"]
        if network is None:
            found = alone(name == LOADER, networks, resolution, setting)
        else:
            found = timed(contenders(setting.device)[name], network, resolution, setting)
        row = {**job, **found, "seconds": round(time.monotonic() - began, 1)}
        append_jsonl(partial, row)
        known[_key(row)] = row
        rate = found["loader" if network is None else "images_per_s"]
        print(f"{number}/{len(todo)} {network or 'photos'} at {resolution}, {name}: {rate:.0f} images/s "
              f"({row['seconds']:.0f} s)", file=sys.stderr, flush=True)  # fmt: skip
    return [known[_key(job)] for job in todo]


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("round", "name", "network", "resolution"))


def summary(rows: list[Row], network: str, resolution: int) -> Row:
    """What the rounds say of one network at one resolution."""
    runs: dict[str, list[Row]] = {}
    for row in rows:
        if row["resolution"] == resolution and row["network"] in (network, None):
            runs.setdefault(row["name"], []).append(row)
    loaders, unkept = runs.pop(LOADER), runs.pop(UNKEPT_LOADER)
    first = next(iter(runs.values()))
    ratio = statistics.median(row["loader"] / row[network] for row in loaders)
    return {
        "network": network, "resolution": resolution,
        "contenders": [{"name": name, **_of_rounds(found, first)} for name, found in runs.items()],
        "loader": {
            "images_per_s": _median(loaders, "loader"), "unkept_images_per_s": _median(unkept, "loader"),
            "network_images_per_s": _median(loaders, network),
            "ratio": ratio, "target": LOADER_RATIO, "met": ratio >= LOADER_RATIO,
        },
    }  # fmt: skip


def _of_rounds(runs: list[Row], first: list[Row]) -> Row:
    rates = [row["images_per_s"] for row in runs]
    return {
        "images_per_s": statistics.median(rates), "least": min(rates), "most": max(rates),
        "first_by_this": statistics.median(a["images_per_s"] / b for a, b in zip(first, rates)),
        **{key: _median(runs, key) for key in ("data_wait", "peak_mib", "median_step_ms")},
    }  # fmt: skip


def _median(rows: list[Row], key: str) -> float | None:
    values = [row[key] for row in rows if row[key] is not None]
    return statistics.median(values) if values else None


# ---- the page


def table(results: list[Row], head: Row) -> Iterator[str]:
    """The lines of the page."""
    machine, shared = head["machine"], head["setting"]
    yield from ("# Training beside timm's and torchvision's scripts", "")
    yield (f"{machine['cpu']}, {machine['cores']} cores, torch {machine['packages']['torch']}, {machine['date']}. "
           f"Batch {shared['batch']} on {shared['device']}; {shared['photos']}. {head['protocol']}.")  # fmt: skip
    yield from ("", KEPT, "", *(f"- {name}: {found}" for name, found in head["peers"].items()))
    for result in results:
        first = result["contenders"][0]["name"]
        yield from ("", f"## {result['network']} at {result['resolution']}", "")
        yield f"| | images/s | {first} / this | waits for data | memory, MiB |"
        yield "|---|---|---|---|---|"
        yield from map(_contender_line, result["contenders"])
    yield from ("", "## Data loading alone", "")
    yield "| network | resolution | network alone, images/s | loader alone | loader, photos not kept | loader / network | met |"
    yield "|---|---|---|---|---|---|---|"
    for result in results:
        found = result["loader"]
        yield (
            f"| {result['network']} | {result['resolution']} | {found['network_images_per_s']:.0f} "
            f"| {found['images_per_s']:.0f} | {found['unkept_images_per_s']:.0f} | {found['ratio']:.2f} "
            f"| {'yes' if found['met'] else '**no**'}, at least {found['target']} |"
        )
    yield ""


def _contender_line(found: Row) -> str:
    wait = "" if found["data_wait"] is None else f"{found['data_wait']:.0%}"
    return (
        f"| {found['name']} | {found['images_per_s']:.0f} ({found['least']:.0f} to {found['most']:.0f}) "
        f"| {found['first_by_this']:.2f} | {wait} | {found['peak_mib']:.0f} |"
    )


# ---- what is given


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A repository with a training script."""

    repository: str
    script: str
    version: str
    """The file that holds it."""


PEERS = {
    "timm": Peer(repository="huggingface/pytorch-image-models", script="train.py", version="timm/version.py"),
    "torchvision": Peer(repository="pytorch/vision", script="references/classification/train.py",
                        version="version.txt"),
}  # fmt: skip


def problem_with(name: str, folder: Path | None) -> str | None:
    """What is wrong with a peer's checkout, and what to do about it."""
    peer = PEERS[name]
    if folder is not None and (folder / peer.script).is_file():
        return None
    version = importlib.metadata.version(name)
    what = f"--{name} is missing" if folder is None else f"{folder} has no {peer.script}"
    return (f"{what}: git clone --depth 1 --branch v{version} https://github.com/{peer.repository} DIR, "
            f"then --{name} DIR")  # fmt: skip


def describe(name: str, folder: Path) -> str:
    """A checkout's version and commit, and the package that is installed."""
    text = (folder / PEERS[name].version).read_text()
    found = text.replace("__version__ =", "").strip().strip("'\"")
    if (folder / ".git").exists():
        command = ["git", "-C", str(folder), "describe", "--tags", "--always"]
        with contextlib.suppress(OSError):
            found += f", commit {subprocess.run(command, capture_output=True, text=True).stdout.strip()}"
    return f"the script of {found}; {importlib.metadata.version(name)} is installed"


def link(data: Path, folder: Path, times: int) -> None:
    """``train`` and ``val`` as all three programs find them, each training photo ``times`` times."""
    validation = next(data / name for name in VALIDATION_NAMES if (data / name).is_dir())
    (folder / "val").symlink_to(validation.resolve())
    if times == 1:
        (folder / "train").symlink_to((data / "train").resolve())
        return
    for photo in photos_in(data / "train"):
        place = folder / "train" / photo.relative_to(data / "train")
        place.parent.mkdir(parents=True, exist_ok=True)
        for number in range(times):
            place.with_name(f"{number}_{photo.name}").symlink_to(photo.resolve())


def photos_in(folder: Path) -> list[Path]:
    """The photos of a folder of class folders."""
    return sorted(path for path in folder.glob("*/*") if path.suffix.lower() in SUFFIXES)


def most_steps(photos: int, batch: int) -> int:
    """The step up to which every program still prepares images.

    torchvision's 16 workers are two batches ahead each, so that the last 32 steps of a pass prepare
    none; of ours a tenth of the photos is held out.
    """
    workers = max(16, os.cpu_count() or 1)
    return min(photos // batch - 2 * workers, int(0.9 * photos) // batch - 4)


def problems(options: argparse.Namespace) -> Iterator[str]:
    """Everything that is wrong with what was given."""
    for option in ("rounds", "batch", "times", "warm_up", "steps", "seconds"):
        if not getattr(options, option) > 0:
            yield f"--{option.replace('_', '-')} is {getattr(options, option)}, must be above 0"
    for name in sorted({c.program for c in contenders(options.device).values()} - {OURS}):
        problem = problem_with(name, getattr(options, name))
        if problem:
            yield problem
    if options.device == "cuda" and not torch.cuda.is_available():
        yield "torch finds no GPU here: leave --device out"
    if not (options.data / "train").is_dir() or not any((options.data / n).is_dir() for n in VALIDATION_NAMES):
        yield f"{options.data} does not hold train/CLASS and val/CLASS; give --data such a folder of photos"
        return
    photos = photos_of(options)
    if options.batch < 1 or options.times < 1:
        return
    if not photos:
        yield f"{options.data / 'train'} holds no photos"
        return
    needed = options.warm_up + options.steps
    if most_steps(photos, options.batch) < needed:
        least = next(n for n in range(1, 10**6) if most_steps(n * photos, options.batch) >= needed)
        yield (f"{photos} photos are too few for {needed} steps of {options.batch} while workers still prepare "
               f"images; take each {options.times * least} times (--times), or a smaller --batch")  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--data", type=Path, required=True, help="photos: train/CLASS and val/CLASS")
    found.add_argument("--timm", type=Path, help="checkout of pytorch-image-models")
    found.add_argument("--torchvision", type=Path, help="checkout of pytorch/vision")
    found.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    found.add_argument("--network", nargs="+", choices=NETWORKS, default=NETWORKS)
    found.add_argument("--resolution", nargs="+", type=int, default=RESOLUTIONS)
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--batch", type=int, default=32)
    found.add_argument("--times", type=int, default=1, help="use each photo so often, for a larger set")
    found.add_argument("--warm-up", type=int, default=Rule.warm_up, help="steps before the timed ones, at least")
    found.add_argument("--steps", type=int, default=Rule.steps, help="timed steps, at least")
    found.add_argument("--seconds", type=float, default=Rule.seconds, help="timed seconds, at least, as far as the photos go")
    found.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks")
    return found


def photos_of(options: argparse.Namespace) -> int:
    """Training photos, as often as they are used."""
    return int(options.times) * len(photos_in(options.data / "train"))


def head_of(options: argparse.Namespace) -> Row:
    """Where, how and what is measured."""
    count = photos_of(options)
    often = f", each taken {options.times} times" if options.times > 1 else ""
    given = {name: getattr(options, name) for name in PEERS}
    return {
        **header(PROTOCOL),
        "setting": {
            "photos": f"{count} training photos of {options.data.resolve().name}{often}",
            "networks": options.network, "resolutions": options.resolution,
            "batch": options.batch, "device": options.device,
            "rule": dataclasses.asdict(rule_of(options)),
        },
        "peers": {name: describe(name, folder) for name, folder in given.items() if folder is not None},
    }  # fmt: skip


def rule_of(options: argparse.Namespace) -> Rule:
    """Which steps are timed."""
    return Rule(warm_up=options.warm_up, steps=options.steps, seconds=options.seconds,
                most=most_steps(photos_of(options), options.batch))  # fmt: skip


def begun(partial: Path, head: Row) -> Row:
    """The head of a measurement that was interrupted, or this one as the begin of a new one.

    Raises:
        SystemExit: the file holds runs of other settings, which are not to be mixed.
    """
    rows = read_jsonl(partial)
    if not rows:
        append_jsonl(partial, head)
        return head
    differing = [key for key in ("device", "setting", "peers") if rows[0].get(key) != head[key]]
    if differing:
        raise SystemExit(f"{partial} holds runs of another {differing[0]}; remove it, or choose another --out")
    return rows[0]


def main(arguments: list[str] | None = None) -> None:
    """Run everything in turns, print the page, and write it with the data."""
    options = parser().parse_args(arguments)
    found = list(problems(options))
    if found:
        parser().error("\n".join(found))
    options.out.mkdir(parents=True, exist_ok=True)
    name = "training" if options.device == "cpu" else f"training_{options.device}"
    partial = options.out / f"{name}.partial.jsonl"
    head = begun(partial, head_of(options))
    todo = list(jobs(options.network, options.resolution, options.rounds, options.device))
    scripts = {peer: (getattr(options, peer) / PEERS[peer].script).resolve() for peer in PEERS if getattr(options, peer)}
    with tempfile.TemporaryDirectory() as folder:
        link(options.data, Path(folder), options.times)
        setting = Setting(data=Path(folder), scripts=scripts, batch=options.batch, device=options.device,
                          rule=rule_of(options))  # fmt: skip
        rows = measured(todo, options.network, setting, partial)
    results = [summary(rows, network, side) for side in options.resolution for network in options.network]
    write_json(options.out / f"{name}.json", {**head, "results": results, "runs": rows})
    text = "\n".join(table(results, head))
    write_atomic(options.out / f"{name}.md", text)
    partial.unlink()
    print(text)


if __name__ == "__main__":
    main()
