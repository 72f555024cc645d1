from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from mobilefit.report import drawing, frontier_figure, plots

from .example import metrics, netadapt, record

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: bytes) -> list[str]:
    """The texts of an SVG file, which must be well-formed."""
    root = ET.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    return ["".join(element.itertext()).strip() for element in root.iter(f"{SVG}text")]


def test_frontier_names_everything() -> None:
    found = texts(frontier_figure(record(), netadapt()))
    for text in (
        "mobilenet_v3_small", "NetAdapt", "width 0.75", "width 0.5", "budget 0.420 ms",
        "seed network", "NetAdapt, trained", "width multiplier", "trained and measured",
        "NetAdapt's accepted steps, short-term accuracy", "accuracy, int8 (%)",
        "measured latency, median (ms)",
    ):  # fmt: skip
        assert found.count(text) == 1, text


def test_frontier_is_deterministic() -> None:
    assert frontier_figure(record(), netadapt()) == frontier_figure(record(), netadapt())


def test_frontier_without_steps_budget_or_int8() -> None:
    content = record()
    del content["budget_ms"]
    for result in content["results"]:
        result["accuracy_int8"] = None
    found = texts(frontier_figure(content, []))
    assert "accuracy, float32 (%)" in found
    assert not [text for text in found if "budget" in text or "steps" in text]
    texts(frontier_figure({}, []))
    texts(frontier_figure({"results": [{"label": "x", "latency": {"median_ms": math.nan}}]}, []))
    texts(frontier_figure({"budget_ms": 1.0, "results": content["results"][:1]}, netadapt()[:1]))


def test_names_are_text_and_not_markup() -> None:
    content = record()
    content["results"][0]["label"] = "<b> $x_1$ & co"
    assert "<b> $x_1$ & co" in texts(frontier_figure(content, []))


def boxes_of_labels(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[drawing.Box]:
    """Where matplotlib itself, in its own font, would put the labels."""
    found: list[drawing.Box] = []
    original = drawing.label

    def label(axis: Any, marks: Any, budget: Any) -> None:
        original(axis, marks, budget)
        axis.figure.draw_without_rendering()
        for text in axis.texts:
            box = text.get_window_extent()
            found.append((box.x0, box.y0, box.x1, box.y1))

    monkeypatch.setattr(drawing, "label", label)
    frontier_figure(content, [])
    return found


@pytest.mark.parametrize("gap", [0.0, 0.002, 0.01, 0.03])
def test_labels_of_neighbours_do_not_overlap(gap: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of one latency, and the accuracies ``gap`` apart."""
    content = {
        "budget_ms": 0.42,
        "results": [
            {"label": label, "kind": kind, "latency": {"median_ms": ms}, "accuracy_int8": accuracy}
            for label, kind, ms, accuracy in (
                ("mobilenet_v3_small", "seed", 0.6, 0.9),
                ("NetAdapt", "adapted", 0.412, 0.88 + gap),
                ("width 0.75", "width", 0.415, 0.88),
            )
        ],
    }
    boxes = boxes_of_labels(content, monkeypatch)
    assert len(boxes) == 3
    for i, one in enumerate(boxes):
        assert not any(drawing.overlap(one, other) for other in boxes[:i])


def test_curves_read_what_the_training_loop_writes() -> None:
    svg = plots.curves_figure({"seed": metrics(0.0), "final": metrics(0.1)})
    assert svg is not None
    found = texts(svg)
    for text in ("training loss", "validation loss", "validation top-1 (%)", "seed", "final"):
        assert found.count(text) == 1, text


def test_curves_of_little() -> None:
    assert plots.curves_figure({}) is None
    assert plots.curves_figure({"x": [{"step": 1}, {"loss": 2.0}, {"step": 1, "loss": math.nan}]}) is None
    svg = plots.curves_figure({"x": [{"step": 1, "loss": 2.0}]})
    assert svg is not None and "validation top-1 (%)" not in texts(svg)


def test_layers_figure() -> None:
    found = texts(plots.layers_figure({"stem": 0.5, "blocks.0": 0.25}, {"stem": 0.5, "last": 0.1}))
    for text in ("before, 0.750 ms in all", "after, 0.600 ms in all", "stem", "blocks.0", "last"):
        assert found.count(text) == 1, text


def test_inline_follows_the_page() -> None:
    text = drawing.inline(frontier_figure(record(), netadapt()))
    root = ET.fromstring(text)
    assert "width" not in root.attrib and "height" not in root.attrib and "viewBox" in root.attrib
    assert "var(--seed)" in text and not any(colour in text for colour in drawing.COLOURS.values())
    assert not [key for group in root.iter(f"{SVG}g") for key in group.attrib if key == "id"]
