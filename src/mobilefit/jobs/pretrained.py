"""Where a training starts from: pretrained weights of any source, and the teachers of distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilefit.adapt import transfer
from mobilefit.arch import NetSpec
from mobilefit.data import ClassificationData, Preset
from mobilefit.data.names import spelling
from mobilefit.errors import InputError, did_you_mean
from mobilefit.nn import Network, build, hub, weights
from mobilefit.nn.backbone_weights import backbone_from, classifier_of, read_backbone
from mobilefit.nn.hub import EFFICIENTNET_LITE, IMAGENET, Triple
from mobilefit.nn.weights import Saved, Trained, layer_widths, listed
from mobilefit.runs import file_sha256
from mobilefit.train import SoftTargets

EXACT = 1e-3
"""Largest difference, in parts of the largest logit, between a peer's outputs and our network's."""
_NORMALISATION = {"torchvision": IMAGENET, "efficientnet-pytorch": EFFICIENTNET_LITE}
"""Mean and deviation of weights in a layout that says them by what it is."""


# ---- weights to start from


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a training begins with."""

    network: Network
    preset: Preset
    """The data's usual one; with pretrained weights by the mean and deviation that they know."""
    note: str = ""
    """Where the weights are from, by content, and what was done to them; a line."""


def start(
    spec: NetSpec, source: str | Path | None, *, data: ClassificationData,
    resolution: int | None = None, seed: int = 0, quiet: bool = False,
) -> Start:  # fmt: skip
    """A network with fresh weights by the seed, or with pretrained ones.

    Padding and epsilon become those that the weights were trained with. The last layer is kept if
    the weights are of the data's classes, and starts anew otherwise. Of weights of a wider network
    the channels with the largest L2 norm are kept.

    Args:
        spec: the network, with the data's number of classes.
        source: a file (our own, torchvision's, timm's or efficientnet-pytorch's layout), or a hub's weights: see
            :mod:`mobilefit.nn.hub`. ``None``: fresh weights.
        data: what it will be trained on: its classes, its usual preset.
        resolution: of the preset, in pixels; the spec's own when left out.
        seed: of what is fresh.
        quiet: show no download.

    Raises:
        InputError: no such file or model, a hub that does not answer, or weights of another network
            (other rows, or narrower): names the tensors, and the network that they are of.
    """
    usual = data.preset(resolution or spec.input_size)
    network = fresh(spec, seed)
    if source is None:
        return Start(network=network, preset=usual)
    model = hub.model(str(source), spec)
    if model is None:
        path = _file(str(source))
        found = weights.trained(network, path)
    else:
        like = _rehearsed(network, model)  # before anything is downloaded
        path = model.fetch(quiet=quiet)
        found = weights.trained(like, path)
    network, done = _carried(network, found, data.classes)
    mean, std, unknown = _normalisation(found, model, usual)
    told = f"weights: {path if model is None else f'{model.title}, {path.name}'} ({_content(path)})"
    return Start(
        network=network, preset=replace(usual, mean=mean, std=std),
        note="; ".join((told, *done, *unknown)),
    )  # fmt: skip


def start_task(
    spec: NetSpec, source: str | Path | None, usual: Preset, classes: Sequence[str], *, seed: int = 0,
    quiet: bool = False,
) -> Start:  # fmt: skip
    """A detector or segmenter with fresh weights, with a classifier's backbone, or as it was trained.

    Of a wider backbone, whose last stage is not halved say, the channels with the largest L2 norm are kept.

    Args:
        spec: the network, with the data's number of classes and its input's size.
        source: as of :func:`start`; also a network of the same task, ours or torchvision's, whose head is
            kept too (but for the classes' predictions, if the classes are others).
        usual: the data's preset; its mean and deviation become those of the weights.
        classes: the data's.

    Raises:
        InputError: as of :func:`start`.
    """
    if source is None:
        return Start(network=fresh(spec, seed), preset=usual)
    model = hub.model(str(source), classifier_of(spec))
    path = _file(str(source)) if model is None else model.fetch(quiet=quiet)
    found = read_backbone(spec, path, path.name)
    network = fresh(_as_wide(spec, found.spec), seed)
    done = [backbone_from(network, found, new_classes=found.saved.classes not in (None, tuple(classes)))]
    network, note = _narrowed(network, weights.trained_with(spec, network.spec.padding, network.spec.norm.eps))
    done += note
    mean, std, unknown = _normalisation(found, model, usual)
    told = f"weights: {path if model is None else f'{model.title}, {path.name}'} ({_content(path)})"
    return Start(
        network=network, preset=replace(usual, mean=mean, std=std), note="; ".join((told, *done, *unknown))
    )


def _as_wide(spec: NetSpec, theirs: NetSpec) -> NetSpec:
    """The network with a backbone as wide as weights of its rows have it, if its own is narrower."""
    blocks = tuple(replace(own, expand=b.expand, out=b.out) for own, b in zip(spec.blocks, theirs.blocks, strict=True))
    last = replace(spec.last, out=theirs.last.out) if spec.last and theirs.last else spec.last
    whole = replace(spec, stem=replace(spec.stem, out=theirs.stem.out), blocks=blocks, last=last)
    return spec if _wider(spec, whole) or _torn(spec, whole) else whole


def fresh(spec: NetSpec, seed: int = 0) -> Network:
    """A network with random weights by the seed; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(spec)


def _content(path: Path) -> str:
    return f"SHA-256 {file_sha256(path)[:12]}"


def _file(source: str) -> Path:
    path = Path(source)
    if not path.is_file():
        raise InputError(
            f"no such weights file: {path}", did_you_mean(source, ("torchvision", "timm")) or None
        )
    return path


def _rehearsed(new: Network, model: hub.Model) -> Network:
    """A network with the model's constants, which was seen to compute what the model does."""
    peer = model.build()
    known = hub.constants(peer)
    with torch.random.fork_rng(devices=[]):
        like = new if known is None else Network(weights.trained_with(new.spec, *known))
    found = weights.trained(like, peer.state_dict(), model.title)
    ours = _whole(found).eval()
    _require_narrower(new.spec, found)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) - 0.5
    with torch.no_grad():
        expected, given = peer(images), ours(images)
    if not (given - expected).abs().max() <= EXACT * expected.abs().max():
        raise InputError(
            f"{model.title} has the tensors of '{new.spec.name}' but computes something else",
            "its activations or strides are others",
        )
    return like


def _whole(found: Trained) -> Network:
    """The network that the weights are of, whatever its widths."""
    with torch.random.fork_rng(devices=[]):
        network = Network(found.spec)
    weights.load_trained(network, found)
    return network


def _require_narrower(spec: NetSpec, found: Trained) -> None:
    """See that every channel of a network is there to be taken."""
    if wider := _wider(spec, found.spec):
        raise InputError(
            f"{found.name} fits another network than '{spec.name}': " + listed(wider),
            "weights can be carried over to a narrower network, not to a wider one",
        )
    if torn := _torn(spec, found.spec):
        raise InputError(
            f"{found.name} has a shortcut in {', '.join(torn)}, where '{spec.name}' has none",
            "give the rows that share a shortcut one width",
        )


def _wider(spec: NetSpec, theirs: NetSpec) -> list[str]:
    """Where a network is wider than weights of its rows."""
    have = layer_widths(theirs)
    return [f"{place} is {have[place]}, the network's is {width}"
            for place, width in layer_widths(spec).items() if width > have[place]]  # fmt: skip


def _torn(spec: NetSpec, theirs: NetSpec) -> list[str]:
    """The blocks with a shortcut in the weights alone."""
    pairs = zip(_residuals(theirs), _residuals(spec), strict=True)
    return [f"blocks.{row}" for row, (there, here) in enumerate(pairs) if there and not here]


def _residuals(spec: NetSpec) -> list[bool]:
    return [block.has_residual(width) for block, width in zip(spec.blocks, spec.widths)]


def _narrowed(network: Network, target: NetSpec) -> tuple[Network, list[str]]:
    """A network of the same rows in these widths, the strongest channels kept, and what that was."""
    have, kept = (sum(layer_widths(spec).values()) for spec in (network.spec, target))
    if kept == have:
        return network, []
    with torch.random.fork_rng(devices=[]):
        network = transfer(network, target)
    return network, [f"of its {have} channels the {kept} with the largest L2 norm in their layers are kept"]


def _carried(
    new: Network, found: Trained, classes: tuple[str, ...]
) -> tuple[Network, list[str]]:
    """The weights in a network of the widths that are asked for, and what was done for that."""
    _require_narrower(new.spec, found)
    outputs, wanted = found.spec.head.num_classes, new.spec.head.num_classes
    target = weights.trained_with(new.spec.classes(outputs), found.spec.padding, found.spec.norm.eps)
    network, done = _narrowed(_whole(found), target)
    network.spec = target.classes(wanted)
    if outputs != wanted or found.saved.classes not in (None, classes):
        network.head.logits = new.head.logits  # type: ignore[method-assign]
        done.append(f"a new last layer for {wanted} classes in the place of that for {outputs}")
    return network, done


def _normalisation(
    found: Trained, model: hub.Model | None, usual: Preset
) -> tuple[Triple, Triple, list[str]]:
    """Mean and deviation that the weights were trained with, and a note where nothing tells them."""
    if model is not None:
        return model.mean, model.std, []
    if found.layout in _NORMALISATION:
        return (*_NORMALISATION[found.layout], [])
    known = _preset(found.saved, found.name) or usual
    if found.layout == "mobilefit":
        return known.mean, known.std, []
    if found.spec.padding == "torch":  # no tf_ model has these layers: padding and epsilon are certain
        published = hub.model("timm", found.spec)
        assert published is not None
        return published.mean, published.std, [
            f"timm's layout does not tell the normalisation, which is taken to be that of {published.title}; "
            f"for another say timm:NAME={found.name}"
        ]
    return usual.mean, usual.std, [
        "timm's layout does not tell padding and normalisation, which are taken to be TensorFlow's "
        f"(timm's tf_ models); for others say timm:NAME={found.name}"
    ]


def _preset(saved: Saved, name: str) -> Preset | None:
    if saved.preset is None:
        return None
    try:
        return Preset.from_dict(saved.preset)
    except InputError as error:
        raise InputError(f"{name}: {error.message}", error.hint) from error


# ---- our own files


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A network of our own format, and what its file says of its training."""

    path: Path
    network: Network
    saved: Saved

    def preset(self, data: ClassificationData) -> Preset:
        """How images become the network's input: as in its training.

        The data's usual preset, where the file does not say (it is from before files did).

        Raises:
            InputError: the network was trained for other classes than the data's.
        """
        outputs = self.network.spec.head.num_classes
        check_classes(self.path, outputs, self.saved.classes, data)
        return _preset(self.saved, str(self.path)) or data.preset(self.network.spec.input_size)


def opened(path: Path) -> Opened:
    """A network that mobilefit trained.

    Raises:
        InputError: the file is missing, damaged, or not our own format.
    """
    saved = weights.read_weights(path)
    return Opened(path=path, network=weights.restored(saved, str(path)), saved=saved)


def check_classes(
    model: Path, outputs: int, known: tuple[str, ...] | None, data: ClassificationData
) -> None:
    """See that a file's outputs are the data's classes, by name where the file tells them.

    Raises:
        InputError: they are not.
    """
    same = known is None or [*map(spelling, known)] == [*map(spelling, data.classes)]
    if outputs != len(data.classes) or not same:
        named = f" ({_few(known)})" if known else ""
        raise InputError(
            f"{model} tells {outputs} classes apart{named}, {data.name} has {len(data.classes)} "
            f"({_few(data.classes)})",
            "give data with the classes that it was trained on",
        )


def _few(classes: Sequence[str]) -> str:
    return ", ".join(classes[:5]) + (" ..." if len(classes) > 5 else "")


# ---- teachers


class Teacher:
    """A trained network that answers the student's batches: ``[N, 3, H, W]`` to logits ``[N, k]``.

    Images come as the student sees them; the teacher's own normalisation and size are brought about
    here: few networks know at half the size what they know at their own. It follows the batch to its
    device and computes in the precision around it (``torch.autocast``). No gradient goes through it.

    What is lost in the student's small images stays lost: where the recipe allows it, :meth:`soft_targets`
    shows the same crops at the teacher's size.

    Attributes:
        source: what it was made of, for records.
        side: of the images that it sees, pixels.
    """

    def __init__(
        self, network: nn.Module, source: str, *, student: Preset, mean: Triple, std: Triple,
        side: int,
    ) -> None:  # fmt: skip
        self.source, self.side = source, side
        self._preset = replace(student, resolution=side, mean=mean, std=std)
        self._network = network.to(memory_format=torch.channels_last)
        ours, theirs = (torch.tensor(pair).view(2, 1, 3, 1, 1)
                        for pair in ((student.mean, student.std), (mean, std)))  # fmt: skip
        # (x * ours.std + ours.mean - theirs.mean) / theirs.std
        self._scale, self._shift = ours[1] / theirs[1], (ours[0] - theirs[0]) / theirs[1]
        self._same = (student.mean, student.std) == (mean, std)
        self._device = torch.device("cpu")

    def soft_targets(self, cache: Path | None = None) -> SoftTargets:
        """The same teacher, shown the images at its own resolution instead of the student's batch."""
        return SoftTargets(network=self._network, preset=self._preset, cache=cache)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits ``[N, k]``, float32, for images ``[N, 3, H, W]`` normalised by the student's preset."""
        if images.device != self._device:
            self._device = images.device
            self._network = self._network.to(self._device)
            self._scale, self._shift = self._scale.to(self._device), self._shift.to(self._device)
        if not self._same:
            images = images * self._scale + self._shift
        if tuple(images.shape[2:]) != (self.side, self.side):
            images = F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
        logits: Tensor = self._network(images.contiguous(memory_format=torch.channels_last))
        return logits.float()


@dataclass(frozen=True, kw_only=True)
class _Knowledge:
    """What a teacher is made of."""

    network: nn.Module
    mean: Triple
    std: Triple
    side: int
    classes: tuple[str, ...] | None = None


def teacher(
    source: str | Path, preset: Preset, classes: Sequence[str], *, side: int | None = None, quiet: bool = False
) -> Teacher:
    """The teacher of a distillation.

    Args:
        source: our own ``.safetensors``; a ``.pt2`` that mobilefit exported; a file of a network of
            the family in torchvision's or efficientnet-pytorch's layout; or ``torchvision:NAME``,
            ``timm:NAME``, or ``timm:NAME=FILE`` for a model with your own weights.
        preset: the student's: how its batches are normalised.
        classes: the data's.
        side: of the images that the teacher sees, pixels; ``None``: what it was made for, as its file or
            its hub says, and where nothing says it, the student's.
        quiet: show no download.

    Raises:
        InputError: no such file or model, weights of another model, other classes than the data's,
            or a model that takes no images of this size.
    """
    name = str(source)
    model = hub.model(name)
    if model is not None:
        if model.file is None:
            _require_outputs(name, model.classes, classes)  # before anything is downloaded
        made = model.trained(quiet=quiet)
        found = _Knowledge(network=made, mean=model.mean, std=model.std, side=model.side)
    else:
        found = _of_weights(_file(name), preset)
    if found.classes is not None and len(found.classes) == len(classes) and found.classes != tuple(classes):
        raise InputError(
            f"the teacher {name} was trained on other classes ({_few(found.classes)}) than the data's "
            f"({_few(classes)})",
            "train it on the data first",
        )
    made_of = Teacher(
        found.network, name, student=preset, mean=found.mean, std=found.std, side=side or found.side
    )
    _require_outputs(name, _outputs(made_of), classes)
    return made_of


def _of_weights(path: Path, student: Preset) -> _Knowledge:
    saved = weights.read_weights(path)
    if saved.spec is not None:
        preset = _preset(saved, str(path)) or replace(student, resolution=saved.spec.input_size)
        network = weights.restored(saved, str(path)).eval()
        return _Knowledge(
            network=network, mean=preset.mean, std=preset.std, side=preset.resolution,
            classes=saved.classes,
        )  # fmt: skip
    spec = weights.recognised(saved.state, str(path))
    with torch.random.fork_rng(devices=[]):
        found = None if spec is None else weights.trained(Network(spec), path)
    if spec is None or found is None or found.layout == "timm":
        raise InputError(
            f"{path} does not say which model it is, or how its images are prepared",
            f"name the model: timm:NAME={path} or torchvision:NAME={path}",
        )
    mean, std, side = student.mean, student.std, student.resolution
    if found.layout in _NORMALISATION:
        (mean, std), side = _NORMALISATION[found.layout], spec.input_size
    return _Knowledge(network=_whole(found).eval(), mean=mean, std=std, side=side)


def _outputs(made: Teacher) -> int:
    """How many logits it gives for an image."""
    try:
        return int(made(torch.zeros(1, 3, made.side, made.side)).shape[1])
    except Exception as error:  # torch's, or the model's own assertion
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise InputError(
            f"the teacher {made.source} takes no images of {made.side} px ({reason})",
            "give another --teacher-resolution",
        ) from error


def _require_outputs(name: str, outputs: int, classes: Sequence[str]) -> None:
    if outputs != len(classes):
        of_hub = ":" in name and "=" not in name
        raise InputError(
            f"the teacher {name} tells {outputs} classes apart, the data has {len(classes)}",
            "train it on the data first" + (f" and give its weights: {name}=FILE" if of_hub else ""),
        )
