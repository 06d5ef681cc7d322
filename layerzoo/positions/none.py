"""No position encoding: the baseline that shows what the others bring."""

from torch import Tensor

from layerzoo.card import Card
from layerzoo.positions.base import Position


class NoPosition(Position):
    """The map unchanged.

    **Paper**: none.  **Shape**: (B, C, H, W) -> the same.  **Cost**: none.

    **Example**:
        >>> import torch
        >>> NoPosition(4)(torch.ones(1, 4, 2, 2)).sum().item()
        16.0
    """

    card = Card(title="No position encoding", paper="", year=2017, cost=(0, 0), sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 5}})

    def __init__(self, dim: int):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x
