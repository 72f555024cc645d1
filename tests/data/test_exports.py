"""Boxes and masks as other programs lay them out: Roboflow, CVAT, Datumaro, Ultralytics, darknet, Label Studio."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilefit.data import coco, yolo
from mobilefit.data.detection import DetectionData, load_detection
from mobilefit.data.segmentation import load_segmentation
from mobilefit.errors import InputError

from .conftest import photo
from .test_coco import content, write

WIDTH, HEIGHT = 24, 20
BOX = (2, 3, 12, 11.5)


def annotation(name: str = "cat") -> str:
    corners = "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), BOX, strict=True))
    return (f"<annotation><filename>elsewhere.jpg</filename><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
            f"<object><name>{name}</name><bndbox>{corners}</bndbox></object></annotation>")  # fmt: skip


def label(number: int) -> str:
    left, top, right, bottom = BOX
    sides = (left + right) / 2 / WIDTH, (top + bottom) / 2 / HEIGHT, (right - left) / WIDTH, (bottom - top) / HEIGHT
    return " ".join([str(number), *(f"{value:.6f}" for value in sides)]) + "\n"


def fill(root: Path, images: str, truth: str, ext: str, text: str, count: int = 6, first: int = 0) -> None:
    """Images, and beside them, or in a folder of their own, files that tell what is in them."""
    for folder in (images, truth):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        photo(number, (WIDTH, HEIGHT)).save(root / images / f"{number}.png")
        (root / truth / f"{number}.{ext}").write_text(text)


def first_box(data: DetectionData) -> list[float]:
    truth = data.train.truth(0)
    return [round(value, 2) for value in truth.boxes[0].tolist()]


# ---- Pascal VOC by other names


@pytest.mark.parametrize("images, truth", [
    ("images", "annotations"), ("JPEGImages", "Annotations"), ("imgs", "xmls"), ("Images", "labels"), ("", ""), ("images", "Annotations"),
])  # fmt: skip
def test_annotations_of_voc_are_found_beside_the_images(tmp_path: Path, images: str, truth: str) -> None:
    fill(tmp_path, images, truth, "xml", annotation(), 10)
    data = load_detection(tmp_path, holdout=0)
    assert data.classes == ("cat",) and (len(data.train), len(data.test)) == (8, 2) and first_box(data) == list(BOX)
    assert len(data.notes) == ((images, truth) != ("JPEGImages", "Annotations"))


@pytest.mark.parametrize("form", ["{0}|{0}", "{0}/images|{0}/annotations", "images/{0}|annotations/{0}", "JPEGImages/{0}|xml/{0}"])
@pytest.mark.parametrize("parts", [("train", "valid"), ("Training", "Testing"), ("train", "val")])
def test_annotations_of_voc_are_divided_by_folders(tmp_path: Path, form: str, parts: tuple[str, str]) -> None:
    for place, part in enumerate(parts):
        fill(tmp_path, *form.format(part).split("|"), "xml", annotation("dog" if place else "cat"), 4 + 2 * place, 10 * place)
    fill(tmp_path, *form.format(parts[0]).split("|"), "xml", annotation("dog"), 1, 90)
    data = load_detection(tmp_path, holdout=0)
    assert data.classes == ("cat", "dog") and (len(data.train), len(data.test)) == (5, 6) and data.skipped == ()
    assert "Pascal VOC" in data.notes[0]


def test_a_voc_export_without_a_part_for_training_is_refused(tmp_path: Path) -> None:
    for part in ("valid", "test"):
        fill(tmp_path, part, part, "xml", annotation())
    with pytest.raises(InputError, match="train"):
        load_detection(tmp_path)


def test_quoted_ids_and_hidden_files_of_lists(tmp_path: Path) -> None:
    fill(tmp_path, "JPEGImages", "Annotations", "xml", annotation(), 8)
    for folder, ext in (("JPEGImages", "png"), ("Annotations", "xml")):
        for number in range(8):
            path = tmp_path / folder / f"{number}.{ext}"
            path.rename(path.with_name(f"my im {number}.{ext}"))
        (tmp_path / folder / f"._my im 0.{ext}").write_bytes(b"\0\5\x16\7")
    assert len(load_detection(tmp_path, holdout=0).train) == 6
    lists = tmp_path / "ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("".join(f'"my im {number}"\n' for number in range(5)))
    (lists / "val.txt").write_text("".join(f"my im {number}\n" for number in range(5, 8)))
    data = load_detection(tmp_path, holdout=0)
    assert (len(data.train), len(data.test), data.skipped) == (5, 3, ())


# ---- COCO by other names


@pytest.mark.parametrize("name", ["annotations_{}.json", "coco_{}.json", "labels-{}.json", "{}_coco.json", "my.{}.v2.json"])
@pytest.mark.parametrize("folder", ["", "annotations"])
def test_files_of_coco_are_found_by_any_word(tmp_path: Path, name: str, folder: str) -> None:
    for part, count in (("train", 6), ("val", 3)):
        write(tmp_path / folder / name.format(part), tmp_path / "images", content(part, count))
    data = load_detection(tmp_path, holdout=0)
    assert (len(data.train), len(data.test)) == (6, 3)


def test_two_files_by_any_word_are_refused_and_the_usual_names_come_first(tmp_path: Path) -> None:
    write(tmp_path / "coco_train.json", tmp_path / "images", content("t", 6))
    write(tmp_path / "labels_train.json", tmp_path / "images", content("t", 6))
    with pytest.raises(InputError, match="both for train"):
        load_detection(tmp_path)
    write(tmp_path / "instances_train.json", tmp_path / "images", content("t", 6))
    assert list(coco.find(tmp_path)) == ["train"] and len(load_detection(tmp_path, holdout=0).train) == 5


# ---- YOLO


@pytest.mark.parametrize("form", ["images/{0}|labels/{0}", "{0}/images|{0}/labels", "{0}|{0}"])
@pytest.mark.parametrize("names", [
    "names: [cat, dog]", "names: ['cat', \"dog\"]  # two", "names:\n- cat\n- dog", "names:\n  0: cat\n  1: dog\nnc: 2",
    "names:\n  - cat\n  - 'dog'", "names: {0: cat, 1: dog}", "nc: 2\nnames: [\n  cat,\n  dog,\n]\nroboflow:\n  x: 1",
])  # fmt: skip
def test_yolo_is_read(tmp_path: Path, form: str, names: str) -> None:
    for part, count, first in (("train", 6, 0), ("val", 3, 50)):
        fill(tmp_path, *form.format(part).split("|"), "txt", label(1), count, first)
    (tmp_path / "data.yaml").write_text(f"train: images/train\nval: images/val\n{names}\n")
    data = load_detection(tmp_path, holdout=0)
    assert data.classes == ("cat", "dog") and (len(data.train), len(data.test)) == (6, 3)
    assert first_box(data) == list(BOX) and data.train.truth(0).labels.tolist() == [1] and "YOLO" in data.notes[0]


@pytest.mark.parametrize("file", ["classes.txt", "obj.names", "labels/classes.txt"])
def test_yolos_classes_may_stand_in_a_text_file(tmp_path: Path, file: str) -> None:
    fill(tmp_path, "images", "labels", "txt", label(1), 10)
    (tmp_path / file).write_text("cat\ndog\n")
    data = load_detection(tmp_path, holdout=0)
    assert data.classes == ("cat", "dog") and len(data.train) == 8 and data.skipped == ()


def test_exports_of_cvat_label_studio_and_darknet(tmp_path: Path) -> None:
    for folder, names in (("obj_train_data", "obj.names"), ("train", "train/_darknet.labels")):
        root = tmp_path / folder
        for part, count in ((folder, 6), (folder.replace("train", "valid"), 3)):
            fill(root, part, part, "txt", label(1), count)
        (root / names).write_text("cat\ndog\n")
        data = load_detection(root, holdout=0)
        assert data.classes == ("cat", "dog") and (len(data.train), len(data.test)) == (6, 3) and first_box(data) == list(BOX)
    fill(tmp_path / "studio", "images", "labels", "txt", label(1), 10)
    (tmp_path / "studio/classes.txt").write_text("cat\ndog\n")
    (tmp_path / "studio/notes.json").write_text('{"categories": [{"id": 0, "name": "cat"}], "info": {"version": "1.0"}}')
    assert len(load_detection(tmp_path / "studio", holdout=0).train) == 8
    fill(tmp_path / "voc", "train", "train", "xml", annotation(), 10)
    (tmp_path / "voc/dataset_info.json").write_text('{"description": "ours", "images": 10}')
    assert load_detection(tmp_path / "voc").classes == ("cat",)


@pytest.mark.parametrize("shape", ["[2, 2]", "[2, 3]", "\n- 2\n- 2"])
def test_yolos_poses_are_read_by_their_boxes(tmp_path: Path, shape: str) -> None:
    points = "0.3 0.3 0.9 0.95" if "2, 2" in shape or "-" in shape else "0.3 0.3 2 0.9 0.95 1"
    fill(tmp_path, "images", "labels", "txt", f"{label(1).strip()} {points}\n", 10)
    (tmp_path / "data.yaml").write_text(f"kpt_shape: {shape}\nnames: [cat, dog]\n")
    assert first_box(load_detection(tmp_path, holdout=0)) == list(BOX)


@pytest.mark.parametrize("form", ["images/{0}|labels/{0}", "{0}/images|{0}/labels"])
@pytest.mark.parametrize("part", ["test", "val"])
def test_a_part_of_yolo_without_labels_is_left_aside_and_told(tmp_path: Path, form: str, part: str) -> None:
    for name, first in (("train", 0), (part, 50)):
        fill(tmp_path, *form.format(name).split("|"), "txt", label(0), 8, first)
    for path in (tmp_path / form.format(part).split("|")[1]).iterdir():
        path.unlink()
    (tmp_path / form.format(part).split("|")[1]).rmdir()
    (tmp_path / "classes.txt").write_text("cat\n")
    data = load_detection(tmp_path)
    assert len(data.train) + len(data.holdout) + len(data.test) == 8
    assert any("left aside: its 8 pictures have no labels" in note and part in note for note in data.notes)


def test_yolos_polygons_and_images_without_labels(tmp_path: Path) -> None:
    fill(tmp_path, "images", "labels", "txt", f"0 {2 / 24} {3 / 20} {12 / 24} {5 / 20} {4 / 24} {11.5 / 20}\n", 8)
    (tmp_path / "classes.txt").write_text("cat\n")
    (tmp_path / "labels/3.txt").unlink()
    (tmp_path / "labels/4.txt").write_text("")
    data = load_detection(tmp_path, holdout=0)
    assert first_box(data) == list(BOX) and len(data.train) + len(data.test) == 8
    assert any("1 of 8 pictures" in note for note in data.notes)


@pytest.mark.parametrize("line, why", [
    ("0 0.5 0.5", "line 1 is no class"), ("cat 0.5 0.5 0.1 0.1", "line 1 is no label"), ("0.5 0.5 0.5 0.1 0.1", "line 1 is no class"),
    ("0 0.1 0.2 0.3 0.4 0.5", "line 1 is no class"), ("-1 0.5 0.5 0.1 0.1", "line 1 is no class"),
])  # fmt: skip
def test_a_line_that_is_no_label_is_skipped_and_told(tmp_path: Path, line: str, why: str) -> None:
    fill(tmp_path, "images", "labels", "txt", label(0), 8)
    (tmp_path / "classes.txt").write_text("cat\n")
    (tmp_path / "labels/2.txt").write_text(line)
    (tmp_path / "labels/other.txt").write_text(label(0))
    data = load_detection(tmp_path)
    assert [one.why.startswith(why) for one in data.skipped].count(True) == 1 and len(data.skipped) == 2


def test_yolo_without_names_or_with_too_few_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "images", "labels", "txt", label(2), 8)
    with pytest.raises(InputError, match=r"nothing names .*classes\.txt"):
        load_detection(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(InputError, match=r"labels/0\.txt line 1 has the class 2"):
        load_detection(tmp_path)


def corners(x: float, y: float, w: float, h: float) -> tuple[float, ...]:
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


@pytest.mark.parametrize("made, what", [
    (lambda *box: tuple(value * 100 for value in box), "no shares"), (corners, "corners"),
    (lambda x, y, w, h: (x - w / 2, y - h / 2, w, h), "left and top"),
])  # fmt: skip
def test_yolo_boxes_of_other_numbers_are_refused(tmp_path: Path, made: Callable[..., tuple[float, ...]], what: str) -> None:
    random = np.random.default_rng(1)
    fill(tmp_path, "images", "labels", "txt", "", 60)
    (tmp_path / "classes.txt").write_text("cat\n")
    for path in sorted((tmp_path / "labels").glob("*.txt")):
        width, height = random.uniform(0.2, 0.5, 2)
        numbers = made(random.uniform(width / 2, 1 - width / 2), random.uniform(height / 2, 1 - height / 2), width, height)
        path.write_text("0 " + " ".join(f"{value:.5f}" for value in numbers))
    with pytest.raises(InputError, match=what):
        load_detection(tmp_path)


@pytest.mark.parametrize(("text", "names"), [
    ("names: [O'Neil, cat]", ("O'Neil", "cat")), ("names: ['a, b', \"c\"]", ("a, b", "c")), ("names: ['it''s']", ("it's",)),
    ("names:\n  - C#\n  - a b  # last\nnc: 2", ("C#", "a b")), ("names: {1: b, 0: a}", ("a", "b")), ("names: [\n a,\n b,\n]\n", ("a", "b")),
    ("path: x\nnames:\n  # none\n\n  0: a\n  1: b: c\ntrain: y", ("a", "b: c")), ("names: [80, 100]", ("80", "100")),
    ("names: [a, b", ()), ("names: 3: x", ()), ("names: coco.names", ()), ("other: 1", ()), ("names:\n  0: a\n  2: b", ()), ("", ()),
    ("names:\n  - 'a # b'\n", ()), ("names:\n  x: 1\n", ()), ("names: {0: a, 0: b}", ()), ("names: [[a], b]", ()), ("names: &x [a]", ()),
])  # fmt: skip
def test_names_in_yaml(text: str, names: tuple[str, ...]) -> None:
    assert yolo._yaml_names(text) == names


def test_names_and_their_count_must_agree(tmp_path: Path) -> None:
    fill(tmp_path, "images", "labels", "txt", label(0), 8)
    (tmp_path / "data.yaml").write_text("nc: 3\nnames: [cat, dog]\n")
    with pytest.raises(InputError, match=r"names 2 classes, and its nc is 3"):
        load_detection(tmp_path)


# ---- what is not read


@pytest.mark.parametrize("files, words", [
    (["a.csv", "pictures/0.png"], (".csv", "Datumaro")), (["0.json", "1.json", "0.png"], (".json", "Datumaro")),
    (["x.tfrecord"], (".tfrecord",)),
])  # fmt: skip
def test_other_formats_are_refused_with_what_is_seen(tmp_path: Path, files: list[str], words: tuple[str, ...]) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"shapes": []}))
    with pytest.raises(InputError) as raised:
        load_detection(tmp_path)
    assert all(word in str(raised.value) for word in words)


# ---- masks


def scenes(root: Path, images: str, truth: str, count: int = 8, first: int = 0) -> None:
    for folder in (images, truth):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        photo(number, (WIDTH, HEIGHT)).save(root / images / f"{number}.png")
        mask = Image.new("P", (WIDTH, HEIGHT))
        mask.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
        mask.paste(1 + number % 2, (0, 0, 9, 9))
        mask.save(root / truth / f"{number}.png")


LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\ndog:0,128,0::\n"


@pytest.mark.parametrize("images", ["JPEGImages", "images"])
def test_vocs_masks_are_read_by_their_lists(tmp_path: Path, images: str) -> None:
    scenes(tmp_path, images, "SegmentationClass")
    scenes(tmp_path, "elsewhere", "SegmentationObject")
    for number in range(20, 25):  # VOC has more images than masks
        photo(number, (WIDTH, HEIGHT)).save(tmp_path / images / f"{number}.png")
    data = load_segmentation(tmp_path, holdout=0)
    assert len(data.train) + len(data.test) == 8 and data.skipped == () and "SegmentationClass" in data.notes[0]
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n1\n2\n3\n4\n")
    (lists / "val.txt").write_text("5\n6\n7\n")
    (lists / "test.txt").write_text("20\n21\n")
    data = load_segmentation(tmp_path, holdout=0)
    assert (len(data.train), len(data.test)) == (5, 3) and data.classes == ("class 0", "class 1", "class 2")
    (tmp_path / "labelmap.txt").write_text(LABELMAP)
    assert load_segmentation(tmp_path).classes == ("background", "cat", "dog")
    for path in (tmp_path / "SegmentationClass").iterdir():
        Image.open(path).convert("RGB").save(path)
    data = load_segmentation(tmp_path)
    assert data.classes == ("background", "cat", "dog") and data.palette == ((0, 0, 0), (128, 0, 0), (0, 128, 0))


@pytest.mark.parametrize("text", ["background\ncat\n", "a:0,0,0::\na:1,1,1::\n", "a:0,0::\n", "# nothing\n", "a:" + "9" * 5000 + ",0,0::\n"])
def test_a_labelmap_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    scenes(tmp_path, "JPEGImages", "SegmentationClass")
    (tmp_path / "labelmap.txt").write_text(text)
    with pytest.raises(InputError, match=r"labelmap\.txt"):
        load_segmentation(tmp_path)


@pytest.mark.parametrize("images, truth", [
    ("image", "mask"), ("Images", "Masks"), ("imgs", "gt"), ("Training/image", "Training/label"), ("image/Train", "mask/Train"),
])  # fmt: skip
def test_masks_are_found_by_other_names(tmp_path: Path, images: str, truth: str) -> None:
    scenes(tmp_path, images, truth)
    assert len(load_segmentation(tmp_path, holdout=0).classes) == 3
