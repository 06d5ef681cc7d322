"""Values of a map between its positions, at points that depend on the input."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from layerzoo.ops.linear_recurrence import full_precision


def sample(x: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of a map at any points; the map is zero outside, and falls to it within one position.

    Args:
        x: (B, C, H, W).
        points: (B, ..., 2), row and column in positions of the map: (0, 0) is its first position, (H - 1, W - 1) its last.
    Returns:
        (B, C, ...) in the dtype of x. Points and weights are at least float32: a half has not the digits for places of a large map.
    """
    (values,) = full_precision(x)
    row, column = points.to(values.dtype).unbind(-1)
    grid = torch.stack([(2 * column + 1) / x.shape[3] - 1, (2 * row + 1) / x.shape[2] - 1], -1)
    y = F.grid_sample(values, grid.flatten(1, -2).unsqueeze(1), align_corners=False)
    return y.squeeze(2).unflatten(2, points.shape[1:-1]).to(x.dtype)


def kernel_points(offset: Tensor) -> Tensor:
    """The points that a k x k kernel reads at every position of a map when each of its places is moved by an offset.

    Args:
        offset: (..., k * k, H, W, 2), rows and columns; the places of the kernel are listed row by row.
    Returns:
        The same shape, at least float32.
    """
    places, height, width, _ = offset.shape[-4:]
    side = math.isqrt(places)
    (offset,) = full_precision(offset)
    kernel = torch.arange(side, device=offset.device) - side // 2
    rows = kernel[:, None, None, None] + torch.arange(height, device=offset.device)[:, None]
    columns = kernel[:, None, None] + torch.arange(width, device=offset.device)
    return torch.stack(torch.broadcast_tensors(rows, columns), -1).flatten(0, 1) + offset
