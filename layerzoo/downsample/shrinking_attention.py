"""Shrinking attention of LeViT: every other place of every other row asks the whole map, and a residual MLP follows."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.downsample.base import Downsample
from layerzoo.ffn.mlp import MLP
from layerzoo.layers.base import as_map, check_grid, map_to_tokens
from layerzoo.ops.attention import attend
from layerzoo.ops.norms import create_norm
from layerzoo.ops.offsets import offsets
from layerzoo.ops.relative_logits import pair_scores, resize_offsets
from layerzoo.ops.token_maps import check_count


class ShrinkingAttention(Downsample):
    """Attention whose queries are fewer than its keys.

    **Paper**: LeViT, arXiv 2104.01136.

    y = z + norm(W_2 hardswish(W_1 z + b_1) + b_2), z_i = norm(W_o hardswish(concat_h(sum_j A_h[i, j] v_jh)) + b_o),
    A_h[i, j] = softmax_j(q_ih k_jh / sqrt(d_k) + T_h[|y_i - y_j|, |x_i - x_j|]), with d_v = ratio d_k.

    j is any place of the map, and i one with even row y_i and even column x_i. All places are counted in rows and columns of the map that
    comes in, so T has its size. The attention has no residual, as its places are fewer; the MLP has, as no block is around it.

    **Shape**: (B, C, H, W) -> (B, C_out, ceil(H / 2), ceil(W / 2)); T is resized bilinearly for other maps than `grid`.

    **Cost**: time N^2 h (d_k + d_v) / 4 + N C h (5 d_k / 4 + d_v) + N C_out (h d_v + 2 C_out mlp_ratio) / 4; memory h N^2 / 4, for the bias.

    **Args**:
        dim: channels C.
        dim_out: channels C_out.
        grid: (H, W) of the map that comes in, which T is built for.
        num_heads: h; None = C / d_k rounded down, the paper's.
        key_dim: d_k, channels of a head's queries and keys; 16, the smallest models of the paper.
        value_ratio: d_v / d_k; 4, the paper's, twice that of its blocks.
        mlp_ratio: hidden channels of the MLP over C_out; 2, the paper's.
        norm: "batch", "layer" (over channels), "group" or "none", or {"name": ..., "eps": ...}; batch, the paper's.

    **Raises**: ValueError for a dim or dim_out below 1, a grid that is not (H, W), a num_heads, key_dim or value_ratio below 1, an
    mlp_ratio that leaves no hidden channel, an unknown norm, and for an input that is not (B, C, H, W).

    **Example**:
        >>> import torch
        >>> ShrinkingAttention(64, 128, grid=(7, 6))(torch.randn(2, 64, 7, 6)).shape
        torch.Size([2, 128, 4, 3])

    **Differs from the paper**: the maps to queries, keys, values and hidden channels have a bias, where its batch norm follows, which folds
    into them; the norms that are left do not start at zero.
    """

    card = Card(
        title="Shrinking attention of LeViT", paper="2104.01136", year=2021, cost=(2, 2), mask=False, needs_grid=True,
        sizes={"tiny": {"dim": 8, "dim_out": 16, "grid": (3, 4), "num_heads": 2, "key_dim": 3, "value_ratio": 2},
               "base": {"dim": 64, "dim_out": 128, "grid": (8, 8)},
               "odd": {"dim": 5, "dim_out": 7, "grid": (5, 3), "num_heads": 3, "key_dim": 2, "mlp_ratio": 1.5, "norm": "layer"}},
        differs="maps to queries, keys, values and hidden channels have a bias instead of batch norm, which folds into it",
        cannot={"mask": "it is a unit of maps, and a map has no places to leave out"})

    def __init__(
        self, dim: int, dim_out: int, *, grid: tuple[int, int], num_heads: int | None = None, key_dim: int = 16, value_ratio: int = 4,
        mlp_ratio: float = 2.0, norm: str | dict = "batch",
    ):
        super().__init__(dim, dim_out)
        check_count("key_dim", key_dim)
        check_count("value_ratio", value_ratio)
        self.num_heads = max(1, dim // key_dim) if num_heads is None else num_heads
        check_count("num_heads", self.num_heads)
        self.grid, self.widths = check_grid(grid), (key_dim, key_dim * value_ratio)
        self.query = nn.Linear(dim, self.num_heads * key_dim)
        self.key_value = nn.Linear(dim, self.num_heads * sum(self.widths))
        self.table = nn.Parameter(torch.zeros(self.num_heads, *self.grid))
        self.proj = nn.Linear(self.num_heads * self.widths[1], dim_out)
        self.norm = create_norm(norm, dim_out)
        self.ffn = MLP(dim_out, mlp_ratio=mlp_ratio, act="hardswish")
        self.ffn_norm = create_norm(norm, dim_out)

    def reduce(self, x: Tensor) -> Tensor:
        asking, grid = x[..., ::2, ::2], x.shape[2:]
        q, kv = (t.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for t in (self.query(map_to_tokens(asking)), self.key_value(map_to_tokens(x))))
        k, v = kv.split(self.widths, 3)
        distances = (offsets(side, x.device)[::2].abs() for side in grid)  # (ceil(side / 2), side)
        y = attend(q, k, v, bias=pair_scores(resize_offsets(self.table, grid), *distances))
        y = self.norm(as_map(self.proj(F.hardswish(y.transpose(1, 2).flatten(2))), asking.shape[2:]))
        return y + self.ffn_norm(self.ffn(y))
