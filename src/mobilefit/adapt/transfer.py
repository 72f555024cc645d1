"""Carrying weights over to a network of other widths: the channels that stay are those that matter most.

See :mod:`.importance` for what that is, and for channels that several layers share.
"""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn

from mobilefit.adapt.importance import ChannelImportance, filter_norms
from mobilefit.adapt.proposals import renumbered, without_blocks
from mobilefit.arch import NetSpec, SegmentationHead, SSDLiteHead
from mobilefit.nn import Network, build
from mobilefit.nn.blocks import Row
from mobilefit.nn.classifier import ClassifierHead
from mobilefit.nn.layers import ConvNormAct, SqueezeExcite
from mobilefit.nn.segmentation import Segmentation
from mobilefit.nn.ssdlite import Extra, Predictor, SSDLite

Kept = dict[str, Tensor]
"""The kept channels of what heads take from the backbone, by the names of its layers."""


def transfer(old: Network, spec: NetSpec, importance: ChannelImportance | None = None) -> Network:
    """The network of ``spec`` with the most important channels of ``old``, in their old order.

    Args:
        old: a trained network.
        spec: the same rows with other widths. Where it is wider, all channels stay, before new ones with the usual
            random weights from torch's global generator (V3 paper, section 4.2: "randomly initializing missing
            weights"); R-ASPP's filters can only become fewer.
        importance: of ``old``'s channels; ``None``: the norm of their filters.
    """
    new = Network(spec)
    if _has_more(new, old):
        new = build(spec)
    importance = importance or filter_norms(old)
    with torch.no_grad():
        taps, features = _backbone(new, old, importance)
        if isinstance(spec.head, SSDLiteHead):
            _detector(new.head, old.head, [taps[name] for name in spec.head.taps], importance)
        elif isinstance(spec.head, SegmentationHead):
            skip = None if spec.head.skip is None else taps[spec.head.skip]
            _segmenter(new.head, old.head, taps[spec.head.tap], skip, importance)
        else:
            _classifier(new.head, old.head, features, importance)
    return new.train(old.training)


def _has_more(new: Network, old: Network) -> bool:
    """Whether any weight of ``new`` is larger in any direction."""
    pairs = zip(new.parameters(), old.parameters(), strict=True)
    return any(size > before for a, b in pairs for size, before in zip(a.shape, b.shape, strict=True))


def leave_out(old: Network, indices: Collection[int]) -> Network:
    """A copy of a network without some of its blocks, whose inputs go on as they are."""
    spec = without_blocks(old.spec, indices)
    new = copy.deepcopy(old)
    new.spec = spec
    new.backbone.blocks = nn.Sequential(
        *(row for index, row in enumerate(new.backbone.blocks) if index not in indices)
    )
    if isinstance(new.head, SSDLite | Segmentation):
        new.head.taps = tuple(renumbered(tap, indices) for tap in new.head.taps)
    return new


def _backbone(new: Network, old: Network, importance: ChannelImportance) -> tuple[Kept, Tensor]:
    """Fill the backbone; what stayed of each layer that a head may take, and of the last one."""
    spec, taps = new.spec, Kept()
    kept = _kept_positions(old, spec, importance)
    _full(new.backbone.stem, old.backbone.stem, kept[0], torch.arange(spec.in_channels), "stem", importance)
    for index, (new_row, old_row) in enumerate(zip(_rows(new), _rows(old), strict=True)):
        block = spec.blocks[index]
        wide = inputs = kept[index]
        if block.expand is not None:
            wide = _strongest(importance(f"blocks.{index}.expand"), block.expand)
        elif block.op == "conv":
            wide = kept[index + 1]
        _row(new_row, old_row, inputs, kept[index + 1], wide, f"blocks.{index}", importance)
        taps |= {f"blocks.{index}.{part}": wide for part in block.parts}
        taps[f"blocks.{index}"] = kept[index + 1]
    features = kept[-1]
    if isinstance(old.backbone.last, ConvNormAct) and spec.last is not None:
        assert isinstance(new.backbone.last, ConvNormAct)
        features = taps["last"] = _strongest(importance("last"), spec.last.out)
        _full(new.backbone.last, old.backbone.last, features, kept[-1], "last", importance)
    return taps, features


def _rows(network: Network) -> list[Row]:
    return [row for row in network.backbone.blocks if isinstance(row, Row)]


def _strongest(importance: Tensor, width: int) -> Tensor:
    """The indices of the ``width`` largest, ascending; ties go to the first. All where there are fewer."""
    order = torch.argsort(importance, descending=True, stable=True)
    return order[:width].sort().values


def shared_outputs(network: Network) -> list[tuple[str, ...]]:
    """The layers that the stem and the blocks end in, in order; those whose outputs residuals add are one entry: they
    share their channels."""
    shared: list[tuple[str, ...]] = [("stem",)]
    for index, row in enumerate(_rows(network)):
        name = last_layer(row, index)
        shared = [*shared[:-1], (*shared[-1], name)] if row.residual else [*shared, (name,)]
    return shared


def last_layer(row: Row, index: int) -> str:
    """The name of the layer that a block ends in."""
    return f"blocks.{index}.{'conv' if hasattr(row, 'conv') else 'project'}"


def _kept_positions(old: Network, spec: NetSpec, importance: ChannelImportance) -> list[Tensor]:
    """The kept channels of the stem's output and of each block's, residual groups jointly."""
    kept: list[Tensor] = []
    for layers in shared_outputs(old):
        kept += [_strongest(importance(*layers), spec.widths[len(kept)])] * len(layers)
    return kept


def _row(
    new: Row, old: Row, inputs: Tensor, outputs: Tensor, wide: Tensor, name: str, importance: ChannelImportance
) -> None:
    """Fill a row; ``wide`` are the channels that stay inside of it."""
    if hasattr(old, "conv"):
        _conv_norm(new.conv, old.conv, wide, inputs)
    if hasattr(old, "start"):
        _depthwise(new.start, old.start, inputs)
    if hasattr(old, "expand"):
        _conv_norm(new.expand, old.expand, wide, inputs)
    if hasattr(old, "depthwise"):
        _depthwise(new.depthwise, old.depthwise, wide)
    if hasattr(old, "se"):
        _excite(new.se, old.se, wide, importance(f"{name}.se.reduce"))
    if hasattr(old, "project"):
        _conv_norm(new.project, old.project, outputs, wide)


def _full(
    new: ConvNormAct, old: ConvNormAct, outputs: Tensor, inputs: Tensor, name: str, importance: ChannelImportance
) -> None:
    """The stem or the last convolution, which may have squeeze-and-excite."""
    _conv_norm(new, old, outputs, inputs)
    old_se, new_se = getattr(old, "se", None), getattr(new, "se", None)
    if isinstance(old_se, SqueezeExcite) and isinstance(new_se, SqueezeExcite):
        _excite(new_se, old_se, outputs, importance(f"{name}.se.reduce"))


def _depthwise(new: ConvNormAct, old: ConvNormAct, channels: Tensor) -> None:
    _conv_norm(new, old, channels, torch.tensor([0]))


def _conv_norm(new: ConvNormAct, old: ConvNormAct, outputs: Tensor, inputs: Tensor) -> None:
    _fill(new.conv.weight, old.conv.weight[outputs][:, inputs])
    new.conv.same = old.conv.same
    new.norm.eps = old.norm.eps
    for name in ("weight", "bias", "running_mean", "running_var"):
        _fill(getattr(new.norm, name), getattr(old.norm, name)[outputs])


def _excite(new: SqueezeExcite, old: SqueezeExcite, wide: Tensor, importance: Tensor) -> None:
    reduced = _strongest(importance, new.reduce.out_channels)
    _affine(new.reduce, old.reduce, reduced, wide)
    _affine(new.expand, old.expand, wide, reduced)


def _classifier(
    new: nn.Module, old: nn.Module, features: Tensor, importance: ChannelImportance
) -> None:
    assert isinstance(new, ClassifierHead) and isinstance(old, ClassifierHead)
    if isinstance(old.hidden, nn.Linear):
        assert isinstance(new.hidden, nn.Linear)
        hidden = _strongest(importance("head.hidden"), new.hidden.out_features)
        _affine(new.hidden, old.hidden, hidden, features)
        features = hidden
    elif isinstance(old.hidden, ConvNormAct):
        assert isinstance(new.hidden, ConvNormAct)
        hidden = _strongest(importance("head.hidden"), new.hidden.conv.out_channels)
        _conv_norm(new.hidden, old.hidden, hidden, features)
        features = hidden
    _outputs(new.logits, old.logits, features)


def _detector(
    new: nn.Module, old: nn.Module, maps: list[Tensor], importance: ChannelImportance
) -> None:
    """The extra maps, each on the one before it, and the predictors of every map.

    Args:
        maps: the kept channels of those that are taken from the backbone.
    """
    assert isinstance(new, SSDLite) and isinstance(old, SSDLite)
    for index, (new_extra, old_extra) in enumerate(zip(new.extras, old.extras, strict=True)):
        assert isinstance(new_extra, Extra) and isinstance(old_extra, Extra)
        maps.append(_extra(new_extra, old_extra, maps[-1], f"head.extras.{index}", importance))
    for new_part, old_part in ((new.classes, old.classes), (new.boxes, old.boxes)):
        for new_predictor, old_predictor, kept in zip(new_part, old_part, maps, strict=True):
            assert isinstance(new_predictor, Predictor) and isinstance(old_predictor, Predictor)
            _depthwise(new_predictor.depthwise, old_predictor.depthwise, kept)
            _outputs(new_predictor.predict, old_predictor.predict, kept)


def _extra(
    new: Extra, old: Extra, inputs: Tensor, name: str, importance: ChannelImportance
) -> Tensor:
    """Fill an extra map; its kept channels."""
    narrow = _strongest(importance(f"{name}.reduce"), new.reduce.conv.out_channels)
    outputs = _strongest(importance(f"{name}.project"), new.project.conv.out_channels)
    _conv_norm(new.reduce, old.reduce, narrow, inputs)
    _depthwise(new.depthwise, old.depthwise, narrow)
    _conv_norm(new.project, old.project, outputs, narrow)
    return outputs


def _segmenter(
    new: nn.Module, old: nn.Module, inputs: Tensor, skip: Tensor | None, importance: ChannelImportance
) -> None:
    """R-ASPP, or LR-ASPP with the kept channels of its finer map."""
    assert isinstance(new, Segmentation) and isinstance(old, Segmentation)
    width = new.project.conv.out_channels
    if skip is None:
        kept = _merged(new, old, inputs, width, importance)
    else:
        kept = _strongest(importance("head.project", "head.gate"), width)
        _conv_norm(new.project, old.project, kept, inputs)
        _affine(new.gate, old.gate, kept, inputs)
        _outputs(new.low, old.low, skip)
    _outputs(new.high, old.high, kept)


def _merged(
    new: Segmentation, old: Segmentation, inputs: Tensor, width: int, importance: ChannelImportance
) -> Tensor:
    """Fill R-ASPP's two branches and what merges them; its kept channels.

    All three have one width, and each keeps its own: nothing joins their channels.
    """
    assert width <= old.image.conv.out_channels, "R-ASPP's filters can only become fewer"
    image, project, merge = (
        _strongest(importance(f"head.{part}"), width) for part in ("image", "project", "merge")
    )
    _conv_norm(new.image, old.image, image, inputs)
    _conv_norm(new.project, old.project, project, inputs)
    joined = torch.cat([image, old.image.conv.out_channels + project])  # as they are concatenated
    _conv_norm(new.merge, old.merge, merge, joined)
    return merge


def _outputs(new: nn.Conv2d | nn.Linear, old: nn.Conv2d | nn.Linear, inputs: Tensor) -> None:
    """A layer that keeps all that it gives."""
    _affine(new, old, torch.arange(len(old.weight)), inputs)


def _affine(
    new: nn.Conv2d | nn.Linear, old: nn.Conv2d | nn.Linear, outputs: Tensor, inputs: Tensor
) -> None:
    _fill(new.weight, old.weight[outputs][:, inputs])
    if old.bias is not None:  # torchvision's gate has none
        assert new.bias is not None
        _fill(new.bias, old.bias[outputs])


def _fill(new: Tensor, values: Tensor) -> None:
    """Set the first entries in each direction; the others, of channels that are new, stay random."""
    new[tuple(slice(size) for size in values.shape)] = values
