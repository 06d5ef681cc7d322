"""Scores and weights that depend on the offset between two places of a map, of rows and of columns apart where they can be."""

from __future__ import annotations

import torch
from torch import Tensor


def offsets(length: int, device: torch.device) -> Tensor:
    """(n, n): key minus query along one side."""
    place = torch.arange(length, device=device)
    return place - place[:, None]


def outer_sum(rows: Tensor, columns: Tensor) -> Tensor:
    """Scores of rows (h, H, H') and of columns (h, W, W') as scores of places (h, H W, H' W')."""
    return (rows[:, :, None, :, None] + columns[:, None, :, None, :]).flatten(3).flatten(1, 2)


def mix_apart(rows: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """sum_h R_h V_h C_h^T: what weights that are products of one of rows and one of columns mix, without any matrix of places.

    Args:
        rows: (h, H, H'), weights of a key's row for a query's.
        columns: (h, W, W').
        values: (B, h, H', W', C).
    Returns:
        (B, H, W, C). Time B h C (H' W W' + H H' W).
    """
    # einsum, since matmul would copy the weights for each sample and row
    return torch.einsum("hyr,bhrxc->byxc", rows, torch.einsum("hxs,bhrsc->bhrxc", columns, values))


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of (h, N, N) scores over the real keys of a mask (B, N): (1 or B, h, N, N), zeros where there are none."""
    if mask is None:
        return scores.softmax(-1)[None]
    real = mask[:, None, None, :]
    return scores.masked_fill(~real, torch.finfo(scores.dtype).min).softmax(-1) * real
