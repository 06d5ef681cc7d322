"""Local attention: blocks of queries, each with the keys of its neighbourhood, folded into the batch of one attention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from layerzoo.ops.attention import attend

SHORTEST_BLOCK = 16  # queries that share their keys; fewer waste the kernel


def blocks(x: Tensor, size: int) -> Tensor:
    """(B, N, D), padded by zeros, as (B, n, size, D)."""
    return F.pad(x, (0, 0, 0, -x.shape[1] % size)).unflatten(1, (-1, size))


def windows(x: Tensor, stride: int, width: int, before: int, beside: Tensor | None = None) -> Tensor:
    """(B, N, D) as (B, n, width, D): n = ceil(N / stride) windows, the b-th from b stride - before on, zeros beyond the ends.

    Rows `beside` (B, 1 or n, m, D) stand after those of each window.
    """
    pieces = _pieces(F.pad(x, (0, 0, *_padding(x.shape[1], stride, width, before))), 1, stride, width)
    if beside is not None:
        pieces.append(beside.expand(-1, pieces[0].shape[1], -1, -1))
    return torch.cat(pieces, 2)


def blocks_2d(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W, D), padded by zeros, as (B, n, places, D): blocks and the places in them are read row by row."""
    x = F.pad(x, (0, 0, 0, -x.shape[2] % size[1], 0, -x.shape[1] % size[0]))
    return x.unflatten(2, (-1, size[1])).unflatten(1, (-1, size[0])).transpose(2, 3).flatten(3, 4).flatten(1, 2)


def windows_2d(x: Tensor, stride: tuple[int, int], width: tuple[int, int], before: tuple[int, int]) -> Tensor:
    """(B, H, W, D) as (B, n, places, D): windows along both axes, which with the places in them are read row by row."""
    rows, columns = (_padding(*axis) for axis in zip(x.shape[1:3], stride, width, before, strict=True))
    x = torch.cat(_pieces(F.pad(x, (0, 0, *columns, *rows)), 2, stride[1], width[1]), 3)
    return torch.cat([piece.transpose(2, 3) for piece in _pieces(x, 1, stride[0], width[0])], 3).flatten(3, 4).flatten(1, 2)


def _padding(length: int, stride: int, width: int, before: int) -> tuple[int, int]:
    """Zeros before and after an axis that is read in whole strides."""
    return before, (-(-length // stride) - 1 - -width // stride) * stride - before - length


def _pieces(x: Tensor, dim: int, stride: int, width: int) -> list[Tensor]:
    """Windows along an axis in pieces of at most one stride: their gradient is a few slices, faster than that of unfold."""
    x = x.unflatten(dim, (-1, stride))
    count = x.shape[dim] - -(-width // stride) + 1
    return [x.narrow(dim, i, count).narrow(dim + 1, 0, min(stride, width - i * stride)) for i in range(-(-width // stride))]


def attend_blocks(q: Tensor, kv: Tensor, num_heads: int, seen: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Each block of queries over its own keys.

    Args:
        q: (B, n, size, C).
        kv: (B, n, keys, 2 C), keys beside values.
        num_heads: h.
        seen: (B, n, 1 or size, keys) bool, at least one True for each query.
        bias: added to the scores, (B n, h, size, keys); -inf for what is not seen.
    Returns:
        (B, n, size, C).
    """
    if seen is not None:
        bias = torch.where(seen, 0.0, float("-inf")).flatten(0, 1).unsqueeze(1)
    head_dim = q.shape[3] // num_heads
    k, v = kv.flatten(0, 1).unflatten(2, (2, num_heads, head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
    y = attend(q.flatten(0, 1).unflatten(2, (num_heads, head_dim)).transpose(1, 2), k, v, bias=bias)
    return y.transpose(1, 2).flatten(2).unflatten(0, q.shape[:2])


def attend_within(q: Tensor, kv: Tensor, num_heads: int, real: Tensor, reach: int, spacing: int = 1) -> Tensor:
    """Query i over the keys p with |p spacing - i| <= reach.

    Args:
        q: (B, N, C).
        kv: (B, ceil(N / spacing), 2 C), keys beside values.
        num_heads: h.
        real: (B, N) bool, True = real token, which come first; key p is as real as token p spacing.
        reach: at least spacing - 1, or some queries see no key.
        spacing: tokens from one key to the next.
    Returns:
        (B, N, C).
    """
    length = q.shape[1]
    reach = min(reach, length - 1)
    stride = -(-min(max(reach, SHORTEST_BLOCK), length) // spacing)
    size, before = stride * spacing, reach // spacing
    width = before + (size - 1 + reach) // spacing + 1
    distance = (torch.arange(width, device=q.device) - before) * spacing - torch.arange(size, device=q.device)[:, None]
    seen = windows(real[:, ::spacing, None], stride, width, before).mT & (distance.abs() <= reach)
    seen = seen | ~blocks(real[..., None], size)  # padding sees anything rather than nothing: its output is dropped
    return attend_blocks(blocks(q, size), windows(kv, stride, width, before), num_heads, seen).flatten(1, 2)[:, :length]
