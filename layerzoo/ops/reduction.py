"""Fewer keys than queries: cells of a map, which of them are seen, and projections by parts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.ops.windows import blocks_2d


def parts(qkv: nn.Linear, counts: tuple[int, ...] = (1, 2)) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of the queries, and those of keys and values, or of other counts of them, of a joint projection.

    Split once, their gradients are joined; those of slices are zeros added up.
    """
    sizes = [count * qkv.in_features for count in counts]
    return list(zip(qkv.weight.split(sizes), [None] * len(sizes) if qkv.bias is None else qkv.bias.split(sizes)))


def project(x: Tensor, part: tuple[Tensor, Tensor | None], num_heads: int) -> list[Tensor]:
    """Queries, or keys and values, each (B, h, N, d), of x (B, N, C)."""
    joined = F.linear(x, *part).split(x.shape[-1], -1)
    return [y.unflatten(2, (num_heads, -1)).transpose(1, 2) for y in joined]


def whole_cells(x: Tensor, size: int) -> Tensor:
    """A map (B, C, H, W), padded by zeros so that cells of size x size places fill it."""
    padding = (0, -x.shape[3] % size, 0, -x.shape[2] % size)
    return F.pad(x, padding) if any(padding) else x  # by nothing, it would copy


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
