"""Parity of a run's files with the network that they were made of: written always, and a gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mobilefit.data import ClassificationData, Preset, batches
from mobilefit.errors import QualityGateError
from mobilefit.formats.parity import parity
from mobilefit.jobs.running import Runner
from mobilefit.nn import Network
from mobilefit.runs import write_json
from mobilefit.train.evaluate import logits_of

Floats = npt.NDArray[np.float32]
Answers = Callable[[bytes, Floats], Floats]
"""How images ``[n, 3, H, W]`` go through a file."""
FILE = "parity.json"
IMAGES = 200


def through_litert(blob: bytes, images: Floats) -> Floats:
    """Logits of a .tflite file."""
    return Runner(blob)(np.ascontiguousarray(images.transpose(0, 2, 3, 1)), threads=2)


def compare(
    network: Network, files: Mapping[str, tuple[bytes, Answers]], data: ClassificationData,
    preset: Preset, *, seed: int,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Each file's logits against the module's, on test images of every class; by format."""
    images = data.test.balanced(max(1, IMAGES // len(data.classes)), seed)
    expected = logits_of(network, images, preset)
    prepared = torch.cat([batch for batch, _ in batches(images, preset, 50, train=False)]).numpy()
    return {
        kind: parity(kind, expected, answers(blob, prepared)).to_dict()
        for kind, (blob, answers) in files.items()
    }


def keep(found: Mapping[str, Any], folder: Path) -> None:
    """Write ``parity.json``."""
    write_json(folder / FILE, found)


def gate(found: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """See that every file is within the tolerance of its format.

    Raises:
        QualityGateError: naming those that are not.
    """
    bad = [
        f"{kind}: top-1 agrees on {check['agreement']:.1%} of {check['images']} images, "
        f"{check['within']:.1%} of the logits within the tolerance"
        for kind, check in found.items() if not check["ok"]
    ]  # fmt: skip
    if bad:
        raise QualityGateError(
            "the files do not say what the network says: " + "; ".join(bad),
            f"everything is written; see {folder / FILE} for what is allowed",
        )
