"""Which layers a policy means."""

from __future__ import annotations

import pytest

from mobilefit.arch import spec
from mobilefit.errors import InputError
from mobilefit.int8.policy import Policy, Rule, layer_of, layers
from mobilefit.int8.quantizer import lowered
from mobilefit.litert import compile
from mobilefit.nn import build


@pytest.fixture(scope="module")
def graph():
    net = build(spec("mobilenet_v3_small").resolution(32), 4)
    return lowered(compile(net, (1, 3, 32, 32)))


def test_layers_are_named_as_those_of_the_cost(graph):
    names = layers(graph)
    wanted = [layer.name for layer in spec("mobilenet_v3_small").resolution(32).cost().layers]
    assert {"stem", "blocks.3.expand", "blocks.3.se", "last", "head.hidden", "head.logits"} <= set(names)
    # The first row's projection is one with the expansion after it (litert.passes.merge_projections).
    assert set(wanted) - set(names) <= {"blocks.0.project", "blocks.3.se.reduce", "head.pool"} | {
        name for name in wanted if ".se." in name
    }


def test_an_activation_belongs_to_its_layer_and_a_sum_to_its_block(graph):
    by_name = {op.output.name: layer_of(op) for op in graph.ops}
    assert by_name["backbone.blocks.3.expand.act/relu6"] == "blocks.3.expand"
    assert by_name["backbone.blocks.3.se.mul"] == "blocks.3.se"
    assert by_name["backbone.blocks.2.add"] == "blocks.2"


def test_the_last_rule_decides(graph):
    policy = Policy(rules=(Rule(pattern="*", arithmetic="float"), Rule(pattern="last", arithmetic="int8")))
    kinds = {layer_of(op): policy.of_op(op) for op in graph.ops}
    assert kinds.pop("last") == "int8" and set(kinds.values()) == {"float"}


def test_round_trip():
    policy = Policy.of(keep_float=("a.*", "b"), int16=("c",))
    assert Policy.from_dict(policy.to_dict()) == policy


@pytest.mark.parametrize("value", [[], {}, {"rules": [{"pattern": "a"}]}, {"rules": 3}, None])
def test_another_form_is_refused(value):
    with pytest.raises(InputError, match="not a quantization policy"):
        Policy.from_dict(value)


def test_an_unknown_arithmetic_is_refused():
    with pytest.raises(InputError, match="unknown arithmetic 'flaot'; did you mean 'float'"):
        Policy.from_dict({"rules": [{"pattern": "a", "arithmetic": "flaot"}]})


def test_a_pattern_that_names_nothing_is_refused(graph):
    with pytest.raises(InputError, match=r"no layer is named 'blok\.\*'; the layers: stem, blocks.0"):
        Policy.of(keep_float=("blok.*",)).check(graph)
