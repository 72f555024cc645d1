"""How fast this machine trains, and how long a search may be."""

from __future__ import annotations

import pytest

from mobilefit.arch import NetSpec
from mobilefit.data import ClassificationData, load
from mobilefit.jobs import plan
from mobilefit.jobs.plan import Speed
from mobilefit.nn import build
from mobilefit.search import space
from mobilefit.train import RECIPES

from .small import World

SPEED = Speed(training=400.0, evaluation=1500.0)


@pytest.mark.parametrize(
    ("images", "batch"), [(2, 2), (9, 2), (40, 5), (87, 10), (10**6, RECIPES["fast"].batch_size)]
)
def test_few_images_make_small_batches(images: int, batch: int) -> None:
    assert plan.batch_size(RECIPES["fast"], images) == batch


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
