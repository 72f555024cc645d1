"""Boxes and masks on pictures, and the pairs of pictures in a record."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tasks.scenes import write_masks, write_voc

from mobilefit.data.detection import Boxes, load_detection
from mobilefit.data.segmentation import load_segmentation
from mobilefit.jobs import drawn
from mobilefit.jobs.drawn import NARROWEST, class_colours, draw_boxes, draw_mask
from mobilefit.palette import Colour, colours, ink
from mobilefit.tasks.detect import DetectionEvaluation, Found
from mobilefit.tasks.metrics import DetectionMetric, SegmentationMetric

CLASSES = ("cup", "hat")
CUP, HAT = colours(2)
GREY = (128, 128, 128)


def like(picture: Image.Image, colour: Colour) -> np.ndarray:
    """[h, w]: pixels of just this colour."""
    found: np.ndarray = (np.asarray(picture) == colour).all(-1)
    return found


def canvas(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


@pytest.mark.parametrize("size", [(600, 500), (60, 50), (3001, 2001), (1200, 40)])
def test_a_box_is_where_it_is_said_on_pictures_of_any_size(size: tuple[int, int]) -> None:
    width, height = size
    box = (0.25 * width, 0.5 * height, 0.75 * width, 0.9 * height)
    found = draw_boxes(canvas(*size), [box], [1], None, CLASSES)
    assert found.width % 2 == found.height % 2 == 0 and max(found.size) >= NARROWEST
    assert not like(found, CUP).any()
    sides = like(found, HAT)[round(0.82 * found.height) : round(0.88 * found.height)].any(0)
    ends = np.flatnonzero(sides)
    assert abs(ends[0] - 0.25 * found.width) <= 3 and abs(ends[-1] - 0.75 * found.width) <= 3


def test_lines_and_text_grow_with_the_picture() -> None:
    def thickness(side: int) -> int:
        box = (0.25 * side, 0.25 * side, 0.75 * side, 0.75 * side)
        row = like(draw_boxes(canvas(side, side), [box], [0], None, CLASSES), CUP)[side // 2]
        return int(row.sum()) // 2

    assert thickness(480) == 2 and thickness(4800) == round(9600 / 420)


@pytest.mark.parametrize("box", [(0, 0, 60, 40), (560, 0, 600, 30), (0, 470, 50, 500), (560, 460, 600, 500), (0, 0, 600, 500)])
def test_a_label_stays_inside_the_picture(box: tuple[int, int, int, int]) -> None:
    """The rectangle of a label is as wide at every corner of the picture as in its middle."""
    classes = ("a long name of a class",)
    middle = like(draw_boxes(canvas(600, 500), [(200, 200, 260, 240)], [0], None, classes), CUP)
    there = like(draw_boxes(canvas(600, 500), [box], [0], None, classes), CUP)
    assert there.sum(1).max() >= middle.sum(1).max() > 150
    assert (there.sum(1) > 80).sum() >= (middle.sum(1) > 80).sum() > 14  # and as high


def test_a_name_longer_than_the_picture_is_cut() -> None:
    found = draw_boxes(canvas(500, 400), [(10, 100, 60, 160)], [0], [0.5], ("x" * 300,))
    assert found.size == (500, 400) and like(found, CUP).any()


def test_labels_do_not_hide_each_other() -> None:
    """Two boxes at one place: both names can be read."""
    one = like(draw_boxes(canvas(600, 500), [(200, 200, 300, 300)], [0], [0.9], CLASSES), CUP)
    both = draw_boxes(canvas(600, 500), [(200, 200, 300, 300), (200, 200, 300, 300)], [0, 1], [0.9, 0.8], CLASSES)
    own = like(both, HAT)
    assert (like(both, CUP) & one).sum() > 0.9 * one.sum() and own.sum(1).max() > 40


def test_boxes_over_the_edge_and_without_a_size_are_drawn() -> None:
    found = draw_boxes(canvas(600, 500), [(-50, -50, 700, 600), (100, 100, 100, 100)], [0, 1], [0.9, 0.8], CLASSES)
    assert like(found, CUP)[:, 0].any() and like(found, CUP)[-1].any() and like(found, HAT).any()
    assert draw_boxes(canvas(600, 500), np.zeros((0, 4)), [], [], CLASSES).tobytes() == canvas(600, 500).tobytes()


def test_a_dashed_frame_has_gaps() -> None:
    box = [(100, 100, 400, 400)]
    whole = like(draw_boxes(canvas(600, 500), box, [0], None, CLASSES), CUP)[150:390, 398:402].any(1)
    broken = like(draw_boxes(canvas(600, 500), box, [0], None, CLASSES, dashed=[True]), CUP)[150:390, 398:402].any(1)
    assert whole.all() and 0.3 < broken.mean() < 0.7


def test_the_surest_box_is_on_top() -> None:
    boxes, labels = [(100, 100, 300, 300), (100, 100, 300, 300)], [0, 1]
    for scores, top in (([0.6, 0.9], HAT), ([0.9, 0.6], CUP)):
        assert draw_boxes(canvas(600, 500), boxes, labels, scores, CLASSES).getpixel((200, 300)) == top


# ---- masks


def test_a_mask_has_the_colours_of_its_legend() -> None:
    mask = np.zeros((50, 60), np.uint8)
    mask[:, 30:] = 1
    white = Image.new("RGB", (600, 500), "white")
    found = draw_mask(white, mask, None, CLASSES)
    assert found.width == 600 and found.height > 500 and found.height % 2 == 0
    pixels = np.asarray(found).astype(int)
    for x, colour in ((100, CUP), (500, HAT)):
        wanted = 0.4 * 255 + 0.6 * np.array(colour)
        assert np.abs(pixels[250, x] - wanted).max() <= 1
    legend = np.asarray(found)[500:]
    assert all((legend == colour).all(-1).any() for colour in (CUP, HAT))
    assert draw_mask(white, mask, None, CLASSES, legend=False).size == (600, 500)


def test_a_data_sets_own_colours_are_taken() -> None:
    found = draw_mask(Image.new("RGB", (500, 500)), np.ones((5, 5), np.uint8), [(1, 2, 3), (250, 100, 50)], CLASSES)
    assert found.getpixel((250, 250)) == (150, 60, 30)
    assert class_colours(CLASSES, [(1, 2, 3), (250, 100, 50)]) == ["#010203", "#fa6432"]
    assert class_colours(CLASSES) == ["#e69f00", "#56b4e9"]


def test_what_is_not_labelled_is_dark_and_in_the_legend() -> None:
    mask = np.full((5, 5), 255, np.uint8)
    picture = Image.new("RGB", (500, 500), "white")
    found = draw_mask(picture, mask, None, CLASSES)
    assert max(found.getpixel((250, 250))) <= 0.4 * 255 + 1  # type: ignore[type-var,arg-type]
    plain = draw_mask(picture, np.zeros((5, 5), np.uint8), None, CLASSES)
    assert (np.asarray(found)[500:] == 0).all(-1).sum() > (np.asarray(plain)[500:] == 0).all(-1).sum() + 50


def test_a_legend_is_as_high_in_every_frame_and_lists_what_is_seen_of_many_classes() -> None:
    picture = Image.new("RGB", (500, 400))
    first, second = (draw_mask(picture, np.full((4, 4), label, np.uint8), None, ["a"] * 20) for label in (0, 7))
    assert first.size == second.size
    many = [f"class {i}" for i in range(100)]
    few = draw_mask(picture, np.full((4, 4), 99, np.uint8), None, many)
    assert 400 < few.height < first.height
    assert (np.asarray(few)[400:] == colours(100)[99]).all(-1).any()


def test_small_pictures_are_enlarged_with_their_masks() -> None:
    mask = np.array([[0, 1]], np.uint8)
    found = draw_mask(canvas(32, 16), mask, None, CLASSES, legend=False)
    assert found.size == (NARROWEST, NARROWEST // 2)
    pixels = np.asarray(found).astype(int)
    assert np.abs(pixels[50, 200] - (0.4 * 128 + 0.6 * np.array(CUP))).max() <= 1
    assert np.abs(pixels[50, 280] - (0.4 * 128 + 0.6 * np.array(HAT))).max() <= 1


# ---- the palette


def test_a_class_keeps_its_colour_and_all_differ() -> None:
    assert colours(60)[:12] == colours(12) and len(set(colours(60))) == 60
    assert ink((255, 255, 0)) == (0, 0, 0) and ink((0, 0, 100)) == (255, 255, 255)


def contrast(one: Colour, other: Colour) -> float:
    """WCAG's."""
    def luminance(colour: Colour) -> float:
        parts = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (x / 255 for x in colour)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_a_name_can_be_read_on_each_colour() -> None:
    assert min(contrast(colour, ink(colour)) for colour in colours(60)) > 4.5


# ---- what a record keeps


def picture(coded: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(coded)))


def test_the_worst_and_other_detections_are_pictured(tmp_path: Path) -> None:
    images = load_detection(write_voc(tmp_path / "data")).test
    metric, found = DetectionMetric(images.classes), []
    for i in range(len(images)):
        truth = images.truth(i)
        kept = truth if i % 3 else truth.chosen(np.zeros(len(truth), bool))  # all of every third is missed
        found.append(Found(boxes=kept.boxes, scores=np.full(len(kept), 0.9, np.float32), labels=kept.labels,
                           size=(64, 64)))  # fmt: skip
        metric.add(kept.boxes, found[-1].scores, kept.labels, truth.boxes, truth.labels, truth.crowd, (64, 64))
    evaluation = DetectionEvaluation(score=metric.result(), found=tuple(found))
    pictures = drawn.detection_pictures(images, evaluation)
    assert [one["index"] for one in pictures["worst"]] == [0, 3, 6]
    assert [one["index"] for one in pictures["others"]] == [2, 5, 7]
    first = pictures["worst"][0]
    assert (first["found"], first["missed"], first["false"]) == (0, len(images.truth(0)), 0)
    assert first["name"] == Path(images.names[0]).name
    right, shown = picture(first["truth_jpeg"]), picture(first["found_jpeg"])
    assert right.size == shown.size == (480, 480) and right.format == "JPEG"
    bare = np.asarray(images.sample(0)[0].resize((480, 480), Image.Resampling.BICUBIC)).astype(int)
    changed = [int((np.abs(np.asarray(one) - bare).max(-1) > 70).sum()) for one in (shown, right)]
    assert changed[0] < 50 and changed[1] > 1000  # nothing was found, and its truth is drawn


def test_missed_and_false_boxes_are_dashed_and_unsure_ones_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def spy(image: Image.Image, boxes: Any, labels: Any, scores: Any, classes: Any, *, dashed: Any) -> Image.Image:
        calls.append({"boxes": np.asarray(boxes).tolist(), "labels": list(labels), "dashed": list(dashed)})
        return image

    monkeypatch.setattr(drawn, "draw_boxes", spy)
    cup, missed, crowd = [10, 10, 50, 50], [60, 10, 90, 40], [0, 60, 100, 100]
    truth = Boxes(boxes=np.array([cup, missed, crowd], np.float32), labels=np.array([0, 0, 1]),
                  crowd=np.array([False, False, True]))  # fmt: skip
    found = Found(
        boxes=np.array([cup, missed, [70, 70, 90, 90], [20, 70, 40, 90]], np.float32), size=(120, 240),
        scores=np.array([0.9, 0.4, 0.8, 0.7], np.float32), labels=np.array([0, 0, 0, 1]),
    )  # fmt: skip
    drawn.boxes_beside(canvas(240, 120), truth, found, CLASSES)
    doubled = [[2 * value for value in box] for box in (cup, missed, crowd)]  # 480 pixels wide
    assert calls[0] == {"boxes": doubled, "labels": [0, 0, 1], "dashed": [False, True, False]}
    assert calls[1]["boxes"][0] == doubled[0]
    assert (calls[1]["labels"], calls[1]["dashed"]) == ([0, 0, 1], [False, True, False])  # the last: in the crowd


def test_the_worst_and_other_label_maps_are_pictured(tmp_path: Path) -> None:
    images = load_segmentation(write_masks(tmp_path / "data")).test

    def labels(index: int) -> Any:
        truth = images.sample(index)[1]
        return truth if index != 1 else np.zeros_like(truth)

    metric = SegmentationMetric(images.classes)
    for i in range(len(images)):
        metric.add(labels(i), images.sample(i)[1])
    pictures = drawn.segmentation_pictures(images, metric.result(), labels)
    worst = pictures["worst"]
    assert worst[0]["index"] == 1 and worst[0]["iou"] < 0.5 and worst[1]["iou"] == 1.0
    assert worst[0]["truth_jpeg"] != worst[0]["found_jpeg"] and worst[1]["truth_jpeg"] == worst[1]["found_jpeg"]
    shown = [one["index"] for part in pictures.values() for one in part]
    assert len(shown) == len(set(shown)) and len(images) - 1 in shown


@pytest.mark.parametrize("name", ["cup", "Größe 5 ½", "чашка", "φ", "a\u0301"])
def test_names_that_dejavu_has_are_drawn_in_it(name: str) -> None:
    (written,), font = drawn._written([name], 20)
    assert written == name and Path(str(font.path)).name == "DejaVuSans.ttf"


@pytest.mark.parametrize(("name", "escaped"), [("猫", r"\u732b"), ("a 🦊 b", r"a \U0001f98a b"), ("ไทย 5", r"\u0e44\u0e17\u0e22 5")])
def test_names_that_no_font_has_are_escaped(monkeypatch: pytest.MonkeyPatch, name: str, escaped: str) -> None:
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: [])
    drawn._font_with.cache_clear()
    assert drawn._written([name, "cup"], 20)[0] == [escaped, "cup"]
    picture = draw_boxes(canvas(500, 400), [[10, 10, 300, 300]], [0], None, [name])
    assert np.array_equal(picture, draw_boxes(canvas(500, 400), [[10, 10, 300, 300]], [0], None, [escaped]))
    drawn._font_with.cache_clear()


def test_a_font_of_the_machine_that_has_a_name_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    other = str(Path(drawn._dejavu()).with_name("DejaVuSerif.ttf"))
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: ["/nowhere.ttf", other])
    letters = drawn._letters
    monkeypatch.setattr(drawn, "_letters", lambda path: letters(path) | ({ord("猫")} if path == other else set()))
    drawn._font_with.cache_clear()
    (written,), font = drawn._written(["猫"], 20)
    assert written == "猫" and font.path == other
    drawn._font_with.cache_clear()
