"""Sequences cut into segments: the rows around each of them, and attention scores that depend on a distance."""

import torch
from torch import Tensor
from torch.nn import functional as F


def windows(x: Tensor, size: int, before: int, after: int) -> Tensor:
    """The rows around and in each segment.

    Args:
        x: (..., N, d).
        size: rows of a segment.
        before, after: rows taken before and after it, zeros where there are none; after=-size leaves out the segment itself.
    Returns:
        (..., segments, before + size + after, d), a view of x padded.
    """
    return F.pad(x, (0, 0, before, after - x.shape[-2] % -size)).unfold(-2, before + size + after, size).mT


def sinusoid(distance: Tensor, dim: int) -> Tensor:
    """Distances (n,) -> (n, dim): their sines, then their cosines, with frequencies 10000^(-2 w / dim), w = 0, 1, ..."""
    frequency = 10000.0 ** (-torch.arange(0, dim, 2, device=distance.device, dtype=distance.dtype) / dim)
    angle = distance[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], 1)[:, :dim]


def scores_by_distance(q: Tensor, r: Tensor, keys: int) -> Tensor:
    """q_i . r(distance from key j to query i), the last of the keys standing at the last query.

    Args:
        q: (b, h, n, d).
        r: (h, D, d), rows for the distances keys - 1, keys - 2, ..., keys - D, with D > keys. Scores at distances beyond the last
            row are meaningless: a causal caller needs no row below -1.
        keys: number of keys.
    Returns:
        (b, h, n, keys), a view: row i of q . r shifted to the left by n - 1 - i, as the next row begins where one ends.
    """
    queries, step = q.shape[2], r.shape[1] - 1
    scores = (q.transpose(0, 1).flatten(1, 2) @ r.mT).unflatten(1, (-1, queries)).flatten(2)
    shifted = scores[..., queries - 1: queries - 1 + queries * step].unflatten(2, (queries, step))[..., :keys]
    return shifted.transpose(0, 1)
