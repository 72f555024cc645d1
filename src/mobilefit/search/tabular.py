"""A benchmark without training: a made-up table of accuracy and latency whose optimum is known.

Every network of a :class:`Space` has an accuracy and a latency that are functions of its tokens, with
no randomness but hashes of fixed strings, so that a search takes seconds, can be repeated anywhere,
and can be told how far from the best it ended.

**Latency** is on the scale of MnasNet's Pixel 1 (MnasNet-A1: 78 ms): for each row of the network its
multiply-adds by kind of layer, the elements that it reads and writes, and a price for each call
(:data:`NS_PER_MADD` and below), rounded to whole hundredths of a millisecond.

**Accuracy** is that of a short training: a saturating function of *quality*, which is a sum of

- what each block's choices are worth, with diminishing returns (:data:`POINTS`), after what MnasNet
  reports for whole networks (section 6.2 and Table 1), some blocks mattering more than others;
- ruggedness: a hashed number for each form of each block;
- an interaction: a hashed number for each pair of neighbours by operation and kernel.

Both are sums along a chain of parts (stem, blocks, tail) in which a part's terms depend on its own
form, the width before it, and its neighbour's operation and kernel. So the best quality at each latency
is found exactly by dynamic programming, and with it the optimum of every reward.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilefit.arch import Block, Conv, NetSpec
from mobilefit.arch.cost import Layer
from mobilefit.search.reward import Reward
from mobilefit.search.space import CHOICES, Space, Tail, expansion
from mobilefit.search.strategy import Tokens

# ---- latency, fitted by hand to 78 ms for MnasNet-A1 (which leaves MobileNetV2 at 73.5; paper: 75)

NS_PER_MADD = {"conv": 0.186, "depthwise": 0.475, "excite": 0.68, "linear": 0.68, "pool": 0.0}
NS_PER_ELEMENT = 0.62
"""Of each activation that a layer reads or writes."""
NS_PER_CALL = 34_000.0
NS_PER_HARD_SWISH = 0.55
"""Of each element that it is applied to, beyond what ReLU costs."""

# ---- accuracy

CEILING, MIDDLE, SLOPE = 0.70, 0.8, 10.0
"""Accuracy is ``CEILING * sigmoid(MIDDLE + points / SLOPE)``: 48 % for a network of zero points. The
slope makes the best networks of twice the latency about 5 % better near 75 ms, MnasNet's rule."""
POINTS = {
    "expand": 3.1,  # for twice the expansion: MBConv3 to MBConv6 is +3.1 % (MnasNet, Table 6)
    "kernel": 0.7,  # for two more pixels: 3x3 to 5x5 is +0.7 % (the same)
    "se": 0.8,  # MnasNet's gain by squeeze-and-excite
    "filters": 5.0,  # for twice the width: V2's from 0.75 to 1.0 is +2 %
    "layers": 3.0,  # for twice the layers
    "no skip": -0.8,  # for each layer after the first
    "pool": -0.3,
    "act": 0.8,  # h-swish
    "ends": 1.0,  # for twice the width of the stem, or of the tail's last layer
}
"""What a choice made by all blocks is worth, in points of full-training top-1; a block has its share."""
EXPANSION = {"conv": 3.0, "depthwise": 1.0}
"""The expansion whose worth an operation without one has."""
WEIGHT = 0.5
"""Blocks weigh 1 - this to 1 + this, by their hash."""
RUGGED, NEIGHBOURS = 0.45, 0.2
"""Largest hashed points of a part's form, and of a pair of neighbours."""
UNIT = 1_000_000
"""Quality is in whole millionths of a point, so that sums are exact."""

Array = npt.NDArray[np.int64]
Entry = tuple[int, int]
"""Width and side of the feature map that a part is given."""
Class = tuple[Any, ...]
"""Of a part, as far as its neighbour is concerned: operation and kernel."""


def latency_ms(spec: NetSpec) -> float:
    """The table's latency of any network."""
    return sum(_hundredths(spec, range(len(spec.blocks)), ends=True)) / 100


def _hundredths(spec: NetSpec, rows: Sequence[int], *, ends: bool = False) -> Iterator[int]:
    """Of these rows, each on its own; with ``ends`` also stem, last convolution and head."""
    sizes = _sizes(spec)
    for row in rows:
        yield _row(spec.blocks[row], spec.widths[row], sizes[row])
    if ends:
        yield _stem(spec.stem, spec.in_channels, spec.input_size)
        yield _end(spec)


def _sizes(spec: NetSpec) -> list[int]:
    """The side of each row's input, and after them that of the last row's output."""
    strides = (spec.stem.stride, *(block.stride for block in spec.blocks))
    sides = itertools.accumulate(
        strides, lambda side, stride: -(-side // stride), initial=spec.input_size
    )
    return list(sides)[1:]


@functools.cache
def _row(block: Block, inputs: int, size: int) -> int:
    alone = NetSpec(name="row", input_size=size, stem=Conv(out=inputs), blocks=(block,))
    layers = alone.cost().of("blocks.0").layers
    nanoseconds = sum(map(_layer, layers))
    if block.skip == "pool" and block.has_residual(inputs):
        elements = inputs * (size**2 + layers[-1].out_size ** 2)
        nanoseconds += NS_PER_CALL + NS_PER_ELEMENT * elements
    return round(nanoseconds / 10_000)


@functools.cache
def _stem(conv: Conv, channels: int, size: int) -> int:
    alone = NetSpec(
        name="stem", input_size=size, in_channels=channels, stem=conv, blocks=(Block(out=1),)
    )
    return round(sum(map(_layer, alone.cost().of("stem").layers)) / 10_000)


def _end(spec: NetSpec) -> int:
    return _end_of(spec.last, spec.head, spec.widths[-1], _sizes(spec)[-1])


@functools.cache
def _end_of(last: Conv | None, head: Any, inputs: int, size: int) -> int:
    alone = NetSpec(
        name="end", input_size=size, stem=Conv(out=1), blocks=(Block(out=inputs),), last=last,
        head=head,
    )  # fmt: skip
    layers = (*alone.cost().of("last").layers, *alone.cost().of("head").layers)
    return round(sum(map(_layer, layers)) / 10_000)


def _layer(layer: Layer) -> float:
    """Nanoseconds of a layer: arithmetic, memory, call; SE has four calls, an addition one."""
    made = layer.out * layer.out_size**2
    elements = layer.inputs * layer.size**2 + made
    calls = 4 if layer.kind == "excite" else 1
    if layer.residual:
        elements, calls = elements + 2 * made, calls + 1
    swished = made if layer.act == "hard_swish" else 0
    return (
        NS_PER_MADD[layer.kind] * layer.madds + NS_PER_ELEMENT * elements + NS_PER_CALL * calls
        + NS_PER_HARD_SWISH * swished
    )  # fmt: skip


def accuracy_of(quality: int) -> float:
    """Quality to top-1: rises with it, saturating; to the sixth digit."""
    points = quality / UNIT
    return round(CEILING / (1 + math.exp(-MIDDLE - points / SLOPE)), 6)


def _hashed(*parts: object) -> float:
    """A number from -1 to 1 that is a function of the words."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:6], "big") / (2**47) - 1


@dataclass(frozen=True)
class _Form:
    """One form of a part: its tokens, what it is to its neighbour, its own worth."""

    tokens: Tokens
    kind: Class
    quality: int


@dataclass(frozen=True)
class _Step:
    """What is behind the parts so far."""

    first: dict[Entry, Tokens]
    """The first tokens of some network that leads to this width and size."""
    best: dict[tuple[Entry, Class | None], Array]
    """By latency in hundredths of a ms: the best quality, or :data:`_NEVER`."""


class Tabular:
    """The table of a space.

    Args:
        space: any.
        salt: another word gives another table of the same kind.
    """

    def __init__(self, space: Space, salt: str = "") -> None:
        self.space, self._salt = space, salt
        self._parts = ["stem", *(f"blocks.{i}" for i in range(len(space.blocks))), "tail"]
        self._slices = list(self._slice_parts())
        self._forms: list[dict[Tokens, _Form]] = [
            {tokens: self._form(part, tokens) for tokens in self._every(part)}
            for part in range(len(self._parts))
        ]
        self._costs: dict[tuple[int, Entry, Tokens], tuple[int, Entry]] = {}
        self._pairs: dict[tuple[int, Class | None, Class], int] = {}

    # ---- the function

    def evaluate(self, tokens: Sequence[int]) -> tuple[float, float]:
        """Top-1 (0 to 1) and latency in ms of a network.

        Raises:
            InputError: a token too many or too few, or out of range.
        """
        hundredths, quality = self._evaluate(tuple(tokens))
        return accuracy_of(quality), hundredths / 100

    def _evaluate(self, tokens: Tokens) -> tuple[int, int]:
        self.space.chosen(tokens)  # refuses what is no network
        hundredths = quality = 0
        entry = self._input
        before: Class | None = None
        for part, where in enumerate(self._slices):
            form = self._forms[part][tokens[where]]
            cost, entry = self._cost(part, entry, tokens)
            hundredths += cost
            quality += form.quality + self._pair(part, before, form.kind)
            before = form.kind
        return hundredths, quality

    @property
    def _input(self) -> Entry:
        return self.space.base.in_channels, self.space.base.input_size

    def _cost(self, part: int, entry: Entry, tokens: Tokens) -> tuple[int, Entry]:
        """Hundredths of a part behind ``entry``, and what it gives the next; ``tokens`` has both."""
        key = (part, entry, tokens[self._slices[part]])
        if key not in self._costs:
            self._costs[key] = self._count(part, tokens)
        return self._costs[key]

    def _count(self, part: int, tokens: Tokens) -> tuple[int, Entry]:
        spec, name = self.space.spec(tokens), self._parts[part]
        places = [place for place, _ in self.space.places(tokens)]
        rows = [row for row, place in enumerate(places) if f"{place}.".startswith(f"{name}.")]
        cost = sum(_hundredths(spec, rows))
        if name == "stem":
            cost += _stem(spec.stem, spec.in_channels, spec.input_size)
        if name == "tail":
            cost += _end(spec)
        end = rows[-1] + 1 if rows else 0
        return cost, (spec.widths[end], _sizes(spec)[end])

    def _pair(self, part: int, before: Class | None, kind: Class) -> int:
        """What a part's neighbour before it adds to its quality."""
        if before is None:
            return 0
        key = (part, before, kind)
        if key not in self._pairs:
            points = NEIGHBOURS * _hashed("neighbours", self._salt, self._parts[part], before, kind)
            self._pairs[key] = round(points * UNIT)
        return self._pairs[key]

    # ---- forms

    def _slice_parts(self) -> Iterator[slice]:
        """Where each part's tokens lie among the decisions."""
        names = [decision.name for decision in self.space.decisions]
        start = 0
        for part in self._parts:
            count = sum(f"{name}.".startswith(f"{part}.") for name in names)
            yield slice(start, start + count)
            start += count

    def _every(self, part: int) -> Iterator[Tokens]:
        return itertools.product(*map(range, self.space.sizes[self._slices[part]]))

    def _form(self, part: int, tokens: Tokens) -> _Form:
        whole = [0] * len(self.space.sizes)
        whole[self._slices[part]] = tokens
        chosen, name = self.space.chosen(whole), self._parts[part]
        if name in ("stem", "tail"):
            kind, points = (name, chosen[name]), self._end_points(name, chosen[name])
            words: tuple[Any, ...] = kind
        else:
            form = {choice: chosen[f"{name}.{choice}"] for choice in CHOICES}
            kind, words = (form["op"], form["kernel"]), tuple(form.values())
            points = self._share(part) * self._block_points(part - 1, form)
        points += RUGGED * _hashed("form", self._salt, name, *words)
        return _Form(tokens, kind, round(points * UNIT))

    def _share(self, part: int) -> float:
        """What part of a choice's worth this block has: about one of as many as there are blocks."""
        weight = 1 + WEIGHT * _hashed("weight", self._salt, self._parts[part])
        return weight / len(self.space.blocks)

    def _block_points(self, index: int, form: dict[str, Any]) -> float:
        """What a form would be worth if all blocks had it, beside an MBConv3 3x3 of middle size."""
        block, op = self.space.blocks[index], str(form["op"])
        ratio = EXPANSION[op] if op in EXPANSION else expansion(op)
        assert ratio is not None
        points: float = POINTS["expand"] * math.log2(ratio / 3)
        points += POINTS["kernel"] * (form["kernel"] - 3) / 2
        points += POINTS["se"] * (form["se"] != "none")
        points += POINTS["act"] * (form["act"] == "hard_swish")
        for choice in ("filters", "layers"):
            points += POINTS[choice] * math.log2(form[choice] / _middle(getattr(block, choice)))
        if form["skip"] == "none":
            points += POINTS["no skip"] * (form["layers"] - 1)
        if form["skip"] == "pool":
            points += POINTS["pool"]
        return points

    def _end_points(self, name: str, option: int) -> float:
        """A stem's or a tail's, beside the first one's."""
        if name == "stem":
            widths = [stem.conv.out for stem in self.space.stems]
        else:
            widths = [self._tail_width(tail) for tail in self.space.tails]
        return POINTS["ends"] * math.log2(widths[option] / widths[0])

    def _tail_width(self, tail: Tail) -> int:
        if tail.last is not None:
            return tail.last.out
        return tail.rows[-1].out if tail.rows else _middle(self.space.blocks[-1].filters)

    # ---- the optimum

    def fastest(self) -> float:
        """The smallest latency in the space, ms."""
        return self._frontier[0][0] / 100

    def optimum(self, reward: Reward) -> tuple[Tokens, float]:
        """A network of the highest reward in the whole space, and that reward."""
        value, hundredths, quality = max(
            (reward(accuracy_of(quality), hundredths / 100), hundredths, quality)
            for hundredths, quality in self._frontier
        )
        return self._trace(hundredths, quality), value

    @functools.cached_property
    def _frontier(self) -> list[tuple[int, int]]:
        """Every latency that there is, in hundredths of a ms, with the best quality at it."""
        best = np.maximum.reduce(list(self._steps[-1].best.values()))
        return [(int(place), int(best[place])) for place in np.flatnonzero(best > _NEVER // 2)]

    @functools.cached_property
    def _steps(self) -> list[_Step]:
        """Part by part: what is reached behind it, and the best quality there at each latency."""
        step = _Step({self._input: ()}, {(self._input, None): np.zeros(1, np.int64)})
        steps = [step]
        for part in range(len(self._parts)):
            step = self._step(part, step)
            steps.append(step)
        return steps

    def _step(self, part: int, before: _Step) -> _Step:
        links = list(self._links(part, before))
        length = max(cost for _, _, cost, _ in links) + max(map(len, before.best.values()))
        after = _Step({}, {})
        arriving: dict[tuple[Entry, Class], Array] = {}
        for entry, form, cost, exit_ in links:
            if (entry, form.kind) not in arriving:
                arriving[entry, form.kind] = np.maximum.reduce(
                    [
                        best + self._pair(part, kind, form.kind)
                        for (there, kind), best in before.best.items()
                        if there == entry
                    ]
                )
            source = arriving[entry, form.kind]
            after.first.setdefault(exit_, before.first[entry] + form.tokens)
            found = after.best.setdefault((exit_, form.kind), np.full(length, _NEVER))
            there = found[cost : cost + len(source)]
            np.maximum(there, source + form.quality, out=there)
        return after

    def _links(self, part: int, before: _Step) -> Iterator[tuple[Entry, _Form, int, Entry]]:
        """Every form behind everything that it can be given: its cost, and what it gives on."""
        for entry, first in before.first.items():
            for form in self._forms[part].values():
                rest = len(self.space.sizes) - len(first) - len(form.tokens)
                cost, exit_ = self._cost(part, entry, first + form.tokens + (0,) * rest)
                yield entry, form, cost, exit_

    def _trace(self, hundredths: int, quality: int) -> Tokens:
        """A network of that latency and quality, from its end to its beginning."""
        tokens: Tokens = ()
        wanted: tuple[Entry, Class | None] | None = None
        for part in reversed(range(len(self._parts))):
            before = self._steps[part]
            for entry, form, cost, exit_ in self._links(part, before):
                if wanted not in (None, (exit_, form.kind)) or cost > hundredths:
                    continue
                came = self._came_from(part, before, entry, form, hundredths - cost, quality)
                if came is not None:
                    break
            else:
                raise AssertionError("the best quality comes from nowhere")
            tokens, hundredths = form.tokens + tokens, hundredths - cost
            quality, wanted = came[0], (entry, came[1])
        return tokens

    def _came_from(
        self, part: int, before: _Step, entry: Entry, form: _Form, hundredths: int, quality: int
    ) -> tuple[int, Class | None] | None:
        """The quality and the neighbour before ``form`` that lead to ``quality``, if they do."""
        for (there, kind), best in before.best.items():
            rest = quality - form.quality - self._pair(part, kind, form.kind)
            if there == entry and hundredths < len(best) and best[hundredths] == rest:
                return rest, kind
        return None


_NEVER = -(2**60)


def _middle(options: Sequence[int]) -> int:
    return sorted(options)[(len(options) - 1) // 2]
