"""The segmenters' heads, written out by hand, and that they can be traced."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from weights import randomized

from mobilefit.arch import SEGMENTERS, NetSpec, spec
from mobilefit.errors import InputError
from mobilefit.nn import Network, build
from mobilefit.nn.layers import ResizeLike
from mobilefit.nn.segmentation import ImagePool, Segmentation

LRASPP = spec("lraspp_mobilenet_v3_small").classes(5)
RASPP = spec("raspp_mobilenet_v3_small").classes(5)
IMAGES = torch.randn(2, 3, 96, 160, generator=torch.Generator().manual_seed(0))


def network(made: NetSpec) -> Network:
    torch.manual_seed(0)
    return randomized(build(made))


@pytest.mark.parametrize("name", list(SEGMENTERS))
def test_every_segmenter_has_the_layers_and_parameters_of_its_cost(name: str) -> None:
    made = spec(name).resolution(64, 96)
    built = build(made).eval()
    assert sum(p.numel() for p in built.parameters()) == made.cost().params
    for layer in made.cost().layers:
        assert isinstance(built.layer(layer.name), nn.Module)
    with torch.no_grad():
        assert built(torch.zeros(1, 3, 64, 96)).shape == (1, 19, 64, 96)


def test_lraspp_is_figure_10_as_deeplab_wrote_it() -> None:
    made = replace(LRASPP, head=replace(LRASPP.head, pool=(3, 2, 4)))
    net = network(made)
    head: Segmentation = net.head
    with torch.no_grad():
        found = net(IMAGES)
        high, low = net.backbone.maps(IMAGES, ["last", "blocks.2.depthwise"])
        pooled = functional.avg_pool2d(high, 3, (2, 4))
        gate = torch.sigmoid(functional.conv2d(pooled, head.gate.weight, head.gate.bias))
        x = head.project(high) * resized(gate, high.shape[2:], True)
        logits = head.high(resized(x, low.shape[2:], True)) + head.low(low)
        torch.testing.assert_close(found, resized(logits, (96, 160), True))
    assert high.shape[2:] == (6, 10)
    assert low.shape[2:] == (12, 20)
    assert pooled.shape[2:] == (2, 2)


def resized(x: Tensor, size: tuple[int, int], aligned: bool) -> Tensor:
    return functional.interpolate(x, size, mode="bilinear", align_corners=aligned)


def test_a_gate_of_the_whole_map_needs_no_window() -> None:
    """torchvision's pool, and DeepLab's on a map that is no larger than its window, are one."""
    cut = network(LRASPP)
    whole = network(replace(LRASPP, head=replace(LRASPP.head, pool=None)))
    with torch.no_grad():
        torch.testing.assert_close(cut(IMAGES), whole(IMAGES), rtol=1e-4, atol=1e-3)


def test_raspp_joins_the_pooled_image_and_the_map() -> None:
    net = network(RASPP)
    head: Segmentation = net.head
    with torch.no_grad():
        found = net(IMAGES)
        (high,) = net.backbone.maps(IMAGES, ["last"])
        image = head.image(high.mean((2, 3), keepdim=True)).expand(-1, -1, *high.shape[2:])
        merged = head.merge(torch.cat([image, head.project(high)], 1))
        torch.testing.assert_close(found, resized(head.high(merged), (96, 160), True), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("at", "expected"), [((64, 128), (1, 4)), ((65, 129), (2, 5)), ((49, 69), (1, 2)), ((20, 30), (1, 1))]
)
def test_the_window_is_cut_to_a_smaller_map(at: tuple[int, int], expected: tuple[int, int]) -> None:
    x = torch.randn(1, 2, *at)
    found = ImagePool(49, 16, 20)(x)
    assert found.shape[2:] == expected
    torch.testing.assert_close(found[:, :, 0, 0], x[:, :, :49, :49].mean((2, 3)))
    made = spec("lraspp_mobilenet_v3_large").resolution(at[0] * 16, at[1] * 16)
    cost = next(layer for layer in made.cost().layers if layer.name == "head.pool")
    assert (cost.out_size, cost.out_columns) == expected


def test_the_logits_at_their_own_size_are_those_that_are_resized() -> None:
    net = network(LRASPP)
    with torch.no_grad():
        logits = net.head.logits(net.backbone.maps(IMAGES, net.head.taps))
        assert logits.shape == (2, 5, 12, 20)
        torch.testing.assert_close(net(IMAGES), resized(logits, (96, 160), True))


def test_only_raspps_merged_map_is_dropped_in_training() -> None:
    for made, drops in ((LRASPP, False), (RASPP, True)):
        net = network(made).train()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        with torch.no_grad():
            assert torch.equal(net(IMAGES), net(IMAGES)) != drops


def test_the_heads_norms_are_deeplabs() -> None:
    for module in network(LRASPP).head.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.eps, module.momentum) == (1e-5, 3e-4)


def test_fresh_weights_are_deeplabs() -> None:
    torch.manual_seed(0)
    for made in (LRASPP, RASPP):
        head: Segmentation = build(made).head
        limit = (6 / (head.project.conv.in_channels + 128 * (1 if made is LRASPP else 2))) ** 0.5
        assert 0.95 * limit < head.project.conv.weight.abs().max() <= limit
        assert head.high.bias is not None and (head.high.bias == 0).all()
        assert (head.high.weight.abs().max() <= 0.02) == (made is RASPP)


class Tracer(fx.Tracer):
    """Stops at the layers that the compiler translates by themselves."""

    def is_leaf_module(self, m: nn.Module, qualname: str) -> bool:
        kinds = (nn.Conv2d, nn.AvgPool2d, ResizeLike)
        return isinstance(m, kinds) or super().is_leaf_module(m, qualname)


@pytest.mark.parametrize("made", [LRASPP, RASPP], ids=["lraspp", "raspp"])
def test_it_can_be_traced(made: NetSpec) -> None:
    net = network(made)
    traced = fx.GraphModule(net, Tracer().trace(net))
    with torch.no_grad():
        assert torch.equal(traced(IMAGES), net(IMAGES))


@pytest.mark.parametrize("made", [LRASPP, RASPP], ids=["lraspp", "raspp"])
def test_every_weight_has_a_gradient(made: NetSpec) -> None:
    net = network(made).train()
    functional.cross_entropy(net(IMAGES), torch.zeros(2, 96, 160, dtype=torch.long)).backward()
    for name, value in net.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all(), name


def test_a_detector_has_no_such_head() -> None:
    with pytest.raises(InputError, match="is no segmenter: its head is for 'detect'"):
        Segmentation(spec("ssdlite_mobilenet_v2"))
