"""Ranges from images: each rule on distributions whose best range is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mobilefit.errors import InputError
from mobilefit.int8 import calibrated, quantize
from mobilefit.int8.observers import observe
from mobilefit.int8.simulation import Simulation
from mobilefit.litert import compile
from mobilefit.litert.graph import parse


@pytest.fixture(scope="module")
def simulation():
    net = nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        net.weight.fill_(1.0)
        net.bias.zero_()
    return Simulation(parse(compile(net, (1, 1, 100, 100))))


def ends(simulation, values, observer):
    batch = torch.from_numpy(values.reshape(1, 1, 100, 100).astype(np.float32))
    found = observe(simulation, [batch[:, :, :50], batch[:, :, 50:]], observer)["input"]
    return float(found["min"][0]), float(found["max"][0])


@pytest.fixture(scope="module")
def values():
    """A bell with one value far outside."""
    drawn = np.random.default_rng(0).normal(size=10_000)
    drawn[17] = 40.0
    return drawn


def test_minmax_takes_the_extremes(simulation, values):
    low, high = ends(simulation, values, "minmax")
    assert (low, high) == (pytest.approx(values.min()), pytest.approx(40.0))


@pytest.mark.parametrize("observer", ["mse", "histogram"])
def test_a_long_tail_is_clipped_for_finer_steps(simulation, observer):
    drawn = np.random.default_rng(0).laplace(size=10_000)
    low, high = ends(simulation, drawn, observer)
    assert drawn.min() < low < 0 < high < drawn.max()


def test_the_histogram_shrinks_each_end_by_itself(simulation):
    random = np.random.default_rng(0)
    lopsided = np.concatenate([random.uniform(-2, 0, 5_000), random.exponential(size=5_000)])
    low, high = ends(simulation, lopsided, "histogram")
    assert low == pytest.approx(lopsided.min(), rel=0.02) and high < 0.99 * lopsided.max()


def test_percentile_keeps_all_but_one_in_twenty_thousand_at_either_end(simulation):
    even = np.linspace(-1, 1, 10_000)
    low, high = ends(simulation, even, "percentile")
    assert low == pytest.approx(-1, abs=2e-3) and high == pytest.approx(1, abs=2e-3)


def test_less_error_than_by_the_extremes(simulation):
    drawn = np.random.default_rng(0).laplace(size=10_000)

    def error(observer):
        low, high = ends(simulation, drawn, observer)
        step = (high - low) / 255
        stored = np.clip(np.round((drawn - low) / step), 0, 255) * step + low
        return ((stored - drawn) ** 2).mean()

    assert error("histogram") <= 1.01 * error("mse") < 1.01 * error("minmax")


def test_a_tensor_of_zeros_has_a_range(simulation):
    for observer in ("minmax", "percentile", "mse", "histogram"):
        assert ends(simulation, np.zeros(10_000), observer) == (0.0, 0.0)


def test_an_unknown_observer_is_refused_by_name(simulation, values):
    with pytest.raises(InputError, match="unknown observer 'minmux'; did you mean 'minmax'"):
        ends(simulation, values, "minmux")


def test_a_value_that_is_not_finite_names_its_tensor():
    blob = compile(nn.Sequential(nn.Conv2d(3, 4, 1)), (1, 3, 8, 8))
    image = np.full((1, 8, 8, 3), np.nan, np.float32)
    with pytest.raises(InputError, match=r"'input' reaches .*nan.*not finite"):
        calibrated(blob, [image])


@pytest.mark.parametrize(
    ("images", "said"),
    [([], "no calibration image"), ([np.zeros((1, 9, 8, 3))], r"shape \(1, 9, 8, 3\).*\[n, 8, 8, 3\]")],
)
def test_bad_calibration_images(images, said):
    with pytest.raises(InputError, match=said):
        quantize(compile(nn.Conv2d(3, 4, 1), (1, 3, 8, 8)), images)
