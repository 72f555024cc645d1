"""Shared weights: a path is a network, a step trains the path alone, and the whole of it learns."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mobilefit.nn import recompute
from mobilefit.search import (
    SPACES,
    SharedWeights,
    Space,
    Supernet,
    SupernetTask,
    Tokens,
    Trial,
    space,
)
from mobilefit.search import supernet as module
from mobilefit.search.supernet import _part, _variants, anchor
from mobilefit.train import Stepper, evaluate, recalibrated
from mobilefit.train.checkpoint import load_checkpoint, save_checkpoint
from mobilefit.train.trainer import Trainer

from . import small
from .small import PIXELS, PRESET, RECIPE, shades

WARMUP, TRIALS = 20, 12


def drawn(chosen: Space, count: int, seed: int = 0) -> list[Tokens]:
    dice = random.Random(seed)
    return [chosen.random(dice.randrange) for _ in range(count)]


def tokens_with(chosen: Space, tokens: Tokens, **values: Any) -> Tokens:
    """``tokens`` with decisions set by name (``blocks_0_op="mbconv3"``)."""
    made = list(tokens)
    for name, value in values.items():
        block, index, choice = name.split("_", 2)
        place = [d.name for d in chosen.decisions].index(f"{block}.{index}.{choice}")
        made[place] = chosen.decisions[place].options.index(value)
    return tuple(made)


# ---- paths


@pytest.mark.parametrize("chosen", [*SPACES.values(), small.UNIVERSAL], ids=lambda chosen: chosen.name)
def test_an_extracted_network_computes_what_the_path_does(chosen: Space) -> None:
    chosen = chosen.resolution(32).classes(5)
    supernet = Supernet(chosen, seed=1)
    random_weights(supernet)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for tokens in drawn(chosen, 4):
        network = supernet.extract(tokens)
        assert network.spec == chosen.spec(tokens)
        with torch.no_grad():
            torch.manual_seed(0)  # dropout
            along = supernet.along(tokens, images)
            torch.manual_seed(0)
            alone = network(images)
        assert along.std() > 1e-3
        torch.testing.assert_close(along, alone, rtol=1e-5, atol=1e-5)


def random_weights(supernet: Supernet) -> None:
    """Norms and biases that are not one and zero, so that a mistaken slice shows."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in supernet.shared.values():
            if weight.dim() == 1:
                weight.add_(torch.rand(weight.shape, generator=draw) - 0.5)


def test_every_path_fits_into_the_shared_weights() -> None:
    for name in SPACES:
        chosen = space(name).resolution(32).classes(5)
        supernet = Supernet(chosen)
        for tokens in drawn(chosen, 15):
            _, keys = supernet._skeletons(tokens)
            for key, shape in keys.values():
                there = supernet.shared[key.replace(".", "/")].shape
                assert len(there) == len(shape) and all(a <= b for a, b in zip(shape, there))


def test_no_shared_weight_is_larger_than_some_path_s() -> None:
    chosen = small.space()
    supernet = Supernet(chosen)
    largest: dict[str, tuple[int, ...]] = {}
    for number in range(chosen.size):
        tokens = tuple(number >> bit & 1 for bit in range(len(chosen.sizes)))
        for key, shape in supernet._skeletons(tokens)[1].values():
            largest[key] = tuple(map(max, largest.get(key, shape), shape))
    for key, weight in supernet.shared.items():  # one size for both of a row's variants
        sizes = [largest[variant] for variant in _variants(key.replace("/", ".")) if variant in largest]
        assert tuple(weight.shape) == tuple(map(max, *sizes) if len(sizes) > 1 else sizes[0])


def parameters(supernet: Supernet, tokens: Tokens) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in supernet.extract(tokens).named_parameters()}


def test_what_is_shared() -> None:
    chosen = space("mobilenet_v3_small").resolution(32).classes(5)
    supernet = Supernet(chosen)
    base = tokens_with(chosen, (0,) * len(chosen.sizes), blocks_0_op="mbconv3", blocks_0_kernel=3)
    wide = parameters(supernet, tokens_with(chosen, base, blocks_0_op="mbconv6"))
    narrow = parameters(supernet, base)
    first = [name for name in narrow if ".blocks.0." in name]
    assert any("depthwise" in name for name in first)
    for name in first:  # an expansion of 3 is the first half of one of 6
        part = tuple(slice(0, size) for size in narrow[name].shape)
        assert wide[name][part].equal(narrow[name]), name
    large = parameters(supernet, tokens_with(chosen, base, blocks_0_kernel=5))
    for name in first:  # a small kernel is the middle of a large one
        middle = large[name]
        if middle.shape != narrow[name].shape:
            assert middle.shape[-2:] == (5, 5)
            middle = middle[..., 1:4, 1:4]
        assert middle.equal(narrow[name]), name
    assert any(large[name].shape != narrow[name].shape for name in first)
    deep = parameters(supernet, tokens_with(chosen, base, blocks_1_act="hard_swish"))
    assert all(deep[name].equal(narrow[name]) for name in narrow)  # the activation has no weights


def keys(supernet: Supernet, tokens: Tokens, part: str) -> set[str]:
    """Shared keys of a path, of one place alone."""
    return {key for key, _ in supernet._skeletons(tokens)[1].values() if key.startswith(part)}


def test_kinds_of_layers_share_nothing() -> None:
    chosen = space("mnasnet").resolution(32).classes(5)
    supernet, base = Supernet(chosen), (0,) * len(chosen.sizes)
    conv, depthwise, three, six = (
        keys(supernet, tokens_with(chosen, base, blocks_0_op=op), "blocks.0.0.")
        for op in ("conv", "depthwise", "mbconv3", "mbconv6")
    )
    assert conv and depthwise and three == six
    assert not (conv & depthwise or conv & three or depthwise & three)


def test_bottlenecks_share_what_they_have_in_common() -> None:
    chosen = small.UNIVERSAL.resolution(32).classes(5)
    supernet, base = Supernet(chosen), (0,) * len(chosen.sizes)
    extra, inverted, convnext = (
        keys(supernet, tokens_with(chosen, base, blocks_0_op=op), "blocks.0.0.")
        for op in ("extradw3", "mbconv4", "convnext4")
    )
    assert extra == inverted | convnext
    assert {key.split(".")[5] for key in inverted & convnext} == {"expand", "project"}


def test_stems_and_tails_share_nothing() -> None:
    chosen = space("mobilenet_v3_small").resolution(32).classes(5)
    supernet, base = Supernet(chosen), (0,) * len(chosen.sizes)
    other = (1, *base[1:-1], 1)
    for part in ("stem", "tail"):
        mine, theirs = keys(supernet, base, part), keys(supernet, other, part)
        assert mine and theirs and not mine & theirs


def test_a_step_changes_the_slices_of_its_path_alone() -> None:
    chosen = small.space()
    supernet = Supernet(chosen, seed=1)
    path = tokens_with(chosen, (0,) * 6, blocks_0_op="mbconv2")  # narrow: parts of most tensors
    before = {key: weight.detach().clone() for key, weight in supernet.shared.items()}
    plain = replace(RECIPE, weight_decay=0.0)
    supernet.path = path
    Stepper(supernet, shades(96, seed=0), preset=PRESET, recipe=plain, steps=5, accelerator="cpu").step()
    touched = {key.replace(".", "/"): shape for key, shape in supernet._skeletons(path)[1].values()}
    partly = 0
    for key, weight in supernet.shared.items():
        changed = weight.detach() != before[key]
        inside = torch.zeros_like(changed)
        if key in touched:
            _part(inside, touched[key])[:] = True
            assert changed.any(), key
            partly += not inside.all()
        assert not (changed & ~inside).any(), key
    assert partly and len(touched) < len(supernet.shared)


@pytest.mark.parametrize("name", SPACES)
def test_large_maps_give_the_same_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a layer keeps one map less (see ``nn.recompute``): batch norms know no statistics here."""
    chosen = space(name).resolution(32).classes(5)
    supernet = Supernet(chosen, seed=1).train()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found, used, original = [], [], recompute.norm_hardswish
    monkeypatch.setattr(recompute, "norm_hardswish", lambda *a: (used.append(True), original(*a))[1])
    for least in (recompute.LEAST, 1):
        assert not used
        monkeypatch.setattr(recompute, "LEAST", least)
        supernet.zero_grad()
        torch.manual_seed(2)  # of the dropout
        logits = supernet.along(anchor(chosen), images)
        (logits * torch.linspace(-1, 1, logits.numel()).reshape(logits.shape)).sum().backward()
        found.append({key: p.grad.clone() for key, p in supernet.named_parameters() if p.grad is not None})
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)
    assert bool(used) == ("hard_swish" in str(chosen.spec(anchor(chosen))))


def test_a_free_forward_draws_its_path_from_torch_s_random_numbers() -> None:
    chosen = small.space()
    supernet = Supernet(chosen).eval()  # spread at once
    images = torch.randn(4, 3, PIXELS, PIXELS)

    def outputs(seed: int) -> list[float]:
        torch.manual_seed(seed)
        return [float(supernet(images).sum()) for _ in range(4)]

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        assert outputs(1) == outputs(1) != outputs(2)
        assert len(set(outputs(1))) > 1


def test_random_paths_leave_the_anchor_step_by_step() -> None:
    chosen = space("mnasnet").resolution(32).classes(5)
    supernet = Supernet(chosen)
    supernet.spreading_steps = 100
    wide = anchor(chosen)
    away = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(130):
            path = supernet._random_path()
            away.append(sum(a != b for a, b in zip(path, wide)))
    assert max(away[:5]) <= 4
    uniform = sum(1 - 1 / size for size in chosen.sizes)
    assert abs(sum(away[100:]) / 30 - uniform) < 1.5
    assert sum(away[:30]) < sum(away[35:65]) < sum(away[100:])


def test_the_anchor_is_wide_and_usual() -> None:
    taken = space("mobilenet_v3_small").chosen(anchor(space("mobilenet_v3_small")))
    assert [taken[f"blocks.2.{c}"] for c in ("op", "kernel", "se", "skip", "filters", "layers", "act")] == [
        "mbconv6", 5, "v3", "identity", 40, 4, "hard_swish",
    ]  # fmt: skip


# ---- as an evaluator


def shared_weights(folder: Path, **fields: Any) -> SharedWeights:
    task = SupernetTask(
        train_set=shades(96, seed=0), held_out=shades(60, seed=1), preset=PRESET,
        recipe=replace(RECIPE, ema_decay=0.9), warmup_steps=WARMUP, trials=TRIALS, seed=2,
        folder=folder,
    )  # fmt: skip
    return SharedWeights(small.space(), replace(task, **fields))


def some_trials(count: int = TRIALS) -> list[Trial]:
    chosen = small.space()
    return [
        Trial(number=n, tokens=tokens, spec=chosen.spec(tokens))
        for n, tokens in enumerate(drawn(chosen, count))
    ]


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)


@pytest.mark.parametrize("at", [1, 7, WARMUP])
def test_the_warm_up_goes_on_where_it_stopped(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = shared_weights(tmp_path / "a")
    undisturbed.prepare()
    with monkeypatch.context() as patch:
        step = Trainer.step

        def stop(self: Trainer, images: Tensor, labels: Tensor) -> float:
            if self.done == at - 1:
                raise KeyboardInterrupt
            return step(self, images, labels)

        patch.setattr(Trainer, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            shared_weights(tmp_path / "b").prepare()
    resumed = shared_weights(tmp_path / "b")
    resumed.prepare()
    assert same(resumed.supernet, undisturbed.supernet)
    again = shared_weights(tmp_path / "b")  # done already
    monkeypatch.setattr(Trainer, "step", stop)
    again.prepare()
    assert same(again.supernet, undisturbed.supernet)


def test_a_state_goes_on_bit_for_bit(tmp_path: Path) -> None:
    trials = some_trials()
    first = shared_weights(tmp_path / "warmup")
    first.prepare()
    list(first.evaluate(trials[:5]))
    save_checkpoint(tmp_path / "state.pt", {}, first.state_dict())
    rest = [(o.number, o.accuracy) for o in first.evaluate(trials[5:])]
    second = shared_weights(tmp_path / "elsewhere")
    second.load_state_dict(load_checkpoint(tmp_path / "state.pt", {}))
    assert [(o.number, o.accuracy) for o in second.evaluate(trials[5:])] == rest
    assert same(first.supernet, second.supernet)
    assert not (tmp_path / "elsewhere").exists()


def test_all_trials_are_scored_on_the_same_images_and_the_best_on_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SCORE_IMAGES", 28)
    monkeypatch.setattr(module, "SCORE_BATCH", 16)
    evaluator = shared_weights(tmp_path, held_out=shades(70, seed=1))
    evaluator.prepare()
    seen: list[list[Tensor]] = []
    score = evaluator._score

    def spy(path: Tokens, held: Any) -> tuple[float, float]:
        seen.append([images for images, _ in held])
        return score(path, held)

    monkeypatch.setattr(evaluator, "_score", spy)
    list(evaluator.evaluate(some_trials(6)))
    assert [[len(images) for images in batches] for batches in seen] == [[14, 14]] * 6
    assert all(torch.cat(batches).equal(torch.cat(seen[0])) for batches in seen)
    seen.clear()
    before = {key: value.clone() for key, value in evaluator.supernet.state_dict().items()}
    (found,) = evaluator.rescore(some_trials(1))
    images = torch.cat(seen[0])
    assert len(images) == 70 and len({tuple(i.flatten()[:20].tolist()) for i in images}) == 70
    assert found.accuracy is not None and (found.accuracy * 70) == pytest.approx(round(found.accuracy * 70))
    after = evaluator.supernet.state_dict()
    assert all(after[key].equal(before[key]) for key in before)  # it trains nothing


def test_it_learns_and_so_does_what_is_taken_out_of_it(tmp_path: Path) -> None:
    evaluator = shared_weights(tmp_path, warmup_steps=150, trials=60)
    evaluator.prepare()
    list(evaluator.evaluate(some_trials(60)))
    trials = some_trials(3)
    for outcome, trial in zip(evaluator.rescore(trials), trials):
        assert outcome.accuracy is not None and outcome.accuracy > 0.6  # chance is a third
        network = evaluator.supernet.extract(trial.tokens)
        recalibrated(network, shades(96, seed=0), PRESET, RECIPE)
        alone = evaluate(network, shades(60, seed=1), PRESET).top1
        assert abs(alone - outcome.accuracy) < 0.15


def test_a_diverging_step_is_a_failed_trial(tmp_path: Path) -> None:
    evaluator = shared_weights(tmp_path)
    evaluator.prepare()
    with torch.no_grad():
        for weight in evaluator.supernet.shared.values():
            weight.fill_(float("nan"))
    (outcome,) = evaluator.evaluate(some_trials(1))
    assert outcome.accuracy is None and "TrainingDiverged" in str(outcome.error)
    assert evaluator.supernet.path is None
