"""Training as a verb: going on after an interruption, and refusing what cannot be."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image

from mobilefit.cores import CoreUsage
from mobilefit.jobs.kinds import KINDS
from mobilefit.nn import load_network
from mobilefit.runs import read_jsonl
from mobilefit.train import RECIPES, SoftTargets, loop
from mobilefit.train.trainer import Trainer

from .small import World, make_images, picture, record, run

REFUSED = Callable[..., str]


def words(world: World, out: Path, *more: object) -> list[str]:
    return [str(word) for word in (
        "train", world.images, "--model", world.spec, "--resolution", 32, "--batch-size", 16,
        "--checkpoint-every", 4, "--steps", 12, "--seed", 3, "--out", out, "--quiet", *more,
    )]  # fmt: skip


def at_step(
    monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]
) -> None:
    original, calls = Trainer.step, iter(range(1, 10_000))

    def step(self: Trainer, *batch: Any, **options: Any) -> float:
        if next(calls) == number:
            act()
        return original(self, *batch, **options)

    monkeypatch.setattr(Trainer, "step", step)


def same_weights(one: Path, other: Path) -> bool:
    a, b = (safetensors.torch.load_file(folder / "model.safetensors") for folder in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def undisturbed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("train") / "undisturbed"
    assert run(*words(world, out)) == 0
    return out


def test_the_folder_of_a_training(undisturbed: Path) -> None:
    made = record(undisturbed)
    assert [row["kind"] for row in made["results"]] == ["seed"]
    assert made["final"]["loss"] > 0 and made["final_spec"]["input_size"] == 32
    assert made["recipe"]["batch_size"] == 16 and made["seconds"]["training"] > 0
    assert read_jsonl(undisturbed / "metrics.jsonl")[-1]["step"] == 12
    assert "<html" in (undisturbed / "report.html").read_text().lower()


@pytest.mark.parametrize(("others", "line"), [(1.2, "1 of 2 cores is busy with other work: training will be slower"), (0.1, None)])
def test_a_taken_core_is_named_before_the_training(
    others: float, line: str | None, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(loop, "_last_warning", None)
    monkeypatch.setattr(loop, "recent_usage", lambda: CoreUsage(cores=2, others=others))
    assert run(*(word for word in words(world, tmp_path) if word != "--quiet")) == 0
    printed = [text for text in capsys.readouterr().err.splitlines() if "busy" in text]
    assert printed == ([line] if line else [])


def test_a_number_of_threads_is_used_recorded_and_given_back(world: World, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    assert run(*words(world, tmp_path, "--threads", before + 1)) == 0
    training = record(tmp_path)["training"]
    assert training["threads"] == before + 1 and training["thread_changes"] == []
    assert read_jsonl(tmp_path / "metrics.jsonl")[-1]["threads"] == before + 1
    assert torch.get_num_threads() == before


@pytest.fixture(scope="module")
def teacher(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("train") / "teacher"
    assert run(*words(world, out, "--resolution", 48)) == 0
    return out / "model.safetensors"


def watched_teachers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the images that are shown to teachers at their own resolution."""
    shapes: list[tuple[int, ...]] = []
    outputs = SoftTargets.outputs

    def spying(self: SoftTargets, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shapes.append(tuple(images.shape))
        return outputs(self, images)

    monkeypatch.setattr(SoftTargets, "outputs", spying)
    return shapes


def test_a_teacher_sees_its_own_resolution_and_is_asked_once(
    world: World, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = watched_teachers(monkeypatch)
    assert run(*words(world, tmp_path / "plain", "--teacher", teacher)) == 0
    assert shapes == [(16, 3, 48, 48)] * 12
    options = ("--teacher", teacher, "--teacher-cache", tmp_path / "cache")
    assert run(*words(world, tmp_path / "cold", *options)) == 0
    assert len(shapes) == 24
    assert run(*words(world, tmp_path / "warm", *options)) == 0
    assert run(*words(world, tmp_path / "small", *options, "--resolution", 24)) == 0
    assert len(shapes) == 24
    assert same_weights(tmp_path / "warm", tmp_path / "plain") and same_weights(tmp_path / "cold", tmp_path / "plain")
    assert run(*words(world, tmp_path / "larger", "--teacher", teacher, "--teacher-resolution", 64)) == 0
    assert shapes[24:] == [(16, 3, 64, 64)] * 12


def test_a_teacher_of_mixed_images_sees_the_students(
    world: World, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: REFUSED,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shapes = watched_teachers(monkeypatch)
    mixed = [word for word in words(world, tmp_path / "run", "--teacher", teacher, "--mixup", 0.2) if word != "--quiet"]
    assert run(*mixed) == 0
    assert not shapes
    assert "the teacher sees the student's images, resized from 32 to 48 px: mixup and cutmix mix" in capsys.readouterr().err
    said = refused(*words(world, tmp_path / "none", "--teacher", teacher, "--cutmix", 1, "--teacher-cache", tmp_path / "c"))
    assert "--teacher-cache: mixup and cutmix mix the student's own small images" in said


@pytest.mark.parametrize("task", ["detect", "segment"])
@pytest.mark.parametrize("option", ["--teacher-cache", "--teacher-resolution"])
def test_what_a_classifiers_teacher_alone_has_is_refused_before_the_images_are_read(
    task: str, option: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: REFUSED
) -> None:
    def read_images(*_: Any) -> None:
        raise AssertionError("the images were read first")

    monkeypatch.setattr(type(KINDS[task]), "load", read_images)
    more = ("--task", task, "--teacher", "nowhere.safetensors", option, "64")
    message = refused(*words(world, tmp_path / "run", *more))
    assert message == f"{option} is for classification, not for --task {task}; leave {option} out"
    assert not (tmp_path / "run").exists()


def test_an_interrupted_training_goes_on(
    world: World, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], refused: REFUSED,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        at_step(patch, 7, lambda: signal.raise_signal(signal.SIGINT))
        assert run(*words(world, tmp_path)) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith(" --quiet --resume") and "go on with: mobilefit train" in line
    assert not (tmp_path / "record.json").exists()
    said = refused(*words(world, tmp_path))
    assert "holds an unfinished run" in said and "add --resume" in said
    assert run(*words(world, tmp_path, "--resume")) == 0
    assert same_weights(tmp_path, undisturbed)
    assert "holds a finished run" in refused(*words(world, tmp_path, "--resume"))
    assert "holds a finished run" in refused(*words(world, tmp_path))
    assert same_weights(tmp_path, undisturbed)


@pytest.mark.parametrize("page", ["missing", "of the unfinished run"])
def test_a_training_killed_before_its_page_gets_one_by_the_same_command(
    page: str, world: World, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: REFUSED
) -> None:
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "out": str(out)}))
    path, before = out / "report.html", (out / "model.safetensors").read_bytes()
    if page == "missing":
        path.unlink()
    else:
        path.write_text("early")
        os.utime(path, ns=(0, (out / "record.json").stat().st_mtime_ns - 10**9))
    assert "with other options" in refused(*words(world, out, "--lr", 0.01))
    capsys.readouterr()
    assert run(*words(world, out)) == 0
    assert "top-1" in capsys.readouterr().out and "<html" in path.read_text().lower()
    assert (out / "model.safetensors").read_bytes() == before
    assert "holds a finished run" in refused(*words(world, out))


def test_two_equal_trainings_are_equal_bytes(world: World, undisturbed: Path, tmp_path: Path) -> None:
    assert run(*words(world, tmp_path)) == 0
    for name in ("model.safetensors", "best.safetensors"):
        assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes()


def test_hidden_files_alone_are_no_run(world: World, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"verb": "train", "seed": 99}')
    for name in (".state.json.abcdefgh.tmp", ".DS_Store", ".nfs0001"):
        (tmp_path / name).write_text("")
    assert run(*words(world, tmp_path)) == 0


def test_a_terminated_training_saves_and_says_how_to_go_on(
    world: World, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """SIGTERM is what a machine gets that is taken away."""
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        at_step(patch, 7, lambda: signal.raise_signal(signal.SIGTERM))
        assert run(*words(world, tmp_path)) == 143
    assert signal.getsignal(signal.SIGTERM) is before
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("mobilefit: terminated; go on with: mobilefit train") and line.endswith(" --resume")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["state"]["step"] == 7  # not the last regular one, which is 4
    assert run(*words(world, tmp_path, "--resume")) == 0
    assert same_weights(tmp_path, undisturbed)


def test_two_processes_in_one_run_folder(
    world: World, undisturbed: Path, tmp_path: Path, refused: REFUSED
) -> None:
    """The second is refused and disturbs nothing; a killed one leaves no lock behind."""
    command = [sys.executable, "-m", "mobilefit", *words(world, tmp_path)]
    command[command.index("12")] = "100000"
    first = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        while not (tmp_path / "checkpoint.pt").exists():
            assert first.poll() is None, first.communicate()[1]
            time.sleep(0.05)
        said = refused(*words(world, tmp_path, "--resume"))
        assert f"another process is at work in {tmp_path}; wait for it, stop it, or choose another --out" in said
        said = refused("export", world.weights, world.images, "--out", tmp_path)
        assert "another process is at work" in said
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()
    said = refused(*words(world, tmp_path, "--resume"))  # other steps, but no other process
    assert "an unfinished run with other options (steps" in said


def test_the_best_weights_can_be_the_result(world: World, tmp_path: Path) -> None:
    assert run(*words(world, tmp_path, "--final", "best")) == 0
    kept, final = (load_network(tmp_path / name) for name in ("best.safetensors", "model.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(kept.state_dict().values(), final.state_dict().values()))
    training = record(tmp_path)["training"]
    assert training["result"] == "best" and training["best"]["val_top1"] <= 1
    assert training["processes"] == 1 and training["images_per_second"] > 0


def test_every_field_of_a_recipe_is_an_option(world: World, tmp_path: Path) -> None:
    more = ["--recipe", "timm-ra", "--optimizer", "adamw", "--no-channels-last", "--mixup", 0.2, "--ema-decay", 0,
            "--policy", "trivialaugment", "--schedule", "onecycle", "--layer-decay", 0.8, "--freeze", 1]  # fmt: skip
    assert run(*words(world, tmp_path, *more)) == 0
    found = record(tmp_path)["recipe"]
    given = {"name": "timm-ra", "optimizer": "adamw", "channels_last": False, "mixup": 0.2, "ema_decay": 0,
             "policy": "trivialaugment", "schedule": "onecycle", "layer_decay": 0.8, "freeze": 1,
             "batch_size": 16}  # fmt: skip
    assert {key: found[key] for key in given} == given
    assert found["erasing"] == RECIPES["timm-ra"].erasing  # what is not given is the recipe's


@pytest.mark.parametrize(("call", "file"), [("fsync", "metrics.jsonl"), ("replace", "checkpoint.pt")])
def test_a_full_disk_keeps_the_last_checkpoint(
    call: str, file: str, world: World, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    refused: REFUSED,
) -> None:  # fmt: skip
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        at_step(patch, 7, lambda: patch.setattr(os, call, full))
        said = refused(*words(world, tmp_path))
    assert f"cannot write {tmp_path / file}: No space left on device" in said
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["state"]["step"] == 4
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [".lock"]
    assert run(*words(world, tmp_path, "--resume")) == 0
    assert same_weights(tmp_path, undisturbed)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_checkpoint(
    damage: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: REFUSED
) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, 7, lambda: signal.raise_signal(signal.SIGINT))
        assert run(*words(world, tmp_path)) == 130
    path = tmp_path / "checkpoint.pt"
    data = path.read_bytes()
    bad = {"cut": data[: len(data) // 2], "empty": b"",
           "flip": bytes(byte ^ 0xFF for byte in data[:2000]) + data[2000:]}  # fmt: skip
    path.write_bytes(bad[damage])
    said = refused(*words(world, tmp_path, "--resume"))
    assert str(path) in said and "damaged or cut short" in said and "delete it" in said


@pytest.mark.parametrize("rate", ["1e30", "inf"])
def test_a_loss_that_is_not_finite(
    rate: str, world: World, tmp_path: Path, refused: REFUSED
) -> None:
    said = refused(*words(world, tmp_path, "--lr", rate))
    assert "not finite" in said or "the loss is" in said or "lr is inf" in said
    if "lr is inf" not in said:
        assert " of 12 (epoch " in said and "step " in said and "lower the learning rate" in said


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--epochs", 2], ["--steps and --epochs"]),
        (["--width", 0], ["--width is 0.0"]),
        (["--width", "inf"], ["--width is inf"]),
        (["--batch-size", 0], ["batch_size is 0"]),
        (["--lr", -1], ["lr is -1.0"]),
        (["--lr", "nan"], ["lr is nan"]),
        (["--checkpoint-every", 0], ["checkpoint", "0"]),
        (["--augment", "lihgt"], ["'lihgt'", "'light'"]),
        (["--recipe", "papre"], ["'papre'", "'paper'"]),
        (["--precision", "8-true"], ["--precision", "32-true"]),
        (["--model", "mobilenet_v3_lareg"], ["did you mean 'mobilenet_v3_large'?"]),
        (["--weights", "nowhere.pth"], ["no such weights file: nowhere.pth"]),
        (["--batch-size", 5000], ["--batch-size 5000 is more than the ", " training images", "or less"]),
        (["--accumulate", 16], ["a batch of 16 images cannot be divided", "32 or more"]),
        (["--mixup", -1, "--dropout", 2], ["mixup is -1.0", "dropout is 2.0"]),
        (["--policy", "trivialaugmetn"], ["'trivialaugmetn'", "'trivialaugment'"]),
        (["--distillation", 0.5], ["--distillation needs a teacher"]),
        (["--teacher-resolution", 48], ["--teacher-resolution is for a teacher"]),
        (["--workers", -1], ["--workers is -1"]),
        (["--workers", 100000], ["--workers is 100000"]),
        (["--teacher-cache", "answers"], ["--teacher-cache is for a teacher"]),
        (["--teacher", "nowhere.safetensors"], ["nowhere.safetensors"]),
        (["--final", "best", "--holdout", 0], ["--final best", "--holdout is 0"]),
        (["--holdout", 0.9], ["holdout is 0.9"]),
        (["--keep", 0], ["--keep is 0"]),
        (["--threads", 0], ["--threads is 0"]),
        (["--precision", "16-mixed", "--accelerator", "cpu"], ["16-mixed needs a GPU"]),
        (["--freeze", 30], ["freeze is 30"]),
    ],
)
def test_bad_options(
    more: list[Any], parts: list[str], world: World, tmp_path: Path, refused: REFUSED
) -> None:
    said = refused(*words(world, tmp_path / "run", *more))
    for part in parts:
        assert part in said


# ---- images


def train(images: Path, world: World, out: Path) -> list[str]:
    return [*map(str, ("train", images, "--model", world.spec, "--resolution", 32, "--batch-size", 8,
                       "--steps", 2, "--out", out, "--quiet"))]  # fmt: skip


def test_images_of_every_kind_are_used(world: World, tmp_path: Path) -> None:
    images = make_images(tmp_path / "set", ("a", "b"), count=8)
    picture(0, 1).convert("L").save(images / "a" / "grey.jpg")
    picture(0, 2).convert("CMYK").save(images / "a" / "cmyk.jpg")
    Image.new("I;16", (40, 30), 30000).save(images / "b" / "deep.png")
    picture(1, 3).convert("P").save(images / "b" / "palette.gif")
    picture(1, 4, (5, 4)).save(images / "b" / "small.png")
    assert run(*train(images, world, tmp_path / "run")) == 0
    made = record(tmp_path / "run")["data"]
    assert made["skipped"] == [] and sum(made["sizes"].values()) == 21


def test_images_smaller_than_the_stride(world: World, tmp_path: Path) -> None:
    images = make_images(tmp_path / "set", ("a", "b"), count=8, size=(4, 5))
    assert run(*train(images, world, tmp_path / "run")) == 0


def test_a_network_larger_than_its_input(world: World, tmp_path: Path) -> None:
    assert run(*words(world, tmp_path / "run", "--resolution", 4)) == 0


def test_bad_images_are_left_out_and_named(world: World, tmp_path: Path) -> None:
    images = make_images(tmp_path / "set", ("a", "b"), count=8)
    (images / "a" / "text.jpg").write_text("no image")
    (images / "b" / "empty.png").write_bytes(b"")
    assert run(*train(images, world, tmp_path / "run")) == 0
    skipped = record(tmp_path / "run")["data"]["skipped"]
    assert [Path(file["path"]).name for file in skipped] == ["text.jpg", "empty.png"]


def test_one_image_a_class(world: World, tmp_path: Path, refused: REFUSED) -> None:
    images = make_images(tmp_path / "set", ("a", "b"), count=1)
    said = refused(*train(images, world, tmp_path / "run"))
    assert "class 'a' has 1 usable images in its train part, and needs 3" in said and "add images" in said


def test_classes_that_differ_between_train_and_val(world: World, tmp_path: Path, refused: REFUSED) -> None:
    images = make_images(tmp_path / "set" / "train", ("a", "b"), count=8).parent
    make_images(images / "val", ("a", "c"), count=2)
    said = refused(*train(images, world, tmp_path / "run"))
    assert "val lacks b and has c, which train lacks" in said


def test_a_batch_of_the_recipe_larger_than_the_data(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_images(tmp_path / "set", ("a", "b"), count=8)
    command = train(images, world, tmp_path / "run")
    del command[command.index("--batch-size") : command.index("--batch-size") + 2]
    assert run(*(word for word in command if word != "--quiet")) == 0
    assert "each step takes all 10 training images: the recipe's batch is 128" in capsys.readouterr().err


def test_folders_that_cannot_be_used(world: World, tmp_path: Path, refused: REFUSED) -> None:
    out = tmp_path / "run"
    assert "no such folder or data set: '" in refused(*train(tmp_path / "nowhere", world, out))
    assert "did you mean 'fashion-mnist'?" in refused(*train(Path("fashion-mnits"), world, out))
    assert "is not a folder" in refused(*train(world.int8, world, out))
    one = make_images(tmp_path / "one", ("alone",), count=3)
    assert "holds one class alone, 'alone'" in refused(*train(one, world, out))
    (one / "vain").mkdir()
    said = refused(*train(one, world, out))
    assert f"no image in {one / 'vain'}" in said
    for number in range(4):
        (one / "vain" / f"{number}.jpg").write_text("no image")
    said = refused(*train(one, world, out))
    assert "4 of the 7 image files" in said and str(one / "vain" / "0.jpg") in said
    few = make_images(tmp_path / "few", ("a", "b"), count=5)
    for path in (few / "b").iterdir():
        path.unlink()
    (few / "b" / "bad.jpg").write_text("no image")
    said = refused(*train(few, world, out))
    assert "class 'b' has 0 usable images" in said and "bad.jpg" in said
    assert not out.exists()


# ---- folders and weights


def test_an_output_folder_that_cannot_be_written(
    world: World, tmp_path: Path, refused: REFUSED
) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "run", tmp_path / "file"):
        said = refused(*words(world, out))
        assert f"cannot make the output folder {out}" in said and "choose another --out" in said
    said = refused(*words(world, Path("/proc/run")))
    assert "cannot make the output folder /proc/run" in said


def test_a_folder_with_another_verbs_run(world: World, refused: REFUSED) -> None:
    said = refused(*words(world, world.int8.parent))
    assert "a finished run with other options" in said


def test_weights_of_another_network(world: World, tmp_path: Path, refused: REFUSED) -> None:
    said = refused("train", world.images, "--model", world.spec, "--width", 2, "--resolution", 32,
                   "--weights", world.weights, "--steps", 1, "--out", tmp_path / "run")  # fmt: skip
    assert str(world.weights) in said and "fits another network" in said
    assert "blocks.0" in said and " is 64, the network's is 128" in said


def test_a_last_layer_of_another_size_starts_anew(world: World, tmp_path: Path) -> None:
    images = make_images(tmp_path / "set", ("a", "b", "c", "d"), count=6)
    words = [*train(images, world, tmp_path / "run"), "--weights", str(world.weights)]
    assert run(*words) == 0
    assert record(tmp_path / "run")["final_spec"]["head"]["num_classes"] == 4


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "text"])
def test_damaged_weights(
    damage: str, world: World, tmp_path: Path, refused: REFUSED
) -> None:
    data = world.weights.read_bytes()
    bad = {"cut": data[: len(data) // 2], "header": b"\xff" * 16 + data[16:], "empty": b"",
           "text": b"these are no weights"}  # fmt: skip
    path = tmp_path / "bad.safetensors"
    path.write_bytes(bad[damage])
    for command in (
        words(world, tmp_path / "run", "--weights", path),
        ["evaluate", world.images, path],
        ["export", path, world.images, "--out", tmp_path / "run"],
        ["adapt", path, world.images, "--latency", "70%", "--out", tmp_path / "run"],
    ):
        said = refused(*command)
        assert f"{path} is not a readable weights file" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "x"}', '{"nmae": 1}', "\xff"])
def test_a_broken_spec(content: str, world: World, tmp_path: Path, refused: REFUSED) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content.encode("latin-1"))
    for command in (
        ["info", path],
        words(world, tmp_path / "run", "--model", path),
        ["design", world.images, "--latency", "70%", "--seed-network", path, "--out", tmp_path / "r"],
    ):
        assert str(path) in refused(*command)
    assert not (tmp_path / "run").exists() and not (tmp_path / "r").exists()
