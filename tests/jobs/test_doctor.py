"""``mobilefit doctor DATA``: what it prints and writes about images, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mobilefit import cores
from mobilefit.jobs import doctor as doctor_job
from mobilefit.jobs.doctor import DoctorConfig, doctor

from .small import make_images, picture, run


@pytest.fixture(autouse=True)
def ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checks of the machine, which take long and are tested elsewhere."""
    for check in ("_chain", "_steadiness", "_phones"):
        monkeypatch.setattr(doctor_job, check, lambda: "left out")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes, apart for training and for the test."""
    make_images(tmp_path / "set" / "train", ("cat", "dog"), 12)
    root = make_images(tmp_path / "set" / "val", ("cat", "dog"), 3).parent
    for label, name in enumerate(("cat", "dog")):
        for number in range(3):
            picture(label, 50 + 10 * label + number).save(root / "val" / name / f"{number:03d}.png")
    return root


def report(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "doctor.json").read_text())["images"]
    return found


def test_good_images_pass(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "folder"
    assert run("doctor", images, "--out", out, "--resolution", 32) == 0
    said, err = capsys.readouterr()
    assert "ok   images: 2 classes; 22 train, 2 holdout, 6 test; 12 to 12 a class; short side 36 px; 0 bad files; no picture in two parts or classes" in said
    assert "mobilefit:" not in err
    found = report(out)
    assert found["falsified"] == [] and found["counts"] == {
        "train": {"cat": 12, "dog": 12}, "test": {"cat": 3, "dog": 3}
    }  # fmt: skip


def test_leaks_and_conflicts_end_with_exit_code_3(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("val/cat/leak.png", "train/dog/conflict.png"):
        (images / name).write_bytes((images / "train/cat/004.png").read_bytes())
    assert run("doctor", images, "--out", tmp_path, "--resolution", 32) == 3
    said, err = capsys.readouterr()
    files = "train/cat/004.png = train/dog/conflict.png = val/cat/leak.png (same bytes)"
    assert f"     pictures in more than one part: 1\n       {files}\n" in said
    assert f"     pictures in more than one class: 1\n       {files}\n" in said
    assert "     train: pictures that it has more than once: 1\n       train/cat/004.png = train/dog/" in said
    assert ("FAIL images: pictures in more than one part: 1; pictures in more than one class: 1; all files "
            f"are in {tmp_path / 'doctor.json'}\n") in said  # fmt: skip
    assert err.strip().endswith("mobilefit: not ready: images; see the lines marked FAIL")
    assert report(tmp_path)["leaks"] == [{"same": "same bytes", "files": files[:-13].split(" = ")}]


def test_ten_of_a_kind_are_printed_and_all_are_written(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(12):
        (images / "train" / "dog" / f"{number:03d}.png").write_bytes(b"not an image")
    assert run("doctor", images, "--out", tmp_path) == 3
    lines = capsys.readouterr().out.splitlines()
    first = lines.index("     train: broken files: 12")
    assert lines[first + 1] == "       train/dog/000.png: not an image"
    assert lines[first + 10 : first + 12] == ["       train/dog/009.png: not an image", "       and 2 more"]
    assert "12 of the 30 image files in" in lines[-1] and lines[-1].startswith("FAIL images: ")
    assert len(report(tmp_path)["broken"]["train"]) == 12  # type: ignore[index, call-overload]


def test_differing_classes_are_listed_and_fail(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "val" / "cat").rename(images / "val" / "cow")
    assert run("doctor", images, "--out", tmp_path) == 3
    said = capsys.readouterr().out
    assert "train: classes that it lacks: 1\n       cow\n" in said
    assert "test: classes that it lacks: 1\n       cat\n" in said
    assert "FAIL images: " in said and "val lacks cat and has cow, which train lacks" in said


def test_what_falsifies_nothing_is_told_and_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_images(tmp_path / "set", ("cat", "dog"), 70)
    for number in range(60):
        (root / "dog" / f"{number:03d}.png").unlink()
    assert run("doctor", root, "--out", tmp_path, "--resolution", 37) == 0
    said = capsys.readouterr().out
    assert "train: classes with fewer than 10 images: 1\n       dog: 8\n" in said
    assert "train: dog has 8 images, cat 56, 7.0 times as many\n" in said
    assert "train: images with a side under 37 px: 64\n" in said and "ok   images: " in said


def test_many_files_of_one_picture_are_one_line(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(12):
        (images / "train" / "cat" / f"{number:03d}.png").write_bytes((images / "train/cat/000.png").read_bytes())
    assert run("doctor", images, "--out", tmp_path, "--resolution", 32) == 0
    said = capsys.readouterr().out
    assert "= train/cat/003.png and 8 more (same bytes)\n" in said


def test_it_says_how_far_it_is_unless_it_is_quiet(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobilefit.progress.LINE_SECONDS", 0)
    assert run("doctor", images, "--out", tmp_path) == 0
    assert "looking at images: 30/30 img" in capsys.readouterr().err
    assert run("doctor", images, "--out", tmp_path, "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_a_script_gets_what_was_found(images: Path, tmp_path: Path) -> None:
    found = doctor(DoctorConfig(data=str(images), out=tmp_path))
    assert found["images"]["images"] == 30 and found["packages"]["mobilefit"]
    assert json.loads((tmp_path / "doctor.json").read_text()) == json.loads(json.dumps(found))


def test_without_data_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", "--out", tmp_path) == 0
    assert "images" not in capsys.readouterr().out and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nowhere"], 3, "FAIL images: no such folder or data set: 'nowhere'; give a folder"),
        (["fashion-mnits"], 3, "did you mean 'fashion-mnist'?"),
        (["--data", "x"], 2, "No such option '--data'"),
        (["x", "--resolution", "0"], 2, "--resolution is 0, must be a number above 0"),
        (["x", "y"], 2, "unexpected extra argument"),
    ],
)
def test_bad_input_is_told_in_a_line(
    words: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("doctor", *words, "--out", tmp_path) == code
    said = "".join(capsys.readouterr())
    assert message in said and "Traceback" not in said


def test_a_folder_that_cannot_be_written_to_is_named(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert run("doctor", images, "--out", tmp_path / "file" / "below") == 3
    assert f"FAIL images: cannot make the folder {tmp_path / 'file' / 'below'}: " in capsys.readouterr().out


@pytest.mark.parametrize(("others", "line"), [(1.2, "1 of 2 cores is busy with other work: training will be slower"), (0.1, None)])
def test_a_taken_core_is_named(
    others: float, line: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cores, "recent_usage", lambda: cores.CoreUsage(cores=2, others=others))
    assert run("doctor") == 0
    printed = [text for text in capsys.readouterr().out.splitlines() if "busy" in text]
    assert printed == ([line] if line else [])
