"""Multi-scale attention: keys and values pooled by strided convolutions, and positions that enter the scores by rows and by columns."""

from torch import Tensor

from layerzoo.card import Card
from layerzoo.layers.base import HeadsLayer, check_odd
from layerzoo.ops.pooling_attention import PoolingAttention
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
               "set": {"attention.row_table": "zeros", "attention.column_table": "zeros"}},
        differs="queries keep their resolution; far offsets share a row, where the paper resizes the tables; no class token")

    def __init__(
        self, dim: int, *, stride: int = 2, kernel_size: int = 3, reach: int = 32, residual_query: bool = True,
        num_heads: int | None = None, qkv_bias: bool = True,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        check_count("stride", stride)
        check_odd("kernel_size", kernel_size)
        check_count("reach", reach)
        self.attention = PoolingAttention(self.head_dim, kernel_size, 1, stride, reach, residual_query)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        return self.merge(self.attention(*self.split(tokens), grid, mask))
