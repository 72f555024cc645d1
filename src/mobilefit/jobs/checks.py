"""Parity of a run's files with the network that they were made of: written always, and a gate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mobilefit.arch import Task
from mobilefit.data import Preset
from mobilefit.errors import QualityGateError
from mobilefit.formats.parity import (
    BoxParity,
    Detected,
    LabelParity,
    Parity,
    box_parity,
    label_parity,
    parity,
)
from mobilefit.jobs.ends import Ends, labels, through, usual_outputs
from mobilefit.jobs.model import prepared, some
from mobilefit.jobs.running import File
from mobilefit.litert.metadata import DETECTIONS
from mobilefit.litert.outputs import Outputs, split
from mobilefit.nn import Network
from mobilefit.nn.boxes import Detections, select
from mobilefit.runs import write_json
from mobilefit.train.evaluate import evaluating

Floats = npt.NDArray[np.float32]
Answers = Callable[[bytes, Floats], "list[Floats] | Floats"]
"""How images ``[n, 3, H, W]`` go through a file: every output, maps channels first."""
FILE = "parity.json"
IMAGES = 200
_PIXELS = 200 * 96 * 96
"""Of the images that a detector or segmenter is compared on, all together; but eight at least."""


def through_litert(blob: bytes, images: Floats) -> list[Floats]:
    """Every output of a .tflite file."""
    return through(File(blob), images)


def compare(
    network: Network, files: Mapping[str, tuple[bytes, Answers]], data: Any, preset: Preset, *, seed: int,
    outputs: Outputs | None = None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Each file against the module, on test images; by format.

    Args:
        network: of any task.
        files: each with how images go through it.
        data: of the network's task. A classifier is compared on images of every class.
        preset: how an image becomes the network's input.
        seed: of the choice of images.
        outputs: what the LiteRT files of a detector or segmenter end with; ``None``: as usual.
    """
    task = network.spec.task
    most = IMAGES if task == "classify" else min(IMAGES, max(8, _PIXELS // math.prod(preset.shape)))
    images = torch.cat([*prepared(some(data, data.test, most, seed), preset)])
    expected = _outputs(network, images)
    ends = Ends(spec=network.spec, outputs=outputs or usual_outputs(network.spec))
    return {
        kind: _PARITIES[task](kind, expected, blob, answers, images.numpy(), ends).to_dict()
        for kind, (blob, answers) in files.items()
    }


def _outputs(network: Network, images: torch.Tensor) -> list[Floats]:
    """What the module itself gives."""
    device = next(network.parameters()).device
    with evaluating(network), torch.no_grad():
        parts = [network(batch.to(device)) for batch in torch.split(images, 32)]
    several = [part if isinstance(part, tuple) else (part,) for part in parts]
    return [torch.cat(of_all).float().cpu().numpy() for of_all in zip(*several, strict=True)]


def _through(answers: Answers, blob: bytes, images: Floats) -> list[Floats]:
    found = answers(blob, images)
    return found if isinstance(found, list) else [found]


def _of_logits(
    kind: str, expected: list[Floats], blob: bytes, answers: Answers, images: Floats, ends: Ends
) -> Parity:
    return parity(kind, expected[0], _through(answers, blob, images)[0])


def _of_boxes(
    kind: str, expected: list[Floats], blob: bytes, answers: Answers, images: Floats, ends: Ends
) -> BoxParity:
    """Every anchor, before suppression; and the detections, where the file has some its own."""
    found = _through(answers, blob, images)
    inside = len(found) == len(DETECTIONS)
    raw = _through(answers, split(blob)[0], images) if inside else found
    ours = ends.boxes(expected)
    boxes, likely = ends.boxes(raw) if inside else map(torch.from_numpy, raw)
    module = [select(*pair, ends.rule) for pair in zip(*ours, strict=True)]
    file: list[Any] = ends.answers(found) if inside else [
        select(*pair, ends.rule) for pair in zip(boxes, likely, strict=True)
    ]
    return box_parity(
        kind, (ours[0].numpy(), ours[1].numpy()), (boxes.numpy(), likely.numpy()),
        ([_plain(one) for one in module], [_plain(one) for one in file]),
    )  # fmt: skip


def _plain(found: Detections) -> Detected:
    return Detected(found.boxes.double().numpy(), found.scores.double().numpy(), found.labels.numpy())


def _of_labels(
    kind: str, expected: list[Floats], blob: bytes, answers: Answers, images: Floats, ends: Ends
) -> LabelParity:
    """At the size of the network's input."""
    found: Any = ends.answers(_through(answers, blob, images))
    size = ends.spec.image_shape
    return label_parity(kind, [*expected[0].argmax(1)], [labels(one, size) for one in found])


_PARITIES: dict[Task, Callable[..., Parity | BoxParity | LabelParity]] = {
    "classify": _of_logits, "detect": _of_boxes, "segment": _of_labels
}  # fmt: skip


def keep(found: Mapping[str, Any], folder: Path) -> None:
    """Write ``parity.json``."""
    write_json(folder / FILE, found)


def gate(found: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """See that every file is within the tolerance of its format.

    Raises:
        QualityGateError: naming those that are not.
    """
    bad = [f"{kind}: {_told(check)}" for kind, check in found.items() if not check["ok"]]
    if bad:
        raise QualityGateError(
            "the files do not say what the network says: " + "; ".join(bad),
            f"everything is written; see {folder / FILE} for what is allowed",
        )


def _told(check: Mapping[str, Any]) -> str:
    """What was found of a file, in words."""
    same = f"{check['agreement']:.1%}"
    if "detections" in check:
        return f"{check['within']:.1%} of the anchors within the tolerance, {same} of the detections in both"
    if "within" not in check:
        return f"the labels agree on {same} of the pixels of {check['images']} images"
    return (f"top-1 agrees on {same} of {check['images']} images, "
            f"{check['within']:.1%} of the logits within the tolerance")  # fmt: skip
