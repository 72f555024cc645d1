"""What the networks of a run begin with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from tasks.scenes import boxes_data, detector_network, masks_data, segmenter_network
from weights import randomized

from mobilefit import adapt
from mobilefit.arch import FAMILY, Block, ClassifierHead, Conv, NetSpec
from mobilefit.data import ClassificationData, ImageSet, Preset
from mobilefit.data.images import ArraySource
from mobilefit.errors import InputError
from mobilefit.jobs.kinds import KINDS
from mobilefit.nn import Network, build, save_weights
from mobilefit.nn.weights import layer_widths
from mobilefit.pipeline import initial_weights
from mobilefit.pipeline.initial_weights import (
    AUTO,
    NONE,
    PRETRAINED_FAMILY,
    InitialWeights,
    covers,
    pretrained_sources,
)
from mobilefit.train import RECIPES

SMALL = FAMILY["mobilenet_v3_small"].classes(3)
V2 = FAMILY["mobilenet_v2"].classes(3)
TINY = NetSpec(
    name="tiny", input_size=32, stem=Conv(out=16, kernel=3, stride=2, act="hard_swish"),
    blocks=(Block(expand=64, out=16), Block(expand=72, out=24, stride=2)),
    head=ClassifierHead(num_classes=3),
)  # fmt: skip


# ---- what weights serve


@pytest.mark.parametrize(
    ("spec", "serves"),
    [
        (SMALL, True),
        (SMALL.resolution(64), True),  # at any size
        (SMALL.width(0.75), True),
        (replace(SMALL, name="another name"), True),
        (SMALL.padded("torch"), True),  # constants are taken over
        (SMALL.width(1.25), False),
        (V2, False),
        (FAMILY["mobilenet_v3_small_minimalistic"].classes(3), False),  # other kernels
        (replace(SMALL, blocks=SMALL.blocks[:-1]), False),
    ],
    ids=["itself", "smaller", "narrower", "renamed", "padded", "wider", "v2", "minimalistic", "shorter"],
)
def test_a_network_serves_those_of_its_blocks_that_are_nowhere_wider(
    spec: NetSpec, serves: bool
) -> None:
    assert covers(SMALL, spec) is serves


def test_one_wider_layer_is_enough_to_be_refused() -> None:
    blocks = list(SMALL.width(0.5).blocks)
    assert covers(SMALL, replace(SMALL.width(0.5), blocks=tuple(blocks)))
    widest = SMALL.blocks[3].expand
    assert widest is not None
    blocks[3] = replace(blocks[3], expand=widest + 8)
    assert not covers(SMALL, replace(SMALL.width(0.5), blocks=tuple(blocks)))


# ---- a network's first weights


def classification(count: int = 12) -> ClassificationData:
    pixels = np.random.default_rng(0).integers(0, 255, (count, 32, 32)).astype(np.uint8)
    source = ArraySource(pixels, [str(i) for i in range(count)])
    images = ImageSet(source, (np.arange(count) % 3).astype(np.int64))
    return ClassificationData(
        name="noise", classes=("a", "b", "c"), train=images, holdout=images, test=images,
        skipped=(), fingerprint="0" * 64, short_side=32,
    )  # fmt: skip


def test_from_scratch_by_the_seed() -> None:
    weights = InitialWeights(task=KINDS["classify"], data=classification())
    (first, preset), (again, _), (other, _) = (weights.network(TINY, None, seed) for seed in (1, 1, 2))
    assert preset.resolution == 32
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def trained_larger() -> Network:
    network = randomized(build(replace(TINY, input_size=64, padding="torch")), seed=4)
    assert isinstance(network, Network)
    return network


LARGER_PRESET = Preset(resolution=64, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


def test_from_a_larger_network_of_the_run_last_layer_included() -> None:
    larger = trained_larger()
    weights = InitialWeights(
        task=KINDS["classify"], data=classification(), larger=larger, larger_preset=LARGER_PRESET
    )
    network, preset = weights.network(TINY, "a source that is never looked at", 0)
    assert network.spec == replace(TINY, padding="torch", norm=larger.spec.norm)
    for name, value in network.state_dict().items():
        assert torch.equal(value, larger.state_dict()[name]), name
    assert preset.resolution == 32  # its own size, the larger one's scale of colours
    assert (preset.mean, preset.std) == (LARGER_PRESET.mean, LARGER_PRESET.std)


def test_a_narrower_network_begins_with_the_larger_ones_channels_that_matter_most() -> None:
    larger, data = trained_larger(), classification()
    recipe = replace(RECIPES["fast"], batch_size=4)
    weights = InitialWeights(
        task=KINDS["classify"], data=data, recipe=recipe, larger=larger, larger_preset=LARGER_PRESET
    )
    narrower = replace(TINY, blocks=(replace(TINY.blocks[0], expand=32), TINY.blocks[1]))
    network, _ = weights.network(narrower, None, 0)
    before, after = larger.state_dict(), network.state_dict()
    name = "backbone.blocks.0.expand.conv.weight"
    importance = adapt.gates_on(larger, data.train, LARGER_PRESET, recipe)("blocks.0.expand")
    best = importance.argsort(descending=True)[:32].sort().values
    assert torch.equal(after[name], before[name][best])
    by_norm = adapt.filter_norms(larger)("blocks.0.expand").argsort(descending=True)[:32].sort().values
    assert not torch.equal(best, by_norm)


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_a_detector_or_segmenter_begins_as_the_larger_one_head_included(task: str, tmp_path: Path) -> None:
    make, load = (detector_network, boxes_data) if task == "detect" else (segmenter_network, masks_data)
    larger, data = randomized(make()), load(tmp_path / "data")
    assert isinstance(larger, Network)
    preset = replace(LARGER_PRESET, fit="stretch")
    weights = InitialWeights(
        task=KINDS[task], data=data, larger=larger, larger_preset=preset,  # type: ignore[index]
        recipe=replace(RECIPES[task], batch_size=4),
    )  # fmt: skip
    network, seen_as = weights.network(larger.spec.resolution(48), "a source that is never looked at", 0)
    assert network.spec.image_shape == seen_as.shape == (48, 48) and seen_as.mean == LARGER_PRESET.mean
    for name, value in network.state_dict().items():
        assert torch.equal(value, larger.state_dict()[name]), name
    narrower, _ = weights.network(larger.spec.width(0.5), None, 0)
    before, after = larger.state_dict(), narrower.state_dict()
    bias = next(name for name in after if name.startswith("head.") and name.endswith((".predict.bias", "high.bias")))
    assert torch.equal(after[bias], before[bias])  # of every class
    wide, narrow = (
        {tuple(kernel.flatten().tolist()) for kernel in state["backbone.blocks.3.depthwise.conv.weight"]}
        for state in (before, after)
    )
    assert narrow < wide


def test_a_reduced_head_begins_with_the_whole_networks_weights(tmp_path: Path) -> None:
    """A file of the whole network: every block is its own, the last layers are a part of its channels."""
    whole = replace(TINY, last=Conv(out=64), input_size=64)
    spec = replace(TINY, last=Conv(out=16), name="tiny with fewer features")
    source = build(whole)
    save_weights(source, tmp_path / "whole.safetensors", preset=LARGER_PRESET.to_dict())
    weights = InitialWeights(task=KINDS["classify"], data=classification())
    network, preset = weights.network(spec, str(tmp_path / "whole.safetensors"), 0, whole)
    assert layer_widths(network.spec) == layer_widths(spec) and network.spec.image_shape == (32, 32)
    assert (preset.mean, preset.resolution) == (LARGER_PRESET.mean, 32)
    before, after = source.state_dict(), network.state_dict()
    blocks = [name for name in after if name.startswith(("backbone.stem", "backbone.blocks"))]
    assert len(blocks) > 20 and all(torch.equal(before[name], after[name]) for name in blocks)
    last = "backbone.last.conv.weight"
    assert len(after[last]) == 16
    assert {tuple(row.flatten().tolist()) for row in after[last]} < {
        tuple(row.flatten().tolist()) for row in before[last]
    }


def test_a_wider_network_begins_elsewhere() -> None:
    weights = InitialWeights(
        task=KINDS["classify"], data=classification(), larger=trained_larger(), larger_preset=LARGER_PRESET
    )
    wider = replace(TINY, stem=replace(TINY.stem, out=24))
    network, preset = weights.network(wider, None, 0)
    assert network.spec == wider and preset.mean != LARGER_PRESET.mean


# ---- which pretrained weights there are


@dataclass
class FakeModel:
    """Weights of a hub that are in the cache, or can be fetched, or cannot."""

    hub: FakeHub
    name: str
    in_cache: bool

    def cached(self) -> Path | None:
        return Path("weights") if self.in_cache else None

    def fetch(self, *, quiet: bool = False) -> Path:
        if not self.in_cache and self.hub.offline:
            self.hub.failures.append(self.name)
            raise InputError(f"cannot fetch {self.name}: no network", "put the file there yourself")
        self.hub.fetched.append((self.name, quiet))
        return Path("weights")


@dataclass
class FakeHub:
    """torchvision and timm without either.

    Attributes:
        has: names of networks by hub.
        cache: what needs no download, as ``hub:network``.
    """

    has: dict[str, tuple[str, ...]]
    offline: bool = False
    cache: tuple[str, ...] = ()
    fetched: list[tuple[str, bool]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def model(self, source: str, spec: NetSpec) -> FakeModel:
        if spec.name not in self.has.get(source, ()):
            raise InputError(f"{source} has no weights of {spec.name}")
        name = f"{source}:{spec.name}"
        return FakeModel(self, name, name in self.cache)


EVERYTHING = {"torchvision": ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"),
              "timm": ("mobilenet_v2", "efficientnet_lite0", "mnasnet_a1")}  # fmt: skip


def sources(
    monkeypatch: pytest.MonkeyPatch, hub: FakeHub, asked: tuple[str, ...] = (AUTO,),
    network: NetSpec | None = None, *, tiny: bool = False, quiet: bool = False,
) -> tuple[dict[str, tuple[NetSpec, str]], list[str]]:  # fmt: skip
    monkeypatch.setattr(initial_weights, "hub", SimpleNamespace(model=hub.model))
    text: list[str] = []
    return pretrained_sources(asked, network, FAMILY, text.append, tiny=tiny, quiet=quiet), text


def test_the_first_hub_that_has_a_network_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(EVERYTHING)
    networks, text = sources(monkeypatch, hub, quiet=True)
    assert {name: source for name, (_, source) in networks.items()} == {
        "mobilenet_v3_large": "torchvision", "mobilenet_v2": "torchvision", "efficientnet_lite0": "timm",
        "mobilenet_v3_small": "torchvision", "mnasnet_a1": "timm",
    }  # fmt: skip
    assert list(networks) == [name for name in PRETRAINED_FAMILY if name in networks]
    assert all(spec == FAMILY[name] for name, (spec, _) in networks.items())
    assert text == [] and all(quiet for _, quiet in hub.fetched)


def test_without_a_network_one_line_and_from_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(EVERYTHING, offline=True)
    networks, text = sources(monkeypatch, hub)
    assert networks == {}
    (line,) = text
    assert "no network" in line and "training from scratch" in line and "\n" not in line
    assert len(hub.failures) == 1  # no second download is waited for


def test_without_a_network_the_caches_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(EVERYTHING, offline=True, cache=("timm:mobilenet_v2", "timm:mnasnet_a1"))
    networks, text = sources(monkeypatch, hub)
    assert {name: source for name, (_, source) in networks.items()} == {
        "mobilenet_v2": "timm", "mnasnet_a1": "timm"
    }  # fmt: skip
    (line,) = text
    assert "mobilenet_v2, mnasnet_a1" in line and "from scratch" not in line


def test_a_named_network_is_the_only_one_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(EVERYTHING)
    networks, _ = sources(monkeypatch, hub, network=V2)
    assert networks == {"mobilenet_v2": (V2, "torchvision")}
    assert sources(monkeypatch, hub, network=replace(TINY, name="own")) == ({}, [])


def test_none_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(EVERYTHING)
    assert sources(monkeypatch, hub, (NONE,)) == ({}, [])
    assert sources(monkeypatch, hub, (NONE,), V2) == ({}, [])
    assert hub.fetched == []


def test_tiny_images_are_trained_from_scratch_unless_weights_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = FakeHub(EVERYTHING)
    networks, (line,) = sources(monkeypatch, hub, tiny=True)
    assert networks == {} and hub.fetched == [] and "tiny" in line and "from scratch" in line
    networks, text = sources(monkeypatch, hub, ("torchvision",), V2, tiny=True)
    assert networks == {"mobilenet_v2": (V2, "torchvision")} and text == []


# ---- files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    save_weights(build(TINY), folder / "ours.safetensors")
    narrow = FAMILY["mobilenet_v3_small"].width(0.5)
    safetensors.torch.save_file(build(narrow).state_dict(), folder / "bare.safetensors")
    safetensors.torch.save_file({"some.weight": torch.zeros(3)}, folder / "foreign.safetensors")
    save_weights(randomized(build(TINY)), folder / "also_ours.safetensors")  # type: ignore[arg-type]
    return {path.stem: str(path) for path in folder.iterdir()}


def of_files(*asked: str, network: NetSpec | None = None) -> dict[str, tuple[NetSpec, str]]:
    def never(line: str) -> None:
        raise AssertionError(line)

    return pretrained_sources(asked, network, FAMILY, never, tiny=False, quiet=True)


def test_files_say_or_show_which_network_they_are_of(files: dict[str, str]) -> None:
    networks = of_files(files["ours"], files["bare"])
    assert list(networks) == ["tiny", FAMILY["mobilenet_v3_small"].width(0.5).name]
    assert networks["tiny"] == (TINY, files["ours"])
    spec, source = networks[FAMILY["mobilenet_v3_small"].width(0.5).name]
    assert covers(spec, FAMILY["mobilenet_v3_small"].width(0.5)) and source == files["bare"]


def test_a_file_goes_with_the_network_that_is_named(files: dict[str, str]) -> None:
    assert of_files(files["foreign"], network=V2) == {"mobilenet_v2": (V2, files["foreign"])}


@pytest.mark.parametrize(
    ("names", "network", "words"),
    [
        (["foreign"], None, ["foreign.safetensors", "--seed-network"]),
        (["nowhere.safetensors"], None, ["no such weights file: nowhere.safetensors"]),
        (["torchvision"], None, ["torchvision", "--seed-network"]),
        (["ours", "bare"], V2, ["2 weights", "one --weights"]),
        (["ours", "also_ours"], None, ["ours.safetensors", "also_ours.safetensors", "tiny"]),
    ],
    ids=["of an unknown network", "missing", "a hub", "two for one network", "two of one network"],
)
def test_what_is_refused(
    names: list[str], network: NetSpec | None, words: list[str], files: dict[str, str]
) -> None:
    with pytest.raises(InputError) as caught:
        of_files(*(files.get(name, name) for name in names), network=network)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)
