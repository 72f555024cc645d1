"""Weights in and out: our own safetensors, and the layouts of torchvision and timm.

A layout is recognised by its keys. Rows are matched in order, so that a scaled or searched network
loads as well as a published one. With the weights come the constants that they were trained with:
torchvision's are torch-padded, with its own batch norm epsilon, and our own files carry their spec;
the network is switched to these. timm's layout does not tell: its ``tf_`` models are as our specs
(``same``, 1e-3), its others want ``spec.padded("torch")`` and an epsilon of 1e-5.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from mobilefit.arch.spec import NetSpec, Padding
from mobilefit.errors import InputError
from mobilefit.nn.blocks import Row
from mobilefit.nn.classifier import Network, build
from mobilefit.nn.layers import Conv2d
from mobilefit.runs import atomic_file

Rename = Callable[[str], str | None]
LOGITS = ("head.logits.weight", "head.logits.bias")


def save_weights(network: Network, path: str | Path) -> None:
    """Write a network's weights, statistics and spec as one safetensors file, atomically."""
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    metadata = {"format": "mobilefit", "spec": json.dumps(network.spec.to_dict())}
    with atomic_file(Path(path)) as file:
        file.write(safetensors.torch.save(state, metadata))


def load_network(path: str | Path) -> Network:
    """The network that :func:`save_weights` wrote, built from its own spec.

    Raises:
        InputError: the file is missing, damaged, or not our own format.
    """
    state, spec = _read(Path(path))
    if spec is None:
        raise InputError(
            f"{path} does not say which network it is", "name the network with --model as well"
        )
    network = build(spec)
    _load(network, state, str(path), new_logits=False)
    return network


def load_weights(
    network: Network, source: str | Path | Mapping[str, Tensor], *, new_logits: bool = False
) -> str:
    """Load weights into a network, whatever the layout.

    Args:
        network: what :func:`~mobilefit.nn.build` returned.
        source: a ``.safetensors`` or ``.pth`` file, or a state dict: ours, torchvision's (V2, V3,
            MnasNet) or timm's (V1, V2, V3, MnasNet).
        new_logits: keep the network's own last layer where the number of classes differs.

    Returns:
        The layout: ``mobilefit``, ``torchvision`` or ``timm``.

    Raises:
        InputError: unreadable file, unknown layout, or weights of another network (names the
            tensors and both shapes).
    """
    if isinstance(source, Mapping):
        state, spec, name = dict(source), None, "the state dict"
    else:
        state, spec = _read(Path(source))
        name = str(source)
    layout, rename, padding, eps = _layout(network, state, name)
    renamed = {}
    for key, value in state.items():
        own = rename(key)
        if own is not None:
            renamed[own] = value
    if spec is not None:
        padding, eps = spec.padding, spec.norm.eps
    _load(network, renamed, name, new_logits)
    _adopt(network, padding, eps)
    return layout


def _read(path: Path) -> tuple[dict[str, Tensor], NetSpec | None]:
    """A weight file's tensors and, if it is ours, its spec."""
    if not path.is_file():
        raise InputError(f"no such weights file: {path}")
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            spec = metadata.get("spec")
            return state, None if spec is None else NetSpec.from_json(spec)
        value = torch.load(path, map_location="cpu", weights_only=True)
    except InputError as error:  # its spec is none
        raise InputError(f"{path}: {error.message}", error.hint) from error
    except Exception as error:  # torch and safetensors raise half a dozen kinds for a damaged file
        if "Unsupported global" in str(error):  # torch's own message spans a screen
            raise InputError(
                f"{path} is not a readable weights file: it holds Python objects, not tensors alone",
                "save the model's state_dict() instead",
            ) from error
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else "damaged"
        raise InputError(
            f"{path} is not a readable weights file: {reason}", "it is damaged or cut short"
        ) from error
    return _state_dict(value, path), None


def _state_dict(value: object, path: Path) -> dict[str, Tensor]:
    for key in ("model_ema", "state_dict", "model"):
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
    if not isinstance(value, Mapping) or not all(isinstance(v, Tensor) for v in value.values()):
        raise InputError(f"{path} holds no state dict of tensors")
    return {str(key).removeprefix("module."): tensor for key, tensor in value.items()}


def _layout(
    network: Network, state: Mapping[str, Tensor], name: str
) -> tuple[str, Rename, Padding, float]:
    """Layout's name, its renaming, and the padding and epsilon that its weights were trained with."""
    padding, eps = network.spec.padding, network.spec.norm.eps
    if "backbone.stem.conv.weight" in state:
        return "mobilefit", lambda key: key, padding, eps
    if "conv_stem.weight" in state:
        return "timm", _timm(network, state), padding, eps
    if "features.0.0.weight" in state:
        is_v3 = any(".block." in key for key in state)
        rename = _torchvision_v3(network) if is_v3 else _torchvision_v2(network)
        return "torchvision", rename, "torch", 1e-3 if is_v3 else 1e-5
    if "layers.0.weight" in state and "layers.3.weight" in state:
        return "torchvision", _torchvision_mnasnet(network, state), "torch", 1e-5
    raise InputError(
        f"{name} has none of the known layouts (mobilefit, torchvision, timm)",
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


def _timm(network: Network, state: Mapping[str, Tensor]) -> Rename:
    rows = _in_order(state, r"blocks\.(\d+)\.(\d+)\.")
    hidden = network.spec.head.hidden is not None
    head = {"conv_stem": "backbone.stem.conv", "bn1": "backbone.stem.norm",
            "conv_head": "head.hidden" if hidden else "backbone.last.conv",
            "bn2": "backbone.last.norm", "classifier": "head.logits"}  # fmt: skip

    def rename(key: str) -> str | None:
        if found := re.fullmatch(r"(blocks\.\d+\.\d+\.)([\w.]+)\.(\w+)", key):
            prefix, part = found[1], found[2]
            if f"{prefix}conv.weight" in state:  # V3's last 1x1 convolution is a stage of its own
                return f"backbone.last.{'conv' if part == 'conv' else 'norm'}.{found[3]}"
            names = _TIMM_INVERTED if f"{prefix}conv_pwl.weight" in state else _TIMM_SEPARABLE
            if part in names:
                return f"backbone.blocks.{rows[prefix]}.{names[part]}.{found[3]}"
        elif (found := re.fullmatch(r"(\w+)\.(\w+)", key)) and found[1] in head:
            return f"{head[found[1]]}.{found[2]}"
        return key

    return rename


def _load(network: Network, state: dict[str, Tensor], name: str, new_logits: bool) -> None:
    own = network.state_dict()
    state = {key: _fit(value, own.get(key)) for key, value in state.items()}
    if new_logits and any(_differs(state.get(key), own[key]) for key in LOGITS):
        state |= {key: own[key] for key in LOGITS}
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    problems = [
        f"{key} is {_shape(state.get(key))}, the network's is {_shape(value)}"
        for key, value in own.items()
        if key not in counters and _differs(state.get(key), value)
    ]
    problems += [f"{key} has no place in the network" for key in state.keys() - own.keys()]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        hint = _hint(problems)
        raise InputError(
            f"{name} fits another network than '{network.spec.name}': "
            + "; ".join(sorted(problems)[:4]) + more, hint
        )  # fmt: skip
    network.load_state_dict({key: state.get(key, own[key]) for key in own})


def _hint(problems: list[str]) -> str:
    if all(problem.startswith("head.logits") for problem in problems):
        return "only the number of classes differs: load with new_logits=True to train a new layer"
    return "build the network that the weights were saved from"


def _fit(value: Tensor, own: Tensor | None) -> Tensor:
    """A 1x1 convolution's weight as a linear layer's, where that is all that differs."""
    if own is not None and value.ndim == 4 and own.ndim == 2 and value.shape[2:] == (1, 1):
        return value.flatten(1)
    return value


def _differs(value: Tensor | None, own: Tensor) -> bool:
    return value is None or value.shape != own.shape


def _shape(value: Tensor | None) -> str:
    return "missing" if value is None else "x".join(map(str, value.shape)) or "a number"


def _adopt(network: Network, padding: Padding, eps: float) -> None:
    """Switch a network to the constants that its weights were trained with."""
    for module in network.modules():
        if isinstance(module, Conv2d):
            module.same = padding == "same"
        elif isinstance(module, nn.BatchNorm2d):
            module.eps = eps
    spec = network.spec
    network.spec = replace(spec, padding=padding, norm=replace(spec.norm, eps=eps))
