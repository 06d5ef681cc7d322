"""Quadratic encoding: each head scores a place by its squared distance from a centre it has learned."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.ops.linear_recurrence import full_precision
from layerzoo.ops.offsets import offsets, outer_sum
from layerzoo.positions.base import Position


class Quadratic(Position):
    """b_h[i, j] = -|S_h (j - i - c_h)|^2 / 2, added to the attention scores; j - i is the offset from query to key in (row, column).

    As S grows, head h attends to the place at the offset c_h alone: nine heads are a 3x3 convolution.

    **Paper**: On the Relationship between Self-Attention and Convolutional Layers, arXiv 1911.03584.

    **Shape**: `bias(grid)` -> (h, N, N), N = H W of `grid`.

    **Cost**: time and memory h N^2, or h (H^2 + W^2) where `apart` serves; 3 h parameters, or 6 h.

    **Args**:
        num_heads: h.
        isotropic: S_h is a number s_h times the identity, so that alpha = s^2 / 2; off, any 2 x 2 matrix.

    **Example**:
        >>> Quadratic(9).bias((3, 4)).shape
        torch.Size([9, 12, 12])

    **Differs from the paper**: centres are in (row, column); S is 2 x 2 where its generalised form learns the upper half of S^T S.
    """

    card = Card(
        title="Quadratic relative encoding", paper="1911.03584", year=2019, cost=(2, 2), needs_grid=True,
        sizes={"tiny": {"num_heads": 2}, "base": {"num_heads": 9}, "odd": {"num_heads": 3, "isotropic": False}},
        differs="centres are in (row, column); the generalised form learns S, not S^T S")
    kind = "bias"

    def __init__(self, num_heads: int, *, isotropic: bool = True):
        super().__init__()
        self.centers = nn.Parameter(2 * torch.randn(num_heads, 2))  # the paper's code, as are the spreads
        spread = 1 + 0.01 * torch.randn(num_heads)
        self.spreads = nn.Parameter(spread if isotropic else spread[:, None, None] * torch.eye(2))

    @property
    def separable(self) -> bool:
        """Whether the scores are sums of those of rows and of columns, which `apart` gives."""
        return self.spreads.ndim == 1

    def bias(self, grid: tuple[int, int]) -> Tensor:
        """Scores (h, N, N) for a map of `grid` = (H, W)."""
        if self.separable:
            return outer_sum(*self.apart(grid))
        spreads, from_row, from_column = full_precision(self.spreads), self.from_center(0, grid[0]), self.from_center(1, grid[1])
        along = (outer_sum(s[:, 0, None, None] * from_row, s[:, 1, None, None] * from_column) for s in spreads[0].unbind(1))
        return -0.5 * sum(a.square() for a in along)

    def apart(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Scores of rows (h, H, H) and of columns (h, W, W), whose sums are the scores of an isotropic encoding."""
        weight = -0.5 * full_precision(self.spreads)[0].square()[:, None, None]
        return tuple(weight * self.from_center(side, n).square() for side, n in enumerate(grid))

    def from_center(self, side: int, length: int) -> Tensor:
        """(h, n, n): offset of key from query, less that of the centre, along rows (side 0) or columns."""
        return offsets(length, self.centers.device) - full_precision(self.centers)[0][:, side, None, None]
