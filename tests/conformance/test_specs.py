"""One suite over every network of the family, and over both other heads of V3-Small."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mobilefit.arch import FAMILY, NetSpec, difference, spec, table
from mobilefit.arch.scaling import WidthRules
from mobilefit.nn import Network, build, load_network, save_weights

SPECS = FAMILY | {
    made.name: made
    for made in (spec("mobilenet_v3_small", head=head) for head in ("iccv", "table2"))
}
WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.25)
every_spec = pytest.mark.parametrize("made", SPECS.values(), ids=SPECS.keys())
every_rule = pytest.mark.parametrize("rules", ["tf", "torchvision"])


def on_meta(made: NetSpec) -> Network:
    """The network without memory for its weights: shapes only."""
    with torch.device("meta"):
        return build(made)


def scaled(made: NetSpec, rules: WidthRules) -> Iterator[NetSpec]:
    for width in WIDTHS:
        yield made.width(width, rules=rules)


def count_by_hooks(network: Network, side: int) -> tuple[int, int, list[int]]:
    """Parameters, multiply-adds and the sides of the maps, seen while the network runs."""
    madds, sides = 0, []

    def hook(module: nn.Conv2d | nn.Linear, args: tuple[torch.Tensor], out: torch.Tensor) -> None:
        nonlocal madds
        places = out[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
        madds += module.weight.numel() * places
        if isinstance(module, nn.Conv2d):
            sides.append(out.shape[-1])

    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(hook)
    network.eval()(torch.empty(1, network.spec.in_channels, side, side, device="meta"))
    return sum(p.numel() for p in network.parameters()), madds, sides


# ---- the value


@every_spec
@every_rule
def test_json_is_exact(made: NetSpec, rules: WidthRules) -> None:
    for value in (made, made.padded("torch").resolution(96), *scaled(made, rules)):
        again = NetSpec.from_json(json.dumps(json.loads(value.to_json())))
        assert (again, hash(again), again.id) == (value, hash(value), value.id)
        assert NetSpec.from_dict(value.to_dict()) == value


@every_spec
def test_an_id_is_of_the_content(made: NetSpec) -> None:
    assert len(made.id) == 12 and int(made.id, 16) >= 0
    assert replace(made, name="other").id == made.id
    assert [name for name, other in SPECS.items() if other.id == made.id] == [made.name]
    assert made.width(1.0).id == made.id
    assert difference(made, made.width(1.0)) == []
    assert made.width(0.5).id != made.id != made.resolution(96).id


@every_spec
def test_a_table_has_a_line_for_every_row(made: NetSpec) -> None:
    hidden = made.head.hidden is not None
    rows = 1 + len(made.blocks) + (made.last is not None) + 1 + hidden + 1
    assert len(table(made).splitlines()) == 1 + rows + 1


# ---- cost against the modules


@every_spec
@every_rule
def test_costs_are_what_the_modules_hold_and_do(made: NetSpec, rules: WidthRules) -> None:
    for value in scaled(made, rules):
        cost = value.resolution(75).cost()
        params, madds, sides = count_by_hooks(on_meta(value), 75)
        assert (cost.params, cost.madds) == (params, madds), value.name
        expected = {"conv": 1, "depthwise": 1, "excite": 2}  # convolutions in a layer
        assert sides == [
            1 if layer.kind == "excite" else layer.out_size
            for layer in cost.layers
            for _ in range(expected.get(layer.kind, 0))
        ]


@every_spec
def test_every_layer_of_the_cost_is_a_module(made: NetSpec) -> None:
    network, seen = on_meta(made), 0
    for layer in made.cost().layers:
        module = network.layer(layer.name)
        held = [p for n, p in module.named_parameters() if ".se." not in f".{n}"]
        if layer.kind == "pool":
            held = []
        assert sum(p.numel() for p in held) == layer.params, layer.name
        seen += layer.params
    assert seen == sum(p.numel() for p in network.parameters())


@every_spec
def test_multiply_adds_grow_with_resolution_and_parameters_do_not(made: NetSpec) -> None:
    costs = [made.resolution(side).cost() for side in (96, 160, 224, 256)]
    assert len({cost.params for cost in costs}) == 1
    madds = [cost.madds for cost in costs]
    assert madds == sorted(set(madds))


@every_spec
@every_rule
def test_wider_costs_more(made: NetSpec, rules: WidthRules) -> None:
    costs = [value.cost() for value in scaled(made, rules)]
    for key in ("params", "madds", "peak_activations"):
        values = [getattr(cost, key) for cost in costs]
        assert values == sorted(values) and values[0] < values[-1]


# ---- the network


@every_spec
@pytest.mark.parametrize("padding", ["same", "torch"])
def test_any_image_gives_logits(made: NetSpec, padding: str) -> None:
    network = on_meta(made.padded(padding).classes(7))  # type: ignore[arg-type]
    for shape in ((2, 3, 64, 64), (1, 3, 33, 50), (1, 3, 1, 1)):
        assert network.eval()(torch.empty(shape, device="meta")).shape == (shape[0], 7)


@every_spec
def test_training_reaches_every_parameter(made: NetSpec) -> None:
    torch.manual_seed(0)
    network = build(made.width(0.35), num_classes=5).train()
    for name, parameter in network.named_parameters():
        if name.endswith("se.expand.bias"):
            parameter.data.normal_()  # not all gates in the middle of their range
    network(torch.randn(8, 3, 64, 64)).square().sum().backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norm.num_batches_tracked == 1 for norm in norms)


@every_spec
def test_weights_come_back_bit_by_bit(made: NetSpec, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build(made.width(0.35), num_classes=5).train()
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        network(images)  # statistics that are not the initial ones
    save_weights(network, tmp_path / "net.safetensors")
    again = load_network(tmp_path / "net.safetensors")
    assert again.spec == network.spec
    with torch.no_grad():
        assert torch.equal(again.eval()(images), network.eval()(images))
