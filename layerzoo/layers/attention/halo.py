"""Halo attention: each block of the map attends to itself and a halo around it, with embeddings of relative rows and columns."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.neighborhoods import around, attend_windows, offset_scores, real_places, seen_block
from layerzoo.ops.token_maps import check_count
from layerzoo.ops.windows import blocks_2d, windows_2d


class Halo(HeadsLayer):
    """Blocked local self-attention.

    **Paper**: Scaling Local Self-Attention for Parameter Efficient Visual Backbones (HaloNet), arXiv 2103.12731.

    y_i = W_o concat_h(sum_j softmax_j(q_i k_j / sqrt(d) + q_i (r[y_j - y_i] + c[x_j - x_i])) v_j) for i at row y_i and column x_i, j over
    the block of b x b positions that holds i and the m positions around it on each side. All queries of a block see the same keys.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time N (b + 2 m)^2 C + N C^2; memory N C + N (b + 2 m)^2 h.

    **Args**:
        dim: channels C.
        block_size: b, in positions; 8, the paper's.
        halo_size: m, in positions; 3, the paper's.
        num_heads: h; None = one head per 32 channels; the paper's have 16.
        qkv_bias: bias in q, k, v; off, as in the paper.

    **Raises**: ValueError for a block_size below 1, a halo_size below 0, and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("halo", dim=64, block_size=4, halo_size=1)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: an output projection, which there is the block's next convolution; beyond the border nothing is seen;
    the heads share r and c, as in public code; no strides.
    """

    card = Card(
        title="Halo attention", paper="2103.12731", year=2021, cost=(1, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "block_size": 4, "halo_size": 1}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "block_size": 3, "halo_size": 4, "qkv_bias": True}},
        limit={"equals": "mhsa", "options": {"block_size": 6}, "equals_options": {"qkv_bias": False}, "grid": (4, 6),
               "set": {"relative_rows": "zeros", "relative_columns": "zeros"}},
        differs="an output projection; nothing is seen beyond the border; the heads share the embeddings of offsets")

    def __init__(self, dim: int, *, block_size: int = 8, halo_size: int = 3, num_heads: int | None = None, qkv_bias: bool = False):
        super().__init__(dim, num_heads, qkv_bias)
        check_count("block_size", block_size)
        if halo_size < 0:
            raise bad_value("halo_size", got=halo_size, expected="a whole number >= 0 of positions around a block", do="The paper's is 3.")
        self.block_size, self.halo_size = block_size, halo_size
        self.relative_rows, self.relative_columns = (
            nn.Parameter(nn.init.trunc_normal_(torch.empty(2 * (block_size + halo_size) - 1, self.head_dim), std=self.head_dim**-0.5))
            for _ in range(2))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        cut = around(grid, (self.block_size, self.block_size), self.halo_size)
        q, k, v = (t.flatten(0, 1).unflatten(1, grid) for t in self.split(tokens))
        q, k, v = blocks_2d(q, cut[0]), windows_2d(k, *cut), windows_2d(v, *cut)
        seen = seen_block(real_places(tokens, grid, mask), cut)
        scores = offset_scores(q, q, self.relative_rows, self.relative_columns, seen, cut)
        y = attend_windows(q, k, v, scores, grid, cut)
        return self.merge(y.unflatten(0, (-1, self.num_heads)))
