"""What counts as the same for boxes and for labels of pixels, by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mobilefit.errors import InputError
from mobilefit.formats.parity import (
    BOX_TOLERANCES,
    LABEL_TOLERANCES,
    TOLERANCES,
    Detected,
    box_parity,
    label_parity,
)

BOXES = np.array([[[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]])
SCORES = np.array([[[0.9, 0.1], [0.2, 0.8]]])
FOUND = Detected(BOXES[0], np.array([0.9, 0.8]), np.array([0, 1]))


def compared(kind="float32", boxes=BOXES, scores=SCORES, found=FOUND):
    return box_parity(kind, (BOXES, SCORES), (boxes, scores), ([FOUND], [found]))


def test_every_format_has_limits_of_every_task():
    assert list(BOX_TOLERANCES) == list(TOLERANCES) == list(LABEL_TOLERANCES)


def test_the_same_boxes_are_the_same():
    for kind in BOX_TOLERANCES:
        found = compared(kind)
        assert found.ok and (found.images, found.detections) == (1, 2)
        assert (found.within, found.lowest, found.largest, found.agreement) == (1.0, 1.0, 0.0, 1.0)


def test_a_moved_box_counts_by_its_overlap():
    moved = BOXES.copy()
    moved[0, 0, 2] = 0.6  # 0.25 shared of 0.3
    found = compared(boxes=moved)
    assert found.lowest == pytest.approx(5 / 6) and found.within == 0.5 and not found.ok
    assert compared("int8", boxes=moved).within == 1.0


def test_a_score_of_any_class_counts():
    other = SCORES.copy()
    other[0, 1, 0] += 0.01
    found = compared(scores=other)
    assert found.largest == pytest.approx(0.01) and found.within == 0.5 and not found.ok


@pytest.mark.parametrize(
    ("found", "share"),
    [
        (Detected(BOXES[0, ::-1], np.array([0.8, 0.9]), np.array([1, 0])), 1.0),
        (Detected(BOXES[0], np.array([0.9, 0.8]), np.array([0, 0])), 0.5),
        (Detected(BOXES[0], np.array([0.9, 0.7]), np.array([0, 1])), 0.5),
        (Detected(BOXES[0, :1], np.array([0.9]), np.array([0])), 2 / 3),
        (Detected(BOXES[0, [0, 0]], np.array([0.9, 0.9]), np.array([0, 0])), 0.5),
        (Detected(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64)), 0.0),
    ],
    ids=["another order", "another class", "another score", "one missed", "one twice", "none"],
)
def test_detections_are_paired_once_by_class_score_and_place(found, share):
    assert compared(found=found).agreement == pytest.approx(share)
    assert compared(found=found).ok == (share == 1.0)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_number_that_is_none_is_not_within(number):
    boxes, scores = BOXES.copy(), SCORES.copy()
    boxes[0, 0, 0], scores[0, 1, 1] = number, number
    found = compared(boxes=boxes, scores=scores)
    assert found.within == 0.0 and found.lowest == 0.0 and not found.ok
    assert json.loads(json.dumps(found.to_dict()))["largest"] is None


def test_boxes_without_area_are_the_same_only_where_they_are():
    flat = np.array([[[0.2, 0.2, 0.2, 0.2]]])
    both = [FOUND._replace(boxes=flat[0], scores=np.array([0.5]), labels=np.array([0]))] * 2
    same = box_parity("float32", (flat, SCORES[:, :1]), (flat, SCORES[:, :1]), ([both[0]], [both[1]]))
    assert same.ok
    off = box_parity("float32", (flat, SCORES[:, :1]), (flat + 0.1, SCORES[:, :1]), ([], []))
    assert off.lowest == 0.0 and off.agreement == 1.0 and not off.ok


def test_labels_are_counted_over_all_pixels():
    module = [np.zeros((2, 4), int), np.ones((4, 4), int)]
    file = [module[0].copy(), module[1].copy()]
    assert label_parity("float32", module, file).ok
    file[1][0, :3] = 2
    found = label_parity("int8", module, file)
    assert found.agreement == pytest.approx(21 / 24) and found.lowest == pytest.approx(13 / 16) and found.ok
    assert not label_parity("float32", module, file).ok
    assert json.loads(json.dumps(found.to_dict()))["tolerance"] == {"agreement": 0.8}


def test_what_cannot_be_compared():
    with pytest.raises(InputError, match="unknown format 'flot16'; did you mean 'float16'"):
        compared("flot16")
    with pytest.raises(InputError, match="unknown format 'flot16'; did you mean 'float16'"):
        label_parity("flot16", [np.zeros((2, 2))], [np.zeros((2, 2))])
    with pytest.raises(ValueError, match="boxes and scores of"):
        compared(boxes=BOXES[:, :1])
    with pytest.raises(ValueError, match="different sizes"):
        label_parity("int8", [np.zeros((2, 2))], [np.zeros((2, 3))])
