"""Images with masks: layouts, what values mean, and every kind of bad file."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, features

from mobilefit.data import segmentation as segmentation_module
from mobilefit.data.masks import IGNORED
from mobilefit.data.segmentation import (
    SegmentationData,
    SegmentationSet,
    load_segmentation,
)
from mobilefit.errors import InputError

from .conftest import photo

SIZE = (12, 10)
Edit = Callable[[Path], None]


def mask(seed: int, classes: int = 3, size: tuple[int, int] = SIZE) -> npt.NDArray[np.uint8]:
    """Random labels, every class among them."""
    labels = np.random.default_rng(seed).integers(0, classes, size[::-1]).astype(np.uint8)
    labels[0, :classes] = np.arange(classes)
    return labels


def write(images: Path, masks: Path, count: int = 10, first: int = 0, classes: int = 3) -> None:
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        photo(number, SIZE).save(images / f"{number:03d}.jpg")
        Image.fromarray(mask(number, classes)).save(masks / f"{number:03d}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten pairs to train and four to test, of three classes."""
    folder = tmp_path / "scenes"
    write(folder / "train/images", folder / "train/labels")
    write(folder / "val/images", folder / "val/labels", count=4, first=100)
    return folder


def stems(part: SegmentationSet) -> list[str]:
    return sorted(Path(name).stem for name in part.names)


def labels_of(part: SegmentationSet, stem: str) -> npt.NDArray[np.uint8]:
    return part.sample([Path(name).stem for name in part.names].index(stem))[1]


def save(path: Path, labels: npt.NDArray[np.generic]) -> None:
    Image.fromarray(labels).save(path)


def in_all(data: SegmentationData) -> int:
    return len(data.train) + len(data.holdout) + len(data.test)


def colour_masks(root: Path, colours: list[tuple[int, int, int]]) -> None:
    """Write every mask anew in colours."""
    table = np.array(colours, np.uint8)
    for path in root.rglob("labels/*.png"):
        save(path, table[np.asarray(Image.open(path))])


def test_val_is_the_test_set_and_the_held_out_part_comes_from_train(root: Path) -> None:
    data = load_segmentation(root, seed=3, holdout=0.2)
    assert data.name == "scenes" and data.classes == ("class 0", "class 1", "class 2")
    assert (len(data.train), len(data.holdout), len(data.test)) == (8, 2, 4)
    assert sorted(stems(data.train) + stems(data.holdout)) == [f"{number:03d}" for number in range(10)]
    assert stems(data.test) == ["100", "101", "102", "103"]
    again, other = load_segmentation(root, seed=3, holdout=0.2), load_segmentation(root, seed=4, holdout=0.2)
    assert again.holdout.names == data.holdout.names != other.holdout.names
    assert again.fingerprint == other.fingerprint == data.fingerprint
    assert len(load_segmentation(root, holdout=0).holdout) == 0


def test_image_and_mask_belong_together(root: Path) -> None:
    data = load_segmentation(root)
    for part in (data.train, data.holdout, data.test):
        for index, name in enumerate(part.names):
            image, labels = part.sample(index)
            assert image.mode == "RGB" and image.size == SIZE and labels.dtype == np.uint8
            assert np.array_equal(np.asarray(image), np.asarray(Image.open(name)))
            assert np.array_equal(labels, mask(int(Path(name).stem)))


@pytest.mark.parametrize("masks", ["labels", "masks", "annotations"])
@pytest.mark.parametrize("train, val", [("train", "val"), ("training", "validation"), ("train", "valid")])
def test_both_ways_of_nesting_are_read(tmp_path: Path, masks: str, train: str, val: str) -> None:
    write(tmp_path / "a/images" / train, tmp_path / "a" / masks / train)
    write(tmp_path / "a/images" / val, tmp_path / "a" / masks / val, count=4, first=100)
    write(tmp_path / "b" / train / "images", tmp_path / "b" / train / masks)
    write(tmp_path / "b" / val / "images", tmp_path / "b" / val / masks, count=4, first=100)
    one, other = load_segmentation(tmp_path / "a"), load_segmentation(tmp_path / "b")
    assert (len(one.train), len(one.holdout), len(one.test)) == (9, 1, 4)
    assert one.fingerprint == other.fingerprint and one.train.digest == other.train.digest


def test_val_beside_test_is_the_held_out_part(root: Path) -> None:
    write(root / "test/images", root / "test/labels", count=2, first=200)
    data = load_segmentation(root)
    assert (len(data.train), stems(data.holdout)[0], stems(data.test)) == (10, "100", ["200", "201"])


def test_a_test_without_masks_is_left_aside(root: Path) -> None:
    write(root / "test/images", root / "nowhere", count=2, first=200)
    assert stems(load_segmentation(root).test) == ["100", "101", "102", "103"]


def test_images_without_parts_are_divided_by_the_seed(tmp_path: Path) -> None:
    write(tmp_path / "images", tmp_path / "masks", count=20)
    data = load_segmentation(tmp_path, seed=1)
    assert (len(data.train), len(data.holdout), len(data.test)) == (14, 2, 4)
    assert len({*data.train.names, *data.holdout.names, *data.test.names}) == 20
    assert load_segmentation(tmp_path, seed=2).test.names != data.test.names


def test_files_deeper_inside_are_paired_by_their_folders_too(root: Path) -> None:
    write(root / "train/images/x", root / "train/labels/x", count=2)
    data = load_segmentation(root, holdout=0)
    assert len(data.train) == 12 and data.skipped == ()


def test_subsets_share_the_order_and_their_digest_tells_it(root: Path) -> None:
    data = load_segmentation(root, holdout=0)
    part = data.train.subset([4, 1, 7])
    assert part.names == tuple(data.train.names[index] for index in (4, 1, 7)) and len(part) == 3
    assert np.array_equal(part.sample(2)[1], data.train.sample(7)[1])
    assert part.subset([1]).names == (data.train.names[1],)
    digests = {data.train.subset(chosen).digest for chosen in ([4, 1, 7], [1, 4, 7], [4, 1], [0, 1, 7])}
    assert len(digests) == 4 and part.digest in digests
    assert len(part.digest) == 12 and int(part.digest, 16) >= 0


def test_pixels_are_counted(root: Path) -> None:
    labels = mask(0)
    labels[5:] = IGNORED
    save(root / "train/labels/000.png", labels)
    data = load_segmentation(root, holdout=0)
    counted = sum(np.bincount(np.minimum(data.train.sample(index)[1], 3).ravel(), minlength=4) for index in range(10))
    assert data.train.pixels.tolist() == np.asarray(counted).tolist() and data.train.pixels[3] == 60
    assert data.ignored == pytest.approx(60 / (14 * 120))


@pytest.mark.parametrize("change", ["image", "mask", "name", "classes", "ignore"])
def test_the_fingerprint_knows_the_content(root: Path, change: str) -> None:
    before = load_segmentation(root)
    if change == "image":
        photo(999, SIZE).save(root / "train/images/000.jpg")
    elif change == "mask":
        save(root / "train/labels/000.png", mask(0)[::-1])
    elif change == "name":
        (root / "train/images/000.jpg").rename(root / "train/images/z.jpg")
        (root / "train/labels/000.png").rename(root / "train/labels/z.png")
    elif change == "classes":
        (root / "classes.txt").write_text("road\ntree\nsky\n")
    after = load_segmentation(root, ignore=(0,) if change == "ignore" else ())
    assert after.fingerprint != before.fingerprint
    if change in ("classes", "ignore"):
        assert after.train.digest != before.train.digest


def test_the_same_names_for_other_values_are_another_data_set(root: Path) -> None:
    one, other = (_with_classes(root, text) for text in ("0 a\n1 b\n2 c", "2 c\n1 b\n0 a"))
    renamed = _with_classes(root, "1 a\n0 b\n2 c")
    assert len({data.fingerprint for data in (one, other, renamed)}) == 3
    assert len({data.test.digest for data in (one, other, renamed)}) == 3


def test_what_there_is_no_room_for_is_decoded_when_used(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = load_segmentation(root)
    monkeypatch.setattr(segmentation_module, "ROOM", 3 * 3 * SIZE[0] * SIZE[1])
    data = load_segmentation(root)
    assert data.fingerprint == kept.fingerprint
    for index in range(len(kept.train)):
        (image, labels), (other, others) = kept.train.sample(index), data.train.sample(index)
        assert image.tobytes() == other.tobytes() and np.array_equal(labels, others)
    save(root / "val/labels/103.png", mask(5))
    with pytest.raises(InputError, match=r"103\.jpg or its mask has changed since"):
        data.test.sample(3)
    (root / "val/labels/103.png").unlink()
    with pytest.raises(InputError, match=r"103\.png, which was good when .*: cannot be read: No such file"):
        data.test.sample(3)


# What the values mean


def test_classes_txt_gives_names_and_order(root: Path) -> None:
    (root / "classes.txt").write_text("# of scenes\nroad\n\ntraffic light\n  sky  \nnever seen\n")
    data = load_segmentation(root)
    assert data.classes == ("road", "traffic light", "sky", "never seen") and data.palette is None
    assert np.array_equal(labels_of(data.test, "100"), mask(100))


@pytest.mark.parametrize("name", ["void", "Ignore", "unlabelled", "UNLABELED"])
@pytest.mark.parametrize("lines, expected", [
    ("{}\na\nb", [IGNORED, 0, 1]),
    ("a\n{}\nb", [0, IGNORED, 1]),
    ("a\nb\n2 {}", [0, 1, IGNORED]),
    ("2 {}\n0 a\nb", [0, 1, IGNORED]),
])  # fmt: skip
def test_a_name_for_no_class_moves_the_others_up(
    root: Path, name: str, lines: str, expected: list[int]
) -> None:
    (root / "classes.txt").write_text(lines.format(name))
    data = load_segmentation(root)
    assert data.classes == ("a", "b")
    assert np.array_equal(labels_of(data.test, "101"), np.array(expected)[mask(101)])
    assert data.ignored == pytest.approx(1 / 3, abs=0.1)


@pytest.mark.parametrize("ignored, expected", [(0, [IGNORED, 0, 1]), (2, [0, 1, IGNORED]), (1, [0, IGNORED, 1])])
def test_a_value_to_ignore_is_of_no_class(root: Path, ignored: int, expected: list[int]) -> None:
    data = load_segmentation(root, ignore=(ignored,))
    assert data.classes == tuple(f"class {value}" for value in range(3) if value != ignored)
    assert np.array_equal(labels_of(data.test, "102"), np.array(expected)[mask(102)])
    (root / "classes.txt").write_text("a\nb\nc\n")
    named = load_segmentation(root, ignore=(ignored,))
    assert np.array_equal(labels_of(named.test, "102"), labels_of(data.test, "102"))


def test_a_value_to_ignore_may_be_beyond_the_classes(root: Path) -> None:
    labels = mask(0)
    labels[4] = 77
    save(root / "train/labels/000.png", labels)
    with pytest.raises(InputError, match=r"000\.png holds 77 at x 0, y 4.*--ignore-label 77"):
        load_segmentation(root)
    data = load_segmentation(root, holdout=0, ignore=(77,))
    assert len(data.classes) == 3 and (labels_of(data.train, "000")[4] == IGNORED).all()


def test_an_object_may_be_255_if_a_line_says_so(root: Path) -> None:
    for path in root.rglob("labels/*.png"):
        save(path, np.where(np.asarray(Image.open(path)) == 1, 255, 0).astype(np.uint8))
    with pytest.raises(InputError, match=r"one class alone, 'class 0'; 255 .*'0 ground' and '255 object'"):
        load_segmentation(root)
    (root / "classes.txt").write_text("0 ground\n255 object\n")
    data = load_segmentation(root)
    assert data.classes == ("ground", "object") and data.ignored == 0
    assert np.array_equal(labels_of(data.test, "100"), mask(100) == 1)


def test_palette_masks_are_read_by_their_indices(root: Path) -> None:
    for path in root.rglob("labels/*.png"):
        image = Image.open(path).copy()
        image.putpalette([200, 0, 0, 0, 200, 0, 3, 3, 3] + [9] * 30)
        image.save(path, bits=int(path.stem) % 2 * 6 + 2)  # 2 or 8 bits
        assert Image.open(path).mode == "P"
    data = load_segmentation(root)
    assert len(data.classes) == 3
    assert all(np.array_equal(labels_of(data.test, stem), mask(int(stem))) for stem in ("100", "101"))


COLOURS = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0)], np.uint8)
LINES = "ground 0 0 0\nred 128 0 0\ngreen 0 128 0\n"


def own_palettes(root: Path, kind: str) -> None:
    """Masks of colours, each with the colours that it has in an order of its own, as programs save few colours."""
    for path in sorted(root.rglob("labels/*.png")):
        labels = mask(int(path.stem))
        order = np.roll(np.arange(3), int(path.stem) % 3)
        image = Image.fromarray(np.argsort(order).astype(np.uint8)[labels]).convert("P")
        image.putpalette(COLOURS[order].tobytes())
        path.unlink()
        image.save(path.with_suffix(kind), optimize=False)


@pytest.mark.parametrize("kind", [".png", ".gif"])
def test_palettes_of_the_files_own_are_read_by_their_colours_or_refused(root: Path, kind: str) -> None:
    own_palettes(root, kind)
    with pytest.raises(InputError, match=r"value \d is \(.*do not mean the same; write .*classes.txt"):
        load_segmentation(root)
    data = _with_classes(root, LINES)
    assert data.classes == ("ground", "red", "green")
    assert all(np.array_equal(labels_of(data.test, stem), mask(int(stem))) for stem in ("100", "101", "102"))
    assert len(_with_classes(root, "a\nb\nc").classes) == 3  # who lists values alone goes by them


def test_a_palette_and_lines_of_another_order_agree_on_the_colours(root: Path) -> None:
    for path in root.rglob("labels/*.png"):
        image = Image.open(path).convert("P")
        image.putpalette(COLOURS.tobytes())
        image.save(path)
    data = _with_classes(root, "green 0 128 0\nground 0 0 0\nred 128 0 0")
    assert np.array_equal(labels_of(data.test, "100"), np.array([1, 2, 0])[mask(100)])
    with pytest.raises(InputError, match=r"gives value 0 the colour \(0, 0, 0\), which is that of another class"):
        _with_classes(root, "red 128 0 0\nground 0 0 0\nother")
    other_colours = _with_classes(root, "ground 9 9 9\nred 8 8 8\ngreen 7 7 7")  # of something else: the values count
    assert np.array_equal(labels_of(other_colours.test, "100"), mask(100))


@pytest.mark.parametrize("kind, options, lossy", [
    (".webp", {"quality": 80}, True), (".webp", {"lossless": True}, False), (".webp", {"lossless": True, "exif": b"Exif\0\0"}, False),
    (".tif", {"compression": "jpeg"}, True), (".tif", {"compression": "tiff_lzw"}, False), (".tif", {}, False),
    (".jp2", {"irreversible": True}, True), (".jp2", {}, False),
])  # fmt: skip
def test_masks_that_were_compressed_with_losses_are_bad(
    root: Path, kind: str, options: dict[str, object], lossy: bool
) -> None:
    if kind == ".jp2" and not features.check("jpg_2000"):
        pytest.skip("this Pillow has no JPEG 2000")
    path = root / "train/labels/003.png"
    path.unlink()
    image = Image.fromarray(mask(3))
    (image.convert("RGB") if kind == ".webp" else image).save(path.with_suffix(kind), **options)
    data = load_segmentation(root)
    assert [("changes labels" in file.why, Path(file.path).stem) for file in data.skipped] == [(True, "003")] * lossy
    assert len(data.classes) == 3


def test_16_bit_masks_are_read(root: Path) -> None:
    for path in root.rglob("labels/*.png"):
        labels = np.asarray(Image.open(path)).astype(np.uint16)
        save(path, np.where(labels == 2, 40000, labels).astype(np.uint16))
    with pytest.raises(InputError, match=r"holds 40000 at x 2, y 0, and nothing lists the classes"):
        load_segmentation(root)
    for data in (load_segmentation(root, ignore=(40000,)), _with_classes(root, "a\nb\n40000 void")):
        assert len(data.classes) == 2
        assert np.array_equal(labels_of(data.test, "100"), np.array([0, 1, IGNORED])[mask(100)])
    assert _with_classes(root, "a\nb\n40000 far").classes == ("a", "b", "far")


def _with_classes(root: Path, text: str) -> SegmentationData:
    (root / "classes.txt").write_text(text)
    return load_segmentation(root)


def grey_png(labels: npt.NDArray[np.uint8], bits: int) -> bytes:
    """A grey PNG of 1, 2 or 4 bits a pixel, which Pillow reads but cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = labels.shape
    spread = (labels[..., None] >> np.arange(bits)[::-1]) & 1
    rows = np.packbits(spread.reshape(height, -1), axis=1)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_masks_of_few_bits_keep_their_values(root: Path, bits: int) -> None:
    classes = min(1 << bits, 12)
    for path in root.rglob("labels/*.png"):
        path.write_bytes(grey_png(mask(int(path.stem), classes), bits))
    data = load_segmentation(root)
    assert len(data.classes) == classes
    assert np.array_equal(labels_of(data.test, "100"), mask(100, classes))


def test_grey_saved_in_colour_is_read_as_grey(root: Path) -> None:
    colour_masks(root, [(0, 0, 0), (1, 1, 1), (2, 2, 2)])
    data = load_segmentation(root)
    assert len(data.classes) == 3 and np.array_equal(labels_of(data.test, "103"), mask(103))


@pytest.mark.parametrize("line", ["{name} {colour}", "{value} {name}  {colour}"])
def test_colours_are_looked_up_in_classes_txt(root: Path, line: str) -> None:
    colours = {"road": (128, 64, 128), "void": (0, 0, 0), "grey wall": (70, 70, 70)}
    colour_masks(root, list(colours.values()))
    lines = [
        line.format(name=name, value=value, colour=" ".join(map(str, colour)))
        for value, (name, colour) in enumerate(colours.items())
    ]
    data = _with_classes(root, "\n".join(lines))
    assert data.classes == ("road", "grey wall") and data.palette == ((128, 64, 128), (70, 70, 70))
    assert np.array_equal(labels_of(data.test, "100"), np.array([0, IGNORED, 1])[mask(100)])
    save(root / "val/labels/100.png", mask(100))  # grey masks among them are read by the lines' order
    assert np.array_equal(labels_of(load_segmentation(root).test, "100"), np.array([0, IGNORED, 1])[mask(100)])


def test_a_colour_mask_that_shows_grey_alone_is_one_of_colours_where_there_are_such(root: Path) -> None:
    colour_masks(root, [(128, 64, 128), (0, 0, 0), (70, 70, 70)])
    grey = np.full((SIZE[1], SIZE[0], 3), 70, np.uint8)
    save(root / "val/labels/100.png", grey)
    data = _with_classes(root, "road 128 64 128\nvoid 0 0 0\nwall 70 70 70\n")
    assert (labels_of(data.test, "100") == 1).all()


def test_colours_that_nothing_explains_are_refused(root: Path) -> None:
    colour_masks(root, [(128, 64, 128), (0, 0, 0), (70, 70, 70)])
    with pytest.raises(InputError) as raised:
        load_segmentation(root)
    assert "000.png (and 13 more masks) is a colour picture" in raised.value.message
    assert raised.value.hint is not None and f"{root / 'classes.txt'} with a line 'name red" in raised.value.hint


def test_a_colour_that_is_not_in_classes_txt_is_named(root: Path) -> None:
    colour_masks(root, [(128, 64, 128), (0, 0, 0), (70, 70, 70)])
    pixels = np.asarray(Image.open(root / "val/labels/101.png")).copy()
    pixels[7, 3] = (1, 2, 3)
    save(root / "val/labels/101.png", pixels)
    with pytest.raises(InputError, match=r"101\.png holds the colour \(1, 2, 3\) at x 3, y 7, which classes.txt"):
        _with_classes(root, "road 128 64 128\nvoid 0 0 0\nwall 70 70 70\n")


BAD_LINES = {
    "a\nb\na": "line 3: 'a' comes twice",
    "a\n0 b": "line 2: value 0 is that of 'a'",
    "a 1 2 3\nb 1 2 3": r"line 2: colour \(1, 2, 3\) is that of 'a'",
    "a\nb 1 2 300": r"line 2: colour \(1, 2, 300\) is beyond 255",
    "a\n70000 b": "line 2: value 70000 is beyond 65535",
    "a\n12": "line 2: '12' is no name",
    "# nothing": "it names no class",
}


@pytest.mark.parametrize("text", BAD_LINES)
def test_bad_lines_of_classes_txt_are_named(root: Path, text: str) -> None:
    with pytest.raises(InputError, match=BAD_LINES[text]):
        _with_classes(root, text)


def test_all_bad_lines_are_named_at_once(root: Path) -> None:
    with pytest.raises(InputError, match=r"line 2: 'a' comes twice; line 3: '7' is no name"):
        _with_classes(root, "a\na\n7")
    (root / "classes.txt").write_bytes(b"stra\xdfe\n")
    with pytest.raises(InputError, match="is not text in UTF-8"):
        load_segmentation(root)


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_label_beyond_the_classes_is_named_with_its_place(root: Path, part: str) -> None:
    for stem in ("000", "001") if part == "train" else ("102",):
        labels = mask(int(stem))
        labels[6, 8] = 19
        save(root / part / f"labels/{stem}.png", labels)
    (root / "classes.txt").write_text("a\nb\nc\n")
    with pytest.raises(InputError) as raised:
        load_segmentation(root)
    others = {"train": "000.png (and 1 more mask) holds 19", "val": "102.png holds 19"}
    assert f"{others[part]} at x 8, y 6, but the 3 classes are labelled 0 to 2" in raised.value.message
    assert raised.value.hint is not None and "--ignore-label 19" in raised.value.hint
    assert len(load_segmentation(root, ignore=(19,)).classes) == 3


def test_without_classes_txt_the_training_masks_alone_say_how_many(root: Path) -> None:
    labels = mask(102)
    labels[6, 8] = 3
    save(root / "val/labels/102.png", labels)
    with pytest.raises(InputError, match=r"102\.png holds 3 at x 8, y 6, but the 3 classes"):
        load_segmentation(root)


def test_one_class_alone_is_refused(root: Path) -> None:
    with pytest.raises(InputError, match=r"one class alone, 'thing'; .*two or more are needed"):
        _with_classes(root, "thing\n1 void\n2 ignore\n")
    with pytest.raises(InputError, match="one class alone, 'class 1'"):
        (root / "classes.txt").unlink()
        load_segmentation(root, ignore=(0, 2))


def test_masks_without_any_label_are_refused(root: Path) -> None:
    with pytest.raises(InputError, match="no pixel of the training masks has a label"):
        load_segmentation(root, ignore=(0, 1, 2))


def test_more_classes_than_a_byte_counts_are_refused(root: Path) -> None:
    with pytest.raises(InputError, match="has 256 classes, and 255 are the most"):
        _with_classes(root, "\n".join(f"thing {letter}x" for letter in range(256)))


# Bad files


def other_size(root: Path) -> None:
    save(root / "train/labels/003.png", mask(3, size=(10, 12)))


def no_mask(root: Path) -> None:
    (root / "train/labels/003.png").unlink()


def no_image(root: Path) -> None:
    (root / "train/images/003.jpg").unlink()


def text_as_image(root: Path) -> None:
    (root / "train/images/003.jpg").write_text("no picture")


def text_as_mask(root: Path) -> None:
    (root / "train/labels/003.png").write_text("no picture")


def truncated_mask(root: Path) -> None:
    path = root / "train/labels/003.png"
    path.write_bytes(path.read_bytes()[:-30])


def empty_mask(root: Path) -> None:
    (root / "train/labels/003.png").write_bytes(b"")


def jpeg_mask(root: Path) -> None:
    Image.fromarray(mask(3)).save(root / "train/labels/003.png", "JPEG")


def float_mask(root: Path) -> None:
    no_mask(root)
    Image.fromarray(mask(3).astype(np.float32)).save(root / "train/labels/003.tif")


def negative_mask(root: Path) -> None:
    no_mask(root)
    Image.fromarray(mask(3).astype(np.int32) - 1).save(root / "train/labels/003.tif")


def folder_as_mask(root: Path) -> None:
    no_mask(root)
    (root / "train/labels/003.png").symlink_to(root / "nowhere.png")


BAD_FILES: dict[Edit, tuple[str, str]] = {
    other_size: ("labels/003.png", r"its image, .*images/003\.jpg, has 12x10 pixels and it 10x12"),
    no_mask: ("images/003.jpg", "it has no mask of its name"),
    no_image: ("labels/003.png", "a mask without an image of its name"),
    text_as_image: ("images/003.jpg", "not an image"),
    text_as_mask: ("labels/003.png", "not an image"),
    truncated_mask: ("labels/003.png", "cannot be decoded|truncated"),
    empty_mask: ("labels/003.png", "empty file"),
    jpeg_mask: ("labels/003.png", "a JPEG, whose compression changes labels"),
    float_mask: ("labels/003.tif", "of the kind F"),
    negative_mask: ("labels/003.tif", "values from -1 to 1; labels are 0 to 65535"),
    folder_as_mask: ("labels/003.png", "cannot be read: No such file"),
}


@pytest.mark.parametrize("edit", BAD_FILES, ids=lambda edit: edit.__name__)
def test_a_bad_file_is_named_and_skipped_with_its_pair(root: Path, edit: Edit) -> None:
    edit(root)
    data = load_segmentation(root, holdout=0)
    path, why = BAD_FILES[edit]
    assert [file.path for file in data.skipped] == [str(root / "train" / path)]
    assert re.search(why, data.skipped[0].why)
    assert stems(data.train) == [f"{number:03d}" for number in range(10) if number != 3] and in_all(data) == 13


def test_too_many_bad_files_are_refused(root: Path) -> None:
    for stem in ("000", "001", "002", "003"):
        save(root / f"train/labels/{stem}.png", mask(3, size=(10, 12)))
    with pytest.raises(InputError, match=r"4 of the 14 images and masks in .* are bad: .*000\.png .*10x12.* 1 more"):
        load_segmentation(root)


def test_masks_of_other_names_are_told(root: Path) -> None:
    for path in (root / "train/labels").iterdir():
        path.rename(path.with_stem(path.stem + "_L"))
    with pytest.raises(InputError, match=r"20 of the 24 .*000\.jpg \(it has no mask of its name\)"):
        load_segmentation(root)


def test_a_part_with_too_few_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "images", tmp_path / "masks", count=2)
    with pytest.raises(InputError, match="has 2 usable images with masks in its train part, and needs 3"):
        load_segmentation(tmp_path)
    assert in_all(load_segmentation(tmp_path, holdout=0)) == 2
    write(tmp_path / "b/train/images", tmp_path / "b/train/labels")
    (tmp_path / "b/val/images").mkdir(parents=True)
    (tmp_path / "b/val/labels").mkdir()
    with pytest.raises(InputError, match="0 usable images with masks in its val part"):
        load_segmentation(tmp_path / "b")


def test_two_images_of_one_name_are_refused(root: Path) -> None:
    photo(1, SIZE).save(root / "train/images/000.png")
    with pytest.raises(InputError, match=r"000\.jpg and .*000\.png have one name"):
        load_segmentation(root)


def two_validations(root: Path) -> None:
    write(root / "validation/images", root / "validation/labels", count=2)


def two_mask_folders(root: Path) -> None:
    write(root / "train/images", root / "train/masks", count=2)


def no_mask_folder(root: Path) -> None:
    (root / "train/labels").rename(root / "train/truth")


def no_train(root: Path) -> None:
    (root / "train").rename(root / "more")


def no_images_folder(root: Path) -> None:
    (root / "val/images").rename(root / "val/elsewhere")


BAD_LAYOUTS: dict[Edit, str] = {
    two_validations: "has both val and validation",
    two_mask_folders: "train has both labels and masks",
    no_mask_folder: "train has no folder of masks; name it labels or masks or annotations",
    no_train: "holds no images with masks that could be found; give train/images and train/labels",
    no_images_folder: r"there is no .*val/images",
}


@pytest.mark.parametrize("edit", BAD_LAYOUTS, ids=lambda edit: edit.__name__)
def test_bad_layouts_are_refused(root: Path, edit: Edit) -> None:
    edit(root)
    with pytest.raises(InputError, match=BAD_LAYOUTS[edit]):
        load_segmentation(root)


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent is not a folder"):
        load_segmentation(tmp_path / "absent")


@pytest.mark.parametrize("holdout", [-0.1, 0.6, float("nan")])
def test_a_holdout_out_of_range_is_refused(root: Path, holdout: float) -> None:
    with pytest.raises(InputError, match=f"holdout is {holdout}"):
        load_segmentation(root, holdout=holdout)


@pytest.mark.parametrize("value", [-1, 65536])
def test_a_value_to_ignore_out_of_range_is_refused(root: Path, value: int) -> None:
    with pytest.raises(InputError, match=f"the value to ignore is {value}"):
        load_segmentation(root, ignore=(value,))


def test_camvid_is_read(shared_data: Path) -> None:
    data = load_segmentation(shared_data / "camvid", ignore=(11,))
    assert (len(data.train), len(data.holdout), len(data.test)) == (330, 37, 101)
    assert len(data.classes) == 11 and data.skipped == () and data.size == (480, 360)
    assert data.ignored == pytest.approx(2_801_266 / (468 * 480 * 360))
    image, labels = data.test.sample(0)
    path = Path(data.test.names[0])
    theirs = np.asarray(Image.open(path.parents[1] / "labels" / f"{path.stem}.png"))
    assert image.size == (480, 360) and np.array_equal(labels, np.where(theirs == 11, IGNORED, theirs))
