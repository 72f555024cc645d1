from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mobilefit.data import coco
from mobilefit.data.detection import DetectionData, load_detection
from mobilefit.errors import InputError

from .conftest import photo

Content = dict[str, list[dict[str, Any]]]
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


def content(part: str, count: int, first: int = 0) -> Content:
    """A cat in each image and a dog in every second."""
    notes, images = [], []
    for image in range(first, first + count):
        images.append({"id": image, "file_name": f"{part}{image}.jpg", "width": 24, "height": 20})
        for category in (3, 7)[: 1 + image % 2]:
            notes.append({"id": len(notes), "image_id": image, "category_id": category, "bbox": [2, 3, 10, 8.5],
                          "iscrowd": 0})  # fmt: skip
    return {"images": images, "annotations": notes, "categories": [dict(one) for one in CATEGORIES]}


def write(file: Path, folder: Path, holds: Content) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    for image in holds["images"]:
        photo(sum(map(ord, image["file_name"])), (24, 20)).save(folder / image["file_name"])
    file.write_text(json.dumps(holds))


def make_coco(root: Path, train: Content | None = None, val: Content | None = None) -> Path:
    write(root / "annotations/instances_train2017.json", root / "train2017", train or content("t", 6))
    write(root / "annotations/instances_val2017.json", root / "val2017", val or content("v", 3))
    return root


def stems(data: DetectionData) -> tuple[list[str], ...]:
    return tuple([Path(name).stem for name in part.names] for part in (data.train, data.holdout, data.test))


def test_the_validation_file_is_the_test_set(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "set")
    for other in ("captions_train2017", "person_keypoints_train2017", "image_info_test2017"):
        (root / f"annotations/{other}.json").write_text("{}")
    data = load_detection(root, holdout=0)
    assert data.name == "set" and data.classes == ("cat", "dog") and data.skipped == data.dropped == ()
    assert stems(data) == (["t0", "t1", "t2", "t3", "t4", "t5"], [], ["v0", "v1", "v2"])
    image, truth = data.train.sample(1)
    assert image.size == (24, 20)
    assert truth.boxes.tolist() == [[2, 3, 12, 11.5]] * 2 and truth.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("annotations/instances_{}.json", "{}2017"),
        ("annotations/instances_{}2014.json", "images/{}2014"),
        ("annotations/{}.json", "images"),
        ("{}.json", "{}"),
        ("{}.json", "images/{}"),
        ("{}.json", "."),
        ("{}/_annotations.coco.json", "{}"),
    ],
)
def test_files_and_folders_are_found_by_their_names(tmp_path: Path, file: str, folder: str) -> None:
    for part, letter in (("train", "t"), ("valid", "v")):
        write(tmp_path / file.format(part), tmp_path / folder.format(part), content(letter, 4))
    data = load_detection(tmp_path, holdout=0)
    assert stems(data) == (["t0", "t1", "t2", "t3"], [], ["v0", "v1", "v2", "v3"])


def test_roboflows_three_folders_and_its_supercategory(tmp_path: Path) -> None:
    for part, letter in (("train", "t"), ("valid", "v"), ("test", "x")):
        holds = content(letter, 3)
        holds["categories"] = [{"id": 0, "name": "pets", "supercategory": "none"},
                               *({**one, "supercategory": "pets"} for one in CATEGORIES)]  # fmt: skip
        write(tmp_path / part / coco.ROBOFLOW, tmp_path / part, holds)
    data = load_detection(tmp_path)
    assert data.classes == ("cat", "dog")
    assert stems(data) == (["t0", "t1", "t2"], ["v0", "v1", "v2"], ["x0", "x1", "x2"])


def test_one_file_alone_is_divided_by_the_seed(tmp_path: Path) -> None:
    write(tmp_path / "annotations/instances_default.json", tmp_path / "images/default", content("t", 20))
    train, holdout, test = stems(load_detection(tmp_path))
    assert (len(train), len(holdout), len(test)) == (14, 2, 4) and len({*train, *holdout, *test}) == 20


def test_a_category_that_no_box_has_is_still_a_class(tmp_path: Path) -> None:
    holds = content("t", 6)
    holds["categories"].insert(0, {"id": 1, "name": "ant", "supercategory": "insect"})
    assert load_detection(make_coco(tmp_path, holds)).classes == ("ant", "cat", "dog")


def test_files_are_brought_together_by_the_names_of_categories(tmp_path: Path) -> None:
    val = content("v", 2)
    val["categories"] = [{"id": 3, "name": "dog"}, {"id": 7, "name": "cat"}]
    data = load_detection(make_coco(tmp_path, None, val), holdout=0)
    assert data.classes == ("cat", "dog") and data.test.truth(1).labels.tolist() == [1, 0]


def test_a_category_that_the_training_file_lacks_is_an_error(tmp_path: Path) -> None:
    val = content("v", 2)
    val["categories"][0]["name"] = "wolf"
    with pytest.raises(InputError, match=r"val2017\.json has the category 'wolf', which .*train2017\.json lacks"):
        load_detection(make_coco(tmp_path, None, val))


def test_crowds_are_kept_and_flagged(tmp_path: Path) -> None:
    holds = content("t", 6)
    holds["annotations"][1]["iscrowd"] = 1
    data = load_detection(make_coco(tmp_path, holds), holdout=0)
    assert data.train.truth(1).crowd.tolist() == [True, False]
    assert data.train.counts.tolist() == [5, 3]


def test_images_without_annotations_are_kept(tmp_path: Path) -> None:
    holds = content("t", 6)
    holds["annotations"] = [note for note in holds["annotations"] if note["image_id"] != 2]
    data = load_detection(make_coco(tmp_path, holds), holdout=0)
    assert len(data.train) == 6 and len(data.train.truth(2)) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"category_id": 77}, "annotation 4 has the category_id 77, which is not listed"),
        ({"category_id": None}, "annotation 4 has no category_id"),
        ({"category_id": "cat"}, "annotation 4 has the category_id cat, which is not listed"),
    ],
)
def test_an_annotation_without_a_known_category_is_an_error(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    holds = content("t", 6)
    holds["annotations"][4].update(change)
    with pytest.raises(InputError) as error:
        load_detection(make_coco(tmp_path, holds))
    assert error.value.message == f"{tmp_path}/annotations/instances_train2017.json: {said}"


def test_further_annotations_without_a_known_category_are_counted(tmp_path: Path) -> None:
    holds = content("t", 6)
    for note in holds["annotations"]:
        del note["category_id"]
    with pytest.raises(InputError, match=r"annotation 0 has no category_id \(and 8 others like it\)"):
        load_detection(make_coco(tmp_path, holds))


def test_an_annotation_of_an_image_that_is_not_listed_is_dropped(tmp_path: Path) -> None:
    holds = content("t", 6)
    holds["annotations"][0]["image_id"] = 99
    data = load_detection(make_coco(tmp_path, holds), holdout=0)
    assert [str(one) for one in data.dropped] == [
        "1 of images that are not listed (annotations/instances_train2017.json annotation 0)"
    ]
    assert len(data.train) == 6 and len(data.train.truth(0)) == 0


def test_an_image_that_is_not_there_is_skipped(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    (root / "train2017/t1.jpg").unlink()
    data = load_detection(root, holdout=0)
    assert [(Path(one.path).name, one.why) for one in data.skipped] == [("t1.jpg", "there is no such picture")]
    assert stems(data)[0] == ["t0", "t2", "t3", "t4", "t5"]


def test_a_file_name_that_leads_out_of_the_folder_is_skipped(tmp_path: Path) -> None:
    holds = content("t", 6)
    root = make_coco(tmp_path / "set", holds)
    photo(1, (24, 20)).save(tmp_path / "secret.jpg")
    holds["images"][1]["file_name"] = "../../secret.jpg"
    (root / "annotations/instances_train2017.json").write_text(json.dumps(holds))
    (skipped,) = load_detection(root).skipped
    assert skipped.path == "../../secret.jpg" and "names a file outside of the folder" in skipped.why


@pytest.mark.parametrize(
    "bbox",
    [None, [1, 2, 3], [1, 2, float("nan"), 4], [1, 2, 10**400, 4], ["a", 1, 2, 3], "1234", {"x": 1}, [[1], 2, 3, 4]],
)
def test_a_box_of_no_four_numbers_is_dropped(tmp_path: Path, bbox: object) -> None:
    holds = content("t", 6)
    holds["annotations"][0]["bbox"] = bbox
    data = load_detection(make_coco(tmp_path, holds), holdout=0)
    (dropped,) = data.dropped
    assert str(dropped) == "1 without four finite numbers (annotations/instances_train2017.json annotation 0)"
    assert len(data.train.truth(0)) == 0


def test_an_image_of_another_size_than_its_file_says_is_skipped(tmp_path: Path) -> None:
    holds = content("t", 6)
    holds["images"][1].update(width=48, height=40)
    holds["images"][2].update(width=None, height=None)
    data = load_detection(make_coco(tmp_path, holds), holdout=0)
    assert [one.why for one in data.skipped] == ["the picture has 24x20 pixels, its annotation is for 48x40"]
    assert stems(data)[0] == ["t0", "t2", "t3", "t4", "t5"]


def test_broken_json_is_named_with_its_line(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    (root / "annotations/instances_val2017.json").write_text('{\n"images": [\n{"id": 1,}]}')
    with pytest.raises(InputError, match=r"val2017\.json is broken JSON, line 3, column \d+: "):
        load_detection(root)


@pytest.mark.parametrize("text", ['{"a": ' * 100_000, b"\xff\xfe\x81".decode("latin1")])
def test_what_is_no_json_at_all_is_an_error(tmp_path: Path, text: str) -> None:
    root = make_coco(tmp_path)
    (root / "annotations/instances_val2017.json").write_text(text, "latin1")
    with pytest.raises(InputError, match=r"val2017\.json is (no|broken) JSON"):
        load_detection(root)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda holds: holds.pop("annotations"), "lacks the list annotations; it is no COCO file"),
        (lambda holds: holds.update(images=[1, 2]), "lacks the list images; it is no COCO file"),
        (lambda holds: holds["images"][1].pop("file_name"), "image number 2 lacks its id or file_name"),
        (lambda holds: holds["images"][1].update(id=0), "two images have the id 0"),
        (lambda holds: holds.update(images=[]), "lists no images"),
        (lambda holds: holds["categories"][0].pop("name"), 'a category lacks its id or name: {"id": 7}'),
        (lambda holds: holds["categories"][0].update(name="cat"), "two categories have the id 3 or the name 'cat'"),
        (lambda holds: holds.update(categories=[]), "lists no categories"),
    ],
)
def test_a_file_that_lacks_something_is_an_error(tmp_path: Path, change: Any, said: str) -> None:
    root, holds = make_coco(tmp_path), content("t", 6)
    change(holds)
    (root / "annotations/instances_train2017.json").write_text(json.dumps(holds))
    with pytest.raises(InputError) as error:
        load_detection(root)
    assert said in str(error.value) and "instances_train2017.json" in str(error.value)


def test_pictures_that_are_nowhere_are_an_error_that_says_where_was_looked(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    (root / "val2017").rename(root / "pictures")
    with pytest.raises(InputError, match=r"such as v0\.jpg: looked in .*; put the pictures into .*val2017"):
        load_detection(root)


def test_two_files_for_one_part_are_an_error(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    (root / "annotations/instances_train2014.json").write_text("{}")
    with pytest.raises(InputError, match=r"train2014\.json and .*train2017\.json are both for train"):
        load_detection(root)


def test_without_a_file_for_training_there_is_an_error(tmp_path: Path) -> None:
    root = make_coco(tmp_path)
    (root / "annotations/instances_train2017.json").unlink()
    with pytest.raises(InputError, match="has annotations for val alone; add a file for train"):
        load_detection(root)


@pytest.mark.parametrize(
    ("name", "part"),
    [("train2017", "train"), ("Train", "train"), ("training", "train"), ("valid", "val"), ("validation", "val"),
     ("val_images", "val"), ("test-dev2017", "test"), ("trainval", None), ("testimony", None), ("images", None)],
)  # fmt: skip
def test_parts_are_known_by_the_beginning_of_a_name(name: str, part: str | None) -> None:
    assert coco.part_of(name) == part
