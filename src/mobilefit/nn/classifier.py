"""The classification head."""

from __future__ import annotations

from torch import Tensor, nn

from mobilefit.arch.spec import NetSpec
from mobilefit.nn.layers import GlobalPool, activation


class ClassifierHead(nn.Module):
    """Global average pool, hidden layer (V3), dropout, logits: ``[N, C, H, W]`` to ``[N, k]``."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        head = spec.classifier
        width = spec.widths[-1] if spec.last is None else spec.last.out
        self.pool = GlobalPool(1)
        self.flatten = nn.Flatten(1)
        self.hidden: nn.Module = nn.Identity()
        if head.hidden is not None:
            self.hidden = nn.Linear(width, head.hidden)
            width = head.hidden
        self.act = activation(head.act)
        self.dropout = nn.Dropout(head.dropout)
        self.logits = nn.Linear(width, head.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, ``[N, num_classes]``."""
        x = self.act(self.hidden(self.flatten(self.pool(x))))
        logits: Tensor = self.logits(self.dropout(x))
        return logits
