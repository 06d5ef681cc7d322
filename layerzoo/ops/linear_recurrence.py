"""Causal linear attention: sums over the past, in chunks, without an N x N matrix."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 64  # tokens whose pairs are formed at once: time N (64 + d), flat between 32 and 128


def causal_sums(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """y_i = sum_{j <= i} (q_i . k_j) v_j.

    Args:
        q, k: (B, h, N, m) features.
        v: (B, h, N, d).
    Returns:
        (B, h, N, d). Time N m d + N CHUNK (m + d), memory N (m + d) and one (m, d) state per chunk.
    """
    length = q.shape[-2]
    q, k, v = (F.pad(t, (0, 0, 0, -length % CHUNK)).unflatten(-2, (-1, CHUNK)) for t in (q, k, v))
    within = (q @ k.transpose(-2, -1)).tril() @ v
    states = k.transpose(-2, -1) @ v  # (B, h, chunks, m, d)
    before = F.pad(states, (0, 0, 0, 0, 1, 0))[..., :-1, :, :].cumsum(-3)
    return (within + q @ before).flatten(-3, -2)[..., :length, :]


def causal_linear_attention(q: Tensor, k: Tensor, v: Tensor, eps: float) -> Tensor:
    """y_i = sum_{j <= i} (q_i . k_j) v_j / (sum_{j <= i} q_i . k_j + eps), for features q, k >= 0 (B, h, N, m)."""
    weight = (q * k.cumsum(-2)).sum(-1, keepdim=True)
    return causal_sums(q, k, v) / (weight + eps)


def linear_attention(q: Tensor, k: Tensor, v: Tensor, eps: float) -> Tensor:
    """y_i = sum_j (q_i . k_j) v_j / (sum_j q_i . k_j + eps), for features q, k >= 0 (B, h, N, m)."""
    weight = q @ k.sum(-2).unsqueeze(-1)
    return q @ (k.transpose(-2, -1) @ v) / (weight + eps)


def recurrent_step(q: Tensor, k: Tensor, v: Tensor, state: tuple[Tensor, Tensor] | None, eps: float) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One token of `causal_linear_attention`.

    Args:
        q, k: (B, h, m) features of the token.
        v: (B, h, d).
        state: (sum k v^T of shape (B, h, m, d), sum k of shape (B, h, m)); None before the first token.
    Returns:
        (B, h, d) and the state after the token.
    """
    pairs, keys = k.unsqueeze(-1) * v.unsqueeze(-2), k
    if state is not None:
        pairs, keys = state[0] + pairs, state[1] + keys
    weight = (q * keys).sum(-1, keepdim=True)
    return (q.unsqueeze(-2) @ pairs).squeeze(-2) / (weight + eps), (pairs, keys)


def no_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Autocast off, on devices that have it."""
    return torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else contextlib.nullcontext()


def full_precision(*tensors: Tensor) -> list[Tensor]:
    """At least float32: sums over all positions overflow float16 and lose digits in bfloat16."""
    return [t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]
