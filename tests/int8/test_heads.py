"""Heads of detectors and segmenters in int8: resized maps, what is joined, several outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mobilefit.arch import spec
from mobilefit.int8 import Policy, calibrated, correct_biases, fidelity_of, sensitivity_of, written
from mobilefit.int8.policy import layers
from mobilefit.int8.quantizer import batches_of
from mobilefit.litert import compile
from mobilefit.litert.graph import parse
from mobilefit.nn import build
from mobilefit.nn.layers import ResizeLike

NETWORKS = {
    "ssdlite, v3 large": lambda: spec("ssdlite_mobilenet_v3_large_reduced").resolution(64).classes(7),
    "ssdlite, v3 small": lambda: spec("ssdlite_mobilenet_v3_small").resolution(64, 96).classes(4),
    "ssdlite, v2": lambda: spec("ssdlite_mobilenet_v2").width(0.35).resolution(64).classes(2),
    "lraspp, v3 large": lambda: spec("lraspp_mobilenet_v3_large").resolution(64).classes(4),
    "lraspp, v3 small": lambda: spec("lraspp_mobilenet_v3_small").resolution(64, 96).classes(19),
    "raspp, v2": lambda: spec("raspp_mobilenet_v2").width(0.35).resolution(64, 96).classes(3),
}


def planes(array):
    return torch.from_numpy(array).permute(0, 3, 1, 2)


@pytest.fixture(scope="module", params=NETWORKS)
def network(request, randomized, images):
    torch.manual_seed(0)
    chosen = NETWORKS[request.param]()
    net = randomized(build(chosen))
    shape = (1, 3, *chosen.image_shape)
    return net, compile(net, shape), images((4, *shape[1:]))


def outputs_of(found):
    return found if isinstance(found, tuple) else (found,)


def fidelity(simulation, array, worker):
    small = written(simulation)
    return fidelity_of(simulation, lambda x: worker.outputs(small, x), [planes(array)])


def test_in_float_it_computes_what_the_module_does(network):
    net, blob, array = network
    simulation = calibrated(blob, [array])
    with torch.no_grad():
        found, wanted = simulation.run(planes(array), "float"), net(planes(array))
    for ours, theirs in zip(outputs_of(found), outputs_of(wanted), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("observer", ["minmax", "histogram"])
def test_in_int8_it_computes_what_the_file_does(network, worker, observer):
    _, blob, array = network
    found = fidelity(calibrated(blob, [array], observer=observer), array, worker)
    assert found.images == 4 and found.within_one_step == 1.0
    assert found.equal > 0.99 and found.top1 > 0.995


# ---- resizing


class Resized(nn.Module):
    """A map that is made at one size and resized to that of the input."""

    def __init__(self, stride, aligned):
        super().__init__()
        self.make, self.resize = nn.Conv2d(3, 8, 3, stride, 1), ResizeLike(aligned)

    def forward(self, x):
        return self.resize(self.make(x), x)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("stride, shape", [(2, (9, 14)), (3, (16, 31)), (4, (48, 40)), (7, (7, 20))])
def test_resizing_is_the_devices_to_the_bit(stride, shape, aligned, worker, images):
    torch.manual_seed(0)
    array = images((3, 3, *shape))
    simulation = calibrated(compile(Resized(stride, aligned), (1, 3, *shape)), [array])
    assert fidelity(simulation, array, worker).equal == 1.0


@pytest.mark.parametrize("relu", [False, True])
def test_an_average_pool_is_litert_s_to_the_bit(relu, worker, images):
    torch.manual_seed(0)
    act = nn.ReLU() if relu else nn.Identity()
    net = nn.Sequential(nn.Conv2d(3, 8, 1), act, nn.AvgPool2d((2, 4), (2, 3)))
    array = images((3, 3, 20, 24))
    simulation = calibrated(compile(net, (1, 3, 20, 24)), [array])
    assert fidelity(simulation, array, worker).equal == 1.0


def test_a_resizing_of_neither_kind_is_named(images):
    from mobilefit.errors import InputError
    from mobilefit.litert.graph import serialize

    graph = parse(compile(Resized(2, True), (1, 3, 8, 8)))
    graph.ops[-1].options.alignCorners = False
    with pytest.raises(InputError, match="neither align_corners nor half_pixel_centers"):
        calibrated(serialize(graph), [images((1, 3, 8, 8))])


# ---- joined maps


class Joined(nn.Module):
    """A narrow and a wide map side by side, and one of both with a third."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow, self.third, self.out = (nn.Conv2d(i, 4, 1) for i in (3, 3, 3, 12))
        with torch.no_grad():
            self.wide.weight *= 20

    def forward(self, x):
        pair = torch.cat([self.narrow(x), self.wide(x)], 1)
        return self.out(torch.cat([pair, self.third(x)], 1))


@pytest.fixture(scope="module")
def joined(images):
    torch.manual_seed(0)
    array = images((4, 3, 8, 8))
    return compile(Joined(), (1, 3, 8, 8)), array


def test_what_is_joined_has_one_scale_and_is_not_rounded_again(joined, worker):
    blob, array = joined
    simulation = calibrated(blob, [array])
    small = parse(written(simulation))
    assert [op.name for op in small.ops].count("QUANTIZE") == 1
    for op in small.ops:
        if op.name == "CONCATENATION":
            assert len({float(t.quantization.scale[0]) for t in (*op.inputs, op.output)}) == 1
    assert fidelity(simulation, array, worker).equal == 1.0
    assert worker.inspect(written(simulation)).partitions == 1


def test_in_training_the_shared_range_follows_what_is_joined(joined):
    blob, array = joined
    simulation = calibrated(blob, [array]).train()
    simulation.momentum, simulation.delay, simulation.freeze = 1.0, 1, 9
    simulation(planes(3 * array))
    seen = {}

    def note(op, value):
        seen["input" if op is None else op.output.name] = (float(value.min()), float(value.max()))

    with torch.no_grad():
        simulation.run(planes(3 * array), "float", note)
    table = simulation.range_table()
    for name in ("wide", "narrow", "third", "cat", "cat_1"):
        found = (float(table[name]["min"][0]), float(table[name]["max"][0]))
        assert found == pytest.approx(seen["cat_1"], rel=1e-5)
    assert seen["narrow"] != seen["cat_1"]


def test_a_gate_keeps_its_fixed_scale_where_it_is_joined(worker, images):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.sigmoid = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Sigmoid()

        def forward(self, x):
            return torch.cat([self.a(x), self.sigmoid(self.b(x))], 1)

    torch.manual_seed(0)
    array = images((4, 3, 8, 8))
    simulation = calibrated(compile(Gated(), (1, 3, 8, 8)), [array])
    assert fidelity(simulation, array, worker).within_one_step == 1.0


# ---- several outputs


@pytest.fixture(scope="module")
def detector(randomized, images):
    torch.manual_seed(0)
    chosen = spec("ssdlite_mobilenet_v3_small_reduced").width(0.5).resolution(64).classes(3)
    net = randomized(build(chosen))
    return compile(net, (1, 3, 64, 64)), images((6, 3, 64, 64))


def test_each_maps_boxes_and_logits_keep_their_own_scale(detector):
    blob, array = detector
    small = parse(written(calibrated(blob, [array])))
    predictions = [op for op in small.ops if ".predict" in op.output.name and op.name == "CONV_2D"]
    scales = {float(op.output.quantization.scale[0]) for op in predictions}
    assert len(predictions) == 12 and len(scales) == 12
    joins = [op for op in small.ops if op.name == "CONCATENATION"]
    assert joins and all(op.output.dtype == np.float32 for op in joins)


def test_they_can_be_joined_in_int8(detector, worker):
    blob, array = detector
    policy = Policy.from_dict({"rules": [{"pattern": "head.cat", "arithmetic": "int8"}]})
    simulation = calibrated(blob, [array], policy=policy)
    small = written(simulation)
    names = [op.name for op in parse(small).ops]
    assert (names.count("QUANTIZE"), names.count("DEQUANTIZE")) == (1, 2)
    assert worker.inspect(small).partitions == 1
    assert fidelity(simulation, array, worker).within_one_step == 1.0


def test_a_layer_kept_in_float_is_float(detector, worker):
    blob, array = detector
    policy = Policy.of(keep_float=("head.boxes.0.predict",))
    simulation = calibrated(blob, [array], policy=policy)
    small = written(simulation)
    kinds = {op.output.name: op.output.dtype for op in parse(small).ops if op.name == "CONV_2D"}
    assert kinds["head.boxes.0.predict"] == np.float32 != kinds["head.boxes.1.predict"]
    assert worker.inspect(small).partitions == 1
    assert fidelity(simulation, array, worker).top1 > 0.99


def test_a_detector_is_trained_in_int8(detector, worker):
    blob, array = detector
    simulation = calibrated(blob, [array]).train()
    before = written(simulation)
    wanted = [p.requires_grad for p in simulation.parameters()]
    optimizer = torch.optim.SGD([p for p in simulation.parameters() if p.requires_grad], 1e-3)
    encodings, logits = simulation(planes(array))
    assert encodings.shape[2] == 4 and logits.shape[2] == 4 and encodings.shape[:2] == logits.shape[:2]
    (encodings.square().mean() + logits.square().mean()).backward()
    assert [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in simulation.parameters()] == wanted
    optimizer.step()
    assert written(simulation) != before
    assert fidelity(simulation.eval(), array, worker).within_one_step == 1.0


def test_bias_correction_takes_the_mean_error_back(randomized, images):
    torch.manual_seed(0)
    net = randomized(build(spec("ssdlite_mobilenet_v3_small_reduced").width(0.5).resolution(64).classes(3)))
    with torch.no_grad():
        for predictor in (*net.head.boxes, *net.head.classes):
            predictor.predict.weight[:, 0] *= 50  # next to it, the other weights are few steps
    blob, array = compile(net, (1, 3, 64, 64)), images((6, 3, 64, 64))
    simulation, reference = calibrated(blob, [array]), calibrated(blob, [array])
    batches = batches_of(simulation.graph, [array])

    def mean_error():
        with torch.no_grad():
            pairs = zip(reference.run(batches[0], "float"), simulation.run(batches[0], "int8"), strict=True)
            return sum(float((exact - found).mean((0, 1)).abs().mean()) for exact, found in pairs)

    before = mean_error()
    correct_biases(simulation, batches)
    assert mean_error() < before / 2


def test_sensitivity_needs_no_labels(detector):
    blob, array = detector
    simulation = calibrated(blob, [array])
    row = simulation.names.index("head.boxes.1.predict")
    simulation.ranges[row] *= 0.02  # nearly everything is clipped
    rows = sensitivity_of(simulation, batches_of(simulation.graph, [array[:2]]))
    assert rows[0].layer == "head.boxes.1.predict" and rows[0].accuracy_drop is None
    assert all(0 <= row.agreement <= 1 for row in rows)
    chosen = spec("ssdlite_mobilenet_v3_small_reduced")
    known = {layer.name for layer in chosen.cost().layers} | {f"blocks.{i}" for i in range(len(chosen.blocks))}
    assert {row.layer for row in rows} - {"head"} <= known


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_small", "raspp_mobilenet_v2"])
def test_layers_of_a_segmenter_are_named_as_in_its_cost(name):
    chosen = spec(name).resolution(64)
    found = layers(parse(compile(build(chosen), (1, 3, 64, 64))))
    rows = {f"blocks.{index}" for index in range(len(chosen.blocks))}  # their sums
    assert set(found) - {"head"} - rows <= {layer.name for layer in chosen.cost().layers}
    assert {"head.project", "head.high"} <= set(found)
