"""Which channels stay, and that the rest of the network still fits them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from mobilefit.adapt import groups, transfer
from mobilefit.arch import FAMILY, Block, NetSpec, reduced_width, spec
from mobilefit.nn import Network, build, load_network, save_weights

from .toy import POOLED, TOY

ALL = ("expansion", "bottleneck", "head")


def trained(net_spec: NetSpec, seed: int = 0) -> Network:
    """Weights and statistics as after a training: nothing is at its initial value."""
    torch.manual_seed(seed)
    network = build(net_spec)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
        elif isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.normal_(module.bias, 0, 0.3)
    return network.eval()


def narrower(net_spec: NetSpec, share: float = 0.7) -> NetSpec:
    """Every width at about that share, at least 8."""
    for group in groups(net_spec, ALL):
        width = max(8, int(group.width * share) // 8 * 8)
        net_spec = group.shrunk(net_spec, min(group.width, width))
    return net_spec


def silence(network: Network, smaller: NetSpec) -> None:
    """Make as many channels of every width exactly zero as ``smaller`` has fewer, by chance."""
    old, new = network.spec, smaller
    generator = torch.Generator().manual_seed(1)

    def lost(before: int, after: int) -> torch.Tensor:
        return torch.randperm(before, generator=generator)[: before - after]

    def mute(layer: nn.Module, channels: torch.Tensor) -> None:
        for module in layer.modules() if not hasattr(layer, "conv") else (layer.conv, layer.norm):
            for parameter in (getattr(module, "weight", None), getattr(module, "bias", None)):
                if parameter is not None:
                    parameter.data[channels] = 0

    def mute_excite(se: nn.Module, before: int, after: int) -> None:
        mute(se.reduce, lost(before, after))

    with torch.no_grad():
        channels = lost(old.stem.out, new.stem.out)
        mute(network.backbone.stem, channels)
        for index, (block, shrunk) in enumerate(zip(old.blocks, new.blocks)):
            row, inputs = network.backbone.blocks[index], channels
            if not block.has_residual(old.widths[index]):
                channels = lost(block.out, shrunk.out)
            wide = inputs
            if block.op == "conv":
                mute(row.conv, channels)
            if block.expand is not None:
                wide = lost(block.expand, shrunk.expand)
                mute(row.expand, wide)
            if block.op not in ("fused", "conv"):
                mute(row.depthwise, wide)
            if block.se is not None:
                widths = [reduced_width(b.se, b.width(s.widths[index]), s.widths[index])
                          for b, s in ((block, old), (shrunk, new))]  # fmt: skip
                mute_excite(row.se, *widths)
            if block.op != "conv":
                mute(row.project, channels)
        if old.last is not None:
            mute(network.backbone.last, lost(old.last.out, new.last.out))
            if old.last.se is not None:
                widths = [reduced_width(s.last.se, s.last.out, s.widths[-1]) for s in (old, new)]
                mute_excite(network.backbone.last.se, *widths)
        if old.head.hidden is not None:
            mute(network.head.hidden, lost(old.head.hidden, new.head.hidden))


def assert_same_function(old: Network, new: Network) -> None:
    side = old.spec.input_size
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, found = old(images), new(images)
    assert expected.std() > 0
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def named(name: str) -> NetSpec:
    if name == "pooled":
        return POOLED
    return spec("mobilenet_v3_small", head="table2") if name == "table2" else spec(name)


@pytest.mark.parametrize("name", [*FAMILY, "table2", "pooled"])
def test_channels_that_are_zero_are_the_ones_that_go(name: str) -> None:
    full = named(name).resolution(32).classes(7)
    smaller = narrower(full)
    assert smaller.cost().params < 0.8 * full.cost().params
    network = trained(full)
    silence(network, smaller)
    assert_same_function(network, transfer(network, smaller).eval())


def test_every_proposed_group_alone_keeps_the_function() -> None:
    small = spec("mobilenet_v3_small").resolution(32).classes(5)
    for group in groups(small, ("bottleneck",)):  # with 48 -> 40, where no residual may appear
        smaller = group.shrunk(small, group.width - 8)
        network = trained(small)
        silence(network, smaller)
        assert_same_function(network, transfer(network, smaller).eval())


@pytest.mark.parametrize("made", [TOY, POOLED], ids=["toy", "pooled"])
def test_the_same_spec_gives_the_same_network(made: NetSpec) -> None:
    network = trained(made)
    copy = transfer(network, made)
    for (name, old), new in zip(network.state_dict().items(), copy.state_dict().values()):
        assert torch.equal(old, new), name
    assert_same_function(network, copy)
    assert copy is not network and not copy.training
    assert transfer(network.train(), made).training


def test_the_old_network_is_left_alone() -> None:
    network = trained(TOY)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    new = transfer(network, narrower(TOY, 0.5))
    for value in new.parameters():
        value.data.zero_()
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def scaled(network: Network, layer: str, norms: list[float]) -> None:
    """Give the filters of a layer these L2 norms."""
    weight = network.layer(layer).weight.data
    shape = (-1, *[1] * (weight.ndim - 1))
    weight /= weight.flatten(1).norm(dim=1).view(shape)
    weight *= torch.tensor(norms).view(shape)


def test_the_strongest_filters_stay_in_their_order() -> None:
    network = trained(TOY)
    norms = [2.5, 1, 9, 2, 8, 4, 7, 5, 1, 1, 6, 1, 3, 2, 10, 1]
    scaled(network, "blocks.0.expand.conv", norms)
    new = transfer(network, groups(TOY)[0].shrunk(TOY, 8))
    strongest = [2, 4, 5, 6, 7, 10, 12, 14]
    old_row, new_row = network.backbone.blocks[0], new.backbone.blocks[0]
    assert torch.equal(new_row.expand.conv.weight, old_row.expand.conv.weight[strongest])
    assert torch.equal(new_row.depthwise.conv.weight, old_row.depthwise.conv.weight[strongest])
    assert torch.equal(new_row.project.conv.weight, old_row.project.conv.weight[:, strongest])
    for part in ("expand", "depthwise"):
        for name in ("weight", "bias", "running_mean", "running_var"):
            old, narrow = (getattr(getattr(row, part).norm, name) for row in (old_row, new_row))
            assert torch.equal(narrow, old[strongest])


def test_of_equal_filters_the_first_stay() -> None:
    network = trained(TOY)
    network.layer("blocks.0.expand.conv").weight.data.fill_(0.5)
    new = transfer(network, groups(TOY)[0].shrunk(TOY, 8))
    assert _kept_inside(network, new, "blocks.0.project.conv") == list(range(8))


def test_residual_groups_are_ranked_by_their_joint_norm() -> None:
    wide = replace(
        TOY,
        stem=replace(TOY.stem, out=16),
        blocks=(Block(expand=16, out=16), Block(expand=16, out=16), *TOY.blocks[1:]),
    )
    network = trained(wide)
    # Alone, the stem would keep channels 0 to 7, the first block 8 to 15, the second 4 to 11.
    scaled(network, "stem.conv", [5.0] * 8 + [1.0] * 8)
    scaled(network, "blocks.0.project.conv", [1.0] * 8 + [4.0] * 8)
    scaled(network, "blocks.1.project.conv", [1.0] * 4 + [3.5] * 8 + [1.0] * 4)
    # Squares: 25+1+1, 25+1+12.25, 1+16+12.25, 1+16+1
    joint = [4, 5, 6, 7, 8, 9, 10, 11]
    smaller = replace(
        wide,
        stem=replace(wide.stem, out=8),
        blocks=(*(replace(block, out=8) for block in wide.blocks[:2]), *wide.blocks[2:]),
    )
    new = transfer(network, smaller)
    for layer in ("stem.conv", "blocks.0.project.conv", "blocks.1.project.conv"):
        old, narrow = network.layer(layer).weight, new.layer(layer).weight
        inputs = slice(None) if layer == "stem.conv" else _kept_inside(network, new, layer)
        assert torch.equal(narrow, old[joint][:, inputs]), layer


def test_a_pool_joins_the_ranking_at_any_stride() -> None:
    network = trained(POOLED)
    # Alone, the stem would keep channels 0 to 7, the first row 8 to 15, the second 4 to 11.
    scaled(network, "stem.conv", [5.0] * 8 + [1.0] * 8)
    scaled(network, "blocks.0.project.conv", [1.0] * 8 + [4.0] * 8)
    scaled(network, "blocks.1.conv.conv", [1.0] * 4 + [3.5] * 8 + [1.0] * 4)
    new = transfer(network, groups(POOLED, ("bottleneck",))[0].shrunk(POOLED, 8))
    joint = [4, 5, 6, 7, 8, 9, 10, 11]
    assert torch.equal(new.layer("stem.conv").weight, network.layer("stem.conv").weight[joint])
    old_row, new_row = network.backbone.blocks[1], new.backbone.blocks[1]
    assert torch.equal(new_row.conv.conv.weight, old_row.conv.conv.weight[joint][:, joint])
    assert torch.equal(new_row.se.expand.bias, old_row.se.expand.bias[joint])


def _kept_inside(old: Network, new: Network, layer: str) -> list[int]:
    inner = layer.replace("project.conv", "depthwise.conv")
    before, after = old.layer(inner).weight, new.layer(inner).weight
    return [next(i for i in range(len(before)) if torch.equal(before[i], w)) for w in after]


def test_the_squeeze_keeps_its_strongest_filters() -> None:
    wide = replace(TOY, blocks=(*TOY.blocks[:2], replace(TOY.blocks[2], expand=64)))
    network = trained(wide)
    scaled(network, "blocks.2.se.reduce", [1.0, 2.0] * 8)  # 64 / 4 = 16 wide
    new = transfer(network, groups(wide)[2].shrunk(wide, 32))  # 32 / 4 = 8
    kept = _kept_inside(network, new, "blocks.2.project.conv")
    odd = list(range(1, 16, 2))
    old_se, new_se = network.backbone.blocks[2].se, new.backbone.blocks[2].se
    assert torch.equal(new_se.reduce.weight, old_se.reduce.weight[odd][:, kept])
    assert torch.equal(new_se.reduce.bias, old_se.reduce.bias[odd])
    assert torch.equal(new_se.expand.weight, old_se.expand.weight[kept][:, odd])
    assert torch.equal(new_se.expand.bias, old_se.expand.bias[kept])


def test_a_squeeze_on_the_stem_goes_along() -> None:
    excited = replace(TOY, stem=replace(TOY.stem, se="v3"))
    network = trained(excited)
    assert_same_function(network, transfer(network, excited).eval())


def test_a_wider_network_is_refused() -> None:
    with pytest.raises(AssertionError, match="narrower"):
        transfer(trained(TOY), replace(TOY, stem=replace(TOY.stem, out=16)))


def test_the_result_is_a_network_like_any_other(tmp_path) -> None:  # type: ignore[no-untyped-def]
    new = transfer(trained(TOY), narrower(TOY, 0.5))
    save_weights(new, tmp_path / "net.safetensors")
    assert_same_function(new.eval(), load_network(tmp_path / "net.safetensors").eval())
    assert new.spec == narrower(TOY, 0.5)
    assert sum(p.numel() for p in new.parameters()) == new.spec.cost().params
