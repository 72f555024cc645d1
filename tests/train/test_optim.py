"""Each optimizer against its formula, written out in NumPy, and against the library it comes from."""

from __future__ import annotations

import functools
import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops._utils import split_normalization_params

from mobilefit.arch import FAMILY, Block, ClassifierHead, Conv, NetSpec
from mobilefit.int8 import calibrated
from mobilefit.litert import compile
from mobilefit.nn import Network, build
from mobilefit.train import RECIPES, Recipe
from mobilefit.train.optim import learning_rate, make_optimizer, parts, peak_lr

from .small import network as small_network

STEPS = 1000
SPEC = NetSpec(
    name="tiny",
    input_size=8,
    stem=Conv(out=4, stride=2),
    blocks=(Block(expand=8, out=4, se="v3"),),
    head=ClassifierHead(num_classes=3),
)
BASE = Recipe(epochs=4, batch_size=64, lr=0.1, weight_decay=1e-3)
TESTED = {
    **RECIPES,
    "lamb": replace(BASE, optimizer="lamb", lr=0.005, weight_decay=0.1, schedule="cosine"),
    "lamb that cuts at 0.3": replace(BASE, optimizer="lamb", weight_decay=0.1, clip_norm=0.3),
    "sgd without momentum": replace(BASE, optimizer="sgd", momentum=0.0),
    "rmsprop_tf without momentum": replace(BASE, momentum=0.0),
}


def network() -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(SPEC).double()


@functools.cache
def gradients(count: int) -> np.ndarray:
    """[STEPS, count], in turn far above and far below every epsilon."""
    random = np.random.default_rng(1)
    return random.normal(size=(STEPS, count)) * 10.0 ** (np.arange(STEPS) % 7 - 4)[:, None]


def flat(tensors: list[torch.Tensor]) -> np.ndarray:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).numpy()


def decays(recipe: Recipe, name: str) -> bool:
    """By the names of the parameters, where the code goes by modules and shapes."""
    norm, depthwise = ".norm." in name, name.endswith((".depthwise.conv.weight", ".start.conv.weight"))
    bias = name.endswith(".bias")
    return {
        "weights": not norm and not bias, "not_depthwise": not norm and not bias and not depthwise,
        "not_norms": not norm, "all": True,
    }[recipe.decays]  # fmt: skip


def scale(recipe: Recipe, name: str) -> float:
    below_head = {"backbone.stem": 3, "backbone.blocks.0": 2}
    return recipe.layer_decay ** next((n for key, n in below_head.items() if name.startswith(key)), 0)


class ByHand:
    """All parameters as one vector, moved by the formula of the recipe's optimizer."""

    def __init__(self, net: nn.Module, recipe: Recipe) -> None:
        named = list(net.named_parameters())
        sizes = [parameter.numel() for _, parameter in named]
        self.recipe = recipe
        self.w = flat([parameter for _, parameter in named])
        self.decay = np.repeat([recipe.weight_decay * decays(recipe, name) for name, _ in named], sizes)
        self.scale = np.repeat([scale(recipe, name) for name, _ in named], sizes)
        self.ends = np.cumsum([0, *sizes])
        self.first = np.zeros_like(self.w)  # the momentum
        self.second = np.full_like(self.w, 1.0 if recipe.optimizer == "rmsprop_tf" else 0.0)

    def step(self, g: np.ndarray, rate: float, t: int) -> None:
        """Take step number ``t``, from 1."""
        getattr(self, self.recipe.optimizer)(g, rate * self.scale, t)

    def rmsprop_tf(self, g: np.ndarray, lr: np.ndarray, t: int) -> None:
        """TensorFlow's documentation of ``ApplyRMSProp``."""
        recipe, g = self.recipe, g + self.decay * self.w
        eps = 0.002 if recipe.eps is None else recipe.eps
        self.second = recipe.rho * self.second + (1 - recipe.rho) * g * g
        self.first = recipe.momentum * self.first + lr * g / np.sqrt(self.second + eps)
        self.w = self.w - self.first

    def rmsprop(self, g: np.ndarray, lr: np.ndarray, t: int) -> None:
        g = g + self.decay * self.w
        self.second = 0.9 * self.second + 0.1 * g * g
        self.first = 0.9 * self.first + g / (np.sqrt(self.second) + 0.0316)
        self.w = self.w - lr * self.first

    def sgd(self, g: np.ndarray, lr: np.ndarray, t: int) -> None:
        mu, g = self.recipe.momentum, g + self.decay * self.w
        self.first = mu * self.first + g  # no dampening
        self.w = self.w - lr * (g + mu * self.first if self.recipe.nesterov else self.first)

    def adamw(self, g: np.ndarray, lr: np.ndarray, t: int) -> None:
        self.w = self.w * (1 - lr * self.decay)
        self.w = self.w - lr * self._adam(g, t, 1e-8)

    def lamb(self, g: np.ndarray, lr: np.ndarray, t: int) -> None:
        """Algorithm 2 of arXiv:1904.00962, with a cut gradient and no trust ratio without decay."""
        g = g / max(1.0, np.linalg.norm(g) / (self.recipe.clip_norm or 1.0))
        update = self._adam(g, t, 1e-6) + self.decay * self.w
        for start, end in pairwise(self.ends):
            one = slice(start, end)
            norms = np.linalg.norm(self.w[one]), np.linalg.norm(update[one])
            if self.decay[start] and all(norms):
                update[one] *= norms[0] / norms[1]
        self.w = self.w - lr * update

    def _adam(self, g: np.ndarray, t: int, eps: float) -> np.ndarray:
        self.first = 0.9 * self.first + 0.1 * g
        self.second = 0.999 * self.second + 0.001 * g * g
        return self.first / (1 - 0.9**t) / (np.sqrt(self.second / (1 - 0.999**t)) + eps)


def step(net: nn.Module, optimizer: torch.optim.Optimizer, g: np.ndarray, rate: float) -> None:
    """One step as the trainer takes it."""
    found = torch.from_numpy(g).split([parameter.numel() for parameter in net.parameters()])
    for parameter, gradient in zip(net.parameters(), found, strict=True):
        parameter.grad = gradient.reshape(parameter.shape).clone()  # some optimizers write there
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
    optimizer.step()


def rates(recipe: Recipe) -> list[float]:
    return [learning_rate(recipe, t, STEPS, max(1, STEPS // recipe.epochs)) for t in range(STEPS)]


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-300))


MOMENTUM = {"rmsprop_tf": "momentum_buffer", "rmsprop": "momentum_buffer", "sgd": "momentum_buffer",
            "adamw": "exp_avg", "lamb": "exp_avg"}  # fmt: skip


@pytest.mark.parametrize("name", TESTED)
def test_weights_and_momentum_equal_the_formula_in_each_of_1000_steps(name: str) -> None:
    recipe, net = TESTED[name], network()
    optimizer, by_hand = make_optimizer(net, recipe), ByHand(net, recipe)
    for t, (g, rate) in enumerate(zip(gradients(len(by_hand.w)), rates(recipe), strict=True), 1):
        step(net, optimizer, g, rate)
        by_hand.step(g, rate, t)
        assert apart(flat(list(net.parameters())), by_hand.w) < 1e-10, t
        if recipe.momentum or recipe.optimizer in ("adamw", "lamb"):
            buffers = [optimizer.state[p][MOMENTUM[recipe.optimizer]] for p in net.parameters()]
            assert apart(flat(buffers), by_hand.first) < 1e-10, t


def timms(name: str) -> Callable[[nn.Module, Recipe], torch.optim.Optimizer]:
    def made(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
        from timm.optim import create_optimizer_v2

        eps = {} if recipe.eps is None else {"eps": recipe.eps}
        return create_optimizer_v2(
            net, name, lr=peak_lr(recipe), weight_decay=recipe.weight_decay, momentum=0.9, **eps
        )

    return made


def torchvisions_sgd(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    norms, others = split_normalization_params(net)
    groups = [{"params": norms, "weight_decay": 0.0}, {"params": others, "weight_decay": 2e-5}]
    return torch.optim.SGD(groups, lr=0.5, momentum=0.9, weight_decay=2e-5, foreach=False)


def torchvisions_rmsprop(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(
        net.parameters(), lr=0.064, momentum=0.9, weight_decay=1e-5, eps=0.0316, alpha=0.9, foreach=False
    )  # fmt: skip


PEERS = [
    ("timm-ra", timms("rmsproptf")),
    ("lamb", timms("lamb")),
    ("torchvision-v1", torchvisions_rmsprop),
    ("torchvision-v2", torchvisions_sgd),
    ("fast", timms("sgd")),  # Nesterov's
    ("d-li14", timms("momentum")),
    ("int8", timms("adamw")),
]


@pytest.mark.parametrize(("name", "peer"), PEERS)
def test_weights_equal_the_librarys_in_each_of_1000_steps(
    name: str, peer: Callable[[nn.Module, Recipe], torch.optim.Optimizer]
) -> None:
    recipe, ours, theirs = TESTED[name], network(), network()
    optimizer, other = make_optimizer(ours, recipe), peer(theirs, recipe)
    assert {group["lr"] for group in optimizer.param_groups} == {group["lr"] for group in other.param_groups}
    count = sum(parameter.numel() for parameter in ours.parameters())
    for g, rate in zip(gradients(count), rates(recipe), strict=True):
        step(ours, optimizer, g, rate)
        step(theirs, other, g, rate)
        assert apart(flat(list(ours.parameters())), flat(list(theirs.parameters()))) < 1e-10


def test_tensorflows_rmsprop_is_not_torchs() -> None:
    nets = [network(), network()]
    recipes = [replace(BASE, optimizer="rmsprop_tf", eps=0.01), replace(BASE, optimizer="rmsprop", eps=0.01)]
    for net, recipe in zip(nets, recipes):
        optimizer = make_optimizer(net, recipe)
        for g in gradients(sum(parameter.numel() for parameter in net.parameters()))[:3]:
            step(net, optimizer, g, 0.1)
    assert apart(*(flat(list(net.parameters())) for net in nets)) > 0.1


@pytest.mark.parametrize("name", ["rmsprop_tf", "rmsprop", "sgd", "adamw", "lamb"])
def test_an_optimizer_goes_on_from_a_checkpoint_bit_for_bit(name: str) -> None:
    recipe = replace(BASE, optimizer=name, layer_decay=0.9)
    net = network()
    optimizer = make_optimizer(net, recipe)
    given = gradients(sum(parameter.numel() for parameter in net.parameters()))
    for g in given[:5]:
        step(net, optimizer, g, 0.1)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    for g in given[5:10]:
        step(net, optimizer, g, 0.1)

    file.seek(0)
    saved, other = torch.load(file, weights_only=True), network()
    again = make_optimizer(other, recipe)
    other.load_state_dict(saved["net"])
    again.load_state_dict(saved["optimizer"])
    for g in given[5:10]:
        step(other, again, g, 0.1)
    assert all(a.equal(b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_a_parameter_without_a_gradient_stays_as_it_is() -> None:
    for name in ("rmsprop_tf", "lamb"):
        net = network()
        before = net.backbone.stem.conv.weight.detach().clone()
        optimizer = make_optimizer(net, replace(BASE, optimizer=name, weight_decay=0.1))
        net.head.logits.weight.grad = torch.ones_like(net.head.logits.weight)
        optimizer.step()
        assert net.backbone.stem.conv.weight.equal(before)


@pytest.fixture(scope="module", params=FAMILY)
def member(request: pytest.FixtureRequest) -> Network:
    return build(FAMILY[request.param].width(0.25).classes(10))


@pytest.mark.parametrize("which", ["weights", "not_depthwise", "not_norms", "all"])
def test_every_parameter_is_in_one_group_and_decays_where_it_should(member: Network, which: str) -> None:
    recipe = Recipe(optimizer="sgd", weight_decay=0.03, decays=which)  # type: ignore[arg-type]
    groups = make_optimizer(member, recipe).param_groups
    found = [(id(parameter), group["weight_decay"]) for group in groups for parameter in group["params"]]
    assert len(found) == len(dict(found)) == len(list(member.parameters()))
    for name, parameter in member.named_parameters():
        assert dict(found)[id(parameter)] == (0.03 if decays(recipe, name) else 0.0), name


def test_every_kind_of_parameter_is_in_that_test() -> None:
    recipe = Recipe(decays="not_depthwise")
    names = [name for name, _ in build(FAMILY["mobilenet_v3_small"].width(0.25)).named_parameters()]
    assert sum(name.endswith("depthwise.conv.weight") for name in names) == 11
    assert sum(".norm." in name for name in names) == 68
    assert sum(name.endswith(".bias") and ".norm." not in name for name in names) == 20
    assert sum(decays(recipe, name) for name in names) == len(names) - 11 - 68 - 20


def test_layer_decay_slows_what_is_near_the_image(member: Network) -> None:
    optimizer = make_optimizer(member, Recipe(optimizer="sgd", lr=1.0, batch_size=256, layer_decay=0.8))
    of = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    order = [of[id(parameter)] for parameter in member.parameters()]  # from the image to the head
    assert order == sorted(order)
    assert {of[id(p)] for p in member.head.parameters()} == {1.0}
    rows = len(member.spec.blocks)
    for place, part in enumerate([member.backbone.stem, *member.backbone.blocks]):
        (found,) = {of[id(p)] for p in part.parameters()}
        assert found == pytest.approx(0.8 ** (rows + 2 - place))


def test_frozen_parameters_are_in_no_group(member: Network) -> None:
    frozen = {id(parameter) for part in parts(member)[:3] for parameter in part.parameters()}
    for part in parts(member)[:3]:
        part.requires_grad_(False)
    try:
        groups = make_optimizer(member, Recipe(optimizer="sgd", layer_decay=0.9)).param_groups
    finally:
        member.requires_grad_(True)
    found = {id(parameter) for group in groups for parameter in group["params"]}
    assert frozen and found == {id(parameter) for parameter in member.parameters()} - frozen


@pytest.mark.parametrize("which", ["weights", "not_depthwise", "not_norms", "all"])
def test_the_graph_of_an_int8_file_is_trained_without_rows(which: str) -> None:
    blob = compile(small_network().eval(), (1, 3, 8, 8))
    images = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32)
    simulation = calibrated(blob, [images])
    assert parts(simulation) == []
    recipe = replace(RECIPES["int8"], weight_decay=0.1, layer_decay=0.5, decays=which)  # type: ignore[arg-type]
    groups = make_optimizer(simulation, recipe).param_groups
    assert {group["lr_scale"] for group in groups} == {1.0}
    of = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    trained = [parameter for parameter in simulation.parameters() if parameter.requires_grad]
    assert len(trained) == len(of)
    assert {of[id(p)] for p in trained if p.ndim > 1} == {0.1}
    biases = {of[id(p)] for p in trained if p.ndim <= 1}
    assert biases == ({0.1} if which in ("not_norms", "all") else {0.0})


def test_a_network_of_another_build_has_no_rows() -> None:
    foreign = nn.Module()
    foreign.backbone = nn.Linear(2, 2)
    assert parts(foreign) == []
    (group,) = make_optimizer(foreign, Recipe(optimizer="sgd", layer_decay=0.5, decays="all")).param_groups
    assert group["lr_scale"] == 1.0


def test_timm_is_loaded_with_the_first_optimizer_that_needs_it() -> None:
    program = (
        "import sys, torch, mobilefit.train as train\n"
        "from mobilefit.train.optim import make_optimizer\n"
        "make_optimizer(torch.nn.Linear(2, 2), train.Recipe(optimizer='sgd'))\n"
        "assert 'timm' not in sys.modules\n"
        "make_optimizer(torch.nn.Linear(2, 2), train.Recipe(optimizer='rmsprop_tf'))\n"
        "assert 'timm' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
