"""Every lowering computes the same, and an arranged int8 file the same to the bit."""

from __future__ import annotations

import operator
from itertools import pairwise

import numpy as np
import pytest
import torch
from graphs import pooled_network
from torch import nn

from mobilefit.arch import Block, ClassifierHead, Conv, NetSpec, spec
from mobilefit.errors import InputError
from mobilefit.int8 import Policy, quantize, with_random_ranges
from mobilefit.litert import compile
from mobilefit.litert.graph import CODE, parse, serialize
from mobilefit.litert.lowerings import (
    EXCITE,
    FLOAT,
    HARD_SIGMOID,
    HARD_SWISH,
    INT8,
    STEM,
    Lowering,
    arranged,
    lower,
    named,
)  # fmt: skip
from mobilefit.litert.passes import merge_projections
from mobilefit.nn import build
from mobilefit.nn.layers import Conv2d, SqueezeExcite

# Every layer that has alternatives: a stem, narrow and wide squeeze-and-excite, h-swish, a remainder.
SPEC = NetSpec(
    name="small",
    input_size=32,
    stem=Conv(out=8, kernel=3, stride=2, act="hard_swish"),
    blocks=(
        Block(out=8, se="v3", act="relu", stride=2),
        Block(expand=24, out=16, se="v3", act="hard_swish"),
        Block(expand=200, out=35, act="hard_swish"),
        Block(expand=72, out=16, se="mnasnet", act="hard_swish"),
    ),
    last=Conv(out=32, act="hard_swish"),
    head=ClassifierHead(hidden=16, act="hard_swish", num_classes=5),
)


@pytest.fixture(scope="module")
def network(randomized):
    torch.manual_seed(0)
    return randomized(build(SPEC))


@pytest.fixture(scope="module")
def blob(network):
    return compile(network, (1, 3, 32, 32))


@pytest.fixture(scope="module")
def array(images):
    return images((4, 3, 32, 32))


@pytest.fixture(scope="module")
def truth(network, reference, array):
    return reference(network, array)


def names(blob):
    return [op.name for op in parse(blob).ops]


# ---- exact


@pytest.mark.parametrize("name", FLOAT)
def test_float_lowerings_compute_what_the_module_does(name, network, truth, array, worker):
    blob = compile(network, (1, 3, 32, 32), lowering=name)
    assert abs(worker.run(blob, array) - truth).max() < 1e-4
    assert worker.inspect(blob).partitions == 1


@pytest.mark.parametrize("excite", EXCITE)
@pytest.mark.parametrize("stem", STEM)
@pytest.mark.parametrize("hard_sigmoid", HARD_SIGMOID)
@pytest.mark.parametrize("hard_swish", HARD_SWISH)
def test_the_graph_that_is_quantized_computes_what_the_module_does(
    hard_swish, hard_sigmoid, stem, excite, blob, truth, array, worker
):
    graph = parse(blob)
    chosen = Lowering(hard_swish=hard_swish, hard_sigmoid=hard_sigmoid, stem=stem, excite=excite)
    lower(graph, chosen)
    graph, _ = arranged(graph, chosen, lambda op: True)
    assert abs(worker.run(serialize(graph), array) - truth).max() < 1e-4


@pytest.mark.parametrize("name", INT8)
def test_int8_lowerings_run_in_one_partition_and_agree(name, blob, truth, array, worker):
    small = quantize(blob, [array], lowering=name)
    found = worker.inspect(small)
    assert (found.partitions, found.outside) == (1, ())
    error = worker.run(small, array) - truth
    assert (truth**2).sum() / (error**2).sum() > 10**2.8  # 28 dB; 33 to 36 were found
    assert [op.name for op in parse(small).ops] == names(with_random_ranges(blob, lowering=name))


@pytest.mark.parametrize("changes", [{"stem": "pixels"}, {"excite": "channels"}])
def test_an_arranged_file_computes_the_same_to_the_bit(changes, blob, array, worker, monkeypatch):
    monkeypatch.setitem(INT8, "other", Lowering(**changes))
    small, other = quantize(blob, [array]), quantize(blob, [array], lowering="other")
    assert names(small).count("RESHAPE") > names(other).count("RESHAPE")
    assert np.array_equal(worker.run(small, array), worker.run(other, array))


def test_an_int8_file_is_the_same_from_either_float_file(network, blob, array):
    other = compile(network, (1, 3, 32, 32), lowering="remainder joined")
    assert names(other).count("CONV_2D") == names(blob).count("CONV_2D") - 1
    assert quantize(blob, [array]) == quantize(other, [array])


def test_the_given_graph_is_not_arranged(blob):
    graph = parse(blob)
    lower(graph, Lowering())
    before = serialize(graph)
    made, same = arranged(graph, Lowering(), lambda op: True)
    assert serialize(graph) == before != serialize(made)
    tensors = {t.name for t in made.tensors()} - {t.name for t in graph.tensors()}
    assert {name for name in tensors if not name.endswith("/shape")} == set(same)
    assert set(same.values()) <= {t.name for t in graph.tensors()}


def test_layers_that_stay_float_are_not_arranged(blob):
    graph = parse(blob)
    lower(graph, Lowering())
    made, same = arranged(graph, Lowering(), lambda op: False)
    assert [op.name for op in made.ops] == [op.name for op in graph.ops]
    assert not same


def test_a_float_stem_stays_as_it_is(blob, array, worker):
    small = quantize(blob, [array], policy=Policy.of(keep_float=("stem",)), lowering="excite channels")
    assert "RESHAPE" not in names(small)
    assert worker.inspect(small).partitions == 1


# ---- forms


def test_the_stem_reads_pairs_of_pixels(blob):
    graph, _ = arranged(parse(blob), Lowering(), lambda op: True)
    conv = next(op for op in graph.ops if op.code == CODE.CONV_2D)
    assert conv.inputs[0].shape == (1, 32, 16, 6)
    assert conv.inputs[1].shape == (8, 3, 2, 6)
    assert (conv.options.strideH, conv.options.strideW) == (2, 1)
    assert conv.output.shape == (1, 16, 16, 8)


@pytest.mark.parametrize("side", [32, 33])
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["same", "torch", "valid"])
def test_stems_of_every_form_compute_the_same(
    side, channels, kernel, stride, padding, worker, images, reference
):
    """Pairs only where they fit: else a row would begin in the middle of one."""
    torch.manual_seed(0)
    net = Conv2d(channels, 8, kernel, stride, 1, "torch" if padding == "valid" else padding)
    net.padding = (0, 0) if padding == "valid" else net.padding
    blob, array = compile(net, (1, channels, side, side)), images((1, channels, side, side))
    graph, _ = arranged(parse(blob), Lowering(), lambda op: True)
    assert abs(worker.run(serialize(graph), array) - reference(net, array)).max() < 1e-5
    fits = (side, kernel, stride) == (32, 3, 2) and channels < 5 and padding != "valid"
    assert ("RESHAPE" in [op.name for op in graph.ops]) == fits


@pytest.mark.parametrize("padding", ["same", "torch"])
def test_two_stems_on_one_image(padding, worker, images, reference):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = (Conv2d(3, 8, 3, 2, 1, padding) for _ in range(2))

        def forward(self, x):
            return self.left(x) + self.right(x)

    torch.manual_seed(0)
    net, array = Two(), images((1, 3, 32, 32))
    blob = compile(net, (1, 3, 32, 32))
    small = quantize(blob, [array])
    assert names(small).count("RESHAPE") == 2
    assert abs(worker.run(small, array) - reference(net, array)).max() < 0.05


@pytest.mark.parametrize(("width", "gate", "pixels"), [(16, "v3", 8), (16, "mnasnet", 8), (64, "v3", 0)])
def test_a_narrow_gate_multiplies_a_row_of_pixels(width, gate, pixels, worker, images, reference):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, width, 1), SqueezeExcite(width, 8, gate), nn.Conv2d(width, 4, 1))
    graph = parse(compile(net, (1, 3, 8, 8)))
    graph, _ = arranged(graph, Lowering(), lambda op: True)
    product = next(op for op in graph.ops if op.code == CODE.MUL and op.inputs[1].data is None)
    assert product.inputs[1].shape == ((1, 1, 1, width * pixels) if pixels else (1, 1, 1, width))
    array = images((1, 3, 8, 8))
    assert abs(worker.run(serialize(graph), array) - reference(net, array)).max() < 1e-5


def test_a_gate_that_is_read_twice_stays(worker, images, reference):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool, self.gate = nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            gate = self.gate(self.pool(x))
            return x * gate + x * gate

    net, array = Twice(), images((1, 4, 8, 8))
    graph, _ = arranged(parse(compile(net, (1, 4, 8, 8))), Lowering(), lambda op: True)
    assert "RESHAPE" not in [op.name for op in graph.ops]
    assert abs(worker.run(serialize(graph), array) - reference(net, array)).max() < 1e-5


@pytest.mark.parametrize("act", ["relu", "hard_swish", "swish"])
def test_pooled_rows_and_every_activation_run_in_one_partition(act, worker, randomized, images, reference):
    torch.manual_seed(0)
    net, array = randomized(build(pooled_network(40, act))), images((4, 3, 40, 40))
    blob = compile(net, (1, 3, 40, 40))
    assert abs(worker.run(blob, array) - reference(net, array)).max() < 1e-4
    found = worker.inspect(quantize(blob, [array]))
    assert (found.partitions, found.outside) == (1, ())


# ---- remainders


@pytest.mark.parametrize(
    ("depth", "channels", "kernel", "stride", "parts"),
    [
        (200, 33, 1, 1, [32, 1]),
        (200, 80, 1, 1, [64, 16]),
        (672, 546, 1, 1, [544, 2]),
        (199, 33, 1, 1, []),
        (200, 16, 1, 1, []),
        (200, 81, 1, 1, []),
        (200, 64, 1, 1, []),
        (200, 33, 3, 1, []),
        (200, 33, 1, 2, []),
    ],
)
def test_a_few_channels_beyond_whole_tiles_are_a_convolution_of_their_own(
    depth, channels, kernel, stride, parts, worker, images, reference
):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(depth, channels, kernel, stride), nn.ReLU6())
    blob, array = compile(net, (1, depth, 6, 6)), images((1, depth, 6, 6))
    ops = parse(blob).ops
    assert [op.output.shape[3] for op in ops] == [*parts, channels]
    assert abs(worker.run(blob, array) - reference(net, array)).max() < 1e-5
    assert worker.inspect(blob).partitions == 1
    graph = parse(blob)
    lower(graph, Lowering())
    assert [op.name for op in graph.ops] == ["CONV_2D"]
    assert abs(worker.run(serialize(graph), array) - reference(net, array)).max() < 1e-5


class Joined(nn.Module):
    """Convolutions side by side, as a network may have them of its own."""

    def __init__(self, channels, between=nn.Identity, depth=200):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(depth, count, 1) for count in channels)
        self.between = between()

    def forward(self, x):
        first, *rest = (conv(x) for conv in self.convs)
        return torch.cat([self.between(first), *rest], 1)


@pytest.mark.parametrize(
    ("channels", "between"),
    [
        ((32, 17), nn.Identity),
        ((31, 4), nn.Identity),
        ((32, 40), nn.Identity),
        ((32, 4, 4), nn.Identity),
        ((32, 4), nn.ReLU),
    ],
)
def test_other_joined_convolutions_stay(channels, between, worker, images, reference):
    torch.manual_seed(0)
    net, array = Joined(channels, between), images((1, 200, 6, 6))
    graph = parse(compile(net, (1, 200, 6, 6)))
    lower(graph, Lowering())
    assert [op.name for op in graph.ops] == ["CONV_2D"] * len(channels) + ["CONCATENATION"]
    assert abs(worker.run(serialize(graph), array) - reference(net, array)).max() < 1e-5


@pytest.mark.parametrize(("depth", "convolutions"), [(200, 1), (199, 2)])
def test_parts_are_joined_where_they_would_be_set_apart(depth, convolutions):
    graph = parse(compile(Joined((32, 4), depth=depth), (1, depth, 6, 6)))
    lower(graph, Lowering())
    assert [op.name for op in graph.ops].count("CONV_2D") == convolutions


def test_a_part_that_is_read_elsewhere_stays(worker, images, reference):
    class Twice(Joined):
        def forward(self, x):
            first, second = (conv(x) for conv in self.convs)
            return torch.cat([torch.cat([first, second], 1), first], 1)

    torch.manual_seed(0)
    net, array = Twice((32, 4)), images((1, 200, 6, 6))
    graph = parse(compile(net, (1, 200, 6, 6)))
    lower(graph, Lowering())
    assert [op.name for op in graph.ops].count("CONV_2D") == 2
    assert abs(worker.run(serialize(graph), array) - reference(net, array)).max() < 1e-5


def test_the_class_predictors_of_91_classes_are_whole_tiles_and_a_rest():
    graph = parse(compile(build(spec("ssdlite320_mobilenet_v3_large")), (1, 3, 320, 320)))
    found = {op.output.name: op.output.shape[3] for op in graph.ops if op.code == CODE.CONV_2D}
    for place in range(5):  # the last one's map has 128 channels
        name = f"head.classes.{place}.predict"
        assert (found[f"{name}/tiles"], found[f"{name}/rest"]) == (544, 2)


# ---- merged projections


MERGES = {
    "narrow": ((16, 16, 72), [], 1),
    "a bottleneck, whose two layers are less work": ((72, 8, 72), [], 2),
    "something between": ((16, 16, 72), [nn.ReLU()], 2),
    "three in a row": ((16, 16, 16, 72), [], 1),
}


@pytest.mark.parametrize("name", MERGES)
def test_projections_merge_where_that_is_less_work(name, worker, images, reference):
    torch.manual_seed(0)
    widths, between, convolutions = MERGES[name]
    layers = [nn.Conv2d(a, b, 1) for a, b in pairwise(widths)]
    net = nn.Sequential(*[x for conv in layers for x in (conv, *between)], nn.Hardswish())
    blob, array = compile(net, (1, widths[0], 8, 8)), images((1, widths[0], 8, 8))
    assert names(blob).count("CONV_2D") == convolutions
    assert abs(worker.run(blob, array) - reference(net, array)).max() < 1e-5


def test_a_projection_that_is_added_later_does_not_merge(worker, images, reference):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            x = self.first(x)
            return x + self.second(x)

    net, array = Residual(), images((1, 8, 4, 4))
    blob = compile(net, (1, 8, 4, 4))
    assert names(blob) == ["CONV_2D", "CONV_2D", "ADD"]
    assert abs(worker.run(blob, array) - reference(net, array)).max() < 1e-5


@pytest.mark.parametrize("strides", [(2, 1), (1, 2)])
def test_strides_do_not_merge(strides):
    net = nn.Sequential(*(nn.Conv2d(4, 4, 1, stride) for stride in strides))
    graph = parse(compile(net, (1, 4, 8, 8)))
    merge_projections(graph)
    assert [op.name for op in graph.ops].count("CONV_2D") == 2


# ---- names


def test_a_mistyped_lowering_suggests_the_nearest(blob):
    for call in (
        lambda: named("stem pixel", INT8),
        lambda: with_random_ranges(blob, lowering="stem pixel"),
    ):
        with pytest.raises(InputError, match="did you mean 'stem pixels'"):
            call()
    with pytest.raises(InputError, match="lowering of hard_swish 'part'; did you mean 'parts'"):
        Lowering(hard_swish="part")


def test_each_named_lowering_differs_from_the_default_in_one_choice():
    for registry, default in ((INT8, INT8["default"]), (FLOAT, FLOAT["default"])):
        for name, lowering in registry.items():
            pairs = zip(vars(default).values(), vars(lowering).values(), strict=True)
            assert sum(map(operator.ne, *zip(*pairs, strict=True))) == (name != "default")
