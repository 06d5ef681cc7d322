"""Learned absolute positions: one vector for each place of the map, resized for other maps."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.layers.base import check_grid
from layerzoo.positions.base import Position


class LearnedPosition(Position):
    """x + E, with E one learned vector per place.

    **Paper**: ViT, arXiv 2010.11929.

    **Shape**: (B, C, H, W) -> the same, any H and W: E is resized bicubically where they differ from `grid`.

    **Cost**: time and memory N C; H W C parameters.

    **Args**:
        dim: channels C.
        grid: (H, W) the table is built for.

    **Raises**: ValueError for a grid that is not (H, W).

    **Example**:
        >>> import torch
        >>> LearnedPosition(8, grid=(4, 4))(torch.zeros(1, 8, 6, 5)).shape
        torch.Size([1, 8, 6, 5])

    **Differs from the paper**: no class token, so no place for one.
    """

    card = Card(
        title="Learned position embedding", paper="2010.11929", year=2020, cost=(1, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8, "grid": (3, 4)}, "base": {"dim": 64, "grid": (8, 8)}, "odd": {"dim": 5, "grid": (3, 1)}},
        differs="no class token, so no place for one")

    def __init__(self, dim: int, *, grid: tuple[int, int]):
        super().__init__()
        self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, dim, *check_grid(grid)), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        table = self.table
        if table.shape[2:] != x.shape[2:]:
            table = F.interpolate(table, size=x.shape[2:], mode="bicubic", align_corners=False)
        return x + table.to(x.dtype)
