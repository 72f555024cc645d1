"""The strategies by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mobilefit.errors import unknown
from mobilefit.search.controller import Controller
from mobilefit.search.evolution import Evolution
from mobilefit.search.logits import Reinforce
from mobilefit.search.sampling import RandomSearch
from mobilefit.search.strategy import Strategy


class _Make(Protocol):
    def __call__(self, sizes: tuple[int, ...], seed: int) -> Strategy: ...


STRATEGIES: dict[str, _Make] = {
    "rnn": Controller,
    "reinforce": Reinforce,
    "evolution": Evolution,
    "random": RandomSearch,
}


def strategy(name: str, sizes: Sequence[int], seed: int) -> Strategy:
    """A fresh strategy for decisions with these numbers of options.

    Raises:
        InputError: there is none of that name (the nearest is suggested).
    """
    if name not in STRATEGIES:
        raise unknown("strategy", name, STRATEGIES)
    return STRATEGIES[name](tuple(sizes), seed)
