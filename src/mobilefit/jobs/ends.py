"""What comes out of a detector's or segmenter's file: detections and labels, whatever it ends with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilefit.arch import NetSpec, SegmentationHead, SSDLiteHead
from mobilefit.data import Preset
from mobilefit.data.detection import DetectionSet
from mobilefit.data.scenes import prepared, scene_batches
from mobilefit.data.segmentation import SegmentationSet
from mobilefit.data.segmentation_augment import eval_sample
from mobilefit.errors import InputError
from mobilefit.jobs.running import File, Floats
from mobilefit.litert.outputs import DetectionOutputs, Outputs, SegmentationOutputs
from mobilefit.nn import Network
from mobilefit.nn.boxes import (
    Detections,
    Rule,
    decode,
    detector_head,
    rule,
    scores,
    select,
    spec_anchors,
)
from mobilefit.parsing import dataclass_from
from mobilefit.tasks.detect import DetectionEvaluation, Found, judged
from mobilefit.tasks.metrics import SegmentationMetric, labels_of
from mobilefit.tasks.segment import SegmentationEvaluation

LEAST_SCORE = 0.05
"""Of the detections in our files. The published 1e-8 has every anchor compared with every other, which
takes ten times as long as the network (V3-Small, 320 px, 90 classes); 0.05 takes nothing to speak of."""
BATCH = 16
"""Images that go through a file at once."""
Answer = Detections | Floats
"""Of one image: detections, in 0 to 1; logits [k, h, w]; or labels [h, w]."""


def usual_outputs(spec: NetSpec) -> Outputs | None:
    """What our files of a network end with, where nothing is said; ``None`` of a classifier: its logits."""
    if isinstance(spec.head, SSDLiteHead):
        return DetectionOutputs(nms="file", score_threshold=LEAST_SCORE)
    return SegmentationOutputs() if isinstance(spec.head, SegmentationHead) else None


def outputs_of(description: Any, spec: NetSpec) -> Outputs | None:
    """What a file's own description says that it ends with; ``None``: the network's own outputs.

    Raises:
        InputError: it says something that is not known here.
    """
    if spec.task == "classify" or description is None:
        return None
    kind = DetectionOutputs if spec.task == "detect" else SegmentationOutputs
    try:
        made: Outputs = dataclass_from(kind, description, "outputs", "outputs")
    except InputError as error:
        raise InputError(f"ends with something unknown: {error}", "export it again") from error
    return made


# ---- what the outputs mean


@dataclass(frozen=True, kw_only=True)
class Ends:
    """A network, and what its file ends with."""

    spec: NetSpec
    outputs: Outputs | None

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the outputs that the file should have; of a segmenter's logits before they are resized, whatever size."""
        height, width = self.spec.image_shape
        classes, outputs = self.spec.head.num_classes, self.outputs
        if self.spec.task == "classify":
            return [(1, classes)]
        if isinstance(outputs, SegmentationOutputs) and outputs.form == "labels":
            return [(1, height, width)]
        if self.spec.task == "segment":
            coarse = isinstance(outputs, SegmentationOutputs) and outputs.form == "coarse"
            return [()] if coarse else [(1, height, width, classes)]
        if self.suppressed:
            most = self.rule.max_detections
            return [(1, most, 4), (1, most), (1, most), (1,)]
        anchors = len(spec_anchors(self.spec))
        return [(1, anchors, 4), (1, anchors, classes + (outputs is None))]

    def answers(self, found: Sequence[Floats]) -> list[Answer]:
        """Outputs of several images, maps channels first, as an answer for each.

        Raises:
            InputError: there are others than the file says.
        """
        if self.spec.task == "detect":
            return [*self._detections(found)]
        if len(found) != 1 or found[0].ndim not in (3, 4):
            raise _odd(found)
        return [*self._maps(found[0])]

    @property
    def rule(self) -> Rule:
        """Which boxes are detections: the published rule, with the file's own thresholds."""
        given = self.outputs if isinstance(self.outputs, DetectionOutputs) else DetectionOutputs(class_wise=True)
        made = rule(
            detector_head(self.spec).scoring, score_threshold=given.score_threshold,
            iou_threshold=given.iou_threshold, max_detections=given.max_detections,
            class_wise=given.class_wise,
        )  # fmt: skip
        # The operator looks at all boxes, and clips none.
        return replace(made, clip=False, candidates=None) if self.suppressed else made

    @property
    def threads(self) -> int:
        """How many the file is run with: see ``DetectionOutputs.class_wise``."""
        return 1 if self.suppressed and self.rule.class_wise else 2

    @property
    def suppressed(self) -> bool:
        """Whether the file itself picks the detections."""
        return isinstance(self.outputs, DetectionOutputs) and self.outputs.nms == "file"

    def boxes(self, found: Sequence[Floats]) -> tuple[Tensor, Tensor]:
        """Boxes ``[n, A, 4]`` and scores ``[n, A, k]`` of a network's own outputs."""
        encodings, logits = (torch.from_numpy(values) for values in found)
        head = detector_head(self.spec)
        return decode(encodings, spec_anchors(self.spec)), scores(logits, head.scoring)

    def _detections(self, found: Sequence[Floats]) -> list[Detections]:
        if len(found) != (4 if self.suppressed else 2):
            raise _odd(found)
        if self.suppressed:
            return [self._given(*(values[i] for values in found)) for i in range(len(found[0]))]
        pairs = self.boxes(found) if self.outputs is None else map(torch.from_numpy, found)
        return [select(boxes, likely, self.rule) for boxes, likely in zip(*pairs, strict=True)]

    def _given(self, location: Floats, category: Floats, score: Floats, count: Floats) -> Detections:
        """Of the four outputs of one image: y0, x0, y1, x1, not clipped; after ``count`` there is nothing."""
        if not (np.isfinite(count) and 0 <= count <= len(score)):
            raise InputError(f"gives {float(count):g} detections of {len(score)}", "export it again")
        most = int(count)
        labels = torch.from_numpy(category[:most])
        if most and not (labels.min() >= 0 and labels.max() < self.spec.head.num_classes):
            raise InputError("gives classes that it does not name", "export it again")
        boxes = torch.from_numpy(location[:most])[:, [1, 0, 3, 2]].clamp(0, 1)
        visible = (boxes[:, 2:] > boxes[:, :2]).all(1)
        found = torch.from_numpy(score[:most])
        return Detections(boxes=boxes[visible], scores=found[visible], labels=labels.long()[visible])

    def _maps(self, maps: Floats) -> Floats:
        """Logits of the head's own size are resized as the network does it."""
        head = self.spec.head
        assert isinstance(head, SegmentationHead)
        if maps.ndim == 3 or maps.shape[2:] == self.spec.image_shape:
            return maps
        fine: Floats = F.interpolate(
            torch.from_numpy(maps), self.spec.image_shape, mode="bilinear",
            align_corners=head.align_corners,
        ).numpy()  # fmt: skip
        return fine


def _odd(found: Sequence[Floats]) -> InputError:
    shapes = ", ".join(str([1, *values.shape[1:]]) for values in found)
    return InputError(f"gives {shapes}, which is not what it says that it ends with", "export it again")


def labels(answer: Floats, size: tuple[int, int]) -> npt.NDArray[np.int64]:
    """The class of each pixel [h, w], of logits or of labels of another size.

    Logits are resized before the classes are told; of labels each pixel takes the nearest.
    """
    if answer.ndim == 3:
        return labels_of(answer, size)
    shape = answer.shape
    # As F.interpolate's "nearest-exact" and Pillow have it: pixels' centres lie on each other.
    rows, columns = (
        np.minimum(((np.arange(wanted) + 0.5) * have / wanted).astype(np.int64), have - 1)
        for wanted, have in zip(size, shape, strict=True)
    )
    nearest: npt.NDArray[np.int64] = answer[rows[:, None], columns].astype(np.int64)
    return nearest


# ---- files and modules


class Served(nn.Module):
    """A network as files for other programs have it: logits, or of a detector decoded boxes and scores.

    ``boxes`` ``[n, A, 4]`` are x0, y0, x1, y1 as parts of the image's sides, not clipped; ``scores``
    ``[n, A, num_classes]`` are without the background.
    """

    anchors: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.names: tuple[str, ...] = ("output",)
        if network.spec.task == "detect":
            self.names = ("boxes", "scores")
            self.scoring = detector_head(network.spec).scoring
            self.register_buffer("anchors", spec_anchors(network.spec))

    def forward(self, x: Tensor) -> Any:
        found = self.network(x)
        if len(self.names) == 1:
            return found
        encodings, logits = found
        return decode(encodings, self.anchors), scores(logits, self.scoring)


def through(file: File, images: Floats, *, threads: int = 2) -> list[Floats]:
    """Every output of a LiteRT file for images ``[n, 3, H, W]``; maps are channels first."""
    found = file.run(np.ascontiguousarray(images.transpose(0, 2, 3, 1)), threads=threads)
    return [channels_first(values) for values in found]


def channels_first(values: Floats) -> Floats:
    """A map as torch has it; rows, logits and label maps stay."""
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2)) if values.ndim == 4 else values


# ---- how good a file is


def evaluated_boxes(
    blob: bytes, ends: Ends, images: DetectionSet, preset: Preset
) -> DetectionEvaluation:
    """mAP of a detector's file."""
    found: dict[int, Found] = {}
    file = File(blob)
    for places, batch, sizes in scene_batches(images, partial(seen, preset=preset), preset, BATCH):
        answers = ends.answers(through(file, batch.numpy(), threads=ends.threads))
        for place, one, size in zip(places, answers, sizes, strict=True):
            assert isinstance(one, Detections)
            found[place] = Found.of(one, size)
    return judged(found, images)


def seen(image: Any, truth: Any, preset: Preset) -> tuple[Any, tuple[int, int]]:
    """What a network sees of an image, and the image's width and height."""
    return preset.pixels(image), image.size


def evaluated_masks(
    blob: bytes, ends: Ends, images: SegmentationSet, preset: Preset
) -> SegmentationEvaluation:
    """mIoU of a segmenter's file, counted on the images' own pixels."""
    metric, file = SegmentationMetric(images.classes), File(blob)

    def found_in(place: int) -> npt.NDArray[np.int64]:
        pixels, truth = eval_sample(*images.sample(place), preset)
        (answer,) = ends.answers(through(file, prepared([pixels], preset).numpy()))
        assert isinstance(answer, np.ndarray)
        return labels(answer, truth.shape)

    for places, batch, truths in scene_batches(images, partial(eval_sample, preset=preset), preset, BATCH):
        answers = ends.answers(through(file, batch.numpy()))
        for place, one, truth in zip(places, answers, truths, strict=True):
            assert isinstance(one, np.ndarray)
            metric.add(labels(one, truth.shape), truth, place)
    return SegmentationEvaluation(score=metric.result(), labels=found_in)
