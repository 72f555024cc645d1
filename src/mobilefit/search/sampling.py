"""Random search: the yardstick of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mobilefit.search.shared import check_state, generator, uniform
from mobilefit.search.strategy import Tokens


class RandomSearch:
    """Each option as likely as the others, whatever was learnt.

    Args:
        sizes: options of each decision.
        seed: of the draws.
    """

    def __init__(self, sizes: tuple[int, ...], seed: int) -> None:
        self._sizes, self._random = tuple(sizes), generator(seed)

    def ask(self, count: int) -> list[Tokens]:
        """The next networks to try."""
        return uniform(self._sizes, count, self._random)

    def tell(self, tokens: Sequence[Tokens], rewards: Sequence[float]) -> None:
        """Nothing is learnt."""

    def state_dict(self) -> dict[str, Any]:
        """The state of the random numbers."""
        return {
            "strategy": "random", "sizes": list(self._sizes), "random": self._random.get_state()
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            InputError: it is of another strategy or other decisions.
        """
        check_state(state, "random", self._sizes)
        self._random.set_state(state["random"])
