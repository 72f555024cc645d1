"""Detection and segmentation through the one loop: they learn, resume, and divide over processes."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train.small import RATES, same_weights, with_fixed_statistics
from train.test_ranks import run

from mobilefit.data import Preset
from mobilefit.data.detection import load_detection
from mobilefit.data.segmentation import load_segmentation
from mobilefit.errors import InputError
from mobilefit.nn import Network
from mobilefit.tasks.detect import Detect
from mobilefit.tasks.segment import Segment
from mobilefit.train import FitResult, Recipe, fit, recipe

from .scenes import SIDE, boxes_data, detector_network, masks_data, segmenter_network, write_voc

PRESET = Preset(resolution=SIDE, fit="stretch")


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


def test_an_interrupted_training_resumes_to_the_same_bits(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = world.make(), world.make()
    expected = world.train(whole, tmp_path / "whole", steps=9, checkpoint_every=4)
    from mobilefit.train import run

    def interrupted(feed: Any, numbers: Any, workers: int, pin: bool = False) -> Any:
        for step in list(numbers)[:6]:
            yield feed(step)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "by_workers", interrupted)
        with pytest.raises(KeyboardInterrupt):
            world.train(stopped, tmp_path / "stopped", steps=9, checkpoint_every=4)
    resumed = world.make()
    found = world.train(resumed, tmp_path / "stopped", steps=9, checkpoint_every=4, resume=True)
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


def test_parts_of_a_batch_are_one_step(world: World, tmp_path: Path) -> None:
    """Whatever number of boxes or labelled pixels is in which part: here these differ from image to image."""
    options: dict[str, Any] = {}
    if isinstance(world.task, Segment):
        world.data = load_segmentation(tmp_path / "data", holdout=0.0, ignore=(0,))
        options["num_classes"] = 2
    one, parts = (with_fixed_statistics(world.make(**options)) for _ in range(2))
    plain = replace(world.recipe, ema_decay=None, optimizer="sgd", lr=0.05)
    losses = [
        world.train(net, steps=3, recipe=replace(plain, accumulate=accumulate)).loss
        for net, accumulate in ((one, 1), (parts, 4))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for key, value in one.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[key], value, rtol=1e-4, atol=1e-5, msg=key)


def test_two_processes_take_a_detectors_steps(tmp_path: Path) -> None:
    """The matches of the two halves of a batch differ; the loss is a mean over all of them."""
    write_voc(tmp_path / "data")
    one, two = (
        run(tmp_path / f"{count}", count, script="tasks/ranks_script.py", data=str(tmp_path / "data"))["losses"]
        for count in (1, 2)
    )
    assert len(set(one)) == 6
    np.testing.assert_allclose(two, one, rtol=1e-4)


def test_what_a_task_has_not_is_refused(world: World) -> None:
    for knob in ({"mixup": 0.2}, {"distillation": 0.5}, {"balance": "loss"}):
        with pytest.raises(InputError, match="is for classification"):
            world.train(world.make(), recipe=replace(world.recipe, **knob), steps=1)
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
