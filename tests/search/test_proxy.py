"""The proxy task: short trainings from scratch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mobilefit.arch import NetSpec
from mobilefit.data import ImageSet
from mobilefit.errors import InputError
from mobilefit.search import Proxy, ProxyTask

from .small import RECIPE, spec_of, task, trials


def test_learns_and_more_steps_learn_more() -> None:
    short, long = (task(steps=steps).accuracy(spec_of(3)) for steps in (1, 60))
    assert long > 0.8 > 0.6 > short  # chance is a third


def test_the_same_network_has_the_same_accuracy_whatever_came_before() -> None:
    proxy = Proxy(task(steps=45))
    state = torch.random.get_rng_state()
    alone = {o.number: o.accuracy for o in proxy.evaluate(trials(4)[2:])}
    together = {o.number: o.accuracy for o in proxy.evaluate(trials(4))}
    assert alone == {2: together[2], 3: together[3]}
    assert len(set(together.values())) > 1
    assert torch.random.get_rng_state().equal(state)
    other = {o.number: o.accuracy for o in Proxy(task(steps=45, seed=4)).evaluate(trials(4))}
    assert other != together


def test_it_is_scored_on_the_images_that_were_held_out() -> None:
    good = task(steps=60)
    held = good.held_out
    wrong = ImageSet(held._source, (held.labels + 1) % 3)
    assert replace(good, held_out=wrong).accuracy(spec_of(3)) < 0.2 < 0.8 < good.accuracy(spec_of(3))


class Crashing(ProxyTask):
    """Cannot train the second network."""

    def accuracy(self, spec: NetSpec) -> float:
        if spec.id == spec_of(1).id:
            raise RuntimeError("out of memory\nand more")
        return 0.5


def test_a_crash_and_a_divergence_are_failed_outcomes() -> None:
    found = list(Proxy(task(kind=Crashing)).evaluate(trials(3)))
    assert [(o.number, o.accuracy, o.error) for o in found] == [
        (0, 0.5, None), (1, None, "RuntimeError: out of memory"), (2, 0.5, None),
    ]  # fmt: skip
    diverging = replace(task(), recipe=replace(RECIPE, lr=1e30))
    (outcome,) = Proxy(diverging).evaluate(trials(1))
    assert outcome.accuracy is None and "TrainingDiverged: the " in str(outcome.error)


def test_labels_beyond_the_network_s_outputs_are_the_user_s_problem() -> None:
    two = [replace(t, spec=t.spec.classes(2)) for t in trials(1)]
    with pytest.raises(InputError, match="label 2 among the images"):
        list(Proxy(task()).evaluate(two))
