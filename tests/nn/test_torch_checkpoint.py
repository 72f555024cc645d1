"""Checkpoints as training scripts save them, and what is told where there are no weights in one."""

from __future__ import annotations

import argparse
import datetime
import types
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from mobilefit.arch import spec
from mobilefit.errors import InputError
from mobilefit.nn import build, load_weights
from mobilefit.nn.weights import read_weights

PEER = torchvision.models.mobilenet_v3_small(num_classes=3)
STATE: dict[str, Tensor] = PEER.state_dict()
AVERAGE = {key: value + 1 if value.is_floating_point() else value for key, value in STATE.items()}
EPOCH = {"epoch": 3, "optimizer": torch.optim.SGD(PEER.parameters(), 0.1).state_dict(), "best": np.float64(0.5)}


class AttributeDict(dict[str, Any]):
    """As Lightning keeps a script's options."""


class Callbacks(list[Any]):
    """As a framework keeps what is called."""


def counts() -> defaultdict[str, list[int]]:
    by_class: defaultdict[str, list[int]] = defaultdict(list)
    by_class["a"].append(1)
    return by_class


def under(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def averaged() -> dict[str, Tensor]:
    state: dict[str, Tensor] = AveragedModel(PEER, use_buffers=True).state_dict()
    return state


PLAIN: dict[str, Any] = {
    "torchvision's script": {"model": STATE, **EPOCH, "args": argparse.Namespace(lr=0.1, out=Path("/tmp"))},
    "a tutorial": {"model_state_dict": STATE, "optimizer_state_dict": {}, "epoch": 1},
    "timm's script": {"state_dict": STATE, "arch": "x", "version": 2, "args": argparse.Namespace(opt="sgd")},
    "Lightning": {"state_dict": under("model."), "hyper_parameters": {"lr": 0.1}, "callbacks": {}},
    "Lightning with a loss of its own": {"state_dict": {**under("net."), "loss.weight": torch.ones(3)}},
    "data parallel": under("module."),
    "Lightning's options": {"state_dict": under("model."), "hyper_parameters": AttributeDict(lr=0.1, args=argparse.Namespace())},
    "statistics": {"net": STATE, "history": counts(), "callbacks": Callbacks([datetime.timedelta(1)]), "best": np.float32(1)},
    "compiled": under("_orig_mod."),
    "compiled and parallel": {"model": under("module._orig_mod."), **EPOCH},
    "Lightning, compiled": {"state_dict": under("model._orig_mod."), "date": datetime.date(2026, 1, 1)},
    "in a student": {"net": under("student."), **EPOCH},
    "nested": {"model": {"state_dict": STATE}, "config": types.SimpleNamespace(a=1)},
    "with a version": OrderedDict(STATE),
    "with a number beside": {**STATE, "epoch": 3},
    "an average alone": averaged(),
    "parameters": {key: torch.nn.Parameter(v, v.is_floating_point()) for key, v in STATE.items()},
}
AVERAGES: dict[str, Any] = {
    "torchvision's script": {"model": STATE, "model_ema": {"n_averaged": torch.tensor(7), **under("module.", AVERAGE)}},
    "timm's script": {"state_dict": STATE, "state_dict_ema": AVERAGE},
    "ema": {"model": STATE, "ema": AVERAGE},
    "ema, nested": {"model": STATE, "ema": {"decay": 0.9, "module": under("module.", AVERAGE)}},
    "no average yet": {"model": AVERAGE, "ema": None},
    "an average in a list": {"model": AVERAGE, "ema": {"decay": 0.9, "shadow_params": list(STATE.values())}},
}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def written(value: Any, tmp_path: Path, name: str = "net.pth") -> Path:
    torch.save(value, tmp_path / name)
    return tmp_path / name


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_weights(path)
    assert str(path) in caught.value.message
    return str(caught.value)


@pytest.mark.parametrize("name", PLAIN)
def test_the_weights_are_taken_out(name: str, tmp_path: Path) -> None:
    path = written(PLAIN[name], tmp_path)
    assert same(read_weights(path).state, STATE)
    assert load_weights(build(spec("mobilenet_v3_small").classes(3)), path) == "torchvision"


@pytest.mark.parametrize("name", AVERAGES)
def test_the_average_goes_before_the_weights(name: str, tmp_path: Path) -> None:
    assert same(read_weights(written(AVERAGES[name], tmp_path)).state, AVERAGE)


@pytest.mark.parametrize("peer", ["mobilenetv3_small_050", "resnet18", "mobilenetv2_050"])
def test_prefixes_of_other_networks_too(peer: str, tmp_path: Path) -> None:
    state = timm.create_model(peer, num_classes=3).state_dict()
    assert same(read_weights(written(under("module.", state), tmp_path)).state, state)
    assert same(read_weights(written({"state_dict": under("model.", state)}, tmp_path)).state, state)


def test_two_networks_in_a_file_are_named(tmp_path: Path) -> None:
    told = refusal(written({"state_dict": {**under("student."), **under("teacher.")}}, tmp_path))
    assert "holds several networks: student., teacher." in told


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [("features.2.block.0.0.weight", float("nan"), "NaN"), ("classifier.3.bias", float("inf"), "infinity"),
     ("features.0.1.running_var", float("-inf"), "infinity")],
)  # fmt: skip
@pytest.mark.parametrize("half", [False, True])
def test_numbers_that_are_none_are_named(key: str, value: float, word: str, half: bool, tmp_path: Path) -> None:
    state = {name: tensor.half() if half and tensor.is_floating_point() else tensor.clone() for name, tensor in STATE.items()}
    state[key].view(-1)[0] = value
    told = refusal(written(state, tmp_path))
    assert f"'{key}' holds {word} (1 of" in told and "learning rate" not in told


def test_a_script_says_what_to_save_instead(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.warns(FutureWarning):
        torch.jit.script(PEER).save(str(tmp_path / "net.pt"))
    recwarn.clear()
    told = refusal(tmp_path / "net.pt")
    assert "is a TorchScript program" in told and "torch.jit.load(FILE).state_dict()" in told
    assert not recwarn.list


@pytest.mark.parametrize("value", [PEER, {"model": PEER, "epoch": 3}, {"ema": None, "model": PEER}, [PEER]])
def test_a_pickled_model_says_what_to_save_instead(value: Any, tmp_path: Path) -> None:
    told = refusal(written(value, tmp_path))
    assert "state_dict()" in told and ("Python objects" in told or "no state dict" in told)


def test_a_checkpoint_without_weights_names_its_entries(tmp_path: Path) -> None:
    told = refusal(written({"epoch": 3, "lr": 0.1}, tmp_path))
    assert "holds no state dict of tensors: its entries are 'epoch', 'lr'" in told


def odd() -> dict[str, Tensor]:
    return {
        "sparse": torch.eye(3).to_sparse(),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "nowhere": torch.empty(3, device="meta"),
        "complex": torch.ones(3, dtype=torch.complex64),
        "endless": torch.zeros(1).expand(2**40),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    }


@pytest.mark.parametrize("name", odd())
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_none_of_a_network(name: str, tmp_path: Path) -> None:
    told = refusal(written({**STATE, "features.0.0.weight": odd()[name]}, tmp_path))
    assert "'features.0.0.weight' " in told or "Python objects" in told
