"""Fixed sine and cosine positions in two dimensions, at any size."""

import torch
from torch import Tensor

from layerzoo.card import Card
from layerzoo.positions.base import Position


class SinCos2D(Position):
    """x + E, with E(row, col) = [sin(row w), cos(row w), sin(col w), cos(col w)] and w_i = temperature^(-i / (C/4)).

    **Paper**: Attention Is All You Need, arXiv 1706.03762, applied to rows and columns as in arXiv 2205.01580.

    **Shape**: (B, C, H, W) -> the same. Channels beyond the last multiple of four stay as they are.

    **Cost**: time and memory N C; no parameters.

    **Args**:
        dim: channels C.
        temperature: ratio of the longest to the shortest wavelength; 10000, the paper's.

    **Example**:
        >>> import torch
        >>> SinCos2D(8)(torch.zeros(1, 8, 2, 3))[0, :, 0, 0].tolist()
        [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    """

    card = Card(
        title="2D sine-cosine positions", paper="2205.01580", year=2022, cost=(1, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 7}})

    def __init__(self, dim: int, *, temperature: float = 10000.0):
        super().__init__()
        self.waves, self.temperature = dim // 4, temperature

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        frequency = self.temperature ** (-torch.arange(self.waves, device=x.device, dtype=x.dtype) / max(self.waves, 1))
        rows = (torch.arange(height, device=x.device, dtype=x.dtype)[:, None] * frequency).t()[:, :, None].expand(-1, -1, width)
        cols = (torch.arange(width, device=x.device, dtype=x.dtype)[:, None] * frequency).t()[:, None, :].expand(-1, height, -1)
        rest = x.new_zeros(x.shape[1] - 4 * self.waves, height, width)
        return x + torch.cat((rows.sin(), rows.cos(), cols.sin(), cols.cos(), rest))
