from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mobilefit.data import voc
from mobilefit.data.detection import DetectionData, load_detection
from mobilefit.errors import InputError

from .conftest import photo

Thing = tuple[str, float, float, float, float]
CAT: Thing = ("cat", 2, 3, 12, 13)


def thing_xml(thing: Sequence[object], difficult: object = 0) -> str:
    name, *corners = thing
    sides = "".join(f"<{side}>{at}</{side}>" for side, at in zip(voc.CORNERS, corners))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{sides}</bndbox></object>"


def annotation_xml(things: Sequence[Sequence[object]], size: tuple[int, int] | None = (24, 20)) -> str:
    stated = "" if size is None else f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation><filename>x.jpg</filename>{stated}{''.join(map(thing_xml, things))}</annotation>"


def write_image(root: Path, name: str, xml: str | None, size: tuple[int, int] = (24, 20)) -> None:
    """An annotation and its picture; no annotation for None."""
    for folder in ("Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    photo(sum(map(ord, name)) % 1000, size).save(root / "JPEGImages" / f"{name}.jpg")
    if xml is not None:
        (root / "Annotations" / f"{name}.xml").write_text(xml)


def write_list(root: Path, part: str, names: Sequence[str]) -> None:
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))


def make_voc(root: Path, **lists: int) -> Path:
    """So many images in each list, with a cat in each and a dog in every second."""
    for part, count in lists.items():
        names = [f"{part}{number}" for number in range(count)]
        for number, name in enumerate(names):
            write_image(root, name, annotation_xml([CAT, ("dog", 1, 1, 24, 20)][: 1 + number % 2]))
        write_list(root, part, names)
    return root


def stems(data: DetectionData) -> tuple[list[str], ...]:
    return tuple([Path(name).stem for name in part.names] for part in (data.train, data.holdout, data.test))


def test_the_validation_list_is_the_test_set_where_there_is_no_test_list(tmp_path: Path) -> None:
    data = load_detection(make_voc(tmp_path / "set", train=10, val=3), holdout=0.2)
    assert data.name == "set" and data.classes == ("cat", "dog") and data.skipped == data.dropped == ()
    train, holdout, test = stems(data)
    assert test == ["val0", "val1", "val2"] and len(holdout) == 2
    assert sorted(train + holdout) == [f"train{number}" for number in range(10)]


def test_with_a_test_list_the_validation_list_is_held_out(tmp_path: Path) -> None:
    train, holdout, test = stems(load_detection(make_voc(tmp_path, train=4, val=2, test=3)))
    assert train == ["train0", "train1", "train2", "train3"]
    assert holdout == ["val0", "val1"] and test == ["test0", "test1", "test2"]


@pytest.mark.parametrize("given", ["train", "val"])
def test_of_trainval_the_rest_is_taken_that_the_other_list_lacks(tmp_path: Path, given: str) -> None:
    root = make_voc(tmp_path, trainval=6)
    write_list(root, given, ["trainval0", "trainval1"])
    train, _, test = stems(load_detection(root, holdout=0))
    listed, rest = ["trainval0", "trainval1"], [f"trainval{number}" for number in range(2, 6)]
    assert (train, test) == ((listed, rest) if given == "train" else (rest, listed))


@pytest.mark.parametrize("part", ["train", "trainval", None])
def test_one_list_or_none_is_divided_by_the_seed(tmp_path: Path, part: str | None) -> None:
    root = make_voc(tmp_path, **{part or "train": 20})
    if part is None:
        (root / "ImageSets/Main/train.txt").unlink()
    data, other = load_detection(root, seed=1), load_detection(root, seed=2)
    train, holdout, test = stems(data)
    assert (len(train), len(holdout), len(test)) == (14, 2, 4)
    assert len({*train, *holdout, *test}) == 20
    assert stems(load_detection(root, seed=1)) == (train, holdout, test) != stems(other)
    assert data.fingerprint == other.fingerprint


def test_a_test_list_without_annotations_is_left_aside(tmp_path: Path) -> None:
    root = make_voc(tmp_path, train=6, val=2)
    write_image(root, "secret", None)
    write_list(root, "test", ["secret"])
    data = load_detection(root)
    assert stems(data)[2] == ["val0", "val1"] and data.skipped == ()


def test_the_folder_of_a_development_kit_is_found(tmp_path: Path) -> None:
    make_voc(tmp_path / "VOCdevkit" / "VOC2012", train=4, val=2)
    for place in (tmp_path, tmp_path / "VOCdevkit", tmp_path / "VOCdevkit" / "VOC2012"):
        assert load_detection(place).name == "VOC2012"


def test_two_years_in_one_folder_are_an_error(tmp_path: Path) -> None:
    make_voc(tmp_path / "VOC2007", train=4)
    make_voc(tmp_path / "VOC2012", train=4)
    with pytest.raises(InputError, match="holds VOC2007, VOC2012; give one"):
        load_detection(tmp_path)


def test_coordinates_are_edges_as_they_stand(tmp_path: Path) -> None:
    root = make_voc(tmp_path, train=3, val=2)
    write_image(root, "train0", annotation_xml([("cat", 0, 0, 24, 20), ("dog", 1.5, 2.25, 7, 8)]))
    data = load_detection(root, holdout=0)
    image, truth = data.train.sample(0)
    assert image.size == (24, 20) and truth.boxes.dtype == np.float32
    assert truth.boxes.tolist() == [[0, 0, 24, 20], [1.5, 2.25, 7, 8]]
    assert truth.labels.tolist() == [0, 1] and not truth.crowd.any()


def test_difficult_objects_are_flagged_as_crowds(tmp_path: Path) -> None:
    root = make_voc(tmp_path, train=3, val=2)
    hard = annotation_xml([CAT]).replace("</annotation>", thing_xml(("dog", 1, 1, 9, 9), 1) + "</annotation>")
    write_image(root, "train0", hard)
    truth = load_detection(root, holdout=0).train.truth(0)
    assert truth.crowd.tolist() == [False, True]


def test_parts_of_a_person_are_no_objects(tmp_path: Path) -> None:
    root = make_voc(tmp_path, train=3, val=2)
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
    write_image(root, "train0", annotation_xml([CAT]).replace("</object>", part))
    data = load_detection(root, holdout=0)
    assert data.classes == ("cat", "dog") and data.train.truth(0).boxes.tolist() == [[2, 3, 12, 13]]


def test_an_image_without_objects_is_kept(tmp_path: Path) -> None:
    root = make_voc(tmp_path, train=3, val=2)
    write_image(root, "train0", annotation_xml([]))
    image, truth = load_detection(root, holdout=0).train.sample(0)
    assert image.size == (24, 20) and truth.boxes.shape == (0, 4) and len(truth) == 0


@pytest.mark.parametrize("size", [None, (0, 0)])
def test_an_annotation_without_a_size_takes_the_pictures(tmp_path: Path, size: tuple[int, int] | None) -> None:
    root = make_voc(tmp_path, train=3, val=2)
    write_image(root, "train0", annotation_xml([("cat", 4, 4, 40, 18)], size))
    data = load_detection(root, holdout=0)
    assert data.train.truth(0).boxes.tolist() == [[4, 4, 24, 18]]
    assert data.clipped.count == 1 and data.clipped.examples == ("Annotations/train0.xml object 1",)


BOMB = """<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]><annotation><filename>&c;</filename></annotation>"""


@pytest.mark.parametrize(
    ("xml", "why"),
    [
        ("<annotation>\n<object>\n</annotation>", "broken XML: mismatched tag: line 3"),
        ("", "broken XML: no element found: line 1"),
        ("<annotation>\n<name>a & b</name></annotation>", "broken XML: not well-formed (invalid token): line 2"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "broken XML: unknown encoding"),
        ("<html><body/></html>", "not a Pascal VOC annotation: it begins with <html>"),
        (BOMB, "it has a document type, which no annotation needs"),
        (annotation_xml([CAT]).replace("cat", " "), "object 1 has no <name>"),
        (annotation_xml([CAT]).replace("bndbox", "polygon"), "object 1 has no <bndbox>"),
        (annotation_xml([CAT, CAT]).replace("<xmax>12</xmax>", ""), "object 1 has no <xmax>"),
        (annotation_xml([CAT, ("cat", 1, "ten", 3, 4)]), "object 2 has 'ten' for <ymin>"),
        (annotation_xml([CAT], (20, 24)), "the picture has 24x20 pixels, its annotation is for 20x24"),
    ],
)  # fmt: skip
def test_a_bad_annotation_is_skipped_and_says_why(tmp_path: Path, xml: str, why: str) -> None:
    root = make_voc(tmp_path, train=4, val=2)
    write_image(root, "train1", xml)
    data = load_detection(root, holdout=0)
    assert stems(data)[0] == ["train0", "train2", "train3"]
    (skipped,) = data.skipped
    assert Path(skipped.path).stem == "train1" and why in skipped.why and "\n" not in skipped.why


def test_an_annotation_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_voc(tmp_path, train=4, val=2)
    write_image(root, "train1", annotation_xml([CAT]) + " " * (1 << 20))
    monkeypatch.setattr(voc, "MOST_BYTES", 1 << 20)
    assert load_detection(root).skipped[0].why == "1 MB, at most 1 are read"


def test_a_listed_image_without_annotation_and_one_without_picture_are_skipped(tmp_path: Path) -> None:
    root = make_voc(tmp_path, train=5, val=2)
    (root / "Annotations" / "train1.xml").unlink()
    (root / "JPEGImages" / "train2.jpg").unlink()
    data = load_detection(root, holdout=0)
    assert {Path(one.path).name: one.why for one in data.skipped} == {
        "train1.xml": "listed, but there is no such annotation",
        "train2.xml": "there is no picture JPEGImages/train2.jpg",
    }
    assert stems(data)[0] == ["train0", "train3", "train4"]


def test_numbers_that_are_none_are_dropped(tmp_path: Path) -> None:
    root = make_voc(tmp_path, train=3, val=2)
    write_image(root, "train0", annotation_xml([CAT, ("cat", "nan", 1, 5, 5), ("cat", 1, 1, "inf", 5)]))
    data = load_detection(root, holdout=0)
    (dropped,) = data.dropped
    assert str(dropped) == ("2 without four finite numbers (Annotations/train0.xml object 2, "
                            "Annotations/train0.xml object 3)")  # fmt: skip
    assert data.train.truth(0).boxes.tolist() == [[2, 3, 12, 13]]


def test_pictures_of_one_id_are_an_error(tmp_path: Path) -> None:
    root = make_voc(tmp_path, train=3, val=2)
    photo(1).save(root / "JPEGImages" / "train0.png")
    with pytest.raises(InputError, match=r"train0\.jpg and .*train0\.png have one id, 'train0'"):
        load_detection(root)


def test_annotations_without_a_folder_of_pictures_are_an_error(tmp_path: Path) -> None:
    root = make_voc(tmp_path, train=3, val=2)
    (root / "JPEGImages").rename(root / "elsewhere")
    with pytest.raises(InputError, match=r"there is no .*JPEGImages; put the pictures there"):
        load_detection(root)


def test_a_list_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    root = make_voc(tmp_path, train=3, val=2)
    (root / "ImageSets/Main/val.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"cannot read .*val\.txt"):
        load_detection(root)


def test_empty_lists_leave_nothing_to_train_on(tmp_path: Path) -> None:
    root = make_voc(tmp_path, val=3)
    write_list(root, "train", [])
    with pytest.raises(InputError, match=r"lists no images to train on; add train\.txt"):
        load_detection(root)


def test_blood_cells_are_read_and_their_empty_boxes_dropped(shared_data: Path) -> None:
    if not (shared_data / "bccd").is_dir():
        pytest.skip("no bccd in the real data")
    data = load_detection(shared_data / "bccd", seed=5)
    assert data.classes == ("Platelets", "RBC", "WBC") and data.skipped == ()
    assert (len(data.train), len(data.holdout), len(data.test)) == (185, 20, 87)
    counts = data.train.counts + data.holdout.counts + data.test.counts
    assert counts.tolist() == [292, 3348, 301]
    (dropped,) = data.dropped
    assert dropped.why == "without width or height" and dropped.count == 2
    assert set(dropped.examples) == {
        "Annotations/BloodImage_00338.xml object 13", "Annotations/BloodImage_00343.xml object 4"
    }  # fmt: skip
    image, truth = data.test.sample(0)
    assert image.size == (640, 480) and truth.boxes[0].tolist() == [260, 177, 491, 376]
    assert data.classes[truth.labels[0]] == "WBC"
