"""Cross-shaped window attention: half of the heads attend within horizontal stripes, the other half within vertical ones."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer, check_heads
from layerzoo.ops.attention import attend
from layerzoo.ops.neighborhoods import real_places
from layerzoo.ops.token_maps import check_count, join_places
from layerzoo.ops.windows import blocks_2d


class CrossShapedWindow(HeadsLayer):
    """Multi-head self-attention inside stripes, with locally enhanced positional encoding (LePE).

    **Paper**: CSWin Transformer, arXiv 2107.00652.

    y_i = W_o concat_h(sum_j softmax_j(q_i k_j / sqrt(d)) v_j + (D_h * v)_i), j over the stripe of i: w whole rows for the first half of
    the heads, w whole columns for the others. D_h is a depthwise 3 x 3 convolution, and like attention it sees the stripe alone.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time N w (H + W) C + N C^2, that is N^1.5 on a square map; memory N C.

    **Args**:
        dim: channels C.
        stripe_width: w, in positions; 7, of the paper's 1, 2, 7 and 7 that of the stage with the most blocks.
        num_heads: h, at least 2, the first half rounded up; None = one head per 32 channels, the paper's, but no fewer than 2.
        qkv_bias: bias in q, k, v; on, as in the paper's code.

    **Raises**: ValueError for a stripe_width below 1, and for num_heads below 2 or that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("cross_shaped_window", dim=64, stripe_width=2)(torch.randn(2, 64, 9, 5)).shape
        torch.Size([2, 64, 9, 5])

    **Differs from the paper**: on sides that w does not divide the last stripe is narrower (there w divides them); the halves of the heads
    need not be equal.
    """

    card = Card(
        title="Cross-shaped window attention", paper="2107.00652", year=2021, cost=(1.5, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "stripe_width": 2}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "stripe_width": 3, "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"stripe_width": 6}, "grid": (4, 6),
               "set": {"row_lepe.weight": "zeros", "row_lepe.bias": "zeros", "column_lepe.weight": "zeros", "column_lepe.bias": "zeros"}},
        differs="on sides that the stripe's width does not divide the last stripe is narrower; the halves need not be equal")

    def __init__(self, dim: int, *, stripe_width: int = 7, num_heads: int | None = None, qkv_bias: bool = True):
        if num_heads is None and check_heads(dim, None) == 1:
            num_heads = next((h for h in range(2, dim + 1) if dim % h == 0), None)
        super().__init__(dim, num_heads, qkv_bias)
        check_count("stripe_width", stripe_width)
        if self.num_heads < 2:
            expected = "two heads or more, for rows and for columns"
            raise bad_value("num_heads", got=self.num_heads, expected=expected, do="Choose another divisor of dim.")
        self.stripe_width = stripe_width
        self.row_heads = -(-self.num_heads // 2)
        self.row_lepe, self.column_lepe = (
            nn.Conv2d(h * self.head_dim, h * self.head_dim, 3, padding=1, groups=h * self.head_dim)
            for h in (self.row_heads, self.num_heads - self.row_heads))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        qkv, width = self.qkv(tokens), self.stripe_width
        if mask is not None:
            qkv = qkv.masked_fill(~mask.unsqueeze(-1), 0)  # zeros to the convolution, as the border is
        by_row, by_column = qkv.unflatten(1, grid).unflatten(-1, (3, self.num_heads, -1)).tensor_split((self.row_heads,), dim=4)
        real = None if mask is None and all(side % min(width, side) == 0 for side in grid) else real_places(tokens, grid, mask)
        rows = _mix_stripes(by_row, (min(width, grid[0]), grid[1]), self.row_lepe, real)
        columns = _mix_stripes(by_column, (grid[0], min(width, grid[1])), self.column_lepe, real)
        return self.proj(torch.cat([rows, columns], -1))


def _mix_stripes(qkv: Tensor, stripe: tuple[int, int], lepe: nn.Conv2d, real: Tensor | None) -> Tensor:
    """Heads (B, H W, h d) of q, k, v (B, H, W, 3, h, d) within stripes of (rows, columns); real (B, H, W, 1) bool, or None for all."""
    grid, heads = qkv.shape[1:3], qkv.shape[3:]
    stripes = blocks_2d(qkv.flatten(3), stripe)
    q, k, v = stripes.flatten(0, 1).unflatten(-1, heads).permute(2, 0, 3, 1, 4).unbind(0)
    y = attend(q, k, v, None if real is None else blocks_2d(real, stripe).flatten(0, 1).squeeze(-1))
    local = lepe(v.transpose(2, 3).flatten(1, 2).unflatten(2, stripe)).flatten(2).transpose(1, 2)
    y = y.transpose(1, 2).flatten(2) + local
    return join_places(y.unflatten(0, stripes.shape[:2]).transpose(1, 2), grid, stripe)
