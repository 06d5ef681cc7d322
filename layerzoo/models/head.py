"""Head: map to logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layerzoo.layers.base import check_choice
from layerzoo.ops.norms import create_norm


class Head(nn.Module):
    """Pool the map over positions, then one linear layer, or with hidden_dim an MLP: linear, GELU, LayerNorm, linear.

    Args:
        dim: channels C of the map (B, C, H, W).
        num_classes: logits; 0 = return the pooled features (B, C).
        pool: "mean", "max", "sequence" (attention pooling, CCT, arXiv 2104.05704), or "first" (the class token of a model with a prefix).
        scale: factor on the logits.
        dropout: on the pooled features, and in the MLP on its hidden ones instead.
        pooled_norm: norm of the pooled features; what Block takes.
        hidden_dim: channels between the layers of the MLP (InceptionNeXt, arXiv 2303.16900).
    """

    def __init__(self, dim: int, num_classes: int, *, pool: str = "mean", scale: float = 1.0, dropout: float = 0.0,
                 pooled_norm: str | dict = "none", hidden_dim: int | None = None):
        super().__init__()
        check_choice("pool", pool, ("mean", "max", "sequence", "first"))
        self.dim, self.pool, self.scale = hidden_dim or dim, pool, scale
        self.score = nn.Conv2d(dim, 1, 1) if pool == "sequence" else None
        self.pooled_norm = create_norm(pooled_norm, dim)
        self.hidden = nn.Sequential(nn.Linear(dim, hidden_dim), nn.GELU(), nn.LayerNorm(hidden_dim, eps=1e-6)) if hidden_dim else nn.Identity()
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
        elif self.pool == "first":
            y = x[:, :, 0, 0]
        else:
            y = torch.einsum("bn,bcn->bc", self.score(x).flatten(1).softmax(1), x.flatten(2))
        y = self.pooled_norm(y[..., None, None]).flatten(1)
        return y if pre_logits else self.fc(self.dropout(self.hidden(y))) * self.scale
