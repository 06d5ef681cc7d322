"""Relative bias: one learned score per head and per offset between two places."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.layers.base import check_grid
from layerzoo.ops.offsets import offsets
from layerzoo.ops.relative_logits import pair_scores, resize_offsets
from layerzoo.positions.base import Position


class RelativeBias(Position):
    """b_h[(i, j), (k, l)] = T_h[i - k, j - l], added to the attention scores.

    **Paper**: Swin, arXiv 2103.14030; resized for other maps as in CoAtNet, arXiv 2106.04803.

    **Shape**: `bias(grid)` -> (h, N, N), N = H W of `grid`; the table (h, 2H-1, 2W-1) is resized bilinearly for another grid.

    **Cost**: time and memory h N^2; h (2H-1) (2W-1) parameters.

    **Args**:
        num_heads: h.
        grid: (H, W) the table is built for.

    **Raises**: ValueError for a grid that is not (H, W).

    **Example**:
        >>> RelativeBias(2, grid=(3, 4)).bias((3, 4)).shape
        torch.Size([2, 12, 12])
    """

    card = Card(
        title="Relative position bias", paper="2103.14030", year=2021, cost=(2, 2), needs_grid=True,
        sizes={"tiny": {"num_heads": 2, "grid": (3, 4)}, "base": {"num_heads": 4, "grid": (8, 8)}, "odd": {"num_heads": 1, "grid": (1, 5)}})
    kind = "bias"

    def __init__(self, num_heads: int, *, grid: tuple[int, int]):
        super().__init__()
        self.grid = check_grid(grid)
        self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(num_heads, 2 * grid[0] - 1, 2 * grid[1] - 1), std=0.02))

    def bias(self, grid: tuple[int, int]) -> Tensor:
        """Scores (h, N, N) for a map of `grid` = (H, W)."""
        height, width = grid
        rows, columns = (side - 1 - offsets(side, self.table.device) for side in grid)
        return pair_scores(resize_offsets(self.table, (2 * height - 1, 2 * width - 1)), rows, columns)
