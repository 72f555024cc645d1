"""Cityscapes' own layout and numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilefit.data import cityscapes
from mobilefit.data.masks import IGNORED
from mobilefit.data.segmentation import load_segmentation
from mobilefit.errors import InputError

from .conftest import photo

LABEL_IDS = np.arange(34, dtype=np.uint8).repeat(4).reshape(8, 17)
"""Every label id, four pixels each."""
EVALUATED = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


def write(root: Path, part: str, count: int, masks: dict[str, np.ndarray], city: str = "aachen") -> None:
    """Frames of one city, each with a mask of every kind in ``masks``."""
    images, truths = root / "leftImg8bit" / part / city, root / "gtFine" / part / city
    for folder in (images, truths):
        folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        frame = f"{city}_{number:06d}_000019"
        photo(number + len(part), (17, 8)).save(images / f"{frame}_leftImg8bit.png")
        for kind, mask in masks.items():
            Image.fromarray(mask).save(truths / f"{frame}_gtFine_{kind}.png")


def given_out(root: Path, masks: dict[str, np.ndarray]) -> Path:
    write(root, "train", 3, masks, "aachen")
    write(root, "train", 2, masks, "ulm")
    write(root, "val", 2, masks, "munster")
    write(root, "test", 2, {kind: np.zeros_like(mask) for kind, mask in masks.items()}, "berlin")
    return root


def test_label_ids_become_the_nineteen_train_ids(tmp_path: Path) -> None:
    data = load_segmentation(given_out(tmp_path / "cityscapes", {"labelIds": LABEL_IDS}))
    _, mask = data.train.sample(0)
    expected = np.full(34, IGNORED)
    expected[EVALUATED] = range(19)
    assert np.array_equal(mask, expected[LABEL_IDS])
    assert data.ignored == pytest.approx(15 / 34) and data.train.pixels.tolist() == [4 * 4] * 19 + [4 * 60]
    assert data.name == "cityscapes" and data.size == (17, 8) and data.skipped == ()


def test_names_and_colours_are_the_official_ones() -> None:
    rows = {name: (value, colour) for value, name, colour in cityscapes.ROWS}
    assert [value for value, _ in rows.values()] == EVALUATED
    assert list(rows)[:3] == ["road", "sidewalk", "building"] and list(rows)[-1] == "bicycle"
    assert rows["road"][1] == (128, 64, 128) and rows["person"][1] == (220, 20, 60)
    assert len({colour for _, colour in rows.values()}) == 19


def test_val_is_the_test_set_since_the_masks_of_test_are_dummies(tmp_path: Path) -> None:
    data = load_segmentation(given_out(tmp_path, {"labelIds": LABEL_IDS}), holdout=0.2)
    cities = [{Path(name).parent.name for name in part.names} for part in (data.train, data.holdout, data.test)]
    assert (len(data.train), len(data.holdout), len(data.test)) == (4, 1, 2)
    assert cities[2] == {"munster"} and cities[0] | cities[1] == {"aachen", "ulm"}
    assert not set(data.train.names) & set(data.holdout.names)


def test_train_ids_are_read_where_every_frame_has_them(tmp_path: Path) -> None:
    train_ids = np.full((8, 17), IGNORED, np.uint8)
    train_ids[:2, :10] = np.arange(20).reshape(2, 10) % 19
    masks = {"labelIds": LABEL_IDS, "labelTrainIds": train_ids, "color": LABEL_IDS, "instanceIds": LABEL_IDS}
    root = given_out(tmp_path, masks)
    data = load_segmentation(root)
    assert np.array_equal(data.train.sample(0)[1], train_ids)
    assert len(data.classes) == 19 and data.palette is not None and data.palette[18] == (119, 11, 32)
    next((root / "gtFine" / "val").rglob("*labelTrainIds.png")).unlink()
    assert np.array_equal(load_segmentation(root).train.sample(0)[1] < 19, np.isin(LABEL_IDS, EVALUATED))


def test_a_frame_without_its_mask_is_named(tmp_path: Path) -> None:
    root = given_out(tmp_path, {"labelIds": LABEL_IDS})
    (root / "gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds.png").unlink()
    data = load_segmentation(root)
    assert [Path(file.path).name for file in data.skipped] == ["ulm_000001_000019_leftImg8bit.png"]
    assert data.skipped[0].why == "it has no mask of its name"


def test_a_label_id_that_there_is_not_is_refused(tmp_path: Path) -> None:
    wrong = LABEL_IDS.copy()
    wrong[3, 5] = 34
    root = given_out(tmp_path, {"labelIds": LABEL_IDS})
    write(root, "val", 1, {"labelIds": wrong}, "munster")
    with pytest.raises(InputError, match=r"munster_000000_000019_gtFine_labelIds\.png holds 34 at x 5, y 3"):
        load_segmentation(root)


def test_missing_folders_are_named_all_at_once(tmp_path: Path) -> None:
    write(tmp_path, "train", 1, {})
    (tmp_path / "gtFine" / "train").rename(tmp_path / "gtCoarse")
    with pytest.raises(InputError) as raised:
        load_segmentation(tmp_path)
    for folder in ("gtFine/train", "leftImg8bit/val", "gtFine/val"):
        assert str(tmp_path / folder) in raised.value.message
    assert "leftImg8bit/train" not in raised.value.message
    assert raised.value.hint is not None and "gtFine_trainvaltest.zip" in raised.value.hint
