"""torchvision's and timm's models by name, and their pretrained weights, through their own hubs.

A source is written ``torchvision`` or ``timm`` (the weights that the hub has for a network),
``torchvision:NAME``, ``timm:NAME``, or ``timm:NAME=FILE``: a file with the weights of that model. Both
packages are imported where they are used.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.error import HTTPError
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from mobilefit import arch
from mobilefit.arch import NetSpec
from mobilefit.arch.rows import Padding
from mobilefit.errors import InputError, unknown
from mobilefit.nn.weights import layer_widths, listed, mismatches, read_weights, rows
from mobilefit.progress import Voice
from mobilefit.runs import file_sha256

Hub = Literal["torchvision", "timm"]
Triple = tuple[float, float, float]

IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of R, G, B that torchvision's classifiers are trained with."""
EFFICIENTNET_LITE: tuple[Triple, Triple] = ((127 / 255,) * 3, (128 / 255,) * 3)
"""Those of TensorFlow's EfficientNet-Lite: ``MEAN_RGB`` and ``STDDEV_RGB`` of its ``efficientnet_lite_builder.py``."""
TIMEOUT_S = 20.0
"""How long a hub may be silent."""
SAFETENSORS = "model.safetensors"

_LARGE, _SMALL = arch.FAMILY["mobilenet_v3_large"], arch.FAMILY["mobilenet_v3_small"]
_V1, _V2 = arch.FAMILY["mobilenet_v1"], arch.FAMILY["mobilenet_v2"]
_A1, _B1 = arch.FAMILY["mnasnet_a1"], arch.FAMILY["mnasnet_b1"]
_SMALL_HALF = _SMALL.width(0.5)
_LCNET = arch.FAMILY["lcnet"]
_V4_SMALL, _V4_MEDIUM = arch.FAMILY["mobilenetv4_conv_small"], arch.FAMILY["mobilenetv4_conv_medium"]

# The published networks whose tables are ours. Of several weights for one table the first is what
# the hub's name alone stands for: of timm's MobileNetV3 those of TensorFlow (tf_), which are padded as
# our specs are. torchvision and timm's own models are padded alike on all sides.
PUBLISHED: dict[Hub, dict[str, NetSpec]] = {
    "torchvision": {
        "mobilenet_v2": _V2,
        "mobilenet_v3_large": _LARGE,
        "mobilenet_v3_small": _SMALL,
        "mnasnet0_5": _B1.width(0.5),
        "mnasnet0_75": _B1.width(0.75),
        "mnasnet1_0": _B1,
        "mnasnet1_3": _B1.width(1.3),
    },
    "timm": {
        "tf_mobilenetv3_large_075.in1k": _LARGE.width(0.75),
        "tf_mobilenetv3_large_100.in1k": _LARGE,
        "mobilenetv3_large_100.ra4_e3600_r224_in1k": _LARGE,
        "mobilenetv3_large_100.miil_in21k_ft_in1k": _LARGE,
        "mobilenetv3_large_100.ra_in1k": _LARGE,
        # timm leaves the stem of its narrow networks as it is
        "mobilenetv3_small_050.lamb_in1k": replace(_SMALL_HALF, stem=_SMALL.stem),
        "tf_mobilenetv3_small_075.in1k": _SMALL.width(0.75),
        "mobilenetv3_small_075.lamb_in1k": _SMALL.width(0.75),
        "tf_mobilenetv3_small_100.in1k": _SMALL,
        "mobilenetv3_small_100.lamb_in1k": _SMALL,
        "tf_mobilenetv3_large_minimal_100.in1k": arch.FAMILY["mobilenet_v3_large_minimalistic"],
        "tf_mobilenetv3_small_minimal_100.in1k": arch.FAMILY["mobilenet_v3_small_minimalistic"],
        "mobilenetv1_100.ra4_e3600_r224_in1k": _V1,
        "mobilenetv1_125.ra4_e3600_r224_in1k": _V1.width(1.25),
        "mobilenetv2_050.lamb_in1k": _V2.width(0.5),
        "mobilenetv2_100.ra_in1k": _V2,
        "mobilenetv2_140.ra_in1k": _V2.width(1.4),
        "semnasnet_075.rmsp_in1k": _A1.width(0.75),
        "semnasnet_100.rmsp_in1k": _A1,
        "mnasnet_100.rmsp_in1k": _B1,
        "mnasnet_small.lamb_in1k": arch.FAMILY["mnasnet_small"],
        "tf_efficientnet_lite0.in1k": arch.FAMILY["efficientnet_lite0"],
        "efficientnet_lite0.ra_in1k": arch.FAMILY["efficientnet_lite0"],
        "tf_efficientnet_lite1.in1k": arch.FAMILY["efficientnet_lite1"],
        "tf_efficientnet_lite2.in1k": arch.FAMILY["efficientnet_lite2"],
        "tf_efficientnet_lite3.in1k": arch.FAMILY["efficientnet_lite3"],
        "tf_efficientnet_lite4.in1k": arch.FAMILY["efficientnet_lite4"],
        "lcnet_050.ra2_in1k": _LCNET.width(0.5),
        "lcnet_075.ra2_in1k": _LCNET.width(0.75),
        "lcnet_100.ra2_in1k": _LCNET,
        "mobilenetv4_conv_small_050.e3000_r224_in1k": _V4_SMALL.width(0.5),
        "mobilenetv4_conv_small.e2400_r224_in1k": _V4_SMALL,
        "mobilenetv4_conv_small.e3600_r256_in1k": _V4_SMALL,
        "mobilenetv4_conv_small.e1200_r224_in1k": _V4_SMALL,
        "mobilenetv4_conv_medium.e500_r256_in1k": _V4_MEDIUM,
        "mobilenetv4_conv_medium.e500_r224_in1k": _V4_MEDIUM,
        "mobilenetv4_conv_medium.e250_r384_in12k_ft_in1k": _V4_MEDIUM,
    },
}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model of a hub, and the weights that the hub has for it."""

    hub: Hub
    name: str
    """As the hub calls the weights: ``MobileNet_V2_Weights.IMAGENET1K_V2``, ``mobilenetv2_100.ra_in1k``."""
    architecture: str
    mean: Triple
    std: Triple
    side: int
    """Of the images that the model was made for, pixels."""
    classes: int
    """Outputs of the hub's weights."""
    url: str | None
    repository: str | None = None
    """On the Hugging Face hub; it goes before the address."""
    file: Path | None = None
    """The user's own weights, in the place of the hub's."""

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.hub}:{self.name}"

    def build(self, classes: int | None = None) -> nn.Module:
        """The model with random weights, in evaluation mode; the caller's random state is left alone."""
        number = self.classes if classes is None else classes
        with torch.random.fork_rng(devices=[]):
            if self.hub == "timm":
                import timm

                made: nn.Module = timm.create_model(self.name, num_classes=number)
            else:
                from torchvision import models

                made = models.get_model(self.architecture, num_classes=number)
        return made.eval()

    def trained(self, *, quiet: bool = False) -> nn.Module:
        """The model with its weights, in evaluation mode; as many outputs as the weights have.

        Raises:
            InputError: the weights cannot be had, or the user's are another model's.
        """
        path = self.fetch(quiet=quiet)
        if self.file is not None:
            return _with_file(self, path)
        if self.hub == "timm":
            import timm

            source = {"file": str(path), "custom_load": False}  # no .npz: see _from_hugging_face
            made: nn.Module = timm.create_model(
                self.name, pretrained=True, pretrained_cfg_overlay=source
            )
        else:
            from torchvision import models

            _require_tensors(path)
            made = models.get_model(self.architecture, weights=self.name)
        return made.eval()

    def cached(self) -> Path | None:
        """The file with the weights, if no download is needed."""
        if self.file is not None:
            return self.file
        if self.repository is not None:
            import huggingface_hub

            known = huggingface_hub.try_to_load_from_cache(self.repository, SAFETENSORS)
            return Path(known) if isinstance(known, str) else None
        path = None if self.url is None else _cache_path(self.url)
        return path if path is not None and path.exists() else None

    def fetch(self, *, quiet: bool = False) -> Path:
        """The file with the weights: the user's, from the hub's cache, or downloaded into it.

        Raises:
            InputError: there are none, or they cannot be had: says why, and which file to put where.
        """
        if self.file is not None:
            return self.file
        if self.repository is not None:
            return _from_hugging_face(self, self.repository, quiet)
        if self.url is None:
            raise InputError(f"{self.hub} has no weights of {self.name}", _tags(self.architecture))
        return _from_address(self, self.url, quiet)


def model(source: str, spec: NetSpec | None = None) -> Model | None:
    """The model that a source names; ``None``: it is a file's path.

    Args:
        source: see this module's docstring.
        spec: the network that the hub's name alone stands for.

    Raises:
        InputError: no such model (the nearest is suggested), or none of the hub's is this network.
    """
    word, _, rest = source.partition(":")
    if word not in get_args(Hub):
        return None
    hub: Hub = "timm" if word == "timm" else "torchvision"
    name, _, file = rest.partition("=")
    if not name:
        if spec is None:
            raise InputError(f"'{source}' names no model", f"write {hub}:NAME")
        name = published(hub, spec)
    found = _torchvision_model(name) if hub == "torchvision" else _timm_model(name)
    return replace(found, file=Path(file)) if file else found


def published(hub: Hub, spec: NetSpec) -> str:
    """The name of the hub's weights for a network: the narrowest that are wide enough for it.

    Raises:
        InputError: the hub has none of these rows; says which hub has.
    """
    found = _of_rows(hub, spec)
    if not found:
        others = [f"{other}:{published(other, spec)}" for other in PUBLISHED if _of_rows(other, spec)]
        raise InputError(
            f"{hub} has no weights for the rows of '{spec.name}'",
            f"there is {' and '.join(others)}" if others else "train from scratch, or give a file",
        )
    wide = [name for name, made in found.items() if _covers(made, spec)]
    if not wide:
        return max(found, key=lambda name: found[name].cost().params)
    return min(wide, key=lambda name: found[name].cost().params)


def _of_rows(hub: Hub, spec: NetSpec) -> dict[str, NetSpec]:
    return {name: made for name, made in PUBLISHED[hub].items() if rows(made) == rows(spec)}


def _covers(made: NetSpec, spec: NetSpec) -> bool:
    """Whether it is as wide as the network, everywhere."""
    widths = layer_widths(made)
    return all(width <= widths[place] for place, width in layer_widths(spec).items())


def _require_tensors(path: Path) -> None:
    """Check that a download holds tensors alone: torchvision unpickles whatever is in it."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds
        raise InputError(
            f"{_shown(path)} is damaged, or holds more than tensors", "delete it to download it again"
        ) from error


def _with_file(model: Model, path: Path) -> nn.Module:
    state = read_weights(path).state
    made = model.build(_outputs(model.build(), state))
    problems = mismatches(made.state_dict(), state)
    if problems:
        raise InputError(
            f"{path} fits another model than {model.title}: " + listed(problems),
            "name the model that the weights were saved from",
        )
    made.load_state_dict(state, strict=False)  # counters of batches alone may be missing
    return made


def _outputs(peer: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """How many outputs weights have, by the model's last layer; ``None``: they have no such layer."""
    layers = [name for name, part in peer.named_modules() if isinstance(part, (nn.Linear, nn.Conv2d))]
    last = state.get(f"{layers[-1]}.weight")
    return None if last is None or last.ndim == 0 else len(last)


def constants(peer: nn.Module) -> tuple[Padding, float] | None:
    """A peer's padding and batch norm epsilon; ``None``: it has no batch norm."""
    norms = [module.eps for module in peer.modules() if isinstance(module, nn.BatchNorm2d)]
    same = any(type(module).__name__ == "Conv2dSame" for module in peer.modules())
    return ("same" if same else "torch", norms[0]) if norms else None


# ---- torchvision


def _torchvision_model(name: str) -> Model:
    """By the name of a model (its default weights) or of weights."""
    from torchvision import models

    known = {of: models.get_model_weights(of) for of in models.list_models(module=models)}
    found = {of: kind.DEFAULT for of, kind in known.items() if len(kind)}
    found |= {str(weights): weights for kind in known.values() for weights in kind}
    if name not in found:
        raise unknown("torchvision model", name, found)
    weights: Any = found[name]
    kind = next(of for of, kind in known.items() if weights in kind)
    shown = weights.transforms()
    return Model(
        hub="torchvision", name=str(weights), architecture=kind, mean=_triple(shown.mean),
        std=_triple(shown.std), side=int(shown.crop_size[0]),
        classes=len(weights.meta["categories"]), url=weights.url,
    )  # fmt: skip


def _triple(values: Any) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


# ---- timm


def _timm_model(name: str) -> Model:
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise unknown("timm model", architecture, timm.list_models())
    try:
        found = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise InputError(f"timm has no weights '{tag}' of {architecture}", _tags(architecture)) from error
    url = found.url if isinstance(found.url, str) or found.url is None else found.url[0]
    return Model(
        hub="timm", name=f"{architecture}.{found.tag}" if found.has_weights else architecture,
        architecture=architecture, mean=_triple(found.mean), std=_triple(found.std),
        side=found.input_size[-1], classes=found.num_classes, url=url or None, repository=found.hf_hub_id,
    )  # fmt: skip


def _tags(architecture: str) -> str:
    import timm

    names = timm.list_pretrained(f"{architecture}.*")
    return f"there are {', '.join(names)}" if names else "give a file of your own: timm:NAME=FILE"


# ---- what is fetched


def _cache_path(url: str) -> Path:
    """Where torch.hub keeps what is at an address."""
    return Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(urlparse(url).path)


def _from_address(model: Model, url: str, quiet: bool) -> Path:
    """By torch.hub, into its cache; the file's name ends in the first digits of its SHA-256."""
    path = _cache_path(url)
    name = path.name
    ends = re.search(r"-([a-f0-9]{8,})\.", name)
    if not path.exists():
        _require_home(path, model, "TORCH_HOME")
        _say(name, url, quiet)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _patience():
                torch.hub.download_url_to_file(
                    url, str(path), ends and ends[1], progress=_bars(quiet)
                )
        except Exception as error:  # urllib's, http's, the system's, torch's own for a wrong checksum
            raise _unavailable(model, name, url, path.parent, error, "put the file there, or") from error
    elif ends and not file_sha256(path).startswith(ends[1]):
        raise _damaged(path)
    return path


def _require_home(cache: Path, model: Model, variable: str) -> None:
    """Refuse to make a folder ``~`` in the working folder, as the hubs do where there is no home."""
    if cache.parts[:1] == ("~",):
        raise InputError(
            f"there is no home folder to download weights into: {cache}",
            f"set {variable}, or give the file's path: {model.title}=FILE",
        )


def _from_hugging_face(model: Model, repository: str, quiet: bool) -> Path:
    """By huggingface_hub, into its cache, where a large file is called by its SHA-256."""
    import huggingface_hub

    known = huggingface_hub.try_to_load_from_cache(repository, SAFETENSORS)
    if not isinstance(known, str):
        name, url = f"{SAFETENSORS} of {repository}", huggingface_hub.hf_hub_url(repository, SAFETENSORS)
        _require_home(Path(huggingface_hub.constants.HF_HUB_CACHE), model, "HF_HOME")
        _say(name, url, quiet)
        try:
            # The download itself waits for minutes until it believes that nobody answers.
            huggingface_hub.get_hf_file_metadata(url, timeout=TIMEOUT_S)
            with _hugging_face_bars(_bars(quiet)):
                known = huggingface_hub.hf_hub_download(
                    repository, SAFETENSORS, etag_timeout=TIMEOUT_S
                )
        except Exception as error:  # httpx's, the hub's own, the system's
            cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
            what = f"fetch {url} on a machine that can, and"
            raise _unavailable(model, name, url, cache, error, what) from error
    path = Path(known)
    digest = path.resolve().name  # a link to the content's blob
    if re.fullmatch("[a-f0-9]{64}", digest) and file_sha256(path) != digest:
        raise _damaged(path.resolve())
    return path


def _say(name: str, url: str, quiet: bool) -> None:
    Voice(quiet=quiet)(f"downloading {name} from {urlparse(url).netloc}")


def _bars(quiet: bool) -> bool:
    """A bar on a terminal; elsewhere the line that was said is enough."""
    return not quiet and sys.stderr.isatty()


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Sockets that are silent for long give up; urllib, which torch.hub uses, waits forever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _hugging_face_bars(shown: bool) -> Iterator[None]:
    utils: Any = importlib.import_module("huggingface_hub.utils")  # it exports by __getattr__
    hide = not shown and not utils.are_progress_bars_disabled()
    if hide:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            utils.enable_progress_bars()


def _unavailable(
    model: Model, name: str, url: str, into: Path, error: Exception, what: str
) -> InputError:
    return InputError(
        f"cannot download {name} from {urlparse(url).netloc} into {_shown(into)} ({_reason(error)})",
        f"{what} give its path: {model.title}=FILE",
    )


def _damaged(path: Path) -> InputError:
    return InputError(
        f"{_shown(path)} is damaged: its SHA-256 is not the hub's", "delete it to download it anew"
    )


def _reason(error: BaseException) -> str:
    """Why a download failed, in a few words."""
    chain = list(_causes(error))
    if any("timeout" in type(cause).__name__.lower() for cause in chain):
        return "it does not answer"
    if any("invalid hash" in str(cause) for cause in chain):
        return "what came has another checksum"
    for cause in chain:
        status = getattr(getattr(cause, "response", cause), "status_code", None)
        if status is not None or isinstance(cause, HTTPError):
            return f"HTTP {cause.code if isinstance(cause, HTTPError) else status}"
    for cause in chain:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    said = str(error).strip().splitlines()
    return said[0][:120] if said else type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from; urllib keeps that in ``reason``."""
    while error is not None:
        yield error
        reason = getattr(error, "reason", None)
        error = reason if isinstance(reason, BaseException) else error.__cause__ or error.__context__


def _shown(path: Path) -> str:
    home = os.path.expanduser("~")  # "~" where there is none
    return "~" + str(path)[len(home) :] if str(path).startswith(home + os.sep) else str(path)
