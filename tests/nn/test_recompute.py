"""Batch norm and h-swish in less memory are batch norm and h-swish."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mobilefit.arch import BatchNorm
from mobilefit.nn import recompute
from mobilefit.nn.layers import ConvNormAct, SqueezeExcite


def layer(**changed: object) -> ConvNormAct:
    torch.manual_seed(0)
    made = ConvNormAct(8, 16, act="hard_swish", padding="same", norm=BatchNorm(), **changed)  # type: ignore[arg-type]
    nn.init.normal_(made.norm.weight, 2.0, 1.0)
    nn.init.normal_(made.norm.bias)
    return made.to(memory_format=torch.channels_last)


def images() -> torch.Tensor:
    x = torch.randn(4, 8, 10, 6, generator=torch.Generator().manual_seed(1)) * 3
    return x.contiguous(memory_format=torch.channels_last)


def always(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """However small the map. Grows with every layer that is computed so."""
    used: list[bool] = []
    original = recompute.norm_hardswish
    monkeypatch.setattr(recompute, "LEAST", 1)
    monkeypatch.setattr(recompute, "norm_hardswish", lambda *a: (used.append(True), original(*a))[1])
    return used


def trained(made: nn.Module, steps: int = 3) -> dict[str, torch.Tensor]:
    """Outputs, gradients and state after some steps."""
    found = {}
    for step in range(steps):
        x = (images() + step).requires_grad_()
        made.zero_grad()
        y = made(x)
        (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
        assert x.grad is not None
        found |= {f"{step}.out": y.detach(), f"{step}.in": x.grad}
        found |= {f"{step}.{name}": p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
    return {**found, **made.state_dict()}


@pytest.mark.parametrize("excited", [False, True])
def test_outputs_gradients_and_statistics_are_those_of_the_layers(
    excited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = layer()
    if excited:
        made.se = SqueezeExcite(16, 8, "v3")
    plain = trained(copy.deepcopy(made))
    used = always(monkeypatch)
    ours = trained(made)
    assert len(used) == 3 and int(made.norm.num_batches_tracked) == 3
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_a_norm_without_statistics_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As shared weights have it: their batch norms know the batch alone."""
    made = layer()
    made.norm.running_mean = made.norm.running_var = made.norm.num_batches_tracked = None
    plain = trained(copy.deepcopy(made))
    used = always(monkeypatch)
    torch.testing.assert_close(trained(made), plain, rtol=1e-4, atol=1e-5)
    assert len(used) == 3


def kept(made: nn.Module) -> int:
    """Bytes of the maps that wait for the backward pass, each counted once."""
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() == 4:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = images().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made(x)
    return sum(saved.values())


def test_one_map_less_waits_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    made = nn.Sequential(layer(), nn.Conv2d(16, 4, 1))
    plain = kept(made)
    monkeypatch.setattr(recompute, "LEAST", 1)
    assert plain - kept(made) == 4 * 16 * 10 * 6 * 4


def test_frozen_parameters_get_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompute, "LEAST", 1)
    made = layer()
    made.norm.weight.requires_grad_(False)
    x = images().requires_grad_()
    made(x).sum().backward()
    assert made.norm.weight.grad is None and made.norm.bias.grad is not None and x.grad is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made.norm.eval(),
        lambda made: setattr(made.norm, "momentum", None),
        lambda made: setattr(made, "act", nn.ReLU()),
        lambda made: made.double(),
    ],
    ids=["frozen statistics", "cumulative statistics", "another activation", "another precision"],
)
def test_what_is_otherwise_is_left_to_torch(change: object, monkeypatch: pytest.MonkeyPatch) -> None:
    made = layer()
    change(made)  # type: ignore[operator]
    plain = trained_once(copy.deepcopy(made))
    monkeypatch.setattr(recompute, "LEAST", 1)
    monkeypatch.setattr(recompute, "norm_hardswish", None)
    assert torch.equal(trained_once(made), plain)


def trained_once(made: ConvNormAct) -> torch.Tensor:
    y: torch.Tensor = made(images().to(made.conv.weight.dtype))
    return y.detach()
