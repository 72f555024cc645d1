from __future__ import annotations

import gzip
import json
import tarfile
import time
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


# ---- headers that are made to mislead


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header of the tar file; a size below 0 or from 8 GiB is written in base 256, as tar itself does."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"%011o\0" % size if 0 <= size < 8 << 30 else (
        bytes([0xFF if size < 0 else 0x80]) + (size % 256**11).to_bytes(11, "big"))  # fmt: skip
    return with_checksum(block)


def with_checksum(block: bytearray) -> bytes:
    block[148:156] = b"%06o\0 " % (256 + sum(block[:148]) + sum(block[156:512]))
    return bytes(block)


def pax(**records: str) -> bytes:
    text = b""
    for key, value in records.items():
        line = f" {key}={value}\n".encode()
        length = len(line) + 1
        while len(str(length)) + len(line) != length:
            length += 1
        text += str(length).encode() + line
    return header("pax", len(text), tarfile.XHDTYPE) + text + bytes(-len(text) % 512)


END = bytes(1024)
MISLEADING: dict[str, bytes] = {
    "size -512": header("0.png", -512) + END,
    "size -1024 after a good one": header("0.txt", 0) + header("0.png", -1024) + END,
    "a folder of size -512": header("folder", -512, tarfile.DIRTYPE) + END,
    "a link of size -512": header("link", -512, tarfile.SYMTYPE) + END,
    "a device of size -512": header("device", -512, tarfile.CHRTYPE) + END,
    "pax size -512": pax(size="-512") + header("0.png", 0) + END,
    "pax size of 5,000 digits": pax(size="9" * 5000) + header("0.png", 0) + END,
    "pax length of 5,000 digits": header("p", 6000, tarfile.XHDTYPE) + b"9" * 5000 + b" a=b\n" + bytes(1139) + END,
    "a long name of -512 bytes": header("name", -512, tarfile.GNUTYPE_LONGNAME) + header("0.png", 0) + END,
    "a long name of an exabyte": header("name", 1 << 60, tarfile.GNUTYPE_LONGNAME) + header("0.png", 0) + END,
    "pax of an exabyte": header("pax", 1 << 60, tarfile.XHDTYPE) + header("0.png", 0) + END,
    "an image of an exabyte": header("0.png", 1 << 60) + END,
    "a label of an exabyte": header("0.png", 0) + header("0.cls", 1 << 60) + END,
    "3,000 long names in a row": header("name", 5, tarfile.GNUTYPE_LONGNAME).ljust(1024, b"x") * 3000 + END,
    "3,000 pax headers in a row": pax(path="x") * 3000 + END,
    "a sparse map that is none": pax(**{"GNU.sparse.map": "a,b"}) + header("0.png", 0) + END,
    "a sparse file": header("0.png", 512, tarfile.GNUTYPE_SPARSE) + bytes(512) + END,
}


@pytest.mark.parametrize("case", MISLEADING)
def test_a_header_that_misleads_is_told_at_once(tmp_path: Path, case: str) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(MISLEADING[case])
    began = time.monotonic()
    with pytest.raises(BadShardError) as caught:
        indexed(path)
    assert time.monotonic() - began < 5 and len(str(caught.value)) < 300


LARGE: dict[str, tuple[list[Member], str]] = {
    "a megabyte of key": ([("k" * 1_000_000 + ".png", IMAGE), *samples(0, 2)], "a key of 1,000,000 bytes"),
    "two megabytes of a name that is no sample's": ([("k" * 2_000_000 + ".txt", b""), *samples(0, 2)], "a header of 2000"),
    "a label file of 2 MB": ([("0.png", IMAGE), ("0.cls", b"1" * 2_000_000)], "a label of 2,000,000 bytes"),
    "deep JSON": ([("0.png", IMAGE), ("0.json", b'{"label": ' + b"[" * 100_000)], "no JSON"),
    "a label of 5,000 digits": ([("0.png", IMAGE), ("0.json", b'{"label": ' + b"9" * 5000 + b"}")], "no JSON"),
    "a label of 90 digits": ([("0.png", IMAGE), ("0.json", b'{"label": ' + b"9" * 90 + b"}")], "count from 0"),
    "a list for a label": ([("0.png", IMAGE), ("0.json", b'{"label": [' + b"1," * 9999 + b"1]}")], "not a whole"),
}


@pytest.mark.parametrize("case", LARGE)
def test_what_is_too_large_is_told_in_a_short_line(tmp_path: Path, case: str) -> None:
    members, message = LARGE[case]
    with pytest.raises(BadShardError, match=message) as caught:
        indexed(write_tar(tmp_path / "0.tar", members))
    assert len(str(caught.value)) < 300


def test_mutated_shards_are_read_or_refused(tmp_path: Path) -> None:
    """A thousand damaged shards: bytes of headers and contents changed, blocks dropped, doubled, moved."""
    whole = write_tar(tmp_path / "0.tar", [*samples(0, 3), ("x" * 150 + ".png", IMAGE), ("x" * 150 + ".cls", b"1"),
                                           ("j.png", IMAGE), ("j.json", b'{"label": 1}')]).read_bytes()[:20 * 512]  # fmt: skip
    random, refused = np.random.default_rng(0), 0
    for _ in range(1000):
        blocks = [bytearray(whole[start : start + 512]) for start in range(0, len(whole), 512)]
        for _ in range(random.integers(1, 4)):
            place, kind = random.integers(len(blocks)), random.integers(5)
            if kind == 0:
                field, width = [(0, 100), (100, 8), (124, 12), (148, 8), (156, 1), (157, 100), (257, 8)][random.integers(7)]
                blocks[place][field : field + width] = random.bytes(width)
            elif kind == 1:
                blocks[place][124:136] = bytes([random.choice([0x80, 0xFF])]) + random.bytes(11)
            elif kind == 2:
                blocks[place][156] = ord(random.choice([*"0123456789gxLKSVMDNA"]))
            elif kind == 3:
                del blocks[place]
            else:
                blocks.insert(random.integers(len(blocks)), bytearray(blocks[place]))
            if blocks and kind < 3 and random.random() < 0.9:
                blocks[place] = bytearray(with_checksum(blocks[place]))
        path = tmp_path / "m.tar"
        path.write_bytes(b"".join(blocks) + (END if random.random() < 0.8 else b""))
        try:
            indexed(path)
        except BadShardError as error:
            refused += 1
            assert len(str(error)) < 1000
    assert refused > 300
