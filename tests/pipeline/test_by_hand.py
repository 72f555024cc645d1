"""What a user could do by hand in the winner's place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mobilefit.arch import FAMILY, NetSpec
from mobilefit.pipeline.by_hand import ByHand
from mobilefit.pipeline.candidates import Candidate, Sizes

SMALL = FAMILY["mobilenet_v3_small"].classes(3)


def milliseconds(spec: NetSpec) -> float:
    """A latency that grows with the multiply-adds."""
    return spec.cost().madds / 1e6


def by_hand(aim_ms: float, *, slower: float = 1.0, judged: float = 1.0, networks: Sequence[Sizes] = ()) -> ByHand:
    def measure(specs: Sequence[NetSpec]) -> list[float]:
        return [slower * milliseconds(spec) for spec in specs]

    def stage(name: str, work: Callable[[], Any], shape: Any) -> Any:
        return work()

    design: Any = SimpleNamespace(
        run=SimpleNamespace(path=Path("run")), reference=SMALL.resolution(64), measure=measure, networks=networks,
        judged_latency=lambda spec: judged * milliseconds(spec),
    )  # fmt: skip
    return ByHand(design, aim_ms, stage)


def winner(spec: NetSpec) -> Candidate:
    return Candidate(spec=spec, latency_ms=milliseconds(spec))


@pytest.mark.parametrize("size", [48, 64, 96, 224])
def test_a_network_above_the_references_size_is_scaled_at_that(size: int) -> None:
    """A teacher at 224 px would have to lose nearly all its channels to be as fast as a network for 64 px."""
    best = winner(SMALL.width(0.75).resolution(48))
    scaled = by_hand(best.latency_ms).scaled_width(SMALL.resolution(size), "small.pth", best)
    assert scaled.spec.image_shape == (min(size, 64),) * 2
    assert milliseconds(scaled.spec) == pytest.approx(best.latency_ms, rel=0.06)
    assert scaled.weights == "small.pth" and scaled.whole == SMALL.resolution(min(size, 64))


@pytest.mark.parametrize("slower", [1.0, 1.5])
def test_the_width_takes_all_of_the_budget_where_the_winner_does_not(slower: float) -> None:
    """Between two sizes a lot of a budget may be left: by hand it would be used."""
    best = winner(SMALL.resolution(48))
    scaled = by_hand(1.5 * best.latency_ms, slower=slower).scaled_width(SMALL.resolution(64), None, best)
    assert 1.3 * best.latency_ms < milliseconds(scaled.spec) <= 1.5 * best.latency_ms
    assert scaled.latency_ms == pytest.approx(milliseconds(scaled.spec))


def test_a_width_that_is_over_the_budget_when_judged_again_is_narrowed_further() -> None:
    best = winner(SMALL.resolution(48))
    full = SMALL.resolution(64)
    first, again = (
        by_hand(1.2 * best.latency_ms, judged=judged).scaled_width(full, None, best) for judged in (1.0, 1.1)
    )
    assert 1.1 * milliseconds(first.spec) > 1.2 * best.latency_ms >= 1.1 * milliseconds(again.spec)


def test_narrowed_networks_have_more_pixels_and_fill_the_budget() -> None:
    best, larger = winner(SMALL.resolution(32)), SMALL.resolution(64)
    sizes = Sizes(spec=SMALL, weights="small.pth", sizes=(32, 64))
    hand = by_hand(1.2 * best.latency_ms, networks=[sizes])
    trained: Any = SimpleNamespace(label="seed", network=SimpleNamespace(spec=larger))
    networks = hand.narrowed(best, trained)
    assert [network.spec.image_shape[0] for network in networks] == [48, 64]  # of 40, 48, 56 and 64
    for network in networks:
        assert best.latency_ms < network.latency_ms <= 1.2 * best.latency_ms
        assert network.whole == SMALL.resolution(network.spec.image_shape[0]) and network.weights == "small.pth"
    assert [hand.kind_of(network, trained) for network in networks] == ["candidate", "width"]


def test_a_wider_network_has_no_weights_of_the_full_one() -> None:
    best = winner(SMALL.width(1.25).resolution(64))
    scaled = by_hand(best.latency_ms).scaled_width(SMALL.resolution(64), "small.pth", best)
    assert scaled.weights is None and scaled.spec.cost().params > SMALL.cost().params


@pytest.mark.parametrize("slower", [1.0, 1.5])
def test_the_largest_size_within_the_budget_whatever_the_machine_does_meanwhile(slower: float) -> None:
    best = winner(SMALL.width(0.75).resolution(64))
    smaller = Sizes(spec=SMALL, weights=None, sizes=(32, 40, 48, 56), measured={})
    lower = by_hand(1.01 * milliseconds(SMALL.resolution(48)), slower=slower).lower_resolution(smaller, best)
    assert lower is not None and lower.spec == SMALL.resolution(48)


def test_no_size_within_the_budget() -> None:
    best = winner(SMALL.width(0.35).resolution(32))
    smaller = Sizes(spec=SMALL, weights=None, sizes=(32, 40), measured={})
    assert by_hand(0.5 * milliseconds(SMALL.resolution(32))).lower_resolution(smaller, best) is None
