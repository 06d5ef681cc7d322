"""The attention of LeViT: small keys, wide values, a learned score for each distance, and hardswish before the output."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import TokenLayer, check_grid, check_heads
from layerzoo.ops.attention import attend
from layerzoo.ops.offsets import offsets
from layerzoo.ops.relative_logits import pair_scores, resize_offsets


class LeViTAttention(TokenLayer):
    """Self-attention with a bias for each pair of distances.

    **Paper**: LeViT, arXiv 2104.01136.

    y_i = W_o hardswish(concat_h(sum_j softmax_j(q_i k_j / sqrt(d_k) + T_h[|y_i - y_j|, |x_i - x_j|]) v_j)), with d_v = ratio d_k.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; T is resized bilinearly for other maps than `grid`.

    **Cost**: time N^2 h (d_k + d_v) + N C h (2 d_k + d_v); memory N C + h N^2, for the bias.

    **Args**:
        dim: channels C.
        grid: (H, W) the table is built for.
        num_heads: h, which need not divide dim; None = one head per 32 channels, so that values have as many channels as dim.
        key_dim: d_k, channels of a head's queries and keys; 16, the smallest models of the paper.
        value_ratio: d_v / d_k; 2, the paper's.

    **Raises**: ValueError for a grid that is not (H, W), num_heads or key_dim below 1, a value_ratio that leaves no channel, and in
    `forward` for tokens of another number than the grid's without `grid=`.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("levit", dim=64, grid=(8, 8))(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: both linear maps have a bias, where its batch norm follows, which folds into them; the second does not
    start at zero, which is the block's layer scale.
    """

    card = Card(
        title="Attention of LeViT", paper="2104.01136", year=2021, cost=(2, 2), needs_grid=True,
        sizes={"tiny": {"dim": 8, "grid": (3, 4), "num_heads": 2, "key_dim": 3}, "base": {"dim": 64, "grid": (8, 8), "num_heads": 4},
               "odd": {"dim": 15, "grid": (5, 3), "num_heads": 2, "key_dim": 5, "value_ratio": 1.5}},
        differs="both linear maps have a bias instead of batch norm, which folds into it; the second does not start at zero",
        cannot={"padding": "the table spans the grid, and padding makes another grid, for which it is resized"})

    def __init__(
        self, dim: int, *, grid: tuple[int, int], num_heads: int | None = None, key_dim: int = 16, value_ratio: float = 2.0,
    ):
        super().__init__(dim)
        self.grid = check_grid(grid)
        self.num_heads = check_heads(dim, None) if num_heads is None else num_heads
        self.widths = key_dim, key_dim, int(value_ratio * key_dim)
        if min(self.num_heads, *self.widths) < 1:
            got = f"{num_heads}, {key_dim} and {value_ratio}"
            expected = "at least one head, one channel of its keys and one of its values"
            raise bad_value("num_heads, key_dim and value_ratio", got=got, expected=expected, do="The paper's are 4, 16 and 2.")
        self.qkv = nn.Linear(dim, self.num_heads * sum(self.widths))
        self.table = nn.Parameter(torch.zeros(self.num_heads, *self.grid))
        self.proj = nn.Linear(self.num_heads * self.widths[2], dim)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2).split(self.widths, 3)
        distances = (offsets(side, tokens.device).abs() for side in grid)
        y = attend(q, k, v, mask, pair_scores(resize_offsets(self.table, grid), *distances))
        return self.proj(F.hardswish(y.transpose(1, 2).flatten(2)))
