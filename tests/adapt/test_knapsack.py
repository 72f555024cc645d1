"""The knapsack: its dynamic programme, its prices, and rounds with tools that are exact and quick."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mobilefit.adapt import (
    KNAPSACK_LOG,
    Judgement,
    KnapsackSettings,
    Tools,
    cheapest,
    gates,
    groups,
    removable,
    shrink_by_knapsack,
)
from mobilefit.adapt.knapsack import Option, Prices
from mobilefit.arch import NetSpec, spec
from mobilefit.errors import InputError
from mobilefit.nn import Network, load_network
from mobilefit.runs import read_jsonl

from .test_importance import CrossEntropy, images_of
from .test_netadapt import START, WIDE, Stop, judgement_of, killed_at_line, stop_at
from .test_netadapt import tools as netadapt_tools
from .test_transfer import trained
from .toy import TOY, milliseconds

# ---- the dynamic programme


def brute_force(costs: list[list[float]], savings: list[list[int]], least: int) -> float | None:
    totals = [
        sum(item[option] for item, option in zip(costs, choice, strict=True))
        for choice in itertools.product(*(range(len(item)) for item in costs))
        if sum(item[option] for item, option in zip(savings, choice, strict=True)) >= least
    ]
    return min(totals, default=None)


@pytest.mark.parametrize("seed", range(30))
def test_no_choice_is_cheaper(seed: int) -> None:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 5, generator.integers(1, 6))
    costs = [generator.uniform(0, 1, size).tolist() for size in sizes]
    savings = [generator.integers(0, 12, size).tolist() for size in sizes]
    for least in range(1, 45, 3):
        choice, expected = cheapest(costs, savings, least), brute_force(costs, savings, least)
        assert (choice is None) == (expected is None)
        if choice is not None:
            assert sum(s[o] for s, o in zip(savings, choice, strict=True)) >= least
            assert sum(c[o] for c, o in zip(costs, choice, strict=True)) == pytest.approx(expected)


def test_more_than_enough_may_be_cheaper() -> None:
    assert cheapest([[0.0, 3.0, 1.0], [0.0, 0.1]], [[0, 5, 9], [0, 2]], 5) == [2, 0]
    assert cheapest([[0.0, 3.0]], [[0, 5]], 6) is None


# ---- prices


def of_gates(network: Network) -> Any:
    return gates(network, [images_of(network.spec)], CrossEntropy())


def option(net_spec: NetSpec, name: str, width: int) -> Option:
    by_name = {group.name: group for group in (*groups(net_spec), *removable(net_spec))}
    return Option(group=by_name[name], width=width, saved_ms=1.0)


def prices(network: Network, **measured: float) -> Prices:
    """Of groups whose narrowest width is 8."""
    lost = {name.replace("_", "."): value for name, value in measured.items()}
    probes = {name: option(network.spec, name, 0 if name.count(".") == 1 else 8) for name in lost}
    return Prices(network, of_gates(network), probes, lost)


def test_prices_by_hand() -> None:
    network = trained(TOY)
    derivatives = of_gates(network).derivatives("blocks.1.expand").double()
    importance = derivatives.square().mean(0)
    order = importance.argsort(descending=True)
    made = prices(network, blocks_1_expand=100.0)
    wide, narrow = option(TOY, "blocks.1.expand", 16), option(TOY, "blocks.1.expand", 8)
    assert made.price(wide, "joint") == pytest.approx(derivatives[:, order[16:]].sum(1).square().mean().item() / 2)
    assert made.price(narrow, "measured") == made.price(narrow, "even") == pytest.approx(100)
    assert made.price(wide, "even") == pytest.approx(100 / 4)  # half of the channels go
    # The least important one goes while all 24 are there, the next one while 23 are.
    rising = [importance[order[place]].item() * 24 / (place + 1) for place in range(24)]
    assert made.price(wide, "measured") == pytest.approx(100 * sum(rising[16:]) / sum(rising[8:]), rel=1e-4)


def test_a_blocks_price_is_by_the_gate_on_its_branch() -> None:
    network = trained(TOY)
    block = option(TOY, "blocks.0", 0)
    foretold = of_gates(network).derivatives("blocks.0.project").sum(1).square().mean().item() / 2
    made = prices(network, blocks_0=5.0)
    assert made.price(block, "joint") == pytest.approx(foretold)
    assert made.price(block, "measured") == made.price(block, "even") == pytest.approx(5)
    by_chance = prices(network, blocks_0=-0.1, blocks_1_expand=4.0)  # half of its part of all that was measured
    others = Prices(network, of_gates(network), {}, {})._foretold(option(TOY, "blocks.1.expand", 8))
    assert by_chance.price(block, "measured") == pytest.approx(foretold / 2 * 4 / (foretold + others))


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "mobilenet_v2", "mobilenet_v1", "mobilenetv4_conv_small"])
def test_every_group_is_foretold(name: str) -> None:
    small = spec(name).resolution(32).classes(3)
    made = prices(trained(small))
    for group in (*groups(small), *removable(small)):
        costs = [made.price(Option(group=group, width=width, saved_ms=1.0), "joint") for width in (group.width // 2, 0)]
        assert all(0 <= cost < np.inf for cost in costs) and max(costs) > 0, group.name


# ---- rounds


def tools(before: Callable[[str], None] = lambda name: None, **changed: Any) -> Tools:
    """NetAdapt's exact tools, and gates."""
    return netadapt_tools(before, **{"gates": of_gates, **changed})


@pytest.fixture(scope="module")
def seed_network() -> Network:
    return trained(WIDE)


def settings(share: float = 0.7, **changed: Any) -> KnapsackSettings:
    return KnapsackSettings(**{"target_ms": share * START, **changed})


def events(folder: Path, event: str) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(folder / KNAPSACK_LOG) if row["event"] == event]


@pytest.mark.parametrize(("share", "margin", "cut", "rounds"), [(0.8, 0.0, 0.2, 1), (0.55, 0.0, 0.15, 2), (0.6, 0.05, 0.5, 1)])
def test_the_budget_is_met(
    seed_network: Network, tmp_path: Path, share: float, margin: float, cut: float, rounds: int
) -> None:
    found = shrink_by_knapsack(seed_network, settings(share, margin=margin, cut=cut), tools(), tmp_path)
    target = share * (1 - margin) * START
    assert found.latency_ms == found.measured_ms == milliseconds(found.spec) <= target
    assert found.steps == rounds
    before, over = START, START - target
    for plan, row in zip(events(tmp_path, "plan"), events(tmp_path, "accepted"), strict=True):
        assert plan["cut_ms"] <= cut * START + 1e-9
        assert plan["cut_ms"] == pytest.approx(over / -(-over // (cut * START)))
        # No more is cut than the widths' steps of eight want; every allocation saves enough.
        assert plan["cut_ms"] - 1e-9 <= before - row["latency_ms"] <= plan["cut_ms"] + 0.2 * START
        assert all(before - p["latency_ms"] >= plan["cut_ms"] - 1e-9 for p in plan["proposals"])
        before, over = row["latency_ms"], row["latency_ms"] - target
    (weights,) = tmp_path.glob("step_*.safetensors")
    assert load_network(weights).spec == found.spec and not list(tmp_path.glob("losses/*"))


def test_allocations_are_compared_before_one_is_tuned(seed_network: Network, tmp_path: Path) -> None:
    calls: list[str] = []
    shrink_by_knapsack(seed_network, settings(0.8), tools(calls.append), tmp_path)
    tried = events(tmp_path, "proposal")
    (accepted,) = events(tmp_path, "accepted")
    assert len(tried) > 1 and calls.count("tune") == 1 and calls.count("gates") == 1
    assert len({row["spec_id"] for row in tried}) == len(tried)
    best = min(tried, key=lambda row: row["loss_change"])
    same = ("what", "how", "latency_ms", "spec_id")
    assert [accepted[key] for key in same] == [best[key] for key in same]
    assert accepted["untuned"] == best["accuracy"] and 0 <= accepted["within_two_errors"] < len(tried)
    assert {row["how"].split(",")[0] for row in events(tmp_path, "plan")[0]["proposals"]} <= {"joint", "measured", "even"}


def test_a_block_that_adds_nothing_is_left_out(tmp_path: Path) -> None:
    network = trained(WIDE)
    with torch.no_grad():
        norm = network.layer("blocks.0.project").norm
        norm.weight.zero_(), norm.bias.zero_()

    def judged(net: Network) -> Judgement:
        return judgement_of(net, 0.1 + 0.05 * (net.spec.blocks != WIDE.blocks[1:]))

    share = milliseconds(replace(WIDE, blocks=WIDE.blocks[1:])) / START
    found = shrink_by_knapsack(network, settings(share, cut=0.9), tools(judge=judged), tmp_path)
    assert found.spec.blocks == WIDE.blocks[1:] and events(tmp_path, "accepted")[0]["what"] == "blocks.0 left out"


def test_a_measurement_over_the_target_is_cut_by_what_it_is_over(seed_network: Network, tmp_path: Path) -> None:
    """However little that is; the estimate is within it from the start."""
    over = tools(confirm=lambda network: milliseconds(network.spec) + 1e-4 * START)
    found = shrink_by_knapsack(seed_network, settings(1.0), over, tmp_path)
    assert found.steps == 1 and found.measured_ms <= START
    (plan,) = events(tmp_path, "plan")
    assert plan["cut_ms"] == pytest.approx(1e-4 * START)


def test_only_the_kinds_that_were_asked_for_shrink(seed_network: Network, tmp_path: Path) -> None:
    shrink_by_knapsack(seed_network, settings(0.8, kinds=("expansion",)), tools(), tmp_path)
    rows = [*events(tmp_path, "price"), *events(tmp_path, "proposal")]
    assert all(".expand " in part for row in rows for part in row["what"].split(", "))


def test_a_group_halves_at_most_in_a_round(seed_network: Network, tmp_path: Path) -> None:
    """Also where the target wants more: then there are more rounds."""
    found = shrink_by_knapsack(seed_network, settings(0.35, cut=1.0, kinds=("expansion", "bottleneck")), tools(), tmp_path)
    assert found.steps > 1
    before = WIDE
    for row in events(tmp_path, "accepted"):
        after = NetSpec.from_dict(row["spec"])
        widths = {group.name: group.width for group in groups(after, ("expansion", "bottleneck"))}
        for group in groups(before, ("expansion", "bottleneck")):
            assert group.width >= widths[group.name] >= group.width / 2
        before = after


def test_an_unreachable_target_says_what_was_reached(seed_network: Network, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        shrink_by_knapsack(seed_network, settings(0.01, cut=1.0), tools(), tmp_path)
    reached = events(tmp_path, "accepted")[-1]["measured_ms"]
    assert f"ends at {reached:.3f} ms" in caught.value.message and caught.value.hint
    assert f"the target is {0.01 * START:.3f} ms" in caught.value.message


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("target_ms", 0, "target_ms is 0"), ("margin", 1, "margin is 1"), ("cut", 0, "cut is 0"),
     ("kinds", ("expnsion",), "did you mean 'expansion'")],
)  # fmt: skip
def test_bad_settings_are_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(**{field: value})


# ---- cut off and resumed


def outcome(folder: Path) -> tuple[list[dict[str, Any]], set[str], dict[str, Any]]:
    """The accepted rounds, all allocations, the weights."""
    (file,) = folder.glob("step_*")
    weights = {name: value.tolist() for name, value in load_network(file).state_dict().items()}
    tried = [json.dumps(row) for row in events(folder, "proposal")]
    assert len(set(tried)) == len(tried)  # none was judged twice
    return events(folder, "accepted"), set(tried), weights


TWICE = settings(0.55, cut=0.15, kinds=("expansion", "block"))


@pytest.fixture(scope="module")
def undisturbed(seed_network: Network, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder, calls = tmp_path_factory.mktemp("whole"), list[str]()
    assert shrink_by_knapsack(seed_network, TWICE, tools(calls.append), folder, seed=3).steps == 2
    return outcome(folder), calls, len(read_jsonl(folder / KNAPSACK_LOG))


def test_interrupted_in_any_call_it_takes_the_same_rounds(
    seed_network: Network, tmp_path: Path, undisturbed: Any
) -> None:
    expected, calls, _ = undisturbed
    slow = [name for name in calls if name != "latency"]
    assert len(slow) > 20
    for number in range(2, len(slow) + 1, 5):
        folder = tmp_path / str(number)
        with pytest.raises(Stop):
            shrink_by_knapsack(seed_network, TWICE, tools(stop_at(number, but="latency")), folder, seed=3)
        shrink_by_knapsack(seed_network, TWICE, tools(), folder, seed=3)
        assert outcome(folder) == expected, f"interrupted in call {number}"


@pytest.mark.parametrize("how", ["before", "after"])
def test_killed_at_any_line_of_the_log_it_takes_the_same_rounds(
    seed_network: Network, tmp_path: Path, undisturbed: Any, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _, lines = undisturbed
    for number in range(1 if how == "before" else 3, lines + 1, 4):
        folder = tmp_path / str(number)
        with killed_at_line(number, how, monkeypatch):
            shrink_by_knapsack(seed_network, TWICE, tools(), folder, seed=3)
        shrink_by_knapsack(seed_network, TWICE, tools(), folder, seed=3)
        assert outcome(folder) == expected, f"killed {how} line {number}"


def test_a_round_that_was_begun_keeps_its_allocations(seed_network: Network, tmp_path: Path) -> None:
    """A latency that is measured never repeats exactly."""
    one = settings(0.8)
    whole = shrink_by_knapsack(seed_network, one, tools(), tmp_path / "whole", seed=3)

    def at_tuning(name: str) -> None:
        if name == "tune":
            raise Stop

    with pytest.raises(Stop):
        shrink_by_knapsack(seed_network, one, tools(at_tuning), tmp_path / "cut", seed=3)
    now = tools(latency=lambda net_spec: 1.04 * milliseconds(net_spec))
    assert shrink_by_knapsack(seed_network, one, now, tmp_path / "cut", seed=3) == whole
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_a_log_from_another_network_is_refused(seed_network: Network, tmp_path: Path) -> None:
    shrink_by_knapsack(seed_network, settings(0.9), tools(), tmp_path)
    with pytest.raises(InputError, match="began from another network"):
        shrink_by_knapsack(trained(WIDE, seed=1), settings(0.9), tools(), tmp_path)
