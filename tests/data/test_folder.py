from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from mobilefit.data import ClassificationData, ImageSet, Preset, load
from mobilefit.data import folder as folder_module
from mobilefit.data import images as images_module
from mobilefit.data import lazy as lazy_module
from mobilefit.data.folder import Paths, image_files
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


def test_one_image_a_class_is_refused_with_what_is_needed(make_folder: MakeFolder) -> None:
    with pytest.raises(InputError) as refused:
        load(make_folder({"a": 1, "b": 1, "c": 1}))
    assert str(refused.value) == (
        "class 'a' has 1 usable images in its train part, and needs 3 (2 more classes lack some too); "
        "add images or remove the class folder"
    )


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


def test_differences_of_all_parts_are_told_at_once(make_folder: MakeFolder) -> None:
    make_folder({"a": 4, "b": 4}, "train")
    make_folder({"a": 1}, "val")
    root = make_folder({"a": 1, "b": 1, "c": 1}, "test")
    with pytest.raises(InputError, match=r"val lacks b; .*test has c, which train lacks; both must"):
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
    monkeypatch.setattr(folder_module, "ROOM", 2 * 256 * 341 * 3)  # the first two fit
    from_disk = load(root).train
    kept, read = (part.crops(range(8), 32, whole) for part in (in_memory, from_disk))
    assert np.array_equal(kept, read)
    Path(from_disk.names[-1]).unlink()
    with pytest.raises(InputError, match="cannot read"):
        from_disk.crops([7], 32, whole)


def test_remembered_pixels_are_bounded_and_stay_in_one_process(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder({"a": 3, "b": 3}, size=(300, 280))
    monkeypatch.setattr(images_module, "REMEMBERED_BYTES", 32 * 32 * 3)  # one image
    bounded = load(root).test
    monkeypatch.setattr(images_module.os, "getpid", lambda: -1)  # what a forked worker sees
    bounded.squares([1], 32, 1.0)
    monkeypatch.undo()
    monkeypatch.setattr(images_module, "REMEMBERED_BYTES", 32 * 32 * 3)
    first = bounded.squares([0], 32, 1.0)[0]
    bounded.squares([1], 32, 1.0)
    for name in bounded.names:
        Path(name).unlink()
    assert np.array_equal(bounded.squares([0], 32, 1.0)[0], first)
    with pytest.raises(InputError, match="cannot read"):
        bounded.squares([1], 32, 1.0)


# ---- what is a file of a class


def test_links_in_a_circle_end(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 4, "b": 4})
    elsewhere = make_folder({"c": 2}, "../elsewhere").parent / "elsewhere" / "c"
    (root / "a" / "circle").symlink_to(root / "a")
    (root / "a" / "linked").symlink_to(elsewhere)
    assert len(image_files(root / "a")) == 6
    (root / "b" / "lost.png").symlink_to(root / "nowhere.png")
    (skipped,) = load(root).skipped
    assert skipped.path.endswith("lost.png") and skipped.why.startswith("cannot be read")


def test_what_is_no_file_is_not_opened(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 4, "b": 4})
    os.mkfifo(root / "a" / "pipe.png")  # reading it would wait for ever
    assert load(root).skipped == () and len(image_files(root / "a")) == 4


def test_files_come_in_the_order_of_their_paths(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 3, "a/b": 2, "a/001": 1, "a-b": 1, "B": 1})
    assert image_files(root) == sorted(image_files(root)) and len(image_files(root)) == 8


# ---- more files than are looked at


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any folder counts as a large one."""
    monkeypatch.setattr(folder_module, "LOOKED_AT", 0)


@pytest.mark.parametrize("kind", [("a", "train"), ("", "")])
def test_a_large_folder_gives_the_pixels_of_a_small_one(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, kind: tuple[str, str]
) -> None:
    root = make_folder({"a": 12, "b": 9}, kind[1], size=(400, 300), ext="jpg")
    small = load(root, seed=5)
    monkeypatch.setattr(folder_module, "LOOKED_AT", 20)
    large = load(root, seed=5)
    assert large.classes == small.classes and large.short_side == small.short_side == 300
    preset = Preset(resolution=32)
    for part in ("train", "holdout", "test"):
        one, other = getattr(small, part), getattr(large, part)
        assert one.names == other.names and np.array_equal(one.labels, other.labels)
        everything = range(len(one))
        assert np.array_equal(one.crops(everything, 32, whole), other.crops(everything, 32, whole))
        squares = other.squares(everything, preset.resolution, preset.crop_fraction)
        assert all(np.array_equal(square, preset.pixels(name)) for square, name in zip(squares, other.names))


def test_only_a_sample_of_a_large_folder_is_decoded(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, large: None
) -> None:
    looked_at: list[Path] = []
    original = folder_module.look_at
    monkeypatch.setattr(folder_module, "SAMPLE", 4)
    monkeypatch.setattr(folder_module, "look_at", lambda path: looked_at.append(path) or original(path))
    data = load(make_folder({"a": 20, "b": 20}))
    assert len(data.train) + len(data.holdout) + len(data.test) == 40
    assert len(looked_at) == 4 and {path.parent.name for path in looked_at} == {"a", "b"}


def test_the_fingerprint_of_a_large_folder_follows_names_and_sizes(
    make_folder: MakeFolder, large: None
) -> None:
    root = make_folder({"a": 4, "b": 4})
    found = [load(root).fingerprint, load(root, seed=1).fingerprint]
    assert len(set(found)) == 1
    (root / "a" / "000.png").rename(root / "a" / "0000.png")
    found.append(load(root).fingerprint)
    (root / "a" / "0000.png").rename(root / "b" / "0000.png")
    found.append(load(root).fingerprint)
    with (root / "b" / "0000.png").open("ab") as file:
        file.write(b"\0")
    assert len({*found, load(root).fingerprint}) == 4


def test_a_bad_file_of_a_large_folder_is_replaced_and_named_once(
    make_folder: MakeFolder, large: None, capfd: pytest.CaptureFixture[str]
) -> None:
    make_folder({"a": 5, "b": 5}, "train")
    root = make_folder({"a": 3, "b": 3}, "val")
    data = load(root, holdout=0)
    (root / "train" / "a" / "001.png").write_bytes(b"not an image")
    (root / "train" / "a" / "002.png").unlink()
    (root / "train" / "a" / "002.png").symlink_to(root / "nowhere")
    (root / "train" / "b" / "004.png").write_bytes((root / "train" / "b" / "004.png").read_bytes()[:300])
    for _ in range(2):
        crops = data.train.crops(range(10), 16, whole)
    assert [np.array_equal(crops[place], crops[3]) for place in range(5)] == [False, True, True, True, False]
    assert np.array_equal(crops[9], crops[5])  # from the beginning after the last
    assert len({crop.tobytes() for crop in crops}) == 7
    assert [Path(name).name for name in data.train.replaced] == ["001.png", "002.png", "004.png"]
    assert data.test.replaced == () == data.train.subset([0, 3]).replaced
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 3 and all("another image of its class takes its place" in line for line in said)
    assert any("001.png as an image: not an image" in line for line in said)
    again = load(root, holdout=0).train.crops(range(9, -1, -1), 16, whole)  # a resumed run
    assert np.array_equal(again[::-1], crops)


def test_no_image_stands_for_one_of_another_part(
    make_folder: MakeFolder, large: None, capfd: pytest.CaptureFixture[str]
) -> None:
    make_folder({"a": 5, "b": 5}, "train")
    root = make_folder({"a": 1, "b": 1}, "val")
    data = load(root)
    (root / "val" / "a" / "000.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"no usable image is left to stand for .*val/a/000\.png"):
        data.test.squares([0], 16, 1.0)
    assert len(data.train.squares(range(8), 16, 1.0)) == 8


def test_a_large_folder_stops_where_too_much_is_bad(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, large: None, capfd: pytest.CaptureFixture[str]
) -> None:
    root = make_folder({"a": 30, "b": 30}, size=(8, 8))
    data = load(root, holdout=0)
    for name in data.train.names[:14:2]:
        Path(name).write_bytes(b"gone bad")
    monkeypatch.setattr(lazy_module, "TOLD", 2)
    data.train.crops(range(12), 8, whole)
    assert [line[:7] for line in capfd.readouterr().err.splitlines()] == ["cannot ", "cannot ", "further"]
    with pytest.raises(InputError, match=r"7 of 60 images turned out bad, the last: .*; at most 10%"):
        data.train.crops([12], 8, whole)
    with pytest.raises(InputError, match=r"7 of the 60 sampled image files in .* are bad"):
        load(root)


def test_empty_files_of_a_large_folder_are_known_from_their_size(
    make_folder: MakeFolder, large: None
) -> None:
    root = make_folder({"a": 6, "b": 6})
    (root / "a" / "003.png").write_bytes(b"")
    data = load(root)
    assert [(Path(file.path).name, file.why) for file in data.skipped] == [("003.png", "empty file")]
    assert len(data.train) + len(data.holdout) + len(data.test) == 11


def test_worker_processes_share_what_is_bad(
    make_folder: MakeFolder, large: None, capfd: pytest.CaptureFixture[str]
) -> None:
    data = load(make_folder({"a": 10, "b": 10}), holdout=0)
    Path(data.train.names[2]).write_bytes(b"not an image")

    class Crops:
        def __len__(self) -> int:
            return 16

        def __getitem__(self, number: int) -> np.ndarray:
            return data.train.crops([2, number], 16, whole)

    loader = DataLoader(Crops(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    made = [crops.numpy() for crops in loader]
    assert all(np.array_equal(crops[0], made[0][0]) for crops in made)
    here = np.stack([Crops()[number] for number in range(16)])
    assert np.array_equal(np.stack(made), here)
    assert data.train.replaced == (data.train.names[2],)  # this process too
    assert capfd.readouterr().err.count("takes its place") <= 2  # once, or by both at the same time


def test_names_that_are_no_text_can_be_read(make_folder: MakeFolder, large: None) -> None:
    root = make_folder({"a": 4, "b": 4})
    photo(5).save(root / "a" / "x.png")
    os.rename(root / "a" / "x.png", os.fsencode(root / "a") + b"/\xff\n.png")
    data = load(root, holdout=0)
    assert data.skipped == () and len(data.train.crops(range(len(data.train)), 8, whole)) == 7
    assert len(data.fingerprint) == 64


def test_paths_are_a_sequence_of_strings() -> None:
    ends, folder = np.array([1, 4, 5]), np.array([0, 0, 1], np.int32)
    paths = Paths(["x", "y/z"], folder, b"abcde", ends)
    assert list(paths) == ["x/a", "x/bcd", "y/z/e"] and paths[1:] == ["x/bcd", "y/z/e"]
    assert paths[-1] == "y/z/e" and paths[-3] == "x/a" and "x/bcd" in paths
    with pytest.raises(IndexError):
        _ = paths[3]
    other = Paths(["x", "y/z"], folder, b"abcde", np.array([2, 4, 5]))
    assert paths.digest() == Paths(["u", "v"], folder, b"abcde", ends).digest() != other.digest()


def test_clothing_photos(shared_data: Path) -> None:
    data = load(shared_data / "clothing")
    assert len(data.classes) == 10 and data.skipped == ()
    assert (len(data.train) + len(data.holdout), len(data.test)) == (3068, 341)
    assert data.short_side == 192
    assert_labels_follow_paths(data)
