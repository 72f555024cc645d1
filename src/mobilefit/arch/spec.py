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
from typing import Any, Literal, get_args

from mobilefit.arch.cost import Cost, count
from mobilefit.arch.scaling import Excite, Scaling, WidthRules, scale_width
from mobilefit.errors import InputError, did_you_mean, unknown

Activation = Literal["relu", "relu6", "hard_swish", "swish", "none"]
Op = Literal["inverted", "separable", "fused", "conv"]
Skip = Literal["identity", "pool", "none"]
Padding = Literal["same", "torch"]


@dataclass(frozen=True, kw_only=True)
class BatchNorm:
    """Batch normalisation, in torch's terms (momentum = 1 - TensorFlow's decay)."""

    eps: float = 1e-3
    """TF-slim, torchvision's V3 and Keras alike."""
    momentum: float = 0.01
    """The V3 paper's "average decay of 0.99"."""


@dataclass(frozen=True, kw_only=True)
class Conv:
    """A full convolution, batch norm and an activation: the stem, and the last layer before pooling."""

    out: int
    kernel: int = 1
    stride: int = 1
    act: Activation = "relu"
    se: Excite | None = None
    """Only for the V3 paper's Table 2 as printed, which no released network follows."""
    scaling: Scaling = "always"
    """When a width multiplier reaches this layer."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One row of the table.

    ``op`` says what it is, in order of execution:

    - ``inverted``: [1x1 expand, BN, act,] k x k depthwise, BN, act, [SE,] 1x1 project, BN
      (MobileNetV2's and V3's bottleneck; without ``expand`` it begins at the depthwise convolution);
    - ``fused``: k x k full convolution to ``expand``, BN, act, [SE,] 1x1 project, BN (V3-EdgeTPU);
    - ``separable``: k x k depthwise, BN, act, 1x1, BN, act (MobileNetV1);
    - ``conv``: k x k full convolution, BN, act[, SE].
    """

    op: Op = "inverted"
    kernel: int = 3
    stride: int = 1
    expand: int | None = None
    """Channels inside the block; ``None`` where there is no expansion layer."""
    out: int
    se: Excite | None = None
    """Squeeze-and-excite after the activation of the block's wide part (``conv``: of its output): see
    :func:`~.scaling.reduced_width`."""
    act: Activation = "relu"
    skip: Skip = "identity"
    """What is added to the output where the widths agree: the input itself (``identity``, at stride
    1), or the input through a 3x3 max pool of the block's stride (``pool``), padded as TensorFlow's
    SAME whatever the network's padding is. MnasNet's paper names "pooling" as a SkipOp and says no
    more; it is max pooling here because XNNPACK runs int8 MAX_POOL_2D inside of the delegate, which
    an int8 AVERAGE_POOL_2D would split."""

    def width(self, inputs: int) -> int:
        """Channels of the block's wide part, where the depthwise convolution and SE work."""
        if self.op == "conv":
            return self.out
        return inputs if self.expand is None else self.expand

    def has_residual(self, inputs: int) -> bool:
        """Whether the input, pooled or as it is, is added to the output."""
        if inputs != self.out:
            return False
        return self.skip == "pool" or (self.skip == "identity" and self.stride == 1)


@dataclass(frozen=True, kw_only=True)
class ClassifierHead:
    """Global average pooling, an optional hidden layer without batch norm, dropout, logits."""

    hidden: int | None = None
    act: Activation = "none"
    dropout: float = 0.2
    """Probability of dropping (the paper's "dropout of 0.8" is the share kept)."""
    num_classes: int = 1000
    scaling: Scaling = "above_one"
    """When a width multiplier reaches the hidden layer."""


@dataclass(frozen=True, kw_only=True)
class NetSpec:
    """A whole network as a value.

    Attributes:
        name: what it is called; the only field that is not part of :attr:`id`.
        input_size: side of the square input in pixels.
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
    in_channels: int = 3
    stem: Conv
    blocks: tuple[Block, ...]
    last: Conv | None = None
    head: ClassifierHead = ClassifierHead()
    padding: Padding = "same"
    norm: BatchNorm = BatchNorm()

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise InputError(f"spec '{self.name}' cannot be built: " + "; ".join(problems))

    def width(
        self, multiplier: float, rules: WidthRules = "tf", head: Scaling | None = None
    ) -> NetSpec:
        """The network with every width scaled: see :func:`mobilefit.arch.scaling.scale_width`."""
        return scale_width(self, multiplier, rules, head)

    def resolution(self, pixels: int) -> NetSpec:
        """The network for square images of ``pixels`` a side."""
        return replace(self, input_size=pixels)

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
            head=swapped(self.head),
        )

    def cost(self) -> Cost:
        """Exact parameters, multiply-adds and activation sizes, per layer: no torch needed."""
        return count(self)

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
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("stem", "last", "head", "norm"):
            plain[name] = None if plain[name] is None else dict(vars(plain[name]))
        return plain | {"blocks": [dict(vars(block)) for block in self.blocks]}

    def to_json(self) -> str:
        """The spec as readable JSON text."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> NetSpec:
        """The inverse of :meth:`to_dict`.

        Raises:
            InputError: a missing or unknown field (with the nearest name), or an illegal value.
        """
        fields = dict(value)
        blocks = fields.get("blocks", ())
        if not isinstance(blocks, (list, tuple)):
            raise InputError("spec field 'blocks' is not a list of rows")
        fields["blocks"] = tuple(from_mapping(Block, b, f"blocks.{i}") for i, b in enumerate(blocks))
        for name, kind in _PARTS.items():
            if name in fields and (name, fields[name]) != ("last", None):
                fields[name] = from_mapping(kind, fields[name], name)
        made: NetSpec = from_mapping(cls, fields, "spec")
        return made

    @classmethod
    def from_json(cls, text: str) -> NetSpec:
        """The inverse of :meth:`to_json`."""
        try:
            value = json.loads(text)
        except ValueError as error:
            raise InputError(f"this is not a spec: not valid JSON ({error})") from error
        if not isinstance(value, dict):
            raise InputError("this is not a spec: the JSON is not an object")
        return cls.from_dict(value)


_PARTS = {"stem": Conv, "last": Conv, "head": ClassifierHead, "norm": BatchNorm}


def from_mapping(kind: Any, value: Any, where: str) -> Any:
    """Build a dataclass from a mapping, as JSON gives it.

    Raises:
        InputError: it is no mapping, or a field is unknown (with the nearest name) or missing.
    """
    if not isinstance(value, Mapping):
        raise InputError(f"spec field '{where}' is not an object")
    known = {field.name: field for field in dataclasses.fields(kind)}
    for name in value:
        if name not in known:
            raise InputError(f"unknown field '{name}' in {where}", did_you_mean(name, known))
    missing = [n for n, f in known.items() if n not in value and _required(f)]
    if missing:
        raise InputError(f"{where} lacks the field '{missing[0]}'")
    return kind(**value)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _problems(spec: NetSpec) -> Iterator[str]:
    """Everything that is wrong with a spec, all at once."""
    if not spec.blocks:
        yield "it has no blocks"
    for name, conv in (("stem", spec.stem), ("last", spec.last)):
        if conv is not None:
            yield from _conv_problems(name, conv)
            yield from _choice(f"{name}.scaling", conv.scaling, Scaling)
    for index, block in enumerate(spec.blocks):
        yield from _conv_problems(f"blocks.{index}", block)
        yield from _block_problems(f"blocks.{index}", block)
    yield from _positive("input_size", spec.input_size)
    yield from _positive("in_channels", spec.in_channels)
    yield from _positive("head.num_classes", spec.head.num_classes)
    yield from _positive("head.hidden", spec.head.hidden)
    yield from _choice("head.act", spec.head.act, Activation)
    yield from _choice("head.scaling", spec.head.scaling, Scaling)
    yield from _choice("padding", spec.padding, Padding)
    if not _is_number(spec.head.dropout) or not 0 <= spec.head.dropout < 1:
        yield f"head.dropout {spec.head.dropout} is not in [0, 1)"
    if not _is_number(spec.norm.eps) or not spec.norm.eps > 0:
        yield f"norm.eps {spec.norm.eps} is not above 0"
    if not _is_number(spec.norm.momentum) or not 0 <= spec.norm.momentum <= 1:
        yield f"norm.momentum {spec.norm.momentum} is not in [0, 1]"


def _conv_problems(where: str, conv: Conv | Block) -> Iterator[str]:
    yield from _positive(f"{where}.out", conv.out)
    yield from _choice(f"{where}.act", conv.act, Activation)
    if conv.se is not None:
        yield from _choice(f"{where}.se", conv.se, Excite)
    if not isinstance(conv.kernel, int) or conv.kernel % 2 == 0 or conv.kernel < 1:
        yield f"{where}.kernel {conv.kernel} is not an odd size"
    if conv.stride not in (1, 2):
        yield f"{where}.stride {conv.stride} is neither 1 nor 2"


def _block_problems(where: str, block: Block) -> Iterator[str]:
    yield from _positive(f"{where}.expand", block.expand)
    yield from _choice(f"{where}.op", block.op, Op)
    yield from _choice(f"{where}.skip", block.skip, Skip)
    if block.op == "fused" and block.expand is None:
        yield f"{where} is fused and needs 'expand'"
    if block.op == "separable" and (block.expand is not None or block.se is not None):
        yield f"{where} is separable and takes neither 'expand' nor 'se'"
    if block.op == "conv" and block.expand is not None:
        yield f"{where} is conv and takes no 'expand'"


def _positive(where: str, value: int | None) -> Iterator[str]:
    if value is not None and (not isinstance(value, int) or value < 1):
        yield f"{where} {value!r} is not a positive whole number"


def _choice(where: str, value: str, kind: Any) -> Iterator[str]:
    if value not in get_args(kind):
        yield f"{where}: {unknown('value', str(value), get_args(kind))}"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


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
