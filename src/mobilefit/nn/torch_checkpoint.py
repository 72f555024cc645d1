"""The state dict in what training scripts save with ``torch.save``, whatever else they put beside it.

Files are read with torch's ``weights_only``, which builds tensors and plain containers and calls nothing that the
file names. Scripts also save their options, a scheduler, an epoch's date: such objects are put into the place of
nothing (:class:`_Unread`), without a look at the class that the file names.
"""

from __future__ import annotations

import contextlib
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobilefit.errors import InputError

AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema", "averaged_model", "swa_model")
"""Under which scripts keep an average of the weights: it is what they evaluate, and goes before the weights."""
WEIGHTS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params", "module")
LAYOUTS = {
    "mobilefit": ("backbone.stem.conv.weight",),
    "timm": ("conv_stem.weight",),
    "torchvision": ("features.0.0.weight", "backbone.features.0.0.0.weight", "backbone.0.0.weight", "layers.0.weight"),
    "efficientnet-pytorch": ("_conv_stem.weight",),
}
"""By layout, the first tensor of its networks; what stands before it in every key is a wrapper's."""
_WRAPPERS = ("module.", "_orig_mod.", "model.")
"""Of data parallelism and averages, of torch.compile, of Lightning: around networks of no known layout."""
DEEPEST = 5
"""Entries within each other that are looked into."""
_PROGRAM = "archive_format"
_OBJECTS = ("unsupported global", "is blocked", "unrecognized function", "can only create", "can only build")
"""What torch says where a file holds more than tensors, in lower case."""
_SAVE_STATE = "save the model's state_dict() instead"


class _Unread(list[Any]):
    """What stands for an object of a class that is not read; a list, so that what is appended to it has a place."""

    name = ""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _Dictionary(OrderedDict[Any, Any]):
    """What stands for a kind of dictionary that is not known here: a plain one."""

    def __new__(cls, *args: object, **kwargs: object) -> Any:
        """Nothing in it; what a file puts into it comes later."""
        return OrderedDict()


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict of a file that ``torch.save`` wrote.

    Of a checkpoint with several the average of the weights is taken, else the weights; prefixes of wrappers
    (``module.``, ``_orig_mod.``, ``model.``, whatever goes before a known layout) are removed, and what is
    outside of them, such as a loss's own weights or ``n_averaged``, is left out.

    Raises:
        InputError: it is damaged, a TorchScript program, a pickled model, or holds no state dict of tensors.
    """
    try:
        value = _loaded(path)
    except InputError:
        raise
    except Exception as error:  # torch raises half a dozen kinds for a damaged file
        reason = " ".join(str(error).split())
        if any(words in reason.lower() for words in _OBJECTS):
            raise InputError(
                f"{path} is not a readable weights file: it holds Python objects, not tensors alone", _SAVE_STATE
            ) from error
        raise InputError(
            f"{path} is not a readable weights file: {reason[:120] or 'damaged'}", "it is damaged or cut short"
        ) from error
    return unwrapped(_state_dict(value, path), str(path))


def _loaded(path: Path) -> Any:
    names = _members(path)
    if any(name.endswith("/constants.pkl") for name in names):
        raise InputError(
            f"{path} is a TorchScript program, which is not read: it may run code",
            "save its weights: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')",
        )
    unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path) if names else []
    stubs: list[Any] = [
        (_Dictionary if name.lower().endswith("dict") else type("Unread", (_Unread,), {"name": name}), name)
        for name in unsafe
    ]
    with torch.serialization.safe_globals(stubs), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _members(path: Path) -> list[str]:
    """The names in a zip archive; none of a file that is none (torch's format until 2020) or is damaged."""
    with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:  # zipfile raises half a dozen kinds
        return archive.namelist()
    return []


def is_program(path: Path) -> bool:
    """Whether a file is a torch.export program, whatever it is called."""
    return any(name.partition("/")[2] == _PROGRAM for name in _members(path))


def _state_dict(value: object, path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint: those of the first of its entries that has some, by their usual names."""
    state = _inner_state(value, DEEPEST)
    if state is not None:
        return {str(key): tensor for key, tensor in state.items() if isinstance(tensor, Tensor)}
    entries = value.values() if isinstance(value, Mapping) else [value]
    objects = [entry.name for entry in entries if isinstance(entry, _Unread)]
    if objects:
        raise InputError(
            f"{path} is not a readable weights file: it holds Python objects, not tensors alone ({objects[0]})",
            _SAVE_STATE,
        )
    entries_line = f": its entries are {', '.join(map(ascii, list(value)[:6]))}" if isinstance(value, Mapping) else ""
    raise InputError(f"{path} holds no state dict of tensors{entries_line}", _SAVE_STATE)


def _inner_state(value: object, levels: int) -> Mapping[Any, Any] | None:
    if not isinstance(value, Mapping) or levels == 0:
        return None
    if _has_tensors(value):
        return value
    inner = (_inner_state(value.get(key), levels - 1) for key in (*AVERAGES, *WEIGHTS))
    return next((state for state in inner if state is not None), None)


def _has_tensors(value: Mapping[Any, Any]) -> bool:
    """Whether it is a state dict: tensors, and besides them at most what some modules add, such as versions."""
    tensors = sum(isinstance(entry, Tensor) and entry.ndim > 0 for entry in value.values())
    return tensors > 0 and not any(isinstance(value.get(key), Mapping) for key in (*AVERAGES, *WEIGHTS))


def unwrapped(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """A state dict without the prefixes of wrappers.

    Raises:
        InputError: it holds several networks.
    """
    first = [key for keys in LAYOUTS.values() for key in keys]
    if any(key in state for key in first):
        return state
    stems = [key for key, value in state.items() if value.ndim == 4 and value.shape[1] <= 4]  # of images
    wrappers = {key.removesuffix(last): None for last in first for key in stems if key.endswith(f".{last}")}
    prefixes = [p for p in wrappers if not any(p != other and p.startswith(other) for other in wrappers)]
    if len(prefixes) > 1:
        raise InputError(
            f"{name} holds several networks: {', '.join(prefixes[:4])}", "save the state_dict() of one of them"
        )
    if prefixes:
        return {key.removeprefix(p): v for p in prefixes for key, v in state.items() if key.startswith(p)}
    state = {key: value for key, value in state.items() if key != "n_averaged"}
    while wrapper := next((w for w in _WRAPPERS if state and all(key.startswith(w) for key in state)), None):
        state = {key.removeprefix(wrapper): value for key, value in state.items()}
    return state


def require_plain(state: Mapping[str, Tensor], name: str) -> None:
    """Check that tensors are ordinary ones: dense, in memory, as long as their bytes, and of finite numbers.

    Raises:
        InputError: one is not; it is named.
    """
    for key, value in state.items():
        plain = (
            type(value) in (Tensor, torch.nn.Parameter) and value.layout == torch.strided and not value.is_quantized
            and value.device.type == "cpu" and not value.is_nested and not value.is_complex()
        )  # fmt: skip
        if not plain:
            raise InputError(f"{name}: {key!a} is no ordinary tensor", _SAVE_STATE)
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise InputError(f"{name}: {key!a} has more values than the file has bytes for them", _SAVE_STATE)
        if value.is_floating_point() and not bool(torch.isfinite(value.float()).all()):
            wrong = int((~torch.isfinite(value.float())).sum())
            kind = "NaN" if bool(torch.isnan(value.float()).any()) else "infinity"
            raise InputError(
                f"{name}: {key!a} holds {kind} ({wrong:,} of {value.numel():,} values)",
                "the training that saved it diverged: take an earlier checkpoint",
            )
