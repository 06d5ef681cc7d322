"""Attention over a map whose queries, keys and values are pooled, with positions that enter the scores by rows and by columns."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.ops.attention import attend
from layerzoo.ops.formats import as_map, map_to_tokens
from layerzoo.ops.reduction import seen_cells


class PoolingAttention(nn.Module):
    """softmax_j(q_i k_j / sqrt(d) + q_i . R[row_i - row_j] + q_i . S[column_i - column_j]) v_j + q_i (MViTv2, arXiv 2112.01526).

    q, k and v are filtered, each head alike, by depthwise convolutions and LayerNorm. Offsets are counted in the largest step that
    divides the places of both queries and keys.

    Args:
        head_dim: d.
        kernel_size: of the convolutions, in places; 1 filters nothing, and with stride 1 leaves out the norms.
        query_stride: of the queries' convolution.
        stride: of the keys' and values'.
        reach: offsets up to which R and S have rows of their own; further ones count as this.
        residual_query: whether q_i is added.
    """

    def __init__(self, head_dim: int, kernel_size: int, query_stride: int, stride: int, reach: int, residual_query: bool):
        super().__init__()
        self.head_dim, self.query_stride, self.stride, self.reach, self.residual_query = head_dim, query_stride, stride, reach, residual_query
        steps = (query_stride, stride, stride)
        self.pools = nn.ModuleList(HeadPool(head_dim, kernel_size, s) if kernel_size * s > 1 else None for s in steps)
        shape = 2 * reach + 1, head_dim
        self.row_table, self.column_table = (nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02)) for _ in range(2))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        """Heads (B, h, N, d) of a map of `grid` to (B, h, n, d), n of ceil(H / query_stride) times ceil(W / query_stride) places."""
        heads = q, k, v
        if mask is not None:  # as zero padding is to the convolutions
            heads = [x * mask[:, None, :, None] for x in heads]
        q, k, v = (x if pool is None else pool(x, grid) for pool, x in zip(self.pools, heads))
        down, across = (torch.arange(0, side, self.stride, device=q.device) for side in grid)
        asking = tuple(-(-side // self.query_stride) for side in grid)
        places = q.unflatten(2, asking)
        rows = torch.einsum("bhyxd,ykd->bhyxk", places, self.offsets(self.row_table, asking[0], down))
        columns = torch.einsum("bhyxd,xkd->bhyxk", places, self.offsets(self.column_table, asking[1], across))
        # Keys tell their row and column by a one among zeros, and queries hold the scores of all rows and columns.
        one_row, one_column = (torch.eye(len(t), dtype=k.dtype, device=k.device) for t in (down, across))
        place = torch.cat([one_row.repeat_interleave(len(across), 0), one_column.repeat(len(down), 1)], 1)
        keys = torch.cat([k, place.expand(*k.shape[:2], -1, -1)], 3)
        queries = torch.cat([q * self.head_dim**-0.5, rows.flatten(2, 3), columns.flatten(2, 3)], 3) * keys.shape[3] ** 0.5
        y = attend(queries, keys, F.pad(v, (0, place.shape[1])), seen_cells(mask, grid, self.stride))[..., : self.head_dim]
        return y + q if self.residual_query else y

    def offsets(self, table: Tensor, count: int, centres: Tensor) -> Tensor:
        """Rows of a table (2 reach + 1, d) for the offsets of `count` queries along an axis to the centres of its cells, (count, cells, d)."""
        offset = torch.arange(count, device=table.device)[:, None] * self.query_stride - centres
        steps = offset // math.gcd(self.query_stride, self.stride)
        return table[steps.clamp(-self.reach, self.reach) + self.reach]


class HeadPool(nn.Module):
    """A strided depthwise convolution over the map and a norm, the same for each head: (B, h, N, d) -> (B, h, n, d)."""

    def __init__(self, head_dim: int, kernel_size: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(head_dim, head_dim, kernel_size, stride, kernel_size // 2, groups=head_dim, bias=False)
        self.norm = nn.LayerNorm(head_dim, eps=1e-6)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        heads, maps = x.shape[1], as_map(x.transpose(1, 2).flatten(2), grid)
        kernels = self.conv.weight.repeat(heads, 1, 1, 1)
        y = F.conv2d(maps, kernels, stride=self.conv.stride, padding=self.conv.padding, groups=maps.shape[1])
        return self.norm(map_to_tokens(y).unflatten(2, (heads, -1))).transpose(1, 2)
