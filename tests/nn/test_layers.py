"""Padding, squeeze-and-excite, residuals: each against numbers worked out by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mobilefit.arch import BatchNorm, Block, Conv, NetSpec
from mobilefit.arch.rows import Padding, Skip
from mobilefit.nn.blocks import Row, full_conv
from mobilefit.nn.layers import Conv2d, ConvNormAct, MaxPool2d, SqueezeExcite, activation


def spec(padding: Padding = "same") -> NetSpec:
    return NetSpec(name="x", stem=Conv(out=8), blocks=(Block(out=8),), padding=padding)


# ---- padding


def centres(side: int, kernel: int, stride: int, padding: Padding) -> list[int]:
    """Which input row each output row is centred on: a kernel that is 1 in its middle alone."""
    conv = Conv2d(1, 1, kernel, stride, 1, padding)
    conv.weight.data.zero_()[0, 0, kernel // 2, kernel // 2] = 1
    rows = torch.arange(1.0, side + 1).reshape(1, 1, side, 1).expand(1, 1, side, side)
    return [int(value) - 1 for value in conv(rows)[0, 0, :, 0].tolist()]


@pytest.mark.parametrize(
    ("side", "kernel", "same", "torch_style"),
    [
        (4, 3, [1, 3], [0, 2]),  # even: one row of padding, below
        (5, 3, [0, 2, 4], [0, 2, 4]),  # odd: one on both ends
        (3, 3, [0, 2], [0, 2]),
        (4, 5, [1, 3], [0, 2]),  # three rows, two of them below
        (5, 5, [0, 2, 4], [0, 2, 4]),
        (2, 5, [1], [0]),
        (1, 3, [0], [0]),
        (4, 1, [0, 2], [0, 2]),  # nothing to pad
        (5, 1, [0, 2, 4], [0, 2, 4]),
    ],
)
def test_stride_2_samples_where_tensorflow_does(
    side: int, kernel: int, same: list[int], torch_style: list[int]
) -> None:
    assert centres(side, kernel, 2, "same") == same
    assert centres(side, kernel, 2, "torch") == torch_style


@pytest.mark.parametrize("side", [4, 5])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("padding", ["same", "torch"])
def test_stride_1_stays_in_place(side: int, kernel: int, padding: Padding) -> None:
    assert centres(side, kernel, 1, padding) == list(range(side))


@pytest.mark.parametrize(
    ("padding", "sums"), [("same", [[9, 6], [6, 4]]), ("torch", [[4, 6], [6, 9]])]
)
def test_padding_is_zeros(padding: Padding, sums: list[list[int]]) -> None:
    conv = Conv2d(1, 1, 3, 2, 1, padding)
    conv.weight.data.fill_(1)
    assert conv(torch.ones(1, 1, 4, 4))[0, 0].tolist() == sums


def test_each_side_is_padded_by_its_own_length() -> None:
    conv = Conv2d(1, 1, 3, 2, 1, "same")
    conv.weight.data.fill_(1)
    # 4 rows: padded below; 3 columns: padded on both ends
    assert conv(torch.ones(1, 1, 4, 3))[0, 0].tolist() == [[6, 6], [4, 4]]


def test_padding_can_be_switched_after_building() -> None:
    conv = Conv2d(1, 1, 3, 2, 1, "same")
    conv.weight.data.fill_(1)
    conv.same = False
    assert conv(torch.ones(1, 1, 4, 4))[0, 0].tolist() == [[4, 6], [6, 9]]


def test_a_depthwise_convolution_keeps_channels_apart() -> None:
    conv = Conv2d(2, 2, 3, 2, 2, "same")
    conv.weight.data.fill_(1)
    x = torch.stack([torch.ones(4, 4), torch.zeros(4, 4)])[None]
    assert [plane.sum().item() for plane in conv(x)[0]] == [25, 0]


# ---- pooling


def pooled(x: np.ndarray, stride: int) -> np.ndarray:
    """TensorFlow's SAME: ceil(side / stride) windows, the odd pixel of padding below and right."""
    *_, height, width = x.shape
    rows, columns = -(-height // stride), -(-width // stride)
    top = max((rows - 1) * stride + 3 - height, 0) // 2
    left = max((columns - 1) * stride + 3 - width, 0) // 2
    out = np.empty((*x.shape[:2], rows, columns), x.dtype)
    for i in range(rows):
        for j in range(columns):
            r, c = i * stride - top, j * stride - left
            out[:, :, i, j] = x[:, :, max(r, 0) : r + 3, max(c, 0) : c + 3].max((2, 3))
    return out


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sides", [(8, 8), (7, 7), (8, 7), (5, 6), (2, 2), (1, 1), (1, 2)])
def test_a_max_pool_is_padded_as_tensorflow_does(sides: tuple[int, int], stride: int) -> None:
    x = torch.randn(2, 3, *sides, generator=torch.Generator().manual_seed(0)) - 5  # zeros would win
    assert np.array_equal(MaxPool2d(stride)(x).numpy(), pooled(x.numpy(), stride))


def test_a_max_pool_by_hand() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert MaxPool2d(2)(x)[0, 0].tolist() == [[10, 11], [14, 15]]
    assert MaxPool2d(2)(x[:, :, :3, :3])[0, 0].tolist() == [[5, 6], [9, 10]]
    assert MaxPool2d(1)(x)[0, 0, 0].tolist() == [5, 6, 7, 7]


# ---- batch norm and activations


def test_order_is_convolution_norm_activation() -> None:
    norm = BatchNorm(eps=0.5, momentum=0.25)
    layer = ConvNormAct(1, 1, act="relu6", padding="same", norm=norm).eval()
    layer.conv.weight.data.fill_(3)
    layer.norm.running_var.fill_(0.5)  # with eps: a deviation of 1
    layer.norm.running_mean.fill_(2)
    layer.norm.bias.data.fill_(0.5)
    x = torch.tensor([0.0, 1.0, 9.0]).reshape(1, 1, 1, 3)
    assert layer(x).flatten().tolist() == [0, 1.5, 6]
    assert layer.norm.momentum == 0.25


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("relu", [0, 0, 0, 1, 7]),
        ("relu6", [0, 0, 0, 1, 6]),
        ("hard_swish", [0, -1 / 3, 0, 2 / 3, 7]),
        ("swish", [-0.0719448, -0.2689414, 0, 0.7310586, 6.9936223]),
        ("none", [-4, -1, 0, 1, 7]),
    ],
)
def test_activations(name: str, expected: list[float]) -> None:
    result = activation(name)(torch.tensor([-4.0, -1, 0, 1, 7]))  # type: ignore[arg-type]
    assert torch.allclose(result, torch.tensor(expected, dtype=torch.float32))


# ---- squeeze-and-excite


@pytest.mark.parametrize(("gate", "scale"), [("v3", 4 / 6), ("mnasnet", 1 / (1 + math.exp(-1)))])
def test_squeeze_excite(gate: str, scale: float) -> None:
    layer = SqueezeExcite(1, 1, gate)  # type: ignore[arg-type]
    for conv, weight, bias in ((layer.reduce, 2.0, -1.0), (layer.expand, 0.5, 0.0)):
        conv.weight.data.fill_(weight)
        conv.bias.data.fill_(bias)
    x = torch.tensor([1.0, 2.0]).reshape(1, 1, 1, 2)  # mean 1.5, reduced 2, expanded 1
    assert torch.allclose(layer(x), scale * x)
    # mean -1.5, reduced -4 and cut to 0: the gate is half open
    assert torch.allclose(layer(-x), -0.5 * x)


def test_squeeze_excite_looks_at_the_whole_map_of_one_image() -> None:
    torch.manual_seed(0)
    layer, images = SqueezeExcite(8, 8, "v3"), torch.randn(3, 8, 4, 5)
    scale = layer(images) / images
    assert torch.allclose(scale, scale[:, :, :1, :1].expand_as(scale), atol=1e-4)
    assert torch.allclose(layer(images[1:2]), layer(images)[1:2], atol=1e-6)


def test_training_computes_the_same_by_faster_means() -> None:
    torch.manual_seed(0)
    layer, x = SqueezeExcite(8, 8, "v3").double(), torch.randn(3, 8, 4, 5, dtype=torch.float64)
    found = []
    for module in (layer.train(), copy.deepcopy(layer).eval()):
        image = x.clone().requires_grad_()
        y = module(image)
        y.square().sum().backward()
        found.append([y, image.grad, *(parameter.grad for parameter in module.parameters())])
    torch.testing.assert_close(*found)


def test_it_comes_after_the_activation_and_before_the_projection() -> None:
    row = Row(Block(expand=16, out=8, se="v3"), 8, spec())
    assert [name for name, _ in row.named_children()] == ["expand", "depthwise", "se", "project"]
    assert [name for name, _ in row.depthwise.named_children()] == ["conv", "norm", "act"]


def test_table_2_to_the_letter_excites_the_last_convolution() -> None:
    made = full_conv(Conv(out=16, se="v3"), 8, spec())
    assert [name for name, _ in made.named_children()] == ["conv", "norm", "act", "se"]


# ---- rows


def silenced(block: Block, inputs: int = 8, padding: Padding = "same") -> Row:
    """A row whose last norm gives zero, so that only the residual is left."""
    row = Row(block, inputs, spec(padding)).eval()
    nn.init.zeros_((row.conv if block.op == "conv" else row.project).norm.weight)
    return row


@pytest.mark.parametrize(
    ("block", "kept"),
    [
        (Block(expand=16, out=8), True),
        (Block(out=8), True),
        (Block(op="fused", expand=16, out=8), True),
        (Block(op="conv", out=8), True),
        (Block(op="conv", out=8, se="v3"), True),
        (Block(expand=16, out=16, skip="pool"), False),
        (Block(expand=16, out=8, skip="none"), False),
        (Block(expand=16, out=16), False),
        (Block(op="separable", out=8, skip="none"), False),
        (Block(expand=16, out=8, stride=2), False),
    ],
)
def test_the_input_is_added_where_the_row_says_so(block: Block, kept: bool) -> None:
    x = torch.randn(2, 8, 6, 6)
    out = silenced(block)(x.clone())
    assert torch.equal(out, x if kept else torch.zeros_like(out))


@pytest.mark.parametrize("padding", ["same", "torch"])
@pytest.mark.parametrize("side", [6, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "block",
    [
        Block(expand=16, out=8, skip="pool"),
        Block(op="separable", out=8, skip="pool"),
        Block(op="fused", expand=16, out=8, skip="pool"),
        Block(op="conv", out=8, se="mnasnet", skip="pool"),
    ],
    ids=lambda block: block.op,
)
def test_the_pooled_input_is_added(
    block: Block, stride: int, side: int, padding: Padding
) -> None:
    x = torch.randn(2, 8, side, side) - 1
    out = silenced(replace(block, stride=stride), padding=padding)(x.clone())
    assert np.array_equal(out.detach().numpy(), pooled(x.numpy(), stride))


def test_a_pooled_row_is_the_sum_of_both_ways() -> None:
    torch.manual_seed(0)
    block = Block(expand=16, out=8, stride=2, se="v3", skip="pool")
    row, plain = (Row(b, 8, spec()).eval() for b in (block, replace(block, skip="none")))
    plain.load_state_dict(row.state_dict())  # the pool has no state of its own
    x = torch.randn(1, 8, 6, 6)
    added = row(x) - plain(x)
    assert np.allclose(added.detach().numpy(), pooled(x.numpy(), 2), atol=1e-6)


def test_a_convolution_is_excited_after_its_activation() -> None:
    row = Row(Block(op="conv", out=16, se="mnasnet"), 8, spec()).eval()
    assert [name for name, _ in row.named_children()] == ["conv", "se"]
    assert (row.se.reduce.in_channels, row.se.reduce.out_channels) == (16, 2)  # the input's 8 / 4
    x = torch.randn(1, 8, 5, 5)
    assert torch.equal(row(x), row.se(row.conv(x)))


@pytest.mark.parametrize("skip", ["identity", "pool"])
def test_no_activation_touches_the_input_that_is_kept(skip: Skip) -> None:
    """Activations work in place: without an expansion the first one must not reach the input."""
    row = Row(Block(out=8, skip=skip), 8, spec()).eval()
    x = torch.randn(1, 8, 5, 5)
    before = x.clone()
    row(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(("op", "negative"), [("inverted", True), ("separable", False)])
def test_only_a_bottleneck_is_linear(op: str, negative: bool) -> None:
    torch.manual_seed(0)
    row = Row(Block(op=op, out=8, skip="none"), 8, spec()).eval()  # type: ignore[arg-type]
    out: Tensor = row(torch.randn(1, 8, 6, 6))
    assert bool((out < 0).any()) == negative


def test_a_starting_depthwise_convolution_is_linear_and_strides_alone() -> None:
    torch.manual_seed(0)
    both = Row(Block(start_kernel=5, kernel=3, expand=16, out=8, stride=2), 8, spec()).eval()
    assert [name for name, _ in both.layers()] == ["start", "expand", "depthwise", "project"]
    assert (both.start.conv.stride, both.depthwise.conv.stride) == ((1, 1), (2, 2))
    x = torch.randn(1, 8, 6, 6)
    assert bool((both.start(x) < 0).any()) and not bool((both.expand(both.start(x)) < 0).any())
    alone = Row(Block(start_kernel=3, kernel=0, expand=16, out=8, stride=2), 8, spec()).eval()
    assert [name for name, _ in alone.layers()] == ["start", "expand", "project"]
    assert alone.start.conv.stride == (2, 2) and alone(x).shape == (1, 8, 3, 3)


@pytest.mark.parametrize("side", [1, 6, 7])
@pytest.mark.parametrize("padding", ["same", "torch"])
def test_sides_are_rounded_up(side: int, padding: Padding) -> None:
    row = Row(Block(expand=16, out=12, kernel=5, stride=2), 8, spec(padding)).eval()
    half = (side + 1) // 2
    assert row(torch.randn(1, 8, side, side)).shape == (1, 12, half, half)
