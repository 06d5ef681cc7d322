"""CoAtNet's attention: content scores plus a learned score for each offset, a convolution kernel as wide as the map."""

from torch import Tensor

from layerzoo.card import Card
from layerzoo.layers.base import HeadsLayer, check_grid
from layerzoo.ops.attention import attend
from layerzoo.positions.relative_bias import RelativeBias


class CoAtNetAttention(HeadsLayer):
    """Self-attention with relative bias.

    **Paper**: CoAtNet, arXiv 2106.04803.

    y_i = W_o concat_h(sum_j softmax_j(q_i k_j / sqrt(d) + T_h[i - j]) v_j): convolution weights T and attention in one softmax.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; T is resized bilinearly for other maps than `grid`.

    **Cost**: time N^2 C + N C^2; memory N C + h N^2 for the bias, which the batch shares; h (2H-1) (2W-1) parameters beside q, k, v.

    **Args**:
        dim: channels C.
        grid: (H, W) the table is built for.
        num_heads: h; None = one head per 32 channels, the paper's.
        qkv_bias: bias in q, k, v; on, as in the paper's code.
        dropout: probability of dropping an attention weight; 0, the paper's.

    **Raises**: ValueError for a grid that is not (H, W), num_heads that do not divide dim, and in `forward` for tokens of another
    number than the grid's without `grid=`.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("coatnet_attention", dim=64, grid=(8, 8))(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: nothing.
    """

    card = Card(
        title="Relative self-attention of CoAtNet", paper="2106.04803", year=2021, cost=(2, 2), needs_grid=True,
        sizes={"tiny": {"dim": 8, "grid": (3, 4), "num_heads": 2}, "base": {"dim": 64, "grid": (8, 8), "num_heads": 4},
               "odd": {"dim": 15, "grid": (5, 3), "num_heads": 3}},
        limit={"equals": "mhsa", "options": {"grid": (4, 6)}, "grid": (4, 6), "set": {"relative_bias.table": "zeros"}},
        cannot={"padding": "the table spans the grid, and padding makes another grid, for which it is resized"})

    def __init__(self, dim: int, *, grid: tuple[int, int], num_heads: int | None = None, qkv_bias: bool = True, dropout: float = 0.0):
        super().__init__(dim, num_heads, qkv_bias)
        self.grid, self.dropout = check_grid(grid), dropout
        self.relative_bias = RelativeBias(self.num_heads, grid=self.grid)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        q, k, v = self.split(tokens)
        return self.merge(attend(q, k, v, mask, self.relative_bias.bias(grid), dropout=self.dropout if self.training else 0.0))
