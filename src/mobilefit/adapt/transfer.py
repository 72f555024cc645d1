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
from mobilefit.nn.layers import ConvNormAct, SqueezeExcite


def transfer(old: Network, spec: NetSpec) -> Network:
    """The network of ``spec`` with the strongest channels of ``old``, in their old order.

    Args:
        old: a trained network.
        spec: the same rows with equal or smaller widths.
    """
    new = Network(spec)
    positions = _kept_positions(old, spec)
    with torch.no_grad():
        stem_inputs = torch.arange(spec.in_channels)
        _conv(new.backbone.stem, old.backbone.stem, positions[0], stem_inputs)
        for index, row in enumerate(old.backbone.blocks):
            assert isinstance(row, Row)
            wide = spec.blocks[index].width(spec.widths[index])
            _row(new.backbone.blocks[index], row, positions[index], positions[index + 1], wide)
        features = positions[-1]
        if isinstance(old.backbone.last, ConvNormAct):
            assert spec.last is not None
            kept = _strongest(_norms(old.backbone.last.conv), spec.last.out)
            _conv(new.backbone.last, old.backbone.last, kept, features)
            if isinstance(old.backbone.last.get_submodule("act"), nn.Module):
                _excite_if_any(new.backbone.last, old.backbone.last, kept)
            features = kept
        _head(new, old, features)
    return new.train(old.training)


def _norms(conv: nn.Module) -> Tensor:
    weight: Tensor = conv.weight.detach()  # type: ignore[assignment, operator]
    return weight.square().flatten(1).sum(1)


def _strongest(norms: Tensor, width: int) -> Tensor:
    """The indices of the ``width`` largest, ascending; ties go to the first."""
    order = torch.argsort(norms, descending=True, stable=True)
    return order[:width].sort().values


def _kept_positions(old: Network, spec: NetSpec) -> list[Tensor]:
    """The kept channels of the stem's output and of each block's, residual groups jointly."""
    rows = [row for row in old.backbone.blocks if isinstance(row, Row)]
    norms = [_norms(old.backbone.stem.conv)]
    norms += [_norms((row.conv if hasattr(row, "conv") else row.project).conv) for row in rows]
    kept: list[Tensor] = []
    start = 0
    for end in range(1, len(norms) + 1):
        if end < len(norms) and rows[end - 1].residual:
            continue
        joint = torch.stack(norms[start:end]).sum(0)
        kept += [_strongest(joint, spec.widths[start])] * (end - start)
        start = end
    return kept


def _row(new: nn.Module, old: Row, inputs: Tensor, outputs: Tensor, wide_width: int) -> None:
    if hasattr(old, "conv"):
        _conv(new.conv, old.conv, outputs, inputs)
        return
    wide = inputs
    if hasattr(old, "expand"):
        wide = _strongest(_norms(old.expand.conv), wide_width)
        _conv(new.expand, old.expand, wide, inputs)
    if hasattr(old, "depthwise"):
        _conv(new.depthwise, old.depthwise, wide, torch.zeros(1, dtype=torch.long))
    _excite_if_any(new, old, wide)
    _conv(new.project, old.project, outputs, wide)


def _conv(new: nn.Module, old: nn.Module, outputs: Tensor, inputs: Tensor) -> None:
    """A convolution and its batch norm."""
    new.conv.weight.copy_(old.conv.weight[outputs][:, inputs])
    new.conv.same = old.conv.same
    new.norm.eps = old.norm.eps
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(new.norm, name).copy_(getattr(old.norm, name)[outputs])


def _excite_if_any(new: nn.Module, old: nn.Module, wide: Tensor) -> None:
    if not isinstance(getattr(old, "se", None), SqueezeExcite):
        return
    reduced = _strongest(_norms(old.se.reduce), new.se.reduce.out_channels)
    new.se.reduce.weight.copy_(old.se.reduce.weight[reduced][:, wide])
    new.se.reduce.bias.copy_(old.se.reduce.bias[reduced])
    new.se.expand.weight.copy_(old.se.expand.weight[wide][:, reduced])
    new.se.expand.bias.copy_(old.se.expand.bias[wide])


def _head(new: Network, old: Network, features: Tensor) -> None:
    if isinstance(old.head.hidden, nn.Linear):
        assert isinstance(new.head.hidden, nn.Linear)
        hidden = _strongest(_norms(old.head.hidden), new.head.hidden.out_features)
        new.head.hidden.weight.copy_(old.head.hidden.weight[hidden][:, features])
        new.head.hidden.bias.copy_(old.head.hidden.bias[hidden])
        features = hidden
    new.head.logits.weight.copy_(old.head.logits.weight[:, features])
    new.head.logits.bias.copy_(old.head.logits.bias)
