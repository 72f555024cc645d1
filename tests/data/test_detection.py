from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilefit.data import pictures
from mobilefit.data.decode import read_image
from mobilefit.data.detection import DetectionData, load_detection
from mobilefit.errors import InputError

from .conftest import photo
from .test_voc import CAT, annotation_xml, make_voc, write_image, write_list

BOX = ("cat", 2, 3, 12, 13)


def with_boxes(root: Path, *boxes: tuple[object, ...]) -> DetectionData:
    """A data set whose first training image has these boxes; 30 good ones beside them."""
    make_voc(root, train=3, val=2)
    write_image(root, "train0", annotation_xml(boxes))
    write_image(root, "train1", annotation_xml([BOX] * 30))
    return load_detection(root, holdout=0)


@pytest.mark.parametrize(
    ("box", "why"),
    [
        ((5, 5, 5, 9), "without width or height"),
        ((5, 9, 9, 9.05), "without width or height"),
        ((9, 5, 5, 9), "without width or height"),
        ((30, 5, 40, 9), "outside of the picture"),
        ((3, -9, 7, -1), "outside of the picture"),
        ((24, 1, 30, 9), "outside of the picture"),
        (("nan", 1, 5, 5), "without four finite numbers"),
        ((1, 1, "inf", 5), "without four finite numbers"),
    ],
)
def test_a_box_that_is_none_is_dropped_and_counted(tmp_path: Path, box: tuple[object, ...], why: str) -> None:
    data = with_boxes(tmp_path, BOX, ("dog", *box))
    (dropped,) = data.dropped
    assert (dropped.why, dropped.count) == (why, 1) and dropped.examples == ("Annotations/train0.xml object 2",)
    assert data.train.truth(0).boxes.tolist() == [[2, 3, 12, 13]]
    assert data.train.truth(0).labels.tolist() == [0] and len(data.train.truth(1)) == 30
    assert data.clipped.count == 0


def test_a_box_partly_outside_is_cut_and_counted(tmp_path: Path) -> None:
    data = with_boxes(tmp_path, BOX, ("cat", -5, -1, 30, 19), ("cat", 4, 5, 24.4, 20))
    assert data.train.truth(0).boxes.tolist() == [[2, 3, 12, 13], [0, 0, 24, 19], [4, 5, 24, 20]]
    assert data.dropped == () and str(data.clipped) == "1 cut to the picture (Annotations/train0.xml object 2)"


def test_three_examples_of_many_bad_boxes_are_named(tmp_path: Path) -> None:
    make_voc(tmp_path, train=3, val=2)
    write_image(tmp_path, "train0", annotation_xml([BOX] * 96 + [("cat", 1, 1, 1, 1)] * 5))
    (dropped,) = load_detection(tmp_path).dropped
    assert str(dropped) == "5 without width or height (" + "".join(
        f"Annotations/train0.xml object {number}, " for number in (97, 98, 99)
    ) + "...)"


def test_too_many_bad_boxes_are_an_error_that_counts_them(tmp_path: Path) -> None:
    make_voc(tmp_path, train=3, val=2)
    write_image(tmp_path, "train0", annotation_xml([("cat", 1, 1, 1, 1)] * 3 + [("cat", 90, 1, 99, 9)]))
    with pytest.raises(InputError) as error:
        load_detection(tmp_path)
    assert "4 of the 10 boxes" in error.value.message and "at most 10%" in str(error.value)
    assert "3 without width or height" in error.value.message
    assert "1 outside of the picture (Annotations/train0.xml object 4)" in error.value.message


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "empty file"), (b"no image", "not an image"), (None, "truncated")],
)
def test_a_bad_picture_is_skipped(tmp_path: Path, content: bytes | None, why: str) -> None:
    path = make_voc(tmp_path, train=4, val=2) / "JPEGImages/train1.jpg"
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    data = load_detection(tmp_path, holdout=0)
    assert [(one.path, one.why) for one in data.skipped] == [(str(path), why)]
    assert len(data.train) == 3


def test_too_many_bad_pictures_are_an_error(tmp_path: Path) -> None:
    root = make_voc(tmp_path, train=8, val=2)
    for number in range(4):
        (root / f"JPEGImages/train{number}.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"4 of the 10 annotated images .* are bad: .*train0.jpg \(empty file\)"):
        load_detection(root)


def test_an_image_in_two_lists_is_an_error(tmp_path: Path) -> None:
    root = make_voc(tmp_path, train=4, val=2)
    write_list(root, "val", ["val0", "train2"])
    with pytest.raises(InputError, match=r"1 pictures are listed twice, the first: .*train2.jpg \(train and val\)"):
        load_detection(root)


def test_a_part_without_usable_images_is_an_error_that_says_why(tmp_path: Path) -> None:
    root = make_voc(tmp_path, train=4, val=1)
    (root / "JPEGImages/val0.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"its val part has 0 usable images and needs 1; .*val0.jpg \(empty file\)"):
        load_detection(root)


def test_two_images_are_too_few_for_three_sets(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its train part has 2 usable images and needs 3"):
        load_detection(make_voc(tmp_path, train=2))


@pytest.mark.parametrize(("part", "name"), [("train", "training"), ("val", "test")])
def test_a_part_without_any_box_is_an_error(tmp_path: Path, part: str, name: str) -> None:
    root = make_voc(tmp_path, train=3, val=2)
    for path in root.glob(f"Annotations/{part}*.xml"):
        path.write_text(annotation_xml([]))
    with pytest.raises(InputError, match=f"the {name} images of .* have no box; annotate some"):
        load_detection(root, holdout=0)


def test_a_data_set_without_any_box_is_an_error(tmp_path: Path) -> None:
    root = make_voc(tmp_path, train=3, val=2)
    for path in root.glob("Annotations/*.xml"):
        path.write_text(annotation_xml([]))
    with pytest.raises(InputError, match="has no box to learn from; annotate"):
        load_detection(root)


@pytest.mark.parametrize("holdout", [-0.1, 0.6, float("nan")])
def test_a_holdout_out_of_range_is_an_error(tmp_path: Path, holdout: float) -> None:
    with pytest.raises(InputError, match=r"must be from 0 to 0\.5"):
        load_detection(tmp_path, holdout=holdout)


def test_a_folder_of_anything_else_is_an_error_that_lists_the_layouts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no annotations that are known: it holds nothing; give Pascal VOC"):
        load_detection(tmp_path)
    with pytest.raises(InputError, match="is not a folder; give Pascal VOC"):
        load_detection(tmp_path / "nothing")


def test_a_rare_class_is_divided_as_the_others_are(tmp_path: Path) -> None:
    make_voc(tmp_path, train=40)
    for number in range(10):
        write_image(tmp_path, f"train{number}", annotation_xml([CAT, ("rare", 1, 1, 9, 9)]))
    for seed in range(5):
        data = load_detection(tmp_path, seed=seed, holdout=0.25)
        rare = data.classes.index("rare")
        held, test = data.holdout.counts[rare], data.test.counts[rare]
        assert (len(data.train), len(data.holdout), len(data.test)) == (24, 8, 8) and test == held == 2


def test_the_seed_chooses_what_is_held_out(tmp_path: Path) -> None:
    root = make_voc(tmp_path, train=20, test=2)
    held = [load_detection(root, seed=seed).holdout.names for seed in (0, 0, 1, 2)]
    assert held[0] == held[1] and len(held[0]) == 2 and len(set(held)) > 1


@pytest.mark.parametrize(("most", "side"), [(20_000, 640), (20_000, 40), (0, 640)])
def test_a_turned_photo_is_upright_and_its_size_is_that_of_the_upright_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, side: int
) -> None:
    monkeypatch.setattr(pictures, "LOOKED_AT", most)
    monkeypatch.setattr(pictures, "WORKING_SIDE", side)
    root = make_voc(tmp_path, train=3, val=2)
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(root, "train0", annotation_xml([("cat", 20, 10, 160, 300)], (160, 300)))
    photo(3, (300, 160)).save(root / "JPEGImages/train0.jpg", exif=exif)
    data = load_detection(root, holdout=0)
    image, truth = data.train.sample(0)
    assert data.skipped == () and image.size == (160, 300) and truth.boxes.tolist() == [[20, 10, 160, 300]]
    small, scaled = data.train.working(0)
    factor = min(1.0, side / 160)
    assert small.size == (160 * factor, 300 * factor)
    np.testing.assert_allclose(scaled.boxes, truth.boxes * factor, rtol=1e-6)


def test_a_large_photo_is_reduced_for_training_and_whole_in_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "WORKING_SIDE", 40)
    root = make_voc(tmp_path, train=3, val=2)
    write_image(root, "train0", annotation_xml([("cat", 20, 10, 200, 100)], (300, 160)), (300, 160))
    data = load_detection(root, holdout=0)
    whole, truth = data.train.sample(0)
    exact = read_image(root / "JPEGImages/train0.jpg")
    assert np.array_equal(np.asarray(whole), np.asarray(exact)) and truth.boxes.tolist() == [[20, 10, 200, 100]]
    small, scaled = data.train.working(0)
    assert small.size == (75, 40)
    np.testing.assert_allclose(scaled.boxes, [[5, 2.5, 50, 25]], rtol=1e-6)
    assert np.abs(np.asarray(small, float) - np.asarray(exact.resize((75, 40)), float)).mean() < 4


def test_photos_beyond_the_memory_are_read_again_and_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_voc(tmp_path, train=4, val=2)
    kept = load_detection(root, holdout=0).train
    monkeypatch.setattr(pictures, "ROOM", 24 * 20 * 3 * 2)
    read = load_detection(root, holdout=0).train
    for index in range(4):
        for one, other in ((kept.sample(index), read.sample(index)), (kept.working(index), read.working(index))):
            assert np.array_equal(np.asarray(one[0]), np.asarray(other[0]))
            assert np.array_equal(one[1].boxes, other[1].boxes)
    (root / "JPEGImages/train0.jpg").unlink()
    (root / "JPEGImages/train3.jpg").unlink()
    read.sample(0)
    with pytest.raises(InputError, match=r"cannot read .*train3\.jpg"):
        read.sample(3)


def test_what_a_caller_does_to_an_image_stays_with_the_caller(tmp_path: Path) -> None:
    train = load_detection(make_voc(tmp_path, train=3, val=2), holdout=0).train
    image, _ = train.sample(0)
    before = np.array(image)
    image.paste((1, 2, 3), (0, 0, 24, 20))
    assert np.array_equal(np.asarray(train.sample(0)[0]), before)


def test_a_subset_has_its_images_in_its_order_and_its_own_digest(tmp_path: Path) -> None:
    train = load_detection(make_voc(tmp_path, train=4, val=2), holdout=0).train
    part = train.subset([3, 1]).subset(np.array([1, 0]))
    assert part.names == (train.names[1], train.names[3]) and part.classes == train.classes and len(part) == 2
    assert np.array_equal(np.asarray(part.sample(1)[0]), np.asarray(train.sample(3)[0]))
    assert part.digest == train.subset([1, 3]).digest != train.subset([3, 1]).digest
    assert len(part.digest) == 12 and int(part.digest, 16) >= 0
    assert part.counts.tolist() == [2, 2] and train.subset([0]).counts.tolist() == [1, 0]


def test_digest_and_fingerprint_follow_boxes_and_pixels_but_not_the_place(tmp_path: Path) -> None:
    first = load_detection(make_voc(tmp_path / "a" / "set", train=3, val=2))
    again = load_detection(make_voc(tmp_path / "b" / "set", train=3, val=2))
    assert (first.train.digest, first.fingerprint) == (again.train.digest, again.fingerprint)
    moved = make_voc(tmp_path / "c" / "set", train=3, val=2)
    xml = moved / "Annotations/train0.xml"
    xml.write_text(xml.read_text().replace("<xmin>2<", "<xmin>3<"))
    other = make_voc(tmp_path / "d" / "set", train=3, val=2)
    photo(999).save(other / "JPEGImages/train0.jpg")
    for root in (moved, other):
        data = load_detection(root, holdout=0)
        same = load_detection(tmp_path / "a" / "set", holdout=0)
        assert data.train.digest != same.train.digest and data.fingerprint != same.fingerprint
        assert data.test.digest == same.test.digest


def test_the_preset_is_of_the_whole_picture(tmp_path: Path) -> None:
    preset = load_detection(make_voc(tmp_path, train=3, val=2)).preset(32, 48)
    assert preset.fit == "stretch" and preset.shape == (32, 48)


@pytest.mark.parametrize("kind", ["jpg", "tif", "png", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_header_states_the_size_that_the_pixels_have(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind}"
    photo(1, (72, 64)).save(path, exif=exif)
    assert pictures._glance_at(path)[0].size == pictures._look_at(path)[0].size == (72, 64)[:: -1 if orientation > 4 else 1]


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every data set counts as a large one."""
    monkeypatch.setattr(pictures, "LOOKED_AT", 0)


def break_pixels(path: Path) -> None:
    """The header stays good."""
    path.write_bytes(path.read_bytes()[:-60])


@pytest.mark.usefixtures("unseen")
def test_of_a_large_data_set_the_headers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_voc(tmp_path, train=5, val=2)
    write_image(root, "train1", annotation_xml([CAT], (20, 24)))
    (root / "JPEGImages/train2.jpg").write_bytes(b"no image")
    monkeypatch.setattr(pictures, "decode", None)
    data = load_detection(root, holdout=0)
    assert [one.why for one in data.skipped] == [
        "the picture has 24x20 pixels, its annotation is for 20x24", "not an image"
    ]  # fmt: skip
    image, truth = data.train.sample(0)
    assert image.size == (24, 20) and len(truth) == 1


@pytest.mark.usefixtures("unseen")
def test_a_picture_found_bad_in_use_is_replaced_with_its_boxes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_voc(tmp_path, train=4, val=2)
    data = load_detection(root, holdout=0)
    break_pixels(root / "JPEGImages/train3.jpg")
    for _ in range(2):
        image, truth = data.train.sample(3)  # the next of its part, after the last: the first
        assert np.array_equal(np.asarray(image), np.asarray(data.train.sample(0)[0]))
        assert truth is data.train.truth(0) is data.train.truth(3)
    assert data.train.working(3)[0].size == (24, 20)
    assert data.train.replaced == (str(root / "JPEGImages/train3.jpg"),) and data.test.replaced == ()
    said = capsys.readouterr().err
    assert said.count("train3.jpg") == 1 and "truncated: another picture takes its place" in said


@pytest.mark.usefixtures("unseen")
def test_too_many_pictures_found_bad_in_use_are_an_error(tmp_path: Path) -> None:
    root = make_voc(tmp_path, train=8, val=2)
    data = load_detection(root, holdout=0)
    for number in range(4):
        break_pixels(root / f"JPEGImages/train{number}.jpg")
    with pytest.raises(InputError, match=r"4 of 10 pictures turned out bad, the last: .*train3\.jpg"):
        data.train.sample(0)


@pytest.mark.usefixtures("unseen")
def test_no_picture_of_another_part_stands_for_a_bad_one(tmp_path: Path) -> None:
    root = make_voc(tmp_path, train=8, val=2)
    data = load_detection(root, holdout=0)
    for number in range(2):
        break_pixels(root / f"JPEGImages/val{number}.jpg")
    with pytest.raises(InputError, match=r"no usable picture is left to stand for .*val1\.jpg"):
        data.test.sample(1)
