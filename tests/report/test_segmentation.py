from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from mobilefit.report import class_table, classes, segmentation, tables, write_report

from .example import (
    PLACES,
    detect_record,
    record,
    searched_record,
    segment_record,
    task_rows,
    trials,
    write_jsonl,
    write_search,
    write_task,
)
from .test_detection import said, says
from .test_page import Page, written

SECTIONS = ["curves", "classes", "confusion", "pictures", "recipe", "network", "repeat"]


def test_the_page_of_a_segmenter(tmp_path: Path) -> None:
    page = written(write_task(tmp_path, segment_record()))
    assert page.sections == SECTIONS and not page.open
    text = said(page)
    for words in (
        "lraspp_mobilenet_v3_small: mIoU 50.57 % on 30 test images.", "mIoU, float32 50.57 % pixels right 89.28 %",
        "mean over the classes 69.3 %", "labelled pixels 11,100", "best validation 88.50 % at step 120",
        f"{PLACES[2]} 4.8 % 30.0 % 0.9 % 10.0 %", "sky – – 0.0 % 0.0 %", "Per cent of the row's pixels",
        "IoU 50.6 %, street 3.jpg no. 21", "The lowest IoU",
    ):  # fmt: skip
        assert says(page, words), words
    assert "top-1" not in text and "accuracy" not in text.lower() and "found with a score" not in text
    assert len([r for r in page.references if r.startswith("data:image/jpeg;base64,")]) == 8


def test_the_classes_have_the_colours_of_the_pictures(tmp_path: Path) -> None:
    text = write_report(write_task(tmp_path, segment_record())).read_text()
    assert all(text.count(f"background: {colour}") == 2 for colour in ("#804080", "#00008e", "#999999", "#4682b4"))
    content = segment_record()
    content["final"]["colours"][1] = "red; background: url(http://x)"
    text = write_report(write_task(tmp_path, content)).read_text()
    assert "url(http" not in text and text.count("background: #56b4e9") == 2  # the usual ones then
    assert "<script" not in text and Page(text).text.count(PLACES[2]) > 3


def test_a_search_says_miou_wherever_it_said_accuracy(tmp_path: Path) -> None:
    content = searched_record(trials()) | {"task": "segment"}
    content["final"] |= {key: segment_record()["final"][key] for key in ("per_class", "confusion")}
    write_search(tmp_path, content=content)
    for path in tmp_path.rglob("metrics.jsonl"):
        write_jsonl(path, task_rows("val_miou"))
    page = written(tmp_path)
    assert "search" in page.sections and "accuracy" not in said(page).lower() and "top-1" not in said(page)
    for words in ("mIoU from the shared weights", "mIoU in the search (%)", "mIoU, fully trained (%)",
                  "mIoU on held-out images in the search", "mIoU is the search's own"):  # fmt: skip
        assert words in said(page), words


def test_each_class_the_weakest_first() -> None:
    rows = segmentation.table(segment_record())
    assert [row.name for row in rows] == [PLACES[2], "car", "road", "sky"]
    assert rows[0].part == 100 / 11_100 and rows[0].training == 100 / 1000
    assert rows[0].colour == "#999999"
    assert segmentation.table({}) == segmentation.table(record()) == segmentation.table(detect_record()) == []


def test_mistakes_are_told_by_their_share_of_the_class() -> None:
    counts = np.array(segment_record()["final"]["confusion"])
    found = classes.mistakes(PLACES, counts, by_share=True)
    assert [(m.true, m.predicted) for m in found[:3]] == [(PLACES[2], "road"), ("car", "road"), (PLACES[2], "car")]
    assert [m.share for m in found] == sorted((m.share for m in found), reverse=True)
    assert classes.mistakes(PLACES, counts)[0].true == "road"  # it has most pixels


def test_cells_are_per_cent_of_the_row(tmp_path: Path) -> None:
    write_task(tmp_path, segment_record())
    text = write_report(tmp_path).read_text()
    matrix = text[text.index('class="matrix"') : text.index('id="pictures"')]
    cells = [cell for cell in re.findall(r"<td[^>]*>([^<]*)</td>", matrix) if cell]
    assert sorted(cells) == sorted(["90", "5", "5", "10", "88", "2", "60", "10", "30"])
    told = re.findall(r"<li><strong>(.*?)</strong> taken for <strong>(.*?)</strong> (.*?)</li>", text)
    assert told[1:3] == [("car", "road", "10.0 %"), ("pole &amp; &lt;i&gt;post&lt;/i&gt;", "car", "10.0 %")]


def test_the_terminal_has_the_weakest_classes() -> None:
    assert class_table(segment_record(), most=2).splitlines() == [
        "class                  IoU   right  of all pixels",
        "pole & <i>post</i>   4.8 %  30.0 %          0.9 %",
        "car                 58.3 %  88.0 %          9.0 %",
        "and 2 classes with a higher IoU",
    ]


def test_the_network_tells_heights_widths_and_dilation() -> None:
    from mobilefit.arch import NetSpec

    rows = dict(tables.network(None, NetSpec.from_dict(segment_record()["final_spec"])))
    assert rows["stem"][0].new == "64×128 × 3"
    assert [cells[1].new for cells in rows.values() if "dilation 2" in cells[1].new] == ["bottleneck 5×5, dilation 2"] * 2
    assert {"head.project", "head.gate", "head.high", "head.low"} <= set(rows)
    assert rows["head.pool"][1].new == "pool"
