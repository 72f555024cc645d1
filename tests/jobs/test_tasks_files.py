"""Files of detectors and segmenters: export, quantize, evaluate, predict, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tasks.scenes import (
    SIDE,
    detector_network,
    scene,
    segmenter_network,
    write_masks,
    write_voc,
)
from torch import nn

from mobilefit.arch import SSDLiteHead
from mobilefit.data import Preset
from mobilefit.formats.parity import BOX_TOLERANCES, LABEL_TOLERANCES
from mobilefit.jobs import checks
from mobilefit.jobs import export as export_job
from mobilefit.jobs.ends import Served, labels
from mobilefit.jobs.model import compiled, int8_for_timing
from mobilefit.jobs.predict import PredictConfig, opened, predict
from mobilefit.jobs.running import File
from mobilefit.litert import read_metadata
from mobilefit.litert.graph import parse
from mobilefit.litert.outputs import split
from mobilefit.nn import Network, build, load_network, save_weights
from mobilefit.nn.boxes import detections, spec_anchors
from mobilefit.runs import read_json, read_jsonl

from .small import World, hold_steady, record, run

Refused = Callable[..., str]
pytestmark = pytest.mark.usefixtures("steady")
PRESET = Preset(resolution=SIDE, fit="stretch", crop_fraction=1.0)
NAMES = {"detect": ("blue", "red"), "segment": ("ground", "red", "blue")}
SCORES = {"detect": "map50", "segment": "miou"}
EVERY = ("float32", "int8", "float16", "dynamic", "int8_io", "onnx", "pt2")


@dataclass(frozen=True, kw_only=True)
class Made:
    """Images, weights and files of a task."""

    task: str
    images: Path
    weights: Path
    run: Path

    def file(self, kind: str) -> Path:
        return self.run / export_job.FORMATS[kind].file

    @property
    def pictures(self) -> list[Path]:
        folder = self.images / ("JPEGImages" if self.task == "detect" else "val/images")
        return sorted(folder.glob("val*.png" if self.task == "detect" else "*.png"))


def small_detector() -> Network:
    """With two extra maps, where the usual one has four."""
    spec = detector_network().spec
    assert isinstance(spec.head, SSDLiteHead)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(replace(spec, head=replace(spec.head, extras=(32, 16))))


def lively(network: Network) -> Network:
    """With outputs that differ from picture to picture and place to place, and scores of 0.05 to 0.9."""
    torch.manual_seed(1)
    random = np.random.default_rng(1)
    images = [PRESET.apply(Image.fromarray(scene(random)[0])).transpose(2, 0, 1) for _ in range(16)]
    with torch.no_grad():
        for name, module in network.head.named_modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                module.weight *= 6.0
                module.bias.normal_(-1.0 if name.startswith("classes") else 0.0, 0.5)
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        network(torch.from_numpy(np.stack(images)))  # which batch norm's statistics are of
    return network.eval()


def made(task: str, root: Path) -> tuple[Path, Path]:
    """Images and weights."""
    images = write_voc(root / "scenes") if task == "detect" else write_masks(root / "scenes")
    network = lively(small_detector() if task == "detect" else segmenter_network())
    weights = root / "model.safetensors"
    save_weights(network, weights, preset=PRESET.to_dict(), classes=NAMES[task])
    return images, weights


@pytest.fixture(scope="module", params=["detect", "segment"])
def world_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A network of each task in every format whose packages are here."""
    pytest.importorskip("onnxruntime")
    task, root = str(request.param), tmp_path_factory.mktemp(str(request.param))
    images, weights = made(task, root)
    with pytest.MonkeyPatch.context() as patch:
        hold_steady(patch.setattr)
        assert run("export", weights, images, "--formats", ",".join(EVERY), "--out", root / "run") == 0
    return Made(task=task, images=images, weights=weights, run=root / "run")


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return made("detect", tmp_path_factory.mktemp("boxes"))


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return made("segment", tmp_path_factory.mktemp("masks"))


def exported(weights: Path, images: Path, out: Path, *more: object) -> Path:
    assert run("export", weights, images, "--out", out, "--formats", "float32,int8", *more) == 0
    return out


# ---- export


def test_every_file_says_what_the_module_says(world_of: Made) -> None:
    found = json.loads((world_of.run / "parity.json").read_text())
    assert list(found) == list(EVERY)
    exact = [found[kind] for kind in ("float32", "onnx", "pt2")]
    assert all(check["ok"] and check["images"] == 8 for check in found.values())
    if world_of.task == "detect":
        assert all(check["lowest"] >= 0.99 and check["largest"] <= 1e-3 for check in exact)
        assert all(check["detections"] >= 50 and check["agreement"] >= 0.99 for check in exact)
        assert found["int8"]["largest"] > found["float32"]["largest"]
    else:
        assert all(check["agreement"] >= 0.999 for check in exact)


def test_a_file_says_what_it_is_and_how_good(world_of: Made) -> None:
    key, final = SCORES[world_of.task], record(world_of.run)["final"]
    for kind in EVERY[:5]:
        said = read_metadata(world_of.file(kind).read_bytes())
        assert said is not None and tuple(said["classes"]) == NAMES[world_of.task]
        assert said["accuracy"][kind]["images"] == "8 test images of scenes"
        if kind in ("float32", "int8"):
            assert said["accuracy"][kind][key] == final["accuracy_float" if kind == "float32" else "accuracy_int8"]
    assert final[key] == final["accuracy_int8"] and record(world_of.run)["task"] == world_of.task


@pytest.mark.parametrize("kind", ["weights", *EVERY[:5]])
def test_each_can_be_evaluated(kind: str, world_of: Made, capsys: pytest.CaptureFixture[str]) -> None:
    file = world_of.weights if kind == "weights" else world_of.file(kind)
    assert run("evaluate", world_of.images, file) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in NAMES[world_of.task]) and "on 8 test images" in out
    assert ("mAP@0.5" if world_of.task == "detect" else "mIoU") in out.splitlines()[-1]
    if kind != "weights":
        said = read_metadata(file.read_bytes())
        assert said is not None and f"{said['accuracy'][kind][SCORES[world_of.task]]:.2%}" in out


def test_onnx_and_torch_give_decoded_boxes_or_logits(world_of: Made) -> None:
    import onnxruntime

    from mobilefit.formats import torch_export

    image = PRESET.apply(world_of.pictures[0]).transpose(2, 0, 1)[None]
    session = onnxruntime.InferenceSession(world_of.file("onnx"))
    names = [output.name for output in session.get_outputs()]
    found = session.run(None, {"input": np.concatenate([image] * 3)})
    program = torch_export.run_all(world_of.file("pt2").read_bytes(), image)
    served = Served(load_network(world_of.weights)).eval()
    with torch.no_grad():
        expected = served(torch.from_numpy(image))
    if world_of.task == "segment":
        expected = (expected,)
    assert names == (["boxes", "scores"] if world_of.task == "detect" else ["output"]) == list(served.names)
    for given, other, wanted in zip(found, program, expected, strict=True):
        assert len(given) == 3
        np.testing.assert_allclose(given[:1], wanted.numpy(), atol=1e-4)
        np.testing.assert_allclose(other, wanted.numpy(), atol=1e-4)


def test_suppression_outside_gives_what_it_gives_inside(boxes: tuple[Path, Path], tmp_path: Path) -> None:
    images, weights = boxes
    inside = exported(weights, images, tmp_path / "in")
    outside = exported(weights, images, tmp_path / "out", "--nms", "outside")
    assert all(check["ok"] for check in read_json(outside / "parity.json").values())
    for kind in ("float32", "int8"):
        name = f"model_{kind}.tflite"
        graph = parse((outside / name).read_bytes())
        assert graph.output_names == ["boxes", "scores"] and len(graph.outputs[0].shape) == 3
        pictures = tuple(sorted((images / "JPEGImages").glob("val*.png")))
        one, other = (predict(PredictConfig(file=folder / name, images=pictures, score=0.2)) for folder in (inside, outside))
        assert sum(len(row["boxes"]) for row in one) > 10
        # Of two boxes whose overlap is the threshold's to the last digit either may stay.
        assert min(shared(one, other), shared(other, one)) > 0.95


def shared(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
    """The share of one list's boxes that are in the other's."""
    found = [
        any(box["class"] == mate["class"] and abs(box["score"] - mate["score"]) < 2e-3
            and np.allclose(box["box"], mate["box"], atol=0.05) for mate in b["boxes"])
        for a, b in zip(one, other, strict=True) for box in a["boxes"]
    ]  # fmt: skip
    return float(np.mean(found))


def test_a_higher_threshold_gives_fewer_boxes(boxes: tuple[Path, Path], tmp_path: Path) -> None:
    images, weights = boxes
    out = exported(weights, images, tmp_path / "run", "--score-threshold", 0.3)
    picture = next((images / "JPEGImages").glob("val*.png"))
    found = predict(PredictConfig(file=out / "model_float32.tflite", images=(picture,), score=0.0))
    scores = [box["score"] for box in found[0]["boxes"]]
    assert scores and min(scores) >= 0.3 and scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("form", ["labels", "coarse"])
def test_what_a_segmenter_ends_with(form: str, masks: tuple[Path, Path], tmp_path: Path) -> None:
    images, weights = masks
    whole = exported(weights, images, tmp_path / "whole")
    out = exported(weights, images, tmp_path / "run", "--ends", form)
    assert all(check["ok"] for check in read_json(out / "parity.json").values())
    picture = next((images / "val" / "images").glob("*.png"))
    for kind in ("float32", "int8"):
        name = f"model_{kind}.tflite"
        graph = parse((out / name).read_bytes())
        shape = (1, SIDE, SIDE) if form == "labels" else (1, SIDE // 8, SIDE // 8, 3)
        assert graph.outputs[0].shape == shape
        one, other = (seen(folder / name, picture) for folder in (whole, out))
        assert (one == other).mean() > (0.999 if form == "labels" else 0.97)
    accuracy = [read_json(folder / "record.json")["final"]["accuracy_float"] for folder in (whole, out)]
    assert accuracy[0] == pytest.approx(accuracy[1], abs=1e-3 if form == "labels" else 0.02)


def seen(file: Path, picture: Path) -> np.ndarray:
    """The class of each pixel."""
    network, image = opened(file), Image.open(picture).convert("RGB")
    found = network.see(image, top=1, score=0.5).mask
    assert found is not None
    return found


def test_a_file_that_says_something_else_ends_with_3(
    world_of: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    def elsewhere(blob: bytes, images: Any) -> Any:
        # A detector's other outputs have slots that nothing is written to.
        first, *others = checks.through_litert(blob, images)
        return [np.roll(first, 1, axis=-1), *others]

    monkeypatch.setitem(export_job.FORMATS, "float16", export_job.FORMATS["float16"]._replace(run=elsewhere))
    words = ("export", world_of.weights, world_of.images, "--formats", "float16,float32", "--out", tmp_path / "run")
    said = refused(*words, code=3)
    assert "do not say what the network says: float16: " in said and "float32" not in said
    assert ("of the anchors" if world_of.task == "detect" else "of the pixels of 8 images") in said


# ---- evaluation and prediction by hand


def test_boxes_are_those_of_the_module_in_pixels_of_the_picture(boxes: tuple[Path, Path], tmp_path: Path) -> None:
    """A turned, wide, grey picture: as it is seen, not as it lies in the file."""
    images, weights = boxes
    network = load_network(weights).eval()
    file = tmp_path / "model.tflite"
    file.write_bytes(packed(network, tmp_path))
    picture = Image.open(next((images / "JPEGImages").glob("val*.png"))).convert("L").resize((300, 130))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    picture.save(tmp_path / "a.png", exif=exif)
    upright = picture.transpose(Image.Transpose.ROTATE_270).convert("RGB")
    assert upright.size == (130, 300)
    prepared = torch.from_numpy(PRESET.apply(upright).transpose(2, 0, 1)[None].copy())
    with torch.no_grad():
        encodings, logits = network(prepared)
    wanted = detections(
        encodings, logits, spec_anchors(network.spec), "sigmoid", score_threshold=0.3, class_wise=False
    )[0]
    found = predict(PredictConfig(file=file, images=(tmp_path / "a.png",), score=0.3))[0]["boxes"]
    assert len(found) == len(wanted.scores) > 3
    np.testing.assert_allclose([b["score"] for b in found], wanted.scores.numpy(), atol=1e-3)
    np.testing.assert_allclose(
        [b["box"] for b in found], wanted.boxes.numpy() * [130, 300, 130, 300], atol=0.5
    )
    assert [b["class"] for b in found] == [NAMES["detect"][i] for i in wanted.labels]


def packed(network: Network, tmp_path: Path) -> bytes:
    from mobilefit.litert.metadata import packaged

    said = {"preset": PRESET.to_dict(), "classes": list(NAMES[network.spec.task]), "spec": network.spec.to_dict()}
    return packaged(compiled(network, said))


def test_the_labels_of_a_picture_are_those_of_the_module(masks: tuple[Path, Path], tmp_path: Path) -> None:
    images, weights = masks
    network = load_network(weights).eval()
    file = tmp_path / "model.tflite"
    file.write_bytes(packed(network, tmp_path))
    picture = Image.open(next((images / "val" / "images").glob("*.png"))).resize((150, 90)).convert("RGBA")
    picture.save(tmp_path / "a.png")
    prepared = torch.from_numpy(PRESET.apply(picture.convert("RGB")).transpose(2, 0, 1)[None].copy())
    with torch.no_grad():
        logits = torch.nn.functional.interpolate(network(prepared), (90, 150), mode="bilinear")
    wanted = logits[0].argmax(0).numpy()
    rows = predict(PredictConfig(file=file, images=(tmp_path / "a.png",), masks=tmp_path / "masks", top=3))
    mask = Image.open(tmp_path / "masks" / "a.png")
    assert mask.mode == "P" and mask.size == (150, 90)
    assert (np.asarray(mask) == wanted).mean() > 0.999
    shares = {c["class"]: c["share"] for c in rows[0]["classes"]}
    for label, name in enumerate(NAMES["segment"]):
        assert shares.get(name, 0) == pytest.approx((wanted == label).mean(), abs=1e-3)


def test_predictions_are_printed_and_drawn(
    world_of: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_text("no image")
    pictures = [*world_of.pictures[:2], tmp_path / "bad.png"]
    words = ("predict", world_of.file("int8"), *pictures, "--score", 0.3)
    assert run(*words, "--draw", tmp_path / "drawn") == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert len(lines) == 2 and all(str(p) in line for p, line in zip(pictures, lines, strict=False))
    assert any(f"{name} " in said.out for name in NAMES[world_of.task]) and "left out: " in said.err
    drawn = sorted((tmp_path / "drawn").iterdir())
    assert [path.stem for path in drawn] == sorted(path.stem for path in pictures[:2])
    plain = Image.open(pictures[0]).convert("RGB")
    canvas = Image.open(drawn[0])
    assert canvas.width % 2 == canvas.height % 2 == 0 and canvas.width >= plain.width
    seen = np.asarray(canvas.crop((0, 0, canvas.width, canvas.width)).resize(plain.size), float)
    assert np.abs(seen - np.asarray(plain)).mean() > 3
    assert run(*words, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert "problem" in rows[2] and ("boxes" if world_of.task == "detect" else "classes") in rows[0]


def test_frames_of_a_video_get_masks_with_their_numbers(masks: tuple[Path, Path], tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    images, weights = masks
    file = tmp_path / "model.tflite"
    file.write_bytes(packed(load_network(weights), tmp_path))
    film = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 64))
    for path in sorted((images / "val" / "images").glob("*.png"))[:4]:
        film.write(cv2.imread(str(path)))
    film.release()
    assert run("predict", file, tmp_path / "clip.avi", "--every", 2, "--masks", tmp_path / "m", "--draw", tmp_path / "d") == 0
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["clip_000000.png", "clip_000002.png"]
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["clip.mp4"]


def test_labels_of_another_size_are_the_nearest() -> None:
    small = np.array([[0, 1], [2, 3]], np.float32)
    np.testing.assert_array_equal(labels(small, (4, 4)), np.kron(small, np.ones((2, 2))))
    np.testing.assert_array_equal(labels(np.arange(6, dtype=np.float32)[None], (1, 2)), [[1, 4]])
    logits = np.stack([1 - small / 3, small / 3])
    np.testing.assert_array_equal(labels(logits, (2, 2)), [[0, 0], [1, 1]])


# ---- quantize


@pytest.mark.parametrize("method", ["ptq", "qat"])
def test_a_float32_file_becomes_int8(method: str, world_of: Made, tmp_path: Path) -> None:
    out = tmp_path / "q"
    words = ("quantize", world_of.file("float32"), world_of.images, "--images", 8, "--quiet", "--max-drop", 100)
    assert run(*words, "--method", method, "--steps", 3, "--out", out) == 0
    found = record(out)
    final, blob = found["final"], (out / "model_int8.tflite").read_bytes()
    assert found["method"] == method and found["fidelity"]["top1"] > 0.99
    assert final["drop"] == pytest.approx(final["accuracy_float"] - final["accuracy_int8"])
    said, was = (read_metadata(b) for b in (blob, world_of.file("float32").read_bytes()))
    assert said is not None and was is not None and said["outputs"] == was["outputs"]
    assert said["accuracy"]["int8"][SCORES[world_of.task]] == final["accuracy_int8"]
    assert parse(blob).output_names == parse(world_of.file("float32").read_bytes()).output_names
    types = {op.output.dtype for op in parse(split(blob)[0]).ops}
    assert np.dtype(np.int8) in types
    if method == "qat":
        rows = read_jsonl(out / "train" / "metrics.jsonl")
        assert rows[-1]["step"] == 3 and f"val_{SCORES[world_of.task]}" in rows[-1]
        other = world_of.file("int8").read_bytes()
        assert weights_of(blob) != weights_of(other)


def weights_of(blob: bytes) -> list[bytes]:
    return [t.data.tobytes() for t in parse(blob).tensors() if t.data is not None and t.data.ndim == 4]


def test_training_goes_on_with_logits_of_the_heads_own_size(masks: tuple[Path, Path], tmp_path: Path) -> None:
    images, weights = masks
    coarse = exported(weights, images, tmp_path / "coarse", "--ends", "coarse")
    words = ("quantize", coarse / "model_float32.tflite", images, "--images", 8, "--quiet", "--max-drop", 100)
    assert run(*words, "--method", "qat", "--steps", 2, "--out", tmp_path / "q") == 0
    assert record(tmp_path / "q")["fidelity"]["ok"]


def test_the_gate_names_the_score_and_the_layers(world_of: Made, tmp_path: Path, refused: Refused) -> None:
    words = ("quantize", world_of.file("float32"), world_of.images, "--images", 4, "--max-drop", -101, "--quiet")
    said = refused(*words, "--out", tmp_path / "q", code=3)
    assert f"points of {'mAP@0.5' if world_of.task == 'detect' else 'mIoU'} (ptq)" in said
    rows = record(tmp_path / "q")["sensitivity"]
    assert rows[0]["layer"] in said and rows[0]["accuracy_drop"] is None


# ---- timing


@pytest.mark.parametrize("network", [small_detector(), segmenter_network()], ids=["detect", "segment"])
def test_the_file_that_is_timed_has_what_is_shipped(network: Network) -> None:
    blob = int8_for_timing(network.spec)
    shipped = compiled(network)
    assert [t.shape for t in parse(blob).outputs] == [t.shape for t in parse(shipped).outputs]
    assert int8_for_timing(network.spec) == blob


@pytest.mark.parametrize("size", [96, 160])
def test_a_detector_is_timed_with_as_many_boxes_as_it_may_find(size: int) -> None:
    """One that finds nothing is up to a fifth faster than a trained one."""
    blob = int8_for_timing(small_detector().spec.resolution(size))
    detections = File(blob).run(np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32))
    assert detections[3].tolist() == [100, 100]


def test_its_file_can_be_timed(world_of: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", world_of.file("int8"), world_of.file("float32")) == 0
    assert "model_int8.tflite" in capsys.readouterr().out


# ---- what is refused


def test_data_of_another_task(
    world: World, boxes: tuple[Path, Path], masks: tuple[Path, Path], refused: Refused
) -> None:
    assert "the network takes images with boxes: " in refused("evaluate", world.images, boxes[1])
    assert "the network takes images with masks: " in refused("evaluate", world.images, masks[1])
    assert "the network takes images in class folders: " in refused("evaluate", boxes[0], world.int8)
    said = refused("evaluate", masks[0], world.int8)
    assert "the network takes images in class folders: " in said and "--task segment" in said


def test_a_file_of_another_task(world_of: Made, world: World, tmp_path: Path, refused: Refused) -> None:
    file = world_of.file("int8")
    kind = "boxes" if world_of.task == "detect" else "masks"
    assert f"the network takes images with {kind}: " in refused("evaluate", world.images, file)
    float32 = world_of.file("float32")
    assert f"images with {kind}" in refused("quantize", float32, world.images, "--out", tmp_path / "q")
    said = refused("demo", file, world.int8)
    assert f"{file} is for --task {world_of.task}, {world.int8} is for --task classify; name files of one" in said
    assert not (tmp_path / "q").exists()


def test_other_classes(world_of: Made, tmp_path: Path, refused: Refused) -> None:
    data = tmp_path / "other"
    if world_of.task == "detect":
        write_voc(data)
        for path in (data / "Annotations").iterdir():
            path.write_text(path.read_text().replace("<name>red", "<name>green"))
    else:
        write_masks(data)
        (data / "classes.txt").write_text("ground\nred\ngreen\n")
    for file in (world_of.weights, world_of.file("int8")):
        said = refused("evaluate", data, file)
        assert f"{file} tells {len(NAMES[world_of.task])} classes apart" in said and "green" in said
    assert "green" in refused("quantize", world_of.file("float32"), data, "--out", tmp_path / "q")
    assert "green" in refused("export", world_of.weights, data, "--out", tmp_path / "e")


def test_masks_with_a_value_that_is_no_class(masks: tuple[Path, Path], tmp_path: Path, refused: Refused) -> None:
    data = write_masks(tmp_path / "void")
    for path in data.glob("*/labels/*.png"):
        mask = np.asarray(Image.open(path)).copy()
        mask[:4] = 3
        Image.fromarray(mask).save(path)
    said = refused("evaluate", data, masks[1])
    assert "3" in said and "--ignore-label" in said
    assert run("evaluate", data, masks[1], "--ignore-label", 3) == 0


@pytest.mark.parametrize(
    ("verb", "task", "more", "message"),
    [
        ("export", "detect", ("--ends", "labels"), "--ends is for --task segment, and 'ssdlite_tiny' is for detect"),
        ("export", "segment", ("--nms", "file"), "--nms and --score-threshold are for --task detect"),
        ("export", "detect", ("--nms", "inside"), "'inside' is not one of 'file', 'outside'"),
        ("export", "detect", ("--score-threshold", 2), "score_threshold is 2.0, must be from 0 to 1"),
        ("export", "detect", ("--ignore-label", 3), "--ignore-label is for masks"),
        ("evaluate", "detect", ("--ignore-label", 3), "--ignore-label is for masks"),
        ("quantize", "segment", ("--distillation", 0.5), "--distillation is for classifiers"),
        ("predict", "detect", ("--score", 2), "--score is 2.0, must be from 0 to 1"),
        ("predict", "detect", ("--masks", "m"), "--masks is for segmenters"),
    ],
)
def test_bad_options_are_one_line(
    verb: str, task: str, more: tuple[object, ...], message: str, tmp_path: Path, refused: Refused,
    boxes: tuple[Path, Path], masks: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    images, weights = boxes if task == "detect" else masks
    file = tmp_path / "model.tflite"
    file.write_bytes(packed(load_network(weights), tmp_path))
    picture = next(images.glob("**/*.png"))
    words = {
        "export": (weights, images, "--out", tmp_path / "run"), "evaluate": (images, file),
        "quantize": (file, images, "--out", tmp_path / "run"), "predict": (file, picture),
    }[verb]  # fmt: skip
    assert message in refused(verb, *words, *more)
    assert not (tmp_path / "run").exists() and not (tmp_path / "m").exists()


def test_files_and_pictures_that_are_not_there(world_of: Made, tmp_path: Path, refused: Refused) -> None:
    picture = world_of.pictures[0]
    assert f"cannot read {tmp_path}/none.tflite" in refused("predict", tmp_path / "none.tflite", picture)
    assert "no such image or folder" in refused("predict", world_of.file("int8"), tmp_path / "x.png")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    option = "--draw" if world_of.task == "detect" else "--masks"
    said = refused("predict", world_of.file("int8"), picture, option, tmp_path / "full")
    assert said == f"the folder {tmp_path / 'full'} is not empty; choose another {option}"


def test_a_file_at_odds_with_its_own_description(world_of: Made, tmp_path: Path, refused: Refused) -> None:
    from .test_predict import described

    file, blob = tmp_path / "odd.tflite", world_of.file("float32").read_bytes()
    file.write_bytes(described(blob, classes=["a", "b", "c", "d"]))
    assert f"{file}: names 4 classes, but has" in refused("predict", file, world_of.pictures[0])
    file.write_bytes(described(blob, outputs={"shape": "round"}))
    assert "ends with something unknown" in refused("predict", file, world_of.pictures[0])
    if world_of.task == "detect":
        file.write_bytes(described(blob, outputs={"nms": "outside"}))
        assert "is not what it says that it ends with" in refused("predict", file, world_of.pictures[0])
    file.write_bytes(blob[: len(blob) // 2])
    assert str(file) in refused("evaluate", world_of.images, file)


# ---- the pages of the documentation

PAGES = {"detect": "detection.md", "segment": "segmentation.md"}


@pytest.mark.parametrize("task", PAGES)
def test_the_commands_of_the_pages_run(
    task: str, boxes: tuple[Path, Path], masks: tuple[Path, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """All but the training, which another network stands for."""
    images, weights = boxes if task == "detect" else masks
    (tmp_path / "runs" / "of").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^mobilefit (.+)$", page(task), re.MULTILINE)
    assert [line.split()[0] for line in lines if not line.startswith("evaluate")] == ["train", "export", "predict", "quantize"]
    data, out = lines[0].split()[1], lines[0].split()[-1]
    shutil.copytree(images, data)
    shutil.copytree(next(images.glob("JPEGImages" if task == "detect" else "val/images")), "pictures")
    Path(out).mkdir()
    shutil.copy(weights, Path(out) / "model.safetensors")
    for line in lines[1:]:
        less = line.replace("--steps 200", "--steps 1 --max-drop 100 --quiet").split()
        assert run(*less) == 0, line


def test_the_pages_know_the_tolerances() -> None:
    for kind, limits in BOX_TOLERANCES.items():
        row = next(line for line in page("detect").splitlines() if line.startswith("|") and f"`{kind}`" in line)
        assert f"| {limits.iou:g} | {limits.score:g} |" in row and f"| {100 * limits.agreement:g} % |" in row
        assert ("all anchors" if limits.share == 1 else f"| {100 * limits.share:g} % |") in row
    text = " ".join(page("segment").split())
    for kind, share in LABEL_TOLERANCES.items():
        assert re.search(rf"`{kind}`[^%]* {100 * share:g} %|{100 * share:g} % of the pixels [^%.]*`{kind}`", text), kind


def page(task: str) -> str:
    return (Path(__file__).parents[2] / "docs" / PAGES[task]).read_text()


# ---- a network as a table


@pytest.mark.parametrize(("task", "head"), [("detect", "boxes.5.predict"), ("segment", "low: conv2d")])
def test_info_shows_a_heads_rows(task: str, head: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", "mobilenet_v3_small", "--task", task, "--resolution", 96, "--columns", 160, "--classes", 3) == 0
    out = capsys.readouterr().out
    assert head in out and "mobilenet_v3_small" in out.splitlines()[-1]
    assert run("info", "mobilenet_v3_small", "--task", task, "--columns", 160, "--json") == 0
    assert json.loads(capsys.readouterr().out)["input_width"] == 160


def test_info_refuses(refused: Refused) -> None:
    assert refused("info", "mobilenet_v2", "--columns", 96).startswith("a classifier sees a square; ")
    said = refused("info", "ssdlite_mobilenet_v2", "--task", "segment")
    assert said == "'ssdlite_mobilenet_v2' is for --task detect, not for segment; name its backbone"
