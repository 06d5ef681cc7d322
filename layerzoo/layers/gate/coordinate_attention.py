"""Coordinate attention: a gate for each row and one for each column of every channel, from the means along them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.layers.base import Layer
from layerzoo.layers.gate.se import squeezed


class CoordinateAttention(Layer):
    """Coordinate attention as a gate.

    **Paper**: Coordinate Attention for Efficient Mobile Network Design, arXiv 2103.02907.

    y[i, j] = r_i * c_j * x[i, j], r_i = sigmoid(W_r f(mean_j x[i, j]) + b_r), c_j = sigmoid(W_c f(mean_i x[i, j]) + b_c),
    f(s) = hardswish(W s + b), W from C channels to R, W_r and W_c back.

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N C for the means and the product, and (H + W) C R; memory N C; 3 C R parameters.

    **Args**:
        dim: channels C.
        reduction: C / R; 32, the paper's. R is rounded to a multiple of 8, 8 at least.

    **Raises**: ValueError for a reduction below 1.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("coordinate_attention", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: no batch norm after W, which has a bias instead: in eval that is the same function, and training works on
    one sample of one place. R is a multiple of 8.
    """

    card = Card(
        title="Coordinate attention", paper="2103.02907", year=2021, cost=(1, 1), mask=False, needs_grid=True, symmetry="translation",
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 15, "reduction": 1}},
        limit={"equals": "identity", "grid": (4, 6),
               "set": {"rows.weight": "zeros", "rows.bias": 50, "columns.weight": "zeros", "columns.bias": 50}},
        differs="no batch norm after the first map, which has a bias instead; the channels between are a multiple of 8",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, *, reduction: int = 32):
        super().__init__(dim)
        hidden = squeezed(dim, reduction)
        self.squeeze = nn.Conv1d(dim, hidden, 1)
        self.rows, self.columns = nn.Conv1d(hidden, dim, 1), nn.Conv1d(hidden, dim, 1)

    def mix(self, x: Tensor) -> Tensor:
        lines = torch.cat([x.mean(3), x.mean(2)], 2)  # (B, C, H + W)
        rows, columns = F.hardswish(self.squeeze(lines)).split(x.shape[2:], dim=2)
        return x * self.rows(rows).sigmoid().unsqueeze(3) * self.columns(columns).sigmoid().unsqueeze(2)
