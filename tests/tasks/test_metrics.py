"""mAP against pycocotools and by hand, mIoU by hand."""

from __future__ import annotations

import contextlib
import io
import json
import math
from typing import Any

import numpy as np
import pytest

from mobilefit.tasks.metrics import (
    DetectionMetric,
    DetectionScore,
    SegmentationMetric,
    SegmentationOutcomes,
    labels_of,
    record_of,
)

Image = dict[str, Any]
NAMES = ("cup", "hat", "fish")


def image(truth: list[Any] = [], found: list[Any] = [], crowd: int = 0, size: tuple[int, int] = (200, 200)) -> Image:  # noqa: B006
    """``truth``: (label, box), the last ``crowd`` of them crowds; ``found``: (label, score, box)."""
    return {
        "boxes": [box for *_, box in found], "scores": [score for _, score, _ in found],
        "labels": [label for label, *_ in found], "truth_boxes": [box for _, box in truth],
        "truth_labels": [label for label, _ in truth],
        "crowd": [i >= len(truth) - crowd for i in range(len(truth))], "size": size,
    }  # fmt: skip


def scored(*images: Image, classes: tuple[str, ...] = NAMES) -> DetectionScore:
    metric = DetectionMetric(classes)
    for one in images:
        metric.add(**one)
    return metric.result()


BOX, RIGHT_HALF, FAR = (0, 0, 100, 100), (50, 0, 100, 100), (150, 150, 190, 190)
SHORTER = (0, 0, 100, 70)  # IoU with BOX: 0.7


def test_a_box_found_and_one_missed_is_half_of_the_recalls() -> None:
    found = scored(image([(0, BOX), (0, FAR)], [(0, 0.9, BOX)]))
    # precision 1 at recalls 0 to 0.5: 51 of 101
    assert found.ap50[0] == found.ap[0] == found.map50 == found.map == pytest.approx(51 / 101)
    assert found.precision[0].tolist() == [1.0] * 51 + [0.0] * 50
    assert np.isnan(found.ap[1:]).all()


def test_a_false_box_before_the_right_one_halves_the_precision() -> None:
    assert scored(image([(0, BOX)], [(0, 0.9, FAR), (0, 0.8, BOX)])).map50 == pytest.approx(0.5)
    assert scored(image([(0, BOX)], [(0, 0.7, FAR), (0, 0.8, BOX)])).map50 == 1.0


def test_an_overlap_of_seven_tenths_counts_up_to_that_threshold() -> None:
    found = scored(image([(0, BOX)], [(0, 0.9, SHORTER)]))
    assert (found.map50, found.map75) == (1.0, 0.0)
    assert found.map == pytest.approx(0.5)  # at 0.5, 0.55, 0.6, 0.65 and 0.7


def test_the_same_box_twice_is_false_the_second_time() -> None:
    found = scored(image([(0, BOX), (0, FAR)], [(0, 0.9, BOX), (0, 0.8, BOX), (0, 0.7, FAR)]))
    # recalls to 0.5 at precision 1, the other 50 at 2/3
    assert found.map50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert (found.found[0], found.false[0], found.images[0].missed) == (2, 1, 0)


def test_what_lies_in_a_crowd_is_neither_right_nor_false() -> None:
    crowd = image([(0, FAR), (0, BOX)], [(0, 0.9, RIGHT_HALF), (0, 0.8, (0, 0, 50, 100)), (0, 0.7, FAR)], crowd=1)
    found = scored(crowd)
    assert found.map == 1.0 and found.truths.tolist() == [1, 0, 0] and found.crowds == 1
    assert (found.images[0].found, found.images[0].missed, found.images[0].false) == (1, 0, 0)


def test_a_class_without_a_box_is_left_out_of_the_mean_and_its_detections_are_counted() -> None:
    found = scored(image([(0, BOX)], [(0, 0.9, BOX), (2, 0.9, FAR)]))
    assert found.map50 == 1.0 and math.isnan(found.ap50[2]) and found.false.tolist() == [0, 0, 1]


def test_boxes_are_small_medium_and_large_by_their_area() -> None:
    small, medium, large = (0, 0, 20, 20), (50, 50, 110, 110), (0, 0, 190, 190)
    found = scored(image([(0, small), (1, medium), (2, large)], [(0, 0.9, small), (1, 0.9, medium)]))
    assert found.by_size == {"small": 1.0, "medium": 1.0, "large": 0.0}
    assert math.isnan(scored(image([(0, large)])).by_size["small"])


def test_nothing_at_all_has_no_score_and_no_detection_scores_nothing() -> None:
    for found in (scored(), scored(image()), scored(image([], [(0, 0.9, BOX)]))):
        assert math.isnan(found.map50) and math.isnan(found.map) and np.isnan(found.precision).all()
    missed = scored(image([(0, BOX)]))
    assert missed.map50 == missed.map == 0.0 and missed.images[0].missed == 1


def test_only_sure_detections_are_counted_as_found_or_false() -> None:
    found = scored(image([(0, BOX), (1, FAR)], [(0, 0.5, BOX), (1, 0.49, FAR), (2, 0.49, FAR)]))
    assert found.found.tolist() == [1, 0, 0] and not found.false.any()
    assert (found.images[0].found, found.images[0].missed) == (1, 1)


def test_the_worst_images_are_those_with_most_missed_and_false_boxes() -> None:
    right, missed = image([(0, BOX)], [(0, 0.9, BOX)]), image([(0, BOX)])
    both = image([(0, BOX)], [(0, 0.9, FAR)])
    found = scored(right, missed, both, missed)
    assert found.worst(3) == [2, 1, 3] and found.worst(1) == [2]
    assert scored(right).worst(3) == []


# ---- beside pycocotools


def boxes(random: np.random.Generator, count: int) -> np.ndarray:
    corner = random.uniform(0, 300, (count, 2))
    return np.concatenate([corner, corner + random.uniform(2, 160, (count, 2))], 1).astype(np.float32)


def drawn(random: np.random.Generator, classes: int) -> Image:
    """An image with up to 9 boxes, near which most detections lie; of scores with few values, many are equal."""
    many, more = int(random.integers(0, 10)), int(random.integers(0, 12))
    truth, labels = boxes(random, many), random.integers(0, classes - 1, many)  # one class has no truth
    again = random.integers(0, many, 2 * many) if many else np.zeros(0, int)
    near = truth[again] + random.normal(0, 6, (len(again), 4)).astype(np.float32)
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    found = np.concatenate([near, boxes(random, more)])
    swapped = random.random(len(again)) < 0.15
    guessed = np.where(swapped, random.integers(0, classes, len(again)), labels[again])
    return {
        "boxes": found, "scores": random.integers(1, 21, len(found)) / 20,
        "labels": np.concatenate([guessed, random.integers(0, classes, more)]),
        "truth_boxes": truth, "truth_labels": labels, "crowd": random.random(many) < 0.15,
        "size": (480, 480),
    }  # fmt: skip


def by_pycocotools(images: list[Image], classes: int) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """Precision [IoUs, recalls, classes, sizes], and each image's found, missed and false boxes at score 0.5."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def plain(box: Any) -> list[float]:
        left, top, right, bottom = (float(x) for x in box)
        return [left, top, right - left, bottom - top]

    truth, sure, whole = COCO(), COCO(), COCO()
    shared = {"images": [{"id": i + 1, "height": 480, "width": 480} for i in range(len(images))],
              "categories": [{"id": label + 1} for label in range(classes)]}  # fmt: skip
    annotations = [
        {"image_id": i + 1, "category_id": int(label) + 1, "bbox": plain(box), "iscrowd": int(crowd)}
        for i, one in enumerate(images)
        for box, label, crowd in zip(one["truth_boxes"], one["truth_labels"], one["crowd"])
    ]  # fmt: skip
    found = [
        {"image_id": i + 1, "category_id": int(label) + 1, "bbox": plain(box), "iscrowd": 0, "score": float(score)}
        for i, one in enumerate(images)
        for box, label, score in zip(one["boxes"], one["labels"], one["scores"])
    ]  # fmt: skip
    for holder, rows in ((truth, annotations), (whole, found), (sure, [row for row in found if row["score"] >= 0.5])):
        numbered = [{**row, "id": i, "area": row["bbox"][2] * row["bbox"][3]} for i, row in enumerate(rows, 1)]
        holder.dataset = {**shared, "annotations": numbered}
        holder.createIndex()
    evaluation = COCOeval(truth, whole, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    shown = COCOeval(truth, sure, "bbox")
    shown.params.iouThrs = np.array([0.5])
    shown.evaluate()
    counts = np.zeros((len(images), 3), int)
    for one in shown.evalImgs:
        if one is not None and tuple(one["aRng"]) == (0, 1e10):
            free, asked = one["dtIgnore"][0] == 0, one["gtIgnore"] == 0
            right = int((free & (one["dtMatches"][0] > 0)).sum())
            counts[one["image_id"] - 1] += [right, int(asked.sum()) - right, int(free.sum()) - right]
    return evaluation.eval["precision"][..., -1], [tuple(row) for row in counts.tolist()]


@pytest.mark.parametrize("seed", [0, 1])
def test_random_boxes_score_as_with_pycocotools(seed: int) -> None:
    random, classes = np.random.default_rng(seed), 5
    images = [drawn(random, classes) for _ in range(50)]
    assert any(not len(one["truth_boxes"]) for one in images) and any(one["crowd"].any() for one in images)
    found = scored(*images, classes=tuple("abcde"))
    with contextlib.redirect_stdout(io.StringIO()):
        precision, counts = by_pycocotools(images, classes)
    absent = np.isnan(found.ap50)
    assert absent.tolist() == [False] * 4 + [True]
    assert np.allclose(found.precision[:4], precision[0, :, :4, 0].T, rtol=0, atol=1e-9)
    there = precision[:, :, :4]
    assert np.allclose(found.ap[:4], there[..., 0].mean((0, 1)), rtol=0, atol=1e-9)
    assert np.allclose(found.ap50[:4], there[0, ..., 0].mean(0), rtol=0, atol=1e-9)
    wanted = [there[..., 0].mean(), there[0, ..., 0].mean(), there[5, ..., 0].mean()]
    assert np.allclose([found.map, found.map50, found.map75], wanted, rtol=0, atol=1e-9)
    for i, size in enumerate(("small", "medium", "large"), 1):
        of_size = there[..., i]
        assert found.by_size[size] == pytest.approx(of_size[of_size >= 0].mean(), abs=1e-9)
    assert 0.1 < found.map < 0.9
    assert [(one.found, one.missed, one.false) for one in found.images] == counts
    assert found.truths.sum() == sum(int((~one["crowd"]).sum()) for one in images)
    assert found.found.sum() == sum(right for right, _, _ in counts)
    assert found.false.sum() == sum(false for *_, false in counts)


@pytest.mark.parametrize("seed", [0, 1])
def test_images_that_count_several_times_score_as_if_they_were_there_so_often(seed: int) -> None:
    random, classes = np.random.default_rng(seed), tuple("abcde")
    images, metric = [drawn(random, 5) for _ in range(30)], DetectionMetric(classes)
    for one in images:
        metric.add(**one)
    outcomes = metric.outcomes()
    assert outcomes.score(np.ones(30, np.int64)) == pytest.approx(metric.result().map50, abs=1e-12)
    weights = random.integers(0, 3, 30)
    several = scored(*[one for one, weight in zip(images, weights) for _ in range(weight)], classes=classes)
    # Detections of equal scores are interleaved otherwise; of distinct ones nothing differs.
    assert outcomes.score(weights) == pytest.approx(several.map50, abs=0.01)
    assert math.isnan(outcomes.score(np.zeros(30, np.int64)))


def test_images_counted_by_hand() -> None:
    metric = DetectionMetric(NAMES)
    metric.add(**image([(0, BOX)], [(0, 0.9, FAR), (0, 0.8, BOX)]))
    metric.add(**image([(0, BOX)], [(0, 0.95, BOX)]))
    score = metric.outcomes().score
    assert score(np.array([1, 0])) == pytest.approx(0.5) and score(np.array([0, 1])) == 1.0
    assert score(np.array([0, 2])) == 1.0
    # right, false, right: precision 1 up to half of the recalls, then 2/3
    assert score(np.array([1, 1])) == pytest.approx((51 + 50 * 2 / 3) / 101)
    # right, false, false, right, right: 1 up to a third, then 3/5
    assert score(np.array([2, 1])) == pytest.approx((34 + 67 * 3 / 5) / 101)


def test_processes_that_share_the_images_find_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(3)
    images = [drawn(random, 3) for _ in range(12)]
    parts = [DetectionMetric(NAMES), DetectionMetric(NAMES)]
    for i, one in enumerate(images):
        parts[i % 2].add(**one, index=i)
    assert record_of(DetectionMetric.joined(parts[::-1]).result()) == record_of(scored(*images))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [0.5, 0.5]}, "1 boxes, 2 scores"), ({"labels": [3]}, "to 3, and 3 classes"),
        ({"labels": [-1]}, "labels from -1"), ({"truth_labels": [3]}, "and 3 classes"),
        ({"crowd": []}, "0 flags"), ({"scores": [math.nan]}, "not a finite number"),
        ({"boxes": [(0, 0, math.inf, 1)]}, "not a finite number"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scored({**image([(0, BOX)], [(0, 0.9, BOX)]), **change})


def test_the_record_of_a_detector_is_plain_and_whole() -> None:
    found = record_of(scored(image([(0, BOX), (1, FAR), (1, BOX)], [(0, 0.9, BOX), (1, 0.8, SHORTER)], crowd=1)))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["task"], found["map50"]) == ("detect", 0.5)
    assert found["per_class"][0] == {"class": "cup", "ap50": 1.0, "ap": 1.0, "truths": 1, "found": 1, "false": 0}
    assert found["per_class"][2]["ap50"] is None and found["curves"][2] is None
    assert found["curves"][0] == [1.0] * 101
    assert found["counts"] == {"images": 1, "boxes": 2, "crowds": 1, "found": 1, "false": 0, "score": 0.5, "iou": 0.5}


# ---- segmentation

TRUTH = np.array([[0, 0, 1, 1], [0, 0, 1, 255]], np.uint8)
FOUND = np.array([[0, 0, 0, 1], [0, 2, 1, 2]], np.uint8)


def test_intersection_over_union_by_hand() -> None:
    metric = SegmentationMetric(("road", "car", "tree", "sky"))
    metric.add(FOUND, TRUTH)
    found = metric.result()
    # road: 3 of 3 + 1 + 1; car: 2 of 2 + 1; tree: predicted once, never there; sky: neither
    assert found.iou[:3].tolist() == pytest.approx([3 / 5, 2 / 3, 0.0]) and math.isnan(found.iou[3])
    assert found.miou == pytest.approx((3 / 5 + 2 / 3) / 3)
    assert found.pixel_accuracy == pytest.approx(5 / 7)
    assert found.class_accuracy == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert found.confusion.tolist() == [[3, 0, 1, 0], [1, 2, 0, 0], [0] * 4, [0] * 4]
    assert found.image_iou.tolist() == [found.miou] and found.row()["val_miou"] == found.miou


def test_pixels_are_pooled_over_the_images_not_averaged() -> None:
    metric = SegmentationMetric(("a", "b"))
    metric.add(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8))
    metric.add(np.zeros((1, 9), np.uint8), np.array([[0] * 3 + [1] * 6], np.uint8))
    found = metric.result()
    assert found.iou.tolist() == pytest.approx([4 / 10, 0.0])
    assert found.image_iou.tolist() == pytest.approx([1.0, (3 / 9 + 0) / 2])
    assert found.image_pixels.tolist() == [[[1, 0], [1, 0], [1, 0]], [[3, 0], [3, 6], [9, 0]]]
    score = SegmentationOutcomes(pixels=found.image_pixels).score
    assert score(np.array([1, 1])) == found.miou and score(np.array([1, 0])) == 1.0
    assert score(np.array([3, 1])) == pytest.approx((6 / 12 + 0) / 2)
    assert found.worst(2) == [1, 0]


def test_an_image_of_ignored_pixels_alone_has_no_score() -> None:
    metric = SegmentationMetric(("a", "b"))
    metric.add(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8))
    found = metric.result()
    assert math.isnan(found.miou) and math.isnan(found.pixel_accuracy) and found.worst(3) == []
    assert record_of(found)["miou"] is None


def test_logits_are_brought_to_the_size_of_the_truth() -> None:
    logits = np.zeros((2, 2, 2), np.float32)
    logits[1, :, 1] = 1.0
    logits[0, :, 0] = 1.0
    wanted = np.array([[0, 0, 1, 1]] * 4)
    assert (labels_of(logits, (4, 4)) == wanted).all()
    metric = SegmentationMetric(("a", "b"))
    metric.add(logits, wanted.astype(np.uint8))
    assert metric.result().miou == 1.0


def test_logits_are_resized_before_the_classes_are_chosen() -> None:
    """0.9 against 1 and 0 against 9: the border lies where the logits cross, not midway."""
    logits = np.array([[[1.0, 0.0]], [[0.9, 9.0]]], np.float32)
    assert labels_of(logits, (1, 4)).tolist() == [[0, 1, 1, 1]]


def test_pixels_are_areas_when_logits_are_resized() -> None:
    """The second of four lies a quarter of the way from one centre to the other, and not a third."""
    logits = np.array([[[1.0, 0.0]], [[0.7, 0.7]]], np.float32)
    assert labels_of(logits, (1, 4)).tolist() == [[0, 0, 1, 1]]


def test_segmentation_by_several_processes() -> None:
    random = np.random.default_rng(5)
    maps = [(random.integers(0, 3, (6, 7)), random.integers(0, 3, (6, 7)).astype(np.uint8)) for _ in range(5)]
    whole, parts = SegmentationMetric(NAMES), [SegmentationMetric(NAMES), SegmentationMetric(NAMES)]
    for i, (found, truth) in enumerate(maps):
        whole.add(found, truth)
        parts[i % 2].add(found, truth, index=i)
    joined = SegmentationMetric.joined(parts[::-1]).result()
    assert record_of(joined) == record_of(whole.result())
    assert joined.worst(5) == whole.result().worst(5)


def test_iou_agrees_with_a_count_class_by_class() -> None:
    random = np.random.default_rng(7)
    found, truth = random.integers(0, 3, (40, 50)), random.choice([0, 1, 2, 255], (40, 50)).astype(np.uint8)
    metric = SegmentationMetric(NAMES)
    metric.add(found, truth)
    known = truth != 255
    wanted = [((found == k) & (truth == k)).sum() / (((found == k) | (truth == k)) & known).sum() for k in range(3)]
    assert metric.result().iou.tolist() == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("found", "truth", "message"),
    [
        (np.zeros((2, 2)), np.zeros((2, 3), np.uint8), "labels of"),
        (np.full((2, 2), 3), np.zeros((2, 2), np.uint8), "up to 3, and 3 classes"),
        (np.full((2, 2), -1), np.zeros((2, 2), np.uint8), "3 classes"),
        (np.zeros((2, 2)), np.full((2, 2), 7, np.uint8), "up to 7"),
    ],
)
def test_label_maps_that_cannot_be_scored_are_refused(found: Any, truth: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationMetric(NAMES).add(found, truth)


def test_the_record_of_a_segmenter_is_plain_and_whole() -> None:
    metric = SegmentationMetric(("road", "car", "tree", "sky"))
    metric.add(FOUND, TRUTH)
    found = record_of(metric.result())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["per_class"][3] == {"class": "sky", "iou": None, "accuracy": None, "pixels": 0}
    assert found["counts"] == {"images": 1, "pixels": 7} and found["confusion"][1] == [1, 2, 0, 0]
