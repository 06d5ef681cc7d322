"""Sums over the neighbourhood of each place, with weights of its own."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def local_sums(x: Tensor, weights: Tensor, size: int) -> Tensor:
    """y_i = sum_o w_i[o] x_{i+o} over size x size offsets, read row by row; x is zero outside its map.

    Args:
        x: (B, C, H, W).
        weights: (B, G, size^2, H, W), each set for C / G neighbouring channels.
        size: odd.
    """
    (height, width), groups = x.shape[2:], weights.shape[1]
    x = F.pad(x, (size // 2,) * 4).unflatten(1, (groups, -1))
    y = 0.0
    for offset, weight in enumerate(weights.unsqueeze(2).unbind(3)):  # one shift at a time: patches of all would be size^2 maps
        row, column = divmod(offset, size)
        y = y + weight * x[..., row: row + height, column: column + width]
    return y.flatten(1, 2)
