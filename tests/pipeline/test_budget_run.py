"""Which networks a budget's finals and full trainings hold."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mobilefit.arch import FAMILY, NetSpec
from mobilefit.pipeline.budget_run import BudgetRun
from mobilefit.pipeline.candidates import Candidate
from mobilefit.pipeline.race_task import Entrant

SMALL = FAMILY["mobilenet_v3_small"].classes(3)
LARGER: Any = SimpleNamespace(network=SimpleNamespace(spec=SMALL.resolution(64)))


def candidate(spec: NetSpec) -> Candidate:
    return Candidate(spec=spec, latency_ms=1.0)


def budget_run(task: str, resolution: int | None = None, affordable: int = 2) -> BudgetRun:
    """Without a design: the stages are done each time, and the latencies do not matter."""
    run = BudgetRun.__new__(BudgetRun)
    by_hand = SimpleNamespace(
        narrowed=lambda best, larger: [candidate(SMALL.width(0.5).resolution(64))],
        kind_of=lambda candidate, larger: "candidate",
        full_network=lambda candidate, larger: (SMALL.resolution(64), SimpleNamespace(weights=None)),
        lower_resolution=lambda smaller, winner: candidate(SMALL.resolution(40)),
        scaled_width=lambda full, weights, winner: candidate(SMALL.width(0.5).resolution(64)),
    )
    vars(run).update(
        task=SimpleNamespace(task=task), config=SimpleNamespace(resolution=resolution, epochs=None), by_hand=by_hand,
        initial=lambda candidate, larger: None, left_out=[], log=lambda line: None,
        stage=lambda name, work, shape: affordable, design=SimpleNamespace(),
    )  # fmt: skip
    return run


@pytest.mark.parametrize(
    ("task", "resolution", "narrowed"),
    [("detect", None, True), ("segment", None, True), ("classify", None, False), ("detect", 48, False)],
)
def test_fewer_channels_and_more_pixels_are_in_the_finals(task: str, resolution: int | None, narrowed: bool) -> None:
    ranked = [candidate(SMALL.resolution(48)), candidate(SMALL.width(0.75).resolution(48))]
    entrants = budget_run(task, resolution).entrants(ranked, LARGER)
    specs = [entrant.candidate.spec for entrant in entrants]
    expected = [candidate.spec for candidate in ranked]
    if narrowed:  # second: left out only where there is time for one network
        expected.insert(1, SMALL.width(0.5).resolution(64))
    assert specs == expected


def test_without_a_larger_network_nothing_is_narrowed() -> None:
    ranked = [candidate(SMALL.resolution(48))]
    assert [entrant.candidate for entrant in budget_run("detect").entrants(ranked, None)] == ranked


@pytest.mark.parametrize(("task", "trained", "left"), [("classify", "resolution", "width"), ("detect", "width", "resolution")])
def test_what_is_harder_to_beat_is_trained_where_there_is_time_for_one(task: str, trained: str, left: str) -> None:
    run = budget_run(task, affordable=1)
    winner = Entrant(kind="candidate", candidate=candidate(SMALL.resolution(48)), initial=None)  # type: ignore[arg-type]
    assert [entrant.kind for entrant in run.standing(winner, LARGER)] == [trained]
    assert run.left_out == [left]
