"""Is everything there, does it work, can this machine measure, and are these images usable?"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mobilefit import arch, cores, device, litert
from mobilefit.data import DATA_SETS, load
from mobilefit.data.inspect import IMBALANCE, SEED, TINY_CLASS, Group, Inspection, inspect_folder
from mobilefit.data.inspect_scenes import SceneInspection, inspect_scenes
from mobilefit.data.shards import is_shards
from mobilefit.device import adb
from mobilefit.errors import InputError, MobilefitError, QualityGateError
from mobilefit.jobs.kinds import KINDS, Source
from mobilefit.jobs.lab import check_positive
from mobilefit.jobs.model import input_shape, int8_for_timing, network_for
from mobilefit.jobs.options import option
from mobilefit.progress import Voice
from mobilefit.runs import machine, write_json

DRIFT = 0.05
"""A spread of repeated medians above this makes budgets of a few per cent meaningless."""
SPACE_GB = 2
REPORT = "doctor.json"
SHOWN = 10
"""Findings of each kind that are printed; all are in ``REPORT``."""
SHOWN_FILES = 4
"""Files printed that show one picture."""


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Options of ``mobilefit doctor``."""

    data: str | None = option(None, help="images to look through too", argument=True)
    task: Literal["classify", "detect", "segment"] = option("classify", help="what the images are for: detect: VOC, COCO or YOLO; segment: images and masks")
    resolution: int = option(96, help="images with a side under this many pixels are told")
    ignore_label: tuple[int, ...] = option((), help="segment: this value in the masks is no class; may be repeated")
    out: Path = option(Path("."), help="where runs would be written: is there space? With DATA, doctor.json is")
    quiet: bool = option(False, help="show no progress")


def doctor(config: DoctorConfig) -> dict[str, Any]:
    """Check versions, a network through the whole chain, the clock's steadiness, space and images.

    Returns:
        what machine this is, and under ``images`` what was found in a folder of images, which is also
        in ``doctor.json``.

    Raises:
        QualityGateError: something is wrong; what and what to do is printed.
    """
    check_positive(resolution=config.resolution)
    if config.ignore_label and config.task != "segment":
        raise InputError("--ignore-label is for masks", "leave it out, or say --task segment")
    facts = machine()
    print(f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {facts['system']}")
    print(", ".join(f"{name} {version}" for name, version in facts["packages"].items()))
    print(f"training on: {'cuda' if torch.cuda.is_available() else 'cpu'}")
    usage = cores.recent_usage()
    if usage is not None and usage.message is not None:
        print(usage.message)
    checks: dict[str, Callable[[], str]] = {
        "compile and run": _chain, "latency": _steadiness, "space": lambda: _space(config.out),
        "phones": _phones,
    }  # fmt: skip
    if config.data is not None:
        source = config.data
        checks["images"] = lambda: _images(source, config, facts)
    problems = []
    for name, check in checks.items():
        try:
            print(f"ok   {name}: {check()}")
        except MobilefitError as error:
            problems.append(name)
            print(f"FAIL {name}: {error}")
    if problems:
        raise QualityGateError("not ready: " + ", ".join(problems), "see the lines marked FAIL")
    return facts


def _chain() -> str:
    spec = arch.spec("mobilenet_v3_small").width(0.35).resolution(64)
    network = network_for(spec, None).eval()
    blob = litert.compile(network, input_shape(spec))
    image = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    ours = device.shared_worker().run(blob, image)
    with torch.no_grad():
        theirs = network(torch.from_numpy(image).permute(0, 3, 1, 2)).numpy()
    gap = float(np.abs(ours - theirs).max())
    if not gap < 1e-3:
        raise QualityGateError(f"LiteRT and torch differ by {gap:.2g}", "reinstall the pinned versions")
    inspection = device.shared_worker().inspect(int8_for_timing(spec))
    if inspection.partitions != 1:
        raise QualityGateError(f"int8 runs in {inspection.partitions} delegate partitions, not in one")
    return f"LiteRT and torch agree to {gap:.1g}, int8 runs in one delegate partition"


def _steadiness() -> str:
    blob = int8_for_timing(arch.spec("mobilenet_v3_small").resolution(96))
    medians = [device.measure(blob).median_ms for _ in range(5)]
    middle = statistics.median(medians)
    drift = (max(medians) - min(medians)) / middle
    if drift > DRIFT:
        raise QualityGateError(
            f"five medians of one network differ by {drift:.1%} ({min(medians):.3f} to "
            f"{max(medians):.3f} ms)",
            "close other programs, and fix the processor's frequency if you can",
        )
    return f"V3-Small at 96 px takes {middle:.3f} ms, five medians within {drift:.1%}"


def _space(folder: Path) -> str:
    free = shutil.disk_usage(folder if folder.exists() else Path(".")).free / 1e9
    if free < SPACE_GB:
        raise QualityGateError(f"{free:.1f} GB free at {folder}", f"a run may take {SPACE_GB} GB")
    return f"{free:.0f} GB free"


def _phones() -> str:
    """What adb sees; that there is none is no fault."""
    if shutil.which("adb") is None:
        return "no adb here; --device android needs it"
    try:
        return ", ".join(map(str, adb.seen())) or "none plugged in"
    except MobilefitError as error:
        return f"none seen: {error}"


def _images(source: str, config: DoctorConfig, facts: dict[str, Any]) -> str:
    """Look through a folder; of another data set, which loading has looked at, say how large it is."""
    if config.task != "classify":
        return _scenes(source, config, facts)
    voice = Voice(quiet=config.quiet)
    if source in DATA_SETS or is_shards(source) or not Path(source).is_dir():
        return _loaded(source, voice)
    label = voice.label("looking at images")
    found = inspect_folder(Path(source), resolution=config.resolution, progress=label)
    facts["images"] = found.to_dict()
    _write(config.out, facts)
    for line in _findings(found):
        print(f"     {line}")
    _check_falsified(found, config)
    return _summary(found)


def _check_falsified(found: Inspection | SceneInspection, config: DoctorConfig) -> None:
    if found.falsified:
        raise QualityGateError("; ".join(found.falsified), f"all files are in {config.out / REPORT}")


def _scenes(source: str, config: DoctorConfig, facts: dict[str, Any]) -> str:
    """Look through a data set of boxes or masks."""
    voice = Voice(quiet=config.quiet)
    ignored, reading = config.ignore_label, voice.label("reading images")
    data = KINDS[config.task].load(Source(name=source, ignore=ignored, progress=reading))
    label = voice.label("looking at images")
    found = inspect_scenes(data, Path(source), resolution=config.resolution, progress=label)
    facts["images"] = found.to_dict()
    _write(config.out, facts)
    for line in (*data.notes, *_scene_findings(found)):
        print(f"     {line}")
    _check_falsified(found, config)
    what = "boxes" if config.task == "detect" else "pixels"
    sizes = ", ".join(f"{count} {part}" for part, count in found.sizes.items())
    return (f"{len(data.classes)} classes; {sizes}; {_extremes(found.counts['train'], what)}; "
            f"{len(found.broken)} bad files; no picture of the test in training")  # fmt: skip


def _scene_findings(found: SceneInspection) -> Iterator[str]:
    yield from _listed("pictures of the test in training too", map(_pictures, found.leaks))
    yield from _listed("files left out", [f"{file.path}: {file.why}" for file in found.broken])
    yield from (f"boxes: {what}" for what in found.boxes)
    yield from _of_parts(found)


def _loaded(source: str, voice: Voice) -> str:
    data = load(source, progress=voice.label("reading images"))
    sizes = ", ".join(f"{len(getattr(data, part))} {part}" for part in ("train", "holdout", "test"))
    counts = np.bincount(data.train.labels, minlength=len(data.classes))
    return (f"{len(data.classes)} classes; {sizes}; {counts.min()} to {counts.max()} a class; "
            f"short side {data.short_side} px; {len(data.skipped)} bad files")  # fmt: skip


def _write(folder: Path, facts: dict[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from error
    write_json(folder / REPORT, facts)


def _summary(found: Inspection) -> str:
    classes = found.counts["train"]
    sizes = ", ".join(f"{count} {part}" for part, count in found.sizes.items())
    return (f"{len(classes)} classes; {sizes}; {min(classes.values())} to {max(classes.values())} a class; "
            f"short side {found.short_side} px; {sum(map(len, found.broken.values()))} bad files; "
            f"no picture in two parts or classes")  # fmt: skip


def _findings(found: Inspection) -> Iterator[str]:
    """What was found, a line each: what falsifies a result first."""
    yield from found.notes
    apart = f" (test: as seed {SEED} sets it apart)" if found.divided else ""
    yield from _listed(f"pictures in more than one part{apart}", map(_pictures, found.leaks))
    yield from _listed("pictures in more than one class", map(_pictures, found.conflicts))
    for part, files in found.broken.items():
        yield from _listed(f"{part}: broken files", [f"{file.path}: {file.why}" for file in files])
    yield from _of_parts(found)
    for part, counts in found.tiny.items():
        tiny = [f"{name}: {count}" for name, count in counts.items()]
        yield from _listed(f"{part}: classes with fewer than {TINY_CLASS} images", tiny)
    for part, ratio in found.imbalance.items():
        if ratio >= IMBALANCE:
            yield f"{part}: {_extremes(found.counts[part])}, {ratio:.1f} times as many"


def _of_parts(found: Inspection | SceneInspection) -> Iterator[str]:
    """What is told of a part whatever its images are for."""
    for part, groups in found.duplicates.items():
        yield from _listed(f"{part}: pictures that it has more than once", map(_pictures, groups))
    for part, names in found.lacking.items():
        yield from _listed(f"{part}: classes that it lacks", names)
    for part, names in found.small.items():
        yield from _listed(f"{part}: images with a side under {found.resolution} px", names)


def _listed(what: str, items: Iterable[str]) -> Iterator[str]:
    lines = list(items)
    if lines:
        yield f"{what}: {len(lines)}"
        yield from (f"  {line}" for line in lines[:SHOWN])
        if len(lines) > SHOWN:
            yield f"  and {len(lines) - SHOWN} more"


def _pictures(group: Group) -> str:
    more = len(group.files) - SHOWN_FILES
    return " = ".join(group.files[:SHOWN_FILES]) + f" and {more} more" * (more > 0) + f" ({group.same})"


def _extremes(counts: dict[str, int], what: str = "images") -> str:
    least, most = min(filter(None, counts.values())), max(counts.values())
    names = {count: name for name, count in reversed(counts.items())}
    return f"{names[least]} has {least} {what}, {names[most]} {most}"
