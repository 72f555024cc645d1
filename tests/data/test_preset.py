from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilefit.data import Preset, batches, load
from mobilefit.data import folder as folder_module
from mobilefit.errors import InputError

from .conftest import MakeFolder, photo


def test_defaults_map_to_minus_one_to_one() -> None:
    preset = Preset(resolution=4)
    assert preset.apply(Image.new("RGB", (9, 9), "black")).tolist() == [[[-1] * 3] * 4] * 4
    assert np.allclose(preset.apply(Image.new("RGB", (9, 9), "white")), 1, atol=1e-6)


def test_mean_and_std_are_by_channel() -> None:
    preset = Preset(resolution=1, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    value = preset.apply(Image.new("RGB", (8, 8), (255, 51, 0)))
    assert value.dtype == np.float32
    assert np.allclose(value[0, 0], [(1 - 0.1) / 0.5, 0.0, -0.15], atol=1e-6)
    grey = preset.apply(Image.new("L", (8, 8), 51))
    assert np.allclose(grey[0, 0], [0.2, 0.0, -0.05], atol=1e-6)


def test_crop_takes_the_centre() -> None:
    image = Image.new("RGB", (20, 16), "black")
    image.paste("white", (4, 2, 16, 14))  # the half in the middle and a rim for the filter
    assert np.allclose(Preset(resolution=4, crop_fraction=0.5).apply(image), 1, atol=1e-6)
    assert Preset(resolution=4, crop_fraction=1.0).apply(image)[0, 0, 0] < 0


@pytest.mark.parametrize("size", [(24, 20), (5, 4), (700, 300)])
@pytest.mark.parametrize("ext", ["png", "jpg"])
@pytest.mark.parametrize("kept_bytes", [0, 1 << 30])
def test_evaluation_batches_equal_apply(
    make_folder: MakeFolder,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    ext: str,
    kept_bytes: int,
) -> None:
    monkeypatch.setattr(folder_module, "ROOM", kept_bytes)
    root = make_folder({"a": 4, "b": 4}, size=size, ext=ext)
    test = load(root).test
    preset = Preset(resolution=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    for _ in range(2):  # the second time from what was remembered
        ((values, _),) = batches(test, preset, 8, train=False)
        for value, name in zip(values.numpy(), test.names, strict=True):
            assert np.array_equal(value.transpose(1, 2, 0), preset.apply(Path(name)))


def test_large_photos_are_read_once_for_evaluation(make_folder: MakeFolder) -> None:
    test = load(make_folder({"a": 3, "b": 3}, size=(300, 280))).test
    preset = Preset(resolution=16)
    before = [values.clone() for values, _ in batches(test, preset, 8, train=False)]
    for name in test.names:
        Path(name).unlink()
    after = [values for values, _ in batches(test, preset, 8, train=False)]
    assert all(old.equal(new) for old, new in zip(before, after, strict=True))


def test_grey_and_colour_agree() -> None:
    grey = photo(3).convert("L")
    preset = Preset(resolution=48, crop_fraction=1.0)
    assert np.array_equal(preset.apply(grey), preset.apply(grey.convert("RGB")))


def test_survives_json() -> None:
    preset = Preset(resolution=96, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0), crop_fraction=1.0)
    assert Preset.from_dict(json.loads(json.dumps(preset.to_dict()))) == preset


GOOD = Preset(resolution=8).to_dict()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**GOOD, "resolutoin": 9}, "unknown field 'resolutoin' in the preset; did you mean 'resolution'"),
        ({"resolution": 8}, "lacks mean, std, crop_fraction"),
        ({**GOOD, "mean": [0.5]}, "mean has 1 entries, not 3"),
        ({**GOOD, "mean": None}, "mean is not a list"),
        ({**GOOD, "resolution": "wide"}, "resolution: 'wide' is not a whole number"),
        ({**GOOD, "std": [1, 0, 1]}, "std above 0"),
        ({**GOOD, "resolution": 0, "crop_fraction": 1.5}, "resolution is 0.*crop_fraction is 1.5"),
    ],
)
def test_bad_values_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Preset.from_dict(values)
