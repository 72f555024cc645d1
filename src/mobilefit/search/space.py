"""Search spaces as data: MnasNet's factorized hierarchical space (arXiv 1807.11626, section 4.1).

A network is a stem, a few *blocks* of alike layers, and a tail. Each block is chosen on its own, so
that blocks differ from each other while the layers of one do not. With the paper's choices a block
has 4 x 2 x 2 x 3 x 3 x 3 = 432 forms; five blocks have 432^5 = 1.5e13, where 15 free layers would
have 432^15 = 3.4e39.

A *decision* is one choice with its options, a *token* the index of the option taken, and a network is
a tuple of tokens. :meth:`Space.spec` and :meth:`Space.tokens` go from one to the other and back.

What is searched is a classifier. For detection and segmentation (:meth:`Space.for_task`) each one
becomes the backbone of SSDLite or LR-ASPP, by the rules of :mod:`mobilefit.arch.flavours`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

from mobilefit import arch
from mobilefit.arch import Block, Conv, NetSpec, Task
from mobilefit.arch.rows import MOST_BLOCKS, WIDEST, Activation, Skip, odd, positive
from mobilefit.errors import InputError, did_you_mean, unknown
from mobilefit.parsing import checked, shown
from mobilefit.runs import read_json
from mobilefit.search.strategy import Tokens

SE = Literal["none", "v3", "mnasnet"]
MOST_NETWORKS = 10**300
"""Of a space: their number is shown as a float."""
MOST_OPTIONS = 1000
"""Of a decision."""
CHOICES = ("op", "kernel", "se", "skip", "filters", "layers", "act")
"""The decisions of a block, in the order of the tokens; one with a single option takes no token."""


@dataclass(frozen=True, kw_only=True)
class BlockChoices:
    """What a block of alike layers may be; every field is the options of one decision."""

    stride: int
    """Of its first layer; the others have 1."""
    op: tuple[str, ...]
    """``conv`` (k x k), ``depthwise`` (k x k depthwise, then 1x1), ``mbconvN`` (inverted bottleneck
    whose expansion is N times its input), and MobileNetV4's with a starting depthwise convolution:
    ``extradwN`` (k x k before the expansion and after it) and ``convnextN`` (before it alone)."""
    kernel: tuple[int, ...]
    se: tuple[SE, ...] = ("none",)
    """``mnasnet``: a ratio of 0.25 of the layer's input; ``v3``: a quarter of its wide part."""
    skip: tuple[Skip, ...] = ("identity",)
    filters: tuple[int, ...]
    """Output channels."""
    layers: tuple[int, ...]
    """How many."""
    act: tuple[Activation, ...] = ("relu",)

    @property
    def forms(self) -> int:
        """How many different blocks this is."""
        return math.prod(len(getattr(self, name)) for name in CHOICES)


@dataclass(frozen=True, kw_only=True)
class Stem:
    """The first convolution, and rows that follow it unsearched."""

    conv: Conv
    rows: tuple[Block, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Tail:
    """What follows the searched blocks: more rows, the last convolution, the hidden layer."""

    rows: tuple[Block, ...] = ()
    inputs: int | None = None
    """Width before the first row that its expansion is written for: the expansion keeps its ratio to
    that, whatever width the searched blocks end with. ``None``: it stays as it is."""
    last: Conv | None = None
    hidden: int | None = None
    act: Activation = "none"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One choice."""

    name: str
    """``blocks.2.kernel``, ``stem``, ``tail``."""
    options: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Becoming:
    """What the networks of a space become the backbones of."""

    task: Task
    """detect or segment."""
    num_classes: int
    height: int
    """Of the input, pixels."""
    width: int

    def __call__(self, backbone: NetSpec) -> NetSpec:
        """The detector or segmenter on a classifier's layers.

        Raises:
            InputError: the head does not fit: the network ends at another stride than 32.
        """
        made = arch.detector(backbone) if self.task == "detect" else arch.segmenter(backbone)
        return made.classes(self.num_classes).resolution(self.height, self.width)


@dataclass(frozen=True, kw_only=True)
class Space:
    """A set of networks.

    Attributes:
        name: what it is called.
        base: gives what is not searched: input, padding, norm, classes, dropout.
        stems: options of the stem.
        blocks: the searched blocks, in order.
        tails: options of the tail.
        becoming: what is made of each network; ``None``: they are classifiers.

    Raises:
        InputError: an option that cannot be built, or two networks that could not be told apart; the
            message names the block and the choice.
    """

    name: str
    base: NetSpec
    stems: tuple[Stem, ...]
    blocks: tuple[BlockChoices, ...]
    tails: tuple[Tail, ...]
    becoming: Becoming | None = None

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise InputError(f"space '{self.name}' is not legal: " + "; ".join(problems))

    @functools.cached_property
    def decisions(self) -> tuple[Decision, ...]:
        """Every choice with more than one option, in the order of the tokens."""
        every = [Decision(name="stem", options=tuple(range(len(self.stems))))]
        for index, block in enumerate(self.blocks):
            every += [Decision(name=f"blocks.{index}.{c}", options=getattr(block, c)) for c in CHOICES]
        every.append(Decision(name="tail", options=tuple(range(len(self.tails)))))
        return tuple(decision for decision in every if len(decision.options) > 1)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of options of each decision."""
        return tuple(len(decision.options) for decision in self.decisions)

    @property
    def size(self) -> int:
        """The number of networks."""
        return math.prod(self.sizes)

    @functools.cached_property
    def handmade(self) -> tuple[Tokens, ...]:
        """The networks that the space is made around, as far as it holds them: every search's first trials."""
        try:
            return (self.tokens(self.base),)
        except InputError:
            return ()

    def resolution(self, pixels: int) -> Space:
        """The space for square images of ``pixels`` a side."""
        return replace(self, base=self.base.resolution(pixels))

    def classes(self, number: int) -> Space:
        """The space for ``number`` classes."""
        return replace(self, base=self.base.classes(number))

    def for_task(self, task: Task, num_classes: int, height: int, width: int) -> Space:
        """The space of detectors or segmenters with these networks as backbones.

        Args:
            task: detect or segment.
            num_classes: real ones: a detector's background is not counted.
            height, width: of the input, pixels.

        Raises:
            InputError: no head fits to a network of the space.
        """
        made = replace(self, becoming=Becoming(
            task=task, num_classes=num_classes, height=height, width=width
        ))  # fmt: skip
        made.spec([0] * len(made.sizes))
        return made

    @property
    def task(self) -> Task:
        """What its networks are for."""
        return self.base.task if self.becoming is None else self.becoming.task

    @property
    def reference(self) -> NetSpec:
        """The base network as the space's networks are: with the task's head."""
        return self.base if self.becoming is None else self.becoming(self.base)

    def chosen(self, tokens: Sequence[int]) -> dict[str, Any]:
        """The value of every decision by name, those with one option included.

        Raises:
            InputError: a token too many or too few, or out of range.
        """
        self._check(tokens)
        taken = {d.name: d.options[t] for d, t in zip(self.decisions, tokens)}
        for index, block in enumerate(self.blocks):
            for choice in CHOICES:
                taken.setdefault(f"blocks.{index}.{choice}", getattr(block, choice)[0])
        return {"stem": 0, "tail": 0} | taken

    def taking(self, values: Mapping[str, Any]) -> Tokens:
        """The tokens that take these values, by the decisions' names: the inverse of :meth:`chosen`."""
        return tuple(d.options.index(values[d.name]) for d in self.decisions)

    def spec(self, tokens: Sequence[int]) -> NetSpec:
        """The network of these tokens.

        Raises:
            InputError: a token too many or too few, or out of range.
        """
        made = self._built(tokens, self.name)
        if self.becoming is not None:
            made = self.becoming(made)
        return replace(made, name=f"{self.name}_{made.id}")

    def _built(self, tokens: Sequence[int], name: str) -> NetSpec:
        taken = self.chosen(tokens)
        stem, tail = self.stems[taken["stem"]], self.tails[taken["tail"]]
        rows = list(stem.rows)
        width = rows[-1].out if rows else stem.conv.out
        for index, block in enumerate(self.blocks):
            form = {choice: taken[f"blocks.{index}.{choice}"] for choice in CHOICES}
            made = _layers(form, block.stride, width)
            rows += made
            width = made[-1].out
        rows += _tail_rows(tail, width)
        own = self.base.classifier
        norm = own.hidden_norm and tail.hidden is not None
        head = replace(own, hidden=tail.hidden, hidden_norm=norm, act=tail.act)
        return replace(
            self.base, name=name, stem=stem.conv, blocks=tuple(rows), last=tail.last, head=head
        )

    def tokens(self, spec: NetSpec) -> Tokens:
        """The tokens of a classifier of this space: the inverse of :meth:`spec`. The name is not looked at.

        Raises:
            InputError: the network is not in the space.
        """
        for stem_index, stem in enumerate(self.stems):
            for tail_index, tail in enumerate(self.tails):
                stop = len(spec.blocks) - len(tail.rows)
                taken = self._read(spec, len(stem.rows), stop)
                if taken is None:
                    continue
                taken |= {"stem": stem_index, "tail": tail_index}
                tokens = self.taking(taken)
                if self._built(tokens, spec.name) == spec:
                    return tokens
        raise InputError(f"network '{spec.name}' is not in the space '{self.name}'")

    def _read(self, spec: NetSpec, start: int, stop: int) -> dict[str, Any] | None:
        """The choices of the rows from ``start`` to ``stop``, if the blocks can be read off them."""
        taken: dict[str, Any] = {}
        for index, block in enumerate(self.blocks):
            if start >= stop:
                return None
            row, width = spec.blocks[start], spec.widths[start]
            end = start + 1
            while end < stop and _continues(spec.blocks[end], row):
                end += 1
            form = {
                "op": _op_of(row, width), "kernel": row.kernel or row.start_kernel, "se": row.se or "none",
                "skip": row.skip, "filters": row.out, "layers": end - start, "act": row.act,
            }  # fmt: skip
            if any(value not in getattr(block, choice) for choice, value in form.items()):
                return None
            taken |= {f"blocks.{index}.{choice}": value for choice, value in form.items()}
            start = end
        return taken if start == stop else None

    def random(self, draw: Callable[[int], int]) -> Tokens:
        """A network, each option as likely as the others; ``draw(n)`` gives a number below n."""
        return tuple(draw(size) for size in self.sizes)

    def smallest(self) -> Tokens:
        """The network of fewest multiply-adds, found one decision at a time."""
        tokens = [0] * len(self.sizes)
        for _ in range(2):  # a block's best form depends on the width before it
            for place, size in enumerate(self.sizes):
                costs = [self.spec([*tokens[:place], option, *tokens[place + 1 :]]).cost().madds
                         for option in range(size)]  # fmt: skip
                tokens[place] = costs.index(min(costs))
        return tuple(tokens)

    def places(self, tokens: Sequence[int]) -> list[tuple[str, int]]:
        """Where each row of the network comes from: (``stem.0``, ``blocks.2``, ``tail.1``; layer)."""
        taken = self.chosen(tokens)
        found = [(f"stem.{taken['stem']}", i) for i in range(len(self.stems[taken["stem"]].rows))]
        for index in range(len(self.blocks)):
            found += [(f"blocks.{index}", i) for i in range(taken[f"blocks.{index}.layers"])]
        tail = taken["tail"]
        return found + [(f"tail.{tail}", i) for i in range(len(self.tails[tail].rows))]

    def _check(self, tokens: Sequence[int]) -> None:
        if len(tokens) != len(self.sizes):
            raise InputError(f"{len(tokens)} tokens, space '{self.name}' has {len(self.sizes)} decisions")
        for decision, token in zip(self.decisions, tokens):
            if not 0 <= token < len(decision.options):
                raise InputError(
                    f"token {token} of {decision.name} is not below {len(decision.options)}"
                )

    # ---- files

    def to_dict(self) -> dict[str, Any]:
        """The space as plain JSON values; ``becoming`` only where it is set, since a space's file has none."""
        text = json.dumps(dataclasses.asdict(self))
        plain: dict[str, Any] = json.loads(text, object_hook=_without_later_fields)
        if self.becoming is None:
            del plain["becoming"]
        return plain

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Space:
        """The space of a file.

        Fields: ``name``; ``base``, a name of the family or a whole spec; ``blocks``, a list of
        :class:`BlockChoices`; and either ``rows`` ``[first, end]``, the rows of the base network whose
        place the blocks take (its stem, the rows around and its tail stay), or ``stems`` and ``tails``.

        Raises:
            InputError: a missing or unknown field, or an illegal option.
        """
        if not isinstance(value, Mapping):
            raise InputError("this is not a space: the JSON is not an object")
        known = ("name", "base", "rows", "blocks", "stems", "tails")
        for key in value:
            if key not in known:
                raise InputError(f"unknown field {shown(key)} in the space", did_you_mean(str(key), known))
        for key in ("name", "base", "blocks"):
            if key not in value:
                raise InputError(f"the space lacks the field '{key}'")
        base = value["base"]
        base = arch.spec(base) if isinstance(base, str) else NetSpec.from_dict(base)
        if base.task != "classify":
            raise InputError(
                f"the space's base '{base.name}' is to {base.task}, and classifiers are searched",
                "name its backbone: with --task each network becomes one of the task",
            )
        blocks = checked(tuple[BlockChoices, ...], _list(value, "blocks"), "the space", "blocks")
        stems, tails = _around(base, value.get("rows"))
        if "stems" in value:
            stems = checked(tuple[Stem, ...], _list(value, "stems"), "the space", "stems")
        if "tails" in value:
            tails = checked(tuple[Tail, ...], _list(value, "tails"), "the space", "tails")
        name = checked(str, value["name"], "the space", "name")
        return cls(name=name, base=base, stems=stems, blocks=blocks, tails=tails)

    @classmethod
    def load(cls, path: Path) -> Space:
        """The space of a JSON file: see :meth:`from_dict`.

        Raises:
            InputError: it is missing, not JSON, or not legal.
        """
        value = read_json(path, hint=None)
        if not isinstance(value, dict):
            raise InputError(f"{path} is not a space: the JSON is not an object")
        try:
            return cls.from_dict(value)
        except InputError as error:
            raise InputError(f"{path}: {error.message}", error.hint) from error


def _without_later_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of rows and heads that came after the first logs, left out at their defaults: a search that was
    begun before goes on."""
    later = (("start_kernel", 0), ("hidden_norm", False))
    return {name: value for name, value in fields.items() if (name, value) not in later}


# ---- rows


def _layers(form: Mapping[str, Any], stride: int, inputs: int) -> list[Block]:
    """The alike layers of a block; only the first has the stride."""
    rows = []
    for number in range(form["layers"]):
        op, kernel, ratio = form["op"], form["kernel"], expansion(form["op"])
        rows.append(
            Block(
                op="conv" if op == "conv" else "inverted",
                start_kernel=kernel if op.startswith(("extradw", "convnext")) else 0,
                kernel=0 if op.startswith("convnext") else kernel,
                stride=stride if number == 0 else 1, expand=None if ratio is None else ratio * inputs,
                out=form["filters"],
                se=None if form["se"] == "none" else form["se"], act=form["act"], skip=form["skip"],
            )
        )
        inputs = form["filters"]
    return rows


def expansion(op: str) -> int | None:
    """How many times its input a bottleneck expands, of its name in a space; ``None``: it is none."""
    match = re.fullmatch(r"(?:mbconv|extradw|convnext)([1-9]\d?)", op)
    return None if match is None else int(match[1])


def _op_of(row: Block, inputs: int) -> str:
    """The name of a row's operation in a space; one that no space has for rows of other kinds."""
    if row.op == "conv":
        return "conv"
    if row.op != "inverted":
        return row.op
    if row.expand is None:
        return "depthwise"
    kind = "mbconv"
    if row.start_kernel:
        kind = "extradw" if row.kernel == row.start_kernel else "extradw?" if row.kernel else "convnext"
    elif not row.kernel:
        kind = "ffn"
    return f"{kind}{row.expand // inputs}" if row.expand % inputs == 0 else f"{kind}?"


def _continues(row: Block, first: Block) -> bool:
    """Whether a row can be a later layer of the block that begins with ``first``."""
    return row == replace(first, stride=1, expand=row.expand) and (
        row.expand == _later_expand(row, first)
    )


def _later_expand(row: Block, first: Block) -> int | None:
    """A later layer's expansion is a multiple of the block's own width."""
    if first.expand is None:
        return None
    return row.expand if row.expand is not None and row.expand % row.out == 0 else -1


def _tail_rows(tail: Tail, inputs: int) -> list[Block]:
    """The tail's rows after blocks that end with ``inputs`` channels."""
    rows = list(tail.rows)
    if rows and tail.inputs is not None and rows[0].expand is not None:
        ratio = Fraction(rows[0].expand, tail.inputs)
        rows[0] = replace(rows[0], expand=int(ratio * inputs))
    return rows


# ---- files


def _around(
    base: NetSpec, rows: Any
) -> tuple[tuple[Stem, ...], tuple[Tail, ...]]:
    """The base network's own stem and tail around the rows that are searched; all rows by default."""
    first, end = (0, len(base.blocks)) if rows is None else _pair(rows, len(base.blocks))
    stem = Stem(conv=base.stem, rows=base.blocks[:first])
    tail = Tail(
        rows=base.blocks[end:], inputs=base.widths[end], last=base.last, hidden=base.head.hidden,
        act=base.head.act,
    )
    return (stem,), (tail,)


def _pair(rows: Any, count: int) -> tuple[int, int]:
    if (
        isinstance(rows, (list, tuple)) and len(rows) == 2
        and all(isinstance(row, int) for row in rows) and 0 <= rows[0] < rows[1] <= count
    ):  # fmt: skip
        return rows[0], rows[1]
    raise InputError(
        f"the space's rows {shown(rows)} are not [first, end] within the base network's {count} rows"
    )


def _list(value: Mapping[str, Any], name: str) -> list[Any]:
    found = value[name]
    if not isinstance(found, (list, tuple)) or not found:
        raise InputError(f"the space's '{name}' is not a list with at least one entry")
    if len(found) > MOST_OPTIONS:
        raise InputError(f"the space's '{name}' has {len(found):,} entries, more than {MOST_OPTIONS:,}")
    return list(found)


# ---- what is illegal


def _problems(space: Space) -> Iterator[str]:
    for name in ("stems", "blocks", "tails"):
        if not getattr(space, name):
            yield f"it has no {name}"
            return
    found = [p for i, block in enumerate(space.blocks) for p in _block_problems(f"blocks[{i}]", block)]
    yield from found
    if found:
        return
    if math.prod((len(space.stems), len(space.tails), *(block.forms for block in space.blocks))) > MOST_NETWORKS:
        yield "it has more than 10^300 networks"
        return
    for index in range(1, len(space.blocks)):
        block, before = space.blocks[index], space.blocks[index - 1]
        shared = sorted({*block.filters} & {*before.filters})
        if block.stride == 1 and shared:
            yield (
                f"blocks[{index}].filters: {shared[0]} is also a width of blocks[{index - 1}], and with "
                "stride 1 nobody could tell where one block ends and the other begins"
            )
    yield from _end_problems(space)


def _block_problems(where: str, block: BlockChoices) -> Iterator[str]:
    if block.stride not in (1, 2):
        yield f"{where}.stride {block.stride!r} is neither 1 nor 2"
    for choice in CHOICES:
        options = getattr(block, choice)
        if not isinstance(options, tuple) or not 1 <= len(options) <= MOST_OPTIONS:
            yield f"{where}.{choice} is not a list with at least one option" + (
                f" and at most {MOST_OPTIONS:,}" if options else ""
            )
            continue
        for option in options:
            problem = _option_problem(choice, option)
            if problem:
                yield f"{where}.{choice}: {problem}"
        if len({*map(str, options)}) < len(options):
            twice = next(o for o in options if options.count(o) > 1)
            yield f"{where}.{choice}: {twice} is there twice"


def _option_problem(choice: str, option: Any) -> str:
    if choice in ("filters", "layers"):
        return next(positive("", option, WIDEST if choice == "filters" else MOST_BLOCKS), "").strip()
    if choice == "kernel":
        return next(odd("", option), "").strip()
    if choice == "op":
        known = ("conv", "depthwise", "mbconv3", "mbconv6", "extradw4", "convnext4")
        if option in known or expansion(str(option)) is not None:
            return ""
        return str(unknown("operation", str(option), known))
    kinds: dict[str, Any] = {"se": SE, "skip": Skip, "act": Activation}
    known = get_args(kinds[choice])
    return "" if option in known else str(unknown(choice, str(option), known))


def _end_problems(space: Space) -> Iterator[str]:
    """Stems and tails that cannot be built: each with the first form of every block."""
    for kind, count in (("stem", len(space.stems)), ("tail", len(space.tails))):
        for option in range(count):
            ends = {"stem": 0, "tail": 0, kind: option}
            first = {d.name: 0 for d in space.decisions} | ends
            try:
                space.spec([first[d.name] for d in space.decisions])
            except InputError as error:
                yield f"{kind} {option}: {error.message}"
