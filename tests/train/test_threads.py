"""How many threads a training uses: on a simulated machine, and that the loop carries it out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mobilefit.cores import CoreUsage
from mobilefit.errors import InputError
from mobilefit.train import loop
from mobilefit.train import threads as module
from mobilefit.train.threads import AdaptiveThreads, ThreadTuner
from mobilefit.train.trainer import Trainer

from .small import PRESET, RECIPE, STEPS, network, rows, same_weights, shades, train

BATCH = 32
QUIET = {2: 350.0, 1: 190.0}
ONE_BUSY = {2: 110.0, 1: 190.0}
THREE_BUSY = {2: 3.0, 1: 92.0}
"""Images a second by the number of threads: V3-Small at 96 px on two cores, of which others take none, one or more."""
OTHERS = {id(QUIET): {2: 0.05, 1: 0.05}, id(ONE_BUSY): {2: 0.8, 1: 1.0}, id(THREE_BUSY): {2: 1.2, 1: 1.5}}
Load = dict[int, float]


@dataclass
class Machine:
    """A machine with a speed for each number of threads; time passes in steps alone."""

    tuner: ThreadTuner
    counts: bool = True
    """Whether it tells what others take."""
    noise: float = 0.08
    cores: int = 2
    seconds: float = 0.0
    images: int = 0
    count_log: list[tuple[float, int]] = field(default_factory=list)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def run(self, load: Load, seconds: float) -> float:
        """Train for a while; images a second."""
        images, began = self.images, self.seconds
        while self.seconds < began + seconds:
            threads = self.tuner.threads
            taken = BATCH / load[threads] * self.random.uniform(1 - self.noise, 1 + self.noise)
            usage = CoreUsage(cores=self.cores, others=OTHERS[id(load)][threads]) if self.counts else None
            self.images, self.seconds = self.images + BATCH, self.seconds + taken
            if self.tuner.step(BATCH, taken, lambda usage=usage: usage) != threads:
                self.count_log.append((self.seconds, self.tuner.threads))
        return (self.images - images) / (self.seconds - began)


@pytest.fixture(params=[True, False], ids=["ticks", "no ticks"])
def machine(request: pytest.FixtureRequest) -> Machine:
    return Machine(ThreadTuner(most=2, threads=2), counts=request.param)


def test_a_quiet_machine_keeps_its_speed(machine: Machine) -> None:
    fixed = Machine(ThreadTuner(most=2, threads=2)).run(QUIET, 600.0)
    assert machine.run(QUIET, 600.0) >= 0.985 * fixed
    assert machine.tuner.threads == 2


def test_a_quiet_machine_that_counts_ticks_keeps_its_bits() -> None:
    machine = Machine(ThreadTuner(most=2, threads=2), noise=0.3)
    machine.run(QUIET, 3600.0)
    assert machine.count_log == []


@pytest.mark.parametrize(("load", "of_quiet"), [(ONE_BUSY, 0.45), (THREE_BUSY, 0.2)])
def test_load_that_comes_leaves_one_thread_and_load_that_goes_away_brings_back_both(
    machine: Machine, load: Load, of_quiet: float
) -> None:
    machine.run(QUIET, 20.0)
    assert machine.run(load, 60.0) >= of_quiet * QUIET[2]
    assert machine.tuner.threads == 1
    assert machine.run(load, 600.0) >= 0.96 * load[1]
    machine.run(QUIET, 10.0 if machine.counts else 70.0)
    assert machine.run(QUIET, 60.0) >= 0.97 * QUIET[2]
    assert machine.tuner.threads == 2


@pytest.mark.parametrize(("load", "seconds"), [(ONE_BUSY, 5.0), (THREE_BUSY, 15.0)])
def test_load_from_the_start_is_noticed_where_ticks_are_counted(load: Load, seconds: float) -> None:
    machine = Machine(ThreadTuner(most=2, threads=2))
    machine.run(load, seconds)
    assert machine.tuner.threads == 1
    assert machine.run(load, 60.0) >= 0.98 * load[1]


def test_a_training_that_began_with_fewer_threads_hardly_ever_tries_more_beside_load() -> None:
    machine = Machine(ThreadTuner(most=2, threads=1))
    assert machine.run(THREE_BUSY, 590.0) >= 0.98 * THREE_BUSY[1] and machine.count_log == []
    machine.run(THREE_BUSY, 1200.0)
    assert 2 <= len(machine.count_log) <= 4 and machine.tuner.threads == 1


def test_other_work_of_low_priority_does_not_keep_a_training_to_one_thread_for_ever() -> None:
    machine, yielding = Machine(ThreadTuner(most=2, threads=1)), {2: 330.0, 1: 190.0}
    OTHERS[id(yielding)] = {2: 0.1, 1: 1.0}
    machine.run(yielding, 620.0)
    assert machine.tuner.threads == 2


def test_load_from_the_start_is_noticed_by_a_blind_trial_where_they_are_not() -> None:
    machine = Machine(ThreadTuner(most=2, threads=2), counts=False)
    machine.run(ONE_BUSY, 65.0)
    assert machine.tuner.threads == 1


def test_one_step_beside_three_busy_processes_is_enough(machine: Machine) -> None:
    machine.run(QUIET, 10.3)
    began = machine.seconds
    machine.run(THREE_BUSY, 0.1)  # the step that is under way
    assert machine.tuner.threads == 1 and machine.seconds - began < 13


def test_trials_in_vain_take_little_time(machine: Machine) -> None:
    """A machine that is crowded, and where fewer threads are no help."""
    crowded = {2: 200.0, 1: 100.0}
    OTHERS[id(crowded)] = {2: 1.0, 1: 1.0}
    assert machine.run(crowded, 600.0) >= 0.975 * crowded[2]
    assert machine.tuner.threads == 2


def test_load_that_comes_and_goes_every_second_does_no_harm(machine: Machine) -> None:
    fixed, images, seconds = 0.0, 0.0, 0.0
    for number in range(400):
        load = ONE_BUSY if number % 2 else QUIET
        before = machine.seconds
        images += machine.run(load, 1.0) * (machine.seconds - before)
        seconds += machine.seconds - before
        fixed += load[2] / 400
    assert images / seconds >= 0.8 * fixed


def test_one_long_step_changes_nothing_for_long(machine: Machine) -> None:
    machine.run(QUIET, 10.0)
    machine.tuner.step(BATCH, 8.0, lambda: CoreUsage(cores=2, others=0.0) if machine.counts else None)
    assert not (machine.counts and machine.tuner.threads == 1)
    machine.run(QUIET, 110.0)
    assert machine.tuner.threads == 2


def test_of_many_cores_as_many_are_left_as_others_take() -> None:
    def rate(threads: int, busy: int) -> float:
        return 20.0 * threads if threads <= 16 - busy else 20.0 * threads / 3

    tuner = ThreadTuner(most=16, threads=16)

    def run(busy: int, seconds: float) -> None:
        passed = 0.0
        while passed < seconds:
            others = busy if tuner.threads + busy <= 16 else 16 * busy / (tuner.threads + busy)
            usage = CoreUsage(cores=16, others=others)
            passed += BATCH / rate(tuner.threads, busy)
            tuner.step(BATCH, BATCH / rate(tuner.threads, busy), lambda usage=usage: usage)

    run(0, 10.0)
    assert tuner.threads == 16
    run(1, 5.0)
    assert tuner.threads == 15
    run(5, 20.0)
    assert tuner.threads == 11
    run(0, 10.0)
    assert tuner.threads == 16


def test_slow_steps_are_measured_one_by_one() -> None:
    machine = Machine(ThreadTuner(most=2, threads=2))
    slow = {2: BATCH / 9.0, 1: BATCH / 5.0}
    OTHERS[id(slow)] = {2: 0.8, 1: 1.0}
    machine.run(slow, 19.0)
    assert machine.tuner.threads == 1


# ---- with torch


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads that nobody has asked for, on a machine that looks quiet at first."""
    for name in module.USER_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "_last_count", (float("-inf"), 0))
    monkeypatch.setattr(module, "recent_usage", lambda: CoreUsage(cores=2, others=0.0))
    monkeypatch.setattr(module.CoreMeter, "read", lambda _: CoreUsage(cores=2, others=0.0))
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2  # whatever a test has done
    monkeypatch.undo()
    torch.set_num_threads(1)


def busy(monkeypatch: pytest.MonkeyPatch, others: float = 1.0) -> None:
    monkeypatch.setattr(module.CoreMeter, "read", lambda _: CoreUsage(cores=2, others=others))


def steps(adaptive: AdaptiveThreads, load: Load, seconds: float) -> list[int]:
    """Steps as long as on a machine with that load; no time passes. The number of threads after each change."""
    passed, counts = 0.0, [torch.get_num_threads()]
    while passed < seconds:
        taken = BATCH / load[torch.get_num_threads()]
        passed += taken
        adaptive.after_step(BATCH, taken)
        if torch.get_num_threads() != counts[-1]:
            counts.append(torch.get_num_threads())
    return counts[1:]


@pytest.mark.usefixtures("two_threads")
def test_torch_gets_the_threads_and_the_old_number_back(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    with AdaptiveThreads(report=lines.append) as adaptive:
        assert steps(adaptive, QUIET, 5.0) == [] and adaptive.count == 2 and not lines
        busy(monkeypatch)
        # The load came within a window: one thread may be tried twice.
        assert steps(adaptive, ONE_BUSY, 5.0) in ([1], [1, 2, 1]) and adaptive.count == 1
    assert lines == ["other work takes cores: training with 1 of 2 threads"]
    assert torch.get_num_threads() == 2
    with AdaptiveThreads() as following:  # begins as the one before has ended
        assert torch.get_num_threads() == following.count == 1


@pytest.mark.usefixtures("two_threads")
def test_trainings_too_short_to_measure_do_not_pass_on_a_first_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "recent_usage", lambda: CoreUsage(cores=2, others=1.0))
    with AdaptiveThreads() as adaptive:
        steps(adaptive, ONE_BUSY, 0.3)
        assert adaptive.count == 1
    monkeypatch.setattr(module, "recent_usage", lambda: CoreUsage(cores=2, others=0.0))
    with AdaptiveThreads() as adaptive:
        assert adaptive.count == 2


@pytest.mark.usefixtures("two_threads")
def test_the_old_number_comes_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    busy(monkeypatch)
    with pytest.raises(RuntimeError), AdaptiveThreads() as adaptive:
        steps(adaptive, ONE_BUSY, 5.0)
        raise RuntimeError
    assert torch.get_num_threads() == 2
    with AdaptiveThreads():  # the next one may adapt again
        assert not module._tuning.acquire(blocking=False)
    assert module._tuning.acquire(blocking=False)
    module._tuning.release()


@pytest.mark.usefixtures("two_threads")
def test_a_training_within_another_leaves_the_number_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    busy(monkeypatch)
    with AdaptiveThreads() as outer:
        with AdaptiveThreads() as inner:
            assert steps(inner, ONE_BUSY, 5.0) == [] and inner.count == 2
        steps(outer, ONE_BUSY, 5.0)
        with AdaptiveThreads(2):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 1


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("reason", ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "number", "adapt"])
def test_what_switches_it_off(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    busy(monkeypatch)
    if reason.isupper():
        monkeypatch.setenv(reason, "2")
    options: dict[str, Any] = {"number": {"number": 2}, "adapt": {"adapt": False}}.get(reason, {})
    with AdaptiveThreads(**options) as adaptive:
        assert steps(adaptive, ONE_BUSY, 5.0) == [] and adaptive.count == 2


@pytest.mark.usefixtures("two_threads")
def test_with_one_thread_nothing_looks_at_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def look() -> None:
        raise AssertionError("it was looked at")

    monkeypatch.setattr(module, "recent_usage", look)
    torch.set_num_threads(1)
    with AdaptiveThreads() as adaptive:
        assert steps(adaptive, ONE_BUSY, 5.0) == [] and adaptive.count == 1
    torch.set_num_threads(2)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("usage", "count"),
    [
        (CoreUsage(cores=2, others=0.6), 2),
        (CoreUsage(cores=2, others=0.9), 1),
        (CoreUsage(cores=2, others=2.0), 1),
        (CoreUsage(cores=2, others=2.0, source="loadavg"), 2),  # it may be this process itself
        (None, 2),
    ],
)
def test_a_training_beside_other_work_begins_with_fewer_threads(
    usage: CoreUsage | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "recent_usage", lambda: usage)
    with AdaptiveThreads() as adaptive:
        assert torch.get_num_threads() == adaptive.count == count


@pytest.mark.parametrize("number", [0, -1])
def test_a_number_that_is_none(number: int) -> None:
    with pytest.raises(InputError, match=f"threads is {number}, must be 1 or more"):
        AdaptiveThreads(number)


# ---- in a training


@pytest.fixture
def counted_threads(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads by torch's word alone: on a busy machine two real ones take minutes for a few steps."""
    counts = [torch.get_num_threads()]
    torch.set_num_threads(1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: counts[-1])
    monkeypatch.setattr(torch, "set_num_threads", counts.append)


def changing(monkeypatch: pytest.MonkeyPatch, changes: dict[int, int]) -> None:
    """The tuner changes the number of threads after these steps."""
    calls = iter(range(1, 10_000))

    def step(self: ThreadTuner, *_: Any) -> int:
        self.threads = changes.get(next(calls), self.threads)
        return self.threads

    monkeypatch.setattr(ThreadTuner, "step", step)


@pytest.mark.usefixtures("counted_threads")
def test_the_history_says_which_steps_had_how_many_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    changing(monkeypatch, {7: 1, 20: 2})
    threads: list[int] = []
    step = Trainer.step

    def counted(self: Trainer, *batch: Any) -> float:
        threads.append(torch.get_num_threads())
        return step(self, *batch)

    monkeypatch.setattr(Trainer, "step", counted)
    result = train(network(), tmp_path)
    assert threads == [2] * 7 + [1] * 13 + [2] * 10
    assert result.thread_counts == ((0, 2), (7, 1), (20, 2))
    assert {row["step"]: row["threads"] for row in rows(tmp_path)}[12] == 1
    assert rows(tmp_path)[-1]["threads"] == 2


@pytest.mark.usefixtures("counted_threads")
def test_a_resumed_training_remembers_the_changes_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    changing(monkeypatch, {7: 1})
    with monkeypatch.context() as patch:
        step = Trainer.step

        def interrupted(self: Trainer, *batch: Any) -> float:
            if self.done == 12:
                raise KeyboardInterrupt
            return step(self, *batch)

        patch.setattr(Trainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(network(), tmp_path, checkpoint_every=5)
    changing(monkeypatch, {})
    result = train(network(), tmp_path, checkpoint_every=5, resume=True)
    assert result.thread_counts == ((0, 2), (7, 1), (10, 2)) and result.steps == STEPS


@pytest.mark.usefixtures("two_threads")
def test_a_fixed_number_gives_the_bits_of_that_number() -> None:
    fixed, alone = network(), network()
    assert train(fixed, threads=1).thread_counts == ((0, 1),)
    torch.set_num_threads(1)
    assert train(alone).thread_counts == ((0, 1),)
    torch.set_num_threads(2)
    assert same_weights(fixed, alone)


@pytest.mark.usefixtures("counted_threads")
@pytest.mark.parametrize("number", [1, None])
def test_a_stepper_changes_the_number_in_its_steps_alone(
    number: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    changing(monkeypatch, {2: 1})
    threads: list[int] = []
    step = Trainer.step

    def counted(self: Trainer, *batch: Any, **options: Any) -> float:
        threads.append(torch.get_num_threads())
        return step(self, *batch, **options)

    monkeypatch.setattr(Trainer, "step", counted)
    stepper = loop.Stepper(
        network(), shades(), preset=PRESET, recipe=RECIPE, steps=10, accelerator="cpu", threads=number
    )
    for _ in range(4):
        stepper.step()
        assert torch.get_num_threads() == 2
    assert threads == ([1, 1, 1, 1] if number else [2, 2, 1, 1]) and stepper.threads == 1


@pytest.mark.parametrize(
    ("device", "processes", "compiled", "adapts"),
    [("cpu", 1, False, True), ("cuda", 1, False, False), ("cpu", 2, False, False), ("cpu", 1, True, False)],
)
def test_only_one_process_on_a_cpu_without_compiled_kernels_adapts(
    device: str, processes: int, compiled: bool, adapts: bool
) -> None:
    fabric: Any = SimpleNamespace(device=torch.device(device), world_size=processes)
    recipe: Any = SimpleNamespace(compile=compiled)
    assert loop._may_adapt(recipe, fabric) is adapts
