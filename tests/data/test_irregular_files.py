"""Pipes, devices, sockets and links to them in the place of files: told at once, never waited for, never read on and on."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tasks.scenes import write_masks, write_voc

from mobilefit.data import load, pictures
from mobilefit.data.coco import load as load_coco
from mobilefit.data.decode import read_image
from mobilefit.data.detection import load_detection
from mobilefit.data.imagenet import _from_solution
from mobilefit.data.masks import read_classes
from mobilefit.data.segmentation import load_segmentation
from mobilefit.data.shards import load_shards
from mobilefit.errors import InputError
from mobilefit.jobs.frames import sources
from mobilefit.jobs.model import read_file
from mobilefit.runs import read_bytes, read_json, read_jsonl

from .conftest import MakeFolder, photo
from .shard_server import write_shards


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def socket_file(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # an address of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path.name)
    os.chdir(here)


def link_to_a_pipe(path: Path) -> None:
    pipe(path.with_name("pipe-of-" + path.name + ".x"))
    path.symlink_to(path.with_name("pipe-of-" + path.name + ".x"))


def folder(path: Path) -> None:
    path.mkdir()


MAKERS = [pipe, endless, socket_file, link_to_a_pipe]


@pytest.fixture(params=MAKERS, ids=lambda maker: maker.__name__)
def put(request: pytest.FixtureRequest) -> Callable[[Path], Path]:
    """Puts what is no file in the place of one."""

    def put(path: Path) -> Path:
        path.unlink(missing_ok=True)
        request.param(path)
        return path

    return put


@pytest.fixture(autouse=True)
def soon() -> None:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 60


READERS: dict[str, Callable[[Path], object]] = {
    "a picture": read_image, "a COCO file": load_coco, "a list of classes": read_classes,
    "a solution of ImageNet": _from_solution, "a .tflite": read_file, "a record": read_json,
    "rows": read_jsonl, "a manifest": lambda path: load_shards(str(path), seed=0, holdout=0),
    "a shard": lambda path: load_shards(str(path), seed=0, holdout=0),
    "a picture of a large set": lambda path: next(iter(pictures.looked_at([path], None))),
    "a file": read_bytes,
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("maker", [*MAKERS, folder], ids=lambda maker: maker.__name__)
def test_no_reader_waits(
    reader: str, maker: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOBILEFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pictures, "LOOKED_AT", 0)
    suffix = {"a manifest": ".json", "a shard": ".tar"}.get(reader, ".png")
    path = tmp_path / f"it{suffix}"
    maker(path)
    if reader == "a picture of a large set":
        assert "cannot be read" in str(READERS[reader](path))
        return
    with pytest.raises((InputError, OSError), match=r"regular file|directory|\*\.tar"):
        READERS[reader](path)


def test_a_file_of_terabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.png"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match="1,099,511,627,776 bytes"):
        read_image(path)


def test_a_link_in_a_folder_of_pictures_counts_as_bad(make_folder: MakeFolder, put: Callable[[Path], Path]) -> None:
    """What is a pipe by itself is no picture that somebody meant."""
    root = make_folder({"a": 12, "b": 12})
    bad = put(root / "a" / "003.png")
    data = load(root)
    expected = [(str(bad), True)] if bad.is_symlink() else []
    assert [(file.path, "regular file" in file.why) for file in data.skipped] == expected
    assert len(data.train) + len(data.holdout) + len(data.test) == 23


def test_a_picture_and_an_annotation_with_boxes_count_as_bad(tmp_path: Path, put: Callable[[Path], Path]) -> None:
    """By their own names, or their partners' that have none."""
    root = write_voc(tmp_path / "set", train=30, val=8)
    put(root / "JPEGImages" / "train3.png"), put(root / "Annotations" / "train5.xml")
    data = load_detection(root)
    assert {Path(file.path).stem for file in data.skipped} == {"train3", "train5"} and len(data.skipped) == 2


def test_an_image_and_a_mask_count_as_bad(tmp_path: Path, put: Callable[[Path], Path]) -> None:
    root = write_masks(tmp_path / "set", train=30, val=8)
    put(root / "train" / "images" / "3.png"), put(root / "train" / "labels" / "5.png")
    data = load_segmentation(root)
    assert {Path(file.path).stem for file in data.skipped} == {"3", "5"}
    put(root / "classes.txt")
    with pytest.raises(InputError, match=r"classes\.txt: it is not a regular file"):
        load_segmentation(root)


def test_a_list_of_annotations_is_not_waited_for(tmp_path: Path, put: Callable[[Path], Path]) -> None:
    root = write_voc(tmp_path / "set")
    put(root / "ImageSets" / "Main" / "val.txt")
    load_detection(root)  # without the part: it is no file


def test_shards_and_their_classes(tmp_path: Path, put: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILEFIT_CACHE", str(tmp_path / "cache"))
    write_shards(tmp_path / "set", shards=3, each=10)
    put(tmp_path / "set" / "shard-001.tar")
    with pytest.raises(InputError, match=r"shard-001\.tar: it is not a regular file"):
        load_shards(str(tmp_path / "set"), seed=0, holdout=0)


@pytest.mark.parametrize("name", ["it.png", "it.mp4", "it"])
def test_what_predict_is_given(name: str, tmp_path: Path, put: Callable[[Path], Path]) -> None:
    (source,) = sources([put(tmp_path / name)], 1)
    (frame,) = source
    assert frame.picture is None and frame.problem is not None and "regular file" in frame.problem


def test_a_folder_that_predict_is_given(make_folder: MakeFolder, put: Callable[[Path], Path]) -> None:
    root = make_folder({"a": 3})
    bad = put(root / "a" / "001.png")
    frames = list(sources([root], 1)[0])
    assert [frame.picture is None for frame in frames] == ([False, True, False] if bad.is_symlink() else [False, False])


def test_labels_of_yolo_and_their_names(tmp_path: Path, put: Callable[[Path], Path]) -> None:
    for number in range(24):
        for part, content in (("images", None), ("labels", f"{number % 2} 0.5 0.5 0.4 0.4\n")):
            folder = tmp_path / part / "train"
            folder.mkdir(parents=True, exist_ok=True)
            if content is None:
                photo(number).save(folder / f"{number}.png")
            else:
                (folder / f"{number}.txt").write_text(content)
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\n")
    put(tmp_path / "labels" / "train" / "5.txt")
    data = load_detection(tmp_path)
    assert len(data.train) + len(data.holdout) + len(data.test) + len(data.skipped) in (23, 24)
    put(tmp_path / "data.yaml")
    with pytest.raises(InputError):
        load_detection(tmp_path)
