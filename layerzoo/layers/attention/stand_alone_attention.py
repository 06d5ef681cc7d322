"""Stand-alone self-attention: every position attends to the k x k positions around it, as a convolution looks at them."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer, check_odd
from layerzoo.ops.neighborhoods import attend_windows, neighbourhoods, offset_scores, real_places, seen_near
from layerzoo.ops.windows import blocks_2d, windows_2d


class StandAloneAttention(HeadsLayer):
    """Local self-attention with embeddings of relative rows and columns.

    **Paper**: Stand-Alone Self-Attention in Vision Models, arXiv 1906.05909.

    y_i = W_o concat_h(sum_j softmax_j(q_i (k_j + r[j - i]) / sqrt(d)) v_j), j over the k x k positions around i that are on the map.
    The embedding r of an offset has in its first half one of the row offset and in its second half one of the column offset.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time N k^2 C + N C^2; memory N C + N k^2 h.

    **Args**:
        dim: channels C.
        kernel_size: k, in positions, odd; 7, the paper's.
        num_heads: h; None = one head per 32 channels. The paper has 8 whatever the channels.
        qkv_bias: bias in q, k, v; off, as in the paper.

    **Raises**: ValueError for an even kernel_size, for num_heads that do not divide dim, and for heads of one channel.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("stand_alone_attention", dim=64, kernel_size=5)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: scores are divided by sqrt(d); an output projection, which there is the block's next convolution; beyond
    the border nothing is seen, where the paper's zeros may be; the heads share r, which the paper leaves open; no strides.
    """

    card = Card(
        title="Stand-alone self-attention", paper="1906.05909", year=2019, cost=(1, 1), needs_grid=True, symmetry="translation",
        sizes={"tiny": {"dim": 8, "num_heads": 2, "kernel_size": 3}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "kernel_size": 5, "qkv_bias": True}},
        limit={"equals": "mhsa", "options": {"kernel_size": 11}, "equals_options": {"qkv_bias": False}, "grid": (4, 6),
               "set": {"relative_rows": "zeros", "relative_columns": "zeros"}},
        differs="scores are divided by sqrt(d); an output projection; nothing is seen beyond the border; heads share the embeddings")

    def __init__(self, dim: int, *, kernel_size: int = 7, num_heads: int | None = None, qkv_bias: bool = False):
        super().__init__(dim, num_heads, qkv_bias)
        check_odd("kernel_size", kernel_size)
        if self.head_dim < 2:
            expected = f"at most {dim // 2}, so that a head has a channel for rows and one for columns"
            raise bad_value("num_heads", got=self.num_heads, expected=expected, do="Choose fewer heads.")
        self.kernel_size = kernel_size
        self.relative_rows, self.relative_columns = (
            nn.Parameter(nn.init.trunc_normal_(torch.empty(kernel_size, d), std=self.head_dim**-0.5))
            for d in (self.head_dim // 2, self.head_dim - self.head_dim // 2))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        cut = neighbourhoods(grid, self.kernel_size)
        q, k, v = (t.flatten(0, 1).unflatten(1, grid) for t in self.split(tokens))
        q, k, v = blocks_2d(q, cut[0]), windows_2d(k, *cut), windows_2d(v, *cut)
        seen = seen_near(real_places(tokens, grid, mask), cut, self.kernel_size)
        halves = (q * self.head_dim**-0.5).tensor_split((self.head_dim // 2,), dim=-1)
        scores = offset_scores(*halves, self.relative_rows, self.relative_columns, seen, cut)
        y = attend_windows(q, k, v, scores, grid, cut)
        return self.merge(y.unflatten(0, (-1, self.num_heads)))
