"""Rotary positions in two dimensions: queries and keys are turned by angles that grow with row and column."""

import torch
from torch import Tensor

from layerzoo.card import Card
from layerzoo.positions.base import Position


class RoPE2D(Position):
    """Each pair of channels (a, b) of a query or key is turned by the angle p w_i: half of the pairs by the row p, half by the column.

    **Paper**: RoFormer, arXiv 2104.09864; axial form and base 100 for images, arXiv 2403.13298.

    **Shape**: `rotate(q, grid)`: (B, h, N, d) -> the same, N = H W. Scores then depend on row and column differences alone.

    **Cost**: time and memory N C; no parameters.

    **Args**:
        head_dim: d; channels beyond the last multiple of four are not turned.
        temperature: ratio of the longest to the shortest wavelength; 100, as in arXiv 2403.13298.

    **Example**:
        >>> import torch
        >>> RoPE2D(8).rotate(torch.ones(1, 2, 6, 8), (2, 3)).shape
        torch.Size([1, 2, 6, 8])
    """

    card = Card(
        title="2D rotary position embedding", paper="2403.13298", year=2024, cost=(1, 1), needs_grid=True,
        sizes={"tiny": {"head_dim": 8}, "base": {"head_dim": 32}, "odd": {"head_dim": 6}})
    kind = "rotary"

    def __init__(self, head_dim: int, *, temperature: float = 100.0):
        super().__init__()
        self.pairs, self.temperature = head_dim // 4, temperature

    def rotate(self, q: Tensor, grid: tuple[int, int]) -> Tensor:
        """Turn queries or keys (B, h, N, d) of a map with `grid` = (H, W)."""
        exact = torch.promote_types(q.dtype, torch.float32)  # half-precision angles lose whole turns on large maps
        place = torch.arange(grid[0] * grid[1], device=q.device)
        frequency = self.temperature ** (-torch.arange(self.pairs, device=q.device, dtype=exact) / max(self.pairs, 1))
        angle = torch.cat(((place // grid[1])[:, None] * frequency, (place % grid[1])[:, None] * frequency), -1)
        cos, sin = angle.cos().to(q.dtype), angle.sin().to(q.dtype)
        a, b, rest = q.split((2 * self.pairs, 2 * self.pairs, q.shape[-1] - 4 * self.pairs), -1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos, rest), -1)
