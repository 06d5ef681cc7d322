"""Random feature attention as attention: the mean cosine of each pair's difference, one query at a time."""

import torch
from oracles.linear_attention import joined, projected


def share(gate, j, seen):
    """a_j: what token j let in, times what every later token kept; `gate` has a token's g, or is None."""
    if gate is None:
        return torch.ones(())
    kept = 1 - gate(j)
    for later in seen:
        kept = kept * gate(later) if later > j else kept
    return kept


def twin(layer, tokens, grid, mask=None):
    q, k, v = projected(layer, tokens)
    batch, heads, length, d = q.shape
    rows = torch.zeros_like(v)
    for n, h, i in torch.cartesian_prod(*(torch.arange(s) for s in v.shape[:3])).tolist():
        seen = [j for j in range(length) if (mask is None or mask[n, j]) and not (layer.causal and j > i)]
        if not seen:
            continue
        gate = layer.gate and (lambda j, n=n, h=h: 1 / (1 + (-(layer.gate.weight[h] @ tokens[n, j] + layer.gate.bias[h])).exp()))
        unit, scale = (lambda x: x / x.norm(dim=-1, keepdim=True).clamp(min=1e-3)), layer.scale[h * d: h * d + d]
        apart = scale * (unit(q[n, h, i]) - unit(k[n, h, seen]))
        cosines = (apart @ layer.directions[h].T).cos().mean(1)
        shares = torch.stack([share(gate, j, seen) for j in seen]).to(v.dtype)
        weights = shares * cosines
        y = weights @ v[n, h, seen] / max(weights.sum(), layer.eps * shares.sum())
        rows = rows.index_put(tuple(torch.tensor(t) for t in (n, h, i)), y)
    return joined(layer, rows, mask)
