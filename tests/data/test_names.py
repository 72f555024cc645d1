"""Names and ids in other spellings, and files that are passed over."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, features

from mobilefit.data import decode, load
from mobilefit.data.detection import load_detection
from mobilefit.data.inspect import inspect_folder
from mobilefit.data.segmentation import load_segmentation
from mobilefit.errors import InputError

from .conftest import photo
from .test_coco import CATEGORIES, content, stems, write
from .test_layout import fill

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


# ---- files that are passed over


@pytest.mark.parametrize("ext, kind", [("jfif", "JPEG"), ("JPE", "JPEG"), ("jp2", "JPEG2000"), ("avif", "AVIF")])
def test_pictures_by_other_extensions_are_read(tmp_path: Path, ext: str, kind: str) -> None:
    if kind in ("AVIF", "JPEG2000") and not features.check({"AVIF": "avif", "JPEG2000": "jpg_2000"}[kind]):
        pytest.skip(f"Pillow has no {kind} here")
    root = fill(tmp_path / "set", "a", "b")
    photo(99).save(root / f"a/more.{ext}", kind)
    data = load(root)
    assert any(name.endswith(ext) for part in (data.train, data.holdout, data.test) for name in part.names)
    assert data.notes == ()


@pytest.mark.skipif(".heic" in decode.EXTENSIONS, reason="pillow-heif is installed")
def test_files_that_may_be_pictures_are_counted_and_named(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", "a", "b")
    for name in ("IMG_1.HEIC", "IMG_2.heic", "x.cr2", "scan", "notes.txt", "list.csv", "README"):
        (root / "a" / name).write_bytes(b"....ftypheic")
    (note,) = load(root).notes
    assert "4 files" in note and "2 .heic" in note and "mobilefit[heic]" in note and "1 .cr2" in note
    assert inspect_folder(root, resolution=16).notes == (note,)
    (root / "b/heic.jpg").write_bytes(b"....ftypheic....")
    assert "mobilefit[heic]" in load(root).skipped[0].why


@pytest.mark.parametrize("junk", ["@eaDir", "__MACOSX", "#recycle", ".thumbnails", "a/@eaDir", "a/@eaDir/0.png", "b/__MACOSX"])
def test_what_systems_put_beside_pictures_is_no_picture(tmp_path: Path, junk: str) -> None:
    root = fill(tmp_path / "set", "a", "b")
    plain = load(root)
    fill(root, junk)
    data = load(root)
    assert data.classes == ("a", "b") and data.fingerprint == plain.fingerprint and data.notes == ()


def test_hidden_files_of_a_mac_are_no_annotations(tmp_path: Path) -> None:
    write(tmp_path / "annotations/train.json", tmp_path / "train", content("t", 6))
    (tmp_path / "annotations/._train.json").write_bytes(b"\0\5\x16\7")
    (tmp_path / "._val.json").write_bytes(b"\0\5\x16\7")
    assert len(load_detection(tmp_path, holdout=0).train) == 5
    scenes = fill(tmp_path / "scenes", "images")
    masks(scenes / "masks", [str(number) for number in range(4)])
    for path in (*scenes.glob("masks/*.png"), *scenes.glob("images/*.png")):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    assert load_segmentation(scenes).skipped == ()


def masks(folder: Path, names: list[str]) -> None:
    folder.mkdir()
    for name in names:
        mask = Image.new("L", (24, 20))
        mask.paste(1, (0, 0, 9, 9))
        mask.save(folder / f"{name}.png")


# ---- names of classes


def test_classes_are_one_in_either_spelling(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", f"train/{NFC}", "train/tea", f"val/{NFD}", "val/tea")
    data = load(root)
    assert data.classes == (NFC, "tea") and len(data.test) == 8
    found = inspect_folder(root, resolution=16)
    assert found.refused == () and not any(found.lacking.values())
    with pytest.raises(InputError, match="another spelling"):
        load(fill(tmp_path / "both", NFC, NFD))


@pytest.mark.parametrize("name", [b"caf\xe9", b"a\nb", b"a\rb", b"\x1b]0;x\x07", b"a\xe2\x80\xa8b"])
def test_class_folders_that_no_file_can_name_are_refused_before_the_training(tmp_path: Path, name: bytes) -> None:
    root = fill(tmp_path / "set", "a", "b")
    os.rename(os.fsencode(root / "a"), os.path.join(os.fsencode(root), name))
    with pytest.raises(InputError, match=r"class name .*rename"):
        load(root)


@pytest.mark.parametrize("name", ["a\nb", "a\x07", "\ud800", "a\u2028b"])
def test_categories_that_no_file_can_name_are_refused(tmp_path: Path, name: str) -> None:
    holds = content("t", 6)
    holds["categories"][0]["name"] = name
    write(tmp_path / "train.json", tmp_path / "train", holds)
    with pytest.raises(InputError, match=r"class name .*rename"):
        load_detection(tmp_path)


def test_a_mask_has_its_images_name_in_either_spelling(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(4):
        photo(number).save(tmp_path / f"images/{NFC}{number}.png")
    masks(tmp_path / "masks", [f"{NFD}{number}" for number in range(4)])
    assert load_segmentation(tmp_path).skipped == ()


# ---- COCO's ids and paths


def of_type(value: Any, kind: str) -> Any:
    return {"text": str, "float": float}[kind](value)


@pytest.mark.parametrize("where", ["categories", "images", "notes", "all"])
@pytest.mark.parametrize("kind", ["text", "float"])
def test_ids_are_one_whatever_their_type(tmp_path: Path, where: str, kind: str) -> None:
    holds = content("t", 8)
    plain = load_detection_of(tmp_path / "plain", holds)
    for row in holds["categories"] if where in ("categories", "all") else ():
        row["id"] = of_type(row["id"], kind)
    for row in holds["images"] if where in ("images", "all") else ():
        row["id"] = of_type(row["id"], kind)
    for row in holds["annotations"] if where in ("notes", "all") else ():
        row["category_id"], row["image_id"] = of_type(row["category_id"], kind), of_type(row["image_id"], kind)
    data = load_detection_of(tmp_path / "other", holds)
    assert data.classes == plain.classes == ("cat", "dog") and data.train.digest == plain.train.digest


def load_detection_of(root: Path, holds: Any) -> Any:
    write(root / "train.json", root / "train", holds)
    return load_detection(root, holdout=0)


def test_ids_of_one_value_in_two_types_are_told(tmp_path: Path) -> None:
    holds = content("t", 8)
    holds["categories"].append({"id": "3", "name": "owl"})
    with pytest.raises(InputError, match="two categories have the id 3"):
        load_detection_of(tmp_path, holds)


def test_categories_may_have_words_for_ids(tmp_path: Path) -> None:
    holds = content("t", 8)
    for row in holds["categories"]:
        row["id"] = f"x{row['id']}"
    for row in holds["annotations"]:
        row["category_id"] = f"x{row['category_id']}"
    assert load_detection_of(tmp_path, holds).classes == ("cat", "dog")


def test_a_category_may_be_its_own_supercategory(tmp_path: Path) -> None:
    holds = content("t", 8)
    holds["categories"] = [{**row, "supercategory": row["name"]} for row in (*CATEGORIES, {"id": 9, "name": "owl"})]
    assert load_detection_of(tmp_path, holds).classes == ("cat", "dog", "owl")


@pytest.mark.parametrize("above", ["none", "", None])
def test_roboflows_placeholder_may_have_a_classs_name(tmp_path: Path, above: str | None) -> None:
    holds = content("t", 8)
    holds["categories"] = [{"id": 0, "name": "cat", "supercategory": above},
                           *({**row, "supercategory": "cat"} for row in CATEGORIES)]  # fmt: skip
    assert load_detection_of(tmp_path, holds).classes == ("cat", "dog")


@pytest.mark.parametrize("form", ["{}", "train\\{}", ".\\train\\{}", "C:\\me\\pictures\\{}", "/data/upload/1/{}", "../../media/{}"])
def test_paths_of_other_systems_lead_to_the_pictures(tmp_path: Path, form: str) -> None:
    holds = content("t", 8)
    plain = load_detection_of(tmp_path / "plain", holds)
    root = tmp_path / "other"
    write(root / "train.json", root / "train", holds)
    for row in holds["images"]:
        row["file_name"] = form.format(row["file_name"])
    (root / "train.json").write_text(json.dumps(holds))
    data = load_detection(root, holdout=0)
    assert stems(data) == stems(plain) and data.skipped == ()
    assert all(Path(name).parent.name == "train" for name in data.train.names)


def test_pictures_are_found_in_either_spelling(tmp_path: Path) -> None:
    holds = content("t", 6)
    for row in holds["images"]:
        row["file_name"] = f"{NFD}{row['file_name']}"
    write(tmp_path / "train.json", tmp_path / "train", holds)
    for row in holds["images"]:
        row["file_name"] = unicodedata.normalize("NFC", row["file_name"])
    (tmp_path / "train.json").write_text(json.dumps(holds))
    assert load_detection(tmp_path).skipped == ()


@pytest.mark.parametrize("name", ["a\0b.jpg", "\ud800.jpg", "\udd00.jpg"])
def test_a_name_that_no_file_can_have_is_skipped(tmp_path: Path, name: str) -> None:
    holds = content("t", 8)
    write(tmp_path / "train.json", tmp_path / "train", holds)
    holds["images"][2]["file_name"] = name
    (tmp_path / "train.json").write_text(json.dumps(holds))
    assert len(load_detection(tmp_path).skipped) == 1
