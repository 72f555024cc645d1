"""How a search decides what to try next: one ask/tell interface, several strategies behind it.

A strategy knows decisions by their number of options alone. It is asked for networks in batches and
told what each was worth; everything random in it comes from its seed and is part of its state, so
that a search which was stopped goes on as if it had not been.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

Tokens = tuple[int, ...]


class Strategy(Protocol):
    """Proposes networks and learns from their rewards."""

    def ask(self, count: int) -> list[Tokens]:
        """The next networks to try; one may have been tried before."""

    def tell(self, tokens: Sequence[Tokens], rewards: Sequence[float]) -> None:
        """What networks were worth: those of the last :meth:`ask`, in its order, after any hand-made ones."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what comes next: tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict` of a strategy with the same decisions."""
