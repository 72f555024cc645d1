"""Is everything there, does it work, and can this machine measure?"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mobilefit import arch, device, litert
from mobilefit.data import load
from mobilefit.device import adb
from mobilefit.errors import MobilefitError, QualityGateError
from mobilefit.jobs.model import input_shape, int8_for_timing, network_for
from mobilefit.jobs.options import option
from mobilefit.runs import machine

DRIFT = 0.05
"""A spread of repeated medians above this makes budgets of a few per cent meaningless."""
SPACE_GB = 2


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Options of ``mobilefit doctor``."""

    data: str | None = option(None, help="also look at these images")
    out: Path = option(Path("."), help="where runs would be written: is there space?")


def doctor(config: DoctorConfig) -> dict[str, Any]:
    """Check versions, a network through the whole chain, the clock's steadiness, space and images.

    Raises:
        QualityGateError: something is wrong; what and what to do is printed.
    """
    facts = machine()
    print(f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {facts['system']}")
    print(", ".join(f"{name} {version}" for name, version in facts["packages"].items()))
    print(f"training on: {'cuda' if torch.cuda.is_available() else 'cpu'}")
    checks: dict[str, Callable[[], str]] = {
        "compile and run": _chain, "latency": _steadiness, "space": lambda: _space(config.out),
        "phones": _phones,
    }  # fmt: skip
    if config.data is not None:
        source = config.data
        checks["images"] = lambda: _images(source)
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


def _images(source: str) -> str:
    data = load(source)
    for file in data.skipped:
        print(f"     skipped {file.path}: {file.why}")
    sizes = ", ".join(f"{len(getattr(data, part))} {part}" for part in ("train", "holdout", "test"))
    counts = np.bincount(data.train.labels, minlength=len(data.classes))
    return (f"{len(data.classes)} classes; {sizes}; {counts.min()} to {counts.max()} a class; "
            f"short side {data.short_side} px; {len(data.skipped)} bad files")  # fmt: skip
