"""Which networks a budget's finals and full trainings hold."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from mobilefit.arch import FAMILY, NetSpec
from mobilefit.pipeline import time_budget
from mobilefit.pipeline.budget_run import BudgetRun
from mobilefit.pipeline.candidates import Candidate
from mobilefit.pipeline.race_task import Entrant
from mobilefit.pipeline.time_budget import StagePlan

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
    if narrowed:  # the last ones are left out where there is little time
        expected.insert({"detect": 0, "segment": 1}[task], SMALL.width(0.5).resolution(64))
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


@pytest.mark.parametrize(("kind", "width", "size", "widest"), [
    ("width", 0.35, 64, 0.5), ("width", 0.5, 64, 0.5), ("width", 0.75, 64, 0.75),
    ("width", 0.35, 96, 0.35),  # the full network is above the reference's size: at another size it is another network
    ("resolution", 0.35, 64, 0.35), ("candidate", 0.35, 64, 0.35), ("adapted", 0.35, 64, 0.35),
])  # fmt: skip
def test_a_width_takes_all_of_the_budget(kind: str, width: float, size: int, widest: float) -> None:
    winner = Entrant(kind=kind, candidate=candidate(SMALL.width(width).resolution(size)), initial=None)  # type: ignore[arg-type]
    chosen = budget_run("classify").widened(winner, LARGER)
    assert (chosen.kind, chosen.candidate.spec) == (kind, SMALL.width(widest).resolution(size))


class Clock:
    """A design whose trainings take as long as a test says."""

    def __init__(self, step_seconds: float, left: float) -> None:
        self.each, self.seconds, self.slower = step_seconds, left, 1.0
        self.trained: list[tuple[str, int]] = []
        self.run = SimpleNamespace(timed=lambda name: nullcontext())

    def left(self) -> float:
        return max(0.0, self.seconds)

    def step_seconds(self, spec: NetSpec, teacher: Any) -> float:
        return self.each

    def soft_targets(self, larger: Any) -> None:
        return None

    def full_plan(self, seconds: float, step_seconds: list[float]) -> StagePlan:
        return time_budget.full_training(seconds, step_seconds, 10, 1000.0)

    def train(self, name: str, label: str, steps: int, seed: int, initial: Any, teacher: Any, *, kind: str) -> tuple[str, int]:
        if not self.trained:
            self.each *= self.slower
        self.seconds -= steps * self.each
        self.trained.append((kind, seed))
        return kind, seed


@pytest.mark.parametrize(("slower", "seeds", "kinds"), [
    (1.0, 1, ["candidate", "resolution", "width"]), (1.1, 1, ["candidate", "resolution", "width"]),
    (1.6, 1, ["candidate", "resolution"]), (4.0, 1, ["candidate"]), (4.0, 2, ["candidate", "candidate"]),
    (1.0, 2, ["candidate", "resolution", "width"] * 2),
])  # fmt: skip
def test_a_machine_that_becomes_slower_leaves_out_what_stands_beside_the_winner(
    slower: float, seeds: int, kinds: list[str]
) -> None:
    clock = Clock(0.1, left=600.0)
    clock.slower = slower
    done: dict[str, Any] = {}
    run = budget_run("classify")
    vars(run).update(
        config=SimpleNamespace(seed=3, seeds=seeds, epochs=None, minutes=12.0), design=clock, share=1.0, prefix="",
        data=SimpleNamespace(test=[]), budget_ms=1.0, plans={},
        stage=lambda name, work, shape: done.setdefault(name, work()),
    )  # fmt: skip
    entrants = [Entrant(kind=kind, candidate=candidate(SMALL.resolution(48)), initial=None)  # type: ignore[arg-type]
                for kind in ("candidate", "resolution", "width")]  # fmt: skip
    run.trained(entrants, LARGER)
    assert [kind for kind, _ in clock.trained] == kinds
    assert run.left_out == [kind for kind in ("resolution", "width") if kind not in kinds]
    assert clock.seconds > -0.3 * 600 or len(kinds) == seeds  # the winner's own training is not cut
    # A second call takes the same ones, whatever the time is by then.
    run.left_out, clock.trained, clock.seconds = [], [], 0.0
    run.trained(entrants, LARGER)
    assert [kind for kind, _ in clock.trained] == kinds
