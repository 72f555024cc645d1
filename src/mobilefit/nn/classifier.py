"""The classification head."""

from __future__ import annotations

from torch import Tensor, nn

from mobilefit.arch.spec import NetSpec
from mobilefit.nn.layers import ConvNormAct, GlobalPool, activation


class ClassifierHead(nn.Module):
    """Global average pool, hidden layer (V3, V4), dropout, logits: ``[N, C, H, W]`` to ``[N, k]``.

    A hidden layer with batch norm is a 1x1 convolution of the pooled map, whose norm is then like all others.
    """

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        head = spec.classifier
        width = spec.widths[-1] if spec.last is None else spec.last.out
        self.pool = GlobalPool(1)
        self.flatten = nn.Flatten(1)
        self.hidden: nn.Module = nn.Identity()
        self.normed = head.hidden_norm
        if head.hidden is not None and head.hidden_norm:
            self.hidden = ConvNormAct(width, head.hidden, act=head.act, padding=spec.padding, norm=spec.norm)
        elif head.hidden is not None:
            self.hidden = nn.Linear(width, head.hidden)
        width = head.hidden or width
        self.act = activation("none" if head.hidden_norm else head.act)
        self.dropout = nn.Dropout(head.dropout)
        self.logits = nn.Linear(width, head.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, ``[N, num_classes]``."""
        x = self.pool(x)
        x = self.flatten(self.hidden(x)) if self.normed else self.act(self.hidden(self.flatten(x)))
        logits: Tensor = self.logits(self.dropout(x))
        return logits
