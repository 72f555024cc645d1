"""int8 against float, made-up ranges against calibrated ones, and what int8 cannot hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from ai_edge_litert import schema_py_generated as schema
from graphs import pooled_network
from torch import nn

from mobilefit.arch import Block, spec
from mobilefit.errors import InputError
from mobilefit.int8 import quantize, with_random_ranges
from mobilefit.litert import compile, read_metadata
from mobilefit.litert.graph import parse
from mobilefit.nn import build
from mobilefit.nn.blocks import Row


def structure(blob):
    """Everything that the latency of a file can depend on."""

    def form(tensor):
        q = tensor.quantization
        return tensor.shape, tensor.dtype, tensor.data is None, 0 if q is None else len(q.scale)

    def options(op):
        return {k: np.asarray(v).tolist() for k, v in vars(op.options).items()} if op.options else None

    return [
        (op.name, options(op),
         [form(t) for t in op.inputs], [form(t) for t in op.outputs])
        for op in parse(blob).ops
    ]  # fmt: skip


def agreement(a, b):
    """Signal to noise, as a ratio of standard deviations."""
    return a.std() / max((a - b).std(), 1e-12)


@pytest.fixture(scope="module", params=["mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"])
def network(request, randomized, images):
    torch.manual_seed(0)
    net = randomized(getattr(torchvision.models, request.param)(weights=None))
    blob, array = compile(net, (1, 3, 96, 96), metadata={"a": 1}), images((4, 3, 96, 96))
    return blob, quantize(blob, [array]), array


def test_int8_is_close_to_float(network, worker):
    blob, small, array = network
    assert len(small) < 0.3 * len(blob)
    assert agreement(worker.run(blob, array), worker.run(small, array)) > 20


def test_int8_runs_in_one_partition(network, worker):
    inspection = worker.inspect(network[1])
    assert (inspection.partitions, inspection.outside) == (1, ())


def test_edges_stay_float_and_everything_between_is_int8(network):
    graph = parse(network[1])
    assert graph.ops[0].name == "QUANTIZE" and graph.ops[-1].name == "DEQUANTIZE"
    assert graph.inputs[0].dtype == graph.outputs[0].dtype == np.float32
    assert {op.output.dtype for op in graph.ops[:-1]} == {np.dtype(np.int8)}
    convolutions = [op for op in graph.ops if op.name == "CONV_2D"]
    assert all(len(op.inputs[1].quantization.scale) == op.output.shape[-1] for op in convolutions)
    assert {op.inputs[2].dtype for op in convolutions} == {np.dtype(np.int32)}


def test_metadata_and_signature_survive(network):
    assert read_metadata(network[1]) == {"a": 1}
    graph = parse(network[1])
    assert (graph.input_names, graph.output_names) == (["input"], ["output"])


def test_made_up_ranges_give_the_same_operators(network):
    assert structure(with_random_ranges(network[0])) == structure(network[1])


def test_a_fragment_is_int8_at_its_edges():
    piece = nn.Sequential(nn.Conv2d(6, 8, 1), nn.Hardswish())
    graph = parse(with_random_ranges(compile(piece, (1, 6, 8, 8)), edges="int8"))
    assert [op.name for op in graph.ops] == ["CONV_2D", "ADD", "MUL"]
    assert graph.inputs[0].dtype == graph.outputs[0].dtype == np.int8


def test_an_h_swish_at_the_output_keeps_its_sixth(worker, images, reference):
    torch.manual_seed(0)
    piece, array = nn.Sequential(nn.Conv2d(6, 8, 1), nn.Hardswish()), images((4, 6, 8, 8))
    small = quantize(compile(piece, (1, 6, 8, 8)), [array])
    assert agreement(reference(piece, array), worker.run(small, array)) > 20


def test_calibration_fills_the_batch_of_the_file(worker, images, reference):
    torch.manual_seed(0)
    net, array = nn.Conv2d(6, 8, 1), images((4, 6, 8, 8))
    small = quantize(compile(net, (4, 6, 8, 8)), [array[:3], array[3:]])
    assert agreement(reference(net, array), worker.run(small, array)) > 20


@pytest.mark.parametrize("name", ["lcnet", "mobilenetv4_conv_small", "mobilenetv4_conv_medium"])
def test_later_networks_run_in_one_partition(name, worker, randomized, images):
    torch.manual_seed(0)
    net = randomized(build(spec(name).width(0.5), num_classes=10))
    blob, array = compile(net, (1, 3, 64, 64)), images((4, 3, 64, 64))
    small = quantize(blob, [array])
    inspection = worker.inspect(small)
    assert (inspection.partitions, inspection.outside) == (1, ())
    assert agreement(worker.run(blob, array), worker.run(small, array)) > 15
    assert structure(with_random_ranges(blob)) == structure(small)


# ---- pools


@pytest.mark.parametrize("act", ["relu", "hard_swish"])
@pytest.mark.parametrize("side", [40, 37])
def test_pools_and_squeezed_convolutions_run_in_one_partition(act, side, worker, randomized, images):
    torch.manual_seed(0)
    net = randomized(build(pooled_network(side, act)))
    blob, array = compile(net, (1, 3, side, side)), images((8, 3, side, side))
    small = quantize(blob, [array])
    inspection = worker.inspect(small)
    assert (inspection.partitions, inspection.outside) == (1, ())
    assert agreement(worker.run(blob, array), worker.run(small, array)) > 15
    assert structure(with_random_ranges(blob)) == structure(small)


def test_a_pools_output_is_on_the_scale_of_its_input(randomized):
    blob = compile(randomized(build(pooled_network(40))), (1, 3, 40, 40))
    pools = [op for op in parse(with_random_ranges(blob)).ops if op.name == "MAX_POOL_2D"]
    assert len(pools) == 4
    for pool in pools:
        before, after = pool.inputs[0].quantization, pool.output.quantization
        assert (before.scale, before.zero_point) == (after.scale, after.zero_point)


def test_a_pooled_row_is_an_int8_fragment(worker):
    net = build(pooled_network(40)).eval()
    blob = with_random_ranges(compile(net.layer("blocks.4"), (1, 8, 10, 10)), edges="int8")
    graph = parse(blob)
    assert graph.inputs[0].dtype == graph.outputs[0].dtype == np.int8
    assert graph.outputs[0].shape == (1, 5, 5, 8)
    assert worker.inspect(blob).partitions == 1


@pytest.mark.parametrize("skip", ["identity", "pool"])
def test_an_input_far_narrower_than_the_sum_is_widened(skip, worker, images, reference):
    """A pool has no range of its own: what it reads is widened."""
    torch.manual_seed(0)
    spec = pooled_network(8)
    row = Row(Block(op="conv", kernel=1, out=8, act="none", skip=skip), 8, spec)
    nn.init.normal_(row.conv.norm.bias)
    first = nn.Conv2d(3, 8, 1, bias=False)
    nn.init.normal_(first.weight, std=1e-5)
    net, array = nn.Sequential(first, row), images((4, 3, 8, 8))
    small = quantize(compile(net, (1, 3, 8, 8)), [array])
    assert worker.inspect(small).partitions == 1
    assert abs(worker.run(small, array) - reference(net, array)).max() < 0.02


# ---- dead and almost dead channels, as training leaves them


def block(expand=16):
    return nn.Sequential(
        nn.Conv2d(8, expand, 1, bias=False), nn.BatchNorm2d(expand), nn.Hardswish(),
        nn.Conv2d(expand, expand, 3, 1, 1, groups=expand, bias=False), nn.BatchNorm2d(expand),
        nn.ReLU(), nn.Conv2d(expand, 8, 1, bias=False), nn.BatchNorm2d(8),
    )  # fmt: skip


def fill(index, attribute, value, channels=slice(None)):
    def change(net):
        getattr(net[index], attribute).data[channels] = value

    return change


DEAD = {
    "a channel with a bias and no weight": [fill(4, "weight", 0, 3), fill(4, "bias", 5, 3)],
    "a channel with a bias and almost no weight": [
        fill(4, "weight", 1e-7, 3), fill(4, "bias", 5, 3),
    ],
    "the same in a 1x1 layer": [fill(7, "weight", 0, 3), fill(7, "bias", 5, 3)],
    "a block that is all bias": [fill(7, "weight", 0), fill(7, "bias", 0.5, slice(4))],
    "a layer that is always zero": [fill(4, "bias", -100), fill(7, "bias", 0.5, slice(4))],
    "a layer that is almost always zero": [fill(4, "bias", -3.0)],
}  # fmt: skip


@pytest.mark.parametrize("name", DEAD)
def test_dead_channels(name, worker, images, reference):
    torch.manual_seed(0)
    net, array = block().eval(), images((4, 8, 16, 16))
    for change in DEAD[name]:
        change(net)
    expected = reference(net, array)
    small = quantize(compile(net, (1, 8, 16, 16)), [array])
    assert worker.inspect(small).partitions == 1
    assert abs(worker.run(small, array) - expected).max() < 0.05 * max(abs(expected).max(), 0.1)


# ---- refusals


def test_weights_that_are_not_finite_are_refused(images):
    net = block().eval()
    net[3].weight.data[0, 0, 0, 0] = float("inf")
    with pytest.raises(InputError, match="'3' reaches"):
        quantize(compile(net, (1, 8, 16, 16)), [images((1, 8, 16, 16))])


def test_images_that_are_not_finite_are_refused(images):
    array = images((1, 8, 16, 16))
    array[0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="not finite"):
        quantize(compile(block().eval(), (1, 8, 16, 16)), [array])


def test_a_range_that_the_runtime_cannot_take_is_refused(images):
    net = block().eval()
    net[1].running_mean.fill_(1e6)  # every value before the h-swish is about -1e6
    with pytest.raises(InputError, match="the int8 scale of '2/relu6'"):
        quantize(compile(net, (1, 8, 16, 16)), [images((1, 8, 16, 16))])


@pytest.mark.parametrize("arrays", [[], [np.zeros((1, 8, 8, 8), np.float32)], [np.zeros((16, 8))]])
def test_calibration_images_that_do_not_fit_are_refused(arrays):
    with pytest.raises(InputError, match="calibration"):
        quantize(compile(block().eval(), (1, 8, 16, 16)), arrays)


def test_an_int8_file_is_not_quantized_again(images):
    small = with_random_ranges(compile(block().eval(), (1, 8, 16, 16)))
    with pytest.raises(InputError, match="already quantized"):
        quantize(small, [images((1, 8, 16, 16))])


def test_long_metadata_lies_inside_of_the_file(images):
    """The quantizer puts buffers of over a kilobyte behind the flatbuffer, where few readers look."""
    text = "x" * 5000
    blob = compile(nn.Conv2d(3, 8, 3), (1, 3, 16, 16), metadata={"a": text})
    small = quantize(blob, [images((4, 3, 16, 16))])
    assert read_metadata(small) == {"a": text}
    assert all(buffer.offset == 0 for buffer in schema.ModelT.InitFromPackedBuf(small, 0).buffers)


@pytest.mark.parametrize("factor", [1e-5, 1e-8])
def test_activations_near_zero_are_widened_not_refused(factor, images, worker):
    """x * relu6(x + 3): the sum is a hundred thousand times wider than x."""
    conv = nn.Conv2d(3, 8, 1)
    nn.init.normal_(conv.weight, std=factor)
    nn.init.zeros_(conv.bias)
    small = quantize(compile(nn.Sequential(conv, nn.Hardswish()), (1, 3, 8, 8)), [images((8, 3, 8, 8))])
    assert np.abs(worker.run(small, images((8, 3, 8, 8)))).max() <= 100 * factor + 1e-2
