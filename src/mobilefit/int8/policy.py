"""Which layers are int8 and which are not, as a value."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from mobilefit.errors import InputError, unknown
from mobilefit.litert.graph import CODE, Graph, Op
from mobilefit.parsing import dataclass_from

Arithmetic = Literal["int8", "int16", "float"]
"""Of a layer: int8 weights with int8 or with int16 activations, or float32 altogether."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The layers whose name matches ``pattern`` (of the shell: ``*.se.*``) get ``arithmetic``."""

    pattern: str
    arithmetic: Arithmetic


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The arithmetic of each layer: the last rule that matches it, else int8.

    Float layers stay in the delegate, at float's speed. XNNPACK has no int16 arithmetic: each int16
    layer splits the delegate and runs in LiteRT's reference kernels.
    """

    rules: tuple[Rule, ...] = ()

    @classmethod
    def of(cls, *, keep_float: tuple[str, ...] = (), int16: tuple[str, ...] = ()) -> Policy:
        """A policy of patterns."""
        chosen = [Rule(pattern=p, arithmetic="float") for p in keep_float]
        return cls(rules=(*chosen, *(Rule(pattern=p, arithmetic="int16") for p in int16)))

    @classmethod
    def from_dict(cls, value: Any) -> Policy:
        """Read ``{"rules": [{"pattern": "*.se", "arithmetic": "float"}]}``.

        Raises:
            InputError: another form, or an unknown arithmetic.
        """
        try:
            if isinstance(value, dict) and "rules" not in value:
                raise InputError("it lacks the field 'rules'")
            made: Policy = dataclass_from(cls, value, "the policy")
        except InputError as error:
            raise InputError(
                f"not a quantization policy: {error}",
                'write {"rules": [{"pattern": "blocks.0.*", "arithmetic": "float"}]}',
            ) from error
        for rule in made.rules:
            if rule.arithmetic not in get_args(Arithmetic):
                raise unknown("arithmetic", rule.arithmetic, get_args(Arithmetic))
        return made

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"rules": [{"pattern": r.pattern, "arithmetic": r.arithmetic} for r in self.rules]}

    def of_op(self, op: Op) -> Arithmetic:
        """The arithmetic of an operator of the graph.

        Without a rule HARD_SWISH, where one is left, is float, and so are rows of predictors where they
        are joined: each map's boxes and logits keep a scale of their own, and outputs are float anyway.
        """
        found: Arithmetic = "float" if op.code == CODE.HARD_SWISH or _joins_rows(op) else "int8"
        for rule in self.rules:
            if _matches(rule.pattern, op):
                found = rule.arithmetic
        return found

    def check(self, graph: Graph) -> None:
        """See that every pattern names something.

        Raises:
            InputError: one names no layer; it lists the layers.
        """
        for rule in self.rules:
            if not any(_matches(rule.pattern, op) for op in graph.ops):
                raise InputError(
                    f"no layer is named '{rule.pattern}'", f"the layers: {', '.join(layers(graph))}"
                )


def _joins_rows(op: Op) -> bool:
    return op.code == CODE.CONCATENATION and len(op.output.shape) == 3


def _matches(pattern: str, op: Op) -> bool:
    return fnmatchcase(layer_of(op), pattern) or fnmatchcase(_name(op), pattern)


def layer_of(op: Op) -> str:
    """The layer of :meth:`NetSpec.cost` that an operator belongs to, such as ``blocks.3.expand``.

    The parts of an activation belong to the layer before it, and so does a residual sum to its block.
    """
    name = _name(op)
    parent, _, last = name.rpartition(".")
    if parent.startswith("head") and last in _OF_HEADS:
        return f"{parent}.{_OF_HEADS[last]}"
    return name if op.code == CODE.FULLY_CONNECTED else parent or name


_OF_HEADS = {
    "predict": "predict", "rows": "predict", "high": "high", "low": "low", "gate": "gate", "sigmoid": "gate"
}  # fmt: skip
"""Layers of a head that are bare convolutions, and what follows them, by the names of their modules."""


def layers(graph: Graph) -> list[str]:
    """The layers of a graph, in the order of execution."""
    return list(dict.fromkeys(layer_of(op) for op in graph.ops))


def _name(op: Op) -> str:
    return re.sub(r"(;\d+)?$", "", op.output.name.split("/")[0]).removeprefix("backbone.")


def exceptions(policy: Policy, graph: Graph) -> Iterator[tuple[Op, Arithmetic]]:
    """The operators that are not int8."""
    for op in graph.ops:
        arithmetic = policy.of_op(op)
        if arithmetic != "int8":
            yield op, arithmetic
