"""The attention of BoTNet: content scores plus a query's score of the row offset and of the column offset."""

from torch import Tensor

from layerzoo.card import Card
from layerzoo.layers.base import HeadsLayer, check_grid
from layerzoo.ops.relative_logits import RelativeLogits


class BottleneckAttention(HeadsLayer):
    """Self-attention with two-dimensional relative position embeddings.

    **Paper**: Bottleneck Transformers, arXiv 2101.11605.

    y_i = W_o concat_h(sum_j softmax_j(q_i . (k_j + r[y_j - y_i] + c[x_j - x_i]) / sqrt(d)) v_j), with r and c one learned vector for each
    offset of rows and of columns, shared by the heads.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; r and c are resized linearly for other maps than `grid`.

    **Cost**: time N^2 (C + h (H + W)) + N C^2, that is N^2.5 on a square map; memory N (C + h (H + W)), and no N x N matrix.

    **Args**:
        dim: channels C.
        grid: (H, W) the embeddings are built for.
        num_heads: h; None = one head per 32 channels (the paper's 4 are for 512).
        qkv_bias: bias in q, k, v; off, the paper's.

    **Raises**: ValueError for a grid that is not (H, W), num_heads that do not divide dim, and in `forward` for tokens of another
    number than the grid's without `grid=`.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("botnet", dim=64, grid=(8, 8))(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: has an output projection, the 1x1 convolution that follows in its bottleneck; no batch norm between.
    """

    card = Card(
        title="Relative self-attention of BoTNet", paper="2101.11605", year=2021, cost=(2.5, 1.5), needs_grid=True,
        sizes={"tiny": {"dim": 8, "grid": (3, 4), "num_heads": 2}, "base": {"dim": 64, "grid": (8, 8), "num_heads": 4},
               "odd": {"dim": 15, "grid": (5, 3), "num_heads": 3, "qkv_bias": True}},
        limit={"equals": "mhsa", "options": {"grid": (4, 6)}, "equals_options": {"qkv_bias": False}, "grid": (4, 6),
               "set": {"relative.rows": "zeros", "relative.columns": "zeros"}},
        differs="has an output projection, the 1x1 convolution that follows in its bottleneck; no batch norm between",
        cannot={"padding": "the embeddings span the grid, and padding makes another grid, for which they are resized"})

    def __init__(self, dim: int, *, grid: tuple[int, int], num_heads: int | None = None, qkv_bias: bool = False):
        super().__init__(dim, num_heads, qkv_bias)
        self.grid = check_grid(grid)
        self.relative = RelativeLogits(self.head_dim, self.grid)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        q, k, v = self.split(tokens)
        return self.merge(self.relative(q, k, v, grid, mask))
