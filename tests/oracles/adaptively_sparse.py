"""alpha-entmax attention, one query at a time, the threshold found on the sorted support."""

import torch
from oracles.linear_attention import joined, projected


def entmax(scores, alpha):
    """Newton's method from below on sum(p) = 1, whose left side is convex in the threshold."""
    x = (alpha - 1) * scores
    tau = x.max().detach() - 1
    for step in range(40):  # the last two with gradients: the first of them has the threshold's, since its value no longer moves
        with torch.set_grad_enabled(step >= 38):
            inside = x[x > tau] - tau
            tau = tau + ((inside ** (1 / (alpha - 1))).sum() - 1) / (inside ** (1 / (alpha - 1) - 1)).sum() * (alpha - 1)
    return [(v - tau) ** (1 / (alpha - 1)) if v > tau else 0 * v for v in x]


def twin(layer, tokens, grid, mask=None):
    q, k, v = projected(layer, tokens)
    rows = torch.zeros_like(v)
    for n, h, i in torch.cartesian_prod(*(torch.arange(s) for s in v.shape[:3])).tolist():
        seen = [j for j in range(v.shape[2]) if (mask is None or mask[n, j]) and not (layer.causal and j > i)]
        if seen:
            scores = torch.stack([q[n, h, i] @ k[n, h, j] / layer.head_dim**0.5 for j in seen])
            weights = entmax(scores, 1 + layer.sparsity[h, 0, 0].sigmoid())
            y = sum(w * v[n, h, j] for w, j in zip(weights, seen))
            rows = rows.index_put(tuple(torch.tensor(t) for t in (n, h, i)), y)
    return joined(layer, rows, mask)
