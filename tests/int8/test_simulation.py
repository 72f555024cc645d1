"""The simulation against the file: in float, in int8 to the bit, and in training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from graphs import pooled_network
from torch import nn

from mobilefit.arch import spec
from mobilefit.int8 import Policy, calibrated, correct_biases, fidelity_of, sensitivity_of, written
from mobilefit.int8.quantizer import batches_of
from mobilefit.int8.simulation import Simulation
from mobilefit.litert import compile
from mobilefit.litert.graph import parse
from mobilefit.nn import build

SIDE = 48
NETWORKS = {
    "mobilenet_v1": lambda: build(spec("mobilenet_v1").width(0.25).resolution(SIDE), 10),
    "mobilenet_v2": lambda: build(spec("mobilenet_v2").width(0.35).resolution(SIDE), 10),
    "mnasnet_a1": lambda: build(spec("mnasnet_a1").width(0.35).resolution(SIDE), 10),
    "mobilenet_v3_small": lambda: build(spec("mobilenet_v3_small").resolution(SIDE), 10),
    "mobilenet_v3_large": lambda: build(spec("mobilenet_v3_large").width(0.35).resolution(SIDE), 10),
    "pools": lambda: build(pooled_network(SIDE, "hard_swish")),
    "torchvision": lambda: torchvision.models.mobilenet_v3_small(num_classes=10),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request, randomized):
    torch.manual_seed(0)
    return randomized(NETWORKS[request.param]())


@pytest.fixture(scope="module")
def array():
    return np.random.default_rng(1).normal(size=(24, SIDE, SIDE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def blob(network):
    return compile(network, (1, 3, SIDE, SIDE))


def planes(array):
    return torch.from_numpy(array).permute(0, 3, 1, 2)


def test_in_float_it_computes_what_the_module_does(network, blob, array):
    simulation = calibrated(blob, [array])
    with torch.no_grad():
        found, wanted = simulation.run(planes(array), "float"), network(planes(array))
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("observer", ["minmax", "percentile"])
def test_in_int8_it_computes_what_the_file_does(blob, array, worker, observer):
    simulation = calibrated(blob, [array[:8]], observer=observer)
    small = written(simulation)
    found = fidelity_of(simulation, lambda x: worker.run(small, x), [planes(array)])
    assert (found.images, found.top1) == (24, 1.0)
    assert found.equal >= 0.99 and found.within_one_step == 1.0


def test_its_scales_are_the_files(blob, array):
    simulation = calibrated(blob, [array])
    stored = {t.name: t.quantization for t in parse(written(simulation)).tensors() if t.data is None}
    for name, found in simulation.range_table().items():
        if name == "input":  # float on the outside
            continue
        low, high = min(float(found["min"][0]), 0.0), max(float(found["max"][0]), 0.0)
        assert stored[name].scale[0] == pytest.approx((high - low) / 255, rel=1e-5)


def test_training_rounds_as_the_file_does_but_for_the_edges_of_steps(blob, array):
    simulation = calibrated(blob, [array])
    with torch.no_grad():
        exact = simulation.run(planes(array), "int8")
    found = simulation.run(planes(array), "int8").detach()
    steps = (found - exact).abs() / simulation.output_steps[0]
    assert float((steps < 3.01).float().mean()) > 0.98


@pytest.fixture(scope="module")
def small_blob(randomized):
    torch.manual_seed(0)
    net = randomized(build(spec("mobilenet_v3_small").width(0.35).resolution(32), 5))
    return compile(net, (1, 3, 32, 32))


@pytest.fixture(scope="module")
def small_array():
    return np.random.default_rng(2).normal(size=(12, 32, 32, 3)).astype(np.float32)


def test_every_weight_and_bias_gets_a_gradient_and_no_constant_does(small_blob, small_array):
    simulation = calibrated(small_blob, [small_array]).train()
    simulation(planes(small_array)).square().sum().backward()
    gradients = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in simulation.parameters()]
    wanted = [p.requires_grad for p in simulation.parameters()]
    assert gradients == wanted and 0 < sum(wanted) < len(wanted)


def test_ranges_follow_the_batches_until_they_are_frozen(small_blob, small_array):
    simulation = calibrated(small_blob, [small_array]).train()
    simulation.freeze, simulation.momentum = 2, 0.5
    before = simulation.ranges.clone()
    simulation(10 * planes(small_array))
    wider = simulation.ranges.clone()
    row = simulation.names.index("input")
    assert wider[row, 1] == pytest.approx(float(before[row, 1] + 10 * small_array.max()) / 2, rel=1e-4)
    simulation(planes(small_array))
    assert not torch.equal(simulation.ranges, wider)
    frozen = simulation.ranges.clone()
    simulation(10 * planes(small_array))
    assert torch.equal(simulation.ranges, frozen) and int(simulation.steps) == 3


def test_rounding_begins_after_the_delay(small_blob, small_array):
    simulation = calibrated(small_blob, [small_array]).train()
    simulation.delay = 1
    x = planes(small_array)
    first, second = simulation(x).detach(), simulation(x).detach()
    assert torch.equal(first, simulation.run(x, "float"))
    assert not torch.equal(first, second)


def test_the_state_of_a_training_can_be_taken_up(small_blob, small_array):
    simulation = calibrated(small_blob, [small_array]).train()
    simulation.freeze = 5
    simulation(3 * planes(small_array))
    again = Simulation(simulation.graph)
    again.load_state_dict(simulation.state_dict())
    assert int(again.steps) == 1 and torch.equal(again.ranges, simulation.ranges)


def test_trained_weights_reach_the_file(small_blob, small_array, worker):
    simulation = calibrated(small_blob, [small_array])
    before = worker.run(written(simulation), small_array)
    with torch.no_grad():
        for parameter in simulation.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.05)
    small = written(simulation)
    assert not np.array_equal(worker.run(small, small_array), before)
    found = fidelity_of(simulation, lambda x: worker.run(small, x), [planes(small_array)])
    assert found.within_one_step == 1.0


def test_a_file_can_be_written_before_and_after_a_training(worker):
    """Also where the writer had to raise a channel's weights, which are the file's alone."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        net[0].weight[1] = 1e-13
        net[0].bias[1] = 1.0
    array = np.random.default_rng(0).normal(size=(8, 6, 6, 3)).astype(np.float32)
    simulation = calibrated(compile(net, (1, 3, 6, 6)), [array])
    simulation.trained_graph().ops[0].inputs[1] = None  # a copy: nothing of it comes back
    before = worker.run(written(simulation), array)
    with torch.no_grad():
        simulation.constants[0].mul_(1.5)
    after = worker.run(written(simulation), array)
    assert not np.array_equal(before, after)
    assert simulation.run(planes(array), "int8").shape == (8, 2, 6, 6)


# ---- policies


@pytest.mark.parametrize("keep_float", [("head.*",), ("blocks.0.*", "*.se"), ("stem", "last")])
def test_float_layers_are_float_in_the_file_and_stay_in_the_delegate(
    small_blob, small_array, worker, keep_float
):
    simulation = calibrated(small_blob, [small_array], policy=Policy.of(keep_float=keep_float))
    small = written(simulation)
    kinds = {op.output.name: op.output.dtype for op in parse(small).ops if op.name != "DEQUANTIZE"}
    float_ops = [op for op in simulation.graph.ops if simulation.policy.of_op(op) == "float"]
    assert float_ops and all(kinds[op.output.name] == np.float32 for op in float_ops)
    assert worker.inspect(small).partitions == 1
    found = fidelity_of(simulation, lambda x: worker.run(small, x), [planes(small_array)])
    assert found.top1 == 1.0


def test_float_layers_bring_the_outputs_nearer(small_array):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Hardswish(), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 1))
    blob = compile(net, (1, 3, 32, 32))

    def noise(*keep_float):
        simulation = calibrated(blob, [small_array], policy=Policy.of(keep_float=keep_float))
        with torch.no_grad():
            exact, rounded = (simulation.run(planes(small_array), a) for a in ("float", "int8"))
        return float((exact - rounded).square().mean())

    assert noise("*") == 0 < noise("2", "3") < noise("3") < noise()


def test_an_int16_layer_is_int16_in_the_file(small_blob, small_array, worker):
    policy = Policy.of(int16=("head.logits",))
    simulation = calibrated(small_blob, [small_array], policy=policy)
    small = written(simulation)
    logits = next(op for op in parse(small).ops if op.output.name.startswith("head.logits"))
    assert logits.output.dtype == np.int16
    exact = worker.run(small_blob, small_array)
    assert np.corrcoef(exact.ravel(), worker.run(small, small_array).ravel())[0, 1] > 0.98


# ---- correction and sensitivity


def test_bias_correction_takes_the_mean_error_back(small_blob, small_array):
    simulation = calibrated(small_blob, [small_array])
    batches = batches_of(simulation.graph, [small_array])

    def mean_error():
        with torch.no_grad():
            x = torch.cat(batches)
            return float((simulation.run(x, "float") - simulation.run(x, "int8")).mean(0).abs().mean())

    before = mean_error()
    reference = calibrated(small_blob, [small_array])
    correct_biases(simulation, batches)
    with torch.no_grad():
        error = reference.run(batches[0], "float") - simulation.run(batches[0], "int8")
    after = float(error.mean(0).abs().mean())
    assert after < before / 2


def test_sensitivity_finds_the_layer_that_was_hurt(small_blob, small_array):
    simulation = calibrated(small_blob, [small_array])
    row = next(i for i, name in enumerate(simulation.names) if name.endswith("last.conv"))
    simulation.ranges[row] *= 0.02  # nearly everything is clipped
    batches = batches_of(simulation.graph, [small_array])
    rows = sensitivity_of(simulation, batches, np.zeros(12))
    assert rows[0].layer == "last" and rows[0].snr_db < rows[1].snr_db - 5
    assert len({r.layer for r in rows}) == len(rows) > 30
    assert simulation.run(batches[0], "int8").shape == (12, 5)  # as it was before
