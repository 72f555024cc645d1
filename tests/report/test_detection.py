from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobilefit.errors import InputError
from mobilefit.report import class_table, detection, plots, tables, training, write_report
from mobilefit.report.plots import Marks

from .example import (
    BOXES,
    detect_record,
    netadapt,
    record,
    seed_spec,
    segment_record,
    task_rows,
    write_jsonl,
    write_task,
)
from .test_page import Page, paths, written
from .test_plots import texts

SECTIONS = ["curves", "classes", "pictures", "recipe", "network", "repeat"]


def said(page: Page) -> str:
    return " ".join(page.text.split())


def says(page: Page, words: str) -> bool:
    """Whether the words are there, however cells and tiles divide them."""
    return "".join(words.split()) in "".join(page.text.split())


def test_the_page_of_a_detector(tmp_path: Path) -> None:
    page = written(write_task(tmp_path, detect_record()))
    assert page.sections == SECTIONS and not page.open
    text = said(page)
    for words in (
        "ssdlite_mobilenet_v3_small: mAP@0.5 66.67 % on 30 test images.", "mAP@0.5, float32 66.67 % mAP@0.5:0.95 45.00 %",
        "best validation 88.50 % at step 120", "mAP@0.75 40.0 %", "small boxes 10.0 %", "boxes found 129 of 150",
        "false ones 16", "3 found, 2 missed, 0 false, street 0.jpg no. 0", "Most boxes missed or false", "Others",
        "with a score of 0.5 or more. Dashed", "2 without width or height", "fish 30.0 % 10.0 % 40.0 % 40.0 % 10 50",
    ):  # fmt: skip
        assert says(page, words), words
    assert "top-1" not in text and "accuracy" not in text.lower() and "of test images right" not in text
    assert "large boxes" not in text  # there are none
    assert len([r for r in page.references if r.startswith("data:image/jpeg;base64,")]) == 8


def test_it_loads_nothing_and_escapes_names(tmp_path: Path) -> None:
    page = written(write_task(tmp_path, detect_record()))
    assert all(r.startswith(("data:image/jpeg;base64,", "#")) for r in page.references)
    evil = '"><script>alert(1)</script>'
    content = detect_record()
    content["final"]["per_class"][0]["class"] = content["final"]["pictures"]["worst"][0]["name"] = evil
    content["final"]["pictures"]["worst"][0]["truth_jpeg"] = content["data"]["dropped"][0]["why"] = evil
    text = write_report(write_task(tmp_path, content)).read_text()
    assert "<script" not in text and Page(text).text.count(evil) >= 3


def test_each_class_the_weakest_first() -> None:
    rows = detection.table(detect_record())
    assert [row.name for row in rows] == ["fish", "cup", BOXES[2], "unseen"]
    fish, unseen = rows[0], rows[-1]
    assert (fish.recall, fish.precision, fish.training) == (4 / 10, 4 / 10, 50)
    assert unseen.recall is None and unseen.precision == 0 and unseen.ap50 is None
    assert rows[1].colour == "#e69f00" and fish.colour == "#56b4e9"  # by the class, not by the order
    assert detection.table({}) == detection.table(record()) == detection.table(segment_record()) == []


def test_the_terminal_has_the_weakest_classes() -> None:
    assert class_table(detect_record(), most=2).splitlines() == [
        "class  AP@0.5  AP@0.5:0.95  recall  precision  boxes",
        "fish   30.0 %       10.0 %  40.0 %     40.0 %     10",
        "cup    80.0 %       50.0 %  87.5 %     87.5 %     40",
        "and 2 classes with a higher AP",
    ]


# ---- the curves


def row(index: int, name: str = "x", curve: tuple[float, ...] | None = (1.0,) * 101) -> detection.Class:
    return detection.Class(index=index, name=name, ap50=index / 100, ap=0.1, truths=10, found=5, false=5,
                           training=None, curve=curve)  # fmt: skip


def test_curves_are_named_at_their_ends() -> None:
    figure = detection.curves_figure(detection.table(detect_record()))
    assert figure is not None
    found = texts(figure)
    for text in ("recall", "precision", "fish  30.0 %", "cup  80.0 %", f"{BOXES[2]}  90.0 %"):
        assert text in found, text
    assert not [text for text in found if "unseen" in text]
    assert all(colour in figure.decode() for colour in ("#e69f00", "#56b4e9", "#009e73"))


def test_of_many_classes_the_best_and_the_worst_are_named() -> None:
    many = [row(i, f"class {i}") for i in range(80)]
    figure = detection.curves_figure(many)
    assert figure is not None and len(figure) < 200_000
    named = [text.split("  ")[0] for text in texts(figure) if text.startswith("class")]
    assert sorted(named) == sorted(f"class {i}" for i in (0, 1, 2, 77, 78, 79))


def test_without_a_curve_there_is_no_figure() -> None:
    assert detection.curves_figure([row(0, curve=None)]) is None
    nothing = detection.curves_figure([row(0, curve=(0.0,) * 101)])  # nothing was ever found
    assert nothing is not None and "x  0.0 %" in texts(nothing)


def test_long_names_are_cut_beside_curves() -> None:
    figure = detection.curves_figure([row(0, "n" * 60)])
    assert figure is not None and [t for t in texts(figure) if t.startswith("n")] == ["n" * 21 + "…  0.0 %"]


@pytest.mark.parametrize(
    ("heights", "wanted"),
    [
        ([0.2, 0.5], [0.2, 0.5]), ([0.5, 0.5, 0.5], [0.5, 0.6, 0.7]), ([0.95, 1.0, 1.0], [0.8, 0.9, 1.0]),
        ([0.0, 0.05, 0.9], [0.0, 0.1, 0.9]), ([], []),
    ],
)  # fmt: skip
def test_names_are_moved_apart(heights: list[float], wanted: list[float]) -> None:
    assert detection.spread(heights, gap=0.1, top=1.0) == pytest.approx(wanted)


# ---- what training and comparison say


@pytest.mark.parametrize(
    ("key", "title"), [("val_map50", "validation mAP@0.5 (%)"), ("val_miou", "validation mIoU (%)")]
)
def test_the_training_shows_the_tasks_own_curve(key: str, title: str) -> None:
    rows = task_rows(key)
    titles = [text for figure in plots.training_figures(rows, Marks()) for text in texts(figure)]
    assert title in titles and "validation top-1 (%)" not in titles
    marks = training.marks_of({}, rows)
    assert marks.best == 120
    assert dict(training.facts({}, rows, marks))["best validation"] == "88.50 % at step 120"
    several = plots.curves_figure({"a": rows, "b": rows})
    assert several is not None and title in texts(several) and "validation top-1 (%)" not in texts(several)


def test_a_whole_run_says_map_wherever_it_said_accuracy(tmp_path: Path) -> None:
    content = record() | {"task": "detect"}
    content["final"] |= {key: detect_record()["final"][key] for key in ("per_class", "curves", "counts")}
    folder = write_task(tmp_path, content)
    write_jsonl(folder / "netadapt" / "netadapt.jsonl", netadapt())
    page = written(folder)
    assert "accuracy" not in said(page).lower()
    for words in ("mAP@0.5 against latency", "mAP@0.5 int8", "short-term mAP@0.5", "mAP@0.5, test set"):
        assert words in said(page), words
    assert "mAP@0.5 float32" in tables.summary_table(content) and "accuracy" not in tables.summary_table(content)


def test_a_detectors_network_has_a_row_for_each_part_of_its_head() -> None:
    from mobilefit.arch import detector

    spec = detector(seed_spec(), num_classes=4)
    rows = dict(tables.network(None, spec))
    assert [name for name in rows if name.startswith("head")] == [
        *(f"head.extras.{i}" for i in range(4)),
        *(f"head.{part}.{i}" for i in range(6) for part in ("classes", "boxes")),
    ]
    cells = [cell.new for cell in rows["head.extras.0"]]
    assert cells[0] == "10² × 576" and cells[1] == "conv 1×1 + depthwise 3×3 + conv 1×1"
    assert cells[3] == "512" and cells[6] == "2"
    assert cells[7] == f"{spec.cost().of('head.extras.0').params:,}"


def test_an_unfinished_training_has_its_curves(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "metrics.jsonl", task_rows("val_map50"))
    page = written(tmp_path)
    assert page.sections == ["curves"] and "validation mAP@0.5" in page.text


# ---- robustness


def changed(content: dict[str, Any], place: tuple[Any, ...], change: Callable[[Any, Any], None]) -> dict[str, Any]:
    made = copy.deepcopy(content)
    holder: Any = made
    for key in place[:-1]:
        holder = holder[key]
    change(holder, place[-1])
    return made


def remove(holder: Any, key: Any) -> None:
    del holder[key]


def empty(holder: Any, key: Any) -> None:
    holder[key] = None


@pytest.mark.parametrize("made", [detect_record, segment_record])
def test_any_field_may_be_missing_or_empty(
    made: Callable[[], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "training_figures", lambda *_: [b"<svg></svg>"])
    monkeypatch.setattr(detection, "curves_figure", lambda *_: b"<svg></svg>")
    content = made()
    folder = write_task(tmp_path, content)
    places = [place for place in paths(content) if place[-1] != 0 and place[0] == "final"]
    assert len(places) > 20
    for place in places:
        for change in (remove, empty):
            (folder / "record.json").write_text(json.dumps(changed(content, place, change)))
            page = written(folder)
            assert not page.open and "curves" in page.sections, place
            assert not {"Undefined", "None", "nan"} & set(page.text.split("To repeat it")[0].split()), place


@pytest.mark.parametrize(
    "final",
    [
        {"per_class": 3}, {"per_class": [3]}, {"per_class": "abc"}, {"curves": [["a"]]}, {"curves": 5},
        {"by_size": [1]}, {"counts": 7},
    ],
)  # fmt: skip
def test_a_broken_record_is_refused_in_one_line(final: dict[str, Any], tmp_path: Path) -> None:
    content = detect_record()
    content["final"] |= final
    with pytest.raises(InputError, match=r"cannot make sense of .*record.json") as caught:
        write_report(write_task(tmp_path, content))
    assert "\n" not in str(caught.value)
