"""Recurrences with a gate, h_i = g_i h_(i-1) + x_i, in chunks, without an N x N matrix and without dividing by products of gates."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from layerzoo.ops.linear_recurrence import CHUNK


def gated_sums(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor) -> Tensor:
    """y_i = sum_{j <= i} (g_{j+1} ... g_i) (q_i . k_j) v_j.

    Args:
        q, k: (B, h, N, m) features.
        v: (B, h, N, d).
        log_gate: (B, h, N), log g <= 0.
    Returns:
        (B, h, N, d). Time N m d + N CHUNK (m + d), memory N (m + d) and one (m, d) state per chunk.
    """
    length, shape = q.shape[-2], (k.shape[-1], v.shape[-1])
    q, k, v = (_cut(t) for t in (q, k, v))
    log_gate = _cut(log_gate.unsqueeze(-1)).squeeze(-1)
    kept = decay(log_gate)
    within = (q @ k.mT * kept) @ v
    states = k.mT @ (v * kept[..., -1, :, None])  # of each chunk alone, at its end
    before = _one_later(decayed_sums(states.flatten(-2), log_gate.sum(-1))).unflatten(-1, shape)
    return _joined(within + (q @ before) * _since_start(log_gate), length)


def decayed_sums(x: Tensor, log_gate: Tensor) -> Tensor:
    """h_i = sum_{j <= i} (g_{j+1} ... g_i) x_j, for x (..., N, f) and log_gate (..., N): chunks, and the same sums over their ends."""
    length = x.shape[-2]
    if length <= CHUNK:
        return decay(log_gate) @ x
    x, log_gate = _cut(x), _cut(log_gate.unsqueeze(-1)).squeeze(-1)
    within = decay(log_gate) @ x
    before = _one_later(decayed_sums(within[..., -1, :], log_gate.sum(-1)))
    return _joined(within + _since_start(log_gate) * before.unsqueeze(-2), length)


def decay(log_gate: Tensor) -> Tensor:
    """(..., n) -> (..., n, n): g_{j+1} ... g_i for j <= i, else 0. Sums of segments, since differences of long sums lose digits."""
    n = log_gate.shape[-1]
    return log_gate.unsqueeze(-1).expand(*log_gate.shape, n).tril(-1).cumsum(-2).exp().tril()


def _since_start(log_gate: Tensor) -> Tensor:
    """(..., n, 1): g_1 ... g_i, what is left at i of the state before the chunk."""
    return log_gate.cumsum(-1).exp().unsqueeze(-1)


def _cut(x: Tensor) -> Tensor:
    """(..., N, f), filled with zeros, as (..., chunks, CHUNK, f)."""
    return F.pad(x, (0, 0, 0, -x.shape[-2] % CHUNK)).unflatten(-2, (-1, CHUNK))


def _joined(x: Tensor, length: int) -> Tensor:
    return x.flatten(-3, -2)[..., :length, :]


def _one_later(x: Tensor) -> Tensor:
    """Row i - 1 at place i, zeros at the first."""
    return F.pad(x, (0, 0, 1, 0))[..., :-1, :]
