"""Linear attention as attention: the weight of each pair, one query at a time."""

import torch


def phi(x):
    return torch.where(x > 0, x + 1, x.exp())


def projected(layer, tokens):
    """q, k, v as (B, h, N, d), from the rows of the joint projection."""
    batch, length, dim = tokens.shape
    d = dim // layer.num_heads
    y = tokens @ layer.qkv.weight.T
    y = y if layer.qkv.bias is None else y + layer.qkv.bias
    return [y[..., p * dim: (p + 1) * dim].reshape(batch, length, layer.num_heads, d).transpose(1, 2) for p in range(3)]


def joined(layer, heads, mask):
    """Output projection of heads (B, h, N, d), zero at masked tokens."""
    batch, _, length, _ = heads.shape
    y = heads.transpose(1, 2).reshape(batch, length, -1) @ layer.proj.weight.T + layer.proj.bias
    return y if mask is None else y * mask[..., None]


def weighted(weights, v, n, h, i, mask, causal):
    """sum_j w_j v_j / sum_j w_j over the keys that query i may see."""
    seen = [j for j in range(v.shape[2]) if (mask is None or mask[n, j]) and not (causal and j > i)]
    return sum((weights(j) * v[n, h, j] for j in seen), torch.zeros_like(v[n, h, 0])), sum(weights(j) for j in seen)


def twin(layer, tokens, grid, mask=None):
    q, k, v = projected(layer, tokens)
    rows = torch.zeros_like(v)
    for n, h, i in torch.cartesian_prod(*(torch.arange(s) for s in v.shape[:3])).tolist():
        y, total = weighted(lambda j: phi(q[n, h, i]) @ phi(k[n, h, j]), v, n, h, i, mask, layer.causal)
        rows = rows.index_put(tuple(torch.tensor(t) for t in (n, h, i)), y / (total + layer.eps))
    return joined(layer, rows, mask)
