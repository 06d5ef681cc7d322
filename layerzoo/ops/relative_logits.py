"""Scores that depend on the offset between query and key, along rows and columns."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.ops.attention import attend
from layerzoo.ops.offsets import offsets


class RelativeLogits(nn.Module):
    """Attention with a learned embedding of each row offset and of each column offset, shared by the heads.

    y_i = sum_j softmax_j(q_i . (k_j + r[y_j - y_i] + c[x_j - x_i]) / sqrt(d)) v_j for the places (y, x) of a map.

    Of q_i . r[y_j - y_i] the key knows its row alone. So a query's products with all H rows are H more channels of it, which a key
    reads by the unit vector of its row, as it does for columns: one attention of d + H + W channels, and no N x N matrix.

    Args:
        head_dim: d, of queries and keys.
        grid: (H, W) the embeddings are built for; they are resized linearly for another.
    """

    def __init__(self, head_dim: int, grid: tuple[int, int]):
        super().__init__()
        self.rows, self.columns = (
            nn.Parameter(nn.init.trunc_normal_(torch.empty(2 * side - 1, head_dim), std=head_dim**-0.5)) for side in grid)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        """q, k (B, h, N, d) and v (B, h, N, any) to the shape of v; mask (B, N) bool, True = real token."""
        (height, width), dim, value_dim = grid, q.shape[-1], v.shape[-1]
        size = max(dim + height + width, value_dim)  # fused kernels want values as wide as keys
        places = (q * (size / dim) ** 0.5).unflatten(2, grid)
        by_row = torch.einsum("bhyxd,ykd->bhyxk", places, _pairs(self.rows, height).to(q.dtype))
        by_column = torch.einsum("bhyxd,xkd->bhyxk", places, _pairs(self.columns, width).to(q.dtype))
        row, column = (torch.eye(side, dtype=k.dtype, device=k.device) for side in grid)
        units = torch.cat([row.repeat_interleave(width, 0), column.repeat(height, 1)], 1)
        q = torch.cat([places, by_row, by_column], -1).flatten(2, 3)
        k = torch.cat([k, units.expand(*k.shape[:2], -1, -1)], -1)
        q, k, v = (F.pad(t, (0, size - t.shape[-1])) for t in (q, k, v))
        return attend(q, k, v, mask)[..., :value_dim]


def _pairs(table: Tensor, side: int) -> Tensor:
    """Embeddings (2n - 1, d) of the offsets of n places as (side, side, d): entry (i, j) is that of j - i."""
    table = resize_offsets(table.T.unsqueeze(-1), (2 * side - 1, 1)).squeeze(-1).T
    return table[offsets(side, table.device) + side - 1]


def resize_offsets(table: Tensor, size: tuple[int, int]) -> Tensor:
    """A table (h, rows, columns) of offsets at another size, bilinearly; the first and the last offset stay so."""
    return table if table.shape[1:] == size else F.interpolate(table[None], size=size, mode="bilinear", align_corners=True)[0]


def pair_scores(table: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Scores (h, queries, keys), read row by row, of pairs of places, from the entries of a table (h, R, C).

    Args:
        rows, columns: which row of the table a query's row and a key's row meet in, (query rows, key rows); likewise columns.
    """
    scores = table.index_select(2, columns.flatten()).index_select(1, rows.flatten())  # the many rows are then copied whole
    return scores.unflatten(2, columns.shape).unflatten(1, rows.shape).transpose(2, 3).flatten(3, 4).flatten(1, 2)
