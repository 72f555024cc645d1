"""How design divides its time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mobilefit.arch import NetSpec, spec
from mobilefit.data import ClassificationData, load
from mobilefit.jobs import plan
from mobilefit.jobs.plan import Plan, Request, Speed
from mobilefit.nn import build
from mobilefit.search import space
from mobilefit.train import RECIPES

from .small import World

SMALL = spec("mobilenet_v3_small").resolution(64)
SPEED = Speed(training=400.0, evaluation=1500.0)
REQUEST = Request(
    minutes=30, seeds=1, delta=None, tune_steps=None, epochs=None, recipe=RECIPES["fast"]
)


class Sized:
    """A part of a data set, as far as the plan looks."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count


class Data:
    """A data set of 9000 training images."""

    train, holdout, test = Sized(9000), Sized(1000), Sized(2000)


def made(
    seed_ms: float = 1.0, budget_ms: float = 0.7, speed: Speed = SPEED, network: NetSpec = SMALL,
    data: Any = Data, **changes: Any,
) -> Plan:  # fmt: skip
    return plan.make(replace(REQUEST, **changes), data, speed, network, seed_ms, budget_ms)


def test_more_minutes_give_more_of_everything() -> None:
    plans = [made(minutes=minutes) for minutes in (5, 10, 30, 120, 600)]
    steps = [p.train_steps for p in plans]
    assert steps == sorted(set(steps))
    tunes = [p.tune_steps for p in plans]
    assert tunes == sorted(tunes) and tunes[0] < tunes[-1]
    deltas = [p.delta for p in plans]
    assert deltas == sorted(deltas, reverse=True) and deltas[0] > deltas[-1] == plan.DELTAS[0]


@pytest.mark.parametrize("minutes", [15, 30, 60, 240])
@pytest.mark.parametrize("recipe", ["fast", "finetune"])
def test_the_time_is_kept_and_used(minutes: float, recipe: str) -> None:
    told = sum(made(minutes=minutes, recipe=RECIPES[recipe]).seconds.values())
    assert 0.6 * 60 * minutes < told < 1.1 * 60 * minutes


def test_a_slower_machine_trains_less() -> None:
    fast, slow = made(), made(speed=Speed(training=100.0, evaluation=400.0))
    assert slow.train_steps < fast.train_steps
    assert slow.delta >= fast.delta and slow.tune_steps <= fast.tune_steps


def test_a_lower_budget_takes_more_steps() -> None:
    near, far = made(budget_ms=0.9, delta=0.02), made(budget_ms=0.5, delta=0.02)
    assert near.adapt_steps == 4 and far.adapt_steps == 20  # over / (1.3 delta), rounded up


def test_what_the_user_says_is_kept() -> None:
    p = made(delta=0.033, tune_steps=7, epochs=2.5, seeds=3)
    assert (p.delta, p.tune_steps, p.seeds) == (0.033, 7, 3)
    per_epoch = 9000 // p.recipe().batch_size
    assert p.train_steps == round(2.5 * per_epoch)
    assert p.epochs == pytest.approx(2.5, abs=0.01)
    assert made(epochs=0.001).train_steps == 1
    alone = made(delta=0.033)
    assert alone.delta == 0.033 and alone.train_steps == made().train_steps


def test_fewer_epochs_leave_time_for_netadapt() -> None:
    assert made(epochs=1.0).tune_steps > made(epochs=20.0).tune_steps


def test_more_seeds_share_the_time() -> None:
    one, three = made(), made(seeds=3)
    assert three.train_steps < one.train_steps
    assert "3 seeds" in three.told(Path("out")) and "seeds" not in one.told(Path("out"))


def test_a_budget_that_is_met_plans_no_netadapt() -> None:
    p = made(budget_ms=1.0)
    assert not p.shrink and p.adapt_steps == 0
    assert list(p.seconds) == ["table", "seed", "export"]
    assert p.train_steps > made(budget_ms=0.7).train_steps
    assert "NetAdapt: about" not in p.told(Path("out"))


def test_the_plan_is_told() -> None:
    p = made()
    assert list(p.seconds) == ["table", "seed", "netadapt", "final", "width", "export"]
    lines = p.told(Path("runs/x")).splitlines()
    assert [line[:2] for line in lines[:-1]] == ["1.", "2.", "3.", "4.", "5.", "6."]
    for line, word in zip(
        lines, ("latency table", "seed network", "NetAdapt", "from scratch", "scaled", "report")
    ):
        assert word in line and line.endswith((" s)", " min)"))
    assert str(p.train_steps) in lines[1] and f"tuned for {p.tune_steps} steps" in lines[2]
    assert lines[-1].startswith("in all about ") and "runs/x" in lines[-1] and "Ctrl-C" in lines[-1]


def test_a_plan_comes_back_from_json() -> None:
    p = made()
    assert Plan(**p.to_dict()) == p
    assert p.recipe() == RECIPES["fast"]


@pytest.mark.parametrize("images", [2, 9, 40, 87])
def test_few_images_make_small_batches(images: int) -> None:
    class Few:
        train, holdout, test = Sized(images), Sized(2), Sized(2)

    p = made(data=Few, minutes=1)
    assert 2 <= p.recipe().batch_size <= max(2, images // 8)
    assert p.train_steps >= 20 and p.tune_steps >= 1


def test_no_time_at_all_still_makes_a_plan() -> None:
    p = made(minutes=0.01)
    assert (p.train_steps, p.delta) == (20, plan.DELTAS[-1]) and p.tune_steps >= 1


def test_speed_is_measured(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PROBE_SECONDS", 0.01)
    data: ClassificationData = load(world.images)
    small = build(NetSpec.from_json(world.spec.read_text()))
    found = plan.speed(small, data, data.preset(32), RECIPES["fast"])
    assert found.training > 0 and found.evaluation > 0


# ---- the search's part

SPACE = space("mobilenet_v3_small").resolution(32)


def searched(seconds: float, trials: int | None = None) -> plan.SearchPlan:
    return plan.search_with_shared_weights(seconds, SPACE, SPEED, 64, trials, 1)


def test_a_longer_search_tries_more_and_keeps_its_time() -> None:
    short, long = searched(200), searched(500)
    assert 40 <= short.trials < long.trials == long.warmup_steps
    assert short.trials % 20 == long.trials % 20 == 0
    assert 0.7 * 200 < short.seconds <= 200 and 0.8 * 500 < long.seconds <= 500


def test_no_time_is_two_batches() -> None:
    assert searched(1).trials == 40


def test_the_number_of_trials_is_kept() -> None:
    assert searched(1, trials=130).trials == 130 and searched(1e6, trials=30).trials == 30


def test_workers_make_room_for_more_trials() -> None:
    one, two = (
        plan.search_by_proxy(600, SPACE, SPEED, 64, None, 1, 20, 500, workers) for workers in (1, 2)
    )
    assert one.trials < two.trials and one.warmup_steps == 0 and one.proxy_steps == 20


def test_a_search_is_part_of_the_whole_plan() -> None:
    found = searched(200)
    whole = made(seed_networks=2).with_search(replace(found, top=2))
    assert list(whole.seconds)[:3] == ["table", "search", "seed"]
    assert Plan(**whole.to_dict()).for_search() == replace(found, top=2)
    told = whole.told(Path("runs/x"))
    assert f"{found.trials} trials" in told and "train the best 2 of them" in told
    assert made(seed_networks=2).seconds["seed"] > made().seconds["seed"]
