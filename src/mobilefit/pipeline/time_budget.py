"""How ``design`` keeps the time that it is given.

``--minutes`` is a promise. Every stage is planned when it begins, from the clock and from the speed that
the stages before it were seen to run at; what a stage was planned to do is kept in the run's state, so
that an interrupted run does the same. What there is no time for is left out, and that is said.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mobilefit import adapt
from mobilefit.arch import NetSpec
from mobilefit.jobs.plan import MOST_EPOCHS as MOST_EPOCHS
from mobilefit.jobs.plan import batch_size as batch_size
from mobilefit.train import Recipe
from mobilefit.train.recalibration import STATISTICS_IMAGES

DELTAS = (0.01, 0.015, 0.02, 0.03, 0.04, 0.05)
"""The V3 paper's step, and larger ones for when time is short."""
MOST_TUNE_STEPS = 10_000
"""The V3 paper's T."""
MOST_PRETRAINED_EPOCHS = 40
"""From pretrained weights: longer gains nothing on some thousand images (results/training)."""
LEAST_STEPS = 20
LEAST_RUNG_STEPS = 60
"""Of a candidate's short training. After 20 from scratch networks are still at chance (Fashion-MNIST, 48 px)."""
CUT = 1.3
"""About how much more than the least a NetAdapt step cuts, since widths go in steps of eight."""
HELD_IMAGES = 2000
RUNG_EPOCHS = (2.0, 5.0)
"""Of the race's two trainings."""
RUNG_STEPS = (150, 400)
"""Of the same, where those epochs are fewer steps: about what they are on 2,500 images. After two epochs of 500 images
every network is still at chance, and the first one wins."""
RACE_SHARE = 0.25
"""Of the time left when it begins, for both rungs of the race together."""
TEACHER_SHARE = 0.35
"""Of the time left when it begins, for the larger network that teaches, and that shrinking begins from."""
SHRINK_SHARE = 0.35
"""Of the time left when it begins, for NetAdapt."""
LEAST_BESIDE_EPOCHS = 2.0
"""Of the winner and what stands beside it: as many as tell networks apart in the race's first round. With fewer the
winner is trained for longer instead."""
RESERVE = 0.04
"""Of the whole time: kept for what no stage foresees."""
GRACE = 0.1
"""Of the whole time: how much later a run may end before a network beside the winner is left out for it."""
EXPORT_SECONDS = 6.0
"""Of a network's quantizing and measuring, beside its run over the test images."""
FILE_SLOWER = 1.6
"""About what an image of evaluation takes beside the measured latency: reading it, and float32 as well."""
EXPONENT = 0.8
"""An image's training time grows with this power of the multiply-adds: small maps use a core less well.
MobileNetV2's at 48 and 96 px, 2 cores: 3.1 times the time for 4 times the multiply-adds."""
SHARE_OF_A_STEP = 0.3
"""What a teacher's forward pass takes of a training step of the same network."""


@dataclass
class SpeedModel:
    """Seconds that an image takes in training, by the multiply-adds of the network.

    Attributes:
        madds: of the network that the speed is known of, at the size that it was trained at.
        seconds: it took for an image.
    """

    madds: float
    seconds: float

    def image(self, madds: float) -> float:
        """Seconds of an image in training."""
        return float(self.seconds * (madds / self.madds) ** EXPONENT)

    def learn(self, madds: float, seconds: float) -> None:
        """Take a training that was seen in the place of what was known."""
        if seconds > 0:
            self.madds, self.seconds = madds, seconds


def training_madds(spec: NetSpec, recipe: Recipe) -> float:
    """Multiply-adds of a network at the size that a recipe trains it at."""
    height = spec.image_shape[0]
    return spec.cost().madds * (recipe.train_size(height) / height) ** 2


def with_answers(spec: NetSpec, teacher: NetSpec, recipe: Recipe) -> float:
    """How many times as long a training step of a network takes where a teacher answers at each."""
    return float(1 + SHARE_OF_A_STEP * (teacher.cost().madds / training_madds(spec, recipe)) ** EXPONENT)


def epoch_steps(images: int, recipe: Recipe) -> int:
    """Steps of one pass."""
    return max(1, images // batch_size(recipe, images))


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """How long one kind of training is."""

    steps: int
    epochs: float
    seconds: float
    """About how long all of the stage takes."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def for_steps(steps: int, per_epoch: int, seconds: float) -> StagePlan:
    """A stage of that many steps."""
    return StagePlan(steps=steps, epochs=round(steps / per_epoch, 3), seconds=round(seconds, 1))


@dataclass(frozen=True, kw_only=True)
class RungPlan(StagePlan):
    """How long the short trainings of a rung are, and of how many candidates."""

    candidates: int
    """The first so many; fewer than two: there is no time for the rung."""


def rung_steps(number: int, per_epoch: int, full_epochs: float | None) -> int:
    """Steps of each training in the first or second rung, where there is time.

    Args:
        number: 0 or 1.
        full_epochs: of the full trainings, where the user fixed them: few images are not trained on for longer in the race.
    """
    steps = RUNG_STEPS[number]
    if full_epochs is not None:
        steps = min(steps, math.ceil(full_epochs * per_epoch))
    return max(math.ceil(RUNG_EPOCHS[number] * per_epoch), steps)


def race_rung(
    most: int, seconds: float, step_seconds: Sequence[float], per_epoch: int, *,
    evaluation_seconds: float, parallel: int = 1,
) -> RungPlan:  # fmt: skip
    """A rung: ``most`` steps of every candidate, or as many as the seconds allow.

    A candidate that is trained for fewer than :data:`LEAST_RUNG_STEPS` or a quarter of an epoch is judged by its luck:
    where there is no time for so many, the last candidates are left out.

    Args:
        step_seconds: of each candidate, the most promising first.
        evaluation_seconds: of judging one.
        parallel: candidates that are trained at a time.
    """
    least = min(max(LEAST_RUNG_STEPS, per_epoch // 4), most)
    for count in range(len(step_seconds), 1, -1):
        each = makespan(step_seconds[:count], parallel)
        judging = makespan([evaluation_seconds] * count, parallel)
        steps = int((seconds - judging) / max(each, 1e-9))
        if steps >= least:
            steps = min(steps, most)
            return RungPlan(candidates=count, **for_steps(steps, per_epoch, steps * each + judging).to_dict())
    return RungPlan(candidates=min(1, len(step_seconds)), steps=0, epochs=0.0, seconds=0.0)


def makespan(seconds: Sequence[float], parallel: int) -> float:
    """Seconds until all tasks are done, if each worker takes the next one as soon as it is free."""
    free_at = [0.0] * parallel
    for task in seconds:
        heapq.heappush(free_at, heapq.heappop(free_at) + task)
    return max(free_at)


def full_training(
    seconds: float, step_seconds: Sequence[float], per_epoch: int, most_epochs: float,
    epochs: float | None = None,
) -> StagePlan:  # fmt: skip
    """Trainings of the same number of steps that fit the seconds together.

    Args:
        step_seconds: of each training.
        epochs: as many and no others, whatever the time.
    """
    each = sum(step_seconds)
    steps = max(LEAST_STEPS, min(round(most_epochs * per_epoch), int(seconds / max(each, 1e-9))))
    if epochs is not None:
        steps = max(1, round(epochs * per_epoch))
    return for_steps(steps, per_epoch, steps * each)


def beside(seconds: float, step_seconds: float, per_epoch: int, export_seconds: float) -> int:
    """How many networks of the winner's latency there is time to train beside it, :data:`LEAST_BESIDE_EPOCHS` each.

    Args:
        step_seconds: of the winner's training, summed over the seeds; also the others' until they are known.
        export_seconds: of exporting one of them and measuring it, summed over the seeds.
    """
    each = LEAST_BESIDE_EPOCHS * per_epoch * step_seconds + export_seconds
    return max(0, int(seconds / each) - 1)


@dataclass(frozen=True, kw_only=True)
class AdaptPlan:
    """The part of NetAdapt, or of the knapsack, whose steps are its rounds."""

    delta: float
    """NetAdapt: least latency cut of a step, part of the larger network's; knapsack: most of a round."""
    steps: int
    """About how many it takes."""
    proposals: int
    """Networks that are judged in a step, at most."""
    tune_steps: int
    """Of a proposal's fine-tuning (knapsack: of a round's); 0: proposals are judged with new batch norm statistics alone."""
    held_images: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def netadapt(
    seconds: float, spec: NetSpec, *, over: float, step_seconds: float, evaluation_seconds: float,
    held_images: int, per_epoch: int, delta: float | None, tune_steps: int | None,
) -> AdaptPlan:  # fmt: skip
    """NetAdapt within some seconds: the smallest delta whose proposals can be tuned at all.

    Where none can, proposals are not tuned, only given new batch norm statistics: a handful of steps
    teaches less than these do.

    Args:
        over: part of the latency that must go.
        step_seconds: of a training step.
        evaluation_seconds: of the held-out images.
        delta, tune_steps: as the user wants them, whatever the time.
    """
    proposals = len(adapt.groups(spec)) + len(adapt.removable(spec))
    fixed = judging_seconds(evaluation_seconds, held_images)

    def steps_for(cut: float) -> int:
        return math.ceil(over / (CUT * cut))

    def affordable(cut: float) -> int:
        each = seconds / max(1, steps_for(cut) * proposals)
        return int((each - fixed) / max(step_seconds, 1e-9))

    least_cut = delta or next((cut for cut in DELTAS if affordable(cut) >= adapt.LEAST_TUNE_STEPS), DELTAS[-1])
    tune = min(affordable(least_cut), MOST_TUNE_STEPS, 2 * per_epoch)
    tune = tune_steps if tune_steps is not None else tune if tune >= adapt.LEAST_TUNE_STEPS else 0
    return AdaptPlan(
        delta=least_cut, steps=steps_for(least_cut), proposals=proposals, tune_steps=tune,
        held_images=held_images,
        seconds=round(steps_for(least_cut) * proposals * (fixed + tune * step_seconds), 1),
    )  # fmt: skip


def knapsack(
    seconds: float, spec: NetSpec, *, over: float, step_seconds: float, evaluation_seconds: float,
    held_images: int, per_epoch: int, tune_steps: int | None,
) -> AdaptPlan:  # fmt: skip
    """The knapsack within some seconds: each round's network is tuned as long as there is time, two epochs at most.

    Args:
        over, step_seconds, evaluation_seconds, held_images, per_epoch, tune_steps: as of :func:`netadapt`.
    """
    rounds = math.ceil(over / adapt.ROUND_CUT)
    judged = adapt.most_judged(spec)
    gates_seconds = step_seconds * per_epoch  # one pass at most, forwards and backwards
    fixed = rounds * (gates_seconds + judged * judging_seconds(evaluation_seconds, held_images))
    affordable = int((seconds - fixed) / max(rounds * step_seconds, 1e-9))
    tune = max(0, min(affordable, MOST_TUNE_STEPS, 2 * per_epoch)) if tune_steps is None else tune_steps
    return AdaptPlan(
        delta=adapt.ROUND_CUT, steps=rounds, proposals=judged, tune_steps=tune, held_images=held_images,
        seconds=round(fixed + rounds * tune * step_seconds, 1),
    )  # fmt: skip


def judging_seconds(evaluation_seconds: float, held_images: int) -> float:
    """Of a proposal: beside the held-out images it is shown those that its batch norm statistics are of."""
    return 0.1 + evaluation_seconds * (1 + STATISTICS_IMAGES / max(1, held_images))


def export_seconds(networks: int, latency_ms: float, test_images: int) -> float:
    """About how long it takes to quantize, evaluate and measure that many networks."""
    return networks * (EXPORT_SECONDS + FILE_SLOWER * 2e-3 * latency_ms * test_images)


def distilled(recipe: Recipe, share: float) -> Recipe:
    """The recipe of a training that is taught.

    Mixtures of images are left out: the teacher sees whole ones, at its own resolution.
    """
    return replace(recipe, distillation=share, mixup=0.0, cutmix=0.0)


def duration(seconds: float) -> str:
    """Seconds in words."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
