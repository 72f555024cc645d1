from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilefit.data import folder as folder_module
from mobilefit.data import load
from mobilefit.data.duplicates import MARGIN, NEAR_BITS, near_pairs
from mobilefit.data.inspect import Group, Inspection, inspect_folder
from mobilefit.errors import InputError

from .conftest import MakeFolder, photo

BIG = (96, 80)


def inspect(root: Path, resolution: int = 16) -> Inspection:
    return inspect_folder(root, resolution=resolution)


def jpeg(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def copies(root: Path) -> dict[str, str]:
    """How the files that show one picture are the same, by their names, over all kinds of finding."""
    found = inspect(root)
    groups = [*found.leaks, *found.conflicts, *(one for part in found.duplicates.values() for one in part)]
    return {" ".join(Path(name).name for name in group.files): group.same for group in groups}


# ---- the same picture


def test_different_pictures_are_no_finding(make_folder: MakeFolder) -> None:
    make_folder({"a": 12, "b": 11}, "train", size=BIG, ext="jpg")
    found = inspect(make_folder({"a": 4, "b": 3}, "val", size=BIG, ext="jpg"))
    assert found.leaks == found.conflicts == found.falsified == found.refused == ()
    assert not any(found.duplicates.values()) and not any(found.broken.values())
    assert found.counts == {"train": {"a": 12, "b": 11}, "test": {"a": 4, "b": 3}}
    assert found.images == 30 and not found.divided and found.short_side == 80
    assert found.sizes == {"train": 21, "holdout": 2, "test": 7}


WHOLE = photo(77, (320, 260))

ALTERED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as it is": lambda image: image,
    "halved": lambda image: image.resize((image.width // 2, image.height // 2)),
    "enlarged": lambda image: image.resize((image.width * 2, image.height * 2)),
    "cropped by a per cent": lambda image: image.crop((3, 3, image.width, image.height)),
    "squeezed": lambda image: image.resize((image.width, image.height * 3 // 4)),
}


@pytest.mark.parametrize("how", ALTERED)
@pytest.mark.parametrize("quality", [50, 90])
def test_a_picture_saved_anew_in_another_part_is_a_leak(
    make_folder: MakeFolder, how: str, quality: int
) -> None:
    make_folder({"a": 3, "b": 3}, "train", size=BIG)
    root = make_folder({"a": 2, "b": 2}, "val", size=BIG)
    WHOLE.save(root / "train" / "a" / "one.jpg", quality=95)
    ALTERED[how](WHOLE).save(root / "val" / "a" / "other.jpg", quality=quality)
    found = inspect(root)
    assert found.leaks == (Group(same="nearly the same", files=("train/a/one.jpg", "val/a/other.jpg")),)
    assert found.falsified == ("pictures in more than one part: 1",)
    assert found.conflicts == () and not any(found.duplicates.values())


def test_the_same_bytes_and_the_same_pixels_are_told_apart(make_folder: MakeFolder) -> None:
    make_folder({"a": 2, "b": 2}, "val", size=BIG)
    root = make_folder({"a": 3, "b": 3}, "train", size=BIG)
    folder, content = root / "train" / "a", jpeg(WHOLE)
    (folder / "one.jpg").write_bytes(content)
    (folder / "two.jpg").write_bytes(content)
    assert copies(root) == {"one.jpg two.jpg": "same bytes"}
    (folder / "two.jpg").write_bytes(content[:2] + b"\xff\xfe\0\4hi" + content[2:])  # a comment
    assert copies(root) == {"one.jpg two.jpg": "same pixels"}
    (folder / "two.jpg").unlink()
    Image.open(folder / "one.jpg").save(folder / "two.png")  # decoded at another scale
    assert copies(root) == {"one.jpg two.png": "same pixels"}
    Image.open(folder / "one.jpg").save(folder / "three.bmp")
    assert copies(root) == {"one.jpg three.bmp two.png": "same pixels"}
    WHOLE.save(folder / "two.png")  # before it was compressed
    assert copies(root) == {"one.jpg three.bmp two.png": "nearly the same"}


def test_a_jpeg_is_decoded_finely_enough_to_be_like_a_png(make_folder: MakeFolder) -> None:
    make_folder({"a": 2, "b": 2}, "val", size=BIG)
    root = make_folder({"a": 3, "b": 3}, "train", size=BIG)
    detail = np.random.default_rng(1).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    image = Image.fromarray(detail).resize((160, 130), Image.Resampling.BICUBIC)
    image.save(root / "train" / "a" / "fine.jpg", quality=90)
    image.save(root / "train" / "a" / "fine.png")
    assert copies(root) == {"fine.jpg fine.png": "nearly the same"}


def test_a_group_is_as_sure_as_what_crosses_the_border(make_folder: MakeFolder) -> None:
    make_folder({"a": 3, "b": 3}, "train", size=BIG)
    root = make_folder({"a": 2, "b": 2}, "val", size=BIG)
    for name in ("train/a/1.jpg", "train/b/2.jpg"):
        (root / name).write_bytes(jpeg(WHOLE))
    (root / "val" / "a" / "3.jpg").write_bytes(jpeg(WHOLE, quality=40))
    found, files = inspect(root), ("train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg")
    assert found.leaks == (Group(same="nearly the same", files=files),)
    assert found.conflicts == (Group(same="same bytes", files=files),)
    assert found.duplicates == {"train": (Group(same="same bytes", files=files[:2]),), "test": ()}
    assert len(found.falsified) == 2


def test_copies_within_a_class_of_a_part_falsify_nothing(make_folder: MakeFolder) -> None:
    make_folder({"a": 3, "b": 3}, "train", size=BIG)
    root = make_folder({"a": 2, "b": 2}, "val", size=BIG)
    for part in ("train", "val"):
        image = photo(len(part), BIG)
        for quality in (50, 90):
            image.save(root / part / "a" / f"{part}{quality}.jpg", quality=quality)
    found = inspect(root)
    assert {part: len(groups) for part, groups in found.duplicates.items()} == {"train": 1, "test": 1}
    assert found.leaks == found.conflicts == found.falsified == ()


def test_pictures_that_loading_would_part_are_a_leak(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 10, "b": 10}, size=BIG)
    data = load(root)
    train, test = Path(data.train.names[0]), Path(data.test.names[0])
    test.write_bytes(train.read_bytes())
    held, other = Path(data.holdout.names[0]), Path(data.train.names[1])
    held.write_bytes(other.read_bytes())
    found = inspect(root)
    assert found.divided and found.sizes == {"train": 14, "holdout": 2, "test": 4}
    assert [set(group.files) for group in found.leaks] == [{f"a/{train.name}", f"a/{test.name}"}]
    assert [set(group.files) for group in found.duplicates["train"]] == [{f"a/{held.name}", f"a/{other.name}"}]


def test_equal_greys_of_other_colours_are_other_pictures(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 3, "b": 3}, size=BIG)
    grey = np.asarray(WHOLE.convert("L")).astype(int)
    for name, shift in (("red", (40, -20, 0)), ("blue", (-31, 0, 80))):
        colours = np.clip(grey[..., None] // 2 + 60 + np.array(shift), 0, 255)
        Image.fromarray(colours.astype(np.uint8)).save(root / "a" / f"{name}.png")
    one, other = (np.asarray(Image.open(root / "a" / f"{name}.png").convert("L")).astype(int)
                  for name in ("red", "blue"))  # fmt: skip
    assert abs(one - other).mean() < 3
    assert copies(root) == {}


def test_flat_pictures_need_to_be_nearer(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 3, "b": 3}, size=BIG)
    for number, level in enumerate((120, 122, 124)):
        Image.new("RGB", BIG, (level,) * 3).save(root / "a" / f"plain{number}.png")
    assert copies(root) == {}
    slope = np.linspace(100, 109, 80)[:, None] + np.zeros(96)
    for level in (0, 1):  # fewer levels than a detailed picture may differ by
        Image.fromarray((slope + level).astype(np.uint8)).save(root / "a" / f"slope{level}.png")
    assert copies(root) == {}
    Image.new("RGB", BIG, (122,) * 3).save(root / "a" / "plain3.bmp")
    assert copies(root) == {"plain1.png plain3.bmp": "same pixels"}


def brute_force(thumbnails: np.ndarray) -> set[tuple[int, int]]:
    """What a near pair is, written down once more: bits, then levels."""
    cells = thumbnails.astype(float).reshape(-1, 8, 2, 9, 2).mean((2, 4))
    bits = ((cells[:, :, 1:] - cells[:, :, :-1]) > MARGIN).reshape(-1, 64)
    found = set()
    for one in range(len(thumbnails)):
        for other in range(one + 1, len(thumbnails)):
            difference = np.abs(thumbnails[one].astype(float) - thumbnails[other]).mean()
            most = min(4.0, 0.1 * thumbnails[one].std(), 0.1 * thumbnails[other].std())
            if (bits[one] != bits[other]).sum() <= NEAR_BITS and difference <= most:
                found.add((one, other))
    return found


def found_pairs(thumbnails: np.ndarray) -> set[tuple[int, int]]:
    pairs = [zip(ones.tolist(), others.tolist(), strict=True) for ones, others in near_pairs(thumbnails)]
    return {(min(pair), max(pair)) for some in pairs for pair in some}


def test_bands_find_pairs_whose_bits_differ_all_over() -> None:
    random = np.random.default_rng(0)
    bits = random.integers(0, 2, (40, 64))
    changed = bits.copy()
    for few in np.array_split(np.arange(64), NEAR_BITS):  # one bit in each of one band too few
        changed[range(40), random.choice(few, 40)] ^= 1
    cells = np.cumsum(np.pad(np.concatenate([bits, changed]).reshape(-1, 8, 8), ((0, 0), (0, 0), (1, 0))), 2)
    levels = 2 * MARGIN * cells + 25 * np.arange(8)[:, None]
    thumbnails = np.kron(levels, np.ones((2, 2), int)).astype(np.uint8)
    assert found_pairs(thumbnails) == brute_force(thumbnails) >= {(one, one + 40) for one in range(40)}


def test_bands_find_every_near_pair() -> None:
    random = np.random.default_rng(0)
    bases = random.integers(0, 256, (12, 4, 5), dtype=np.uint8)
    large = [np.asarray(Image.fromarray(base).resize((18, 16), Image.Resampling.BICUBIC)) for base in bases]
    noisy = np.array(large * 12).astype(float)
    noisy += random.normal(0, random.uniform(0, 8, (len(noisy), 1, 1)), noisy.shape)
    thumbnails = np.clip(noisy, 0, 255).astype(np.uint8)
    expected = brute_force(thumbnails)
    assert found_pairs(thumbnails) == expected
    assert 100 < len(expected) < 792  # of those with one base


def test_photos_saved_anew_are_found_and_no_others(shared_data: Path, tmp_path: Path) -> None:
    photos = sorted((shared_data / "clothing" / "validation").glob("*/*.jpg"))[::4]
    expected = set()
    for number, path in enumerate(photos):
        image = Image.open(path)
        changed = (image, image.resize((image.width // 2, image.height // 2)),
                   image.crop((1, 1, image.width - 1, image.height - 1)))[number % 3]  # fmt: skip
        for part, content in (("train", path.read_bytes()), ("val", jpeg(changed, quality=60))):
            folder = tmp_path / part / path.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / path.name).write_bytes(content)
        expected.add(path.name)
    found = inspect(tmp_path)
    assert {Path(group.files[0]).name for group in found.leaks} == expected
    assert all(len(group.files) == 2 for group in found.leaks) and found.conflicts == ()


# ---- bad files, and folders that loading refuses


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 95}])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_decoding_at_a_part_of_the_size_shows_a_truncated_file(
    make_folder: MakeFolder, options: dict[str, object], kept: float
) -> None:
    root = make_folder({"a": 30, "b": 3})
    content = jpeg(photo(9, (1200, 900)), **options)
    (root / "a" / "cut.jpg").write_bytes(content[: int(kept * len(content))])
    (file,) = inspect(root).broken["train"]
    assert (file.path, file.why) == ("a/cut.jpg", "truncated")


def test_a_folder_that_loading_refuses_is_looked_through_all_the_same(make_folder: MakeFolder) -> None:
    make_folder({"a": 6, "b": 6, "only_train": 3}, "train", size=BIG)
    root = make_folder({"a": 2, "b": 2, "only_val": 1}, "val", size=BIG)
    for number in range(5):
        (root / "train" / "a" / f"00{number}.png").write_bytes(b"text")
    (root / "val" / "b" / "copy.png").write_bytes((root / "train" / "b" / "001.png").read_bytes())
    found = inspect(root)
    with pytest.raises(InputError):
        load(root)
    assert found.counts == {
        "train": {"a": 1, "b": 6, "only_train": 3, "only_val": 0},
        "test": {"a": 2, "b": 3, "only_train": 0, "only_val": 1},
    }
    assert [file.path for file in found.broken["train"]] == [f"train/a/00{n}.png" for n in range(5)]
    assert {file.why for file in found.broken["train"]} == {"not an image"} and not found.broken["test"]
    assert found.lacking == {"train": ("only_val",), "test": ("only_train",)}
    assert [group.files for group in found.leaks] == [("train/b/001.png", "val/b/copy.png")]
    said = " / ".join(found.falsified)
    assert "val lacks only_train and has only_val" in said and "no image in" in said
    assert "5 of the 21 image files in" in said and "in more than one part: 1" in said
    assert found.sizes == {}


def test_a_class_that_is_too_small_to_divide_is_told(make_folder: MakeFolder) -> None:
    found = inspect(make_folder({"a": 4, "b": 1}))
    assert found.refused == found.falsified and "class 'b' has 1 usable images" in found.refused[0]


def test_a_few_bad_files_falsify_nothing(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 6, "b": 6})
    (root / "a" / "000.png").write_bytes(b"")
    found = inspect(root)
    assert [file.why for part in found.broken.values() for file in part] == ["empty file"]
    assert found.falsified == ()


@pytest.mark.parametrize("counts", [{}, {"only": 3}])
def test_a_folder_without_two_classes_is_no_crash(make_folder: MakeFolder, counts: dict[str, int]) -> None:
    root = make_folder(counts)
    root.mkdir(exist_ok=True)
    found = inspect(root)
    assert found.refused and found.images == sum(counts.values()) and found.leaks == ()


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        inspect(tmp_path / "nowhere")


def test_a_large_folder_is_divided_as_loading_divides_it(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "LOOKED_AT", 0)
    root = make_folder({"a": 20, "b": 20}, size=BIG)
    (root / "a" / "003.png").write_bytes(b"bad, and divided like the good ones")
    data = load(root)
    train, test = Path(data.train.names[3]), Path(data.test.names[1])
    test.write_bytes(train.read_bytes())
    found = inspect(root)
    assert found.sizes == {part: len(getattr(data, part)) for part in ("train", "holdout", "test")}
    assert [set(group.files) for group in found.leaks] == [{f"a/{train.name}", f"a/{test.name}"}]


# ---- classes and sizes


def test_tiny_and_unequal_classes_and_small_images(make_folder: MakeFolder) -> None:
    make_folder({"a": 24, "b": 8}, "train", size=(40, 30))
    root = make_folder({"a": 2, "b": 2}, "val", size=(40, 30))
    photo(4, (31, 99)).save(root / "train" / "b" / "tall.png")
    found = inspect(root, resolution=31)
    assert found.tiny == {"train": {"b": 9}, "test": {"a": 2, "b": 2}}
    assert found.imbalance == {"train": pytest.approx(24 / 9), "test": 1.0}
    assert {part: len(names) for part, names in found.small.items()} == {"train": 32, "test": 4}
    assert "train/b/tall.png" not in found.small["train"] and found.falsified == ()


def test_a_finding_survives_json(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 6, "b": 6})
    (root / "a" / "cut.png").write_bytes(b"")
    (root / "b" / "copy.png").write_bytes((root / "a" / "001.png").read_bytes())
    values = json.loads(json.dumps(inspect(root).to_dict()))
    assert values["broken"]["train"] == [{"path": "a/cut.png", "why": "empty file"}]
    assert values["conflicts"] == [{"same": "same bytes", "files": ["a/001.png", "b/copy.png"]}]
    assert values["falsified"] and values["images"] == 13
