"""Fewer keys than queries: cells of a map, which of them are seen, and projections by parts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.ops.windows import blocks_2d


def project(qkv: nn.Linear, num_heads: int, x: Tensor, start: int, stop: int) -> tuple[Tensor, ...]:
    """Parts start to stop (0 queries, 1 keys, 2 values) of a joint projection of x (B, N, C), each (B, h, N, d)."""
    rows = slice(start * qkv.in_features, stop * qkv.in_features)
    y = F.linear(x, qkv.weight[rows], None if qkv.bias is None else qkv.bias[rows])
    return y.unflatten(2, (stop - start, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def whole_cells(x: Tensor, size: int) -> Tensor:
    """A map (B, C, H, W), padded by zeros so that cells of size x size places fill it."""
    return F.pad(x, (0, -x.shape[3] % size, 0, -x.shape[2] % size))


def seen_cells(mask: Tensor | None, grid: tuple[int, int], size: int) -> Tensor | None:
    """Which cells hold a real place, (B, n), read row by row, from the mask (B, N)."""
    return None if mask is None else blocks_2d(mask.unflatten(1, grid).unsqueeze(-1), (size, size)).any(2).squeeze(2)


def masked_pool(x: Tensor, mask: Tensor | None, size: int) -> tuple[Tensor, Tensor | None]:
    """The mean over the real places of each of size x size cells that cover a map (B, C, H, W) of zeros elsewhere, and which have any."""
    pooled = F.adaptive_avg_pool2d(x, size)
    if mask is None:
        return pooled, None
    share = F.adaptive_avg_pool2d(mask.unflatten(1, x.shape[2:]).unsqueeze(1).to(x.dtype), size)
    return pooled / share.clamp(min=torch.finfo(x.dtype).tiny), share.flatten(1) > 0
