"""An architecture as a value: a frozen table of rows, as in the MobileNetV3 paper's Tables 1 and 2.

A :class:`NetSpec` is everything that a network is, before its weights. It compares, hashes, prints,
goes to JSON and back exactly, and has an id that depends on its content alone. Modules, costs,
latency tables, search and NetAdapt are functions of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from mobilefit.arch.cost import Cost, count
from mobilefit.arch.heads import HEADS, ClassifierHead, Head, Task
from mobilefit.arch.rows import (
    LARGEST_SIDE,
    MOST_BLOCKS,
    Activation,
    BatchNorm,
    Block,
    Conv,
    Padding,
    block_problems,
    choice,
    conv_problems,
    positive,
)
from mobilefit.arch.scaling import Scaling, WidthRules
from mobilefit.arch.width import checked, scaled
from mobilefit.errors import InputError, unknown
from mobilefit.parsing import dataclass_from, parse_json

NAMED = 10
"""Problems that a message names; of the others it tells how many there are."""


@dataclass(frozen=True, kw_only=True)
class NetSpec:
    """A whole network as a value.

    Attributes:
        name: what it is called; the only field that is not part of :attr:`id`.
        input_size: height of the input in pixels, and its width unless that is given.
        input_width: width of the input in pixels; ``None``: as high as wide.
        in_channels: channels of the input.
        stem: the first convolution.
        blocks: the rows of the table, in order.
        last: the 1x1 convolution before pooling, if there is one.
        head: what turns features into outputs.
        padding: ``same`` pads as TensorFlow does (bottom and right first at stride 2), ``torch``
            pads (k-1)/2 on every side. Sizes agree; the sampling grid at stride 2 does not, so
            weights want the padding that they were trained with. LiteRT says ``same`` without a
            PAD operator.
        norm: batch normalisation's constants.
    """

    name: str
    input_size: int = 224
    input_width: int | None = None
    in_channels: int = 3
    stem: Conv
    blocks: tuple[Block, ...]
    last: Conv | None = None
    head: Head = ClassifierHead()
    padding: Padding = "same"
    norm: BatchNorm = BatchNorm()

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            more = [f"and {len(problems) - NAMED} more"] if len(problems) > NAMED else []
            raise InputError(f"spec '{self.name}' cannot be built: " + "; ".join(problems[:NAMED] + more))

    def width(
        self, multiplier: float, rules: WidthRules = "tf", head: Scaling | None = None
    ) -> NetSpec:
        """The network with every width scaled; its own widths count as multiplier 1.

        Args:
            multiplier: above 0; the papers use 0.35 to 1.4.
            rules: ``"tf"`` or ``"torchvision"``, see :mod:`mobilefit.arch.width`.
            head: overrides when the head's hidden layer scales. The paper is of two minds above 1.0:
                Table 9's Small 1.25 (3.6 M) has a scaled one, its Large 1.25 (7.5 M) a fixed one.

        Raises:
            InputError: the multiplier is not positive, or a name is unknown.
        """
        factor = checked(multiplier, rules, head)
        stem, blocks, last = scaled((self.stem, self.blocks, self.last), factor, rules)
        name = f"{self.name}_{multiplier:g}" + ("" if rules == "tf" else f"_{rules}")
        return replace(
            self, name=name, stem=stem, blocks=blocks, last=last, head=self.head.scaled(factor, rules, head)
        )

    def resolution(self, height: int, width: int | None = None) -> NetSpec:
        """The network for images of that many pixels; square ones without a width."""
        return replace(self, input_size=height, input_width=None if width == height else width)

    def classes(self, number: int) -> NetSpec:
        """The network with ``number`` outputs."""
        return replace(self, head=replace(self.head, num_classes=number))

    def padded(self, padding: Padding) -> NetSpec:
        """The network with ``same`` (TensorFlow) or ``torch`` padding."""
        return replace(self, padding=padding)

    def activations(self, swaps: Mapping[Activation, Activation]) -> NetSpec:
        """The network with activations exchanged wherever they stand, as in the V3 paper's Table 5.

        ``spec.activations({"hard_swish": "relu"})`` is the ReLU network of the same rows.

        Raises:
            InputError: a name that is no activation (with the nearest one).
        """
        for name in (*swaps, *swaps.values()):
            if name not in get_args(Activation):
                raise unknown("activation", name, get_args(Activation))

        def swapped(part: Any) -> Any:
            return replace(part, act=swaps.get(part.act, part.act))

        return replace(
            self,
            stem=swapped(self.stem),
            blocks=tuple(swapped(block) for block in self.blocks),
            last=None if self.last is None else swapped(self.last),
            head=swapped(self.head) if isinstance(self.head, ClassifierHead) else self.head,
        )

    def cost(self) -> Cost:
        """Exact parameters, multiply-adds and activation sizes, per layer: no torch needed."""
        return count(self.image_shape, self.in_channels, self.stem, self.blocks, self.last, self.head)

    @property
    def task(self) -> Task:
        """What its head does."""
        return self.head.task

    @property
    def classifier(self) -> ClassifierHead:
        """The head of a classifier.

        Raises:
            InputError: this is another kind of network.
        """
        if not isinstance(self.head, ClassifierHead):
            raise InputError(f"'{self.name}' is no classifier: its head is for '{self.task}'")
        return self.head

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return self.input_size, self.input_width or self.input_size

    @property
    def widths(self) -> tuple[int, ...]:
        """Input channels of each block, and after them the output channels of the last one."""
        return (self.stem.out, *(block.out for block in self.blocks))

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of the content; the name does not count."""
        content = self.to_dict()
        del content["name"]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain JSON values."""
        plain = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        if self.input_width is None:
            del plain["input_width"]
        if not isinstance(self.head, ClassifierHead):
            plain["head"] = {"task": self.task, **plain["head"]}
        return plain

    def to_json(self) -> str:
        """The spec as readable JSON text."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> NetSpec:
        """The inverse of :meth:`to_dict`.

        Raises:
            InputError: a missing or unknown field (with the nearest name), a value of another type (with the
                path of its field), or an illegal one.
        """
        if not isinstance(value, Mapping):
            raise InputError("this is not a spec: the JSON is not an object")
        head = {"head": _head(value["head"])} if "head" in value else {}
        made: NetSpec = dataclass_from(cls, {**value, **head}, "spec")
        return made

    @classmethod
    def from_json(cls, text: str | bytes) -> NetSpec:
        """The inverse of :meth:`to_json`."""
        try:
            value = parse_json(text)
        except ValueError as error:
            raise InputError(f"this is not a spec: not valid JSON ({error})") from error
        return cls.from_dict(value)


_ONLY_IF_SET = {"dilation": 1, "start_kernel": 0, "hidden_norm": False}
"""Fields that came later, and are left out at this value: a network keeps its id."""


def _plain(value: Any) -> Any:
    """A part of a spec as JSON has it."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    fields = {name: _plain(inner) for name, inner in vars(value).items()}
    return {name: inner for name, inner in fields.items() if (name, inner) not in _ONLY_IF_SET.items()}


def _head(value: Any) -> Any:
    """The head that :meth:`NetSpec.to_dict` wrote; a classifier's does not name its task."""
    if not isinstance(value, Mapping):
        raise InputError("head is not an object")
    fields = dict(value)
    task = fields.pop("task", "classify")
    if not isinstance(task, str) or task not in HEADS:
        raise unknown("task", str(task)[:60], HEADS)
    return dataclass_from(HEADS[task], fields, "spec", "head")


def _problems(spec: NetSpec) -> Iterator[str]:
    """Everything that is wrong with a spec, all at once."""
    if not 1 <= len(spec.blocks) <= MOST_BLOCKS:
        yield f"it has {len(spec.blocks)} blocks, more than {MOST_BLOCKS}" if spec.blocks else "it has no blocks"
        return
    for name, conv in (("stem", spec.stem), ("last", spec.last)):
        if conv is not None:
            yield from conv_problems(name, conv)
            yield from choice(f"{name}.scaling", conv.scaling, Scaling)
    for index, block in enumerate(spec.blocks):
        yield from conv_problems(f"blocks[{index}]", block)
        yield from block_problems(f"blocks[{index}]", block)
    yield from positive("input_size", spec.input_size, LARGEST_SIDE)
    yield from positive("input_width", spec.input_width, LARGEST_SIDE)
    yield from positive("in_channels", spec.in_channels)
    yield from choice("padding", spec.padding, Padding)
    yield from spec.norm.problems("norm")
    yield from spec.head.problems(list(_taps(spec)))


def _taps(spec: NetSpec) -> Iterator[str]:
    """The layers of the backbone that a head may begin with, by name."""
    for index, block in enumerate(spec.blocks):
        for part in block.parts:
            yield f"blocks.{index}.{part}"
        yield f"blocks.{index}"
    if spec.last is not None:
        yield "last"


def difference(old: NetSpec, new: NetSpec) -> list[str]:
    """What changed from ``old`` to ``new``, one readable line a field: ``blocks.1.expand 96 -> 64``."""
    before, after = _flat(old.to_dict()), _flat(new.to_dict())
    return [
        f"{key} {_show(before.get(key))} -> {_show(after.get(key))}"
        for key in [*before, *(key for key in after if key not in before)]
        if key != "name" and before.get(key) != after.get(key)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = {str(i): v for i, v in enumerate(value)}.items()
    else:
        return {prefix[:-1]: value}
    flat: dict[str, Any] = {}
    for key, inner in items:
        flat |= _flat(inner, f"{prefix}{key}.")
    return flat


def _show(value: Any) -> str:
    return "-" if value is None else str(value)
