from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mobilefit.errors import InputError
from mobilefit.report import plots, write_report
from mobilefit.report.page import STEPS

from .example import metrics, netadapt, record, write_jsonl, write_run

SECTIONS = ("frontier", "int8", "network", "netadapt", "layers", "curves", "classes", "confusion",
            "misclassified", "repeat")  # fmt: skip


class Page(HTMLParser):
    """Sections, references and open elements of a page."""

    VOID = ("meta", "img", "link", "br", "hr", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for key, value in attrs:
            if tag == "section" and key == "id":
                self.sections.append(str(value))
            if key == "id":
                self.ids.append(str(value))
            if key in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.references.append(str(value))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += data


def written(folder: Path) -> Page:
    return Page(write_report(folder).read_text())


def test_all_sections_in_one_well_formed_page(page: str) -> None:
    found = Page(page)
    assert tuple(found.sections) == SECTIONS and not found.open
    for text in (
        "design: clothing", "0.412 ms measured, within the budget of 0.420 ms", "NetAdapt",
        "87.33 %", "812 kB", "3.21 MB", "9f2c71d0e5ab", "An Example 9000", "avx512_vnni",
        "broken.jpg", "cut short after 812 bytes", "mobilefit design clothing --latency 0.42ms",
        "blocks.1.expand 96 → 88", "2,400", "15 min 6 s",
    ):  # fmt: skip
        assert text in found.text, text
    assert "nan" not in found.text.lower().split() and "Undefined" not in page


def test_it_needs_nothing_else(page: str) -> None:
    """No reference leaves the page: data URIs, and fragments within it."""
    found = Page(page)
    assert found.references and all(r.startswith(("data:image/png;base64,", "#")) for r in found.references)
    assert not {"script", "link", "iframe", "object", "base"} & found.tags
    assert not re.findall(r"@import|url\((?!['\"]?#)", page)
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert not re.findall(r"https?://", without_namespaces)
    assert "default-src 'none'" in page


def test_ids_are_unique_and_fragments_lead_somewhere(page: str) -> None:
    found = Page(page)
    targets = {r[1:] for r in found.references if r.startswith("#")}
    targets |= set(re.findall(r"url\(#([^)]+)\)", page))
    assert targets <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))


def test_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    path = write_report(write_run(tmp_path / "run"))
    before = path.read_bytes()
    assert path == tmp_path / "run" / "report.html"
    assert write_report(tmp_path / "run").read_bytes() == before


def test_markup_in_names_is_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>'
    content = record()
    content["data"] |= {"name": evil, "classes": [evil] * 6,
                        "skipped": [{"path": evil, "why": evil}]}  # fmt: skip
    content["command"] = content["config"]["data"] = evil
    content["results"][0]["label"] = content["results"][0]["kind"] = f'x"{evil}'
    content["final"]["misclassified"][0] |= {"true": evil, "predicted": evil, "index": evil,
                                             "png_base64": f'"{evil}'}  # fmt: skip
    content["final"]["files"]["int8"] = evil
    content["final_spec"]["name"] = content["machine"]["cpu"] = evil
    folder = write_run(tmp_path, content)
    steps = netadapt()
    steps[0]["what"] = steps[4]["what"] = evil
    write_jsonl(folder / STEPS, steps)
    text = write_report(folder).read_text()
    assert "script" not in Page(text).tags and "<script" not in text
    assert Page(text).text.count(evil) > 15


@pytest.mark.parametrize(
    ("lacking", "sections"),
    [
        (["results"], ["frontier"]), (["final_spec"], ["network"]), (["layers"], ["layers"]),
        (["final"], ["int8", "classes", "confusion", "misclassified"]),
        (["final.confusion"], ["classes", "confusion"]), (["final.misclassified"], ["misclassified"]),
        (["netadapt.jsonl"], ["netadapt"]), (["metrics"], ["curves"]),
    ],
)  # fmt: skip
def test_sections_without_records_are_left_out(
    lacking: list[str], sections: list[str], tmp_path: Path
) -> None:
    content = record()
    for key in lacking:
        first, _, second = key.partition(".")
        if second and first == "final":
            del content["final"][second]
        else:
            content.pop(first, None)
    folder = write_run(tmp_path, content)
    if "netadapt.jsonl" in lacking:
        (folder / STEPS).unlink()
    if "metrics" in lacking:
        for path in folder.rglob("metrics.jsonl"):
            path.unlink()
    assert written(folder).sections == [name for name in SECTIONS if name not in sections]


def test_a_training_alone_has_its_curves(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "run" / "metrics.jsonl", metrics(0.0))
    found = written(tmp_path / "run")
    assert found.sections == ["curves"] and "run: run" in found.text and "Not finished" in found.text


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a record; of lists the first element stands for all."""
    items: Any = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list) and value:
        items = [(0, value[0])]
    for key, inner in items:
        if at[:1] not in (("seed_spec",), ("final_spec",)):
            yield (*at, key)
            yield from paths(inner, (*at, key))


def lean() -> dict[str, Any]:
    """The example with less of everything, for many pages."""
    content = record()
    content["results"] = content["results"][::3]
    content["final"]["misclassified"] = content["final"]["misclassified"][:1]
    return content


FIGURES = {
    "frontier_figure": ("results", "budget_ms"), "layers_figure": ("layers",), "curves_figure": (),
}  # fmt: skip
PLACES = [place for place in paths(lean()) if place[-1] != 0]


def changed(place: tuple[Any, ...], change: Any) -> dict[str, Any]:
    content = copy.deepcopy(lean())
    holder: Any = content
    for key in place[:-1]:
        holder = holder[key]
    change(holder, place[-1])
    return content


@pytest.fixture(scope="module")
def lean_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("lean"), lean())
    for name in ("final", "width"):
        for path in (folder / name).rglob("metrics.jsonl"):
            path.unlink()
    return folder


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_any_field_may_be_missing_or_empty(
    place: tuple[Any, ...], lean_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for figure, sources in FIGURES.items():
        # Others are the same as ever: drawing takes nearly all the time.
        if place[0] not in sources or len(place) > 3:
            monkeypatch.setattr(plots, figure, lambda *_: b"<svg></svg>")

    def remove(holder: Any, key: Any) -> None:
        del holder[key]

    def empty(holder: Any, key: Any) -> None:
        holder[key] = None

    for change in (remove, empty):
        (lean_folder / "record.json").write_text(json.dumps(changed(place, change)))
        found = written(lean_folder)
        assert not found.open and found.sections
        assert "Undefined" not in found.text


def test_numbers_that_are_not_finite_are_dashes(tmp_path: Path) -> None:
    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            kept = ("seed_spec", "final_spec", "confusion")
            return {k: v if k in kept else poisoned(v) for k, v in value.items()}
        if isinstance(value, list):
            return [poisoned(inner) for inner in value]
        return math.nan if isinstance(value, float) else value

    folder = write_run(tmp_path, poisoned(record()))
    write_jsonl(folder / STEPS, poisoned(netadapt()))
    found = written(folder)
    assert "frontier" in found.sections and "–" in found.text
    cells = re.findall(r'<td class="num">([^<]*)</td>', (folder / "report.html").read_text())
    assert cells and not [cell for cell in cells if "nan" in cell.lower()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid JSON"), ('{"verb": "des', "is not valid JSON"), ("[1, 2]", "not an object"),
        ('{"results": 7}', "record.json"), ('{"results": [1]}', "record.json"),
        ('{"final": "x"}', "record.json"), ('{"final_spec": {"name": "x"}}', "record.json"),
        ('{"final": {"confusion": [[1, 2]]}}', "record.json"),
        ('{"final": {"confusion": [["a", 2], [3, 4]]}}', "record.json"),
        ('{"layers": [3]}', "record.json"), ('{"seconds": 5}', "record.json"),
        ('{"data": {"skipped": 3}}', "record.json"),
    ],
)  # fmt: skip
def test_a_broken_record_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run records in .*; give the folder"):
        write_report(tmp_path)
    (tmp_path / "record.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not valid JSON"):
        write_report(tmp_path)


def test_torn_lines_are_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    for path in (folder / STEPS, folder / "seed" / "metrics.jsonl"):
        with path.open("a") as file:
            file.write('7\n{"event": "accep')
    assert tuple(written(folder).sections) == SECTIONS


def test_over_the_budget_is_said(tmp_path: Path) -> None:
    content = record()
    content["budget_ms"] = 0.3
    assert "0.412 ms measured, OVER the budget of 0.300 ms" in written(write_run(tmp_path, content)).text


def test_many_of_everything_stays_a_page(tmp_path: Path) -> None:
    content = record()
    content["data"]["skipped"] = [{"path": f"{i}.jpg", "why": "empty"} for i in range(250)]
    content["data"]["classes"] = [f"class {i}" for i in range(60)]
    content["final"]["confusion"] = [[int(i != j) * (i + j == 59) for j in range(60)] for i in range(60)]
    folder = write_run(tmp_path, content)
    for number in range(9):
        write_jsonl(folder / "more" / str(number) / "metrics.jsonl", metrics(0.1)[:5])
    found = written(folder)
    assert "199.jpg" in found.text and "200.jpg" not in found.text and "and 50 more" in found.text
    assert "5 shorter ones are not drawn" in found.text
    text = (folder / "report.html").read_text()
    assert 'class="matrix"' not in text and text.count('class="heat"') == 1
    assert "class 3 taken for class 56: 100.0 % (1)" in found.text and "All 60 classes" in found.text
