"""Our own format, bit by bit, and every way in which a weights file can be wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn
from weights import randomized

from mobilefit.arch import BatchNorm, Block, NetSpec, spec
from mobilefit.errors import InputError
from mobilefit.nn import Network, build, copy_weights, load_network, load_weights, save_weights
from mobilefit.nn.weights import read_weights

SMALL = spec("mobilenet_v3_small").width(0.35).classes(10)


def tiny(seed: int = 0, made: NetSpec = SMALL) -> Network:
    torch.manual_seed(seed)
    return build(made).eval()


def equal(one: nn.Module, two: nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save_weights(tiny(), path)
    return path


# ---- our own format


def test_a_network_comes_back_bit_by_bit(tmp_path: Path) -> None:
    norm = BatchNorm(eps=1e-5, momentum=0.1)
    network = tiny(made=replace(SMALL.padded("torch"), name="mine", norm=norm))
    randomized(network)
    next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d)).num_batches_tracked += 7
    save_weights(network, tmp_path / "net.safetensors")
    again = load_network(tmp_path / "net.safetensors")
    assert equal(network, again)
    assert again.spec == network.spec
    images = torch.randn(2, 3, 40, 33)
    with torch.no_grad():
        assert torch.equal(again.eval()(images), network(images))


SAVES = """
import sys, torch
from mobilefit.arch import spec
from mobilefit.nn import build, save_weights
torch.manual_seed(0)
save_weights(build(spec("mobilenet_v3_small").width(0.35)), sys.argv[1], preset={"resolution": 32, "mean": [0.5]}, classes=["b", "a", "ü"])
"""


def test_equal_networks_are_equal_bytes(tmp_path: Path) -> None:
    """In one process many times, and in processes with other hashes."""
    net = tiny()
    contents = set()
    for _ in range(10):
        save_weights(net, tmp_path / "one.safetensors", preset={"z": 0, "a": 1}, classes=["x", "y"])
        contents.add((tmp_path / "one.safetensors").read_bytes())
    assert len(contents) == 1
    for seed in ("1", "2", "3"):
        path = tmp_path / f"{seed}.safetensors"
        subprocess.run([sys.executable, "-c", SAVES, path], check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        contents.add(path.read_bytes())
    assert len(contents) == 2
    with safetensors.safe_open(path, framework="pt") as file:  # the library still reads it
        assert list(json.loads(file.metadata()["classes"])) == ["b", "a", "ü"]


def test_weights_go_to_another_resolution() -> None:
    network = randomized(tiny(made=SMALL.resolution(96)))
    random_state = torch.random.get_rng_state()
    copied = copy_weights(network, network.spec.resolution(64))
    assert torch.random.get_rng_state().equal(random_state)
    assert copied.spec == SMALL.resolution(64) and not copied.training
    assert equal(copied, network)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(images)
        assert torch.equal(copied(images), expected)
        for value in copied.parameters():
            value.zero_()
        assert torch.equal(network(images), expected)  # nothing is shared


def test_weights_do_not_go_to_other_layers() -> None:
    network = tiny(made=SMALL.resolution(96))
    for other, part in ((SMALL.width(0.5), "blocks"), (SMALL.classes(3), "head.num_classes 10 -> 3"), (SMALL.padded("torch"), "padding")):
        with pytest.raises(InputError, match="in more than the resolution: ") as caught:
            copy_weights(network, other.resolution(64))
        assert part in str(caught.value) and "input_size" not in str(caught.value)


def test_pools_and_squeezes_come_back(tmp_path: Path) -> None:
    blocks = (
        Block(op="conv", out=16, se="mnasnet", skip="none"),
        Block(expand=24, out=16, stride=2, skip="pool"),
    )
    network = tiny(made=replace(SMALL, blocks=blocks))
    save_weights(network, tmp_path / "net.safetensors")
    again = load_network(tmp_path / "net.safetensors").eval()
    assert again.spec == network.spec
    images = torch.randn(2, 3, 40, 33)
    with torch.no_grad():
        assert torch.equal(again(images), network(images))


def test_a_peers_layers_are_matched_beside_a_pool() -> None:
    peer = torchvision.models.mobilenet_v2(num_classes=10)
    made = spec("mobilenet_v2").classes(10)
    made = replace(made, blocks=tuple(replace(block, skip="pool") for block in made.blocks))
    network = tiny(made=made)
    assert load_weights(network, peer.state_dict()) == "torchvision"
    mine = network.layer("blocks.2.project.conv").weight
    assert torch.equal(mine, peer.features[3].conv[2].weight)


def test_weights_load_into_a_network_of_the_same_shape(saved: Path) -> None:
    network = tiny(seed=1)
    assert not equal(network, tiny())
    assert load_weights(network, saved) == "mobilefit"
    assert equal(network, tiny())


def test_a_state_dict_loads_as_a_file_does() -> None:
    network = tiny(seed=1)
    assert load_weights(network, tiny().state_dict()) == "mobilefit"
    assert equal(network, tiny())


def test_constants_come_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_weights(tiny(made=replace(SMALL.padded("torch"), norm=BatchNorm(eps=0.5))), path)
    network = tiny()
    load_weights(network, path)
    assert (network.spec.padding, network.spec.norm.eps) == ("torch", 0.5)
    assert not network.layer("stem.conv").same
    assert network.layer("stem.norm").eps == 0.5


def test_saving_leaves_the_network_alone_and_takes_any_layout(tmp_path: Path) -> None:
    network = tiny().to(memory_format=torch.channels_last)
    save_weights(network, tmp_path / "net.safetensors")
    assert network.layer("last.conv").weight.requires_grad
    assert equal(load_network(tmp_path / "net.safetensors"), tiny())


def test_preset_and_classes_travel_with_the_weights(tmp_path: Path) -> None:
    preset = {"resolution": 96, "mean": [0.485, 0.456, 0.406], "new": {"a": None}}
    classes = ("a hat", "Mütze", 'quo"te')
    save_weights(tiny(), tmp_path / "net.safetensors", preset=preset, classes=classes)
    found = read_weights(tmp_path / "net.safetensors")
    assert (found.preset, found.classes, found.spec) == (preset, classes, SMALL)
    assert equal(load_network(tmp_path / "net.safetensors"), tiny())


def test_a_file_from_before_says_neither(saved: Path) -> None:
    found = read_weights(saved)
    assert found.preset is None and found.classes is None


@pytest.mark.parametrize(
    ("metadata", "said"),
    [({"preset": "{"}, "its 'preset' is not valid JSON"), ({"preset": "[]"}, "its 'preset' is not an object"),
     ({"classes": "3"}, "classes is not a list")],
)  # fmt: skip
def test_a_file_that_says_nonsense(metadata: dict[str, str], said: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    known = {"spec": json.dumps(SMALL.to_dict())}
    safetensors.torch.save_file(tiny().state_dict(), path, {**known, **metadata})
    with pytest.raises(InputError) as caught:
        load_network(path)
    assert str(caught.value).startswith(f"{path}: {said}")


def test_loaded_tensors_are_copies() -> None:
    state = tiny().state_dict()
    network = tiny(seed=1)
    load_weights(network, state)
    state["head.logits.bias"].fill_(5)
    assert not network.head.logits.bias.any()


@pytest.mark.parametrize("key", ["model_ema", "model", "state_dict"])
def test_checkpoints_of_training_scripts_open(key: str, tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in tiny().state_dict().items()}
    torch.save({key: state, "epoch": 3}, tmp_path / "checkpoint.pth")
    network = tiny(seed=1)
    load_weights(network, tmp_path / "checkpoint.pth")
    assert equal(network, tiny())


def test_averaged_weights_come_before_the_raw_ones(tmp_path: Path) -> None:
    states = {"model": tiny(seed=1).state_dict(), "model_ema": tiny(seed=2).state_dict()}
    torch.save(states, tmp_path / "checkpoint.pth")
    network = tiny()
    load_weights(network, tmp_path / "checkpoint.pth")
    assert equal(network, tiny(seed=2))


# ---- another network's weights


def refusal(network: Network, source: Path | dict[str, Tensor]) -> str:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_weights(network, source)
    after = network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)  # nothing half loaded
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_networks_weights_name_tensors_and_shapes(saved: Path) -> None:
    message = refusal(tiny(made=spec("mobilenet_v3_large").width(0.35).classes(10)), saved)
    assert f"{saved} fits another network than 'mobilenet_v3_large_0.35'" in message
    first = "backbone.blocks.1.expand.conv.weight is 40x8x1x1, the network's is 32x8x1x1"
    assert f"': {first}; " in message and message.count("; ") == 4 and " and 224 more; " in message
    assert message.endswith("build the network that the weights were saved from, mobilenet_v3_small_0.35")


def test_another_width_names_both_shapes(saved: Path) -> None:
    message = refusal(tiny(made=spec("mobilenet_v3_small").classes(10)), saved)
    assert (
        "backbone.blocks.0.depthwise.conv.weight is 8x1x3x3, the network's is 16x1x3x3" in message
    )


def test_a_peers_weights_say_which_network_of_the_family_they_are_of() -> None:
    network = tiny()
    for peer, name in {
        torchvision.models.mobilenet_v2(width_mult=0.5): "mobilenet_v2_0.5",
        timm.create_model("semnasnet_100"): "mnasnet_a1",
        torchvision.models.mobilenet_v2(width_mult=0.6): "mobilenet_v2 of other widths",
    }.items():
        message = refusal(network, peer.state_dict())
        assert message.endswith(f"the weights were saved from, {name}")


def test_weights_of_no_network_of_the_family_say_so() -> None:
    message = refusal(build(spec("mobilenet_v2")), timm.create_model("efficientnet_b0").state_dict())
    assert message.endswith("were saved from: none of the family has these tensors")


def test_what_no_tensor_shows_is_compared_where_the_file_tells_it(tmp_path: Path) -> None:
    other = SMALL.activations({"hard_swish": "relu"})
    save_weights(tiny(made=other), tmp_path / "relu.safetensors")
    message = refusal(tiny(seed=1), tmp_path / "relu.safetensors")
    assert "fits another network than 'mobilenet_v3_small_0.35': stem.act relu -> hard_swish; " in message
    strided = replace(SMALL, blocks=(replace(SMALL.blocks[0], stride=1), *SMALL.blocks[1:]))
    save_weights(tiny(made=strided), tmp_path / "strided.safetensors")
    assert "blocks.0.stride 1 -> 2" in refusal(tiny(seed=1), tmp_path / "strided.safetensors")


def test_name_size_dropout_and_momentum_make_no_other_network(tmp_path: Path) -> None:
    same = replace(SMALL.resolution(64), name="mine", norm=BatchNorm(momentum=0.5),
                   head=replace(SMALL.head, dropout=0.7))  # fmt: skip
    save_weights(tiny(made=same), tmp_path / "net.safetensors")
    network = tiny(seed=1)
    load_weights(network, tmp_path / "net.safetensors")
    assert equal(network, tiny()) and network.spec == SMALL


def test_a_missing_tensor_is_named() -> None:
    state = tiny().state_dict()
    del state["backbone.last.norm.running_mean"]
    message = refusal(tiny(seed=1), state)
    assert "backbone.last.norm.running_mean is missing, the network's is 200" in message


def test_a_tensor_too_many_is_named() -> None:
    state = tiny().state_dict() | {"extra.weight": torch.zeros(3)}
    assert "extra.weight has no place in the network" in refusal(tiny(seed=1), state)


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        (lambda: torchvision.models.mobilenet_v3_small(), "mobilenet_v3_large"),
        (lambda: torchvision.models.mobilenet_v3_large(), "mobilenet_v3_small"),
        (lambda: torchvision.models.mobilenet_v3_large(), "mobilenet_v2"),
        (lambda: torchvision.models.mobilenet_v2(), "mobilenet_v3_large"),
        (lambda: torchvision.models.mobilenet_v2(), "mobilenet_v1"),
        (lambda: torchvision.models.mnasnet0_5(), "mobilenet_v2"),
        (lambda: torchvision.models.mnasnet0_5(), "mnasnet_b1"),
        (lambda: timm.create_model("mobilenetv2_035"), "mobilenet_v3_small"),
        (lambda: timm.create_model("tf_mobilenetv3_small_075"), "mobilenet_v3_small"),
        (lambda: timm.create_model("mobilenetv1_100"), "mobilenet_v2"),
    ],
)
def test_a_peers_weights_for_another_network(peer, name: str) -> None:
    message = refusal(build(spec(name)), peer().state_dict())
    assert f"the state dict fits another network than '{name}'" in message


# ---- another number of classes


def test_another_number_of_classes_says_what_to_do(saved: Path) -> None:
    message = refusal(tiny(made=SMALL.classes(3)), saved)
    assert "head.logits.weight is 10x1024, the network's is 3x1024" in message
    assert "head.logits.bias is 10, the network's is 3" in message
    assert "load with new_logits=True" in message


def test_new_logits_keep_the_networks_own(saved: Path) -> None:
    network = tiny(seed=1, made=SMALL.classes(3))
    own = network.head.logits.weight.clone()
    load_weights(network, saved, new_logits=True)
    assert torch.equal(network.head.logits.weight, own)
    assert equal(network.backbone, tiny().backbone)
    assert torch.equal(network.head.hidden.weight, tiny().head.hidden.weight)


def test_new_logits_change_nothing_where_the_classes_agree(saved: Path) -> None:
    network = tiny(seed=1)
    load_weights(network, saved, new_logits=True)
    assert equal(network, tiny())


def test_new_logits_excuse_no_other_difference(saved: Path) -> None:
    network = tiny(made=spec("mobilenet_v3_small").classes(3))
    with pytest.raises(InputError, match="fits another network"):
        load_weights(network, saved, new_logits=True)


def test_new_logits_with_a_peers_weights() -> None:
    peer = torchvision.models.mobilenet_v3_small()
    network = build(spec("mobilenet_v3_small"), num_classes=7)
    load_weights(network, peer.state_dict(), new_logits=True)
    assert torch.equal(network.layer("last.conv").weight, peer.features[12][0].weight)
    assert network.head.logits.out_features == 7


# ---- files that are none


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "none.pth"
    assert refusal(tiny(), path) == f"no such weights file: {path}"
    assert refusal(tiny(), tmp_path) == f"no such weights file: {tmp_path}"
    with pytest.raises(InputError, match="no such weights file"):
        load_network(path)


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_file_cut_short(suffix: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / f"net.{suffix}"
    if suffix == "pth":
        torch.save(tiny().state_dict(), path)
    else:
        save_weights(tiny(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept) if 0 < kept < 1 else int(kept)])
    message = refusal(tiny(seed=1), path)
    assert f"{path} is not a readable weights file" in message
    assert "damaged or cut short" in message


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("content", [b"{}", b"<html>404</html>", bytes(300), b"\xff" * 300])
def test_a_file_of_something_else(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"net.{suffix}"
    path.write_bytes(content)
    assert f"{path} is not a readable weights file" in refusal(tiny(), path)


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"state_dict": Trap()}, tmp_path / "net.pth")
    assert "is not a readable weights file" in refusal(tiny(), tmp_path / "net.pth")
    assert not (tmp_path / "sprung").exists()


def test_a_pickled_model_says_what_to_save_instead(tmp_path: Path) -> None:
    torch.save(tiny(), tmp_path / "net.pth")
    message = refusal(tiny(), tmp_path / "net.pth")
    assert "holds Python objects, not tensors alone (mobilefit.nn.network.Network); save the model's state_dict()" in message


@pytest.mark.parametrize("value", [[1, 2], 3.5, {"model": {"a": 1}}, {"epoch": 3}])
def test_a_file_without_tensors(value: object, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "net.pth")
    assert "holds no state dict of tensors" in refusal(tiny(), tmp_path / "net.pth")


@pytest.mark.parametrize("state", [{"conv1.weight": torch.zeros(2)}, {}])
def test_an_unknown_layout(state: dict[str, Tensor]) -> None:
    message = refusal(tiny(), state)
    assert "none of the known layouts (mobilefit, torchvision, timm, efficientnet-pytorch)" in message
    assert f"its first tensor is '{next(iter(state), 'missing')}'" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not an object"),
        (json.dumps({"name": "x"}), "lacks the field 'stem'"),
        (json.dumps(SMALL.to_dict() | {"padding": "valid"}), "padding: unknown value 'valid'"),
    ],
)
def test_a_spec_in_the_file_that_is_none(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file(tiny().state_dict(), path, {"spec": text})
    for load in (load_network, lambda path: load_weights(tiny(), path)):
        with pytest.raises(InputError, match=message) as caught:
            load(path)
        assert str(path) in str(caught.value)


def test_load_network_wants_a_file_that_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file(tiny().state_dict(), path)
    with pytest.raises(InputError, match=r"does not say which network it is.*--model"):
        load_network(path)
    load_weights(tiny(), path)


def test_load_network_refuses_a_spec_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    other = json.dumps(spec("mobilenet_v2").to_dict())
    safetensors.torch.save_file(tiny().state_dict(), path, {"spec": other})
    with pytest.raises(InputError, match="fits another network than 'mobilenet_v2'"):
        load_network(path)
