"""Conditional positions: a depthwise convolution whose zero border tells each place where it is."""

from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.positions.base import Position


class ConditionalPosition(Position):
    """x + DWConv(x).

    **Paper**: Conditional Positional Encodings, arXiv 2102.10882.

    **Shape**: (B, C, H, W) -> the same, any H and W.

    **Cost**: time N C kernel_size^2, memory N C.

    **Args**:
        dim: channels C.
        kernel_size: in pixels, odd; 3, the paper's.

    **Example**:
        >>> import torch
        >>> ConditionalPosition(8)(torch.zeros(1, 8, 6, 5)).shape
        torch.Size([1, 8, 6, 5])

    **Differs from the paper**: applied after the stem, not after the first block.
    """

    card = Card(
        title="Conditional positional encoding", paper="2102.10882", year=2021, cost=(1, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 5, "kernel_size": 5}},
        differs="applied after the stem, not after the first block")

    def __init__(self, dim: int, *, kernel_size: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)
