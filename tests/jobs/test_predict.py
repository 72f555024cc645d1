"""``mobilefit predict``: files of every number type; images, videos and cameras; what it draws."""

from __future__ import annotations

import json
import re
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mobilefit.errors import InputError
from mobilefit.jobs import frames
from mobilefit.jobs.drawn import BAR, NARROWEST, captioned
from mobilefit.jobs.frames import Film, sources
from mobilefit.jobs.predict import Classifier, PredictConfig, opened, predict
from mobilefit.jobs.running import Runner, numbers
from mobilefit.litert.graph import CODE, METADATA_NAME, Quantization, Tensor, parse, serialize

from .small import CLASSES, World, picture, run

Refused = Callable[..., str]
PAGE = Path(__file__).parents[2] / "docs" / "predict.md"


# ---- int8 and uint8 at the ends


def with_edges(blob: bytes, dtype: type[np.generic]) -> bytes:
    """An int8 file whose input and output are int8 or uint8 too."""
    graph = parse(blob)
    first, last = graph.ops[0], graph.ops[-1]
    assert (first.code, last.code) == (CODE.QUANTIZE, CODE.DEQUANTIZE)
    if dtype is np.int8:
        graph.ops = graph.ops[1:-1]
        graph.inputs, graph.outputs = [first.output], [last.inputs[0]]
        return serialize(graph)
    graph.inputs, graph.outputs = [shifted(first.output)], [shifted(last.inputs[0])]
    first.inputs, last.outputs = list(graph.inputs), list(graph.outputs)
    last.code, last.options = CODE.QUANTIZE, first.options
    return serialize(graph)


def shifted(tensor: Tensor | None) -> Tensor:
    """The same numbers as uint8."""
    assert tensor is not None and tensor.quantization is not None
    known = tensor.quantization
    return Tensor(
        f"{tensor.name}_uint8", tensor.shape, np.dtype(np.uint8),
        quantization=Quantization(known.scale, known.zero_point + 128),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_integer_ends_give_what_float_ends_give(
    dtype: type[np.generic], world: World, tmp_path: Path
) -> None:
    whole, edged = Runner(world.int8.read_bytes()), with_edges(world.int8.read_bytes(), dtype)
    runner = Runner(edged)
    assert runner.input.dtype == runner.output.dtype == dtype and runner.numbers == "int8"
    preset = opened(world.int8).info.preset
    images = np.stack([preset.apply(picture(label, 77 + label)) for label in range(3)])
    images[2] *= 3  # beyond what the input can hold: clipped, not wrapped around
    step = whole(images[:1])[0, 0] and parse(edged).outputs[0].quantization
    np.testing.assert_allclose(runner(images), whole(images), atol=1.01 * float(step.scale[0]))
    path = tmp_path / "edged.tflite"
    path.write_bytes(edged)
    image = world.images / "green" / "001.png"
    found, expected = [predict(PredictConfig(file=f, images=(image,)))[0]["classes"]
                       for f in (path, world.int8)]  # fmt: skip
    assert [c["class"] for c in found] == [c["class"] for c in expected]


def test_the_number_type_of_a_file(world: World) -> None:
    graph = parse(world.float32.read_bytes())
    assert numbers(graph) == "float32"
    assert numbers(parse(world.int8.read_bytes())) == "int8"
    weights = next(t for t in graph.tensors() if t.data is not None and t.data.ndim == 4)
    weights.data, weights.dtype = weights.data.astype(np.int8), np.dtype(np.int8)
    assert numbers(graph) == "float32, int8 weights"


# ---- files at odds with themselves


def described(blob: bytes, **changes: Any) -> bytes:
    """The file with another description."""
    graph = parse(blob)
    known = json.loads(graph.metadata[METADATA_NAME])
    graph.metadata[METADATA_NAME] = json.dumps(known | changes).encode()
    return serialize(graph)


def test_a_description_that_does_not_fit(world: World, tmp_path: Path, refused: Refused) -> None:
    blob, file = world.int8.read_bytes(), tmp_path / "odd.tflite"
    image = world.images / "red" / "000.png"
    file.write_bytes(described(blob, classes=["a", "b"]))
    said = refused("predict", file, image)
    assert said == f"{file}: names 2 classes, but has 3 outputs; export it again"
    preset = json.loads(parse(blob).metadata[METADATA_NAME])["preset"]
    file.write_bytes(described(blob, preset=preset | {"resolution": 48}))
    said = refused("predict", file, image)
    assert f"{file}: takes [1, 32, 32, 3]" in said and "48x48" in said


def test_a_file_of_somebody_else_is_described(
    world: World, tmp_path: Path, refused: Refused
) -> None:
    graph, file = parse(world.float32.read_bytes()), tmp_path / "other.tflite"
    graph.metadata = {}
    file.write_bytes(serialize(graph))
    for verb in (["predict", file, world.images / "red" / "000.png"], ["demo", file]):
        assert refused(*verb).startswith(
            f"{file}: takes float32 [1, 32, 32, 3] and gives float32 [1, 3] "
            "(signature serving_default), but does not say how its input is prepared; "
        )


def test_ends_that_are_not_one_image_and_its_classes(world: World) -> None:
    graph = parse(world.int8.read_bytes())
    graph.outputs, graph.output_names = graph.outputs * 2, ["a", "b"]
    with pytest.raises(InputError, match="has 2 outputs, must have one"):
        Runner(serialize(graph))
    graph = parse(with_edges(world.int8.read_bytes(), np.int8))
    assert graph.inputs[0].quantization is not None
    graph.inputs[0].quantization = None
    runner = Runner(serialize(graph))
    with pytest.raises(InputError, match="has no scale"):
        runner(np.zeros((1, 32, 32, 3), np.float32))


# ---- images


def test_a_row_an_image(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [world.images / name for name in CLASSES]
    assert run("predict", world.float32, *folders, "--top", 2) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 120 and len({len(line) for line in out}) == 1  # columns
    right = sum(line.split()[1] == Path(line.split()[0]).parent.name for line in out)
    assert right == 120
    assert all(line.split()[2].endswith("%") and len(line.split()) == 5 for line in out)


def test_the_pixels_are_those_of_training(world: World, tmp_path: Path) -> None:
    classifier = opened(world.float32)
    photo = picture(1, 5, (60, 44))
    exif = Image.Exif()
    exif[0x0112] = 8
    photo.save(tmp_path / "turned.png", exif=exif)
    frame = next(iter(frames.Images([tmp_path / "turned.png"])))
    assert frame.picture is not None and frame.picture.size == (44, 60)
    expected = classifier.info.preset.apply(tmp_path / "turned.png")
    np.testing.assert_array_equal(classifier.prepare(frame.picture)[0], expected)


def test_an_interrupted_look_at_images_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_file, calls = Classifier.run, []

    def interrupted(self: Classifier, prepared: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run_file(self, prepared)

    monkeypatch.setattr(Classifier, "run", interrupted)
    assert run("predict", world.int8, world.images / "red") == 130
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 and err.splitlines()[-1] == "mobilefit: interrupted"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_numbers(value: float, world: World, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classifier, "run", lambda self, prepared: [np.full((1, 3), value, np.float32)])
    assert f"{world.float32}: gives {value}" in refused("predict", world.float32, world.images / "red", "--json")


# ---- videos


def film(path: Path, labels: list[int], size: tuple[int, int] = (64, 48)) -> Path:
    cv2 = pytest.importorskip("cv2")
    code = {".avi": "MJPG", ".mp4": "mp4v"}[path.suffix]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 10.0, size)
    assert writer.isOpened()
    for number, label in enumerate(labels):
        writer.write(np.asarray(picture(label, number, size))[..., ::-1].copy())
    writer.release()
    return path


LABELS = [2] * 9 + [0] * 9 + [1] * 6


def test_every_nth_frame_of_a_video(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = film(tmp_path / "clip.avi", LABELS)
    assert run("predict", world.int8, path, "--every", 4, "--top", 1, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["frame"] for row in rows] == [0, 4, 8, 12, 16, 20]
    assert [row["seconds"] for row in rows] == [0.0, 0.4, 0.8, 1.2, 1.6, 2.0]
    assert [row["classes"][0]["class"] for row in rows] == [CLASSES[LABELS[r["frame"]]] for r in rows]
    assert {row["image"] for row in rows} == {str(path)}
    image = world.images / "red" / "000.png"
    assert run("predict", world.int8, image, path, image, "--every", 12) == 0
    named = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert named == [str(image), f"{path} 0.00 s", f"{path} 1.20 s", str(image)]


@pytest.mark.parametrize("turned", [0, 90, 180, 270])
@pytest.mark.parametrize("asked", [True, False])
def test_a_video_is_upright_in_every_version_of_opencv(
    turned: int, asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matrix in its header says how it is turned; 4.11 does nothing about it unless asked."""
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (96, 64))
    upper_left = np.zeros((64, 96, 3), np.uint8)
    upper_left[:32, :48] = 255
    for _ in range(3):
        writer.write(upper_left)
    writer.release()
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    a, b = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turned]
    content[place : place + 36] = struct.pack(">9i", a << 16, b << 16, 0, -b << 16, a << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(content)

    original = cv2.VideoCapture

    def opened(name: str) -> Any:
        capture = original(name)
        if not asked:
            capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
        return capture

    monkeypatch.setattr(cv2, "VideoCapture", opened)
    frame = next(iter(Film(path, 1))).picture
    assert frame is not None and frame.size == ((64, 96) if turned in (90, 270) else (96, 64))
    grey = np.asarray(frame.convert("L").resize((2, 2), Image.Resampling.BOX))
    corner = {0: (0, 0), 90: (0, 1), 180: (1, 1), 270: (1, 0)}[turned]
    assert np.argwhere(grey > 128).tolist() == [list(corner)]


def test_a_video_that_breaks_off(
    world: World, tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = film(tmp_path / "whole.avi", LABELS).read_bytes()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole[: len(whole) // 2])
    assert run("predict", world.int8, cut, "--every", 1, "--json") == 0
    out, err = capsys.readouterr()
    *rows, last = json.loads(out)
    assert 5 < len(rows) < 20 and all("classes" in row for row in rows)
    assert last["problem"] == f"{cut} ended after {len(rows)} of the 24 frames that it states"
    assert f"left out: {last['problem']}" in err
    (tmp_path / "no.mp4").write_text("no video")
    said = refused("predict", world.int8, tmp_path / "no.mp4")
    assert said.startswith(f"cannot open {tmp_path}/no.mp4 as a video; ")


@pytest.mark.parametrize("name", ["file:b.avi", "concat:b.avi"])
def test_the_name_of_a_video_is_no_address(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg reads the file b.avi for these, unless the path is absolute."""
    monkeypatch.chdir(tmp_path)
    film(tmp_path / "b.avi", [0])
    film(tmp_path / "a.avi", [2, 2, 2]).rename(name)
    (source,) = sources([Path(name)], 1)
    assert [frame.source for frame in source] == [name] * 3


def test_the_name_of_a_video_is_no_pattern(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    (tmp_path / "x%03d.avi").write_text("no video")
    for number in range(3):
        picture(number, 0).save(tmp_path / f"x{number:03d}.avi", "PNG")
    with pytest.raises(InputError, match=r"cannot open .*x%03d.avi as a video"):
        sources([tmp_path / "x%03d.avi"], 1)


def test_a_frame_that_cannot_be_decoded_is_left_out(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2 = pytest.importorskip("cv2")
    use(monkeypatch, cv2, [picture(2, 0), None, picture(0, 0)])
    (tmp_path / "film.mp4").write_text("its frames are made up")
    found = predict(PredictConfig(file=world.int8, images=(tmp_path / "film.mp4",), every=1))
    assert [row.get("problem", "good") for row in found] == [
        "good", f"cannot decode frame 1 of {tmp_path}/film.mp4", "good"
    ]  # fmt: skip
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_folder_that_holds_a_video_alone(world: World, tmp_path: Path, refused: Refused) -> None:
    film(tmp_path / "clip.mp4", [0])
    said = refused("predict", world.int8, tmp_path)
    assert said == f"no image in the folder {tmp_path}; name a video itself: {tmp_path}/clip.mp4"


def test_opencv_is_an_extra(
    world: World, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    said = refused("predict", world.int8, "camera:0")
    assert said == "videos and cameras need OpenCV; pip install 'mobilefit[video]'"
    assert run("predict", world.int8, world.images / "red" / "000.png") == 0


# ---- a camera


def use(patch: pytest.MonkeyPatch, cv2: Any, pictures: list[Image.Image | type | None]) -> None:
    """A camera (or film) of these pictures: ``None`` is a broken one, an exception is raised."""

    class Capture:
        def __init__(self, source: int | str) -> None:
            self.left = list(pictures)

        def isOpened(self) -> bool:
            return True

        def getBackendName(self) -> str:
            return "FFMPEG"

        def set(self, what: int, value: float) -> bool:
            return True

        def get(self, what: int) -> float:
            return len(pictures) if what == cv2.CAP_PROP_FRAME_COUNT else 10.0

        def grab(self) -> bool:
            if not self.left:
                return False
            self.now = self.left.pop(0)
            if isinstance(self.now, type):
                raise self.now
            return True

        def retrieve(self) -> tuple[bool, Any]:
            if self.now is None:
                return False, None
            return True, np.asarray(self.now)[..., ::-1].copy()

        def release(self) -> None:
            pass

    patch.setattr(cv2, "VideoCapture", Capture)


@pytest.mark.parametrize("form", ["json", "table"])
def test_ctrl_c_ends_a_camera_with_what_was_seen(
    form: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    cv2 = pytest.importorskip("cv2")
    use(monkeypatch, cv2, [picture(label, 3, (64, 48)) for label in (2, 2, 0, 0)] + [KeyboardInterrupt])
    out = tmp_path / "out"
    words = ["--json"] if form == "json" else []
    assert run("predict", world.int8, "camera:1", "--every", 2, "--draw", out, *words) == 0
    said, err = capsys.readouterr()
    assert err.splitlines()[0] == "camera:1: Ctrl-C ends it" and err.splitlines()[-1] == "stopped"
    if form == "json":
        rows = json.loads(said)
        assert [row["classes"][0]["class"] for row in rows] == ["red", "blue"]
        assert [row["frame"] for row in rows] == [0, 2]
    else:
        assert [line.split()[3] for line in said.splitlines()] == ["red", "blue"]
    monkeypatch.undo()
    made = cv2.VideoCapture(str(out / "camera_1.mp4"))  # finished: it can be read
    assert made.get(cv2.CAP_PROP_FRAME_COUNT) == 2


def test_a_camera_that_is_not_there_or_goes_away(
    world: World, refused: Refused, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    cv2 = pytest.importorskip("cv2")
    assert refused("predict", world.int8, "camera:99").startswith("cannot open camera:99; ")
    use(monkeypatch, cv2, [picture(2, 3)])
    assert run("predict", world.int8, "camera:0") == 0
    assert "left out: camera:0 stopped after 1 frames" in capsys.readouterr().err
    use(monkeypatch, cv2, [])
    assert "camera:0 stopped after 0 frames" in refused("predict", world.int8, "camera:0")


# ---- what is drawn


def test_each_image_is_drawn_once(world: World, tmp_path: Path, refused: Refused) -> None:
    out = tmp_path / "out"
    images = [world.images / name / "000.png" for name in ("red", "blue")]
    before = [path.read_bytes() for path in images]
    assert run("predict", world.int8, *images, "--draw", out) == 0
    assert sorted(path.name for path in out.iterdir()) == ["000-2.jpg", "000.jpg"]
    assert Image.open(out / "000.jpg").width == NARROWEST
    said = refused("predict", world.int8, images[0], "--draw", images[0].parent)
    assert said == f"the folder {images[0].parent} is not empty; choose another --draw"
    assert [path.read_bytes() for path in images] == before
    said = refused("predict", world.int8, images[0], "--draw", images[0])
    assert said.startswith(f"cannot write to {images[0]}: ")


def test_a_video_is_drawn_at_its_own_speed(world: World, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    path = film(tmp_path / "clip.avi", LABELS)
    assert run("predict", world.int8, path, path, "--every", 4, "--draw", tmp_path / "out") == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"clip.mp4", "clip-2.mp4"}
    made = cv2.VideoCapture(str(tmp_path / "out" / "clip-2.mp4"))
    assert made.get(cv2.CAP_PROP_FRAME_COUNT) == 6
    assert made.get(cv2.CAP_PROP_FPS) == pytest.approx(2.5)
    good, first = made.read()
    assert good and first.shape[1] == NARROWEST
    assert first[:300, :, 2].mean() > first[:300, :, 0].mean() + 40  # red, above the panel


SHARES = [{"class": "a" * 200, "share": 0.75}, {"class": "short", "share": 0.25}, {"class": "Ω", "share": 0.0}]


@pytest.mark.parametrize(
    "size", [(1, 1), (28, 28), (4, 900), (900, 4), (641, 479), (3000, 2000)], ids=str
)
def test_shares_can_be_read_at_any_size(size: tuple[int, int]) -> None:
    original = Image.new("RGB", size, "white")
    drawn = captioned(original, SHARES)
    pixels = np.asarray(drawn).astype(int)
    assert drawn.width % 2 == drawn.height % 2 == 0 and drawn.width >= NARROWEST
    if max(size) >= NARROWEST:  # not a pixel of it is covered or changed
        left = (max(size[0], NARROWEST) - size[0]) // 2
        np.testing.assert_array_equal(pixels[: size[1], left : left + size[0]], 255)
    bar = np.array([int(BAR[i : i + 2], 16) for i in (1, 3, 5)])
    lines = (pixels == bar).all(-1).sum(1)
    starts = np.flatnonzero((lines > 0) & (np.roll(lines, 1) == 0))  # above any text
    assert len(starts) == 2 and lines[starts[0]] / lines[starts[1]] == pytest.approx(3, rel=0.02)
    panel = pixels[starts[0] :]
    text = (panel > 200).all(-1)
    assert text.any() and not text[:, -max(4, drawn.width // 100) :].any()  # nothing runs out


# ---- the page of the documentation


def test_the_commands_of_the_page_run(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steady: None,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from mobilefit.jobs import demo_server

    monkeypatch.setattr(demo_server, "serve", lambda app, listening: None)
    text = PAGE.read_text()
    lines = re.findall(r"^    mobilefit (.+)$", text, re.M)
    snippets = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert len(lines) == 6 and len(snippets) == 1
    for number, line in enumerate(lines):
        here = tmp_path / str(number)
        (here / "photos").mkdir(parents=True)
        shutil.copy(world.int8, here / "model_int8.tflite")
        picture(0, 1).save(here / "photo.jpg")
        picture(1, 1).save(here / "photos" / "a.png")
        monkeypatch.chdir(here)
        if "clip.mp4" in line:
            film(here / "clip.mp4", LABELS)
        if "camera:0" in line:
            cv2 = pytest.importorskip("cv2")
            use(monkeypatch, cv2, [picture(2, 3), KeyboardInterrupt])
        assert run(*line.split()) == 0, line
        assert capsys.readouterr().out
        assert (here / "seen").exists() == ("--draw" in line)
    exec(compile(snippets[0], str(PAGE), "exec"), {})
    assert json.loads(capsys.readouterr().out.splitlines()[-1].replace("'", '"'))["class"] == "blue"
