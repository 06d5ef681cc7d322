"""The attention of CMT: a depthwise convolution perceives first, keys and values are gathered by another, offsets add a score."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer, as_map, check_grid, map_to_tokens
from layerzoo.ops.attention import attend
from layerzoo.ops.reduction import seen_cells, whole_cells
from layerzoo.ops.relative_logits import pair_scores, resize_offsets
from layerzoo.ops.token_maps import convolve


class CMTAttention(HeadsLayer):
    """Local perception unit and lightweight multi-head self-attention.

    **Paper**: CMT, arXiv 2107.06263.

    y = P(x) + A(x + P(x)), P a 3 x 3 depthwise convolution; A(u)_i = W_o concat_h(sum_p softmax_p(q_i k'_p / sqrt(d) + T_h[i - p]) v'_p),
    p over cells of s x s places, k' = D_k(k) and v' = D_v(v) depthwise convolutions of size and stride s, i - p the offset from the first
    place of the cell to i.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; T is resized bilinearly for other maps than `grid`.

    **Cost**: time N^2 C / s^2 + N C^2; memory N C + h N^2 / s^2, for the bias; h (2H-1) (2W-1) parameters beside the maps.

    **Args**:
        dim: channels C.
        grid: (H, W) the table is built for.
        num_heads: h; None = one head per 32 channels.
        reduction: s, the side of a cell in positions; 2, the paper's third stage, whose maps have 14 x 14 places.
        qkv_bias: bias in q, k, v; on, as in ViT.

    **Raises**: ValueError for a grid that is not (H, W), a reduction below 1, num_heads that do not divide dim, and in `forward` for
    tokens of another number than the grid's without `grid=`.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("cmt", dim=64, grid=(8, 8))(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: what both units add to their input is returned, since the block adds it, and the norm before A is the
    block's, before both; a score belongs to an offset, where the paper learns one for each pair. Cells cut by the border are padded by
    zeros.
    """

    card = Card(
        title="Lightweight attention of CMT", paper="2107.06263", year=2021, cost=(2, 2), needs_grid=True,
        sizes={"tiny": {"dim": 8, "grid": (3, 4), "num_heads": 2}, "base": {"dim": 64, "grid": (8, 8), "num_heads": 4},
               "odd": {"dim": 15, "grid": (5, 3), "num_heads": 3, "reduction": 3, "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"grid": (4, 6), "reduction": 1}, "grid": (4, 6),
               "set": {"perceive.weight": "zeros", "perceive.bias": "zeros", "table": "zeros", "gather.weight": "ones",
                       "gather.bias": "zeros"}},
        differs="what it adds to its input is returned, and its norm is the block's; a score for each offset, not for each pair",
        cannot={"padding": "the table spans the grid, and padding makes another grid, for which it is resized"})

    def __init__(self, dim: int, *, grid: tuple[int, int], num_heads: int | None = None, reduction: int = 2, qkv_bias: bool = True):
        super().__init__(dim, num_heads, qkv_bias)
        if reduction < 1:
            raise bad_value("reduction", got=reduction, expected="a whole number of positions >= 1", do="Choose 1 to keep every key.")
        self.grid, self.reduction = check_grid(grid), reduction
        self.perceive = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.gather = nn.Conv2d(2 * dim, 2 * dim, reduction, stride=reduction, groups=2 * dim)
        self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(self.num_heads, 2 * grid[0] - 1, 2 * grid[1] - 1), std=0.02))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        perceived = convolve(self.perceive, tokens, grid)
        q, kv = self.qkv(tokens + perceived).tensor_split((self.dim,), dim=2)
        if mask is not None:
            kv = kv * mask.unsqueeze(-1)  # as the padding of a cell
        kv = self.gather(whole_cells(as_map(kv, grid), self.reduction))
        k, v = map_to_tokens(kv).unflatten(2, (2, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        q = q.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
        return perceived + self.merge(attend(q, k, v, seen_cells(mask, grid, self.reduction), self.bias(grid)))

    def bias(self, grid: tuple[int, int]) -> Tensor:
        """Scores (h, N, cells) of the offsets from the first place of each cell."""
        place = [torch.arange(side, device=self.table.device) for side in grid]
        offsets = (p[:, None] - p[:: self.reduction] + len(p) - 1 for p in place)
        return pair_scores(resize_offsets(self.table, tuple(2 * side - 1 for side in grid)), *offsets)
