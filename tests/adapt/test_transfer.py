"""Which channels stay, and that the rest of the network still fits them."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from mobilefit.adapt import groups, removable, transfer
from mobilefit.adapt.proposals import without_blocks
from mobilefit.adapt.transfer import leave_out
from mobilefit.arch import (
    FAMILY,
    Block,
    NetSpec,
    SegmentationHead,
    SSDLiteHead,
    reduced_width,
    segmenter,
    spec,
)
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
    with torch.no_grad():
        Silence().of(network, smaller)


class Silence:
    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(1)

    def lost(self, before: int, after: int) -> torch.Tensor:
        return torch.randperm(before, generator=self.generator)[: before - after]

    def mute(self, layer: nn.Module, channels: torch.Tensor) -> None:
        for module in layer.modules() if not hasattr(layer, "conv") else (layer.conv, layer.norm):
            for parameter in (getattr(module, "weight", None), getattr(module, "bias", None)):
                if parameter is not None:
                    parameter.data[channels] = 0

    def of(self, network: Network, smaller: NetSpec) -> None:
        taps = self.backbone(network, smaller)
        old, new, head = network.spec.head, smaller.head, network.head
        if isinstance(old, SSDLiteHead):
            self.detector(head, old.extras, new.extras, [taps[name] for name in old.taps])  # type: ignore[union-attr]
        elif isinstance(old, SegmentationHead):
            self.segmenter(head, old.filters, new.filters)  # type: ignore[union-attr]
        elif old.hidden is not None:
            self.mute(head.hidden, self.lost(old.hidden, new.hidden))  # type: ignore[union-attr]

    def backbone(self, network: Network, new: NetSpec) -> dict[str, torch.Tensor]:
        old, taps = network.spec, {}
        channels = self.lost(old.stem.out, new.stem.out)
        self.mute(network.backbone.stem, channels)
        for index, (block, shrunk) in enumerate(zip(old.blocks, new.blocks)):
            row, inputs = network.backbone.blocks[index], channels
            if not block.has_residual(old.widths[index]):
                channels = self.lost(block.out, shrunk.out)
            wide = inputs
            if block.op == "conv":
                self.mute(row.conv, channels)
            if block.expand is not None:
                wide = self.lost(block.expand, shrunk.expand)
                self.mute(row.expand, wide)
            if block.start_kernel:  # else its norm's shift would stay
                self.mute(row.start, inputs)
            if block.op not in ("fused", "conv") and block.kernel:
                self.mute(row.depthwise, wide)
            if block.se is not None:
                widths = [reduced_width(b.se, b.width(s.widths[index]), s.widths[index])
                          for b, s in ((block, old), (shrunk, new))]  # fmt: skip
                self.mute(row.se.reduce, self.lost(*widths))
            if block.op != "conv":
                self.mute(row.project, channels)
            taps |= {f"blocks.{index}": channels, f"blocks.{index}.expand": wide}
        if old.last is not None:
            channels = taps["last"] = self.lost(old.last.out, new.last.out)
            self.mute(network.backbone.last, channels)
            if old.last.se is not None:
                widths = [reduced_width(s.last.se, s.last.out, s.widths[-1]) for s in (old, new)]
                self.mute(network.backbone.last.se.reduce, self.lost(*widths))
        return taps

    def detector(
        self, head: nn.Module, old: tuple[int, ...], new: tuple[int, ...], maps: list[torch.Tensor]
    ) -> None:
        for extra, before, after in zip(head.extras, old, new, strict=True):
            narrow = self.lost(before // 2, after // 2)
            maps = [*maps, self.lost(before, after)]
            self.mute(extra.reduce, narrow)
            self.mute(extra.depthwise, narrow)
            self.mute(extra.project, maps[-1])
        for index, channels in enumerate(maps):
            # A map's silent channel would still give its predictor the norm's shift.
            self.mute(head.classes[index].depthwise, channels)
            self.mute(head.boxes[index].depthwise, channels)

    def segmenter(self, head: nn.Module, old: int, new: int) -> None:
        if hasattr(head, "gate"):
            channels = self.lost(old, new)
            self.mute(head.project, channels)
            self.mute(head.gate, channels)
            return
        for part in (head.project, head.image, head.merge):
            self.mute(part, self.lost(old, new))


def assert_same_function(old: Network, new: Network) -> None:
    shape = (2, 3, *old.spec.image_shape)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        pair = [out if isinstance(out, tuple) else (out,) for out in (old(images), new(images))]
    for expected, found in zip(*pair, strict=True):
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


LIKE_TORCHVISION = segmenter(spec("mobilenet_v3_large"), like="torchvision")
HEADS = [
    "ssdlite_mobilenet_v3_small", "ssdlite_mobilenet_v3_large_reduced", "ssdlite_mobilenet_v2",
    "ssdlite_mobilenet_v1", "lraspp_mobilenet_v3_small", "lraspp_mobilenet_v2",
    "raspp_mobilenet_v3_large", "raspp_mobilenet_v2", "like torchvision", "ssdlite_mobilenetv4_conv_small",
    "lraspp_mobilenetv4_conv_small",
]  # fmt: skip


def of_task(name: str) -> NetSpec:
    made = LIKE_TORCHVISION if name == "like torchvision" else spec(name)
    return made.resolution(64, 96).classes(5)


@pytest.mark.parametrize("name", HEADS)
def test_silent_channels_of_a_head_are_the_ones_that_go(name: str) -> None:
    full = of_task(name)
    smaller = narrower(full)
    assert all(now < before for now, before in zip(smaller.head.widths.values(), full.head.widths.values()))
    assert smaller.cost().params < 0.8 * full.cost().params
    network = trained(full)
    silence(network, smaller)
    assert_same_function(network, transfer(network, smaller).eval())


@pytest.mark.parametrize("name", ["ssdlite_mobilenet_v3_small", "lraspp_mobilenet_v3_small", "raspp_mobilenet_v2"])
def test_every_group_that_a_head_follows_keeps_its_function_alone(name: str) -> None:
    full, network = of_task(name), trained(of_task(name))
    taps = getattr(full.head, "taps", None) or (full.head.tap, full.head.skip)  # type: ignore[union-attr]
    touched = [g for g in groups(full, ALL) if g.kind == "head" or _is_taken(g.members, taps)]
    assert len(touched) > 2
    for group in touched:
        smaller = group.shrunk(full, group.width // 2 // 8 * 8)
        muted = copy.deepcopy(network)
        silence(muted, smaller)
        assert_same_function(muted, transfer(muted, smaller).eval())


def _is_taken(blocks: tuple[int, ...], taps: tuple[str | None, ...]) -> bool:
    return any(f"{tap}.".startswith(f"blocks.{index}.") for index in blocks for tap in taps)


def test_every_proposed_group_alone_keeps_the_function() -> None:
    small = spec("mobilenet_v3_small").resolution(32).classes(5)
    for group in groups(small, ("bottleneck",)):  # with 48 -> 40, where no residual may appear
        smaller = group.shrunk(small, group.width - 8)
        network = trained(small)
        silence(network, smaller)
        assert_same_function(network, transfer(network, smaller).eval())


@pytest.mark.parametrize("made", [TOY, POOLED, *map(of_task, HEADS)], ids=["toy", "pooled", *HEADS])
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


def test_filters_and_their_gates_are_ranked_by_their_joint_norm() -> None:
    full = of_task("lraspp_mobilenet_v3_small")
    full = replace(full, head=replace(full.head, filters=16))  # type: ignore[type-var]
    network = trained(full)
    # Alone, the filters would keep channels 0 to 7, their gates 8 to 15.
    scaled(network, "head.project.conv", [3.0] * 4 + [2.0] * 4 + [1.0] * 8)
    scaled(network, "head.gate", [1.0] * 8 + [2.5] * 4 + [2.0] * 4)
    # Squares: 9+1, 4+1, 1+6.25, 1+4
    smaller = replace(full, head=replace(full.head, filters=8))  # type: ignore[type-var]
    new = transfer(network, smaller)
    joint = [0, 1, 2, 3, 8, 9, 10, 11]
    for layer in ("head.project.conv", "head.gate"):
        assert torch.equal(new.layer(layer).weight, network.layer(layer).weight[joint]), layer
    assert torch.equal(new.layer("head.high").weight, network.layer("head.high").weight[:, joint])


def test_branches_that_are_concatenated_keep_channels_of_their_own() -> None:
    full = of_task("raspp_mobilenet_v2")
    full = replace(full, head=replace(full.head, filters=16))  # type: ignore[type-var]
    network = trained(full)
    for layer, strong in (("image", 0), ("project", 8), ("merge", 4)):
        scaled(network, f"head.{layer}.conv", [3.0 if 0 <= i - strong < 8 else 1.0 for i in range(16)])
    new = transfer(network, replace(full, head=replace(full.head, filters=8)))  # type: ignore[type-var]
    joined = [*range(8), *range(16 + 8, 16 + 16)]  # the image comes first
    old = network.layer("head.merge.conv").weight
    assert torch.equal(new.layer("head.merge.conv").weight, old[4:12][:, joined])
    assert torch.equal(new.layer("head.high").weight, network.layer("head.high").weight[:, 4:12])


def test_predictors_follow_the_channels_of_the_expansion_that_they_take() -> None:
    full = of_task("ssdlite_mobilenet_v3_small")
    network = trained(full)
    (group,) = [g for g in groups(full) if g.name == full.head.taps[0]]  # type: ignore[union-attr]
    strong = list(range(8, 8 + group.width // 2))
    scaled(network, f"{group.name}.conv", [2.0 if i in strong else 1.0 for i in range(group.width)])
    new = transfer(network, group.shrunk(full, len(strong)))
    for part in ("classes", "boxes"):
        for layer, cut in ((f"head.{part}.0.depthwise.conv", strong), (f"head.{part}.0.predict", None)):
            old, narrow = network.layer(layer).weight, new.layer(layer).weight
            assert torch.equal(narrow, old[cut] if cut else old[:, strong]), layer
    assert torch.equal(new.layer("head.boxes.1.predict").weight, network.layer("head.boxes.1.predict").weight)


def test_a_squeeze_on_the_stem_goes_along() -> None:
    excited = replace(TOY, stem=replace(TOY.stem, se="v3"))
    network = trained(excited)
    assert_same_function(network, transfer(network, excited).eval())


@pytest.mark.parametrize("name", ["blocks.1.expand", "stem.out", "blocks.1.out"])
def test_missing_weights_of_a_wider_network_are_random(name: str) -> None:
    """What is there stays first; with the new channels' ways out at zero the network is the same."""
    network = trained(TOY)
    (group,) = [group for group in groups(TOY) if group.name == name]
    torch.manual_seed(0)
    wider = transfer(network, group.shrunk(TOY, group.width + 8)).eval()
    torch.manual_seed(1)
    other = transfer(network, wider.spec)
    same, fresh = [], []
    for (key, new), twin in zip(wider.state_dict().items(), other.state_dict().values(), strict=True):
        old = network.state_dict()[key]
        first = tuple(slice(size) for size in old.shape)
        assert torch.equal(new[first], old), key
        if new.ndim > 1 and new.shape != old.shape:
            (same if torch.equal(new, twin) else fresh).append(key)
    assert fresh and not same
    with torch.no_grad():
        for key, value in wider.named_parameters():
            old = network.get_parameter(key)
            if value.ndim > 1 and value.shape[1] > old.shape[1]:
                value[:, old.shape[1] :] = 0
    assert_same_function(network, wider)


def test_a_network_that_is_wider_in_one_place_may_be_narrower_in_another() -> None:
    network = trained(TOY)
    blocks = (replace(TOY.blocks[0], expand=24), replace(TOY.blocks[1], expand=8), TOY.blocks[2])
    new = transfer(network, replace(TOY, blocks=blocks))
    assert torch.equal(new.layer("blocks.0.expand").conv.weight[:16], network.layer("blocks.0.expand").conv.weight)
    assert new.layer("blocks.1.expand").conv.weight.shape[0] == 8


def test_r_aspp_becomes_no_wider() -> None:
    full = of_task("raspp_mobilenet_v2")
    with pytest.raises(AssertionError, match="fewer"):
        transfer(trained(full), replace(full, head=replace(full.head, filters=512)))  # type: ignore[type-var]


@pytest.mark.parametrize("name", ["toy", *HEADS])
def test_the_result_is_a_network_like_any_other(name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    full = TOY if name == "toy" else of_task(name)
    new = transfer(trained(full), narrower(full, 0.5))
    save_weights(new, tmp_path / "net.safetensors")
    assert_same_function(new.eval(), load_network(tmp_path / "net.safetensors").eval())
    assert new.spec == narrower(full, 0.5)
    assert sum(p.numel() for p in new.parameters()) == new.spec.cost().params


# ---- without some blocks


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "toy", "ssdlite_mobilenet_v3_small", "lraspp_mobilenet_v3_small"])
def test_a_block_that_adds_nothing_can_go(name: str) -> None:
    """The projection of a residual block at zero gives its input: without it the network is the same."""
    full = TOY if name == "toy" else of_task(name) if "_" in name and name.startswith(("ssd", "lr")) else named(name).resolution(32).classes(7)
    network = trained(full)
    indices = tuple(group.members[0] for group in removable(full))[-2:]
    with torch.no_grad():
        for index in indices:
            network.layer(f"blocks.{index}.project").norm.weight.zero_()
            network.layer(f"blocks.{index}.project").norm.bias.zero_()
    before = copy.deepcopy(network.state_dict())
    smaller = leave_out(network, indices)
    assert smaller.spec == without_blocks(full, indices) and len(smaller.spec.blocks) == len(full.blocks) - len(indices) > 0
    assert_same_function(network, smaller)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_a_network_without_a_block_is_a_network_like_any_other(tmp_path) -> None:  # type: ignore[no-untyped-def]
    smaller = leave_out(trained(TOY), (0,))
    save_weights(smaller, tmp_path / "net.safetensors")
    loaded = load_network(tmp_path / "net.safetensors")
    assert loaded.spec == smaller.spec
    assert_same_function(smaller, loaded.eval())
