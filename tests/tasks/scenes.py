"""Coloured rectangles on noise: scenes whose boxes and masks are known, and networks small enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mobilefit.arch import Block, ClassifierHead, Conv, NetSpec, detector, segmenter
from mobilefit.data.detection import DetectionData, load_detection
from mobilefit.data.segmentation import SegmentationData, load_segmentation
from mobilefit.nn import Network, build

SIDE = 64
COLOURS = ((220, 40, 40), (40, 60, 220))
CLASSES = ("red", "blue")

BACKBONE = NetSpec(
    name="tiny",
    input_size=SIDE,
    stem=Conv(out=8, kernel=3, stride=2, act="relu"),
    blocks=(
        Block(expand=16, out=16, stride=2, act="relu"),
        Block(expand=32, out=16, stride=2, act="relu", se="v3"),
        Block(expand=32, out=24, stride=2, act="hard_swish"),
        Block(expand=48, out=32, stride=2, act="hard_swish"),
    ),
    last=Conv(out=48, act="hard_swish"),
    head=ClassifierHead(num_classes=2),
)


def scene(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int, int, int, int]]]:
    """Pixels, a mask (0 ground, then the classes), and boxes with their classes."""
    pixels = random.integers(90, 130, (SIDE, SIDE, 3)).astype(np.uint8)
    mask, boxes = np.zeros((SIDE, SIDE), np.uint8), []
    for kind in range(2):
        width, height = random.integers(16, 30, 2)
        left = int(random.integers(0, SIDE // 2 - 16)) + kind * SIDE // 2
        top = int(random.integers(0, SIDE - height))
        right = min(int(left + width), SIDE if kind else SIDE // 2)
        pixels[top : top + height, left:right] = COLOURS[kind]
        mask[top : top + height, left:right] = kind + 1
        boxes.append((kind, left, top, right, int(top + height)))
    return pixels, mask, boxes


def write_voc(root: Path, train: int = 16, val: int = 8) -> Path:
    """Pascal VOC's layout."""
    random = np.random.default_rng(0)
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for part, count in (("train", train), ("val", val)):
        names = [f"{part}{number}" for number in range(count)]
        (root / "ImageSets/Main" / f"{part}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            pixels, _, boxes = scene(random)
            Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.png")
            objects = "".join(
                f"<object><name>{CLASSES[kind]}</name><bndbox><xmin>{left}</xmin><ymin>{top}</ymin>"
                f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
                for kind, left, top, right, bottom in boxes
            )
            (root / "Annotations" / f"{name}.xml").write_text(
                f"<annotation><filename>{name}.png</filename><size><width>{SIDE}</width>"
                f"<height>{SIDE}</height><depth>3</depth></size>{objects}</annotation>"
            )
    return root


def write_masks(root: Path, train: int = 16, val: int = 8) -> Path:
    """Images beside masks, with names of the classes."""
    random = np.random.default_rng(0)
    for part, count in (("train", train), ("val", val)):
        for folder in ("images", "labels"):
            (root / part / folder).mkdir(parents=True)
        for number in range(count):
            pixels, mask, _ = scene(random)
            Image.fromarray(pixels).save(root / part / "images" / f"{number}.png")
            Image.fromarray(mask).save(root / part / "labels" / f"{number}.png")
    (root / "classes.txt").write_text("ground\nred\nblue\n")
    return root


def boxes_data(root: Path, **options: Any) -> DetectionData:
    """Scenes with boxes, made and loaded."""
    return load_detection(write_voc(root), **{"holdout": 0.0, **options})


def masks_data(root: Path, **options: Any) -> SegmentationData:
    """Scenes with masks, made and loaded."""
    return load_segmentation(write_masks(root), **{"holdout": 0.0, **options})


def detector_network(seed: int = 0, **options: Any) -> Network:
    """A tiny SSDLite for the scenes' two classes."""
    return _built(detector(BACKBONE, **{"num_classes": 2, **options}).resolution(SIDE), seed)


def segmenter_network(seed: int = 0, **options: Any) -> Network:
    """A tiny LR-ASPP for the ground and the scenes' two classes."""
    spec = segmenter(BACKBONE, **{"num_classes": 3, "filters": 16, "reduced": False, **options})
    return _built(spec.resolution(SIDE), seed)


def _built(spec: NetSpec, seed: int) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(spec)
