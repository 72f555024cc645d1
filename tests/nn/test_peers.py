"""Weights of torchvision and timm: the same outputs, in double precision, from random weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from torch import nn
from weights import randomized

from mobilefit.arch import BatchNorm, NetSpec, spec
from mobilefit.nn import build, load_weights

LARGE, SMALL = spec("mobilenet_v3_large"), spec("mobilenet_v3_small")
V1, V2 = spec("mobilenet_v1"), spec("mobilenet_v2")
A1, B1 = spec("mnasnet_a1"), spec("mnasnet_b1")

TORCHVISION = {
    "mobilenet_v2": ({}, V2),
    "mobilenet_v2 0.5": ({"width_mult": 0.5}, V2.width(0.5)),
    "mobilenet_v2 1.4": ({"width_mult": 1.4}, V2.width(1.4)),
    "mobilenet_v3_large": ({}, LARGE),
    "mobilenet_v3_large 0.75": ({"width_mult": 0.75}, LARGE.width(0.75, rules="torchvision")),
    "mobilenet_v3_small": ({}, SMALL),
    "mobilenet_v3_small 0.5": ({"width_mult": 0.5}, SMALL.width(0.5, rules="torchvision")),
    "mobilenet_v3_small 1.25": ({"width_mult": 1.25}, SMALL.width(1.25, rules="torchvision")),
    "mnasnet1_0": ({}, B1),
    "mnasnet0_5": ({}, B1.width(0.5)),
}


def torch_style(made: NetSpec) -> NetSpec:
    """As timm's own models are: padded alike on both sides, torch's epsilon."""
    return replace(made.padded("torch"), norm=BatchNorm(eps=1e-5))


TIMM = {
    "tf_mobilenetv3_large_100": LARGE,
    "tf_mobilenetv3_small_100": SMALL,
    "tf_mobilenetv3_large_minimal_100": spec("mobilenet_v3_large_minimalistic"),
    "tf_mobilenetv3_small_minimal_100": spec("mobilenet_v3_small_minimalistic"),
    "tf_mobilenetv3_large_075": LARGE.width(0.75),
    "tf_mobilenetv3_small_075": SMALL.width(0.75),
    "mobilenetv3_large_100": torch_style(LARGE),
    "mobilenetv2_100": torch_style(V2),
    "mobilenetv2_050": torch_style(V2.width(0.5)),
    "mobilenetv2_140": torch_style(V2.width(1.4)),
    "semnasnet_100": torch_style(A1),
    "semnasnet_075": torch_style(A1.width(0.75)),
    "mnasnet_100": torch_style(B1),
    "mnasnet_small": torch_style(spec("mnasnet_small")),
    "mobilenetv1_100": torch_style(V1),
    "efficientnet_lite0": torch_style(spec("efficientnet_lite0")),
    "tf_efficientnet_lite0": spec("efficientnet_lite0"),
    "tf_efficientnet_lite2": spec("efficientnet_lite2"),
    "tf_efficientnet_lite4": spec("efficientnet_lite4"),
    "lcnet_035": torch_style(spec("lcnet").width(0.35)),
    "lcnet_050": torch_style(spec("lcnet").width(0.5)),
    "lcnet_075": torch_style(spec("lcnet").width(0.75)),
    "lcnet_100": torch_style(spec("lcnet")),
    "lcnet_150": torch_style(spec("lcnet").width(1.5)),
    "mobilenetv4_conv_small": torch_style(spec("mobilenetv4_conv_small")),
    "mobilenetv4_conv_small_035": torch_style(spec("mobilenetv4_conv_small").width(0.35)),
    "mobilenetv4_conv_small_050": torch_style(spec("mobilenetv4_conv_small").width(0.5)),
    "mobilenetv4_conv_medium": torch_style(spec("mobilenetv4_conv_medium")),
}


def assert_same(net: nn.Module, peer: nn.Module) -> None:
    """On even and odd sides, where the ways of padding differ."""
    images = torch.randn(2, 3, 70, 65, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        ours, theirs = net.eval().double()(images), peer.double()(images)
    size = theirs.abs().max()
    assert (theirs[0] - theirs[1]).abs().max() > 0.05 * size  # the image reaches the output
    assert (ours - theirs).abs().max() < 1e-9 * size


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    options, made = TORCHVISION[name]
    peer = randomized(getattr(torchvision.models, name.split()[0])(num_classes=50, **options))
    net = build(made, num_classes=50)
    assert load_weights(net, peer.state_dict()) == "torchvision"
    assert_same(net, peer)
    eps = next(m.eps for m in peer.modules() if isinstance(m, nn.BatchNorm2d))
    assert (net.spec.padding, net.spec.norm.eps) == ("torch", eps)  # adopted with the weights


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    peer = randomized(timm.create_model(name, num_classes=50))
    net = build(TIMM[name], num_classes=50)
    assert load_weights(net, peer.state_dict()) == "timm"
    assert_same(net, peer)
    assert net.spec == TIMM[name].classes(50)


def test_the_other_padding_would_show() -> None:
    peer = randomized(timm.create_model("tf_mobilenetv3_small_100", num_classes=50))
    net = build(SMALL.padded("torch"), num_classes=50)
    load_weights(net, peer.state_dict())
    with pytest.raises(AssertionError):
        assert_same(net, peer)
