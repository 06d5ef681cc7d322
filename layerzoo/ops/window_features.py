"""Exact attention weights in a window and random features beyond it, as one softmax."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from layerzoo.ops.attention import attend

HIDDEN = -1e30  # the score of a key that is not seen: finite, so that a block of padding alone is no 0 / 0


def window_and_features(q: Tensor, k: Tensor, v: Tensor, directions: Tensor, real: Tensor, size: int, causal: bool) -> Tensor:
    """y_i = sum_j a_ij v_j / sum_j a_ij with a_ij = exp(q_i . k_j / sqrt(d)) in the window of i, and its estimate by features beyond.

    The estimate is (1 / m) sum_r exp(w_r . q' - |q'|^2 / 2) exp(w_r . k' - |k'|^2 / 2), x' = x d^(-1/4). The window is the block of
    `size` tokens that holds i and those next to it; with causal, that block up to i and the one before.

    Args:
        q, k, v: (B, h, N, d).
        directions: w, (m, d).
        real: (B, N) bool, False = padding.
    Returns:
        (B, h, N, d). Time N (3 size + 2 m) d, memory N (3 + 2 m / size) d + N m for each head.
    """
    dim, length, after = q.shape[-1], q.shape[2], 0 if causal else 1
    q, count = _cut(q, size, 0, 0), -(-length // size)
    k, v, real = (_cut(t, size, 1, after) for t in (k, v, real[:, None, :, None]))
    bias, means = _far(k, v, real, directions, count, causal)
    # Keys have two channels more: a bias, which the query takes once, and what it takes by its length, which only features do.
    none = torch.zeros_like(k[..., :1])
    near = torch.cat([k, none.masked_fill(~real, HIDDEN), none], -1)
    far = (dim**0.25 * directions).expand(*bias.shape, dim)
    far = torch.cat([far, bias.unsqueeze(-1), -torch.ones_like(far[..., :1])], -1)
    q = torch.cat([q * dim**-0.5, torch.ones_like(q[..., :1]), q.square().sum(-1, keepdim=True) * dim**-0.5 / 2], -1)
    keys, values = (
        torch.cat([*(around[:, :, i: i + count] for i in range(2 + after)), beyond], 3).flatten(0, 1)
        for around, beyond in ((near, far), (F.pad(v, (0, 2)), F.pad(means, (0, 2)))))
    visible = None
    if causal:
        visible = torch.ones(size, keys.shape[2], dtype=torch.bool, device=q.device)
        visible[:, : 2 * size] = visible[:, : 2 * size].tril(size)
        visible = torch.where(visible, 0.0, float("-inf"))
    y = attend(q.flatten(0, 1) * (dim + 2) ** 0.5, keys, values, bias=visible)[..., :dim]
    return y.unflatten(0, (-1, near.shape[1])).flatten(2, 3)[:, :, :length]


def _far(k: Tensor, v: Tensor, real: Tensor, directions: Tensor, count: int, causal: bool) -> tuple[Tensor, Tensor]:
    """For each block, the log of the sum of each feature over the keys beyond its window, over m (B, h, n, m), and the means of
    their values, weighted by the feature (B, h, n, m, d). Sums over what is before and after, since differences may be negative.
    """
    k = k * k.shape[-1] ** -0.25
    exponent = k @ directions.T - k.square().sum(-1, keepdim=True) / 2
    least = 0.9 * math.log(torch.finfo(k.dtype).tiny)  # a sum that came nearer to the least number would have no finite gradient
    top = 0.0 if causal else exponent.detach().masked_fill(~real, -torch.inf).amax((2, 3), keepdim=True)  # cancels; may not know the future
    features = (exponent - top).clamp(least, -least).exp()
    sums = features.mT @ (F.pad(v, (0, 1), value=1.0) * real)
    sums = _past(sums, count) if causal else _past(sums, count) + _past(sums.flip(2), count).flip(2)
    weight = sums[..., -1:].clamp(min=torch.finfo(k.dtype).tiny)  # of a window that holds all keys
    bias = (weight.log() + (top if causal else top.mT) - math.log(len(directions))).masked_fill(sums[..., -1:] <= 0, HIDDEN)
    return bias.squeeze(-1), sums[..., :-1] / weight


def _past(sums: Tensor, count: int) -> Tensor:
    """The sums of all blocks before the one that precedes block 1, 2, ..., count; block 0 is the padding before them."""
    return F.pad(sums.cumsum(2), (0, 0, 0, 0, 1, 0))[:, :, :count]


def _cut(x: Tensor, size: int, before: int, after: int) -> Tensor:
    """(B, h, N, d) in blocks (B, h, n, size, d), filled with zeros, as are the blocks added before and after."""
    return F.pad(x, (0, 0, before * size, -x.shape[2] % size + after * size)).unflatten(2, (-1, size))
