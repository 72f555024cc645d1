from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import timm.optim
import torch

from mobilefit.train import RECIPES, Recipe, RMSpropTF
from mobilefit.train.optim import learning_rate, make_optimizer, peak_lr

from .small import network

SHAPES = [(4, 3, 3, 3), (7,), (2, 5)]


def start() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for shape in SHAPES
    ]


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    scale = 10.0 ** (step % 5 - 3)  # above and far below epsilon
    return [torch.randn(s, generator=generator, dtype=torch.float64) * scale for s in SHAPES]


def rate(step: int) -> float:
    return 0.02 * (1 + math.sin(step / 7)) * (0.1 if step > 120 else 1.0)


def stepped(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], step: int) -> None:
    for param, gradient in zip(params, gradients(step), strict=True):
        param.grad = gradient.clone()
    for group in optimizer.param_groups:
        group["lr"] = rate(step)
    optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
def test_rmsprop_is_tensorflows_for_200_steps(weight_decay: float) -> None:
    params, peers = start(), start()
    ours = RMSpropTF(params, 0.1, rho=0.9, momentum=0.8, eps=0.002, weight_decay=weight_decay)
    timms = timm.optim.RMSpropTF(
        peers, 0.1, alpha=0.9, momentum=0.8, eps=0.002, weight_decay=weight_decay
    )
    by_hand = [param.detach().numpy().copy() for param in params]
    square = [np.ones_like(value) for value in by_hand]
    velocity = [np.zeros_like(value) for value in by_hand]
    for step in range(200):
        stepped(ours, params, step)
        stepped(timms, peers, step)
        for i, gradient in enumerate(gradients(step)):
            g = gradient.numpy() + weight_decay * by_hand[i]  # L2: through the root and momentum
            square[i] = 0.9 * square[i] + 0.1 * g**2
            velocity[i] = 0.8 * velocity[i] + rate(step) * g / np.sqrt(square[i] + 0.002)
            by_hand[i] = by_hand[i] - velocity[i]
        for param, peer, value in zip(params, peers, by_hand, strict=True):
            np.testing.assert_allclose(param.detach().numpy(), value, rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(param.detach().numpy(), peer.detach(), rtol=1e-10, atol=1e-12)


def test_rmsprop_differs_from_torchs() -> None:
    params, others = start(), start()
    ours = RMSpropTF(params, 0.1, eps=0.002)
    theirs = torch.optim.RMSprop(others, 0.1, alpha=0.9, momentum=0.9, eps=0.002)
    for step in range(3):
        stepped(ours, params, step)
        stepped(theirs, others, step)
    assert not torch.allclose(params[0], others[0], rtol=0.1)


def test_rmsprop_leaves_parameters_without_gradient_alone() -> None:
    params = start()
    before = params[1].detach().clone()
    optimizer = RMSpropTF(params, 0.1, weight_decay=0.1)
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    assert params[1].equal(before)
    with pytest.raises(TypeError, match="closure"):
        optimizer.step(lambda: 0.0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("rmsprop_tf", RMSpropTF), ("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)],
)
def test_weights_decay_and_norms_and_biases_do_not(name: str, kind: type) -> None:
    net = network()
    recipe = Recipe(epochs=1, batch_size=64, lr=0.2, weight_decay=0.03, optimizer=name)  # type: ignore[arg-type]
    optimizer = make_optimizer(net, recipe)
    assert type(optimizer) is kind
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert len(decays) == len(list(net.parameters()))
    for key, param in net.named_parameters():
        convolution_or_linear = key.endswith("weight") and param.ndim > 1
        assert decays[id(param)] == (0.03 if convolution_or_linear else 0.0), key
    assert {group["lr"] for group in optimizer.param_groups} == {0.2 * 64 / 256}


COSINE = Recipe(epochs=10, batch_size=128, lr=0.4, schedule="cosine", warmup_epochs=2)


def test_cosine_with_warm_up() -> None:
    rates = [learning_rate(COSINE, step, 100, 10) for step in range(100)]
    for step, found in enumerate(rates):
        warm = min(1, (step + 1) / 21)
        cosine = (1 + math.cos(math.pi * max(0, step - 20) / 80)) / 2
        assert found == pytest.approx(0.2 * warm * cosine, rel=1e-12)
    assert rates[0] == pytest.approx(0.2 / 21) and max(rates) == rates[20] == 0.2
    assert rates[:21] == sorted(rates[:21]) and rates[20:] == sorted(rates[20:], reverse=True)
    assert learning_rate(COSINE, 100, 100, 10) == pytest.approx(0, abs=1e-12)


def test_exponential_with_warm_up() -> None:
    recipe = Recipe(epochs=30, batch_size=512, lr=0.1, decay=0.5, decay_epochs=3, warmup_epochs=2)
    for step in range(300):
        expected = 0.2 * min(1, (step + 1) / 21) * 0.5 ** (step // 30)
        assert learning_rate(recipe, step, 300, 10) == pytest.approx(expected, rel=1e-12)


def test_warm_up_takes_a_quarter_of_a_short_training_at_most() -> None:
    rates = [learning_rate(COSINE, step, 8, 10) for step in range(8)]
    assert rates.index(max(rates)) == 2 and max(rates) == pytest.approx(0.2)
    unwarmed = replace(COSINE, warmup_epochs=0)
    assert learning_rate(unwarmed, 0, 100, 10) == pytest.approx(0.2)


def test_the_papers_total_learning_rate() -> None:
    total = replace(RECIPES["paper"], batch_size=8 * 192)
    assert peak_lr(total) == pytest.approx(0.16)
    assert learning_rate(total, 5 * 800, 600 * 800, 800) == pytest.approx(0.16 * 0.99)
    assert learning_rate(total, 299 * 800, 600 * 800, 800) == pytest.approx(0.16 * 0.99**99)
