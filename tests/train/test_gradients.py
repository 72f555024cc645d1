"""A step's gradients are those of the mean loss, each term by its own count."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mobilefit.train.trainer import Trainer


class TwoTerms:
    """Over all images, and over those with a label that is not 0."""

    def prepared(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return images, targets

    def counts(self, targets: Tensor) -> tuple[int, int]:
        return len(targets), int((targets > 0).sum())

    def __call__(self, outputs: Tensor, targets: Tensor, images: Tensor) -> Tensor:
        values = outputs[:, 0]
        return torch.stack([values.sum(), (targets * values**2).sum()])


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_each_term_is_a_mean_over_its_own_count(parts: int) -> None:
    model = nn.Linear(3, 1)
    backward: Callable[[Tensor], Any] = torch.Tensor.backward
    fabric = SimpleNamespace(
        world_size=1, device=torch.device("cpu"), backward=backward, autocast=contextlib.nullcontext,
        no_backward_sync=lambda *_, **__: contextlib.nullcontext(),
    )  # fmt: skip
    trainer: Any = SimpleNamespace(
        fabric=fabric, _model=model, _objective=TwoTerms(), recipe=SimpleNamespace(accumulate=parts)
    )
    images = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 0, 1, 0, 0, 0, 1, 0])  # 8 images, 2 with a label
    value = Trainer._gradients(trainer, images, targets)

    outputs = model(images)[:, 0]
    loss = outputs.mean() + (outputs[targets > 0] ** 2).mean()
    expected = torch.autograd.grad(loss, list(model.parameters()))
    assert value == pytest.approx(loss.item(), rel=1e-5)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient)
