"""torchvision's detector and segmenter, output by output; and backbones that begin with a classifier's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.detection import _utils, ssdlite
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.mobilenetv3 import mobilenet_v3_large
from torchvision.models.segmentation import lraspp_mobilenet_v3_large
from weights import randomized

from mobilefit.arch import (
    DETECTORS,
    SEGMENTERS,
    TORCHVISION,
    ClassifierHead,
    NetSpec,
    detector,
    dilated,
    segmenter,
    spec,
)
from mobilefit.errors import InputError
from mobilefit.nn import (
    Network,
    backbone_weights,
    boxes,
    build,
    head_weights,
    hub,
    load_network,
    load_weights,
    save_weights,
)
from mobilefit.nn.backbone_weights import backbone_from, read_backbone
from mobilefit.nn.weights import rows, trained

REDUCED = TORCHVISION["ssdlite320_mobilenet_v3_large"]
WHOLE = TORCHVISION["ssdlite320_mobilenet_v3_large_whole"]
LRASPP = TORCHVISION["lraspp_mobilenet_v3_large_torchvision"]
V2 = spec("mobilenet_v2")


def ssd(*, reduced: bool) -> SSD:
    """torchvision's detector; with the whole last stage, which it builds for pretrained backbones alone,
    from its own parts."""
    if reduced:
        made: SSD = ssdlite.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
        return randomized(made)
    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
    backbone = ssdlite._mobilenet_extractor(mobilenet_v3_large(norm_layer=norm), 6, norm)
    anchors = DefaultBoxGenerator([[2, 3]] * 6, min_ratio=0.2, max_ratio=0.95)
    widths = _utils.retrieve_out_channels(backbone, (320, 320))
    head = ssdlite.SSDLiteHead(widths, anchors.num_anchors_per_location(), 91, norm)
    half = [0.5, 0.5, 0.5]
    return randomized(SSD(
        backbone, anchors, (320, 320), 91, head=head, score_thresh=0.001, nms_thresh=0.55,
        detections_per_img=300, topk_candidates=300, image_mean=half, image_std=half,
    ))  # fmt: skip


# ---- torchvision's layouts


@pytest.mark.parametrize("reduced", [True, False])
def test_torchvisions_detector_gives_the_same_outputs_and_boxes(reduced: bool) -> None:
    peer = ssd(reduced=reduced)
    for block in peer.head.classification_head.module_list:  # scores that are not all 0 or 1
        block[1].weight.data.mul_(0.1)
    network = build(REDUCED if reduced else WHOLE)
    assert load_weights(network, peer.state_dict()) == "torchvision"
    images = torch.rand(1, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        encodings, logits = network.eval()(images * 2 - 1)
        theirs = peer.head(list(peer.backbone(images * 2 - 1).values()))
        (expected,) = peer(list(images))
    scale = theirs["cls_logits"].abs().max()
    torch.testing.assert_close(logits / scale, theirs["cls_logits"] / scale, rtol=0, atol=1e-5)
    scale = theirs["bbox_regression"].abs().max()
    torch.testing.assert_close(encodings / scale, theirs["bbox_regression"] / scale, rtol=0, atol=1e-5)
    (found,) = boxes.detections(encodings, logits, boxes.spec_anchors(network.spec), "softmax")
    assert len(found.scores) == len(expected["scores"]) == 300
    assert found.labels.unique().numel() > 10
    torch.testing.assert_close(found.scores, expected["scores"], rtol=0, atol=1e-4)
    # Two that are equally sure may change places: each of theirs is among ours.
    same = found.labels[:, None] == expected["labels"] - 1
    same &= (found.scores[:, None] - expected["scores"]).abs() < 1e-4
    same &= (found.boxes[:, None] * 320 - expected["boxes"]).abs().amax(2) < 0.05
    sure = expected["scores"] > expected["scores"][-1] + 1e-4
    assert sure.sum() > 250
    assert same.any(0)[sure].all()


@pytest.mark.parametrize("size", [(224, 224), (130, 201)])
def test_torchvisions_segmenter_gives_the_same_logits(size: tuple[int, int]) -> None:
    peer = randomized(lraspp_mobilenet_v3_large(weights=None, weights_backbone=None))
    network = build(LRASPP)
    assert load_weights(network, peer.state_dict()) == "torchvision"
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = network.eval()(images), peer(images)["out"]
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("made", "published"), [(REDUCED, 3_440_060), (LRASPP, 3_221_538)], ids=["ssdlite", "lraspp"]
)
def test_they_have_the_parameters_that_torchvision_says(made: NetSpec, published: int) -> None:
    assert sum(p.numel() for p in build(made).parameters()) == published


def test_a_checkpoint_of_other_classes_and_widths_tells_them() -> None:
    peer = ssdlite.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=6)
    found = trained(build(WHOLE), peer.state_dict())
    assert found.spec.head.num_classes == 5
    assert found.spec.blocks == REDUCED.blocks
    assert found.spec.last == REDUCED.last
    small = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    assert trained(build(LRASPP), small.state_dict()).spec.head.num_classes == 3


def test_new_classes_keep_all_but_the_predictions() -> None:
    peer, network = ssd(reduced=True), build(REDUCED.classes(4))
    fresh = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(InputError, match="only the number of classes differs: load with new_logits=True"):
        load_weights(network, peer.state_dict())
    load_weights(network, peer.state_dict(), new_logits=True)
    state, logits = network.state_dict(), head_weights.class_tensors(REDUCED.head)
    assert len(logits) == 12
    assert all(torch.equal(state[key], fresh[key]) for key in logits)
    theirs = peer.head.regression_head.module_list[5][1].weight
    assert torch.equal(state["head.boxes.5.predict.weight"], theirs)


@pytest.mark.parametrize(
    ("made", "layers"),
    [(LRASPP, ["high", "low"]), (spec("raspp_mobilenet_v2"), ["high"]), (V2, ["logits"])],
    ids=["lraspp", "raspp", "classifier"],
)
def test_what_depends_on_the_classes_is_what_changes_its_shape(made: NetSpec, layers: list[str]) -> None:
    names = [f"head.{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    assert list(head_weights.class_tensors(made.head)) == names
    one, two = build(made).state_dict(), build(made.classes(7)).state_dict()
    assert [key for key in one if one[key].shape != two[key].shape] == sorted(names, key=list(one).index)


def test_a_file_of_torchvisions_is_loaded(tmp_path: Path) -> None:
    peer = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    torch.save({"model": peer.state_dict()}, tmp_path / "lraspp.pth")
    network = build(LRASPP)
    load_weights(network, tmp_path / "lraspp.pth")
    assert torch.equal(network.head.gate.weight, peer.classifier.scale[1].weight)


def test_the_paddings_and_epsilons_are_as_they_were_trained_with() -> None:
    network = build(replace(LRASPP.padded("same"), norm=replace(LRASPP.norm, eps=1e-5)))
    load_weights(network, lraspp_mobilenet_v3_large(weights=None, weights_backbone=None).state_dict())
    assert (network.spec.padding, network.spec.norm.eps, network.spec.head.norm.eps) == ("torch", 1e-3, 1e-5)
    assert network.backbone.stem.norm.eps == 1e-3
    assert network.head.project.norm.eps == 1e-5  # the head's is its own
    assert not network.backbone.stem.conv.same


def test_weights_of_another_kind_of_head_are_an_error() -> None:
    peer = ssdlite.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    with pytest.raises(InputError, match=r"head.classes.0.predict.weight is 546x672x1x1.*"
                                         r"saved from, ssdlite320_mobilenet_v3_large$"):  # fmt: skip
        load_weights(build(spec("ssdlite_mobilenet_v3_large_reduced")), peer.state_dict())


@pytest.mark.parametrize("name", ["ssdlite_mobilenet_v3_small", "lraspp_mobilenet_v3_small"])
def test_our_own_files_come_back(name: str, tmp_path: Path) -> None:
    network = randomized(build(spec(name).classes(3).resolution(64, 96)))
    save_weights(network, tmp_path / "net.safetensors")
    again = load_network(tmp_path / "net.safetensors").eval()
    assert again.spec == network.spec
    other = network.state_dict()
    assert all(torch.equal(value, other[key]) for key, value in again.state_dict().items())


# ---- backbones


@pytest.mark.parametrize("name", [*DETECTORS, *SEGMENTERS])
def test_the_classifier_of_a_network_has_its_rows(name: str) -> None:
    family, made = name.split("_", 1)[1].removesuffix("_reduced"), spec(name)
    found = backbone_weights.classifier_of(made)
    assert found.name == family
    assert rows(found) == rows(replace(spec(family), head=found.head))
    assert found.widths == made.widths
    assert (found.last is None) == (spec(family).last is None)
    if "reduced" not in name and not name.startswith("lraspp"):
        assert (found.blocks, found.head) == (spec(family).blocks, spec(family).head)


@pytest.mark.parametrize(
    ("name", "published"),
    [("lraspp_mobilenet_v2", "mobilenet_v2"), ("ssdlite_mobilenet_v3_large_reduced", "mobilenet_v3_large"),
     ("lraspp_mobilenet_v3_small", "mobilenet_v3_small")],
)  # fmt: skip
def test_hubs_have_weights_for_the_classifier_of_a_network(name: str, published: str) -> None:
    assert hub.published("torchvision", backbone_weights.classifier_of(spec(name))) == published


def test_a_network_of_no_family_is_given_a_head() -> None:
    made = detector(replace(V2, blocks=(*V2.blocks, V2.blocks[-1])))
    assert backbone_weights.classifier_of(made) == replace(made, head=ClassifierHead())


def classifier(made: NetSpec = V2, seed: int = 1) -> Network:
    return randomized(build(made.classes(10)), seed)


def start(made: NetSpec, source: object, name: str | None = "the file") -> tuple[Network, str]:
    torch.manual_seed(0)
    network = build(made)
    state = source.state_dict() if isinstance(source, nn.Module) else source
    return network, backbone_from(network, read_backbone(made, state, name))  # type: ignore[arg-type]


def test_a_whole_backbone_computes_what_the_classifier_does() -> None:
    peer = classifier()
    network, note = start(detector(V2, num_classes=3), peer)
    assert note == "the whole backbone is from the file; the head is fresh"
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network.eval().backbone(images), peer.backbone(images))
    assert network.head.classes[0].predict.bias.tolist() == pytest.approx([-4.6] * 12)  # fresh


PEERS = {
    "torchvision": (torchvision.models.mobilenet_v2, V2, lambda m, x: m.features(x)),
    "torchvision v3": (torchvision.models.mobilenet_v3_small, spec("mobilenet_v3_small"),
                       lambda m, x: m.features(x)),
    "timm": (partial(timm.create_model, "mobilenetv2_100"),
             replace(V2.padded("torch"), norm=replace(V2.norm, eps=1e-5)), lambda m, x: m.forward_features(x)),
    "timm v3": (partial(timm.create_model, "tf_mobilenetv3_small_100"), spec("mobilenet_v3_small"),
                lambda m, x: m.forward_features(x)),
    "timm v4": (partial(timm.create_model, "mobilenetv4_conv_small"), spec("mobilenetv4_conv_small"),
                lambda m, x: m.forward_features(x)),
    "timm lcnet": (partial(timm.create_model, "lcnet_100"), spec("lcnet"), lambda m, x: m.forward_features(x)),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(PEERS))
def test_backbones_of_peers_compute_the_same(kind: str) -> None:
    make, made, features = PEERS[kind]
    peer = randomized(make())
    network, note = start(detector(made, num_classes=3), peer)
    assert note == "the whole backbone is from the file; the head is fresh"
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = network.eval().backbone(images), features(peer, images)
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)
    assert network.spec.padding == ("same" if kind == "timm v3" else "torch")


def test_a_halved_last_stage_is_fresh_from_the_first_layer_that_differs() -> None:
    peer = classifier()
    network, note = start(detector(V2, reduced=True), peer)
    assert note == "the backbone up to blocks.13.depthwise is from the file; blocks.13.project and what follows are fresh"
    torch.manual_seed(0)
    fresh, state = build(detector(V2, reduced=True)).state_dict(), peer.state_dict()
    for key, value in network.state_dict().items():
        later = key.startswith(("backbone.blocks.13.project", "backbone.blocks.14", "backbone.blocks.15",
                                "backbone.blocks.16", "backbone.last", "head."))  # fmt: skip
        assert torch.equal(value, fresh[key] if later else state[key]), key


def test_a_dilated_backbone_takes_the_weights_of_the_strided_one() -> None:
    peer = classifier(spec("mobilenet_v3_small"))
    made = segmenter(spec("mobilenet_v3_small"), reduced=False)
    assert made.blocks[9].dilation == 2
    network, note = start(made, peer)
    assert note.startswith("the whole backbone is from")
    theirs = peer.layer("blocks.9.depthwise.conv").weight
    assert torch.equal(network.layer("blocks.9.depthwise.conv").weight, theirs)


def test_a_dilated_bottleneck_dilates_its_starting_depthwise_convolution_too() -> None:
    made = segmenter(spec("mobilenetv4_conv_small"), reduced=False)
    network, note = start(made, classifier(spec("mobilenetv4_conv_small")))
    assert note.startswith("the whole backbone is from")
    assert (made.blocks[10].stride, made.blocks[10].dilation, made.blocks[11].dilation) == (1, 1, 2)
    convs = [network.layer(f"blocks.11.{name}.conv") for name in ("start", "depthwise")]
    assert [conv.dilation for conv in convs] == [(2, 2), (2, 2)]  # type: ignore[comparison-overlap]


def test_a_segmenter_without_the_last_layer_takes_the_others(tmp_path: Path) -> None:
    save_weights(classifier(), tmp_path / "v2.safetensors")
    made = segmenter(V2, reduced=False)
    assert made.last is None
    network, note = start(made, tmp_path / "v2.safetensors")
    assert note == "the whole backbone is from the file; the head is fresh"
    theirs = classifier().layer("blocks.16.project.conv").weight
    assert torch.equal(network.layer("blocks.16.project.conv").weight, theirs)


def test_a_detector_is_a_source_as_well() -> None:
    other = randomized(build(detector(V2, num_classes=7)), 5)
    network, _ = start(segmenter(V2, reduced=False), other)
    assert torch.equal(network.backbone.stem.conv.weight, other.backbone.stem.conv.weight)


def test_a_head_of_the_same_kind_is_kept_but_for_other_classes(tmp_path: Path) -> None:
    made = detector(V2, num_classes=3)
    save_weights(randomized(build(made), 5), tmp_path / "v2.safetensors")
    network, note = start(made, tmp_path / "v2.safetensors", "v2")
    assert note == "backbone and head are from v2; nothing is fresh"
    saved = load_network(tmp_path / "v2.safetensors").state_dict()
    assert all(torch.equal(value, saved[key]) for key, value in network.state_dict().items())
    torch.manual_seed(0)
    fresh, logits = build(made.classes(4)).state_dict(), head_weights.class_tensors(made.head)
    network, note = start(made.classes(4), tmp_path / "v2.safetensors", "v2")
    assert note == "backbone and head are from v2; the predictions of classes are fresh"
    for key, value in network.state_dict().items():
        assert torch.equal(value, (fresh if key in logits else saved)[key]), key


def test_other_classes_of_the_same_number_are_fresh_where_it_is_said() -> None:
    made, peer = detector(V2, num_classes=3), randomized(build(detector(V2, num_classes=3)), 5)
    network = build(made)
    own = network.head.classes[0].predict.weight.clone()
    note = backbone_from(network, read_backbone(made, peer.state_dict()), new_classes=True)
    assert note == "backbone and head are from the state dict; the predictions of classes are fresh"
    assert torch.equal(network.head.classes[0].predict.weight, own)
    assert torch.equal(network.head.boxes[0].predict.weight, peer.head.boxes[0].predict.weight)


def test_a_head_of_another_scoring_is_not_kept(tmp_path: Path) -> None:
    made = detector(V2, num_classes=3)
    other = replace(made, head=replace(made.head, scoring="softmax"))
    save_weights(build(other), tmp_path / "v2.safetensors")
    _, note = start(made, tmp_path / "v2.safetensors", "v2")
    assert note == "the whole backbone is from v2; the head is fresh"


def test_torchvisions_detector_is_a_start_for_other_classes() -> None:
    peer = ssd(reduced=True)
    network, note = start(REDUCED.classes(4), peer)
    assert note == "backbone and head are from the file; the predictions of classes are fresh"
    theirs = peer.backbone.extra[3][1][0].weight
    assert torch.equal(network.head.extras[3].depthwise.conv.weight, theirs)
    assert network.layer("blocks.12.depthwise").norm.eps == 1e-3


def test_the_padding_is_that_of_the_weights_and_the_heads_epsilon_its_own() -> None:
    network, _ = start(segmenter(V2), torchvision.models.mobilenet_v2())
    assert (network.spec.padding, network.spec.norm.eps) == ("torch", 1e-5)
    network, _ = start(detector(V2), torchvision.models.mobilenet_v2())
    assert not network.head.extras[0].depthwise.conv.same
    assert network.head.extras[0].depthwise.norm.eps == 1e-3


def test_another_width_is_an_error() -> None:
    with pytest.raises(InputError, match=r"the file has another backbone than 'ssdlite_mobilenet_v2': "
                                         r"stem.conv.weight is 16x3x3x3, the network's is 32x3x3x3"):  # fmt: skip
        start(detector(V2), torchvision.models.mobilenet_v2(width_mult=0.5))


def test_another_network_is_an_error() -> None:
    with pytest.raises(InputError, match="the file has another backbone than 'ssdlite_mobilenet_v3_large'"):
        start(detector(spec("mobilenet_v3_large")), torchvision.models.mobilenet_v2())


def test_other_activations_in_a_file_of_ours_are_an_error(tmp_path: Path) -> None:
    save_weights(classifier(V2.activations({"relu6": "hard_swish"})), tmp_path / "v2.safetensors")
    with pytest.raises(InputError, match=r"another backbone than 'ssdlite_mobilenet_v2': stem\.act"):
        start(detector(V2), tmp_path / "v2.safetensors")


def test_a_file_of_ours_with_other_rows_is_an_error(tmp_path: Path) -> None:
    save_weights(classifier(replace(V2, blocks=V2.blocks[:-1])), tmp_path / "v2.safetensors")
    with pytest.raises(InputError, match=r"v2\.safetensors has .*: it has 16 blocks, not 17; it was saved from mo"):
        start(detector(V2), tmp_path / "v2.safetensors", None)


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("rules", ["tf", "torchvision"])
def test_another_dilation_in_a_file_of_ours_is_no_error(tmp_path: Path, stride: int, rules: str) -> None:
    small = spec("mobilenet_v3_small")
    made = segmenter(small, reduced=False, output_stride=stride, like=rules)  # type: ignore[arg-type]
    for number, saved in enumerate((small, dilated(small, 16))):
        save_weights(classifier(saved), tmp_path / f"{number}.safetensors")
        _, note = start(made, tmp_path / f"{number}.safetensors")
        assert note.startswith("the whole backbone is from")


def test_another_stride_in_a_file_of_ours_is_an_error(tmp_path: Path) -> None:
    blocks = list(V2.blocks)
    blocks[3] = replace(blocks[3], stride=1)
    save_weights(classifier(replace(V2, blocks=tuple(blocks))), tmp_path / "v2.safetensors")
    with pytest.raises(InputError, match=r"blocks\.3\.stride 1 -> 2; it was saved from mobilenet_v2"):
        start(detector(V2), tmp_path / "v2.safetensors")


def test_tensors_of_no_known_layout_are_an_error() -> None:
    with pytest.raises(InputError, match="has none of the known layouts"):
        start(detector(V2), {"conv1.weight": torch.zeros(3, 3)})
