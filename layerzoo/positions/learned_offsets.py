"""Learned relative encoding: a learned vector for each row offset and each column offset, scored by each head."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.layers.base import check_grid
from layerzoo.ops.offsets import offsets, outer_sum
from layerzoo.positions.base import Position


class LearnedOffsets(Position):
    """b_h[i, j] = u_h . r(row of j - row of i) + w_h . c(column of j - column of i), added to the attention scores.

    **Paper**: On the Relationship between Self-Attention and Convolutional Layers, arXiv 1911.03584.

    **Shape**: `bias(grid)` -> (h, N, N), N = H W of `grid`; offsets beyond those of the tables score as the farthest there.

    **Cost**: time and memory h N^2, or h (H^2 + W^2) where `apart` serves; D (2 H + 2 W - 2 + 2 h) parameters.

    **Args**:
        num_heads: h.
        grid: (H, W) the tables r (2 H - 1, D) and c (2 W - 1, D) are built for.
        dim: D; u and w are (h, D).

    **Raises**: ValueError for a grid that is not (H, W).

    **Example**:
        >>> LearnedOffsets(9, grid=(3, 4), dim=8).bias((3, 4)).shape
        torch.Size([9, 12, 12])
    """

    card = Card(
        title="Learned 2D relative encoding", paper="1911.03584", year=2019, cost=(2, 2), needs_grid=True,
        sizes={"tiny": {"num_heads": 2, "grid": (3, 4), "dim": 4}, "base": {"num_heads": 9, "grid": (8, 8), "dim": 64},
               "odd": {"num_heads": 1, "grid": (1, 5), "dim": 3}})
    kind, separable = "bias", True

    def __init__(self, num_heads: int, *, grid: tuple[int, int], dim: int):
        super().__init__()
        self.grid = check_grid(grid)
        tables, readers = (torch.empty(2 * side - 1, dim) for side in grid), (torch.empty(num_heads, dim) for _ in grid)
        self.rows, self.columns, self.read_rows, self.read_columns = (nn.Parameter(nn.init.normal_(t, std=dim**-0.25)) for t in (*tables, *readers))

    def bias(self, grid: tuple[int, int]) -> Tensor:
        """Scores (h, N, N) for a map of `grid` = (H, W)."""
        return outer_sum(*self.apart(grid))

    def apart(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Scores of rows (h, H, H) and of columns (h, W, W), whose sums are the scores."""
        parts = ((self.read_rows, self.rows), (self.read_columns, self.columns))
        return tuple(_by_offset(reader @ table.T, length) for (reader, table), length in zip(parts, grid))


def _by_offset(scores: Tensor, length: int) -> Tensor:
    """(h, 2 n' - 1) scores of offsets -> (h, n, n) of pairs."""
    farthest = scores.shape[1] // 2
    return scores[:, offsets(length, scores.device).clamp(-farthest, farthest) + farthest]
