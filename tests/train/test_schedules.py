"""Each recipe's learning rate, step by step, against the library or the script that it is from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler as torchs

from mobilefit.train import RECIPES, Recipe
from mobilefit.train.optim import learning_rate, peak_lr

Rates = Iterator[float]


def optimizer(recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak_lr(recipe))


def epoch_steps(recipe: Recipe) -> int:
    """So many steps an epoch that the training has 1,000 or more, and warm-up whole ones.

    Those of ``paper`` are enough for a decay within the last steps of warm-up.
    """
    return {"finetune": 126, "paper": 40}.get(recipe.name, math.ceil(1000 / recipe.epochs))


def from_torch(scheduler: torchs.LRScheduler, count: int) -> Rates:
    for _ in range(count):
        yield scheduler.get_last_lr()[0]
        scheduler.optimizer.step()
        scheduler.step()


def each(rates: Rates, times: int) -> Rates:
    """A scheduler that is asked once an epoch: the same rate in all of its steps."""
    return (rate for rate in rates for _ in range(times))


def slims(recipe: Recipe, steps: int, epoch: int) -> Rates:
    """``train_image_classifier.py``: tf.train.exponential_decay in stairs, and no more than warm-up."""
    for step in range(steps):
        stairs = 0.16 * 0.99 ** (step // (3 * epoch))
        yield min(0.16 * step / (5 * epoch), stairs)


def torchvisions_first(recipe: Recipe, steps: int, epoch: int) -> Rates:
    found = optimizer(replace(recipe, lr=0.064 / 4))
    return each(from_torch(torchs.StepLR(found, step_size=2, gamma=0.973), 600), epoch)


def torchvisions_second(recipe: Recipe, steps: int, epoch: int) -> Rates:
    found = optimizer(replace(recipe, lr=0.5 / 4))
    warm = torchs.LinearLR(found, start_factor=0.01, total_iters=5)
    main = torchs.CosineAnnealingLR(found, T_max=600 - 5)
    return each(from_torch(torchs.SequentialLR(found, [warm, main], milestones=[5]), 600), epoch)


def timms_step(recipe: Recipe, steps: int, epoch: int) -> Rates:
    from timm.scheduler import create_scheduler_v2

    found = optimizer(replace(recipe, lr=0.064 / 4))
    scheduler, _ = create_scheduler_v2(
        found, "step", num_epochs=600, decay_epochs=2.4, decay_rate=0.973, warmup_lr=1e-6,
        warmup_epochs=3, noise=[0.42, 0.9], noise_seed=42,
    )  # type: ignore[arg-type]  # fmt: skip

    def rates() -> Rates:
        for number in range(600):
            yield found.param_groups[0]["lr"]
            scheduler.step(number + 1)

    return each(rates(), epoch)


def d_li14s(recipe: Recipe, steps: int, epoch: int) -> Rates:
    """``adjust_learning_rate`` of its script, with the warm-up that its README names."""
    for step in range(steps):
        if step < 5 * epoch:
            yield 0.1 + (0.4 - 0.1) * step / (5 * epoch)
        else:
            yield 0.4 * (1 + math.cos(math.pi * (step - 5 * epoch) / (steps - 5 * epoch))) / 2


def timms_cosine(recipe: Recipe, steps: int, epoch: int) -> Rates:
    from timm.scheduler import CosineLRScheduler

    found = optimizer(recipe)
    warmup = round(recipe.warmup_epochs * epoch)
    scheduler = CosineLRScheduler(
        found, t_initial=steps - warmup, warmup_t=warmup, warmup_prefix=True, t_in_epochs=False,
        warmup_lr_init=recipe.warmup_from * peak_lr(recipe),
    )  # fmt: skip
    for step in range(steps):
        yield found.param_groups[0]["lr"]
        scheduler.step_update(step + 1)


def tensorflows_cosine(recipe: Recipe, steps: int, epoch: int) -> Rates:
    """``cosine_decay_with_warmup`` of TensorFlow's object detection, with the numbers of its configuration."""
    warmup = 2000 * 512 / 118_287 * epoch
    for step in range(steps):
        if step < warmup:
            yield (0.4 - 0.4 / 3) / warmup * step + 0.4 / 3
        else:
            yield 0.5 * 0.4 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def deeplabs(recipe: Recipe, steps: int, epoch: int) -> Rates:
    """``tf.train.polynomial_decay`` as DeepLab's ``get_model_learning_rate`` calls it."""
    for step in range(steps):
        yield (0.007 - 0) * (1 - step / steps) ** 0.9 + 0


PEERS: dict[str, Callable[[Recipe, int, int], Rates]] = {
    "paper": slims, "torchvision-v1": torchvisions_first, "torchvision-v2": torchvisions_second,
    "timm-ra": timms_step, "d-li14": d_li14s, "fast": timms_cosine, "scratch": timms_cosine,
    "finetune": timms_cosine, "int8": timms_cosine, "ssdlite": tensorflows_cosine, "detect": timms_cosine,
    "deeplab": deeplabs, "segment": timms_cosine,
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_the_rate_of_every_step_is_its_sources(name: str) -> None:
    recipe, epoch = RECIPES[name], epoch_steps(RECIPES[name])
    steps = recipe.epochs * epoch
    found = [learning_rate(recipe, step, steps, epoch) for step in range(steps)]
    assert steps >= 1000
    expected = list(PEERS[name](recipe, steps, epoch))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-15)


def test_timms_noise_is_in_that_test() -> None:
    recipe = RECIPES["timm-ra"]
    still = replace(recipe, lr_noise=0.0)
    ratios = [
        learning_rate(recipe, epoch, 600, 1) / learning_rate(still, epoch, 600, 1) for epoch in range(600)
    ]
    noisy = [epoch for epoch, ratio in enumerate(ratios) if ratio != 1]
    assert noisy == list(range(252, 540))
    assert len(set(ratios)) == 289 and all(0.33 < ratio < 1.67 for ratio in ratios)


BY_STEP = Recipe(epochs=10, batch_size=128, lr=0.4, schedule="cosine", warmup_epochs=1, warmup_from=0.1)


def test_onecycle_is_torchs() -> None:
    recipe = replace(BY_STEP, schedule="onecycle")
    scheduler = torchs.OneCycleLR(optimizer(recipe), 0.2, total_steps=1000, cycle_momentum=False)
    found = [learning_rate(recipe, step, 1000, 100) for step in range(1000)]
    assert found == pytest.approx(list(from_torch(scheduler, 1000)), rel=1e-10)


def test_a_factor_every_epoch_is_torchs_exponential() -> None:
    recipe = replace(BY_STEP, epochs=200, schedule="exponential", decay=0.97, decay_epochs=1,
                     warmup_epochs=0, by_epoch=True)  # fmt: skip
    scheduler = torchs.ExponentialLR(optimizer(recipe), gamma=0.97)
    found = [learning_rate(recipe, step, 1000, 5) for step in range(1000)]
    assert found == pytest.approx(list(each(from_torch(scheduler, 200), 5)), rel=1e-10)


def test_constant_after_warm_up_is_torchs_linear() -> None:
    recipe = replace(BY_STEP, schedule="constant")
    scheduler = torchs.LinearLR(optimizer(recipe), start_factor=0.1, total_iters=100)
    found = [learning_rate(recipe, step, 1000, 100) for step in range(1000)]
    assert found == pytest.approx(list(from_torch(scheduler, 1000)), rel=1e-10)


def test_a_rate_by_epoch_changes_between_epochs_alone() -> None:
    recipe = replace(BY_STEP, by_epoch=True)
    found = [learning_rate(recipe, step, 1000, 100) for step in range(1000)]
    changes = [step for step in range(1, 1000) if found[step] != found[step - 1]]
    assert changes == list(range(100, 1000, 100))


@pytest.mark.parametrize("schedule", ["cosine", "constant", "exponential"])
def test_warm_up_takes_a_quarter_of_a_short_training_at_most(schedule: str) -> None:
    recipe = replace(BY_STEP, warmup_epochs=5, warmup_from=0.0, schedule=schedule)
    found = [learning_rate(recipe, step, 80, 100) for step in range(80)]
    assert found.index(max(found)) == 20 and max(found) == pytest.approx(0.2)
    assert found[:21] == pytest.approx([0.2 * step / 20 for step in range(21)])


@pytest.mark.parametrize("schedule", ["cosine", "exponential", "onecycle", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_the_shortest_trainings_have_a_rate(schedule: str, steps: int) -> None:
    recipe = replace(BY_STEP, schedule=schedule, lr_noise=0.5)
    rates = [learning_rate(recipe, step, steps, 3) for step in range(steps)]
    assert all(0 < rate <= 0.2 + 1e-12 for rate in rates[:-1]) and 0 <= rates[-1] <= 0.2 + 1e-12


def test_the_rate_grows_with_the_batch() -> None:
    assert peak_lr(replace(BY_STEP, batch_size=256)) == 0.4
    assert peak_lr(replace(BY_STEP, batch_size=1024)) == 1.6
    published = {"paper": 0.16, "torchvision-v1": 0.064, "torchvision-v2": 0.5, "timm-ra": 0.064, "d-li14": 0.4}
    assert {name: peak_lr(RECIPES[name]) for name in published} == pytest.approx(published)
