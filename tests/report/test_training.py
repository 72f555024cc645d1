from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from mobilefit.errors import InputError
from mobilefit.report import plots, training, write_report
from mobilefit.report.plots import Marks

from .example import recipe, sweep, train_record, train_rows, write_jsonl, write_training
from .test_page import Page, paths, written
from .test_plots import texts

SECTIONS = ["curves", "classes", "confusion", "misclassified", "recipe", "network", "repeat"]
NEW = ("training", "named_recipe", "data.counts", "final.hardest")
"""What records have not always had."""


def without(content: dict[str, Any], *keys: str) -> dict[str, Any]:
    for key in keys:
        *outer, last = key.split(".")
        holder = content
        for name in outer:
            holder = holder[name]
        del holder[last]
    return content


def test_the_page_of_a_training(tmp_path: Path) -> None:
    found = written(write_training(tmp_path))
    assert found.sections == SECTIONS and not found.open
    for text in (
        "train: clothing", "mobilenet_v3_small: 87.33 % of 300 test images right",
        "among the first five 99.60 %", "10 min 15 s", "412 images a second",
        "best validation 88.50 % at step 120", "the result the best weights", "waiting for images 5.0 %",
        "started from fresh weights, seed 3", "trained on 2 × cpu", "Dotted lines: the run was resumed",
        "From 40 training images (hat) to 600 (shirt)", "shirt taken for long sleeve 18.0 % (9)",
        "loss 6.25", "97.0 % sure", "Recipe fast, changed", "mobilefit train clothing --lr 0.1 --seed 3",
    ):  # fmt: skip
        assert text in " ".join(found.text.split()), text
    assert found.text.count("training loss") == found.text.count("learning rate") == 1


def test_it_loads_nothing_and_follows_the_readers_setting(tmp_path: Path) -> None:
    text = write_report(write_training(tmp_path)).read_text()
    found = Page(text)
    assert all(r.startswith(("data:image/png;base64,", "#")) for r in found.references)
    assert not re.findall(r"https?://", re.sub(r'xmlns(:\w+)?="[^"]*"', "", text))
    assert len(found.ids) == len(set(found.ids))
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(found.ids)
    body = text[text.index("<body") :]
    assert not re.findall(r"#[0-9a-f]{6}\b", re.sub(r"base64,[^\"]*", "", body))  # colours are variables


def test_a_record_of_before_has_its_page(tmp_path: Path) -> None:
    found = written(write_training(tmp_path, without(train_record(), *NEW)))
    assert found.sections == SECTIONS
    text = " ".join(found.text.split())
    assert "best validation 88.50 % at step 120" in text and "images a second 431" in text
    assert "lr 0.1" in text and "in fast" not in text  # from the command line alone
    assert "training images" not in text.split("Class by class")[1].split("Which classes")[0]
    assert "resumed" not in text and "highest loss" not in text


def test_any_field_may_be_missing_or_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "training_figures", lambda *_: [b"<svg></svg>"])
    write_training(tmp_path)
    lean = train_record()
    lean["final"]["misclassified"] = lean["final"]["misclassified"][:1]
    lean["final"]["hardest"] = lean["final"]["hardest"][:1]
    places = [p for p in paths(lean) if p[-1] != 0 and p[0] != "machine"]
    assert len(places) > 60
    for place in places:
        for change in ("remove", "empty"):
            content = copy.deepcopy(lean)
            holder: Any = content
            for key in place[:-1]:
                holder = holder[key]
            if change == "remove":
                del holder[place[-1]]
            else:
                holder[place[-1]] = None
            (tmp_path / "record.json").write_text(json.dumps(content))
            found = written(tmp_path)
            assert not found.open and "curves" in found.sections, place
            assert not {"Undefined", "None", "nan"} & set(found.text.split("To repeat it")[0].split()), place


def test_markup_in_names_is_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>'
    content = train_record()
    content["data"]["classes"] = [f"{evil}{i}" for i in range(6)]
    content["training"] |= {"weights": evil, "teacher": evil, "device": evil}
    content["recipe"] |= {"name": evil, "source": evil, "optimizer": evil}
    content["final"]["hardest"][0] |= {"true": evil, "png_base64": f'"{evil}'}
    text = write_report(write_training(tmp_path, content)).read_text()
    assert "<script" not in text and Page(text).text.count(evil) > 20


def test_an_unfinished_training_has_its_curves(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "metrics.jsonl", train_rows()[:7])
    found = written(tmp_path)
    assert found.sections == ["curves"] and "Not finished" in found.text
    assert "validation" not in found.text and "training loss" in found.text


def test_one_row_is_no_curve_and_torn_numbers_are_none(tmp_path: Path) -> None:
    assert plots.training_figures(train_rows()[:1], Marks()) == []
    rows = [row | {"loss": math.nan} for row in train_rows()]
    assert not any("training loss" in texts(figure) for figure in plots.training_figures(rows, Marks()))
    write_jsonl(tmp_path / "metrics.jsonl", [{"step": 1}, {"loss": "x"}, {}])
    assert written(tmp_path).sections == ["curves"]


def test_each_recorded_quantity_has_a_figure() -> None:
    titles = [texts(figure) for figure in plots.training_figures(train_rows(), Marks(best=120))]
    wanted = ["training loss", "validation loss", "validation top-1 (%)", "learning rate", "images a second",
              "waiting for images (% of the time)"]  # fmt: skip
    assert [title for title, found in zip(wanted, titles, strict=True) if title in found] == wanted
    assert all("epoch" in found for found in titles)
    by_step = [{"step": i, "loss": 1.0} for i in (1, 2)]
    assert "step" in texts(plots.training_figures(by_step, Marks())[0])


def test_the_best_and_the_resumes_are_marked() -> None:
    plain, best, resumed = (
        plots.training_figures(train_rows(), marks)
        for marks in (Marks(), Marks(best=120), Marks(resumed=(50, 90)))
    )
    changed = [one != other for one, other in zip(plain, best)]
    assert changed == [False, True, True, False, False, False]  # the validation's alone
    assert all(other.count(b"stroke-dasharray") - one.count(b"stroke-dasharray") == 2
               for one, other in zip(plain, resumed))  # fmt: skip


def test_marks_come_from_the_record_or_else_from_the_rows() -> None:
    assert training.marks_of(train_record(), train_rows()) == Marks(best=120, resumed=(50,))
    rows = train_rows()
    rows[20] |= {"resumed": 80}
    assert training.marks_of({}, rows) == Marks(best=120, resumed=(80,))
    assert training.marks_of({}, []) == Marks()


def test_a_scale_is_logarithmic_where_it_must_be() -> None:
    steep = [{"step": i, "epoch": i, "lr": 0.1 * 0.9**i} for i in range(1, 100)]
    cosine = [{"step": i, "lr": 0.05 * (1 + math.cos(i / 101 * math.pi))} for i in range(1, 101)]
    assert {"0.0001", "0.001", "0.01"} <= set(texts(plots.training_figures(steep, Marks())[0]))
    assert "0.001" not in texts(plots.training_figures(cosine, Marks())[0])
    spike = [{"step": i, "images_per_s": 9000.0 if i == 5 else 4.0} for i in range(1, 20)]
    assert "0" in texts(plots.training_figures(spike, Marks())[0])  # speed is always from zero
    for figure in plots.training_figures(steep, Marks()):
        assert not [text for text in texts(figure) if "$" in text]  # no markup for powers


def test_long_histories_stay_small() -> None:
    rows = [{"step": i, "epoch": i / 10, "loss": 1 + math.sin(i)} for i in range(20_000)]
    (figure,) = plots.training_figures(rows, Marks())
    assert len(figure) < 60_000


def test_what_differs_from_the_named_recipe() -> None:
    found = training.settings(train_record())
    assert found is not None and (found.name, found.source) == ("fast", "for minutes on a CPU")
    assert [(s.name, s.value, s.named) for s in found.changed] == [
        ("lr", "0.1", "0.2"), ("augment", "mild", "light"),
    ]  # fmt: skip
    assert [(s.name, s.value) for s in found.others] == [
        ("epochs", "4"), ("batch size", "128"), ("optimizer", "sgd"), ("nesterov", "yes"), ("clip norm", "–"),
    ]  # fmt: skip
    assert training.settings({"recipe": recipe()}) == training.settings(
        {"recipe": recipe(), "named_recipe": recipe()}
    )
    assert training.settings({}) is None


def test_where_it_started_from() -> None:
    def started(content: dict[str, Any]) -> str | None:
        return dict(training.facts(content, train_rows(), Marks())).get("started from")

    content = train_record()
    assert started(content) == "fresh weights, seed 3"
    content["training"]["weights"] = "torchvision's weights, 142 of 142 tensors"
    assert started(content) == "torchvision's weights, 142 of 142 tensors"
    assert started({"config": {"weights": "a.pth"}}) == "a.pth"
    assert started({}) is started({"verb": "train"}) is None


def test_a_learning_rate_sweep_is_drawn(tmp_path: Path) -> None:
    found = texts(plots.lr_curve(sweep()))
    for text in ("steepest descent: 0.02", "a tenth of the minimum's: 0.01", "smoothed", "0.001",
                 "learning rate for a batch of 256"):  # fmt: skip
        assert found.count(text) == 1, text
    (tmp_path / "lr_finder.json").write_text(json.dumps(sweep()))
    assert written(tmp_path).sections == ["sweep"]


@pytest.mark.parametrize("text", ["[1]", '{"rates": [1]}', "3"])
def test_a_broken_sweep_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "lr_finder.json").write_text(text)
    with pytest.raises(InputError, match="cannot make sense") as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)
