"""One network with shared weights that holds every network of a space (single-path weight sharing).

A *path* is a network of the space whose weights are slices of the shared ones: the layers of a place
share their tensors whatever their width, expansion or activation, and a small kernel is the middle of
a large one. A step trains the weights of one path. So the search pays for one training, and a network
is scored by an evaluation alone (as in TuNAS, arXiv 2008.06120, from which the warm-up before the
first trial and the scoring with the batch's own statistics are taken as well).

Random paths from the first step on would teach the weights nothing for hundreds of steps: each path
undoes the last one's. So the warm-up begins on one wide path, the *anchor*, and every decision leaves
it with a probability that grows from 0 to 1 (once-for-all networks, arXiv 1908.09791, likewise begin
with the largest network).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from mobilefit.arch import NetSpec
from mobilefit.data import ImageSet, Preset, batches
from mobilefit.errors import InputError
from mobilefit.nn import Network
from mobilefit.search.evaluate import Evaluator, Outcome, Trial, outcome
from mobilefit.search.space import CHOICES, Space, expansion
from mobilefit.search.strategy import Tokens
from mobilefit.train import Recipe, Stepper, fit

SKELETONS = 512
"""Networks without weights that are kept for the next time."""
SPREADING = 0.8
"""Part of the warm-up in which the decisions leave the anchor."""
RATE = 0.3
"""Of the recipe's learning rate: at the whole rate, paths undo each other's steps (after 240 steps on
Fashion-MNIST random paths had 51 % on held-out images with 0.3, 22 % with 1.0)."""
SCORE_IMAGES = 512
"""Held-out images that every trial is scored on, the same ones for all: two paths then differ by what
they are, not by which images they met. All of them where there are no more."""
SCORE_BATCH = 256
"""Images whose statistics a path is normalised with."""

Batch = tuple[Tensor, Tensor]


class Supernet(nn.Module):
    """The shared weights: ``[N, 3, H, W]`` to logits ``[N, k]`` along a path.

    Args:
        space: the networks that it holds.
        seed: of the initial weights, and of nothing else: random paths are drawn from torch's global
            random state, which the training loop sets at every step.

    Raises:
        InputError: the space is of detectors or segmenters.
    """

    def __init__(self, space: Space, seed: int = 0) -> None:
        super().__init__()
        _require_classifiers(space)
        self.space = space
        self.path: Tokens | None = None
        """The path that :meth:`forward` takes; ``None``: a random one each time."""
        self.spreading_steps = 1
        """Random paths until every decision has left the anchor."""
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # random paths so far
        self._anchor = anchor(space)
        shapes = _largest(space)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            weights = {_flat(key): nn.Parameter(_initial(key, shape)) for key, shape in shapes.items()}
        self.shared = nn.ParameterDict(weights)
        self._skeletons = functools.lru_cache(maxsize=SKELETONS)(self._skeleton)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, k]`` along :attr:`path`, with the batch's own statistics."""
        return self.along(self._random_path() if self.path is None else self.path, x)

    def _random_path(self) -> Tokens:
        """Each decision random with a probability that grows with the steps, else as the anchor's."""
        share = (int(self.steps) + 1) / self.spreading_steps
        if self.training:
            self.steps += 1
        free = torch.rand(len(self._anchor)) < share
        path = self.space.random(lambda n: int(torch.randint(n, ())))
        return tuple(
            token if leaves else kept for token, kept, leaves in zip(path, self._anchor, free.tolist())
        )

    def along(self, path: Tokens, x: Tensor) -> Tensor:
        """Logits ``[N, k]`` of one network, with the batch's own statistics."""
        skeleton, keys = self._skeletons(path)
        skeleton.train(self.training)
        weights = {name: _part(self.shared[_flat(key)], shape) for name, (key, shape) in keys.items()}
        logits: Tensor = functional_call(skeleton, weights, (x,))
        return logits

    def extract(self, path: Tokens) -> Network:
        """The network of a path by itself, with copies of its weights.

        Its running statistics are those of a fresh network: :func:`~mobilefit.train.recalibrate_bn`.
        """
        network = Network(self.space.spec(path))
        _, keys = self._skeletons(path)
        own = dict(network.named_parameters())
        with torch.no_grad():
            for name, (key, shape) in keys.items():
                own[name].copy_(_part(self.shared[_flat(key)], shape))
        return network.train(self.training)

    def _skeleton(self, path: Tokens) -> tuple[Network, dict[str, tuple[str, tuple[int, ...]]]]:
        """The path's modules without weights, and for each weight its key and shape."""
        network = _bare(self.space.spec(path))
        return network, _keys(self.space, path, network)


def _require_classifiers(space: Space) -> None:
    if space.task != "classify":
        raise InputError(
            f"shared weights are for classification, and the networks of '{space.name}' are to {space.task}",
            "evaluate by the proxy: a short training of each",
        )


def _bare(spec: NetSpec) -> Network:
    """A network without storage whose batch norms know no running statistics."""
    with torch.device("meta"):
        network = Network(spec)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return network


def _keys(space: Space, path: Sequence[int], network: Network) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Where the weights of a path lie: for each parameter's name, the shared key and its own shape."""
    taken, places = space.chosen(path), space.places(path)
    found = {}
    for name, parameter in network.named_parameters():
        part, _, rest = name.partition(".")
        if part == "head" or rest.startswith("last."):
            key = f"tail.{taken['tail']}.{rest}"
        elif rest.startswith("stem."):
            key = f"stem.{taken['stem']}.{rest}"
        else:
            number, child, inner = rest.removeprefix("blocks.").split(".", 2)
            key = f"{_row_key(network.spec, int(number), places)}.{child}.{inner}"
        found[name] = key, tuple(parameter.shape)
    return found


def _row_key(spec: NetSpec, row: int, places: Sequence[tuple[str, int]]) -> str:
    """Rows of a place that differ in kind share nothing; nor does what is added to an input with what
    stands alone. Bottlenecks share what they have in common, whichever depthwise convolutions they have, as
    in MobileNetV4's search (arXiv 2404.10518, section 4)."""
    block, (where, layer) = spec.blocks[row], places[row]
    kind = "depthwise" if block.op == "inverted" and block.expand is None else block.op
    added = "added" if block.has_residual(spec.widths[row]) else "alone"
    return f"{where}.{layer}.{kind}.{added}"


def _variants(key: str) -> tuple[str, str]:
    """The key of a row's weight where the row's input is added, and where it is not."""
    return key.replace(".alone.", ".added."), key.replace(".added.", ".alone.")


def _part(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The first channels of a shared weight, and the middle of its kernel: a view."""
    starts = [(w - n) // 2 if place >= 2 else 0 for place, (w, n) in enumerate(zip(weight.shape, shape))]
    return weight[tuple(slice(start, start + n) for start, n in zip(starts, shape))]


def anchor(space: Space) -> Tokens:
    """A wide path of the usual kind: bottlenecks, large kernels, squeeze-and-excite, identity."""
    wanted: dict[str, Any] = {"stem": 0, "tail": 0}
    for index, block in enumerate(space.blocks):
        op = max(block.op, key=lambda op: expansion(op) or 0)
        skip = "identity" if "identity" in block.skip else block.skip[0]
        form = (op, max(block.kernel), block.se[-1], skip, max(block.filters), max(block.layers),
                block.act[-1])  # fmt: skip
        wanted |= {f"blocks.{index}.{choice}": value for choice, value in zip(CHOICES, form)}
    return space.taking(wanted)


def _largest(space: Space) -> dict[str, tuple[int, ...]]:
    """Every shared tensor's shape: the largest that any path takes of it."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _extremes(space):
        for key, shape in _keys(space, path, _bare(space.spec(path))).values():
            for variant in _variants(key):
                shapes[variant] = tuple(map(max, shapes.get(variant, shape), shape))
    return shapes


def _extremes(space: Space) -> Iterator[Tokens]:
    """Paths among which each tensor is largest once: widest and deepest, in every form."""
    forms = [list(itertools.product(block.op, block.se)) for block in space.blocks]
    for number in range(max(map(len, forms))):
        wanted: dict[str, Any] = {}
        for index, block in enumerate(space.blocks):
            op, se = forms[index][number % len(forms[index])]
            largest = (op, max(block.kernel), se, block.skip[0], max(block.filters),
                       max(block.layers), block.act[0])  # fmt: skip
            wanted |= {f"blocks.{index}.{c}": value for c, value in zip(CHOICES, largest)}
        for stem, tail in itertools.product(range(len(space.stems)), range(len(space.tails))):
            wanted |= {"stem": stem, "tail": tail}
            yield space.taking(wanted)


def _initial(key: str, shape: tuple[int, ...]) -> Tensor:
    """As :func:`mobilefit.nn.build` begins: Kaiming (fan-out) for convolutions, N(0, 0.01) for linear."""
    weight = torch.empty(shape)
    if len(shape) == 4:
        return nn.init.kaiming_normal_(weight, mode="fan_out")
    if len(shape) == 2:
        return nn.init.normal_(weight, std=0.01)
    ones = key.endswith("norm.weight")
    return nn.init.ones_(weight) if ones else nn.init.zeros_(weight)


def _flat(key: str) -> str:
    return key.replace(".", "/")  # ParameterDict allows no dots


# ---- as an evaluator


@dataclass(frozen=True, kw_only=True)
class SupernetTask:
    """What the shared weights are trained on, and for how long."""

    train_set: ImageSet
    held_out: ImageSet
    """Set apart from training; never the test images."""
    preset: Preset
    recipe: Recipe
    """Its schedule is replaced: a constant rate while warming up, then a cosine to zero."""
    warmup_steps: int
    """Steps along random paths before the first trial."""
    trials: int
    """Of the whole search: each trains one step along its path."""
    seed: int
    folder: Path
    """For the warm-up's checkpoint."""
    label: str | None = None
    """Of the warm-up's progress; ``None``: silent."""


class SharedWeights(Evaluator):
    """Trains the shared weights a step along each trial's path, then scores the path.

    Every trial is scored on the same :data:`SCORE_IMAGES` held-out images. Scores rise as the weights
    learn, so early and late ones cannot be compared: :meth:`rescore` takes all held-out images and the
    final weights.
    """

    name = "supernet"
    depends_on_history = True
    scored_on = "the same images for every trial"

    def __init__(self, space: Space, task: SupernetTask) -> None:
        self.supernet = Supernet(space, task.seed)
        self.supernet.spreading_steps = max(1, round(SPREADING * task.warmup_steps))
        self._task = task
        constant = replace(
            task.recipe, lr=RATE * task.recipe.lr, schedule="exponential", decay=1.0, ema_decay=None
        )
        self._warmup = constant
        self._recipe = replace(constant, schedule="cosine", warmup_epochs=0.0)
        self._stepper: Stepper | None = None
        # In random order, since a batch's own statistics want mixed classes.
        order = np.random.default_rng(task.seed).permutation(len(task.held_out))
        self._held_out = task.held_out.subset(order)
        self._score_batches: list[Batch] = []

    def prepare(self) -> None:
        """The warm-up, from its checkpoint if there is one."""
        task = self._task
        fit(
            self.supernet, task.train_set, preset=task.preset, recipe=self._warmup, seed=task.seed,
            steps=task.warmup_steps, out=task.folder, resume=True, progress=task.label,
            checkpoint_every=max(1, task.warmup_steps // 10),
        )  # fmt: skip
        self._begin()

    def _begin(self) -> None:
        task = self._task
        self._stepper = Stepper(
            self.supernet, task.train_set, preset=task.preset, recipe=self._recipe, steps=task.trials,
            seed=task.seed + 1,
        )  # fmt: skip

    def evaluate(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        """One training step each, and an evaluation on the same images."""
        for trial in trials:
            yield outcome(trial.number, functools.partial(self._one, trial))

    def _one(self, trial: Trial) -> float:
        assert self._stepper is not None, "prepare() comes first"
        self.supernet.path = trial.tokens
        try:
            self._stepper.step()
        finally:
            self.supernet.path = None
        if not self._score_batches:
            self._score_batches = list(self._held(SCORE_IMAGES))
        return self._score(trial.tokens, self._score_batches)[0]

    def _held(self, most: int | None = None) -> Iterator[Batch]:
        """The first ``most`` held-out images, or all, in batches of about one size."""
        images = self._held_out
        if most is not None and len(images) > most:
            images = images.subset(np.arange(most))
        size = math.ceil(len(images) / math.ceil(len(images) / SCORE_BATCH))
        return batches(images, self._task.preset, size, train=False, prefetch=0)

    @torch.no_grad()
    def _score(self, path: Tokens, held: Sequence[Batch]) -> tuple[float, float]:
        """Top-1 and mean cross-entropy (nats) of a path on these batches."""
        right, loss = 0, 0.0
        self.supernet.eval()
        try:
            for images, labels in held:
                logits = self.supernet.along(path, images)
                right += int((logits.argmax(1) == labels).sum())
                loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        finally:
            self.supernet.train()
        count = sum(len(labels) for _, labels in held)
        return right / count, loss / count

    def rescore(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        """Top-1 and loss on all held-out images with the weights as they are."""
        held = list(self._held())
        for trial in trials:
            accuracy, loss = self._score(trial.tokens, held)
            finite = math.isfinite(loss)
            yield Outcome(
                number=trial.number, accuracy=accuracy if finite else None,
                loss=loss if finite else None, error=None if finite else f"the loss is {loss}",
            )

    def state_dict(self) -> dict[str, Any]:
        """The shared weights, the optimizer and the number of steps."""
        assert self._stepper is not None
        return self._stepper.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`; takes the warm-up's place."""
        self._begin()
        assert self._stepper is not None
        self._stepper.load_state_dict(dict(state))
