from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mobilefit.errors import InputError
from mobilefit.nn.blocks import Row
from mobilefit.train import Recipe, TrainingDiverged, evaluate, fit, lr_finder
from mobilefit.train.lr_finder import LrCurve, find_lr

from .small import PRESET, RECIPE, network, shades

Loss = Callable[[float], float]


def sweep(net: torch.nn.Module, *, optimizer: str = "adamw", **options: Any) -> LrCurve:
    """A sweep on :func:`shades`; fields of the recipe or options of :func:`find_lr`."""
    fields = {key: options.pop(key) for key in list(options) if key in RECIPE.to_dict()}
    recipe = replace(RECIPE, **{"optimizer": optimizer, "batch_size": 24} | fields)
    defaults: dict[str, Any] = {"preset": PRESET, "recipe": recipe, "seed": 5, "accelerator": "cpu"}
    return find_lr(net, shades(), **defaults | options)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[Loss], list[float]]:
    """Losses from a function of the rate that the optimizer is given; the rates are kept."""

    def by(loss: Loss) -> list[float]:
        rates: list[float] = []

        class Scripted:
            def __init__(self, *_: object, **__: object) -> None: ...

            def step(self, lr: float) -> float:
                rates.append(lr)
                return loss(lr)

        monkeypatch.setattr(lr_finder, "Stepper", Scripted)
        return rates

    return by


def valley(steepest: float, lowest: float) -> Loss:
    """2.3 at small rates, falling around ``steepest``, rising from ``lowest`` on."""

    def loss(rate: float) -> float:
        fall = 1.5 / (1 + math.exp(-8 * math.log10(rate / steepest)))
        return 2.3 - fall + 3 * max(0.0, math.log10(rate / lowest)) ** 2

    return loss


@pytest.mark.parametrize("steepest", [3e-4, 0.02])
def test_the_suggestion_is_where_the_loss_falls_most_steeply(
    steepest: float, measured: Callable[[Loss], list[float]]
) -> None:
    measured(valley(steepest, 30 * steepest))
    found = sweep(network(), batch_size=48)
    step = (lr_finder.HIGH / lr_finder.LOW) ** (1 / 99)
    unit = 48 / 256  # the optimizer's rate by the recipe's
    assert steepest / unit / step < found.suggestion < steepest / unit * step
    lowest = found.rates[int(np.argmin(found.smoothed))]
    assert found.tenth_of_minimum == lowest / 10
    assert 10 * steepest < lowest * unit < 60 * steepest


def test_the_sweep_drops_what_the_training_will(monkeypatch: pytest.MonkeyPatch) -> None:
    net, seen = network(), []
    own = net.head.dropout.p
    step = lr_finder.Stepper.step

    def watched(self: Any, lr: float) -> float:
        trained = self._trainer.net
        rows = [module.drop_path for module in trained.modules() if isinstance(module, Row)]
        seen.append((trained.head.dropout.p, rows))
        return step(self, lr)

    monkeypatch.setattr(lr_finder.Stepper, "step", watched)
    sweep(net, dropout=0.4, drop_path=0.3)
    assert {p for p, _ in seen} == {0.4} != {own} and net.head.dropout.p == own
    rows = seen[0][1]
    assert rows == [0.3 * place / len(rows) for place in range(len(rows))] and len(rows) > 1


def test_noise_moves_the_suggestion_little(measured: Callable[[Loss], list[float]]) -> None:
    random, loss = np.random.default_rng(0), valley(0.01, 0.3)
    measured(lambda rate: loss(rate) + 0.05 * random.normal())
    found = [sweep(network(), batch_size=48).suggestion * 48 / 256 for _ in range(10)]
    assert min(found) > 0.005 and max(found) < 0.02


def test_the_rates_are_even_in_their_logarithm_and_for_a_batch_of_256(
    measured: Callable[[Loss], list[float]],
) -> None:
    given = measured(valley(0.01, 1e9))
    found = sweep(network(), batch_size=16, low=1e-4, high=1.0, steps=41)
    np.testing.assert_allclose(found.rates, 10 ** np.linspace(-4, 0, 41))
    np.testing.assert_allclose(given, np.array(found.rates) * 16 / 256)


def test_the_sweep_ends_where_the_smoothed_loss_is_four_times_its_best(
    measured: Callable[[Loss], list[float]],
) -> None:
    given = measured(lambda rate: 2.0 if rate < 1e-3 else 1.0 if rate < 0.1 else 9.0)
    found = sweep(network(), batch_size=256)
    first = next(i for i, rate in enumerate(given) if rate >= 0.1)
    assert len(found.rates) == len(given) < 100 and 1 < len(given) - first <= 5  # a peak alone does not end it
    assert found.smoothed[-1] > 4 * min(found.smoothed) > 4 * 0.99


def test_a_loss_that_is_not_finite_ends_the_sweep(measured: Callable[[Loss], list[float]]) -> None:
    def loss(rate: float) -> float:
        if rate > 0.1:
            raise TrainingDiverged("the loss is nan")
        return 2 - rate

    measured(loss)
    found = sweep(network(), batch_size=256)
    assert max(found.rates) <= 0.1 and len(found.losses) == len(found.rates) == len(found.smoothed)


def test_the_network_and_the_random_state_stay_as_they_were() -> None:
    net = network().eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    torch.manual_seed(3)
    state, numpys = torch.random.get_rng_state(), np.random.get_state()[1]
    found = sweep(net, steps=40)
    assert len(found.rates) > 20
    assert torch.random.get_rng_state().equal(state) and (np.random.get_state()[1] == numpys).all()
    assert all(value.equal(before[key]) for key, value in net.state_dict().items())
    assert not net.training and all(p.grad is None and p.requires_grad for p in net.parameters())
    assert next(net.parameters()).is_contiguous()


def test_the_same_seed_gives_the_same_curve() -> None:
    one, other = sweep(network(), steps=40), sweep(network(), steps=40)
    assert one == other and sweep(network(), steps=40, seed=6) != one
    assert json.loads(json.dumps(one.to_dict()))["suggestion"] == one.suggestion


def test_it_is_the_recipes_optimizer_that_is_swept() -> None:
    sgd, adamw = (sweep(network(), optimizer=name) for name in ("sgd", "adamw"))
    assert 5 * adamw.suggestion < sgd.suggestion
    assert adamw.losses[:2] == pytest.approx(sgd.losses[:2], abs=1e-2)  # the same images


def test_the_suggestion_trains_and_far_from_it_nothing_does() -> None:
    suggestion = sweep(network()).suggestion

    def top1(factor: float) -> float:
        net, lr = network(), factor * suggestion
        recipe = replace(RECIPE, optimizer="adamw", batch_size=24, lr=lr, ema_decay=None)
        fit(net, shades(), preset=PRESET, recipe=recipe, steps=40, seed=5, accelerator="cpu")
        return evaluate(net, shades(60, seed=1), PRESET).top1

    assert top1(1) > 0.9 and max(top1(0.003), top1(300)) < 0.7


def test_distillation_average_and_compilation_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Recipe] = []

    class Watched:
        def __init__(self, *_: object, recipe: Recipe, **__: object) -> None:
            seen.append(recipe)

        def step(self, lr: float) -> float:
            return valley(0.01, 0.3)(lr)

    monkeypatch.setattr(lr_finder, "Stepper", Watched)
    sweep(network(), distillation=0.5, compile=True)
    assert (seen[0].distillation, seen[0].compile, seen[0].ema_decay) == (0.0, False, None)
    assert seen[0].augment == RECIPE.augment and seen[0].weight_decay == RECIPE.weight_decay


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 0.0}, "from 0 to 10 are no range above 0"), ({"low": 1.0, "high": 0.1}, "no range"),
        ({"high": math.inf}, "no range"), ({"low": math.nan}, "no range"),
        ({"steps": 9}, "steps is 9, must be 10 or more"),
        ({"steps": 1, "low": -1.0}, "no range above 0; steps is 1"),
    ],
)  # fmt: skip
def test_a_bad_range_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sweep(network(), **options)


def test_a_loss_that_never_falls_is_said(measured: Callable[[Loss], list[float]]) -> None:
    measured(lambda rate: 2.3 + rate)
    with pytest.raises(InputError, match=r"does not fall at any learning rate from 1e-06 to 10 .*--lr"):
        sweep(network())

    def nan(rate: float) -> float:
        raise TrainingDiverged("the loss is nan")

    measured(nan)
    with pytest.raises(InputError, match=r"does not fall .*\(0 of 100 steps were taken\)"):
        sweep(network())
