"""What the networks of a run begin with: a larger network of the run, pretrained weights, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mobilefit import adapt
from mobilefit.adapt import ChannelImportance
from mobilefit.arch import NetSpec
from mobilefit.data import Preset
from mobilefit.errors import InputError
from mobilefit.jobs import kinds
from mobilefit.jobs.kinds import Kind
from mobilefit.nn import Network, hub, weights
from mobilefit.nn.weights import layer_widths, rows
from mobilefit.train import Recipe

AUTO = "auto"
NONE = "none"
PRETRAINED_FAMILY = (
    "mobilenetv4_conv_small", "mobilenet_v3_large", "mobilenet_v2", "efficientnet_lite0",
    "mobilenet_v3_small", "mobilenetv4_conv_medium", "efficientnet_lite1", "mnasnet_a1",
)  # fmt: skip
"""Networks whose weights are looked for where none are named."""


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """Gives a network of the run its first weights.

    Attributes:
        task: of the run.
        data: of the task; its classes tell whether a classifier's last layer can stay.
        larger: a trained network of the run. A network of the same blocks that is nowhere wider begins
            with its strongest channels, last layer included.
        recipe: of the run: which channels are the strongest is asked of training images that are augmented by
            it (see :func:`mobilefit.adapt.gates_on`); needed with ``larger``.
        quiet: show no download.
    """

    task: Kind
    data: Any
    recipe: Recipe | None = None
    larger: Network | None = None
    larger_preset: Preset | None = None
    quiet: bool = True

    def network(
        self, spec: NetSpec, source: str | None, seed: int, whole: NetSpec | None = None
    ) -> tuple[Network, Preset]:
        """A network and how images become its input.

        Args:
            spec: for the data's classes, at its size.
            source: pretrained weights, where no larger network of the run serves.
            seed: of what is fresh.
            whole: the network that these weights are of, where ``spec`` is a narrower one: it begins with
                the strongest channels.

        Raises:
            InputError: the weights cannot be had or are another network's.
        """
        usual = self.task.preset(self.data, spec)
        if self.larger is not None and self.larger_preset is not None and covers(self.larger.spec, spec):
            preset = _normalised_as(usual, self.larger_preset)
            spec = _trained_as(spec, self.larger.spec)
            return adapt.transfer(self.larger, spec, self._importance(spec)), preset
        if source is not None and whole is not None:
            whole = whole.resolution(*spec.image_shape)
            start = kinds.begun(self.task, whole, source, self.data, seed=seed, quiet=self.quiet)
            return adapt.transfer(start.network, _trained_as(spec, start.network.spec)), start.preset
        start = kinds.begun(self.task, spec, source, self.data, seed=seed, quiet=self.quiet)
        return start.network, start.preset

    def _importance(self, spec: NetSpec) -> ChannelImportance | None:
        """Which channels of the larger network stay; ``None``: all of them do."""
        assert self.larger is not None and self.larger_preset is not None
        if layer_widths(spec) == layer_widths(self.larger.spec):
            return None
        assert self.recipe is not None, "which channels matter is asked of training images"
        return adapt.gates_on(self.larger, self.data.train, self.larger_preset, self.recipe, self.task.port)


def covers(larger: NetSpec, spec: NetSpec) -> bool:
    """Whether a network's weights serve another: the same blocks, and nowhere narrower."""
    if larger.task != spec.task or rows(larger) != rows(spec):
        return False
    widths = layer_widths(larger)
    own = layer_widths(spec)
    return own.keys() == widths.keys() and all(width <= widths[layer] for layer, width in own.items())


def _trained_as(spec: NetSpec, larger: NetSpec) -> NetSpec:
    return weights.trained_with(spec, larger.padding, larger.norm.eps)


def _normalised_as(usual: Preset, other: Preset) -> Preset:
    return replace(usual, mean=other.mean, std=other.std)


def pretrained_sources(
    asked: Sequence[str], network: NetSpec | None, family: Mapping[str, NetSpec],
    log: Callable[[str], None], *, tiny: bool, quiet: bool,
) -> dict[str, tuple[NetSpec, str]]:  # fmt: skip
    """Networks with their pretrained weights, by name; empty: from scratch.

    Args:
        asked: ``auto``, ``none``, a hub, or files (see :func:`mobilefit.jobs.pretrained.start`); of a file
            without a network to go with it, the network is recognised.
        network: the one that the user named.
        family: networks to look for otherwise.
        log: takes a line.
        tiny: the images are so small that pretrained filters see nothing in them.
        quiet: show no download.

    Raises:
        InputError: a file that is missing or of no network that is known; two of one network.
    """
    if list(asked) == [NONE]:
        return {}
    if list(asked) != [AUTO]:
        if network is not None:
            if len(asked) > 1:
                raise InputError(f"one network is named, and {len(asked)} weights", "give one --weights")
            return {network.name: (network, asked[0])}
        return _of_files(asked)
    if tiny:
        log("the images are tiny: training from scratch (pretrained filters are for photos)")
        return {}
    names = [n for n in PRETRAINED_FAMILY if n in family]
    networks = {name: family[name] for name in names} if network is None else {network.name: network}
    return _from_hubs(networks, log, quiet=quiet)


def _of_files(asked: Sequence[str]) -> dict[str, tuple[NetSpec, str]]:
    sources: dict[str, tuple[NetSpec, str]] = {}
    for source in asked:
        name, pair = _recognised(source)
        if name in sources:
            raise InputError(
                f"{sources[name][1]} and {source} are both weights of {name}", "give one of them"
            )
        sources[name] = pair
    return sources


def _recognised(source: str) -> tuple[str, tuple[NetSpec, str]]:
    """The network that a file's weights are of."""
    path = Path(source)
    if source in ("torchvision", "timm") or not path.is_file():
        raise InputError(
            f"no such weights file: {source}",
            "name the network with --seed-network, or give files of weights",
        )
    saved = weights.read_weights(path)
    spec = saved.spec or weights.recognised(saved.state, source)
    if spec is None:
        raise InputError(
            f"{source} does not say which network it is of", "name the network with --seed-network"
        )
    return spec.name, (spec, source)


def _from_hubs(
    networks: Mapping[str, NetSpec], log: Callable[[str], None], *, quiet: bool
) -> dict[str, tuple[NetSpec, str]]:
    """What torchvision and timm have of the networks, from their caches or downloaded.

    The first download that fails ends the downloads: what is in the caches is still used.
    """
    sources: dict[str, tuple[NetSpec, str]] = {}
    offline: InputError | None = None
    for name, spec in networks.items():
        for hub_name in ("torchvision", "timm"):
            try:
                model = hub.model(hub_name, spec)
            except InputError:
                continue  # that hub has no weights of this network
            assert model is not None
            if offline is not None and model.cached() is None:
                continue
            try:
                model.fetch(quiet=quiet)
            except InputError as error:
                offline = error
                continue
            sources[name] = spec, hub_name
            break
    if offline is not None:
        rest = f"those in the caches: {', '.join(sources)}" if sources else "none, training from scratch"
        log(f"{offline.message}; pretrained weights used: {rest}")
    return sources
