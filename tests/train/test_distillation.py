"""Soft targets: the teacher sees the student's crops at its own resolution, and its answers are kept."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mobilefit.data import Feed, ImageSet, Preset
from mobilefit.data.images import ArraySource
from mobilefit.errors import InputError
from mobilefit.nn import Network
from mobilefit.tasks.segment import Segment
from mobilefit.train import SoftTargets, fit, open_fabric
from mobilefit.train.distillation import CHUNK_STEPS, LogitsCache, distillation_task
from mobilefit.train.trainer import Trainer

from .small import PRESET, RECIPE, SPEC, network, same_weights, shades, train, with_fixed_statistics
from .test_ranks import run as run_processes

TEACHER_PRESET = Preset(resolution=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
STEPS = 40  # more than a chunk
TAUGHT: dict[str, Any] = {"distillation": 0.5, "temperature": 2.0, "steps": STEPS}


class Counting(nn.Module):
    """A teacher that counts what it is asked, and keeps the images."""

    def __init__(self, seed: int = 7) -> None:
        super().__init__()
        self.network = network(seed=seed, spec=SPEC.resolution(16)).eval()
        self.images: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.images.append(images)
        logits: Tensor = 3e3 * self.network(images)  # fresh weights give logits near zero
        return logits


def soft(teacher: nn.Module, cache: Path | None = None) -> SoftTargets:
    return SoftTargets(network=teacher, preset=TEACHER_PRESET, cache=cache)


def taught(net: Network, teacher: nn.Module, cache: Path | None = None, out: Path | None = None, **options: Any) -> Network:
    train(net, out, teacher=soft(teacher, cache), **TAUGHT | options)
    return net


@pytest.fixture(scope="module")
def undisturbed() -> Network:
    return taught(network(), Counting())


# ---- what the teacher sees


def gradients(count: int = 24, side: int = 64) -> ImageSet:
    """Smooth pictures, each its own: a corner's level, and slopes to the right and downwards."""
    random = np.random.default_rng(3)
    ramp = np.linspace(0, 1, side)
    first, right, down = random.uniform(0, 85, (3, count, 1, 1))
    pixels = (first + right * ramp[None, None, :] + down * ramp[None, :, None]).astype(np.uint8)
    return ImageSet(ArraySource(pixels, [str(n) for n in range(count)]), (np.arange(count) % 3).astype(np.int64))


def test_the_teacher_sees_the_students_crops_at_its_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, students = Counting(), []
    step = Trainer.step

    def watched(self: Trainer, images: Tensor, targets: Any) -> float:
        students.append(images)
        return step(self, images, targets)

    monkeypatch.setattr(Trainer, "step", watched)
    recipe = replace(RECIPE, augment="inception", distillation=0.5)
    fit(network(), gradients(), preset=PRESET, recipe=recipe, steps=5, seed=5, teacher=soft(teacher), accelerator="cpu")
    assert len(teacher.images) == len(students) == 5
    for large, small in zip(teacher.images, students):
        assert large.shape == (8, 3, 16, 16) and small.shape == (8, 3, 8, 8)
        pixels = [
            images * torch.tensor(preset.std).view(3, 1, 1) + torch.tensor(preset.mean).view(3, 1, 1)
            for images, preset in ((large, TEACHER_PRESET), (small, PRESET))
        ]
        shrunk = nn.functional.avg_pool2d(pixels[0], 2)
        assert (shrunk - pixels[1]).abs().max() < 0.02  # a mirrored or other crop differs by far more
        assert (shrunk.flip(3) - pixels[1]).abs().max() > 0.1


def test_the_teacher_sees_detail_that_the_student_does_not() -> None:
    """Columns of black and white, thinner than the student's pixels: grey to it, stripes to the teacher."""
    pixels = np.zeros((8, 16, 16), np.uint8)
    pixels[:, :, ::2] = 255
    stripes = ImageSet(ArraySource(pixels, ["x"] * 8), np.zeros(8, np.int64))
    teacher = Counting()
    recipe = replace(RECIPE, augment="none", distillation=0.5)
    fit(network(), stripes, preset=PRESET, recipe=recipe, steps=1, teacher=soft(teacher), accelerator="cpu")
    red = teacher.images[0][:, 0] * 0.2 + 0.4
    assert red.amax() > 0.99 and red.amin() < 0.01
    assert Feed(stripes, PRESET, 8)(0)[0].abs().max() < 0.35  # the student's, for comparison: grey is 0


def test_the_loss_is_that_of_the_teachers_logits() -> None:
    """One step by hand: loss = (1 - d) CE(labels) + d T^2 CE(softmax(teacher / T)), a mean over the images."""
    teacher, net = Counting(), network()
    recipe = replace(RECIPE, distillation=0.25, temperature=2.0, label_smoothing=0.0, dropout=0.0, augment="none")
    images, labels = Feed(shades(), PRESET, 8, seed=5)(0)
    large, _ = Feed(shades(), replace(PRESET, resolution=16, mean=TEACHER_PRESET.mean, std=TEACHER_PRESET.std), 8, seed=5)(0)
    with torch.no_grad():
        logits = network().train()
        for module in logits.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        log_p = logits(images).log_softmax(1), (logits(images) / 2).log_softmax(1)
        probabilities = (teacher(large) / 2).softmax(1)
        hard = -log_p[0][torch.arange(8), labels].mean()
        expected = 0.75 * hard + 0.25 * 4 * -(probabilities * log_p[1]).sum(1).mean()
    result = fit(net, shades(), preset=PRESET, recipe=recipe, steps=1, seed=5, teacher=soft(teacher), accelerator="cpu")
    assert result.loss == pytest.approx(float(expected), rel=1e-5)
    assert abs(float(expected - hard)) > 0.05


def test_a_teacher_answers_in_evaluation_mode_and_float32_whatever_the_student() -> None:
    teacher = Counting().train()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    dtypes = set()
    teacher.network.head.logits.register_forward_hook(lambda _m, _i, out: dtypes.add(out.dtype))
    taught(network(), teacher, precision="bf16-mixed", steps=3)
    assert dtypes == {torch.float32} and teacher.training
    assert all(value.equal(before[key]) for key, value in teacher.state_dict().items())


# ---- the cache


def test_with_a_cache_and_without_one_the_weights_are_the_same(undisturbed: Network, tmp_path: Path) -> None:
    first, second = Counting(), Counting()
    assert same_weights(taught(network(), first, tmp_path), undisturbed)
    assert len(first.images) == STEPS
    assert same_weights(taught(network(), second, tmp_path), undisturbed)
    assert not second.images


def test_students_of_every_size_and_kind_share_a_cache(tmp_path: Path) -> None:
    taught(network(), Counting(), tmp_path)
    small, again = Counting(), Counting()
    taught(network(spec=SPEC.width(0.5)), small, tmp_path, preset=replace(PRESET, resolution=6), lr=0.1, steps=STEPS + 5)
    assert len(small.images) == 5  # only what came after the first one's end
    taught(network(), again, tmp_path, steps=STEPS + 5)
    assert not again.images


@pytest.mark.parametrize(
    "other",
    [{"seed": 6}, {"batch_size": 12}, {"augment": "mild"}, {"erasing": 0.5}, {"repeats": 2}, {"balance": "sampling"}],
    ids=lambda other: next(iter(other)),
)
def test_what_shows_the_teacher_other_images_shares_nothing(other: dict[str, Any], tmp_path: Path) -> None:
    taught(network(), Counting(), tmp_path, steps=3)
    teacher = Counting()
    taught(network(), teacher, tmp_path, **{"steps": 3} | other)
    assert len(teacher.images) == 3


def test_another_teacher_or_other_images_share_nothing(tmp_path: Path) -> None:
    taught(network(), Counting(), tmp_path, steps=3)
    other, same = Counting(seed=8), Counting()
    taught(network(), other, tmp_path, steps=3)
    assert len(other.images) == 3
    recipe = replace(RECIPE, distillation=0.5)
    fit(network(), shades(seed=9), preset=PRESET, recipe=recipe, steps=3, seed=5, teacher=soft(same, tmp_path), accelerator="cpu")
    assert len(same.images) == 3
    assert len(list(tmp_path.iterdir())) == 3


def damages() -> Iterator[Any]:
    yield pytest.param(lambda path: path.write_bytes(path.read_bytes()[:200]), id="cut short")
    yield pytest.param(lambda path: path.write_bytes(b""), id="empty")
    yield pytest.param(lambda path: path.write_bytes(b"no array"), id="not numpy")
    yield pytest.param(lambda path: np.save(path, np.zeros((3, 2, 1), np.float32)), id="another shape")
    yield pytest.param(lambda path: path.unlink(), id="missing")


@pytest.mark.parametrize("damage", damages())
def test_a_damaged_file_counts_as_missing(damage: Any, undisturbed: Network, tmp_path: Path) -> None:
    taught(network(), Counting(), tmp_path)
    damage(next(tmp_path.glob("*/00000000-0.npy")))
    teacher, healed = Counting(), Counting()
    assert same_weights(taught(network(), teacher, tmp_path), undisturbed)
    assert len(teacher.images) == CHUNK_STEPS
    taught(network(), healed, tmp_path)
    assert not healed.images


def test_two_at_once_lose_nothing(tmp_path: Path) -> None:
    caches = LogitsCache(tmp_path), LogitsCache(tmp_path)
    for step in range(CHUNK_STEPS):
        caches[step % 2].write(step, np.full((2, 3), step, np.float32))
    for cache in caches:
        cache.flush()
    for step in range(CHUNK_STEPS):
        answer = caches[0].read(step)
        assert answer is not None and answer.equal(torch.full((2, 3), float(step)))
    assert caches[0].read(CHUNK_STEPS) is None
    assert [path.name for path in tmp_path.iterdir()] == ["00000000-0.npy"]  # no temporary file is left


@pytest.mark.parametrize("at", [1, 20, 34])
def test_a_training_that_was_stopped_goes_on_to_the_same_bits(
    at: int, undisturbed: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def stopped(self: Trainer, *batch: Any) -> float:
        if self.done == at:
            raise KeyboardInterrupt
        return step(self, *batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", stopped)
        taught(network(), Counting(), tmp_path / "cache", tmp_path / "run", checkpoint_every=5)
    teacher = Counting()
    net = network(seed=99)
    if at < 5:  # there is no checkpoint yet
        net = network()
    taught(net, teacher, tmp_path / "cache", tmp_path / "run", checkpoint_every=5, resume=True)
    assert same_weights(net, undisturbed)
    assert len(teacher.images) == STEPS - at  # those before are kept, also of a chunk that was not full


def test_resuming_with_another_teacher_is_refused(tmp_path: Path) -> None:
    taught(network(), Counting(), None, tmp_path, steps=20)
    with pytest.raises(InputError, match=r"belongs to another training: images .*taught by"):
        taught(network(), Counting(seed=8), None, tmp_path, steps=20, resume=True)


def killed_at(step: int, cache: Path) -> None:
    """A training that the system ends in the middle; run in a process of its own."""
    take = Trainer.step

    def dying(self: Trainer, *batch: Any) -> float:
        if self.done == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return take(self, *batch)

    Trainer.step = dying  # type: ignore[method-assign]
    taught(network(), Counting(), cache)


def test_a_killed_training_leaves_a_good_cache(undisturbed: Network, tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=killed_at, args=(35, tmp_path))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    teacher = Counting()
    assert same_weights(taught(network(), teacher, tmp_path), undisturbed)
    assert len(teacher.images) == STEPS - CHUNK_STEPS  # the chunk in hand is lost, nothing else


def test_a_full_disk_is_one_line_and_the_training_goes_on(
    undisturbed: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    net = taught(network(), Counting(), tmp_path / "cache", tmp_path / "run")
    assert same_weights(net, undisturbed) and (tmp_path / "run" / "checkpoint.pt").exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line and f"than {tmp_path / 'cache'}" in line
    assert [path.name for path in tmp_path.glob("cache/*/*")] == ["teacher.json"]


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot make the teacher's cache .*file.*Not a directory"):
        taught(network(), Counting(), tmp_path / "file")


@pytest.mark.parametrize("kind", ["pipe", "archive"])
def test_what_is_no_cached_answer_is_asked_again(undisturbed: Network, tmp_path: Path, kind: str) -> None:
    taught(network(), Counting(), tmp_path)
    (first, *_) = sorted(tmp_path.glob("*/*.npy"))
    first.unlink()
    if kind == "pipe":
        os.mkfifo(first)  # whoever opened it would wait for ever
    else:
        with first.open("wb") as file:
            np.savez(file, answers=np.zeros(3))
    teacher = Counting()
    assert same_weights(taught(network(), teacher, tmp_path), undisturbed)
    assert len(teacher.images) >= CHUNK_STEPS


def test_a_cache_tells_what_it_is_of(tmp_path: Path) -> None:
    taught(network(), Counting(), tmp_path, steps=3)
    fields = json.loads(next(tmp_path.glob("*/teacher.json")).read_text())
    assert fields["seed"] == 5 and fields["batch_size"] == 8 and fields["preset"]["resolution"] == 16
    assert len(fields["teacher"]) == 64 and fields["images"] == shades().digest


# ---- with the rest of a recipe


def test_workers_change_nothing(undisturbed: Network, tmp_path: Path) -> None:
    for answered in (STEPS, 0):
        teacher = Counting()
        assert same_weights(taught(network(), teacher, tmp_path, workers=2), undisturbed)
        assert len(teacher.images) == answered


def test_the_teachers_answers_are_divided_as_the_images(tmp_path: Path) -> None:
    losses = {}
    for parts in (1, 4):
        teacher = Counting()
        net = with_fixed_statistics(network())
        result = train(net, None, teacher=soft(teacher), accumulate=parts, dropout=0.0, ema_decay=None, **TAUGHT)
        assert [len(images) for images in teacher.images] == [8] * STEPS  # asked once a step, whatever the parts
        losses[parts] = [row["loss"] for row in result.history]
    assert losses[4] == pytest.approx(losses[1], rel=1e-3)


def test_processes_share_a_teacher(tmp_path: Path) -> None:
    options = {"steps": 40, "sync_bn": True, "lr": 2.0, "distillation": 0.5, "cache": str(tmp_path / "cache")}
    one = run_processes(tmp_path / "one", 1, **options)
    two = run_processes(tmp_path / "two", 2, **options)
    warm = run_processes(tmp_path / "warm", 2, **options)
    assert two["losses"] == pytest.approx(one["losses"], rel=2e-2)
    assert warm["losses"] == two["losses"]
    parts = sorted(path.name for path in tmp_path.glob("cache/*/*.npy"))
    assert parts == ["00000000-0.npy", "00000000-0.npy", "00000000-1.npy",
                     "00000032-0.npy", "00000032-0.npy", "00000032-1.npy"]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mixup": 0.2}, "mixup and cutmix mix the student's own small images; leave that out"),
        ({"cutmix": 1.0}, "mixup and cutmix mix the student's own small images; leave that out"),
        ({"policy": "trivialaugment"}, "the policy trivialaugment moves images by pixels"),
        ({"distillation": 0.0}, "distillation is 0; set it"),
    ],
)
def test_what_a_teacher_cannot_do(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        taught(network(), Counting(), **fields)


def test_only_the_answers_of_a_classifier_are_kept(tmp_path: Path) -> None:
    recipe = replace(RECIPE, distillation=0.5)
    with pytest.raises(InputError, match="only a classifier's answers can be kept"):
        distillation_task(Segment(), soft(Counting(), tmp_path), shades(), PRESET, recipe, 0, open_fabric("cpu"))


def test_a_teacher_of_other_classes() -> None:
    teacher = network(spec=SPEC.resolution(16).classes(4))
    with pytest.raises(InputError, match="the teacher has 4 outputs, the network has 3"):
        taught(network(), teacher)
