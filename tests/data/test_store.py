"""Pixels beside the process's memory: the same as in it, whoever asks."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from collections import namedtuple
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mobilefit.data.store import Kept, Store

SHAPES = [(4, 5, 3), (1, 1, 3), (7, 2), (30, 20, 3)]


def images() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, shape, np.uint8) for shape in SHAPES]


def filled(store: Store) -> list[Kept]:
    found = [store.keep(image) for image in images()]
    assert all(found)
    return found  # type: ignore[return-value]


def same(kept: list[Kept]) -> bool:
    return all(np.array_equal(one.pixels(), image) for one, image in zip(kept, images(), strict=True))


def test_what_is_kept_comes_back_any_number_of_times_in_any_order() -> None:
    kept = filled(Store(1 << 20))
    assert same(kept) and same(kept)
    with ThreadPoolExecutor(8) as pool:
        for number, pixels in zip([3, 0, 2, 1] * 50, pool.map(lambda n: kept[n].pixels(), [3, 0, 2, 1] * 50)):
            assert np.array_equal(pixels, images()[number])


def test_without_positioned_reads_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pread")  # as on Windows
    kept = filled(Store(1 << 20))
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: same(kept), range(20)))


def test_pixels_that_do_not_lie_in_order() -> None:
    image = images()[3]
    kept = Store(1 << 20).keep(image[::-1, ::2])
    assert kept is not None and np.array_equal(kept.pixels(), image[::-1, ::2])


def test_there_is_no_more_room_than_was_given() -> None:
    store = Store(60 + 3 + 14)
    first, second, third, _ = images()
    assert store.keep(first) and store.keep(second)
    assert store.keep(images()[3]) is None
    last = store.keep(third)  # a smaller one still fits
    assert last is not None and np.array_equal(last.pixels(), third)
    assert store.keep(second) is None


def test_half_of_what_is_free_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000, 874, 126))
    store = Store(1 << 20)
    first, second, *_ = images()
    assert store.keep(first) and store.keep(second) and not store.keep(first)


def test_a_full_disk_ends_keeping_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(1 << 20)
    kept = filled(store)
    file = store._file

    class Full:
        def __getattr__(self, name: str) -> object:
            return getattr(file, name)

        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_file", Full())
    assert store.keep(images()[0]) is None
    monkeypatch.setattr(store, "_file", file)
    assert store.keep(images()[0]) is None and same(kept)


def test_another_process_gets_the_pixels_by_fork_and_by_pickle() -> None:
    kept = filled(Store(1 << 20))
    again = pickle.loads(pickle.dumps(kept))
    assert same(again)
    assert again[0].store is again[3].store is not kept[0].store
    assert again[0].store.keep(images()[0]) is not None and same(again)
    for way in ("fork", "spawn"):
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(way)) as pool:
            assert list(pool.map(same, [kept] * 4, timeout=240)) == [True] * 4, way


def test_nothing_is_left_behind_even_by_a_killed_process(tmp_path: Path) -> None:
    script = (
        "import numpy, os, signal; from mobilefit.data.store import Store; s = Store(1 << 20)\n"
        "assert s.keep(numpy.zeros((100, 100, 3), numpy.uint8)); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert done.returncode == -9 and not list(tmp_path.iterdir())
