"""A thousand damaged LiteRT files: each gives a result or one clear error, and nothing hangs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from jobs.small import World, run

from mobilefit.errors import InputError
from mobilefit.jobs.model import file_info
from mobilefit.jobs.predict import Classifier, opened
from mobilefit.litert.graph import unpack
from mobilefit.runtime import RuntimeCrash, StopRule, Worker

MUTANTS = 1000
BRIEF = StopRule(
    warmup_runs=1, warmup_seconds=0.0, min_runs=1, min_seconds=0.0, max_seconds=0.0, spread=9.0
)


def structure(blob: bytes) -> np.ndarray:
    """The places of the bytes that are no weights: there a changed one does more harm."""
    weights = np.zeros(len(blob), bool)
    for buffer in unpack(blob).buffers:
        data = b"" if buffer.data is None else bytes(buffer.data)
        if len(data) >= 64:
            start = blob.index(data)
            weights[start : start + len(data)] = True
    return np.flatnonzero(~weights)


def mutants(blob: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Flipped bytes, zeroed runs and cut ends; of the first two, half among the structure."""
    random, places = np.random.default_rng(seed), structure(blob)
    for number in range(count):
        bad = bytearray(blob)
        at = places if number % 2 else np.arange(len(blob))
        kind = ("flip", "flip", "zero", "cut")[number // 2 % 4]
        if kind == "flip":
            for place in random.choice(at, 2 ** random.integers(0, 7)):
                bad[place] ^= random.integers(1, 256)
        elif kind == "zero":
            start, length = random.choice(at), 2 ** random.integers(2, 11)
            bad[start : start + length] = bytes(len(bad[start : start + length]))
        else:
            del bad[random.integers(0, len(bad)) :]
        yield bytes(bad)


def outcome(blob: bytes, path: Path, worker: Worker) -> str:
    """What becomes of a file in the hands of ``bench`` and of ``predict``, without their printing."""
    image = np.zeros((1, 32, 32, 3), np.float32)
    try:
        inspection = worker.inspect(blob)
        assert inspection.inputs and inspection.outputs
        samples = worker.time(blob, rule=BRIEF)
        assert all(ms > 0 for ms in samples)
        file_info(blob, path)
        worker.run(blob, image)
    except RuntimeCrash:
        return "crash"
    except InputError as error:
        assert error.message and "\n" not in error.message
        return "refused"
    return "ran"


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_no_mutant_does_harm(kind: str, world: World, tmp_path: Path) -> None:
    good, path = getattr(world, kind).read_bytes(), tmp_path / "mutant.tflite"
    seen: Counter[str] = Counter()
    with Worker(patience=10.0) as worker:
        assert outcome(good, path, worker) == "ran"
        for mutant in mutants(good, MUTANTS // 2, seed=len(kind)):
            seen[outcome(mutant, path, worker)] += 1
        assert outcome(good, path, worker) == "ran"
    assert min(seen["ran"], seen["refused"]) > MUTANTS // 20, seen
    assert seen["crash"] < MUTANTS // 20, seen  # most are found before a runtime is


def test_the_verbs_end_with_one_line(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, path = world.images / "red" / "000.png", tmp_path / "mutant.tflite"
    codes: Counter[int] = Counter()
    for mutant in mutants(world.int8.read_bytes(), 24, seed=1):
        path.write_bytes(mutant)
        code = run("predict", path, image)
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if line.startswith("mobilefit: ")]
        assert (code, len(lines)) in ((0, 0), (2, 1)) and bool(out) == (code == 0), err
        codes[code] += 1
    assert set(codes) == {0, 2}


def test_a_classifier_that_loads_gives_shares(world: World, tmp_path: Path) -> None:
    path = tmp_path / "mutant.tflite"
    for mutant in mutants(world.float32.read_bytes(), 40, seed=2):
        path.write_bytes(mutant)
        try:
            found = opened(path)
            assert isinstance(found, Classifier)
            shares = found.shares(found.run(np.zeros((1, 32, 32, 3), np.float32)))
        except InputError:
            continue
        assert shares.shape == (3,)
