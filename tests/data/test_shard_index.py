from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mobilefit.data.shard_index import BadShardError, ShardIndex, read_index, scan
from mobilefit.data.shard_remote import Version, look

from .shard_server import Member, image_bytes, samples, write_tar

IMAGE = image_bytes(0)


def indexed(path: Path) -> ShardIndex:
    with path.open("rb") as file:
        return scan(file, look(str(path)))


def test_images_and_labels_are_those_that_webdataset_reads(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    members: list[Member] = [
        ("a/first.jpg", image_bytes(1, ext="jpg")), ("a/first.cls", b" 7\n"), ("a/first.txt", b"x"),
        ("a.b/second.JPEG", image_bytes(2, ext="jpg")), ("a.b/second.json", b'{"label": 3, "x": 1}'),
        ("third.seg.png", b"no image"), ("third.png", image_bytes(3)), ("third.cls", b"0"),
        ("fourth.json", b'{"label": 9}'), ("fourth.webp", image_bytes(4, ext="webp")), ("fourth.cls", b"1"),
        ("x" * 120 + "/" + "y" * 120 + ".png", image_bytes(5)), ("x" * 120 + "/" + "y" * 120 + ".cls", b"12"),
        ("a/first2.png", image_bytes(6)), ("a/first2.cls", b"2"), ("._hidden.png", b"resource fork"),
        ("about.json", b'{"made by": "hand"}'),
    ]  # fmt: skip
    path = write_tar(tmp_path / "0.tar", members)
    content = path.read_bytes()
    index = indexed(path)
    mine = [
        (key.decode(), content[offset : offset + size], label)
        for key, offset, size, label in zip(index.keys, index.offsets, index.sizes, index.labels)
    ]
    theirs = []
    for sample in webdataset.WebDataset(str(path), shardshuffle=False):
        if sample["__key__"] == "about":
            continue
        image = next(sample[ext] for ext in ("jpg", "jpeg", "png", "webp") if ext in sample)
        label = sample["cls"] if "cls" in sample else json.loads(sample["json"])["label"]
        theirs.append((sample["__key__"], image, int(label)))
    assert mine == theirs and len(mine) == 6


def test_members_of_a_key_need_not_be_neighbours(tmp_path: Path) -> None:
    members = sorted(samples(0, 5), key=lambda member: member[0].rpartition(".")[2])
    assert members[0][0].endswith("cls") and members[-1][0].endswith("png")
    index = indexed(write_tar(tmp_path / "0.tar", members))
    assert index.labels.tolist() == [0, 1, 0, 1, 0]


def test_folders_and_links_are_no_images(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", samples(0, 2))
    with tarfile.open(path, "a") as archive:
        for name, kind in (("folder.png", tarfile.DIRTYPE), ("link.png", tarfile.SYMTYPE)):
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "00000.png"
            archive.addfile(header)
    assert indexed(path).keys.tolist() == [b"00000", b"00001"]


def test_an_index_that_is_kept_is_read_back_the_same(tmp_path: Path) -> None:
    index = indexed(write_tar(tmp_path / "0.tar", samples(0, 40)))
    index.write(tmp_path / "0.npz")
    again = read_index(tmp_path / "0.npz")
    assert again is not None and again.version == index.version and again.size == index.size
    for name in ("keys", "offsets", "sizes", "labels", "sides"):
        np.testing.assert_array_equal(getattr(again, name), getattr(index, name))
    assert index.sides.tolist() == [20] * 16 and index.looked_at[[0, -1]].tolist() == [0, 39]


def test_a_damaged_index_is_none(tmp_path: Path) -> None:
    indexed(write_tar(tmp_path / "0.tar", samples(0, 4))).write(tmp_path / "0.npz")
    (tmp_path / "0.npz").write_bytes((tmp_path / "0.npz").read_bytes()[:-100])
    assert read_index(tmp_path / "0.npz") is None and read_index(tmp_path / "1.npz") is None


BAD_MEMBERS: dict[str, tuple[list[Member], str]] = {
    "no label": ([("0.png", IMAGE)], "has no label for the key '0'"),
    "no label in the JSON": ([("0.png", IMAGE), ("0.json", b'{"class": 1}')], "no label for the key '0'"),
    "no JSON": ([("0.png", IMAGE), ("0.json", b"{")], "the key '0' the label '\\(no JSON\\)'"),
    "text": ([("0.png", IMAGE), ("0.cls", b"cat\n")], "for the key '0' the label 'cat', not a whole"),
    "a fraction": ([("0.png", IMAGE), ("0.json", b'{"label": 1.5}')], "label 1.5, not a whole number"),
    "true": ([("0.png", IMAGE), ("0.json", b'{"label": true}')], "label True, not a whole number"),
    "below 0": ([("0.png", IMAGE), ("0.cls", b"-1")], "key '0' the label -1; labels count from 0"),
    "huge": ([("0.png", IMAGE), ("0.cls", b"9" * 30)], "labels count from 0"),
    "a label alone": ([*samples(0, 2), ("x.cls", b"1")], "a label but no image for the key 'x'"),
    "two images": ([*samples(7, 1), ("00007.jpg", IMAGE)], "two images for the key '00007': .png and .jpg"),
    "twice": (samples(1, 2) + samples(2, 2), r"holds the key '00002' twice \(two members \.png\)"),
    "no images": ([("readme.txt", b"x")], r"holds no image \(KEY\.jpg"),
    "nothing": ([], "holds no image"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_MEMBERS)
def test_a_bad_sample_is_told_with_its_key(tmp_path: Path, case: str) -> None:
    members, message = BAD_MEMBERS[case]
    with pytest.raises(BadShardError, match=message):
        indexed(write_tar(tmp_path / "0.tar", members))


BAD_BYTES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", "cut short: empty file"),
    "text": (lambda content: b"hello\n" * 500, "is no tar file"),
    "compressed": (gzip.compress, "is compressed"),
    "cut in an image": (lambda content: content[:1300], "cut short"),
    "cut in a header": (lambda content: content[: 2048 + 100], "cut short or damaged after 2048 bytes"),
    "cut between members": (lambda content: content[:2048], "cut short or damaged after 2048 bytes"),
    "damaged header": (lambda content: content[:2048] + b"x" * 512 + content[2560:], "after 2048 bytes"),
}


@pytest.mark.parametrize("case", BAD_BYTES)
def test_a_shard_that_is_no_whole_tar_file_is_told(tmp_path: Path, case: str) -> None:
    path = write_tar(tmp_path / "0.tar", samples(0, 4))
    with tarfile.open(path) as archive:
        assert [member.offset for member in archive][:3] == [0, 2048, 3072]
    damage, message = BAD_BYTES[case]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadShardError, match=message):
        indexed(path)


def test_an_unknown_version_is_kept_as_unknown(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", samples(0, 2))
    with path.open("rb") as file:
        scan(file, Version(size=None, tag="")).write(tmp_path / "0.npz")
    kept = read_index(tmp_path / "0.npz")
    assert kept is not None and kept.version == Version(size=None, tag="")
    assert kept.size == path.stat().st_size
