"""A detector or segmenter that begins with the backbone of another network, and with its head where it can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mobilefit.arch import FAMILY, NetSpec, difference
from mobilefit.arch.heads import ClassifierHead
from mobilefit.arch.rows import Block
from mobilefit.errors import InputError
from mobilefit.nn.head_weights import adopt, class_tensors, flattened
from mobilefit.nn.network import Network
from mobilefit.nn.weights import Saved, Trained, read_weights, trained, trained_with


def classifier_of(spec: NetSpec) -> NetSpec:
    """The classifier of the family whose rows a detector or segmenter has, in its widths: with the strides
    that dilation took the place of, the last layer and a head. Any other network is given a head alone."""
    alike = [
        base for base in FAMILY.values()
        if len(base.blocks) == len(spec.blocks) and base.stem.act == spec.stem.act
        and all(_bare(a, b) == _bare(b, a) for a, b in zip(base.blocks, spec.blocks))
    ]  # fmt: skip
    if not alike:
        return replace(spec, head=ClassifierHead())
    # EfficientNet-Lite1 and Lite2 differ in widths alone
    base = max(alike, key=lambda base: sum(a == b for a, b in zip(base.widths, spec.widths)))
    blocks = tuple(replace(own, expand=b.expand, out=b.out) for own, b in zip(base.blocks, spec.blocks))
    return replace(spec, blocks=blocks, last=spec.last or base.last, head=base.head, name=base.name)


def read_backbone(
    spec: NetSpec, source: str | Path | Mapping[str, Tensor], name: str | None = None
) -> Trained:
    """Weights whose backbone is to be that of ``spec``: a classifier's in any layout, a detector's, a
    segmenter's.

    Args:
        name: what messages call them; a file is called by its path.

    Returns:
        What :func:`mobilefit.nn.weights.trained` does for a classifier of the same rows. The widths of its
        spec are those that the weights have. Tensors of a head are among its state.

    Raises:
        InputError: an unreadable file, or an unknown layout.
    """
    if isinstance(source, Mapping):
        saved, name = Saved(state=dict(source)), name or "the state dict"
    else:
        saved, name = read_weights(Path(source)), name or str(source)
    hidden_norm = any(key in saved.state for key in _HIDDEN_NORM)
    hidden = 1 if hidden_norm or any(key in saved.state for key in _HIDDEN) else None
    with torch.device("meta"):  # shapes alone
        network = Network(replace(spec, head=ClassifierHead(hidden=hidden, hidden_norm=hidden_norm)))
    found = trained(network, flattened(saved.state), name)
    own = saved.spec or found.spec
    return replace(
        found, saved=saved, spec=trained_with(found.spec, own.padding, own.norm.eps)
    )


_HIDDEN = ("head.hidden.weight", "classifier.3.weight", "conv_head.bias")
"""What a classifier with a hidden layer (V3) has: ours, torchvision's, timm's."""
_HIDDEN_NORM = ("head.hidden.norm.weight", "norm_head.weight")
"""What one with a normalised hidden layer (V4) has: ours, timm's."""


def backbone_from(network: Network, found: Trained, *, new_classes: bool = False) -> str:
    """Start a network with the backbone of another, a classifier of ImageNet say; and with its head, if it
    is of the same kind.

    Layers are loaded in their order up to the first whose widths differ, with padding and epsilon as in
    their training. That one, what follows, and the head stay fresh. (``adapt.transfer`` makes a backbone
    narrower by its strongest channels; :func:`mobilefit.jobs.pretrained.start_task` begins with that.) A
    dilated backbone takes the weights of the same rows with strides. Of a head of the same kind the
    predictions of classes stay fresh where they are of another number.

    Args:
        network: with fresh weights.
        found: what :func:`read_backbone` gave for its spec.
        new_classes: the classes are others even if they are as many.

    Returns:
        A line that says what was loaded, and what is fresh.

    Raises:
        InputError: the weights are of other rows, or their widths differ before the last stage.
    """
    _require_rows(network.spec, found)
    layers = _layers(network)
    fits = [_fits(layer, f"backbone.{name}.", found.state) for name, layer in layers]
    count = fits.index(False) if False in fits else len(fits)
    if count < len(layers):
        _require_tail(network.spec, layers[count], found)
    for name, layer in layers[:count]:
        _load(layer, f"backbone.{name}.", found.state)
    adopt(network, found.spec)
    if count < len(layers):
        return (f"the backbone up to {layers[count - 1][0]} is from {found.name}; {layers[count][0]} and what "
                "follows are fresh")  # fmt: skip
    return _head_from(network, found, new_classes)


def _head_from(network: Network, found: Trained, new_classes: bool) -> str:
    """Load the head if it is of the same kind; the line for a network whose whole backbone was loaded."""
    head, logits = network.spec.head, class_tensors(network.spec.head)
    saved = found.saved.spec
    other = [key for key, fits in _fitting(network.head, "head.", found.state) if not fits]
    same = saved is None or saved.head.bare() == head.bare()
    if not same or not set(other) <= set(logits):
        return f"the whole backbone is from {found.name}; the head is fresh"
    new_classes = new_classes or bool(other)
    _load(network.head, "head.", {
        key: value for key, value in found.state.items() if not new_classes or key not in logits
    })  # fmt: skip
    if not new_classes:
        return f"backbone and head are from {found.name}; nothing is fresh"
    return f"backbone and head are from {found.name}; the predictions of classes are fresh"


def _layers(network: Network) -> list[tuple[str, nn.Module]]:
    """The layers of the backbone by their names in the cost, in order of execution."""
    body = network.backbone
    rows = [(f"blocks.{index}.{name}", layer) for index, row in enumerate(body.blocks)
            for name, layer in row.named_children()]  # fmt: skip
    found = [("stem", body.stem), *rows, ("last", body.last)]
    return [(name, layer) for name, layer in found if layer.state_dict()]


def _fitting(
    layer: nn.Module, prefix: str, state: Mapping[str, Tensor]
) -> list[tuple[str, bool]]:
    """A layer's tensors by their full names, and whether one of that name and shape is there."""
    shapes = {prefix + key: value.shape for key, value in layer.state_dict().items() if value.ndim}
    return [(key, key in state and state[key].shape == shape) for key, shape in shapes.items()]


def _fits(layer: nn.Module, prefix: str, state: Mapping[str, Tensor]) -> bool:
    return all(fits for _, fits in _fitting(layer, prefix, state))


def _load(layer: nn.Module, prefix: str, state: Mapping[str, Tensor]) -> None:
    """Load what is there; a layer keeps the rest."""
    layer.load_state_dict(
        {key: state.get(prefix + key, own) for key, own in layer.state_dict().items()}
    )


def _require_tail(spec: NetSpec, layer: tuple[str, nn.Module], found: Trained) -> None:
    """See that widths differ in the last stage alone, where detectors and segmenters are halved."""
    name, module = layer
    starts = [i for i, block in enumerate(spec.blocks) if block.stride == 2 or block.skip == "none"]
    tail = [f"blocks.{index}." for index in range(max(starts, default=0), len(spec.blocks))]
    if name == "last" or name.startswith(tuple(tail)):
        return
    key, own = next((key, value) for key, value in module.state_dict().items() if value.ndim)
    given = found.state.get(f"backbone.{name}.{key}")
    there = "missing" if given is None else "x".join(map(str, given.shape))
    raise InputError(
        f"{found.name} has another backbone than '{spec.name}': {name}.{key} is {there}, the network's "
        f"is {'x'.join(map(str, own.shape))}",
        "give weights of the network that the detector or segmenter is made of, of the same width",
    )


def _require_rows(spec: NetSpec, found: Trained) -> None:
    """See that a file's own spec has the same activations and strides: these are in no tensor."""
    saved = found.saved.spec
    if saved is None:
        return
    if len(saved.blocks) == len(spec.blocks):
        changed = difference(*(
            replace(base, name="rows", input_size=1, input_width=None, padding="same", norm=spec.norm,
                    stem=replace(base.stem, out=1), last=None, head=ClassifierHead(),
                    blocks=tuple(map(_bare, base.blocks, other.blocks)))
            for base, other in ((saved, spec), (spec, saved))
        ))  # fmt: skip
    else:
        changed = [f"it has {len(saved.blocks)} blocks, not {len(spec.blocks)}"]
    if changed:
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise InputError(
            f"{found.name} has another backbone than '{spec.name}': {'; '.join(changed[:4])}{more}",
            f"it was saved from {saved.name}",
        )


def _bare(block: Block, other: Block) -> Block:
    """A row without widths, and without its stride where a dilation may have taken its place in one."""
    free = any(b.dilation > 1 or (b.skip == "none" and b.stride == 1) for b in (block, other))
    return replace(
        block, out=1, expand=None if block.expand is None else 1, dilation=1,
        stride=1 if free else block.stride, skip="identity" if free else block.skip,
    )  # fmt: skip
