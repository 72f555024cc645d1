"""REINFORCE on independent logits, one set a decision, as TuNAS has it (arXiv 2008.06120, section 3.1).

Cheaper than the recurrent controller, and blind to which choices go together.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mobilefit.search.shared import Baseline, as_tokens, check_state, generator
from mobilefit.search.strategy import Tokens


@dataclass(frozen=True, kw_only=True)
class ReinforceSettings:
    """Hyper-parameters."""

    learning_rate: float = 0.15
    """Of Adam, for logits. (TuNAS's is far smaller: it takes a step with each of many thousand.)"""
    betas: tuple[float, float] = (0.0, 0.999)
    """Of Adam: no momentum, as TuNAS."""
    baseline: float = 0.95
    """Decay of the moving average of the rewards, by batch: TuNAS's."""


class Reinforce:
    """One step of gradient ascent a batch.

    Args:
        sizes: options of each decision.
        seed: of the draws.
    """

    def __init__(
        self, sizes: tuple[int, ...], seed: int, settings: ReinforceSettings | None = None
    ) -> None:
        self._sizes, self._random = tuple(sizes), generator(seed)
        self.settings = settings or ReinforceSettings()
        self._logits = torch.zeros(len(sizes), max(sizes), requires_grad=True)
        self._absent = torch.arange(max(sizes)) >= torch.tensor(sizes)[:, None]
        self._optimizer = torch.optim.Adam(
            [self._logits], lr=self.settings.learning_rate, betas=self.settings.betas
        )
        self._baseline = Baseline(self.settings.baseline)

    def _log_probabilities(self) -> Tensor:
        """(decisions, options); options that a decision lacks have none."""
        return self._logits.masked_fill(self._absent, -1e9).log_softmax(1)

    @torch.no_grad()
    def ask(self, count: int) -> list[Tokens]:
        """The next networks to try."""
        odds = self._log_probabilities().exp()
        return as_tokens(torch.multinomial(odds, count, replacement=True, generator=self._random).T)

    def tell(self, tokens: Sequence[Tokens], rewards: Sequence[float]) -> None:
        """Make the networks above the baseline likelier, the others less likely."""
        advantages = self._baseline.advantages(rewards)
        taken = torch.tensor(tokens).T
        chosen = self._log_probabilities().gather(1, taken).sum(0)
        self._optimizer.zero_grad()
        (-(advantages * chosen).mean()).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Logits, optimizer, baseline, and the state of the random numbers."""
        return {
            "strategy": "reinforce", "sizes": list(self._sizes), "random": self._random.get_state(),
            "logits": self._logits.detach().clone(), "baseline": self._baseline.state_dict(),
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            InputError: it is of another strategy or other decisions.
        """
        check_state(state, "reinforce", self._sizes)
        self._random.set_state(state["random"])
        self._logits.data.copy_(state["logits"])
        self._baseline.load_state_dict(state["baseline"])
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
