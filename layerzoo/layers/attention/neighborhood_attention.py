"""Neighbourhood attention: every position attends to exactly k x k positions, those around it or, at the border, those next to it."""

from torch import Tensor

from layerzoo.card import Card
from layerzoo.layers.base import HeadsLayer, check_odd
from layerzoo.ops.neighborhoods import attend_windows, fold, hidden, neighbourhoods, real_places, seen_moved, table_scores, unfold
from layerzoo.ops.token_maps import check_count
from layerzoo.ops.windows import blocks_2d, windows_2d
from layerzoo.positions.relative_bias import RelativeBias


class NeighborhoodAttention(HeadsLayer):
    """Self-attention of each position to its k x k nearest ones.

    **Paper**: Neighborhood Attention Transformer, arXiv 2204.07143; dilated, arXiv 2209.15001.

    y_i = W_o concat_h(sum_j softmax_j(q_i k_j / sqrt(d) + T_h[i - j]) v_j), j over the k x k positions around i. Where they would cross
    the border they are moved inside, so that every i sees k x k, itself among them; on an axis shorter than k it sees all. With
    dilation s all this is on the map of every s-th position, i among them, and i - j is in steps of s.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time N k^2 C + N C^2; memory N C + N k^2 h.

    **Args**:
        dim: channels C.
        kernel_size: k, in positions, odd; 7, the paper's.
        dilation: s, in positions; 1, the first paper's. In the second every other layer has the largest for which s k <= H.
        num_heads: h; None = one head per 32 channels, the paper's.
        qkv_bias: bias in q, k, v; on, as in the paper's code.

    **Raises**: ValueError for an even kernel_size, a dilation below 1, and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("neighborhood_attention", dim=64, dilation=2)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: a map shorter than s k is taken (there refused); masked tokens are outside the border where whole rows or
    columns at an edge of the map are masked, and elsewhere are not seen.
    """

    card = Card(
        title="Neighborhood attention", paper="2204.07143", year=2022, cost=(1, 1), needs_grid=True, symmetry="translation",
        sizes={"tiny": {"dim": 8, "num_heads": 2, "kernel_size": 3}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "kernel_size": 3, "dilation": 2, "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"kernel_size": 7}, "grid": (4, 6), "set": {"relative_bias.table": "zeros"}},
        differs="maps shorter than dilation times kernel_size are taken; masked rows and columns at an edge are outside the border")

    def __init__(
        self, dim: int, *, kernel_size: int = 7, dilation: int = 1, num_heads: int | None = None, qkv_bias: bool = True,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        check_odd("kernel_size", kernel_size)
        check_count("dilation", dilation)
        self.kernel_size, self.dilation = kernel_size, dilation
        self.relative_bias = RelativeBias(self.num_heads, grid=(kernel_size, kernel_size))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        step = tuple(min(self.dilation, side) for side in grid)
        folded = tuple(-(-side // s) for side, s in zip(grid, step))
        uneven = any(side % s for side, s in zip(grid, step))
        cut = neighbourhoods(folded, self.kernel_size, moved=True, anywhere=uneven or mask is not None)
        q, k, v = (fold(t.flatten(0, 1).unflatten(1, grid), step) for t in self.split(tokens))
        q, k, v = blocks_2d(q, cut[0]), windows_2d(k, *cut), windows_2d(v, *cut)
        seen = seen_moved(real_places(tokens, grid, mask), cut, self.kernel_size, step)
        scores = hidden(table_scores(self.relative_bias.table, cut), seen, step[0] * step[1])
        y = attend_windows(q, k, v, scores, folded, cut)
        y = unfold(y.unflatten(1, folded), step)[:, : grid[0], : grid[1]].flatten(1, 2)
        return self.merge(y.unflatten(0, (-1, self.num_heads)))
