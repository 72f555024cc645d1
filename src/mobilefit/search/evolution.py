"""Regularized evolution (Real et al., arXiv 1802.01548): the oldest die, the best of a few have children."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mobilefit.search.shared import check_state, generator, uniform
from mobilefit.search.strategy import Tokens


@dataclass(frozen=True, kw_only=True)
class EvolutionSettings:
    """Hyper-parameters."""

    population: int = 50
    """How many are alive (the paper: 100, for 20,000 samples); as many random ones come first."""
    tournament: int = 15
    """How many are drawn, of which the best has a child (the paper: 25 of 100)."""


class Evolution:
    """A child differs from its parent in one decision, drawn anew among its other options.

    Args:
        sizes: options of each decision.
        seed: of everything random.
    """

    def __init__(
        self, sizes: tuple[int, ...], seed: int, settings: EvolutionSettings | None = None
    ) -> None:
        self._sizes, self._random = tuple(sizes), generator(seed)
        self.settings = settings or EvolutionSettings()
        self._alive: list[tuple[Tokens, float]] = []  # oldest first

    def ask(self, count: int) -> list[Tokens]:
        """The next networks to try: random ones until the population is complete, then children."""
        if len(self._alive) < self.settings.population:
            return uniform(self._sizes, count, self._random)
        return [self._child() for _ in range(count)]

    def _child(self) -> Tokens:
        drawn = torch.randperm(len(self._alive), generator=self._random)
        parent, _ = max(
            (self._alive[i] for i in drawn[: self.settings.tournament].tolist()),
            key=lambda alive: alive[1],
        )
        place = self._below(len(self._sizes))
        options = self._sizes[place]
        other = (parent[place] + 1 + self._below(max(1, options - 1))) % options
        return (*parent[:place], other, *parent[place + 1 :])

    def _below(self, number: int) -> int:
        return int(torch.randint(number, (), generator=self._random))

    def tell(self, tokens: Sequence[Tokens], rewards: Sequence[float]) -> None:
        """They join the population, and as many of the oldest leave it."""
        for one, reward in zip(tokens, rewards, strict=True):
            self._alive.append((tuple(one), float(reward)))
        del self._alive[: -self.settings.population]

    def state_dict(self) -> dict[str, Any]:
        """The population, by age, and the state of the random numbers."""
        return {
            "strategy": "evolution", "sizes": list(self._sizes), "random": self._random.get_state(),
            "alive": [[list(tokens), reward] for tokens, reward in self._alive],
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            InputError: it is of another strategy or other decisions.
        """
        check_state(state, "evolution", self._sizes)
        self._random.set_state(state["random"])
        self._alive = [(tuple(tokens), reward) for tokens, reward in state["alive"]]
