"""Shared pieces of attention: the key mask, and scores that are not softmax."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None, causal: bool = False, dropout: float = 0.0) -> Tensor:
    """Exact softmax attention.

    Args:
        q, k, v: (B, h, N, d); k and v may have another N.
        mask: (B, keys) bool, True = real key.
        bias: added to the scores, broadcast to (B, h, queries, keys).
        causal: query i sees keys up to i.
        dropout: probability of dropping an attention weight.
    """
    allowed = None if mask is None else mask[:, None, None, :]
    if causal and (mask is not None or bias is not None):
        past = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
        allowed, causal = past if allowed is None else allowed & past, False
    if bias is not None:
        bias = bias.to(q.dtype)
        allowed = bias if allowed is None else torch.where(allowed, bias, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=causal, dropout_p=dropout)


def attend_unnormalised(q: Tensor, k: Tensor, v: Tensor, normalize: str, mask: Tensor | None = None, bias: Tensor | None = None, causal: bool = False) -> Tensor:
    """Attention whose weights do not sum to one: relu(s) / n (arXiv 2309.08586) or sigmoid(s - log n) (arXiv 2409.04431).

    s are the scaled scores and n is the number of keys a query may see; shapes as in `attend`. Makes the (N, N) weights.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    visible = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device)
    visible = visible.tril() if causal else visible
    visible = visible if mask is None else visible & mask[:, None, None, :]
    count = visible.sum(-1, keepdim=True).clamp(min=1)
    weights = scores.relu() / count if normalize == "relu" else (scores - count.to(scores.dtype).log()).sigmoid()
    return weights.masked_fill(~visible, 0).to(v.dtype) @ v
