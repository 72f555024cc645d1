"""The demo of detectors and segmenters: boxes and masks, drawn."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilefit.jobs.demo_server import DRAWN
from mobilefit.jobs.predict import PredictConfig, predict
from mobilefit.litert import read_metadata

from .serving import Served, choose, png, serving, visiting
from .small import hold_steady, run
from .test_tasks_files import NAMES, SIDE, Made, made


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Files of a task, and the demo of them."""

    made: Made
    served: Served

    @property
    def picture(self) -> Path:
        return self.made.pictures[0]


@pytest.fixture(scope="module", params=["detect", "segment"])
def scenes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenes]:
    root = tmp_path_factory.mktemp(request.param)
    images, weights = made(request.param, root)
    with pytest.MonkeyPatch.context() as patch:
        hold_steady(patch.setattr)
        assert run("export", weights, images, "--formats", "float32,int8", "--out", root / "run") == 0
    files = Made(task=request.param, images=images, weights=weights, run=root / "run")
    temporary, home = tmp_path_factory.mktemp("temporary"), tmp_path_factory.mktemp("home")
    with serving(files.file("int8"), temporary, home) as served:
        yield Scenes(made=files, served=served)
    written = [path for folder in (temporary, home) for path in folder.rglob("*") if path.is_file()]
    assert [path for path in written if not path.name.startswith("fontlist")] == []  # matplotlib's list of fonts


def drawn(answer: str) -> Image.Image:
    kind, content = answer.split(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_it_sees_what_predict_sees(scenes: Scenes) -> None:
    status, answer = scenes.served.predict(scenes.picture.read_bytes())
    assert status == 200 and len(answer["models"]) == 2
    plain = Image.open(scenes.picture).convert("RGB")
    for kind, model in zip(("int8", "float32"), answer["models"], strict=True):
        row = predict(PredictConfig(file=scenes.made.file(kind), images=(scenes.picture,), top=5))[0]
        boxes = [{"class": box["class"], "share": box["score"]} for box in row.get("boxes", ())]
        assert model["classes"] == row.get("classes", boxes) != [] and model["run_ms"] > 0
        picture = drawn(model["drawn"])
        top = picture.crop((0, 0, picture.width, round(picture.width * plain.height / plain.width)))
        difference = np.abs(np.asarray(top.resize(plain.size), float) - np.asarray(plain))
        assert difference.mean() > 3  # something is drawn in it


def test_it_says_what_it_serves(scenes: Scenes) -> None:
    about = json.loads(scenes.served.ask("GET", "/about")[1])
    measure = {"detect": "map50", "segment": "miou"}[scenes.made.task]
    for kind, model in zip(("int8", "float32"), about["models"], strict=True):
        said = read_metadata(scenes.made.file(kind).read_bytes())["accuracy"][kind]
        assert (model["task"], model["fit"]) == (scenes.made.task, "stretch")
        assert model["input"] == {"width": SIDE, "height": SIDE}
        assert model["classes"] == list(NAMES[scenes.made.task])
        assert model["accuracy"] == {"value": said[measure], "images": said["images"]}


def test_a_large_picture_is_drawn_smaller(scenes: Scenes) -> None:
    large = Image.open(scenes.picture).convert("RGB").resize((2400, 1600))
    status, answer = scenes.served.predict(png(large))
    assert status == 200
    assert all(drawn(model["drawn"]).width == DRAWN for model in answer["models"])


def test_the_page_shows_what_is_drawn(scenes: Scenes, browser: object) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    with visiting(browser, scenes.served) as visit:
        page = visit()
        assert not page.locator(".drawn").first.is_visible()
        choose(page, "a.png", scenes.picture.read_bytes())
        answer = scenes.served.predict(scenes.picture.read_bytes())[1]["models"]
        for i, model in enumerate(answer):
            card = page.locator(".model").nth(i)
            playwright.expect(card.locator("li")).to_have_count(min(8, len(model["classes"])))
            assert card.locator(".drawn").evaluate("image => image.naturalWidth") >= 480
            number = f"{len(model['classes'])} found. " if scenes.made.task == "detect" else ""
            assert card.locator(".run").inner_text().startswith(f"{number}This image ran in ")
        assert "the network sees all of it at " in page.inner_text("#legend")
        assert page.locator("#picture").is_visible() and not page.locator("#seen").is_visible()
        choose(page, "notes.txt", b"only words")
        page.locator("#problem").wait_for()
        assert not page.locator(".drawn").first.is_visible()
