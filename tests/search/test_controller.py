from __future__ import annotations

import itertools
import math

import pytest
import torch

from mobilefit.search.controller import Controller, ControllerSettings, Policy, chosen
from mobilefit.search.shared import Baseline, generator

SIZES = (3, 2, 4)
EVERY = torch.tensor(list(itertools.product(*map(range, SIZES))))


def shaken(seed: int = 0) -> Policy:
    """A policy that is far from uniform."""
    policy = Policy(SIZES, 16)
    random = generator(seed)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.7, generator=random)
    return policy


def odds(policy: Policy) -> torch.Tensor:
    """The probability of each network."""
    with torch.no_grad():
        return chosen(policy(EVERY), EVERY).sum(1).exp()


def test_probabilities_sum_to_one_over_all_networks() -> None:
    found = odds(shaken())
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    assert float(found.max() / found.min()) > 10


def test_a_token_depends_on_those_before_it_alone() -> None:
    policy, tokens = shaken(), torch.tensor([[0, 1, 2], [2, 1, 2], [0, 1, 3]])
    first, other, late = policy(tokens)
    assert first[0].equal(other[0]) and not torch.allclose(first[1:], other[1:])
    assert first.equal(late)  # the last token is read by nobody


def test_options_that_a_decision_lacks_are_never_drawn() -> None:
    policy = shaken()
    assert policy(EVERY).exp()[:, 1, 2:].max() == 0
    drawn = policy.sample(500, generator(3))
    assert drawn.amax(0).tolist() == [2, 1, 3] and drawn.amin() == 0


def test_sampling_follows_the_probabilities_that_training_sees() -> None:
    policy, count = shaken(), 20_000
    drawn = policy.sample(count, generator(1))
    places = drawn @ torch.tensor([8, 4, 1])
    seen = torch.bincount(places, minlength=24) / count
    assert float((seen - odds(policy)).abs().max()) < 4 * math.sqrt(0.25 / count)


def test_a_rewarded_network_becomes_likelier_and_a_bad_one_less_likely() -> None:
    one = Controller(SIZES, 0, ControllerSettings(entropy=0.0))
    before = odds(one.policy)
    good, bad = EVERY[5].tolist(), EVERY[20].tolist()
    one.tell([tuple(good), tuple(bad)], [0.6, 0.5])
    after = odds(one.policy)
    assert after[5] > before[5] and after[20] < before[20]


def test_clipping_ends_the_gain() -> None:
    one = Controller(SIZES, 0, ControllerSettings(entropy=0.0, clip=0.2))
    taken = EVERY[[5]]
    now = chosen(one.policy(taken), taken).detach()

    def slope(ratio: float, advantage: float) -> float:
        one.policy.zero_grad()
        one.loss(taken, torch.tensor([advantage]), now - math.log(ratio)).backward()
        return float(one.policy.biases.grad.abs().sum())

    assert slope(1.1, 1.0) > 0 and slope(0.7, 1.0) > 0 and slope(1.3, -1.0) > 0
    assert slope(1.3, 1.0) == 0 and slope(0.7, -1.0) == 0


def test_the_loss_by_hand() -> None:
    """Uniform probabilities: the entropy is the mean of log(options), the ratios are given."""
    one = Controller(SIZES, 0, ControllerSettings(entropy=0.5, clip=0.2, init=0.0))
    taken = EVERY[[0, 7]]
    now = -torch.tensor([3.0, 2.0, 4.0]).log().expand(2, 3)
    before = now - torch.tensor([[1.1, 1.5, 0.5], [1.0, 1.5, 0.5]]).log()
    gain = (2 * (1.1 + 1.2 + 0.5) - (1.0 + 1.5 + 0.8)) / 6
    entropy = (math.log(3) + math.log(2) + math.log(4)) / 3
    loss = one.loss(taken, torch.tensor([2.0, -1.0]), before)
    assert loss.item() == pytest.approx(-gain - 0.5 * entropy, abs=1e-5)


def test_the_entropy_bonus_alone_makes_all_networks_alike() -> None:
    one = Controller(SIZES, 0, ControllerSettings(entropy=1.0, learning_rate=0.02))
    one.policy.load_state_dict(Policy(SIZES, one.settings.hidden).state_dict() | {
        "biases": torch.randn(3, 4, generator=generator(0)) * 2,
    })  # fmt: skip
    before = odds(one.policy)
    for _ in range(60):
        one.tell(one.ask(20), [0.5] * 20)  # no network is better than another
    after = odds(one.policy)
    assert float(after.max() / after.min()) < 1.5 < float(before.max() / before.min())


def test_baseline_by_hand() -> None:
    baseline = Baseline(0.9)
    sigma = 0.1 / 0.6745  # half of the rewards lie within 0.6745 sigma of the median
    assert baseline.advantages([0.4, 0.6]).tolist() == pytest.approx([-0.6745, 0.6745])
    sigma *= math.sqrt(0.9 + 0.1 * 0.6745**2)
    second = baseline.advantages([0.5, 0.7])
    assert second.tolist() == pytest.approx([0, 0.2 / sigma])
    assert baseline.mean == pytest.approx(0.5 + 0.1 * 0.1)
    assert baseline.spread == pytest.approx(sigma * math.sqrt(0.9 + 0.1 * (0.2 / sigma) ** 2 / 2))


def test_failed_trials_hardly_move_the_baseline() -> None:
    """One in seven told as 0 among rewards around 0.55: plain moments would be 0.47 and 0.19."""
    baseline, random = Baseline(0.9), generator(0)
    for _ in range(100):
        rewards = 0.55 + 0.01 * torch.randn(21, generator=random)
        rewards[::7] = 0.0
        found = baseline.advantages(rewards.tolist())
        assert found[::7].tolist() == [-2, -2, -2]
    assert baseline.mean == pytest.approx(0.55, abs=0.01)
    assert 0.007 < baseline.spread < 0.02


def test_baseline_without_differences() -> None:
    baseline = Baseline(0.9)
    assert baseline.advantages([0.3]).tolist() == [0]
    assert baseline.advantages([0.3, 0.3]).tolist() == [0, 0]
    assert baseline.advantages([0.5]).item() > 0 > baseline.advantages([0.2]).item()


def test_an_advantage_knows_no_scale() -> None:
    small, large = Baseline(0.9), Baseline(0.9)
    for rewards in ([0.1, 0.5, 0.3], [0.2, 0.6, 0.7]):
        found = small.advantages(rewards)
        assert torch.allclose(large.advantages([-5 + 7 * r for r in rewards]), found, atol=1e-5)
