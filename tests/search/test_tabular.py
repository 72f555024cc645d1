from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from mobilefit.arch import Block, Conv, spec
from mobilefit.errors import InputError
from mobilefit.search.reward import FORMS, Reward
from mobilefit.search.space import BlockChoices, Space, Stem, Tail
from mobilefit.search.spaces import SPACES
from mobilefit.search.tabular import Tabular, accuracy_of, latency_ms


def block(stride: int, filters: tuple[int, ...], **options: object) -> BlockChoices:
    common = {"op": ("mbconv3", "conv"), "kernel": (3, 5), "layers": (1, 2)}
    return BlockChoices(stride=stride, filters=filters, **(common | options))  # type: ignore[arg-type]


BASE = spec("mobilenet_v3_small").resolution(32).classes(10)
PLAIN = Space(
    name="plain", base=BASE,
    stems=(Stem(conv=Conv(out=16, kernel=3, stride=2)),),
    blocks=(block(2, (16, 24)), block(1, (32, 40), skip=("none", "pool")),),
    tails=(Tail(last=Conv(out=64)),),
)  # fmt: skip
ENDS = Space(
    name="ends", base=BASE,
    stems=(  # of different widths and strides
        Stem(conv=Conv(out=16, kernel=3, stride=2, act="hard_swish")),
        Stem(conv=Conv(out=8, kernel=3, stride=1), rows=(Block(stride=2, out=8), Block(out=8))),
        Stem(conv=Conv(out=8, kernel=3, stride=1)),
    ),
    blocks=(
        block(2, (16, 24), se=("none", "v3"), act=("relu", "hard_swish"), layers=(2,)),
        block(2, (24,), op=("mbconv3", "depthwise", "extradw2"), skip=("identity", "pool")),
        block(1, (32, 40), kernel=(3,), layers=(1,)),
    ),
    tails=(
        Tail(last=Conv(out=96, act="hard_swish"), hidden=32, act="hard_swish"),
        Tail(rows=(Block(expand=96, out=48),), last=Conv(out=64)),
        Tail(),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def mnasnet() -> Tabular:
    return Tabular(SPACES["mnasnet"])


@pytest.mark.parametrize("space", [PLAIN, ENDS], ids=lambda space: space.name)
@pytest.mark.parametrize("salt", ["", "x"])
def test_the_optimum_is_that_of_brute_force(space: Space, salt: str) -> None:
    table = Tabular(space, salt)
    networks = list(itertools.product(*map(range, space.sizes)))
    values = [table.evaluate(tokens) for tokens in networks]
    latencies = sorted(latency for _, latency in values)
    assert table.fastest() == latencies[0]
    for form, place in itertools.product(FORMS, (0, len(networks) // 3, -1)):
        reward = Reward(form=form, target_ms=latencies[place])
        tokens, best = table.optimum(reward)
        assert best == max(reward(*value) for value in values)
        assert reward(*table.evaluate(tokens)) == best


@pytest.mark.parametrize("space", [PLAIN, ENDS, *SPACES.values()], ids=lambda space: space.name)
def test_a_network_costs_what_its_spec_does(space: Space) -> None:
    """The sum along the chain against the whole spec's, rows counted anew."""
    table = Tabular(space)
    for shift in range(12):
        tokens = tuple((7 * i + 3 * shift + i * shift) % size for i, size in enumerate(space.sizes))
        assert table.evaluate(tokens)[1] == pytest.approx(latency_ms(space.spec(tokens)), abs=1e-9)


def test_the_scale_is_the_pixels() -> None:
    a1 = spec("mnasnet_a1")
    assert latency_ms(a1) == pytest.approx(78, abs=1)
    space = SPACES["mnasnet_a1"]
    assert Tabular(space).evaluate(space.tokens(a1))[1] == latency_ms(a1)
    assert latency_ms(spec("mobilenet_v2")) == pytest.approx(75, abs=3)
    assert latency_ms(a1.resolution(112)) < latency_ms(a1) / 2


def test_what_costs_more() -> None:
    a1 = spec("mnasnet_a1")

    def of(**changed: object) -> float:
        """The same network with its second row changed: 24 channels in and out at 56 x 56."""
        rows = list(a1.blocks)
        rows[2] = replace(rows[2], **changed)  # type: ignore[arg-type]
        return latency_ms(replace(a1, blocks=tuple(rows)))

    usual = of()
    for changed in (
        {"kernel": 5},
        {"expand": 192},
        {"se": "mnasnet"},
        {"skip": "pool"},
        {"act": "hard_swish"},
    ):
        assert of(**changed) > usual
    assert of(skip="none") < usual


PINNED = ((0.413876, 24.93), (0.523548, 92.02))


def test_pinned_values(mnasnet: Tabular) -> None:
    """The table is a constant: what was published about it must stay true."""
    assert mnasnet.evaluate((0,) * 30) == PINNED[0]
    assert mnasnet.evaluate((3, 1, 1, 1, 1, 1) * 5) == PINNED[1]
    salted = Tabular(SPACES["mnasnet"], "unseen").evaluate((0,) * 30)
    assert salted[1] == PINNED[0][1] and salted[0] != PINNED[0][0]


@pytest.mark.parametrize(
    ("place", "less", "more"),
    [(0, 1, 2), (0, 2, 3), (1, 0, 1), (2, 0, 1), (3, 2, 1), (4, 0, 2), (5, 0, 2)],
    ids=["mbconv3", "mbconv6", "kernel", "se", "skip", "filters", "layers"],
)
def test_what_is_better_and_slower_on_average(
    mnasnet: Tabular, place: int, less: int, more: int
) -> None:
    """As MnasNet's ablations say: every block's decision changed in the same 100 networks."""

    def means(option: int) -> tuple[float, float]:
        found = []
        for seed in range(100):
            dice = random.Random(seed)
            tokens = list(SPACES["mnasnet"].random(dice.randrange))
            tokens[place::6] = [option] * 5
            found.append(mnasnet.evaluate(tokens))
        accuracies, latencies = zip(*found)
        return sum(accuracies) / 100, sum(latencies) / 100

    assert means(more)[0] > means(less)[0] + 0.003
    assert means(more)[1] > means(less)[1]


@pytest.mark.parametrize("form", FORMS)
def test_the_optimum_of_the_whole_space_is_attained(mnasnet: Tabular, form: str) -> None:
    reward = Reward(form=form, target_ms=75)
    tokens, best = mnasnet.optimum(reward)
    accuracy, latency = mnasnet.evaluate(tokens)
    assert reward(accuracy, latency) == best
    assert latency == latency_ms(SPACES["mnasnet"].spec(tokens))
    # no single decision makes it better
    for place, size in enumerate(SPACES["mnasnet"].sizes):
        for option in range(size):
            other = (*tokens[:place], option, *tokens[place + 1 :])
            assert reward(*mnasnet.evaluate(other)) <= best


def test_where_the_forms_lead(mnasnet: Tabular) -> None:
    latency = {
        form: mnasnet.evaluate(mnasnet.optimum(Reward(form=form, target_ms=75))[0])[1]
        for form in FORMS
    }
    assert latency["absolute"] == pytest.approx(75, rel=0.05)
    assert 70 < latency["hard"] <= 75
    assert latency["soft_small"] < 50 < 75 < latency["soft"] < 90


def test_accuracy_rises_and_saturates() -> None:
    points = [accuracy_of(million * 1_000_000) for million in range(-20, 30, 2)]
    assert points == sorted(points) and 0 < points[0] < points[-1] < 0.7
    steps = [b - a for a, b in itertools.pairwise(points)]
    assert steps[-1] < max(steps) / 4


def test_refuses_what_is_no_network(mnasnet: Tabular) -> None:
    with pytest.raises(InputError, match="29 tokens, space 'mnasnet' has 30 decisions"):
        mnasnet.evaluate((0,) * 29)
    with pytest.raises(InputError, match="token 4 of"):
        mnasnet.evaluate((4,) + (0,) * 29)
