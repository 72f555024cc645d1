"""How design divides its time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mobilefit import adapt
from mobilefit.adapt import LEAST_TUNE_STEPS
from mobilefit.arch import FAMILY
from mobilefit.pipeline import time_budget
from mobilefit.pipeline.time_budget import (
    CUT,
    DELTAS,
    EXPONENT,
    LEAST_STEPS,
    MOST_TUNE_STEPS,
    RUNG_STEPS,
    AdaptPlan,
    RungPlan,
    SpeedModel,
    batch_size,
    beside,
    distilled,
    duration,
    epoch_steps,
    export_seconds,
    full_training,
    knapsack,
    netadapt,
    race_rung,
    rung_steps,
    training_madds,
    with_answers,
)
from mobilefit.train import RECIPES

SPEC = FAMILY["mobilenet_v3_small"].resolution(64)
GROUPS = len(adapt.groups(SPEC)) + len(adapt.removable(SPEC))
JUDGING = 0.1 + 0.9 + 0.9 * 512 / 500
"""Seconds: 0.1 beside, 500 held-out images in 0.9, and 512 for the batch norm statistics."""


# ---- speed


def test_speed_grows_with_a_power_of_the_multiply_adds() -> None:
    speed = SpeedModel(madds=1e7, seconds=2e-3)
    assert speed.image(1e7) == 2e-3
    assert speed.image(4e7) == pytest.approx(2e-3 * 4**EXPONENT)
    assert speed.image(4e7) / speed.image(1e7) == pytest.approx(3.1, abs=0.1)  # as was measured


def test_the_latest_training_is_what_is_believed() -> None:
    speed = SpeedModel(madds=1e7, seconds=2e-3)
    speed.learn(5e6, 8e-3)
    assert (speed.madds, speed.seconds) == (5e6, 8e-3) and speed.image(5e6) == 8e-3
    speed.learn(1e6, 0.0)  # a training that was taken up at its last step tells nothing
    assert (speed.madds, speed.seconds) == (5e6, 8e-3)


def test_multiply_adds_are_those_of_the_size_that_is_trained_at() -> None:
    recipe = replace(RECIPES["finetune"], train_scale=0.75, min_train_size=96)
    assert training_madds(SPEC.resolution(224), recipe) == pytest.approx(SPEC.resolution(224).cost().madds * 0.75**2)
    assert training_madds(SPEC.resolution(112), recipe) == pytest.approx(SPEC.resolution(112).cost().madds * (96 / 112) ** 2)
    assert training_madds(SPEC, recipe) == SPEC.cost().madds  # 64 px


@pytest.mark.parametrize(
    ("images", "batch"), [(100_000, 64), (512, 64), (511, 63), (100, 12), (9, 2), (2, 2)]
)
def test_few_images_make_small_batches(images: int, batch: int) -> None:
    recipe = type(RECIPES["fast"])(**{**vars(RECIPES["fast"]), "batch_size": 64})
    assert batch_size(recipe, images) == batch
    assert epoch_steps(images, recipe) == max(1, images // batch)


# ---- the race and the full trainings


def test_a_rung_is_as_long_as_it_should_be_where_there_is_time() -> None:
    plan = race_rung(100, 1000.0, [0.1, 0.2, 0.3], per_epoch=50, evaluation_seconds=4.0)
    assert plan == RungPlan(steps=100, epochs=2.0, seconds=60.0 + 12.0, candidates=3)


def test_a_rung_keeps_to_its_seconds() -> None:
    plan = race_rung(200, 75.0, [0.125, 0.125, 0.5], per_epoch=40, evaluation_seconds=5.0)
    assert plan == RungPlan(steps=80, epochs=2.0, seconds=75.0, candidates=3)  # 60 s / 0.75 s, of each


def test_workers_share_a_rung() -> None:
    def steps(step_seconds: list[float], parallel: int, seconds: float = 30.0) -> int:
        return race_rung(
            200, seconds, step_seconds, per_epoch=40, evaluation_seconds=0.0, parallel=parallel
        ).steps  # fmt: skip

    assert [steps([0.125] * 4, n) for n in (1, 2, 4, 8)] == [60, 120, 200, 200]  # never more than asked for
    assert steps([0.125, 0.5], 2) == 60  # the slowest one counts
    assert steps([0.25] * 3, 2) == 60  # the third one waits


def test_the_last_candidates_go_where_there_is_no_time_for_all() -> None:
    plan = race_rung(200, 30.0, [0.125] * 10, per_epoch=40, evaluation_seconds=0.0)
    assert plan.candidates == 4 and plan.steps == 60 and plan.seconds == 30.0
    assert race_rung(200, 30.0, [0.125] * 10, per_epoch=40, evaluation_seconds=2.5).candidates == 3


def test_a_rung_without_time_is_none() -> None:
    plan = race_rung(100, 0.0, [0.5, 0.5], per_epoch=50, evaluation_seconds=1.0)
    assert (plan.candidates, plan.steps, plan.seconds) == (1, 0, 0.0)


def test_a_rung_shorter_than_the_least_is_not_left_out() -> None:
    plan = race_rung(8, 10.0, [0.5, 0.5], per_epoch=4, evaluation_seconds=0.5)
    assert (plan.candidates, plan.steps) == (2, 8)


@pytest.mark.parametrize(("per_epoch", "full_epochs", "steps"), [
    (860, None, (1720, 4300)), (86, None, (172, 430)),  # 27,600 and 2,761 images in batches of 32
    (8, None, RUNG_STEPS),  # 500 images in batches of 62
    (8, 20.0, (150, 160)), (8, 10.0, (80, 80)), (8, 1.0, (16, 40)), (51, 0.5, (102, 255)),
])  # fmt: skip
def test_few_images_are_seen_more_often_in_the_race(
    per_epoch: int, full_epochs: float | None, steps: tuple[int, int]
) -> None:
    assert tuple(rung_steps(number, per_epoch, full_epochs) for number in (0, 1)) == steps


def test_full_trainings_share_the_seconds() -> None:
    one = full_training(600.0, [0.125], per_epoch=100, most_epochs=200)
    three = full_training(600.0, [0.125, 0.125, 0.125], per_epoch=100, most_epochs=200)
    assert (one.steps, one.epochs, one.seconds) == (4800, 48.0, 600.0)
    assert (three.steps, three.epochs, three.seconds) == (1600, 16.0, 600.0)


def test_a_training_is_never_longer_than_is_of_use() -> None:
    plan = full_training(1e6, [0.1], per_epoch=100, most_epochs=40)
    assert (plan.steps, plan.epochs, plan.seconds) == (4000, 40.0, 400.0)


def test_a_training_without_time_still_trains() -> None:
    assert full_training(0.0, [0.1], per_epoch=100, most_epochs=40).steps == LEAST_STEPS


@pytest.mark.parametrize(("epochs", "steps"), [(2.5, 250), (0.001, 1), (300.0, 30_000)])
@pytest.mark.parametrize("seconds", [0.0, 60.0, 1e6])
def test_what_the_user_says_is_done_whatever_the_time(epochs: float, steps: int, seconds: float) -> None:
    plan = full_training(seconds, [0.1, 0.3], per_epoch=100, most_epochs=40, epochs=epochs)
    assert plan.steps == steps and plan.seconds == pytest.approx(0.4 * steps, abs=0.06)


@pytest.mark.parametrize("minutes", [1, 5, 30, 240])
def test_more_time_is_never_less_training(minutes: int) -> None:
    less, more = (
        full_training(60.0 * m, [0.3], per_epoch=1000, most_epochs=200) for m in (minutes, 1.5 * minutes)
    )
    assert less.steps < more.steps


# ---- NetAdapt


def adapted(seconds: float, **changes: Any) -> AdaptPlan:
    options = {
        "over": 0.3, "step_seconds": 0.1, "evaluation_seconds": 0.9, "held_images": 500, "per_epoch": 60,
        "delta": None, "tune_steps": None, **changes,
    }  # fmt: skip
    return netadapt(seconds, SPEC, **options)


def least_seconds(delta: float, tune_steps: int = LEAST_TUNE_STEPS) -> float:
    """What it takes to tune every proposal at a delta, by hand: judging and steps of 0.1 s."""
    steps = -(-0.3 // (CUT * delta))
    return float(steps * GROUPS * (JUDGING + 0.1 * tune_steps))


@pytest.mark.parametrize("delta", DELTAS)
def test_the_smallest_delta_whose_proposals_can_be_tuned(delta: float) -> None:
    plan = adapted(1.001 * least_seconds(delta))
    assert plan.delta == delta and plan.tune_steps == LEAST_TUNE_STEPS
    assert plan.steps == -(-0.3 // (CUT * delta)) and plan.proposals == GROUPS
    assert plan.seconds == pytest.approx(least_seconds(delta), abs=0.06)


def test_where_none_can_be_tuned_none_are() -> None:
    """A handful of steps teaches less than new batch norm statistics do."""
    plan = adapted(0.99 * least_seconds(DELTAS[-1]))
    assert (plan.delta, plan.tune_steps) == (DELTAS[-1], 0)
    assert plan.seconds == pytest.approx(plan.steps * GROUPS * JUDGING, abs=0.06)
    assert adapted(0.0).tune_steps == 0


def test_seconds_are_used_and_kept() -> None:
    for seconds in (600, 1200, 3600, 10_000):
        plan = adapted(seconds, per_epoch=600)
        assert 0.5 * seconds < plan.seconds <= seconds


def test_tuning_is_two_epochs_at_most() -> None:
    assert adapted(1e6, per_epoch=60).tune_steps == 120
    assert adapted(1e9, per_epoch=10**6).tune_steps == MOST_TUNE_STEPS


def test_more_to_cut_takes_more_steps() -> None:
    near, far = (adapted(1e4, over=over, delta=0.02) for over in (0.1, 0.5))
    assert (near.steps, far.steps) == (4, 20)  # over / (1.3 delta), rounded up
    assert near.tune_steps >= far.tune_steps


def test_what_the_user_says_of_netadapt_is_done() -> None:
    assert adapted(1.0, delta=0.033).delta == 0.033
    assert adapted(1.0, tune_steps=7).tune_steps == 7  # also below what is taken by itself
    assert adapted(1e6, tune_steps=0).tune_steps == 0
    both = adapted(1.0, delta=0.01, tune_steps=700)
    assert (both.delta, both.tune_steps) == (0.01, 700)
    assert both.seconds == pytest.approx(least_seconds(0.01, 700), abs=0.06)


def by_knapsack(seconds: float, **changes: Any) -> AdaptPlan:
    options = {
        "over": 0.3, "step_seconds": 0.1, "evaluation_seconds": 0.9, "held_images": 500, "per_epoch": 60,
        "tune_steps": None, **changes,
    }  # fmt: skip
    return knapsack(seconds, SPEC, **options)


def test_the_rounds_of_a_knapsack_are_tuned_by_what_is_left() -> None:
    """Two rounds of at most a fifth each for 0.3: a pass for the gates, groups and blocks alone, nine allocations."""
    judged = 2 * (60 * 0.1 + (GROUPS + 9) * JUDGING)
    plan = by_knapsack(judged + 2 * 30.5 * 0.1)
    assert (plan.delta, plan.steps, plan.proposals, plan.tune_steps) == (0.2, 2, GROUPS + 9, 30)
    assert plan.seconds == pytest.approx(judged + 2 * 30 * 0.1, abs=0.06)
    assert by_knapsack(0.0).tune_steps == 0 and by_knapsack(1e6).tune_steps == 120
    assert by_knapsack(0.0, tune_steps=7).tune_steps == 7 and by_knapsack(1e6, over=0.7).steps == 4


def test_a_plan_comes_back_from_json() -> None:
    plan = adapted(3600.0)
    assert AdaptPlan(**plan.to_dict()) == plan
    stage = race_rung(100, 60.0, [0.1] * 2, per_epoch=50, evaluation_seconds=0.0)
    assert RungPlan(**stage.to_dict()) == stage


# ---- the rest


def test_export_grows_with_networks_and_images() -> None:
    base = export_seconds(1, 2.0, 1000)
    assert export_seconds(3, 2.0, 1000) == pytest.approx(3 * base)
    assert export_seconds(1, 2.0, 2000) - base == pytest.approx(1.6 * 2e-3 * 2.0 * 1000)
    assert export_seconds(1, 0.0, 0) == time_budget.EXPORT_SECONDS


def test_a_taught_training_mixes_no_images() -> None:
    mixing = type(RECIPES["fast"])(**{**vars(RECIPES["fast"]), "mixup": 0.2, "cutmix": 1.0})
    taught = distilled(mixing, 0.5)
    assert (taught.distillation, taught.mixup, taught.cutmix) == (0.5, 0.0, 0.0)
    assert taught.lr == mixing.lr and taught.epochs == mixing.epochs


def test_a_teacher_that_answers_at_each_step_takes_time() -> None:
    """Three tenths of a step of its own: at twice the side, 4 times the multiply-adds."""
    small, recipe = FAMILY["mobilenet_v2"].resolution(96), replace(RECIPES["finetune"], train_scale=1.0)
    assert with_answers(small, small, recipe) == pytest.approx(1.3, abs=1e-6)
    assert with_answers(small, small.resolution(192), recipe) == pytest.approx(1 + 0.3 * 4**0.8, rel=0.02)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89.4, "89 s"), (90, "2 min"), (3600, "60 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_networks_stand_beside_the_winner_if_all_are_trained_for_two_epochs() -> None:
    """2 epochs of 100 steps of 0.25 s and 10 s of exporting: a minute a network."""
    counts = [beside(seconds, 0.25, 100, 10.0) for seconds in (0.0, 59.0, 119.0, 120.0, 180.0, 6000.0)]
    assert counts == [0, 0, 0, 1, 2, 99]
