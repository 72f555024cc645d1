"""Every node kind against torch, padding, folding, the whole family, and what is refused."""

from __future__ import annotations

import operator

import pytest
import torch
import torchvision
from graphs import pooled_network
from torch import nn

from mobilefit.arch import FAMILY, spec
from mobilefit.errors import InputError
from mobilefit.litert import compile, read_metadata
from mobilefit.litert.graph import parse
from mobilefit.nn import build
from mobilefit.nn.layers import Conv2d, MaxPool2d, ResizeLike, Rows
from mobilefit.nn.segmentation import ImagePool


class Residual(nn.Module):
    def __init__(self, inner, join=torch.add):
        super().__init__()
        self.inner, self.join = inner, join

    def forward(self, x):
        return self.join(x, self.inner(x))


class Call(nn.Module):
    """A module around a function, as torchvision's models call them."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Resized(nn.Module):
    """A coarser map at the size of its input."""

    def __init__(self, coarser, aligned):
        super().__init__()
        self.coarser, self.resize = coarser, ResizeLike(aligned)

    def forward(self, x):
        return self.resize(self.coarser(x), x)


def gate(width):
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, width, 1)
    )


LAYERS = {
    "conv": lambda: nn.Conv2d(6, 5, 3),
    "conv without bias": lambda: nn.Conv2d(6, 5, 3, bias=False),
    "dilated conv": lambda: nn.Conv2d(6, 5, 3, padding=2, dilation=2),
    "oblong conv": lambda: nn.Conv2d(6, 5, (1, 3), stride=(1, 2), padding=(0, 1)),
    "depthwise": lambda: nn.Conv2d(6, 6, 3, groups=6),
    "depthwise, two a channel": lambda: nn.Conv2d(6, 12, 3, groups=6),
    "dilated depthwise": lambda: nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6),
    "batch norm after conv": lambda: nn.Sequential(nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5)),
    "batch norm after depthwise": lambda: nn.Sequential(
        nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.BatchNorm2d(6)
    ),
    "batch norm alone": lambda: nn.BatchNorm2d(6),
    "batch norm after activation": lambda: nn.Sequential(
        nn.Conv2d(6, 5, 1), nn.ReLU(), nn.BatchNorm2d(5)
    ),
    "batch norm without parameters": lambda: nn.Sequential(
        nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5, affine=False)
    ),
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "conv relu": lambda: nn.Sequential(nn.Conv2d(6, 5, 3), nn.ReLU()),
    "conv relu6": lambda: nn.Sequential(nn.Conv2d(6, 5, 3), nn.ReLU6()),
    "conv relu relu6": lambda: nn.Sequential(nn.Conv2d(6, 5, 3), nn.ReLU(), nn.ReLU6()),
    "hard swish": nn.Hardswish,
    "hard sigmoid": nn.Hardsigmoid,
    "conv hard sigmoid": lambda: nn.Sequential(nn.Conv2d(6, 5, 3), nn.Hardsigmoid()),
    "sigmoid": nn.Sigmoid,
    "dropout": lambda: nn.Sequential(nn.Conv2d(6, 5, 3), nn.Dropout(0.5), nn.ReLU()),
    "identity": lambda: nn.Sequential(nn.Conv2d(6, 5, 3), nn.Identity(), nn.BatchNorm2d(5)),
    "average pool": lambda: nn.AvgPool2d(3, 2),
    "max pool": lambda: nn.MaxPool2d(3, 2),
    "max pool in place": lambda: nn.MaxPool2d(5, 1, 2),
    "global pool": lambda: nn.AdaptiveAvgPool2d(1),
    "global pool as a function": lambda: Call(
        lambda x: nn.functional.adaptive_avg_pool2d(x, (1, 1))
    ),
    "mean": lambda: Call(lambda x: x.mean([2, 3])),
    "mean kept": lambda: Call(lambda x: x.mean((-1, -2), keepdim=True)),
    "head": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
    "head with a function": lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), Call(lambda x: torch.flatten(x, 1)), nn.Linear(6, 3, bias=False)
    ),
    "residual": lambda: Residual(nn.Conv2d(6, 6, 3, padding=1)),
    "residual relu": lambda: nn.Sequential(Residual(nn.Conv2d(6, 6, 1)), nn.ReLU()),
    "residual +=": lambda: Residual(nn.Conv2d(6, 6, 1), operator.iadd),
    "conv read twice": lambda: nn.Sequential(nn.Conv2d(6, 6, 1), Residual(nn.ReLU())),
    "pool of two strides": lambda: nn.AvgPool2d((4, 3), (2, 3)),
    "pool of a map smaller than its window": lambda: ImagePool(9, 1, 5),
    "pool of a larger map": lambda: ImagePool(5, 2, 3),
    "channels side by side": lambda: Call(lambda x: torch.cat([x, x + x, x], 1)),
    "rows of pixels side by side": lambda: Call(lambda x: torch.cat((x, x + x), dim=-2)),
    "images side by side": lambda: Call(lambda x: torch.cat([x, x + x])),
    "more than XNNPACK joins at once": lambda: Call(lambda x: torch.cat([x] * 11, 1)),
    "rows": lambda: Rows(3),
    "resized, corners aligned": lambda: Resized(nn.AvgPool2d(2), True),
    "resized by edges": lambda: Resized(nn.AvgPool2d(2), False),
    "one pixel for all": lambda: Resized(nn.AdaptiveAvgPool2d(1), True),
    "one pixel's gate": lambda: Residual(Resized(nn.AdaptiveAvgPool2d(1), False), torch.mul),
    "squeeze, hard": lambda: Residual(nn.Sequential(gate(6), nn.Hardsigmoid()), torch.mul),
    "squeeze, soft": lambda: Residual(nn.Sequential(gate(6), nn.Sigmoid()), lambda x, g: g * x),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_what_torch_does(name, worker, randomized, images, reference):
    torch.manual_seed(0)
    net, array = randomized(LAYERS[name]()), images((2, 6, 9, 8))
    result = worker.run(compile(net, (2, 6, 9, 8)), array * 3)
    expected = reference(net, array * 3)
    assert result.shape == expected.shape
    assert abs(result - expected).max() < 1e-5


@pytest.mark.parametrize("name", [name for name in LAYERS if "side by side" in name or "one pixel" in name
                                  or "resized" in name or "XNNPACK" in name or "rows" in name])  # fmt: skip
def test_what_heads_are_made_of_stays_in_the_delegate(name, worker, randomized):
    before = nn.Conv2d(6, 6, 1)  # a delegate takes no file of a single operator
    seen = worker.inspect(compile(nn.Sequential(before, randomized(LAYERS[name]())), (1, 6, 9, 8)))
    assert (seen.partitions, seen.outside) == (1, ())


def test_a_gate_of_one_pixel_is_not_resized():
    net = Residual(Resized(nn.AdaptiveAvgPool2d(1), True), torch.mul)
    assert [op.name for op in parse(compile(net, (1, 6, 9, 8))).ops] == ["MEAN", "MUL"]


@pytest.mark.parametrize("dilation", [1, 2, 4])
@pytest.mark.parametrize("kernel", [3, 5])
def test_a_dilated_convolution_is_padded_by_the_operator(kernel, dilation, worker, images, reference):
    torch.manual_seed(0)
    net = Conv2d(4, 4, kernel, 1, 4, "same", dilation)
    blob, array = compile(net, (1, 4, 9, 10)), images((1, 4, 9, 10))
    assert [op.name for op in parse(blob).ops] == ["DEPTHWISE_CONV_2D"]
    assert abs(worker.run(blob, array) - reference(net, array)).max() < 1e-5


def test_a_linear_layer_takes_rows_of_features(worker, images, reference):
    net, rows = nn.Sequential(nn.Linear(6, 4), nn.ReLU()), images((3, 6))
    result = worker.run(compile(net, (1, 6)), rows)
    assert abs(result - reference(net, rows)).max() < 1e-5


# ---- padding


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("padding", ["same", "torch"])
def test_padding(padding, kernel, stride, side, depthwise, worker, images, reference):
    torch.manual_seed(0)
    net = Conv2d(4, 4, kernel, stride, 4 if depthwise else 1, padding)
    blob = compile(net, (1, 4, side, side + 2))
    array = images((1, 4, side, side + 2))
    assert abs(worker.run(blob, array) - reference(net, array)).max() < 1e-5
    # torch pads an even side alike on both ends; TensorFlow's SAME at stride 2 does not
    needs_pad = padding == "torch" and stride == 2 and side % 2 == 0
    assert ("PAD" in worker.inspect(blob).ops) == needs_pad


def test_a_pad_adds_no_more_than_is_read():
    graph = parse(compile(nn.Conv2d(3, 4, 3, 2, 1), (1, 3, 8, 8)))
    assert graph.ops[0].output.shape == (1, 9, 9, 3)


@pytest.mark.parametrize("side", [1, 2, 7, 8])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_max_pool_needs_no_pad(stride, side, worker, images, reference):
    net, array = MaxPool2d(stride), images((2, 4, side, side + 1)) - 5  # zeros would win
    blob = compile(net, (1, 4, side, side + 1))
    assert (worker.run(blob, array) == reference(net, array)).all()
    assert [op.name for op in parse(blob).ops] == ["MAX_POOL_2D"]


# ---- whole networks


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "mnasnet1_0"]
)
def test_torchvision_models_agree_in_one_partition(name, worker, randomized, images, reference):
    torch.manual_seed(0)
    net = randomized(getattr(torchvision.models, name)(weights=None))
    blob, array = compile(net, (1, 3, 96, 96)), images((2, 3, 96, 96))
    expected = reference(net, array)
    assert abs(worker.run(blob, array) - expected).max() < 1e-5 * max(1, abs(expected).max())
    inspection = worker.inspect(blob)
    assert (inspection.partitions, inspection.outside) == (1, ())


@pytest.mark.parametrize("name", FAMILY)
def test_every_spec_agrees_in_one_partition(name, worker, randomized, images, reference):
    torch.manual_seed(0)
    net = randomized(build(spec(name).width(0.5), num_classes=10))
    blob, array = compile(net, (1, 3, 64, 64)), images((1, 3, 64, 64))
    assert abs(worker.run(blob, array) - reference(net, array)).max() < 1e-5
    inspection = worker.inspect(blob)
    assert (inspection.partitions, inspection.outside) == (1, ())
    assert "PAD" not in inspection.ops or spec(name).padding == "torch"


@pytest.mark.parametrize("act", ["relu", "hard_swish"])
@pytest.mark.parametrize("side", [40, 37])
def test_pools_and_squeezed_convolutions_agree_in_one_partition(
    act, side, worker, randomized, images, reference
):
    torch.manual_seed(0)
    net = randomized(build(pooled_network(side, act)))
    blob, array = compile(net, (1, 3, side, side)), images((2, 3, side, side))
    assert abs(worker.run(blob, array) - reference(net, array)).max() < 1e-4
    inspection = worker.inspect(blob)
    assert (inspection.partitions, inspection.outside) == (1, ())
    assert inspection.ops.count("MAX_POOL_2D") == 4 and "PAD" not in inspection.ops


# ---- several outputs


def test_each_output_has_its_place_and_its_name(worker, images):
    net = Call(lambda x: (x + x, x.mean([2, 3])))
    blob, array = compile(net, (1, 3, 4, 5), outputs=("twice", "mean")), images((2, 3, 4, 5))
    assert parse(blob).output_names == ["twice", "mean"]
    twice, mean = worker.outputs(blob, array)
    assert abs(twice - 2 * array).max() < 1e-6 and abs(mean - array.mean((1, 2))).max() < 1e-6
    assert parse(compile(net, (1, 3, 4, 5))).output_names == ["output", "output_1"]


@pytest.mark.parametrize("names", [("one",), ("same", "same")])
def test_names_that_do_not_fit_the_outputs(names):
    with pytest.raises(InputError, match="the network has 2 outputs"):
        compile(Call(lambda x: (x + x, x * x)), (1, 3, 4, 4), outputs=names)


def test_what_no_output_depends_on_is_left_out():
    net = Call(lambda x: [x + x, x * x][0])
    assert [op.name for op in parse(compile(net, (1, 3, 4, 4))).ops] == ["ADD"]


# ---- folding


def test_the_sixth_of_a_hard_sigmoid_ends_in_the_next_weights():
    torch.manual_seed(0)
    squeeze = Residual(nn.Sequential(gate(6), nn.Hardsigmoid()), torch.mul)
    project = nn.Conv2d(6, 2, 1)
    graph = parse(compile(nn.Sequential(squeeze, project), (1, 6, 8, 8)))
    assert [op.name for op in graph.ops] == ["MEAN", "CONV_2D", "CONV_2D", "MUL", "CONV_2D"]
    weight = project.weight.detach().permute(0, 2, 3, 1) / 6
    assert torch.allclose(torch.tensor(graph.ops[-1].inputs[1].data), weight)


def test_an_activation_is_not_fused_where_the_convolution_is_read_twice():
    net = nn.Sequential(nn.Conv2d(6, 6, 1), Residual(nn.ReLU()))
    assert [op.name for op in parse(compile(net, (1, 6, 8, 8))).ops] == ["CONV_2D", "RELU", "ADD"]


def test_the_head_pools_without_a_reshape():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    assert [op.name for op in parse(compile(net, (1, 6, 8, 8))).ops] == ["MEAN", "FULLY_CONNECTED"]


def test_compiling_leaves_the_module_alone():
    net = build(spec("mobilenet_v3_small").width(0.35), num_classes=3).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    compile(net, (1, 3, 32, 32))
    assert all(module.training for module in net.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


# ---- the file


def test_signature_and_metadata():
    metadata = {"classes": ["a", "é"], "resolution": 8}
    blob = compile(nn.Conv2d(3, 4, 1), (1, 3, 8, 8), metadata=metadata)
    graph = parse(blob)
    assert (graph.signature, graph.input_names, graph.output_names) == (
        "serving_default", ["input"], ["output"],
    )  # fmt: skip
    assert graph.inputs[0].shape == (1, 8, 8, 3)
    assert read_metadata(blob) == metadata
    assert read_metadata(compile(nn.Conv2d(3, 4, 1), (1, 3, 8, 8))) is None


def test_the_same_network_gives_the_same_bytes():
    torch.manual_seed(0)
    net = build(spec("mobilenet_v3_small").width(0.35), num_classes=3)
    assert compile(net, (1, 3, 32, 32)) == compile(net, (1, 3, 32, 32))


# ---- refusals


def branching(x):
    return x if x.sum() > 0 else -x


REFUSED = {
    "a layer without translation": (nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU()), "'1' (GELU)"),
    "a function without translation": (Call(lambda x: x.sin()), "'sin' (sin)"),
    "a number as an output": (Call(lambda x: (x, 1)), "output"),
    "pieces that do not fit": (Call(lambda x: torch.cat([x, x.mean([2, 3], keepdim=True)], 1)), "joins"),
    "rows of broken anchors": (Rows(2), "rows of 2 of 3 channels"),
    "wrong channels": (nn.Conv2d(4, 4, 1), "takes 4 channels, not 3"),
    "wrong features": (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)), "4"),
    "an image under the kernel": (nn.Conv2d(3, 4, 9), "8x8"),
    "flattening pixels": (nn.Flatten(), "flattening"),
    "padded pooling": (nn.AvgPool2d(3, 2, 1), "padding"),
    "max pooling padded at the top": (nn.MaxPool2d(3, 2, 1), "otherwise than TensorFlow's SAME"),
    "max pooling rounded up": (nn.MaxPool2d(3, 2, ceil_mode=True), "ceil_mode"),
    "dilated max pooling": (nn.MaxPool2d(3, 1, 2, dilation=2), "dilation"),
    "branches": (Call(branching), "cannot be traced"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compiled_is_named(name):
    net, message = REFUSED[name]
    with pytest.raises(InputError) as caught:
        compile(net, (1, 3, 8, 8))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_grouped_convolutions_are_refused():
    with pytest.raises(InputError, match="2 groups"):
        compile(nn.Conv2d(4, 4, 1, groups=2), (1, 4, 8, 8))


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 3, 0, 8), ()])
def test_an_input_shape_that_is_none_is_refused(shape):
    with pytest.raises(InputError, match="input_shape"):
        compile(nn.Conv2d(3, 4, 1), shape)
