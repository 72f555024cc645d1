"""Carrying weights over to a narrower network: which channels stay.

Filters are ranked by the L2 norm of their weights (NetAdapt, section 3.3). Where residuals add
several layers' outputs, channel c is the same channel in all of them, so they are ranked by the
joint norm and keep one set; ranking each alone, as the reference code does, would add unrelated
channels to each other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobilefit.arch import NetSpec
from mobilefit.nn import Network
from mobilefit.nn.blocks import Row
from mobilefit.nn.classifier import ClassifierHead
from mobilefit.nn.layers import ConvNormAct, SqueezeExcite


def transfer(old: Network, spec: NetSpec) -> Network:
    """The network of ``spec`` with the strongest channels of ``old``, in their old order.

    Args:
        old: a trained network.
        spec: the same rows with equal or smaller widths.
    """
    new = Network(spec)
    kept = _kept_positions(old, spec)
    with torch.no_grad():
        _full(new.backbone.stem, old.backbone.stem, kept[0], torch.arange(spec.in_channels))
        for index, (new_row, old_row) in enumerate(zip(_rows(new), _rows(old), strict=True)):
            wide = spec.blocks[index].width(spec.widths[index])
            _row(new_row, old_row, kept[index], kept[index + 1], wide)
        features = kept[-1]
        if isinstance(old.backbone.last, ConvNormAct) and spec.last is not None:
            assert isinstance(new.backbone.last, ConvNormAct)
            features = _strongest(_norms(old.backbone.last.conv), spec.last.out)
            _full(new.backbone.last, old.backbone.last, features, kept[-1])
        _head(new.head, old.head, features)
    return new.train(old.training)


def _rows(network: Network) -> list[Row]:
    return [row for row in network.backbone.blocks if isinstance(row, Row)]


def _norms(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """The squared norm of every filter."""
    return layer.weight.detach().square().flatten(1).sum(1)


def _strongest(norms: Tensor, width: int) -> Tensor:
    """The indices of the ``width`` largest, ascending; ties go to the first."""
    assert width <= len(norms), "a network can only become narrower"
    order = torch.argsort(norms, descending=True, stable=True)
    return order[:width].sort().values


def _kept_positions(old: Network, spec: NetSpec) -> list[Tensor]:
    """The kept channels of the stem's output and of each block's, residual groups jointly."""
    rows = _rows(old)
    producers = [old.backbone.stem.conv]
    producers += [row.conv.conv if hasattr(row, "conv") else row.project.conv for row in rows]
    norms = [_norms(conv) for conv in producers]
    kept: list[Tensor] = []
    start = 0
    for end in range(1, len(norms) + 1):
        if end < len(norms) and rows[end - 1].residual:
            continue
        joint = torch.stack(norms[start:end]).sum(0)
        kept += [_strongest(joint, spec.widths[start])] * (end - start)
        start = end
    return kept


def _row(new: Row, old: Row, inputs: Tensor, outputs: Tensor, wide_width: int) -> None:
    wide = inputs
    if hasattr(old, "conv"):
        wide = outputs
        _conv_norm(new.conv, old.conv, wide, inputs)
    if hasattr(old, "expand"):
        wide = _strongest(_norms(old.expand.conv), wide_width)
        _conv_norm(new.expand, old.expand, wide, inputs)
    if hasattr(old, "depthwise"):
        _conv_norm(new.depthwise, old.depthwise, wide, torch.tensor([0]))
    if hasattr(old, "se"):
        _excite(new.se, old.se, wide)
    if hasattr(old, "project"):
        _conv_norm(new.project, old.project, outputs, wide)


def _full(new: ConvNormAct, old: ConvNormAct, outputs: Tensor, inputs: Tensor) -> None:
    """The stem or the last convolution, which may have squeeze-and-excite."""
    _conv_norm(new, old, outputs, inputs)
    old_se, new_se = getattr(old, "se", None), getattr(new, "se", None)
    if isinstance(old_se, SqueezeExcite) and isinstance(new_se, SqueezeExcite):
        _excite(new_se, old_se, outputs)


def _conv_norm(new: ConvNormAct, old: ConvNormAct, outputs: Tensor, inputs: Tensor) -> None:
    new.conv.weight.copy_(old.conv.weight[outputs][:, inputs])
    new.conv.same = old.conv.same
    new.norm.eps = old.norm.eps
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(new.norm, name).copy_(getattr(old.norm, name)[outputs])


def _excite(new: SqueezeExcite, old: SqueezeExcite, wide: Tensor) -> None:
    reduced = _strongest(_norms(old.reduce), new.reduce.out_channels)
    _affine(new.reduce, old.reduce, reduced, wide)
    _affine(new.expand, old.expand, wide, reduced)


def _head(new: ClassifierHead, old: ClassifierHead, features: Tensor) -> None:
    if isinstance(old.hidden, nn.Linear):
        assert isinstance(new.hidden, nn.Linear)
        hidden = _strongest(_norms(old.hidden), new.hidden.out_features)
        _affine(new.hidden, old.hidden, hidden, features)
        features = hidden
    _affine(new.logits, old.logits, torch.arange(old.logits.out_features), features)


def _affine(
    new: nn.Conv2d | nn.Linear, old: nn.Conv2d | nn.Linear, outputs: Tensor, inputs: Tensor
) -> None:
    assert new.bias is not None and old.bias is not None
    new.weight.copy_(old.weight[outputs][:, inputs])
    new.bias.copy_(old.bias[outputs])
