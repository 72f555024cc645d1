"""What a folder is, by its names: parts under other names, a level too high, images for another task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mobilefit.data import ClassificationData, load
from mobilefit.data.detection import load_detection
from mobilefit.data.inspect import inspect_folder
from mobilefit.data.layout import named_parts
from mobilefit.data.segmentation import load_segmentation
from mobilefit.errors import InputError

from .conftest import photo


def fill(root: Path, *folders: str, count: int = 4, ext: str = "png") -> Path:
    """Images in these folders, no two the same."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            photo(sum(map(ord, folder)) * 10 + number).save(root / folder / f"{number}.{ext}")
    return root


def folders_of(data: ClassificationData) -> tuple[str, ...]:
    """The folders at the top that the three sets come from."""
    return tuple(Path(part.names[0]).parents[1].name for part in (data.train, data.holdout, data.test))


def refused(root: Path, *words: str) -> None:
    with pytest.raises(InputError) as raised:
        load(root)
    assert all(word in str(raised.value) for word in words), str(raised.value)
    with pytest.raises(InputError):
        inspect_folder(root, resolution=16)


@pytest.mark.parametrize("names", [
    ("Training", "Testing"), ("training_set", "test_set"), ("seg_train", "seg_test"), ("TRAIN", "VAL"), ("train_images", "val_images"),
    ("cats_train", "cats_test"), ("TrainSet", "TestSet"), ("train2017", "val2017"), ("trainset", "validset"), ("train", "Validation"),
    ("train", "testing"), ("Train", "dev"),
])  # fmt: skip
def test_parts_under_other_names_are_read_and_told(tmp_path: Path, names: tuple[str, str]) -> None:
    root = fill(tmp_path / "set", *(f"{part}/{name}" for part in names for name in ("a", "b")))
    data = load(root)
    assert data.classes == ("a", "b") and folders_of(data) == (names[0], names[0], names[1])
    assert any(names[1] in note and "test part" in note for note in data.notes)


def test_three_parts_under_other_names_and_a_folder_aside(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", *(f"{part}/{name}" for part in ("Training", "Validation", "Evaluation") for name in ("a", "b")))
    fill(root, "seg_pred")
    data = load(root)
    assert folders_of(data) == ("Training", "Validation", "Evaluation") and any("seg_pred" in note for note in data.notes)


def test_a_part_in_a_folder_of_its_own_name_is_read_and_told(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", *(f"seg_{part}/seg_{part}/{name}" for part in ("train", "test") for name in ("a", "b")))
    data = load(root)
    assert data.classes == ("a", "b") and folders_of(data)[2] == "seg_test" and "seg_train/seg_train" in data.notes[0]


def test_the_usual_names_need_no_word_and_come_first(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", *(f"{part}/{name}" for part in ("train", "val", "test") for name in ("a", "b")))
    assert load(root).notes == ()
    fill(root, "test2/a", "test2/b")
    data = load(root)
    assert folders_of(data) == ("train", "val", "test") and "test2" in data.notes[0]


def test_two_folders_for_one_part_are_refused(tmp_path: Path) -> None:
    refused(fill(tmp_path / "set", *(f"{part}/{name}" for part in ("train1", "train2", "test") for name in ("a", "b"))),
            "train1", "train2")  # fmt: skip


@pytest.mark.parametrize("top, inside, words", [
    (("fold1", "fold2", "fold3"), ("a", "b"), ("fold1", "train", "test")),
    (("split_0", "split_1"), ("a", "b"), ("split_0", "train")),
    (("batch 1", "batch 2"), ("a", "b"), ("batch 1",)),
    (("Testing", "Validation"), ("a", "b"), ("Testing", "no folder for training")),
    (("Dataset", "Other"), ("a", "b"), ("a level too high", "give", "Dataset")),
    (("plants",), ("a", "b"), ("a level too high", "plants")),
    (("plants",), ("Training/a", "Training/b", "Testing/a", "Testing/b"), ("a level too high", "Testing")),
    (("plants",), ("images/Images/a", "images/Images/b"), ("a level too high", "plants/images/Images")),
    (("a", "b"), ("train", "test"), ("holds the parts", "train")),
])  # fmt: skip
def test_what_are_no_classes_is_refused(tmp_path: Path, top: Sequence[str], inside: Sequence[str], words: Sequence[str]) -> None:
    refused(fill(tmp_path / "set", *(f"{one}/{two}" for one in top for two in inside)), *words)


@pytest.mark.parametrize("beside", ["Examples", "samples", "docs"])
def test_a_level_too_high_beside_a_folder_of_examples_is_refused(tmp_path: Path, beside: str) -> None:
    root = fill(tmp_path / "set", "plants/a", "plants/b", "plants/c", beside)
    refused(root, "a level too high", "3 folders", str(root / "plants"))


def test_a_test_folder_beside_classes_is_refused_or_told(tmp_path: Path) -> None:
    refused(fill(tmp_path / "one", "a", "b", "test/a", "test/b"), "test", "no folder for training")
    data = load(fill(tmp_path / "two", "control", "test"))
    assert data.classes == ("control", "test") and "test" in data.notes[0]


def test_a_class_may_have_the_name_of_a_part(tmp_path: Path) -> None:
    data = load(fill(tmp_path / "set", "bus", "plane", "train"))
    assert data.classes == ("bus", "plane", "train") and "train" in data.notes[0]


def test_folders_in_classes_are_told(tmp_path: Path) -> None:
    data = load(fill(tmp_path / "set", "cat/day", "cat/night", "dog/day", "dog/night"))
    assert data.classes == ("cat", "dog") and "day" in data.notes[0]
    assert load(fill(tmp_path / "plain", "cat", "dog")).notes == ()
    domains = fill(tmp_path / "office", *(f"{domain}/images/{name}" for domain in ("amazon", "dslr") for name in ("cup", "pen")))
    assert "cup, pen" in load(domains).notes[0]


@pytest.mark.parametrize("images, truth, ext, task", [
    ("images", "masks", "png", "segment"), ("Images", "labels", "png", "segment"), ("train/images", "train/masks", "png", "segment"),
    ("images/train", "masks/train", "png", "segment"), ("JPEGImages", "SegmentationClass", "png", "segment"),
    ("leftImg8bit/train/x", "gtFine/train/x", "png", "segment"), ("train", "train_labels", "png", "segment"),
    ("JPEGImages", "Annotations", "xml", "detect"), ("images", "annotations", "xml", "detect"), ("train", "train", "xml", "detect"),
    ("images/train", "labels/train", "txt", "detect"), ("train/images", "train/labels", "txt", "detect"),
    ("train2017", "annotations", "json", "detect"), ("imgs", "annotations", "json", "detect"),
])  # fmt: skip
def test_images_for_another_task_are_refused(tmp_path: Path, images: str, truth: str, ext: str, task: str) -> None:
    root = fill(tmp_path / "set", images)
    (root / truth).mkdir(parents=True, exist_ok=True)
    for number in range(4):
        if ext == "png":
            photo(number).save(root / truth / f"{number}.png")
        else:
            (root / truth / f"{number}.{ext}").write_text("x")
    refused(root, f"--task {task}")


def test_boxes_and_masks_a_level_below_are_told(tmp_path: Path) -> None:
    fill(tmp_path / "set", "Dataset/images", "Dataset/masks", "Examples")
    for read, words in ((load_segmentation, ""), (load_detection, " and say --task segment")):
        with pytest.raises(InputError) as raised:
            read(tmp_path / "set")
        assert str(raised.value.hint).startswith(f"give {tmp_path / 'set/Dataset'}{words}, or ")
    refused(tmp_path / "set", "a level too high", "Dataset")


def test_class_folders_are_no_boxes_and_no_masks(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", "cat", "dog")
    for read in (load_detection, load_segmentation):
        with pytest.raises(InputError, match=r"class folders.*leave --task out"):
            read(root)
    masks = fill(tmp_path / "masks", "images", "masks")
    with pytest.raises(InputError, match=r"images and masks.*--task segment"):
        load_detection(masks)


def test_masks_beside_a_classs_images_are_not_read_and_counted(tmp_path: Path) -> None:
    data = load(fill(tmp_path / "set", "covid/images", "covid/masks", "normal/images", "normal/masks"))
    assert data.classes == ("covid", "normal")
    names = [name for part in (data.train, data.holdout, data.test) for name in part.names]
    assert len(names) == 8 and {Path(name).parent.name for name in names} == {"images"}
    (note,) = data.notes
    assert note.startswith("8 ") and "masks" in note


@pytest.mark.parametrize("test", ["test", "test/test"])
def test_a_test_part_without_classes_is_left_aside(tmp_path: Path, test: str) -> None:
    data = load(fill(tmp_path / "set", "train/a", "train/b", test))
    assert data.classes == ("a", "b") and any("test" in note and "left aside" in note for note in data.notes)
    assert {Path(name).parents[1].name for name in data.test.names} == {"train"}


def test_classes_that_differ_in_capitals_are_told(tmp_path: Path) -> None:
    fill(tmp_path / "set", "Cat", "cat")
    if len(list((tmp_path / "set").iterdir())) == 2:  # capitals make a difference here
        data = load(tmp_path / "set")
        assert data.classes == ("Cat", "cat") and "Cat and cat" in data.notes[0]


def test_classes_that_are_named_like_masks_are_read(tmp_path: Path) -> None:
    assert load(fill(tmp_path / "set", "mask", "no_mask")).classes == ("mask", "no_mask")


@pytest.mark.parametrize("name", ["x.tar", "shards.json", "fashion-mnist"])
def test_a_folder_with_the_name_of_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    fill(tmp_path / name, "a", "b")
    monkeypatch.chdir(tmp_path)
    if name == "fashion-mnist":
        with pytest.raises(InputError, match=r"\./fashion-mnist"):
            load(name)
    assert load(f"./{name}").classes == ("a", "b")


@pytest.mark.parametrize("name, part", [
    ("Train", "train"), ("train-set", "train"), ("my_val", None), ("validation images", "val"), ("testing", "test"), ("contest", None),
    ("training shoes", None), ("latest", None), ("valley", None), ("trainer", None), ("test_train", None),
])  # fmt: skip
def test_names_of_parts(tmp_path: Path, name: str, part: str | None) -> None:
    (tmp_path / name).mkdir()
    assert named_parts(tmp_path) == ({part: name} if part else {})
