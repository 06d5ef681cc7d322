"""Shared pieces of attention: who sees whom, softmax attention through the fused kernel, and weights that are made."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from layerzoo.ops.entmax import entmax
from layerzoo.ops.linear_recurrence import full_precision

NORMALIZERS = ("softmax", "relu", "relu_squared", "relu_sum", "sigmoid", "entmax", "none")
ALPHA = 1.5  # of entmax, between softmax (1) and sparsemax (2)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None, causal: bool = False, dropout: float = 0.0, *,
    include_self: bool = True, num_extra: int = 0, sink: Tensor | None = None,
) -> Tensor:
    """Exact softmax attention.

    Args:
        q, k, v: (B, h, N, d); k and v may have another N.
        mask: (B, keys) bool, True = real key.
        bias: added to the scores, broadcast to (B, h, queries, keys).
        causal: query i sees keys up to i.
        dropout: probability of dropping an attention weight.
        include_self: query i sees key i.
        num_extra: keys before all others, which every query sees.
        sink: (h,) scores of one more key, whose value is zero.
    """
    dim, scale = v.shape[-1], None
    if sink is not None:  # read from one more channel, since scores that are added and learned leave the fused kernel
        key = F.pad((sink * q.shape[-1] ** 0.5)[:, None, None].to(k.dtype), (k.shape[-1], 0)).expand(len(k), -1, -1, -1)
        scale, num_extra = q.shape[-1] ** -0.5, num_extra + 1
        q, k, v = F.pad(q, (0, 1), value=1.0), torch.cat([key, F.pad(k, (0, 1))], 2), F.pad(v, (0, 1, 1, 0))
        mask, bias = mask if mask is None else F.pad(mask, (1, 0), value=True), bias if bias is None else F.pad(bias, (1, 0))
    plain = mask is None and bias is None and include_self and not num_extra
    allowed = None if plain else visible(q, k, mask, causal, include_self, num_extra)
    if bias is not None:
        bias = bias.to(q.dtype)
        allowed = bias if allowed is None else torch.where(allowed, bias, float("-inf"))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=causal and plain, dropout_p=dropout, scale=scale)
    return y if sink is None else y[..., :dim]


def visible(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, include_self: bool = True, num_extra: int = 0) -> Tensor | None:
    """Which keys each query sees, broadcast to (B, h, queries, keys), or None if that is all of them; arguments as of `attend`."""
    seen = None if mask is None else mask[:, None, None, :]
    if causal or not include_self:
        pairs = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device)
        past = pairs.tril(num_extra if include_self else num_extra - 1)
        pairs = past if causal else past | pairs.triu(num_extra + 1)
        seen = pairs if seen is None else seen & pairs
    return seen


def make_scores(q: Tensor, k: Tensor, read: Tensor | None = None) -> Tensor:
    """(B, h, queries, keys): q_i . k_j / sqrt(d), or with `read` (h, d) the additive read . tanh(q_i + k_j), in time and memory N^2 d."""
    if read is None:
        return (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return ((q.unsqueeze(-2) + k.unsqueeze(-3)).tanh() @ read[:, None, :, None].to(q.dtype)).squeeze(-1)


def mix_heads(pairs: Tensor, matrix: Tensor | None) -> Tensor:
    """Scores or weights (B, h, queries, keys) of heads that are sums of heads, by the rows of a matrix (h, h); None = as they are."""
    return pairs if matrix is None else (matrix.to(pairs.dtype) @ pairs.flatten(2)).unflatten(2, pairs.shape[2:])


def make_weights(scores: Tensor, normalize: str, seen: Tensor | None, sink: Tensor | None = None) -> Tensor:
    """Weights of the keys that a query sees, zero for the others, from scores (B, h, queries, keys).

    Args:
        normalize: softmax; entmax with ALPHA (arXiv 1905.05702); with n keys that the query sees, relu(s) / n, relu(s)^2 / n (relu_squared)
            or s / n (none; all of arXiv 2309.08586), sigmoid(s - log n) (arXiv 2409.04431), or relu(s) as it is, whose sum grows
            with n (relu_sum).
        seen: of `visible`.
        sink: (h,) scores of one more key, whose weight is left out.
    """
    seen = scores.new_ones(scores.shape[-2:], dtype=torch.bool) if seen is None else seen
    if sink is not None:
        scores = torch.cat([sink[:, None, None].to(scores.dtype).expand(*scores.shape[:3], 1), scores], -1)
        return make_weights(scores, normalize, F.pad(seen, (1, 0), value=True))[..., 1:]
    if normalize == "softmax":
        weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1)
    elif normalize == "entmax":
        (exact,) = full_precision(scores)  # and a score 1 / (alpha - 1) below the largest has no weight
        weights = entmax(torch.where(seen, exact, exact.amin(-1, keepdim=True) - 2 / (ALPHA - 1)), exact.new_tensor(ALPHA))
    else:
        count = seen.sum(-1, keepdim=True).clamp(min=1)
        if normalize == "sigmoid":
            weights = (scores - count.to(scores.dtype).log()).sigmoid()
        else:
            weights = POINTWISE[normalize](scores) / (1 if normalize == "relu_sum" else count)
    return weights.masked_fill(~seen, 0)


POINTWISE = {
    "relu": torch.relu, "relu_sum": torch.relu, "none": lambda scores: scores,
    "relu_squared": lambda scores: full_precision(scores)[0].relu().square(),  # which float16 cannot hold
}
