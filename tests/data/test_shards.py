from __future__ import annotations

import io
import json
import multiprocessing
import pickle
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mobilefit.data import ClassificationData, ImageSet, load, shard_cache, shard_remote
from mobilefit.data.shard_names import list_shards
from mobilefit.data.shard_remote import LOOK_TRIES
from mobilefit.data.shard_source import ShardSource
from mobilefit.data.shards import is_shards, load_shards, sharded_order
from mobilefit.errors import InputError

from .conftest import MakeFolder
from .shard_server import Member, Server, image_bytes, samples, serve, write_shards, write_tar

Indices = npt.NDArray[np.int64]
PAGE = (Path(__file__).parents[2] / "docs" / "shards.md").read_text()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOBILEFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shard_remote, "FIRST_PAUSE", 0.01)
    return tmp_path / "cache"


def loaded(source: object, *, seed: int = 0, holdout: float = 0.1) -> ClassificationData:
    return load_shards(str(source), seed=seed, holdout=holdout)


def source_of(image_set: ImageSet) -> ShardSource:
    source = image_set._source
    assert isinstance(source, ShardSource)
    return source


def keys(image_set: ImageSet) -> list[str]:
    return [name.partition("#")[2] for name in image_set.names]


def all_parts(data: ClassificationData) -> list[str]:
    return [key for part in (data.train, data.holdout, data.test) for key in keys(part)]


def test_a_folder_of_shards_has_parts_classes_and_labels(tmp_path: Path) -> None:
    write_shards(tmp_path / "train", 3, 10)
    write_shards(tmp_path / "val", 2, 5)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    data = loaded(tmp_path)
    assert data.name == tmp_path.name and data.classes == ("cat", "dog") and data.short_side == 20
    assert [len(part) for part in (data.train, data.holdout, data.test)] == [26, 4, 10]
    assert data.test.names[0] == f"{tmp_path}/val/shard-000.tar#00000"
    for part in (data.train, data.holdout, data.test):
        assert part.labels.tolist() == [int(key) % 2 for key in keys(part)]
        assert part.channels == 3
    assert sorted(keys(data.train) + keys(data.holdout)) == [f"{n:05d}" for n in range(30)]


def test_images_are_those_of_a_folder_with_the_same_files(
    tmp_path: Path, make_folder: MakeFolder
) -> None:
    root = make_folder({"a": 6, "b": 6}, size=(300, 280), ext="jpg")
    files = sorted(root.rglob("*.jpg"))
    members: list[Member] = []
    for number, file in enumerate(files):
        members.append((f"{number}.jpg", file.read_bytes()))
        members.append((f"{number}.json", json.dumps({"label": number // 6}).encode()))
    write_tar(tmp_path / "set.tar", members)
    folder, shard = load(root, holdout=0), loaded(tmp_path / "set.tar", holdout=0)
    assert shard.short_side == folder.short_side == 280
    for one, other in ((folder.train, shard.train), (folder.test, shard.test)):
        assert [files[int(key)] for key in keys(other)] == [Path(name) for name in one.names]
        everything = np.arange(len(one))
        np.testing.assert_array_equal(other.squares(everything, 64, 0.875), one.squares(everything, 64, 0.875))
        parts = [part.crops(everything, 48, lambda place, size: (place, 0, 200, size[1])) for part in (one, other)]
        np.testing.assert_array_equal(*parts)


def test_whole_shards_are_set_apart_if_there_are_enough(tmp_path: Path) -> None:
    write_shards(tmp_path, 20, 10)
    data = loaded(tmp_path, seed=3)
    groups = [set(source_of(part).groups.tolist()) for part in (data.train, data.holdout, data.test)]
    assert [len(found) for found in groups] == [14, 2, 4] and len(set.union(*groups)) == 20
    assert sorted(all_parts(data)) == [f"{n:05d}" for n in range(200)]
    again, other = loaded(tmp_path, seed=3), loaded(tmp_path, seed=4)
    assert again.test.names == data.test.names and other.test.names != data.test.names
    assert again.fingerprint == other.fingerprint == data.fingerprint


def test_images_are_set_apart_one_by_one_from_few_shards_or_shards_of_one_class(tmp_path: Path) -> None:
    write_shards(tmp_path / "few", 2, 50)
    data = loaded(tmp_path / "few")
    assert len(data.test) == 20 and np.bincount(data.test.labels).tolist() == [10, 10]
    for number in range(10):
        of_one_class = [(f"{n}.{ext}", image_bytes(n) if ext == "png" else f"{number}".encode())
                        for n in range(number * 10, number * 10 + 10) for ext in ("png", "cls")]  # fmt: skip
        write_tar(tmp_path / "sorted" / f"{number}.tar", of_one_class)
    data = loaded(tmp_path / "sorted")
    assert np.bincount(data.test.labels).tolist() == [2] * 10
    assert np.bincount(data.holdout.labels).tolist() == [1] * 10


def test_the_fingerprint_is_of_the_content_and_not_of_its_place(tmp_path: Path) -> None:
    write_shards(tmp_path / "a", 2, 10)
    write_shards(tmp_path / "b", 2, 10)
    with serve(tmp_path / "a") as server:
        prints = [loaded(place).fingerprint
                  for place in (tmp_path / "a", tmp_path / "b", f"{server.url}/shard-{{000..001}}.tar")]  # fmt: skip
    assert len(set(prints)) == 1
    write_tar(tmp_path / "b" / "shard-001.tar", samples(11, 10))
    assert loaded(tmp_path / "b").fingerprint != prints[0]


def test_a_second_load_scans_and_fetches_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "a", 3, 10)
    with serve(tmp_path / "a") as server:
        first = loaded(f"{server.url}/shard-{{000..002}}.tar")
        for path in (cache / "shards").glob("*.tar"):
            path.unlink()
        monkeypatch.setattr(shard_cache, "scan", None)
        again = loaded(f"{server.url}/shard-{{000..002}}.tar")
        assert all_parts(again) == all_parts(first) and again.fingerprint == first.fingerprint
        assert [server.sent(f"shard-00{n}.tar") for n in range(3)] == [1, 1, 1]


def test_all_bad_and_all_missing_shards_are_named_at_once(tmp_path: Path) -> None:
    write_shards(tmp_path, 6, 4)
    for number in (1, 4):
        (tmp_path / f"shard-00{number}.tar").write_bytes(b"x" * 1000)
    with pytest.raises(InputError, match=r"2 of 6 shards .*shard-001\.tar is no tar.*shard-004\.tar is no"):
        loaded(tmp_path)
    message = r"5 of 11 shards cannot be used: .*-006\.tar: No such file.*-008\.tar.* and 2 more; check the names"
    with pytest.raises(InputError, match=message):
        loaded(f"{tmp_path}/shard-{{000..010}}.tar")
    with pytest.raises(InputError, match=r"cannot read .*shard-008\.tar: No such file.*; check the names"):
        loaded(f"{tmp_path}/shard-008.tar")


def test_a_truncated_shard_is_refused_by_name(tmp_path: Path) -> None:
    write_shards(tmp_path, 3, 4)
    path = tmp_path / "shard-002.tar"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"shard-002\.tar is .*cut short.*; write bad shards anew or leave"):
        loaded(tmp_path)


def label(value: int, key: str = "x") -> list[Member]:
    return [(f"{key}.png", image_bytes(value)), (f"{key}.cls", str(value).encode())]


def test_labels_that_have_no_class_are_named(tmp_path: Path) -> None:
    write_shards(tmp_path, 2, 10)
    write_tar(tmp_path / "shard-002.tar", label(3))
    with pytest.raises(InputError, match=r"no image has the label 2, and .*shard-002\.tar#x has 3; labels"):
        loaded(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\nfox\n")
    with pytest.raises(InputError, match=r"shard-002\.tar#x has the label 3, and the 3 named classes have 0"):
        loaded(tmp_path)


def test_classes_with_too_few_images_and_one_class_alone_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path / "a", 2, 10)
    write_tar(tmp_path / "a" / "shard-002.tar", label(2))
    with pytest.raises(InputError, match=r"class '2' \(label 2\) has 1 images in its train part, and needs 3"):
        loaded(tmp_path / "a")
    (tmp_path / "a" / "classes.txt").write_text("cat\ndog\nfox\nowl\n")
    with pytest.raises(InputError, match=r"class 'fox' .* needs 3 \(and 1 classes more have too few\)"):
        loaded(tmp_path / "a")
    write_shards(tmp_path / "b" / "train", 2, 10)
    write_tar(tmp_path / "b" / "val" / "0.tar", label(1))
    with pytest.raises(InputError, match=r"class '0' \(label 0\) has 0 images in its test part, and needs 1"):
        loaded(tmp_path / "b")
    write_shards(tmp_path / "c", 2, 10, classes=1)
    with pytest.raises(InputError, match="holds one class alone, '0'"):
        loaded(tmp_path / "c")


def test_remote_shards_that_do_not_fit_the_cache_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "a", 4, 10)
    monkeypatch.setenv("MOBILEFIT_SHARD_CACHE_GB", "0.0001")
    assert len(loaded(tmp_path / "a").train) > 0  # local ones need none
    with (
        serve(tmp_path / "a") as server,
        pytest.raises(InputError, match=r"4 shards are read at a time, .*set MOBILEFIT_SHARD_CACHE_GB to 1"),
    ):
        loaded(f"{server.url}/shard-{{000..003}}.tar")


def with_bad(folder: Path, bad: set[int], count: int = 40, each: int = 20) -> Path:
    for first in range(0, count, each):
        members = [
            (name, b"no image" if name.endswith("png") and int(name[:5]) in bad else content)
            for name, content in samples(first, each)
        ]
        write_tar(folder / "train" / f"{first:03d}.tar", members)
    write_shards(folder / "val", 1, 4)
    return folder


def test_a_bad_image_is_replaced_by_the_next_of_its_class_and_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = loaded(with_bad(tmp_path, {7, 9, 38}), holdout=0)
    source = source_of(data.train)
    for bad, instead in ((7, 11), (9, 11), (38, 20)):  # the next of its class and shard, then the first
        for _ in range(2):
            assert source.working(bad).tobytes() == source.working(instead).tobytes()
            np.testing.assert_array_equal(source.square(bad, 20, 1.0), source.square(instead, 20, 1.0))
    lines = capsys.readouterr().err.splitlines()
    assert source.replaced.tolist() == [7, 9, 38] and len(lines) == 3
    assert lines[0] == (f"{tmp_path}/train/000.tar#00007 is a bad image (not an image): another image "
                        "of its class takes its place")  # fmt: skip


def test_a_stand_in_is_never_of_another_part(tmp_path: Path) -> None:
    data = loaded(with_bad(tmp_path, {7, 9}), holdout=0.5)
    source = source_of(data.train)
    own = {image.tobytes() for image in map(source.working, range(len(data.train)))}
    held = source_of(data.holdout)
    assert not own & {held.working(place).tobytes() for place in range(len(data.holdout))}


def test_too_many_bad_images_are_refused_at_once_or_when_they_are_met(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"5 of 36 images .* looked at are bad, the first one .*#00000;"):
        loaded(with_bad(tmp_path / "a", {0, 1, 2, 3, 5}))
    not_looked_at = {2, 4, 6, 8, 10, 12, 14}
    data = loaded(with_bad(tmp_path / "b", not_looked_at, count=60, each=30), holdout=0)
    with pytest.raises(InputError, match=r"7 of 60 images turned out bad, the last: .*; mend the shards; at most 10%"):
        data.train.squares(np.arange(60), 8, 1.0)


class _Reading(torch.utils.data.Dataset[list[int]]):
    """Batches of an order: which images they are, by their pixels."""

    def __init__(self, image_set: ImageSet, batches: Indices) -> None:
        self.image_set, self.batches = image_set, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> list[int]:
        source_of(self.image_set).ahead(self.batches[index:].reshape(-1)[:40])
        pixels = self.image_set.crops(self.batches[index], 20, lambda _, size: (0, 0, 20, 20))
        return [int.from_bytes(image.tobytes()[:8], "big") for image in pixels]


def read_by_workers(image_set: ImageSet, batches: Indices, workers: int = 2) -> list[int]:
    loader = DataLoader(_Reading(image_set, batches), batch_size=None, num_workers=workers)
    return [image for batch in loader for image in batch]


def identities(count: int) -> list[int]:
    found = []
    for number in range(count):
        with Image.open(io.BytesIO(image_bytes(number))) as image:
            found.append(int.from_bytes(np.asarray(image.crop((0, 0, 20, 20))).tobytes()[:8], "big"))
    return found


def test_workers_tell_of_a_bad_image_once_together(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = loaded(with_bad(tmp_path, {7}), holdout=0)
    for _ in range(2):
        read_by_workers(data.train, np.full((6, 4), 7))
    lines = [line for line in capfd.readouterr().err.splitlines() if "bad image" in line]
    assert 1 <= len(lines) <= 2 and data.train.replaced == (data.train.names[7],)


SHARDS, EACH, BATCH = 12, 10, 20
URLS = f"shard-{{000..{SHARDS - 1:03d}}}.tar"


def batches_of(image_set: ImageSet, *, epoch: int, ranks: int = 1) -> Indices:
    random = np.random.default_rng([1, epoch])
    order = sharded_order(source_of(image_set).groups, random, batch_size=BATCH, ranks=ranks)
    return order.reshape(-1, BATCH)


def _rank(url: str, rank: int) -> list[int]:
    """One of two processes, which reads its half of an epoch by two workers."""
    torch.set_num_threads(1)
    data = loaded(f"{url}/set.json", holdout=0)
    mine = batches_of(data.train, epoch=0, ranks=2).reshape(-1, 2, BATCH // 2)[:, rank]
    return read_by_workers(data.train, mine)


@pytest.fixture
def bad_server(tmp_path: Path) -> Iterator[Server]:
    write_shards(tmp_path / "served", SHARDS, EACH)
    write_shards(tmp_path / "served" / "val", 1, 4)
    manifest = {"train": [URLS], "val": ["val/shard-000.tar"]}
    (tmp_path / "served" / "set.json").write_text(json.dumps(manifest))
    behaviour = {"drop_every": 3, "refuse_every": 5, "faults": LOOK_TRIES - 1}
    with serve(tmp_path / "served", **behaviour) as server:
        yield server


def test_an_epoch_over_a_bad_connection_has_every_image_once_over_ranks_and_workers(
    bad_server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Room for ten of thirteen shards, so that some are fetched again while others are read.
    size = (bad_server.folder / "shard-000.tar").stat().st_size
    monkeypatch.setenv("MOBILEFIT_SHARD_CACHE_GB", str(10 * size / 1e9))
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as ranks:
        found = list(ranks.map(_rank, [bad_server.url] * 2, range(2), timeout=240))
    expected = identities(SHARDS * EACH)
    assert len(set(expected)) == SHARDS * EACH  # each image can be told by its pixels
    assert sorted(found[0] + found[1]) == sorted(expected)
    assert len(found[0]) == len(found[1])
    statuses = [status for _, status, _ in bad_server.requests]
    assert statuses.count(503) > 5 and bad_server.bodies > SHARDS


def test_a_resumed_epoch_sees_the_rest_of_the_same_images(bad_server: Server) -> None:
    data = loaded(f"{bad_server.url}/set.json", holdout=0)
    batches = batches_of(data.train, epoch=7)
    whole = read_by_workers(data.train, batches)
    again = loaded(f"{bad_server.url}/set.json", holdout=0)
    rest = batches_of(again.train, epoch=7)[2:]
    assert read_by_workers(again.train, rest, workers=1) == whole[2 * BATCH :]


def test_a_source_can_be_sent_to_another_process(tmp_path: Path) -> None:
    write_shards(tmp_path, 2, 10)
    source = source_of(loaded(tmp_path).train)
    before = source.working(3).tobytes()
    assert pickle.loads(pickle.dumps(source)).working(3).tobytes() == before


def test_a_forked_process_reads_whatever_its_parents_threads_were_doing(tmp_path: Path) -> None:
    write_shards(tmp_path, 2, 10)
    source = source_of(loaded(tmp_path).train)
    child = multiprocessing.get_context("fork").Process(target=source.working, args=(3,), daemon=True)
    with source._reader._opened._lock:  # as by a thread that opens a shard
        child.start()
    child.join(60)
    assert child.exitcode == 0


def test_the_pages_script_writes_shards_and_its_addresses_name_some(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder({"cat": 6, "dog": 8}, "train", ext="jpg")
    monkeypatch.chdir(root.rename(root.with_name("photos")).parent)
    script = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(script) == 1
    exec(script[0], {})
    data = loaded("shards")
    assert data.classes == ("cat", "dog") and len(all_parts(data)) == 14
    sources = re.findall(r"^    mobilefit train (\S+) ", PAGE, re.M)
    assert len(sources) == 3 and all(is_shards(source.strip("'")) for source in sources)
    assert list_shards(sources[1].strip("'")).parts["test"][-1] == "http://host/imagenet-val-06.tar"
