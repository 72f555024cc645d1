"""Weights in and out: our own safetensors, and the layouts of torchvision, timm and efficientnet-pytorch.

A layout is recognised by its keys. Rows are matched in order, so that a scaled or searched network
loads as well as a published one. With the weights come the constants that they were trained with:
torchvision's are torch-padded, with its own batch norm epsilon, and our own files carry their spec;
the network is switched to these. timm's layout does not tell: its ``tf_`` models are as our specs
(``same``, 1e-3), its others want ``spec.padded("torch")`` and an epsilon of 1e-5, which a file of
MobileNetV1, PP-LCNet or MobileNetV4 always gets, as timm has no ``tf_`` model of these. The package
efficientnet-pytorch holds TensorFlow's weights, with TensorFlow's padding and epsilon.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mobilefit.arch import FAMILY, TORCHVISION, difference
from mobilefit.arch.rows import BatchNorm, Block, Padding
from mobilefit.arch.spec import NetSpec
from mobilefit.errors import InputError, naming
from mobilefit.nn import head_weights
from mobilefit.nn.blocks import Row
from mobilefit.nn.network import Network, build
from mobilefit.nn.program_weights import read_program
from mobilefit.nn.torch_checkpoint import is_program, read_checkpoint, require_plain, unwrapped
from mobilefit.parsing import parse_json, texts
from mobilefit.runs import atomic_file

Rename = Callable[[str], str | None]
NAMED = 4
"""Differences that a message names; of the others it tells how many there are."""


# ---- our own files


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a file of weights holds. Only our own say more than the tensors."""

    state: dict[str, Tensor]
    spec: NetSpec | None = None
    preset: dict[str, Any] | None = None
    """How the images of its training were prepared: ``data.Preset.to_dict()``."""
    classes: tuple[str, ...] | None = None
    """What the outputs stand for."""


def save_weights(
    network: Network, path: str | Path, *, preset: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
) -> None:  # fmt: skip
    """Write a network's weights, statistics and spec as one safetensors file, atomically.

    Args:
        preset: how images become the network's input, JSON-able; the file is then ready to be
            evaluated, exported and trained on with the same preparation.
        classes: what the outputs stand for.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    said = {"spec": network.spec.to_dict(), "preset": preset, "classes": classes}
    metadata = {key: json.dumps(value) for key, value in said.items() if value is not None}
    with atomic_file(Path(path)) as file:
        file.write(_serialized(state, {"format": "mobilefit", **metadata}))


def _serialized(state: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file, the same bytes for the same content: the library writes metadata in random order."""
    blob = safetensors.torch.save(state, metadata)
    end = 8 + int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + blob[end:]


def load_network(path: str | Path) -> Network:
    """The network that :func:`save_weights` wrote, built from its own spec.

    Raises:
        InputError: the file is missing, damaged, or not our own format.
    """
    return restored(read_weights(Path(path)), str(path))


def restored(saved: Saved, name: str) -> Network:
    """The network of a file that was read; ``name`` is the file's, for messages.

    Raises:
        InputError: it does not say which network it is, or its tensors are another's.
    """
    if saved.spec is None:
        raise InputError(
            f"{name} does not say which network it is",
            "mobilefit train --model NAME --weights FILE writes a file that does",
        )
    network = build(saved.spec)
    load_trained(network, Trained(
        state=saved.state, layout="mobilefit", name=name, spec=saved.spec, saved=saved
    ))  # fmt: skip
    return network


def read_weights(path: Path) -> Saved:
    """A weight file's tensors and, if it is ours, what else it says.

    Raises:
        InputError: the file is missing, damaged, or holds anything but tensors.
    """
    if not path.is_file():
        raise InputError(f"no such weights file: {path}")
    if path.suffix == ".safetensors":
        state, said = _read_safetensors(path)
    elif path.suffix == ".pt2" or is_program(path):
        with naming(path):
            state, description = read_program(path.read_bytes())
        state, said = unwrapped(state, str(path)), description or {}
    else:
        state, said = read_checkpoint(path), {}
    require_plain(state, str(path))
    with naming(path):
        return _described(state, said)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises half a dozen kinds for a damaged file
        reason = (str(error).strip().splitlines() or ["damaged"])[0][:120]
        raise InputError(f"{path} is not a readable weights file: {reason}", "it is damaged or cut short") from error
    with naming(path):
        return state, {key: _json(key, metadata[key]) for key in _SAID if key in metadata}


_SAID = ("spec", "preset", "classes")


def _json(key: str, text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise InputError(f"its '{key}' is not valid JSON ({error})") from error


def _described(state: dict[str, Tensor], said: Mapping[str, Any]) -> Saved:
    """Tensors with what a file of ours says of them."""
    spec, preset, classes = (said.get(key) for key in _SAID)
    if preset is not None and not isinstance(preset, dict):
        raise InputError("its 'preset' is not an object")
    return Saved(
        state=state, spec=None if spec is None else NetSpec.from_dict(spec), preset=preset,
        classes=None if classes is None else texts(classes, "classes"),
    )  # fmt: skip


# ---- weights for a network, whatever their layout


def load_weights(
    network: Network, source: str | Path | Mapping[str, Tensor], *, new_logits: bool = False
) -> str:
    """Load weights into a network, whatever the layout.

    Args:
        network: what :func:`~mobilefit.nn.build` returned.
        source: a ``.safetensors`` or ``.pth`` file, or a state dict: ours, torchvision's (V2, V3,
            MnasNet), timm's (any of the family) or efficientnet-pytorch's (EfficientNet-Lite).
        new_logits: keep the network's own last layer where the number of classes differs.

    Returns:
        The layout: ``mobilefit``, ``torchvision``, ``timm`` or ``efficientnet-pytorch``.

    Raises:
        InputError: unreadable file, unknown layout, or weights of another network (names the
            tensors and both shapes, and the network of the family that they are of).
    """
    found = trained(network, source)
    load_trained(network, found, new_logits=new_logits)
    return found.layout


def copy_weights(network: Network, spec: NetSpec) -> Network:
    """A network of the same layers for images of another size, with a copy of the weights and statistics.

    No layer's tensors depend on the size, so a student begins as its teacher, classifier included:
    ``copy_weights(teacher, teacher.spec.resolution(64))``. For other widths see
    :func:`mobilefit.adapt.transfer`.

    Returns:
        On the network's device, in its mode.

    Raises:
        InputError: the spec differs in more than its resolution.
    """
    differences = difference(network.spec.resolution(*spec.image_shape), spec)
    if differences:
        raise InputError(
            f"'{spec.name}' differs from '{network.spec.name}' in more than the resolution: {listed(differences)}",
            "change the resolution alone",
        )
    with torch.random.fork_rng(devices=[]):
        copied = Network(spec)
    copied.load_state_dict(network.state_dict())
    return copied.to(next(network.parameters()).device).train(network.training)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Weights under this package's names, and what they tell of the network they were trained in."""

    state: dict[str, Tensor]
    """Tensors by the names of :meth:`Network.state_dict`."""
    layout: str
    """``mobilefit``, ``torchvision`` or ``timm``: where the weights are from."""
    name: str
    """What messages call them: the file's path."""
    spec: NetSpec
    """The rows that were asked for, with the tensors' widths and number of classes, and with the
    padding and epsilon that the weights were trained with."""
    saved: Saved
    """As they were found."""


def trained(
    network: Network, source: str | Path | Mapping[str, Tensor], name: str = "the state dict"
) -> Trained:
    """Read weights for a network of these rows, of whatever widths and number of classes.

    Args:
        network: tells the rows that the tensors are matched to; stays as it is.
        source: as for :func:`load_weights`.
        name: what messages call a state dict; a file is called by its path.

    Raises:
        InputError: unreadable file, unknown layout, or a file that says that its rows are others.
    """
    if isinstance(source, Mapping):
        saved = Saved(state=dict(source))
    else:
        saved, name = read_weights(Path(source)), str(source)
    state = head_weights.flattened(saved.state)
    layout, rename, padding, eps = _layout(network, state, name)
    renamed = {}
    for key, value in state.items():
        own = rename(key)
        if own is not None:
            renamed[own] = value
    if saved.spec is not None:
        padding, eps = saved.spec.padding, saved.spec.norm.eps
    spec = trained_with(_fitted(network.spec, renamed), padding, eps)
    if saved.spec is not None and not mismatches(_shapes(spec), renamed):
        _require_rows(network.spec, saved.spec, name)
    return Trained(state=renamed, layout=layout, name=name, spec=spec, saved=saved)


def trained_with(spec: NetSpec, padding: Padding, eps: float) -> NetSpec:
    """The spec with the constants that weights were trained with."""
    return replace(spec, padding=padding, norm=replace(spec.norm, eps=eps))


def load_trained(network: Network, found: Trained, *, new_logits: bool = False) -> None:
    """Put weights, and the constants that they were trained with, into a network of their widths.

    Raises:
        InputError: they are of another network (names the tensors and both shapes).
    """
    own = network.state_dict()
    state = {key: _fit(value, own.get(key)) for key, value in found.state.items()}
    logits = head_weights.class_tensors(network.spec.head)
    if new_logits and any(_differs(state.get(key), own[key]) for key in logits):
        state |= {key: own[key] for key in logits}
    problems = mismatches(own, state)
    if problems:
        raise InputError(
            f"{found.name} fits another network than '{network.spec.name}': " + listed(problems),
            _hint(problems, found, logits),
        )
    network.load_state_dict({key: state.get(key, own[key]) for key in own})
    head_weights.adopt(network, found.spec)


def recognised(state: Mapping[str, Tensor], name: str) -> NetSpec | None:
    """The network of the family that weights in any layout are of, with their widths and constants.

    ``None``: none has these tensors.
    """
    for spec in (*FAMILY.values(), *TORCHVISION.values()):
        with torch.device("meta"):  # shapes alone
            try:
                found = trained(Network(spec), state, name)
            except InputError:  # no layout of ours
                return None
            if not mismatches(Network(found.spec).state_dict(), found.state):
                return replace(found.spec, name=_width_name(found.spec, spec))
    return None


def _width_name(found: NetSpec, base: NetSpec) -> str:
    """The name of a network of ``base``'s rows, with its width multiplier if it has a common one."""
    for percent in (100, 35, 50, 75, 125, 130, 140):
        scaled = base if percent == 100 else base.width(percent / 100)
        if layer_widths(scaled) == layer_widths(found):
            return scaled.name
    return f"{base.name} of other widths"


def layer_widths(spec: NetSpec) -> dict[str, int]:
    """Every width that a network of these rows may have, by its place: ``blocks.3.expand``."""
    widths: dict[str, int | None] = {"stem.out": spec.stem.out}
    for index, block in enumerate(spec.blocks):
        widths |= {f"blocks.{index}.expand": block.expand, f"blocks.{index}.out": block.out}
    widths |= {"last.out": None if spec.last is None else spec.last.out, **spec.head.widths}
    return {place: width for place, width in widths.items() if width is not None}


def rows(spec: NetSpec) -> NetSpec:
    """What two networks share that differ in widths alone: kernels, strides, activations and so on."""

    def bare(width: int | None) -> int | None:
        return None if width is None else 1

    return replace(
        spec, name="rows", input_size=1, input_width=None, padding="same", norm=BatchNorm(),
        stem=replace(spec.stem, out=1, scaling="always"),
        blocks=tuple(replace(b, out=1, expand=bare(b.expand)) for b in spec.blocks),
        last=None if spec.last is None else replace(spec.last, out=1, scaling="always"),
        head=spec.head.bare(),
    )  # fmt: skip


def _require_rows(spec: NetSpec, other: NetSpec, name: str) -> None:
    """See that a file's own spec differs in widths alone: strides and activations are in no tensor."""
    changed = difference(rows(other), rows(spec))
    if changed:
        raise InputError(
            f"{name} fits another network than '{spec.name}': " + listed(changed),
            f"build the network that the weights were saved from, {other.name}",
        )


def _shapes(spec: NetSpec) -> dict[str, Tensor]:
    with torch.device("meta"):
        return Network(spec).state_dict()


def _fitted(spec: NetSpec, state: Mapping[str, Tensor]) -> NetSpec:
    """The spec with the widths that the tensors have; its own where there is no such tensor."""

    def width(layer: str, own: Any) -> Any:
        tensor = state.get(f"{layer}.weight")
        return own if own is None or tensor is None or tensor.ndim == 0 else int(tensor.shape[0])

    def row(index: int, block: Block) -> Block:
        name = f"backbone.blocks.{index}"
        out = width(f"{name}.{'conv' if block.op == 'conv' else 'project'}.conv", block.out)
        return replace(block, expand=width(f"{name}.expand.conv", block.expand), out=out)

    last = spec.last
    return replace(
        spec,
        stem=replace(spec.stem, out=width("backbone.stem.conv", spec.stem.out)),
        blocks=tuple(row(index, block) for index, block in enumerate(spec.blocks)),
        last=None if last is None else replace(last, out=width("backbone.last.conv", last.out)),
        head=head_weights.fitted(spec.head, state),
    )  # fmt: skip


def _layout(
    network: Network, state: Mapping[str, Tensor], name: str
) -> tuple[str, Rename, Padding, float]:
    """Layout's name, its renaming, and the padding and epsilon that its weights were trained with."""
    padding, eps = network.spec.padding, network.spec.norm.eps
    if "backbone.stem.conv.weight" in state:
        return "mobilefit", lambda key: key, padding, eps
    if "conv_stem.weight" in state:
        if _has_tf_models(state):
            return "timm", _timm(network, state), padding, eps
        return "timm", _timm(network, state), "torch", 1e-5
    if "features.0.0.weight" in state:
        is_v3 = any(".block." in key for key in state)
        rename = _torchvision_v3(network) if is_v3 else _torchvision_v2(network)
        return "torchvision", rename, "torch", 1e-3 if is_v3 else 1e-5
    if "layers.0.weight" in state and "layers.3.weight" in state:
        return "torchvision", _torchvision_mnasnet(network, state), "torch", 1e-5
    if "_conv_stem.weight" in state:
        return "efficientnet-pytorch", _efficientnet_pytorch, "same", 1e-3
    raise InputError(
        f"{name} has none of the known layouts (mobilefit, torchvision, timm, efficientnet-pytorch)",
        f"its first tensor is '{next(iter(state), 'missing')}'",
    )


def _children(network: Network) -> list[list[str]]:
    """The layer names of each row, in order of execution."""
    rows = [row for row in network.backbone.blocks if isinstance(row, Row)]
    return [[name for name, _ in row.layers()] for row in rows]


_CONV_NORM = {"0": "conv", "1": "norm"}


def _feature(index: int, rows: list[list[str]]) -> str | None:
    """torchvision's ``features.N`` as stem or last convolution; ``None`` for a row."""
    return {0: "backbone.stem", len(rows) + 1: "backbone.last"}.get(index)


def _torchvision_v2(network: Network) -> Rename:
    rows = _children(network)

    def rename(key: str) -> str | None:
        if key.startswith("classifier.1."):
            return key.replace("classifier.1", "head.logits")
        if found := re.fullmatch(r"features\.(\d+)\.([01])\.(\w+)", key):
            feature = _feature(int(found[1]), rows)
            return f"{feature}.{_CONV_NORM[found[2]]}.{found[3]}" if feature else key
        if found := re.fullmatch(r"features\.(\d+)\.conv\.(\d+)\.(?:(\d)\.)?(\w+)", key):
            row, part = int(found[1]) - 1, int(found[2])
            if row >= len(rows):
                return key
            # The projection's convolution and norm are not nested: they follow each other.
            inner = found[3] or str(part - (len(rows[row]) - 1))
            layer = rows[row][part] if found[3] and part < len(rows[row]) else "project"
            return f"backbone.blocks.{row}.{layer}.{_CONV_NORM.get(inner, inner)}.{found[4]}"
        return key

    return rename


def _torchvision_v3(network: Network) -> Rename:
    rows = _children(network)
    parts = _CONV_NORM | {"fc1": "reduce", "fc2": "expand"}

    def rename(key: str) -> str | None:
        if found := re.fullmatch(r"classifier\.(0|3)\.(\w+)", key):
            return f"head.{'hidden' if found[1] == '0' else 'logits'}.{found[2]}"
        if found := re.fullmatch(r"features\.(\d+)\.([01])\.(\w+)", key):
            feature = _feature(int(found[1]), rows)
            return f"{feature}.{_CONV_NORM[found[2]]}.{found[3]}" if feature else key
        if found := re.fullmatch(r"features\.(\d+)\.block\.(\d+)\.(\w+)\.(\w+)", key):
            row, part = int(found[1]) - 1, int(found[2])
            if row < len(rows) and part < len(rows[row]) and found[3] in parts:
                layer = f"{rows[row][part]}.{parts[found[3]]}"
                return f"backbone.blocks.{row}.{layer}.{found[4]}"
        return key

    return rename


def _in_order(state: Mapping[str, Tensor], pattern: str) -> dict[str, int]:
    """Numbered prefixes in the order of their numbers: ``blocks.1.0`` becomes row 1, and so on."""
    found = {tuple(map(int, m.groups())): m[0] for m in map(re.compile(pattern).match, state) if m}
    return {found[numbers]: row for row, numbers in enumerate(sorted(found))}


def _torchvision_mnasnet(network: Network, state: Mapping[str, Tensor]) -> Rename:
    rows = _in_order(state, r"layers\.(\d+)\.(\d+)\.layers\.")
    last = max(int(m[1]) for m in map(re.compile(r"layers\.(\d+)\.").match, state) if m) - 1
    flat = {
        0: "stem.conv", 1: "stem.norm", 3: "blocks.0.depthwise.conv", 4: "blocks.0.depthwise.norm",
        6: "blocks.0.project.conv", 7: "blocks.0.project.norm", last: "last.conv",
        last + 1: "last.norm",
    }  # fmt: skip
    inner = {"0": "expand.conv", "1": "expand.norm", "3": "depthwise.conv", "4": "depthwise.norm",
             "6": "project.conv", "7": "project.norm"}  # fmt: skip

    def rename(key: str) -> str | None:
        if key.startswith("classifier.1."):
            return key.replace("classifier.1", "head.logits")
        if found := re.fullmatch(r"(layers\.\d+\.\d+\.layers\.)(\d)\.(\w+)", key):
            return f"backbone.blocks.{rows[found[1]] + 1}.{inner[found[2]]}.{found[3]}"
        if found := re.fullmatch(r"layers\.(\d+)\.(\w+)", key):
            return f"backbone.{flat[int(found[1])]}.{found[2]}" if int(found[1]) in flat else key
        return key

    return rename


_TIMM_INVERTED = {"conv_pw": "expand.conv", "bn1": "expand.norm", "conv_dw": "depthwise.conv",
                  "bn2": "depthwise.norm", "conv_pwl": "project.conv", "bn3": "project.norm",
                  "se.conv_reduce": "se.reduce", "se.conv_expand": "se.expand"}  # fmt: skip
_TIMM_SEPARABLE = _TIMM_INVERTED | {"bn1": "depthwise.norm", "conv_pw": "project.conv",
                                    "bn2": "project.norm"}  # fmt: skip


_TIMM_FUSED = {"conv_exp": "expand.conv", "bn1": "expand.norm", "conv_pwl": "project.conv",
               "bn2": "project.norm", "se.conv_reduce": "se.reduce", "se.conv_expand": "se.expand"}  # fmt: skip
_TIMM_CONV = {"conv": "conv.conv", "bn1": "conv.norm"}
_TIMM_UNIVERSAL = {
    f"{theirs}.{part}": f"{ours}.{own}"
    for theirs, ours in (("dw_start", "start"), ("pw_exp", "expand"), ("dw_mid", "depthwise"), ("pw_proj", "project"))
    for part, own in (("conv", "conv"), ("bn", "norm"))
}


def _timm_block(state: Mapping[str, Tensor], prefix: str) -> dict[str, str]:
    """The renaming of one block's layers."""
    for layer, names in (
        ("pw_exp.conv", _TIMM_UNIVERSAL), ("conv_exp", _TIMM_FUSED), ("conv_pwl", _TIMM_INVERTED),
        ("conv", _TIMM_CONV),
    ):  # fmt: skip
        if f"{prefix}{layer}.weight" in state:
            return names
    return _TIMM_SEPARABLE


def _timm(network: Network, state: Mapping[str, Tensor]) -> Rename:
    rows = _in_order(state, r"blocks\.(\d+)\.(\d+)\.")
    if "norm_head.weight" in state:
        hidden = "head.hidden.conv"
    else:  # V3's hidden layer has a bias; V2's and MnasNet's last convolution has a norm
        hidden = "head.hidden" if "conv_head.bias" in state else "backbone.last.conv"
    head = {"conv_stem": "backbone.stem.conv", "bn1": "backbone.stem.norm", "conv_head": hidden,
            "norm_head": "head.hidden.norm", "bn2": "backbone.last.norm", "classifier": "head.logits"}  # fmt: skip
    # V3's and V4's last 1x1 convolution is a stage of its own
    last = next((prefix for prefix in [*rows][-1:] if f"{prefix}conv.weight" in state), None)

    def rename(key: str) -> str | None:
        if found := re.fullmatch(r"(blocks\.\d+\.\d+\.)([\w.]+)\.(\w+)", key):
            prefix, part = found[1], found[2]
            if prefix == last:
                return f"backbone.last.{'conv' if part == 'conv' else 'norm'}.{found[3]}"
            names = _timm_block(state, prefix)
            if part in names:
                return f"backbone.blocks.{rows[prefix]}.{names[part]}.{found[3]}"
        elif (found := re.fullmatch(r"(\w+)\.(\w+)", key)) and found[1] in head:
            return f"{head[found[1]]}.{found[2]}"
        return key

    return rename


def _has_tf_models(state: Mapping[str, Tensor]) -> bool:
    """Whether timm has weights of these layers that TensorFlow trained (``tf_``): inverted bottlenecks
    as in V3, and no batch norm in the head, which MobileNetV4 alone has."""
    return any(key.endswith(".conv_pwl.weight") for key in state) and "norm_head.weight" not in state


_EFFICIENTNET_BLOCK = {"_expand_conv": "expand.conv", "_bn0": "expand.norm",
                       "_depthwise_conv": "depthwise.conv", "_bn1": "depthwise.norm",
                       "_project_conv": "project.conv", "_bn2": "project.norm"}  # fmt: skip
_EFFICIENTNET_ENDS = {"_conv_stem": "backbone.stem.conv", "_bn0": "backbone.stem.norm",
                      "_conv_head": "backbone.last.conv", "_bn1": "backbone.last.norm",
                      "_fc": "head.logits"}  # fmt: skip


def _efficientnet_pytorch(key: str) -> str | None:
    """Keys of the package efficientnet-pytorch, which several conversions of TensorFlow's weights use."""
    match = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(\w+)\.(\w+)", key)
    if match is None:
        return key
    row, part, tensor = match.groups()
    layer = (_EFFICIENTNET_ENDS if row is None else _EFFICIENTNET_BLOCK).get(part)
    prefix = "" if row is None else f"backbone.blocks.{row}."
    return key if layer is None else f"{prefix}{layer}.{tensor}"


def mismatches(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Where tensors differ from a network's in name or shape: in the network's order, norms last."""
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    state = {key: _fit(value, own.get(key)) for key, value in state.items()}
    problems = [
        f"{key} is {_shape(state.get(key))}, the network's is {_shape(value)}"
        for key, value in own.items()
        if key not in counters and _differs(state.get(key), value)
    ]
    problems += [f"{key} has no place in the network" for key in state if key not in own]
    return sorted(problems, key=lambda problem: ".norm." in problem)  # they only follow the others


def listed(problems: Sequence[str]) -> str:
    more = f" and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
    return "; ".join(problems[:NAMED]) + more


def _hint(problems: list[str], found: Trained, logits: tuple[str, ...]) -> str:
    if all(problem.startswith(logits) for problem in problems):
        return "only the number of classes differs: load with new_logits=True to train a new layer"
    other = found.saved.spec or recognised(found.saved.state, found.name)
    known = f", {other.name}" if other else ": none of the family has these tensors"
    return f"build the network that the weights were saved from{known}"


def _fit(value: Tensor, own: Tensor | None) -> Tensor:
    """A 1x1 convolution's weight as a linear layer's, where that is all that differs."""
    if own is not None and value.ndim == 4 and own.ndim == 2 and value.shape[2:] == (1, 1):
        return value.flatten(1)
    return value


def _differs(value: Tensor | None, own: Tensor) -> bool:
    return value is None or value.shape != own.shape


def _shape(value: Tensor | None) -> str:
    return "missing" if value is None else "x".join(map(str, value.shape)) or "a number"
