"""The race: who is ahead, who goes on, and that it can be interrupted anywhere."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilefit.arch import FAMILY
from mobilefit.errors import InputError
from mobilefit.pipeline.candidates import Candidate
from mobilefit.pipeline.race import (
    HOPELESS,
    LOG,
    Judged,
    Race,
    Rung,
    Standing,
    standings,
    to_dict,
)
from mobilefit.runs import read_jsonl

SPEC = FAMILY["mobilenet_v3_small"].classes(3)
SIZES = (32, 48, 64, 80, 96)
ENTRANTS = [Candidate(spec=SPEC.resolution(size), latency_ms=size / 50) for size in SIZES]
RUNG = Rung(name="rung_1", survivors=2, what="short trainings")
HELD_OUT = 40


def judged(mean: float, *, wobble: float = 0.0, count: int = HELD_OUT, seed: int = 0) -> Judged:
    """Losses around a mean: those of two candidates differ by ``wobble`` from image to image."""
    hard = np.linspace(0, 1, count)
    noise = np.random.default_rng(seed).normal(0, 1, count)
    losses = mean + hard - hard.mean() + wobble * (noise - noise.mean())
    return Judged(losses=losses.astype(np.float32), score=1 / (1 + mean), seconds=1.0)


def by_size(candidate: Candidate) -> Judged:
    """The third is the best, then the fourth; what a candidate gets depends on itself alone."""
    size = candidate.spec.image_shape[0]
    return judged(0.5 + 0.01 * abs(size - 66), wobble=0.2, seed=size)


def summary(ranking: Sequence[Standing]) -> list[tuple[str, float, float, float, bool]]:
    return [
        (s.candidate.name, float(s.judged.losses.sum()), s.behind, s.error, s.survives) for s in ranking
    ]


# ---- standings


def test_the_lowest_loss_is_ahead() -> None:
    ranking = standings([(c, by_size(c)) for c in ENTRANTS], survivors=2)
    assert [s.candidate.spec.image_shape[0] for s in ranking] == [64, 80, 48, 96, 32]
    assert [s.survives for s in ranking] == [True, True, False, False, False]
    assert ranking[0].behind == ranking[0].error == 0.0
    behind = [s.behind for s in ranking]
    assert behind == pytest.approx([0, 0.12, 0.16, 0.28, 0.32], abs=1e-6)


def test_the_error_is_of_the_paired_difference() -> None:
    best, other = judged(0.5, wobble=0.1, seed=1), judged(0.6, wobble=0.1, seed=2)
    ranking = standings([(ENTRANTS[0], other), (ENTRANTS[1], best)], survivors=2)
    differences = other.losses.astype(np.float64) - best.losses
    assert ranking[1].behind == pytest.approx(differences.mean())
    assert ranking[1].error == pytest.approx(differences.std(ddof=1) / np.sqrt(HELD_OUT))
    assert ranking[1].error < other.losses.std() / np.sqrt(HELD_OUT)  # the images' spread is not in it


def test_of_equals_the_faster_is_ahead_then_the_first() -> None:
    slow, fast, also = (
        Candidate(spec=SPEC.resolution(size), latency_ms=ms) for size, ms in ((64, 2.0), (48, 1.0), (40, 1.0))
    )
    same = judged(0.5)
    ranking = standings([(slow, same), (fast, same), (also, same)], survivors=1)
    assert [s.candidate for s in ranking] == [fast, also, slow]
    assert [s.survives for s in ranking] == [True, False, False]


@pytest.mark.parametrize("errors_behind", [0.5, 1.5])
def test_who_is_hopeless_is_out_however_many_may_go_on(errors_behind: float) -> None:
    wobble = judged(0.5, wobble=0.3, seed=1).losses - judged(0.5).losses
    error = float(wobble.std(ddof=1) / np.sqrt(HELD_OUT))
    behind = errors_behind * HOPELESS * error
    late = judged(0.5 + behind, wobble=0.3, seed=1)
    ranking = standings([(ENTRANTS[0], judged(0.5)), (ENTRANTS[1], late)], survivors=5)
    assert ranking[1].behind / ranking[1].error == pytest.approx(errors_behind * HOPELESS, rel=1e-4)
    assert ranking[1].survives == (errors_behind < 1)


def test_one_number_has_no_error_and_nobody_is_hopeless() -> None:
    """A detector is judged by one number: its rank is all there is to go by."""
    ranking = standings(
        [(c, judged(loss, count=1)) for c, loss in zip(ENTRANTS, (0.9, 0.2, 0.3))], survivors=2
    )
    assert [s.candidate for s in ranking] == [ENTRANTS[1], ENTRANTS[2], ENTRANTS[0]]
    assert [s.error for s in ranking] == [0.0, 0.0, 0.0]  # JSON has no NaN
    assert [s.survives for s in ranking] == [True, True, False]


def test_the_best_alone_always_goes_on() -> None:
    (alone,) = standings([(ENTRANTS[0], judged(3.0))], survivors=1)
    assert alone.survives and alone.behind == 0.0


def test_a_standing_in_the_record() -> None:
    pretrained = Candidate(spec=SPEC.resolution(64), latency_ms=1.25, origin="family", weights="timm")
    ranking = standings([(pretrained, judged(0.5)), (ENTRANTS[0], judged(0.75))], survivors=1)
    assert to_dict(ranking[1]) == {
        "name": "mobilenet_v3_small 32 px", "origin": "family", "spec_id": ENTRANTS[0].spec.id,
        "latency_ms": 0.64, "pretrained": False, "score": 1 / 1.75, "loss": pytest.approx(0.75),
        "behind": pytest.approx(0.25), "error": pytest.approx(0, abs=1e-7), "survives": False,
    }  # fmt: skip
    assert to_dict(ranking[0])["pretrained"]


# ---- a rung


@dataclass
class Counting:
    """A judge that remembers whom it judged, and breaks down at the k-th."""

    stop_at: int | None = None
    names: list[str] = field(default_factory=list)

    def __call__(self, candidate: Candidate) -> Judged:
        if len(self.names) == self.stop_at:
            raise KeyboardInterrupt
        self.names.append(candidate.name)
        return by_size(candidate)


def lines() -> tuple[list[str], Callable[[str], None]]:
    text: list[str] = []
    return text, text.append


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, float, float, float, bool]]:
    race = Race(tmp_path_factory.mktemp("undisturbed"), lambda line: None)
    return summary(race.rung(RUNG, ENTRANTS, by_size))


def test_rows_and_losses_are_written_as_they_come(tmp_path: Path) -> None:
    text, log = lines()
    race, folder = Race(tmp_path / "race", log), tmp_path / "race"
    assert not folder.exists()
    race.rung(RUNG, ENTRANTS, by_size)
    rows = read_jsonl(folder / LOG)
    assert [row["name"] for row in rows] == [c.name for c in ENTRANTS]
    for row, candidate in zip(rows, ENTRANTS, strict=True):
        losses = np.load(folder / "rung_1" / f"{candidate.slug}.npy")
        assert np.array_equal(losses, by_size(candidate).losses)
        assert row == {
            "rung": "rung_1", "name": candidate.name, "spec_id": candidate.spec.id, "origin": "family",
            "latency_ms": candidate.latency_ms, "score": by_size(candidate).score,
            "loss": pytest.approx(float(losses.mean())), "seconds": 1.0,
        }  # fmt: skip
    assert len(text) == len(ENTRANTS)
    assert text[2].startswith("short trainings, 3/5: mobilenet_v3_small 64 px, 1.28 ms, ")
    assert text[2].endswith("loss 0.520")


@pytest.mark.parametrize("stop_at", range(len(ENTRANTS)))
def test_it_goes_on_after_an_interruption_anywhere(
    stop_at: int, tmp_path: Path, undisturbed: list[Any]
) -> None:
    first, second, third = Counting(stop_at), Counting(), Counting()
    with pytest.raises(KeyboardInterrupt):
        Race(tmp_path, lambda line: None).rung(RUNG, ENTRANTS, first)
    ranking = Race(tmp_path, lambda line: None).rung(RUNG, ENTRANTS, second)
    assert first.names + second.names == [c.name for c in ENTRANTS]  # each once, the missing ones alone
    assert len(first.names) == stop_at
    assert summary(ranking) == undisturbed
    assert summary(Race(tmp_path, lambda line: None).rung(RUNG, ENTRANTS, third)) == undisturbed
    assert third.names == []


@pytest.mark.parametrize("cut", [1, 30, 100])
def test_a_half_written_line_is_judged_again(cut: int, tmp_path: Path, undisturbed: list[Any]) -> None:
    """The power failed while the row of the third was written: its losses are there, its row is not."""
    with pytest.raises(KeyboardInterrupt):
        Race(tmp_path, lambda line: None).rung(RUNG, ENTRANTS, Counting(3))
    log = tmp_path / LOG
    log.write_bytes(log.read_bytes()[:-cut])
    judge = Counting()
    ranking = Race(tmp_path, lambda line: None).rung(RUNG, ENTRANTS, judge)
    whole = cut == 1  # the line break alone is missing
    assert judge.names == [c.name for c in ENTRANTS[3 if whole else 2 :]]
    assert summary(ranking) == undisturbed
    assert len(read_jsonl(log)) == len(ENTRANTS)  # the torn line stands apart from the next one


@pytest.mark.parametrize("damage", ["missing", "empty", "torn", "no array"])
def test_losses_that_cannot_be_read_are_judged_again(
    damage: str, tmp_path: Path, undisturbed: list[Any]
) -> None:
    Race(tmp_path, lambda line: None).rung(RUNG, ENTRANTS, by_size)
    path = tmp_path / "rung_1" / f"{ENTRANTS[1].slug}.npy"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "torn": path.read_bytes()[:-8], "no array": b"junk" * 99}[damage])
    judge = Counting()
    ranking = Race(tmp_path, lambda line: None).rung(RUNG, ENTRANTS, judge)
    assert judge.names == [ENTRANTS[1].name]
    assert summary(ranking) == undisturbed
    assert summary(Race(tmp_path, lambda line: None).rung(RUNG, ENTRANTS, Counting(0))) == undisturbed


def test_a_network_of_the_same_name_is_judged_for_itself(tmp_path: Path) -> None:
    Race(tmp_path, lambda line: None).rung(RUNG, ENTRANTS, by_size)
    narrower = SPEC.resolution(64).width(0.5)
    renamed = Candidate(spec=type(narrower)(**{**vars(narrower), "name": SPEC.name}), latency_ms=1.0)
    assert renamed.name == ENTRANTS[2].name
    judge = Counting()
    Race(tmp_path, lambda line: None).rung(RUNG, [renamed], judge)
    assert judge.names == [renamed.name]


def test_each_rung_is_judged_for_itself(tmp_path: Path) -> None:
    race, judge = Race(tmp_path, lambda line: None), Counting()
    first = race.rung(RUNG, ENTRANTS, judge)
    going_on = [s.candidate for s in first if s.survives]
    race.rung(Rung(name="rung_2", survivors=1), going_on, judge)
    assert judge.names[len(ENTRANTS) :] == [c.name for c in going_on]
    assert [row["rung"] for row in race.rows] == ["rung_1"] * 5 + ["rung_2"] * 2


@pytest.mark.parametrize("order", [0, 1, 2])
def test_results_may_come_in_any_order(order: int, tmp_path: Path, undisturbed: list[Any]) -> None:
    def shuffled(judge: Callable[[Candidate], Any], items: Sequence[Candidate]) -> Iterator[tuple[int, Any]]:
        indices = list(range(len(items)))
        random.Random(order).shuffle(indices)
        assert indices != sorted(indices)
        for index in indices:
            yield index, judge(items[index])

    race = Race(tmp_path, lambda line: None)
    assert summary(race.rung(RUNG, ENTRANTS, by_size, run=shuffled)) == undisturbed
    assert summary(Race(tmp_path, lambda line: None).rung(RUNG, ENTRANTS, Counting(0))) == undisturbed


def test_workers_get_the_missing_ones_alone(tmp_path: Path, undisturbed: list[Any]) -> None:
    with pytest.raises(KeyboardInterrupt):
        Race(tmp_path, lambda line: None).rung(RUNG, ENTRANTS, Counting(2))
    batches = []

    def backwards(judge: Callable[[Candidate], Any], items: Sequence[Candidate]) -> Iterator[tuple[int, Any]]:
        batches.append([c.name for c in items])
        return reversed([(i, judge(c)) for i, c in enumerate(items)])

    ranking = Race(tmp_path, lambda line: None).rung(RUNG, ENTRANTS, by_size, run=backwards)
    assert batches == [[c.name for c in ENTRANTS[2:]]]
    assert summary(ranking) == undisturbed


@pytest.mark.parametrize(
    "row", ["5", "null", "{}", json.dumps({"rung": "rung_1", "name": [], "spec_id": "a", "score": 0.5, "seconds": 1.0}),
            json.dumps({"rung": "rung_1", "name": "a", "spec_id": "a", "score": float("nan"), "seconds": 1.0})]
)  # fmt: skip
def test_a_row_that_is_none_of_the_races_is_named(row: str, tmp_path: Path) -> None:
    Race(tmp_path, lambda line: None).rung(RUNG, ENTRANTS[:2], by_size)
    with (tmp_path / LOG).open("a") as file:
        file.write(row + "\n")
    with pytest.raises(InputError, match=r"race\.jsonl, row 3: "):
        Race(tmp_path, lambda line: None)


def broken_losses(path: Path, kind: str) -> None:
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "archive":
        with path.open("wb") as file:
            np.savez(file, losses=np.zeros(HELD_OUT, np.float32))
    elif kind == "pickle":
        np.save(path, np.array([{}], object), allow_pickle=True)
    else:
        np.save(path, np.zeros((2, HELD_OUT), np.float32) if kind == "matrix" else np.float32(1.0))


@pytest.mark.parametrize("kind", ["pipe", "archive", "pickle", "matrix", "number"])
def test_damaged_losses_of_any_kind_are_judged_again(kind: str, tmp_path: Path) -> None:
    whole = summary(Race(tmp_path, lambda line: None).rung(RUNG, ENTRANTS, by_size))
    broken_losses(tmp_path / RUNG.name / f"{ENTRANTS[2].slug}.npy", kind)
    asked: list[str] = []

    def judge(candidate: Candidate) -> Judged:
        asked.append(candidate.name)
        return by_size(candidate)

    again = Race(tmp_path, lambda line: None).rung(RUNG, ENTRANTS, judge)
    assert summary(again) == whole and asked == [ENTRANTS[2].name]


def test_losses_of_other_images_are_not_compared(tmp_path: Path) -> None:
    Race(tmp_path, lambda line: None).rung(RUNG, ENTRANTS, by_size)
    np.save(tmp_path / RUNG.name / f"{ENTRANTS[2].slug}.npy", np.zeros(3, np.float32))
    with pytest.raises(InputError, match="different numbers of images"):
        Race(tmp_path, lambda line: None).rung(RUNG, ENTRANTS, by_size)
