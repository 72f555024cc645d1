from __future__ import annotations

import math
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mobilefit.arch import spec
from mobilefit.data import ImageSet
from mobilefit.data.images import ArraySource
from mobilefit.errors import InputError
from mobilefit.train import Recipe, TrainingDiverged, evaluate, fit, loop, open_fabric
from mobilefit.train.loss import Criterion
from mobilefit.train.trainer import Trainer

from .small import (
    EPOCH_STEPS,
    PRESET,
    RATES,
    RECIPE,
    SPEC,
    STEPS,
    network,
    rows,
    same_weights,
    shades,
    train,
)


def test_learns_what_can_be_learnt(tmp_path: Path) -> None:
    net = network()
    before = evaluate(net, shades(60, seed=2), PRESET)
    result = train(net, tmp_path, epochs=25)
    after = evaluate(net, shades(60, seed=2), PRESET)
    assert after.top1 > 0.95 > before.top1 and after.loss < before.loss / 2
    assert result.steps == 25 * EPOCH_STEPS and result.images_per_second > 0
    assert result.loss == result.history[-1]["loss"] < result.history[0]["loss"] / 2
    assert result.history[-1]["val_top1"] > 0.95


def test_same_seed_same_bits_whatever_the_callers_random_state() -> None:
    one, other, third = network(), network(), network()
    torch.manual_seed(1)
    first = train(one)
    expected = torch.random.get_rng_state()
    torch.manual_seed(2)
    second = train(other)
    assert same_weights(one, other) and not same_weights(one, network())
    assert [row["loss"] for row in first.history] == [row["loss"] for row in second.history]
    train(third, seed=6)
    assert not same_weights(one, third)
    torch.manual_seed(1)
    assert torch.random.get_rng_state().equal(expected)  # the caller's state is left alone


def test_rows_of_the_history(tmp_path: Path) -> None:
    result = train(network(), tmp_path, steps=15, checkpoint_every=4)
    assert rows(tmp_path) == [
        {key: value for key, value in row.items() if key not in RATES}
        for row in result.history
    ]
    assert [row["step"] for row in result.history] == list(range(1, 16))
    validated = [row["step"] for row in result.history if "val_top1" in row]
    assert validated == [6, 12, 15] and "val_loss" in result.history[-1]
    assert [row["epoch"] for row in result.history][:3] == [0.1667, 0.3333, 0.5]
    assert all(0 <= row["lr"] <= 0.3 * 8 / 256 for row in result.history)


def test_the_network_ends_with_the_averaged_weights() -> None:
    net, plain = network(), network()
    result = train(net)
    train(plain, ema_decay=None)
    assert not same_weights(net, plain)
    assert result.history[-1]["val_top1"] == evaluate(net, shades(21, seed=1), PRESET).top1
    assert result.history[-1]["val_loss"] == pytest.approx(
        evaluate(net, shades(21, seed=1), PRESET).loss
    )


def test_what_was_borrowed_is_given_back() -> None:
    before = set(threading.enumerate())  # earlier tests may have left some for the collector
    net = network().eval()
    net.backbone.stem.train()
    train(net, channels_last=True)
    assert not net.training and net.backbone.stem.training and not net.head.training
    assert all(p.grad is None for p in net.parameters())
    assert {m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {0.01}
    assert all(value.is_contiguous() for value in net.state_dict().values())
    new = set(threading.enumerate()) - before
    assert not [thread for thread in new if thread.name.startswith("mobilefit-batches")]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_optimizer_learns(optimizer: str) -> None:
    result = train(network(), optimizer=optimizer, lr=2.0 if optimizer == "sgd" else 0.1, steps=60)
    assert result.history[-1]["loss"] < 0.7 * result.history[0]["loss"]


def test_memory_format_changes_nothing_but_rounding() -> None:
    nets = {flag: network() for flag in (True, False)}
    for flag, net in nets.items():
        result = train(net, channels_last=flag, steps=6)
        assert math.isfinite(result.loss)
    for one, other in zip(nets[True].state_dict().values(), nets[False].state_dict().values()):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


def test_mixed_precision_on_the_processor() -> None:
    net = network()
    seen: set[torch.dtype] = set()
    net.head.logits.register_forward_hook(lambda _m, _i, out: seen.add(out.dtype))
    result = train(net, precision="bf16-mixed", epochs=20, validation=None)
    assert seen == {torch.bfloat16}
    assert {value.dtype for value in net.parameters()} == {torch.float32}
    assert evaluate(net, shades(60, seed=2), PRESET).top1 > 0.9
    assert "val_top1" not in result.history[-1]


def test_a_loss_that_is_not_finite_stops_before_the_weights_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network()
    weights: list[dict[str, torch.Tensor]] = []
    step = Trainer.step

    def poisoned(self: Trainer, images: torch.Tensor, labels: torch.Tensor) -> float:
        if self.done == 8:  # the third batch of the second epoch
            images = torch.full_like(images, math.nan)
            weights.append({k: v.detach().clone() for k, v in net.named_parameters()})
        return step(self, images, labels)

    monkeypatch.setattr(Trainer, "step", poisoned)
    with pytest.raises(TrainingDiverged, match=r"the loss is nan at step 9 of 30 \(epoch 2, batch 3"):
        train(net, tmp_path)
    assert all(value.equal(weights[0][key]) for key, value in net.named_parameters())
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["state"]["step"] == 6
    assert all(value.isfinite().all() for value in saved["state"]["net"].values())

    monkeypatch.setattr(Trainer, "step", step)  # the last checkpoint is good to go on from
    undisturbed = network()
    train(undisturbed)
    train(net, tmp_path, resume=True)
    assert same_weights(net, undisturbed)


def test_infinite_gradients_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    step = Trainer.step

    def exploding(self: Trainer, images: torch.Tensor, labels: torch.Tensor) -> float:
        loss = step(self, images, labels)
        if self.done == 12:
            next(net.parameters()).data[0] = math.inf
        return loss

    monkeypatch.setattr(Trainer, "step", exploding)
    with pytest.raises(TrainingDiverged, match=r"the weights are not finite at step 1[23] "):
        train(net, tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]["step"] == 6


def unlearnable(count: int) -> ImageSet:
    pixels = np.zeros((count, 8, 8), np.uint8)
    return ImageSet(ArraySource(pixels, ["x"] * count), np.zeros(count, np.int64))


def test_bad_input_is_refused(tmp_path: Path) -> None:
    net = network()
    before = network()
    two_outputs = network(spec=SPEC.classes(2))
    with pytest.raises(InputError, match="label 2 among the images, but the network has 2 outputs"):
        train(two_outputs, tmp_path / "a")
    for options, message in (
        ({"steps": 0}, "steps is 0"),
        ({"checkpoint_every": -1}, "checkpoint_every is -1"),
        ({"resume": True}, "nothing to resume"),
        ({"accelerator": "abacus"}, "no accelerator 'abacus'"),
    ):
        with pytest.raises(InputError, match=message):
            train(net, **options)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder"):
        train(net, tmp_path / "file" / "out")
    assert same_weights(net, before) and not (tmp_path / "a" / "checkpoint.pt").exists()


def test_one_image_is_too_few_and_two_are_not() -> None:
    with pytest.raises(InputError, match="1 training images"):
        fit(network(), unlearnable(1), preset=PRESET, recipe=RECIPE)
    result = fit(network(), unlearnable(2), preset=PRESET, recipe=RECIPE, accelerator="cpu")
    assert result.steps == 5  # smaller than a batch: one batch an epoch


def test_a_finished_training_is_not_overwritten(tmp_path: Path) -> None:
    net = network()
    train(net, tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes(), (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match="holds a training already"):
        train(network(), tmp_path)
    again = network()
    result = train(again, tmp_path, resume=True)
    assert same_weights(again, net) and result.steps == STEPS and result.images_per_second == 0
    assert rows(tmp_path)[-1]["step"] == STEPS == result.history[-1]["step"]
    assert before[0] == (tmp_path / "checkpoint.pt").read_bytes()
    assert before[1] == (tmp_path / "metrics.jsonl").read_bytes()


def test_a_teacher_teaches_without_labels() -> None:
    teacher = network()
    train(teacher, epochs=25)
    teacher.eval()
    pupil = network(seed=1)
    train(pupil, epochs=25, distillation=1.0, label_smoothing=0.0, teacher=teacher)
    images = shades(60, seed=2)
    taught, right = evaluate(pupil, images, PRESET), evaluate(teacher, images, PRESET)
    assert np.mean(taught.predictions == right.predictions) > 0.9


def test_the_share_of_the_teacher_is_the_share_of_the_loss() -> None:
    net, teacher = network().eval(), network(seed=1).eval()
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0])
    logits = net(images).detach()
    losses = {}
    for share in (0.0, 0.25, 1.0):
        recipe = replace(RECIPE, distillation=share, label_smoothing=0.0)
        losses[share] = float(Criterion(recipe=recipe, teacher=teacher, class_weights=None)(logits, labels, images))
    assert losses[0.25] == pytest.approx(0.75 * losses[0.0] + 0.25 * losses[1.0], rel=1e-5)
    wanted = nn.functional.cross_entropy(logits, teacher(images).softmax(1), reduction="sum")
    assert losses[1.0] == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_a_temperature_softens_both_and_keeps_the_gradients_size() -> None:
    """Hinton et al., section 2: for a high temperature, the gradient is the difference of the logits."""
    logits = torch.tensor([[1.0, 0.0, -1.0]], requires_grad=True)
    wanted = torch.tensor([[0.0, 3.0, -3.0]])
    recipe = replace(RECIPE, distillation=1.0, temperature=1000.0)
    criterion = Criterion(recipe=recipe, teacher=lambda images: wanted, class_weights=None)
    criterion(logits, torch.tensor([0]), torch.zeros(1, 3, 8, 8)).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, (logits - wanted).detach() / 3, rtol=0.01, atol=0.01)


def test_distillation_needs_a_teacher() -> None:
    with pytest.raises(InputError, match="distils from a teacher, and there is none"):
        train(network(), distillation=0.5)


@pytest.mark.parametrize(("side", "batch", "fits"), [(224, 8, True), (8192, 4096, False), (2048, 100_000, False)])
def test_a_step_that_no_machine_can_keep_is_refused(side: int, batch: int, fits: bool) -> None:
    """MobileNetV3-Small at 8192 px gives 8.5 GiB an image that the way back needs."""
    net = nn.Module()
    net.spec = spec("mobilenet_v3_small").resolution(side)  # type: ignore[assignment]
    recipe, fabric = Recipe(batch_size=batch), open_fabric("cpu")
    if fits:
        loop._require_memory(net, recipe, fabric)
        return
    with pytest.raises(InputError, match=rf"a step of {batch} images of {side}x{side} px needs [\d,]+ GiB"):
        loop._require_memory(net, recipe, fabric)
