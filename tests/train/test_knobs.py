"""Each knob of a recipe does what it says."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mobilefit.data import Feed, ImageSet, Sampling, class_weights
from mobilefit.errors import InputError
from mobilefit.nn import load_network
from mobilefit.nn.blocks import Row
from mobilefit.train import Recipe, evaluate, open_fabric
from mobilefit.train.loss import Criterion, mixing
from mobilefit.train.trainer import Trainer, borrowed

from .small import EPOCH_STEPS, PRESET, RECIPE, STEPS, network, rows, same_weights, shades, train

SKEWED = np.array([0] * 30 + [1] * 6 + [2] * 3)


def skewed() -> ImageSet:
    images = shades(117)
    chosen = [np.flatnonzero(images.labels == label)[: np.sum(label == SKEWED)] for label in range(3)]
    return images.subset(np.concatenate(chosen))


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """The batches that the network is trained on."""
    seen: list[tuple[Tensor, Tensor]] = []
    original = Criterion.__call__

    def call(self: Criterion, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        seen.append((images.detach().clone(), labels.clone()))
        return original(self, logits, labels, images)

    monkeypatch.setattr(Criterion, "__call__", call)
    return seen


# ---- mixing


@pytest.mark.parametrize("knob", ["mixup", "cutmix"])
def test_mixed_labels_are_shares_of_what_the_image_holds(knob: str) -> None:
    mixed = mixing(replace(RECIPE, **{knob: 1.0}), 3)
    assert mixed is not None
    torch.manual_seed(0)
    images = torch.arange(3).float()[:, None, None, None].expand(3, 3, 32, 32).contiguous()
    for _ in range(20):
        found, shares = mixed(images.clone(), torch.tensor([0, 1, 2]))
        torch.testing.assert_close(shares.sum(1), torch.ones(3))
        expected = (shares * torch.arange(3.0)).sum(1)  # an image of label k is all k
        torch.testing.assert_close(found.mean((1, 2, 3)), expected, rtol=1e-4, atol=1e-4)
        whole = {0.0, 1.0, 2.0}
        values = {round(float(value), 5) for value in found.unique()}
        assert values <= whole if knob == "cutmix" else True


def test_mixup_and_cutmix_come_by_lot() -> None:
    mixed = mixing(replace(RECIPE, mixup=1.0, cutmix=1.0), 2)
    assert mixed is not None
    torch.manual_seed(0)
    images = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 1, 16, 16).contiguous()
    cut = [bool(((found := mixed(images.clone(), torch.tensor([0, 1]))[0]) % 1 == 0).all()) for _ in range(60)]
    assert found.shape == images.shape and 15 < sum(cut) < 45
    assert mixing(RECIPE, 3) is None


def test_a_training_with_everything_learns_and_is_reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    knobs: dict[str, Any] = dict(
        mixup=0.2, cutmix=1.0, policy="trivialaugment", erasing=0.25, erasing_fill="noise", repeats=2,
        drop_path=0.2, dropout=0.1, clip_norm=5.0, balance="loss", ema_every=2, accumulate=2, lr=1.0,
    )  # fmt: skip
    seen = watched(monkeypatch)
    one, other = network(), network()
    first = train(one, epochs=6, **knobs)
    assert all(labels.ndim == 2 for _, labels in seen)
    train(other, epochs=6, **knobs)
    assert same_weights(one, other)
    assert first.history[-1]["loss"] < first.history[0]["loss"]


# ---- rare classes


def test_the_loss_of_a_rare_class_weighs_more() -> None:
    weights = torch.from_numpy(class_weights(SKEWED, 4)).float()
    assert weights.tolist() == pytest.approx([39 / 3 / 30, 39 / 3 / 6, 39 / 3 / 3, 1.0])  # of none: 1
    assert float(weights[torch.from_numpy(SKEWED)].mean()) == pytest.approx(1.0)
    recipe = replace(RECIPE, label_smoothing=0.0)
    logits = torch.zeros(1, 4)
    plain, weighed = (
        float(Criterion(recipe=recipe, teacher=None, class_weights=w)(logits, torch.tensor([2]), torch.zeros(1)))
        for w in (None, weights)
    )
    assert weighed == pytest.approx(plain * 39 / 9)


def test_rare_classes_are_drawn_as_often() -> None:
    feed = Feed(skewed(), PRESET, 13, sampling=Sampling(balanced=True), seed=1)
    counts = np.bincount(np.concatenate([feed(step)[1] for step in range(3 * 60)]), minlength=3)
    assert counts.sum() == 39 * 60
    assert counts.min() > 0.9 * counts.max()


def test_balance_reaches_a_rare_class(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    fit_on_skewed(balance="sampling")
    drawn = np.bincount(torch.cat([labels for _, labels in seen]), minlength=3)
    seen.clear()
    fit_on_skewed()
    plain = np.bincount(torch.cat([labels for _, labels in seen]), minlength=3)
    assert drawn[2] > 3 * plain[2]


def fit_on_skewed(**knobs: Any) -> None:
    from mobilefit.train import fit

    fit(network(), skewed(), preset=PRESET, recipe=replace(RECIPE, **knobs), steps=40, accelerator="cpu")


# ---- what stays, and what is left out


def test_frozen_rows_keep_weights_and_statistics() -> None:
    net, before = network(), network()
    train(net, freeze=1, ema_decay=None)
    for name, value in net.state_dict().items():
        same = value.equal(before.state_dict()[name])
        assert same == name.startswith(("backbone.stem", "backbone.blocks.0.")), name
    assert all(parameter.requires_grad for parameter in net.parameters())
    with pytest.raises(InputError, match="freeze is 3, and the network has 2 rows"):
        train(network(), freeze=3)


def test_stochastic_depth_leaves_whole_images_of_a_row_out() -> None:
    net = network()
    row = net.backbone.blocks[0]
    assert isinstance(row, Row) and row.residual
    x = torch.randn(200, 8, 4, 4)
    net.train()
    row.drop_path = 0.5
    torch.manual_seed(0)
    left_out = [bool(torch.equal(a, b)) for a, b in zip(row(x), x, strict=True)]
    assert 70 < sum(left_out) < 130
    net.eval()
    assert not any(torch.equal(a, b) for a, b in zip(row(x), x, strict=True))


def test_stochastic_depth_and_dropout_are_borrowed() -> None:
    net = network()
    recipe = replace(RECIPE, drop_path=0.4, dropout=0.7)
    with borrowed(net, recipe, open_fabric("cpu")):
        assert [row.drop_path for row in net.backbone.blocks] == [0.0, 0.2]  # grows with the place
        assert net.head.dropout.p == 0.7
    assert [row.drop_path for row in net.backbone.blocks] == [0.0, 0.0]
    assert net.head.dropout.p == 0.2


def test_clipped_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    original = torch.optim.SGD.step

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([g.norm() for g in grads]).norm()))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    train(network(), optimizer="sgd", steps=6)
    assert max(norms) > 0.05
    norms.clear()
    train(network(), optimizer="sgd", steps=6, clip_norm=0.05)
    assert len(norms) == 6 and max(norms) <= 0.05 * 1.001


# ---- images


def test_repeated_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = Feed(shades(), PRESET, 8, augment=RECIPE.augmentation, sampling=Sampling(repeats=4), seed=1)
    chosen = np.concatenate([feed.chosen(step) for step in range(EPOCH_STEPS)])
    assert len(chosen) == 48 and (np.unique(chosen, return_counts=True)[1] == 4).all()
    assert (chosen.reshape(-1, 4) == chosen[::4, None]).all()
    images, labels = feed(0)
    assert labels[:4].unique().numel() == 1
    assert not any(torch.equal(images[0], other) for other in images[1:4])
    assert set(feed.chosen(EPOCH_STEPS)) != set(feed.chosen(0))


def test_trained_at_another_resolution(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    net = network()
    result = train(net, train_scale=2.0, steps=6)
    assert {tuple(images.shape[2:]) for images, _ in seen} == {(16, 16)}
    assert result.history[-1]["val_loss"] == pytest.approx(evaluate(net, shades(21, seed=1), PRESET).loss)


@pytest.mark.parametrize(
    ("scale", "least", "resolution", "size"),
    [(0.75, 96, 224, 168), (0.75, 96, 112, 96), (0.75, 96, 96, 96), (0.75, 96, 40, 40), (0.75, 0, 40, 30),
     (2.0, 96, 40, 80), (2.0, 96, 64, 128), (0.1, 0, 32, 8)],
)  # fmt: skip
def test_the_size_in_training(scale: float, least: int, resolution: int, size: int) -> None:
    assert Recipe(train_scale=scale, min_train_size=least).train_size(resolution) == size


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(workers: int) -> None:
    one, other = network(), network()
    train(one, steps=14, policy="randaugment", erasing=0.5)
    train(other, steps=14, policy="randaugment", erasing=0.5, workers=workers)
    assert same_weights(one, other)


def test_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Dynamo with eager kernels: inductor's would take minutes."""
    compiled: list[nn.Module] = []
    original = torch.compile

    def compile(net: nn.Module, **_: Any) -> Any:  # Fabric sets its own wrapper inside
        compiled.append(net)
        return original(net, backend="eager")

    monkeypatch.setattr(torch, "compile", compile)
    one, other = network(), network()
    train(one, steps=4)
    assert not compiled
    train(other, steps=4, compile=True)
    assert compiled[0] is other
    for key, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, rtol=0.02, atol=0.02, msg=key)


# ---- what is kept


def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    result = train(network(), tmp_path, epochs=8)
    best = result.best
    assert best is not None
    assert best["val_top1"] == max(row.get("val_top1", 0) for row in result.history)
    kept = load_network(tmp_path / "best.safetensors")
    assert evaluate(kept, shades(21, seed=1), PRESET).top1 == best["val_top1"]
    assert train(network(), validation=None, steps=2).best is None


def test_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    train(network(), tmp_path, checkpoint_every=5, keep=3)
    kept = {path.name: torch.load(path, weights_only=True)["state"]["step"] for path in tmp_path.glob("*.pt")}
    assert kept == {"checkpoint.pt": STEPS, "checkpoint-1.pt": 25, "checkpoint-2.pt": 20}
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "best.safetensors", "metrics.jsonl"}


def test_checkpoints_are_kept_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))  # as FAT says

    monkeypatch.setattr(os, "link", refuse)
    test_the_last_checkpoints_are_kept(tmp_path)


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net, again = network(), network(seed=3)
    train(net, tmp_path, checkpoint_every=5, keep=2)
    before = rows(tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(b"cut short")
    train(again, tmp_path, checkpoint_every=5, keep=2, resume=True)
    assert "checkpoint.pt is not a readable checkpoint" in capsys.readouterr().err
    assert same_weights(net, again) and rows(tmp_path) == before
    with pytest.raises(InputError, match="keep is 0"):
        train(network(), tmp_path / "new", keep=0)


def test_the_batch_of_a_divergence_is_kept(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"the loss is (nan|inf) at step .*; its batch is in .*diverged.pt") as caught:
        train(network(), tmp_path, lr=1e12, optimizer="sgd", warmup_epochs=0, label_smoothing=0.0, epochs=20)
    assert "lower the learning rate" in str(caught.value) and "\n" not in str(caught.value)
    kept = torch.load(tmp_path / "diverged.pt", weights_only=True)
    assert kept["images"].shape == (8, 3, 8, 8) and len(kept["names"]) == 8 == len(kept["labels"])
    images = shades()
    assert [int(images.labels[int(name)]) for name in kept["names"]] == kept["labels"].tolist()
    assert f"step {kept['step']} of" in str(caught.value)


def test_a_set_smaller_than_a_batch_is_a_batch() -> None:
    result = train(network(), batch_size=100, epochs=3)
    assert result.steps == 3 and all(row["lr"] <= 0.3 * 48 / 256 for row in result.history)


def test_steppers_take_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    from mobilefit.train import Stepper

    rates: list[float] = []
    original = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, *b, lr=None: (rates.append(lr), original(self, *b, lr=lr))[1])
    net: nn.Module = network()
    stepper = Stepper(net, shades(), preset=PRESET, recipe=RECIPE, steps=3, accelerator="cpu")
    before = net.state_dict()["head.logits.weight"].clone()
    stepper.step(0.0)
    assert net.state_dict()["head.logits.weight"].equal(before)
    stepper.step(1.0)
    assert rates == [0.0, 1.0] and not net.state_dict()["head.logits.weight"].equal(before)
