"""NetAdapt on each task, with its own loss and score."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tasks.scenes import (
    BACKBONE,
    SIDE,
    boxes_data,
    detector_network,
    masks_data,
    segmenter_network,
)

from mobilefit.adapt import (
    KNAPSACK_LOG,
    LOG,
    AdaptSettings,
    KnapsackSettings,
    Tools,
    adapt,
    for_shrunk,
    groups,
    removable,
    short_term,
    shrink_by_knapsack,
    tools_for,
)
from mobilefit.arch import NetSpec
from mobilefit.data import ImageSet, Preset
from mobilefit.data.images import ArraySource
from mobilefit.errors import InputError
from mobilefit.nn import Network, build, load_network
from mobilefit.runs import read_jsonl
from mobilefit.tasks.detect import Detect
from mobilefit.tasks.segment import Segment
from mobilefit.train import recalibrated, recipe
from mobilefit.train.batchnorm import batch_norms
from mobilefit.train.classify import Classify
from mobilefit.train.task import Task

PRESET = Preset(resolution=SIDE, fit="stretch")


@dataclass(frozen=True, kw_only=True)
class Case:
    task: Task | None
    network: Callable[[], Network]
    train_set: Any
    held_out: Any
    recipe: str


def milliseconds(spec: NetSpec) -> float:
    return spec.cost().madds / 1e6


def confirm(network: Network) -> float:
    return milliseconds(network.spec)


def tools(case: Case, **changed: Any) -> Tools:
    options = {"steps": 2, "recipe": replace(recipe(case.recipe), batch_size=8), "preset": PRESET, **changed}
    return tools_for(
        case.train_set, case.held_out, task=case.task, latency=milliseconds, confirm=confirm, **options
    )


def classifier() -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(BACKBONE)


@pytest.fixture(scope="module", params=["classify", "detect", "segment"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    if request.param == "classify":
        pixels = np.random.default_rng(0).integers(0, 256, (16, SIDE, SIDE), np.uint8)
        images = ImageSet(ArraySource(pixels, ["noise"] * 16), np.arange(16) % 2)
        return Case(task=None, network=classifier, train_set=images, held_out=images, recipe="fast")
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "detect":
        boxes = boxes_data(root)
        return Case(task=Detect(), network=detector_network, train_set=boxes.train, held_out=boxes.test,
                    recipe="detect")  # fmt: skip
    masks = masks_data(root)
    return Case(task=Segment(), network=segmenter_network, train_set=masks.train, held_out=masks.test,
                recipe="segment")  # fmt: skip


def test_a_network_of_each_task_shrinks_to_its_target(case: Case, tmp_path: Path) -> None:
    seed_network, lines = case.network(), list[str]()
    target = 0.85 * milliseconds(seed_network.spec)
    settings = AdaptSettings(target_ms=target, delta=0.08)
    found = adapt(seed_network, settings, tools(case), tmp_path, say=lines.append)
    assert found.steps >= 1 and found.latency_ms <= target
    rows = read_jsonl(tmp_path / LOG)
    tried = {row["what"].split()[0] for row in rows if row["event"] == "proposal"}
    assert tried <= {group.name for group in (*groups(seed_network.spec), *removable(seed_network.spec))}
    (weights,) = tmp_path.glob("step_*.safetensors")
    adapted = load_network(weights)
    assert adapted.spec == found.spec
    score = tools(case).judge(adapted).score
    assert score == pytest.approx([r for r in rows if r["event"] == "accepted"][-1]["accuracy"])
    assert rows[0].get("quality") == (case.task.score if case.task else None)
    assert all((f"% {case.task.score}; about" if case.task else "%; about") in line for line in lines)
    again = adapt(seed_network, settings, tools(case, steps=None), tmp_path)  # nothing is left to tune
    assert again == found


def test_the_knapsack_shrinks_a_network_of_each_task(case: Case, tmp_path: Path) -> None:
    seed_network = case.network()
    target = 0.85 * milliseconds(seed_network.spec)
    found = shrink_by_knapsack(seed_network, KnapsackSettings(target_ms=target), tools(case, steps=1), tmp_path)
    assert found.latency_ms <= target
    (weights,) = tmp_path.glob("step_*.safetensors")
    assert load_network(weights).spec == found.spec
    rows = read_jsonl(tmp_path / KNAPSACK_LOG)
    priced = {row["what"].split()[0] for row in rows if row["event"] == "price"}
    known = {group.name for group in (*groups(seed_network.spec), *removable(seed_network.spec))}
    assert priced and priced <= known and any(name.startswith(("head", "last")) for name in priced)


def test_tuning_is_by_the_tasks_own_loss(case: Case) -> None:
    """Every part of the head learns something, and the same seed gives the same."""
    network, other, third = case.network(), case.network(), case.network()
    made = tools(case)
    for net, seed in ((network, 3), (other, 3), (third, 4)):
        made.tune(net, seed)
    before, after = case.network().state_dict(), network.state_dict()
    parts = {key.split(".")[1] for key in before if key.startswith("head.")}
    moved = {key.split(".")[1] for key in before if key.startswith("head.") and not torch.equal(before[key], after[key])}
    assert moved == parts
    assert all(torch.equal(value, after[key]) for key, value in other.state_dict().items())
    assert any(not torch.equal(value, after[key]) for key, value in third.state_dict().items())


def test_the_accuracy_is_the_tasks_score(case: Case) -> None:
    made, network = tools(case), case.network()
    assert (made.images, made.quality) == (len(case.held_out), case.task.score if case.task else "val_top1")
    judgement = made.judge(network)
    task = case.task or Classify()
    evaluation = task.evaluate(network, case.held_out, PRESET)
    assert judgement.score == evaluation.row()[task.score] and 0 <= judgement.score <= 1
    if case.task is None:
        assert judgement.losses.tolist() == evaluation.losses.tolist()  # type: ignore[attr-defined]
    else:
        assert judgement.losses == pytest.approx([1 - judgement.score])


def test_a_network_is_judged_with_statistics_of_its_own(case: Case) -> None:
    """Those that are there do not count, the weights stay, and the statistics are those of training images."""
    made, network, stale = tools(case), case.network(), case.network()
    for norm in batch_norms(stale):
        norm.running_mean += 3.0  # type: ignore[operator]
        norm.running_var *= 0.01  # type: ignore[operator]
    assert made.judge(stale).score == made.judge(network).score
    plain = case.network()
    options = replace(recipe(case.recipe), batch_size=8)
    recalibrated(plain, case.train_set, PRESET, short_term(options), case.task)
    before = case.network().state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(value, stale.state_dict()[name]) and torch.equal(value, plain.state_dict()[name]), name
        if name.endswith("running_var"):
            assert not torch.equal(value, before[name]), name
        elif not name.endswith(("running_mean", "num_batches_tracked")):
            assert torch.equal(value, before[name]), name


def test_the_seed_network_keeps_its_statistics_and_the_last_step_has_its_own(case: Case, tmp_path: Path) -> None:
    seed_network = case.network()
    before = copy.deepcopy(seed_network.state_dict())
    settings = AdaptSettings(target_ms=0.9 * milliseconds(seed_network.spec), delta=0.08)
    adapt(seed_network, settings, tools(case), tmp_path)
    assert all(torch.equal(before[name], value) for name, value in seed_network.state_dict().items())
    (weights,) = tmp_path.glob("step_*.safetensors")
    adapted = load_network(weights)
    statistics = {name: value.clone() for name, value in adapted.state_dict().items() if "running_" in name}
    tools(case).judge(adapted)  # sets its statistics
    assert all(torch.allclose(value, adapted.state_dict()[name], rtol=1e-2, atol=1e-3) for name, value in statistics.items())


def test_images_of_another_task_are_refused(tmp_path: Path) -> None:
    boxes = boxes_data(tmp_path / "boxes")
    case = Case(task=Detect(), network=lambda: detector_network(), train_set=boxes.train, held_out=boxes.test,
                recipe="segment")  # fmt: skip
    wrong = Case(task=Segment(), network=case.network, train_set=boxes.train, held_out=boxes.test,
                 recipe="segment")  # fmt: skip
    with pytest.raises(InputError, match="2 classes, and the network tells"):
        tools(wrong).tune(case.network(), 0)


def test_images_without_anything_to_find_are_told(tmp_path: Path) -> None:
    class Blind(Detect):
        def evaluate(self, *given: Any, **options: Any) -> Any:
            found = super().evaluate(*given, **options)
            return replace(found, score=replace(found.score, map50=math.nan))

    boxes = boxes_data(tmp_path / "boxes")
    case = Case(task=Blind(), network=detector_network, train_set=boxes.train, held_out=boxes.test, recipe="detect")
    with pytest.raises(InputError, match="the 8 held-out images have nothing that val_map50"):
        tools(case).judge(detector_network())


def test_the_short_term_recipe_is_a_quarter_of_the_training_ones() -> None:
    for name in ("fast", "detect", "segment"):
        whole, short = recipe(name), short_term(recipe(name))
        assert short.lr == whole.lr / 4 and short.warmup_epochs == 0 and short.ema_decay is None
        assert (short.task, short.augment, short.batch_size) == (whole.task, whole.augment, whole.batch_size)


def test_rows_that_were_cut_learn_as_fast_as_the_others() -> None:
    whole = recipe("finetune")
    assert whole.layer_decay < 1 == for_shrunk(whole).layer_decay == short_term(whole).layer_decay
    assert replace(for_shrunk(whole), layer_decay=whole.layer_decay) == whole


def test_without_steps_nothing_is_tuned(case: Case, tmp_path: Path) -> None:
    made, network = tools(case, steps=0), case.network()
    before = copy.deepcopy(network.state_dict())
    made.tune(network, 3)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    settings = AdaptSettings(target_ms=0.9 * milliseconds(network.spec), delta=0.08)
    found = adapt(network, settings, made, tmp_path)
    last = [row for row in read_jsonl(tmp_path / LOG) if row["event"] == "accepted"][-1]
    assert found.steps >= 1 and last["accuracy"] == pytest.approx(made.judge(load_network(next(tmp_path.glob("step_*")))).score)
