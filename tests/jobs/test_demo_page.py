"""The demo's page in a real browser."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .serving import Served, choose, png, visiting
from .small import CLASSES, World, picture

playwright = pytest.importorskip("playwright.sync_api")

Page = Any

@pytest.fixture
def visit(browser: Any, served: Served) -> Iterator[Callable[..., Page]]:
    with visiting(browser, served) as open_page:
        yield open_page


def drop(page: Page, name: str, content: bytes, kind: str = "image/png") -> None:
    """What a browser does with a file that is dropped on the page."""
    page.evaluate(
        """([name, kind, content]) => {
            const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], name, { type: kind }));
            for (const type of ["dragenter", "dragover", "drop"])
                document.getElementById("hint").dispatchEvent(
                    new DragEvent(type, { bubbles: true, cancelable: true, dataTransfer: data }));
        }""",
        [name, kind, base64.b64encode(content).decode()],
    )


def classes(page: Page, number: int = 0) -> list[str]:
    """The rows of one file, the likeliest class first."""
    playwright.expect(page.locator(".model li")).to_have_count(6)
    shown: list[str] = page.locator(".model").nth(number).locator("li").all_inner_texts()
    return [re.sub(r"\s+", " ", row) for row in shown]


def problem(page: Page) -> str:
    line = page.locator("#problem")
    line.wait_for()
    assert page.locator(".model li").count() == 0 and page.locator("#hint").is_visible()
    return str(line.inner_text())


def test_the_page_says_what_it_serves(visit: Callable[..., Page], world: World) -> None:
    page = visit()
    assert page.title() == "tiny · mobilefit demo" and page.inner_text("h1") == "tiny"
    assert "input 32 × 32 · 3 classes" in page.inner_text("#facts").replace("\xa0", " ")
    cards = page.locator(".model").all_inner_texts()
    for card, numbers, path in zip(cards, ("int8", "float32"), (world.int8, world.float32)):
        assert card.startswith(numbers) and path.name in card
        assert re.search(r"[\d.]+\s% right on 24 test images of shades", card)
        assert re.search(r"\d ms\s+median, p10–p90 [\d.]+–[\d.]+ ms, 1 thread", card)
    page.click("summary")
    assert page.locator("#all li").all_inner_texts() == list(CLASSES)


def test_an_image_is_dropped(visit: Callable[..., Page], served: Served) -> None:
    page = visit()
    for label in (2, 0):
        upload = png(picture(label, 5))
        drop(page, "a.png", upload)
        playwright.expect(page.locator(".model li").first).to_contain_text(CLASSES[label])
        for i, model in enumerate(served.predict(upload)[1]["models"]):
            expected = [f"{row['class']} {100 * row['share']:.1f} %" for row in model["classes"]]
            assert classes(page, i) == expected
    assert re.match(r"This image ran in [\d.]+ ms", page.locator(".run").first.inner_text())
    assert page.locator("#picture").is_visible() and not page.locator("#problem").is_visible()
    # What is framed is what the preset crops, in the middle.
    part = json.loads(served.ask("GET", "/about")[1])["models"][0]["crop_fraction"]
    shown, frame = page.locator("#picture").bounding_box(), page.locator("#seen").bounding_box()
    assert frame["width"] == pytest.approx(frame["height"], abs=1.5)
    assert frame["height"] == pytest.approx(part * shown["height"], abs=1.5)
    middle = shown["x"] + shown["width"] / 2
    assert frame["x"] + frame["width"] / 2 == pytest.approx(middle, abs=1.5)


def test_what_is_no_image_is_refused(visit: Callable[..., Page]) -> None:
    page = visit()
    choose(page, "good.png", png(picture(1, 1)))
    assert classes(page)[0].startswith("green")
    choose(page, "notes.txt", b"only words")
    assert problem(page) == "notes.txt: this is not an image that can be read"
    choose(page, "good.png", png(picture(1, 1)))
    assert classes(page)[0].startswith("green")
    assert not page.locator("#problem").is_visible()
    page.evaluate("about.max_bytes = 5000")
    choose(page, "huge.png", bytes(6000))
    assert problem(page) == "huge.png has 6 kB, the most that is taken is 5 kB."
    assert not page.locator("#picture").is_visible()


def test_an_image_that_the_browser_shows_and_the_server_refuses(visit: Callable[..., Page]) -> None:
    page = visit()
    drawing = b'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="40"></svg>'
    drop(page, "drawing.svg", drawing, "image/svg+xml")
    assert problem(page) == "drawing.svg: this is not an image that can be read"
    page.wait_for_timeout(100)
    assert not page.locator("#picture").is_visible()


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_screen(width: int, visit: Callable[..., Page]) -> None:
    page = visit(viewport={"width": width, "height": 700})
    wide = "document.documentElement.scrollWidth > window.innerWidth"
    assert not page.evaluate(wide)
    choose(page, "a" * 80 + ".txt", b"only words")
    problem(page)
    assert not page.evaluate(wide)
    choose(page, "wide.png", png(picture(1, 1, (3000, 200))))
    classes(page)
    page.locator("#picture").wait_for()
    assert not page.evaluate(wide)


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(r, g, b)`` (WCAG 2.1)."""
    parts = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_light_and_dark_can_be_read(visit: Callable[..., Page]) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        page = visit(color_scheme=scheme)
        choose(page, "a.txt", b"only words")
        problem(page)
        # Contrast of text and what is behind it: at least 4.5 (WCAG 2.1, level AA).
        pairs = page.evaluate("""() => [
            ["h1", "body"], ["#facts", "body"], [".model .note", ".model"], ["#problem", "#problem"],
            [".button", ".button"], ["#camera", "#drop"], ["#hint", "#drop"],
        ].map(([text, ground]) => [
            text, getComputedStyle(document.querySelector(text)).color,
            getComputedStyle(document.querySelector(ground)).backgroundColor,
        ])""")
        for text, ink, ground in pairs:
            dark, light = sorted([luminance(ink), luminance(ground)])
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (scheme, text, ink, ground)
        grounds.append(luminance(pairs[0][2]))
    assert grounds[0] > 0.7 and grounds[1] < 0.05


def test_the_keyboard_is_enough(visit: Callable[..., Page]) -> None:
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    outline = "getComputedStyle(document.querySelector('.button')).outlineStyle"
    assert page.evaluate(outline) == "solid"
    # The click that opens the browser's dialogue; page.expect_file_chooser may begin to look after it on a busy machine.
    page.evaluate("file.addEventListener('click', (event) => { event.preventDefault(); window.opened = true; })")
    page.keyboard.press("Space")
    page.wait_for_function("window.opened")
    choose(page, "a.png", png(picture(0, 1)))
    assert classes(page)[0].startswith("blue")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "camera"
    page.keyboard.press("Enter")
    page.locator("#film").wait_for()
    page.keyboard.press("Enter")
    page.locator("#camera[aria-pressed=false]").wait_for()


def test_the_camera_is_watched_until_it_is_stopped(visit: Callable[..., Page]) -> None:
    page = visit()
    answers: list[str] = []
    page.on("response", lambda response: answers.append(response.url))
    page.click("#camera")
    page.locator("#film").wait_for()
    classes(page)
    page.wait_for_timeout(600)
    assert page.locator("#camera").inner_text() == "Stop the camera"
    page.click("#camera")
    assert page.evaluate("film.srcObject.getTracks().map((track) => track.readyState)") == ["ended"]
    page.wait_for_timeout(400)  # the frame under way may still be answered
    seen = len([url for url in answers if url.endswith("/predict")])
    assert seen >= 2
    page.wait_for_timeout(500)
    assert len([url for url in answers if url.endswith("/predict")]) == seen
    assert len(classes(page)) == 3  # of the last frame
    choose(page, "a.png", png(picture(2, 1)))
    page.locator("#picture").wait_for()
    assert not page.locator("#film").is_visible()


@pytest.mark.parametrize(("name", "line"), [
    ("NotFoundError", "There is no camera here."),
    ("NotAllowedError", "The camera is blocked for this page"),
    ("", "The camera works at localhost or over https only."),
])  # fmt: skip
def test_without_a_camera(name: str, line: str, visit: Callable[..., Page]) -> None:
    fails = f"async () => {{ throw new DOMException('no', '{name}') }}"
    devices = f"{{ getUserMedia: {fails} }}" if name else "undefined"
    page = visit(f"Object.defineProperty(navigator, 'mediaDevices', {{ value: {devices} }})")
    page.click("#camera")
    assert problem(page).startswith(line)
    page.click("#camera")  # it can be tried again
    assert problem(page).startswith(line)


def test_a_name_is_text_and_no_markup(visit: Callable[..., Page]) -> None:
    page = visit()
    name = "<img src=x onerror=alert(1)>"
    page.evaluate(
        "name => show(document.querySelector('.model'), "
        "{ classes: [{ class: name, share: 1 }], run_ms: 1 }, 1)", name,
    )  # fmt: skip
    assert page.locator(".model li").first.inner_text().startswith(name)
    assert page.locator(".model img:not(.drawn)").count() == 0


def test_another_site_cannot_use_it(browser: Any, served: Served, tmp_path: Path) -> None:
    """A page of elsewhere, here a local file, gets no answer from the visitor's server."""
    (tmp_path / "evil.html").write_text("<p>hello")
    context = browser.new_context()
    page = context.new_page()
    page.goto((tmp_path / "evil.html").as_uri())
    statuses: list[int] = []
    page.on("response", lambda response: statuses.append(response.status))
    for mode in ("cors", "no-cors"):
        read = page.evaluate(
            """async ([url, mode]) => {
                try { return await (await fetch(url, { method: "POST", body: "x", mode })).text(); }
                catch (error) { return error.name; }
            }""",
            [f"{served.url}predict", mode],
        )
        assert read in ("TypeError", "")
    context.close()
    assert set(statuses) <= {403}
