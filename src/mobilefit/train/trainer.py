"""A network and what changes it, one step at a time."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from mobilefit.errors import InputError, MobilefitError
from mobilefit.nn.blocks import Row
from mobilefit.train import batchnorm
from mobilefit.train.ema import EMA
from mobilefit.train.optim import learning_rate, make_optimizer, parts
from mobilefit.train.plan import Plan
from mobilefit.train.ranks import align, synchronized, total
from mobilefit.train.recipe import Recipe
from mobilefit.train.task import Objective, Targets


class TrainingDiverged(MobilefitError):
    """The loss or the weights are no longer finite. The last checkpoint is from before that."""

    exit_code = 2


class Trainer:
    """A network, its optimizer and its moving average, one step at a time.

    Args:
        fabric: where and in which precision; launched.
        net: moved to Fabric's device.
        recipe: how to train.
        plan: how long.
        seed: for dropout and mixing.
        objective: the loss; the network is on Fabric's device when it is made.
    """

    def __init__(
        self, fabric: Fabric, net: nn.Module, recipe: Recipe, plan: Plan, seed: int,
        objective: Objective,
    ) -> None:  # fmt: skip
        self.fabric, self.net, self.recipe, self.plan, self.seed = fabric, net, recipe, plan, seed
        self.done = 0
        net.to(fabric.device)  # before the optimizer sees the weights
        self._objective = objective
        self.optimizer = make_optimizer(net, recipe)
        self._rates = [group["lr_scale"] for group in self.optimizer.param_groups]
        compiled: nn.Module = torch.compile(net) if recipe.compile else net  # type: ignore[assignment]
        self._model, self._fabric_optimizer = fabric.setup(compiled, self.optimizer)
        decay = recipe.ema_decay_for(plan.steps)
        self._ema = None if decay is None else EMA(net, decay)

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return learning_rate(self.recipe, self.done, self.plan.steps, self.plan.steps_per_epoch)

    def step(self, images: Tensor, targets: Targets, lr: float | None = None) -> float:
        """Take one step and return the loss before it, the mean over the whole batch of all processes.

        Args:
            images: [n, 3, h, w], this process's part of the batch.
            targets: the task's, for these images.
            lr: in place of the schedule's.

        Raises:
            TrainingDiverged: the loss is not finite; the weights have not moved.
        """
        torch.manual_seed(_mixed(self.seed, self.done, self.fabric.global_rank))  # wherever it was resumed
        rate = self.lr if lr is None else lr
        for group, scale in zip(self.optimizer.param_groups, self._rates):
            group["lr"] = rate * scale
        self.optimizer.zero_grad(set_to_none=True)
        value = self._gradients(self._placed(images), self._moved(targets))
        if not math.isfinite(value):
            raise self.diverged(f"the loss is {value}", rate)
        if self.recipe.clip_norm is not None:
            self.fabric.clip_gradients(
                self._model, self._fabric_optimizer, max_norm=self.recipe.clip_norm,
                error_if_nonfinite=False,
            )  # fmt: skip
        self._fabric_optimizer.step()
        self.done += 1
        if self._ema is not None and self.done % self.recipe.ema_every == 0:
            self._ema.update()
        return value

    def _gradients(self, images: Tensor, targets: Targets) -> float:
        """Gradients of the mean loss over the whole batch of all processes, and that loss."""
        images, targets = self._objective.prepared(images, targets)
        counts = total(self.fabric, *self._objective.counts(targets))
        counts = [max(count, 1) for count in counts]  # a batch may hold nothing: no box, no labelled pixel
        # DDP takes the mean over the processes of what is here their share of the whole.
        shares = torch.tensor([self.fabric.world_size / count for count in counts], device=self.fabric.device)
        sums = []
        share = self.recipe.accumulate
        pieces = list(zip(images.tensor_split(share), _split(targets, share), strict=True))
        for place, (some, theirs) in enumerate(pieces):
            with self.fabric.no_backward_sync(self._model, enabled=place < len(pieces) - 1):
                outputs = self._model(some)
                with self.fabric.autocast():  # for the teacher, whose forward pass is no Fabric's
                    terms = self._objective(outputs, theirs, some)
                self.fabric.backward((terms * shares).sum())
            sums.append(terms.detach().reshape(-1))
        of_all = total(self.fabric, *torch.stack(sums).sum(0).tolist())
        return sum(loss / count for loss, count in zip(of_all, counts, strict=True))

    def _placed(self, images: Tensor) -> Tensor:
        kind = torch.channels_last if self.recipe.channels_last else torch.contiguous_format
        return images.to(self.fabric.device, memory_format=kind, non_blocking=True)

    def _moved(self, targets: Targets) -> Targets:
        if isinstance(targets, tuple):
            return tuple(part.to(self.fabric.device, non_blocking=True) for part in targets)
        return targets.to(self.fabric.device, non_blocking=True)

    def diverged(self, what: str, lr: float | None = None) -> TrainingDiverged:
        """The error that says at which step ``what`` is so, and what to do."""
        epoch, batch = divmod(self.done, self.plan.steps_per_epoch)
        return TrainingDiverged(
            f"{what} at step {self.done + 1} of {self.plan.steps} "
            f"(epoch {epoch + 1}, batch {batch + 1}, learning rate {lr or self.lr:.3g})",
            f"lower the learning rate, e.g. --lr {self.recipe.lr / 3:.2g}",
        )

    def require_finite(self) -> None:
        """See that the weights may be kept: a finite loss can still have had infinite gradients.

        Raises:
            TrainingDiverged: they may not.
        """
        norms = torch._foreach_norm([weight.detach() for weight in self.net.parameters()])
        if not bool(torch.stack(norms).isfinite().all()):
            raise self.diverged("the weights are not finite")

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the network has the weights that it will end with, in every process."""
        align(self.fabric, list(self.net.buffers()))
        if self._ema is not None:
            align(self.fabric, list(self._ema.values.values()))
        with contextlib.nullcontext() if self._ema is None else self._ema.applied():
            yield

    def settle(self) -> None:
        """Leave the averaged weights in the network, if there is an average."""
        if self._ema is not None:
            self._ema.copy_to_network()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs. Schedule, order and random numbers follow from the step."""
        return {
            "step": self.done,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self._ema is None else self._ema.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),  # 16-mixed: the loss's scale
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict` of an equal trainer."""
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self._ema is not None:
            self._ema.load_state_dict(state["ema"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        self.done = int(state["step"])


def _split(targets: Targets, parts: int) -> list[Any]:
    if isinstance(targets, tuple):
        return list(zip(*(_split(each, parts) for each in targets), strict=True))
    return list(targets.tensor_split(parts))


def _mixed(*numbers: int) -> int:
    """One 63-bit seed from some numbers, far apart for neighbours."""
    factors = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
    return sum(number * factor for number, factor in zip(numbers, factors)) % 2**63


@contextlib.contextmanager
def borrowed(net: nn.Module, recipe: Recipe, fabric: Fabric) -> Iterator[None]:
    """A network as a training needs it; modes, formats, rates and random state are given back after."""
    device = fabric.device
    home = next(net.parameters()).device
    modes = [(module, module.training) for module in net.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in net.parameters()]
    cuda = [device] if device.type == "cuda" else []
    several = recipe.sync_bn and fabric.world_size > 1
    with (
        torch.random.fork_rng(cuda), batchnorm.momentum(net, recipe.bn_momentum),
        synchronized(net, several), regularised(net, recipe),
    ):  # fmt: skip
        prepare(net, recipe)
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            net.zero_grad(set_to_none=True)
            for parameter, requires in wanted:
                parameter.requires_grad_(requires)
            net.to(home)
            if recipe.channels_last:
                net.to(memory_format=torch.contiguous_format)


def prepare(net: nn.Module, recipe: Recipe) -> None:
    """Training mode, memory format, and rows that stay as they are.

    Raises:
        InputError: more rows are to stay than there are.
    """
    net.train()
    if recipe.channels_last:
        net.to(memory_format=torch.channels_last)
    if not recipe.freeze:
        return
    places = parts(net)
    if recipe.freeze > len(places) - 2:
        raise InputError(f"freeze is {recipe.freeze}, and the network has {max(0, len(places) - 2)} rows")
    for part in places[: recipe.freeze + 1]:
        part.requires_grad_(False).eval()  # the statistics stay too


@contextlib.contextmanager
def regularised(net: nn.Module, recipe: Recipe) -> Iterator[None]:
    """Within the block dropout and stochastic depth are as the recipe wants them.

    A row is left out with a probability that grows with its place, as timm's builder has it.
    """
    drops = [m for m in net.modules() if isinstance(m, nn.Dropout)] if recipe.dropout is not None else []
    own = [drop.p for drop in drops]
    rows = [module for module in net.modules() if isinstance(module, Row)]
    for drop in drops:
        drop.p = recipe.dropout or 0.0
    for place, row in enumerate(rows):
        row.drop_path = recipe.drop_path * place / len(rows)
    try:
        yield
    finally:
        for drop, p in zip(drops, own, strict=True):
            drop.p = p
        for row in rows:
            row.drop_path = 0.0
