"""Pooled attention of CoAtNet: a transformer block whose input and shortcut are pooled, and which widens."""

from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.downsample.base import Downsample
from layerzoo.ffn.mlp import MLP
from layerzoo.layers.base import as_map, check_choice, check_grid, check_heads, map_to_tokens
from layerzoo.ops.attention import attend
from layerzoo.ops.norms import create_norm
from layerzoo.positions.relative_bias import RelativeBias


class PooledAttention(Downsample):
    """Attention with relative bias over a pooled map.

    **Paper**: CoAtNet, arXiv 2106.04803.

    y = z + W_2 gelu(W_1 norm(z) + b_1) + b_2, z = P pool(x) + W_o concat_h(softmax_j(q_i k_j / sqrt(d) + T_h[i - j]) v_j), with q, k and v
    linear in pool(norm(x)), i and j places of the pooled map, and pool the largest value, or the mean, of 2x2 places.

    **Shape**: (B, C, H, W) -> (B, C_out, ceil(H / 2), ceil(W / 2)); T is resized bilinearly for other maps than `grid`.

    **Cost**: time N^2 C_out / 16 + N C_out (C + mlp_ratio C_out) / 4; memory N C + h N^2 / 16, for the bias.

    **Args**:
        dim: channels C.
        dim_out: channels C_out.
        grid: (H, W) of the map that comes in.
        num_heads: h, which divides C_out; None = one head per 32 channels, the paper's.
        pool: "max", the paper's, or "mean".
        mlp_ratio: hidden channels of the MLP over C_out; 4, the paper's.
        norm: "layer" (over channels), "batch", "group" or "none", or {"name": ..., "eps": ...}; layer, the paper's.

    **Raises**: ValueError for a dim or dim_out below 1, a grid that is not (H, W), num_heads that do not divide dim_out, another pool, an
    mlp_ratio that leaves no hidden channel, an unknown norm, and for an input that is not (B, C, H, W).

    **Example**:
        >>> import torch
        >>> PooledAttention(64, 128, grid=(7, 6))(torch.randn(2, 64, 7, 6)).shape
        torch.Size([2, 128, 4, 3])

    **Differs from the paper**: windows that stick out at an odd side pool the places that are there.
    """

    card = Card(
        title="Pooled attention of CoAtNet", paper="2106.04803", year=2021, cost=(2, 2), mask=False, needs_grid=True,
        sizes={"tiny": {"dim": 8, "dim_out": 16, "grid": (3, 4), "num_heads": 2}, "base": {"dim": 64, "dim_out": 128, "grid": (8, 8)},
               "odd": {"dim": 5, "dim_out": 9, "grid": (5, 3), "num_heads": 3, "pool": "mean", "mlp_ratio": 1.5, "norm": "batch"}},
        differs="windows that stick out at an odd side pool the places that are there",
        cannot={"mask": "it is a unit of maps, and a map has no places to leave out"})

    def __init__(
        self, dim: int, dim_out: int, *, grid: tuple[int, int], num_heads: int | None = None, pool: str = "max", mlp_ratio: float = 4.0,
        norm: str | dict = "layer",
    ):
        super().__init__(dim, dim_out)
        check_choice("pool", pool, ("max", "mean"))
        self.num_heads = check_heads(dim_out, num_heads)
        self.norm = create_norm(norm, dim)
        self.pool = nn.MaxPool2d(2, ceil_mode=True) if pool == "max" else nn.AvgPool2d(2, ceil_mode=True)
        self.shortcut = nn.Linear(dim, dim_out)
        self.qkv = nn.Linear(dim, 3 * dim_out)
        self.relative_bias = RelativeBias(self.num_heads, grid=self.out_grid(check_grid(grid)))
        self.proj = nn.Linear(dim_out, dim_out)
        self.ffn_norm = create_norm(norm, dim_out)
        self.ffn = MLP(dim_out, mlp_ratio=mlp_ratio)

    def reduce(self, x: Tensor) -> Tensor:
        seen, grid = map_to_tokens(self.pool(self.norm(x))), self.out_grid(x.shape[2:])
        q, k, v = self.qkv(seen).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        y = attend(q, k, v, bias=self.relative_bias.bias(grid)).transpose(1, 2).flatten(2)
        z = as_map(self.shortcut(map_to_tokens(self.pool(x))) + self.proj(y), grid)
        return z + self.ffn(self.ffn_norm(z))
