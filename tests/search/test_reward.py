"""Rewards, against numbers by hand."""

from __future__ import annotations

import pytest

from mobilefit.errors import InputError
from mobilefit.search import FORMS, Reward


def test_twice_the_latency_costs_what_the_papers_say() -> None:
    # 2^-0.07 = 0.9526, 2^-0.15 = 0.9013
    assert Reward(form="soft", target_ms=75)(0.7, 150) == pytest.approx(0.7 * (1 - 0.0474), abs=1e-4)
    assert Reward(form="soft_small", target_ms=75)(0.7, 150) == pytest.approx(0.7 * (1 - 0.0987), abs=1e-4)


def test_soft_is_a_trade_on_both_sides_of_the_target() -> None:
    soft = Reward(form="soft", target_ms=10)
    assert soft(0.5, 10) == 0.5
    assert soft(0.5, 5) == pytest.approx(0.5 * 1.0497, abs=1e-4)
    # MnasNet, section 3: 5 % more accuracy for twice the latency is about the same
    assert soft(0.5 * 1.05, 20) == pytest.approx(soft(0.5, 10), rel=1e-3)


def test_hard_gives_nothing_for_being_faster_and_halves_for_twice_the_time() -> None:
    hard = Reward(form="hard", target_ms=10)
    assert [hard(0.8, ms) for ms in (1, 10, 20, 40)] == pytest.approx([0.8, 0.8, 0.4, 0.2])


def test_absolute_is_highest_at_the_target() -> None:
    absolute = Reward(form="absolute", target_ms=10)
    assert [absolute(0.8, ms) for ms in (5, 10, 15, 20)] == pytest.approx([0.75, 0.8, 0.75, 0.7])


@pytest.mark.parametrize("form", FORMS)
def test_more_accuracy_is_better_and_the_target_has_no_step(form: str) -> None:
    reward = Reward(form=form, target_ms=10)
    for ms in (1, 9.999, 10, 10.001, 50):
        assert reward(0.6, ms) > reward(0.5, ms)
    assert reward(0.6, 9.999) == pytest.approx(reward(0.6, 10.001), abs=1e-3)


def test_an_unknown_form_and_an_impossible_target() -> None:
    with pytest.raises(InputError, match="unknown reward 'sfot'; did you mean 'soft'"):
        Reward(form="sfot", target_ms=10)
    for target in (0, -1, float("nan")):
        with pytest.raises(InputError, match="is not above 0"):
            Reward(form="soft", target_ms=target)
