"""The default strategy: a recurrent controller trained by PPO, as NASNet's and MnasNet's.

An LSTM emits one token a decision, each from the tokens before it, so that it can learn which choices
go together (Zoph et al., arXiv 1707.07012, appendix A; Tan et al., arXiv 1807.11626, section 4.2).
Networks whose reward is above the moving average become likelier, the others less so, by proximal
policy optimisation (Schulman et al., arXiv 1707.06347).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mobilefit.search.shared import Baseline, as_tokens, check_state, generator
from mobilefit.search.strategy import Tokens


@dataclass(frozen=True, kw_only=True)
class ControllerSettings:
    """Hyper-parameters. MnasNet published none, NASNet some; these are ours, and
    ``results/search/tabular`` shows what they do."""

    hidden: int = 64
    """Width of the LSTM and of the embeddings (NASNet: 100)."""
    init: float = 0.1
    """Parameters begin uniform from minus this to this (NASNet's): all options about as likely."""
    learning_rate: float = 6e-3
    """Of Adam. (NASNet's 3.5e-4 is for ten times as many samples.)"""
    epochs: int = 3
    """Passes over a batch. More make it settle on the first good networks."""
    clip: float = 0.2
    """An option's probability gains nothing from leaving 1 - this to 1 + this times its old one (PPO's)."""
    entropy: float = 0.12
    """What a nat of entropy in a decision is worth, in spreads of the reward. With less it settles too
    early, with more it never does. (NASNet: 1e-5, of a reward that is not divided by its spread.)"""
    baseline: float = 0.8
    """Decay of the moving average of the rewards, by batch (NASNet: 0.95)."""


class Policy(nn.Module):
    """From the tokens so far to the probabilities of the next one's options.

    Args:
        sizes: options of each decision.
        width: of the LSTM and of the embeddings.
    """

    offsets: Tensor
    absent: Tensor

    def __init__(self, sizes: Sequence[int], width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1 + sum(sizes), width)  # the first is the beginning
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.heads = nn.Parameter(torch.zeros(len(sizes), width, max(sizes)))
        self.biases = nn.Parameter(torch.zeros(len(sizes), max(sizes)))
        self.register_buffer("offsets", torch.tensor([1, *sizes[:-1]]).cumsum(0), persistent=False)
        absent = torch.arange(max(sizes)) >= torch.tensor(sizes)[:, None]
        self.register_buffer("absent", absent, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Log-probabilities (networks, decisions, options) along given networks' tokens."""
        read = nn.functional.pad((tokens + self.offsets)[:, :-1], (1, 0))
        states, _ = self.lstm(self.embedding(read))
        logits = torch.einsum("bth,tho->bto", states, self.heads) + self.biases
        return logits.masked_fill(self.absent, -1e9).log_softmax(2)

    @torch.no_grad()
    def sample(self, count: int, random: torch.Generator) -> Tensor:
        """Tokens (networks, decisions), each drawn after those before it."""
        tokens: list[Tensor] = []
        states = (torch.zeros(count, self.lstm.hidden_size),) * 2
        read = torch.zeros(count, dtype=torch.long)
        for decision, offset in enumerate(self.offsets):
            states = torch.lstm_cell(self.embedding(read), states, *self.lstm.all_weights[0])
            logits = torch.addmm(self.biases[decision], states[0], self.heads[decision])
            odds = logits.masked_fill(self.absent[decision], -1e9).softmax(1)
            tokens.append(torch.multinomial(odds, 1, generator=random)[:, 0])
            read = tokens[-1] + offset
        return torch.stack(tokens, 1)


class Controller:
    """The recurrent controller.

    Args:
        sizes: options of each decision.
        seed: of its first parameters and of its draws.
    """

    def __init__(
        self, sizes: tuple[int, ...], seed: int, settings: ControllerSettings | None = None
    ) -> None:
        self._sizes, self._random = tuple(sizes), generator(seed)
        self.settings = settings or ControllerSettings()
        with torch.random.fork_rng(devices=[]):  # the modules begin with torch's own random numbers
            self.policy = Policy(self._sizes, self.settings.hidden)
        for parameter in self.policy.parameters():
            nn.init.uniform_(
                parameter, -self.settings.init, self.settings.init, generator=self._random
            )
        self._optimizer = torch.optim.Adam(self.policy.parameters(), lr=self.settings.learning_rate)
        self._baseline = Baseline(self.settings.baseline)

    def ask(self, count: int) -> list[Tokens]:
        """The next networks to try."""
        return as_tokens(self.policy.sample(count, self._random)) if count else []

    def tell(self, tokens: Sequence[Tokens], rewards: Sequence[float]) -> None:
        """A few steps of PPO on these networks."""
        if not tokens:
            return
        advantages, taken = self._baseline.advantages(rewards), torch.tensor(tokens)
        with torch.no_grad():
            before = chosen(self.policy(taken), taken)
        for _ in range(self.settings.epochs):
            self._optimizer.zero_grad()
            self.loss(taken, advantages, before).backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()

    def loss(self, taken: Tensor, advantages: Tensor, before: Tensor) -> Tensor:
        """PPO's clipped objective and the entropy bonus, negated; means over tokens.

        Args:
            taken: tokens (networks, decisions).
            advantages: of each network.
            before: log-probabilities of the tokens when they were drawn.
        """
        settings = self.settings
        every = self.policy(taken)
        ratio, worth = (chosen(every, taken) - before).exp(), advantages[:, None]
        clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
        gain = torch.minimum(ratio * worth, clipped * worth).mean()
        entropy = -(every.exp() * every).sum(2).mean()
        loss: Tensor = -gain - settings.entropy * entropy
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Parameters, optimizer, baseline, and the state of the random numbers."""
        state = {
            "policy": dict(self.policy.state_dict()), "optimizer": self._optimizer.state_dict(),
            "baseline": self._baseline.state_dict(), "random": self._random.get_state(),
        }  # fmt: skip
        return {"strategy": "rnn", "sizes": list(self._sizes), **copy.deepcopy(state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            InputError: it is of another strategy or other decisions.
        """
        check_state(state, "rnn", self._sizes)
        self.policy.load_state_dict(state["policy"])
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self._baseline.load_state_dict(state["baseline"])
        self._random.set_state(state["random"])


def chosen(every: Tensor, taken: Tensor) -> Tensor:
    """Of all options' values, those of the tokens taken."""
    values: Tensor = every.gather(2, taken[:, :, None])
    return values.squeeze(2)
