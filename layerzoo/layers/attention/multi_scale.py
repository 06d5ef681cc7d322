"""Multi-scale attention: keys and values pooled by strided convolutions, and positions that enter the scores by rows and by columns."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.layers.base import HeadsLayer, as_map, check_odd, map_to_tokens
from layerzoo.ops.attention import attend
from layerzoo.ops.reduction import seen_cells
from layerzoo.ops.token_maps import check_count


class MultiScale(HeadsLayer):
    """Pooling attention with decomposed relative positions and the query added to the result.

    **Paper**: MViTv2, arXiv 2112.01526.

    y = W_o concat_h(softmax_j(q_i k_j / sqrt(d) + q_i . R[row_i - row_j] + q_i . S[column_i - column_j]) v_j + q_i). q, k and v are
    linear in x, then filtered, in each head alike, by a depthwise convolution of stride 1 for q and s for k and v, and LayerNorm.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time N^2 (C / s^2 + h (H + W) / s^3) + N C^2, that is N^2.5 in the end; memory N C + N h (H + W) / s: the scores of rows
    and columns are channels of the query, so that no N^2 / s^2 scores are made.

    **Args**:
        dim: channels C.
        stride: s of keys and values, in positions; 2, between the paper's 4 at its first and 1 at its last resolutions.
        kernel_size: of the convolutions, in positions, odd; 3, the paper's. 1 filters nothing, and with stride 1 leaves out the norms.
        reach: offsets up to which R and S have rows of their own, in positions; 32, further ones count as 32.
        residual_query: the query added to the result; on, as in the paper.
        num_heads: h; None = one head per 32 channels.
        qkv_bias: bias in q, k, v; on, as in the paper's code.

    **Raises**: ValueError for a stride or reach below 1, an even kernel_size and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("multi_scale", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: queries keep their resolution; offsets beyond `reach` share a row (there R and S are as long as the map,
    and resized for another); no class token.
    """

    card = Card(
        title="Multi-scale attention (MViTv2)", paper="2112.01526", year=2021, cost=(2.5, 1.5), needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "stride": 3, "kernel_size": 5, "reach": 2, "residual_query": False, "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"stride": 1, "kernel_size": 1, "residual_query": False}, "grid": (4, 6),
               "set": {"row_table": "zeros", "column_table": "zeros"}},
        differs="queries keep their resolution; far offsets share a row, where the paper resizes the tables; no class token")

    def __init__(
        self, dim: int, *, stride: int = 2, kernel_size: int = 3, reach: int = 32, residual_query: bool = True,
        num_heads: int | None = None, qkv_bias: bool = True,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        check_count("stride", stride)
        check_odd("kernel_size", kernel_size)
        check_count("reach", reach)
        self.stride, self.reach, self.residual_query = stride, reach, residual_query
        steps = (1, stride, stride)
        self.pools = nn.ModuleList(_HeadPool(self.head_dim, kernel_size, s) if kernel_size * s > 1 else None for s in steps)
        shape = 2 * reach + 1, self.head_dim
        self.row_table, self.column_table = (nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02)) for _ in range(2))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        heads = self.split(tokens)
        if mask is not None:  # as zero padding is to the convolutions
            heads = [x * mask[:, None, :, None] for x in heads]
        q, k, v = (x if pool is None else pool(x, grid) for pool, x in zip(self.pools, heads))
        down, across = (torch.arange(0, side, self.stride, device=q.device) for side in grid)
        places = q.unflatten(2, grid)
        rows = torch.einsum("bhyxd,ykd->bhyxk", places, self.offsets(self.row_table, grid[0], down))
        columns = torch.einsum("bhyxd,xkd->bhyxk", places, self.offsets(self.column_table, grid[1], across))
        # Keys tell their row and column by a one among zeros, and queries hold the scores of all rows and columns.
        one_row, one_column = (torch.eye(len(t), dtype=k.dtype, device=k.device) for t in (down, across))
        place = torch.cat([one_row.repeat_interleave(len(across), 0), one_column.repeat(len(down), 1)], 1)
        keys = torch.cat([k, place.expand(*k.shape[:2], -1, -1)], 3)
        queries = torch.cat([q * self.head_dim**-0.5, rows.flatten(2, 3), columns.flatten(2, 3)], 3) * keys.shape[3] ** 0.5
        y = attend(queries, keys, F.pad(v, (0, place.shape[1])), seen_cells(mask, grid, self.stride))[..., : self.head_dim]
        return self.merge(y + q if self.residual_query else y)

    def offsets(self, table: Tensor, side: int, centres: Tensor) -> Tensor:
        """Rows of a table (2 reach + 1, d) for the offsets of all places of an axis to the centres of its cells, (side, cells, d)."""
        offset = torch.arange(side, device=table.device)[:, None] - centres
        return table[offset.clamp(-self.reach, self.reach) + self.reach]


class _HeadPool(nn.Module):
    """A strided depthwise convolution over the map and a norm, the same for each head: (B, h, N, d) -> (B, h, n, d)."""

    def __init__(self, head_dim: int, kernel_size: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(head_dim, head_dim, kernel_size, stride, kernel_size // 2, groups=head_dim, bias=False)
        self.norm = nn.LayerNorm(head_dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        heads, maps = x.shape[1], as_map(x.transpose(1, 2).flatten(2), grid)
        kernels = self.conv.weight.repeat(heads, 1, 1, 1)
        y = F.conv2d(maps, kernels, stride=self.conv.stride, padding=self.conv.padding, groups=maps.shape[1])
        return self.norm(map_to_tokens(y).unflatten(2, (heads, -1))).transpose(1, 2)
