"""Building: initialisation, dropout, batch norm's constants, classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from mobilefit.arch import BatchNorm, Block, spec
from mobilefit.errors import InputError
from mobilefit.nn import Network, build

SMALL = spec("mobilenet_v3_small")


def parameters(network: Network, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kind)]


def fresh(**options: str) -> Network:
    torch.manual_seed(0)
    return build(SMALL, **options)  # type: ignore[arg-type]


def test_kaiming_is_by_fan_out_for_convolutions_and_a_hundredth_for_linear_layers() -> None:
    network = fresh()
    for name in ("blocks.10.expand.conv", "last.conv", "blocks.10.depthwise.conv"):
        weight = network.layer(name).weight
        fan_out = weight.shape[0] * weight.shape[2] * weight.shape[3]
        assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    for layer in parameters(network, nn.Linear):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02)


def test_slim_is_a_cut_normal_everywhere() -> None:
    layers = [m for m in fresh(init="slim").modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert all(layer.weight.abs().max() <= 0.18 for layer in layers)
    for layer in layers:
        if layer.weight.numel() > 10_000:  # cut at two deviations, 0.88 of the deviation is left
            assert layer.weight.std().item() == pytest.approx(0.0792, rel=0.03)


@pytest.mark.parametrize("init", ["kaiming", "slim"])
def test_biases_start_at_zero_and_norms_at_one(init: str) -> None:
    network = fresh(init=init)
    biases = [m.bias for m in network.modules() if getattr(m, "bias", None) is not None]
    assert not any(bias.any() for bias in biases)
    for norm in parameters(network, nn.BatchNorm2d):
        assert (norm.weight == 1).all() and (norm.running_var == 1).all()


def test_a_seed_makes_the_same_weights() -> None:
    one, two = fresh().state_dict(), fresh().state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_an_unknown_initialisation_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown initialisation 'kaming'; did you mean 'kaiming'"):
        build(SMALL, init="kaming")  # type: ignore[arg-type]


def test_classes_are_the_specs_or_those_asked_for() -> None:
    assert build(SMALL.width(0.35).classes(3)).head.logits.out_features == 3
    asked = build(SMALL.width(0.35), num_classes=5)
    assert asked.head.logits.out_features == asked.spec.head.num_classes == 5


def test_dropout_acts_on_the_hidden_layer_while_training_alone() -> None:
    torch.manual_seed(0)
    network = build(SMALL, num_classes=4)
    assert network.head.dropout.p == 0.2
    seen = []
    network.head.logits.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    features = torch.rand(8, 576, 2, 2) + 1
    network.head.hidden.bias.data.fill_(9)  # nothing is zero by itself
    network.head.train()(features)
    network.head.eval()(features)
    trained, evaluated = seen
    assert (trained == 0).float().mean().item() == pytest.approx(0.2, abs=0.02)
    kept = trained != 0
    assert torch.allclose(trained[kept], evaluated[kept] / 0.8)


def test_networks_differ_in_dropout() -> None:
    rates = {name: build(spec(name).width(0.25)).head.dropout.p for name in
             ("mobilenet_v1", "mobilenet_v2", "mnasnet_a1", "mnasnet_small")}  # fmt: skip
    assert list(rates.values()) == [0.0, 0.2, 0.2, 0.0]


def test_batch_norms_constants_are_the_specs() -> None:
    norms = parameters(build(SMALL.width(0.35)), nn.BatchNorm2d)
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
    made = replace(SMALL.width(0.35), norm=BatchNorm(eps=1e-5, momentum=0.1))
    norms = parameters(build(made), nn.BatchNorm2d)
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-5, 0.1)}


def test_no_convolution_before_a_norm_has_a_bias() -> None:
    convs = {n: m for n, m in build(SMALL).named_modules() if isinstance(m, nn.Conv2d)}
    assert all((conv.bias is None) != (".se." in name) for name, conv in convs.items())


def test_a_grey_input() -> None:
    network = build(replace(SMALL.width(0.35), in_channels=1), num_classes=2).eval()
    assert network(torch.zeros(1, 1, 32, 32)).shape == (1, 2)


def test_without_a_last_convolution_the_head_takes_the_last_row() -> None:
    network = build(replace(SMALL.width(0.35), last=None), num_classes=2).eval()
    assert network.head.hidden.in_features == network.spec.widths[-1]
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


def test_a_batch_gives_what_its_images_give_alone() -> None:
    network = fresh().eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        together = network(images)
        alone = torch.cat([network(image[None]) for image in images])
    assert torch.allclose(together, alone, atol=1e-6)


BLOCKS = [
    Block(op=op, kernel=kernel, stride=stride, expand=expand, out=8, se=se, skip=skip)
    for op, expand in (("conv", None), ("separable", None), ("inverted", None), ("inverted", 24),
                       ("fused", 24))
    for kernel in (3, 5)
    for stride in (1, 2)
    for se in (None, "mnasnet")
    for skip in ("identity", "pool", "none")
]  # fmt: skip
BLOCKS += [
    replace(block, start_kernel=start, kernel=kernel)
    for block in BLOCKS if block.op == "inverted" and block.expand is not None and block.kernel == 3
    for start, kernel in ((5, 3), (3, 0), (0, 0)) if start or block.stride == 1
]  # fmt: skip


@pytest.mark.parametrize("inputs", [8, 16])
def test_every_block_of_the_search_space_is_built_as_it_is_counted(inputs: int) -> None:
    for block in BLOCKS:
        stem = replace(SMALL.stem, out=inputs)
        made = replace(SMALL, stem=stem, blocks=(block,), last=None).classes(2).resolution(14)
        network = build(made).eval()
        assert sum(p.numel() for p in network.parameters()) == made.cost().params
        layers = made.cost().of("blocks.0").layers
        names = [name for name, _ in network.backbone.blocks[0].layers()]
        assert [f"blocks.0.{name}" for name in names] == [layer.name for layer in layers]
        assert any(layer.residual for layer in layers) == network.backbone.blocks[0].residual
        features = network.backbone.blocks(network.backbone.stem(torch.zeros(1, 3, 14, 14)))
        assert features.shape == (1, 8, layers[-1].out_size, layers[-1].out_size)


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2"])
def test_a_network_beyond_all_memory_is_refused_before_it_is_made(name: str) -> None:
    """Within the limits of a layer, and 5 to 11 GB of parameters all together."""
    with pytest.raises(InputError, match=r"has [\d,]{13} parameters, more than 536,870,912"):
        build(spec(name).width(30))
