"""Numbers that cannot be meant: masks, boxes, lists of classes and deep images that were made for another reader."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from mobilefit.data import load
from mobilefit.data.detection import load_detection
from mobilefit.data.inspect import inspect_folder
from mobilefit.data.segmentation import load_segmentation
from mobilefit.errors import InputError

from .conftest import photo

Numbers = tuple[float, float, float, float]
WIDTH, HEIGHT = 72, 64


# ---- masks


def scenes(root: Path, draw: Callable[[int], Image.Image], count: int = 10) -> Path:
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(count):
        photo(number, (WIDTH, HEIGHT)).save(root / f"images/{number}.png")
        draw(number).save(root / f"masks/{number}.png")
    return root


def shapes(*values: int, mode: str = "L", size: tuple[int, int] = (WIDTH, HEIGHT)) -> Callable[[int], Image.Image]:
    """Ground of the first value, and a disc of each other value."""

    def draw(seed: int) -> Image.Image:
        image = Image.new(mode, size, values[0] if mode == "L" else (values[0],) * 3)
        pen = ImageDraw.Draw(image)
        for place, value in enumerate(values[1:]):
            left = 3 + seed + place * size[0] // len(values)
            pen.ellipse((left, 8 + 3 * place, left + 20, 30 + 3 * place), value if mode == "L" else (value, 0, 9))
        return image

    return draw


@pytest.mark.parametrize("values, largest", [((0, 127, 255), 127), ((0, 50, 100, 150), 150), ((0, 7), 7), ((255, 128), 128)])
def test_values_that_leave_most_classes_empty_are_refused(tmp_path: Path, values: tuple[int, ...], largest: int) -> None:
    root = scenes(tmp_path / "s", shapes(*values))
    with pytest.raises(InputError) as raised:
        load_segmentation(root)
    assert f"0.png holds {largest} at x " in raised.value.message
    assert raised.value.hint is not None and "classes.txt" in raised.value.hint
    (root / "classes.txt").write_text("".join(f"{value} thing {value}\n" for value in sorted(values)))
    assert len(load_segmentation(root).classes) == len(values)


def test_values_with_few_gaps_are_read(tmp_path: Path) -> None:
    assert len(load_segmentation(scenes(tmp_path / "s", shapes(0, 1, 3, 5))).classes) == 6


def resized(smooth: Image.Resampling, *values: int, mode: str = "L") -> Callable[[int], Image.Image]:
    draw = shapes(*values, mode=mode, size=(WIDTH // 2, HEIGHT // 2))
    return lambda seed: draw(seed).resize((WIDTH, HEIGHT), smooth)


@pytest.mark.parametrize("smooth", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
@pytest.mark.parametrize("values", [(0, 255), (0, 128, 255), (0, 90)])
def test_smooth_edges_are_refused(tmp_path: Path, smooth: Image.Resampling, values: tuple[int, ...]) -> None:
    root = scenes(tmp_path / "s", resized(smooth, *values))
    with pytest.raises(InputError, match=r"\d\.png holds \d+ at x .*edges"):
        load_segmentation(root)
    (root / "classes.txt").write_text("".join(f"{value} thing {value}\n" for value in values))
    with pytest.raises(InputError, match=r"\d\.png holds \d+ at x .*edges.*nearest"):
        load_segmentation(root)


def test_smooth_edges_in_colours_are_refused(tmp_path: Path) -> None:
    root = scenes(tmp_path / "s", resized(Image.Resampling.BILINEAR, 0, 200, mode="RGB"))
    (root / "classes.txt").write_text("ground 0 0 0\ndisc 200 0 9\n")
    with pytest.raises(InputError, match=r"\d\.png holds the colour \(.*edges"):
        load_segmentation(root)


def test_many_classes_with_sharp_edges_are_read(tmp_path: Path) -> None:
    tiles = np.arange(20).reshape(4, 5).repeat(HEIGHT // 4, 0).repeat(WIDTH // 5, 1)
    image = Image.new("L", (WIDTH, HEIGHT))
    image.paste(Image.fromarray(tiles.astype(np.uint8)))
    root = scenes(tmp_path / "s", lambda seed: image)
    assert len(load_segmentation(root).classes) == 20


@pytest.mark.parametrize("text, line", [
    ("name,r,g,b\nground,0,0,0\n", 1), ("Name\nground\ndisc\n", 1), ("id name\n0 ground\n", 1), ("class\tr\tg\tb\nx 0 0 0\n", 1),
    ("ground\ndisc,1\n", 2), ("0: ground\n1: disc\n", 1), ("0,ground\n1,disc\n", 1), ("names:\n- ground\n", 1),
    ('["ground", "disc"]\n', 1), ("# label:color_rgb:parts:actions\nbackground:0,0,0::\n", 2),
])  # fmt: skip
def test_a_list_of_classes_for_another_reader_is_refused(tmp_path: Path, text: str, line: int) -> None:
    root = scenes(tmp_path / "s", shapes(0, 1))
    (root / "classes.txt").write_text(text)
    with pytest.raises(InputError, match=rf"classes\.txt: .*line {line}: "):
        load_segmentation(root)


@pytest.mark.parametrize("text", ["0 name\n1 class\n", "# name r g b\na 0 0 0\nb 1 1 1\n", "car, van\nlabel (other)\n"])
def test_names_that_only_look_like_it_are_read(tmp_path: Path, text: str) -> None:
    root = scenes(tmp_path / "s", shapes(0, 1))
    (root / "classes.txt").write_text(text)
    assert len(load_segmentation(root).classes) == 2


# ---- boxes


def corners(count: int = 12) -> list[Numbers]:
    random = np.random.default_rng(0)
    left, top = random.integers(0, WIDTH - 24, count), random.integers(0, HEIGHT - 24, count)
    return [(x, y, x + w, y + h) for x, y, w, h in zip(left.tolist(), top.tolist(), *random.integers(8, 24, (2, count)).tolist(), strict=True)]


def coco(root: Path, part: str, boxes: list[Numbers]) -> Path:
    (root / part).mkdir(parents=True)
    for number in range(len(boxes)):
        photo(number, (WIDTH, HEIGHT)).save(root / part / f"{number}.png")
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in range(len(boxes))],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, "bbox": box} for n, box in enumerate(boxes)],
        "categories": [{"id": 1, "name": "disc"}],
    }
    (root / f"{part}.json").write_text(json.dumps(content))
    return root


def voc(root: Path, boxes: list[Numbers]) -> Path:
    for name in ("Annotations", "JPEGImages"):
        (root / name).mkdir(parents=True)
    for number, box in enumerate(boxes):
        photo(number, (WIDTH, HEIGHT)).save(root / f"JPEGImages/{number}.png")
        sides = "".join(f"<{name}>{value}</{name}>" for name, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        (root / f"Annotations/{number}.xml").write_text(
            f"<annotation><object><name>disc</name><bndbox>{sides}</bndbox></object></annotation>"
        )
    return root


def sides(box: Numbers) -> Numbers:
    return box[0], box[1], box[2] - box[0], box[3] - box[1]


def centre(box: Numbers) -> Numbers:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]


def share(box: Numbers) -> Numbers:
    return box[0] / WIDTH, box[1] / HEIGHT, box[2] / WIDTH, box[3] / HEIGHT


@pytest.mark.parametrize("made, what", [
    (share, "shares"), (lambda box: share(sides(box)), "shares"), (lambda box: share(centre(box)), "shares"),
    (lambda box: box, "corners"), (centre, "centre"),
])  # fmt: skip
def test_a_coco_box_of_other_numbers_is_refused(tmp_path: Path, made: Callable[[Numbers], Numbers], what: str) -> None:
    root = coco(tmp_path / "d", "train", [made(box) for box in corners(40)])
    with pytest.raises(InputError, match=rf"train part .*{what}.*train\.json annotation 0"):
        load_detection(root)


@pytest.mark.parametrize("made, what", [(share, "shares"), (sides, "width and height")])
def test_a_voc_box_of_other_numbers_is_refused(tmp_path: Path, made: Callable[[Numbers], Numbers], what: str) -> None:
    root = voc(tmp_path / "d", [made(box) for box in corners()])
    with pytest.raises(InputError, match=rf"train part .*{what}.*Annotations/0\.xml object 1"):
        load_detection(root)


def test_other_numbers_in_one_part_alone_are_refused(tmp_path: Path) -> None:
    root = coco(tmp_path / "d", "train", [sides(box) for box in corners(60)])
    coco(root, "val", [share(sides(box)) for box in corners(4)])
    with pytest.raises(InputError, match=r"val part .*val\.json annotation 0"):
        load_detection(root)


def test_boxes_as_they_should_be_are_read(tmp_path: Path) -> None:
    tiny: list[Numbers] = [(0.0, 0.0, 1.0, 1.0), (70, 62, 9, 9)]
    data = load_detection(coco(tmp_path / "c", "train", [*(sides(box) for box in corners(30)), *tiny]))
    assert len(data.train) + len(data.holdout) + len(data.test) == 32 and data.dropped == () and data.clipped.count == 1
    assert load_detection(voc(tmp_path / "v", corners())).dropped == ()


# ---- images of 16 bits


def save_rgb16(path: Path, values: npt.NDArray[np.uint16]) -> None:
    """A PNG with 16 bits a colour, which Pillow does not write."""
    height, width, _ = values.shape
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")
    packed = (struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def deep(root: Path, bits: int, kind: str) -> Path:
    for place, name in enumerate(("a", "b")):
        (root / name).mkdir(parents=True)
        for number in range(6):
            values = np.random.default_rng(6 * place + number).integers(0, 1 << bits, (20, 24), dtype=np.uint16)
            if kind == "rgb":
                save_rgb16(root / name / f"{number}.png", np.repeat(values[..., None], 3, axis=2))
            else:
                Image.fromarray(values).save(root / name / f"{number}.{kind}")
    return root


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("kind", ["png", "tif", "rgb"])
def test_values_of_fewer_bits_in_16_bit_files_are_refused(tmp_path: Path, bits: int, kind: str) -> None:
    root = deep(tmp_path / "x", bits, kind)
    with pytest.raises(InputError, match=rf"of 65535 \(in .*: nearly black, as {bits}-bit.*multiply the values by {65535 // (2**bits - 1)}"):
        load(root)
    assert "nearly black" in inspect_folder(root, resolution=16).refused[0]


@pytest.mark.parametrize("kind", ["png", "tif", "rgb"])
def test_values_of_16_bits_are_read(tmp_path: Path, kind: str) -> None:
    root = deep(tmp_path / "x", 16, kind)
    if kind != "rgb":
        Image.fromarray(np.zeros((20, 24), np.uint16)).save(root / "a" / f"black.{kind}")
        Image.fromarray(np.full((20, 24), 900, np.uint16)).save(root / "a" / f"dark.{kind}")
    assert load(root).skipped == () and inspect_folder(root, resolution=16).refused == ()


def test_boxes_and_masks_on_dark_images_of_16_bits_are_refused(tmp_path: Path) -> None:
    dark = np.random.default_rng(0).integers(0, 4096, (HEIGHT, WIDTH), dtype=np.uint16)
    boxed, masked = voc(tmp_path / "v", corners()), scenes(tmp_path / "s", shapes(0, 1))
    for path in (*boxed.glob("JPEGImages/*"), *masked.glob("images/*")):
        Image.fromarray(dark).save(path)
    with pytest.raises(InputError, match="nearly black"):
        load_detection(boxed)
    with pytest.raises(InputError, match="nearly black"):
        load_segmentation(masked)
