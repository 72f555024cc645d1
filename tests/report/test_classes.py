from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from mobilefit.report import class_table, classes

from .example import CLASSES, CONFUSION, record, train_record

COUNTS = np.array(CONFUSION)
SVG = "{http://www.w3.org/2000/svg}"


def test_largest_confusions_by_hand() -> None:
    found = classes.mistakes(CLASSES, COUNTS, most=4)
    assert [(m.true, m.predicted, m.images, m.share) for m in found] == [
        ("shirt", "long sleeve", 9, 9 / 50), ("long sleeve", "shirt", 7, 7 / 50),
        ("shirt", "t-shirt", 4, 4 / 50), ("dress", "t-shirt", 3, 3 / 50),
    ]  # fmt: skip
    assert str(found[0]) == "shirt taken for long sleeve 18.0 %"
    assert classes.mistakes(["a", "b"], np.array([[3, 0], [0, 0]])) == []


def test_each_class_by_hand_the_weakest_first() -> None:
    rows = classes.table(train_record())
    assert [row.name for row in rows] == [
        "shirt", "long sleeve", "dress", "t-shirt", CLASSES[4], "hat",
    ]  # fmt: skip
    shirt = rows[0]
    assert (shirt.images, shirt.training) == (50, 600)
    assert shirt.recall == 35 / 50 and shirt.precision == 35 / (1 + 7 + 35 + 2)
    assert shirt.taken_for == ("long sleeve", 9 / 50)
    assert rows[-1].taken_for is None and rows[-1].precision == 50 / 51


def test_a_class_without_images_or_predictions_has_no_shares() -> None:
    content = {"final": {"confusion": [[0, 0, 0], [1, 3, 0], [0, 0, 2]]}, "data": {"classes": ["one name"]}}
    rows = {row.name: row for row in classes.table(content)}
    assert rows["0"].recall is None and rows["0"].precision == 0 and rows["1"].recall == 0.75
    assert [row.name for row in classes.table(content)] == ["1", "2", "0"]
    assert classes.table({}) == [] and classes.matrix({"final": {}}) is None


def test_the_balance_is_told() -> None:
    assert classes.balance(classes.table(train_record())) == (
        "From 40 training images (hat) to 600 (shirt), 15.0 times as many."
    )
    assert classes.balance(classes.table(record())) == "50 test images in every class."
    assert classes.balance([]) is None
    counted = {"data": {"classes": ["a", "b"], "counts": {"train": [7, 0]}}}
    assert [(row.name, row.training) for row in classes.table(counted)] == [("b", 0), ("a", 7)]
    assert classes.balance(classes.table(counted)) == "From 0 training images (b) to 7 (a)."


def adjacent(order: list[int], group: set[int]) -> bool:
    places = sorted(order.index(member) for member in group)
    return places == list(range(places[0], places[0] + len(group)))


def test_classes_that_are_confused_stand_together() -> None:
    """Three groups of eight, shuffled: within them confusions are four times as frequent, unevenly."""
    for seed in range(5):
        random = np.random.default_rng(seed)
        group = random.permutation(np.repeat([0, 1, 2], 8))
        likeness = np.where(group[:, None] == group, 0.08, 0.02) * random.uniform(0, 2, (24, 24))
        found = classes.order(likeness + likeness.T)
        assert sorted(found) == list(range(24))
        assert all(adjacent(found, set(np.flatnonzero(group == g).tolist())) for g in range(3))


def test_a_chain_is_put_in_its_order() -> None:
    """Each class is confused with its neighbours alone."""
    chain = [3, 0, 4, 1, 5, 2]
    likeness = np.zeros((6, 6))
    for place, (a, b) in enumerate(itertools.pairwise(chain)):
        likeness[a, b] = likeness[b, a] = 0.5 - 0.01 * place
    assert classes.order(likeness) in (chain, chain[::-1])
    assert classes.order(np.zeros((4, 4))) == [0, 1, 2, 3]  # nothing in common: as they were
    assert classes.order(np.zeros((1, 1))) == [0]


def test_the_matrix_is_reordered_as_a_whole() -> None:
    found = classes.confusion(CLASSES, COUNTS)
    for (i, true), (j, predicted) in itertools.product(enumerate(found.names), repeat=2):
        number = CONFUSION[CLASSES.index(true)][CLASSES.index(predicted)]
        assert found.counts[i, j] == number and found.shares[i, j] == number / 50
    assert found.left_out == 0 and found.rows[0][0] == found.names[0]
    ends = np.array([[9, 0, 3], [0, 9, 0], [3, 0, 9]])  # the first and the last class are confused
    assert classes.confusion(["a", "b", "c"], ends).names in (["a", "c", "b"], ["b", "a", "c"], ["b", "c", "a"])


def test_of_many_classes_those_with_most_mistakes_are_shown() -> None:
    counts = np.diag([10] * 120)
    for a, b in ((7, 9), (9, 7), (50, 51)):
        counts[a, b] = 5
    names = [f"c{i}" for i in range(120)]
    found = classes.confusion(names, counts, most=4)
    assert {"c7", "c9", "c50", "c51"} == set(found.names) and found.left_out == 116
    assert [m.images for m in found.worst] == [5, 5, 5]


def test_the_picture_has_a_cell_for_every_count() -> None:
    names = [f"class {i} <&> of a very long name" for i in range(30)]
    counts = np.diag(np.arange(1, 31)) + np.eye(30, k=1, dtype=int)
    found = classes.confusion(names, counts)
    root = ET.fromstring(classes.figure(found))
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert len(titles) == 59
    assert f"{names[0]} taken for {names[1]}: 50.0 % (1)" in titles and f"{names[29]} right: 100.0 % (30)" in titles
    texts = [text.text or "" for text in root.iter(f"{SVG}text")]
    assert len(texts) == 60 and max(map(len, texts)) == classes.LONGEST
    styles = [rect.get("style") or "" for rect in root.iter(f"{SVG}rect")]
    assert sum("--heat" in style for style in styles) == 30 and sum("--miss" in style for style in styles) == 29


def test_shades_grow_with_the_share_and_text_stays_readable_on_them() -> None:
    for right in (True, False):
        shades = [classes.strength(share, right) for share in np.linspace(0, 1, 21)]
        assert shades == sorted(shades) and shades[0] > 0 and shades[-1] <= 0.6
    assert classes.strength(0.05, False) > 3 * classes.strength(0.0, False)  # few mistakes are seen


def test_text_for_a_terminal_is_exact() -> None:
    assert class_table(train_record(), most=2).splitlines() == [
        "class         right  precision  images  most of the rest taken for",
        "shirt        70.0 %     77.8 %      50  long sleeve 18.0 %",
        "long sleeve  80.0 %     74.1 %      50  shirt 14.0 %",
        "and 4 classes with more right",
    ]
    assert "and" not in class_table(train_record()).split() and class_table({}) == ""


@pytest.mark.parametrize("matrix", [[[1, 2]], [[1, 2], [3]], [["a", 2], [3, 4]], [[0.5, 1], [1, 1]], [3]])
def test_a_matrix_that_is_none_is_refused(matrix: object) -> None:
    with pytest.raises(ValueError, match=re.compile("square|inhomogeneous")):
        classes.matrix({"final": {"confusion": matrix}})
