"""Deformable attention: keys and values are sampled at few points, which the queries around them move."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer, check_odd, map_to_tokens
from layerzoo.ops.attention import attend
from layerzoo.ops.linear_recurrence import full_precision
from layerzoo.ops.reduction import parts, project
from layerzoo.ops.sampling import sample
from layerzoo.ops.token_maps import check_count
from layerzoo.ops.windows import blocks_2d


class DeformableAttention(HeadsLayer):
    """Softmax attention to sampled points.

    **Paper**: DAT, arXiv 2201.00520.

    y_i = W_o concat_h(sum_j softmax_j(q_i k_j / sqrt(d) + T_h[i - p_j]) v_j), k_j and v_j linear in x at the point p_j, bilinear between
    positions. There is one point for each cell of s x s positions, p = centre + f s tanh(W gelu(LayerNorm(conv(q)))), conv depthwise
    of stride s. Channels form G groups, each with its points; conv and W are the same for all.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time N^2 C / s^2 + N C^2; memory N C, with `reach` N^2 (h + G) / s^2 more.

    **Args**:
        dim: channels C.
        stride: s, side of a cell in positions; 2, which leaves a quarter of the keys.
        num_groups: G; 1, the paper's is a third to an eighth of the heads.
        kernel_size: of the convolution in positions, odd; 5, the paper's.
        offset_range: f, how far a point may move from its centre, in cells; 1, the paper's factor of 2 in halves of cells.
        reach: largest offset T tells apart, in positions, T of (2 reach + 1)^2 numbers per head; None = no T, which fused kernels need.
        num_heads: h; None = one head per 32 channels, the paper's.
        qkv_bias: bias in q, k, v; on, as in the paper's code.

    **Raises**: ValueError for a stride or reach below 1, an even kernel_size, num_heads that do not divide dim and num_groups that
    do not divide num_heads.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("deformable_attention", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: T is off unless asked for, and bound to offsets, not to the size of the map; beyond `reach` it goes on
    as at its border. A cell that the border cuts has its centre inside.
    """

    card = Card(
        title="Deformable attention (DAT)", paper="2201.00520", year=2022, cost=(2, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "num_groups": 2}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 12, "num_heads": 4, "stride": 3, "num_groups": 2, "kernel_size": 3, "reach": 2, "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"stride": 1}, "grid": (4, 6), "set": {"offset.weight": "zeros"}},
        differs="the relative bias is off unless asked for, and bound to offsets; a cell that the border cuts has its centre inside")

    def __init__(
        self, dim: int, *, stride: int = 2, num_groups: int = 1, kernel_size: int = 5, offset_range: float = 1.0,
        reach: int | None = None, num_heads: int | None = None, qkv_bias: bool = True,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        check_count("stride", stride)
        check_odd("kernel_size", kernel_size)
        if num_groups < 1 or self.num_heads % num_groups:
            divisor = f"a divisor of num_heads={self.num_heads}"
            raise bad_value("num_groups", got=num_groups, expected=divisor, do="Some heads share the points of each group.")
        self.stride, self.num_groups, self.offset_range, self.reach = stride, num_groups, offset_range, reach
        width = dim // num_groups
        self.conv = nn.Conv2d(width, width, kernel_size, stride, kernel_size // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.offset = nn.Linear(width, 2, bias=False)
        if reach is not None:
            check_count("reach", reach)
            self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(self.num_heads, 2 * reach + 1, 2 * reach + 1), std=0.02))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        asks, hears = parts(self.qkv)
        (q,) = project(tokens, asks, self.num_heads)
        points, seen = self.points(q, grid, mask)
        sampled = sample(self.groups(tokens, grid), points.flatten(0, 1)).unflatten(0, points.shape[:2]).flatten(1, 2)
        k, v = project(sampled.transpose(1, 2), hears, self.num_heads)
        return self.merge(attend(q, k, v, seen, None if self.reach is None else self.bias(points, grid)))

    def groups(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, N, C) as maps of each group (B G, C / G, H, W)."""
        return tokens.unflatten(2, (self.num_groups, -1)).permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, grid)

    def points(self, q: Tensor, grid: tuple[int, int], mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Points (row, column) in positions (B, G, n, 2), and which cells hold a real position (B, n)."""
        x = q.transpose(1, 2).flatten(2)
        x = self.conv(self.groups(x if mask is None else x * mask.unsqueeze(-1), grid))
        move = full_precision(self.offset(F.gelu(self.norm(map_to_tokens(x)))))[0].tanh()
        rows, columns = (torch.arange(side, dtype=move.dtype, device=move.device) for side in grid)
        places = torch.stack([rows[:, None].expand(grid), columns.expand(grid), move.new_ones(grid)], -1)[None]
        if mask is not None:
            places = places * mask.unflatten(1, grid).unsqueeze(-1)
        cells = blocks_2d(places, (self.stride, self.stride)).sum(2)
        centres = (cells[..., :2] / cells[..., 2:].clamp(min=1)).unsqueeze(1)
        points = centres + self.offset_range * self.stride * move.unflatten(0, (-1, self.num_groups))
        return points, None if mask is None else cells[..., 2] > 0

    def bias(self, points: Tensor, grid: tuple[int, int]) -> Tensor:
        """T at the offsets of all positions to the points, (B, h, N, n)."""
        rows, columns = (torch.arange(side, dtype=points.dtype, device=points.device) for side in grid)
        places = torch.cartesian_prod(rows, columns).unsqueeze(1)
        offset = (places - points.flatten(0, 1).unsqueeze(1)).flip(-1) / self.reach  # grid_sample's order is column, row
        tables = self.table.to(points.dtype).unflatten(0, (self.num_groups, -1)).repeat(len(points), 1, 1, 1)
        scores = F.grid_sample(tables, offset, padding_mode="border", align_corners=True)
        return scores.unflatten(0, points.shape[:2]).flatten(1, 2)
