from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilefit.data import ClassificationData, ImageSet, load
from mobilefit.data import folder as folder_module
from mobilefit.errors import InputError

from .conftest import MakeFolder, photo


def names(image_set: ImageSet) -> set[str]:
    return set(image_set.names)


def per_class(image_set: ImageSet) -> list[int]:
    return np.bincount(image_set.labels).tolist()


def assert_disjoint(data: ClassificationData, count: int) -> None:
    parts = [names(data.train), names(data.holdout), names(data.test)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == count


def assert_labels_follow_paths(data: ClassificationData) -> None:
    for part in (data.train, data.holdout, data.test):
        for name, label in zip(part.names, part.labels, strict=True):
            assert data.classes[label] == Path(name).parent.name


def test_class_folders_are_divided_by_the_seed(make_folder: MakeFolder) -> None:
    root = make_folder({"dog": 20, "cat": 10})
    data = load(root, seed=3)
    assert data.classes == ("cat", "dog") and data.name == "set" and data.skipped == ()
    assert per_class(data.test) == [2, 4]
    assert per_class(data.holdout) == [1, 2]
    assert per_class(data.train) == [7, 14]
    assert_disjoint(data, 30)
    assert_labels_follow_paths(data)
    again, other = load(root, seed=3), load(root, seed=4)
    assert again.test.names == data.test.names and again.holdout.names == data.holdout.names
    assert other.test.names != data.test.names
    assert again.fingerprint == other.fingerprint == data.fingerprint


@pytest.mark.parametrize("second", ["val", "valid", "validation", "test"])
def test_a_second_folder_is_the_test_set(make_folder: MakeFolder, second: str) -> None:
    make_folder({"a": 10, "b": 20}, "train")
    root = make_folder({"a": 3, "b": 2}, second)
    data = load(root, holdout=0.2)
    assert per_class(data.test) == [3, 2]
    assert {Path(name).parents[1].name for name in data.test.names} == {second}
    assert per_class(data.holdout) == [2, 4] and per_class(data.train) == [8, 16]
    assert_disjoint(data, 35)
    assert_labels_follow_paths(data)


def test_val_beside_test_is_the_held_out_part(make_folder: MakeFolder) -> None:
    make_folder({"a": 4, "b": 5}, "train")
    make_folder({"a": 2, "b": 2}, "val")
    root = make_folder({"a": 1, "b": 3}, "test")
    data = load(root)
    assert per_class(data.train) == [4, 5]
    assert {Path(name).parents[1].name for name in data.holdout.names} == {"val"}
    assert per_class(data.test) == [1, 3]


def test_train_alone_is_divided(make_folder: MakeFolder) -> None:
    data = load(make_folder({"a": 10, "b": 10}, "train"))
    assert per_class(data.test) == [2, 2]
    assert_disjoint(data, 20)


def test_nothing_is_held_out_on_request(make_folder: MakeFolder) -> None:
    data = load(make_folder({"a": 5, "b": 5}), holdout=0)
    assert len(data.holdout) == 0 and per_class(data.train) == [4, 4]


def test_other_files_are_ignored_and_deeper_ones_found(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 3, "b": 3})
    (root / "a" / "notes.txt").write_text("no image")
    (root / "a" / ".hidden.png").write_bytes(b"x")
    (root / ".git").mkdir()
    (root / "README.md").write_text("x")
    (root / "a" / "deeper").mkdir()
    photo(1).save(root / "a" / "deeper" / "UPPER.JPG", "JPEG")
    data = load(root)
    assert data.classes == ("a", "b") and data.skipped == ()
    assert len(data.train) + len(data.holdout) + len(data.test) == 7


def test_images_smaller_than_the_stride_are_enlarged(make_folder: MakeFolder) -> None:
    data = load(make_folder({"a": 4, "b": 4}, size=(5, 4)))
    assert data.test.images([0], 64).shape == (1, 3, 64, 64)
    assert data.short_side == 4 and data.preset(64).crop_fraction == 1.0


def test_photos_are_cropped_by_the_preset(make_folder: MakeFolder) -> None:
    assert load(make_folder({"a": 3, "b": 3}, size=(70, 90))).preset(64).crop_fraction == 0.875


def bad_files(root: Path) -> dict[str, str]:
    whole = root / "a" / "whole.jpg"
    photo(7, (64, 64)).save(whole)
    (root / "a" / "truncated.jpg").write_bytes(whole.read_bytes()[:700])
    (root / "b" / "text.jpg").write_text("hello\n" * 50)
    Image.new("RGB", (1, 1)).save(root / "b" / "dot.png")
    return {"truncated.jpg": "truncated", "text.jpg": "not an image", "dot.png": "1x1"}


def test_bad_files_are_named_counted_and_skipped(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 4, "b": 4})
    expected = bad_files(root)
    data = load(root)
    assert {Path(file.path).name for file in data.skipped} == set(expected)
    for file in data.skipped:
        assert expected[Path(file.path).name] in file.why
    assert_disjoint(data, 9)
    assert not {file.path for file in data.skipped} & names(data.train)


def test_too_many_bad_files_are_refused(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 18, "b": 18})
    bad_files(root)  # three, always allowed
    assert len(load(root).skipped) == 3
    (root / "a" / "z_empty.png").touch()  # the fourth of 41: under 10 %
    assert len(load(root).skipped) == 4
    (root / "a" / "z_empty2.png").touch()  # the fifth of 42: over
    message = (
        r"5 of the 42 image files in .*set are bad: .*a/truncated\.jpg \(truncated\), "
        r".*z_empty\.png \(empty file\), .* and 2 more; .*10%"
    )
    with pytest.raises(InputError, match=message):
        load(root)


def test_a_class_left_without_images_is_refused(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 4, "b": 4, "c": 0})
    (root / "c" / "only.jpg").write_text("not a photo")
    with pytest.raises(InputError, match=r"class 'c' has 0 usable .*only\.jpg \(not an image\)"):
        load(root)


def test_a_class_too_small_to_divide_is_refused(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 4, "b": 2})
    with pytest.raises(InputError, match=r"class 'b' has 2 usable images .* needs 3"):
        load(root)
    assert per_class(load(root, holdout=0).train) == [3, 1]


def test_no_such_folder_suggests_the_data_set() -> None:
    with pytest.raises(InputError, match=r"'fashion-mnits'; did you mean 'fashion-mnist'\?"):
        load("fashion-mnits")
    with pytest.raises(InputError, match="no such folder or data set: '/no/where'; give a folder"):
        load("/no/where")


def test_bad_layouts_are_refused(make_folder: MakeFolder, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is not a folder"):
        load(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no class folders; put the images"):
        load(tmp_path / "empty")
    root = make_folder({"only": 5})
    with pytest.raises(InputError, match="one class alone, 'only'"):
        load(root)
    (root / "vacant").mkdir()
    with pytest.raises(InputError, match=r"no image in .*set/vacant"):
        load(root)


def test_differing_classes_are_named(make_folder: MakeFolder) -> None:
    make_folder({"a": 4, "b": 4, "c": 4}, "train")
    root = make_folder({"a": 1, "b": 1, "d": 1}, "val")
    with pytest.raises(InputError, match="val lacks c and has d, which train lacks"):
        load(root)


def test_two_validation_folders_are_refused(make_folder: MakeFolder) -> None:
    for part in ("train", "val", "validation"):
        root = make_folder({"a": 4, "b": 4}, part)
    with pytest.raises(InputError, match="both val and validation"):
        load(root)


@pytest.mark.parametrize("holdout", [-0.1, 0.6])
def test_holdout_out_of_range(make_folder: MakeFolder, holdout: float) -> None:
    with pytest.raises(InputError, match="holdout"):
        load(make_folder({"a": 4, "b": 4}), holdout=holdout)


def test_fingerprint_follows_the_content(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 4, "b": 4})
    before = load(root).fingerprint
    photo(99).save(root / "a" / "000.png")
    changed = load(root).fingerprint
    (root / "a" / "000.png").rename(root / "b" / "zzz.png")
    assert len({before, changed, load(root).fingerprint}) == 3


def whole(position: int, size: tuple[int, int]) -> tuple[float, float, float, float]:
    return 0, 0, *size


def test_training_pixels_do_not_depend_on_memory(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder({"a": 6, "b": 6}, size=(400, 300), ext="jpg")
    in_memory = load(root).train
    monkeypatch.setattr(folder_module, "KEPT_BYTES", 2 * 256 * 341 * 3)  # the first two fit
    from_disk = load(root).train
    kept, read = (part.crops(range(8), 32, whole) for part in (in_memory, from_disk))
    assert np.array_equal(kept, read)
    Path(from_disk.names[-1]).unlink()
    with pytest.raises(InputError, match="cannot read"):
        from_disk.crops([7], 32, whole)


def test_clothing_photos(shared_data: Path) -> None:
    data = load(shared_data / "clothing")
    assert len(data.classes) == 10 and data.skipped == ()
    assert (len(data.train) + len(data.holdout), len(data.test)) == (3068, 341)
    assert data.short_side == 192
    assert_labels_follow_paths(data)
