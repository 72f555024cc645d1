"""Detection and segmentation through the one loop: they learn, resume, and divide over processes."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from train.small import RATES, same_weights, with_fixed_statistics
from train.test_ranks import run

from mobilefit.data import Preset
from mobilefit.data.detection import load_detection
from mobilefit.data.masks import IGNORED
from mobilefit.data.segmentation import load_segmentation
from mobilefit.errors import InputError
from mobilefit.nn import Network, copy_weights
from mobilefit.nn.boxes import nearest_anchors, reencode, soft_ssd_loss, spec_anchors, ssd_loss
from mobilefit.tasks.detect import Detect
from mobilefit.tasks.segment import Segment
from mobilefit.train import FitResult, Recipe, SoftTargets, fit, recipe

from .scenes import SIDE, boxes_data, detector_network, masks_data, segmenter_network, write_voc

PRESET = Preset(resolution=SIDE, fit="stretch")
LARGE = 96
"""Side of the images that teachers are shown."""


@dataclass
class World:
    """A task with its data and a way to make its network."""

    task: Any
    data: Any
    make: Any
    recipe: Recipe

    def train(self, net: Network, out: Path | None = None, **options: Any) -> FitResult:
        return fit(
            net, self.data.train, preset=PRESET, task=self.task, out=out, seed=3,
            validation=self.data.test, accelerator="cpu", **{"recipe": self.recipe, **options},
        )  # fmt: skip

    def teacher(self, **options: Any) -> SoftTargets:
        """Another network, not trained: its answers are a function of the images all the same."""
        return soft(larger(self.make(seed=7, **options)))

    def taught(self) -> dict[str, Any]:
        """Options of :meth:`train` with that teacher."""
        return {"teacher": self.teacher(), "recipe": replace(self.recipe, distillation=0.5)}


def larger(net: Network) -> Network:
    """The network for :data:`LARGE` pixels."""
    return copy_weights(net, net.spec.resolution(LARGE))


def soft(net: Network) -> SoftTargets:
    """A network that is shown images of :data:`LARGE` pixels."""
    return SoftTargets(network=net.eval(), preset=Preset(resolution=LARGE, fit="stretch"))


@pytest.fixture(params=["detect", "segment"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    detects = request.param == "detect"
    made = replace(
        recipe(request.param), batch_size=8, lr=0.3, layer_decay=1.0, weight_decay=0.0,
        warmup_epochs=0, augment="flip" if detects else "light", ema_decay=0.8,
    )  # fmt: skip
    data = boxes_data(tmp_path / "data") if detects else masks_data(tmp_path / "data")
    return World(Detect() if detects else Segment(), data, detector_network if detects else segmenter_network, made)


def test_the_score_rises_and_the_history_tells_it(world: World, tmp_path: Path) -> None:
    net = world.make()
    before = world.task.evaluate(net, world.data.test, PRESET).row()[world.task.score]
    result = world.train(net, tmp_path / "run", recipe=replace(world.recipe, epochs=40))
    best = result.best
    assert best is not None and best[world.task.score] > before + 0.25
    assert (tmp_path / "run" / "best.safetensors").exists()
    kept = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert kept[-1][world.task.score] == result.history[-1][world.task.score]
    after = world.task.evaluate(net, world.data.test, PRESET).row()
    assert after[world.task.score] == pytest.approx(result.history[-1][world.task.score])


@pytest.mark.parametrize("taught", [False, True], ids=["alone", "taught"])
def test_an_interrupted_training_resumes_to_the_same_bits(
    taught: bool, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = world.make(), world.make()
    options = {"steps": 9, "checkpoint_every": 4, **(world.taught() if taught else {})}
    expected = world.train(whole, tmp_path / "whole", **options)
    from mobilefit.train import run

    def interrupted(feed: Any, numbers: Any, workers: int, pin: bool = False) -> Any:
        for step in list(numbers)[:6]:
            yield feed(step)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "by_workers", interrupted)
        with pytest.raises(KeyboardInterrupt):
            world.train(stopped, tmp_path / "stopped", **options)
    resumed = world.make()
    found = world.train(resumed, tmp_path / "stopped", resume=True, **options)
    assert same_weights(whole, resumed)
    without = [[{k: v for k, v in row.items() if k not in RATES} for row in r.history] for r in (expected, found)]
    assert without[0] == without[1]


def test_worker_processes_prepare_the_same_batches(world: World) -> None:
    feed = world.task.feed(world.data.train, PRESET, world.recipe, seed=1)
    again = world.task.feed(world.data.train, PRESET, world.recipe, seed=1)
    other = world.task.feed(world.data.train, PRESET, world.recipe, seed=2)
    assert torch.equal(feed(3)[0], again(3)[0])  # without the steps before it
    assert not torch.equal(feed(3)[0], other(3)[0])
    assert sorted(np.concatenate([feed.chosen(2), feed.chosen(3)]).tolist()) == list(range(16))


def test_ranks_share_a_batch_and_see_all_of_it(world: World) -> None:
    whole = world.task.feed(world.data.train, PRESET, world.recipe, seed=1)
    parts = [world.task.feed(world.data.train, PRESET, world.recipe, seed=1, rank=r, ranks=2) for r in (0, 1)]
    assert torch.equal(torch.cat([part(1)[0] for part in parts]), whole(1)[0])


@pytest.mark.parametrize("taught", [False, True], ids=["alone", "taught"])
def test_parts_of_a_batch_are_one_step(taught: bool, world: World, tmp_path: Path) -> None:
    """Whatever number of boxes or labelled pixels is in which part: here these differ from image to image."""
    options: dict[str, Any] = {}
    if isinstance(world.task, Segment):
        world.data = load_segmentation(tmp_path / "data", holdout=0.0, ignore=(0,))
        options["num_classes"] = 2
    one, parts = (with_fixed_statistics(world.make(**options)) for _ in range(2))
    plain = replace(world.recipe, ema_decay=None, optimizer="sgd", lr=0.05, distillation=0.5 * taught)
    teacher = world.teacher(**options) if taught else None
    losses = [
        world.train(net, steps=3, recipe=replace(plain, accumulate=accumulate), teacher=teacher).loss
        for net, accumulate in ((one, 1), (parts, 4))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for key, value in one.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[key], value, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("taught", [False, True], ids=["alone", "taught"])
def test_two_processes_take_a_detectors_steps(taught: bool, tmp_path: Path) -> None:
    """The matches of the two halves of a batch differ; the loss is a mean over all of them."""
    data = str(write_voc(tmp_path / "data"))
    one, two = (
        run(tmp_path / f"{count}", count, script="tasks/ranks_script.py", data=data, taught=taught)["losses"]
        for count in (1, 2)
    )
    assert len(set(one)) == 6
    np.testing.assert_allclose(two, one, rtol=1e-4)


def test_what_a_task_has_not_is_refused(world: World) -> None:
    for knob in ({"mixup": 0.2}, {"balance": "loss"}):
        with pytest.raises(InputError, match="is for classification"):
            world.train(world.make(), recipe=replace(world.recipe, **knob), steps=1)
    taught = world.taught()
    for nobody in (None, taught["teacher"].network):
        with pytest.raises(InputError, match="distils from a teacher, and there is none; give fit SoftTargets"):
            world.train(world.make(), steps=1, **{**taught, "teacher": nobody})
    with pytest.raises(InputError, match="unknown augment 'inception'"):
        replace(world.recipe, augment="inception")


def test_a_network_for_other_classes_is_refused(world: World) -> None:
    net = world.make()
    other = type(net)(net.spec.classes(5))
    with pytest.raises(InputError, match="tells 5 apart"):
        world.train(other, steps=1)


def test_images_without_boxes_are_learnt_from(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "data")
    for path in (root / "Annotations").glob("train*.xml"):
        if int(path.stem.removeprefix("train")) % 2:
            text = path.read_text()
            path.write_text(text[: text.index("<object>")] + "</annotation>")
    data = load_detection(root, holdout=0.0)
    result = fit(
        detector_network(), data.train, preset=PRESET, task=Detect(), steps=4, accelerator="cpu",
        recipe=replace(recipe("detect"), batch_size=8, augment="photo"),
    )  # fmt: skip
    assert np.isfinite(result.loss)


# ---- a teacher


def test_a_network_without_labels_learns_from_a_teacher(world: World) -> None:
    large = world.make()
    world.train(large, recipe=replace(world.recipe, epochs=40))
    net = world.make(1)
    before = world.task.evaluate(net, world.data.test, PRESET).row()[world.task.score]
    teacher = SoftTargets(network=large, preset=PRESET)
    world.train(net, teacher=teacher, recipe=replace(world.recipe, epochs=40, distillation=1.0))
    after = world.task.evaluate(net, world.data.test, PRESET).row()[world.task.score]
    assert after > before + 0.15


def test_the_loss_is_that_of_the_labels_and_of_the_teachers_outputs(world: World, tmp_path: Path) -> None:
    """One step by hand: the labels' loss over what is labelled, the teacher's over what it answers."""
    options: dict[str, Any] = {}
    if isinstance(world.task, Segment):
        world.data = load_segmentation(tmp_path / "data", holdout=0.0, ignore=(0,))  # most pixels have no label
        options["num_classes"] = 2
    teacher = world.teacher(**options)
    share = replace(world.recipe, distillation=0.25, temperature=2.0, label_smoothing=0.0, ema_decay=None)
    images, targets = world.task.feed(world.data.train, PRESET, share, seed=3)(0)
    shown, _ = world.task.feed(world.data.train, teacher.preset, share, seed=3)(0)
    assert shown.shape == (8, 3, LARGE, LARGE)
    student = with_fixed_statistics(world.make(**options))
    with torch.no_grad():
        own, theirs = student(images), teacher.network(shown)
    if isinstance(world.task, Segment):
        theirs = F.interpolate(theirs, SIDE, mode="bilinear", antialias=True)
        labelled = targets != IGNORED
        assert 0.02 < labelled.float().mean() < 0.5
        of_labels = F.cross_entropy(own, targets.where(labelled, -100))
        of_teacher = -4 * ((theirs / 2).softmax(1) * (own / 2).log_softmax(1)).sum(1).mean()
    else:
        small, large = student.spec, teacher.network.spec
        anchors, large_anchors, near = spec_anchors(small), spec_anchors(large), nearest_anchors(small, large)
        encodings = reencode(theirs[0][:, near], large_anchors[near], anchors)
        losses = ssd_loss(*own, *targets, anchors, "sigmoid")
        of_labels = losses.mean
        of_teacher = soft_ssd_loss(*own, encodings, theirs[1][:, near], "sigmoid", temperature=2.0) / losses.matches
    result = world.train(student, steps=1, teacher=teacher, recipe=share)
    assert result.loss == pytest.approx(float(0.75 * of_labels + 0.25 * of_teacher), rel=1e-4)
    assert abs(float(of_labels - of_teacher)) > 0.01


def test_teacher_and_network_see_the_same_part_of_a_picture(world: World) -> None:
    varied = replace(world.recipe, augment="photo")
    small, large = (
        world.task.feed(world.data.train, Preset(resolution=side, fit="stretch"), varied, seed=3)
        for side in (SIDE, 2 * SIDE)
    )
    for step in range(4):
        pixels, shrunk = small(step)[0], F.avg_pool2d(large(step)[0], 2)
        # Blurred, as a segmenter's crops begin at whole pixels of their own images.
        seen, same, mirrored = (F.avg_pool2d(x, 7, 1) for x in (pixels, shrunk, shrunk.flip(3)))
        assert (seen - same).abs().mean() < 0.15 < (seen - mirrored).abs().mean()


def test_a_teacher_that_answers_something_else(world: World) -> None:
    def refused(teacher: SoftTargets, message: str) -> None:
        with pytest.raises(InputError, match=message):
            world.train(world.make(), steps=1, **{**world.taught(), "teacher": teacher})

    refused(world.teacher(num_classes=5), "the teacher tells 5 classes apart, the network [23]; train the teacher")
    other_task = segmenter_network() if isinstance(world.task, Detect) else detector_network()
    refused(soft(larger(other_task)), r"is for --task \w+, the network for \w+; give a teacher of the same task")
    foreign = SoftTargets(network=torch.nn.Conv2d(3, 3, 1), preset=PRESET)
    refused(foreign, "is taught by one of mobilefit's own")
    if isinstance(world.task, Detect):
        refused(soft(larger(detector_network(anchors="torchvision"))),
                "the teacher has 6 maps, torchvision anchors and softmax scores, and the network has 6 maps, tf")  # fmt: skip
        refused(soft(detector_network()), "show it images of that size")  # it is for 64 pixels, and shown 96
