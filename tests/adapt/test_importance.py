"""Which channels matter, and that transfer keeps those."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tasks.scenes import SIDE, boxes_data, detector_network, masks_data, segmenter_network
from torch import Tensor, nn

from mobilefit.adapt import (
    ChannelImportance,
    bn_scales,
    filter_norms,
    gates,
    groups,
    tools_for,
    transfer,
)
from mobilefit.arch import Block, ClassifierHead, NetSpec, spec
from mobilefit.data import ImageSet, Preset
from mobilefit.data.images import ArraySource
from mobilefit.errors import InputError
from mobilefit.nn import Network
from mobilefit.tasks.detect import Detect
from mobilefit.tasks.segment import Segment
from mobilefit.train import recipe

from .test_transfer import POOLED, trained
from .toy import TOY


@dataclass(frozen=True)
class CrossEntropy:
    """The plain loss of a classifier."""

    def prepared(self, images: Tensor, targets: Any) -> tuple[Tensor, Any]:
        return images, targets

    def counts(self, targets: Tensor) -> tuple[int]:
        return (len(targets),)

    def __call__(self, outputs: Any, targets: Any, images: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="sum")


FULL = replace(
    TOY, name="full", last=replace(TOY.stem, out=24, kernel=1, stride=1),
    head=ClassifierHead(hidden=12, act="hard_swish", num_classes=3, dropout=0.5),
)  # fmt: skip


def images_of(net_spec: NetSpec, count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    shape = (count, 3, *net_spec.image_shape)
    return torch.randn(shape, generator=generator), torch.arange(count) % net_spec.head.num_classes


def scaled_channel(network: Network, layers: list[nn.Module], channel: int | slice, factor: float) -> Network:
    """A copy in which what a channel of some layers gives, or several of them, is multiplied."""
    changed = copy.deepcopy(network).double()
    originals = dict(network.named_modules())
    names = [name for layer in layers for name, module in originals.items() if module is layer]

    def multiply(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, channel] *= factor
        return output

    for name in names:
        changed.get_submodule(name).register_forward_hook(multiply)
    return changed


def losses(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(network(images.double()), labels, reduction="none")


@pytest.mark.parametrize("channel", [0, 3])
@pytest.mark.parametrize("names", [
    ("stem", "blocks.0.project"), ("blocks.1.project", "blocks.2.project"), ("blocks.0.expand",), ("blocks.2.expand",),
    ("blocks.2.se.reduce",), ("last",), ("head.hidden",),
])  # fmt: skip
def test_gates_are_the_slopes_of_each_images_loss(names: tuple[str, ...], channel: int) -> None:
    """Squared and averaged; of layers that share a channel, when it is scaled in all of them at once."""
    network = trained(FULL)
    images, labels = images_of(FULL)
    backbone = network.backbone
    layers = {
        "stem": backbone.stem, "last": backbone.last, "head.hidden": network.head.act,
        "blocks.2.se.reduce": backbone.blocks[2].se.act,
        **{f"blocks.{i}.expand": row.depthwise for i, row in enumerate(backbone.blocks)},
        **{f"blocks.{i}.project": row.project for i, row in enumerate(backbone.blocks)},
    }  # fmt: skip
    step = 1e-4
    up, down = (
        losses(scaled_channel(network, [layers[name] for name in names], channel, 1 + sign * step), images, labels)
        for sign in (1, -1)
    )
    slopes = (up - down) / (2 * step)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found = gates(network, [(images[:4], labels[:4]), (images[4:], labels[4:])], CrossEntropy())(*names)
    assert found[channel].item() == pytest.approx(slopes.square().mean().item(), rel=1e-3, abs=1e-9)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("index", [0, 2])
def test_the_gate_of_a_residual_block_is_on_all_that_it_adds(index: int) -> None:
    """By finite differences: the block's branch multiplied by a scalar."""
    network = trained(FULL)
    images, labels = images_of(FULL)
    row, step = network.backbone.blocks[index], 1e-4
    assert row.residual
    up, down = (
        losses(scaled_channel(network, [row.project], slice(None), 1 + sign * step), images, labels) for sign in (1, -1)
    )
    slopes = (up - down) / (2 * step)
    derivatives = gates(network, [(images, labels)], CrossEntropy()).derivatives(f"blocks.{index}.project").sum(1)
    assert slopes.abs().min() > 1e-6 and torch.allclose(derivatives.double(), slopes, rtol=1e-3, atol=1e-9)


def test_filters_and_scales_are_those_of_the_layers() -> None:
    network = trained(FULL)
    norms, scales = filter_norms(network), bn_scales(network)
    first, second = (network.layer(f"blocks.{i}.project") for i in (1, 2))
    squares = [layer.conv.weight.square().sum((1, 2, 3)) for layer in (first, second)]
    assert torch.allclose(norms("blocks.1.project", "blocks.2.project"), squares[0] + squares[1])
    assert torch.allclose(
        scales("blocks.1.project", "blocks.2.project"), first.norm.weight.abs() + second.norm.weight.abs()
    )
    assert torch.equal(scales("blocks.0.expand"), network.layer("blocks.0.depthwise").norm.weight.abs())
    assert torch.allclose(norms("head.hidden").sqrt(), scales("head.hidden"))  # it has no batch norm


def test_gates_see_what_norms_do_not() -> None:
    """Strong filters whose channels nothing takes go, weak ones that the loss depends on stay."""
    network = trained(TOY)
    with torch.no_grad():
        network.layer("blocks.1.expand").conv.weight[:8] *= 10
        network.layer("blocks.1.project").conv.weight[:, :8] = 0
    (group,) = [g for g in groups(TOY) if g.name == "blocks.1.expand"]
    images, labels = images_of(TOY)
    smaller = group.shrunk(TOY, 16)
    by_gates = transfer(network, smaller, gates(network, [(images, labels)], CrossEntropy()))
    by_norm = transfer(network, smaller)
    weight = network.layer("blocks.1.expand").conv.weight
    assert torch.equal(by_norm.layer("blocks.1.expand").conv.weight[:8], weight[:8])
    with torch.no_grad():
        assert torch.allclose(by_gates.eval()(images), network(images), atol=1e-5)
        assert not torch.allclose(by_norm.eval()(images), network(images), atol=1e-2)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mobilenet_v2", "mobilenet_v3_edgetpu", "mobilenet_v1", "mnasnet_a1", "pooled"])
@pytest.mark.parametrize("way", [filter_norms, bn_scales, None], ids=["norm", "bn-scale", "gates"])
def test_every_layer_that_transfer_asks_for_has_an_importance(name: str, way: Any) -> None:
    full = (POOLED if name == "pooled" else spec(name)).resolution(32).classes(3)
    network = trained(full)
    images, labels = images_of(full, 2)
    importance: ChannelImportance = way(network) if way else gates(network, [(images, labels)], CrossEntropy())
    for group in groups(full, ("expansion", "bottleneck", "head")):
        smaller = transfer(network, group.shrunk(full, max(1, group.width // 2)), importance).eval()
        with torch.no_grad():
            assert smaller(images).isfinite().all()


def test_stems_and_last_layers_may_have_a_squeeze() -> None:
    full = replace(
        TOY, stem=replace(TOY.stem, se="v3"), last=replace(TOY.stem, out=24, kernel=1, stride=1, se="v3"),
        blocks=(*TOY.blocks, Block(op="conv", out=16, se="v3")),
    )  # fmt: skip
    network = trained(full)
    importance = gates(network, [images_of(full)], CrossEntropy())
    widths = {name: len(importance(name)) for name in ("stem", "last", "blocks.3.conv")}
    assert widths == {"stem": 8, "last": 24, "blocks.3.conv": 16}
    for name in ("stem", "last", "blocks.2", "blocks.3"):
        assert len(importance(f"{name}.se.reduce")) == network.layer(f"{name}.se").reduce.out_channels
    assert transfer(network, replace(full, last=replace(full.last, out=8)), importance).spec.last.out == 8  # type: ignore[type-var,union-attr]


# ---- as a tool of NetAdapt

PRESET = Preset(resolution=SIDE, fit="stretch")


def noise() -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (16, SIDE, SIDE), np.uint8)
    return ImageSet(ArraySource(pixels, ["noise"] * 16), np.arange(16) % 2)


def importance_of(network: Network, task: Any, images: Any, of_recipe: str, way: str) -> ChannelImportance:
    made = tools_for(
        images, images, preset=PRESET, recipe=replace(recipe(of_recipe), batch_size=8), steps=1, task=task,
        latency=lambda net: 1.0, confirm=lambda net: 1.0, importance=way,  # type: ignore[arg-type]
    )  # fmt: skip
    return made.importance(network)


@pytest.mark.parametrize("way", ["gates", "norm", "bn-scale"])
@pytest.mark.parametrize("task", ["classify", "detect", "segment"])
def test_by_name_and_for_each_task(task: str, way: str, tmp_path: Path) -> None:
    if task == "classify":
        network, port, images, name = trained(TOY.resolution(SIDE)), None, noise(), "finetune"
    elif task == "detect":
        network, port, images, name = detector_network(), Detect(), boxes_data(tmp_path).train, "detect"
    else:
        network, port, images, name = segmenter_network(), Segment(), masks_data(tmp_path).train, "segment"
    importance, again = (importance_of(network, port, images, name, way) for _ in range(2))
    for group in groups(network.spec, ("expansion", "bottleneck", "head")):
        smaller = transfer(network, group.shrunk(network.spec, max(1, group.width // 2)), importance)
        twin = transfer(network, smaller.spec, again)
        assert all(torch.equal(v, twin.state_dict()[k]) for k, v in smaller.state_dict().items())
    if way == "norm":
        assert torch.equal(importance("stem"), filter_norms(network)("stem"))


def test_mixing_and_teaching_do_not_matter() -> None:
    network, images = trained(TOY.resolution(SIDE)), noise()
    plain = replace(recipe("fast"), batch_size=8)
    by_recipe = []
    for changed in (plain, replace(plain, mixup=0.4, distillation=0.5, train_scale=0.5)):
        made = tools_for(images, images, preset=PRESET, recipe=changed, steps=1, latency=lambda net: 1.0,
                         confirm=lambda net: 1.0)  # fmt: skip
        by_recipe.append(made.importance(network)("stem"))
    assert torch.equal(*by_recipe) and by_recipe[0].max() > 0


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'gates'"):
        importance_of(trained(TOY), None, noise(), "fast", "gate")
