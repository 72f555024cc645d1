"""Networks that other pruners made, read back from torchvision's MobileNetV2: without the pruners."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2

import mobilefit as mf
from benchmarks import design_peers
from mobilefit.arch import NetSpec
from mobilefit.nn import Network

TENSORFLOW = mf.spec("mobilenet_v2").resolution(32).classes(3)
BASE = replace(TENSORFLOW, padding="torch", norm=replace(TENSORFLOW.norm, eps=1e-5))
NARROW = [[1, 8, 1, 1], [5.5, 16, 2, 2], [4, 16, 3, 2], [3, 24, 4, 2], [2, 24, 3, 1], [6, 80, 3, 2], [2, 40, 1, 1]]
"""Factor, width, blocks, stride; the fourth and fifth stage as wide as each other, as pruning may leave them."""

N = TypeVar("N", bound=nn.Module)


def with_statistics(network: N) -> N:
    """Batch norms that are no identity, and shift each channel differently."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.uniform_(0.5, 1.5)
    return network.eval()


def pruned() -> nn.Module:
    """As a pruner leaves it: the layers are narrower, and what adds its input is still what it was."""
    theirs = mobilenet_v2(num_classes=3, width_mult=1.0, inverted_residual_setting=NARROW, round_nearest=8)
    theirs.features[11].use_res_connect = False
    return with_statistics(theirs)


def test_a_pruned_network_is_read_with_its_widths_and_logits() -> None:
    theirs = pruned()
    network = design_peers.from_torchvision(theirs, BASE)
    blocks = network.spec.blocks
    assert [block.out for block in blocks] == [width for _, width, count, _ in NARROW for _ in range(count)]
    assert [block.expand for block in blocks[:4]] == [None, 44, 88, 64]
    assert network.spec.input_size == 32 and network.spec.head.num_classes == 3
    images = torch.randn(2, 3, 32, 32)
    assert torch.allclose(network(images), theirs(images), atol=1e-4)


def test_widths_that_became_equal_add_nothing() -> None:
    spec = design_peers.from_torchvision(pruned(), BASE).spec
    residual = [block.has_residual(inputs) for block, inputs in zip(spec.blocks, spec.widths)]
    assert residual == [block.has_residual(inputs) for block, inputs in zip(BASE.blocks, BASE.widths)]
    assert spec.widths[10] == spec.widths[11] and not residual[10]


def test_other_logits_are_not_accepted() -> None:
    theirs = pruned()
    theirs.features[11].use_res_connect = True
    with pytest.raises(AssertionError):
        design_peers.from_torchvision(theirs, BASE)


def test_to_torchvision_and_back_is_the_same_network() -> None:
    network = with_statistics(Network(BASE))
    back = design_peers.from_torchvision(design_peers.as_torchvision(network), BASE)
    assert mf.arch.difference(BASE, replace(back.spec, blocks=BASE.blocks)) == []
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), back.state_dict().values(), strict=True))
    with pytest.raises(AssertionError):
        design_peers.as_torchvision(with_statistics(Network(BASE.padded("same"))))


def test_the_largest_network_within_the_budget_is_bisected() -> None:
    sizes = {BASE.resolution(side): side / 100 for side in range(96, 32, -2)}
    measured: list[float] = []

    def share(spec: NetSpec) -> float:
        measured.append(sizes[spec])
        return sizes[spec]

    smaller = [lambda spec=spec: Network(spec) for spec in sizes]
    assert design_peers.first_within(smaller, share, 0.45).spec.input_size == 44
    assert len(measured) <= 6
    with pytest.raises(SystemExit, match="34"):
        design_peers.first_within(smaller, share, 0.3)


def test_a_missing_pruner_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(SystemExit) as stopped:
        design_peers.check_installed("torch-pruning")
    assert "requirements-pruning.txt" in str(stopped.value)
    design_peers.check_installed("taught")
