"""Pruners that `benchmarks.design` compares with: Torch-Pruning, and FastNAS of NVIDIA's Model Optimizer.

Both prune torchvision's MobileNetV2 with our trained weights; what is left is read back as a network of ours that
gives the same logits. They are no dependencies of this package, run in this process, and want a folder of their own:

    pip install --no-deps --target build/pruning -r benchmarks/requirements-pruning.txt
    PYTHONPATH=build/pruning python -m benchmarks.design PHOTOS mobilenet_v2=FILE --only torch-pruning fastnas
"""

from __future__ import annotations

import importlib.util
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from mobilefit.arch import NetSpec
from mobilefit.data import ClassificationData, Preset
from mobilefit.jobs.kinds import KINDS
from mobilefit.nn import Network
from mobilefit.nn.weights import trained
from mobilefit.train import Recipe, evaluate, recalibrate_bn
from mobilefit.train.recalibration import calibration_batches

CLASSIFY = KINDS["classify"]
DIVISOR = 8
"""Widths are multiples of it."""
STEPS, PRUNED = 100, 0.9
"""Of Torch-Pruning's schedule: steps, and the share of channels that is gone after the last one."""
FLOPS = range(90, 9, -1)
"""FastNAS's constraints, per cent of the network's."""

Smaller = Sequence[Callable[[], Network]]
"""Makes ever smaller networks."""


def torch_pruning(network: Network, data: ClassificationData, preset: Preset, folder: Path) -> Smaller:
    """The network after every step of Torch-Pruning (Fang et al., arXiv 2301.12900; isomorphic: 2407.04616).

    Before each step come the gradients of the loss on 512 training images; nothing is trained in between.

    Args:
        network: a trained MobileNetV2.
        preset: how images become its input.
        folder: not used.
    """
    import torch_pruning as tp

    theirs, recipe = as_torchvision(network), _recipe(data)
    pruner = tp.BasePruner(
        theirs, torch.zeros(1, 3, *network.spec.image_shape), tp.importance.GroupTaylorImportance(),
        global_pruning=True, isomorphic=True, pruning_ratio=PRUNED, max_pruning_ratio=0.7, round_to=DIVISOR,
        iterative_steps=STEPS, ignored_layers=[theirs.classifier],
    )  # fmt: skip
    steps = []
    for _ in range(STEPS):
        theirs.zero_grad()
        for images, labels in calibration_batches(data.train, preset, recipe):
            functional.cross_entropy(theirs(images), labels).backward()  # type: ignore[no-untyped-call]
        pruner.step()
        steps.append(from_torchvision(theirs, network.spec))
    return [partial(_itself, step) for step in steps]


def _itself(network: Network) -> Network:
    return network


def fastnas(network: Network, data: ClassificationData, preset: Preset, folder: Path) -> Smaller:
    """What FastNAS finds for falling limits of FLOPs, each by a search of its own.

    The score is the top-1 on held-out images with batch norm statistics of 512 training images. (FastNAS would take
    them itself, but only of 50 batches or more: given fewer, it warns and takes none.)

    Args:
        network: a trained MobileNetV2.
        preset: how images become its input.
        folder: the network's own; keeps the scores of single widths, which all limits share and which take most of
            the time.
    """
    statistics = [images for images, _ in calibration_batches(data.train, preset, _recipe(data))]

    def score(theirs: nn.Module) -> float:
        recalibrate_bn(theirs, statistics)
        return evaluate(theirs, data.holdout, preset).top1

    @cache
    def within(percent: int) -> Network:
        import modelopt.torch.prune as mtp

        config = mtp.fastnas.FastNASConfig()
        config["nn.Conv2d"]["*"]["channel_divisor"] = DIVISOR
        for layer in ("nn.BatchNorm2d", "nn.Linear"):
            config[layer]["*"]["feature_divisor"] = DIVISOR
        pruned, _ = mtp.prune(
            as_torchvision(network), mode=[("fastnas", config)], constraints={"flops": f"{percent}%"},
            dummy_input=torch.zeros(1, 3, *network.spec.image_shape),
            config={"score_func": score, "checkpoint": str(folder / "fastnas.pth"), "verbose": False},
        )  # fmt: skip
        recalibrate_bn(pruned, statistics)  # they are of whichever widths were scored last
        return from_torchvision(pruned, network.spec)

    return [partial(within, percent) for percent in FLOPS]


PRUNERS = {"torch-pruning": torch_pruning, "fastnas": fastnas}
MODULES = {"torch-pruning": "torch_pruning", "fastnas": "modelopt"}


def check_installed(method: str) -> None:
    """Exit with the commands that install a pruner where it is missing."""
    if method in MODULES and importlib.util.find_spec(MODULES[method]) is None:
        raise SystemExit(f"there is no {MODULES[method]} for '{method}'; install it first\n\n{__doc__}")


def first_within(smaller: Smaller, share: Callable[[NetSpec], float], budget: float) -> Network:
    """The largest network whose share is at most the budget, found by bisection: the shares fall."""
    index = bisect_left(smaller, True, key=lambda make: share(make().spec) <= budget)
    if index == len(smaller):
        raise SystemExit(f"no pruned network is within {budget:.0%}; the smallest takes {share(smaller[-1]().spec):.1%}")
    return smaller[index]()


def _recipe(data: ClassificationData) -> Recipe:
    """Whose batch size and augmentation the images have that decide about channels."""
    return CLASSIFY.recipe(None, "pretrained", data)


# ---- to torchvision and back


def as_torchvision(network: Network) -> nn.Module:
    """torchvision's MobileNetV2 with the weights of ours.

    Raises:
        AssertionError: it gives other logits: the network is another one, or is padded as TensorFlow does.
    """
    from torchvision.models import mobilenet_v2

    theirs: nn.Module = mobilenet_v2(num_classes=network.spec.head.num_classes)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), network.state_dict().values(), strict=True)))
    _assert_same(theirs.eval(), network.eval(), network.spec)
    return theirs


def from_torchvision(theirs: nn.Module, base: NetSpec) -> Network:
    """A network of ours with the widths and weights of a pruned MobileNetV2 of torchvision.

    Args:
        base: the spec before pruning.

    Raises:
        AssertionError: it would give other logits.
    """
    weights = trained(Network(base), theirs.state_dict())
    blocks = tuple(  # widths that happen to become equal make no residual
        block if before.has_residual(inputs) else replace(block, skip="none")
        for block, before, inputs in zip(weights.spec.blocks, base.blocks, base.widths)
    )
    network = Network(replace(weights.spec, name=f"{base.name}_pruned", blocks=blocks)).eval()
    network.load_state_dict({key: value.clone() for key, value in weights.state.items()})
    _assert_same(network, theirs.eval(), base)
    return network


@torch.no_grad()
def _assert_same(network: nn.Module, other: nn.Module, spec: NetSpec) -> None:
    images: Tensor = torch.randn(2, 3, *spec.image_shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(images), other(images), rtol=1e-4, atol=1e-4)
