"""Fixed sine and cosine positions over the share of the sides that lies behind, mapped to channels by a learned projection."""

import math

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.positions.base import Position


class Fourier2D(Position):
    """x + W [f(row / H), f(col / W')] + b, rows and columns counted from 1, f(p) = [sin(2 pi p w_i), cos(2 pi p w_i)] for each i.

    w_i = temperature^(-i / (num_waves / 2)) for i < num_waves / 2. As it is the share of the side that counts, larger maps of the same
    picture get the same positions, more finely.

    **Paper**: XCiT, arXiv 2106.09681.

    **Shape**: (B, C, H, W') -> the same, any H and W'.

    **Cost**: time N C num_waves, memory N C; 2 C num_waves + C parameters.

    **Args**:
        dim: channels C.
        num_waves: sines and cosines of a row, and of a column, even; 32, the code's.
        temperature: ratio of the longest to the shortest wavelength; 10000, the code's.

    **Raises**: ValueError for a num_waves that is not even or below 2.

    **Example**:
        >>> import torch
        >>> Fourier2D(8)(torch.zeros(1, 8, 6, 5)).shape
        torch.Size([1, 8, 6, 5])

    Positions are computed in float32 whatever the map has, and a side counts as 1e-6 longer, both as in the paper's code.
    """

    card = Card(
        title="2D Fourier positions", paper="2106.09681", year=2021, cost=(1, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 5, "num_waves": 6}})

    def __init__(self, dim: int, *, num_waves: int = 32, temperature: float = 10000.0):
        super().__init__()
        if num_waves < 2 or num_waves % 2:
            raise bad_value("num_waves", got=num_waves, expected="an even number, at least 2", do="The paper's code has 32.")
        self.num_waves, self.temperature = num_waves, temperature
        self.proj = nn.Conv2d(2 * num_waves, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        rows, columns = (self.waves(side, x.device) for side in (height, width))
        places = torch.cat([rows[:, :, None].expand(-1, -1, width), columns[:, None].expand(-1, height, -1)])
        return x + self.proj(places[None].to(x.dtype))

    def waves(self, side: int, device: torch.device) -> Tensor:
        """f of each place along a side, (num_waves, side)."""
        place = torch.arange(1, side + 1, device=device, dtype=torch.float32)
        angle = place / (place[-1:] + 1e-6) * (2 * math.pi)
        even = torch.arange(0, self.num_waves, 2, device=device, dtype=torch.float32)
        angles = angle / (self.temperature ** (even / self.num_waves))[:, None]
        return torch.stack([angles.sin(), angles.cos()], 1).flatten(0, 1)
