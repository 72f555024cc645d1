from __future__ import annotations

import json

import pytest

from mobilefit.errors import InputError
from mobilefit.train import RECIPES, Recipe, recipe


def test_all_problems_at_once() -> None:
    with pytest.raises(InputError) as caught:
        Recipe(
            epochs=0, batch_size=-1, lr=float("nan"), weight_decay=-1e-5, momentum=1.5,
            label_smoothing=-0.1, ema_decay=2, bn_momentum=3, optimizer="adam",  # type: ignore[arg-type]
            schedule="cosinus", augment="lite", precision="bf16",  # type: ignore[arg-type]
        )  # fmt: skip
    message = str(caught.value)
    assert message.startswith("bad recipe: ") and "\n" not in message
    for name in (
        "epochs is 0", "batch_size is -1", "lr is nan", "weight_decay is -1e-05",
        "momentum is 1.5", "label_smoothing is -0.1", "ema_decay is 2", "bn_momentum is 3",
        "did you mean 'adamw'?", "did you mean 'cosine'?", "did you mean 'light'?",
        "unknown precision 'bf16'",
    ):  # fmt: skip
        assert name in message


def test_edges_are_allowed() -> None:
    edges = Recipe(
        epochs=1, momentum=0, rho=1, label_smoothing=0, ema_decay=None, bn_momentum=None,
        weight_decay=0, warmup_epochs=0,
    )  # fmt: skip
    assert json.loads(json.dumps(edges.to_dict()))["ema_decay"] is None
    assert Recipe(**edges.to_dict()) == edges


def test_a_typo_in_a_recipes_name_suggests() -> None:
    with pytest.raises(InputError, match="unknown recipe 'papr'; did you mean 'paper'"):
        recipe("papr")
    assert recipe("fast") is RECIPES["fast"]


def test_the_papers_numbers() -> None:
    """TF-slim's README, "MobileNetV3 training", and section 6.1.1 of the paper."""
    paper = recipe("paper")
    assert paper.lr * 8 * 192 / 256 == pytest.approx(0.16)
    expected = {
        "batch_size": 192, "optimizer": "rmsprop_tf", "momentum": 0.9, "rho": 0.9, "eps": 0.002,
        "weight_decay": 1e-5, "schedule": "exponential", "decay": 0.99, "decay_epochs": 3,
        "warmup_epochs": 5, "label_smoothing": 0.1, "ema_decay": 0.9999, "bn_momentum": None,
        "augment": "inception",
    }  # fmt: skip
    found = paper.to_dict()
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("steps", "decay"), [(1, 0.0), (20, 0.0), (40, 0.5), (2000, 0.99), (10**6, 0.9999)]
)
def test_the_average_spans_a_twentieth_of_the_training_at_most(steps: int, decay: float) -> None:
    assert Recipe(epochs=1).ema_decay_for(steps) == pytest.approx(decay)
    assert Recipe(epochs=1, ema_decay=0.3).ema_decay_for(steps) == min(0.3, decay)
    assert Recipe(epochs=1, ema_decay=None).ema_decay_for(steps) is None
