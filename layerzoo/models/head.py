"""Head: map to logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layerzoo.layers.base import check_choice


class Head(nn.Module):
    """Pool the map over positions, then one linear layer.

    Args:
        dim: channels C of the map (B, C, H, W).
        num_classes: logits; 0 = return the pooled features (B, C).
        pool: "mean", "max", or "sequence" (attention pooling, CCT, arXiv 2104.05704).
        scale: factor on the logits.
        dropout: on the pooled features.
    """

    def __init__(self, dim: int, num_classes: int, *, pool: str = "mean", scale: float = 1.0, dropout: float = 0.0):
        super().__init__()
        check_choice("pool", pool, ("mean", "max", "sequence"))
        self.dim, self.pool, self.scale = dim, pool, scale
        self.score = nn.Conv2d(dim, 1, 1) if pool == "sequence" else None
        self.dropout = nn.Dropout(dropout)
        self.reset(num_classes)

    def reset(self, num_classes: int) -> None:
        """A new linear layer for `num_classes`."""
        self.fc = nn.Linear(self.dim, num_classes) if num_classes else nn.Identity()
        if num_classes:
            nn.init.trunc_normal_(self.fc.weight, std=0.02)
            nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.pool == "mean":
            y = x.mean((2, 3))
        elif self.pool == "max":
            y = x.amax((2, 3))
        else:
            y = torch.einsum("bn,bcn->bc", self.score(x).flatten(1).softmax(1), x.flatten(2))
        y = self.dropout(y)
        return y if pre_logits else self.fc(y) * self.scale
