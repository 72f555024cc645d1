"""What the strategies share: own random numbers, a check of foreign states, and a moving baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mobilefit.errors import InputError
from mobilefit.search.strategy import Tokens


def generator(seed: int) -> torch.Generator:
    """Random numbers of the strategy's own: nothing else draws from them or is disturbed by them."""
    return torch.Generator().manual_seed(seed)


def uniform(sizes: Sequence[int], count: int, random: torch.Generator) -> list[Tokens]:
    """Networks whose options are all equally likely."""
    drawn = torch.rand(count, len(sizes), generator=random, dtype=torch.float64)
    return as_tokens((drawn * torch.tensor(sizes)).long())


def as_tokens(drawn: Tensor) -> list[Tokens]:
    """A (networks, decisions) tensor as the interface has it."""
    return [tuple(row) for row in drawn.tolist()]


def check_state(state: Mapping[str, Any], strategy: str, sizes: Sequence[int]) -> None:
    """Refuse a state of another strategy or of other decisions.

    Raises:
        InputError: says what differs.
    """
    if state.get("strategy") != strategy:
        raise InputError(f"this is the state of '{state.get('strategy')}', not of '{strategy}'")
    if list(state["sizes"]) != list(sizes):
        raise InputError(
            f"this state is of decisions with {list(state['sizes'])} options, here are {list(sizes)}"
        )


class Baseline:
    """Moving average and spread of the rewards, by which a reward becomes an advantage.

    Dividing by the spread makes the learning the same for every form of reward, and as strong near
    the end, where all networks are about as good, as at the beginning. What is beyond
    :data:`LARGEST` spreads counts as that much, so that failed trials do not hide the differences
    between the others.

    Args:
        decay: of both, by batch.
    """

    LARGEST = 2.0

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.mean: float | None = None
        self.spread = 0.0

    def advantages(self, rewards: Sequence[float]) -> Tensor:
        """How much better than usual each is, in spreads; then the batch counts as usual too."""
        batch = torch.tensor(rewards, dtype=torch.float64)
        if self.mean is None:
            self.mean = float(batch.quantile(0.5))
        centred = batch - self.mean
        if self.spread == 0:  # the first rewards that differ: half of them lie within 0.67 sigma
            self.spread = float(centred.abs().quantile(0.5)) / 0.6745 or float(centred.abs().max())
        if self.spread == 0:
            return torch.zeros(len(batch))
        found = (centred / self.spread).clamp(-self.LARGEST, self.LARGEST)
        self.mean += (1 - self.decay) * self.spread * float(found.mean())
        self.spread *= math.sqrt(self.decay + (1 - self.decay) * float((found**2).mean()))
        return found.float()

    def state_dict(self) -> dict[str, Any]:
        """The two moments."""
        return {"mean": self.mean, "spread": self.spread}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.mean, self.spread = state["mean"], state["spread"]
