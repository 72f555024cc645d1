"""Moving averages of weights, and batch norm's statistics."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mobilefit.train import recalibrate_bn
from mobilefit.train.batchnorm import batch_norms, momentum
from mobilefit.train.ema import EMA

from .small import network, same_weights


def scrambled(net: nn.Module, step: int) -> None:
    """New values in every weight and buffer, counters included."""
    generator = torch.Generator().manual_seed(step)
    for value in net.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=generator))
        else:
            value.fill_(step)


@pytest.mark.parametrize("decay", [0.0, 0.6, 0.9999])
def test_average_by_hand_with_buffers_and_warm_up(decay: float) -> None:
    net = network()
    ema = EMA(net, decay)
    expected = {key: value.double() for key, value in net.state_dict().items()}
    for step in range(1, 31):
        scrambled(net, step)
        ema.update()
        warm = min(decay, (1 + step) / (10 + step))
        for key, value in net.state_dict().items():
            if value.is_floating_point():
                expected[key] = warm * expected[key] + (1 - warm) * value.double()
            else:
                expected[key] = value.double()
    assert any("running_var" in key for key in expected)
    for key, value in ema.values.items():
        torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-6)


def test_applied_gives_the_average_and_takes_it_back() -> None:
    net, kept = network(), network()
    ema = EMA(net, 0.5)
    scrambled(net, 1)
    scrambled(kept, 1)
    with pytest.raises(ZeroDivisionError), ema.applied():
        assert same_weights(net, network())
        raise ZeroDivisionError
    assert same_weights(net, kept)


def test_state_goes_on_where_it_was() -> None:
    net = network()
    ema = EMA(net, 0.99)
    for step in range(4):
        scrambled(net, step)
        ema.update()
    other = network(1)
    resumed = EMA(other, 0.99)
    resumed.load_state_dict({"steps": ema.steps, "values": {k: v.clone() for k, v in ema.values.items()}})
    scrambled(net, 9)
    scrambled(other, 9)
    ema.update()
    resumed.update()
    assert all(ema.values[key].equal(resumed.values[key]) for key in ema.values)


def batches_of(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn((6, 3, 8, 8), generator=generator) * (i + 1) for i in range(count)]


@pytest.mark.parametrize("training", [True, False])
def test_recalibrated_statistics_are_the_plain_mean(training: bool) -> None:
    net = network().train(training)
    first = batch_norms(net)[0]
    seen: list[torch.Tensor] = []
    handle = first.register_forward_hook(lambda _module, inputs, _out: seen.append(inputs[0]))
    assert recalibrate_bn(net, iter(batches_of(5))) == 5
    handle.remove()
    means = torch.stack([x.mean((0, 2, 3)) for x in seen])
    variances = torch.stack([x.var((0, 2, 3)) for x in seen])
    torch.testing.assert_close(first.running_mean, means.mean(0))
    torch.testing.assert_close(first.running_var, variances.mean(0))
    assert net.training == net.head.dropout.training == first.training == training
    assert {norm.momentum for norm in batch_norms(net)} == {0.01}


def test_recalibration_is_without_dropout_and_chance() -> None:
    one, other = network(), network()
    torch.manual_seed(1)
    recalibrate_bn(one, batches_of(2))
    torch.manual_seed(2)
    recalibrate_bn(other, batches_of(2))
    assert same_weights(one, other) and not same_weights(one, network())


def test_without_batches_the_statistics_stay() -> None:
    net = network()
    scrambled(net, 4)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert recalibrate_bn(net, []) == 0
    assert all(value.equal(before[key]) for key, value in net.state_dict().items())


def test_a_failing_batch_leaves_momentum_and_mode() -> None:
    net = network().train()
    with pytest.raises(RuntimeError):
        recalibrate_bn(net, [torch.zeros(2, 3, 8, 8), torch.zeros(2, 5, 8, 8)])
    assert net.training and {norm.momentum for norm in batch_norms(net)} == {0.01}


def test_momentum_is_borrowed() -> None:
    net = network()
    with momentum(net, 0.3):
        assert {norm.momentum for norm in batch_norms(net)} == {0.3}
    with momentum(net, None):
        assert {norm.momentum for norm in batch_norms(net)} == {0.01}
    assert {norm.momentum for norm in batch_norms(net)} == {0.01}
